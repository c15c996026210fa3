"""mma.sync: products on tensor cores of a warp, and the element types of tensor cores.

Products are exact in float64 and their sum is rounded once; the rounding inside tensor cores is not modelled.
"""

import numpy as np

from .formats import E4M3_VALUES, E5M2_VALUES, bf16_values, tf32_values
from .lanes import Array, CtaLanes, Mask
from .unsupported import UnsupportedPtxError

_ACCUMULATORS = {"f32": np.float32, "s32": np.int32}
ELEMENT_BYTES = {"f16": 2, "bf16": 2, "tf32": 4, "e4m3": 1, "e5m2": 1, "s8": 1, "u8": 1}


def element_values(raw: Array, kind: str) -> Array:
    """Float64 of elements given as bytes [..., bytes of some elements]; the last axis becomes elements.

    Raises:
        UnsupportedPtxError: an element type that this executor does not know.
    """
    raw = np.ascontiguousarray(raw)
    if kind == "tf32":
        return tf32_values(raw.view(np.uint32)).astype(np.float64)
    if kind == "f16":
        return raw.view(np.float16).astype(np.float64)
    if kind == "bf16":
        return bf16_values(raw.view(np.uint16)).astype(np.float64)
    if kind in {"e4m3", "e5m2"}:
        return np.asarray((E4M3_VALUES if kind == "e4m3" else E5M2_VALUES)[raw]).astype(np.float64)
    if kind in {"s8", "u8"}:
        return (raw.view(np.int8) if kind == "s8" else raw).astype(np.float64)
    raise UnsupportedPtxError(f"matrix elements of {kind}")


class Mma:
    """mma.sync of one CTA; `call` is the instruction for all of its warps at once."""

    def __init__(self, lanes: CtaLanes) -> None:
        self._lanes = lanes

    def __call__(
        self,
        shape: str,
        types: tuple[str, str, str],
        a: list[Array],
        b: list[Array],
        c: list[Array],
        mask: Mask,
        line: int,
    ) -> list[Array]:
        """The registers of A B + C, shape m16n8kK.

        Args:
            shape: as PTX names it.
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
        if c_type not in _ACCUMULATORS:
            raise UnsupportedPtxError(f"mma that sums in {c_type}")
        warps, k_registers = self._lanes.warps, len(b)
        left, right = self._elements(a, a_type), self._elements(b, b_type)
        per_register = left.shape[-1]
        k = 4 * per_register * k_registers
        if shape != f"m16n8k{k}" or len(a) != 2 * k_registers:
            raise UnsupportedPtxError(f"mma {shape} with {len(a)} and {len(b)} registers")
        # Register r of A holds row g + 8 (r & 1), columns from (r >> 1) 4 per_register + t per_register on.
        left = left.reshape(warps, 8, 4, k_registers, 2, per_register)
        left = left.transpose(0, 4, 1, 3, 2, 5).reshape(warps, 16, k)
        # Register r of B holds column g, rows from r 4 per_register + t per_register on.
        right = right.transpose(0, 3, 2, 4, 1).reshape(warps, k, 8)
        kind = _ACCUMULATORS[c_type]
        sums = np.stack([each.view(kind).reshape(warps, 8, 4) for each in c], -1).astype(np.float64)
        sums = sums.reshape(warps, 8, 4, 2, 2).transpose(0, 3, 1, 2, 4).reshape(warps, 16, 8)
        result = (left @ right + sums).reshape(warps, 2, 8, 4, 2)
        result = result.transpose(0, 2, 3, 1, 4).reshape(self._lanes.threads, 4).astype(kind)
        return [np.ascontiguousarray(result[:, r]).view(np.uint32) for r in range(4)]

    def _elements(self, registers: list[Array], kind: str) -> Array:
        """Float64 [warp, g, t, register, element of the register]."""
        words = np.stack([each.reshape(self._lanes.warps, 8, 4) for each in registers], -1)
        return element_values(np.ascontiguousarray(words)[..., None].view(np.uint8), kind)
