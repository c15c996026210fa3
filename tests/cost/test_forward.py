"""Operations and bytes of a forward, by hand.

TINY has 2 layers. Weights of one: qkv 64 x 128 = 8192, o 64 x 64 = 4096, gate_up 64 x 256 = 16384,
down 128 x 64 = 8192, together 36864; of lm_head 64 x 256 = 16384. In all 2 x 36864 + 16384 = 90112.
A token leaves 2 x 2 x 16 = 64 elements in the cache of a layer; a pair of a query and a key takes
2 x 4 x (16 + 16) = 256 operations a layer.
"""

import itertools

import pytest
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.formats import CACHE_FORMATS, FORMATS
from decodetax.harness.core.language_model import load_language_model, preset_table
from decodetax.harness.core.layers import Experts, LatentAttention
from decodetax.harness.core.parallelism import Parallelism
from decodetax.harness.cost.attention_parts import Attention
from decodetax.harness.cost.forward import Transfer, decode_forward, prefill_forward
from decodetax.harness.cost.memory import cache_bytes_per_sequence, resident_weight_bytes
from decodetax.harness.cost.parts import Elementwise, Matmul, RoutedExperts
from hand_made import decoder
from hypothesis import given
from hypothesis import strategies as st

TINY = decoder()

WINDOWED = decoder(sliding_window=4, layer_types=["sliding_attention", "full_attention"])

# One layer of each kind. An expert: gate_up 64 x 64 = 4096, down 32 x 64 = 2048, together 6144.
EXPERTS = {
    "model_type": "glm4_moe",
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
}
MIXTURE = decoder(**EXPERTS, first_k_dense_replace=1)

