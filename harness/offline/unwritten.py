"""Which memory nothing has written yet: what torch.empty gives holds whatever was there before."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten

_EMPTY = {
    _aten.empty,
    _aten.empty_like,
    _aten.empty_permuted,
    _aten.empty_strided,
    _aten.new_empty,
    _aten.new_empty_strided,
}
_CHANGE_NO_DATA = {
    _aten.as_strided_,
    _aten.detach_,
    _aten.resize_,
    _aten.resize_as_,
    _aten.set_,
    _aten.squeeze_,
    _aten.swapaxes_,
    _aten.swapdims_,
    _aten.t_,
    _aten.transpose_,
    _aten.unsqueeze_,
}
# In place, but on some elements only: done to the marks too, with a False for the value at this position.
_WRITE_SOME = {_aten.index_put_: 2, _aten.masked_fill_: 2, _aten.index_fill_: 3}


class UnwrittenMarks:
    """Marks of the granules of one storage that nothing has written.

    Args:
        storage: what is marked; it may be freed, and its marks are then without use.
        granule: bytes that share a mark.
    """

    def __init__(self, storage: torch.UntypedStorage, granule: int) -> None:
        self.granule = granule
        self.mask = np.zeros(-(-storage.nbytes() // granule), np.bool_)
        self._storage: Any = StorageWeakRef(storage)  # type: ignore[no-untyped-call]  # torch has no types for it

    @property
    def freed(self) -> bool:
        """Whether the storage is gone."""
        return bool(self._storage.expired())

    def refine(self, granule: int) -> None:
        """Keep marks for pieces of `granule` bytes from now on."""
        if granule < self.granule:
            self.mask = np.repeat(self.mask, self.granule // granule)
            self.granule = granule

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The marks of a tensor's elements in its shape, or with one dimension more, of granules."""
        size = tensor.element_size()
        self.refine(size)
        pieces = size // self.granule
        marks = torch.from_numpy(self.mask)
        strides = [stride * pieces for stride in tensor.stride()]
        shape, offset = list(tensor.shape), tensor.storage_offset() * pieces
        if pieces > 1:
            return marks.as_strided([*shape, pieces], [*strides, 1], offset)
        return marks.as_strided(shape, strides, offset)


class UnwrittenWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for it
    """Marks tensors of the torch.empty family as unwritten, and takes the mark off what torch writes.

    Out-of-place results count as written, whatever they were computed from; what reaches memory past torch's
    dispatcher, such as numpy through `Tensor.numpy()`, is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types for it
        self.paused = False
        self._marks: dict[int, UnwrittenMarks] = {}

    def marks_of(self, tensor: torch.Tensor) -> UnwrittenMarks | None:
        """Marks of the storage of a tensor, where it is watched."""
        if not self._marks or tensor.layout is not torch.strided:
            return None
        return self._marks.get(tensor.untyped_storage()._cdata)  # noqa: SLF001  (unique while weakly held)

    def add(self, tensor: torch.Tensor) -> None:
        """Mark all elements of a tensor as unwritten."""
        if tensor.layout is not torch.strided or tensor.is_meta or not tensor.numel():
            return
        marks = self.marks_of(tensor)
        if marks is None:
            self._marks = {key: kept for key, kept in self._marks.items() if not kept.freed}
            storage = tensor.untyped_storage()
            marks = UnwrittenMarks(storage, tensor.element_size())
            self._marks[storage._cdata] = marks  # noqa: SLF001  (unique while weakly held)
        marks.of(tensor).fill_(value=True)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and mark what it made or wrote."""
        del types
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operation = func.overloadpacket
        if self.paused or operation in _CHANGE_NO_DATA:
            return result
        if operation in _EMPTY:
            self.add(result)
        elif self._marks and func._schema.is_mutable:  # noqa: SLF001  (the schema has no public name)
            self._write(func, args, kwargs)
        return result

    def _write(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take the marks off what an operation wrote."""
        operation = func.overloadpacket
        value_at = _WRITE_SOME.get(operation)
        for position, argument in enumerate(func._schema.arguments):  # noqa: SLF001  (the same)
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            for tensor in value if isinstance(value, list | tuple) else [value]:
                if not isinstance(tensor, torch.Tensor):
                    continue
                marks = self.marks_of(tensor)
                if marks is None:
                    continue
                chosen = marks.of(tensor)
                if value_at is None or chosen.dim() != tensor.dim():
                    chosen.fill_(value=False)
                elif operation is _aten.index_put_:
                    chosen[tuple(slice(None) if i is None else i for i in args[1])] = False
                else:
                    operation(chosen, *args[1:value_at], False)
