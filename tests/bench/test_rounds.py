"""Cases are timed in interleaved rounds, and a run that stopped continues without repeating anything."""

import dataclasses

import pytest
from decodetax.harness.bench import ceilings, runner, session
from decodetax.harness.bench.resuming import require_same_machine
from decodetax.harness.bench.rounds import (
    FEW_ROUNDS,
    GRACE,
    MIN_ROUNDS,
    ROUNDS,
    Deadline,
    equal_share_s,
    round_budget,
    rounds_left,
)
from decodetax.harness.bench.run_settings import settings_of
from decodetax.harness.core.errors import UsageError
from fakes import Clock
from test_session import run as run_all
from test_session import settings, small_device


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(ceilings, "SQUARE_SIZES", {"cpu": (8,), "cuda": (8,)})
    monkeypatch.setattr(session, "check_in_interpreter", lambda *_args, **_options: iter(()))


def run(**changes):
    """A short run."""
    return run_all(**{"batches": (2,), "contexts": (3,), **changes})


@pytest.fixture
def turns(monkeypatch):
    """Every provider that is run: round, case, name, in order; an interrupt comes at the `stop`-th."""
    seen = {"turns": [], "stop": None}
    plain = runner.run_provider

    def noted(case, provider, copies, gate, bench, before=None, **options):
        if seen["stop"] is not None and len(seen["turns"]) == seen["stop"]:
            raise KeyboardInterrupt
        seen["turns"].append((bench.round, case.id, provider.name))
        return plain(case, provider, copies, gate, bench, before, **options)

    monkeypatch.setattr(runner, "run_provider", noted)
    return seen


def resume(result, device=None):
    asked = settings_of(result)
    session.measure(result, asked, device or small_device(), lambda _done, _what: None)
    return result


def test_rows_and_ceilings_of_their_dtype_have_samples_of_every_round():
    result = run()
    rows = [row for row in result.rows if row.status == "ok"]
    assert rows
    for each in (*rows, *result.ceilings):
        timed_once = each in result.ceilings and each.dtype not in (None, result.dtype)
        assert set(each.rounds) == set(range(1 if timed_once else ROUNDS))
        assert len(each.rounds) == len(each.samples_s)
        assert list(each.rounds) == sorted(each.rounds)


def test_ceiling_that_cannot_be_timed_again_is_tried_once_a_round(monkeypatch):
    tried = []
    monkeypatch.setattr(
        session, "time_again", lambda ceiling, *_args, number: tried.append((ceiling.kind, number)) or ceiling
    )
    run()
    kinds = ("read_bandwidth", "copy_bandwidth", "matmul")
    assert tried == [(kind, number) for number in range(1, ROUNDS) for kind in kinds]


def test_rounds_are_interleaved(turns):
    run()
    rounds = [number for number, _, _ in turns["turns"]]
    assert rounds == sorted(rounds)
    assert set(rounds) == set(range(ROUNDS))
    first = [turn[1:] for turn in turns["turns"] if turn[0] == 0]
    for number in range(1, ROUNDS):
        assert [turn[1:] for turn in turns["turns"] if turn[0] == number] == first


@pytest.fixture
def clock(monkeypatch):
    """The wall clock of the deadline; every case takes `clock.case_s` seconds and a row's call 1 ms."""
    clock = Clock()
    clock.case_s = 0.0
    plain = session.run_case

    def timed(case, bench, earlier):
        yield from plain(case, bench, earlier)
        clock.time_s += clock.case_s

    monkeypatch.setattr(session, "run_case", timed)
    monkeypatch.setattr(session, "Deadline", lambda limit_s: Deadline(limit_s, clock))
    return clock


def rounds_of(result):
    return {number for row in result.rows for number in row.rounds}


