"""Arithmetic alone, on the standard library: cases, work, peaks, records and token cost."""
