"""Pure functions on tensors and modules; nothing here knows a Trainer."""
