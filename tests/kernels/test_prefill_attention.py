"""Prefill attention against the float64 oracle, in the interpreter."""

import dataclasses
import importlib

import pytest
import torch
from decode_checks import A100_LIMITS
from decodetax.kernels.gpu_limits import H100_LIMITS
from decodetax.kernels.prefill_attention_plan import plan_prefill_attention
from kernel_inputs import by_default
from prefill_checks import assert_right, attend, prefix, prompts, tiles

VARIANTS = ["pointers", "descriptors"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 31, 32, 33, 70])
def test_prompts_of_odd_lengths(tokens, variant):
    assert_right(prompts(2, tokens, q_heads=2), tiling=tiles(variant))


@pytest.mark.parametrize("group", [1, 5, 8])
def test_groups_of_query_heads(group):
    assert_right(prompts(1, 33, q_heads=2 * group, kv_heads=2), tiling=tiles())


@pytest.mark.parametrize("variant", VARIANTS)
def test_sequences_of_unequal_lengths_among_them_an_empty_one(variant):
    inputs = prompts(3, 40)
    lengths = torch.tensor([0, 40, 17])
    for name in "qkv":
        inputs[name][0] = inputs[name][2, 17:] = float("nan")
    assert_right(inputs, tiling=tiles(variant), lengths=lengths)


@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_sequences_among_them_an_empty_one(variant):
    inputs = prompts(70, kv_heads=2)
    cu_seqlens = torch.tensor([0, 1, 1, 34, 70], dtype=torch.int32)
    assert_right(inputs, tiling=tiles(variant), cu_seqlens=cu_seqlens)


@pytest.mark.parametrize("page_size", [0, 1, 3, 16])
@pytest.mark.parametrize("context", by_default([0, 17], [0, 1, 15, 16, 17, 33]))
def test_cached_prefix(context, page_size):
    inputs = prompts(2, 33) | prefix([context, 5], page_size=page_size)
    assert_right(inputs, tiling=tiles())


@pytest.mark.parametrize("head_dims", [(64, 64), (80, 40), (192, 128), (24, 16), (96, 96), (20, 24)], ids=str)
def test_head_dims(head_dims):
    head_dim, v_head_dim = head_dims
    assert_right(prompts(1, 17, head_dim=head_dim, v_head_dim=v_head_dim), tiling=tiles("descriptors"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2])
def test_dtypes(dtype):
    assert_right(prompts(1, 33, dtype=dtype, head_dim=32), tiling=tiles())


@pytest.mark.parametrize("context", [0, 9])
def test_float8_e4m3_on_gpus_without_instructions_for_it(context, monkeypatch):
    module = importlib.import_module("decodetax.kernels.prefill_attention")
    monkeypatch.setattr(module, "gpu_limits", lambda _device: A100_LIMITS)
    inputs = prompts(1, 33, dtype=torch.float8_e4m3fn, head_dim=32)
    if context:
        inputs |= prefix([context], dtype=torch.float8_e4m3fn, head_dim=32)
    scales = {"k_scale": torch.tensor([0.7]), "v_scale": torch.tensor([2.0])}
    assert_right(inputs, tiling=tiles(), **scales)


@pytest.mark.parametrize(
    "options",
    [
        {"window": 1},
        {"window": 9},
        {"causal": False},
        {"window": 9, "causal": False},
        {"softcap": 2.0},
        {"scale": -0.3},
    ],
    ids=str,
)
def test_options(options):
    assert_right(prompts(1, 40) | prefix([21]), tiling=tiles(), **options)


def test_sinks_and_scales():
    inputs = prompts(1, 20, q_heads=4, kv_heads=2) | prefix([9], kv_heads=2, dtype=torch.float8_e4m3fn)
    assert_right(
        inputs, tiling=tiles(), sinks=torch.linspace(-1, 1, 4), q_scale=0.7,
        k_scale=torch.tensor([0.5, -1.5]), v_scale=3.0,
    )  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_values_that_are_not_finite_reach_only_the_rows_that_attend_to_them(value, variant):
    inputs = prompts(1, 40)
    inputs["v"][0, 20, 0, 3] = value
    output, _ = attend(inputs, tiling=tiles(variant), window=8)
    attending = torch.zeros(40, dtype=torch.bool)
    attending[20:28] = True
    assert output[0, ~attending].isfinite().all()
    assert (~output[0, attending][:, :, 3].isfinite()).all()
    assert output[0, attending][:, :, 4:].isfinite().all()


@pytest.fixture
def sm_100(monkeypatch):
    limits = dataclasses.replace(H100_LIMITS, compute_capability=100)
    module = importlib.import_module("decodetax.kernels.prefill_attention")
    monkeypatch.setattr(module, "gpu_limits", lambda _device: limits)
    return limits


@pytest.mark.parametrize(("v_head_dim", "heads_first"), [(16, False), (16, True), (32, False)])
def test_values_at_the_rows_of_their_keys_and_elsewhere_on_sm_100(sm_100, v_head_dim, heads_first):
    inputs = prompts(2, 33, q_heads=4, kv_heads=2, v_head_dim=v_head_dim, heads_first=heads_first)
    tiling = tiles("descriptors")
    plan = plan_prefill_attention(**inputs, tiling=tiling, limits=sm_100)
    assert plan.same_tiles == (v_head_dim == 16)
    assert_right(inputs, tiling=tiling, window=20)


@pytest.mark.usefixtures("sm_100")
def test_values_that_are_not_finite_are_found_by_row_on_sm_100():
    inputs = prompts(1, 40)
    inputs["v"][0, 20, 0, 3] = float("nan")
    output, _ = attend(inputs, tiling=tiles())
    assert output[0, :20].isfinite().all()
    assert output[0, 20:, :, 3].isnan().all()
    assert output[0, 20:, :, 4:].isfinite().all()
