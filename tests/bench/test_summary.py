"""The sentences about a run made by hand: its device, workload and results."""

import re

import pytest
from decodetax.harness.bench.summary import heading, sentences, workload
from decodetax.harness.core.gap import Interval
from decodetax.harness.core.sweep import cases_of
from hand_made import CPU, GPU, TINY, ceilings, failed_row, gap, ok_row, run_record, sweep


def layers_run(balance, **changes):
    """A run of every case; a layer has 28 operations a byte in prefill, 1 to 4 in decode."""
    rows = [ok_row(case) for case in cases_of(TINY, sweep(batches=(1, 2, 4)))]
    roof = ceilings(bandwidth_bytes_per_s=1e9, flop_per_s=balance * 1e9)
    return run_record(**{"rows": rows, "ceilings": roof, **changes})


def test_heading_of_a_cpu():
    lines = heading(run_record()).splitlines()
    assert lines[0].startswith("CPU: Made-up CPU, 8 GiB memory, 2 cores, AVX2, 32 MiB last-level cache")
    assert "python 3.11" in lines[1]
    assert "cuda none" in lines[1]
    assert lines[1].endswith("commit unknown")


def test_heading_names_a_cpu_quota_and_an_assumed_cache():
    device = {**CPU, "cpu_quota_cores": 1.5, "last_level_cache_assumed": True}
    [first, _] = heading(run_record(device=device)).splitlines()
    assert "2 cores (quota 1.5), AVX2, 32 MiB last-level cache (assumed)" in first


def test_heading_of_a_gpu_names_driver_clock_and_power_limit():
    [first, _] = heading(run_record(device=GPU)).splitlines()
    for fact in ("Made-up GPU", "80 GiB", "9.0", "132 SMs", "driver 570.1", "1980 MHz", "700 W"):
        assert fact in first
    silent = {k: v for k, v in GPU.items() if k not in {"driver", "sm_clock_hz", "power_limit_w"}}
    assert not re.search("driver|MHz|power", heading(run_record(device=silent)))


def test_workload_names_model_dtype_and_price_with_its_source():
    text = workload(run_record(usd_per_hour=3.5))
    assert text.startswith("Model: tiny, 1.5")
    for part in ("bf16", "32 tokens", "$3.5 per hour", "on demand, a list of prices"):
        assert part in text
    assert "$" not in workload(run_record())


@pytest.mark.parametrize("dtype", ["auto", "bf16"])
def test_empty_run_has_no_sentences(dtype):
    run = run_record(interrupted=True)
    run.settings = {**run.settings, "dtype": dtype}
    assert list(sentences(run)) == []
    assert heading(run)
    assert workload(run)


def test_run_with_only_ceilings_gives_the_balance():
    run = run_record(ceilings=ceilings(bandwidth_bytes_per_s=1e10, flop_per_s=5e11), interrupted=True)
    assert list(sentences(run)) == ["This device balances at 50 FLOP per byte in bf16 (measured)."]


@pytest.mark.parametrize(
    "some", [ceilings(provenance="datasheet"), ceilings()[1:]], ids=["datasheet", "matmul"]
)
def test_no_balance_without_both_measured_ceilings(some):
    assert list(sentences(run_record(ceilings=some))) == []


def test_gap_at_the_smallest_and_the_largest_batch():
    gaps = [
        gap(batch=32, output_parts_s={"projections": 1.0, "attention": 5.0, "rest": 1.0, "lm_head": 1.0}),
        gap(batch=1),
        gap(batch=8),
    ]
    text = " ".join(sentences(run_record(gaps=gaps)))
    assert "10 times an input token at batch 1 and context 16" in text
    assert "2 times at batch 32" in text
    assert "batch 8" not in text


def test_a_gap_is_told_with_its_interval():
    found = gap(gap_interval=Interval(low=9.512, high=10.987))
    assert next(sentences(run_record(gaps=[found]))) == (
        "An output token costs 10 times (9.51 to 11) an input token at batch 1 and context 16."
    )


def test_single_gap_and_its_shares_by_hand():
    # Of 40 s: 6 + 4 weights, 20 KV cache, 10 the rest.
    assert list(sentences(run_record(gaps=[gap()]))) == [
        "An output token costs 10 times an input token at batch 1 and context 16.",
        "At batch 1 and context 16 an output token's time is 25% weights, 50% KV cache and 25% the rest.",
    ]


@pytest.mark.parametrize(
    ("balance", "prefill", "decode"),
    [
        pytest.param(10.0, "compute", "memory", id="between prefill and decode"),
        pytest.param(500.0, "memory", "memory", id="above both"),
        pytest.param(0.1, "compute", "compute", id="below both"),
    ],
)
def test_side_of_the_balance_point_of_each_phase(balance, prefill, decode):
    [text] = sentences(layers_run(balance))
    assert text.startswith(f"This device balances at {balance:.3g} FLOP per byte in bf16 (measured): ")
    sides = re.findall(r"(prefill|decode)[^;]*(compute|memory)-bound", text)
    assert dict(sides) == {"prefill": prefill, "decode": decode}


def test_failed_rows_are_neither_compute_nor_memory_bound():
    run = layers_run(10.0)
    run.rows = [failed_row(row.case) for row in run.rows]
    assert list(sentences(run)) == ["This device balances at 10 FLOP per byte in bf16 (measured)."]


def test_order_of_rows_does_not_matter():
    run = layers_run(10.0)
    forward = list(sentences(run))
    run.rows = run.rows[::-1]
    assert list(sentences(run)) == forward
