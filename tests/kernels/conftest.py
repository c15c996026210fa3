"""Fixtures of the kernels' tests."""

import dataclasses

import pytest
from triton.runtime.interpreter import interpreter_builder


@pytest.fixture
def overflow_raises(monkeypatch):
    """32-bit arithmetic that overflows fails instead of wrapping."""
    monkeypatch.setattr(
        interpreter_builder, "options", dataclasses.replace(interpreter_builder.options, debug=True)
    )
