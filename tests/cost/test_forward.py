"""Operations and bytes of a forward, by hand.

TINY has 2 layers. Weights of one: qkv 64 x 128 = 8192, o 64 x 64 = 4096, gate_up 64 x 256 = 16384,
down 128 x 64 = 8192, together 36864; of lm_head 64 x 256 = 16384. In all 2 x 36864 + 16384 = 90112.
A token leaves 2 x 2 x 16 = 64 elements in the cache of a layer; a pair of a query and a key takes
2 x 4 x (16 + 16) = 256 operations a layer.
"""

import dataclasses
import itertools

import pytest
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.language_model import load_language_model, preset_table
from decodetax.harness.core.model_parts import Experts, LatentAttention
from decodetax.harness.cost.forward import (
    STORED_BYTES,
    Attention,
    Elementwise,
    Matmul,
    cache_bytes_per_sequence,
    decode_forward,
    prefill_forward,
    resident_weight_bytes,
)
from hand_made import TINY
from hypothesis import given
from hypothesis import strategies as st

WINDOWED = dataclasses.replace(TINY, window=4, window_layers=1)

# One layer of each kind. An expert: gate_up 64 x 64 = 4096, down 32 x 64 = 2048, together 6144.
MIXTURE = dataclasses.replace(
    TINY, experts=Experts(count=4, per_token=2, intermediate_size=32, shared=1, dense_layers=1)
)

# q_a 64 x 24 = 1536, q_b 24 x 96 = 2304, kv_a 64 x 40 = 2560, kv_b 32 x 128 = 4096, o 64 x 64 = 4096,
# together 14592 in place of the 12288 of qkv and o. A token leaves 32 + 8 = 40 elements in a layer's cache.
LATENT = dataclasses.replace(
    TINY,
    kv_heads=4,
    latent=LatentAttention(q_rank=24, kv_rank=32, nope_head_dim=16, rope_head_dim=8, v_head_dim=16),
)

DENSE = [
    name
    for name in (row["model"] for row in preset_table())
    if (model := load_language_model(name)).experts is None and model.latent is None
]


def decode(model=TINY, **changes):
    return decode_forward(model, **{"batch": 3, "context": 10, **changes})


def prefill(model=TINY, **changes):
    return prefill_forward(model, **{"sequences": 2, "prompt": 5, "rows": 10, **changes})


def parts_of(forward, kind):
    return [part for part in forward.parts if isinstance(part, kind)]


def matmuls_of(forward):
    return {part.name: part for part in parts_of(forward, Matmul)}


# A dense model.


def test_decode_step_of_a_dense_model_by_hand():
    found = decode()
    assert found.rows == 3
    # 3 rows by all weights; 3 x 10 pairs in each layer.
    assert found.operations == 2 * 3 * 90112 + 2 * 30 * 256
    assert found.weight_bytes("bf16") == 2 * 90112
    assert found.kv_bytes("bf16") == 2 * (2 * 30 * 64)
    # In and out of a layer's projections 192 + 128 + 320 + 192 = 832, of lm_head 320, of attention 4 x 32;
    # between them 8 x 64 + 2 x 128 + 3 x 128 = 1152. 2 bytes each.
    assert found.activation_bytes == 2 * 3 * (2 * 832 + 320 + 2 * 128 + 2 * 1152)
    assert (found.reduced_bytes, found.all_reduces) == (0, 0)


def test_prefill_of_a_dense_model_by_hand():
    found = prefill()
    assert found.rows == 10
    # 10 rows by the layers' weights, 2 by lm_head's, one a prompt; 2 x (1 + 2 + 3 + 4 + 5) pairs a layer.
    assert found.operations == 2 * 10 * 2 * 36864 + 2 * 2 * 16384 + 2 * 30 * 256
    assert found.weight_bytes("bf16") == 2 * 90112
    assert found.kv_bytes("bf16") == 2 * (2 * 10 * 64)
    assert found.activation_bytes == 2 * 10 * 2 * (832 + 128 + 1152) + 2 * 2 * 320


