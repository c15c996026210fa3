"""Encoding and decoding of bfloat16 and float8 in numpy, which has neither type.

Rounding follows the PTX `cvt` instructions of compiled kernels (PTX ISA, "cvt"): to nearest, ties to even;
bfloat16 overflows to infinity; float8 conversions are `.satfinite`: values that are too large, infinity
included, become the largest finite value. Every NaN becomes the canonical one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Format:
    """A floating-point storage format: the bit fields of its codes.

    Attributes:
        bits: bits of a code; the highest is the sign.
        mantissa_bits: bits of the mantissa, the lowest field.
        bias: exponent bias: the exponent field of the value 1.
        largest: code of the largest finite value.
        overflow: code for magnitudes that are too large.
        nan: code for every NaN.
    """

    bits: int
    mantissa_bits: int
    bias: int
    largest: int
    overflow: int
    nan: int

    def encode(self, values: npt.NDArray[Any], *, toward_zero: bool = False) -> npt.NDArray[Any]:
        """Codes of `values`, rounded to nearest, or toward zero; float16, float32, float64 or integers."""
        with np.errstate(invalid="ignore"):  # a signalling NaN raises it
            exact = values.astype(np.float64)
        size = np.where(np.isfinite(exact), np.abs(exact), 0.0)
        _, exponent = np.frexp(size)  # size = fraction x 2^exponent, fraction in [0.5, 1)
        lowest = 1 - self.bias  # exponent of the smallest normal values and of the subnormal ones
        binade = np.where(size == 0.0, lowest, np.maximum(exponent.astype(np.int64) - 1, lowest))
        steps = np.ldexp(size, (self.mantissa_bits - binade).astype(np.int32))
        steps = np.floor(steps) if toward_zero else np.rint(steps)
        # A mantissa that rounds up to the next power of two carries into the exponent field.
        code = ((binade - lowest) << self.mantissa_bits) + steps.astype(np.int64)
        code = np.where(code > self.largest, self.largest if toward_zero else self.overflow, code)
        code = np.where(np.isinf(exact), self.overflow, code)
        code = np.where(np.signbit(exact), code | (1 << (self.bits - 1)), code)
        return np.where(np.isnan(exact), self.nan, code).astype(np.uint16 if self.bits == 16 else np.uint8)

    def values(self, *, infinity: int | None) -> npt.NDArray[np.float32]:
        """The value of each code. Codes past `largest` are NaN, except `infinity`."""
        sign = 1 << (self.bits - 1)
        code = np.arange(2 * sign)
        field = (code & (sign - 1)) >> self.mantissa_bits
        hidden = np.where(field > 0, 1 << self.mantissa_bits, 0)
        steps = (code & ((1 << self.mantissa_bits) - 1)) + hidden
        size = np.ldexp(steps.astype(np.float64), np.maximum(field, 1) - self.bias - self.mantissa_bits)
        size[(code & (sign - 1)) > self.largest] = np.nan
        if infinity is not None:
            size[(code & (sign - 1)) == infinity] = np.inf
        signed: npt.NDArray[np.float64] = np.where(code & sign, -size, size)
        return signed.astype(np.float32)


BF16 = Format(bits=16, mantissa_bits=7, bias=127, largest=0x7F7F, overflow=0x7F80, nan=0x7FFF)
E4M3 = Format(bits=8, mantissa_bits=3, bias=7, largest=0x7E, overflow=0x7E, nan=0x7F)
E5M2 = Format(bits=8, mantissa_bits=2, bias=15, largest=0x7B, overflow=0x7B, nan=0x7F)
E4M3_VALUES = E4M3.values(infinity=None)
E5M2_VALUES = E5M2.values(infinity=0x7C)


def bf16_codes(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """`BF16.encode` of float32 to nearest, by bit operations for speed: interpreted kernels call it most."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(BF16.nan), rounded).astype(np.uint16)


def bf16_values(codes: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The values of bfloat16 codes, which are the upper halves of float32 codes."""
    return (codes.astype(np.uint32) << np.uint32(16)).view(np.float32)