@pytest.mark.parametrize(
    ("round_s", "rounds", "late"),
    [
        pytest.param(0.0, ROUNDS, None, id="none take time"),
        pytest.param(9.0, 6, None, id="enough"),
        pytest.param(13.0, 4, "the time limit of 60 s allowed 4 of 10 rounds", id="few"),
        pytest.param(25.0, MIN_ROUNDS, "the time limit of 60 s allowed 3 of 10 rounds", id="fewest"),
        pytest.param(40.0, 3, "the time limit of 60 s was over in round 3 of 10", id="not even those"),
    ],
)
def test_rounds_are_begun_while_they_fit(clock, round_s, rounds, late):
    cases = len({row.case for row in run(total_limit_s=60.0).rows})
    clock.time_s, clock.case_s = 0.0, round_s / cases
    result = run(total_limit_s=60.0)
    assert rounds_of(result) == set(range(rounds))
    assert result.late == late
    assert clock.time_s <= GRACE * 60.0 + clock.case_s
    assert (rounds < FEW_ROUNDS) == (late is not None)


def test_cases_that_the_first_round_does_not_reach_are_skipped_with_a_reason(clock):
    clock.case_s = 30.0
    result = run(total_limit_s=60.0)
    skipped = [row for row in result.rows if row.status == "skipped"]
    assert {row.reason for row in skipped} == {"the time limit of 60 s was over"}
    assert rounds_of(result) == {0}
    assert len({(row.case, row.provider) for row in result.rows}) == len(run().rows)
    assert not result.interrupted


def test_run_that_was_cut_short_can_continue(clock):
    clock.case_s = 30.0
    result = run(total_limit_s=60.0)
    assert result.gaps == []
    clock.time_s, clock.case_s = 0.0, 0.0
    resume(result)
    assert result.late is None
    assert {row.status for row in result.rows} == {"ok", "unsupported"}
    assert rounds_of(result) == set(range(ROUNDS))
    assert len(result.gaps) == 1


@pytest.mark.parametrize(("limit_s", "longest_s"), [(60.0, 6.0), (1000.0, 20.0)])
def test_longest_call_is_a_tenth_of_the_limit_at_most(monkeypatch, limit_s, longest_s):
    seen, plain = set(), session.run_case

    def noted(case, bench, earlier):
        seen.add(bench.longest_call_s)
        return plain(case, bench, earlier)

    monkeypatch.setattr(session, "run_case", noted)
    run(total_limit_s=limit_s)
    assert seen == {longest_s}


def test_seconds_in_timed_calls_are_part_of_the_run():
    result = run()
    rows = sum(sum(row.samples_s) for row in result.rows)
    assert result.timed_s >= rows > 0
    assert result.timed_share == pytest.approx(result.timed_s / result.elapsed_s)


@pytest.mark.parametrize(
    ("calls_s", "available_s", "share_s"),
    [
        pytest.param([1.0, 1.0], 10.0, 5.0, id="equal"),
        pytest.param([1.0, 8.0], 10.0, 2.0, id="one long call"),
        pytest.param([1.0, 4.0, 8.0], 12.5, 0.0, id="only the calls themselves"),
        pytest.param([3.0], 1.0, 0.0, id="too little time"),
        pytest.param([1.0], -5.0, 0.0, id="no time"),
        pytest.param([], 5.0, 0.0, id="no rows"),
    ],
)
def test_rows_share_the_time_of_a_round(calls_s, available_s, share_s):
    assert equal_share_s(calls_s, available_s) == pytest.approx(share_s)


def test_shares_and_longer_calls_fill_the_time():
    calls_s = [0.001 * 3**n for n in range(9)]
    for available_s in (0.5, 5.0, 9.9, 50.0):
        share_s = equal_share_s(calls_s, available_s)
        if share_s > 0:
            assert sum(max(call_s, share_s) for call_s in calls_s) == pytest.approx(available_s)


@pytest.mark.parametrize("first", [True, False])
def test_budget_of_a_round_is_samples_and_in_the_first_a_warm_up(first):
    budget = round_budget(2.0, first=first)
    assert budget.time_limit_s + budget.warm_up_s == pytest.approx(2.0)
    assert (budget.warm_up_s > 0) == first
    assert budget.min_samples == 1


