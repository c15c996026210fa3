"""Tuning on a GPU: tilings compile and pass the gate, and a run uses the winner."""

import contextlib
import dataclasses

import pytest
from decodetax.harness.bench import tuning
from decodetax.harness.bench.compile_ahead import CompileAhead
from decodetax.harness.bench.providers import tunable_provider
from decodetax.harness.bench.runner import Bench, run_case
from decodetax.harness.bench.tiling_cache import open_cache, tuned_tilings
from decodetax.harness.bench.timer import Budget
from decodetax.harness.bench.tuning import NOT_TRIED, open_gpu, tune
from decodetax.harness.core.arena import Arena
from decodetax.harness.core.cases import DecodeAttention, PrefillAttention, PrefillMatmul
from decodetax.harness.core.records import Roof
from decodetax.kernels import gpu_limits

pytestmark = pytest.mark.gpu
CASES = [
    DecodeAttention(contexts=(1000,), q_heads=8, kv_heads=2, head_dim=128, dtype="bf16"),
    DecodeAttention(contexts=(300,) * 5, q_heads=8, kv_heads=2, head_dim=128, dtype="bf16"),
    PrefillAttention(sequences=4, prompt=500, q_heads=8, kv_heads=2, head_dim=128, dtype="bf16"),
    PrefillMatmul(phase="decode", part="o", rows=8, in_features=4096, out_features=4096, dtype="bf16"),
    PrefillMatmul(phase="prefill", part="o", rows=500, in_features=4096, out_features=4096, dtype="bf16"),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


@pytest.fixture(scope="module")
def device():
    return open_gpu(CASES[0])


@pytest.fixture(scope="module")
def ahead(device):
    with contextlib.closing(CompileAhead(gpu_limits(device.torch_device))) as ahead:
        yield ahead


@pytest.fixture(scope="module")
def found(device, ahead):
    return list(tune(CASES, device, time_limit_s=120, progress=lambda _share, _what: None, ahead=ahead))


def bench(device, **options):
    budget = Budget(time_limit_s=0.1, warm_up_s=0.1)
    roof = Roof(flop_per_s=1e13, bandwidth_bytes_per_s=1e11)
    arena = Arena(device.torch_device, 0, size_bytes=2**30)
    return Bench(device=device, arena=arena, budget=budget, roof=roof, **options)


def test_every_tiling_passes_the_gate(found):
    assert [(tuned.status, tuned.reason) for tuned in found] == [("ok", None)] * len(CASES)
    reasons = [trial.reason for tuned in found for trial in tuned.trials if trial.status == "failed"]
    assert [reason for reason in reasons if reason.startswith("wrong result")] == []


def test_tilings_are_compiled_in_processes_of_their_own(found, ahead):
    assert (ahead.problem, ahead.skipped) == (None, [])
    assert all(tuned.tried > 2 for tuned in found)


def test_several_tilings_are_timed(found):
    for tuned in found:
        assert sum(trial.status == "ok" for trial in tuned.trials) > 2
        assert tuned.duel is not None
        assert all(0 < time_s < 0.1 for time_s in (*tuned.duel.default_s, *tuned.duel.challenger_s))


def test_every_tiling_is_timed_or_has_a_reason(found):
    for tuned in found:
        for trial in tuned.trials:
            assert (trial.status == "ok") == (trial.reason is None)
            assert trial.status != "skipped" or trial.reason == NOT_TRIED or "memory" in trial.reason


def test_default_does_not_beat_itself(device, monkeypatch):
    provider, tunable = tunable_provider(CASES[0].operation)
    twice = dataclasses.replace(tunable, candidates=lambda _case, default, _limits: [default, default])
    monkeypatch.setattr(tuning, "tunable_provider", lambda _operation: (provider, twice))
    [tuned] = tune(CASES[:1], device, time_limit_s=10, progress=lambda _share, _what: None)
    assert tuned.status == "ok", tuned.reason
    assert tuned.winner is None, tuned.duel


@each_case
def test_run_uses_the_kept_tiling(device, case, tmp_path):
    _, tunable = tunable_provider(case.operation)
    default = tunable.default(case, gpu_limits(device.torch_device))
    other = tunable.candidates(case, default, gpu_limits(device.torch_device))[1]
    duel = tuning.Duel(challenger=other, default_s=[2.0] * 9, challenger_s=[1.0] * 9)
    tuned = tuning.Tuned(
        case=case,
        key=tunable.key(case),
        status="ok",
        reason=None,
        trials=[tuning.Trial(tiling=default)],
        duel=duel,
    )
    cache = open_cache(device.name, "3.9.0", tmp_path)
    cache.merge(tuned.cache_updates())
    tiling_of = tuned_tilings(cache, device)
    rows = {row.provider: row for row in run_case(case, bench(device, tiling_of=tiling_of))}
    assert rows["triton"].status == "ok", rows["triton"].reason
    assert rows["triton"].tiling == dataclasses.asdict(other)
    assert rows["torch"].tiling is None
