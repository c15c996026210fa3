"""`tests/gpu/on_a_gpu.sh`: with a fake Python that plays each command, and without a GPU."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "gpu" / "on_a_gpu.sh"
FAKE_PYTHON = """#!/usr/bin/env bash
# Plays `python -c ...`, `-m decodetax.harness ...`, `-m pytest ...` and `tests/gpu/compile_first.py`.
echo "$*" >>"$CALLS"
case "$*" in
-c*) [ -z "$NO_GPU" ] || { echo "RuntimeError: no driver"; exit 1; }
  printf 'NVIDIA H200\\n17\\n%s\\n' "${GPUS:-1}" ;;
*doctor*) echo "kernels ok"; exit "${DOCTOR:-0}" ;;
*" run "*)
  echo "{}" >"${5}"
  [ -z "$COUNTS" ] || { exec "$REAL_PYTHON" -c "$INTERRUPTED"; }
  [ -z "$HANGS" ] || { trap '' INT TERM; while true; do sleep 1; done; }
  echo "<html>" >"${7}"; echo "gap 3.14" ;;
*report*) echo "<html>" >"${6}" ;;
*compile_first*) echo "510 kernels compiled in 60 s by 16 processes (800 s by one)" ;;
*test_run.py*)
  echo "FAILED tests/gpu/test_run.py::test_one - assert"
  echo "1 failed, 9 passed in 2.00s"
  exit "${TESTS:-0}" ;;
*'-m pytest'*) echo "9 passed in 2.00s" ;;
*tune*) echo "1 of 2 cases have a tiling better than the default" ;;
esac
"""
INTERRUPTED = """
import os, signal, time
got = []
def take(*_):
    got.append(os.write(1, b"interrupted\\n"))
signal.signal(signal.SIGINT, take)
child = os.fork()
while not got:
    time.sleep(0.01)
time.sleep(0.5)
if child:
    os.kill(child, signal.SIGKILL)
