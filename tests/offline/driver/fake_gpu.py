"""Triton's own CUDA driver and launcher on the fake `libcuda.so.1`: makes, records and checks every launch.

For a process without TRITON_INTERPRET that was started with the fake library on its path. CPU tensors stand
for those of the GPU; no kernel runs. What is checked of a launch:

- the fake refused neither the cubin, a tensor map nor the launch (see `fake_cuda.c`);
- each kernel parameter has the bytes of its argument, and the size that ptxas gave it: pointers, integers,
  floats, tensor maps with their shape and strides; arguments that are constants or None take none;
- constants equal their arguments, and what is said to be divisible by 16 is;
- a tensor map has the address, shape, strides and dtype of its tensor, and its box divides the tile;
- grid, warps and shared memory are those asked for, and registers are within `maxnreg`.
"""

import contextlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from decodetax import kernels
from decodetax.harness.bench import providers
from decodetax.harness.core.errors import one_line
from decodetax.harness.core.gpus import Gpu
from decodetax.harness.offline.default_tilings import kernel_limits
from decodetax.harness.offline.offline_driver import launches_patched
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor

# Loaded now: while `interpreting` is patched, importing them would choose interpreted kernels.
HOST_FUNCTIONS = (
    kernels.decode_attention,
    kernels.merge_states,
    kernels.prefill_attention,
    kernels.prefill_matmul,
)
TENSOR_MAP_MARK = b"tnsormap"
INTEGERS = {
    "i1": "<?",
    "i8": "<b",
    "i16": "<h",
    "i32": "<i",
    "i64": "<q",
    "u8": "<B",
    "u32": "<I",
    "u64": "<Q",
}
FLOATS = {"fp32": "<f", "fp64": "<d"}
MAP_TYPES = {  # CUtensorMapDataType
    torch.uint8: 0,
    torch.int8: 0,
    torch.float8_e4m3fn: 0,
    torch.float8_e5m2: 0,
    torch.float16: 6,
    torch.float32: 7,
    torch.bfloat16: 9,
}


