"""A run file is read, or refused in one line that names the file, the field and what is wrong with it."""

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from decodetax.harness.bench.compare_command import comparison_text
from decodetax.harness.bench.comparison import compare_runs
from decodetax.harness.bench.report_command import run_text
from decodetax.harness.bench.summary import heading
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.records import COUNTER_NAMES
from decodetax.harness.core.run_file import read_run, run_of
from decodetax.harness.core.sweep import cases_of
from hand_made import (
    GPU,
    SMALL_MATMUL,
    TINY,
    assert_misuse,
    ceilings,
    check,
    decodetax,
    failed_row,
    gap,
    ok_row,
    run_record,
    strict_json,
    sweep,
    whole_model,
)
from msgspec import ValidationError

RUNS = Path(__file__).resolve().parents[2] / "docs" / "runs"


def run_document():
    """A run with every field filled, as JSON."""
    ok = [ok_row(case, samples_s=(2e-3, 1e-3), rounds=(0, 1)) for case in cases_of(TINY, sweep())]
    full = ok_row(
        SMALL_MATMUL,
        "triton",
        method="cuda: each call",
        input_copies=1,
        clock_before_hz=1.9e9,
        clock_after_hz=1.8e9,
        throttle_reasons=("heat",),
        tiling={"block_m": 16, "variant": "pointers"},
        variant="descriptors",
        counters=dict.fromkeys(COUNTER_NAMES, 0.5),
        relative_error=1e-3,
        tolerance=8e-3,
    )
    run = run_record(
        device={**GPU, "sm_clock_max_hz": 1.98e9},
        usd_per_hour=3.6,
        rows=[full, *{row.case.operation: row for row in ok}.values(), failed_row(SMALL_MATMUL)],
        ceilings=[*ceilings(), *ceilings(provenance="datasheet")],
        gaps=[gap(usd_per_hour=3.6, triton_gap=2.0)],
        interpreter_checks=[check()],
        broken="RuntimeError: gone",
        counters_reason="no permission",
        whole_model=whole_model(reason="out of memory"),
    )
    run.settings = {**run.settings, "batches": [1], "contexts": [16], "prompt": None}
    document = json.loads(json.dumps(run.to_json()))
    for row in document["rows"][1:]:  # read from none of these
        del row["work"], row["figures"], row["time_s"]
    return document


DOCUMENT = run_document()
READ = run_of(DOCUMENT)


def paths(value, path=()):
    """The path of every entry of a JSON value."""
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, entry in entries:
        yield (*path, key)
        yield from paths(entry, (*path, key))


def with_value(path, value, whole=DOCUMENT):
    """A JSON value of which the entry at a path is another; what is not on the path is shared."""
    if not path:
        return value
    key, *rest = path
    changed = copy.copy(whole)
    changed[key] = with_value(rest, value, whole[key] if rest else None)
    return changed


VALUES = [
    None, True, 0, 1, -1, 7, 2**31, 10**400, 0.5, -0.5, 1e-320, math.nan, math.inf, -math.inf, "", "bf16",
    "bf16\n", "measured", [], [0], ["x"], [[]], {}, {"x": 1}, {"kind": "cpu"}, {"a": {"b": {"c": {"d": 1}}}},
]  # fmt: skip


def rendered(run):
    """Everything that commands make of a valid run."""
    json.dumps(run.to_json(), allow_nan=False)
    return (
        heading(run),
        run_text(run, wide=True),
        comparison_text(compare_runs(run, run), (run, run), ("a", "b")),
    )


@pytest.mark.parametrize("section", DOCUMENT)
def test_a_run_with_any_value_in_any_field_is_read_and_shown_or_refused(section):
    refused = 0
    for path in [path for path in paths(DOCUMENT) if path[0] == section]:
        for value in VALUES:
            try:
                run = run_of(with_value(path, value))
            except ValidationError:
                refused += 1
            else:
                assert run == READ or rendered(run)
    assert refused


