"""Tests of core run on small tensors."""

from small_tensors import one_thread, small_block

__all__ = ["one_thread", "small_block"]
