"""Statistics of samples: medians with their intervals, Student's t, and Holm's correction."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import special


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Median of samples and the bounds of its 95% interval, in the samples' unit."""

    median: float
    low: float
    high: float


def round_medians(samples: Sequence[float], rounds: Sequence[int]) -> list[float]:
    """The median of each round's samples, in the order of rounds; `rounds` has the round of each sample.

    Raises:
        ValueError: not as many rounds as samples.
    """
    if len(rounds) != len(samples):
        raise ValueError(f"rounds: {len(rounds)} of {len(samples)} samples")
    by_round: dict[int, list[float]] = {}
    for sample, number in zip(samples, rounds, strict=True):
        by_round.setdefault(number, []).append(sample)
    return [statistics.median(by_round[number]) for number in sorted(by_round)]


def summarise(samples: Sequence[float], rounds: Sequence[int] = ()) -> Summary:
    """Median of `samples` (any unit, at least one) with its 95% interval.

    Within one round it is the percentile bootstrap interval of the median, in the limit of infinitely many
    resamplings. For an even number of samples the lower bound is that of the lower middle sample and the
    upper bound that of the upper one, so the interval is rather too wide than too narrow.

    Samples of one round share the state of the machine, so they say little about the next round. With
    several rounds the interval is widened to the median +- t s / sqrt(rounds), where s is the standard
    deviation of the rounds' medians and t is Student's t; its lower bound is at least the smallest sample.

    Args:
        samples: samples in the order they were taken.
        rounds: the round of each sample; empty if all are of one round.

    Raises:
        ValueError: there are no samples, or not as many rounds as samples.
    """
    if not samples:
        raise ValueError("samples: is empty, needs at least one")
    ordered, n = sorted(samples), len(samples)
    lower_rank, upper_rank = (n + 1) // 2, n // 2 + 1
    median = (ordered[lower_rank - 1] + ordered[upper_rank - 1]) / 2
    low = _bootstrap_quantile(ordered, lower_rank, 0.025)
    high = _bootstrap_quantile(ordered, upper_rank, 0.975)
    medians = round_medians(samples, rounds) if rounds else []
    if len(medians) > 1:
        # Three decimals and at most 30 degrees of freedom, as in printed tables: earlier versions did so, and
        # the intervals of a run file must not change.
        t = round(t_quantile(0.025, min(len(medians) - 1, 30)), 3)
        half = t * statistics.stdev(medians) / math.sqrt(len(medians))
        low, high = min(low, max(median - half, ordered[0])), max(high, median + half)
    return Summary(median=median, low=low, high=high)


def _bootstrap_quantile(ordered: Sequence[float], rank: int, quantile: float) -> float:
    """Quantile of the bootstrap distribution of the `rank`-th smallest of `ordered` (from 1), exactly.

    The rank-th smallest of n draws with replacement is at most ordered[k - 1] when at least `rank` draws fall
    among the k smallest. Their number is binomial(n, k / n), so the probability is the incomplete beta
    function I_(k/n)(rank, n - rank + 1), and k follows from its inverse (Hutson and Ernst, J. R. Stat. Soc.
    B 62, 2000).
    """
    n = len(ordered)
    k: int = math.ceil(n * special.betaincinv(rank, n - rank + 1, quantile))
    return ordered[k - 1]


def t_tail(t: float, freedom: float) -> float:
    """P(T > t) of Student's t distribution with `freedom` degrees of freedom."""
    return float(special.stdtr(freedom, -t))


def t_quantile(tail: float, freedom: float) -> float:
    """The t for which P(T > t) = `tail` in Student's t distribution with `freedom` degrees of freedom."""
    return -float(special.stdtrit(freedom, tail))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for multiple tests by Holm's step-down method; the order stays.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none becomes smaller than one before
    it, or larger than 1. Comparing them with 0.05 keeps the chance of any false finding among all below 5%,
    however the values depend on one another (Holm, Scandinavian Journal of Statistics 6, 1979).
    """
    corrected = [0.0] * len(p_values)
    least = 0.0
    ascending = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for rank, index in enumerate(ascending):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = least
    return corrected
