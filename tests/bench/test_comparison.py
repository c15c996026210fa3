"""Comparison of two runs: ratios, intervals and verdicts by hand, and their invariances."""

import math
import random
import statistics
from dataclasses import replace
from unittest import mock

import pytest
from decodetax.harness.bench import comparison as comparing
from decodetax.harness.bench import timer
from decodetax.harness.bench.changes import ERROR, SAME_WITHIN, with_verdicts
from decodetax.harness.bench.comparison import compare_runs
from decodetax.harness.bench.row_comparison import RowChange
from decodetax.harness.core.cases import DecoderLayer
from decodetax.harness.core.records import Ceiling
from drifting_runs import case
from hand_made import CPU, GPU, SMALL_MATMUL, TINY, ceilings, failed_row, gap, ok_row, run_record
from hypothesis import given
from hypothesis import strategies as st

# Rounds that alternate resemble one another not at all, so that 4 of them count as 4.
ALTERNATING = (-1, 1, -1, 1)
# Of 4 such rounds a side of deviation a: two variances of a^2 / 3; Student's t of 6 degrees of freedom.
ERROR_OF_A = math.sqrt(2 / 3)
T_6 = 2.446912


def rounds_row(logs, one=SMALL_MATMUL, **changes):
    """A row of a sample a round, of which these are the logarithms."""
    return ok_row(one, samples_s=[math.exp(log) for log in logs], rounds=tuple(range(len(logs))), **changes)


def run_of(*rows, **changes):
    return run_record(rows=list(rows), **changes)


def pair(shift, a=0.01, before=None, after=None):
    """Runs of one row of 4 rounds: before about 1 s, after exp(shift) s."""
    return (
        run_of(rounds_row([a * sign for sign in ALTERNATING], **(before or {}))),
        run_of(rounds_row([shift + a * sign for sign in ALTERNATING], **(after or {}))),
    )


def only_row(before, after, **options):
    [row] = compare_runs(before, after, **options).rows
    return row


def test_the_ratio_and_its_interval_by_hand():
    row = only_row(*pair(math.log(1.5)))
    half = T_6 * ERROR_OF_A * 0.01
    assert row.ratio == pytest.approx(1.5)
    assert (row.before_s, row.after_s) == (pytest.approx(1.0), pytest.approx(1.5))
    assert row.low == pytest.approx(1.5 * math.exp(-half), rel=1e-6)
    assert row.high == pytest.approx(1.5 * math.exp(half), rel=1e-6)
    assert (row.rounds_before, row.rounds_after) == (4, 4)


def test_the_samples_of_a_round_count_as_their_median():
    rounds = (0,) * 3 + (1,) * 3 + (2,) * 3
    old = ok_row(SMALL_MATMUL, samples_s=(1.0, 1.1, 9.0, 1.0, 1.2, 9.0, 1.1, 1.0, 9.0), rounds=rounds)
    new = replace(old, samples_s=tuple(2 * sample for sample in old.samples_s))
    row = only_row(run_of(old), run_of(new))
    assert row.before_s == pytest.approx((1.1 * 1.2 * 1.1) ** (1 / 3))
    assert row.ratio == pytest.approx(2)


def test_welch_interval_of_unequal_variances():
    # Variances 0.04^2 / 3 and 0.01^2 / 3: freedom (16 + 1)^2 / (16^2 / 3 + 1^2 / 3) = 3.374, whose point is
    # 2.991, between 3.182 of 3 degrees of freedom and 2.776 of 4.
    before = run_of(rounds_row([0.04 * sign for sign in ALTERNATING]))
    after = run_of(rounds_row([0.01 * sign for sign in ALTERNATING]))
    row = only_row(before, after)
    assert math.log(row.high) == pytest.approx(2.991 * math.sqrt(17 / 3) * 0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("beyond", "verdict"),
    [
        pytest.param(math.log(1.02) + T_6 * ERROR_OF_A * 0.0101, "slower", id="just past 2% and the noise"),
        pytest.param(math.log(1.02) + T_6 * ERROR_OF_A * 0.0099, "not sure", id="just short of it"),
        pytest.param(-math.log(1.02) - T_6 * ERROR_OF_A * 0.0101, "faster", id="the same downwards"),
        pytest.param(-math.log(1.02) - T_6 * ERROR_OF_A * 0.0099, "not sure", id="just short, downwards"),
        pytest.param(0.0, "not sure", id="equal, but known to 2.02% alone"),
    ],
)
def test_verdict_at_the_threshold_of_p(beyond, verdict):
    row = only_row(*pair(beyond))
    assert row.verdict == verdict
    assert (row.p <= ERROR) == (verdict != "not sure")


