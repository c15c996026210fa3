"""Verdicts on runs of random numbers with noise, shifts between rounds and drift. Seeds are fixed."""

import itertools
from unittest import mock

import pytest
from decodetax.harness.bench import changes as judging
from decodetax.harness.bench import comparison as comparing
from decodetax.harness.bench.comparison import compare_runs
from drifting_runs import Machine, case, drifting_runs

MACHINES = {
    "noisy": Machine(),
    "shifting rounds": Machine(round_shift=0.05),
    "walking": Machine(drift_step=0.02),
    "walking, little noise": Machine(noise=0.01, row_shift=0.003, round_shift=0.003, drift_step=0.01),
    "rising": Machine(trend=0.2, drift_step=0.0),
}
QUIET = Machine(noise=0.01, row_shift=0.003, round_shift=0.003, drift_step=0.002)


def wrong(comparison):
    return [row for row in comparison.rows if row.verdict in {"faster", "slower"}]


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_twenty_pairs_of_the_same_code_have_no_regression(machine):
    pairs = [compare_runs(*drifting_runs(seed, machine=machine)) for seed in range(20)]
    assert list(itertools.chain.from_iterable(found.regressions for found in pairs)) == []


@pytest.mark.parametrize(
    ("name", "rounds", "rows"),
    [
        pytest.param("noisy", 5, 60, marks=pytest.mark.slow),
        ("noisy", 3, 15),
        ("walking, little noise", 5, 15),
    ],
)
def test_of_two_hundred_pairs_fewer_than_5_percent_have_a_wrong_verdict(name, rounds, rows):
    pairs = (drifting_runs(seed, machine=MACHINES[name], rounds=rounds, rows=rows) for seed in range(200))
    assert sum(bool(wrong(compare_runs(*pair))) for pair in pairs) / 200 < 0.05


def test_a_planted_slowdown_of_10_percent_is_found_and_nothing_else():
    for seed in range(20):
        found = compare_runs(*drifting_runs(seed, machine=QUIET, slowdown={7: 1.1, 30: 1.1}))
        assert {row.case for row in found.regressions} == {case(7).id, case(30).id}
        assert len(wrong(found)) == 2


def test_a_slowdown_of_10_percent_of_all_rows_is_found():
    # Their rounds shift together, so that of all rows at once a pair may be unsure.
    found = [
        compare_runs(*drifting_runs(seed, machine=QUIET, slowdown=dict.fromkeys(range(60), 1.1)))
        for seed in range(20)
    ]
    assert sum(len(each.regressions) for each in found) / (20 * 60) > 0.9


def test_a_speedup_is_found_and_is_no_regression():
    found = compare_runs(*drifting_runs(3, machine=QUIET, slowdown={7: 0.8}))
    assert [(row.case, row.verdict) for row in wrong(found)] == [(case(7).id, "faster")]
    assert not found.worse


def test_slowdown_under_the_limit_is_reported_and_passes():
    still = Machine(noise=0.003, row_shift=0.001, round_shift=0.001, drift_step=0.0005)
    found = compare_runs(*drifting_runs(3, machine=still, slowdown={7: 1.04}))
    assert [(row.case, row.verdict) for row in wrong(found)] == [(case(7).id, "slower")]
    assert not found.worse


def false_alarms(machine, **sizes):
    """Share of 50 pairs of the same code in which a row is called faster or slower."""
    pairs = (drifting_runs(seed, machine=machine, **sizes) for seed in range(50))
    return sum(bool(wrong(compare_runs(*pair))) for pair in pairs) / 50


def test_the_correction_of_p_is_needed():
    noisy = Machine(noise=0.03, row_shift=0.03, round_shift=0.0, drift_step=0.0)
    with mock.patch.object(judging, "SAME_WITHIN", 0.0):
        assert false_alarms(noisy) < 0.05
        with mock.patch.object(judging, "holm", list):
            assert false_alarms(noisy) > 0.5


def test_the_ceilings_and_the_round_autocorrelation_rounds_are_needed():
    walking = Machine(noise=0.002, row_shift=0.001, round_shift=0.001, drift_step=0.03)
    sizes = {"rounds": 12, "rows": 20}
    assert false_alarms(walking, **sizes) < 0.05
    with (
        mock.patch.object(comparing, "controls_of", return_value=()),
        mock.patch.object(comparing, "round_autocorrelation", return_value=0.0),
    ):
        assert false_alarms(walking, **sizes) > 0.2
