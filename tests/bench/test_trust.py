"""Why a run cannot be trusted: each reason at its limit, by hand."""

import math

import pytest
from decodetax.harness.bench.compare_command import comparison_text
from decodetax.harness.bench.comparison import compare_runs
from decodetax.harness.bench.html_report import html_report
from decodetax.harness.bench.report_command import markdown_report, run_text
from decodetax.harness.bench.summary import sentences
from decodetax.harness.bench.trust import ceiling_ratio, warnings_of
from decodetax.harness.core.gap import Interval
from decodetax.harness.core.records import Ceiling
from hand_made import SMALL_MATMUL, ceilings, gap, ok_row, run_record


def timed_ceiling(*rounds_s, kind="read_bandwidth", dtype=None):
    """A ceiling of these samples in each round."""
    samples_s = [sample_s for samples_s in rounds_s for sample_s in samples_s]
    rate = {"flop_per_s" if kind == "matmul" else "bandwidth_bytes_per_s": 1e9}
    return Ceiling(
        kind=kind,
        provenance="measured",
        dtype=dtype,
        samples_s=samples_s,
        work={"bytes_read": 100, "operations": 100},
        rounds=[number for number, samples_s in enumerate(rounds_s) for _ in samples_s],
        **rate,
    )


def gap_known_to(half):
    """A gap of 10 whose interval has this half-width over its geometric mean: sinh of its logarithm."""
    factor = math.exp(math.asinh(half))
    return gap(gap_interval=Interval(low=10 / factor, high=10 * factor))


def test_an_undisturbed_run_has_no_warnings():
    quiet = [(1.0, 1.2), (1.4,), (1.3, 1.1)]
    run = run_record(
        rows=[ok_row(SMALL_MATMUL, samples_s=(1.0, 1.1, 1.2))],
        gaps=[gap(), gap_known_to(0.19)],
        ceilings=[*ceilings(), timed_ceiling(*quiet, kind="copy_bandwidth")],
        other_load=0.05,
    )
    assert warnings_of(run) == []
    assert warnings_of(run_record()) == []


def test_wide_gaps_are_counted_and_the_widest_is_named():
    wide = [gap(batch=8, gap_interval=Interval(low=5.0, high=15.5)), gap_known_to(0.21), gap()]
    assert warnings_of(run_record(gaps=wide)) == [
        "2 of 3 gaps are not known to within 20%: at batch 8 and context 16 the 95% interval is 5 to 15.5"
    ]


@pytest.mark.parametrize(("load", "told"), [(None, []), (0.1, []), (0.104, ["other processes used 10%"])])
def test_load_of_other_processes(load, told):
    found = warnings_of(run_record(other_load=load))
    assert found == [f"the machine was disturbed: {text} of the cores" for text in told]


def test_samples_that_scatter():
    # Of three samples 0, x and -x the deviation is x.
    def run(x):
        return run_record(rows=[ok_row(SMALL_MATMUL, samples_s=[math.exp(log) for log in (0.0, x, -x)])])

    assert warnings_of(run(0.249)) == []
    assert warnings_of(run(0.3)) == ["the machine was disturbed: samples scatter by 30%"]


@pytest.mark.parametrize(
    ("rounds_s", "ratio"),
    [
        ([(1.0, 9.0), (1.6,), (2.0, 1.4)], 1.6),
        ([(1.0,), (9.0,)], 1.0),
        ([(1.0,)] * 5 + [(9.0,)], 1.0),
        ([(1.0,)] * 4 + [(9.0,)] * 2, 9.0),
        ([(1.0,)] * 4 + [(9.0,)], 9.0),
    ],
    ids=["fastest calls", "two rounds", "one of six", "two of six", "one of five"],
)
def test_ratio_of_the_rounds_of_a_ceiling(rounds_s, ratio):
    assert ceiling_ratio(timed_ceiling(*rounds_s)) == pytest.approx(ratio)


def test_ceilings_that_change_between_rounds_are_named():
    moved = timed_ceiling((1.0,), (2.1,), (1.0,), kind="matmul", dtype="fp32")
    kept = timed_ceiling((1.0,), (2.0,), (1.0,))
    assert warnings_of(run_record(ceilings=[moved, kept])) == [
        "the machine was disturbed: the fp32 matmul changed by a factor of 2.1 between rounds"
    ]


