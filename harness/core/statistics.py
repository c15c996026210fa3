"""Statistics of samples: medians with their intervals, levels of rounds, Student's t, Holm's correction."""

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from scipy import special

MIN_ROUNDS = 3
"""1 round does not show how rounds differ. With 2 per run, Student's t has 2 degrees of freedom: 2% among 30
rows would be significant only at 24 standard errors, and drift could not be separated from noise."""

ROUNDS_PER_OUTLIER = 6
"""One outlier at either end is expected among so many rounds: of 10 rounds the level leaves out the slowest
and the fastest. With fewer rounds that would cost more than it gains: of 5, 3 would be left."""

SAMPLES_PER_OUTLIER = 10
"""One outlier at either end is expected among so many samples of a row."""


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


@dataclass(frozen=True, kw_only=True)
class Level:
    """Mean of the logarithms of rounds, the variance of that mean, and the variance's degrees of freedom."""

    mean: float
    variance: float
    freedom: float

    def half_width(self, error: float) -> float:
        """Half of the mean's confidence interval, which misses the mean with probability `error`."""
        return t_quantile(error / 2, self.freedom) * math.sqrt(self.variance)


def level(logs: Sequence[float], r: float) -> Level:
    """The level of rounds: their trimmed mean, which one outlier among ROUNDS_PER_OUTLIER does not move.

    Of n rounds the g smallest and g largest are left out, and h = n - 2 g stay. Rounds whose lag-1
    autocorrelation is r are worth m = h / (1 + 2 sum (1 - k / n) r^k) independent ones, at least 2. The
    variance of the mean is n / h times the population variance of the winsorised rounds over m - 1. It has
    (h - 1)(1 - r^2) / (1 + r^2) degrees of freedom, at least 1. At r = 0 these are Yuen's for a trimmed mean
    (Biometrika 61, 1974), and without trimming n, s^2 / n and n - 1. The factor of r is Bayley's and
    Hammersley's (J. R. Stat. Soc. 8, 1946).

    Args:
        logs: the logarithm of each round, in the order of rounds; at least 2.
        r: lag-1 autocorrelation, from 0 to below 1.
    """
    outliers = outlier_count(len(logs))
    found = winsorised_level(winsorised(logs, outliers), r)
    return replace(found, mean=statistics.fmean(sorted(logs)[outliers : len(logs) - outliers]))


def winsorised_level(logs: Sequence[float], r: float) -> Level:
    """The level of rounds whose outliers were winsorised before: of sums of winsorised rows, for instance.

    The trimmed mean of a row changes with each of its rounds as the mean of its winsorised rounds does. So
    does a sum of such means of several rows: its variance follows from the sum of their winsorised rounds,
    round by round. Variance and degrees of freedom are those of `level`.
    """
    n = len(logs)
    kept = n - 2 * outlier_count(n)
    inflation = 1 + 2 * math.fsum((1 - k / n) * r**k for k in range(1, n))
    return Level(
        mean=statistics.fmean(logs),
        variance=n / kept * statistics.pvariance(logs) / (max(2.0, kept / inflation) - 1),
        freedom=max(1.0, (kept - 1) * (1 - r**2) / (1 + r**2)),
    )


def outlier_count(rounds: int) -> int:
    """Rounds at either end that the level of so many rounds leaves out."""
    return rounds // ROUNDS_PER_OUTLIER


def autocorrelation(series: Iterable[Sequence[float]]) -> float:
    """Common lag-1 autocorrelation of several series of rounds, from 0 to below 1.

    It follows from the von Neumann ratio of a series: the mean square of successive differences over the
    variance. The expected ratio is 2 for any number of independent rounds, and smaller if the machine drifts.
    All series share the machine's drift, so their mean ratio is used. Outliers are winsorised, as in `level`.

    Args:
        series: the logarithm of each round, in the order of rounds; those of few rounds are left out.
    """
    ratios = []
    for logs in series:
        values = winsorised(logs, outlier_count(len(logs)))
        if len(values) >= MIN_ROUNDS and statistics.pstdev(values) >= 1e-12:
            steps = [(late - early) ** 2 for early, late in itertools.pairwise(values)]
            ratios.append(statistics.fmean(steps) / statistics.variance(values))
    return min(0.99, max(0.0, 1 - statistics.fmean(ratios) / 2)) if ratios else 0.0


def spread(values: Sequence[float]) -> float:
    """Standard deviation of normal values, which one outlier in SAMPLES_PER_OUTLIER does not change.

    The sample deviation of the winsorised values, over that of a standard normal variable winsorised at the
    same share a of either end: with c its quantile there, its variance is
    1 - 2 a - 2 c phi(c) + 2 a c^2. Values that are disturbed more often than that still count.

    Args:
        values: at least 2.
    """
    outliers = len(values) // SAMPLES_PER_OUTLIER
    deviation = statistics.stdev(winsorised(values, outliers))
    if not outliers:
        return deviation
    share = outliers / len(values)
    c = -float(special.ndtri(share))
    density = math.exp(-(c**2) / 2) / math.sqrt(2 * math.pi)
    return deviation / math.sqrt(1 - 2 * share - 2 * c * density + 2 * share * c**2)


def winsorised(values: Sequence[float], count: int) -> list[float]:
    """The values in their order, the `count` smallest and largest replaced by the next ones."""
    ordered = sorted(values)
    low, high = ordered[count], ordered[len(ordered) - 1 - count]
    return [min(max(value, low), high) for value in values]


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


def winsorised_rounds(samples_s: Sequence[float], rounds: Sequence[int]) -> Mapping[int, float]:
    """Median of each round's samples, outliers winsorised; empty without rounds, as in older files."""
    if not rounds:
        return {}
    medians_s = round_medians(samples_s, rounds)
    kept_s = winsorised(medians_s, outlier_count(len(medians_s)))
    return dict(zip(sorted(set(rounds)), kept_s, strict=True))
