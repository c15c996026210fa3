"""The records of a run, and their JSON."""

import json
import math
import statistics

import pytest
from decodetax.harness.core.cases import DecodeAttention
from decodetax.harness.core.records import Ceiling, Roof, Row
from decodetax.harness.core.sweep import cases_of
from decodetax.harness.core.work import Work
from hand_made import (
    SMALL_MATMUL,
    TINY,
    ceilings,
    check,
    failed_row,
    gap,
    ok_row,
    run_record,
    strict_json,
    sweep,
)

NO_ROOF = Roof(flop_per_s=None, bandwidth_bytes_per_s=None)


def work(operations, bytes_total):
    return Work(operation_terms={"all": operations}, read_terms={"all": bytes_total}, written_terms={})


def written(run):
    """The run's JSON, parsed again as strictly as the standard has it."""
    return strict_json(json.dumps(run.to_json()))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        pytest.param({"status": "ok"}, "samples_s", id="ok without samples"),
        pytest.param({"status": "ok", "samples_s": (1.0,), "reason": "why"}, "reason", id="ok with a reason"),
        *(
            pytest.param({"status": status, **fields}, named, id=f"{status} {what}")
            for status in ("failed", "skipped", "unsupported")
            for fields, named, what in (
                ({"samples_s": (1.0,), "reason": "why"}, "samples_s", "with samples"),
                ({}, "reason", "without a reason"),
            )
        ),
    ],
)
def test_rejects_a_row_with_contradictory_fields(fields, named):
    with pytest.raises(ValueError, match=f"^{named}: "):
        Row(case=SMALL_MATMUL, provider="torch", **fields)


@pytest.mark.parametrize("status", ["failed", "skipped", "unsupported"])
def test_row_that_is_not_ok_has_no_figures(status):
    row = Row(case=SMALL_MATMUL, provider="torch", status=status, reason="why")
    roof = Roof(flop_per_s=1e9, bandwidth_bytes_per_s=1e8)
    assert row.figures(roof, roof) is None
    [entry] = written(run_record(rows=[row], ceilings=ceilings()))["rows"]
    assert (entry["status"], entry["reason"]) == (status, "why")
    assert (entry["samples_s"], entry["time_s"], entry["figures"]) == ([], None, None)


def test_figures_of_an_ok_row_by_hand():
    row = ok_row(SMALL_MATMUL, samples_s=(2e-6, 1e-6, 3e-6))  # median 2 us; 210 operations, 142 bytes
    figures = row.figures(
        Roof(flop_per_s=1e9, bandwidth_bytes_per_s=1e8),  # 0.21 us of arithmetic, 1.42 us of bytes
        Roof(flop_per_s=4.2e8, bandwidth_bytes_per_s=1e12),  # 0.5 us of arithmetic
    )
    assert figures == {
        "operations_per_byte": 210 / 142,
        "flop_per_s": pytest.approx(1.05e8),
        "bandwidth_bytes_per_s": pytest.approx(7.1e7),
        "bound": "memory",
        "share_of_measured_ceiling": pytest.approx(0.71),
        "above_measured_ceiling": False,
        "share_of_datasheet_ceiling": pytest.approx(0.25),
    }


def test_unknown_roofs_leave_only_rates():
    row = ok_row(SMALL_MATMUL, samples_s=(2e-6,))
    figures = row.figures(Roof(flop_per_s=1e9, bandwidth_bytes_per_s=1e8), NO_ROOF)
    assert (figures["share_of_measured_ceiling"], figures["bound"]) == (pytest.approx(0.71), "memory")
    assert figures["share_of_datasheet_ceiling"] is None
    figures = row.figures(NO_ROOF, NO_ROOF)
    assert figures["flop_per_s"] == pytest.approx(1.05e8)
    assert (figures["bound"], figures["share_of_measured_ceiling"]) == (None, None)


@pytest.mark.parametrize(
    ("operations", "bytes_total", "least_s", "side"),
    [
        pytest.param(1000, 10, 10.0, "compute", id="many operations a byte"),
        pytest.param(1000, 200, 20.0, "memory", id="few operations a byte"),
        pytest.param(1000, 100, 10.0, "memory", id="at the balance point"),
        pytest.param(0, 10, 1.0, "memory", id="no operations"),
    ],
)
def test_roofline_time_is_that_of_the_slower_side(operations, bytes_total, least_s, side):
    roof = Roof(flop_per_s=100.0, bandwidth_bytes_per_s=10.0)
    assert roof.balance_operations_per_byte == 10.0
    assert roof.roofline_time_s(work(operations, bytes_total)) == (least_s, side)