@dataclass
class Launch:
    """One launch: what was asked, what is wrong with it, and what is worth a note."""

    kernel: str
    grid: Sequence[int]
    parameters: int = 0
    tensor_maps: Sequence[Mapping[str, Any]] = ()
    none_arguments: Sequence[str] = ()
    registers: int = 0
    maxnreg: int | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Log:
    """The lines that the fake library writes, each read once."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def new(self) -> list[dict[str, Any]]:
        """The events since the last call."""
        if not self._path.exists():
            return []
        with self._path.open(encoding="ascii") as file:
            file.seek(self._offset)
            lines = file.readlines()
            self._offset = file.tell()
        return [json.loads(line) for line in lines]


@contextlib.contextmanager
def fake_gpu(gpu: Gpu, log_path: Path) -> Iterator[list[Launch]]:
    """Makes every Triton launch through the fake library, as on a GPU; gives the list that launches join.

    Host functions of the package choose their tilings as on that GPU, and accept CPU tensors. An error of a
    launch is one of its problems, and the caller goes on.
    """
    log, launches, functions = Log(log_path), [], {}

    def launch(run: Any, function: Any, args: Any, grid: Any, options: Any) -> Any:
        kernel, error = None, ""
        try:
            kernel = run(*args, grid=grid, warmup=False, **options)
        except Exception as caught:  # noqa: BLE001  (any error is a problem of this launch)
            error = one_line(caught)
        bound = dict(zip(function.arg_names, args, strict=False)) | options
        launches.append(checked(function.__name__, kernel, bound, grid, log.new(), functions, error))
        return kernel

    with fake_driver(gpu, log_path, launch):
        yield launches


@contextlib.contextmanager
def fake_driver(gpu: Gpu, log_path: Path | str, launch: Callable[..., Any] | None = None) -> Iterator[None]:
    """Triton's CUDA driver on the fake library, for a GPU; `launch` replaces Triton's own, if given."""
    limits = kernel_limits(gpu)
    settings = {
        "FAKE_CUDA_LOG": str(log_path),
        "FAKE_CUDA_CAPABILITY": str(gpu.sm),
        "FAKE_CUDA_SHARED_BYTES": str(limits.shared_bytes_per_block),
        "FAKE_CUDA_SM_COUNT": str(limits.sm_count),
    }
    cuda = {
        "current_device": lambda: 0,
        "get_device_capability": lambda _device=None: divmod(gpu.sm, 10),
        "set_device": lambda _device: None,
    }
    run = triton.JITFunction.run

    def stream(_device: int) -> int:
        return 0

    with contextlib.ExitStack() as patches:
        patches.enter_context(launches_patched(gpu, launch))
        if launch is None:
            patches.enter_context(mock.patch.object(triton.JITFunction, "run", run))
        patches.enter_context(mock.patch.dict(os.environ, settings))
        patches.enter_context(mock.patch.multiple(torch.cuda, **cuda))
        patches.enter_context(mock.patch.object(torch._C, "_cuda_getCurrentRawStream", stream, create=True))
        patches.enter_context(mock.patch.object(driver, "_active", CudaDriver()))
        patches.enter_context(mock.patch.object(providers, "gpu_limits", return_value=limits))
        yield


def checked(
    name: str,
    kernel: Any,
    bound: Mapping[str, Any],
    grid: Sequence[int],
    events: Sequence[Mapping[str, Any]],
    functions: dict[int, Mapping[str, Any]],
    error: str,
) -> Launch:
    """One launch with its problems, from the events that the fake library wrote since the last launch.

    `functions` keeps what the library said of a kernel when it was loaded, which happens once.
    """
    launch = Launch(kernel=name, grid=[*grid, 1, 1][:3], maxnreg=bound.get("maxnreg"))
    launch.tensor_maps = [event for event in events if event["event"] == "tensor_map"]
    launch.notes = [
        f"tensor map of {tensor_map['dims']}: strides {tensor_map['strides']} are not ascending"
        for tensor_map in launch.tensor_maps
        if not tensor_map["ascending_strides"]
    ]
    launch.problems = [f"{event['event']}: {event['refused']}" for event in events if "refused" in event]
    if error:
        launch.problems.append(error)
    if kernel is None or launch.problems:
        return launch
    functions.update({id(kernel): event for event in events if event["event"] == "function"})
    [made] = [event for event in events if event["event"] == "launch"]
    launch.registers, launch.parameters = made["registers"], len(made["parameters"])
    launch.none_arguments = [argument for argument, value in bound.items() if value is None]
    sizes = functions[id(kernel)]["parameter_bytes"]
    launch.problems += [
        *_shape_problems(launch, kernel, made),
        *_constant_problems(kernel, bound),
        *_parameter_problems(kernel, bound, launch.tensor_maps, made["parameters"], sizes),
    ]
    return launch


def _shape_problems(launch: Launch, kernel: Any, made: Mapping[str, Any]) -> Iterator[str]:
    """Grid, block, shared memory and registers against what was asked for."""
    metadata = kernel.metadata
    if made["grid"] != launch.grid:
        yield f"grid {made['grid']}, asked for {launch.grid}"
    if made["block"] != [32 * metadata.num_warps, 1, 1]:
        yield f"block {made['block']}, compiled for {metadata.num_warps} warps"
    if made["shared_bytes"] != metadata.shared:
        yield f"{made['shared_bytes']} bytes of shared memory, compiled with {metadata.shared}"
    if launch.maxnreg is not None and made["registers"] > launch.maxnreg:
        yield f"{made['registers']} registers, maxnreg {launch.maxnreg}"


def _constant_problems(kernel: Any, bound: Mapping[str, Any]) -> Iterator[str]:
    """What the kernel was specialised on against the arguments."""
    names = list(kernel.src.signature)
    for (index, *_), constant in kernel.src.constants.items():
        value = getattr(constant, "value", constant)
        if bound[names[index]] != value:
            yield f"{names[index]}: compiled for {value}, called with {bound[names[index]]}"
    for (index, *_), attributes in kernel.src.attrs.items():
        value = bound[names[index]]
        number = value.data_ptr() if isinstance(value, torch.Tensor) else value
        for attribute, divisor in attributes:
            if attribute == "tt.divisibility" and number % divisor:
                yield f"{names[index]}: compiled for multiples of {divisor}, called with {number}"


def _parameter_problems(
    kernel: Any,
    bound: Mapping[str, Any],
    tensor_maps: Sequence[Mapping[str, Any]],
    given: Sequence[str],
    sizes: Sequence[int],
) -> Iterator[str]:
    """Bytes of the kernel's parameters against the arguments."""
    maps, expected = iter(tensor_maps), []
    for name, kind in kernel.src.signature.items():
        value = bound[name]
        if kind.startswith("tensordesc"):
            tensor_map = next(maps)
            yield from (f"{name}: {problem}" for problem in _map_problems(tensor_map, value))
            expected.append((name, _map_bytes(tensor_map)))
            expected += [(f"{name}.shape", struct.pack("<i", size)) for size in value.shape]
            expected += [(f"{name}.strides", struct.pack("<q", stride)) for stride in value.strides]
        elif kind != "constexpr":
            expected.append((name, _bytes_of(kind, value)))
    expected += [("global scratch", bytes(8)), ("profile scratch", bytes(8))]
    if len(expected) != len(given):
        yield f"{len(given)} parameters in the cubin, {len(expected)} arguments"
        return
    for (name, data), bytes_given, size in zip(expected, given, sizes, strict=True):
        if len(data) != size:
            yield f"{name}: {len(data)} bytes, the cubin takes {size}"
        elif data.hex() != bytes_given:
            yield f"{name}: the kernel gets {bytes_given}, the argument is {data.hex()}"


