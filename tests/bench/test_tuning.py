"""The search of tilings: a wrong, failing or only lucky tiling never wins; one faster than the noise does."""

import dataclasses
import itertools
import json
import math
import random
import types

import pytest
import torch
from decodetax.harness.bench import providers, runner, torch_providers, tuning
from decodetax.harness.bench.providers import Provider, gate_of
from decodetax.harness.bench.tilings import Tunable
from decodetax.harness.bench.timer import Budget
from decodetax.harness.bench.tuning import DUEL_ROUNDS, MIN_GAIN, NOT_TRIED, tune, tune_case
from decodetax.harness.core.errors import UsageError
from decodetax.kernels import DecodeTiling
from fakes import FakeDevice, bench
from msgspec import structs
from small_cases import decode_case, layer_case, source

CASE = decode_case()
DEFAULT = 1
"""Tilings of these tests differ in `programs` alone, by which they are named; the first is the default."""


def tiling(programs):
    return DecodeTiling(block_g=16, block_n=16, programs=programs, num_warps=4, num_stages=2)


def right(inputs):
    inputs.out.copy_(torch_providers.decode_attention(inputs))
    return inputs.out


def wrong(inputs):
    return right(inputs).mul_(1.1)


def broken(_inputs):
    raise RuntimeError("out of resource: shared memory, Required: 300000, Hardware limit: 232448")


class Lab:
    """A kernel whose tilings 1, 2, ... take the times and do what the test says."""

    def __init__(self, monkeypatch, times_s, does=None, **device):
        self.does, self.calls = does or {}, []
        self._count, self._times_s = len(times_s), times_s
        self.device = FakeDevice(kind="cuda", seconds_of=self._seconds_of, **device)
        tunable = Tunable(
            key=lambda case: {"batch": case.batch},
            default=lambda _case, _limits: tiling(DEFAULT),
            candidates=lambda _case, _default, _limits: [tiling(i + 1) for i in range(self._count)],
            run=self._run,
            tiling=DecodeTiling,
        )
        provider = Provider(name="triton", run=right, tunable=tunable)
        monkeypatch.setattr(providers, "PROVIDERS", {CASE.operation: [provider]})

    def _run(self, inputs, tiling):
        self.calls.append(tiling.programs)
        return self.does.get(tiling.programs, right)(inputs)

    def _seconds_of(self, call):
        time_s = self._times_s[call._provider.tiling["programs"] - 1]
        return time_s() if callable(time_s) else time_s

    def tune(self, *, time_limit_s=1e6, **options):
        return tune_case(
            CASE, bench(self.device), time_limit_s=time_limit_s, now_s=self.device.clock, **options
        )


@pytest.fixture(autouse=True)
def _five_samples(monkeypatch):
    """Each row takes as many, whatever the time that this machine takes."""
    for name in ("TRIAL", "ROUND", "DUEL"):
        budget = Budget(time_limit_s=60, warm_up_s=0.0, enough_samples=5, max_samples=5, noise=0.0)
        monkeypatch.setattr(tuning, name, budget)


def winner_of(tuned):
    return tuned.winner and tuned.winner.programs


def trial_of(tuned, programs):
    [trial] = [trial for trial in tuned.trials if trial.tiling.programs == programs]
    return trial


def noisy(mean_s, spread, seed):
    numbers = random.Random(seed)  # noqa: S311  (noise)
    return lambda: mean_s * (1 + spread * numbers.gauss(0, 1))


def test_fastest_tiling_wins_with_its_ratio(monkeypatch):
    tuned = Lab(monkeypatch, [10e-3, 9e-3, 5e-3, 8e-3, 12e-3]).tune()
    assert (tuned.status, tuned.reason, winner_of(tuned)) == ("ok", None, 3)
    assert dataclasses.astuple(tuned.duel.ratio) == pytest.approx((0.5, 0.5, 0.5))
    assert len(tuned.duel.default_s) == len(tuned.duel.challenger_s) == DUEL_ROUNDS
    assert [trial.status for trial in tuned.trials] == ["ok"] * 5