@pytest.mark.parametrize("value", [None, 7, "text", [], {}, [{}], math.nan])
def test_rejects_any_other_json(value):
    with pytest.raises(ValidationError):
        run_of(value)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (["schema_version"], 2, "schema_version is '2', can be 1"),
        (["schema_version"], None, "schema_version is 'None', can be 1"),
        (["gaps", 0, "batch"], 0, "gaps[0].batch: must be at least 1"),
        (["gaps", 0, "context"], [16], "gaps[0].context: must be an integer, was a list"),
        (["gaps", 0, "output_parts_s", "rest"], math.inf, "gaps[0].output_parts_s: must be a finite"),
        (["gaps", 0, "input_parts_s"], {"rest": 1}, "gaps[0]: input_parts_s: lacks projections"),
        (["gaps", 0, "gap_interval"], {"low": 1, "high": math.inf}, "gaps[0].gap_interval.high: must be a"),
        (["gaps", 0, "gap_interval"], {"low": math.nan, "high": 1}, "gaps[0].gap_interval.low: must be a "),
        (["gaps", 0, "gap_interval"], {"low": 11, "high": 9}, "gaps[0].gap_interval: low: 11.0 is above"),
        (["gaps", 0, "gap_interval"], {"low": 11, "high": 12}, "gaps[0]: gap_interval: 11.0 to 12.0 doe"),
        (["gaps", 0, "gap_interval"], {"low": 9}, "gaps[0].gap_interval: lacks high"),
        (["gaps", 0, "input_rounds_s"], [4.0], "gaps[0]: input_rounds_s: 1 of 0 rounds"),
        (["rows", 1, "shape", "rows"], "many", "rows[1].shape.rows: must be an integer, was text"),
        (["rows", 1, "shape"], 7, "rows[1].shape: must be an object, was an integer"),
        (["rows", 1, "operation"], "x", "rows[1].operation: Invalid value 'x'"),
        (["rows", 0, "samples_s"], [0], "rows[0].samples_s[0]: must be a finite number, at least 1e-24"),
        (["rows", 0, "samples_s"], [10**400], "rows[0].samples_s[0]: Number out of range"),
        (["rows", 0, "rounds"], [0, 1], "rows[0]: rounds: 2 of 1 samples"),
        (["rows", 0, "counters"], {"dram_bytes_read": 1}, "rows[0]: counters: lacks dram_bytes_written"),
        (["rows", 0, "throttle_reasons"], [7], "rows[0].throttle_reasons[0]: must be text, was an integer"),
        (["ceilings", 0, "bandwidth_bytes_per_s"], math.nan, "ceilings[0].bandwidth_bytes_per_s: must be"),
        (["ceilings", 1, "dtype"], None, "ceilings[1]: dtype: is None on a ceiling of kind matmul"),
        (["ceilings", 0, "samples_s"], [1.0], "ceilings[0]: work: lacks bytes_read"),
        (["environment", "device", "memory_bytes"], "8 GiB", "environment.device.memory_bytes: must be a"),
        (["environment", "device", "sm_count"], math.nan, "environment.device.sm_count: must be an int"),
        (["environment", "device", "more"], math.nan, "environment: must be a finite number"),
        (["settings", "dtype"], math.nan, "settings.dtype: must be text, was a number"),
        (["counters_reason"], math.nan, "counters_reason: must be text or null, was a number"),
    ],
    ids=str,
)  # fmt: skip
def test_a_fault_names_the_file_the_field_and_what_is_wrong(tmp_path, path, value, told):
    file = tmp_path / "run.json"
    file.write_text(json.dumps(with_value(path, value)), encoding="utf-8")
    with pytest.raises(UsageError) as refused:
        read_run(file)
    assert str(refused.value).startswith(f"{str(file)!r}: is not a valid run: {told}")


def test_refuses_a_duplicate_row():
    document = copy.deepcopy(DOCUMENT)
    document["rows"].append(document["rows"][1])
    with pytest.raises(ValidationError, match=r"duplicate row .* - at `\$\.rows\[6\]`"):
        run_of(document)


@pytest.mark.parametrize("name", DOCUMENT)
def test_only_fields_that_older_files_lack_may_be_missing(name):
    document = {key: value for key, value in DOCUMENT.items() if key != name}
    newer = {"late", "altered", "other_load", "warnings", "timed_s", "timed_share", "whole_model"}
    if name in {"broken", "counters_reason"} | newer:
        assert run_of(document)
    else:
        with pytest.raises(ValidationError):
            run_of(document)


def test_a_run_without_rounds_variants_and_counters_is_read():
    document = copy.deepcopy(DOCUMENT)
    for row in document["rows"]:
        for name in ("rounds", "variant", "counters", "tiling"):
            del row[name]
    for ceiling in document["ceilings"]:
        del ceiling["rounds"], ceiling["call"]
    assert run_of(document).rows[0].rounds == ()


@pytest.mark.parametrize("file", sorted(RUNS.glob("*.json")), ids=lambda path: path.name)
def test_published_run_round_trips_unchanged_but_for_new_fields(file):
    document = strict_json(file.read_text(encoding="utf-8"))
    written = strict_json(json.dumps(read_run(file).to_json()))
    document = without_retired(document)
    assert known(without_retired(written), document) == document
    assert strict_json(json.dumps(run_of(written).to_json())) == written


NO_LONGER_WRITTEN = {"window", "window_layers", "experts", "latent"}
"""Fields of a timed model that were the same in every run."""


