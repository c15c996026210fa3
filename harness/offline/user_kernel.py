"""A user's own function (`--provider` of `count`, `inspect` and `execute`): its Triton kernels.

The tiling of such a kernel is unknown, so only the case's minimum is modelled.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from msgspec import structs

from ...kernels import interpreting, reference, use_interpreter
from ..core import options
from ..core.cases import DecodeAttention, PrefillAttention, PrefillMatmul
from ..core.errors import UsageError, one_line
from ..core.gate import gate_of
from ..core.gpus import Gpu
from ..core.inputs import BlankSource, Source, draw
from ..core.user_function import UserFunction, load_user_functions
from .compiled_rows import CompiledRow, LaunchName, failed_row
from .kernel_traffic import MAX_INTERPRETED_OPERATIONS, launch_rows
from .sanitizer import SanitizerError

COMPILED_DTYPES = ("bf16", "fp16", "fp32")

MAX_INTERPRETED_RESULTS = 2**22
"""Output elements of a matmul. A kernel may compute few per program, and each program takes time."""

_COMPILED_CASES: dict[str, dict[str, PrefillMatmul | DecodeAttention | PrefillAttention]] = {
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
    "prefill_attention": {
        "prompts": PrefillAttention(
            sequences=4, prompt=2048, q_heads=32, kv_heads=8, head_dim=128, dtype="bf16"
        )
    },
}
"""Cases to compile for, by operation and name; the sizes are those of `variants.default_cases`."""


def load_to_count(
    names: Sequence[str], cases: Mapping[str, PrefillMatmul | DecodeAttention | PrefillAttention]
) -> list[UserFunction]:
    """Load functions with Triton set to interpret; call it before anything imports Triton.

    Raises:
        UsageError: there is no such function, or the case of its operation is too large to interpret.
    """
    use_interpreter()
    with options.user_code():
        functions = list(load_user_functions(names).values())
    for operation in {function.operation for function in functions}:
        case = cases[operation]
        results = case.rows * case.out_features if isinstance(case, PrefillMatmul) else 0
        for what, amount, most in (
            ("operations", case.work().operations, MAX_INTERPRETED_OPERATIONS),
            ("results", results, MAX_INTERPRETED_RESULTS),
        ):
            if amount > most:
                names_by_operation = {"decode_attention": "--context", "prefill_attention": "--prompt"}
                option = names_by_operation.get(operation, "--rows")
                raise UsageError(f"{option}: {amount:.3g} {what} are over {most:.3g}, too many to interpret")
    return functions


def count_user_function(
    function: UserFunction, case: PrefillMatmul | DecodeAttention | PrefillAttention, *, seed: int
) -> dict[str, Any]:
    """Count a function's kernels on a case, as a JSON object. Triton must interpret in this process.

    Args:
        function: computes the case's operation.
        case: small enough for the interpreter.
        seed: seed of the inputs.

    Returns:
        Status "counted", with each launch; or "failed", with the reason and without figures.
    """
    from .interpreter_patch import count_traffic  # noqa: PLC0415  (imports Triton, which the caller prepared)

    inputs, work = draw(case, Source(torch.device("cpu"), seed)), case.work()
    row = {"kernel": function.name, "case": case.id, "status": "failed", "reason": None}
    row["provenance"] = "counted"
    gate = gate_of(case, inputs, reference, all_columns=True)  # the function may overwrite its inputs
    try:
        with options.user_code(), count_traffic() as traffic:
            output = function(inputs)
        reason = f"memory fault: {traffic.fault}" if traffic.fault else gate.judge(output).reason
    except SanitizerError as error:
        reason = f"memory fault: {error}"
    except Exception as error:  # noqa: BLE001  (the function is the user's and may raise anything)
        reason = one_line(error)
    if not reason and not traffic.bytes_written:
        reason = "its Triton kernels write nothing, so there is nothing to count"
    if reason:
        return {**row, "reason": reason}
    moved_bytes = traffic.bytes_requested + traffic.bytes_written
    return {
        **row,
        "status": "counted",
        "launches": launch_rows(traffic.launches),
        "bytes_requested": traffic.bytes_requested,
        "bytes_written": traffic.bytes_written,
        "operations": dict(traffic.operations),
        "modelled_work_bytes": work.bytes_total,
        "modelled_work_operations": work.operations,
        "bytes_counted_over_work": moved_bytes / work.bytes_total,
        "operations_per_counted_byte": work.operations / moved_bytes,
    }


def compile_user_functions(names: Sequence[str], gpus: Sequence[Gpu], dtype: str) -> list[CompiledRow]:
    """Compile the kernels of functions for each GPU, in each dtype; call it before anything imports Triton.

    Args:
        names: MODULE:FUNCTION.
        gpus: GPUs to compile for; they need not be present.
        dtype: dtype of the inputs; "all" for each of `COMPILED_DTYPES`.

    Returns:
        A row per launch; one "failed" row if the function raises or launches nothing.

    Raises:
        UsageError: there is no such function, it runs Triton's interpreter, or the dtype is not one of these.
    """
    rows: list[CompiledRow] = []
    functions = load_to_compile(names, dtype)
    with options.user_code():
        for function in functions:
            for gpu in gpus:
                for each in COMPILED_DTYPES if dtype == "all" else (dtype,):
                    for name, case in _COMPILED_CASES[function.operation].items():
                        rows += _compile_case(function, name, structs.replace(case, dtype=each), gpu)
    return rows


def load_to_compile(names: Sequence[str], dtype: str) -> list[UserFunction]:
    """Load functions whose kernels are to be compiled; call it before anything imports Triton.

    Raises:
        UsageError: there is no such function, it runs Triton's interpreter, or the dtype is not "all" or one
            of `COMPILED_DTYPES`.
    """
    if dtype not in ("all", *COMPILED_DTYPES):
        dtypes = ", ".join(COMPILED_DTYPES)
        raise UsageError(f"--dtype: with --provider it must be all, {dtypes}, not {dtype!r}")
    os.environ.pop("TRITON_INTERPRET", None)
    with options.user_code():
        functions = list(load_user_functions(names).values())
    for function in functions:
        if interpreting():
            raise UsageError(
                f"--provider: {function.name} sets TRITON_INTERPRET before it imports Triton, so "
                "nothing is compiled"
            )
    return functions


def _compile_case(
    function: UserFunction,
    case_name: str,
    case: PrefillMatmul | DecodeAttention | PrefillAttention,
    gpu: Gpu,
) -> Iterator[CompiledRow]:
    from .compiler import inspect_launch  # noqa: PLC0415  (imports Triton, which the caller prepared)

    name = LaunchName(kernel=function.name, variant=case_name, gpu=gpu.name, dtype=case.dtype, tiling={})
    inputs = draw(case, BlankSource(torch.device("cpu"), 0))
    try:
        rows = inspect_launch(partial(function, inputs), gpu.name)
    except Exception as error:  # noqa: BLE001  (the function is the user's and may raise anything)
        yield failed_row(name, one_line(error))
        return
    if not rows:
        yield failed_row(name, "launches no Triton kernel")
    launches = Counter(row.kernel for row in rows)
    for row in rows:
        # The configurations of an autotuned kernel differ by their compile-time sizes.
        sizes = ", ".join(f"{size} {value}" for size, value in row.tiling.items())
        suffix = f"({sizes})" if launches[row.kernel] > 1 else ""
        variant = f"{case_name}:{row.kernel}{suffix}"
        yield replace(row, kernel=function.name, variant=variant, dtype=case.dtype)
