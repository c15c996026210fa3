"""Runs jobs in worker processes, several at a time: `run_jobs`, or in the background a `WorkerPool`.

A worker is a module run as a program that calls `serve_jobs`. It may import what the caller does not, and one
that crashes or hangs fails one job only.
"""

import contextlib
import io
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Self

_MESSAGE_CHARACTERS = 300
_KILL_AGAIN_S = 0.1


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
        limit_s: gives the seconds after which the job that now begins is a `Crash`; None sets no limit.

    Raises:
        ValueError: processes is less than 1.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"processes is {processes}; it must be at least 1")
    processes = min(processes or os.cpu_count() or 1, len(jobs))
    with WorkerPool(worker, processes=processes, show_stderr=show_stderr, limit_s=limit_s) as pool:
        pool.ask(dict(enumerate(jobs)))
        for _ in jobs:
            on_answer(*pool.next_answer())


def safe_environment() -> dict[str, str]:
    """The environment of a child Python process: files of the current folder do not shadow modules."""
    return {**os.environ, "PYTHONSAFEPATH": "1"}


def serve_jobs(answer: Callable[[Any], Any]) -> None:
    """Answers jobs, JSON objects one a line, until standard input ends: what a worker's `main` does.

    Args:
        answer: gives the answer to a job, as a value that JSON can hold.
    """
    # Compilers may write to standard output: it becomes standard error, and answers go to a copy of it.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        # Lines go out at once, as on standard error: the process ends by a kill.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)
        for line in sys.stdin:
            answers.write(json.dumps(answer(json.loads(line))) + "\n")
            answers.flush()


class WorkerPool:
    """Answers jobs in the background in the order asked, as many at a time as there are processes.

    A process starts when it is first needed, and again after it died.

    Args:
        worker: name of the module that each process runs.
        processes: the most processes at a time.
        show_stderr: see `run_jobs`.
        limit_s: see `run_jobs`.
    """

    def __init__(
        self,
        worker: str,
        *,
        processes: int,
        show_stderr: bool = False,
        limit_s: Callable[[], float] | None = None,
    ) -> None:
        self._workers = [_Worker(worker, show_stderr=show_stderr, limit_s=limit_s) for _ in range(processes)]
        self._threads: list[threading.Thread] = []
        self._jobs: deque[tuple[Any, str]] = deque()
        self._answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._closing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, jobs: Mapping[Any, Mapping[str, Any]]) -> None:
        """Adds jobs, JSON objects by the keys of their answers, behind those that have not begun."""
        with self._changed:
            self._jobs.extend((key, json.dumps(job)) for key, job in jobs.items())
            self._changed.notify_all()
        while len(self._threads) < min(len(self._workers), len(jobs)):
            worker = self._workers[len(self._threads)]
            self._threads.append(threading.Thread(target=self._serve, args=(worker,), daemon=True))
            self._threads[-1].start()

    def drop(self) -> None:
        """Drops the jobs that have not begun."""
        with self._changed:
            self._jobs.clear()

    def next_answer(self, timeout_s: float | None = None) -> tuple[Any, Any]:
        """The key of a job and its answer, or a `Crash`, as soon as there is one.

        Raises:
            queue.Empty: there is none in time; a timeout of None waits for one.
        """
        return self._answers.get(timeout=timeout_s)

    def close(self) -> None:
        """Ends all processes at once, whatever they do."""
        with self._changed:
            self._closing = True
            self._jobs.clear()
            self._changed.notify_all()
        for worker, thread in zip(self._workers, self._threads, strict=False):
            while thread.is_alive():
                worker.kill()
                thread.join(_KILL_AGAIN_S)  # its process may have been starting

    def _serve(self, worker: "_Worker") -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closing or self._jobs)
                    if self._closing:
                        return
                    key, job = self._jobs.popleft()
                try:
                    answer = worker.answer(job)
                except OSError as error:  # no memory for a process
                    answer = Crash(f"its process did not start: {error.strerror}", blameless=True)
                self._answers.put((key, answer))
        finally:
            worker.close()


class _Worker:
    """A worker process, started when first needed and again after it died; see `run_jobs` for the options."""

    def __init__(
        self, module: str, *, show_stderr: bool = False, limit_s: Callable[[], float] | None = None
    ) -> None:
        self._module, self._show_stderr, self._limit_s = module, show_stderr, limit_s
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[str] | None = None

    def answer(self, job: str) -> Any:
        """The answer to a job, which is a JSON object, or a `Crash`."""
        limit_s = None if self._limit_s is None else self._limit_s()
        if limit_s is not None and limit_s <= 0:
            return Crash("timed out before it began")
        process = self._process or self._start()
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("a worker has no pipes")
        with _killed_after(limit_s, process) as timed_out:
            try:
                process.stdin.write(f"{job}\n")
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
            self._process.kill()  # it may hang at its end
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
