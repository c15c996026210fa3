"""Runs jobs in worker processes, several at a time.

A worker is a module run as a program that calls `serve_jobs`. It may import what the caller does not, and one
that crashes or hangs fails one job only.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

_MESSAGE_CHARACTERS = 300


@dataclass(frozen=True)
class Crash:
    """The answer to a job whose worker process ended.

    Attributes:
        reason: how it ended.
        blameless: whether that was not the job's doing, as far as is known: the process was killed, as when
            memory runs out, or did not start.
    """

    reason: str
    blameless: bool = field(default=False, compare=False)


def run_jobs(
    worker: str,
    jobs: Sequence[Mapping[str, Any]],
    on_answer: Callable[[int, Any], None],
    *,
    processes: int | None = None,
    show_stderr: bool = False,
    limit_s: Callable[[], float] | None = None,
) -> None:
    """Answers jobs in parallel processes.

    Args:
        worker: name of the module that each process runs.
        jobs: JSON objects.
        on_answer: called with the place of a job and its answer, or a `Crash`; in any order, one call at a
            time.
        processes: the most processes at a time; None means the number of processors.
        show_stderr: whether what a worker prints goes to stderr, else into the reason of its `Crash`.
        limit_s: gives the seconds after which the job that now begins is a `Crash`; None waits for ever.

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
        process = Worker(worker, show_stderr=show_stderr, limit_s=limit_s)
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


def safe_environment() -> dict[str, str]:
    """The environment of a Python process of ours: a queue.py in the current folder is not its `queue`."""
    return {**os.environ, "PYTHONSAFEPATH": "1"}


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


class Worker:
    """A worker process, started when first needed and again after it died; see `run_jobs` for the options."""

    def __init__(
        self, module: str, *, show_stderr: bool = False, limit_s: Callable[[], float] | None = None
    ) -> None:
        self._module, self._show_stderr, self._limit_s = module, show_stderr, limit_s
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[str] | None = None

    def answer(self, job: Mapping[str, Any]) -> Any:
        """The answer to a job, or a `Crash`."""
        limit_s = None if self._limit_s is None else self._limit_s()
        if limit_s is not None and limit_s <= 0:
            return Crash("timed out before it began")
        process = self._process or self._start()
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("a worker has no pipes")
        with _killed_after(limit_s, process) as timed_out:
            try:
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except BrokenPipeError:
                answer = ""
        if answer.endswith("\n"):
            return json.loads(answer)
        reason = self._exit_reason(process)
        if timed_out.is_set():
            return Crash(f"timed out after {limit_s:.0f} s")
        return Crash(reason, blameless=process.returncode == -signal.SIGKILL)

    def kill(self) -> None:
        """Ends the process, from another thread; the job that it has is answered by a `Crash`."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Ends the process, which has no job."""
        if self._process is not None:
            if self._limit_s is not None:
                self._process.kill()  # all is answered, and a process may hang at its end
            self._process.communicate()
        if self._errors is not None:
            self._errors.close()
        self._process = self._errors = None

    def _start(self) -> subprocess.Popen[str]:
        environment = safe_environment()
        environment.pop("TRITON_INTERPRET", None)
        if not self._show_stderr and self._errors is None:
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
        return f"its process ended with {code}: {printed}".rstrip(": ")


@contextlib.contextmanager
def _killed_after(limit_s: float | None, process: "subprocess.Popen[str]") -> Iterator[threading.Event]:
    """Kills a process at the end of a time limit, if it has one; the event says that it was killed."""
    timed_out = threading.Event()

    def kill() -> None:
        timed_out.set()
        process.kill()

    if limit_s is None:
        yield timed_out
        return
    timer = threading.Timer(limit_s, kill)
    timer.start()
    try:
        yield timed_out
    finally:
        timer.cancel()
