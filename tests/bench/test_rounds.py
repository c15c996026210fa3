"""Cases are timed in interleaved rounds, and a run that stopped goes on without doing anything twice."""

import dataclasses

import pytest
from decodetax.harness.bench import ceilings, runner, session
from decodetax.harness.bench.session import LEAST_ROUNDS, ROUNDS, require_same_machine, settings_of
from decodetax.harness.core.errors import UsageError
from test_session import run, settings, small_device


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(ceilings, "SQUARE_SIZES", {"cpu": (8,), "cuda": (8,)})
    monkeypatch.setattr(session, "check_in_interpreter", lambda *_args, **_options: iter(()))


@pytest.fixture
def turns(monkeypatch):
    """Every provider that is run: round, case, name, in order; an interrupt comes at the `stop`-th."""
    seen = {"turns": [], "stop": None}
    plain = runner.run_provider

    def noted(case, provider, copies, gate, bench, before=None):
        if seen["stop"] is not None and len(seen["turns"]) == seen["stop"]:
            raise KeyboardInterrupt
        seen["turns"].append((bench.round, case.id, provider.name))
        return plain(case, provider, copies, gate, bench, before)

    monkeypatch.setattr(runner, "run_provider", noted)
    return seen


def go_on(result, device=None):
    asked = settings_of(result)
    session.measure(result, asked, device or small_device(), lambda _done, _what: None)
    return result


def test_every_row_has_samples_of_every_round():
    result = run()
    rows = [row for row in result.rows if row.status == "ok"]
    assert rows
    for row in rows:
        assert sorted(set(row.rounds)) == list(range(ROUNDS))
        assert len(row.rounds) == len(row.samples_s)
        assert list(row.rounds) == sorted(row.rounds)


def test_ceilings_that_bear_on_rows_have_samples_of_every_round():
    result = run()
    for ceiling in result.ceilings:
        rounds = set(range(ROUNDS)) if ceiling.dtype in (None, result.dtype) else {0}
        assert set(ceiling.rounds) == rounds
        assert list(ceiling.rounds) == sorted(ceiling.rounds)


def test_a_run_that_goes_on_times_no_ceiling_twice_in_a_round(turns):
    whole = len(run().ceilings[0].samples_s)
    turns["stop"] = len(turns["turns"]) // 2
    turns["turns"].clear()
    result = run()
    assert result.interrupted
    turns["stop"] = None
    go_on(result)
    assert set(result.ceilings[0].rounds) == set(range(ROUNDS))
    assert len(result.ceilings[0].samples_s) == whole


def test_a_ceiling_that_cannot_be_timed_again_is_tried_once_a_round(monkeypatch):
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


def test_rounds_end_early_once_the_time_is_over():
    result = run(total_limit_s=0.0)
    assert {number for row in result.rows for number in row.rounds} == set(range(LEAST_ROUNDS))


def test_what_is_wrong_in_a_later_round_fails_the_row(monkeypatch):
    plain = runner.run_provider

    def later_wrong(case, provider, copies, gate, bench, before=None):
        if bench.round == 2 and case.part == "o":
            wrong = dataclasses.replace(provider, run=lambda inputs: provider.run(inputs) * 1.5)
            return plain(case, wrong, copies, gate, bench, before)
        return plain(case, provider, copies, gate, bench, before)

    monkeypatch.setattr(runner, "run_provider", later_wrong)
    result = run()
    statuses = {row.case.part: row.status for row in result.rows if row.provider == "torch"}
    assert statuses["o"] == "failed"
    assert statuses["qkv"] == "ok"
    assert result.gaps == []


@pytest.mark.parametrize("stop", [0, 1, 2, 7, 30, 55])
def test_a_run_that_stopped_goes_on_and_does_nothing_twice(turns, stop):
    run()
    whole = list(turns["turns"])
    assert stop < len(whole)
    turns["turns"].clear()
    turns["stop"] = stop
    result = run()
    assert result.interrupted
    turns["stop"] = None
    go_on(result)
    assert not result.interrupted
    assert turns["turns"] == whole
    assert len(result.ceilings) == 5
    for row in result.rows:
        if row.status == "ok":
            assert sorted(set(row.rounds)) == list(range(ROUNDS))
    assert len(result.gaps) == 4


def test_half_measured_ceilings_are_measured_anew():
    result = run()
    result.ceilings = result.ceilings[:2]
    go_on(result)
    assert len(result.ceilings) == 5


def test_a_run_is_kept_after_every_case_and_says_that_it_is_not_whole():
    asked, device, kept = settings(), small_device(), []
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
    assert kept[-1][2] == len(result.gaps) == 4
    assert not result.interrupted


def test_settings_are_read_back_from_a_run():
    asked = settings(prompt=7, usd_per_hour=2.5, seed=3)
    assert settings_of(session.begin(asked, small_device())) == asked


@pytest.mark.parametrize(
    ("part", "name"), [("device", "name"), ("device", "kind"), ("versions", "torch"), ("versions", "triton")]
)
def test_a_run_of_another_machine_does_not_go_on(part, name):
    device = small_device()
    result = session.begin(settings(), device)
    require_same_machine(result, device)
    other = {**result.environment[part], name: "another"}
    result.environment = {**result.environment, part: other}
    with pytest.raises(UsageError, match=f"^--resume: the run was begun with {name} 'another', here it is "):
        require_same_machine(result, device)
