"""What a list of samples says: its median and how sure that median is."""

import math
import statistics
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


# Two-sided 95% points of Student's t by degrees of freedom; from 30 on the normal's is within 5%.
_T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def round_medians(samples: Sequence[float], rounds: Sequence[int]) -> list[float]:
    """The median of each round's samples, in the order of rounds; `rounds` holds a number a sample.

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

    Within one round it is the bootstrap's percentile interval, that of infinitely many resamplings, found in
    closed form. For an even number of samples the lower bound is the lower middle sample's and the upper
    bound the upper one's, so it errs to wide.

    Samples of one round share what the machine did then, so that they tell little of the next round. With
    several rounds the interval is widened to the median +- t s / sqrt(rounds), s being the deviation of the
    rounds' medians and t Student's, but to no less than the least sample.

    Args:
        samples: in the order they were taken.
        rounds: of each sample the round it was taken in; all in one when none.

    Raises:
        ValueError: no samples, or not as many rounds.
    """
    if not samples:
        raise ValueError("samples: is empty, needs at least one")
    within = _within_one_round(samples)
    medians = round_medians(samples, rounds) if rounds else []
    if len(medians) < 2:
        return within
    freedom = len(medians) - 1
    t = _T_95[min(freedom, len(_T_95)) - 1]
    half = t * statistics.stdev(medians) / math.sqrt(len(medians))
    return Summary(
        median=within.median,
        low=min(within.low, max(within.median - half, min(samples))),
        high=max(within.high, within.median + half),
    )


def _within_one_round(samples: Sequence[float]) -> Summary:
    ordered = sorted(samples)
    n = len(ordered)
    lower_rank, upper_rank = (n + 1) // 2, n // 2 + 1
    return Summary(
        median=(ordered[lower_rank - 1] + ordered[upper_rank - 1]) / 2,
        low=_bootstrap_quantile(ordered, lower_rank, 0.025),
        high=_bootstrap_quantile(ordered, upper_rank, 0.975),
    )
