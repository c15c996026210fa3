"""Compiled kernels executed on small cases: the cases, their calls, and a row for each."""
