"""Measures on a device: runs and tuning; compares and reports runs."""
