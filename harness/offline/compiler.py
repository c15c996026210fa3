"""Compiles launches for GPUs that need not be present, and reads the machine code.

The host function is called on CPU tensors. Each launch that it makes is compiled with the same arguments, so
that pointers, strides and sizes are specialised as on the GPU, and is not run. Triton's cache keeps the
compiled kernels, and the output of the disassembler beside them.

    def call():
        my_kernel[(1,)](torch.empty(4096), 4096, BLOCK=128)

    rows = inspect_launch(call, "h100")

Run as a program, without TRITON_INTERPRET, it is a worker of `workers.inspect_cases`: each job is a line of
JSON on standard input, its rows a line on standard output.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs

from ... import kernels
from ..core.errors import one_line
from ..core.gpus import Gpu, find_gpu
from ..core.worker_processes import serve_jobs
from .compiled_rows import CompiledRow, LaunchName, compiled_row, failed_row
from .headroom import IterationWork
from .kernel_grids import ScheduleEfficiency, schedule_efficiency
from .machine_code import disassemble
from .offline_driver import launches_patched
from .variants import CompileCase, case_matmul_tiling, iteration_work

# Loaded now: while `interpreting` is patched, importing them would choose interpreted kernels.
_DECODE_ATTENTION, _PREFILL_MATMUL = kernels.decode_attention, kernels.prefill_matmul
_PREFILL_ATTENTION = kernels.prefill_attention
_DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "int8": torch.int8,
}
_SCALE_BLOCK = 128
"""Elements of K, and rows of the weight, per block scale: those of DeepSeek-V3."""
_DTYPE_NAMES = {
    "torch.bfloat16": "bf16",
    "torch.float16": "fp16",
    "torch.float32": "fp32",
    "torch.float8_e4m3fn": "fp8",
    "torch.float8_e5m2": "fp8",
}


@dataclass(frozen=True, kw_only=True)
class CompiledLaunch:
    """One launch: its arguments, and the compiled kernel or the compiler's error.

    Attributes:
        function: name of the Triton function.
        constants: its compile-time sizes, in lower case, with `num_warps` and `num_stages` where given.
        dtypes: dtypes of its tensor arguments, in order: "bf16", ..., or torch's name.
        kernel: Triton's compiled kernel; None where it does not compile.
        error: the compiler's message; empty where it compiles.
    """

    function: str
    constants: Mapping[str, Any]
    dtypes: tuple[str, ...]
    kernel: Any
    error: str


def compile_launches(call: Callable[[], object], gpu: Gpu) -> tuple[CompiledLaunch, ...]:
    """Compiles every Triton launch that a callable makes, for one GPU, without running any.

    Host functions of this package choose their tilings as on that GPU. A kernel under `triton.autotune` is
    compiled in each of its configurations.

    Args:
        call: makes the launches, on CPU tensors; they take no memory until something is written to them.
        gpu: the GPU to compile for.

    Returns:
        The launches in order. One that does not compile has an error, and `call` continues.

    Raises:
        RuntimeError: this process runs Triton's interpreter.
    """
    launches: list[CompiledLaunch] = []

    def record(
        run: Callable[..., Any], function: Any, args: tuple[Any, ...], grid: Any, kwargs: dict[str, Any]
    ) -> Any:
        kernel, error = None, ""
        try:
            kernel = run(*args, grid=grid, warmup=True, **kwargs)
        except Exception as caught:  # noqa: BLE001  (any compiler error is this launch's result)
            error = one_line(caught)
        bound = dict(zip(function.arg_names, args, strict=False)) | kwargs
        launches.append(
            CompiledLaunch(
                function=function.__name__,
                constants=_constants(bound),
                dtypes=tuple(_dtype_name(value) for value in bound.values() if _is_tensor(value)),
                kernel=kernel,
                error=error,
            )
        )
        return kernel

    with launches_patched(gpu, record):
        call()
    return tuple(launches)


def inspect_launch(
    kernel_call: Callable[[], object],
    gpu: str,
    *,
    useful: Callable[[str, Mapping[str, Any]], IterationWork | None] = lambda _function, _constants: None,
) -> tuple[CompiledRow, ...]:
    """Compiles and bounds every Triton launch of a callable: any kernel, of any package.

    Args:
        kernel_call: makes the launches, on CPU tensors with the shapes and strides of the GPU call.
        gpu: a name that `find_gpu` knows, such as "h100" or "sm_90".
        useful: gives what one iteration needs, from a launch's function name and its lower-case compile-time
            sizes. None counts every byte that the hot loop loads and every multiply-add as useful.

    Returns:
        One row per launch, in order. `kernel` is the function's name, `dtype` that of its first tensor.

    Raises:
        UsageError: no GPU of that name.
        RuntimeError: this process runs Triton's interpreter.
    """
    found = find_gpu(gpu, with_limits=True)
    rows = []
    for launch in compile_launches(kernel_call, found):
        dtype = next(iter(launch.dtypes), "")
        name = LaunchName(
            kernel=launch.function,
            variant="",
            gpu=found.name,
            dtype=dtype,
            tiling=launch.constants,
        )
        rows.append(_row(launch, name, found, useful(launch.function, launch.constants)))
    return tuple(rows)


def inspect_case(case: CompileCase, gpu: Gpu) -> tuple[CompiledRow, ...]:
    """Compiles one call of a host function of this package for one GPU.

    Returns:
        One row per launch; one "failed" row where the host function raises; no rows for a variant that this
        GPU does not support.
    """
    if not case.applies_to(gpu.sm):
        return ()
    rows = []
    try:
        launches = compile_launches(lambda: _CALLS[case.kernel](case, gpu), gpu)
    except Exception as caught:  # noqa: BLE001  (a case that fails is a row, and the others go on)
        name = LaunchName(kernel=case.kernel, variant=case.variant, gpu=gpu.name, dtype=case.dtype, tiling={})
        return (failed_row(name, one_line(caught)),)
    for launch in launches:
        role = launch.function.removeprefix("_").removesuffix("_kernel")
        name = LaunchName(
            kernel=case.kernel,
            variant=f"{case.variant}:{role}",
            gpu=gpu.name,
            dtype=case.dtype,
            tiling=launch.constants,
        )
        work = iteration_work(case, role, launch.constants, gpu.sm)
        # Only decode attention's limit counts the schedule of its grid.
        schedule = partial(schedule_efficiency, case, gpu) if role == "split_kv" else None
        rows.append(_row(launch, name, gpu, work, schedule))
    return tuple(rows)


def _row(
    launch: CompiledLaunch,
    name: LaunchName,
    gpu: Gpu,
    work: IterationWork | None,
    schedule: Callable[[int], ScheduleEfficiency] | None = None,
) -> CompiledRow:
    if launch.kernel is None:
        return failed_row(name, launch.error)
    cubin, metadata = launch.kernel.asm["cubin"], launch.kernel.metadata
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    keep = Path(knobs.cache.dir) / "decodetax" / hashlib.sha256(cubin).hexdigest()
    try:
        code, usage = disassemble(cubin, metadata.name, tools=tools, keep=keep)
        return compiled_row(
            name,
            code,
            usage,
            shared_bytes=metadata.shared,
            warps=metadata.num_warps,
            gpu=gpu,
            stages=launch.constants.get("num_stages", getattr(metadata, "num_stages", None)),
            tensor_memory_columns=getattr(metadata, "tmem_size", 0) or 0,
            work=work,
            schedule=schedule,
        )
    except Exception as caught:  # noqa: BLE001  (unreadable code is a row, and the others go on)
        return failed_row(name, one_line(caught))


def _call_decode(case: CompileCase, _gpu: Gpu) -> None:
    dtype, shape = _DTYPES[case.dtype], case.shape
    query_dtype = torch.bfloat16 if dtype.itemsize == 1 and not shape.get("float8") else dtype
    batch, capacity, page_size = shape["batch"], shape["capacity"], shape["page_size"]
    table = None
    cache = (batch, capacity, shape["kv_heads"], shape["head_dim"])
    if page_size:
        pages = capacity // page_size
        cache = (batch * pages, page_size, *cache[2:])
        table = torch.empty((batch, pages), dtype=torch.int32)
    packed_tokens = shape.get("packed_tokens")
    queries = (packed_tokens,) if packed_tokens else (batch, shape.get("query_tokens", 1))
    k_cache = torch.empty(cache, dtype=dtype)
    v_head_dim = shape.get("v_head_dim", shape["head_dim"])
    latent = bool(shape.get("latent"))
    _DECODE_ATTENTION(
        torch.empty((*queries, shape["q_heads"], shape["head_dim"]), dtype=query_dtype),
        k_cache,
        k_cache[..., :v_head_dim] if latent else torch.empty((*cache[:3], v_head_dim), dtype=dtype),
        torch.empty((batch,), dtype=torch.int32),
        block_table=table,
        cu_seqlens=torch.empty((batch + 1,), dtype=torch.int32) if packed_tokens else None,
        **(_decode_options(shape) if shape.get("options") else {}),
        out_dtype=dtype if shape.get("float8") else None,
        **(_scale_options(cache[:3]) if shape.get("token_scales") else {}),
    )


def _decode_options(shape: Mapping[str, int]) -> dict[str, Any]:
    return {
        "window": 1000,
        "softcap": 30.0,
        "sinks": torch.empty((shape["q_heads"],)),
        "k_scale": torch.empty((shape["kv_heads"],)),
        "v_scale": torch.empty(()),
        "return_lse": True,
    }


def _scale_options(tokens: tuple[int, ...]) -> dict[str, Any]:
    """Scales per token and head, and scalars that are read on the device."""
    scalars = {name: torch.empty(()) for name in ("scale", "q_scale", "out_scale")}
    return {"k_scale": torch.empty(tokens), "v_scale": torch.empty(tokens), **scalars}


def _call_matmul(case: CompileCase, gpu: Gpu) -> None:
    dtype, shape = _DTYPES[case.dtype], case.shape
    swiglu = bool(shape["swiglu"])
    rows, in_features = shape["rows"], shape["in_features"]
    features = shape["out_features"] * (2 if swiglu else 1)
    widens = dtype == torch.int8 and not shape.get("int8_x")
    scales: dict[str, Any] = {"weight_scale": torch.empty((features,))} if dtype == torch.int8 else {}
    if shape.get("int8_x"):
        scales["x_scale"] = torch.empty((rows,))
    if shape.get("blocks"):
        blocks = math.ceil(in_features / _SCALE_BLOCK)
        scales["x_scale"] = torch.empty((rows, blocks))
        scales["weight_scale"] = torch.empty((math.ceil(features / _SCALE_BLOCK), blocks))
    _PREFILL_MATMUL(
        torch.empty((rows, in_features), dtype=torch.bfloat16 if widens else dtype),
        torch.empty((features, in_features), dtype=dtype),
        bias=torch.empty((features,)) if shape["bias"] else None,
        activation="swiglu" if swiglu else None,
        **scales,
        tiling=case_matmul_tiling(case, gpu) if case.matmul_variant else None,
    )


def _call_prefill_attention(case: CompileCase, _gpu: Gpu) -> None:
    dtype, shape = _DTYPES[case.dtype], case.shape
    batch, tokens, kv_heads, head_dim = (shape[name] for name in ("batch", "tokens", "kv_heads", "head_dim"))
    head_dims = head_dim, shape.get("v_head_dim", head_dim)
    k, v = (torch.empty((batch, tokens, kv_heads, size), dtype=dtype) for size in head_dims)
    prefix: dict[str, Any] = {}
    if "capacity" in shape:
        pages = shape["capacity"] // shape["page_size"]
        k_cache, v_cache = (
            torch.empty((batch * pages, shape["page_size"], kv_heads, size), dtype=dtype)
            for size in head_dims
        )
        prefix = {
            "context_lens": torch.empty((batch,), dtype=torch.int32),
            "k_cache": k_cache,
            "v_cache": v_cache,
            "block_table": torch.empty((batch, pages), dtype=torch.int32),
        }
    q = torch.empty((batch, tokens, shape["q_heads"], head_dim), dtype=dtype)
    _PREFILL_ATTENTION(q, k, v, **prefix)


_CALLS = {
    "decode_attention": _call_decode,
    "prefill_attention": _call_prefill_attention,
    "prefill_matmul": _call_matmul,
}


def _constants(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A launch's upper-case arguments, and its warps and stages."""
    return {
        name.lower(): value
        for name, value in arguments.items()
        if (name.isupper() or name in {"num_warps", "num_stages"})
        and isinstance(value, bool | int | float | str)
    }


def _dtype_name(tensor: Any) -> str:
    return _DTYPE_NAMES.get(str(tensor.dtype), str(tensor.dtype).removeprefix("torch."))


def _is_tensor(value: object) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "data_ptr")


def main() -> None:
    """Answers jobs until standard input ends."""

    def rows(job: Any) -> list[dict[str, Any]]:
        return [row.to_json() for row in inspect_case(CompileCase(**job["case"]), find_gpu(job["gpu"]))]

    serve_jobs(rows)


if __name__ == "__main__":
    main()
