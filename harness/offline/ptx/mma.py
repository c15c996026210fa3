"""mma.sync: products on tensor cores of a warp, and the element types of tensor cores.

Products are exact in float64 and their sum is rounded once; the rounding inside tensor cores is not modelled.
"""

import numpy as np

from .formats import E4M3_VALUES, E5M2_VALUES, bf16_values, tf32_values
from .lanes import Array, CtaLanes, Mask
from .unsupported import UnsupportedPtxError

ACCUMULATORS: dict[str, type[np.generic]] = {
    "f16": np.float16,
    "f32": np.float32,
    "f64": np.float64,
    "s32": np.int32,
}
ELEMENT_BYTES = {"f16": 2, "bf16": 2, "tf32": 4, "e4m3": 1, "e5m2": 1, "s8": 1, "u8": 1, "f64": 8}


def element_values(raw: Array, kind: str) -> Array:
    """Float64 of elements given as bytes [..., bytes of some elements]; the last axis becomes elements.

    Raises:
        UnsupportedPtxError: an element type that this executor does not know.
    """
    raw = np.ascontiguousarray(raw)
    if kind == "tf32":
        return tf32_values(raw.view(np.uint32)).astype(np.float64)
    if kind == "f64":
        return raw.view(np.float64)
    if kind == "f16":
        return raw.view(np.float16).astype(np.float64)
    if kind == "bf16":
        return bf16_values(raw.view(np.uint16)).astype(np.float64)
    if kind in {"e4m3", "e5m2"}:
        return np.asarray((E4M3_VALUES if kind == "e4m3" else E5M2_VALUES)[raw]).astype(np.float64)
    if kind in {"s8", "u8"}:
        return (raw.view(np.int8) if kind == "s8" else raw).astype(np.float64)
    raise UnsupportedPtxError(f"matrix elements of {kind}")


def accumulated(registers: list[Array], kind: str, warps: int) -> Array:
    """Float64 [warp, g, t, row block, 2] of accumulators: lane 4 g + t holds columns 2 t and 2 t + 1."""
    words = np.ascontiguousarray(np.stack([each.reshape(warps, 8, 4) for each in registers], -1))
    return words.view(ACCUMULATORS[kind]).astype(np.float64).reshape(warps, 8, 4, -1, 2)


def accumulators(values: Array, kind: str) -> list[Array]:
    """The registers of `accumulated`; sums of integers wrap around."""
    if kind == "s32":
        values = values.astype(np.int64)
    numbers = values.astype(ACCUMULATORS[kind])
    word = np.uint64 if kind == "f64" else np.uint32
    words = np.ascontiguousarray(numbers.reshape(numbers.shape[0] * 32, -1)).view(word)
    return [np.ascontiguousarray(words[:, r]) for r in range(words.shape[1])]


class Mma:
    """mma.sync of one CTA; a call is the instruction for all of its warps at once."""

    def __init__(self, lanes: CtaLanes) -> None:
        self._lanes = lanes

    def __call__(
        self,
        types: tuple[str, str, str],
        a: list[Array],
        b: list[Array],
        c: list[Array],
        mask: Mask,
        line: int,
    ) -> list[Array]:
        """The registers of A B + C, shape m16n8kK, or m8n8kK where A has as many registers as B.

        Args:
            types: of A, B and C.
            a: registers of A; lane 4 g + t holds rows g and g + 8.
            b: registers of B; lane 4 g + t holds column g.
            c: registers of C; lane 4 g + t holds columns 2 t and 2 t + 1 of rows g and g + 8.
            mask: active lanes.
            line: of the PTX.
        """
        if not len(self._lanes.active_warps(mask, line)):
            return c
        a_type, b_type, c_type = types
        warps, k_registers = self._lanes.warps, len(b)
        row_blocks = len(a) // k_registers
        left, right = self._elements(a, a_type), self._elements(b, b_type)
        per_register = left.shape[-1]
        k = 4 * per_register * k_registers
        # Register r of A: rows from 8 (r % row_blocks), columns from (r // row_blocks) 4 per_register on.
        left = left.reshape(warps, 8, 4, k_registers, row_blocks, per_register)
        left = left.transpose(0, 4, 1, 3, 2, 5).reshape(warps, 8 * row_blocks, k)
        # Register r of B: column g, rows from r 4 per_register + t per_register on.
        right = right.transpose(0, 3, 2, 4, 1).reshape(warps, k, 8)
        product = (left @ right).reshape(warps, row_blocks, 8, 4, 2).transpose(0, 2, 3, 1, 4)
        return accumulators(product + accumulated(c, c_type, warps), c_type)

    def _elements(self, registers: list[Array], kind: str) -> Array:
        """Float64 [warp, g, t, register, element of the register]."""
        words = np.stack([each.reshape(self._lanes.warps, 8, 4) for each in registers], -1)
        return element_values(np.ascontiguousarray(words)[..., None].view(np.uint8), kind)