@pytest.mark.parametrize(
    ("a", "shift", "verdict"),
    [
        pytest.param(0.0099, 0.0, "same", id="equal and known to under 2%"),
        pytest.param(0.0100, 0.0, "not sure", id="equal and known to 2.02%"),
        pytest.param(0.0001, math.log(1.0195), "same", id="1.95%"),
        pytest.param(0.0001, -math.log(1.0195), "same", id="1.95% downwards"),
        pytest.param(0.0001, math.log(1.0205), "slower", id="2.05%"),
        pytest.param(0.0001, -math.log(1.0205), "faster", id="2.05% downwards"),
        pytest.param(0.0001, math.log(1.02), "not sure", id="2%: on the edge"),
        pytest.param(0.0, math.log(1.03), "slower", id="no noise at all"),
        pytest.param(0.0, 0.0, "same", id="nothing at all"),
    ],
)
def test_verdict_at_the_threshold_of_same(a, shift, verdict):
    # T_6 ERROR_OF_A 0.00991 = 0.0198 = log(1.02)
    assert only_row(*pair(shift, a)).verdict == verdict


@pytest.mark.parametrize(
    ("low", "high", "after_s", "p", "verdict"),
    [
        (1 / 1.02, 1.02, 1.0, 1.0, "same"),
        (1 / 1.0201, 1.02, 1.0, 1.0, "not sure"),
        (1 / 1.02, 1.0201, 1.0, 1.0, "not sure"),
        (1.03, 1.05, 1.04, 0.05, "slower"),
        (1.03, 1.05, 1.04, 0.0501, "not sure"),
        (0.93, 0.95, 0.94, 0.05, "faster"),
        (0.93, 0.95, 0.94, 0.0501, "not sure"),
    ],
)
def test_verdict_of_an_interval_and_a_corrected_p(low, high, after_s, p, verdict):
    facts = {"before_s": 1.0, "rounds_before": 4, "rounds_after": 4, "p": p}
    row = RowChange(case="a", provider="b", after_s=after_s, low=low, high=high, **facts)
    assert [row.verdict for row in with_verdicts([row])] == [verdict]


def test_same_within_equals_the_warm_up_threshold_of_the_timer():
    assert SAME_WITHIN == timer.SETTLED


def test_p_is_corrected_for_the_rows_that_are_judged():
    # Alone the first row is sure at p = 0.03 or so; beside another one it is not.
    shift = math.log(1.02) + 2.9 * ERROR_OF_A * 0.01
    one = pair(shift)
    others = [rounds_row([0.01 * sign for sign in ALTERNATING], case(rows)) for rows in (8, 9)]
    alone = only_row(*one)
    assert alone.verdict == "slower"
    assert alone.corrected_p == alone.p
    first, *rest = compare_runs(*(run_of(*run.rows, *others) for run in one)).rows
    assert first.p == alone.p
    assert first.corrected_p == pytest.approx(3 * alone.p)
    assert first.verdict == "not sure"
    assert first.reason == "by chance one of 3 rows may differ as much"
    assert [row.corrected_p for row in rest] == [1.0, 1.0]


@pytest.mark.parametrize("rounds", [1, 2])
def test_too_few_rounds_give_no_verdict(rounds):
    before, after = (run_of(rounds_row([log] * rounds)) for log in (0.0, 3.0))
    row = only_row(before, after)
    assert (row.verdict, row.low, row.high, row.p) == ("not sure", None, None, None)
    assert row.ratio == pytest.approx(math.exp(3))
    assert "needs 3" in row.reason


def test_three_rounds_are_enough():
    before, after = (run_of(rounds_row([log, log + 0.001, log])) for log in (0.0, 1.0))
    assert only_row(before, after).verdict == "slower"


