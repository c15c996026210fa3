"""Triton kernels as users write them execute correctly, and no violation is found."""

import json
from pathlib import Path

import pytest
from compiled_program import output_of

PROGRAM = Path(__file__).with_name("user_kernels.py")


def wrong(capability, *names):
    """What is wrong with each check that is not right."""
    verdicts = json.loads(output_of(PROGRAM, capability, *names))
    assert verdicts
    return {name: verdict for name, verdict in verdicts.items() if verdict}


def test_some_kernels_with_tma():
    names = (
        "atomics",
        "ctas_that_rely_on_one_another",
        "device_descriptors",
        "host_descriptors",
        "numpys_writes",
    )
    assert wrong(90, *names) == {}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
def test_all_kernels(capability):
    assert wrong(capability) == {}
