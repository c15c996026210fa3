"""A decoder layer shared by ranks gives what one rank gives, and what the float64 oracle says."""

import dataclasses
import itertools

import pytest
import torch
from decodetax.harness.bench.decoder_layer import decoder_layer, gate_of
from decodetax.harness.core.gate import judge
from decodetax.harness.core.inputs import draw
from decodetax.harness.core.parallelism import Parallelism
from decodetax.harness.core.shards import shard_of
from msgspec import structs
from rank_processes import on_ranks
from sharded_layer import Adder, layer_in_threads, layer_over_ranks, shard_inputs
from small_cases import layer_case, source, tiny_model

SIZES = {
    "2 ranks": (2, {}),
    "2 ranks, group 1": (2, {"q_heads": 4, "kv_heads": 4}),
    "4 ranks, copies of KV heads": (4, {"q_heads": 8, "kv_heads": 2}),
    "4 ranks, one KV head": (4, {"q_heads": 4, "kv_heads": 1}),
    "2 ranks, odd KV heads": (2, {"q_heads": 6, "kv_heads": 3}),
    "2 ranks, odd MLP": (2, {"intermediate_size": 37}),
    "3 ranks": (3, {"q_heads": 6, "kv_heads": 3, "intermediate_size": 41}),
    "3 ranks, 2 KV heads": (3, {"q_heads": 6, "kv_heads": 2}),
    "4 ranks, odd groups": (4, {"q_heads": 6, "kv_heads": 2}),
    "8 ranks": (8, {"q_heads": 8, "kv_heads": 2, "intermediate_size": 100}),
}


def whole_and_gate(case, ranks):
    inputs = draw(case, source())
    gate = gate_of(case, inputs, ranks=ranks)
    return inputs, gate, decoder_layer(draw(case, source()))


@pytest.mark.parametrize(
    ("phase", "dtype"), [*itertools.product(["prefill", "decode"], ["fp32", "bf16", "fp16"])]
)
@pytest.mark.parametrize(("ranks", "sizes"), [*SIZES.values()], ids=SIZES)
def test_layer_of_several_ranks_equals_that_of_one(ranks, sizes, phase, dtype):
    inputs, gate, alone = whole_and_gate(layer_case(phase, model=tiny_model(**sizes), dtype=dtype), ranks)
    for output in layer_in_threads(inputs, ranks):
        assert gate.judge(output).passed
        assert judge(output, alone, bound=2 * gate.bound).passed  # both round


@pytest.mark.parametrize(("ranks", "sizes"), [*SIZES.values()], ids=SIZES)
def test_share_of_a_rank_has_the_sizes_of_its_shard(ranks, sizes):
    case = layer_case("decode", model=tiny_model(**sizes))
    shard = structs.replace(case, model=shard_of(case.model, Parallelism(tensor_parallel=ranks)))
    expected, inputs = draw(shard, source()), draw(case, source())
    for rank in range(ranks):
        share = shard_inputs(inputs, rank, ranks)
        assert {n: w.shape for n, w in share.weights.items()} == {
            n: w.shape for n, w in expected.weights.items()
        }
        assert share.k_cache.shape == share.v_cache.shape == expected.k_cache.shape


class Missing(Adder):
    """Leaves out the last rank's part."""

    def __call__(self, rank, part):
        return super().__call__(rank, part * (rank < len(self._parts) - 1))


class Unreduced(Adder):
    def __call__(self, _rank, part):
        return part


def interchanged(inputs, rank, ranks):
    """A rank's heads with another rank's part of O."""
    share, other = shard_inputs(inputs, rank, ranks), shard_inputs(inputs, (rank + 1) % ranks, ranks)
    return dataclasses.replace(share, weights=share.weights | {"o": other.weights["o"]})


def same_heads(inputs, rank, ranks):
    """The caches of the first rank on all."""
    share, first = shard_inputs(inputs, rank, ranks), shard_inputs(inputs, 0, ranks)
    return dataclasses.replace(share, k_cache=first.k_cache, v_cache=first.v_cache)


def residual_on_each(inputs, rank, ranks):
    share = shard_inputs(inputs, rank, ranks)
    return dataclasses.replace(share, hidden=share.hidden / ranks)


FAULTS = {
    "a part is missing": {"reduce": Missing},
    "nothing is added up": {"reduce": Unreduced},
    "another rank's O": {"shard": interchanged},
    "another rank's caches": {"shard": same_heads},
    "a share of the residual": {"shard": residual_on_each},
}


@pytest.mark.parametrize("fault", [*FAULTS.values()], ids=FAULTS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_gate_rejects_wrong_layers_of_several_ranks(dtype, fault):
    inputs, gate, _ = whole_and_gate(layer_case("decode", dtype=dtype), 2)
    options = {name: make(2) if name == "reduce" else make for name, make in fault.items()}
    assert not all(gate.judge(output).passed for output in layer_in_threads(inputs, 2, **options))


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "sizes"), [SIZES["2 ranks"], SIZES["4 ranks, copies of KV heads"]])
def test_layer_of_several_processes_equals_that_of_one(ranks, sizes):
    cases = [
        layer_case(phase, model=tiny_model(**sizes), dtype=dtype)
        for phase in ("prefill", "decode")
        for dtype in ("fp32", "bf16")
    ]
    by_rank = on_ranks(ranks, layers_over_gloo, [draw(case, source()) for case in cases])
    for case, *outputs in zip(cases, *by_rank, strict=True):
        _, gate, alone = whole_and_gate(case, ranks)
        for output in outputs:
            assert gate.judge(output).passed
            assert judge(output, alone, bound=2 * gate.bound).passed
            assert torch.equal(output, outputs[0])


def layers_over_gloo(_ranks, all_inputs):
    return [layer_over_ranks(inputs) for inputs in all_inputs]
