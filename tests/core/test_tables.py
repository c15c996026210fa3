"""The tables of a run made by hand."""

import re

import pytest
from decodetax.harness.core import tables
from decodetax.harness.core.cases import PrefillMatmul
from decodetax.harness.core.records import Ceiling, Row
from hand_made import SMALL_MATMUL, ceilings, check, failed_row, gap, ok_row, run_record

ALL_TABLES = [tables.ceilings_table, tables.kernels_table, tables.gap_table, tables.interpreter_table]


def cells(table):
    """Cells of each line of a table below its headers, split where two spaces stand."""
    lines = table.splitlines()
    start = next(i for i, line in enumerate(lines) if re.fullmatch(r"[- ]+", line))
    return [re.split(r" {2,}", line.strip()) for line in lines[start + 1 :]]


def headers(table):
    return re.split(r" {2,}", table.splitlines()[1].strip())


@pytest.mark.parametrize("table", ALL_TABLES, ids=lambda table: table.__name__)
def test_empty_run_has_a_table_that_says_none(table):
    text = table(run_record(interrupted=True))
    assert text.splitlines()[1:] == ["(none)"]


def test_ceilings_stand_measured_beside_the_datasheet():
    run = run_record(
        ceilings=[
            *ceilings(provenance="datasheet", bandwidth_bytes_per_s=3.35e12, flop_per_s=989e12),
            *ceilings(bandwidth_bytes_per_s=3e12, flop_per_s=7e14),
            Ceiling(
                kind="copy_bandwidth", provenance="measured", bandwidth_bytes_per_s=2.5e12, detail="a copy"
            ),
            Ceiling(kind="matmul", provenance="measured", dtype="fp32", flop_per_s=5e13, detail="a product"),
        ]
    )
    table = tables.ceilings_table(run)
    assert headers(table)[1:3] == ["measured", "datasheet"]
    assert cells(table) == [
        ["read bandwidth", "3000 GB/s", "3350 GB/s", "read of a measured buffer"],
        ["bf16 matmul", "700 TFLOP/s", "989 TFLOP/s", "measured matmul"],
        ["copy bandwidth", "2500 GB/s", "-", "a copy"],
        ["fp32 matmul", "50 TFLOP/s", "-", "a product"],
    ]


def test_ceiling_that_could_not_be_measured_tells_why():
    run = run_record(
        ceilings=[Ceiling(kind="matmul", provenance="measured", dtype="fp16", reason="out of memory")]
    )
    assert cells(tables.ceilings_table(run)) == [["fp16 matmul", "-", "-", "out of memory"]]


def kernel_run(**changes):
    # 210 operations and 142 bytes in 2 us; 1.42 us of bytes measured, 0.5 us of arithmetic by the datasheet.
    row = ok_row(SMALL_MATMUL, "triton", samples_s=(2e-6, 1e-6, 3e-6))
    roofs = [*ceilings(), *ceilings(provenance="datasheet", flop_per_s=4.2e8, bandwidth_bytes_per_s=1e12)]
    return run_record(**{"rows": [row], "ceilings": roofs, **changes})


def test_kernel_row_by_hand():
    table = tables.kernels_table(kernel_run())
    found = dict(zip(headers(table), cells(table)[0], strict=True))
    assert found == {
        "case": SMALL_MATMUL.id,
        "provider": "triton",
        "operations": "210",
        "bytes": "142",
        "ops:bytes": "1.48",
        "median": "2 us",
        "95% interval": "1 us to 3 us",
        "FLOP/s": "105 M",
        "GB/s": "0.071",
        "bound": "memory",
        "of measured": "71%",
        "of datasheet": "25%",
    }


def test_kernels_of_an_unknown_device_have_no_share_of_the_datasheet():
    table = tables.kernels_table(kernel_run(ceilings=ceilings()))
    found = dict(zip(headers(table), cells(table)[0], strict=True))
    assert (found["of measured"], found["of datasheet"]) == ("71%", "-")


def test_kernels_without_ceilings_have_rates_alone():
    table = tables.kernels_table(kernel_run(ceilings=[]))
    found = dict(zip(headers(table), cells(table)[0], strict=True))
    assert (found["FLOP/s"], found["bound"], found["of measured"]) == ("105 M", "-", "-")


def test_failed_row_is_shown_with_its_reason_and_without_figures():
    text = tables.kernels_table(kernel_run(rows=[failed_row(SMALL_MATMUL, "triton", relative_error=0.5)]))
    assert f"FAILED: {SMALL_MATMUL.id} triton: wrong result: row 3" in text.splitlines()
    assert "FLOP/s" not in text


