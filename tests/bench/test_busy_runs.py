"""The script that runs beside busy processes: its arithmetic, and that no process of it stays."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import busy_runs
import click
import pytest
import timed_process
from click.testing import CliRunner
from hand_made import SMALL_MATMUL, ok_row, run_record
from msgspec import structs
from timed_process import TimedProcess

DECODE_MATMUL = structs.replace(SMALL_MATMUL, phase="decode", rows=1)


def run_of(samples=10, timed_share=0.6, **changes):
    """A run with a prefill row of so many samples, one a round, and a decode row of one."""
    rows = [
        ok_row(SMALL_MATMUL, samples_s=(1e-3,) * samples, rounds=tuple(range(samples))),
        ok_row(DECODE_MATMUL, samples_s=(1e-3,), rounds=(0,)),
    ]
    return run_record(rows=rows, timed_share=timed_share, **changes)


def process_of(wall_s=55.0, peak_bytes=2.5e9):
    return TimedProcess(wall_s=wall_s, peak_bytes=int(peak_bytes), minor_faults=1_500_000)


def test_a_run_is_read_as_its_row():
    found = busy_runs.busy_run("default", 0, process_of(), run_of(late="4 of 10 rounds"))
    assert found.timed_share == pytest.approx(0.6)
    assert (found.rounds, found.prefill_samples) == (10, 10)
    assert found.warnings == ("the run was cut short: 4 of 10 rounds",)
    assert found.broken == []
    text = busy_runs.text_of([found])
    assert "default beside 0 says: the run was cut short: 4 of 10 rounds" in text
    assert text.endswith("all limits kept")
    assert max(map(len, text.splitlines())) <= 80


def test_a_run_beside_others_that_warns_of_nothing_is_found():
    [line] = busy_runs.busy_run("quick", 2, process_of(wall_s=20.0), run_of()).broken
    assert line == "quick beside 2 busy processes: does not say that it was disturbed"
    assert busy_runs.busy_run("quick", 2, process_of(wall_s=20.0), run_of(other_load=0.8)).broken == []


@pytest.mark.parametrize(
    ("kind", "busy", "changes", "broken"),
    [
        ("default", 0, {"wall_s": 60.1}, "default beside 0 busy processes: 60.1 s, at most 60"),
        ("quick", 0, {"wall_s": 15.1}, "quick beside 0 busy processes: 15.1 s, at most 15"),
        ("default", 2, {"wall_s": 120.1}, "default beside 2 busy processes: 120.1 s, at most 120"),
        ("quick", 2, {"wall_s": 30.1}, "quick beside 2 busy processes: 30.1 s, at most 30"),
        ("quick", 4, {"wall_s": 900.0}, None),
        (
            "default",
            4,
            {"wall_s": 5.0, "peak_bytes": 3.01e9},
            "default beside 4 busy processes: 3.01 GB, at most 3",
        ),
        (
            "default",
            0,
            {"timed_share": 0.499},
            "default beside 0 busy processes: 50% in timed calls, at least 50%",
        ),
        ("default", 2, {"timed_share": 0.1}, None),
        ("default", 0, {"samples": 9}, "default beside 0 busy processes: 9 prefill samples, at least 10"),
        ("quick", 0, {"samples": 9, "wall_s": 14.0}, None),
    ],
)
def test_each_limit_is_held(kind, busy, changes, broken):
    process = {name: changes.pop(name) for name in ("wall_s", "peak_bytes") if name in changes}
    run = run_of(**changes, other_load=0.8 if busy else None)
    found = busy_runs.busy_run(kind, busy, process_of(**process), run)
    assert found.broken == ([] if broken is None else [broken])


def test_the_script_measures_what_its_file_lacks(monkeypatch, tmp_path):
    started = []

    def run_of_a_process(options, target):
        started.append(options)
        target.write_text(json.dumps(run_of().to_json()), encoding="utf-8")
        return process_of(wall_s=20.0)

    monkeypatch.setattr(busy_runs, "timed_run", run_of_a_process)
    kept = ["--busy", "0", "--json", str(tmp_path / "kept.json")]
    first = CliRunner().invoke(busy_runs.main, ["--kind", "default", *kept])
    assert (first.exit_code, started) == (0, [()])
    second = CliRunner().invoke(busy_runs.main, kept)
    assert (second.exit_code, started) == (1, [(), ("--quick",)])
    assert second.stdout.endswith("broken: quick beside 0 busy processes: 20.0 s, at most 15\n")
    assert second.stdout.startswith(first.stdout[:200])


def gone(number, within_s=10.0):
    """Whether a process ends within some seconds."""
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        try:
            state = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rsplit(")")[-1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(not Path("/proc").exists(), reason="asks /proc for the processes")
def test_no_busy_process_stays(monkeypatch):
    started = []
    popen = subprocess.Popen

    def recorded(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(busy_runs.subprocess, "Popen", recorded)

    def interrupted():
        with busy_runs.busy_processes(2, "python"):
            assert [process.poll() for process in started] == [None, None]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2


@pytest.mark.skipif(not Path("/proc").exists(), reason="asks /proc for the processes")
def test_a_busy_process_ends_with_its_parent():
    code = (
        "import subprocess, sys; sys.path.insert(0, sys.argv[1]); import busy_runs; "
        "started = subprocess.Popen([sys.executable, '-c', busy_runs.BUSY.format(torch=False, loop='pass')], "
        "stdout=subprocess.PIPE); started.stdout.readline(); print(started.pid, flush=True); "
        "import time; time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(Path(busy_runs.__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        busy = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
    ended = gone(busy)
    if not ended:
        os.kill(busy, signal.SIGKILL)
    assert ended


def test_a_process_is_timed_and_its_file_appears_when_it_is_complete(monkeypatch, tmp_path):
    folder = tmp_path / "decodetax"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "harness.py").write_text(
        "import sys, time, pathlib; block = b'1' * 2 * 10**8; time.sleep(0.2); print(*sys.argv[1:-1]); "
        "pathlib.Path(sys.argv[-1]).write_text('done'); sys.exit('--bad' in sys.argv)",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    target = tmp_path / "run.json"
    with pytest.raises(click.ClickException, match=r"(?s)ended with 1:\nrun --bad -o$"):
        timed_process.timed_run(["--bad"], target)
    assert not target.exists()
    found = timed_process.timed_run(["--quick"], target)
    assert target.read_text(encoding="utf-8") == "done"
    assert 0.2 < found.wall_s < 60
    assert found.peak_bytes > 2e8
    assert found.minor_faults > 2e8 / 4096 / 2**9
