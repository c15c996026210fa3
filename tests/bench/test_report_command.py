"""`decodetax report` with files to write, and the same of `decodetax run`."""

import json
import sys
from pathlib import Path
from unittest import mock

import pytest
from decodetax.harness.bench import gap_tables, run_tables, summary
from decodetax.harness.bench.trust import warnings_of
from decodetax.harness.core.run_file import read_run
from decodetax.harness.core.table import prose
from hand_made import assert_misuse, decodetax, run_record
from report_runs import CONTROL, HOSTILE, hostile_run, whole_run

SMALL = ("--device", "cpu", "--batch", "1", "--context", "16", "--prefill-tokens", "32", "--quick")
TABLES = 9


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("run.json", whole_run())
    return tmp_path


def write(name, run):
    Path(name).write_text(json.dumps(run.to_json()), encoding="utf-8")
    return name


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_prints_the_tables_and_sentences_of_a_run(folder):
    run = read_run(folder / "run.json")
    runs = {"": run}
    tables = [run_tables.ceilings_table(runs), run_tables.kernels_table(runs)]
    tables += [run_tables.not_timed_summary(run), run_tables.interpreter_table(runs)]
    gaps, whole = gap_tables.gaps_table(runs), gap_tables.whole_model_table(runs)
    failed = "\n".join(summary.failures(run))
    head = f"{summary.heading(run)}\n{summary.workload(run)}"
    texts = [head, "\n".join(summary.sentences(run)), "\n".join(summary.missing_from(run))]
    texts += ["\n".join(f"Not to be trusted: {warning}." for warning in warnings_of(run))]
    head, *end = (prose(text, wide=False) for text in texts)
    done = decodetax("report", "run.json")
    expected = [head, *(table.text() for table in tables), failed, gaps.text(), whole.text(), *end]
    assert (done.code, done.out, done.err) == (0, "\n\n".join(expected) + "\n", "")
    wide = decodetax("report", "run.json", "--wide")
    head, *end = texts
    fastest = summary.fastest_providers(run)
    expected = [
        head,
        *(t.text(wide=True) for t in tables),
        failed,
        gaps.text(wide=True),
        whole.text(wide=True),
        fastest,
        *end,
    ]
    assert (wide.code, wide.out) == (0, "\n\n".join(expected) + "\n")
    assert "fastest correct provider" not in done.out.lower()
    assert names(folder) == {"run.json"}


def test_two_runs_are_printed_one_after_the_other(folder):
    one = decodetax("report", "run.json").out
    assert decodetax("report", "run.json", "run.json").out == f"{one}\n{one}"
    assert names(folder) == {"run.json"}


def test_writes_every_output_and_says_so(folder):
    done = decodetax(
        "report", "run.json", "--html", "r.html", "--markdown", "r.md", "--csv", "a/b", "--png", "p"
    )
    assert (done.code, done.err) == (0, "")
    assert len(done.out.splitlines()) == 2 + TABLES + 2
    found = names(folder)
    assert {"r.html", "r.md", "a/b/gaps.csv", "p/roofline.png", "p/gap.png"} <= found
    assert len(found) == 1 + 2 + TABLES + 2
    assert not [name for name in found if ".decodetax-" in name]
    for name in found - {"run.json"}:
        assert name in done.out
    assert "replacing" not in done.out


def test_replaces_an_existing_file_and_says_so(folder):
    Path("r.html").write_text("mine", encoding="utf-8")
    done = decodetax("report", "run.json", "--html", "r.html")
    assert done.out == "Report written to r.html, replacing the file there.\n"
    assert (folder / "r.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "replaced" in " ".join(decodetax("report", "--help").out.split())


def test_writes_through_a_symbolic_link(folder):
    Path("linked.html").symlink_to("real.html")
    assert decodetax("report", "run.json", "--html", "linked.html").code == 0
    assert Path("linked.html").is_symlink()
    assert (folder / "real.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_several_runs_are_named_by_their_files(folder):
    Path("other").mkdir()
    write("other/run.json", whole_run())
    assert decodetax("report", "run.json", "other/run.json", "--html", "r.html").code == 0
    text = (folder / "r.html").read_text(encoding="utf-8")
    assert "<h2>run</h2>" in text
    assert "<h2>run (2)</h2>" in text


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--html", "run.json"], ["--html", "run.json", "a run", "name another"]),
        (["--html", "./sub/../run.json"], ["--html", "a run"]),
        (["--markdown", "run.json"], ["--markdown", "a run"]),
        (["--html", "x", "--markdown", "x"], ["--markdown", "of --html"]),
        (["--html", "nowhere/x.html"], ["--html", "'nowhere/x.html'", "'nowhere' does not exist"]),
        (["--html", "sub"], ["--html", "is a folder"]),
        (["--html", "run.json/x"], ["--html", "cannot be written"]),
        (["--csv", "run.json"], ["--csv", "is not a folder"]),
        (["--png", "run.json/deep/er"], ["--png", "run.json", "is not a folder"]),
        (["--csv", "/proc/nowhere"], ["--csv", "'/proc/nowhere'"]),
        (["--html", ""], ["--html"]),
    ],
)
def test_rejects_an_unwritable_place_before_it_reads_a_run(folder, arguments, fragments):
    Path("sub").mkdir()
    with mock.patch("decodetax.harness.bench.run_files.read_run", side_effect=AssertionError("read")):
        outcome = decodetax("report", "run.json", "--csv", "tables", *arguments)
    assert_misuse(outcome, *fragments)
    assert names(folder) == {"run.json"}


