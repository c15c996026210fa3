"""A run that is killed at any moment leaves a readable file, and `--resume` continues it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from decodetax.harness.core.own_file import locked
from decodetax.harness.core.run_file import read_run
from hand_made import assert_misuse, decodetax, strict_json, write_config

ARGUMENTS = (
    *("--device", "cpu", "--quick", "--model", "config.json"),
    *("--batch", "3", "--context", "16", "--prefill-tokens", "32", "--dtype", "fp32"),
)


def command(folder, *arguments, **options):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.Popen(
        [sys.executable, "-m", "decodetax.harness", "run", *arguments],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def killed(folder, after_s, *, output="out.json"):
    """Kill a run so many seconds after it first writes its file."""
    process = command(folder, *ARGUMENTS, "-o", output, start_new_session=True)
    limit_s = time.monotonic() + 60
    watched = {folder / output, folder / f"{output}.partial"}
    sizes = {path: path.stat().st_size if path.exists() else None for path in watched}
    while process.poll() is None and time.monotonic() < limit_s:
        if any(path.exists() and path.stat().st_size != sizes[path] for path in watched):
            time.sleep(after_s)
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_run_leaves_a_readable_file_and_continues(tmp_path, seed):
    write_config(tmp_path)
    killed(tmp_path, random.Random(seed).uniform(0, 3))  # noqa: S311  (no secret)
    before = read_run(tmp_path / "out.json")
    if not before.interrupted:
        pytest.skip("the run was over before it was killed")
    assert decodetax("report", tmp_path / "out.json").code == 0
    process = command(tmp_path, "--resume", "out.json", "--device", "cpu", "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    after = strict_json(out)
    assert after == strict_json((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert after["interrupted"] is False
    assert {gap["batch"] for gap in after["gaps"]} == {3}
    samples = {(row["case"], row["provider"]): row["samples_s"] for row in after["rows"]}
    for row in before.rows:  # nothing that was measured is lost
        found = samples[row.case.id, row.provider]
        assert found[: len(row.samples_s)] == list(row.samples_s)


def test_older_file_stays_until_the_new_run_ends(tmp_path):
    write_config(tmp_path)
    (tmp_path / "out.json").write_text("an older run", encoding="utf-8")
    killed(tmp_path, 0.5)
    assert (tmp_path / "out.json").read_text(encoding="utf-8") == "an older run"
    assert read_run(tmp_path / "out.json.partial").interrupted


@pytest.mark.slow
def test_second_run_into_the_file_of_one_that_is_stopped_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    path = tmp_path / "out.json"
    first = command(tmp_path, *ARGUMENTS, "-o", "out.json", "--seed", "1")
    limit_s = time.monotonic() + 60
    while not path.exists() and time.monotonic() < limit_s:
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    try:
        before = path.read_bytes()
        for arguments in ([*ARGUMENTS, "-o", "out.json"], ["--resume", "out.json", "-o", "other.json"]):
            outcome = decodetax("run", *arguments)
            assert_misuse(outcome, f"another run (process {first.pid}) is writing to 'out.json'")
        assert path.read_bytes() == before
    finally:
        first.kill()
        first.communicate()
    with locked(path):  # a run that was killed holds nothing
        assert read_run(path).settings["seed"] == 1


@pytest.fixture
def run_file(tmp_path, monkeypatch):
    """A run as if it had been interrupted."""
    monkeypatch.chdir(tmp_path)
    source = Path(__file__).resolve().parents[2] / "docs" / "runs" / "cpu-epyc-2-cores.json"
    document = json.loads(source.read_text(encoding="utf-8"))
    document["interrupted"] = True
    document["environment"]["device"]["name"] = "another processor"
    path = tmp_path / "run.json"

    def write(**changes):
        path.write_text(json.dumps({**document, **changes}), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda run: run["ceilings"][0].update(samples_s=["1"]), id="in what was measured"),
        pytest.param(lambda run: run["settings"].update(batches=[0]), id="in what reports show"),
        pytest.param(
            lambda run: run["settings"].update(total_limit_s=None), id="in what only resuming needs"
        ),
    ],
)
def test_rejects_an_invalid_run_in_one_line_and_leaves_it(run_file, spoil):
    document = json.loads(run_file().read_text(encoding="utf-8"))
    spoil(document)
    path = run_file(**document)
    before = path.read_bytes()
    outcome = decodetax("run", "--resume", path)
    assert (outcome.code, outcome.out) == (2, "")
    assert len(outcome.err.splitlines()) == 1
    assert f"{str(path)!r}: is not a valid run: " in outcome.err
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "arguments", "fragments"),
    [
        ({"interrupted": False}, ["--wide", "--json"], ["--resume", "complete run"]),
        ({}, ["--batch", "4"], ["--batch", "--resume"]),
        ({}, ["--quick"], ["--quick", "--resume"]),
        ({}, ["--seed", "1"], ["--seed", "--resume"]),
        ({"schema_version": 2}, [], ["schema_version is '2'"]),
        ({"settings": {}}, [], ["not a valid run: settings: lacks model"]),
        ({}, ["--device", "cpu"], ["--resume: the run was begun with", "begin a new one"]),
    ],
    ids=["complete", "batch", "quick", "seed", "newer", "no settings", "another machine"],
)
def test_rejects_what_cannot_continue_in_one_line_and_leaves_the_file(
    run_file, changes, arguments, fragments
):
    path = run_file(**changes)
    before = path.read_bytes()
    outcome = decodetax("run", "--resume", path, *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert len(outcome.err.splitlines()) == 1
    for fragment in fragments:
        assert fragment in outcome.err
    assert path.read_bytes() == before


def test_rejects_a_missing_run(tmp_path):
    outcome = decodetax("run", "--resume", tmp_path / "nothing.json")
    assert (outcome.code, outcome.out) == (2, "")
    assert "nothing.json" in outcome.err
