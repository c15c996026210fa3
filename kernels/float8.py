"""Float8 to float16 inside kernels, also on GPUs without float8 e4m3 instructions (before 8.9)."""

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