@pytest.mark.parametrize(("option", "library"), [("--html", "plotly"), ("--png", "matplotlib")])
def test_names_a_missing_library_and_the_command_that_installs_it(folder, option, library):
    with mock.patch("importlib.util.find_spec", return_value=None):
        outcome = decodetax("report", "run.json", option, "x")
    assert_misuse(outcome, option, f"pip install {library}")
    assert names(folder) == {"run.json"}


def test_nothing_is_written_where_one_of_several_runs_is_invalid(folder):
    Path("broken.json").write_text("{}", encoding="utf-8")
    outcome = decodetax("report", "run.json", "broken.json", "--html", "r.html")
    assert_misuse(outcome, "'broken.json': is not a valid run")
    assert names(folder) == {"run.json", "broken.json"}


def test_rejects_a_run_file_that_does_not_exist(folder):
    assert_misuse(decodetax("report", "none.json", "--html", "r.html"), "'none.json'", "No such file")
    assert_misuse(decodetax("report", "--html", "r.html"), "RUN.json")
    assert names(folder) == {"run.json"}


def test_no_control_character_reaches_an_output_and_no_name_begins_a_line(folder):
    run_file = write(f"{CONTROL}.json", hostile_run((CONTROL,) * len(HOSTILE)))
    places = ("--html", "r.html", "--markdown", "r.md", "--csv", "c")
    commands = [
        ("report", run_file),
        ("report", run_file, "--wide"),
        ("report", run_file, "run.json", *places),
        ("report", run_file, "--csv", CONTROL),
        ("compare", run_file, run_file),
    ]
    texts = {("refused",): decodetax("report", run_file, "--html", run_file).err}
    for command in commands:
        done = decodetax(*command)
        assert (done.code, done.err) == (0, "")
        assert "OWNED" in done.out or "--html" in command
        texts[command] = done.out
    for file in (folder / name for name in names(folder) if not name.endswith(".json")):
        texts[file] = file.read_text(encoding="utf-8").partition("<script")[0]
        assert "OWNED" in texts[file] or file.name == "price_ratios.csv"
    for source, text in texts.items():
        assert text.replace("\n", "").isprintable(), source
        assert not [line for line in text.splitlines() if line.startswith("OWNED")], source


def test_reports_an_interrupted_run_without_results(folder):
    write("empty.json", run_record(interrupted=True, elapsed_s=3.0))
    done = decodetax("report", "empty.json", "--html", "r.html", "--png", "p")
    assert done.code == 0
    assert "No gap.png: the run has no data for it." in done.out
    assert "was interrupted after 3 s" in (folder / "r.html").read_text(encoding="utf-8")


def test_plain_report_loads_no_chart_library(folder):
    loaded = {name for name in sys.modules if name.partition(".")[0] in {"plotly", "matplotlib"}}
    with mock.patch.dict(sys.modules):
        for name in loaded | {name for name in sys.modules if name.startswith("decodetax.harness.bench")}:
            del sys.modules[name]
        assert decodetax("report", "run.json").code == 0
        assert not {"plotly", "matplotlib"} & set(sys.modules)
    assert names(folder) == {"run.json"}


def test_run_rejects_a_bad_place_before_it_measures(folder):
    target = "decodetax.harness.bench.session.measure_ceilings"
    with mock.patch(target, side_effect=AssertionError("it was measured")):
        assert_misuse(decodetax("run", *SMALL, "-o", "x.json", "--html", "nowhere/x.html"), "--html")
        assert_misuse(decodetax("run", *SMALL, "-o", "x.json", "--html", "x.json"), "--html", "x.json")
        assert_misuse(decodetax("run", *SMALL, "--html", "nowhere/x.html"), "--html")
    assert names(folder) == {"run.json"}


def test_run_writes_its_report_beside_its_json(folder):
    def measured(result, *_arguments, **_more):
        filled = whole_run()
        result.rows, result.gaps, result.ceilings = filled.rows[:-2], filled.gaps, filled.ceilings

    with mock.patch("decodetax.harness.bench.session.measure", side_effect=measured):
        done = decodetax("run", *SMALL, "-o", "x.json", "--html", "x.html", "--markdown", "x.md", "--json")
    assert done.code == 0
    json.loads(done.out)  # and nothing else there
    assert "Report written to x.html." in done.err.splitlines()
    assert names(folder) >= {"x.json", "x.html", "x.md"}


def test_reports_a_full_disk_in_one_line(folder):
    full = OSError(28, "No space left on device")
    with mock.patch("decodetax.harness.core.files.write_bytes", side_effect=full):
        outcome = decodetax("report", "run.json", "--html", "r.html")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "decodetax: r.html: No space left on device; it was not written\n"
    assert names(folder) == {"run.json"}
