"""Local memory of each thread, and generic addresses, which point into global, shared or local memory."""

from typing import Any

import numpy as np

from .global_memory import GlobalAccess
from .lanes import LOCAL_BASE, PARAMETER_BASE, UNSIGNED, Array, CtaLanes, Mask
from .shared_memory import SharedMemory
from .unsupported import UnsupportedPtxError
from .violations import Kind

_FIRST_BYTES = 0xFF  # what local memory holds before it is written


class LocalMemory:
    """An area of memory for each thread."""

    def __init__(self, lanes: CtaLanes, size: int) -> None:
        self._lanes, self._size = lanes, size
        self._data = np.full((lanes.threads, size), _FIRST_BYTES, np.uint8)
        self._written = np.zeros((lanes.threads, size), np.bool_)

    def load(self, address: Array, width: int, count: int, mask: Mask, line: int) -> list[Array]:
        """Loads `count` elements of `width` bytes a lane; lanes that may not load get all ones."""
        loaded = self._lanes.all_ones(width, count)
        lanes, index = self._locate(address, width * count, mask, line)
        if not self._written[lanes[:, None], index].all():
            self._lanes.report(Kind.UNWRITTEN_LOCAL, line)
        words = np.ascontiguousarray(self._data[lanes[:, None], index]).view(UNSIGNED[8 * width])
        for j, element in enumerate(loaded):
            element[lanes] = words[:, j]
        return loaded

    def store(self, address: Array, width: int, values: list[Array], mask: Mask, line: int) -> None:
        """Stores elements of `width` bytes."""
        lanes, index = self._locate(address, width * len(values), mask, line)
        words = np.ascontiguousarray(np.stack([value[lanes] for value in values], 1))
        self._data[lanes[:, None], index] = words.view(np.uint8)
        self._written[lanes[:, None], index] = True

    def _locate(self, address: Array, size: int, mask: Mask, line: int) -> tuple[Array, Array]:
        """Lanes and the places [lanes, size] of their bytes, without those that are wrong."""
        lanes = self._lanes.active(mask)
        offset = address[lanes] - LOCAL_BASE
        wrong = (offset % size != 0) | (offset < 0) | (offset + size > self._size)
        if wrong.any():
            detail = f"{size} bytes at {int(offset[wrong][0])} of {self._size}"
            self._lanes.report(Kind.OUTSIDE_LOCAL, line, detail, warp=int(self._lanes.warp[lanes[wrong][0]]))
            lanes, offset = lanes[~wrong], offset[~wrong]
        return lanes, offset[:, None] + np.arange(size)


class GenericMemory:
    """Accesses by generic addresses: all active lanes in one state space."""

    def __init__(
        self, lanes: CtaLanes, access: GlobalAccess, shared: SharedMemory, local: LocalMemory
    ) -> None:
        self._lanes, self._global, self._shared, self._local = lanes, access, shared, local

    def _space(self, address: Array, mask: Mask) -> Any:
        active = address[self._lanes.active(mask)]
        local = (active >= LOCAL_BASE) & (active < PARAMETER_BASE)
        shared = active < LOCAL_BASE
        if local.all():
            return self._local
        if shared.all():
            return self._shared
        if local.any() or shared.any():
            raise UnsupportedPtxError("generic addresses of several state spaces")
        return self._global

    def load(self, address: Array, width: int, count: int, mask: Mask, line: int) -> list[Array]:
        """As the state space of the addresses."""
        loaded: list[Array] = self._space(address, mask).load(address, width, count, mask, line)
        return loaded

    def store(self, address: Array, width: int, values: list[Array], mask: Mask, line: int) -> None:
        """As the state space of the addresses."""
        self._space(address, mask).store(address, width, values, mask, line)

    def atomic(
        self,
        address: Array,
        kind: str,
        operation: str,
        values: list[Array],
        order: str,
        mask: Mask,
        line: int,
    ) -> Array:
        """As the state space of the addresses."""
        space = self._space(address, mask)
        if space is self._local:
            raise UnsupportedPtxError("an atomic in local memory")
        old: Array = space.atomic(address, kind, operation, values, order, mask, line)
        return old