@pytest.mark.parametrize(
    ("done", "round_s", "left_s", "rounds"),
    [
        pytest.param(0, 0.0, 5.0, ROUNDS, id="no time known"),
        pytest.param(0, 1.0, 100.0, ROUNDS, id="much time"),
        pytest.param(3, 1.0, 100.0, ROUNDS - 3, id="the rest"),
        pytest.param(3, 1.0, 2.9, 2, id="two fit"),
        pytest.param(5, 1.0, 0.5, 1, id="none fits"),
        pytest.param(0, 9.0, 10.0, MIN_ROUNDS, id="the fewest"),
    ],
)
def test_rounds_left_are_those_that_fit(done, round_s, left_s, rounds):
    assert rounds_left(done, round_s, left_s) == rounds


def test_wrong_result_in_a_later_round_fails_the_row(monkeypatch):
    plain = runner.run_provider

    def later_wrong(case, provider, copies, gate, bench, before=None, **options):
        if bench.round == 2 and case.part == "o":
            wrong = dataclasses.replace(provider, run=lambda inputs: provider.run(inputs) * 1.5)
            return plain(case, wrong, copies, gate, bench, before, **options)
        return plain(case, provider, copies, gate, bench, before, **options)

    monkeypatch.setattr(runner, "run_provider", later_wrong)
    result = run()
    statuses = {row.case.part: row.status for row in result.rows if row.provider == "torch"}
    assert statuses["o"] == "failed"
    assert statuses["qkv"] == "ok"
    assert result.gaps == []


def test_resumed_run_repeats_and_misses_nothing(turns):
    run()
    whole = list(turns["turns"])
    for stop in (1, 30):  # among the ceilings, among the rows
        turns.update(turns=[], stop=stop)
        result = run()
        assert result.interrupted
        turns["stop"] = None
        resume(result)
        assert not result.interrupted
        assert turns["turns"] == whole
        assert len(result.ceilings) == 5
        for row in (result.ceilings[0], *(row for row in result.rows if row.status == "ok")):
            assert sorted(set(row.rounds)) == list(range(ROUNDS))
        assert len(result.gaps) == 1


def test_incomplete_ceilings_are_measured_again():
    result = run()
    result.ceilings = result.ceilings[:2]
    resume(result)
    assert len(result.ceilings) == 5


def test_run_is_saved_as_interrupted_between_cases(monkeypatch):
    monkeypatch.setattr(session, "SAVE_EVERY_S", 0.0)
    asked, device, kept = settings(batches=(2,), contexts=(3,)), small_device(), []
    result = session.begin(asked, device)
    session.measure(
        result,
        asked,
        device,
        lambda _done, _what: None,
        save=lambda: kept.append((result.interrupted, len(result.rows), len(result.gaps))),
    )
    assert kept[0] == (True, 0, 0)
    assert all(interrupted for interrupted, _, _ in kept)
    assert len(kept) > ROUNDS * 10
    assert kept[-1][2] == len(result.gaps) == 1
    assert not result.interrupted


def test_settings_are_read_back_from_a_run():
    asked = settings(prompt=7, usd_per_hour=2.5, seed=3)
    assert settings_of(session.begin(asked, small_device())) == asked


@pytest.mark.parametrize(
    ("part", "name"), [("device", "name"), ("device", "kind"), ("versions", "torch"), ("versions", "triton")]
)
def test_rejects_resuming_on_another_machine(part, name):
    device = small_device()
    result = session.begin(settings(), device)
    require_same_machine(result, device)
    other = {**result.environment[part], name: "another"}
    result.environment = {**result.environment, part: other}
    with pytest.raises(UsageError, match=f"^--resume: the run was begun with {name} 'another', here it is "):
        require_same_machine(result, device)
