"""Numbers as people write them."""

import math

_PREFIXES = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))


def number(value: float, digits: int = 4) -> str:
    """A number with `digits` significant digits, and all digits before the point: 1,810, 282.4, 0.012.

    Only numbers below 0.0001 have an exponent.
    """
    if not math.isfinite(value):
        return str(value)
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if abs(float(text)) >= 10 ** (digits - 1) else text


def si(value: float, digits: int = 4) -> str:
    """A number with a decimal prefix, for a unit to follow: 1234567 is "1.235 M"."""
    for prefix, unit in _PREFIXES:
        if abs(value) >= unit:
            return f"{number(value / unit, digits)} {prefix}"
    return f"{number(value, digits)} "


def seconds(value: float, digits: int = 4) -> str:
    """A time in s, ms or us."""
    for name, unit in (("s", 1.0), ("ms", 1e-3)):
        if abs(value) >= unit:
            return f"{number(value / unit, digits)} {name}"
    return f"{number(value / 1e-6, digits)} us"
