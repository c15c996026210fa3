"""One case executed for one GPU: its row, and the worker processes that execute many.

Run as a program, without TRITON_INTERPRET, it is a worker of `execute_cases`: each job is a line of JSON on
standard input, its row a line on standard output.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import msgspec

from ...core.errors import one_line
from ...core.gpus import Gpu, find_gpu
from ...core.worker_processes import Crash, run_jobs, serve_jobs
from .cases import Case, UserCase, from_json, skip_reason, to_json

_WORKER = f"{__package__}.rows"
_CASE_LIMIT_S = 600.0
"""A case takes seconds; a loop of a user's kernel may not end."""


@dataclass(frozen=True, kw_only=True)
class ExecutedRow:
    """One case executed for one GPU. Figures exist where the call returned a result.

    Attributes:
        kernel: "decode_attention", "prefill_matmul" or "merge_states"; MODULE:FUNCTION of a user's own.
        case: name of the case.
        gpu: name of the GPU.
        dtype: dtype of the KV cache or the weight.
        status: "ok"; "failed" (a violation, a wrong result, or an error); "unsupported" (an instruction that
            is not executed); "skipped" (the kernel does not run on that GPU).
        reason: why it is not ok, else None.
        sm_count: SMs that tilings were chosen for; None where no grid depends on it.
        relative_error: error of the worst row of the result; None where it is infinite.
        tolerance: the largest error that rounding explains.
        lse_error: the same of the log-sum-exp, where the call returns it.
        lse_tolerance: the largest such error that rounding explains.
        launches: kernel, grid, CTAs, warps, shared memory and seconds of each launch.
        violations: see `ptx.violations.Violation`.
        notes: the same, harmless.
        compile_s: seconds before and between the launches: compilation, and what the host function does.
        execute_s: seconds of all launches.
    """

    kernel: str
    case: str
    gpu: str
    dtype: str
    status: str
    reason: str | None = None
    sm_count: int | None
    relative_error: float | None = None
    tolerance: float | None = None
    lse_error: float | None = None
    lse_tolerance: float | None = None
    launches: tuple[dict[str, Any], ...] = field(default=(), hash=False)
    violations: tuple[dict[str, Any], ...] = field(default=(), hash=False)
    notes: tuple[dict[str, Any], ...] = field(default=(), hash=False)
    compile_s: float | None = None
    execute_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields by their names, and where the figures come from."""
        return asdict(self) | {"provenance": "executed"}


def execute_case(
    case: Case, gpu: Gpu, *, seed: int = 0, edit: Callable[[str, str], str] | None = None
) -> ExecutedRow:
    """Compiles what one call launches for a GPU, executes every CTA, and compares the result with the oracle.

    The process must not interpret Triton's kernels.

    Args:
        case: the call.
        gpu: GPU to compile for; it need not be present.
        seed: of the inputs and of the order of the CTAs.
        edit: from a kernel's name and its PTX to the PTX that is executed; plants faults.
    """
    from ..ptx.launch import executed  # noqa: PLC0415  (imports Triton)
    from ..ptx.unsupported import UnsupportedPtxError  # noqa: PLC0415
    from .calls import call_of  # noqa: PLC0415

    row = _unrun_row(case, gpu)
    if reason := skip_reason(case, gpu.sm):
        return replace(row, status="skipped", reason=reason)
    try:
        call = call_of(case, seed)
    except Exception as error:  # noqa: BLE001  (a user's module may raise anything when it is imported)
        return replace(row, status="failed", reason=one_line(error))
    figures: dict[str, Any] = {}
    started = time.perf_counter()
    with executed(gpu, sm_count=case.sm_count, seed=seed, edit=edit) as execution:
        for tensor, dead in call.dead:
            execution.forbid(tensor, dead)
        try:
            result = call.run()
        except UnsupportedPtxError as error:
            status, reason = "unsupported", one_line(error)
        except Exception as error:  # noqa: BLE001  (a call that fails is a row, and the others go on)
            status, reason = "failed", one_line(error)
        else:
            figures = asdict(call.judge(result))
            reason = figures.pop("reason")
            status = "failed" if reason else "ok"
    elapsed_s = time.perf_counter() - started
    execute_s = sum(launch.seconds for launch in execution.launches)
    violations = tuple(_violation(each) for each in execution.violations)
    if status == "ok" and not execution.launches:
        status, reason = "failed", "launches no Triton kernel"
    if violations:
        status, reason = "failed", "; ".join(dict.fromkeys(each["kind"] for each in violations))
    return replace(
        row,
        **{name: _finite(value) for name, value in figures.items()},
        status=status,
        reason=reason,
        violations=violations,
        notes=tuple(_violation(each) for each in execution.notes),
        launches=tuple(map(_launch, execution.launches)),
        compile_s=elapsed_s - execute_s,
        execute_s=execute_s,
    )


def execute_cases(
    gpus: Sequence[Gpu],
    cases: Sequence[Case],
    *,
    seed: int = 0,
    processes: int | None = None,
    on_row: Callable[[ExecutedRow], None] = lambda _row: None,
) -> tuple[ExecutedRow, ...]:
    """Executes cases for GPUs in parallel processes.

    Args:
        gpus: GPUs to compile for; they need not be present.
        cases: the calls.
        seed: of the inputs and of the order of the CTAs.
        processes: the most processes at a time; None means the number of processors.
        on_row: called with each row when it is ready, in any order, one call at a time.

    Returns:
        The rows, by GPU and case in the order given. A case whose process ends, or takes over ten minutes,
        has a "failed" row.

    Raises:
        ValueError: processes is less than 1.
    """
    jobs = [(gpu, case) for gpu in gpus for case in cases]
    rows: dict[int, ExecutedRow] = {}

    def on_answer(at: int, answer: Any) -> None:
        gpu, case = jobs[at]
        if isinstance(answer, Crash):
            rows[at] = replace(_unrun_row(case, gpu), status="failed", reason=answer.reason)
        else:
            rows[at] = msgspec.convert(answer, ExecutedRow)
        on_row(rows[at])

    sent = [{"gpu": gpu.name, "case": to_json(case), "seed": seed} for gpu, case in jobs]
    user_code = any(isinstance(case, UserCase) for case in cases)
    run_jobs(
        _WORKER,
        sent,
        on_answer,
        processes=processes,
        show_stderr=user_code,
        limit_s=lambda: _CASE_LIMIT_S,
    )
    return tuple(rows[at] for at in range(len(jobs)))


def _unrun_row(case: Case, gpu: Gpu) -> ExecutedRow:
    return ExecutedRow(
        kernel=case.kernel,
        case=case.name,
        gpu=gpu.name,
        dtype=case.dtype,
        status="ok",
        sm_count=case.sm_count,
    )


def _finite(value: float | None) -> Any:
    """A figure that JSON can hold; the reason says where it is infinite."""
    return None if value is None or not math.isfinite(value) else value


def _violation(violation: Any) -> dict[str, Any]:
    """The fields of a violation or note."""
    fields = asdict(violation)
    return fields | {"kind": str(violation.kind), "cta": list(violation.cta)}


def _launch(launch: Any) -> dict[str, Any]:
    """The fields of a launch."""
    return {
        "kernel": launch.kernel,
        "grid": list(launch.grid),
        "ctas": launch.ctas,
        "num_warps": launch.num_warps,
        "shared_bytes": launch.shared_bytes,
        "seconds": launch.seconds,
        "counters": msgspec.to_builtins(launch.counters),
    }


def _answer(job: Any) -> dict[str, Any]:
    return execute_case(from_json(job["case"]), find_gpu(job["gpu"]), seed=job["seed"]).to_json()


if __name__ == "__main__":
    serve_jobs(_answer)
