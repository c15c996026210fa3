"""The cost of a token, from rows of round times.

One batch of 2 at a context of 16, prefill in forwards of 32 tokens, 2 layers. In seconds:

                    a call                          a token
prefill projections 8 + 4 + 12 + 8 = 32, 32 tokens  2 x 32 / 32 = 2
prefill attention   16, of 2 x 16 tokens            2 x 16 / 32 = 1
prefill layer       56, of 2 x 16 tokens            2 x (56 / 32 - 32 / 32 - 16 / 32) = 0.5, the rest
prefill head        8, once a prompt of 16          8 / 16 = 0.5
                                                    an input token: 4
decode projections  6 + 2 + 6 + 2 = 16, 2 tokens    2 x 16 / 2 = 16
decode attention    8, 2 tokens                     2 x 8 / 2 = 8
decode layer        32, 2 tokens                    2 x (32 - 16 - 8) / 2 = 8, the rest
decode head         12, 2 tokens                    12 / 2 = 6
                                                    an output token: 38
"""

import math
import re
from dataclasses import replace

import pytest
from decodetax.harness.bench.token_cost import gaps_of
from decodetax.harness.core.gap import Interval
from decodetax.harness.core.records import Row
from decodetax.harness.core.sweep import cases_of
from drifting_runs import Machine, drifting_runs
from hand_made import TINY, failed_row, gap, ok_row, sweep
from hypothesis import given
from hypothesis import strategies as st

SECONDS = {
    "prefill/qkv": 8.0,
    "prefill/o": 4.0,
    "prefill/gate_up": 12.0,
    "prefill/down": 8.0,
    "prefill/attention": 16.0,
    "prefill/layer": 56.0,
    "prefill/lm_head": 8.0,
    "decode/qkv": 6.0,
    "decode/o": 2.0,
    "decode/gate_up": 6.0,
    "decode/down": 2.0,
    "decode/attention": 8.0,
    "decode/layer": 32.0,
    "decode/lm_head": 12.0,
}
CASES = {f"{case.phase}/{case.part}": case for case in cases_of(TINY, sweep())}


def rows_of(**changes):
    """Rows by torch; `changes` gives other seconds to a part, or None to leave it out."""
    seconds = {**SECONDS, **changes}
    return [ok_row(CASES[name], samples_s=(value,)) for name, value in seconds.items() if value is not None]


def gap_of(rows, *, usd_per_hour=None, **changes):
    [found] = gaps_of(rows, TINY, sweep(**changes), usd_per_hour=usd_per_hour)
    return found


def test_the_table_of_seconds_names_every_case():
    assert set(CASES) == set(SECONDS)


def test_parts_and_gap_by_hand():
    found = gap_of(rows_of())
    assert found.input_parts_s == {"projections": 2.0, "attention": 1.0, "rest": 0.5, "lm_head": 0.5}
    assert found.output_parts_s == {"projections": 16.0, "attention": 8.0, "rest": 8.0, "lm_head": 6.0}
    assert (found.input_s_per_token, found.output_s_per_token, found.gap) == (4.0, 38.0, 9.5)
    assert (found.batch, found.context, found.prompt) == (2, 16, 16)
    assert found.prefill_layer_over_parts == pytest.approx(56 / 48)
    assert found.decode_layer_over_parts == pytest.approx(32 / 24)


def test_uses_the_median_of_a_rows_samples():
    rows = [
        ok_row(row.case, samples_s=(row.samples_s[0], 0.9 * row.samples_s[0], 50 * row.samples_s[0]))
        for row in rows_of()
    ]
    assert gap_of(rows).gap == 9.5