def test_wrong_tiling_never_wins(monkeypatch):
    lab = Lab(monkeypatch, [10e-3, 1e-3, 8e-3], {2: wrong})
    tuned = lab.tune()
    assert winner_of(tuned) == 3
    trial = trial_of(tuned, 2)
    assert (trial.status, trial.samples_s) == ("failed", [])
    assert trial.reason.startswith("wrong result: relative error 0.1")
    assert lab.calls.count(2) == 1, "it was timed"


def zeroes_its_cache(inputs):
    out = right(inputs)
    inputs.v_cache.zero_()
    return out


def test_tiling_that_alters_the_cache_spoils_no_other(monkeypatch):
    tuned = Lab(monkeypatch, [10e-3, 1e-3, 8e-3], {2: zeroes_its_cache}).tune()
    assert "altered its v_cache" in trial_of(tuned, 2).reason
    assert winner_of(tuned) == 3


def test_only_a_wrong_tiling_leaves_the_default(monkeypatch):
    tuned = Lab(monkeypatch, [10e-3, 1e-3], {2: wrong}).tune()
    assert (tuned.status, tuned.duel, tuned.winner) == ("ok", None, None)
    assert tuned.cache_updates() == {}


def test_tiling_that_does_not_compile_is_reported_and_skipped(monkeypatch):
    tuned = Lab(monkeypatch, [10e-3, 1e-3, 8e-3], {2: broken}).tune()
    assert winner_of(tuned) == 3
    assert trial_of(tuned, 2).status == "failed"
    assert "out of resource: shared memory" in trial_of(tuned, 2).reason


@pytest.mark.parametrize("calls", [1, 5, 20, 60], ids=lambda calls: f"after {calls} calls")
def test_tiling_that_becomes_wrong_loses_to_the_next_best(monkeypatch, calls):
    made = itertools.count()

    def turning(inputs):
        return right(inputs) if next(made) < calls else wrong(inputs)

    tuned = Lab(monkeypatch, [10e-3, 1e-3, 8e-3, 9e-3], {2: turning}).tune()
    assert trial_of(tuned, 2).status == "failed"
    assert winner_of(tuned) == 3


def test_tiling_that_stops_computing_fails(monkeypatch):
    made = itertools.count()

    def idle(inputs):
        return right(inputs) if next(made) == 0 else inputs.out

    tuned = Lab(monkeypatch, [10e-3, 1e-3], {2: idle}).tune()
    assert (trial_of(tuned, 2).status, tuned.winner) == ("failed", None)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("spread", [0.02, 0.2])
def test_noise_alone_leaves_the_default(monkeypatch, spread, seed):
    times = [noisy(1e-3, spread, 1000 * seed + i) for i in range(12)]
    tuned = Lab(monkeypatch, times).tune()
    assert tuned.duel is not None
    assert tuned.winner is None


def test_luck_in_the_race_does_not_win_the_duel(monkeypatch):
    made = itertools.count()
    lucky = Lab(monkeypatch, [10e-3, 9e-3, lambda: 1e-3 if next(made) < 15 else 10e-3])
    tuned = lucky.tune()
    assert tuned.duel.challenger.programs == 3
    assert tuned.winner is None


def test_gain_must_exceed_the_minimum(monkeypatch):
    small, large = 1 - MIN_GAIN / 2, 1 - 2 * MIN_GAIN
    assert Lab(monkeypatch, [1e-3, small * 1e-3]).tune().winner is None
    assert winner_of(Lab(monkeypatch, [1e-3, large * 1e-3]).tune()) == 2


@pytest.mark.parametrize("seed", range(5))
def test_gain_of_a_tenth_is_found_in_noise_of_a_twentieth(monkeypatch, seed):
    times = [noisy(1e-3, 0.05, seed), noisy(0.9e-3, 0.05, seed + 100), noisy(1.1e-3, 0.05, seed + 200)]
    assert winner_of(Lab(monkeypatch, times).tune()) == 2