def test_an_older_file_without_rounds_counts_as_one_round():
    old = run_of(ok_row(SMALL_MATMUL, samples_s=(1.0, 1.1, 1.2)))
    row = only_row(old, pair(1.0)[1])
    assert (row.verdict, row.rounds_before, row.rounds_after) == ("not sure", 1, 4)
    assert row.before_s == 1.1
    assert row.reason.startswith("samples of 1 round,")


def test_a_row_of_few_rounds_does_not_count_among_the_judged():
    shift = math.log(1.02) + 2.9 * ERROR_OF_A * 0.01
    unknown = ok_row(case(8), samples_s=(1.0, 1.1))
    found = compare_runs(*(run_of(*run.rows, unknown) for run in pair(shift)))
    assert [row.verdict for row in found.rows] == ["slower", "not sure"]


def steady_rise():
    """The machine becomes slower by 3% a round, from one run into the next."""
    before = run_of(rounds_row([0.03 * step for step in range(4)]))
    return before, run_of(rounds_row([0.12 + 0.03 * step for step in range(4)]))


def test_a_machine_that_slows_down_steadily_is_no_regression():
    found = compare_runs(*steady_rise())
    assert [row.verdict for row in found.rows] == ["not sure"]
    with mock.patch.object(
        comparing, "round_autocorrelation", return_value=0.0
    ):  # what the guard guards against
        assert compare_runs(*steady_rise()).regressions


@pytest.mark.parametrize(("deviation", "verdict"), [(0.249, "slower"), (0.251, "not sure")])
@pytest.mark.parametrize("side", [0, 1])
def test_disturbed_run_has_no_verdicts(deviation, verdict, side):
    # Of three samples a round, of deviation 0, x and -x, the medians are quiet; all 9 have x sqrt(6 / 8).
    runs = [run_of(rounds_row([shift] * 3)) for shift in (0.0, 1.0)]
    middle, wide = float(side), deviation / math.sqrt(6 / 8)
    scattered = [math.exp(middle + log) for log in (0.0, wide, -wide) * 3]
    rounds = tuple(number for number in range(3) for _ in range(3))
    runs[side] = run_of(ok_row(SMALL_MATMUL, samples_s=scattered, rounds=rounds))
    row = only_row(*runs)
    assert row.verdict == verdict
    if verdict == "not sure":
        assert row.reason == f"the machine was disturbed {['before', 'after'][side]}: samples scatter by 25%"
        assert row.p is None


@pytest.mark.parametrize(("rounds", "samples"), [(5, 4), (7, 3), (10, 2), (20, 1)])
@pytest.mark.parametrize("outlier", [20.0, 0.1])
def test_one_outlier_in_20_samples_does_not_make_a_slowdown_unsure(rounds, samples, outlier):
    draw = random.Random(rounds)  # noqa: S311  (no secret)
    numbers = tuple(number for number in range(rounds) for _ in range(samples))
    taken = [[math.exp(shift + draw.gauss(0, 0.01)) for _ in numbers] for shift in (0.0, math.log(1.1))]
    assert (
        only_row(*(run_of(ok_row(SMALL_MATMUL, samples_s=s, rounds=numbers)) for s in taken)).verdict
        == "slower"
    )
    for samples_s in taken:
        samples_s[7] *= outlier
        found = compare_runs(*(run_of(ok_row(SMALL_MATMUL, samples_s=s, rounds=numbers)) for s in taken))
        assert found.regressions


def bandwidth(rate):
    return ceilings(bandwidth_bytes_per_s=rate)


def test_a_slower_machine_widens_the_interval_and_is_named():
    before, after = pair(math.log(1.1))
    before.ceilings, after.ceilings = bandwidth(1.12e8), bandwidth(1e8)
    found = compare_runs(before, after)
    [row] = found.rows
    assert row.verdict == "not sure"
    assert row.reason == "the machine was slower after: read bandwidth by 12.0%"
    half = T_6 * ERROR_OF_A * 0.01
    assert row.low == pytest.approx(1.1 / 1.12 * math.exp(-half), rel=1e-6)
    assert row.high == pytest.approx(1.1 * math.exp(half), rel=1e-6)
    assert [control.name for control in found.controls] == ["read bandwidth", "bf16 matmul"]
    assert compare_runs(*pair(math.log(1.1))).regressions