@pytest.mark.parametrize(
    "known",
    [{}, {"flop_per_s": 1.0}, {"bandwidth_bytes_per_s": 1.0}],
    ids=["neither", "arithmetic", "memory"],
)
def test_roof_with_an_unknown_side_has_no_balance_and_no_roofline_time(known):
    roof = Roof(**{"flop_per_s": None, "bandwidth_bytes_per_s": None, **known})
    assert roof.balance_operations_per_byte is None
    assert roof.roofline_time_s(work(1, 1)) is None


ALL_CEILINGS = [
    Ceiling(kind="copy_bandwidth", provenance="measured", bandwidth_bytes_per_s=1.0),
    Ceiling(kind="read_bandwidth", provenance="datasheet", bandwidth_bytes_per_s=2.0),
    Ceiling(kind="matmul", provenance="datasheet", dtype="bf16", flop_per_s=3.0),
    Ceiling(kind="matmul", provenance="measured", dtype="fp32", flop_per_s=4.0),
    Ceiling(kind="read_bandwidth", provenance="measured", bandwidth_bytes_per_s=5.0),
    Ceiling(kind="matmul", provenance="measured", dtype="bf16", flop_per_s=6.0),
    Ceiling(kind="matmul", provenance="measured", dtype="fp16", reason="not implemented"),
]


@pytest.mark.parametrize(
    ("dtype", "provenance", "flop_per_s", "bandwidth_bytes_per_s"),
    [
        ("bf16", "measured", 6.0, 5.0),
        ("fp32", "measured", 4.0, 5.0),
        ("fp16", "measured", None, 5.0),
        ("bf16", "datasheet", 3.0, 2.0),
        ("fp32", "datasheet", None, 2.0),
    ],
)
def test_roof_selects_ceilings_of_its_dtype_and_provenance(
    dtype, provenance, flop_per_s, bandwidth_bytes_per_s
):
    assert Roof.of(ALL_CEILINGS, dtype=dtype, provenance=provenance) == Roof(
        flop_per_s=flop_per_s, bandwidth_bytes_per_s=bandwidth_bytes_per_s
    )


def test_run_has_a_measured_and_a_datasheet_roof():
    run = run_record(ceilings=ALL_CEILINGS)
    assert (run.measured.flop_per_s, run.datasheet.flop_per_s) == (6.0, 3.0)


def test_failures_are_the_failed_rows_and_checks():
    skipped = Row(case=SMALL_MATMUL, provider="torch", status="skipped", reason="out of memory")
    unsupported = Row(case=SMALL_MATMUL, provider="triton", status="unsupported", reason="no GPU")
    failed, wrong = failed_row(SMALL_MATMUL), check(status="failed", reason="wrong result")
    run = run_record(
        rows=[ok_row(SMALL_MATMUL), skipped, failed, unsupported], interpreter_checks=[check(), wrong]
    )
    assert run.failures == [failed, wrong]


def full_run(**changes):
    rows = [
        ok_row(
            case, samples_s=tuple(1e-3 * (1 + (7 * i) % 5) for i in range(1, 9)), throttle_reasons=("heat",)
        )
        for case in cases_of(TINY, sweep(batches=(1, 3), contexts=(16, 40)))
    ]
    return run_record(
        **{
            "rows": [*rows, failed_row(SMALL_MATMUL)],
            "ceilings": [*ceilings(), *ceilings(provenance="datasheet", flop_per_s=2e9)],
            "gaps": [gap(), gap(batch=3, usd_per_hour=3.6)],
            "interpreter_checks": [check(), check(status="failed", reason="wrong", relative_error=0.5)],
            **changes,
        }
    )


