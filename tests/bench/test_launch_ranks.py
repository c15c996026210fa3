"""Ranks are started with torchrun's engine; what it reports becomes an exit code or one line."""

import os
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner
from decodetax.harness.bench import launch_ranks
from decodetax.harness.bench.launch_ranks import launch
from decodetax.harness.bench.run_command import run_command
from decodetax.harness.core.errors import INTERRUPTED, MISUSE, FailureError, UsageError


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """What `launch` sets is put back."""
    for name in (launch_ranks.NOTES, "OMP_NUM_THREADS", "PYTHONSAFEPATH", "TORCHELASTIC_SIGNALS_TO_HANDLE"):
        monkeypatch.setenv(name, "1")


@pytest.fixture
def handlers():
    """The handlers of signals that torch's engine replaces."""
    kept = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    }
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_only_rank_0_speaks_and_its_exit_code_is_that_of_all(capfd):
    assert launch(["run", "--seed", "x"], ranks=2) == MISUSE
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "decodetax: --seed: 'x' is not a whole number from 0 to 9223372036854775807\n"


@pytest.mark.parametrize(
    ("ended", "run_file", "words"),
    [
        (
            -9,
            "run.json",
            "rank 0 was killed by SIGKILL; what was measured before is in {0}, and --resume {0} goes on",
        ),
        (-9, None, "rank 0 was killed by SIGKILL before anything was measured"),
        (3, None, "rank 0 ended with exit code 3 before anything was measured"),
    ],
)
def test_rank_0_that_ends_without_a_word_is_told_of_in_one_line(
    monkeypatch, tmp_path, ended, run_file, words
):
    if run_file:
        (tmp_path / run_file).write_text("{}", encoding="utf-8")

    def end(_command, _ranks, folder):
        if run_file:
            (folder / "run_file").write_text(str(tmp_path / run_file), encoding="utf-8")
        return 0, ended

    monkeypatch.setattr(launch_ranks, "_run", end)
    with pytest.raises(FailureError) as caught:
        launch([], ranks=2)
    assert str(caught.value) == words.format(tmp_path / "run.json")


@pytest.mark.parametrize(
    ("codes", "expected"), [({0: -15, 1: -9}, (1, -9)), ({0: -9, 1: -15}, (0, -9)), ({1: 1}, (1, 1))]
)
def test_rank_that_ended_first_is_told_of_not_those_that_the_engine_ended(codes, expected):
    assert launch_ranks._first(codes) == expected


def test_bar_of_a_rank_0_that_was_killed_is_removed_from_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(launch_ranks, "_run", lambda *_arguments: (0, -9))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(FailureError):
        launch([], ranks=2)
    assert capsys.readouterr().err == "\r\x1b[K\x1b[?25h"


def test_signal_before_rank_0_began_is_an_interrupt(monkeypatch):
    monkeypatch.setattr(launch_ranks, "_run", lambda *_arguments: None)
    assert launch([], ranks=2) == INTERRUPTED


@pytest.mark.parametrize(("given", "expected"), [(None, 2), ("7", 7)])
def test_ranks_share_the_cores_unless_told_otherwise(monkeypatch, given, expected):
    monkeypatch.setattr(launch_ranks.os, "sched_getaffinity", lambda _pid: set(range(8)))
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr(launch_ranks, "_run", lambda *_arguments: None)
    launch([], ranks=4)
    assert launch_ranks.os.environ["OMP_NUM_THREADS"] == str(expected)


def test_other_ranks_than_0_print_nothing():
    variables = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    done = subprocess.run(
        [sys.executable, "-m", "decodetax.harness", "run", "--seed", "x"],
        env=os.environ | variables,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (MISUSE, b"", b"")


@pytest.mark.parametrize("option", ["--output", "--html", "--csv"])
def test_what_cannot_be_written_is_said_before_ranks_start(monkeypatch, tmp_path, option):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch_ranks, "launch", lambda *_arguments, **_options: pytest.fail("ranks started"))
    (tmp_path / "file").touch()
    words = ["--quick", "--tensor-parallel", "2", "--device", "cpu", option, "file/place"]
    found = CliRunner().invoke(run_command, words)
    assert isinstance(found.exception, UsageError)
    assert str(found.exception).startswith(f"{option}: ")