def test_duel_is_won_by_nearly_all_rounds():
    def duel(won):
        challenger_s = [0.9] * won + [1.1] * (DUEL_ROUNDS - won)
        return tuning.Duel(challenger=None, default_s=[1.0] * DUEL_ROUNDS, challenger_s=challenger_s)

    assert [duel(won).rounds_won for won in (0, 13, 14)] == [0, 13, 14]
    assert [duel(won).won for won in (0, 8, 13, 14, 16)] == [False, False, False, True, True]
    assert duel(14).ratio.high < 1 - MIN_GAIN
    by_chance = sum(math.comb(DUEL_ROUNDS, won) for won in (14, 15, 16)) / 2**DUEL_ROUNDS
    assert 1 / by_chance == pytest.approx(478, abs=1)


@pytest.mark.parametrize("factor", [0.997, 1.003], ids=["faster", "slower"])
def test_drift_of_the_clock_falls_on_both(monkeypatch, factor):
    drift = itertools.accumulate(itertools.repeat(factor), lambda a, b: a * b)
    tuned = Lab(monkeypatch, [lambda: 1e-3 * next(drift)] * 2).tune()
    assert tuned.duel is not None
    assert tuned.winner is None


@pytest.mark.parametrize("does", [wrong, broken], ids=["wrong", "broken"])
def test_default_that_fails_leaves_nothing_decided(monkeypatch, does):
    lab = Lab(monkeypatch, [10e-3, 1e-3], {DEFAULT: does})
    tuned = lab.tune()
    assert (tuned.status, tuned.duel, tuned.winner, tuned.cache_updates()) == ("failed", None, None, {})
    assert tuned.reason
    assert set(lab.calls) == {DEFAULT}


def test_default_that_turns_wrong_in_the_duel_leaves_nothing_decided(monkeypatch):
    made = itertools.count()

    def turning(inputs):
        return right(inputs) if next(made) < 12 else wrong(inputs)

    tuned = Lab(monkeypatch, [10e-3, 1e-3], {DEFAULT: turning}).tune()
    assert (tuned.status, tuned.winner, tuned.cache_updates()) == ("failed", None, {})


def test_default_that_is_the_only_tiling_stays(monkeypatch):
    tuned = Lab(monkeypatch, [10e-3]).tune()
    assert (tuned.status, tuned.duel, tuned.winner) == ("ok", None, None)


def test_case_that_does_not_fit_in_memory_is_skipped(monkeypatch):
    lab = Lab(monkeypatch, [10e-3, 1e-3], free_bytes=-(2**23))
    tuned = lab.tune()
    assert (tuned.status, lab.calls, tuned.cache_updates()) == ("skipped", [], {})
    assert "GB of memory" in tuned.reason


def test_time_limit_leaves_the_far_tilings_untried(monkeypatch):
    tuned = Lab(monkeypatch, [1.0] * 30).tune(time_limit_s=60)
    tried = [trial.reason != NOT_TRIED for trial in tuned.trials]
    assert tried[:2] == [True, True]
    assert tried == sorted(tried, reverse=True)
    assert 2 < sum(tried) < 30
    assert tuned.duel is not None


class Compiled:
    """Fake compilers: tilings are ready in the order of `ready`, by their place; None is none in time."""

    def __init__(self, ready, problems=None):
        self.ready, self.problems, self.waits_s, self.calls = list(ready), problems or {}, [], []

    def begin(self, case, tilings):
        self.calls.append(("begin", case, [tiling.programs for tiling in tilings]))

    def next(self, timeout_s):
        self.waits_s.append(timeout_s)
        place = self.ready.pop(0) if self.ready else None
        return None if place is None else (place, self.problems.get(place))

    def end(self):
        self.calls.append(("end",))


def test_tilings_are_tried_as_they_are_compiled(monkeypatch):
    lab, ahead = Lab(monkeypatch, [4e-3, 3e-3, 2e-3, 1e-3]), Compiled([2, 0, 1])
    tuned = lab.tune(ahead=ahead)
    assert [programs for programs, _ in itertools.groupby(lab.calls)][:4] == [1, 4, 2, 3]
    assert winner_of(tuned) == 4
    assert ahead.calls[0] == ("begin", CASE, [2, 3, 4])
    assert ahead.waits_s[0] is None
    assert all(0 < wait_s <= 0.6e6 for wait_s in ahead.waits_s[1:])
    assert tuned.tried == 4


