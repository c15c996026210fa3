"""Tilings compiled ahead of their timing: in parallel, in order, and none lost to a compiler that dies.

The compiling processes are fakes that do what the tiling says.
"""

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from decodetax.harness.bench import compile_worker
from decodetax.harness.bench.compile_ahead import CompileAhead, InOrder
from decodetax.harness.bench.providers import tunable_provider
from decodetax.kernels.gpu_limits import H100_LIMITS
from small_cases import decode_case, matmul_case

CASE = decode_case()

WORKER = """
import os, pathlib, time
from decodetax.harness.core.worker_processes import serve_jobs

here = pathlib.Path(os.environ["FAKE_COMPILERS"])
(here / f"{os.getpid()}.pid").touch()

def answer(job):
    if not job:
        return {"error": None}
    does = job["tiling"]["does"]
    if does == "crash":
        os._exit(11)
    if does == "be killed":
        os.kill(os.getpid(), 9)
    if does == "hang":
        time.sleep(600)
    if does == "wait for another":
        while len(list(here.glob("*.pid"))) < 2:
            time.sleep(0.01)
    if does == "slowly":
        time.sleep(0.3)
    (here / f"{job['tiling']['number']}.compiled").touch()
    if does == "no memory":
        return {"error": None, "not_compiled": "MemoryError"}
    return {"error": "_kernel: PassManager::run failed" if does == "fail" else None}

serve_jobs(answer)
"""


@dataclasses.dataclass(frozen=True)
class FakeTiling:
    number: int
    does: str = "compile"


def tilings(*do):
    return [FakeTiling(number, does) for number, does in enumerate(do)]