@pytest.mark.parametrize(
    ("provider", "facts", "shown"),
    [
        ("triton", {"variant": "warp_specialized"}, "triton (warp-specialized)"),
        ("triton", {"variant": "pointers", "tiling": {"block_m": 16}}, "triton (pointers), tuned"),
        ("triton-warp-specialized", {"variant": "warp_specialized"}, "triton-warp-specialized"),
        ("torch", {}, "torch"),
    ],
)
def test_row_says_which_variant_ran(provider, facts, shown):
    run = kernel_run(rows=[ok_row(SMALL_MATMUL, provider, samples_s=(1e-6,), **facts)])
    assert cells(tables.kernels_table(run))[0][1] == shown
    assert run.to_json()["rows"][0]["variant"] == facts.get("variant")


def test_each_failed_row_has_a_line_of_its_own():
    rows = [failed_row(SMALL_MATMUL, provider) for provider in ("torch", "triton")]
    text = tables.kernels_table(kernel_run(rows=[*rows, ok_row(SMALL_MATMUL, "other")]))
    assert [line.split(":")[0] for line in text.splitlines()].count("FAILED") == 2


def test_rows_not_run_are_counted_by_reason():
    def row(status, reason):
        return Row(case=SMALL_MATMUL, provider="triton", status=status, reason=reason)

    rows = [row("unsupported", "no GPU")] * 3 + [row("skipped", "out of memory: 3 GB")]
    lines = tables.kernels_table(kernel_run(rows=rows)).splitlines()
    assert "unsupported: triton: no GPU (3 rows)" in lines
    assert "skipped: triton: out of memory: 3 GB (1 row)" in lines


def test_throttled_row_is_marked():
    rows = [
        ok_row(SMALL_MATMUL, "torch", samples_s=(1e-6,)),
        ok_row(SMALL_MATMUL, "triton", samples_s=(1e-6,), throttle_reasons=("power cap", "heat")),
    ]
    lines = tables.kernels_table(kernel_run(rows=rows)).splitlines()
    assert [line for line in lines if "throttled" in line] == [
        f"throttled: {SMALL_MATMUL.id} triton: power cap, heat"
    ]


def test_gap_row_by_hand():
    table = tables.gap_table(run_record(gaps=[gap()]))
    found = dict(zip(headers(table), cells(table)[0], strict=True))
    assert [found[name] for name in ("batch", "context", "prompt")] == ["1", "16", "16"]
    assert found["input tokens/s"] == "0.25"
    assert found["output tokens/s"] == "0.025"
    assert found["gap"] == "10.00"
    assert [cells(table)[0][i] for i in (-2, -1)] == ["1.25", "1.50"]


def test_no_dollars_without_a_price():
    assert "$" not in tables.gap_table(run_record(gaps=[gap(), gap(batch=8)]))


def test_dollars_with_a_price():
    # 3.6 $ an hour: 4 s and 40 s a token are 4000 $ and 40000 $ a million tokens.
    table = tables.gap_table(run_record(gaps=[gap(usd_per_hour=3.6)], usd_per_hour=3.6))
    found = dict(zip(headers(table), cells(table)[0], strict=True))
    assert (found["$ per 1M input"], found["$ per 1M output"]) == ("4,000", "40,000")


def test_rates_of_a_fast_device_are_written_out():
    parts = {"projections": 1.5e-5, "attention": 2e-6, "rest": 2e-6, "lm_head": 1e-6}  # 20 us: 50000 tokens/s
    table = tables.gap_table(run_record(gaps=[gap(input_parts_s=parts, output_parts_s=parts)]))
    found = dict(zip(headers(table), cells(table)[0], strict=True))
    assert (found["input tokens/s"], found["output tokens/s"]) == ("50,000", "50,000")


def test_triton_gap_has_a_column_where_it_ran():
    table = tables.gap_table(run_record(gaps=[gap(triton_gap=12.5), gap(batch=8)]))
    column = headers(table).index("gap, Triton alone")
    assert [row[column] for row in cells(table)[:2]] == ["12.50", "-"]
    assert "Triton" not in tables.gap_table(run_record(gaps=[gap()]))


def test_gap_table_names_the_providers_it_was_taken_from():
    text = tables.gap_table(
        run_record(gaps=[gap(), gap(batch=8, providers={"prefill/qkv/m3-k5-n7/bf16": "triton"})])
    )
    assert text.splitlines()[-1] == (
        "fastest correct provider: prefill qkv: torch, triton; decode attention: torch-matmul"
    )


