"""Float8 matmuls for sm_90, executed: none uses registers of a wgmma in flight."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_no_form_uses_registers_of_a_wgmma_in_flight_but_an_imprecise_limit_of_tl_dot_does():
    script = Path(__file__).with_name("float8_on_h100.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=True
    )
    rows = json.loads(done.stdout)
    used = {
        name for name, row in rows.items() if "use of registers of a wgmma in flight" in row["violations"]
    }
    assert used == {"imprecise"}
    assert rows["descriptors"]["violations"] == rows["split"]["violations"] == []
    assert all(row["error"] < 1e-6 for row in rows.values())