def test_prompt_longer_than_a_forward_attends_to_all_its_tokens():
    found = prefill(sequences=1, prompt=20, rows=10)
    [attention] = parts_of(found, Attention)
    assert (found.rows, attention.pairs) == (10, 20 * 21 // 2)
    assert attention.cached == 20 * attention.cached_elements


@pytest.mark.parametrize(
    ("dtype", "of_bf16"), [("bf16", 1), ("fp16", 1), ("fp8", 0.5), ("int8", 0.5), ("int4", 0.25)]
)
def test_stored_bytes_follow_the_dtype_and_activations_do_not(dtype, of_bf16):
    found = decode()
    assert set(STORED_BYTES) == {"bf16", "fp16", "fp8", "int8", "int4"}
    assert found.weight_bytes(dtype) == 180224 * of_bf16
    assert found.kv_bytes(dtype) == 7680 * of_bf16
    assert resident_weight_bytes(TINY, dtype=dtype) == 2 * TINY.parameters * of_bf16
    assert cache_bytes_per_sequence(TINY, context=10, dtype=dtype) == 2560 * of_bf16


def test_elementwise_parts_have_bytes_and_no_operations():
    [part] = parts_of(decode(), Elementwise)
    assert (part.times, part.kernels, part.activation_bytes) == (2, 4, 3 * 1152 * 2)


# A mixture of experts.


def test_decode_step_of_a_mixture_by_hand():
    found = decode(MIXTURE, batch=2)
    # Every token: attention twice, one dense MLP, router 64 x 4, one shared expert, lm_head.
    each = 2 * 12288 + 24576 + 256 + 6144 + 16384
    # A token passes through 2 experts; 2 tokens reach 4 (1 - 1/2^2) = 3 of them. 2 x 10 pairs a layer.
    assert found.operations == pytest.approx(2 * 2 * each + 2 * 2 * 2 * 6144 + 2 * 20 * 256)
    assert found.weight_bytes("bf16") == pytest.approx(2 * (each + 3 * 6144))
    assert found.kv_bytes("bf16") == 2 * (2 * 20 * 64)


def test_prefill_of_a_mixture_by_hand():
    found = prefill(MIXTURE)
    layers = 2 * 12288 + 24576 + 256 + 6144
    assert found.operations == pytest.approx(
        2 * 10 * (layers + 2 * 6144) + 2 * 2 * 16384 + 2 * 30 * 256, rel=1e-12
    )
    # All but 4 / 2^10 of the experts have tokens.
    assert found.weight_bytes("bf16") == pytest.approx(
        2 * (layers + 16384 + (4 - 4 / 2**10) * 6144), rel=1e-12
    )
    assert found.kv_bytes("bf16") == 2 * (2 * 10 * 64)


def test_expert_activations_count_each_token_in_each_of_its_experts():
    # 2 tokens in 2 experts each: gate_up takes 64 and gives 64, down takes 32 and gives 64.
    found = matmuls_of(decode(MIXTURE, batch=2))
    assert found["experts gate_up"].activation_bytes == pytest.approx(2 * 4 * (64 + 64))
    assert found["experts down"].activation_bytes == pytest.approx(2 * 4 * (32 + 64))


def test_other_activations_of_a_mixture_by_hand():
    step = decode(MIXTURE, batch=2)
    found = {name: part.times * part.activation_bytes for name, part in matmuls_of(step).items()}
    del found["experts gate_up"], found["experts down"]
    assert found == {
        "qkv": 2 * 2 * 2 * 192,
        "o": 2 * 2 * 2 * 128,
        "gate_up": 2 * 2 * 320,
        "down": 2 * 2 * 192,
        "router": 2 * 2 * 68,
        "shared gate_up": 2 * 2 * (64 + 64),
        "shared down": 2 * 2 * (32 + 64),
        "lm_head": 2 * 2 * 320,
    }
    # Inside the MLPs 128 elements in one layer and 3 x 32 in the other, so 112 on average.
    [between] = parts_of(step, Elementwise)
    assert between.activation_bytes == 2 * 2 * (8 * 64 + 2 * 128 + 3 * 112)


def test_every_token_passes_through_all_shared_experts():
    experts = dataclasses.replace(MIXTURE.experts, shared=3)
    one, three = decode(MIXTURE), decode(dataclasses.replace(MIXTURE, experts=experts))
    assert three.operations - one.operations == pytest.approx(2 * 3 * 2 * 6144)
    assert three.weight_bytes("fp8") - one.weight_bytes("fp8") == pytest.approx(2 * 6144)
    none = decode(dataclasses.replace(MIXTURE, experts=dataclasses.replace(experts, shared=0)))
    assert not any(name.startswith("shared") for name in matmuls_of(none))


def test_experts_have_no_dense_mlp_beside_them():
    alone = dataclasses.replace(
        TINY, intermediate_size=None, experts=Experts(count=4, per_token=2, intermediate_size=32)
    )
    assert list(matmuls_of(decode(alone))) == [
        "qkv", "o", "router", "experts gate_up", "experts down", "lm_head"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("count", "per_token", "tokens", "distinct"),
    [(128, 8, 1, 8), (4, 2, 1, 2), (4, 2, 2, 3), (4, 2, 3, 3.5), (8, 8, 5, 8), (8, 2, 8192, 8)],
)
def test_distinct_experts_by_hand(count, per_token, tokens, distinct):
    experts = Experts(count=count, per_token=per_token, intermediate_size=1)
    assert experts.expected_distinct(tokens) == pytest.approx(distinct, rel=1e-12)


@given(data=st.data(), count=st.integers(1, 5), tokens=st.integers(1, 3))
def test_distinct_experts_are_the_mean_over_all_choices(data, count, tokens):
    per_token = data.draw(st.integers(1, count))
    ways = list(itertools.combinations(range(count), per_token))
    reached = [len(set().union(*chosen)) for chosen in itertools.product(ways, repeat=tokens)]
    experts = Experts(count=count, per_token=per_token, intermediate_size=1)
    assert experts.expected_distinct(tokens) == pytest.approx(sum(reached) / len(reached))


def test_a_token_cannot_pass_through_more_experts_than_there_are():
    with pytest.raises(UsageError, match=r"^experts\.per_token: must be at most count, 2, was 3$"):
        Experts(count=2, per_token=3, intermediate_size=1)


# Sliding windows.


def test_decode_step_with_a_window_by_hand():
    found = decode(WINDOWED)
    assert [(part.name, part.times, part.pairs) for part in parts_of(found, Attention)] == [
        ("attention", 1, 30),
        ("attention (window)", 1, 12),
    ]
    assert found.operations == 2 * 3 * 90112 + (30 + 12) * 256
    assert found.weight_bytes("bf16") == 2 * 90112
    assert found.kv_bytes("bf16") == 2 * (30 + 12) * 64
    assert found.activation_bytes == decode().activation_bytes


def test_prefill_with_a_window_by_hand():
    found = prefill(WINDOWED, sequences=1, prompt=10)
    # 1 + 2 + ... + 10 pairs in one layer, 1 + 2 + 3 + 7 x 4 in the other.
    assert found.operations == 2 * 10 * 2 * 36864 + 2 * 16384 + (55 + 34) * 256
    assert found.kv_bytes("bf16") == 2 * (2 * 10 * 64)
    assert found.activation_bytes == prefill(sequences=1, prompt=10).activation_bytes


@pytest.mark.parametrize(
    ("context", "tokens"), [(1, 2), (3, 6), (4, 8), (5, 9), (10, 14), (1_000_000, 1_000_004)]
)
def test_window_caps_the_cache_of_its_layers(context, tokens):
    assert cache_bytes_per_sequence(WINDOWED, context=context, dtype="bf16") == tokens * 64 * 2


def test_cache_stops_growing_where_every_layer_has_a_window():
    sliding = dataclasses.replace(TINY, window=4, window_layers=2)
    found = [cache_bytes_per_sequence(sliding, context=context, dtype="bf16") for context in (3, 4, 5, 4096)]
    assert found == [3 * 256, 4 * 256, 4 * 256, 4 * 256]


@given(
    tokens=st.integers(1, 60),
    window=st.none() | st.integers(1, 80),
    sequences=st.integers(1, 4),
    decode_step=st.booleans(),
)
def test_pairs_equal_a_count(tokens, window, sequences, decode_step):
    part = Attention(
        name="attention",
        times=1,
        sequences=sequences,
        tokens=tokens,
        q_heads=4,
        kv_heads=2,
        head_dim=16,
        v_head_dim=8,
        window=window,
        decode=decode_step,
        cached_elements=64,
    )
    queries = [tokens - 1] if decode_step else range(tokens)
    counted = sequences * sum(
        1
        for query in queries
        for key in range(tokens)
        if key <= query and (window is None or query - key < window)
    )
    assert part.pairs == counted
    assert part.operations == 2 * counted * 4 * (16 + 8)
    assert part.cached == 64 * (counted if decode_step else sequences * tokens)


# Latent attention.


def test_decode_step_with_latent_attention_by_hand():
    found = decode(LATENT)
    weights = 2 * (14592 + 24576) + 16384
    # 4 heads meet the latent: keys of 40 elements, values of 32.
    assert found.operations == 2 * 3 * weights + 2 * (2 * 30 * 4 * 72)
    assert found.weight_bytes("bf16") == 2 * weights
    assert found.kv_bytes("bf16") == 2 * (2 * 30 * 40)


def test_prefill_with_latent_attention_by_hand():
    found = prefill(LATENT)
    # Keys of 16 + 8 elements and values of 16 of each head's own; the latent alone is written.
    assert found.operations == 2 * 10 * 2 * (14592 + 24576) + 2 * 2 * 16384 + 2 * (2 * 30 * 4 * 40)
    assert found.weight_bytes("bf16") == 2 * (2 * (14592 + 24576) + 16384)
    assert found.kv_bytes("bf16") == 2 * (2 * 10 * 40)


def test_activations_of_latent_projections_and_attention_by_hand():
    found = decode(LATENT)
    assert {name: part.activation_bytes // 6 for name, part in matmuls_of(found).items()} == {
        "q_a": 64 + 24,
        "q_b": 24 + 96,
        "kv_a": 64 + 40,
        "kv_b": 32 + 128,
        "o": 64 + 64,
        "gate_up": 64 + 256,
        "down": 128 + 64,
        "lm_head": 64 + 256,
    }
    [attention] = parts_of(found, Attention)
    assert attention.activation_bytes == 2 * 3 * 4 * (40 + 32)


def test_queries_without_a_latent_have_one_projection():
    direct = dataclasses.replace(LATENT, latent=dataclasses.replace(LATENT.latent, q_rank=None))
    found = matmuls_of(decode(direct))
    assert "q_a" not in found
    assert (found["q"].in_features, found["q"].out_features) == (64, 96)


# Models whose figures are known.


@pytest.mark.parametrize("tensor_parallel", [1, 8])
def test_deepseek_v3_keeps_70272_bytes_a_token_on_every_gpu(tensor_parallel):
    model = load_language_model("deepseek-v3")
    assert 576 * 61 * 2 == 70272
    assert cache_bytes_per_sequence(model, context=1, dtype="bf16", tensor_parallel=tensor_parallel) == 70272
    step = decode_forward(model, batch=2, context=1000, tensor_parallel=tensor_parallel)
    assert step.kv_bytes("bf16") == 2 * 1000 * 70272


@pytest.mark.parametrize("name", ["deepseek-v3", "mixtral-8x7b", "qwen3-30b-a3b", "gpt-oss-20b"])
def test_one_token_reads_its_active_parameters(name):
    model = load_language_model(name)
    # All but the embedding, of which it reads one row, and the norms.
    active = model.active_parameters - (0 if model.tied_embeddings else model.lm_head.parameters)
    step = decode_forward(model, batch=1, context=1)
    norms = (2 * model.layers + 1) * model.hidden_size
    assert step.weight_bytes("fp8") == pytest.approx(active - norms, rel=1e-9)
    attention = sum(part.times * part.operations for part in parts_of(step, Attention))
    assert step.operations - attention == pytest.approx(2 * (active - norms), rel=1e-9)


def test_llama_31_8b_by_its_published_figures():
    model = load_language_model("llama-3.1-8b")
    assert cache_bytes_per_sequence(model, context=1, dtype="bf16") == 131072
    assert resident_weight_bytes(model, dtype="bf16") == pytest.approx(2 * 8.03e9, rel=1e-3)
    step = decode_forward(model, batch=1, context=1)
    embedding, norms = 128256 * 4096, 65 * 4096
    # One pair a layer: 2 x 32 heads x 256.
    assert step.operations == 2 * (model.parameters - embedding - norms) + 32 * 2 * 32 * 256
    assert step.operations == pytest.approx(2 * (8.03e9 - embedding), rel=1e-3)


def test_prefill_of_one_token_has_the_operations_of_a_decode_step():
    for model in (TINY, WINDOWED, MIXTURE):
        one = prefill(model, sequences=1, prompt=1, rows=1)
        assert one.operations == decode(model, batch=1, context=1).operations


# Tensor parallel.


@pytest.mark.parametrize("tensor_parallel", [2, 4, 8])
@pytest.mark.parametrize("name", DENSE)
def test_tensor_parallel_shares_of_a_dense_model_add_up(name, tensor_parallel):
    model = load_language_model(name)
    whole, share = (decode(model, tensor_parallel=gpus) for gpus in (1, tensor_parallel))
    weights = {part: each.weights for part, each in matmuls_of(whole).items()}
    assert list(weights) == ["qkv", "o", "gate_up", "down", "lm_head"]
    assert {part: each.weights * tensor_parallel for part, each in matmuls_of(share).items()} == weights
    assert share.operations * tensor_parallel == whole.operations
    assert share.kv_bytes("bf16") * tensor_parallel == whole.kv_bytes("bf16")
    assert resident_weight_bytes(
        model, dtype="bf16", tensor_parallel=tensor_parallel
    ) * tensor_parallel == pytest.approx(
        # Each GPU has the norms.
        resident_weight_bytes(model, dtype="bf16")
        + 2 * (tensor_parallel - 1) * (2 * model.layers + 1) * model.hidden_size
    )


def test_o_and_down_are_row_parallel_and_the_others_column_parallel():
    found = matmuls_of(decode(tensor_parallel=2))
    assert {name: (part.in_features, part.out_features) for name, part in found.items()} == {
        "qkv": (64, 64),
        "o": (32, 64),
        "gate_up": (64, 128),
        "down": (64, 64),
        "lm_head": (64, 128),
    }


def test_residual_stream_is_replicated_and_other_activations_are_split():
    [part] = parts_of(decode(tensor_parallel=2), Elementwise)
    assert part.activation_bytes == 2 * 3 * (8 * 64 + (2 * 128 + 3 * 128) / 2)


def test_experts_are_split_and_their_router_is_replicated():
    whole, share = (matmuls_of(decode(MIXTURE, tensor_parallel=gpus)) for gpus in (1, 2))
    for name in ("experts gate_up", "experts down", "shared gate_up", "shared down", "gate_up", "down"):
        assert share[name].weights * 2 == whole[name].weights, name
    assert share["router"] == whole["router"]


def test_latents_are_replicated_on_every_gpu():
    whole, share = (matmuls_of(decode(LATENT, tensor_parallel=gpus)) for gpus in (1, 2))
    assert (share["q_a"], share["kv_a"]) == (whole["q_a"], whole["kv_a"])
    for name in ("q_b", "kv_b", "o"):
        assert share[name].weights * 2 == whole[name].weights, name
    assert decode(LATENT, tensor_parallel=2).kv_bytes("bf16") == decode(LATENT).kv_bytes("bf16")


@pytest.mark.parametrize(("tensor_parallel", "elements"), [(1, 64), (2, 32), (4, 32)])
def test_kv_heads_fewer_than_gpus_are_cached_on_several(tensor_parallel, elements):
    found = decode(tensor_parallel=tensor_parallel)
    assert found.kv_bytes("fp8") == 2 * 30 * elements
    assert (
        cache_bytes_per_sequence(TINY, context=10, dtype="fp8", tensor_parallel=tensor_parallel)
        == 2 * 10 * elements
    )


def test_kv_heads_fewer_than_gpus_are_projected_on_several():
    # Each of 4 GPUs has one query head, and the key and the value of one of the 2 KV heads.
    found = matmuls_of(decode(tensor_parallel=4))
    assert found["qkv"].out_features == (1 + 1 + 1) * 16


@pytest.mark.parametrize(("forward", "rows"), [(decode, 3), (prefill, 10)])
def test_two_all_reduces_of_the_residual_stream_a_layer(forward, rows):
    found = forward(tensor_parallel=2)
    assert (found.reduced_bytes, found.all_reduces) == (rows * 64 * 2, 2 * 2)


def test_vocabulary_that_does_not_divide_is_padded():
    odd = dataclasses.replace(TINY, vocab_size=257)
    assert matmuls_of(decode(odd, tensor_parallel=2))["lm_head"].out_features == 129


@pytest.mark.parametrize(
    ("model", "named"),
    [
        pytest.param(dataclasses.replace(TINY, q_heads=6), "q_heads of tiny, 6", id="query heads"),
        pytest.param(
            dataclasses.replace(TINY, intermediate_size=130), "intermediate_size of tiny, 130", id="MLP"
        ),
        pytest.param(
            dataclasses.replace(MIXTURE, experts=Experts(count=4, per_token=2, intermediate_size=30)),
            "experts.intermediate_size of tiny, 30",
            id="experts",
        ),
    ],
)
@pytest.mark.parametrize("forward", [decode, prefill])
def test_rejects_tensor_parallel_that_does_not_divide_a_size(forward, model, named):
    forward(model)
    with pytest.raises(UsageError) as caught:
        forward(model, tensor_parallel=4)
    assert str(caught.value) == f"--tensor-parallel: 4 does not divide {named}"


@pytest.mark.parametrize("forward", [decode, prefill])
def test_rejects_kv_heads_that_neither_divide_nor_are_divided(forward):
    # 6 KV heads on 4 GPUs: no GPU has the same heads as the next, and none has one alone.
    model = dataclasses.replace(TINY, q_heads=24, kv_heads=6)
    with pytest.raises(UsageError, match=r"^--tensor-parallel: 4 .*kv_heads.*6"):
        forward(model, tensor_parallel=4)
