"""Warm calls of host functions: a repeated call goes straight to its compiled kernels.

Checks, the plan, and Triton's binding and specialisation of arguments by name take most of the host time of a
call. `cached_launches` runs a host function as it stands the first time, and records what it launched and
allocated. A later call with the same key allocates and launches the same again, with its own addresses.

The key is made of every argument, whatever its name. Of a tensor: shape, strides, dtype, device, lazy
negation, address modulo 16, and which other tensors begin at the same address; of anything else: type and
value. What tensors hold is not in it. So a new argument of a host function joins by itself, if

- what the function decides depends on nothing else: not on what a tensor holds, not on its exact address
  (unless it calls `forbid_repetition`);
- the function touches the device through `launch` and `allocate` alone, and returns tensors that it was given
  or has allocated.

A call is not recorded if it raises (wrong arguments get the same error each time), or if it launches with
memory of neither its arguments nor `allocate`, such as a copy. Nothing is recorded or repeated in the
interpreter, while `triton.JITFunction.run` is replaced (`launch_patches` does), while a kernel has pre-run
hooks, or after Triton's driver or compile settings have changed. Launch hooks are called as by Triton.

The records of a host function are module-level mutable state, because a cache must outlive the calls; results
do not depend on it. They are bounded (`MAX_RECORDS`), hold no tensor, and threads may share them: a record is
immutable, a look-up in a dict is atomic, and insertion takes a lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import torch
import triton
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

P = ParamSpec("P")
R = TypeVar("R")

MAX_RECORDS = 512
"""Records that a host function keeps; the oldest goes first. One takes about 10 KB."""

_RUN = triton.JITFunction.run
_PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)
_SCALARS = (int, float, bool, str, torch.dtype)
_ALIGNMENT = 16  # bytes; Triton specialises pointers on it, and the kernels' checks ask for no more


class _NotRepeatable(Exception):  # noqa: N818  (no error: the call is made as the first one was)
    """This call cannot be a repetition of a recorded one."""


@dataclass(frozen=True, slots=True)
class _Descriptor:
    """A tensor descriptor (TMA) without its tensor."""

    attributes: dict[str, Any]
    dtype: torch.dtype

    def at(self, address: int) -> TensorDescriptor:
        """The descriptor of the tensor at an address."""
        descriptor = object.__new__(TensorDescriptor)  # its checks have passed: only the address is another
        descriptor.__dict__.update(self.attributes)
        descriptor.base = _Memory(address, self.dtype)
        return descriptor


@dataclass(frozen=True, slots=True)
class _Memory:
    """What a launcher reads of a descriptor's tensor."""

    address: int
    dtype: torch.dtype

    def data_ptr(self) -> int:
        """As `torch.Tensor.data_ptr`."""
        return self.address


@dataclass(frozen=True, slots=True)
class _Launch:
    """One launch of a compiled kernel.

    Attributes:
        function: the Triton function.
        compiled: its kernel for these arguments.
        grid: as the host function gave it.
        grid_3d: the same, in three dimensions.
        arguments: by position; None in place of memory.
        pointers: position, number of the tensor, and offset in bytes of each argument that is a pointer.
        descriptors: position, number of the tensor, offset in bytes, and the rest of each tensor descriptor.
    """

    function: Any
    compiled: Any
    grid: tuple[int, ...]
    grid_3d: tuple[int, ...]
    arguments: list[Any]
    pointers: tuple[tuple[int, int, int], ...]
    descriptors: tuple[tuple[int, int, int, _Descriptor], ...]


@dataclass(frozen=True, slots=True)
class _Record:
    """What a call does. Tensors are numbered: those of its arguments, then those that it allocates.

    Attributes:
        driver: Triton's driver.
        device: index of the CUDA device.
        settings: see `_compile_settings`.
        allocations: shape, dtype and device of each tensor that it allocates.
        launches: in order.
        result: number of the tensor that it returns, or of each of a tuple.
    """

    driver: Any
    device: int
    settings: tuple[Any, ...]
    allocations: tuple[tuple[tuple[int, ...], torch.dtype, torch.device], ...]
    launches: tuple[_Launch, ...]
    result: int | tuple[int, ...]


@dataclass(slots=True)
class _Recording:
    """What the call in progress has done so far; `launches` is None if it cannot be recorded."""

    launches: list[tuple[Any, Any, tuple[int, ...], dict[str, Any]]] | None = field(default_factory=list)
    allocated: list[torch.Tensor] = field(default_factory=list)
    device: int = 0


_recording: ContextVar[_Recording | None] = ContextVar("recording", default=None)


