"""Machine code of `merge_states`: one launch of any number of parts, no spills, loads of 16 bytes a lane."""

import json
from pathlib import Path

import pytest
from compiled_program import output_of

PROGRAM = Path(__file__).with_name("merge_forms.py")


@pytest.mark.slow
@pytest.mark.parametrize("gpu", ["a100", "l40s", "h100", "b200", "rtx-5090"])
def test_forms_of_merge_states_compile_without_spills(gpu):
    found = json.loads(output_of(PROGRAM, gpu).splitlines()[-1])
    assert len(found) == 7
    for name, form in found.items():
        assert form["launches"] == 1, name
        assert form["spills"] == 0, name
        assert form["wide_loads"] >= 4, (name, form)
