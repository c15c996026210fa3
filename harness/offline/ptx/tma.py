"""TMA, the tensor memory accelerator: bulk tensor copies between global and shared memory.

A load lands when its mbarrier is waited for, no earlier. A store takes effect at once, and counts as reading
its bytes of shared memory until its group is waited for.
"""

from collections import deque
from collections.abc import Mapping

import numpy as np

from .atomics import atomic_result
from .global_memory import GlobalAccess
from .lanes import SHARED_BASE, Array, CtaLanes, Mask
from .mbarriers import Mbarrier, Mbarriers
from .shared_memory import SharedMemory
from .tensor_maps import FIELDS, TENSOR_MAP_BYTES, TensorMap, decoded, swizzled
from .violations import Kind

_TILE_ALIGNMENT = 128
_IN_FLIGHT_BYTES = 0xFF
_NAN_BYTES = {2: b"\xff\x7f", 4: b"\xff\xff\xff\x7f", 8: b"\xff" * 7 + b"\x7f"}


class Tma:
    """Bulk tensor copies of one CTA.

    Args:
        lanes: of the CTA.
        access: the CTA's to global memory.
        shared: the CTA's shared memory.
        mbarriers: the CTA's.
        tensor_maps: of the launch, by the address of the parameter that holds them.
    """

    def __init__(
        self,
        lanes: CtaLanes,
        access: GlobalAccess,
        shared: SharedMemory,
        mbarriers: Mbarriers,
        tensor_maps: Mapping[int, TensorMap],
    ) -> None:
        self._lanes, self._global = lanes, access
        self._shared, self._mbarriers, self._maps = shared, mbarriers, tensor_maps
        self._unfenced_maps: set[int] = set()
        self._last_store = 0  # PTX line
        self._open: list[list[Array]] = [[] for _ in range(lanes.threads)]  # bytes that stores read
        self._groups: list[deque[list[Array]]] = [deque() for _ in range(lanes.threads)]

    # Copies ---------------------------------------------------------------------------------------------

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
            used = self._map(int(tensor_map[lane]), int(lane), line)
            if used is None or barrier is None:
                continue
            data = self._fetch(used, _coordinates(coordinates, lane), int(lane), line)
            offset = self._tile(int(target[lane]), used, warp, line)
            if offset is not None:
                self._start(barrier, offset, data, warp, line)

    def store(
        self,
        tensor_map: Array,
        coordinates: list[Array],
        source: Array,
        operation: str,
        mask: Mask,
        line: int,
    ) -> None:
        """cp.async.bulk.tensor and cp.reduce.async.bulk.tensor from shared to global memory.

        Args:
            tensor_map: its address.
            coordinates: the innermost first.
            source: address in shared memory.
            operation: "" to store, or that of an atomic, such as "add".
            mask: active lanes.
            line: of the PTX.
        """
        self._last_store = line
        for lane in self._lanes.active(mask):
            warp = int(self._lanes.warp[lane])
            used = self._map(int(tensor_map[lane]), int(lane), line)
            offset = None if used is None else self._tile(int(source[lane]), used, warp, line)
            if used is None or offset is None:
                continue
            self._shared.check_bulk_read(offset, np.array([warp]), line, "TMA store")
            self._shared.async_readers[offset] += np.uint16(1)
            self._open[lane].append(offset)
            data = self._shared.data[offset].reshape(-1, used.element_bytes)
            address, inside = used.addresses(_coordinates(coordinates, lane))
            what = (operation, used.element_type)
            self._write(address[inside], data[inside], what, int(lane), line)

    def _write(self, address: Array, data: Array, what: tuple[str, str], lane: int, line: int) -> None:
        operation, kind = what
        size = data.shape[1]
        elements = np.arange(len(address))
        for buffer, found, at in self._global.find(address, size, elements, line, "TMA store", lane=lane):
            index = at[:, None] + np.arange(size)
            if not operation:
                self._global.check_write(buffer, index, line, np.full(len(found), lane), data[found])
                buffer.bytes[index] = data[found]
                continue
            lanes = np.full(len(found), lane)
            self._global.check_read(buffer, index, line, lanes, atomic=True)
            self._global.check_write(buffer, index, line, lanes, None, atomic=True)
            view, place = buffer.views[size], at // size
            values = np.ascontiguousarray(data[found]).view(view.dtype)[:, 0]
            view[place] = atomic_result(operation, kind, view[place], [values])

    def commit(self, mask: Mask, _line: int) -> None:
        """cp.async.bulk.commit_group: closes each lane's group of stores."""
        for lane in self._lanes.active(mask):
            self._groups[lane].append(self._open[lane])
            self._open[lane] = []

    def wait(self, left: int, mask: Mask, _line: int) -> None:
        """cp.async.bulk.wait_group: all but the last `left` groups have read shared memory."""
        for lane in self._lanes.active(mask):
            warp = self._lanes.warp[lane]
            while len(self._groups[lane]) > left:
                for offset in self._groups[lane].popleft():
                    self._shared.async_readers[offset] -= np.uint16(1)
                    self._shared.read_at[warp][offset] = self._shared.clocks.of[warp, warp]

    def finish(self) -> None:
        """The CTA ends: reports stores that may not have read its shared memory yet."""
        for lane, groups in enumerate(self._groups):
            for offset in [each for group in (*groups, self._open[lane]) for each in group][:1]:
                self._lanes.report(
                    Kind.UNFINISHED,
                    self._last_store,
                    shared_address=int(offset[0]),
                    warp=self._warp(lane),
                )

    def _map(self, address: int, lane: int, line: int) -> TensorMap | None:
        """The tensor map at an address; None, and reported, if there is none."""
        used = self._maps.get(address)
        if used is not None:
            return used
        if address in self._unfenced_maps:
            self._lanes.report(
                Kind.NO_PROXY_FENCE, line, "tensor map without fence.proxy.tensormap", warp=self._warp(lane)
            )
        lanes = np.array([lane])
        places = np.full(self._lanes.threads, address, np.int64)
        for buffer, _, at in self._global.find(places, TENSOR_MAP_BYTES, lanes, line, "tensor map"):
            index = at[:, None] + np.arange(TENSOR_MAP_BYTES)
            self._global.check_read(buffer, index, line, lanes)
            used = decoded(buffer.bytes[index].tobytes())
        if used is None:
            self._lanes.report(Kind.DESCRIPTOR, line, f"no tensor map at {address:#x}", warp=self._warp(lane))
        return used

    def _warp(self, lane: int) -> int:
        return int(self._lanes.warp[lane])

    def _fetch(self, used: TensorMap, at: list[int], lane: int, line: int) -> Array:
        """The bytes of a box; zeros or NaN where it is outside the tensor's shape."""
        address, inside = used.addresses(at)
        size = used.element_bytes
        data = np.zeros((len(address), size), np.uint8)
        if used.nan_outside:
            data[:] = np.frombuffer(_NAN_BYTES[size], np.uint8)
        for buffer, found, place in self._global.find(
            address, size, np.flatnonzero(inside), line, "TMA load", lane=lane
        ):
            index = place[:, None] + np.arange(size)
            self._global.check_read(buffer, index, line, np.full(len(found), lane))
            data[found] = buffer.bytes[index]
        return data.reshape(-1)

    def _tile(self, base: int, used: TensorMap, warp: int, line: int) -> Array | None:
        """Offsets in shared memory of a box's bytes; None, and reported, where it cannot be there."""
        size = used.box_bytes
        misaligned = base % _TILE_ALIGNMENT != 0
        if misaligned or not SHARED_BASE <= base <= SHARED_BASE + self._shared.size - size:
            kind = Kind.MISALIGNED_SHARED if misaligned else Kind.OUTSIDE_SHARED
            self._lanes.report(
                kind, line, f"TMA of {size} bytes", shared_address=base - SHARED_BASE, warp=warp
            )
            return None
        return swizzled(base + np.arange(size), used.swizzle) - SHARED_BASE

    def _start(self, barrier: Mbarrier, offset: Array, data: Array, warp: int, line: int) -> None:
        shared = self._shared
        known = shared.clocks.of[warp]
        writer = shared.writer[offset]
        read_at = shared.read_at[:, offset]
        read_later = (read_at > known[:, None]) & (np.arange(len(known)) != warp)[:, None]
        for kind, detail, wrong in (
            (Kind.WRITE_IN_FLIGHT, "TMA", shared.in_flight[offset]),
            (Kind.ASYNC_OPERAND, "TMA", shared.async_readers[offset] > 0),
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

    # Tensor maps that the kernel writes -----------------------------------------------------------------

    def replace(
        self, field: str, address: Array, index: int, value: Array, space: str, mask: Mask, line: int
    ) -> None:
        """tensormap.replace: writes one field, of dimension `index`, of a tensor map."""
        offset, size = FIELDS[field]
        words = [value.astype(np.uint64 if size == 8 else np.uint32)]
        place = address + offset + index * size
        if space == "global":
            self._global.store(place, size, words, mask, line)
        else:
            self._shared.store(place, size, words, mask, line)

    def publish_map(self, target: Array, source: Array, mask: Mask, line: int) -> None:
        """tensormap.cp_fenceproxy: a warp copies a tensor map from shared to global memory."""
        for warp in self._lanes.active_warps(mask, line):
            lane = int(warp) * 32
            lanes = np.array([lane])
            _, offset = self._shared.locate(source, TENSOR_MAP_BYTES, lanes, line, "tensor map")
            for buffer, _, at in self._global.find(target, TENSOR_MAP_BYTES, lanes, line, "tensor map"):
                if len(offset):
                    self._shared.check_read(offset, TENSOR_MAP_BYTES, self._lanes.warp[lanes], line)
                    index = at[:, None] + np.arange(TENSOR_MAP_BYTES)
                    rows = self._shared.rows(self._shared.data, offset, TENSOR_MAP_BYTES)
                    self._global.check_write(buffer, index, line, lanes, rows)
                    buffer.bytes[index] = rows
                    self._unfenced_maps.add(int(target[lane]))

    def fence_map(self, address: Array, mask: Mask, _line: int) -> None:
        """fence.proxy.tensormap with acquire: TMA sees the tensor map at an address as it is now."""
        self._unfenced_maps -= {int(each) for each in address[self._lanes.active(mask)]}


def _coordinates(coordinates: list[Array], lane: int) -> list[int]:
    """One lane's coordinates, the innermost last."""
    return [int(each.view(np.int32)[lane]) for each in reversed(coordinates)]
