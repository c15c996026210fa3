"""A function of the user's own, counted and compiled by what its Triton kernels do: no tiling is known."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any

import torch

from ..core.cases import DecodeAttention, PrefillMatmul
from ..core.errors import UsageError, one_line
from ..core.gpu_limits import SmLimits
from ..core.inputs import BlankSource, Inputs, Source, draw
from .compiled_rows import CompiledRow, LaunchName, failed_row
from .sanitizer import SanitizerError
from .subjects import kernels

OwnCase = PrefillMatmul | DecodeAttention
Run = Callable[[Any], torch.Tensor]
Gate = Callable[[OwnCase, Inputs], Callable[[torch.Tensor], str]]

_SHAPES: dict[str, dict[str, OwnCase]] = {
    "prefill_matmul": {
        f"rows_{rows}": PrefillMatmul(
            phase="prefill" if rows > 1 else "decode",
            part="product",
            rows=rows,
            in_features=4096,
            out_features=8192 if rows > 64 else 4096,
            dtype="bf16",
        )
        for rows in (8192, 64, 1)
    },
    "decode_attention": {
        "contiguous": DecodeAttention(
            contexts=(8192,) * 64, q_heads=32, kv_heads=8, head_dim=128, dtype="bf16"
        )
    },
}
"""What is compiled of an operation, by name: sizes of the default variants of our own kernels."""


def count_own(name: str, run: Run, case: OwnCase, *, seed: int, gate: Gate) -> dict[str, Any]:
    """What a function's kernels move and multiply on a case, counted in the interpreter, as a JSON object.

    Args:
        name: of the function.
        run: computes the output of the case's inputs; Triton must run interpreted in this process.
        case: of a size for the interpreter.
        seed: of the inputs.
        gate: of a case and its inputs, as they are before the function has them, says what is wrong with an
            output; an empty text where nothing is.

    Returns:
        Status "counted", with a record a launch; or "failed", with the reason and without figures.
    """
    from .interpreter_patch import count_traffic  # noqa: PLC0415  (imports Triton, which the caller prepared)

    inputs, work = draw(case, Source(torch.device("cpu"), seed)), case.work()
    row = {"kernel": name, "case": case.id, "status": "failed", "reason": None, "provenance": "counted"}
    judge = gate(case, inputs)
    try:
        with count_traffic() as traffic:
            output = run(inputs)
        reason = f"memory fault: {traffic.fault}" if traffic.fault else judge(output)
    except SanitizerError as error:
        reason = f"memory fault: {error}"
    except Exception as error:  # noqa: BLE001  (the function is the user's and may raise anything)
        reason = one_line(error)
    if not reason and not traffic.bytes_written:
        reason = "no Triton kernel of it writes anything, so that there is nothing to count"
    if reason:
        return {**row, "reason": reason}
    moved = traffic.bytes_requested + traffic.bytes_written
    return {
        **row,
        "status": "counted",
        "launches": [{**asdict(launch), "programs": launch.programs} for launch in traffic.launches],
        "bytes_requested": traffic.bytes_requested,
        "bytes_written": traffic.bytes_written,
        "operations": dict(traffic.operations),
        "modelled_work_bytes": work.bytes_total,
        "modelled_work_operations": work.operations,
        "bytes_counted_over_work": moved / work.bytes_total,
        "operations_per_counted_byte": work.operations / moved,
    }


def compile_own(
    name: str, run: Run, operation: str, gpus: Iterable[SmLimits], dtypes: Iterable[str]
) -> Iterator[CompiledRow]:
    """What the compiler makes of a function's kernels on each GPU, in each dtype, at each of some shapes.

    Args:
        name: of the function.
        run: computes the output of inputs, which hold no numbers here and lie on the CPU.
        operation: "prefill_matmul" or "decode_attention".
        gpus: to compile for; they need not be there.
        dtypes: of the inputs.

    Yields:
        A row a launch; one "failed" row where the function raises or launches nothing.

    Raises:
        UsageError: this process runs Triton's interpreter.
    """
    from .compiler import inspect_launch  # noqa: PLC0415  (it imports Triton, which the caller prepared)

    if kernels.interpreting():
        raise UsageError(
            f"--provider: {name} sets TRITON_INTERPRET before it imports Triton, so that nothing is compiled"
        )
    dtypes = tuple(dtypes)
    for gpu in gpus:
        for dtype in dtypes:
            for shape, case in _SHAPES[operation].items():
                label = LaunchName(kernel=name, variant=shape, gpu=gpu.gpu, dtype=dtype, tiling={})
                inputs = draw(replace(case, dtype=dtype), BlankSource(torch.device("cpu"), 0))
                try:
                    rows = inspect_launch(lambda inputs=inputs: run(inputs), gpu.gpu)  # type: ignore[misc]
                except Exception as error:  # noqa: BLE001  (the function is the user's and may raise anything)
                    yield failed_row(label, one_line(error))
                    continue
                if not rows:
                    yield failed_row(label, "launches no Triton kernel")
                launches = Counter(row.kernel for row in rows)
                for row in rows:
                    told = f"({_sizes(row)})" if launches[row.kernel] > 1 else ""
                    yield replace(row, kernel=name, variant=f"{shape}:{row.kernel}{told}", dtype=dtype)


def _sizes(row: CompiledRow) -> str:
    """The compile-time sizes of a launch, which tell the configurations of an autotuned kernel apart."""
    return ", ".join(f"{size} {value}" for size, value in row.tiling.items())
