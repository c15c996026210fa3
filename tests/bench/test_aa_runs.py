"""The summary of pairs of runs of the same code, on runs of random numbers."""

import json
import math
from dataclasses import replace

import aa_runs
import pytest
from click.testing import CliRunner
from decodetax.harness.bench.comparison import compare_runs
from decodetax.harness.core.gap import Interval
from drifting_runs import Machine, case, drifting_runs
from hand_made import gap
from msgspec import convert
from timed_process import TimedProcess

QUIET = Machine(noise=0.005, row_shift=0.002, round_shift=0.002, drift_step=0.001)


def test_twenty_pairs_of_the_same_code_show_no_regression():
    found = aa_runs.findings([compare_runs(*drifting_runs(seed)) for seed in range(20)])
    assert found.regressions == ()
    assert found.pairs == 20
    assert sum(found.verdicts.values()) == 20 * 60
    assert not {"slower", "faster"} & set(found.verdicts)
    # Two levels of 5 rounds: a round's median has 0.03 x 1.25 / sqrt(5) = 1.7% of noise, 1% of its own and 1%
    # of the round's shift, 2.2% together; two means of 5 differ by 1.4%; the level's walk adds about 0.9%.
    assert 0.012 < found.spread < 0.024
    assert found.missed < 0.05


def with_gap(factor, low, high, run=None):
    """A run whose only gap is 10 times the factor, with this interval."""
    output_s = {name: factor * value for name, value in gap().output_parts_s.items()}
    interval = None if low is None else Interval(low=low, high=high)
    run = run or drifting_runs(1, rows=3)[0]
    return replace(
        run,
        settings={**run.settings, "batches": (1,), "contexts": (16,)},
        gaps=[gap(output_parts_s=output_s, gap_interval=interval)],
        timed_share=0.6,
    )


def test_gaps_agree_where_their_intervals_explain_the_difference():
    # The sides that face each other are +4% and -3%.
    reach = math.exp(math.hypot(math.log(1.04), math.log(0.97)))
    assert reach == pytest.approx(1.0510, abs=1e-4)
    before = with_gap(1.0, 5.0, 10.4)
    for factor, agrees in ((0.999 * reach, True), (1.001 * reach, False)):
        after = with_gap(factor, 9.7 * factor, 99.0)
        for pair in ((before, after), (after, before)):
            found = aa_runs.gap_findings([pair])
            assert (found.places, found.agree, found.overlap) == (1, float(agrees), 1.0)
            assert found.farthest == pytest.approx(factor if pair[1] is after else 1 / factor)


def test_widths_of_gaps_are_shares_of_the_gap():
    pairs = [
        (with_gap(1.0, 9.0, 11.0), with_gap(1.0, 9.5, 10.5)),
        (with_gap(1.0, 9.0, 13.0), with_gap(2.0, 18.0, 22.0)),
    ]
    found = aa_runs.gap_findings(pairs)
    assert found.half_width == pytest.approx(0.1)
    assert found.widest == pytest.approx(0.2)
    assert (found.places, found.agree, found.overlap) == (2, 0.5, 0.5)


def test_a_gap_without_an_interval_agrees_with_nothing():
    found = aa_runs.gap_findings([(with_gap(1.0, 9.0, 11.0), with_gap(1.0, None, None))])
    assert (found.agree, found.overlap, found.widest) == (0.0, 0.0, math.inf)


def test_a_gap_that_is_missing_agrees_with_nothing():
    before, after, empty = (with_gap(1.0, 9.5, 10.5) for _ in range(3))
    before.gaps.append(replace(before.gaps[0], batch=5))
    found = aa_runs.gap_findings([(before, after)])
    assert (found.places, found.agree, found.overlap) == (2, 0.5, 0.5)
    empty.gaps = []
    empty.settings = {**empty.settings, "batches": (3, 5), "contexts": (7,)}
    found = aa_runs.gap_findings([(empty, empty)])
    assert (found.places, found.agree, found.half_width, found.farthest) == (2, 0.0, math.inf, 1.0)


@pytest.mark.parametrize(
    ("second", "broken"),
    [
        (with_gap(1.0, 9.5, 10.5), False),
        (with_gap(1.5, 14.5, 15.5), True),
        (with_gap(1.0, 8.0, 13.0), True),
    ],
    ids=["agree", "apart", "wide"],
)
def test_broken_promises_are_found(second, broken):
    report = aa_runs.report_of([(with_gap(1.0, 9.5, 10.5), second)], [11.0, 13.0])
    assert report.broken == broken
    assert report.times == aa_runs.Times(
        median_s=12.0, longest_s=13.0, timed_share=0.6, least_timed_share=0.6
    )


def test_the_script_compares_runs_of_this_machine(monkeypatch, tmp_path):
    runs = iter(with_gap(1.0, 9.5, 10.5, run) for run in drifting_runs(3, count=6, rows=3))
    started = []

    def run_of_a_process(options, target):
        started.append(options)
        target.write_text(json.dumps(next(runs).to_json()), encoding="utf-8")
        return TimedProcess(wall_s=12.5, peak_bytes=1, minor_faults=1)

    monkeypatch.setattr(aa_runs, "timed_run", run_of_a_process)
    kept = ["--folder", str(tmp_path / "kept"), "--json", str(tmp_path / "found.json")]
    assert CliRunner().invoke(aa_runs.main, ["--pairs", "2", *kept]).exit_code == 0
    assert started == [("--quick",)] * 4
    result = CliRunner().invoke(aa_runs.main, ["--pairs", "3", *kept, "--", "--batch", "3"])
    assert result.exit_code == 0
    assert started[4:] == [("--batch", "3")] * 2
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["pair 1 of 3", "pair 2 of 3", "pair 3 of 3"]
    assert "0 sure regressions in 3 pairs of the same code (must be 0)" in lines
    assert "seconds of a run: median 12.5, longest 12.5" in lines
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert aa_runs.text_of(convert(found, aa_runs.Report)).splitlines() == lines[3:]


def test_reports_a_planted_slowdown():
    pairs = [drifting_runs(1, machine=QUIET), drifting_runs(2, machine=QUIET, slowdown={4: 1.5})]
    found = aa_runs.findings([compare_runs(*pair) for pair in pairs])
    [line] = found.regressions
    assert line.startswith(f"pair 2: {case(4).id} torch 1.5")
    assert found.largest == pytest.approx(1.5, rel=0.02)


def test_older_runs_without_rounds_have_no_intervals():
    runs = drifting_runs(1, rows=3, rounds=1)
    found = aa_runs.findings([compare_runs(*runs)])
    assert found.verdicts == {"not sure": 3}
    assert found.missed == 0
