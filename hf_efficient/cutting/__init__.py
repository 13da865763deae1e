"""Cutting a model to size: what each cut costs in error and in time, which cuts to make, making and repairing them."""
