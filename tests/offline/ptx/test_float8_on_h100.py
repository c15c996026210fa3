"""Float8 matmuls for sm_90, executed: none uses registers of a wgmma in flight."""

import json
from pathlib import Path

import pytest
from compiled_program import output_of


@pytest.mark.slow
def test_no_form_uses_registers_of_a_wgmma_in_flight_but_an_imprecise_limit_of_tl_dot_does():
    rows = json.loads(output_of(Path(__file__).with_name("float8_on_h100.py")))
    used = {
        name for name, row in rows.items() if "use of registers of a wgmma in flight" in row["violations"]
    }
    assert used == {"imprecise"}
    assert rows["descriptors"]["violations"] == rows["split"]["violations"] == []
    assert all(row["error"] < 1e-6 for row in rows.values())
