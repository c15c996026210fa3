"""Student's t against printed tables, and Holm's correction by hand."""

import math

import pytest
from decodetax.harness.core.significance import holm, incomplete_beta, t_point, t_tail
from hypothesis import given
from hypothesis import strategies as st

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
def test_points_are_those_of_the_table(freedom, tail, t):
    assert t_point(tail, freedom) == pytest.approx(t, abs=5.1e-4)
    assert t_tail(t, freedom) == pytest.approx(tail, rel=2e-3)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, 7.0, 1e3, 1e9])
def test_tails_that_have_a_closed_form(t):
    # 1 degree of freedom: Cauchy; 2: 1/2 - t / (2 sqrt(2 + t^2)), without its cancellation.
    assert t_tail(t, 1) == pytest.approx(math.atan2(1, t) / math.pi, rel=1e-12)
    root = math.sqrt(2 + t * t)
    assert t_tail(t, 2) == pytest.approx(1 / (root * (root + t)), rel=1e-12)


def test_many_degrees_of_freedom_are_nearly_normal():
    assert t_point(0.025, 1e7) == pytest.approx(1.959964, abs=1e-5)


@given(st.floats(-50, 50), st.floats(1, 200))
def test_tails_of_both_sides_are_one_together(t, freedom):
    assert t_tail(t, freedom) + t_tail(-t, freedom) == pytest.approx(1, abs=1e-12)


@given(st.floats(1e-6, 0.49), st.floats(1, 200))
def test_the_point_is_the_tail_turned_round(tail, freedom):
    assert t_tail(t_point(tail, freedom), freedom) == pytest.approx(tail, rel=1e-9)


@pytest.mark.parametrize("tail", [0, 0.5, 1, -0.1, math.nan])
def test_a_share_that_is_no_tail_is_refused(tail):
    with pytest.raises(ValueError, match=r"^tail: is"):
        t_point(tail, 3)


@pytest.mark.parametrize(
    ("a", "b", "x", "expected"),
    [
        pytest.param(1, 1, 0.3, 0.3, id="uniform"),
        pytest.param(2, 3, 0.0, 0.0, id="nothing"),
        pytest.param(2, 3, 1.0, 1.0, id="all"),
        # P(at least 2 of 4 below x) = 6 x^2 (1-x)^2 + 4 x^3 (1-x) + x^4 at 1/2: 11/16
        pytest.param(2, 3, 0.5, 11 / 16, id="a binomial tail"),
        pytest.param(2, 3, 0.9, 0.9963, id="above the turning point"),
        pytest.param(0.5, 0.5, 0.25, 1 / 3, id="arcsine: 2 / pi x asin(1 / 2)"),
    ],
)
def test_incomplete_beta_by_hand(a, b, x, expected):
    assert incomplete_beta(a, b, x) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "x"), [(0, 1, 0.5), (1, -1, 0.5), (1, 1, 1.5), (1, 1, -0.1), (1, 1, math.nan)]
)
def test_incomplete_beta_outside_its_domain_is_refused(a, b, x):
    with pytest.raises(ValueError, match=r"^a, b, x: are"):
        incomplete_beta(a, b, x)


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