def test_tiling_that_does_not_compile_is_never_run(monkeypatch):
    lab = Lab(monkeypatch, [4e-3, 1e-3, 2e-3])
    tuned = lab.tune(ahead=Compiled([0, 1], {0: "the compiler failed: its process ended with -11"}))
    assert 2 not in lab.calls
    assert (trial_of(tuned, 2).status, winner_of(tuned)) == ("failed", 3)
    assert trial_of(tuned, 2).reason == "the compiler failed: its process ended with -11"
    assert tuned.tried == 3


def test_tilings_that_are_not_compiled_in_time_are_not_tried(monkeypatch):
    tuned = Lab(monkeypatch, [4e-3, 3e-3, 2e-3, 1e-3]).tune(ahead=Compiled([0, None, 1]))
    assert [trial.reason == NOT_TRIED for trial in tuned.trials] == [False, False, True, True]
    assert winner_of(tuned) == 2
    assert tuned.to_json()["tried"] == {"tilings": 2, "of": 4}


def test_race_and_duel_have_no_compilers_beside_them(monkeypatch):
    lab, ahead = Lab(monkeypatch, [4e-3, 3e-3, 2e-3]), Compiled([0, 1])
    calls_at_end = []
    ahead.end = lambda: calls_at_end.append(len(lab.calls))
    lab.tune(ahead=ahead)
    assert calls_at_end[0] < 40 < len(lab.calls)


@pytest.mark.parametrize("does", [wrong, broken], ids=["wrong", "broken"])
def test_default_that_fails_ends_the_compilation(monkeypatch, does):
    ahead = Compiled([0])
    tuned = Lab(monkeypatch, [10e-3, 1e-3], {DEFAULT: does}).tune(ahead=ahead)
    assert ahead.calls[-1] == ("end",)
    assert (ahead.waits_s, tuned.tried) == ([], 1)


@pytest.mark.parametrize("limit_s", [0.0, 1e-9])
def test_time_limit_of_nothing_still_tries_one(monkeypatch, limit_s):
    tuned = Lab(monkeypatch, [10e-3, 5e-3, 1e-3]).tune(time_limit_s=limit_s)
    assert winner_of(tuned) == 2
    assert trial_of(tuned, 3).reason == NOT_TRIED


def test_race_takes_turns(monkeypatch):
    lab = Lab(monkeypatch, [4e-3, 3e-3, 2e-3, 1e-3])
    lab.tune()
    turns = [programs for programs, _ in itertools.groupby(lab.calls)]
    assert turns[:4] == [1, 2, 3, 4]
    assert turns[4:7] == [2, 3, 4]
    assert set(turns[-6:]) == {1, 4}


def test_winner_becomes_an_entry_and_a_loser_takes_it_out(monkeypatch):
    [(name, entry)] = Lab(monkeypatch, [2e-3, 1e-3]).tune().cache_updates(date="today").items()
    assert name == "decode_attention batch=3"
    assert entry["tiling"] == dataclasses.asdict(tiling(2))
    assert entry["default"] == dataclasses.asdict(tiling(DEFAULT))
    assert entry["time_over_default"]["median"] == pytest.approx(0.5)
    assert entry["date"] == "today"
    assert Lab(monkeypatch, [1e-3, 2e-3]).tune().cache_updates() == {name: None}


def test_result_is_strict_json(monkeypatch):
    tuned = Lab(monkeypatch, [10e-3, 1e-3, 8e-3, 9e-3], {2: wrong}).tune()
    document = json.loads(json.dumps(tuned.to_json(), allow_nan=False))
    assert document["provenance"] == "measured"
    assert document["winner"] == dataclasses.asdict(tiling(3))
    assert [trial["time_s"] is None for trial in document["trials"]] == [False, True, False, False]