def test_figures_follow_from_samples_work_and_ceilings_in_the_json():
    document = written(full_run())
    rates = {
        (c["kind"], c["provenance"]): c["bandwidth_bytes_per_s"] or c["flop_per_s"]
        for c in document["ceilings"]
    }
    ok = [row for row in document["rows"] if row["status"] == "ok"]
    assert len(ok) == 24
    for row in ok:
        terms = row["work"]
        assert terms["operations"] == sum(terms["operation_terms"].values())
        assert terms["bytes_read"] == sum(terms["read_terms"].values())
        assert terms["bytes_written"] == sum(terms["written_terms"].values())
        median = statistics.median(row["samples_s"])
        assert row["time_s"]["median"] == median
        total = terms["bytes_read"] + terms["bytes_written"]
        figures = row["figures"]
        assert figures["flop_per_s"] == pytest.approx(terms["operations"] / median)
        assert figures["bandwidth_bytes_per_s"] == pytest.approx(total / median)
        assert figures["operations_per_byte"] == pytest.approx(terms["operations"] / total)
        for provenance in ("measured", "datasheet"):
            compute_s = terms["operations"] / rates["matmul", provenance]
            memory_s = total / rates["read_bandwidth", provenance]
            share = figures[f"share_of_{provenance}_ceiling"]
            assert share == pytest.approx(max(compute_s, memory_s) / median)
            if provenance == "measured":
                assert figures["bound"] == ("compute" if compute_s > memory_s else "memory")


@pytest.mark.parametrize("error", [math.inf, math.nan], ids=["infinite", "nan"])
@pytest.mark.parametrize("where", ["rows", "interpreter_checks"])
def test_json_stays_strict_with_an_infinite_error(where, error):
    reason = f"wrong result: relative error {error} in row 3, at most 0.01 allowed"
    entry = {"status": "failed", "reason": reason, "relative_error": error, "tolerance": 0.01}
    entries = {"rows": [failed_row(SMALL_MATMUL, **entry)], "interpreter_checks": [check(**entry)]}
    [found] = written(run_record(**{where: entries[where]}))[where]
    assert found["reason"] == reason
    assert found["tolerance"] == 0.01


def test_json_of_a_row_has_its_case_id_operation_and_shape():
    case = DecodeAttention(contexts=(0, 5), q_heads=4, kv_heads=2, head_dim=16, dtype="bf16")
    [row] = written(run_record(rows=[ok_row(case, "torch-matmul")]))["rows"]
    assert (row["case"], row["provider"], row["operation"]) == (case.id, "torch-matmul", "decode_attention")
    assert row["shape"] == {"contexts": [0, 5], "q_heads": 4, "kv_heads": 2, "head_dim": 16, "dtype": "bf16"}


def test_gap_by_hand():
    found = gap().to_json()
    assert found["input_s_per_token"] == 4.0
    assert found["output_s_per_token"] == 40.0
    assert found["gap"] == 10.0
    assert (found["input_tokens_per_s"], found["output_tokens_per_s"]) == (0.25, 0.025)


def test_json_of_a_gap_has_dollars_only_where_a_price_is_known():
    assert not [key for key in gap().to_json() if "usd" in key]
    # 3.6 $ an hour is 0.001 $ a second: a million tokens of 4 s are 4000 $.
    priced = gap(usd_per_hour=3.6).to_json()
    assert priced["usd_per_hour"] == 3.6
    assert priced["input_usd_per_mtok"] == pytest.approx(4000.0)
    assert priced["output_usd_per_mtok"] == pytest.approx(40000.0)


def test_rows_of_two_rounds_are_merged():
    first = ok_row(SMALL_MATMUL, samples_s=(1.0, 2.0), rounds=(0, 0), relative_error=0.1, clock_before_hz=1e9)
    later = ok_row(
        SMALL_MATMUL, samples_s=(3.0,), rounds=(1,), relative_error=0.05, clock_before_hz=2e9,
        clock_after_hz=3e9, throttle_reasons=("heat",),
    )  # fmt: skip
    found = first.with_round(later)
    assert (found.samples_s, found.rounds) == ((1.0, 2.0, 3.0), (0, 0, 1))
    assert (found.relative_error, found.clock_before_hz, found.clock_after_hz) == (0.1, 1e9, 3e9)
    assert found.throttle_reasons == ("heat",)


@pytest.mark.parametrize(("status", "counts"), [("failed", True), ("skipped", False), ("unsupported", False)])
def test_later_failure_replaces_the_row_and_later_skip_does_not(status, counts):
    first = ok_row(SMALL_MATMUL, rounds=(0,))
    later = Row(case=SMALL_MATMUL, provider="torch", status=status, reason="why")
    assert first.with_round(later) == (later if counts else first)
    assert later.with_round(first) == later


def test_rejects_other_than_one_round_per_sample():
    with pytest.raises(ValueError, match="rounds: 2 of 1 samples"):
        ok_row(SMALL_MATMUL, rounds=(0, 1))
