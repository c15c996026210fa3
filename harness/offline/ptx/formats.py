"""Number formats of registers as numpy has them, and those it lacks: bfloat16, float8 and TF32."""

from collections.abc import Callable

import numpy as np

from .lanes import Array

_SMALLEST_NORMAL_FLOAT32 = np.float32(2.0**-126)


def flush_to_zero(x: Array) -> Array:
    """Float32 with subnormal numbers replaced by zeros of their sign (`.ftz`)."""
    return np.where(np.abs(x) < _SMALLEST_NORMAL_FLOAT32, np.copysign(np.float32(0), x), x)


def bf16_values(codes: Array) -> Array:
    """Float32 of bfloat16 codes (uint16)."""
    return (codes.astype(np.uint32) << np.uint32(16)).view(np.float32)


def bf16_codes(x: Array) -> Array:
    """Codes of the nearest bfloat16, ties to even, of float16, float32 or float64; rounded once."""
    if x.dtype == np.float16:
        x = x.astype(np.float32)
    if x.dtype == np.float64:
        x = _round_to_odd(x)
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)


def _round_to_odd(x: Array) -> Array:
    """Float32 of float64, rounded to odd, so that a later rounding is as if it were the only one."""
    y = x.astype(np.float32)
    bits = y.view(np.uint32)
    inexact = (y.astype(np.float64) != x) & np.isfinite(y)
    away = inexact & (np.abs(y.astype(np.float64)) > np.abs(x))
    bits = np.where(away, bits - np.uint32(1), bits)
    return np.where(inexact, bits | np.uint32(1), bits).view(np.float32)


def bf16_codes_toward_zero(x: Array) -> Array:
    """Codes of bfloat16 of float32, truncated."""
    return np.where(np.isnan(x), np.uint32(0x7FFF), x.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def f16_codes_toward_zero(x: Array) -> Array:
    """Codes of float16 of float32, truncated; a finite value never becomes infinite."""
    y = x.astype(np.float16)
    away = (np.abs(y.astype(np.float32)) > np.abs(x)) & ~np.isinf(x)
    return np.where(away, y.view(np.uint16) - np.uint16(1), y.view(np.uint16))


def round_directed(exact: Array, mode: str, kind: type[np.generic]) -> Array:
    """Numbers of a numpy type from longer ones: "rz" toward zero, "rm" down, "rp" up."""
    nearest = exact.astype(kind)
    rounded = nearest.astype(np.longdouble)
    wrong, toward = {
        "rz": (np.abs(rounded) > np.abs(exact), 0.0),
        "rm": (rounded > exact, -np.inf),
        "rp": (rounded < exact, np.inf),
    }[mode]
    return np.where(wrong, np.nextafter(nearest, np.full_like(nearest, toward)), nearest)


def _float8_values(exponent_bits: int, mantissa_bits: int, bias: int, *, has_infinity: bool) -> Array:
    """The value of each of the 256 codes, float32."""
    values = np.zeros(256, np.float32)
    top = (1 << exponent_bits) - 1
    last = (1 << mantissa_bits) - 1
    for code in range(256):
        exponent, mantissa = code >> mantissa_bits & top, code & last
        value = (mantissa / (1 << mantissa_bits) + (1 if exponent else 0)) * 2.0 ** (max(exponent, 1) - bias)
        if exponent == top and has_infinity:
            value = np.nan if mantissa else np.inf
        elif exponent == top and mantissa == last:
            value = np.nan
        values[code] = -value if code & 0x80 else value
    return values


E4M3_VALUES = _float8_values(4, 3, 7, has_infinity=False)
E5M2_VALUES = _float8_values(5, 2, 15, has_infinity=True)


def _float8_encoder(values: Array, largest: int) -> Callable[[Array], Array]:
    """A function from floats to the nearest codes, ties to even, finite values saturating (`.satfinite`)."""
    positive = values[: largest + 1].astype(np.float64)

    def encode(x: Array) -> Array:
        x = x.astype(np.float64)
        size = np.minimum(np.abs(np.where(np.isnan(x), 0, x)), positive[-1])
        above = np.clip(np.searchsorted(positive, size), 1, largest)
        below = above - 1
        middle = (positive[below] + positive[above]) / 2
        even = np.where(below % 2 == 0, below, above)
        code = np.where(size > middle, above, np.where(size < middle, below, even))
        code = np.where(np.signbit(x), code | 0x80, code)
        return np.where(np.isnan(x), 0x7F, code).astype(np.uint8)

    return encode


e4m3_codes = _float8_encoder(E4M3_VALUES, 0x7E)
e5m2_codes = _float8_encoder(E5M2_VALUES, 0x7B)


def tf32_values(bits: Array) -> Array:
    """What a tensor core takes of a float32's bits: the low 13 are ignored."""
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def tf32_nearest_away(bits: Array) -> Array:
    """Bits of float32 rounded to TF32, ties away from zero (`.rna`)."""
    return np.where(np.isnan(bits.view(np.float32)), bits, (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000))


def tf32_nearest_even(bits: Array) -> Array:
    """Bits of float32 rounded to TF32, ties to even (`.rn`)."""
    odd = (bits >> np.uint32(13)) & np.uint32(1)
    rounded = (bits + np.uint32(0xFFF) + odd) & np.uint32(0xFFFFE000)
    return np.where(np.isnan(bits.view(np.float32)), bits, rounded)


def pack_halves(low: Array, high: Array) -> Array:
    """Words of 32 bits from two of 16."""
    return low.astype(np.uint32) | (high.astype(np.uint32) << np.uint32(16))


def round_to_integer(x: Array, mode: str) -> Array:
    """Floats rounded to whole numbers: "rzi" toward zero, "rni" nearest, "rmi" down, "rpi" up."""
    rounding = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}[mode]
    return np.asarray(rounding(x))


def float_to_int(x: Array, mode: str, kind: type) -> Array:
    """Integers of a numpy type from floats, saturating; NaN gives 0."""
    info = np.iinfo(kind)
    x = round_to_integer(x.astype(np.float64), mode)
    too_large = x >= float(info.max)  # as a float64, 2^63 - 1 is 2^63
    in_range = np.where(np.isnan(x) | too_large, 0.0, np.maximum(x, float(info.min)))
    return np.where(too_large, info.max, in_range.astype(kind)).astype(kind)
