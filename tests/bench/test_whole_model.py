"""The whole model is measured beside its composed time, within limits of time and memory, and checked."""

import dataclasses
import importlib.util
import re

import pytest
import torch
from decodetax.harness.bench import transformers_peer, whole_model, whole_plan
from decodetax.harness.bench.providers import PROVIDERS, Provider
from decodetax.harness.bench.runner import no_tiling
from decodetax.harness.bench.token_cost import gaps_of
from decodetax.harness.bench.whole_model import WholeBench, draw_weights, measure_whole_model
from decodetax.harness.bench.whole_plan import plans_of
from decodetax.harness.core.gap import TOKEN_PARTS
from decodetax.harness.core.inputs import Source
from decodetax.harness.core.sweep import Sweep, cases_of
from fakes import FakeDevice
from hand_made import assert_misuse, decodetax, ok_row, run_record, write_config
from small_cases import CPU, tiny_model

MODEL = dataclasses.replace(tiny_model(vocab_size=40), layers=3)
SWEEP = Sweep(batches=(1, 2, 3), contexts=(9, 70), prompt=None, prefill_tokens=20, dtype="fp32")


def run_of(model=MODEL, sweep=SWEEP, *, seconds=1e-3, providers=()):
    """A run of every case by PyTorch, or by faster providers of these names, by operation."""
    rows = [ok_row(case, samples_s=(seconds,)) for case in cases_of(model, sweep)]
    rows += [
        ok_row(row.case, name, samples_s=(seconds / 2,))
        for row in rows
        for operation, name in providers
        if row.case.operation == operation
    ]
    run = run_record(rows=rows, gaps=gaps_of(rows, model, sweep, usd_per_hour=None))
    run.settings = {**run.settings, "dtype": sweep.dtype}
    return run


def measured(run=None, *, model=MODEL, sweep=SWEEP, device=None, **options):
    device = device or FakeDevice()
    bench = WholeBench(
        **{
            "run": run or run_of(model, sweep),
            "device": device,
            "limit_s": 1e6,
            "user_providers": {},
            "tiling_of": no_tiling,
            "now_s": device.clock,
            **options,
        }
    )
    return measure_whole_model(bench, model, sweep)


def places(whole):
    return [(forward.phase, forward.sequences, forward.tokens) for forward in whole.forwards]


def test_prefill_and_steps_of_the_smallest_and_largest_batch_at_the_shortest_context():
    whole = measured()
    assert places(whole) == [("prefill", 2, 9), ("decode", 1, 9), ("decode", 3, 9)]
    assert whole.reason is None
    assert whole.layers == 3
    for forward in whole.forwards:
        assert (forward.status, forward.layers, forward.limited_by) == ("ok", 3, None)
        assert forward.relative_error <= forward.tolerance < 1e-4
    prefill, *steps = whole.forwards
    assert [len(step.samples_s) for step in steps] == [whole_model.MAX_SAMPLES] * 2
    assert len(prefill.samples_s) == whole_model.MAX_SAMPLES


def test_one_batch_has_one_step_and_prompts_may_be_longer_than_a_forward():
    sweep = dataclasses.replace(SWEEP, batches=(2,), prompt=45)
    whole = measured(sweep=sweep)
    assert places(whole) == [("prefill", 1, 45), ("decode", 2, 9)]
    assert {forward.status for forward in whole.forwards} == {"ok"}


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize(
    "changes", [{"qk_norm": True}, {"tied_embeddings": False, "vocab_size": 5000}], ids=str
)
def test_forwards_agree_with_plain_pytorch(changes, dtype):
    model, sweep = dataclasses.replace(MODEL, **changes), dataclasses.replace(SWEEP, dtype=dtype)
    for forward in measured(model=model, sweep=sweep).forwards:
        assert (forward.status, forward.reason) == ("ok", None)
        assert forward.relative_error <= forward.tolerance


def test_composed_time_is_that_of_the_gap_for_the_same_layers():
    run = run_of()
    gap = next(gap for gap in run.gaps if (gap.batch, gap.context) == (3, 9))
    *_, step = measured(run, device=FakeDevice(free_bytes=130_000)).forwards
    assert (step.layers, step.limited_by) == (2, "memory")
    for part in ("projections", "attention", "rest"):
        assert step.composed_parts_s[part] == pytest.approx(3 * gap.output_parts_s[part] * 2 / 3)
    assert step.composed_parts_s["lm_head"] == pytest.approx(3 * gap.output_parts_s["lm_head"])
    assert step.composed_tokens_per_s == pytest.approx(3 / sum(step.composed_parts_s.values()))


