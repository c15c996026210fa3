"""Float8 in kernels: to float16 and from float32, also on GPUs without e4m3 instructions (before 8.9)."""

from __future__ import annotations

import triton
import triton.language as tl

from .interpreter import patch_interpreter

patch_interpreter()

E4M3_BITS_FACTOR = 256.0
"""`to_float16` of e4m3 bits is too small by this: the exponent biases of float16 and e4m3 differ by 8."""


@triton.jit  # type: ignore[untyped-decorator]
def to_float16(x: tl.tensor) -> tl.tensor:
    """8-bit elements as float16, which holds their values exactly; uint8 are the bits of float8 e4m3.

    The bits move to their place in float16: the sign stays in front, exponent and mantissa follow behind one
    exponent bit that stays 0. The result is too small by E4M3_BITS_FACTOR. The code of NaN becomes the
    largest value, 1.875: only that overflows when multiplied by 36000, and infinity times 0 is NaN.
    """
    if x.dtype == tl.uint8:
        moved = (x.to(tl.int8, bitcast=True).to(tl.int16) << 7) & -0x4001
        small = moved.to(tl.float16, bitcast=True)
        x = small + small * 36000.0 * 0.0
    return x.to(tl.float16)


@triton.jit  # type: ignore[untyped-decorator]
def from_float32(x: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """float32 in the dtype of an output; float8 saturates: it has no value for what is too large.

    uint8 are the bits of e4m3, rounded to nearest here. NaN stays NaN.
    """
    if dtype == tl.uint8:
        x = _e4m3_bits(x)
    elif dtype == tl.float8e4nv:
        x = _saturated(x, 448.0)
    elif dtype == tl.float8e5:
        x = _saturated(x, 57344.0)
    return x.to(dtype)


@triton.jit  # type: ignore[untyped-decorator]
def _saturated(x: tl.tensor, largest: tl.constexpr) -> tl.tensor:
    x = tl.where(x > largest, largest, x)
    return tl.where(x < -largest, -largest, x)


@triton.jit  # type: ignore[untyped-decorator]
def _e4m3_bits(x: tl.tensor) -> tl.tensor:
    """The e4m3 codes of float32 values, as int32."""
    size = tl.minimum(tl.abs(x), 448.0)
    bits = size.to(tl.int32, bitcast=True)
    # Normal values: round 23 mantissa bits to 3, with carry into the exponent; its bias falls from 127 to 7.
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 codes count steps of 2^-9, the distance of float32 values at 2^14.
    subnormal = (size + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    code = tl.where(size < 0.015625, subnormal, normal)
    code = tl.where(x == x, code, 0x7F)  # noqa: PLR0124  (NaN)
    return code | tl.where(x.to(tl.int32, bitcast=True) < 0, 0x80, 0)
