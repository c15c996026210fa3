"""Medians and intervals against brute-force bootstraps; Student's t with printed tables; Holm by hand."""

import itertools
import math
import random
import statistics
from collections import Counter

import pytest
from decodetax.harness.core.statistics import (
    Level,
    Summary,
    autocorrelation,
    holm,
    level,
    round_medians,
    spread,
    summarise,
    t_quantile,
    t_tail,
    winsorised,
    winsorised_level,
)
from hypothesis import given
from hypothesis import strategies as st

RESAMPLES = 20_000
# Four standard errors of a share of 2.5% in that many resamples: 4 x sqrt(0.025 x 0.975 / 20000).
SHARE_BOUND = 0.0045

SAMPLES_S = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=60)


def quantile(values, share):
    """The smallest value that at least this share of the values does not pass."""
    counts, seen = Counter(values), 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= share * len(values):
            return value
    raise AssertionError("no values")


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6])
def test_interval_is_that_of_all_resamples(size):
    samples = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0][:size]
    resamples = list(itertools.product(samples, repeat=size))
    low = quantile([statistics.median_low(resample) for resample in resamples], 0.025)
    high = quantile([statistics.median_high(resample) for resample in resamples], 0.975)
    assert summarise(samples) == Summary(median=statistics.median(samples), low=low, high=high)


@pytest.mark.parametrize("size", [7, 9, 10, 25, 40, 101])
def test_interval_is_that_of_many_random_resamples(size):
    draw = random.Random(size)  # noqa: S311  (no secret)
    samples = [draw.lognormvariate(0, 1) for _ in range(size)]
    found = summarise(samples)
    resamples = [draw.choices(samples, k=size) for _ in range(RESAMPLES)]
    lows = [statistics.median_low(resample) for resample in resamples]
    highs = [statistics.median_high(resample) for resample in resamples]
    for bound, medians, share in ((found.low, lows, 0.025), (found.high, highs, 0.975)):
        assert sum(median < bound for median in medians) / RESAMPLES <= share + SHARE_BOUND
        assert sum(median <= bound for median in medians) / RESAMPLES >= share - SHARE_BOUND


@pytest.mark.parametrize("size", [2, 10, 40])
def test_interval_of_an_even_count_errs_on_the_wide_side(size):
    draw = random.Random(size)  # noqa: S311  (no secret)
    samples = [draw.gauss(10, 1) for _ in range(size)]
    found = summarise(samples)
    medians = [statistics.median(draw.choices(samples, k=size)) for _ in range(RESAMPLES)]
    assert sum(median < found.low for median in medians) / RESAMPLES <= 0.025 + SHARE_BOUND
    assert sum(median > found.high for median in medians) / RESAMPLES <= 0.025 + SHARE_BOUND


