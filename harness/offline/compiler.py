"""Compiles launches for GPUs that need not be there, and reads what the compiler made of them.

A launch is recorded, not run: the host function is called on CPU tensors as for a GPU, and each launch that
it makes becomes a compilation with the same arguments, so that pointers, strides and sizes are specialised as
they would be. Compiled kernels are kept in Triton's own cache, and what the tools print of them beside it.

    def call():
        my_kernel[(1,)](torch.empty(4096), 4096, BLOCK=128)

    rows = inspect_launch(call, "h100")

Run as a program, without TRITON_INTERPRET, it serves `workers.inspect_cases`: a job is a line of JSON on
standard input, its answer one with its rows on standard output.
"""

import contextlib
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver
from triton.runtime.autotuner import Autotuner

from ..core.errors import one_line
from ..core.gpus import Gpu, find_gpu
from .compiled_rows import CompiledRow, LaunchName, compiled_row, failed_row
from .headroom import Workload
from .machine_code import disassemble
from .scheduled import ScheduleEfficiency, schedule_efficiency
from .subjects import kernel_limits, kernels
from .variants import CompileCase, product_tiling, workload

_KERNELS_PACKAGE = kernels.__name__
# Loaded now: once stand-ins are in place, loading them would take this process for one that interprets.
_DECODE_ATTENTION, _PREFILL_MATMUL = kernels.decode_attention, kernels.prefill_matmul
_DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "int8": torch.int8,
}
_DTYPE_NAMES = {
    "torch.bfloat16": "bf16",
    "torch.float16": "fp16",
    "torch.float32": "fp32",
    "torch.float8_e4m3fn": "fp8",
    "torch.float8_e5m2": "fp8",
}


