"""Stands between Triton's interpreter and memory while launches are counted.

All that a kernel loads, stores, updates and multiplies passes through methods of Triton's one
`interpreter_builder`. Their trailing parameters differ between versions and are passed on as they come.
"""

from __future__ import annotations

import inspect
import math
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import GridExecutor, interpreter_builder
from triton.runtime.jit import TensorWrapper
from triton.tools.tensor_descriptor import TensorDescriptor

from .launch import Launch
from .sanitizer import TrafficError
from .unwritten import UnwrittenWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch

_ir = interpreter._ir  # noqa: SLF001  (the types of what the builder's methods are given)
_ACQUIRING = {_ir.MEM_SEMANTIC.ACQUIRE, _ir.MEM_SEMANTIC.ACQUIRE_RELEASE}
_RELEASING = {_ir.MEM_SEMANTIC.RELEASE, _ir.MEM_SEMANTIC.ACQUIRE_RELEASE}
_HOME = "_decodetax_recorder"


def active_recorder() -> Recorder:
    """The recorder that is in place, or a new one."""
    return vars(interpreter_builder).get(_HOME) or Recorder()


class Recorder:
    """Gives each launch to those who listen; in place of the builder's methods as long as somebody does."""

    def __init__(self) -> None:
        self._watch = UnwrittenWatch()
        self._known: list[torch.Tensor] = []
        self._listeners: list[Callable[[Launch], None]] = []
        self._executor: Any = None
        self._program: Callable[..., None] | None = None
        self._launch: Launch | None = None
        self._atomic: Any = None
        self.fault: TrafficError | None = None
        self._restore: list[Callable[[], None]] = []

    @contextmanager
    def listening(
        self,
        listener: Callable[[Launch], None],
        *,
        unwritten: Iterable[torch.Tensor],
        known: Iterable[torch.Tensor],
    ) -> Iterator[None]:
        """Call `listener` with every launch that ends well; the last to leave leaves Triton as it was."""
        for tensor in unwritten:
            self._watch.add(tensor)
        known = list(known)
        self._known += known
        self._listeners.append(listener)
        outermost = len(self._listeners) == 1
        if outermost:
            self._install()
        try:
            with self._watch if outermost else nullcontext():
                yield
        finally:
            self._listeners.remove(listener)
            del self._known[len(self._known) - len(known) :]
            if outermost:
                while self._restore:
                    self._restore.pop()()

    def _install(self) -> None:
        handlers: dict[str, Callable[..., Any]] = {
            "set_grid_dim": self._set_grid_dim,
            "create_masked_load": self._load,
            "create_masked_store": self._store,
            "create_atomic_rmw": self._update,
            "create_atomic_cas": self._compare_and_swap,
            "create_atomic_load": self._atomically,
            "create_atomic_poll": self._atomically,
            "create_atomic_store": self._atomically,
            "create_dot": self._dot,
            "create_dot_scaled": self._dot_scaled,
        }
        self._set(_HOME, self)
        for name, handler in handlers.items():
            if hasattr(interpreter_builder, name):  # some come with later versions of Triton
                self._set(name, self._wrapped(name, handler))

        call = GridExecutor.__call__

        def counted_call(executor: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._listeners:  # somebody else wrapped this function meanwhile, and keeps it
                return call(executor, *args, **kwargs)
            return self._run(call, executor, args, kwargs)

        def restore() -> None:
            if GridExecutor.__call__ is counted_call:
                GridExecutor.__call__ = call

        GridExecutor.__call__ = counted_call
        self._restore.append(restore)

    def _set(self, name: str, value: Any) -> None:
        """Set an attribute of the builder until the end."""
        attributes = vars(interpreter_builder)
        if name in attributes:
            before = attributes[name]
            self._restore.append(lambda: setattr(interpreter_builder, name, before))
        else:
            self._restore.append(lambda: delattr(interpreter_builder, name))
        setattr(interpreter_builder, name, value)

    def _wrapped(self, name: str, handler: Callable[..., Any]) -> Callable[..., Any]:
        """A method that gives the one it replaces to `handler`, first of its arguments."""
        before = vars(interpreter_builder).get(name)

        def method(*args: Any, **kwargs: Any) -> Any:
            # Looked up now: the interpreter may have been mended since.
            original = before or getattr(type(interpreter_builder), name).__get__(interpreter_builder)
            return handler(original, *args, **kwargs)

        return method

    def _run(self, call: Callable[..., Any], executor: Any, args: Any, kwargs: Any) -> Any:
        """Run a launch, and hand it to those who listen."""
        parameters = inspect.signature(executor.fn).parameters
        kept = {name: value for name, value in kwargs.items() if name in parameters}
        given = inspect.getcallargs(executor.fn, *args, **kept)
        tensors = [pair for name, value in given.items() for pair in _tensors(name, value)]
        tensors += [(f"known[{position}]", tensor) for position, tensor in enumerate(self._known)]
        kernel, self._executor = executor.fn, executor
        self._launch = launch = Launch(kernel.__name__, tensors, self._watch)

        def program(**converted: Any) -> None:
            if not launch.arguments:
                handles = [h for name, value in given.items() for h in _handles(value, converted[name])]
                launch.bind([*handles, *(None for _ in self._known)])
            launch.start_program(interpreter_builder.grid_idx)
            kernel(**converted)
            launch.end_program()

        self._program = program
        try:
            result = call(executor, *args, **kwargs)
        except InterpreterError as error:
            fault: BaseException | None = error
            while fault is not None and not isinstance(fault, TrafficError):
                fault = fault.__cause__
            if fault is None:
                raise
            self.fault = fault
            raise fault from None
        finally:
            executor.fn = kernel
            self._executor = self._launch = None
            self._watch.paused = False
        for listener in self._listeners:
            listener(launch)
        return result

    def _set_grid_dim(self, original: Callable[..., None], x: int, y: int, z: int) -> None:
        """The arguments are converted: what follows is the kernel, and copies of what it wrote."""
        original(x, y, z)
        if self._launch is not None:
            self._launch.grid = x, y, z
            self._executor.fn = self._program
            self._watch.paused = True

    def _load(self, original: Callable[..., Any], pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        if self._launch is not None:
            size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
            acquire = self._atomic is not None and self._atomic in _ACQUIRING
            real = self._launch.load(pointers.data, _lanes(mask), size, acquire=acquire)
            pointers = _moved(pointers, real)
        return original(pointers, mask, *rest, **named)

    def _store(
        self, original: Callable[..., Any], pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any
    ) -> Any:
        if self._launch is not None:
            real = self._launch.store(
                pointers.data,
                _lanes(mask),
                value.data.itemsize,
                atomic=self._atomic is not None,
                release=self._atomic is not None and self._atomic in _RELEASING,
            )
            pointers = _moved(pointers, real)
        return original(pointers, value, mask, *rest, **named)

    def _update(
        self, original: Callable[..., Any], kind: Any, pointers: Any, value: Any, mask: Any, *order: Any
    ) -> Any:
        pointers = self._updated(pointers, value, mask, *order, uses_value=kind != _ir.ATOMIC_OP.XCHG)
        return original(kind, pointers, value, mask, *order)

    def _compare_and_swap(
        self, original: Callable[..., Any], pointers: Any, expected: Any, value: Any, *order: Any
    ) -> Any:
        pointers = self._updated(pointers, value, None, *order, uses_value=True)
        return original(pointers, expected, value, *order)

    def _updated(
        self, pointers: Any, value: Any, mask: Any, semantics: Any, scope: Any, *, uses_value: bool
    ) -> Any:
        """The pointers of an atomic, counted. One of block scope orders nothing between programs."""
        if self._launch is None:
            return pointers
        orders = scope != _ir.MEM_SYNC_SCOPE.CTA
        real = self._launch.update(
            pointers.data,
            _lanes(mask),
            value.data.itemsize,
            acquire=orders and semantics in _ACQUIRING,
            release=orders and semantics in _RELEASING,
            uses_value=uses_value,
        )
        return _moved(pointers, real)

    def _atomically(self, original: Callable[..., Any], *args: Any) -> Any:
        """An atomic load, store or wait, which the interpreter carries out with plain ones."""
        semantics, scope = args[-2:]
        self._atomic = _ir.MEM_SEMANTIC.RELAXED if scope == _ir.MEM_SYNC_SCOPE.CTA else semantics
        try:
            return original(*args)
        finally:
            self._atomic = None

    def _dot(self, original: Callable[..., Any], lhs: Any, rhs: Any, *rest: Any, **named: Any) -> Any:
        self._count_product(lhs.dtype.scalar.name, rhs.dtype.scalar.name, lhs.data.shape, rhs.data.shape[-1])
        return original(lhs, rhs, *rest, **named)

    def _dot_scaled(self, original: Callable[..., Any], *args: Any) -> Any:
        lhs, _, lhs_format, rhs, _, rhs_format, _, lhs_k_pack, rhs_k_pack, accumulator = args
        del rhs, rhs_k_pack
        packed = 2 if lhs_format == _ir.ScaleDotElemTypeTY.E2M1 and lhs_k_pack else 1
        shape = (*accumulator.data.shape[:-1], lhs.data.shape[-1] * packed)
        self._count_product(
            lhs_format.name.lower(), rhs_format.name.lower(), shape, accumulator.data.shape[-1]
        )
        return original(*args)

    def _count_product(self, lhs: str, rhs: str, rows_and_depth: tuple[int, ...], columns: int) -> None:
        if self._launch is not None:
            self._launch.operations[f"{lhs} x {rhs}"] += 2 * math.prod(rows_and_depth) * columns


def _tensors(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that an argument holds, each with a name."""
    if isinstance(value, TensorDescriptor):
        yield from _tensors(name, value.base)
    elif isinstance(value, tuple):
        for position, item in enumerate(value):
            yield from _tensors(f"{name}[{position}]", item)
    elif hasattr(value, "data_ptr"):
        yield name, value.base if isinstance(value, TensorWrapper) else value


def _handles(value: Any, converted: Any) -> Iterator[Any]:
    """The interpreter's pointers of the same, in the same order."""
    if isinstance(value, TensorDescriptor):
        yield converted.handle.base
    elif isinstance(value, tuple):
        for item, converted_item in zip(value, converted, strict=True):
            yield from _handles(item, converted_item)
    elif hasattr(value, "data_ptr"):
        yield converted.handle


def _lanes(mask: Any) -> Any:
    """The mask as numpy has it; Triton 3.6 passes those of descriptors bare."""
    return mask.data if isinstance(mask, interpreter.TensorHandle) else mask


def _moved(pointers: Any, addresses: Any) -> Any:
    return interpreter.TensorHandle(addresses, pointers.dtype, pointers.attr)
