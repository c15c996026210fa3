"""The tables of a run made by hand, and as CSV and Markdown."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from decodetax.harness.bench import gap_tables, run_tables
from decodetax.harness.bench.chart_data import price_ratios
from decodetax.harness.bench.report_command import markdown_report, run_text
from decodetax.harness.bench.summary import failures, sentences
from decodetax.harness.core.gap import Interval
from decodetax.harness.core.records import Ceiling, Row
from decodetax.harness.core.run_file import read_run
from decodetax.harness.cost.prices import price_list
from hand_made import SMALL_MATMUL, ceilings, check, failed_row, gap, ok_row, run_record
from report_runs import SCRIPT, hostile_run, priced_run, whole_run, with_intervals

RATIOS = price_ratios(price_list())
DOCS_RUN = Path(__file__).resolve().parents[2] / "docs" / "runs" / "cpu-epyc-2-cores.json"
COUNTERS = {"dram_bytes_read": 160.0, "dram_bytes_written": 53.0, "matrix_active_share": 0.25}


def shown(table):
    """The rows of a table as a terminal shows them, by heading."""
    headings = [column.heading for column in table.columns]
    return [
        dict(zip(headings, (c.text(value) for c, value in zip(table.columns, row, strict=True)), strict=True))
        for row in table.rows
    ]


def kernel_run(**changes):
    # 210 operations and 142 bytes in 2 us; 1.42 us of bytes measured, 0.5 us of arithmetic by the datasheet.
    row = ok_row(SMALL_MATMUL, "triton", samples_s=(2e-6, 1e-6, 3e-6))
    roofs = [*ceilings(), *ceilings(provenance="datasheet", flop_per_s=4.2e8, bandwidth_bytes_per_s=1e12)]
    return run_record(**{"rows": [row], "ceilings": roofs, **changes})


def kernels(**changes):
    return shown(run_tables.kernels_table({"a": kernel_run(**changes)}))


def gaps(*some):
    return shown(gap_tables.gaps_table({"a": run_record(gaps=list(some))}))


def test_ceilings_are_shown_measured_and_of_the_datasheet():
    run = run_record(
        ceilings=[
            *ceilings(provenance="datasheet", bandwidth_bytes_per_s=3.35e12, flop_per_s=989e12),
            *ceilings(bandwidth_bytes_per_s=3e12, flop_per_s=7e14),
            Ceiling(kind="matmul", provenance="measured", dtype="fp16", reason="out of memory"),
        ]
    )
    found = [list(row.values()) for row in shown(run_tables.ceilings_table({"a": run}))]
    assert found == [
        ["read bandwidth", "-", "3,000", "-", "-", "3,350", "-", "-", "read of a measured buffer"],
        ["matmul", "bf16", "-", "700 T", "-", "-", "989 T", "-", "measured matmul"],
        ["matmul", "fp16", "-", "-", "-", "-", "-", "out of memory", "-"],
    ]


def test_kernel_row_by_hand():
    [row] = kernels()
    assert row == {
        "case": SMALL_MATMUL.id,
        "provider": "triton",
        "shape": "rows 3, in_features 5, out_features 7, dtype bf16",
        "operations": "210",
        "bytes": "142",
        "ops:bytes": "1.48",
        "median": "2 us",
        "95% from": "1 us",
        "to": "3 us",
        "samples": "3",
        "rounds": "1",
        "FLOP/s": "105 M",
        "GB/s": "0.071",
        "bound": "memory",
        "of roof": "71%",
        "above ceiling": "-",
        "of datasheet roof": "25%",
        "throttled": "-",
        "DRAM read": "-",
        "DRAM written": "-",
        "DRAM over needed": "-",
        "tensor cores active": "-",
    }


@pytest.mark.parametrize(
    ("roofs", "bound", "measured", "datasheet"), [(ceilings(), "memory", "71%", "-"), ([], "-", "-", "-")]
)
def test_kernels_lack_the_shares_of_roofs_that_are_unknown(roofs, bound, measured, datasheet):
    [row] = kernels(ceilings=roofs)
    assert row["FLOP/s"] == "105 M"
    assert (row["bound"], row["of roof"], row["of datasheet roof"]) == (bound, measured, datasheet)


def test_counters_are_shown_beside_modelled_bytes_and_throttled_rows_are_marked():
    facts = {"counters": COUNTERS, "throttle_reasons": ("power cap", "heat")}
    rows = [ok_row(SMALL_MATMUL, "triton", **facts), ok_row(SMALL_MATMUL)]
    [row] = shown(run_tables.counters_table(run_record(rows=rows)))
    assert list(row.values()) == [SMALL_MATMUL.id, "triton", "142", "160 B", "53 B", "1.5", "25%"]
    assert row.items() <= kernels(rows=rows)[0].items()
    assert [row["throttled"] for row in kernels(rows=rows)] == ["power cap, heat", "-"]


@pytest.mark.parametrize(
    ("provider", "facts", "name"),
    [
        ("triton", {"variant": "warp_specialized"}, "triton (warp-specialized)"),
        ("triton", {"variant": "pointers", "tiling": {"block_m": 16}}, "triton (pointers), tuned"),
        ("triton-warp-specialized", {"variant": "warp_specialized"}, "triton-warp-specialized"),
        ("torch", {}, "torch"),
    ],
)
def test_provider_name_says_which_variant_ran(provider, facts, name):
    row = ok_row(SMALL_MATMUL, provider, samples_s=(1e-6,), **facts)
    assert kernels(rows=[row])[0]["provider"] == name
    assert run_record(rows=[row]).to_json()["rows"][0]["variant"] == facts.get("variant")


def test_rows_that_were_not_timed_are_counted_by_reason_and_failed_ones_named():
    def row(status, reason):
        return Row(case=SMALL_MATMUL, provider="triton", status=status, reason=reason)

    rows = [
        *(row("unsupported", "no GPU") for _ in range(3)),
        row("skipped", "out of memory: 3 GB"),
        *(failed_row(SMALL_MATMUL, provider, relative_error=0.5) for provider in ("torch", "triton")),
        ok_row(SMALL_MATMUL, "other"),
    ]
    run = kernel_run(rows=rows)
    assert [tuple(row.values()) for row in shown(run_tables.not_timed_summary(run))] == [
        ("unsupported", "triton", "3", "no GPU"),
        ("skipped", "triton", "1", "out of memory: 3 GB"),
    ]
    assert list(failures(run)) == [
        f"FAILED: {SMALL_MATMUL.id} {provider}: wrong result: row 3" for provider in ("torch", "triton")
    ]
    assert [row["provider"] for row in kernels(rows=rows)] == ["other"]
    every = shown(run_tables.not_timed_table({"a": run}))
    assert [row["relative error"] for row in every] == ["-"] * 4 + ["0.5"] * 2


def test_gap_row_by_hand():
    [row] = gaps(gap())
    assert [value for heading, value in row.items() if "95%" not in heading] == [
        "1", "16", "16", "0.25", "0.025", "10.00", "-", "-", "-", "1.25", "1.50", "torch, torch-matmul",
    ]  # fmt: skip
    assert {value for heading, value in row.items() if "95%" in heading} == {"-"}
    [row] = gaps(gap(prefill_layer_over_parts=None, triton_gap=12.5))
    assert (row["layer over parts, prefill"], row["gap, Triton alone"]) == ("-", "12.50")
    # 3.6 $ an hour: 4 s and 40 s a token are 4000 $ and 40000 $ a million tokens.
    [row] = gaps(gap(usd_per_hour=3.6))
    assert (row["$ per 1M input"], row["$ per 1M output"]) == ("4,000", "40,000")


def test_intervals_of_a_gap_by_hand():
    # 10 from 9 to 12; 4 s a token from 3.6 to 4.8, so 1 / 4.8 to 1 / 3.6 tokens/s and 3,600 to 4,800 $.
    found = with_intervals(
        usd_per_hour=3.6, triton_gap=12.5, triton_gap_interval=Interval(low=11.0, high=13.0)
    )
    [row] = gaps(found)
    assert {heading: value for heading, value in row.items() if "95%" in heading} == {
        "95% interval": "9 to 12",
        "95% interval, input tokens/s": "0.208 to 0.278",
        "95% interval, output tokens/s": "0.0208 to 0.0278",
        "95% interval, gap, Triton alone": "11 to 13",
        "95% interval, $ per 1M input": "3,600 to 4,800",
        "95% interval, $ per 1M output": "36,000 to 48,000",
    }
    table = gap_tables.gaps_table({"": run_record(gaps=[found])})
    assert "9 to 12" in table.text()
    assert "3,600 to 4,800" not in table.text()
    assert "3,600 to 4,800" in table.text(wide=True)
    assert "| 9 to 12 |" in table.markdown()
    assert ">9 to 12<" in table.html()
    [entry] = csv.DictReader(io.StringIO(table.csv()))
    assert (float(entry["measured_gap_low"]), float(entry["measured_gap_high"])) == (9.0, 12.0)
    assert float(entry["measured_input_tokens_per_s_high"]) == pytest.approx(1 / 3.6)
    assert float(entry["measured_at_the_price_of_the_device_output_usd_per_mtok_low"]) == pytest.approx(
        36_000
    )


@pytest.mark.parametrize(
    ("fields", "row"),
    [
        ({}, ["agrees", "-", "0.001", "0.008"]),
        (
            {"status": "failed", "reason": "wrong result: row 3", "relative_error": float("inf")},
            ["FAILED", "wrong result: row 3", "inf", "0.008"],
        ),
        (
            {"status": "failed", "reason": "TypeError: no", "relative_error": None, "tolerance": None},
            ["FAILED", "TypeError: no", "-", "-"],
        ),
    ],
    ids=["agrees", "infinitely wrong", "raised"],
)
def test_interpreter_check_says_whether_it_agrees_and_has_no_times(fields, row):
    table = run_tables.interpreter_table({"a": run_record(interpreter_checks=[check(**fields)])})
    assert list(shown(table)[0].values()) == [SMALL_MATMUL.id, "triton", *row]


def test_each_figure_has_a_provenance_and_each_key_is_unique():
    names_a_row = {
        "run", "batch", "context", "prompt", "case", "provider", "providers", "shape", "status", "reason",
        "how", "where", "ceiling", "dtype", "field", "value", "forward", "by", "sequences", "tokens",
        "layers", "limited_by",
    }  # fmt: skip
    tables = run_tables.run_tables({"a": whole_run()}, RATIOS)
    assert [table.id for table in tables] == [table.id for table in run_tables.run_tables({}, ())]
    for table in tables:
        assert {column.key for column in table.columns if not column.provenance} <= names_a_row
        keys = [key for column in table.columns for key in column.keys]
        assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("run", [read_run(DOCS_RUN), whole_run(), priced_run(), hostile_run()])
def test_every_table_fits_80_columns_unless_wide(run):
    table_lines = [line for line in run_text(run, wide=False).splitlines() if "  " in line]
    assert len(table_lines) > 20
    assert [line for line in table_lines if len(line) > 80] == []
    for table in run_tables.run_tables({"a": run}, RATIOS):
        head = table.text(wide=True).partition("---")[0]
        for at, column in enumerate(table.columns):
            assert column.heading in head or not [row for row in table.rows if row[at] not in (None, "")]


def read_csv(*runs):
    tables = run_tables.run_tables({f"run {at}": run for at, run in enumerate(runs)}, RATIOS)
    return {table.id: list(csv.DictReader(io.StringIO(table.csv()))) for table in tables}


def test_csv_keeps_all_digits_and_says_provenance_and_unit():
    run = priced_run()
    run.rows[0] = replace(run.rows[0], counters=COUNTERS, rounds=(0, 0, 1))
    found = read_csv(run)
    kernels = found["kernels"]
    assert len(kernels) == sum(row.status == "ok" for row in run.rows)
    first, row = kernels[0], run.rows[0]
    assert first["case"] == row.case.id
    assert float(first["measured_median_s"]) == row.time_s.median
    assert int(first["modelled_operations"]) == row.case.work().operations
    assert (first["measured_samples"], first["measured_rounds"]) == (str(len(row.samples_s)), "2")
    for name, value in COUNTERS.items():
        assert float(first[f"measured_by_hardware_counters_{name}"]) == value
    assert kernels[1]["measured_by_hardware_counters_dram_bytes_read"] == ""
    assert float(first["measured_flop_per_s"]) == row.case.work().operations / row.time_s.median
    assert [float(entry["measured_gap"]) for entry in found["gaps"]] == [gap.gap for gap in run.gaps]
    assert float(found["gaps"][0]["measured_at_the_price_of_the_device_input_usd_per_mtok"]) == 4000.0
    assert [(entry["status"], entry["reason"]) for entry in found["not_timed"]] == [
        ("failed", "wrong result: row 3"),
        ("unsupported", "no GPU here"),
    ]
    assert float(found["ceilings"][0]["datasheet_bytes_per_s"]) == 2e8
    assert found["interpreter_checks"][0]["status"] == "ok"


def test_markdown_has_the_sentences_and_every_table_and_no_markup_of_a_file():
    run = whole_run()
    text = markdown_report({"a": run}, RATIOS)
    for sentence in sentences(run):
        assert sentence in text.replace("\\", "")
    assert text.count("\n| --- |") + text.count("\n| ---: |") == len(run_tables.run_tables({}, ()))
    hostile = markdown_report({SCRIPT: hostile_run(), "b": hostile_run()}, RATIOS)
    assert "<" not in hostile
    assert "&lt;script&gt;" in hostile
    assert "](" not in hostile


@pytest.mark.parametrize("run", [run_record(interrupted=True), whole_run(gaps=[]), whole_run(ceilings=[])])
def test_incomplete_run_is_exported(run):
    assert "Missing:" in markdown_report({"a": run}, RATIOS)
    for table in run_tables.run_tables({"a": run}, RATIOS):
        assert table.csv().splitlines()[0].count(",") == sum(len(c.keys) for c in table.columns) - 1