def test_a_row_slower_than_the_machine_became_is_slower():
    before, after = pair(math.log(1.3))
    before.ceilings, after.ceilings = bandwidth(1.12e8), bandwidth(1e8)
    row = only_row(before, after)
    assert row.verdict == "slower"
    assert row.low == pytest.approx(1.3 / 1.12 * math.exp(-T_6 * ERROR_OF_A * 0.01), rel=1e-6)


def test_a_faster_machine_is_named_too():
    before, after = pair(math.log(0.9))
    before.ceilings, after.ceilings = bandwidth(1e8), bandwidth(1.15e8)
    assert only_row(before, after).reason == "the machine was faster after: read bandwidth by 15.0%"


def test_only_the_matmul_ceiling_of_its_dtype_affects_a_row():
    before, after = pair(math.log(1.2))
    before.ceilings, after.ceilings = (ceilings(dtype="fp32", flop_per_s=rate) for rate in (3e9, 1e9))
    assert only_row(before, after).verdict == "slower"
    before.ceilings, after.ceilings = (ceilings(dtype="bf16", flop_per_s=rate) for rate in (3e9, 1e9))
    assert only_row(before, after).verdict == "not sure"


def test_ceiling_without_a_rate_or_of_a_datasheet_is_no_control():
    before, after = pair(math.log(1.2))
    before.ceilings = [*ceilings(provenance="datasheet", bandwidth_bytes_per_s=9e9)]
    after.ceilings = [
        *ceilings(provenance="datasheet"),
        Ceiling(kind="matmul", provenance="measured", dtype="bf16", reason="out of memory"),
    ]
    found = compare_runs(before, after)
    assert found.controls == ()
    assert found.rows[0].verdict == "slower"


def test_measured_ceilings_are_compared_with_measured_ones():
    before, after = pair(math.log(1.2))
    before.ceilings = bandwidth(1e8)
    after.ceilings = [*ceilings(provenance="datasheet", bandwidth_bytes_per_s=5e7), *bandwidth(1e8)]
    assert [control.most for control in compare_runs(before, after).controls] == [1.0, 1.0]


CLOCKS = {"clock_before_hz": 1.98e9, "clock_after_hz": 1.965e9}


@pytest.mark.parametrize(
    ("before", "after", "verdict", "reason"),
    [
        pytest.param(CLOCKS, CLOCKS, "slower", "by over 2%", id="as it was"),
        pytest.param(
            CLOCKS,
            {"clock_before_hz": 1.755e9, "clock_after_hz": 1.755e9},
            "not sure",
            "the machine was slower after: SM clock by 12.8%",  # 1980 / 1755
            id="lower after",
        ),
        pytest.param(
            CLOCKS,
            {"clock_before_hz": 1.98e9, "clock_after_hz": 1.7e9},
            "not sure",
            "the machine was slower after: SM clock by 16.5%",  # 1980 / 1700
            id="falling during the row",
        ),
        pytest.param(CLOCKS, {}, "slower", "by over 2%", id="unknown after"),
        pytest.param(
            {"throttle_reasons": ("power cap",)},
            {"throttle_reasons": ("power cap",)},
            "slower",
            "by over 2%",
            id="power cap in both",
        ),
        pytest.param(
            {},
            {"throttle_reasons": ("power cap",)},
            "not sure",
            "the clock was throttled: nothing before; power cap after",
            id="power cap after",
        ),
        pytest.param(
            {"throttle_reasons": ("thermal, software",)},
            {"throttle_reasons": ("thermal, software",)},
            "not sure",
            "the clock was throttled: thermal, software before; thermal, software after",
            id="heat in both",
        ),
    ],
)
def test_sm_clock_is_a_control(before, after, verdict, reason):
    row = only_row(*pair(math.log(1.12), before=before, after=after))
    assert (row.verdict, row.reason) == (verdict, reason)


def in_rounds(*levels_s, size=8, call="sum"):
    """A read bandwidth whose fastest call is always the same, and whose rounds have these levels."""
    times = [1e-3, *levels_s]
    rounds = [0, *range(len(levels_s))]
    return [
        Ceiling(
            kind="read_bandwidth",
            provenance="measured",
            bandwidth_bytes_per_s=1e8,
            samples_s=times,
            rounds=rounds,
            call=call,
            work={"bytes_read": size, "bytes_written": 0},
        )
    ]


