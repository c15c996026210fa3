"""The table of docs/evidence.md, of what `decodetax execute` executes: the gate runs it as a step of its own.

With DECODETAX_FULL_MATRIX=2 it executes the complete list for every GPU of the page, in about an hour.
"""

import os
import re
from collections import Counter
from pathlib import Path

import pytest
import triton
from hand_made import decodetax, strict_json

PAGE = (Path(__file__).parents[2] / "docs" / "evidence.md").read_text(encoding="utf-8")
TABLE = re.findall(r"(?m)^\| (\S+) \| (\w+) \| (\d+) \| ([\d,]+) \| (0\.\d+) \| (\d+) \|$", PAGE)
FULL = os.environ.get("DECODETAX_FULL_MATRIX") == "2"
LIMIT_CPU_S = 2 * 300  # five minutes on two idle cores
MATMULS = {"A100-SXM4-80GB": 78, "RTX-3090": 78, "L40S": 78, "H100-SXM5-80GB": 107, "RTX-5090": 107}


def executed(*gpus):
    outcome = decodetax("execute", "--gpu", *gpus, "--json")
    assert outcome.code == 0, outcome.out[-2000:]
    return strict_json(outcome.out)["rows"]


def summary(rows):
    """A row of the table for each GPU and kernel."""
    groups = {}
    for row in rows:
        if row["status"] == "ok":
            groups.setdefault((row["gpu"], row["kernel"]), []).append(row)
    return [
        (
            gpu,
            kernel,
            len(group),
            sum(launch["ctas"] for row in group for launch in row["launches"]),
            max(row["relative_error"] / row["tolerance"] for row in group),
            sum(len(row["violations"]) for row in group),
        )
        for (gpu, kernel), group in groups.items()
    ]


@pytest.mark.slow
@pytest.mark.skipif(FULL, reason="the complete list is executed")
def test_the_page_has_the_table_of_what_was_executed(monkeypatch):
    monkeypatch.delenv("DECODETAX_FULL_MATRIX", raising=False)
    begin_s = sum(os.times()[:4])
    found = summary(executed("a100", "h100", "rtx-5090"))
    cpu_s = sum(os.times()[:4]) - begin_s  # workers included
    assert all(
        cases >= 20 for _, kernel, cases, *_ in found if kernel in {"decode_attention", "prefill_matmul"}
    )
    if triton.__version__ == "3.9.0":
        written = [
            (gpu, kernel, int(cases), int(ctas.replace(",", "")), float(share), int(violations))
            for gpu, kernel, cases, ctas, share, violations in TABLE
        ]
        assert [row[:4] for row in written] == [row[:4] for row in found], found
        for (*_, share, violations), (*_, found_share, found_violations) in zip(written, found, strict=True):
            assert violations == found_violations == 0
            assert share == pytest.approx(found_share, abs=0.01)
    assert 60 < cpu_s <= LIMIT_CPU_S


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="takes about an hour")
def test_the_complete_list_has_no_violation_on_any_gpu():
    rows = executed("a100", "rtx3090", "l40s", "h100", "rtx-5090")
    counted = Counter((row["gpu"], row["kernel"]) for row in rows if row["status"] == "ok")
    assert counted == {
        (gpu, kernel): cases
        for gpu, matmuls in MATMULS.items()
        for kernel, cases in (
            ("decode_attention", 114),
            ("prefill_attention", 14 if gpu == "RTX-5090" else 16),  # float8 prompts: see the page
            ("prefill_matmul", matmuls),
            ("merge_states", 7),
        )
    }
