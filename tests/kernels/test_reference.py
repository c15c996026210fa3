"""The oracles against formulas written another way, and against PyTorch's own attention."""

import itertools
import math

import pytest
import torch
from decodetax.kernels import reference
from kernel_inputs import decode_inputs, normal
from torch.nn import functional

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def test_prefill_matmul_oracle_is_a_linear_layer():
    x, weight, bias = (normal(*shape, dtype=torch.bfloat16, seed=1) for shape in ((2, 3, 5), (7, 5), (7,)))
    expected = functional.linear(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(reference.prefill_matmul(x, weight, bias=bias), expected, **EXACT)


@pytest.mark.parametrize("page_size", [0, 1, 3, 16])
def test_decode_oracle_is_attention_over_the_live_cache(page_size):
    inputs = decode_inputs([20, 7], capacity=20)
    pages = decode_inputs([20, 7], capacity=20, page_size=page_size)
    output, lse = reference.decode_attention(**pages)
    for sequence, length in enumerate([20, 7]):
        q = inputs["q"][sequence, :, None].double()
        k, v = (inputs[name][sequence, :length].double().transpose(0, 1) for name in ("k_cache", "v_cache"))
        expected = functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        torch.testing.assert_close(output[sequence], expected[:, 0], **EXACT)
        scores = q[:, 0] @ k.repeat_interleave(4, 0).transpose(1, 2)
        scores = torch.stack([scores[head, head] for head in range(8)]) / math.sqrt(64)
        torch.testing.assert_close(lse[sequence], scores.exp().sum(-1).log(), **EXACT)


def test_decode_oracle_of_empty_sequence():
    output, lse = reference.decode_attention(**decode_inputs([0, -3], capacity=8))
    assert (output == 0).all()
    assert (lse == -math.inf).all()


def test_decode_oracle_clamps_to_capacity():
    inputs = decode_inputs([8], capacity=8)
    longer = inputs | {"context_lens": torch.tensor([9])}
    assert torch.equal(reference.decode_attention(**longer)[0], reference.decode_attention(**inputs)[0])


@pytest.mark.parametrize("page_size", [0, 3])
def test_decode_oracle_with_float8(page_size):
    inputs = decode_inputs([8, 5], capacity=8, page_size=page_size, dtype=torch.float32)
    narrow = {name: inputs[name].to(torch.float8_e4m3fn) for name in ("q", "k_cache", "v_cache")}
    wide = {name: value.float() for name, value in narrow.items()}
    for actual, expected in zip(
        reference.decode_attention(**inputs | narrow),
        reference.decode_attention(**inputs | wide),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, **EXACT)


def test_decode_oracle_with_every_option():
    inputs = decode_inputs(
        [20, 2], q_heads=4, head_dim=16, v_head_dim=24, query_tokens=3, capacity=20, dtype=torch.float64
    )
    sinks, k_scale = torch.linspace(-1, 1, 4), torch.tensor([0.5, -1.5])
    output, lse = reference.decode_attention(
        **inputs, window=5, softcap=2.0, sinks=sinks, k_scale=k_scale, v_scale=3.0, scale=0.7
    )
    for sequence, token, head in itertools.product(range(2), range(3), range(4)):
        at = [20, 2][sequence] - 3 + token  # where the query token stands
        if at < 0:
            assert (output[sequence, token, head] == 0).all()
            assert lse[sequence, token, head] == -math.inf
            continue
        keys, values = (
            inputs[name][sequence, max(at - 4, 0) : at + 1, head // 2] for name in ("k_cache", "v_cache")
        )
        scores = 0.7 * float(k_scale[head // 2]) * (keys @ inputs["q"][sequence, token, head])
        weights = torch.cat([2.0 * torch.tanh(scores / 2.0), sinks[head : head + 1]]).exp()
        torch.testing.assert_close(lse[sequence, token, head], weights.sum().log(), **EXACT)
        expected = 3.0 * (weights[:-1] / weights.sum()) @ values
        torch.testing.assert_close(output[sequence, token, head], expected, **EXACT)


@pytest.mark.parametrize("page_size", [0, 3])
def test_decode_oracle_reads_nothing_before_the_window(page_size):
    inputs = decode_inputs([20, 7], capacity=20, page_size=page_size, window=4)
    assert reference.decode_attention(**inputs, window=4)[0].isfinite().all()


def test_decode_oracle_with_int8():
    inputs = decode_inputs([8, 5], capacity=8, cache_dtype=torch.int8)
    wide = {name: inputs[name].double() for name in ("k_cache", "v_cache")}
    assert torch.equal(
        reference.decode_attention(**inputs)[0], reference.decode_attention(**inputs | wide)[0]
    )


def test_merge_oracle_equals_attention_over_both_parts():
    inputs = decode_inputs([20, 12], capacity=20)
    whole, whole_lse = reference.decode_attention(**inputs)
    parts = [
        reference.decode_attention(
            inputs["q"],
            inputs["k_cache"][:, tokens],
            inputs["v_cache"][:, tokens],
            inputs["context_lens"] - tokens.start,
        )
        for tokens in (slice(0, 12), slice(12, 20))
    ]
    merged, lse = reference.merge_states(*parts[0], *parts[1])
    torch.testing.assert_close(merged, whole, **EXACT)
    torch.testing.assert_close(lse, whole_lse, **EXACT)


@pytest.mark.parametrize("rows", [None, [0], [11, 3]], ids=str)
def test_prefill_attention_oracle_is_causal(rows):
    q = normal(2, 12, 6, 16, dtype=torch.bfloat16, seed=1)
    k, v = (normal(2, 12, 3, 16, dtype=torch.bfloat16, seed=seed) for seed in (2, 3))
    expected = functional.scaled_dot_product_attention(
        *(each.double().transpose(1, 2) for each in (q, k, v)), is_causal=True, enable_gqa=True
    ).transpose(1, 2)
    wanted = None if rows is None else torch.tensor(rows)
    actual, _ = reference.prefill_attention(q, k, v, rows=wanted)
    torch.testing.assert_close(actual, expected if rows is None else expected[:, rows], **EXACT)


@pytest.mark.parametrize("page_size", [0, 3])
def test_prefill_attention_oracle_of_a_chunk_is_that_of_decode(page_size):
    inputs = decode_inputs([9, 13], capacity=20, query_tokens=4, page_size=page_size, dtype=torch.float64)
    contiguous = decode_inputs([9, 13], capacity=20, query_tokens=4, dtype=torch.float64)
    k, v = (
        torch.stack([contiguous[name][i, length - 4 : length] for i, length in enumerate([9, 13])])
        for name in ("k_cache", "v_cache")
    )
    options = {"window": 6, "softcap": 2.0, "sinks": torch.linspace(-1, 1, 8), "k_scale": 0.7}
    expected = reference.decode_attention(**inputs, **options, v_scale=1.5)
    inputs["context_lens"] = inputs["context_lens"] - 4
    actual = reference.prefill_attention(k=k, v=v, **inputs, **options, v_scale=1.5)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_prefill_attention_oracle_of_packed_sequences_is_that_of_each_alone():
    q, k, v = (normal(9, 2, 16, dtype=torch.float64, seed=seed) for seed in (1, 2, 3))
    output, lse = reference.prefill_attention(q, k, v, cu_seqlens=torch.tensor([0, 2, 2, 7]), causal=False)
    for first, last in ((0, 2), (2, 7)):
        alone = reference.prefill_attention(*(each[None, first:last] for each in (q, k, v)), causal=False)
        torch.testing.assert_close(output[first:last], alone[0][0], **EXACT)
        torch.testing.assert_close(lse[first:last], alone[1][0], **EXACT)
    assert (output[7:] == 0).all()
    assert (lse[7:] == -math.inf).all()


def test_prefill_attention_oracle_keeps_values_that_are_not_finite_in_the_rows_that_attend_to_them():
    q, k, v = (normal(1, 5, 1, 16, dtype=torch.float64, seed=seed) for seed in (1, 2, 3))
    v[0, 3, 0, 2] = math.inf
    output, _ = reference.prefill_attention(q, k, v)
    assert output[0, :3].isfinite().all()
    assert (output[0, 3:, 0, 2] == math.inf).all()
    assert output[0, 3:, 0, 3:].isfinite().all()
