"""Numpy types of registers, the machine's constants, and the lanes of one CTA that every part works on."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .counters import LaunchCounters
from .violations import Kind, ViolationLog

Array: TypeAlias = NDArray[Any]
Mask: TypeAlias = Array | None
"""Truth value of each lane; None where all lanes are active."""

UNSIGNED: dict[int, type[np.generic]] = {
    1: np.bool_,
    8: np.uint8,
    16: np.uint16,
    32: np.uint32,
    64: np.uint64,
}
SIGNED: dict[int, type[np.generic]] = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
"""Numpy's integers by bits. A register holds unsigned ones; a predicate holds truth values."""

WARP_LANES = 32
SHARED_BASE = 1024  # shared addresses start above 0, so that a stray 0 is outside
LOCAL_BASE = 0x60000000
PARAMETER_BASE = 0x70000000  # addresses of the kernel's parameters, for those that hold a tensor map
ELECTED_LANE = 5  # the lane that elect.sync chooses; the hardware may choose any


class TrapError(Exception):
    """A trap ends the launch; it is reported as a violation."""


class CtaLanes:
    """The lanes and warps of one CTA, what they read of the launch, and where they report violations.

    Args:
        threads: of the CTA, a multiple of 32.
        cta: coordinates of the CTA.
        grid: number of CTAs along each axis.
        number: the CTA's place in the grid.
        parameters: bytes of each parameter by its PTX name.
        log: takes violations.
        counters: takes executed figures.
    """

    def __init__(
        self,
        threads: int,
        cta: tuple[int, int, int],
        grid: tuple[int, int, int],
        number: int,
        parameters: Mapping[str, bytes],
        log: ViolationLog,
        counters: LaunchCounters,
    ) -> None:
        self.threads, self.warps = threads, threads // WARP_LANES
        self.cta, self.grid, self.number = cta, grid, number
        self.parameters, self.log = parameters, log
        self.counters = counters
        self.lane = np.arange(threads)
        self.warp = self.lane // WARP_LANES
        self.carry: Array = np.zeros(threads, np.bool_)  # the carry flag of each lane

    def report(
        self,
        kind: Kind,
        line: int,
        detail: str = "",
        *,
        tensor: str = "",
        shared_address: int | None = None,
        warp: int | None = None,
    ) -> None:
        """Adds a violation of this CTA; repeats at the same PTX line are counted."""
        self.log.add(
            kind, line, detail, tensor=tensor, shared_address=shared_address, cta=self.cta, warp=warp
        )

    def all_ones(self, width: int, count: int) -> list[Array]:
        """`count` registers of `width` bytes, all bits set: what a lane that may not load gets."""
        return [np.full(self.threads, 2 ** (8 * width) - 1, UNSIGNED[8 * width]) for _ in range(count)]

    def active(self, mask: Mask) -> Array:
        """Numbers of the active lanes."""
        return self.lane if mask is None else np.flatnonzero(mask)

    def active_warps(self, mask: Mask, line: int) -> Array:
        """Numbers of the warps that take part in a warp instruction; reports those that lack lanes."""
        if mask is None:
            return np.arange(self.warps)
        by_warp = mask.reshape(self.warps, WARP_LANES)
        some, every = by_warp.any(1), by_warp.all(1)
        partial = np.flatnonzero(some & ~every)
        if len(partial):
            self.report(Kind.PARTIAL_WARP, line, f"warps {partial.tolist()}", warp=int(partial[0]))
        return np.flatnonzero(some)

    def special(self, name: str, width: int) -> Array:
        """The value of a special register such as %tid.x or %laneid."""
        stem, _, letter = name.partition(".")
        axis = "xyz".index(letter) if letter else 0
        value: Any = 0
        if stem == "%tid" and axis == 0:
            value = self.lane
        elif stem == "%ctaid":
            value = self.cta[axis]
        elif stem == "%nctaid":
            value = self.grid[axis]
        elif stem == "%ntid":
            value = self.threads if axis == 0 else 1
        elif stem == "%laneid":
            value = self.lane % WARP_LANES
        elif stem == "%warpid":
            value = self.warp
        elif stem == "%cluster_nctaid":
            value = 1
        return np.broadcast_to(np.asarray(value), (self.threads,)).astype(UNSIGNED[width])

    def parameter(self, name: str, offset: int, size: int) -> Array:
        """`size` bytes of a kernel parameter, the same in all lanes."""
        raw = self.parameters[name][offset : offset + size]
        return np.full(self.threads, int.from_bytes(raw, "little"), UNSIGNED[8 * size])

    def check_divisor(self, divisor: Array, mask: Mask, line: int) -> None:
        """Reports integer divisions by zero."""
        zero = (divisor == 0) if mask is None else (divisor == 0) & mask
        if zero.any():
            self.report(Kind.DIVISION, line, f"{int(zero.sum())} lanes", warp=int(self.warp[zero][0]))

    def trap(self, mask: Mask, line: int) -> None:
        """Reports lanes that reach a trap instruction or a failed assertion, which end the launch.

        Raises:
            TrapError: there are such lanes.
        """
        lanes = self.active(mask)
        if len(lanes):
            self.report(Kind.TRAP, line, f"{len(lanes)} lanes", warp=int(self.warp[lanes[0]]))
            raise TrapError