def test_fastest_provider_of_each_case_counts_and_is_named():
    faster = ok_row(CASES["decode/qkv"], "other", samples_s=(2.0,))  # saves 2 x 4 / 2 = 4 s a token
    slower = ok_row(CASES["decode/o"], "other", samples_s=(3.0,))
    for rows in ([*rows_of(), faster, slower], [faster, slower, *rows_of()]):
        found = gap_of(rows)
        assert found.output_parts_s["projections"] == 12.0
        assert found.gap == 8.5
        assert found.providers[CASES["decode/qkv"].id] == "other"
        assert found.providers[CASES["decode/o"].id] == "torch"


def test_rest_is_the_layer_minus_its_parts_by_the_same_provider():
    # Another provider's faster parts must not swell the rest.
    faster = [ok_row(CASES[name], "other", samples_s=(1.0,)) for name in ("decode/attention", "prefill/down")]
    found = gap_of([*rows_of(), *faster])
    assert (found.input_parts_s["rest"], found.output_parts_s["rest"]) == (0.5, 8.0)
    assert found.output_parts_s["attention"] == 1.0


@pytest.mark.parametrize(
    ("layer", "seconds", "ratio"),
    [
        pytest.param("prefill", 20.0, 20 / 48, id="prefill"),
        pytest.param("decode", 12.0, 12 / 24, id="decode"),
    ],
)
def test_rest_of_a_layer_faster_than_its_parts_is_zero(layer, seconds, ratio):
    found = gap_of(rows_of(**{f"{layer}/layer": seconds}))
    parts, found_ratio = {
        "prefill": (found.input_parts_s, found.prefill_layer_over_parts),
        "decode": (found.output_parts_s, found.decode_layer_over_parts),
    }[layer]
    assert parts["rest"] == 0.0
    assert found_ratio == pytest.approx(ratio)


def test_providers_name_every_case_that_is_summed():
    summed = {case.id for name, case in CASES.items() if not name.endswith("/layer")}
    assert set(gap_of(rows_of()).providers) == summed


@pytest.mark.parametrize("name", SECONDS)
def test_missing_case_leaves_no_gap(name):
    assert gaps_of(rows_of(**{name: None}), TINY, sweep(), usd_per_hour=None) == []


@pytest.mark.parametrize("status", ["failed", "skipped", "unsupported"])
@pytest.mark.parametrize("name", SECONDS)
def test_row_that_is_not_ok_never_counts(name, status):
    bad = Row(case=CASES[name], provider="torch", status=status, reason="why")
    assert gaps_of([*rows_of(**{name: None}), bad], TINY, sweep(), usd_per_hour=None) == []
    other = Row(case=CASES[name], provider="other", status=status, reason="why")
    assert gap_of([other, *rows_of()]) == gap_of(rows_of())


def test_failed_provider_leaves_the_case_to_the_next_fastest():
    rows = rows_of(**{"decode/qkv": None})
    rows += [
        failed_row(CASES["decode/qkv"], "triton"),
        ok_row(CASES["decode/qkv"], "torch", samples_s=(6.0,)),
    ]
    rows += [ok_row(CASES["decode/qkv"], "slow", samples_s=(60.0,))]
    assert gap_of(rows) == gap_of(rows_of())


def test_no_rows_leave_no_gaps():
    assert gaps_of([], TINY, sweep(batches=(1, 2), contexts=(16, 40)), usd_per_hour=1.0) == []


@pytest.mark.parametrize(
    ("prompt", "seconds"),
    [
        # One prompt of 64 tokens, the head once in them: 2 x 32 / 32; 2 x 32 / 64;
        # 2 x (112 / 64 - 32 / 32 - 32 / 64); 32 / 64.
        pytest.param(64, {"attention": 32.0, "layer": 112.0, "lm_head": 32.0}, id="longer than a forward"),
        # 32 // 24 = 1 prompt: attention and layer share 24 tokens, the projections 32.
        pytest.param(24, {"attention": 12.0, "layer": 42.0, "lm_head": 12.0}, id="not a divisor of one"),
    ],
)
def test_prompt_that_does_not_fill_a_forward_by_hand(prompt, seconds):
    seconds = {**SECONDS, **{f"prefill/{part}": value for part, value in seconds.items()}}
    rows = [
        ok_row(case, samples_s=(seconds[f"{case.phase}/{case.part}"],))
        for case in cases_of(TINY, sweep(prompt=prompt))
    ]
    found = gap_of(rows, prompt=prompt)
    assert found.input_parts_s == {"projections": 2.0, "attention": 1.0, "rest": 0.5, "lm_head": 0.5}
    assert (found.prompt, found.context, found.gap) == (prompt, 16, 9.5)