def test_slowdown_after_the_first_ceilings_shows_in_their_later_rounds():
    before, after = pair(math.log(1.1))
    before.ceilings, after.ceilings = in_rounds(1e-3, 1e-3, 1e-3, 1e-3), in_rounds(1e-3, *[1.2e-3] * 3)
    row = only_row(before, after)
    level = 1.2 ** (3 / 4)
    assert row.verdict == "not sure"
    assert row.reason == f"the machine was slower after: read bandwidth by {level - 1:.1%}"
    [control] = compare_runs(before, after).controls
    assert (control.least, control.most) == (1.0, pytest.approx(level))


@pytest.mark.parametrize(
    "after_ceilings",
    [
        pytest.param(in_rounds(1e-3, 1.2e-3), id="too few rounds"),
        pytest.param(in_rounds(*[1.2e-3] * 4, size=16), id="another size"),
        pytest.param(in_rounds(*[1.2e-3] * 4, call="dot"), id="another call"),
    ],
)
def test_too_few_rounds_of_a_ceiling_are_left_out(after_ceilings):
    before, after = pair(math.log(1.1))
    before.ceilings, after.ceilings = in_rounds(1e-3, 1e-3, 1e-3, 1e-3), after_ceilings
    assert [control.most for control in compare_runs(before, after).controls] == [1.0]
    assert only_row(before, after).verdict == "slower"


@pytest.mark.parametrize(
    ("limit", "regressions"), [(0.05, 1), (0.0, 1), (0.09, 1), (0.098, 0), (0.11, 0), (1.0, 0)]
)
def test_regression_is_significantly_over_the_limit(limit, regressions):
    # Slower by 12%, and the interval begins at 1.12 x exp(-0.01998) = 1.0978.
    found = compare_runs(*pair(math.log(1.12)), limit=limit)
    assert len(found.regressions) == regressions
    assert found.worse == bool(regressions)


def test_faster_is_no_regression():
    found = compare_runs(*pair(math.log(0.5)))
    assert found.rows[0].verdict == "faster"
    assert not found.worse


def test_names_rows_with_another_status_or_in_one_run_only():
    same, fixed, broken, gone, new, never = map(case, range(6))
    before = run_of(ok_row(same), failed_row(fixed), ok_row(broken), ok_row(gone), failed_row(never))
    after = run_of(ok_row(same), ok_row(fixed), failed_row(broken), ok_row(new), failed_row(never))
    found = compare_runs(before, after)
    assert [(change.case, change.before, change.after) for change in found.statuses] == [
        (fixed.id, "failed", "ok"),
        (broken.id, "ok", "failed"),
        (gone.id, "ok", None),
        (new.id, None, "ok"),
    ]
    assert [row.case for row in found.rows] == [same.id]
    assert [change.case for change in found.broke] == [broken.id]
    assert found.broke[0].reason == "wrong result: row 3"
    assert found.worse


@pytest.mark.parametrize("status", ["skipped", "unsupported"])
def test_row_that_is_no_longer_timed_is_named_and_is_not_broken(status):
    found = compare_runs(run_of(ok_row(SMALL_MATMUL)), run_of(failed_row(SMALL_MATMUL, status=status)))
    assert [change.after for change in found.statuses] == [status]
    assert not found.worse


def test_providers_of_one_case_are_separate_rows():
    before, after = (
        run_of(*(rounds_row([log, log + 0.001, log], provider=name) for name in ("torch", "triton")[:count]))
        for log, count in ((0.0, 2), (1.0, 1))
    )
    found = compare_runs(before, after)
    assert [row.provider for row in found.rows] == ["torch"]
    assert [change.provider for change in found.statuses] == ["triton"]


def test_layers_of_one_name_and_other_sizes_are_not_compared():
    small, large = (
        DecoderLayer(phase="decode", model=model, sequences=1, tokens=16, rows=1, dtype="bf16")
        for model in (TINY, replace(TINY, hidden_size=128))
    )
    assert small.id == large.id
    found = compare_runs(run_of(ok_row(small)), run_of(ok_row(large)))
    assert found.rows == ()
    assert found.empty