def test_cases_share_the_time_and_progress_grows(monkeypatch):
    lab = Lab(monkeypatch, [10e-3] * 60)
    calls = []
    cases = [CASE, structs.replace(CASE, contexts=(5, 5))]
    found = list(
        tune(
            cases,
            lab.device,
            time_limit_s=12,
            progress=lambda share, what: calls.append((share, what)),
            now_s=lab.device.clock,
        )
    )
    assert [tuned.case for tuned in found] == cases
    assert lab.device.released >= 2
    shares = [share for share, _ in calls]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < 0.5 < shares[-1] <= 1
    assert {what for _, what in calls} == {case.id for case in cases}
    tried = [sum(trial.reason != NOT_TRIED for trial in tuned.trials) for tuned in found]
    assert all(2 < count < 60 for count in tried)
    assert [tuned.tried for tuned in found] == tried
    assert tuning.tilings_of(cases, lab.device) == 120


def test_rejects_operation_without_tilings():
    known = "prefill_matmul, decode_attention, prefill_attention"
    with pytest.raises(ValueError, match=f"'decoder_layer' has no tiling; {known} have"):
        tune_case(layer_case("decode"), bench(FakeDevice()), time_limit_s=1)


@pytest.mark.parametrize(
    ("device", "interpreting", "problem"),
    [
        (FakeDevice(kind="cpu"), False, "needs a CUDA GPU"),
        (FakeDevice(kind="cuda"), True, "TRITON_INTERPRET is set"),
        (FakeDevice(kind="cuda"), False, "compute capability 8.0 or newer"),
    ],
    ids=["no GPU", "interpreter", "old GPU"],
)
def test_rejects_device_that_cannot_tune_in_one_line(monkeypatch, device, interpreting, problem):
    monkeypatch.setattr(tuning, "open_device", lambda _argument: device)
    monkeypatch.setattr(providers, "interpreting", lambda: interpreting)
    with pytest.raises(UsageError) as caught:
        tuning.open_gpu(CASE)
    assert problem in str(caught.value)
    assert "decodetax inspect" in str(caught.value)


# A run takes the tilings that were found.


def row_with(monkeypatch, tiling_of, does=None):
    lab = Lab(monkeypatch, [10e-3, 1e-3], does)
    monkeypatch.setattr(runner, "PROVIDERS", providers.PROVIDERS)
    plain = types.SimpleNamespace(tiling={"programs": DEFAULT})
    lab.device._seconds_of = lambda call: lab._seconds_of(
        call if call._provider.tiling else types.SimpleNamespace(_provider=plain)
    )
    [row] = runner.run_case(CASE, dataclasses.replace(bench(lab.device), tiling_of=tiling_of))
    return row


def test_run_uses_the_tuned_tiling_and_records_it(monkeypatch):
    row = row_with(monkeypatch, lambda _case: tiling(2))
    assert (row.status, row.provider, row.tiling) == ("ok", "triton", dataclasses.asdict(tiling(2)))
    assert row.time_s.median == pytest.approx(1e-3)


def test_run_without_a_tuned_tiling_leaves_the_choice_to_the_kernel(monkeypatch):
    row = row_with(monkeypatch, lambda _case: None)
    assert (row.status, row.tiling) == ("ok", None)
    assert row.time_s.median == pytest.approx(10e-3)


@pytest.mark.parametrize("does", [wrong, broken], ids=["wrong", "broken"])
def test_tuned_tiling_that_fails_is_named_on_its_row(monkeypatch, does):
    row = row_with(monkeypatch, lambda _case: tiling(2), {2: does})
    assert (row.status, row.tiling["programs"]) == ("failed", 2)


def test_kernel_is_given_the_tiling(monkeypatch):
    given = []

    def kernel(q, *_caches, out, tiling, **_options):
        given.append(tiling)
        out.copy_(q)

    monkeypatch.setattr(providers.kernels, "decode_attention", kernel)
    provider, _ = providers.tunable_provider("decode_attention")
    inputs = types.SimpleNamespace(
        q=torch.ones(2),
        k_cache=None,
        v_cache=None,
        context_lens=None,
        window=None,
        softcap=None,
        sinks=None,
        out=torch.full((2,), math.nan),
    )
    assert provider.with_tiling(tiling(7)).run(inputs).tolist() == [1, 1]
    assert given == [tiling(7)]


def test_the_fake_kernel_passes_the_gate():
    from decodetax.harness.core.inputs import draw  # noqa: PLC0415  (this test alone)

    inputs = draw(CASE, source())
    assert gate_of(CASE, inputs).judge(right(inputs)).passed
