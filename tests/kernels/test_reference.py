"""The oracles against formulas written another way, and against PyTorch's own attention."""

import math

import pytest
import torch
from decodetax.kernels import reference
from kernel_inputs import decode_inputs, normal
from torch.nn import functional

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def test_prefill_matmul_is_a_linear_layer_in_float64():
    x, weight, bias = (normal(*shape, dtype=torch.bfloat16, seed=1) for shape in ((2, 3, 5), (7, 5), (7,)))
    expected = functional.linear(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(reference.prefill_matmul(x, weight, bias=bias), expected, **EXACT)


@pytest.mark.parametrize("page_size", [0, 1, 3, 16])
def test_decode_attention_is_attention_over_the_live_cache(page_size):
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


def test_decode_attention_of_nothing_is_zero_and_minus_infinity():
    output, lse = reference.decode_attention(**decode_inputs([0, -3], capacity=8))
    assert (output == 0).all()
    assert (lse == -math.inf).all()


def test_decode_attention_clamps_to_capacity():
    inputs = decode_inputs([8], capacity=8)
    longer = inputs | {"context_lens": torch.tensor([9])}
    assert torch.equal(reference.decode_attention(**longer)[0], reference.decode_attention(**inputs)[0])


@pytest.mark.parametrize("page_size", [0, 3])
def test_decode_attention_takes_float8(page_size):
    inputs = decode_inputs([8, 5], capacity=8, page_size=page_size, dtype=torch.float32)
    narrow = {name: inputs[name].to(torch.float8_e4m3fn) for name in ("q", "k_cache", "v_cache")}
    wide = {name: value.float() for name, value in narrow.items()}
    for actual, expected in zip(
        reference.decode_attention(**inputs | narrow),
        reference.decode_attention(**inputs | wide),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, **EXACT)


@pytest.mark.parametrize("rows", [None, [0], [11, 3]], ids=str)
def test_prefill_attention_is_causal_attention(rows):
    q = normal(2, 6, 12, 16, dtype=torch.bfloat16, seed=1)
    k, v = (normal(2, 3, 12, 16, dtype=torch.bfloat16, seed=seed) for seed in (2, 3))
    expected = functional.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), is_causal=True, enable_gqa=True
    )
    wanted = None if rows is None else torch.tensor(rows)
    actual = reference.prefill_attention(q, k, v, rows=wanted)
    torch.testing.assert_close(actual, expected if rows is None else expected[:, :, rows], **EXACT)