def _bytes_of(kind: str, value: Any) -> bytes:
    """An argument as the kernel reads it."""
    if kind.startswith("*"):
        return struct.pack("<Q", 0 if value is None else value.data_ptr())
    return struct.pack(INTEGERS.get(kind) or FLOATS[kind], value)


def _map_bytes(tensor_map: Mapping[str, Any]) -> bytes:
    """What the fake library writes into a tensor map."""
    return TENSOR_MAP_MARK + bytes(8) + struct.pack("<Q", tensor_map["number"]) + bytes(104)


def _map_problems(tensor_map: Mapping[str, Any], descriptor: TensorDescriptor) -> Iterator[str]:
    """A tensor map against the tensor that it is for."""
    tensor = descriptor.base
    expected = {
        "address": tensor.data_ptr(),
        "type": MAP_TYPES[tensor.dtype],
        "dims": list(reversed(descriptor.shape)),
        "strides": [stride * tensor.element_size() for stride in reversed(descriptor.strides[:-1])],
        "interleave": 0,
        "fill": 0,
    }
    for name, value in expected.items():
        if tensor_map[name] != value:
            yield f"tensor map has {name} {tensor_map[name]}, the tensor {value}"
    rows = sum(
        (size - 1) * stride
        for size, stride in zip(tensor_map["dims"][1:], tensor_map["strides"], strict=True)
    )
    last = tensor_map["address"] + rows + tensor_map["dims"][0] * tensor.element_size()
    storage = tensor.untyped_storage()
    if last > storage.data_ptr() + storage.nbytes():
        yield f"tensor map of {tensor_map['dims']} ends behind the memory of its tensor"
    tile = list(reversed(descriptor.block_shape))
    if any(size % box for size, box in zip(tile, tensor_map["box"], strict=True)):
        yield f"tensor map has box {tensor_map['box']}, which does not divide the tile {tile}"


def report(call: Callable[[], object], gpu: Gpu, log_path: Path) -> list[dict[str, Any]]:
    """The launches of a call, as JSON has them."""
    with fake_gpu(gpu, log_path) as launches:
        call()
    return [asdict(launch) for launch in launches]
