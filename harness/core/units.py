"""Figures as text, for people."""


def si(value: float) -> str:
    """Four digits and a decimal prefix, for a unit to follow: 1234567 is "1.235 M"."""
    for prefix, unit in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= unit:
            return f"{value / unit:.4g} {prefix}"
    return f"{value:.4g} "


def number(value: float) -> str:
    """Four digits, and all of those before the point: never an exponent for a large one."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def seconds(value: float) -> str:
    """Four digits in s, ms or us."""
    for name, unit in (("s", 1.0), ("ms", 1e-3)):
        if value >= unit:
            return f"{value / unit:.4g} {name}"
    return f"{value / 1e-6:.4g} us"