def triton_rows():
    """Per token: prefill 2 x (4 x 4 + 8) / 32 + 8 / 16 = 2; decode 2 x (4 x 3 + 5) / 2 + 6 / 2 = 20."""
    seconds = {
        **dict.fromkeys(("prefill/qkv", "prefill/o", "prefill/gate_up", "prefill/down"), 4.0),
        "prefill/attention": 8.0,
        "prefill/lm_head": 8.0,
        **dict.fromkeys(("decode/qkv", "decode/o", "decode/gate_up", "decode/down"), 3.0),
        "decode/attention": 5.0,
        "decode/lm_head": 6.0,
    }
    return [ok_row(CASES[name], "triton", samples_s=(value,)) for name, value in seconds.items()]


def test_triton_gap_by_hand_whichever_provider_is_fastest():
    assert gap_of([*rows_of(), *triton_rows()]).triton_gap == 10.0
    slow_torch = rows_of(**dict.fromkeys(SECONDS, 100.0))
    assert gap_of([*slow_torch, *triton_rows()]).triton_gap == 10.0


@pytest.mark.parametrize("index", range(11))
def test_triton_gap_needs_every_triton_case(index):
    rows = triton_rows()
    lost = rows.pop(index)
    assert gap_of([*rows_of(), *rows, failed_row(lost.case, "triton")]).triton_gap is None


def test_no_triton_gap_without_triton():
    assert gap_of(rows_of()).triton_gap is None


def test_dollars_by_hand():
    # 1.8 $ an hour is 0.0005 $ a second; 4 s and 38 s a token, a million tokens.
    found = gap_of(rows_of(), usd_per_hour=1.8)
    assert found.usd_per_hour == 1.8
    assert found.usd_per_mtok(found.input_s_per_token) == pytest.approx(2000.0)
    assert found.usd_per_mtok(found.output_s_per_token) == pytest.approx(19000.0)
    unpriced = gap_of(rows_of())
    assert unpriced.usd_per_mtok(unpriced.input_s_per_token) is None


def test_each_batch_and_context_has_its_own_gap_and_failures():
    swept = sweep(batches=(1, 2), contexts=(16, 40))
    rows = [ok_row(case) for case in cases_of(TINY, swept)]
    [lost] = swept.output_token(TINY, 2, 40).attentions
    kept = [row if row.case != lost else failed_row(lost) for row in rows]

    def places(rows):
        return [(found.batch, found.context) for found in gaps_of(rows, TINY, swept, usd_per_hour=None)]

    assert places(rows) == [(1, 16), (1, 40), (2, 16), (2, 40)]
    assert places(kept) == [(1, 16), (1, 40), (2, 16)]


SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=3).map(lambda sizes: tuple(sorted(set(sizes))))


@given(
    batches=SIZES, contexts=SIZES, prompt=st.none() | st.integers(1, 300), prefill_tokens=st.integers(1, 300)
)
def test_cases_of_a_sweep_are_all_that_its_gaps_need(batches, contexts, prompt, prefill_tokens):
    swept = sweep(batches=batches, contexts=contexts, prompt=prompt, prefill_tokens=prefill_tokens)
    rows = [ok_row(case) for case in cases_of(TINY, swept)]
    gaps = gaps_of(rows, TINY, swept, usd_per_hour=None)
    assert [(found.batch, found.context) for found in gaps] == [(b, c) for b in batches for c in contexts]
    for found in gaps:
        assert found.prompt == (prompt or found.context)
        assert min(*found.input_parts_s.values(), *found.output_parts_s.values()) >= 0