def allocate(size: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """`torch.empty` in a host function under `cached_launches`: warm calls allocate the same."""
    tensor = torch.empty(size, dtype=dtype, device=device)
    recording = _recording.get()
    if recording is not None:
        recording.allocated.append(tensor)
    return tensor


def forbid_repetition() -> None:
    """The host function's call in progress depends on exact addresses: it is not recorded."""
    recording = _recording.get()
    if recording is not None:
        recording.launches = None


def launch(kernel: Any, grid: tuple[int, ...], **named: Any) -> None:
    """`kernel[grid](**named)` in a host function under `cached_launches`: warm calls launch the same."""
    compiled = kernel[grid](**named)
    recording = _recording.get()
    if recording is None or recording.launches is None:
        return
    if _is_plain(kernel) and isinstance(compiled, CompiledKernel):
        recording.device = driver.active.get_current_device()
        recording.launches.append((kernel, compiled, grid, named))
    else:
        recording.launches = None


def cached_launches(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a host function so that warm calls repeat its allocations and launches (see the module)."""
    records: dict[tuple[Any, ...], _Record] = {}
    lock = threading.Lock()

    @functools.wraps(function)
    def called(*args: P.args, **options: P.kwargs) -> R:
        if records:
            try:
                return cast("R", _repeated(records, args, options))
            except _NotRepeatable:
                pass  # called as it stands, outside of this handler: its own errors have no other as context
        with _recorded() as recording:
            result = function(*args, **options)
        if recording.launches:
            with contextlib.suppress(_NotRepeatable):
                key, tensors, _ = _key_of(args, options)
                record = _record_of(recording, tensors, result)
                with lock:
                    if len(records) >= MAX_RECORDS:
                        del records[next(iter(records))]
                    records[key] = record
        return result

    called.records = records  # type: ignore[attr-defined]  # for tests
    return called


@contextlib.contextmanager
def _recorded() -> Iterator[_Recording]:
    """Records what `launch` and `allocate` do; a call inside another one is not part of the outer record."""
    outer = _recording.get()
    if outer is not None:
        outer.launches = None
    recording = _Recording()
    token = _recording.set(recording)
    try:
        yield recording
    finally:
        _recording.reset(token)


def _is_plain(kernel: Any) -> bool:
    """Whether a launch of the kernel does what Triton does, and no more."""
    run = getattr(kernel, "run", None)
    return getattr(run, "__func__", None) is _RUN and not kernel.pre_run_hooks


def _compile_settings() -> tuple[Any, ...]:
    """Settings of Triton that it compiles by, and reads at each launch; not all versions have all."""
    return (
        knobs.runtime.debug,
        knobs.compilation.instrumentation_mode,
        getattr(knobs.compilation, "fpsan_homomorphic_casts", None),
        getattr(knobs.runtime, "add_stages_inspection_hook", None),
    )


def _key_of(
    args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], list[torch.Tensor], list[int]]:
    """The key of a call, the tensors among its arguments, and their addresses."""
    parts: list[Any] = [*options]
    tensors: list[torch.Tensor] = []
    addresses: list[int] = []
    try:
        _describe(args, parts, tensors, addresses)
        _describe(options.values(), parts, tensors, addresses)
    except RuntimeError as error:  # a tensor without memory or strides
        raise _NotRepeatable from error
    if len(set(addresses)) < len(addresses):
        parts.append(tuple(map(addresses.index, addresses)))
    return tuple(parts), tensors, addresses


def _describe(
    values: Iterable[Any], parts: list[Any], tensors: list[torch.Tensor], addresses: list[int]
) -> None:
    """Appends what the values add to the key, their tensors and addresses."""
    for value in values:
        kind = value.__class__
        if value is None:
            parts.append(None)
        elif kind in _PLAIN_TENSORS:
            address = value.data_ptr()
            tensors.append(value)
            addresses.append(address)
            # Address 0: an empty tensor, or one whose memory is another's (torch.func.functionalize).
            alignment = address % _ALIGNMENT if address else None
            parts += (kind, value.shape, value.stride(), value.dtype, value.device, value.is_neg(), alignment)
        elif kind is tuple or kind is list:
            parts += (kind, len(value))
            _describe(value, parts, tensors, addresses)
        elif kind in _SCALARS:
            parts += (kind, value or repr(value))  # 0.0 and -0.0 are equal, and differ
        elif _is_frozen(kind):
            parts += (kind, value)
        else:
            raise _NotRepeatable


@functools.cache
def _is_frozen(kind: type) -> bool:
    """Whether it is a frozen dataclass, as tilings are."""
    return dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


def _repeated(records: dict[tuple[Any, ...], _Record], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Allocates and launches as recorded for this key, and returns the result."""
    key, tensors, addresses = _key_of(args, options)
    record = records.get(key)
    if (
        record is None
        or driver._active is not record.driver  # noqa: SLF001  (`active` raises without a GPU)
        or _compile_settings() != record.settings
        or not all(_is_plain(each.function) for each in record.launches)
    ):
        raise _NotRepeatable
    for size, dtype, device in record.allocations:
        tensor = torch.empty(size, dtype=dtype, device=device)
        address = tensor.data_ptr()
        if address % _ALIGNMENT:
            raise _NotRepeatable
        tensors.append(tensor)
        addresses.append(address)
    if record.driver.get_current_device() == record.device:
        _launch_all(record, addresses)
    else:
        with torch.cuda.device(record.device):
            _launch_all(record, addresses)
    if isinstance(record.result, int):
        return tensors[record.result]
    return tuple(tensors[number] for number in record.result)


def _launch_all(record: _Record, addresses: list[int]) -> None:
    """Launches as recorded, with tensors at these addresses."""
    stream = record.driver.get_current_stream(record.device)
    enter_hook, exit_hook = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    for each in record.launches:
        arguments = each.arguments.copy()
        for position, number, offset in each.pointers:
            arguments[position] = addresses[number] + offset
        for position, number, offset, descriptor in each.descriptors:
            arguments[position] = descriptor.at(addresses[number] + offset)
        kernel = each.compiled
        metadata = kernel.launch_metadata(each.grid, stream, *arguments)
        kernel.run(
            *each.grid_3d, stream, kernel.function, kernel.packed_metadata, metadata, enter_hook, exit_hook,
            *arguments,
        )  # fmt: skip


def _record_of(recording: _Recording, given: list[torch.Tensor], result: Any) -> _Record:
    """The record of a call that has been made."""
    tensors = [*given, *recording.allocated]
    assert recording.launches is not None  # noqa: S101  (the caller has asked)
    # From the last: an output that is also another argument is the output.
    numbers = {id(tensor): number for number, tensor in enumerate(tensors)}
    try:
        returned = (
            tuple(numbers[id(each)] for each in result) if isinstance(result, tuple) else numbers[id(result)]
        )
    except KeyError as error:
        raise _NotRepeatable from error
    return _Record(
        driver=driver.active,
        device=recording.device,
        settings=_compile_settings(),
        allocations=tuple((tuple(each.shape), each.dtype, each.device) for each in recording.allocated),
        launches=tuple(_launch_of(*launched, tensors) for launched in recording.launches),
        result=returned,
    )


def _launch_of(
    function: Any, compiled: Any, grid: tuple[int, ...], named: dict[str, Any], tensors: list[torch.Tensor]
) -> _Launch:
    """One launch of a record."""
    arguments = [named[name] for name in function.arg_names]
    pointers: list[tuple[int, int, int]] = []
    descriptors: list[tuple[int, int, int, _Descriptor]] = []
    for position, argument in enumerate(arguments):
        if isinstance(argument, torch.Tensor):
            pointers.append((position, *_place_of(argument, tensors)))
            arguments[position] = None
        elif isinstance(argument, TensorDescriptor):
            attributes = {name: value for name, value in vars(argument).items() if name != "base"}
            rest = _Descriptor(attributes, argument.base.dtype)
            descriptors.append((position, *_place_of(argument.base, tensors), rest))
            arguments[position] = None
    return _Launch(
        function=function,
        compiled=compiled,
        grid=grid,
        grid_3d=(*grid, 1, 1)[:3],
        arguments=arguments,
        pointers=tuple(pointers),
        descriptors=tuple(descriptors),
    )


def _place_of(view: torch.Tensor, tensors: list[torch.Tensor]) -> tuple[int, int]:
    """Number of the tensor in whose memory a view begins, and the offset there in bytes."""
    address = view.data_ptr()
    starts = [tensor.data_ptr() for tensor in tensors]
    if address in starts:  # tensors that begin at the same address do so in every call of the same key
        return starts.index(address), 0
    around = [
        (number, address - start)
        for number, (start, tensor) in enumerate(zip(starts, tensors, strict=True))
        if start < address < start + _extent_bytes(tensor)
    ]
    if len(around) != 1:  # a copy; or memory of two tensors, which may lie otherwise in another call
        raise _NotRepeatable
    return around[0]


def _extent_bytes(tensor: torch.Tensor) -> int:
    """Bytes from the first to the last element, in memory."""
    if not tensor.numel():
        return 0
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (steps + 1) * tensor.element_size()