@pytest.fixture
def compilers(tmp_path, monkeypatch):
    """Starts fake compilers; counts the processes that began and the tilings that were compiled."""
    (tmp_path / "fake_compiler.py").write_text(WORKER, encoding="utf-8")
    (tmp_path / "broken_compiler.py").write_text("raise ImportError('no triton')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("FAKE_COMPILERS", str(tmp_path))
    opened = []

    def start(processes=1, worker="fake_compiler"):
        opened.append(CompileAhead(H100_LIMITS, processes=processes, worker=worker))
        return opened[-1]

    start.pids = lambda: [int(path.stem) for path in tmp_path.glob("*.pid")]
    start.compiled = lambda: sorted(int(path.stem) for path in tmp_path.glob("*.compiled"))
    yield start
    for each in opened:
        each.close()


def taken(ahead, count):
    return [ahead.next(60.0) for _ in range(count)]


def test_tilings_come_in_order_once_compiled(compilers):
    ahead = compilers()
    ahead.begin(CASE, tilings(*["compile"] * 5))
    assert taken(ahead, 5) == [(place, None) for place in range(5)]
    assert compilers.compiled() == [0, 1, 2, 3, 4]
    assert ahead.next(0.01) is None
    assert (ahead.problem, ahead.skipped) == (None, [])


def test_tilings_compile_in_as_many_processes_at_a_time(compilers):
    ahead = compilers(processes=2)
    ahead.begin(CASE, tilings("wait for another", "wait for another", "compile"))
    assert sorted(taken(ahead, 3)) == [(0, None), (1, None), (2, None)]
    assert len(compilers.pids()) == 2


def test_processes_stay_for_the_next_case(compilers):
    ahead = compilers()
    for case in (CASE, decode_case(context=5)):
        ahead.begin(case, tilings("compile", "compile"))
        assert taken(ahead, 2) == [(0, None), (1, None)]
    assert len(compilers.pids()) == 1


def test_nearest_of_those_that_are_ready_comes_first(compilers):
    ahead = compilers()
    ahead.begin(CASE, tilings(*["compile"] * 4))
    while compilers.compiled() != [0, 1, 2, 3]:
        time.sleep(0.01)
    time.sleep(0.1)
    assert taken(ahead, 4) == [(0, None), (1, None), (2, None), (3, None)]


def test_no_tiling_is_waited_for_beyond_the_time(compilers):
    ahead = compilers()
    ahead.begin(CASE, tilings("hang"))
    began_s = time.perf_counter()
    assert ahead.next(0.2) is None
    assert time.perf_counter() - began_s < 30


def test_compiler_error_is_the_reason(compilers):
    ahead = compilers()
    ahead.begin(CASE, tilings("fail", "compile"))
    assert taken(ahead, 2) == [(0, "_kernel: PassManager::run failed"), (1, None)]


def test_compiler_that_is_killed_from_outside_leaves_its_tiling_to_be_tried(compilers):
    ahead = compilers()
    ahead.begin(CASE, tilings("be killed", "compile"))
    assert taken(ahead, 2) == [(0, None), (1, None)]
    assert ahead.skipped == ["its process ended with -9"]


def test_processes_that_do_not_start_leave_all_tilings_to_be_tried(compilers, monkeypatch):
    def no_memory(*_arguments, **_options):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(subprocess, "Popen", no_memory)
    ahead = compilers()
    ahead.begin(CASE, tilings("compile", "compile"))
    assert taken(ahead, 2) == [(0, None), (1, None)]
    assert ahead.problem == "its process did not start: Cannot allocate memory"


@pytest.mark.parametrize("processes", [1, 2])
def test_compiler_that_dies_fails_its_tiling_alone(compilers, processes):
    ahead = compilers(processes)
    ahead.begin(CASE, tilings("crash", "compile", "crash", "compile"))
    found = dict(taken(ahead, 4))
    assert found[1] is found[3] is None
    for place in (0, 2):
        assert found[place].startswith("the compiler failed: its process ended with 11")
    assert ahead.problem is None


@pytest.mark.slow
def test_compiler_that_hangs_fails_its_tiling_alone(compilers, monkeypatch):
    monkeypatch.setattr("decodetax.harness.bench.compile_ahead.COMPILE_LIMIT_S", 3.0)
    ahead = compilers()
    ahead.begin(CASE, tilings("hang", "compile"))
    assert taken(ahead, 2) == [(0, "the compiler failed: timed out after 3 s"), (1, None)]


def test_compilers_that_cannot_start_leave_all_tilings_to_be_tried(compilers):
    ahead = compilers(processes=2, worker="broken_compiler")
    for _ in range(2):
        ahead.begin(CASE, tilings(*["compile"] * 4))
        assert taken(ahead, 4) == [(place, None) for place in range(4)]
        assert "ImportError: no triton" in ahead.problem


def test_tiling_that_a_working_process_cannot_compile_is_left_to_be_tried(compilers):
    ahead = compilers()
    ahead.begin(CASE, tilings("no memory", "compile"))
    assert taken(ahead, 2) == [(0, None), (1, None)]
    assert ahead.skipped == ["MemoryError"]


def test_end_of_a_case_drops_what_has_not_begun(compilers):
    ahead = compilers()
    ahead.begin(CASE, tilings(*["slowly"] * 20))
    assert ahead.next(60.0) == (0, None)
    ahead.end()
    assert ahead.next(1.0) is None
    assert len(compilers.compiled()) <= 3
    ahead.begin(CASE, tilings("compile"))
    assert ahead.next(60.0) == (0, None)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_close_ends_compilers_that_hang(compilers):
    ahead = compilers(processes=2)
    ahead.begin(CASE, tilings("hang", "hang", "hang"))
    while len(compilers.pids()) < 2:
        time.sleep(0.01)
    began_s = time.perf_counter()
    ahead.close()
    assert time.perf_counter() - began_s < 10
    assert not any(map(is_alive, compilers.pids()))


INTERRUPTED = """
import contextlib, sys
sys.path[:0] = sys.argv[1:]
from test_compile_ahead import CASE, H100_LIMITS, CompileAhead, tilings

ahead = CompileAhead(H100_LIMITS, processes=2, worker="fake_compiler")
try:
    with contextlib.closing(ahead):
        ahead.begin(CASE, tilings("hang", "hang", "hang"))
        ahead.next(None)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_ends_the_wait_and_all_compilers(compilers):
    here = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, here, here.parent],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while len(compilers.pids()) < 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the compilers too
    out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == ("interrupted\n", "", 0)
    assert not any(map(is_alive, compilers.pids()))


def test_tilings_without_compilers_come_in_order():
    ahead = InOrder()
    ahead.begin(CASE, tilings("compile", "compile"))
    assert [ahead.next(None), ahead.next(None), ahead.next(None)] == [(0, None), (1, None), None]


def test_worker_answers_whether_it_works_and_leaves_what_it_cannot_compile():
    assert compile_worker.answer({}) == {"error": None}
    found = compile_worker.answer({"case": {}, "limits": {}, "tiling": {}})
    assert found["error"] is None
    assert found["not_compiled"].startswith("ValidationError: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [matmul_case(dtype="fp16"), decode_case(dtype="fp16")], ids=["matmul", "decode"]
)
def test_real_compilers_fill_the_cache(case, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    _, tunable = tunable_provider(case.operation)
    default = tunable.default(case, H100_LIMITS)
    some = tunable.candidates(case, default, H100_LIMITS)[:3]
    cubins = []
    for _ in range(2):
        ahead = CompileAhead(H100_LIMITS, processes=1)
        try:
            ahead.begin(case, some)
            assert taken(ahead, 3) == [(0, None), (1, None), (2, None)]
            assert (ahead.problem, ahead.skipped) == (None, [])
        finally:
            ahead.close()
        cubins.append({path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.cubin")})
    assert len(cubins[0]) >= 3
    assert cubins[0] == cubins[1], "the second time nothing was compiled"
