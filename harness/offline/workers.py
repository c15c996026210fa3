"""Runs jobs that import Triton in worker processes, several at a time, without importing Triton here.

A worker can compile while this process interprets, and a compiler that crashes fails one job only. A worker
is a module run as a program that calls `serve_jobs`.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any

from ..core.gpus import find_gpu
from .compiled_rows import CompiledRow, LaunchName, failed_row
from .variants import CompileCase

_WORKER = f"{__package__}.compiler"
_MESSAGE_CHARACTERS = 300


@dataclass(frozen=True)
class Crash:
    """The answer to a job whose worker process ended; `reason` says how."""

    reason: str


def inspect_cases(
    gpus: Sequence[str],
    cases: Sequence[CompileCase],
    *,
    processes: int | None = None,
    on_row: Callable[[CompiledRow], None] | None = None,
) -> tuple[CompiledRow, ...]:
    """Compiles cases for GPUs in parallel processes, and bounds the machine code.

    Args:
        gpus: names that `find_gpu` knows.
        cases: what to compile; see `variants`.
        processes: the most processes at a time; None means the number of processors.
        on_row: called with each row when it is ready, in any order, one call at a time.

    Returns:
        The rows, by GPU and case in the order given. A case whose compiler crashes has a "failed" row.

    Raises:
        UsageError: no GPU of that name.
        ValueError: processes is less than 1.
    """
    found = [find_gpu(name, with_limits=True) for name in gpus]
    jobs = [(gpu, case) for gpu in found for case in cases]
    rows: dict[int, tuple[CompiledRow, ...]] = {}

    def on_answer(at: int, answer: Any) -> None:
        gpu, case = jobs[at]
        if isinstance(answer, Crash):
            name = LaunchName(
                kernel=case.kernel, variant=case.variant, gpu=gpu.name, dtype=case.dtype, tiling={}
            )
            rows[at] = (failed_row(name, answer.reason),)
        else:
            rows[at] = tuple(map(CompiledRow.from_json, answer))
        if on_row is not None:
            for row in rows[at]:
                on_row(row)

    sent = [{"gpu": gpu.name, "case": asdict(case)} for gpu, case in jobs]
    run_jobs(_WORKER, sent, on_answer, processes=processes)
    return tuple(row for at in range(len(jobs)) for row in rows[at])


def run_jobs(
    worker: str,
    jobs: Sequence[Mapping[str, Any]],
    on_answer: Callable[[int, Any], None],
    *,
    processes: int | None = None,
    show_stderr: bool = False,
) -> None:
    """Answers jobs in parallel processes.

    Args:
        worker: name of the module that each process runs.
        jobs: JSON objects.
        on_answer: called with the place of a job and its answer, or a `Crash`; in any order, one call at a
            time.
        processes: the most processes at a time; None means the number of processors.
        show_stderr: whether what a worker prints goes to stderr, else into the reason of its `Crash`.

    Raises:
        ValueError: processes is less than 1.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"processes is {processes}; it must be at least 1")
    pending: queue.SimpleQueue[int] = queue.SimpleQueue()
    for at in range(len(jobs)):
        pending.put(at)
    answering = threading.Lock()

    def serve() -> None:
        process = _Worker(worker, show_stderr=show_stderr)
        try:
            while True:
                try:
                    at = pending.get_nowait()
                except queue.Empty:
                    return
                answer = process.answer(jobs[at])
                with answering:
                    on_answer(at, answer)
        finally:
            process.close()

    threads = [
        threading.Thread(target=serve, daemon=True)
        for _ in range(min(processes or os.cpu_count() or 1, len(jobs)))
    ]
    for thread in threads:
        thread.start()
    _join(threads, pending)


def serve_jobs(answer: Callable[[Any], Any]) -> None:
    """Answers jobs, JSON objects one a line, until standard input ends: what a worker's `main` does.

    Args:
        answer: gives the answer to a job, as a value that JSON can hold.
    """
    # Compilers may write to standard output: it becomes standard error, and answers go to a copy of it.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            answers.write(json.dumps(answer(json.loads(line))) + "\n")
            answers.flush()


def _join(threads: Sequence[threading.Thread], pending: "queue.SimpleQueue[int]") -> None:
    """Waits for all threads; on Ctrl-C they start no further job."""
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        with contextlib.suppress(queue.Empty):
            while True:
                pending.get_nowait()
        raise


class _Worker:
    """A worker process, started when first needed and again after it died."""

    def __init__(self, module: str, *, show_stderr: bool) -> None:
        self._module, self._show_stderr = module, show_stderr
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[str] | None = None

    def answer(self, job: Mapping[str, Any]) -> Any:
        process = self._process or self._start()
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("a worker has no pipes")
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        return json.loads(answer) if answer else Crash(self._exit_reason(process))

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()
        if self._errors is not None:
            self._errors.close()
        self._process = self._errors = None

    def _start(self) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        if not self._show_stderr:
            self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  (`close`)
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
        )
        return self._process

    def _exit_reason(self, process: subprocess.Popen[str]) -> str:
        code = process.wait()
        printed = ""
        if self._errors is not None:
            self._errors.seek(0)
            printed = " ".join(self._errors.read().split())[-_MESSAGE_CHARACTERS:]
        self.close()
        return f"the compiler's process ended with {code}: {printed}".rstrip(": ")