def test_parts_of_a_forward_add_up_to_its_time():
    for forward in measured(device=FakeDevice(seconds_of=lambda _call: 0.01)).forwards:
        assert sum(forward.parts_s.values()) == pytest.approx(forward.time_s.median)
        sections = {part: round(seconds / 0.01) for part, seconds in forward.parts_s.items()}
        # Of each layer 4 products and attention; 5 sections of the rest, and 2 beside the layers.
        per_layer = {"projections": 12, "attention": 3, "lm_head": 1}
        if forward.phase == "decode":
            assert sections == {**per_layer, "rest": 17}


def test_on_a_gpu_a_graph_is_timed_and_the_parts_beside_it():
    device = FakeDevice(kind="cuda", graphs=True, seconds_of=lambda _call: 0.25)
    whole = measured(device=device)
    for forward in whole.forwards:
        assert forward.method == "cuda: each forward, a graph replay"
        assert set(forward.samples_s) == {0.25}
        assert forward.parts_s["attention"] == 0.75
    assert "graph" not in measured(device=FakeDevice(kind="cuda")).forwards[0].method


def test_time_limit_leaves_fewer_layers_and_is_kept():
    run = run_of(seconds=1.0)  # a prefill of 3 layers is composed of 12 s, a step of 16
    device = FakeDevice(seconds_of=lambda _call: 1.0)
    whole = measured(run, device=device, limit_s=120.0)
    assert (whole.forwards[1].layers, whole.forwards[1].limited_by) == (1, "time")
    assert {forward.status for forward in whole.forwards} == {"ok"}
    assert device.clock.time_s < 120.0 + 30.0
    late = FakeDevice(seconds_of=lambda _call: 1000.0)
    whole = measured(run, device=late, limit_s=120.0)
    skipped = [forward for forward in whole.forwards if forward.status == "skipped"]
    assert {forward.reason for forward in skipped} == {whole_model.TIME_OVER}
    assert len(skipped) == 2  # the first had begun


def test_layers_in_a_time_are_those_of_the_composed_forward():
    plan = plans_of(MODEL, SWEEP, run_of().gaps)[0]
    parts_s = plan.composed_parts_s(2)
    for forwards, layers in ((1, 2), (3, 2)):
        limit_s = forwards * (sum(parts_s.values()) * 1.001)
        assert plan.layers_in_s(limit_s, forwards=forwards) == layers
        assert plan.layers_in_s(0.99 * limit_s, forwards=forwards) == layers - 1


def test_memory_holds_fewer_layers_or_none():
    layers = [
        measured(device=FakeDevice(free_bytes=free)).forwards[1].layers for free in (130_000, 10**6, 2**30)
    ]
    assert layers == sorted(layers)
    assert layers[0] < 3
    none = measured(device=FakeDevice(free_bytes=1000))
    assert none.forwards == ()
    assert none.reason.startswith("out of memory: ")
    assert re.search(r"take more than 0\.0 GB", none.reason)


def test_a_cpu_run_stays_below_its_own_limit(monkeypatch):
    monkeypatch.setattr(whole_plan.cpu_facts, "resident_bytes", lambda: int(2.8e9))
    assert whole_plan.memory_limit_bytes(FakeDevice(free_bytes=2**40)) == pytest.approx(1e8)
    assert whole_plan.memory_limit_bytes(FakeDevice(kind="cuda", free_bytes=100)) == 90


def test_a_wrong_provider_fails_the_forward():
    wrong = Provider(name="mine:wrong", run=lambda inputs: 1.1 * inputs.q)
    run = run_of(providers=[("decode_attention", "mine:wrong")])
    whole = measured(run, user_providers={"decode_attention": [wrong]})
    prefill, *steps = whole.forwards
    assert prefill.status == "ok"
    for step in steps:
        assert (step.status, step.samples_s) == ("failed", ())
        assert step.reason.startswith("wrong result: relative error ")
    run.whole_model = whole
    assert run.failures == steps


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("kernel is gone"), "RuntimeError: kernel is gone"),
        (torch.OutOfMemoryError("2 GiB"), "out of memory: OutOfMemoryError: 2 GiB"),
    ],
    ids=str,
)
def test_an_error_ends_the_step_and_is_named(error, reason):
    def run(inputs):
        if len(inputs.q) == 3:
            raise error
        return PROVIDERS["decode_attention"][0].run(inputs)

    run_with = run_of(providers=[("decode_attention", "mine:broken")])
    whole = measured(run_with, user_providers={"decode_attention": [Provider(name="mine:broken", run=run)]})
    assert whole.reason == reason
    assert places(whole) == [("prefill", 2, 9), ("decode", 1, 9)]


def test_a_run_without_a_gap_says_so():
    whole = measured(run_record())
    assert (whole.forwards, whole.reason) == ((), "no gap composes a token's time to compare with")


