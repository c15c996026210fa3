"""`decodetax inspect` of this package's kernels."""

from pathlib import Path

import pytest
import triton
from decodetax.harness.offline import workers
from decodetax.harness.offline.compiled_rows import CompiledRow, LaunchName, failed_row
from decodetax.harness.offline.headroom import Limit
from hand_made import assert_misuse, decodetax, strict_json

INSPECT_KEYS = {
    *("kernel", "variant", "gpu", "dtype", "tiling", "status", "reason", "registers", "spill_bytes"),
    *("shared_bytes", "programs_per_sm", "matrix_instruction", "load_bytes", "asynchronous"),
    *("loop_instructions", "issue_headroom", "latency_headroom", "latency_headroom_at_wait"),
    *("schedule_efficiency", "limit", "provenance"),
}
EVIDENCE = (Path(__file__).parents[2] / "docs" / "evidence.md").read_text(encoding="utf-8")
NAME = LaunchName(kernel="decode_attention", variant="contiguous", gpu="B200", dtype="bf16", tiling={})


@pytest.mark.parametrize(
    "arguments", [["--gpu", "h10"], ["--gpu", "h100", "b20"], ["--gpu", "h100,"]], ids=" ".join
)
def test_rejects_an_unknown_gpu(arguments):
    assert_misuse(decodetax("inspect", *arguments), "--gpu")


def assert_example_of_the_page(h100):
    """The example by hand of docs/evidence.md has these figures of H100."""
    ahead, at_wait = h100["latency_headroom"], h100["latency_headroom_at_wait"]
    bandwidth, share = h100["limit"]["bandwidth_bytes_per_s"], h100["limit"]["share_of_peak"]
    for figure in (
        f"{h100['bytes_per_iteration']:.0f} bytes, all useful",
        f"{h100['loop_instructions']} instructions per warp",
        f"{h100['shared_bytes']} bytes of shared memory",
        f"{h100['programs_per_sm']} programs per SM",
        f"**issue headroom {h100['issue_headroom']:.1f}**",
        f"**Latency headroom {ahead:.1f}, at the wait {at_wait:.1f}.**",
        f"**tensor-core share {h100['matrix_share']:.2f}**",
        f"{bandwidth / 1e9:.0f} GB/s, share {share:.3f}",
    ):
        assert figure in EVIDENCE


def test_bounds_each_launch_on_each_gpu():
    arguments = ("--gpu", "h100", "sm_80", "--kernel", "decode_attention", "--dtype", "bf16", "--json")
    outcome = decodetax("inspect", *arguments)
    assert outcome.code == 0
    rows = strict_json(outcome.out)["rows"]
    assert {row["gpu"] for row in rows} == {"H100-SXM5-80GB", "A100-SXM4-80GB"}
    for row in rows:
        assert row.keys() >= INSPECT_KEYS
        assert (row["status"], row["reason"], row["spill_bytes"]) == ("ok", None, 0)
    contiguous = [row for row in rows if row["variant"] == "contiguous:split_kv"]
    assert [row["limit"]["which"] for row in contiguous] == ["memory", "memory"]
    assert all(row["asynchronous"] and row["load_bytes"] == 16 for row in contiguous)
    assert all(0 < row["schedule_efficiency_ragged"] < row["schedule_efficiency"] <= 1 for row in contiguous)
    if triton.__version__ == "3.9.0":
        assert_example_of_the_page(contiguous[0])


def test_text_has_80_columns_and_a_line_for_a_launch_that_does_not_compile(monkeypatch):
    limit = Limit(which="memory", bandwidth_bytes_per_s=3.3e12, flop_per_s=None, share_of_peak=0.988)
    good = CompiledRow(**vars(NAME), status="ok", registers=158, issue_headroom=9.44, limit=limit)
    rows = (good, failed_row(NAME, "no such thing"))
    monkeypatch.setattr(workers, "inspect_cases", lambda *_args, **_named: rows)
    outcome = decodetax("inspect", "--gpu", "b200")
    assert outcome.code == 1
    lines = outcome.out.splitlines()
    assert lines[0] == "decode_attention on B200"
    assert "contiguous  bf16         158  memory   99%" in lines
    assert lines[-1] == "failed: B200 decode_attention contiguous bf16: no such thing"
    assert max(map(len, lines)) <= 80
    assert "issue headroom" in decodetax("inspect", "--gpu", "b200", "--wide").out