# q_a 64 x 24 = 1536, q_b 24 x 96 = 2304, kv_a 64 x 40 = 2560, kv_b 32 x 128 = 4096, o 64 x 64 = 4096,
# together 14592 in place of the 12288 of qkv and o. A token leaves 32 + 8 = 40 elements in a layer's cache.
RANKS = {
    "model_type": "deepseek_v3",
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
LATENT = decoder(**RANKS, q_lora_rank=24)


def other_parameters(model):
    """Norms, biases and the like."""
    return model.other_parameters + sum(group.count * group.other_parameters for group in model.layer_groups)


def is_dense(model):
    return not any(
        isinstance(group.mlp, Experts) or isinstance(group.attention, LatentAttention)
        for group in model.layer_groups
    )


DENSE = [row["model"] for row in preset_table() if is_dense(load_language_model(row["model"]))]


def decode(model=TINY, tensor_parallel=1, **changes):
    split = Parallelism(tensor_parallel=tensor_parallel)
    return decode_forward(model, **{"batch": 3, "context": 10, "parallelism": split, **changes})


def prefill(model=TINY, tensor_parallel=1, **changes):
    split = Parallelism(tensor_parallel=tensor_parallel)
    return prefill_forward(
        model, **{"sequences": 2, "prompt": 5, "rows": 10, "parallelism": split, **changes}
    )


def experts_of(forward):
    [part] = parts_of(forward, RoutedExperts)
    return part


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
    assert found.weight_bytes == 2 * 90112
    assert found.kv_bytes == 2 * (2 * 30 * 64)
    # In and out of a layer's projections 192 + 128 + 320 + 192 = 832, of lm_head 320, of attention 4 x 32;
    # between them 8 x 64 + 3 x 128 = 896. 2 bytes each.
    assert found.activation_bytes == 2 * 3 * (2 * 832 + 320 + 2 * 128 + 2 * 896)
    assert found.transfers == ()


def test_prefill_of_a_dense_model_by_hand():
    found = prefill()
    assert found.rows == 10
    # 10 rows by the layers' weights, 2 by lm_head's, one a prompt; 2 x (1 + 2 + 3 + 4 + 5) pairs a layer.
    assert found.operations == 2 * 10 * 2 * 36864 + 2 * 2 * 16384 + 2 * 30 * 256
    assert found.weight_bytes == 2 * 90112
    assert found.kv_bytes == 2 * (2 * 10 * 64)
    assert found.activation_bytes == 2 * 10 * 2 * (832 + 128 + 896) + 2 * 2 * 320


def test_prompt_longer_than_a_forward_attends_to_all_its_tokens():
    found = prefill(sequences=1, prompt=20, rows=10)
    [attention] = parts_of(found, Attention)
    assert (found.rows, attention.pairs) == (10, 20 * 21 // 2)
    assert attention.kv_bytes == 20 * attention.cached_elements * 2


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp8", "int8", "int4"])
def test_stored_bytes_follow_the_format_and_activations_do_not(name):
    weights, cached = FORMATS[name], CACHE_FORMATS[name]
    model = TINY.with_formats(weights)
    found = decode(model, cache_format=cached)
    lm_head = model.formats.embedding.bytes_per_element
    assert found.weight_bytes == 73728 * weights.bytes_per_element + 16384 * lm_head
    assert found.kv_bytes == 3840 * cached.bytes_per_element
    assert found.activation_bytes == decode().activation_bytes
    # Norms stay in 16 bits.
    norms = 5 * 64
    assert resident_weight_bytes(model) == found.weight_bytes + 2 * norms
    assert cache_bytes_per_sequence(TINY, context=10, cache_format=cached) == 1280 * cached.bytes_per_element


@pytest.mark.parametrize(("name", "passes"), [("bf16", 0), ("int4", 0), ("fp8", 4)])
def test_products_of_8_bits_have_their_inputs_quantised(name, passes):
    [part] = parts_of(decode(TINY.with_formats(FORMATS[name])), Elementwise)
    # 64 + 64 + 64 + 128 elements, each read in 2 bytes and written in 1.
    assert (part.quantise_kernels, part.quantised_bytes) == (passes, 3 * 3 * 320 * (passes > 0))


def test_elementwise_parts_have_bytes_and_no_operations():
    [part] = parts_of(decode(), Elementwise)
    assert (part.times, part.kernels, part.activation_bytes) == (2, 3, 3 * 896 * 2)


# A mixture of experts.


def test_decode_step_of_a_mixture_by_hand():
    found = decode(MIXTURE, batch=2)
    # Every token: attention twice, one dense MLP, router 64 x 4, one shared expert, lm_head.
    each = 2 * 12288 + 24576 + 256 + 6144 + 16384
    # A token passes through 2 experts; 2 tokens reach 4 (1 - 1/2^2) = 3 of them. 2 x 10 pairs a layer.
    assert found.operations == pytest.approx(2 * 2 * each + 2 * 2 * 2 * 6144 + 2 * 20 * 256)
    assert found.weight_bytes == pytest.approx(2 * (each + 3 * 6144))
    assert found.kv_bytes == 2 * (2 * 20 * 64)


def test_prefill_of_a_mixture_by_hand():
    found = prefill(MIXTURE)
    layers = 2 * 12288 + 24576 + 256 + 6144
    assert found.operations == pytest.approx(
        2 * 10 * (layers + 2 * 6144) + 2 * 2 * 16384 + 2 * 30 * 256, rel=1e-12
    )
    # All but 4 / 2^10 of the experts have tokens.
    assert found.weight_bytes == pytest.approx(2 * (layers + 16384 + (4 - 4 / 2**10) * 6144), rel=1e-12)
    assert found.kv_bytes == 2 * (2 * 10 * 64)


def test_expert_activations_count_each_token_in_each_of_its_experts():
    # 2 tokens in 2 experts each: gate_up takes 64 and gives 64, activation takes 64 and gives 32, down
    # takes 32 and gives 64.
    found = experts_of(decode(MIXTURE, batch=2))
    assert found.rows == 4
    assert found.activation_bytes == 2 * 4 * (64 + 64 + 64 + 32 + 32 + 64)


def test_other_activations_of_a_mixture_by_hand():
    step = decode(MIXTURE, batch=2)
    found = {name: part.times * part.activation_bytes for name, part in matmuls_of(step).items()}
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
    # Inside the dense MLP 128 elements, inside the shared expert 32; the routed ones' are in their kernel.
    assert [part.activation_bytes for part in parts_of(step, Elementwise)] == [
        2 * 2 * (8 * 64 + 3 * inside) for inside in (128, 32)
    ]


def test_every_token_passes_through_all_shared_experts():
    none, one, three = (
        decode(decoder(**{**EXPERTS, "n_shared_experts": shared}, first_k_dense_replace=1))
        for shared in (0, 1, 3)
    )
    assert three.operations - one.operations == pytest.approx(2 * 3 * 2 * 6144)
    assert three.weight_bytes - one.weight_bytes == pytest.approx(2 * 2 * 6144)
    assert not any(name.startswith("shared") for name in matmuls_of(none))


def test_experts_have_no_dense_mlp_beside_them():
    alone = decoder(**{**EXPERTS, "n_shared_experts": 0}, first_k_dense_replace=0, intermediate_size=None)
    assert list(matmuls_of(decode(alone))) == ["qkv", "o", "router", "lm_head"]


def routed(count, per_token, tokens):
    return RoutedExperts(
        times=1,
        tokens=tokens,
        hidden_size=1,
        intermediate_size=1,
        gated=True,
        experts=count,
        experts_per_token=per_token,
    )


@pytest.mark.parametrize(
    ("count", "per_token", "tokens", "distinct"),
    [(128, 8, 1, 8), (4, 2, 1, 2), (4, 2, 2, 3), (4, 2, 3, 3.5), (8, 8, 5, 8), (8, 2, 8192, 8)],
)
def test_distinct_experts_by_hand(count, per_token, tokens, distinct):
    assert routed(count, per_token, tokens).distinct == pytest.approx(distinct, rel=1e-12)


@given(data=st.data(), count=st.integers(1, 5), tokens=st.integers(1, 3))
def test_distinct_experts_are_the_mean_over_all_choices(data, count, tokens):
    per_token = data.draw(st.integers(1, count))
    ways = list(itertools.combinations(range(count), per_token))
    reached = [len(set().union(*chosen)) for chosen in itertools.product(ways, repeat=tokens)]
    assert routed(count, per_token, tokens).distinct == pytest.approx(sum(reached) / len(reached))


# Sliding windows.


def test_decode_step_with_a_window_by_hand():
    found = decode(WINDOWED)
    assert [(part.name, part.times, part.pairs) for part in parts_of(found, Attention)] == [
        ("attention (window)", 1, 12),
        ("attention", 1, 30),
    ]
    assert found.operations == 2 * 3 * 90112 + (30 + 12) * 256
    assert found.weight_bytes == 2 * 90112
    assert found.kv_bytes == 2 * (30 + 12) * 64
    assert found.activation_bytes == decode().activation_bytes


def test_prefill_with_a_window_by_hand():
    found = prefill(WINDOWED, sequences=1, prompt=10)
    # 1 + 2 + ... + 10 pairs in one layer, 1 + 2 + 3 + 7 x 4 in the other.
    assert found.operations == 2 * 10 * 2 * 36864 + 2 * 16384 + (55 + 34) * 256
    assert found.kv_bytes == 2 * (2 * 10 * 64)
    assert found.activation_bytes == prefill(sequences=1, prompt=10).activation_bytes


@pytest.mark.parametrize(
    ("context", "tokens"), [(1, 2), (3, 6), (4, 8), (5, 9), (10, 14), (1_000_000, 1_000_004)]
)
def test_window_caps_the_cache_of_its_layers(context, tokens):
    assert cache_bytes_per_sequence(WINDOWED, context=context) == tokens * 64 * 2


def test_cache_stops_growing_where_every_layer_has_a_window():
    sliding = decoder(sliding_window=4)
    found = [cache_bytes_per_sequence(sliding, context=context) for context in (3, 4, 5, 4096)]
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
    assert part.kv_bytes == 2 * 64 * (counted if decode_step else sequences * tokens)


# Latent attention.


def test_decode_step_with_latent_attention_by_hand():
    found = decode(LATENT)
    weights = 2 * (14592 + 24576) + 16384
    # 4 heads meet the latent: keys of 40 elements, values of 32.
    assert found.operations == 2 * 3 * weights + 2 * (2 * 30 * 4 * 72)
    assert found.weight_bytes == 2 * weights
    assert found.kv_bytes == 2 * (2 * 30 * 40)


def test_prefill_with_latent_attention_by_hand():
    found = prefill(LATENT)
    # Keys of 16 + 8 elements and values of 16 of each head's own; the latent alone is written.
    assert found.operations == 2 * 10 * 2 * (14592 + 24576) + 2 * 2 * 16384 + 2 * (2 * 30 * 4 * 40)
    assert found.weight_bytes == 2 * (2 * (14592 + 24576) + 16384)
    assert found.kv_bytes == 2 * (2 * 10 * 40)


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
    found = matmuls_of(decode(decoder(**RANKS)))
    assert "q_a" not in found
    assert (found["q"].in_features, found["q"].out_features) == (64, 96)


# Models whose figures are known.


@pytest.mark.parametrize("tensor_parallel", [1, 8])
def test_deepseek_v3_keeps_70272_bytes_a_token_on_every_gpu(tensor_parallel):
    model = load_language_model("deepseek-v3")
    assert 576 * 61 * 2 == 70272
    assert (
        cache_bytes_per_sequence(model, context=1, parallelism=Parallelism(tensor_parallel=tensor_parallel))
        == 70272
    )
    step = decode(model, batch=2, context=1000, tensor_parallel=tensor_parallel)
    assert step.kv_bytes == 2 * 1000 * 70272


@pytest.mark.parametrize("name", ["deepseek-v3", "mixtral-8x7b", "qwen3-30b-a3b", "gpt-oss-20b"])
def test_one_token_reads_its_active_parameters(name):
    model = load_language_model(name).with_formats(FORMATS["bf16"])
    # All but the embedding, of which it reads one row, norms and biases.
    active = model.active_parameters - model.vocab_size * model.hidden_size
    step = decode_forward(model, batch=1, context=1)
    norms = model.other_parameters + sum(group.count * group.other_parameters for group in model.layer_groups)
    assert step.weight_bytes == pytest.approx(2 * (active - norms), rel=1e-9)
    attention = sum(part.times * part.operations for part in parts_of(step, Attention))
    assert step.operations - attention == pytest.approx(2 * (active - norms), rel=1e-9)


def test_llama_31_8b_by_its_published_figures():
    model = load_language_model("llama-3.1-8b")
    assert cache_bytes_per_sequence(model, context=1) == 131072
    assert resident_weight_bytes(model) == pytest.approx(2 * 8.03e9, rel=1e-3)
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
    weights = {part: each.weight_bytes for part, each in matmuls_of(whole).items()}
    assert list(weights) == ["qkv", "o", "gate_up", "down", "lm_head"]
    assert {part: each.weight_bytes * tensor_parallel for part, each in matmuls_of(share).items()} == weights
    assert share.operations * tensor_parallel == whole.operations
    assert share.kv_bytes * tensor_parallel == whole.kv_bytes
    assert resident_weight_bytes(
        model, parallelism=Parallelism(tensor_parallel=tensor_parallel)
    ) * tensor_parallel == pytest.approx(
        # Each GPU has the norms.
        resident_weight_bytes(model) + 2 * (tensor_parallel - 1) * other_parameters(model)
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
    assert part.activation_bytes == 2 * 3 * (8 * 64 + 3 * 128 / 2)


def test_experts_are_split_and_their_router_is_replicated():
    steps = [decode(MIXTURE, tensor_parallel=gpus) for gpus in (1, 2)]
    whole, share = map(matmuls_of, steps)
    for name in ("shared gate_up", "shared down", "gate_up", "down"):
        assert share[name].weight_bytes * 2 == whole[name].weight_bytes, name
    assert share["router"] == whole["router"]
    assert experts_of(steps[1]).weight_bytes * 2 == experts_of(steps[0]).weight_bytes


def test_latents_are_replicated_on_every_gpu():
    whole, share = (matmuls_of(decode(LATENT, tensor_parallel=gpus)) for gpus in (1, 2))
    assert (share["q_a"], share["kv_a"]) == (whole["q_a"], whole["kv_a"])
    for name in ("q_b", "kv_b", "o"):
        assert share[name].weight_bytes * 2 == whole[name].weight_bytes, name
    assert decode(LATENT, tensor_parallel=2).kv_bytes == decode(LATENT).kv_bytes


@pytest.mark.parametrize(("tensor_parallel", "elements"), [(1, 64), (2, 32), (4, 32)])
def test_kv_heads_fewer_than_gpus_are_cached_on_several(tensor_parallel, elements):
    found = decode(tensor_parallel=tensor_parallel)
    assert found.kv_bytes == 2 * 2 * 30 * elements
    split = Parallelism(tensor_parallel=tensor_parallel)
    assert cache_bytes_per_sequence(TINY, context=10, parallelism=split) == 2 * 2 * 10 * elements


def test_kv_heads_fewer_than_gpus_are_projected_on_several():
    # Each of 4 GPUs has one query head, and the key and the value of one of the 2 KV heads.
    found = matmuls_of(decode(tensor_parallel=4))
    assert found["qkv"].out_features == (1 + 1 + 1) * 16


@pytest.mark.parametrize(("forward", "rows"), [(decode, 3), (prefill, 10)])
def test_two_all_reduces_of_the_residual_stream_a_layer(forward, rows):
    found = forward(tensor_parallel=2)
    assert found.transfers == (Transfer(kind="all-reduce", times=2 * 2, gpus=2, moved_bytes=rows * 64 * 2),)


def test_vocabulary_that_does_not_divide_is_padded():
    odd = decoder(vocab_size=257)
    assert matmuls_of(decode(odd, tensor_parallel=2))["lm_head"].out_features == 129


@pytest.mark.parametrize("forward", [decode, prefill])
def test_rejects_more_gpus_than_heads(forward):
    with pytest.raises(UsageError, match="--tensor-parallel: 5 GPUs cannot share an attention of 4 heads"):
        forward(tensor_parallel=5)


def test_sizes_that_do_not_divide_are_padded():
    found = matmuls_of(decode(tensor_parallel=3))
    # 2 query heads of the KV head that one GPU has alone; 128 / 3 elements, 256 / 3 words.
    assert {name: (part.in_features, part.out_features) for name, part in found.items()} == {
        "qkv": (64, 4 * 16),
        "o": (2 * 16, 64),
        "gate_up": (64, 2 * 43),
        "down": (43, 64),
        "lm_head": (64, 86),
    }


# Data, expert and pipeline parallelism.


def test_attention_replicas_have_their_sequences_and_share_the_experts():
    split = Parallelism(tensor_parallel=2, data_parallel=2, expert_parallel=4)
    found = decode(MIXTURE, batch=7, parallelism=split)
    assert found.rows == 4
    experts = experts_of(found)
    assert (experts.tokens, experts.local_experts, experts.tensor_parallel) == (7, 1, 1)
    assert {part.sequences for part in parts_of(found, Attention)} == {4}
    # The layer with experts sends tokens to 4 (1 - (3/4)^2) = 1.75 GPUs and back; 3 of 4 are other GPUs.
    reduce, exchange = found.transfers
    assert (reduce.kind, reduce.times, reduce.gpus) == ("all-reduce", 3, 2)
    assert (exchange.kind, exchange.times, exchange.gpus) == ("all-to-all", 2, 4)
    assert exchange.moved_bytes == pytest.approx(4 / 2 * 1.75 * 3 / 4 * 64 * 2)


def test_a_stage_of_a_pipeline_decodes_a_part_of_the_batch():
    split = Parallelism(pipeline_parallel=2)
    found = decode(batch=8, parallelism=split)
    assert found.rows == 4
    assert found.operations == decode(batch=4).operations
    assert found.transfers == (Transfer(kind="send", times=1, gpus=2, moved_bytes=4 * 64 * 2),)


def test_memory_is_divided_by_stages_and_replicas_keep_their_own():
    norms, embedding = 2 * 2 * 64 * 2, 16384 * 2
    whole = resident_weight_bytes(TINY)
    assert whole == 2 * 36864 * 2 + norms + embedding + 64 * 2
    staged = resident_weight_bytes(TINY, parallelism=Parallelism(pipeline_parallel=2))
    assert staged == 36864 * 2 + norms / 2 + embedding + 64 * 2
    assert resident_weight_bytes(TINY, parallelism=Parallelism(data_parallel=2)) == whole
    assert cache_bytes_per_sequence(TINY, context=10, parallelism=Parallelism(pipeline_parallel=2)) == 1280


def test_experts_that_do_not_divide_are_padded():
    split = Parallelism(data_parallel=3, expert_parallel=3)
    assert experts_of(decode(MIXTURE, parallelism=split)).local_experts == 2
