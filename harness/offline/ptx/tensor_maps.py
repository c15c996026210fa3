"""Tensor maps: what TMA knows of a tensor, as a host descriptor or as 128 bytes that the kernel writes.

The hardware's layout of those bytes is not public; this executor has its own, `FIELDS`.
"""

import struct
from dataclasses import dataclass

import numpy as np

from .lanes import Array

TENSOR_MAP_BYTES = 128
FIELDS: dict[str, tuple[int, int]] = {
    "global_address": (0, 8),
    "rank": (8, 4),
    "elemtype": (12, 4),
    "swizzle_mode": (16, 4),
    "interleave_layout": (20, 4),
    "fill_mode": (24, 4),
    "box_dim": (28, 4),
    "global_dim": (48, 4),
    "element_stride": (68, 4),
    "global_stride": (88, 8),
}
"""Offset and bytes of each field of `tensormap.replace`; those with an index per dimension are arrays."""

# PTX ISA, "Values for .elemtype field" of tensormap.replace; those of flushed and TF32 numbers as float32.
ELEMENT_TYPES = (
    *("u8", "u16", "u32", "s32", "u64", "s64"),
    *("f16", "f32", "f32", "f64", "bf16", "f32", "f32"),
)


@dataclass(frozen=True)
class TensorMap:
    """What TMA knows of a tensor; the innermost dimension last.

    Attributes:
        start: address of the first element.
        shape: in elements.
        strides: in bytes.
        box: elements of one copy along each dimension.
        element_type: as PTX names it.
        swizzle: 0 for none, 1, 2, 3 for patterns of 32, 64, 128 bytes.
        nan_outside: what lies outside the shape is NaN instead of zero.
    """

    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    element_type: str
    swizzle: int
    nan_outside: bool = False

    @property
    def element_bytes(self) -> int:
        """Size of an element."""
        return int(self.element_type.lstrip("bfsu")) // 8

    @property
    def box_bytes(self) -> int:
        """Bytes of one copy."""
        return int(np.prod(self.box)) * self.element_bytes

    def addresses(self, at: list[int]) -> tuple[Array, Array]:
        """Addresses of a box's elements in order, and whether they are inside the tensor's shape.

        Args:
            at: coordinates of the box's first element, the innermost dimension last.
        """
        axes = [np.arange(size) + start for size, start in zip(self.box, at, strict=True)]
        inside = np.ones(self.box, np.bool_)
        address = np.full(self.box, self.start, np.int64)
        index = np.meshgrid(*axes, indexing="ij")
        for place, size, stride in zip(index, self.shape, self.strides, strict=True):
            inside &= (place >= 0) & (place < size)
            address += place * stride
        return address.reshape(-1), inside.reshape(-1)


def decoded(raw: bytes) -> TensorMap | None:
    """The tensor map in 128 bytes that a kernel wrote; None if they are none."""

    def field(name: str, count: int) -> list[int]:
        offset, size = FIELDS[name]
        return list(struct.unpack_from(f"<{count}{'Q' if size == 8 else 'I'}", raw, offset))

    rank = field("rank", 1)[0] + 1
    element_type, swizzle = field("elemtype", 1)[0], field("swizzle_mode", 1)[0]
    element_strides = field("element_stride", rank) if rank <= 5 else []
    known = rank <= 5 and element_type < len(ELEMENT_TYPES) and swizzle <= 3
    if not known or set(element_strides) != {1} or field("interleave_layout", 1)[0]:
        return None
    kind = ELEMENT_TYPES[element_type]
    return TensorMap(
        start=field("global_address", 1)[0],
        shape=tuple(reversed(field("global_dim", rank))),
        strides=(*reversed(field("global_stride", rank - 1)), int(kind.lstrip("bfsu")) // 8),
        box=tuple(reversed(field("box_dim", rank))),
        element_type=kind,
        swizzle=swizzle,
        nan_outside=bool(field("fill_mode", 1)[0]),
    )


def swizzled(address: Array, mode: int) -> Array:
    """Where TMA and wgmma put what would lie at a shared address; mode 0 to 3 for 0, 32, 64 and 128 bytes."""
    return np.asarray(address ^ (((address >> 7) & ((1 << mode) - 1)) << 4))