def without_retired(document):
    """A document without the fields that are no longer written."""
    if isinstance(document, dict):
        kept = {key: value for key, value in document.items() if key not in NO_LONGER_WRITTEN}
        return {key: without_retired(value) for key, value in kept.items()}
    return [without_retired(value) for value in document] if isinstance(document, list) else document


def known(document, earlier):
    """A document without the fields that an earlier one lacks."""
    if isinstance(earlier, dict):
        return {key: known(value, earlier[key]) for key, value in document.items() if key in earlier}
    if isinstance(earlier, list) and len(earlier) == len(document):
        return [known(*pair) for pair in zip(document, earlier, strict=True)]
    return document


TEXT = json.dumps(DOCUMENT)
CONTENTS = {
    "empty": (b"", "is not JSON"),
    "truncated": (TEXT[: len(TEXT) // 2].encode(), "is not JSON"),
    "two documents": (TEXT.encode() * 2, "is not JSON: Extra data"),
    "not UTF-8": (b'{"\xff": 1}', "is not UTF-8: byte 2"),
    "half a surrogate pair": (b'{"name": "\\ud800"}', "surrogate"),
    "deeply nested": (b"[" * 100_000, "is nested too deeply"),
    "a number of 5000 digits": (b"1" * 5000, "too many digits"),
    "no object": (b"[]", "is not a valid run"),
}


@pytest.mark.parametrize(("content", "told"), CONTENTS.values(), ids=CONTENTS)
def test_rejects_a_file_without_a_run_in_one_line(tmp_path, content, told):
    file = tmp_path / "run.json"
    file.write_bytes(content)
    assert_misuse(decodetax("report", file), repr(str(file)), told)


def test_rejects_a_path_that_is_not_a_regular_file_in_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert_misuse(decodetax("report", tmp_path / "pipe"), "pipe': is not a regular file")
    assert_misuse(decodetax("claims", tmp_path), "is not a regular file")
    assert_misuse(decodetax("report", tmp_path / "none.json"), "none.json': cannot be read: No such file")


def test_a_run_is_read_from_a_pipe_of_the_shell():
    command = [sys.executable, "-m", "decodetax.harness", "report", "/dev/stdin"]
    content = (RUNS / "cpu-epyc-2-cores.json").read_bytes()
    done = subprocess.run(command, input=content, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_skips_a_byte_order_mark_and_takes_the_last_of_equal_keys(tmp_path):
    file = tmp_path / "run.json"
    file.write_bytes(b"\xef\xbb\xbf" + TEXT[:-1].encode() + b', "elapsed_s": 7}')
    assert read_run(file).elapsed_s == 7


COMMANDS = {
    "report": ["report"],
    "compare before": ["compare", RUNS / "cpu-epyc-2-cores.json"],
    "claims": ["claims"],
    "prices": ["prices", "--run"],
    "price": ["price", "--model", "gpt-4o-2024-08-06", "--input", "5", "--output", "5", "--run"],
    "resume": ["run", "--resume"],
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_every_command_that_reads_a_run_refuses_an_invalid_one(tmp_path, arguments):
    file = tmp_path / "run.json"
    file.write_text(json.dumps(with_value(["gaps", 0, "batch"], 0)), encoding="utf-8")
    assert_misuse(decodetax(*arguments, file), f"{str(file)!r}: is not a valid run: gaps[0].batch: ")


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        ("bench.summary.workload", ["report"]),
        ("bench.report_command.markdown_report", ["report", "--markdown", "x.md"]),
        ("bench.comparison.compare_runs", ["compare", "run.json"]),
        ("cost.claims.measured_facts", ["claims"]),
        ("core.run_file.convert", ["report"]),
    ],
)
@pytest.mark.parametrize("error", [KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError])
def test_a_programming_error_is_not_reported_as_a_bad_file(tmp_path, monkeypatch, target, arguments, error):
    monkeypatch.chdir(tmp_path)
    Path("run.json").write_text(TEXT, encoding="utf-8")
    with mock.patch(f"decodetax.harness.{target}", side_effect=error("planted")), pytest.raises(error):
        decodetax(*arguments, "run.json")


@pytest.mark.parametrize(
    "arguments", [["--html", "x.html"], ["--markdown", "x.md"], ["--csv", "x"], []], ids=str
)
def test_a_file_whose_name_is_not_utf_8_is_reported(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"mess\xfc.json")
    for file in (name, "other.json"):
        Path(file).write_text(TEXT, encoding="utf-8")
    assert decodetax("report", name, "other.json", *arguments).code == 0
    assert "mess\N{REPLACEMENT CHARACTER}.json" in decodetax("compare", name, "other.json").out
