"""What a list of samples says: its median and how sure that median is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Median of samples and the bounds of its 95% interval, in the samples' unit."""

    median: float
    low: float
    high: float


def _binomial_at_least(trials: int, probability: float, successes: int) -> float:
    """P(X >= successes) of a binomial variable."""
    if probability in (0.0, 1.0):
        return float(successes <= trials * probability)
    log_p, log_q = math.log(probability), math.log1p(-probability)
    return math.fsum(
        math.exp(
            math.lgamma(trials + 1)
            - math.lgamma(k + 1)
            - math.lgamma(trials - k + 1)
            + k * log_p
            + (trials - k) * log_q
        )
        for k in range(successes, trials + 1)
    )


def _bootstrap_quantile(ordered: Sequence[float], rank: int, quantile: float) -> float:
    """Quantile of the bootstrap distribution of the `rank`-th smallest of `ordered` (from 1), exactly.

    The rank-th smallest of n draws with replacement is at most ordered[k - 1] when at least `rank` draws
    fall among the k smallest, whose number is binomial(n, k / n) (Hutson and Ernst, J. R. Stat. Soc. B 62,
    2000). No resampling, so no random numbers.
    """
    n = len(ordered)
    low, high = 1, n
    while low < high:
        middle = (low + high) // 2
        if _binomial_at_least(n, middle / n, rank) >= quantile:
            high = middle
        else:
            low = middle + 1
    return ordered[low - 1]


def summarise(samples: Sequence[float]) -> Summary:
    """Median of `samples` (any unit, at least one) with its bootstrapped 95% percentile interval.

    The interval is that of infinitely many resamplings, found in closed form. For an even number of samples
    the lower bound is the lower middle sample's and the upper bound the upper one's, so it errs to wide.

    Raises:
        ValueError: no samples.
    """
    if not samples:
        raise ValueError("samples: is empty, needs at least one")
    ordered = sorted(samples)
    n = len(ordered)
    lower_rank, upper_rank = (n + 1) // 2, n // 2 + 1
    return Summary(
        median=(ordered[lower_rank - 1] + ordered[upper_rank - 1]) / 2,
        low=_bootstrap_quantile(ordered, lower_rank, 0.025),
        high=_bootstrap_quantile(ordered, upper_rank, 0.975),
    )