@pytest.mark.parametrize(
    ("samples", "median", "low", "high"),
    [
        pytest.param([3.0], 3.0, 3.0, 3.0, id="one sample is its own interval"),
        pytest.param([1.0, 3.0], 2.0, 1.0, 3.0, id="two"),
        pytest.param([4.0, 1.0, 2.0], 2.0, 1.0, 4.0, id="three: the whole range"),
        pytest.param([5.0] * 9, 5.0, 5.0, 5.0, id="all equal"),
        # P(binomial(7, 1/7) >= 4) = 1.0% < 2.5%, P(binomial(7, 2/7) >= 4) = 10% : the second smallest
        pytest.param([7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 4.0, 2.0, 6.0, id="seven: without the extremes"),
        # P(binomial(9, 1/9) >= 5) = 0.15%, P(binomial(9, 2/9) >= 5) = 3.0%
        pytest.param([*range(1, 10)], 5, 2, 8, id="nine: the second of each end"),
    ],
)
def test_interval_by_hand(samples, median, low, high):
    assert summarise(samples) == Summary(median=median, low=low, high=high)


def test_interval_of_a_thousand_samples_is_narrow():
    # Normal approximation of ranks: 500.5 -+ 1.96 x sqrt(1000) / 2 = 470 and 531.
    found = summarise([float(rank) for rank in range(1, 1001)])
    assert found.median == 500.5
    assert 468 <= found.low <= 472
    assert 529 <= found.high <= 533


def test_one_outlier_does_not_change_the_interval():
    steady = [1.0] * 20
    assert summarise([*steady, 1000.0]) == Summary(median=1.0, low=1.0, high=1.0)


def test_rejects_no_samples():
    with pytest.raises(ValueError, match=r"^samples: is empty, needs at least one$"):
        summarise([])


@given(SAMPLES_S)
def test_interval_holds_the_median_and_ends_at_samples(samples):
    found = summarise(samples)
    assert found.median == statistics.median(samples)
    assert found.low <= found.median <= found.high
    assert {found.low, found.high} <= set(samples)


@given(SAMPLES_S, st.randoms(use_true_random=False))
def test_order_does_not_matter(samples, randoms):
    shuffled = list(samples)
    randoms.shuffle(shuffled)
    before = list(shuffled)
    assert summarise(shuffled) == summarise(samples)
    assert shuffled == before


@given(SAMPLES_S)
def test_unit_does_not_matter(samples):
    found = summarise(samples)
    assert summarise([4 * sample for sample in samples]) == Summary(
        median=4 * found.median, low=4 * found.low, high=4 * found.high
    )


@given(SAMPLES_S)
def test_interval_is_symmetric_in_rank(samples):
    mirrored = summarise([-sample for sample in samples])
    found = summarise(samples)
    ordered = sorted(samples)
    # Ties aside, the bootstrap of a median does not know up from down.
    if len(set(ordered)) == len(ordered):
        assert ordered.index(found.low) == len(ordered) - 1 - ordered.index(found.high)
        assert mirrored.low == -found.high


def test_medians_of_rounds_are_those_of_their_samples():
    assert round_medians([5.0, 1.0, 3.0, 9.0, 7.0], [1, 0, 0, 1, 1]) == [2.0, 7.0]
    with pytest.raises(ValueError, match="rounds: 1 of 2 samples"):
        round_medians([1.0, 2.0], [0])


def test_interval_of_several_rounds_by_hand():
    # Medians 10, 12, 14: deviation 2, t of 2 degrees of freedom 4.303, so 12 +- 4.303 x 2 / sqrt(3).
    samples, rounds = [10.0] * 50 + [12.0] * 50 + [14.0] * 50, [0] * 50 + [1] * 50 + [2] * 50
    half = 4.303 * 2 / 3**0.5
    assert summarise(samples, rounds) == Summary(median=12.0, low=10.0, high=pytest.approx(12 + half))
    wide = [7.0, *samples[1:]]
    assert summarise(wide, rounds).low == pytest.approx(max(7.0, 12 - half))


def test_rounds_that_agree_do_not_widen_the_interval():
    samples = [1.0, 2.0, 3.0, 4.0] * 5
    assert summarise(samples, [number // 4 for number in range(20)]) == summarise(samples)


@given(SAMPLES_S, st.data())
def test_rounds_never_narrow_the_interval_nor_move_the_median(samples, data):
    rounds = data.draw(st.lists(st.integers(0, 6), min_size=len(samples), max_size=len(samples)))
    plain, found = summarise(samples), summarise(samples, rounds)
    assert found.median == plain.median
    assert 0 < min(samples) <= found.low <= plain.low
    assert found.high >= plain.high


def test_drift_makes_rounds_count_less_by_hand():
    # Rounds at -1.5 d to 1.5 d: steps d^2, variance 5/3 d^2, so r = 1 - 0.6 / 2 = 0.7. Then 4 rounds count as
    # 4 / (1 + 2 (0.75 x 0.7 + 0.5 x 0.49 + 0.25 x 0.343)) = 1.48, so 2: a variance of 1.25 d^2 / (2 - 1).
    logs = [-0.015, -0.005, 0.005, 0.015]
    assert autocorrelation([logs]) == pytest.approx(0.7)
    found = level(logs, 0.7)
    assert found.variance == pytest.approx(1.25e-4)
    assert found.freedom == pytest.approx(3 * 0.51 / 1.49)
    # At r = 0.1 as 4 / (1 + 2 (0.075 + 0.005 + 0.00025)) = 3.4468.
    assert level(logs, 0.1).variance == pytest.approx(1.25e-4 / 2.4468, rel=1e-4)
    assert level(logs, 0.0).variance == pytest.approx(1.25e-4 / 3)


def test_level_of_ten_rounds_leaves_out_the_slowest_and_the_fastest():
    # 0 to 9 without 0 and 9: 8 rounds of mean 4.5. Winsorised 1, 1, 2 ... 7, 8, 8: squares of 3.5, 3.5, 2.5,
    # 1.5, 0.5 twice: 43 x 2 / 2 = 2 x (12.25 x 2 + 6.25 + 2.25 + 0.25) = 66.5, over 8 x 7 (Yuen).
    logs = [7.0, 2.0, 9.0, 4.0, 0.0, 5.0, 8.0, 1.0, 6.0, 3.0]
    assert level(logs, 0.0) == Level(mean=4.5, variance=pytest.approx(66.5 / 56), freedom=7)
    assert level([*logs[:2], 900.0, *logs[3:]], 0.0) == level(logs, 0.0)
    t = 2.365
    assert level(logs, 0.0).half_width(0.05) == pytest.approx(t * math.sqrt(66.5 / 56), rel=1e-3)


def test_level_of_five_rounds_leaves_out_none():
    assert level([0.0] * 4 + [5.0], 0.0).mean == 1.0
    assert level([0.0] * 5 + [6.0], 0.0).mean == 0.0


def test_level_of_winsorised_rounds_has_the_variance_of_the_trimmed_ones():
    logs = [7.0, 2.0, 9.0, 4.0, 0.0, 5.0, 8.0, 1.0, 6.0, 3.0]
    assert winsorised_level(winsorised(logs, 1), 0.3) == level(logs, 0.3)  # symmetric: the means agree too


def test_interval_of_a_sum_of_winsorised_rows_misses_in_at_most_5_percent():
    # Three rows of ten rounds: what they share, their own noise, and one disturbed round each.
    draw = random.Random(5)  # noqa: S311  (no secret)
    missed = 0
    for _ in range(1000):
        shared = [draw.gauss(0, 0.5) for _ in range(10)]
        rows = [[value + draw.gauss(0, 1) for value in shared] for _ in range(3)]
        for row in rows:
            row[draw.randrange(10)] += draw.gauss(0, 20)
        found = winsorised_level(
            [sum(values) for values in zip(*(winsorised(row, 1) for row in rows), strict=True)], 0.0
        )
        missed += abs(found.mean) > found.half_width(0.05)
    # Two standard errors: 2 x sqrt(0.05 x 0.95 / 1000) = 1.4%.
    assert missed / 1000 <= 0.064


def shares_missed(draws, rounds=10, count=4000):
    """The share of `count` 95% intervals of rounds of deviation 1 that miss their mean of 0."""
    missed = 0
    for _ in range(count):
        found = level([draws() for _ in range(rounds)], 0.0)
        missed += abs(found.mean) > found.half_width(0.05)
    return missed / count


@pytest.mark.parametrize("rounds", [3, 5, 6, 10, 20])
def test_interval_of_a_level_misses_the_mean_of_normal_rounds_in_5_percent(rounds):
    draw = random.Random(rounds)  # noqa: S311  (no secret)
    # Four standard errors of a share of 5% in 4000: 4 x sqrt(0.05 x 0.95 / 4000) = 1.4%.
    assert shares_missed(lambda: draw.gauss(0, 1), rounds) == pytest.approx(0.05, abs=0.014)


def test_trimmed_level_is_more_precise_than_the_mean_where_one_round_in_ten_is_disturbed():
    draw = random.Random(7)  # noqa: S311  (no secret)
    runs = [[draw.gauss(0, 1) for _ in range(9)] + [draw.gauss(0, 20)] for _ in range(500)]
    trimmed = statistics.pstdev(level(logs, 0.0).mean for logs in runs)
    assert trimmed < 0.25 * statistics.pstdev(map(statistics.fmean, runs))
    widths = [level(logs, 0.0).half_width(0.05) for logs in runs]
    assert statistics.median(widths) < 1.1  # 0.72 without the disturbed round
    missed = sum(abs(level(logs, 0.0).mean) > width for logs, width in zip(runs, widths, strict=True))
    assert missed / 500 < 0.05


def test_autocorrelation_is_the_mean_of_the_series_and_ignores_short_and_constant_ones():
    rising, alternating = [0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 0.0, 1.0]
    # Rising: 1 over 5/3, so 0.6. Alternating: 1 over 1/3, so 3. Their mean is 1.8.
    assert autocorrelation([rising, alternating, [0.0, 1.0], [2.0] * 5]) == pytest.approx(0.1)
    assert autocorrelation([alternating]) == 0.0
    assert autocorrelation([]) == 0.0


def test_spread_is_the_deviation_of_few_samples():
    assert spread([0.0, 1.0, 2.0]) == 1.0


@pytest.mark.parametrize("count", [10, 20, 37])
def test_one_outlier_does_not_change_the_spread(count):
    draw = random.Random(count)  # noqa: S311  (no secret)
    values = [draw.gauss(0, 1) for _ in range(count)]
    far = max(range(count), key=values.__getitem__)
    assert spread([value if at != far else 1e6 for at, value in enumerate(values)]) == spread(values)


@pytest.mark.parametrize("count", [9, 10, 15, 20, 200])
def test_spread_of_normal_values_is_their_deviation(count):
    draw = random.Random(count)  # noqa: S311  (no secret)
    found = [spread([draw.gauss(5, 2) for _ in range(count)]) for _ in range(2000)]
    assert statistics.fmean(found) == pytest.approx(2, rel=0.06)  # the factor is that of many values


def test_spread_sees_work_that_doubles_one_call_in_nine():
    assert spread([math.log(2.0 if number % 9 == 0 else 1.0) for number in range(180)]) > 0.25
    assert spread([math.log(2.0 if number % 11 == 0 else 1.0) for number in range(220)]) == 0


def test_winsorised_values_keep_their_order():
    assert winsorised([3.0, 9.0, 1.0, 4.0, 2.0], 1) == [3.0, 4.0, 2.0, 4.0, 2.0]
    assert winsorised([3.0, 9.0], 0) == [3.0, 9.0]


# Upper points of Student's t: NIST/SEMATECH e-Handbook of Statistical Methods, section 1.3.6.7.2.
TABLE = {
    1: {0.10: 3.078, 0.05: 6.314, 0.025: 12.706, 0.01: 31.821, 0.005: 63.657},
    2: {0.10: 1.886, 0.05: 2.920, 0.025: 4.303, 0.01: 6.965, 0.005: 9.925},
    5: {0.10: 1.476, 0.05: 2.015, 0.025: 2.571, 0.01: 3.365, 0.005: 4.032},
    10: {0.10: 1.372, 0.05: 1.812, 0.025: 2.228, 0.01: 2.764, 0.005: 3.169},
    30: {0.10: 1.310, 0.05: 1.697, 0.025: 2.042, 0.01: 2.457, 0.005: 2.750},
    100: {0.10: 1.290, 0.05: 1.660, 0.025: 1.984, 0.01: 2.364, 0.005: 2.626},
}
PRINTED = [(freedom, tail, t) for freedom, row in TABLE.items() for tail, t in row.items()]


@pytest.mark.parametrize(("freedom", "tail", "t"), PRINTED)
def test_t_quantiles_are_those_of_the_printed_table(freedom, tail, t):
    assert t_quantile(tail, freedom) == pytest.approx(t, abs=5.1e-4)
    assert t_tail(t, freedom) == pytest.approx(tail, rel=2e-3)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, 7.0, 1e3, 1e9])
def test_t_tails_with_a_closed_form(t):
    # 1 degree of freedom: Cauchy; 2: 1/2 - t / (2 sqrt(2 + t^2)), without its cancellation.
    assert t_tail(t, 1) == pytest.approx(math.atan2(1, t) / math.pi, rel=1e-12)
    root = math.sqrt(2 + t * t)
    assert t_tail(t, 2) == pytest.approx(1 / (root * (root + t)), rel=1e-12)


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        pytest.param([], [], id="none"),
        pytest.param([0.04], [0.04], id="one is as it was"),
        # The worked example of Wikipedia's "Holm-Bonferroni method": 4 hypotheses of 0.01, 0.04, 0.03, 0.005
        # at 5%: the fourth (0.005 <= 0.05/4) and the first (0.01 <= 0.05/3) are found; 0.03 > 0.05/2 is not.
        pytest.param([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02], id="textbook"),
        pytest.param([0.5, 0.6], [1.0, 1.0], id="never above 1"),
        pytest.param([0.02, 0.02, 0.02], [0.06, 0.06, 0.06], id="equals count alike"),
        pytest.param([0.0, 1.0], [0.0, 1.0], id="the ends"),
    ],
)
def test_holm_by_hand(p_values, corrected):
    assert holm(p_values) == pytest.approx(corrected)


@given(st.lists(st.floats(0, 1), max_size=30))
def test_holm_keeps_the_order_and_lies_between_one_and_bonferroni(p_values):
    corrected = holm(p_values)
    for p, found in zip(p_values, corrected, strict=True):
        assert p <= found <= min(1, len(p_values) * p) or found == pytest.approx(p)
    ranked = sorted(zip(p_values, corrected, strict=True))
    assert [found for _, found in ranked] == sorted(corrected)
