"""Tracks uninitialised memory: tensors of torch.empty and its variants, until something writes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten

_ALLOCATE = {
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
# In-place operations on some elements only, with the position of their value: they are repeated on the
# shadow with the value False.
_WRITE_SOME = {_aten.index_put_: 2, _aten.masked_fill_: 2, _aten.index_fill_: 3}


class UninitializedShadow:
    """For each granule of one storage, whether nothing has written it.

    Args:
        storage: not kept alive; once it is freed, the shadow is meaningless.
        granule_bytes: size of a granule at first.
    """

    def __init__(self, storage: torch.UntypedStorage, granule_bytes: int) -> None:
        self.granule_bytes = granule_bytes
        self.mask = np.zeros(-(-storage.nbytes() // granule_bytes), np.bool_)
        self._storage: Any = StorageWeakRef(storage)  # type: ignore[no-untyped-call]  # torch has no types for it

    @property
    def freed(self) -> bool:
        """Whether the storage is freed."""
        return bool(self._storage.expired())

    def refine(self, granule_bytes: int) -> None:
        """Split the granules into granules of `granule_bytes`, if those are smaller."""
        if granule_bytes < self.granule_bytes:
            self.mask = np.repeat(self.mask, self.granule_bytes // granule_bytes)
            self.granule_bytes = granule_bytes

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mask in the tensor's shape, with a last dimension of granules if an element has several."""
        element_bytes = tensor.element_size()
        self.refine(element_bytes)
        granules = element_bytes // self.granule_bytes
        mask = torch.from_numpy(self.mask)
        strides = [stride * granules for stride in tensor.stride()]
        shape, offset = list(tensor.shape), tensor.storage_offset() * granules
        if granules > 1:
            return mask.as_strided([*shape, granules], [*strides, 1], offset)
        return mask.as_strided(shape, strides, offset)


class UninitializedTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for it
    """Marks new tensors of the torch.empty family as uninitialised, and what torch writes as initialised.

    Results of out-of-place operations count as initialised, whatever their inputs were. Writes that bypass
    torch's dispatcher, such as numpy's through `Tensor.numpy()`, are not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types for it
        self.paused = False
        self._shadows: dict[int, UninitializedShadow] = {}

    def shadow_of(self, tensor: torch.Tensor) -> UninitializedShadow | None:
        """Shadow of a tensor's storage; None if it is not tracked."""
        if not self._shadows or tensor.layout is not torch.strided:
            return None
        return self._shadows.get(tensor.untyped_storage()._cdata)  # noqa: SLF001  (unique while weakly held)

    def add(self, tensor: torch.Tensor) -> None:
        """Mark all elements of a tensor as uninitialised."""
        if tensor.layout is not torch.strided or tensor.is_meta or not tensor.numel():
            return
        shadow = self.shadow_of(tensor)
        if shadow is None:
            self._shadows = {key: kept for key, kept in self._shadows.items() if not kept.freed}
            storage = tensor.untyped_storage()
            shadow = UninitializedShadow(storage, tensor.element_size())
            self._shadows[storage._cdata] = shadow  # noqa: SLF001  (unique while weakly held)
        shadow.of(tensor).fill_(value=True)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and mark what it allocated or wrote."""
        del types
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operation = func.overloadpacket
        if self.paused or operation in _CHANGE_NO_DATA:
            return result
        if operation in _ALLOCATE:
            self.add(result)
        elif self._shadows and func._schema.is_mutable:  # noqa: SLF001  (the schema has no public name)
            self._mark_written(func, args, kwargs)
        return result

    def _mark_written(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Mark what an operation wrote as initialised."""
        operation = func.overloadpacket
        value_at = _WRITE_SOME.get(operation)
        for position, argument in enumerate(func._schema.arguments):  # noqa: SLF001  (the same)
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            for tensor in value if isinstance(value, list | tuple) else [value]:
                if not isinstance(tensor, torch.Tensor):
                    continue
                shadow = self.shadow_of(tensor)
                if shadow is None:
                    continue
                mask = shadow.of(tensor)
                if value_at is None or mask.dim() != tensor.dim():
                    mask.fill_(value=False)
                elif operation is _aten.index_put_:
                    mask[tuple(slice(None) if i is None else i for i in args[1])] = False
                else:
                    operation(mask, *args[1:value_at], False)
