"""Instructions that exchange values within a warp: shuffles, reductions, votes and elections."""

from typing import Any

import numpy as np

from .lanes import ELECTED_LANE, WARP_LANES, Array, CtaLanes, Mask
from .unsupported import UnsupportedPtxError

_REDUCTIONS: dict[str, Any] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


class Warps:
    """Exchanges within the warps of one CTA."""

    def __init__(self, lanes: CtaLanes) -> None:
        self._lanes = lanes

    def shuffle(
        self, mode: str, value: Array, by: Array, clamp: Array, mask: Mask, line: int
    ) -> tuple[Array, Array]:
        """shfl.sync: each lane's value from another lane, and whether that lane is in range."""
        self._lanes.active_warps(mask, line)
        lane = (self._lanes.lane % WARP_LANES).astype(np.int64)
        by, clamp = by.astype(np.int64) & 31, clamp.astype(np.int64)
        segment, end = (clamp >> 8) & 31, clamp & 31
        last = (lane & segment) | (end & ~segment & 31)
        source = {
            "up": lane - by,
            "down": lane + by,
            "bfly": lane ^ by,
            "idx": (lane & segment) | (by & ~segment & 31),
        }[mode]
        in_range = source >= last if mode == "up" else source <= last
        source = np.where(in_range, source, lane)
        return value[self._lanes.warp * WARP_LANES + source], in_range

    def reduce(self, operation: str, kind: str, value: Array, mask: Mask, line: int) -> Array:
        """redux.sync: the reduction over a warp, in all of its lanes."""
        self._lanes.active_warps(mask, line)
        if kind == "f32":  # from sm_100 on
            floats = np.ascontiguousarray(value).view(np.float32).reshape(self._lanes.warps, WARP_LANES)
            largest = (np.fmax if operation == "max" else np.fmin).reduce(floats, axis=1)
            return np.repeat(largest, WARP_LANES).view(np.uint32)
        numbers = np.int32 if kind == "s32" else np.uint32
        by_warp = np.ascontiguousarray(value).view(numbers).reshape(self._lanes.warps, WARP_LANES)
        result = _REDUCTIONS[operation].reduce(by_warp, axis=1, dtype=numbers)
        return np.repeat(result, WARP_LANES).view(np.uint32)

    def vote(self, mode: str, truth: Array, mask: Mask, _line: int) -> Array:
        """vote.sync: over the active lanes of each warp."""
        active = np.ones(self._lanes.threads, np.bool_) if mask is None else mask
        voted, live = (each.reshape(self._lanes.warps, WARP_LANES) for each in (truth, active))
        if mode == "ballot":
            bits = (voted & live).astype(np.uint32) << np.arange(WARP_LANES, dtype=np.uint32)
            result = bits.sum(1).astype(np.uint32)
        elif mode == "any":
            result = (voted & live).any(1)
        elif mode == "all":
            result = (voted | ~live).all(1)
        else:
            raise UnsupportedPtxError(f"vote.{mode}")
        return np.repeat(result, WARP_LANES)

    def elect(self, mask: Mask, line: int) -> Array:
        """elect.sync: one lane of each warp."""
        self._lanes.active_warps(mask, line)
        return np.asarray(self._lanes.lane % WARP_LANES == ELECTED_LANE)