def test_batch_and_context_without_a_gap_are_named():
    record = run_record(gaps=[gap()])
    record.settings = {**record.settings, "batches": (1, 8), "contexts": (16,)}
    assert tables.gap_table(record).endswith("no gap at batch 8 and context 16: a case of it has no ok row")


def test_gap_table_survives_a_layer_that_was_not_compared():
    table = tables.gap_table(
        run_record(gaps=[gap(prefill_layer_over_parts=None, decode_layer_over_parts=None)])
    )
    assert cells(table)[0][-2:] == ["-", "-"]


@pytest.mark.parametrize(
    ("fields", "row"),
    [
        pytest.param({}, ["agrees", "0.001", "0.008"], id="agrees"),
        pytest.param(
            {"status": "failed", "reason": "wrong result: row 3", "relative_error": float("inf")},
            ["FAILED", "inf", "0.008", "wrong result: row 3"],
            id="infinitely wrong",
        ),
        pytest.param(
            {"status": "failed", "reason": "TypeError: no", "relative_error": None, "tolerance": None},
            ["FAILED", "-", "-", "TypeError: no"],
            id="raised",
        ),
    ],
)
def test_interpreter_check_says_whether_it_agrees(fields, row):
    table = tables.interpreter_table(run_record(interpreter_checks=[check(**fields)]))
    assert cells(table) == [[SMALL_MATMUL.id, "triton", *row]]


def test_interpreter_table_has_no_times():
    table = tables.interpreter_table(run_record(interpreter_checks=[check()]))
    assert not re.search(r"\d (s|ms|us|ns)\b|/s\b", table)


@pytest.mark.parametrize(
    ("rows", "operations", "total"),
    [
        # 2 x 1000 x 1000 x rows operations; (2 x 1000 x rows + 1000 x 1000) x 2 bytes
        pytest.param(1, "2 M", "2.004 M", id="millions"),
        pytest.param(1000, "2 G", "6 M", id="billions"),
        pytest.param(1_234_567, "2.469 T", "4.94 G", id="trillions"),
    ],
)
def test_large_numbers_have_a_prefix(rows, operations, total):
    case = PrefillMatmul(
        phase="prefill", part="o", rows=rows, in_features=1000, out_features=1000, dtype="bf16"
    )
    assert cells(tables.kernels_table(run_record(rows=[ok_row(case)])))[0][2:4] == [operations, total]


@pytest.mark.parametrize(
    ("time_s", "text"),
    [
        (12.5, "12.5 s"),
        (1.0, "1 s"),
        (0.0625, "62.5 ms"),
        (1e-3, "1 ms"),
        (2.5e-4, "250 us"),
        (3e-8, "0.03 us"),
    ],
)
def test_times_have_a_unit(time_s, text):
    row = ok_row(SMALL_MATMUL, samples_s=(time_s,))
    assert cells(tables.kernels_table(run_record(rows=[row])))[0][5:7] == [text, f"{text} to {text}"]


def test_plain_table_keeps_cells_as_they_are():
    text = tables.plain_table([{"name": "a", "figure": "007"}, {"name": None, "figure": 1.5}])
    assert cells("\n" + text) == [["a", "007"], ["-", "1.5"]]


COUNTERS = {"dram_bytes_read": 160.0, "dram_bytes_written": 53.0, "matrix_active_share": 0.25}


def test_counters_stand_beside_the_bytes_that_a_case_needs():
    rows = [ok_row(SMALL_MATMUL, "triton", counters=COUNTERS), ok_row(SMALL_MATMUL)]
    table = tables.counters_table(run_record(rows=rows))
    assert headers(table)[2:] == [
        "bytes (modelled)",
        "DRAM read",
        "DRAM written",
        "DRAM/modelled",
        "matrix units",
    ]
    assert cells(table) == [[SMALL_MATMUL.id, "triton", "142", "160", "53", "1.5", "25%"]]


@pytest.mark.parametrize(
    ("counters", "line"),
    [
        (None, "Hardware counters were not read: no permission"),
        (COUNTERS, "Hardware counters of other rows were not read: no permission"),
    ],
    ids=["of none", "of some"],
)
def test_why_counters_are_missing_is_told(counters, line):
    run = run_record(rows=[ok_row(SMALL_MATMUL, counters=counters)])
    run.counters_reason = "no permission"
    assert tables.counters_table(run).splitlines()[-1] == line


def test_a_run_that_was_not_asked_for_counters_says_nothing_of_them():
    assert tables.counters_table(run_record(rows=[ok_row(SMALL_MATMUL)])) == ""