@pytest.mark.parametrize(
    "other",
    [
        GPU,
        {**CPU, "name": "Another CPU"},
        {**CPU, "cores": 4},
        {**CPU, "threads": 1},
        {**CPU, "memory_bytes": CPU["memory_bytes"] * 1.02},
    ],
    ids=["kind", "name", "cores", "threads", "memory"],
)
def test_another_device_is_no_regression_unless_asked_for(other):
    before, after = pair(math.log(3))
    after.environment = {**after.environment, "device": other}
    after.rows.append(failed_row(case(9)))
    before.rows.append(ok_row(case(9)))
    found = compare_runs(before, after)
    assert not found.same_device
    assert not found.worse
    assert (found.rows[0].verdict, found.rows[0].reason) == ("not sure", "another device")
    assert found.rows[0].ratio == pytest.approx(3)
    asked = compare_runs(before, after, across_devices=True)
    assert asked.regressions
    assert asked.broke
    assert asked.worse


def test_across_devices_ceilings_do_not_widen_intervals():
    before, after = pair(math.log(3))
    before.ceilings, after.ceilings = bandwidth(4e8), bandwidth(1e8)
    assert not compare_runs(before, after, across_devices=True).regressions  # the same device after all
    after.environment = {**after.environment, "device": {**CPU, "name": "Another CPU"}}
    assert compare_runs(before, after, across_devices=True).regressions


def test_a_little_more_memory_is_the_same_device():
    before, after = pair(0.0)
    after.environment = {**after.environment, "device": {**CPU, "memory_bytes": CPU["memory_bytes"] * 1.005}}
    assert compare_runs(before, after).same_device


def test_differences_are_named_leaf_by_leaf():
    before, after = pair(0.0)
    device = {**CPU, "sm_clock_hz": 1e9}
    before.environment = {**before.environment, "started": "yesterday", "commit": "abc", "device": device}
    after.environment = {
        **after.environment,
        "started": "today",
        "device": {**device, "sm_clock_hz": 2e9},
        "commit": "def",
        "versions": {"python": "3.11", "torch": "2.13"},
    }
    after.settings = {**after.settings, "model": {"name": "other"}, "batches": [1, 8]}
    before.settings = {**before.settings, "batches": (1, 8)}
    assert compare_runs(before, after).differences == (
        ("commit", "abc", "def"),
        ("model.name", "tiny", "other"),
        ("versions.torch", None, "2.13"),
    )


def test_names_a_changed_variant_tiling_and_number_of_copies():
    before = {"variant": "pointers", "tiling": {"block": 64}, "method": "cuda: each call", "input_copies": 3}
    after = {**before, "variant": "descriptors", "tiling": None, "input_copies": 5}
    assert only_row(*pair(0.0, before=before, after=after)).changes == (
        "variant: pointers -> descriptors",
        "tiling: block 64 -> none",
        "input copies: 3 -> 5",
    )


def gap_of_rounds(logs, **changes):
    """The gap by hand, 10, times exp of each of these logarithms in a round, of the output token alone."""
    factor = math.exp(statistics.fmean(logs))
    parts_s = {name: seconds * factor for name, seconds in gap().output_parts_s.items()}
    return gap(
        output_parts_s=parts_s,
        rounds=tuple(range(len(logs))),
        input_rounds_s=(4.0,) * len(logs),
        output_rounds_s=tuple(40.0 * math.exp(log) for log in logs),
        **changes,
    )


def gap_pair(shift, a=0.01, after=None):
    """Runs with the gap of 4 rounds alone: 10 before, 10 exp(shift) after."""
    logs = [a * sign for sign in ALTERNATING]
    return (
        run_of(gaps=[gap_of_rounds(logs)]),
        run_of(gaps=[gap_of_rounds([shift + log for log in logs], **(after or {}))]),
    )


def only_gap(before, after):
    [change] = compare_runs(before, after).gaps
    return change


def test_gaps_of_the_same_batch_context_and_prompt_are_compared():
    before, after = gap_pair(math.log(1.25))
    before.gaps += [gap(batch=8)]
    after.gaps += [gap(batch=2)]
    change = only_gap(before, after)
    assert (change.batch, change.context, change.prompt) == (1, 16, 16)
    assert (change.gap_before, change.gap_after) == (pytest.approx(10.0), pytest.approx(12.5))
    assert (change.input_s_per_token_ratio, change.output_s_per_token_ratio) == (1.0, pytest.approx(1.25))


