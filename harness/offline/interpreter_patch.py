"""`count_traffic`, and the patch of Triton's interpreter behind it.

    with count_traffic() as traffic:
        add_kernel[(4,)](x, y, out, x.numel(), BLOCK=1024)
    print(traffic.launches[0].tensors["x_ptr"].bytes_requested)

Every load, store, atomic and dot of a kernel passes through methods of Triton's one `interpreter_builder`,
which are replaced while something is counted. Their trailing parameters differ between versions of Triton and
are passed on unchanged.
"""

from __future__ import annotations

import inspect
import math
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import triton
from triton.language import standard
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import GridExecutor, interpreter_builder
from triton.runtime.jit import TensorWrapper
from triton.tools.tensor_descriptor import TensorDescriptor

from .launch_recorder import LaunchRecorder
from .sanitizer import SanitizerError
from .traffic import Traffic
from .uninitialized import UninitializedTracker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch

_ir = interpreter._ir  # noqa: SLF001  (the enums that the builder's methods are given)
_ACQUIRING = {_ir.MEM_SEMANTIC.ACQUIRE, _ir.MEM_SEMANTIC.ACQUIRE_RELEASE}
_RELEASING = {_ir.MEM_SEMANTIC.RELEASE, _ir.MEM_SEMANTIC.ACQUIRE_RELEASE}
_PATCH = "_decodetax_patch"


@contextmanager
def count_traffic(
    *, uninitialized: Iterable[torch.Tensor] = (), known: Iterable[torch.Tensor] = ()
) -> Iterator[Traffic]:
    """Count the traffic of every Triton launch inside the block, and check its memory accesses.

    The `kernel[grid](...)` call raises `SanitizerError` at the first unmasked lane that

    - is out of bounds: outside the tensor from whose pointer its address was computed. A view of a larger
      tensor has bounds of its own, and the gaps between its elements are out of bounds too;
    - races: another program of the launch accessed the same bytes, and one of the two stored without an
      atomic. Accesses are ordered if the later program made an acquiring atomic on an address where the
      earlier one made a releasing atomic after its access. Storing the same value twice is also a race;
    - reads uninitialised memory: tensors made inside the block by torch.empty and its variants, and those
      given as `uninitialized`, until torch or a kernel writes them.

    A launch that raises is not recorded. Blocks nest: an outer block also counts those of an inner one.

    Args:
        uninitialized: tensors made outside the block to treat as uninitialised.
        known: further tensors that kernels reach through addresses in memory, as in a grouped GEMM.

    Yields:
        The launches counted so far; a launch is added when its call returns.

    Raises:
        RuntimeError: Triton compiles kernels in this process, so nothing can be counted.
    """
    if isinstance(standard.sigmoid, triton.JITFunction) or not triton.knobs.runtime.interpret:
        raise RuntimeError(
            "Triton compiles its kernels in this process, and only interpreted kernels can be counted; "
            "set TRITON_INTERPRET=1 before triton is imported"
        )
    patch = vars(interpreter_builder).get(_PATCH) or _InterpreterPatch()
    traffic = Traffic()
    fault_before = patch.fault
    try:
        with patch.recording(traffic, uninitialized=uninitialized, known=known):
            yield traffic
    finally:
        traffic.fault = patch.fault if patch.fault is not fault_before else None