# Deviations of 4 rounds: the von Neumann ratio of such rounds is 2 x 2^2 / (4 / 3) or more, so r is 0.
ALTERNATING = (-1, 1, -1, 1)


def rows_of_rounds(log_of, **kept):
    """Rows of a sample a round; `log_of(name, number)` is the logarithm of a round's factor."""
    return [
        ok_row(
            CASES[name],
            samples_s=[value * math.exp(log_of(name, number)) for number in range(4)],
            rounds=kept.get(name, (0, 1, 2, 3)),
        )
        for name, value in SECONDS.items()
    ]


def half_of(a):
    """Half of the logarithmic interval of 4 alternating rounds of deviation a; t of 3 degrees is 3.182."""
    return 3.182446 * a / math.sqrt(3)


def test_interval_of_seconds_per_token_by_hand():
    found = gap_of(rows_of_rounds(lambda _name, number: 0.1 * ALTERNATING[number]), usd_per_hour=3.6)
    for side, seconds in (("input", 4.0), ("output", 38.0)):
        middle = seconds * math.cosh(0.1)  # the median of 4 samples is the mean of the middle two
        assert getattr(found, f"{side}_s_per_token") == pytest.approx(middle)
        interval = getattr(found, f"{side}_s_per_token_interval")
        assert interval.low == pytest.approx(seconds * math.exp(-half_of(0.1)))
        assert interval.high == pytest.approx(middle * math.exp(half_of(0.1)))
    entry = found.to_json()
    rate, usd = entry["output_tokens_per_s_interval"], entry["output_usd_per_mtok_interval"]
    assert rate["high"] == pytest.approx(math.exp(half_of(0.1)) / 38)
    assert usd["low"] == pytest.approx(38_000 * math.exp(-half_of(0.1)))


def test_what_input_and_output_share_in_a_round_is_not_in_the_interval_of_their_ratio():
    found = gap_of(rows_of_rounds(lambda _name, number: 0.1 * ALTERNATING[number]))
    assert found.gap_rounds == pytest.approx([9.5] * 4)
    assert found.gap_interval.low == pytest.approx(9.5)
    assert found.gap_interval.high == pytest.approx(9.5)
    opposed = gap_of(
        rows_of_rounds(lambda name, at: 0.1 * ALTERNATING[at] * (1 if name.startswith("prefill") else -1))
    )
    assert opposed.gap_interval.high == pytest.approx(9.5 * math.exp(half_of(0.2)))


def test_a_round_without_one_of_the_parts_is_left_out():
    found = gap_of(rows_of_rounds(lambda _name, _number: 0.0, **{"decode/attention": (0, 1, 1, 3)}))
    assert found.rounds == (0, 1, 3)
    assert len(found.input_rounds_s) == len(found.output_rounds_s) == 3
    assert found.gap_interval is not None
    few = gap_of(rows_of_rounds(lambda _name, _number: 0.0, **{"decode/attention": (0, 1, 1, 1)}))
    assert (few.rounds, few.gap_interval) == ((0, 1), None)


def test_rows_without_rounds_give_no_interval():
    found = gap_of(rows_of())
    assert (found.rounds, found.gap_interval, found.triton_gap_interval) == ((), None, None)


def test_rounds_use_the_provider_that_is_the_fastest_over_all_samples():
    slower_once = [
        ok_row(CASES["decode/attention"], "other", samples_s=(7.0, 7.0, 7.0, 70.0), rounds=(0, 1, 2, 3))
    ]
    found = gap_of(rows_of_rounds(lambda _name, _number: 0.0) + slower_once)
    assert found.providers[CASES["decode/attention"].id] == "other"
    assert found.output_rounds_s == pytest.approx([37.0, 37.0, 37.0, 100.0])


