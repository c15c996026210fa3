"""Fixtures of the kernel tests."""

import dataclasses

import pytest


@pytest.fixture
def overflow_raises(monkeypatch):
    """32-bit arithmetic that overflows fails instead of wrapping."""
    from triton.runtime.interpreter import interpreter_builder  # noqa: PLC0415  (after TRITON_INTERPRET is set)

    monkeypatch.setattr(
        interpreter_builder, "options", dataclasses.replace(interpreter_builder.options, debug=True)
    )