def test_the_fastest_provider_and_its_cache_layout_are_used():
    run = run_of(providers=[("decode_attention", "torch-v-transposed"), ("prefill_matmul", "mine:counted")])
    calls = []

    def counted(inputs):
        calls.append(tuple(inputs.weight.shape))
        return inputs.x @ inputs.weight.T

    whole = measured(run, user_providers={"prefill_matmul": [Provider(name="mine:counted", run=counted)]})
    assert {forward.status for forward in whole.forwards} == {"ok"}
    assert set(calls) == {(p.out_features, p.in_features) for p in (*MODEL.projections, MODEL.lm_head)}


def test_one_layer_for_all_is_timed_where_the_rates_differ():
    slow = measured(device=FakeDevice(seconds_of=lambda _call: 1.0))
    assert {forward.close for forward in slow.forwards} == {False}
    for forward in slow.forwards:
        assert forward.one_layer_s == pytest.approx(forward.time_s.median)


def test_layers_have_weights_of_their_own_and_activations_stay_of_order_one():
    model = dataclasses.replace(MODEL, layers=20)
    plan = plans_of(model, SWEEP, run_of(model).gaps)[0]
    weights = draw_weights(plan, 20, Source(CPU, 0))
    assert len(weights.layers) == 20
    for name in ("qkv", "o", "gate_up", "down"):
        firsts = {layer.projections[name].flatten()[0].item() for layer in weights.layers}
        assert len(firsts) == 20
    assert len(draw_weights(plan, 20, Source(CPU, 0), enough=lambda: True).layers) == 1
    *_, step = measured(model=model).forwards
    assert (step.status, step.layers) == ("ok", 20)


class FakePeer:
    """Repeats the logits that were judged last, times a factor."""

    def __init__(self, factor):
        self.factor, self.calls = factor, 0

    def __call__(self, _token_ids, _cache):
        self.calls += 1
        return self.factor * self.logits


@pytest.fixture
def fake_peer(monkeypatch):
    def install(factor):
        peer = FakePeer(factor)
        judged = whole_model._Measurement._verdict

        def verdict(measurement, logits, expected):
            peer.logits = expected
            return judged(measurement, logits, expected)

        monkeypatch.setattr(whole_model._Measurement, "_verdict", verdict)
        monkeypatch.setattr(transformers_peer, "load", lambda: None)
        monkeypatch.setattr(transformers_peer, "peer_name", lambda: "a peer 1.0")
        monkeypatch.setattr(transformers_peer, "peer_of", lambda *_: peer)
        monkeypatch.setattr(transformers_peer, "empty_cache", FakeCache)
        return peer

    return install


class FakeCache:
    def update(self, k, v, number):
        self.layers = number + 1
        assert k.shape == v.shape
        assert k.shape[2] == 8  # all tokens but the new one


def test_a_peer_is_timed_where_its_logits_agree(fake_peer):
    fake_peer(1.0)
    whole = measured(peer=True)
    assert [(f.by, f.phase, f.status) for f in whole.forwards[3:]] == [
        ("a peer 1.0", "prefill", "ok"),
        ("a peer 1.0", "decode", "ok"),
        ("a peer 1.0", "decode", "ok"),
    ]
    assert whole.forwards[5].samples_s == (1e-3,) * whole_model.MAX_SAMPLES


def test_a_peer_whose_logits_differ_has_no_figures(fake_peer):
    peer = fake_peer(1.01)
    whole = measured(peer=True)
    assert {forward.status for forward in whole.forwards[3:]} == {"failed"}
    assert peer.calls == 3


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "tied_embeddings": False}], ids=str)
def test_transformers_agrees_on_the_same_weights(changes, dtype):
    pytest.importorskip("transformers")
    model, sweep = dataclasses.replace(MODEL, **changes), dataclasses.replace(SWEEP, dtype=dtype)
    whole = measured(model=model, sweep=sweep, peer=True)
    assert whole.reason is None
    assert len(whole.forwards) == 6
    for forward in whole.forwards:
        assert (forward.status, forward.reason) == ("ok", None)
        assert set(forward.composed_parts_s) == set(TOKEN_PARTS)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (("--whole-model", "transformers"), ["--whole-model", "pip install transformers"]),
        (("--whole-model", "all"), ["--whole-model", "'all'", "measure, none, transformers"]),
    ],
    ids=str,
)
def test_misuse_of_the_option_is_one_line_before_anything_is_measured(
    arguments, fragments, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "transformers" else find_spec(name, *a)
    )
    options = ("--device", "cpu", "--quick", "--model", "config.json", "-o", "out.json")
    assert_misuse(decodetax("run", *options, *arguments), *fragments)
    assert not (tmp_path / "out.json").exists()
