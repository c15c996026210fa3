"""Compiles cases in worker processes, several at a time, without importing Triton here.

A worker can compile while this process interprets, and a compiler that crashes fails one case only.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import IO

from ..core.gpus import Gpu, find_gpu
from .compiled_rows import CompiledRow, LaunchName, failed_row
from .variants import CompileCase

_WORKER = f"{__package__}.compiler"
_MESSAGE_CHARACTERS = 300


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
    if processes is not None and processes < 1:
        raise ValueError(f"processes is {processes}; it must be at least 1")
    jobs = [(gpu, case) for gpu in found for case in cases]
    pending: queue.SimpleQueue[int] = queue.SimpleQueue()
    for at in range(len(jobs)):
        pending.put(at)
    answers: dict[int, tuple[CompiledRow, ...]] = {}
    reporting = threading.Lock()

    def serve() -> None:
        worker = _Worker()
        try:
            while True:
                try:
                    at = pending.get_nowait()
                except queue.Empty:
                    return
                answers[at] = worker.rows(*jobs[at])
                if on_row is not None:
                    with reporting:
                        for row in answers[at]:
                            on_row(row)
        finally:
            worker.close()

    threads = [
        threading.Thread(target=serve, daemon=True)
        for _ in range(min(processes or os.cpu_count() or 1, len(jobs)))
    ]
    for thread in threads:
        thread.start()
    _join(threads, pending)
    return tuple(row for at in range(len(jobs)) for row in answers[at])


def _join(threads: Sequence[threading.Thread], pending: "queue.SimpleQueue[int]") -> None:
    """Waits for all threads; on Ctrl-C they start no further case."""
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        with contextlib.suppress(queue.Empty):
            while True:
                pending.get_nowait()
        raise


class _Worker:
    """A compiling process, started when first needed and again after it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[str] | None = None

    def rows(self, gpu: Gpu, case: CompileCase) -> tuple[CompiledRow, ...]:
        process = self._process or self._start()
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("a worker has no pipes")
        try:
            process.stdin.write(json.dumps({"gpu": gpu.name, "case": asdict(case)}) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return tuple(CompiledRow.from_json(row) for row in json.loads(answer))
        name = LaunchName(kernel=case.kernel, variant=case.variant, gpu=gpu.name, dtype=case.dtype, tiling={})
        return (failed_row(name, self._exit_reason(process)),)

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()
        if self._errors is not None:
            self._errors.close()
        self._process = self._errors = None

    def _start(self) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  (`close`)
        self._process = subprocess.Popen(
            [sys.executable, "-m", _WORKER],
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
        return f"the compiler's process ended with {code}: {printed}"
