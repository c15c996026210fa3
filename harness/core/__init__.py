"""Arithmetic alone, on the standard library: cases, work, GPUs, records and token cost."""
