"""Triton kernels as users write them execute correctly, and no violation is found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("user_kernels.py")


def wrong(capability, *names):
    """What is wrong with each check that is not right."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, PROGRAM, str(capability), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    verdicts = json.loads(done.stdout)
    assert verdicts
    return {name: verdict for name, verdict in verdicts.items() if verdict}


def test_some_kernels_with_tma():
    names = ("atomics", "ctas_that_rely_on_one_another", "device_descriptors", "host_descriptors")
    assert wrong(90, *names) == {}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
def test_all_kernels(capability):
    assert wrong(capability) == {}
