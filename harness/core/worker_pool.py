"""Worker processes that answer jobs in the background, while the caller does something else."""

import threading
from collections import deque
from collections.abc import Hashable, Mapping
from queue import Empty, SimpleQueue
from typing import Any, Self

from .worker_processes import Crash, Worker

_KILL_AGAIN_S = 0.1


class WorkerPool:
    """Answers jobs in order, as many at a time as there are processes.

    A process starts when it is first needed, and again after it died: see `worker_processes`.

    Args:
        worker: name of the module that each process runs.
        processes: the most processes at a time, at least 1.
        limit_s: seconds after which a job is answered by a `Crash`.
    """

    def __init__(self, worker: str, *, processes: int, limit_s: float) -> None:
        self._workers = [Worker(worker, limit_s=lambda: limit_s) for _ in range(processes)]
        self._threads: list[threading.Thread] = []
        self._jobs: deque[tuple[Hashable, Mapping[str, Any]]] = deque()
        self._answers: SimpleQueue[tuple[Hashable, Any]] = SimpleQueue()
        self._changed = threading.Condition()
        self._closing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, jobs: Mapping[Hashable, Mapping[str, Any]]) -> None:
        """Adds jobs, JSON objects by the keys of their answers, behind those that have not begun."""
        with self._changed:
            self._jobs.extend(jobs.items())
            self._changed.notify_all()
        while len(self._threads) < min(len(self._workers), len(jobs)):
            worker = self._workers[len(self._threads)]
            self._threads.append(threading.Thread(target=self._serve, args=(worker,), daemon=True))
            self._threads[-1].start()

    def drop(self) -> None:
        """Forgets the jobs that have not begun."""
        with self._changed:
            self._jobs.clear()

    def answer(self, timeout_s: float | None) -> tuple[Hashable, Any] | None:
        """The next answer, or a `Crash`, with the key of its job; None if none comes in time."""
        try:
            return self._answers.get(timeout=timeout_s)
        except Empty:
            return None

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

    def _serve(self, worker: Worker) -> None:
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