class _OfflineDriver(DriverBase):  # type: ignore[misc]  # Triton ships no types
    """A driver of a GPU that is not there: it names the target and launches nothing."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # a device of its own keeps each target's compiled code apart

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("nothing runs on a GPU that is not there")

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError(f"nothing is launched with a {ty}")

    @classmethod
    def is_active(cls) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class CompiledLaunch:
    """One launch: what it asked for, and the kernel that the compiler made, or why it made none.

    Attributes:
        function: name of the Triton function.
        constants: its compile-time sizes, in lower case, with `num_warps` and `num_stages` where given.
        dtypes: of its tensor arguments, in their order: "bf16", ..., or as torch names it.
        kernel: Triton's compiled kernel; None where it does not compile.
        error: the compiler's message; empty where there is none.
    """

    function: str
    constants: Mapping[str, Any]
    dtypes: tuple[str, ...]
    kernel: Any
    error: str


def compile_launches(call: Callable[[], object], gpu: Gpu) -> tuple[CompiledLaunch, ...]:
    """Compiles every Triton launch that a callable makes, for one GPU, and runs none.

    Host functions of this package choose their tilings as on that GPU; a kernel under `triton.autotune` is
    compiled by each of its configurations.

    Args:
        call: makes the launches, on CPU tensors; they take no memory until something is written to them.
        gpu: the GPU to compile for.

    Returns:
        The launches in their order; one that does not compile says why, and `call` goes on.

    Raises:
        RuntimeError: this process runs Triton's interpreter.
    """
    if kernels.interpreting():
        raise RuntimeError(
            "kernels are interpreted in this process; unset TRITON_INTERPRET before triton is imported"
        )
    launches: list[CompiledLaunch] = []
    run = triton.JITFunction.run

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:  # noqa: ARG001  (never run)
        kernel, error = None, ""
        try:
            kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        except Exception as caught:  # noqa: BLE001  (whatever stops the compiler is this launch's result)
            error = one_line(caught)
        bound = dict(zip(self.arg_names, args, strict=False)) | kwargs
        launches.append(
            CompiledLaunch(
                function=self.__name__,
                constants=_constants(bound),
                dtypes=tuple(_dtype_name(value) for value in bound.values() if _is_tensor(value)),
                kernel=kernel,
                error=error,
            )
        )
        return kernel

    with contextlib.ExitStack() as replacements:
        replacements.enter_context(_replaced(driver, "_active", _OfflineDriver(gpu.sm)))
        replacements.enter_context(_replaced(triton.JITFunction, "run", record))
        replacements.enter_context(_replaced(Autotuner, "run", _run_each))
        for module in _modules_of_kernels():
            # Checks let CPU tensors pass where kernels are interpreted.
            for name, stand_in in (
                ("gpu_limits", lambda _device: kernel_limits(gpu)),
                ("interpreting", lambda: True),
            ):
                if name in vars(module):
                    replacements.enter_context(_replaced(module, name, stand_in))
        replacements.enter_context(warnings.catch_warnings())
        # Triton 3.9 says at its first compilation that a default of its own will change.
        warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")
        call()
    return tuple(launches)


def inspect_launch(
    kernel_call: Callable[[], object],
    gpu: str,
    *,
    useful: Callable[[str, Mapping[str, Any]], Workload | None] = lambda _function, _constants: None,
) -> tuple[CompiledRow, ...]:
    """Compiles and bounds every Triton launch of a callable: any kernel, of any package.

    Args:
        kernel_call: makes the launches, on CPU tensors of the shapes and strides that a GPU would be given.
        gpu: a name that `find_gpu` knows, such as "h100" or "sm_90".
        useful: from a launch's function name and lower-case compile-time sizes, what one iteration is for.
            Where it gives None, every byte that the hot loop loads and every multiply-add counts as useful.

    Returns:
        A row a launch, in their order. `kernel` is the function's name, `dtype` that of its first tensor.

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
        A row a launch; one "failed" row where the host function itself refuses or breaks; none of a variant
        that this GPU does not have.
    """
    if not case.applies_to(gpu.sm):
        return ()
    rows = []
    try:
        launches = compile_launches(lambda: _CALLS[case.kernel](case, gpu), gpu)
    except Exception as caught:  # noqa: BLE001  (a case that breaks is a row, and the others still come)
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
        schedule = partial(schedule_efficiency, case, role, launch.constants, gpu)
        rows.append(_row(launch, name, gpu, workload(case, role, launch.constants, gpu.sm), schedule))
    return tuple(rows)


def _row(
    launch: CompiledLaunch,
    name: LaunchName,
    gpu: Gpu,
    work: Workload | None,
    schedule: Callable[[int], ScheduleEfficiency | None] = lambda _programs: None,
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
            workload=work,
            schedule=schedule,
        )
    except Exception as caught:  # noqa: BLE001  (code that cannot be read is a row, and the others still come)
        return failed_row(name, one_line(caught))


def _call_decode(case: CompileCase, _gpu: Gpu) -> None:
    dtype, shape = _DTYPES[case.dtype], case.shape
    query_dtype = torch.bfloat16 if dtype.itemsize == 1 else dtype
    batch, capacity, page_size = shape["batch"], shape["capacity"], shape["page_size"]
    table = None
    cache = (batch, capacity, shape["kv_heads"], shape["head_dim"])
    if page_size:
        pages = capacity // page_size
        cache = (batch * pages, page_size, *cache[2:])
        table = torch.empty((batch, pages), dtype=torch.int32)
    _DECODE_ATTENTION(
        torch.empty(
            (batch, shape.get("query_tokens", 1), shape["q_heads"], shape["head_dim"]), dtype=query_dtype
        ),
        torch.empty(cache, dtype=dtype),
        torch.empty(cache, dtype=dtype),
        torch.empty((batch,), dtype=torch.int32),
        block_table=table,
        **(_decode_options(shape) if shape.get("options") else {}),
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


def _call_matmul(case: CompileCase, gpu: Gpu) -> None:
    dtype, shape = _DTYPES[case.dtype], case.shape
    swiglu = bool(shape["swiglu"])
    features = shape["out_features"] * (2 if swiglu else 1)
    _PREFILL_MATMUL(
        torch.empty(
            (shape["rows"], shape["in_features"]), dtype=torch.bfloat16 if case.dtype == "int8" else dtype
        ),
        torch.empty((features, shape["in_features"]), dtype=dtype),
        bias=torch.empty((features,)) if shape["bias"] else None,
        activation="swiglu" if swiglu else None,
        weight_scale=torch.empty((features,)) if case.dtype == "int8" else None,
        tiling=product_tiling(case, kernel_limits(gpu)) if case.loads else None,
    )


_CALLS = {"decode_attention": _call_decode, "prefill_matmul": _call_matmul}


def _modules_of_kernels() -> list[Any]:
    return [
        module
        for name, module in list(sys.modules.items())
        if name.startswith(_KERNELS_PACKAGE + ".") and module
    ]


@contextlib.contextmanager
def _replaced(owner: Any, name: str, stand_in: object) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, stand_in)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _run_each(self: Any, *args: Any, **kwargs: Any) -> None:
    """In place of the choice that `triton.autotune` makes by timing: each configuration, in turn."""
    self.nargs = dict(zip(self.arg_names, args, strict=False))
    for config in self.prune_configs(kwargs):
        if config.pre_hook is not None:
            config.pre_hook({**self.nargs, **kwargs, **config.all_kwargs()})
        self.fn.run(*args, **kwargs, **config.all_kwargs())


def _constants(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a launch says in capitals, and its warps and stages."""
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
    # Compilers write to standard output as they please; the answers go to what it was.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            job = json.loads(line)
            rows = inspect_case(CompileCase(**job["case"]), find_gpu(job["gpu"]))
            answers.write(json.dumps([row.to_json() for row in rows]) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
