"""Scenarios: what answers, marks, watches and recommends with finished models. One per file; see docs/apps.md."""