class _InterpreterPatch:
    """Replaces methods of the interpreter while at least one block counts."""

    def __init__(self) -> None:
        self.fault: SanitizerError | None = None
        self._blocks: list[Traffic] = []
        self._known: list[torch.Tensor] = []
        self._tracker = UninitializedTracker()
        self._launch: LaunchRecorder | None = None
        self._executor: Any = None
        self._run_program: Callable[..., None] | None = None
        self._semantics: Any = None
        """Memory semantics of the atomic load or store that the interpreter makes of a plain one."""
        self._undo = ExitStack()

    @contextmanager
    def recording(
        self, traffic: Traffic, *, uninitialized: Iterable[torch.Tensor], known: Iterable[torch.Tensor]
    ) -> Iterator[None]:
        """Add every launch that completes to `traffic`; the outermost block removes the patch."""
        for tensor in uninitialized:
            self._tracker.add(tensor)
        known = list(known)
        self._known += known
        self._blocks.append(traffic)
        outermost = len(self._blocks) == 1
        if outermost:
            self._install()
        try:
            with self._tracker if outermost else nullcontext():
                yield
        finally:
            self._blocks.pop()
            del self._known[len(self._known) - len(known) :]
            if outermost:
                self._undo.close()

    def _install(self) -> None:
        handlers: dict[str, Callable[..., Any]] = {
            "set_grid_dim": self._set_grid_dim,
            "create_masked_load": self._load,
            "create_masked_store": self._store,
            "create_atomic_rmw": self._atomic_rmw,
            "create_atomic_cas": self._atomic_cas,
            "create_atomic_load": self._atomic_access,
            "create_atomic_poll": self._atomic_access,
            "create_atomic_store": self._atomic_access,
            "create_dot": self._dot,
            "create_dot_scaled": self._dot_scaled,
        }
        self._set(_PATCH, self)
        for name, handler in handlers.items():
            if hasattr(interpreter_builder, name):  # later versions of Triton have more
                self._set(name, self._patched(name, handler))

        call = GridExecutor.__call__

        def counted_call(executor: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._blocks:  # another wrapper kept this function after the patch was removed
                return call(executor, *args, **kwargs)
            return self._run_launch(call, executor, args, kwargs)

        def undo() -> None:
            if GridExecutor.__call__ is counted_call:
                GridExecutor.__call__ = call

        GridExecutor.__call__ = counted_call
        self._undo.callback(undo)

    def _set(self, name: str, value: Any) -> None:
        """Set an attribute of the builder until the patch is removed."""
        if name in vars(interpreter_builder):
            self._undo.callback(setattr, interpreter_builder, name, vars(interpreter_builder)[name])
        else:
            self._undo.callback(delattr, interpreter_builder, name)
        setattr(interpreter_builder, name, value)

    def _patched(self, name: str, handler: Callable[..., Any]) -> Callable[..., Any]:
        """A method that calls `handler` with the original method as its first argument."""
        before = vars(interpreter_builder).get(name)

        def method(*args: Any, **kwargs: Any) -> Any:
            # Looked up now: the kernels may have patched the class since.
            original = before or getattr(type(interpreter_builder), name).__get__(interpreter_builder)
            return handler(original, *args, **kwargs)

        return method

    def _run_launch(self, call: Callable[..., Any], executor: Any, args: Any, kwargs: Any) -> Any:
        """Run a launch and record it."""
        parameters = inspect.signature(executor.fn).parameters
        kept = {name: value for name, value in kwargs.items() if name in parameters}
        given = inspect.getcallargs(executor.fn, *args, **kept)
        tensors = [pair for name, value in given.items() for pair in _tensors(name, value)]
        tensors += [(f"known[{position}]", tensor) for position, tensor in enumerate(self._known)]
        kernel, self._executor = executor.fn, executor
        self._launch = launch = LaunchRecorder(kernel.__name__, tensors, self._tracker)

        def run_program(**converted: Any) -> None:
            if not launch.bound:
                handles = [h for name, value in given.items() for h in _handles(value, converted[name])]
                launch.bind([*handles, *(None for _ in self._known)])
            launch.start_program(interpreter_builder.grid_idx)
            kernel(**converted)
            launch.end_program()

        self._run_program = run_program
        try:
            result = call(executor, *args, **kwargs)
        except InterpreterError as error:
            fault: BaseException | None = error
            while fault is not None and not isinstance(fault, SanitizerError):
                fault = fault.__cause__
            if fault is None:
                raise
            self.fault = fault
            raise fault from None
        finally:
            executor.fn = kernel
            self._executor = self._launch = None
            self._tracker.paused = False
        completed = launch.traffic()
        for traffic in self._blocks:
            traffic.launches.append(completed)
        return result

    def _set_grid_dim(self, original: Callable[..., None], x: int, y: int, z: int) -> None:
        """The arguments are converted now: torch calls from here on are the interpreter's own."""
        original(x, y, z)
        if self._launch is not None:
            self._launch.grid = x, y, z
            self._executor.fn = self._run_program
            self._tracker.paused = True

    def _load(self, original: Callable[..., Any], pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        element_bytes = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        acquire = self._semantics is not None and self._semantics in _ACQUIRING
        pointers = self._accessed(pointers, mask, element_bytes, loads=True, acquire=acquire)
        return original(pointers, mask, *rest, **named)

    def _store(
        self, original: Callable[..., Any], pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any
    ) -> Any:
        atomic = self._semantics is not None
        release = atomic and self._semantics in _RELEASING
        pointers = self._accessed(
            pointers, mask, value.data.itemsize, stores=True, atomic=atomic, release=release
        )
        return original(pointers, value, mask, *rest, **named)

    def _atomic_rmw(
        self, original: Callable[..., Any], kind: Any, pointers: Any, value: Any, mask: Any, *order: Any
    ) -> Any:
        uses_value = kind != _ir.ATOMIC_OP.XCHG
        pointers = self._updated(pointers, value, mask, *order, uses_value=uses_value)
        return original(kind, pointers, value, mask, *order)

    def _atomic_cas(
        self, original: Callable[..., Any], pointers: Any, expected: Any, value: Any, *order: Any
    ) -> Any:
        pointers = self._updated(pointers, value, None, *order, uses_value=True)
        return original(pointers, expected, value, *order)

    def _atomic_access(self, original: Callable[..., Any], *args: Any) -> Any:
        """An atomic load, store or poll, which the interpreter executes as a plain load or store."""
        semantics, scope = args[-2:]
        self._semantics = _ir.MEM_SEMANTIC.RELAXED if scope == _ir.MEM_SYNC_SCOPE.CTA else semantics
        try:
            return original(*args)
        finally:
            self._semantics = None

    def _updated(
        self, pointers: Any, value: Any, mask: Any, semantics: Any, scope: Any, *, uses_value: bool
    ) -> Any:
        """Count an atomic; one of CTA scope orders nothing between programs."""
        orders = scope != _ir.MEM_SYNC_SCOPE.CTA
        return self._accessed(
            pointers,
            mask,
            value.data.itemsize,
            loads=True,
            stores=True,
            atomic=True,
            acquire=orders and semantics in _ACQUIRING,
            release=orders and semantics in _RELEASING,
            uses_value=uses_value,
        )

    def _accessed(self, pointers: Any, mask: Any, element_bytes: int, **access: bool) -> Any:
        """Record an access; returns the pointers without tags."""
        if self._launch is None:
            return pointers
        # Triton 3.6 passes the masks of descriptors as bare arrays.
        lanes = mask.data if isinstance(mask, interpreter.TensorHandle) else mask
        addresses = self._launch.access(pointers.data, lanes, element_bytes, **access)
        return interpreter.TensorHandle(addresses, pointers.dtype, pointers.attr)

    def _dot(self, original: Callable[..., Any], lhs: Any, rhs: Any, *rest: Any, **named: Any) -> Any:
        self._count_dot(lhs.dtype.scalar.name, rhs.dtype.scalar.name, lhs.data.shape, rhs.data.shape[-1])
        return original(lhs, rhs, *rest, **named)

    def _dot_scaled(self, original: Callable[..., Any], *args: Any) -> Any:
        lhs, _, lhs_format, _, _, rhs_format, _, lhs_k_pack, _, accumulator = args
        packed = 2 if lhs_format == _ir.ScaleDotElemTypeTY.E2M1 and lhs_k_pack else 1
        shape = (*accumulator.data.shape[:-1], lhs.data.shape[-1] * packed)
        self._count_dot(lhs_format.name.lower(), rhs_format.name.lower(), shape, accumulator.data.shape[-1])
        return original(*args)

    def _count_dot(self, lhs: str, rhs: str, rows_and_depth: tuple[int, ...], columns: int) -> None:
        if self._launch is not None:
            self._launch.operations[f"{lhs} x {rhs}"] += 2 * math.prod(rows_and_depth) * columns


def _tensors(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that an argument holds, with their names."""
    if isinstance(value, TensorDescriptor):
        yield from _tensors(name, value.base)
    elif isinstance(value, tuple):
        for position, item in enumerate(value):
            yield from _tensors(f"{name}[{position}]", item)
    elif hasattr(value, "data_ptr"):
        yield name, value.base if isinstance(value, TensorWrapper) else value


def _handles(value: Any, converted: Any) -> Iterator[Any]:
    """The interpreter's pointers to the tensors of `_tensors`, in the same order."""
    if isinstance(value, TensorDescriptor):
        yield converted.handle.base
    elif isinstance(value, tuple):
        for item, converted_item in zip(value, converted, strict=True):
            yield from _handles(item, converted_item)
    elif hasattr(value, "data_ptr"):
        yield converted.handle
