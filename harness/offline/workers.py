"""Compiles cases in worker processes, several at a time, without importing Triton here.

A worker can compile while this process interprets, and a compiler that crashes fails one case only.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ..core.gpus import find_gpu
from ..core.worker_processes import Crash, run_jobs
from .compiled_rows import CompiledRow, LaunchName, failed_row
from .variants import CompileCase

_WORKER = f"{__package__}.compiler"


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
