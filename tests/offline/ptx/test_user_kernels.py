"""Triton kernels as users write them execute correctly, and no violation is found."""

import json
from pathlib import Path

import pytest
from compiled_program import output_of

PROGRAM = Path(__file__).with_name("user_kernels.py")


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 120])
def test_all_kernels(capability):
    verdicts = json.loads(output_of(PROGRAM, capability))
    assert verdicts
    assert {name: verdict for name, verdict in verdicts.items() if verdict} == {}