def test_interval_and_verdict_of_a_gap_by_hand():
    change = only_gap(*gap_pair(math.log(1.25)))
    half = T_6 * ERROR_OF_A * 0.01
    assert change.ratio == pytest.approx(1.25)
    assert change.low == pytest.approx(1.25 * math.exp(-half), rel=1e-6)
    assert change.high == pytest.approx(1.25 * math.exp(half), rel=1e-6)
    assert (change.verdict, change.rounds_before, change.rounds_after) == ("higher", 4, 4)
    assert only_gap(*gap_pair(-math.log(1.25))).verdict == "lower"
    assert only_gap(*gap_pair(0.0, 0.005)).verdict == "same"
    assert only_gap(*gap_pair(0.02, 0.01)).verdict == "not sure"


def test_interval_of_a_gap_holds_its_ratio_where_the_rounds_say_another():
    before, after = gap_pair(0.0)
    after.gaps = [replace(after.gaps[0], output_parts_s=gap_of_rounds([0.5]).output_parts_s)]
    change = only_gap(before, after)
    assert change.high == pytest.approx(math.exp(0.5 + T_6 * ERROR_OF_A * 0.01), rel=1e-6)
    assert change.low == pytest.approx(math.exp(-T_6 * ERROR_OF_A * 0.01), rel=1e-6)
    assert change.verdict == "not sure"


def test_gaps_and_rows_are_corrected_together():
    row, gaps = pair(math.log(1.5)), gap_pair(math.log(1.5))
    for run, with_gap in zip(row, gaps, strict=True):
        run.gaps = with_gap.gaps
    found = compare_runs(*row)
    assert found.gaps[0].corrected_p == pytest.approx(2 * found.gaps[0].p, rel=1e-6)
    assert found.regressions == found.rows


def test_a_higher_gap_is_no_regression():
    found = compare_runs(*gap_pair(math.log(2)))
    assert found.gaps[0].verdict == "higher"
    assert not found.worse


def test_a_gap_of_few_rounds_has_no_verdict():
    change = only_gap(run_of(gaps=[gap()]), gap_pair(0.0)[1])
    assert (change.verdict, change.low, change.p) == ("not sure", None, None)
    assert change.reason.startswith("samples of 0 rounds, needs 3")


def test_a_change_of_the_machine_may_explain_a_change_of_the_gap():
    before, after = gap_pair(math.log(1.2))
    name = next(iter(gap().providers))
    rows = [rounds_row([0.0] * 4)]
    assert (rows[0].case.id, rows[0].provider) == (name, gap().providers[name])
    before.rows = after.rows = rows
    before.ceilings, after.ceilings = bandwidth(1.12e8), bandwidth(1e8)
    # The output token alone, or the input token alone, may be slower by 12%.
    half = T_6 * ERROR_OF_A * 0.01
    change = only_gap(before, after)
    assert change.low == pytest.approx(1.2 / 1.12 * math.exp(-half), rel=1e-6)
    assert change.high == pytest.approx(1.2 * 1.12 * math.exp(half), rel=1e-6)
    after.ceilings = bandwidth(0.92e8)
    assert only_gap(before, after).reason == "the machine changed: read bandwidth and others by up to 21.7%"
    assert only_gap(before, after).verdict == "not sure"


def test_a_throttled_row_leaves_its_gap_without_a_verdict():
    before, after = gap_pair(math.log(1.5))
    before.rows = [rounds_row([0.0] * 4)]
    after.rows = [rounds_row([0.0] * 4, throttle_reasons=("heat",))]
    change = only_gap(before, after)
    assert change.verdict == "not sure"
    assert change.reason == "the clock was throttled: nothing before; heat after"


def test_names_another_fastest_provider_of_a_gap():
    name = next(iter(gap().providers))
    before, after = gap_pair(0.0, after={"providers": {**gap().providers, name: "triton"}})
    assert only_gap(before, after).changes == (f"fastest provider of {name}: torch -> triton",)


