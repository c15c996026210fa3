"""TMA, the tensor memory accelerator: bulk tensor copies by a tensor map (host descriptor)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .global_memory import GlobalAccess, GlobalMemory
from .lanes import SHARED_BASE, Array, CtaLanes, Mask
from .mbarriers import Mbarrier, Mbarriers
from .shared_memory import SharedMemory
from .violations import Kind

_TILE_ALIGNMENT = 128
_IN_FLIGHT_BYTES = 0xFF


@dataclass(frozen=True)
class TensorMap:
    """What a host descriptor holds; the innermost dimension last.

    Attributes:
        start: address of the first element.
        shape: in elements.
        strides: in bytes.
        box: elements of one copy along each dimension.
        element_bytes: size of an element.
        swizzle: 0 for none, 1, 2, 3 for patterns of 32, 64, 128 bytes.
    """

    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    element_bytes: int
    swizzle: int


def swizzled(address: Array, mode: int) -> Array:
    """Where TMA and wgmma put what would lie at a shared address; mode 0 to 3 for 0, 32, 64 and 128 bytes."""
    return np.asarray(address ^ (((address >> 7) & ((1 << mode) - 1)) << 4))


class Tma:
    """Bulk tensor copies of one CTA.

    Args:
        tensor_maps: by the address of the parameter that holds them.
    """

    def __init__(
        self,
        lanes: CtaLanes,
        memory: GlobalMemory,
        access: GlobalAccess,
        shared: SharedMemory,
        mbarriers: Mbarriers,
        tensor_maps: Mapping[int, TensorMap],
    ) -> None:
        self._lanes, self._memory, self._global = lanes, memory, access
        self._shared, self._mbarriers, self._maps = shared, mbarriers, tensor_maps

    def load(
        self,
        target: Array,
        tensor_map: Array,
        coordinates: list[Array],
        mbarrier: Array,
        mask: Mask,
        line: int,
    ) -> None:
        """cp.async.bulk.tensor from global to shared memory; coordinates start with the innermost."""
        for lane in self._lanes.active(mask):
            warp = int(self._lanes.warp[lane])
            barrier = self._mbarriers.find(int(mbarrier[lane]), warp, line)
            used = self._maps.get(int(tensor_map[lane]))
            if used is None:
                self._lanes.report(
                    Kind.DESCRIPTOR, line, f"no tensor map at {int(tensor_map[lane]):#x}", warp=warp
                )
            if used is None or barrier is None:
                continue
            at = [int(each.view(np.int32)[lane]) for each in reversed(coordinates)]
            data = self._fetch(used, at, int(lane), line)
            offset = self._target(int(target[lane]), data.size, used.swizzle, warp, line)
            if offset is not None:
                self._start(barrier, offset, data, warp, line)

    def _fetch(self, used: TensorMap, at: list[int], lane: int, line: int) -> Array:
        """The bytes of a box, zeros where it is outside the tensor's shape."""
        axes = [np.arange(box) + start for box, start in zip(used.box, at, strict=True)]
        inside = np.ones(used.box, np.bool_)
        address = np.full(used.box, used.start, np.int64)
        for index, size, stride in zip(
            np.meshgrid(*axes, indexing="ij"), used.shape, used.strides, strict=True
        ):
            inside &= (index >= 0) & (index < size)
            address += index * stride
        data = np.zeros((inside.size, used.element_bytes), np.uint8)
        flat, left = address.reshape(-1), inside.reshape(-1)
        for buffer in self._memory.buffers:
            here = left & (flat >= buffer.start) & (flat + used.element_bytes <= buffer.end)
            if here.any():
                index = (flat[here] - buffer.base)[:, None] + np.arange(used.element_bytes)
                self._global.check_read(buffer, index, line, np.full(len(index), lane))
                data[here] = buffer.bytes[index]
                left = left & ~here
        if left.any():
            warp = int(self._lanes.warp[lane])
            self._lanes.report(Kind.OUTSIDE_TENSOR, line, f"TMA at {int(flat[left][0]):#x}", warp=warp)
        return data.reshape(-1)

    def _target(self, base: int, size: int, swizzle: int, warp: int, line: int) -> Array | None:
        """Offsets in shared memory of a copy's bytes; None, and reported, where it cannot be there."""
        misaligned = base % _TILE_ALIGNMENT != 0
        if misaligned or not SHARED_BASE <= base <= SHARED_BASE + self._shared.size - size:
            kind = Kind.MISALIGNED_SHARED if misaligned else Kind.OUTSIDE_SHARED
            self._lanes.report(
                kind, line, f"TMA of {size} bytes", shared_address=base - SHARED_BASE, warp=warp
            )
            return None
        return swizzled(base + np.arange(size), swizzle) - SHARED_BASE

    def _start(self, barrier: Mbarrier, offset: Array, data: Array, warp: int, line: int) -> None:
        shared = self._shared
        known = shared.clocks.of[warp]
        writer = shared.writer[offset]
        read_at = shared.read_at[:, offset]
        read_later = (read_at > known[:, None]) & (np.arange(len(known)) != warp)[:, None]
        for kind, detail, wrong in (
            (Kind.WRITE_IN_FLIGHT, "TMA", shared.in_flight[offset]),
            (Kind.WGMMA_OPERAND, "TMA", shared.wgmma_readers[offset] > 0),
            (
                Kind.SHARED_RACE,
                "TMA over what another warp wrote",
                (writer >= 0) & (shared.written_at[offset] > known[writer]),
            ),
            (Kind.SHARED_RACE, "TMA over what another warp read", read_later.any(0)),
        ):
            if wrong.any():
                self._lanes.report(kind, line, detail, shared_address=int(offset[wrong][0]), warp=warp)
        shared.data[offset] = _IN_FLIGHT_BYTES
        shared.in_flight[offset] = True
        barrier.copies.append(lambda: self._land(barrier, offset, data))

    def _land(self, barrier: Mbarrier, offset: Array, data: Array) -> None:
        shared = self._shared
        now = shared.clocks.next_asynchronous()
        shared.data[offset] = data
        shared.in_flight[offset] = shared.unfenced[offset] = False
        shared.writer[offset], shared.written_at[offset] = self._lanes.warps, now
        barrier.clock[-1] = now
        barrier.pending_bytes -= len(offset)
