"""Student's t distribution and Holm's correction, by the standard library alone."""

import math
from collections.abc import Sequence
from statistics import NormalDist

MOST_TERMS = 10_000
"""Of a continued fraction, which needs about as many as the root of the degrees of freedom."""


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), for a, b > 0 and x from 0 to 1.

    By its continued fraction (NIST Digital Library of Mathematical Functions 8.17.22), which is quick below
    x = (a + 1) / (a + b + 2); above, I_x(a, b) = 1 - I_(1-x)(b, a) (8.17.4).
    """
    if not (a > 0 and b > 0 and 0 <= x <= 1):
        raise ValueError(f"a, b, x: are {a}, {b}, {x}; must be above 0, above 0, and from 0 to 1")
    if x in (0, 1):
        return float(x)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_front(b, a, 1 - x) / (b * _beta_fraction(b, a, 1 - x))
    return _beta_front(a, b, x) / (a * _beta_fraction(a, b, x))


def _beta_front(a: float, b: float, x: float) -> float:
    """x^a (1 - x)^b / B(a, b)."""
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta)


def _beta_fraction(a: float, b: float, x: float) -> float:
    """1 + d1 / (1 + d2 / (1 + ...)), from the front by Lentz's method (Thompson and Barnett, 1986)."""
    value = numerator = 1.0
    denominator = 0.0
    for term in range(1, MOST_TERMS):
        m = term // 2
        if term % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        denominator = 1 / ((1 + d * denominator) or math.ulp(0.5))
        numerator = (1 + d / numerator) or math.ulp(0.5)
        change = numerator * denominator
        value *= change
        if abs(change - 1) < 1e-15:
            break
    return value


def t_tail(t: float, freedom: float) -> float:
    """P(T > t) of Student's t: half I_x(freedom / 2, 1 / 2) at x = freedom / (freedom + t^2), for t >= 0."""
    half = incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t)) / 2
    return half if t >= 0 else 1 - half


def t_point(tail: float, freedom: float) -> float:
    """The t above which a share `tail` (below a half) of Student's t lies.

    Newton's method from the normal's point, which lies below: the tail is convex there, so that no step
    passes the root.
    """
    if not 0 < tail < 0.5:
        raise ValueError(f"tail: is {tail}, must be above 0 and below 0.5")
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    t = NormalDist().inv_cdf(1 - tail)
    for _ in range(200):
        density = math.exp(log_scale - (freedom + 1) / 2 * math.log1p(t * t / freedom))
        step = (t_tail(t, freedom) - tail) / density
        t += step
        if abs(step) <= 1e-13 * t:
            break
    return t


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for their number by Holm's step-down method; the order stays.

    The smallest of m counts m times, the next m - 1 times, and so on; none falls below one before it, nor
    above 1. Comparing them with 0.05 keeps the chance of any false finding among all below 5%, however the
    values depend on one another (Holm, Scandinavian Journal of Statistics 6, 1979).
    """
    corrected = [0.0] * len(p_values)
    least = 0.0
    ascending = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for rank, index in enumerate(ascending):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = least
    return corrected
