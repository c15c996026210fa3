"""Misuse of `prefill_attention`: each argument is named in a ValueError."""

import pytest
import torch
from decodetax.kernels import PrefillAttentionTiling, prefill_attention
from prefill_checks import prefix, prompts, tiles

WRONG = {
    "q is torch.int32": {"q": torch.zeros(1, 8, 2, 16, dtype=torch.int32)},
    "q has shape": {"q": torch.zeros(8, 2, 16, dtype=torch.bfloat16)},
    "k has shape": {"k": torch.zeros(1, 7, 1, 16, dtype=torch.bfloat16)},
    "k is torch.float16": {"k": torch.zeros(1, 8, 1, 16, dtype=torch.float16)},
    "v has shape": {"v": torch.zeros(1, 8, 2, 16, dtype=torch.bfloat16)},
    "v has strides": {"v": torch.zeros(1, 8, 1, 32, dtype=torch.bfloat16)[..., ::2]},
    "q has 2 heads": {
        "k": torch.zeros(1, 8, 3, 16, dtype=torch.bfloat16),
        "v": torch.zeros(1, 8, 3, 16, dtype=torch.bfloat16),
    },
    "lengths is torch.float32": {"lengths": torch.zeros(1)},
    "lengths has shape": {"lengths": torch.zeros(2, dtype=torch.int32)},
    "k_cache is None": {"context_lens": torch.zeros(1, dtype=torch.int32)},
    "causal is 1": {"causal": 1},
    "return_lse is a Tensor": {"return_lse": torch.ones(2)},
    "window is 0": {"window": 0},
    "softcap is -1": {"softcap": -1.0},
    "scale is a str": {"scale": "1"},
    "sinks has shape": {"sinks": torch.zeros(3)},
    "q_scale has shape": {"q_scale": torch.zeros(2)},
    "k_scale has shape": {"k_scale": torch.zeros(2)},
    "out has shape": {"out": torch.zeros(1, 8, 2, 8, dtype=torch.bfloat16)},
    "out is torch.float32": {"out": torch.zeros(1, 8, 2, 16)},
    "out is a tuple": {"out": (torch.zeros(1, 8, 2, 16), torch.zeros(1, 8, 2))},
    "tiling is a int": {"tiling": 3},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_argument_is_named(message):
    with pytest.raises(ValueError, match=message):
        prefill_attention(**{**prompts(1, 8), **WRONG[message]})


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        ("cu_seqlens has 1 elements", {"cu_seqlens": torch.zeros(1, dtype=torch.int32)}),
        ("cu_seqlens is torch.int16", {"cu_seqlens": torch.zeros(2, dtype=torch.int16)}),
        ("lengths is given", {"cu_seqlens": torch.tensor([0, 8]), "lengths": torch.tensor([8])}),
    ],
)
def test_wrong_argument_of_packed_prompts_is_named(message, wrong):
    with pytest.raises(ValueError, match=message):
        prefill_attention(**prompts(8), **wrong)


@pytest.mark.parametrize(
    ("message", "name", "value"),
    [
        ("context_lens has shape", "context_lens", torch.zeros(2, dtype=torch.int32)),
        ("k_cache has shape", "k_cache", torch.zeros(1, 48, 2, 16, dtype=torch.bfloat16)),
        ("k_cache is torch.float32", "k_cache", torch.zeros(1, 48, 1, 16)),
        ("v_cache is torch.int8", "v_cache", torch.zeros(1, 48, 1, 16, dtype=torch.int8)),
        ("block_table has shape", "block_table", torch.zeros(1, dtype=torch.int32)),
    ],
)
def test_wrong_argument_of_a_prefix_is_named(message, name, value):
    with pytest.raises(ValueError, match=message):
        prefill_attention(**{**prompts(1, 8), **prefix([9]), name: value})


def test_small_workspace_is_refused():
    inputs = prompts(2, 8) | {"lengths": torch.tensor([8, 3])}
    with pytest.raises(ValueError, match="workspace has 4 bytes"):
        prefill_attention(**inputs, workspace=torch.zeros(4, dtype=torch.uint8), tiling=tiles())


@pytest.mark.parametrize(
    ("name", "value"), [("block_m", 24), ("block_n", 8), ("programs", 0), ("variant", "tma")]
)
def test_tiling_refuses(name, value):
    sizes = {"block_m": 32, "block_n": 16, "programs": 3, "num_warps": 4, "num_stages": 2, name: value}
    with pytest.raises(ValueError, match=name):
        PrefillAttentionTiling(**sizes)