def test_a_ceiling_without_rounds_does_not_change():
    assert ceiling_ratio(ceilings()[0]) == 1.0


def fast_run(share):
    """A run whose row, of 142 bytes, reaches this share of 1e8 bytes/s; its matmul ceiling is far above."""
    return run_record(rows=[ok_row(SMALL_MATMUL, samples_s=(1.42e-6 / share,))], ceilings=ceilings())


def test_a_row_above_its_ceiling_is_told_and_marked_everywhere():
    run = fast_run(1.0501)
    told = f"1 row is above 105% of a measured ceiling, which was measured too low: {SMALL_MATMUL.id} torch"
    assert warnings_of(run) == [f"{told} reaches 105%"]
    assert f"Not to be trusted: {told}" in " ".join(run_text(run, wide=False).split())
    assert "105%  above" in run_text(run, wide=True)
    assert run.to_json()["rows"][0]["figures"]["above_measured_ceiling"] is True
    page = html_report({"a": run}, ())
    assert "Not to be trusted" in page
    assert ">above<" in page
    assert "Not to be trusted:\n\n- 1 row is above 105%" in markdown_report({"a": run}, ())


def test_a_row_within_5_percent_of_its_ceiling_is_not_marked():
    run = fast_run(1.0499)
    assert warnings_of(run) == []
    assert "above" not in run_text(run, wide=True)
    assert run.to_json()["rows"][0]["figures"]["above_measured_ceiling"] is False


def test_a_row_contradicts_the_ceiling_that_bounds_it():
    run = fast_run(1.2)
    read, matmul = run.ceilings
    assert [len(run.rows_above(ceiling)) for ceiling in (read, matmul)] == [1, 0]
    # 210 operations at 1e8 take 2.1 us, 142 bytes at 1e9 take 0.142 us.
    run.ceilings = ceilings(bandwidth_bytes_per_s=1e9, flop_per_s=1e8)
    assert [len(run.rows_above(ceiling)) for ceiling in run.ceilings] == [0, 1]


def test_a_balance_point_from_a_ceiling_that_a_row_contradicts_is_qualified():
    assert next(sentences(fast_run(1.0))).startswith("This device balances at 10 FLOP per byte")
    assert next(sentences(fast_run(1.2))) == (
        "The balance point of this device is not known: its ceilings give 10 FLOP per byte in bf16, but "
        "a row is above them, so a ceiling was measured too low."
    )
    assert "points above it show that it was measured too low" in html_report({"a": fast_run(1.2)}, ())


def test_a_run_cut_short_says_so():
    run = run_record(late="the time limit of 8 s was over in round 3 of 10")
    assert warnings_of(run) == ["the run was cut short: the time limit of 8 s was over in round 3 of 10"]


def test_no_control_character_of_a_file_is_in_a_warning():
    run = fast_run(2.0)
    run.late = "\x1b[2J\nlate"
    run.rows = [ok_row(SMALL_MATMUL, "a\x1b]0;b\x07\nc", samples_s=(1e-9,))]
    for line in warnings_of(run):
        assert line.isprintable()


@pytest.mark.parametrize("side", ["before", "after"])
def test_compare_gives_no_verdict_beside_other_processes(side):
    rounds = {"rounds": (0, 1, 2, 3)}
    runs = {
        name: run_record(rows=[ok_row(SMALL_MATMUL, samples_s=(second, second, second, second), **rounds)])
        for name, second in (("before", 1.0), ("after", 2.0))
    }
    assert compare_runs(*runs.values()).regressions
    runs[side].other_load = 0.5
    found = compare_runs(*runs.values())
    told = f"the machine was disturbed {side}: other processes used 50% of the cores"
    assert (found.rows[0].verdict, found.rows[0].reason) == ("not sure", told)
    assert found.disturbed == (told,)
    text = comparison_text(found, tuple(runs.values()), ("a", "b"))
    assert f"No verdicts: {told}." in " ".join(text.split())