def test_one_disturbed_round_of_a_row_widens_nothing():
    def rows(**disturbed):
        numbers = (0, 1, 2, 3, 4, 5)
        logs = {name: [0.01 * (-1) ** number for number in numbers] for name in SECONDS}
        for name, number in disturbed.items():
            logs[name.replace("_", "/", 1)][number] = 2.0
        return [
            ok_row(
                CASES[name], samples_s=[value * math.exp(log) for log in logs[name]], rounds=tuple(numbers)
            )
            for name, value in SECONDS.items()
        ]

    plain, found = gap_of(rows()), gap_of(rows(decode_down=0, decode_attention=4, prefill_qkv=2))
    assert found.gap == plain.gap
    assert found.gap_rounds == pytest.approx(plain.gap_rounds)
    assert found.gap_interval.bounds == pytest.approx(plain.gap_interval.bounds)
    assert found.gap_interval.half_width < 0.07


def test_drift_widens_the_interval():
    walk = (0.0, 0.1, 0.2, 0.3)
    drifting = gap_of(rows_of_rounds(lambda name, at: walk[at] if name.startswith("decode") else 0.0))
    shuffled = (0.0, 0.3, 0.1, 0.2)
    steady = gap_of(rows_of_rounds(lambda name, at: shuffled[at] if name.startswith("decode") else 0.0))
    assert drifting.gap_interval.half_width > 1.5 * steady.gap_interval.half_width


def test_interval_of_the_triton_gap():
    torch_rows = rows_of_rounds(lambda name, at: 0.1 * ALTERNATING[at] if name.startswith("decode") else 0.0)
    found = gap_of([*torch_rows, *(replace(row, provider="triton") for row in torch_rows)])
    assert found.triton_gap_interval.holds(found.triton_gap)
    assert found.triton_gap_interval.high == pytest.approx(found.triton_gap * math.exp(half_of(0.1)))


def shares_that_miss(machine, seeds):
    """The share of runs of a simulated machine whose interval of the gap misses the gap."""
    missed = 0
    for seed in seeds:
        [run] = drifting_runs(seed, 1, machine=machine, rows=len(SECONDS), rounds=10, samples=2)
        rows = [
            ok_row(
                case,
                samples_s=[s / 1e-3 / (at + 1) * SECONDS[name] for s in row.samples_s],
                rounds=row.rounds,
            )
            for at, ((name, case), row) in enumerate(zip(CASES.items(), run.rows, strict=True))
        ]
        missed += not gap_of(rows).gap_interval.holds(9.5)
    return missed / len(seeds)


@pytest.mark.parametrize(
    "machine",
    [Machine(), Machine(noise=0.15, row_shift=0.05), Machine(drift_step=0.02, round_shift=0.05)],
    ids=["noisy", "noisier", "walking"],
)
def test_interval_misses_the_gap_in_at_most_5_percent_of_runs(machine):
    assert shares_that_miss(machine, range(100)) <= 0.05


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gap_interval": Interval(low=10.1, high=11.0)}, "10.1 to 11.0 does not hold gap, 10.0"),
        ({"input_s_per_token_interval": Interval(low=1.0, high=3.9)}, "3.9 does not hold input_s_per_token"),
        ({"triton_gap_interval": Interval(low=1.0, high=2.0)}, "does not hold triton_gap, None"),
        ({"rounds": (0, 1), "input_rounds_s": (1.0,)}, "input_rounds_s: 1 of 2 rounds"),
        ({"rounds": (1, 1), "input_rounds_s": (1.0,) * 2, "output_rounds_s": (1.0,) * 2}, "repeated"),
    ],
    ids=["gap", "seconds", "no figure", "lengths", "a round twice"],
)  # fmt: skip
def test_intervals_that_contradict_the_figures_are_refused(changes, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        gap(**changes)


def test_an_interval_with_its_bounds_reversed_is_refused():
    with pytest.raises(ValueError, match=r"^low: 2\.0 is above high, 1\.0$"):
        Interval(low=2.0, high=1.0)