"""
STEPS = [
    "doctor", "run", "compile tests/gpu", "kernels' tests", "measuring tests", "tune decode_attention",
    "tune prefill_attention", "tune prefill_matmul", "tuning tests",
]  # fmt: skip


@pytest.fixture
def begin(tmp_path):
    """Starts the script with the fake Python and variables for it; results in `results`."""
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON, encoding="utf-8")
    python.chmod(0o755)
    fakes = {"PYTHON": str(python), "CALLS": str(tmp_path / "calls"), "NO_GPU": "", "HANGS": "", "COUNTS": ""}
    fakes |= {"REAL_PYTHON": sys.executable, "INTERRUPTED": INTERRUPTED}

    def start(**variables):
        return subprocess.Popen(
            ["bash", SCRIPT, tmp_path / "results"],
            env={**os.environ, **fakes, **variables},
            stdout=subprocess.PIPE,
            text=True,
        )

    return start


def results_of(folder):
    """The rows of the summary's table: step, result, seconds, log."""
    lines = (folder / "results" / "summary.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0]: row[1] for row in rows[2:]}


def test_each_step_passes(begin, tmp_path):
    process = begin()
    process.communicate()
    assert process.returncode == 0
    assert results_of(tmp_path) == dict.fromkeys(STEPS, "passed")
    text = (tmp_path / "results" / "summary.md").read_text(encoding="utf-8")
    assert text.startswith("# decodetax on NVIDIA H200\n")
    for said in (
        "gap 3.14",
        "510 kernels compiled",
        "docs/runs/nvidia-h200.json",
        "1 of 2 cases",
        "takes 80",
    ):
        assert said in text
    assert len(text.splitlines()) < 80
    assert (tmp_path / "results" / "run.json").exists()
    assert (tmp_path / "results" / "report.html").exists()


def test_several_gpus_are_tested_together(begin, tmp_path):
    begin(GPUS="2").communicate()
    assert results_of(tmp_path)["tests of two GPUs"] == "passed"


def test_steps_that_fail_stop_no_other(begin, tmp_path):
    process = begin(DOCTOR="1", TESTS="1")
    process.communicate()
    assert process.returncode == 1
    failed = {"doctor": "failed (exit code 1)", "measuring tests": "failed (exit code 1)"}
    assert results_of(tmp_path) == dict.fromkeys(STEPS, "passed") | failed
    assert "FAILED tests/gpu/test_run.py::test_one" in (tmp_path / "results" / "summary.md").read_text(
        "utf-8"
    )


@pytest.mark.slow
def test_run_that_ignores_signals_is_killed_in_time_and_reported(begin, tmp_path):
    start_s = time.monotonic()
    process = begin(HANGS="1", ON_A_GPU_SECONDS="24", ON_A_GPU_KILL_AFTER="1")
    process.communicate(timeout=60)
    assert time.monotonic() - start_s < 25
    assert process.returncode == 1
    results = results_of(tmp_path)
    assert results["run"].startswith("ended after its limit of ")
    assert list(results.values())[-1] == "left out: no time left"
    assert (tmp_path / "results" / "run.json").exists()


@pytest.mark.slow
def test_interrupted_script_writes_its_summary(begin, tmp_path):
    process = begin(HANGS="1")
    run = tmp_path / "results" / "run.txt"
    end_s = time.monotonic() + 30
    while not run.exists() and time.monotonic() < end_s:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 1
    assert list(results_of(tmp_path).items()) == [("doctor", "passed"), ("interrupted", "")]


def test_without_a_gpu_the_summary_says_so(begin, tmp_path):
    process = begin(NO_GPU="1")
    said, _ = process.communicate()
    assert process.returncode == 2
    assert "no GPU: RuntimeError: no driver\n" in said
    left_out = dict.fromkeys(STEPS[1:], "left out: no GPU")
    assert results_of(tmp_path) == {"doctor": "passed", **left_out}
    assert "**no GPU**: RuntimeError: no driver. Nothing was measured." in (
        tmp_path / "results" / "summary.md"
    ).read_text(encoding="utf-8")


def test_folder_that_has_files_is_left_alone(begin, tmp_path):
    kept = tmp_path / "results" / "run.json"
    kept.parent.mkdir()
    kept.write_text("mine", encoding="utf-8")
    process = begin()
    process.communicate()
    assert process.returncode == 2
    assert [path.read_text("utf-8") for path in kept.parent.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("shell", "arguments", "said"),
    [("bash", ["--help"], "usage: "), ("bash", ["a", "b"], "usage: "), ("sh", ["a"], "run it with bash: ")],
)
def test_misuse_is_one_line_and_begins_nothing(tmp_path, shell, arguments, said):
    if shell == "sh" and Path("/bin/sh").resolve().name == "bash":
        pytest.skip("here sh is bash")
    done = subprocess.run(
        [shell, SCRIPT, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(said)
    assert len((done.stdout + done.stderr).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_command_is_interrupted_once(begin, tmp_path):
    """And no process of its own; a second one would interrupt `decodetax run` while it writes its file."""
    process = begin(COUNTS="1", ON_A_GPU_SECONDS="22", ON_A_GPU_KILL_AFTER="4")
    process.communicate(timeout=60)
    assert (tmp_path / "results" / "run.txt").read_text("utf-8") == "interrupted\n"


@pytest.mark.slow
def test_on_this_machine_without_a_gpu(tmp_path):
    """With this Python, decodetax on PYTHONPATH and no command on PATH."""
    import torch  # noqa: PLC0415  (only here)

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    start_s = time.monotonic()
    done = subprocess.run(
        ["bash", SCRIPT, tmp_path / "results"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert time.monotonic() - start_s < 200
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout.startswith("no GPU: ")
    results = results_of(tmp_path)
    assert results["doctor"] == "passed"
    assert results["run"] == "left out: no GPU"
    summary = (tmp_path / "results" / "summary.md").read_text(encoding="utf-8")
    assert "`decodetax run` will measure the CPU" in summary


@pytest.mark.slow
def test_kernels_of_the_gpu_tests_are_compiled_without_a_gpu(tmp_path):
    """The first seconds of it: Ctrl-C leaves the count of what was compiled."""
    process = subprocess.Popen(
        [sys.executable, SCRIPT.with_name("compile_first.py"), "a100", "--processes", "2"],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    end_s = time.monotonic() + 120
    while not list(tmp_path.rglob("*.cubin")) and time.monotonic() < end_s:
        time.sleep(0.5)
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert int(said.splitlines()[-1].split()[0]) >= 1
