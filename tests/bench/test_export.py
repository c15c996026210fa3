"""Tables as CSV and Markdown, pictures as PNG."""

import csv
import io
import struct
from dataclasses import replace

import pytest
from decodetax.harness.bench.export import CSV_NAMES, csv_texts, markdown_text
from decodetax.harness.bench.pictures import PICTURE_NAMES, pictures
from decodetax.harness.bench.series import price_ratios
from decodetax.harness.bench.summary import sentences
from decodetax.harness.cost.prices import price_list
from hand_made import run_record
from report_runs import HOSTILE, SCRIPT, hostile_run, priced_run, whole_run

RATIOS = price_ratios(price_list())


def tables(*runs):
    texts = csv_texts({f"run {at}": run for at, run in enumerate(runs)}, RATIOS)
    return {name: list(csv.DictReader(io.StringIO(text))) for name, text in texts.items()}


def test_csv_has_every_table_under_a_name_that_is_told_beforehand():
    assert tuple(csv_texts({"a": whole_run()}, RATIOS)) == CSV_NAMES
    assert tuple(csv_texts({"a": run_record()}, RATIOS)) == CSV_NAMES


def test_csv_keeps_all_digits_and_says_provenance_and_unit():
    run = priced_run()
    found = tables(run)
    kernels = found["kernels.csv"]
    assert len(kernels) == sum(row.status == "ok" for row in run.rows)
    first, row = kernels[0], run.rows[0]
    assert first["case"] == row.case.id
    assert float(first["measured_median_s"]) == row.time_s.median
    assert int(first["modelled_operations"]) == row.case.work().operations
    assert (first["measured_samples"], first["measured_rounds"]) == (str(len(row.samples_s)), "1")
    assert first["measured_by_hardware_counters_dram_bytes_read"] == ""
    assert float(first["measured_flop_per_s"]) == row.case.work().operations / row.time_s.median
    gaps = found["gaps.csv"]
    assert [float(entry["measured_gap"]) for entry in gaps] == [gap.gap for gap in run.gaps]
    assert float(gaps[0]["measured_at_the_price_of_the_device_input_usd_per_mtok"]) == 4000.0
    assert [(entry["status"], entry["reason"]) for entry in found["not_timed.csv"]] == [
        ("failed", "wrong result: row 3"),
        ("unsupported", "no GPU here"),
    ]
    assert float(found["ceilings.csv"][0]["datasheet_bytes_per_s"]) == 2e8
    assert found["interpreter_checks.csv"][0]["status"] == "ok"


def test_csv_has_counters_and_rounds_where_a_run_has_them():
    counters = {"dram_bytes_read": 160.0, "dram_bytes_written": 53.5, "matrix_active_share": 0.25}
    run = whole_run()
    run.rows[0] = replace(run.rows[0], counters=counters, rounds=(0, 0, 1))
    first = tables(run)["kernels.csv"][0]
    assert first["measured_rounds"] == "2"
    for name, value in counters.items():
        assert float(first[f"measured_by_hardware_counters_{name}"]) == value


def test_csv_of_several_runs_names_them():
    assert {entry["run"] for entry in tables(whole_run(), whole_run())["gaps.csv"]} == {"run 0", "run 1"}


def test_csv_reads_back_what_was_hostile_and_holds_no_formula():
    run = hostile_run()
    run.environment = {**run.environment, "commit": "=HYPERLINK(1)", "started": "@x"}
    values = {entry["field"]: entry["value"] for entry in tables(run)["environment.csv"]}
    assert values[f"environment.{HOSTILE[0]}"] == HOSTILE[1]
    assert values["environment.commit"] == "'=HYPERLINK(1)"
    assert values["environment.started"] == "'@x"


def test_markdown_has_the_sentences_and_every_table():
    run = whole_run()
    text = markdown_text({"a": run}, RATIOS)
    for sentence in sentences(run):
        assert sentence in text.replace("\\", "")
    widths = {}
    for line in text.splitlines():
        if line.startswith("## "):
            heading = line
        if line.startswith("| "):
            widths.setdefault(heading, set()).add(line.replace("\\|", "").count("|"))
    assert len(widths) == len(CSV_NAMES)
    assert all(len(found) == 1 for found in widths.values())


def test_markdown_holds_no_markup_of_a_file():
    text = markdown_text({SCRIPT: hostile_run(), "b": hostile_run()}, RATIOS)
    assert "<" not in text
    assert "&lt;script&gt;" in text
    assert "](" not in text
    assert "\u2028" not in text


@pytest.mark.parametrize("run", [run_record(interrupted=True), whole_run(gaps=[]), whole_run(ceilings=[])])
def test_a_run_that_lacks_much_is_exported_all_the_same(run):
    assert "Missing:" in markdown_text({"a": run}, RATIOS)
    assert csv_texts({"a": run}, RATIOS)


def size_of(png):
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", png[16:24])


@pytest.mark.parametrize("runs", [{"a": whole_run()}, {"$a_1$": hostile_run(), "_b": whole_run()}])
def test_pictures_are_of_the_size_of_a_slide(runs):
    drawn = pictures(runs, RATIOS)
    assert tuple(drawn) == PICTURE_NAMES
    assert {size_of(png) for png in drawn.values()} == {(1920, 1080)}


def test_a_picture_that_would_be_empty_is_left_out():
    assert set(pictures({"a": whole_run(gaps=[])}, RATIOS)) == {"roofline.png"}
    assert pictures({"a": run_record()}, RATIOS) == {}