@pytest.mark.parametrize("lost", [None, "failed", "skipped"])
def test_a_lost_row_makes_a_run_worse_only_where_asked(lost):
    before, after = pair(0.0)
    before.rows += [ok_row(case(9))]
    if lost is not None:
        after.rows += [failed_row(case(9), status=lost)]
    before.rows += [failed_row(case(10))]
    found = compare_runs(before, after)
    assert [(change.case, change.after) for change in found.lost] == [(case(9).id, lost)]
    assert found.worse == (lost == "failed")
    assert compare_runs(before, after, fail_on_missing=True).worse
    assert not compare_runs(after, after, fail_on_missing=True).worse


def test_a_run_that_did_not_end_says_so():
    before, after = pair(0.0)
    before.interrupted, after.broken = True, "RuntimeError: gone"
    first, second = compare_runs(before, after).unfinished
    assert first.startswith("before: was interrupted")
    assert second.startswith("after: broke off (RuntimeError: gone)")


SAMPLES = st.lists(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=3), min_size=1, max_size=6)
ROUNDS = st.lists(st.lists(st.floats(1.0, 1.5), min_size=1, max_size=3), min_size=3, max_size=6)


def sampled_run(rounds):
    numbers = tuple(number for number, samples in enumerate(rounds) for _ in samples)
    return run_of(ok_row(SMALL_MATMUL, samples_s=[s for samples in rounds for s in samples], rounds=numbers))


@given(SAMPLES)
def test_a_run_against_itself_is_never_faster_or_slower(rounds):
    row = only_row(sampled_run(rounds), sampled_run(rounds))
    assert row.verdict in {"same", "not sure"}
    assert row.ratio == 1
    assert row.p in {None, 1.0}


@given(ROUNDS, ROUNDS, st.floats(1e-3, 1e3))
def test_the_unit_of_time_does_not_matter(before, after, factor):
    scaled = [[[factor * s for s in samples] for samples in rounds] for rounds in (before, after)]
    row, again = only_row(*map(sampled_run, (before, after))), only_row(*map(sampled_run, scaled))
    assert again.ratio == pytest.approx(row.ratio)
    assert math.log(again.low) == pytest.approx(math.log(row.low), rel=1e-6, abs=1e-9)
    assert math.log(again.high) == pytest.approx(math.log(row.high), rel=1e-6, abs=1e-9)
    assert again.p == pytest.approx(row.p, rel=1e-6, abs=1e-9)
    assert again.verdict == row.verdict


@given(ROUNDS, ROUNDS)
def test_swapped_runs_give_the_inverse(before, after):
    runs = sampled_run(before), sampled_run(after)
    row, back = only_row(*runs), only_row(*reversed(runs))
    turned = {"faster": "slower", "slower": "faster"}
    assert back.ratio == pytest.approx(1 / row.ratio)
    assert back.p == pytest.approx(row.p, rel=1e-9)
    assert back.verdict == turned.get(row.verdict, row.verdict)
    assert math.log(back.low) == pytest.approx(-math.log(row.high), rel=1e-9, abs=1e-12)
    assert math.log(back.high) == pytest.approx(-math.log(row.low), rel=1e-9, abs=1e-12)


@given(SAMPLES, SAMPLES)
def test_a_verdict_needs_an_interval(before, after):
    row = only_row(sampled_run(before), sampled_run(after))
    known = min(len(before), len(after)) >= 3
    assert [row.low is not None, row.high is not None] == [known, known]
    if known:
        assert row.low <= row.ratio * (1 + 1e-9)
        assert row.high >= row.ratio * (1 - 1e-9)
    else:
        assert row.verdict == "not sure"


def test_swapped_runs_give_the_inverse_controls():
    clocks = {"clock_before_hz": 1.9e9, "clock_after_hz": 1.8e9}
    before, after = pair(
        math.log(1.1), before=clocks, after={"clock_before_hz": 1.7e9, "clock_after_hz": 1.95e9}
    )
    before.ceilings, after.ceilings = bandwidth(1.05e8), bandwidth(1e8)
    row, back = only_row(before, after), only_row(after, before)
    assert back.low == pytest.approx(1 / row.high)
    assert back.high == pytest.approx(1 / row.low)
    assert back.p == pytest.approx(row.p)
