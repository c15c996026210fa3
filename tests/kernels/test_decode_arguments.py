"""Every misuse of decode attention, merge and tilings is a ValueError that says what is wrong."""

import re

import pytest
import torch
from decodetax.kernels import (
    DecodeTiling,
    MatmulTiling,
    checks,
    decode_attention,
    decode_attention_workspace_bytes,
    merge_states,
    prefill_matmul,
)
from kernel_inputs import decode_inputs


def zeros(*shape, dtype=torch.bfloat16, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


INTS = {"dtype": torch.int32}
HALF = {"dtype": torch.float16}
META = {"device": "meta"}
LAST = "the last must be 1"
ALL_SIZES = "every size must be at least 1"
FLOATS = torch.zeros(2, 8)
PACKED = {"q": zeros(5, 8, 64), "cu_seqlens": zeros(3, **INTS)}
PADDED = {"q": zeros(2, 5, 8, 64), "q_lens": zeros(2, **INTS)}
NOT_ON_CPU = "is on meta; it must be on cpu, the device of q"

DECODE = {
    "q_integer": ({"q": zeros(2, 8, 64, **INTS)}, "q is torch.int32; it must be one of torch.bfloat16"),
    "q_dimensions": (
        {"q": zeros(8, 64)},
        (
            "q has shape [8, 64]; it must be [batch, q_heads, head_dim] or "
            "[batch, query_tokens, q_heads, head_dim]"
        ),
    ),
    "q_too_many_rows": (
        {"q": zeros(1, 1, 8, 64).expand(2, 2**28, 8, 64)},
        "q has 536870912 query tokens; with groups of 4 it may have 268435456",
    ),
    "q_no_tensor": ({"q": [1.0]}, "q is a list; it must be a torch.Tensor"),
    "q_no_tokens": ({"q": zeros(2, 0, 8, 64)}, f"q has shape [2, 0, 8, 64]; {ALL_SIZES}"),
    "q_no_heads": ({"q": zeros(2, 0, 64)}, f"q has shape [2, 0, 64]; {ALL_SIZES}"),
    "q_device": ({"q": zeros(2, 8, 64, **META)}, "q is on meta; it must be on a CUDA device, or on the CPU"),
    "q_strides": ({"q": zeros(2, 64, 8).transpose(1, 2)}, f"q has strides (512, 1, 8); {LAST}"),
    "head_dim_large": ({"q": zeros(2, 8, 577)}, "q has head_dim 577; it must be from 1 to 576"),
    "k_batch": (
        {"k_cache": zeros(3, 20, 2, 64)},
        (
            "k_cache has shape [3, 20, 2, 64]; it must be [batch, capacity, kv_heads, head_dim] "
            "with batch and head_dim of q: [2, any, any, 64]"
        ),
    ),
    "k_head_dim": ({"k_cache": zeros(2, 20, 2, 72)}, "k_cache has shape [2, 20, 2, 72]"),
    "k_dimensions": ({"k_cache": zeros(2, 20, 64)}, "k_cache has shape [2, 20, 64]"),
    "k_empty": (
        {"k_cache": zeros(2, 0, 2, 64), "v_cache": zeros(2, 0, 2, 64)},
        f"k_cache has shape [2, 0, 2, 64]; {ALL_SIZES}",
    ),
    "k_no_tensor": ({"k_cache": None}, "k_cache is a NoneType; it must be a torch.Tensor"),
    "k_dtype": (
        {"k_cache": zeros(2, 20, 2, 64, **HALF)},
        (
            "k_cache is torch.float16; under q of torch.bfloat16 it must be one of torch.bfloat16, "
            "torch.float8_e4m3fn, torch.float8_e5m2, torch.int8"
        ),
    ),
    "k_unsigned": ({"k_cache": zeros(2, 20, 2, 64, dtype=torch.uint8)}, "k_cache is torch.uint8; under q"),
    "k_device": ({"k_cache": zeros(2, 20, 2, 64, **META)}, f"k_cache {NOT_ON_CPU}"),
    "k_strides": (
        {"k_cache": zeros(2, 20, 64, 2).transpose(2, 3)},
        f"k_cache has strides (2560, 128, 1, 2); {LAST}",
    ),
    "v_no_tensor": ({"v_cache": 1}, "v_cache is a int; it must be a torch.Tensor"),
    "v_shape": (
        {"v_cache": zeros(2, 19, 2, 64)},
        (
            "v_cache has shape [2, 19, 2, 64]; it must be the shape of k_cache but for head_dim: "
            "[2, 20, 2, any]"
        ),
    ),
    "v_head_dim": (
        {"v_cache": zeros(2, 20, 2, 513)},
        "v_cache has head_dim 513; it must be from 1 to 512",
    ),
    "v_dtype": (
        {"v_cache": zeros(2, 20, 2, 64, **HALF)},
        "v_cache is torch.float16; it must be torch.bfloat16, the dtype of k_cache",
    ),
    "v_dtype_of_q_alone": (
        {"k_cache": zeros(2, 20, 2, 64, dtype=torch.int8)},
        "v_cache is torch.bfloat16; it must be torch.int8, the dtype of k_cache",
    ),
    "v_device": ({"v_cache": zeros(2, 20, 2, 64, **META)}, f"v_cache {NOT_ON_CPU}"),
    "v_strides": (
        {"v_cache": zeros(2, 20, 64, 2).transpose(2, 3)},
        f"v_cache has strides (2560, 128, 1, 2); {LAST}",
    ),
    "heads_not_divided": (
        {"q": zeros(2, 7, 64)},
        "q has 7 heads; it must have 1 to 128 for each of the 2 in k_cache",
    ),
    "group_too_large": (
        {"q": zeros(2, 258, 64)},
        "q has 258 heads; it must have 1 to 128 for each of the 2 in k_cache",
    ),
    "lengths_dtype": (
        {"context_lens": zeros(2, dtype=torch.int16)},
        "context_lens is torch.int16; it must be torch.int32 or torch.int64",
    ),
    "lengths_shape": (
        {"context_lens": zeros(3, **INTS)},
        "context_lens has shape [3]; it must be [batch]: [2]",
    ),
    "lengths_device": ({"context_lens": zeros(2, **INTS, **META)}, f"context_lens {NOT_ON_CPU}"),
    "lengths_no_tensor": ({"context_lens": [20, 20]}, "context_lens is a list; it must be a torch.Tensor"),
    "lengths_strides": (
        {"context_lens": zeros(4, **INTS)[::2]},
        f"context_lens has strides (2,); {LAST}",
    ),
    "cu_seqlens_no_tensor": (
        PACKED | {"cu_seqlens": [0, 2]},
        "cu_seqlens is a list; it must be a torch.Tensor",
    ),
    "cu_seqlens_dtype": (
        PACKED | {"cu_seqlens": zeros(3)},
        "cu_seqlens is torch.bfloat16; it must be torch.int32 or torch.int64",
    ),
    "cu_seqlens_shape": (
        PACKED | {"cu_seqlens": zeros(3, 1, **INTS)},
        "cu_seqlens has shape [3, 1]; it must be [batch + 1]: [any]",
    ),
    "cu_seqlens_short": (
        PACKED | {"cu_seqlens": zeros(1, **INTS)},
        "cu_seqlens has shape [1]; it must be [batch + 1] with a batch of at least 1",
    ),
    "cu_seqlens_batch": (
        PACKED | {"cu_seqlens": zeros(4, **INTS)},
        (
            "k_cache has shape [2, 20, 2, 64]; it must be [batch, capacity, kv_heads, head_dim] "
            "with batch and head_dim of q: [3, any, any, 64]"
        ),
    ),
    "cu_seqlens_device": (PACKED | {"cu_seqlens": zeros(3, **INTS, **META)}, f"cu_seqlens {NOT_ON_CPU}"),
    "cu_seqlens_strides": (
        PACKED | {"cu_seqlens": zeros(6, **INTS)[::2]},
        f"cu_seqlens has strides (2,); {LAST}",
    ),
    "q_of_cu_seqlens": (
        PACKED | {"q": zeros(2, 2, 8, 64)},
        "q has shape [2, 2, 8, 64]; with cu_seqlens it must be [tokens, q_heads, head_dim]",
    ),
    "q_of_cu_seqlens_no_heads": (
        PACKED | {"q": zeros(5, 0, 64)},
        f"q has shape [5, 0, 64]; {ALL_SIZES}",
    ),
    "q_lens_and_cu_seqlens": (
        PACKED | {"q_lens": zeros(2, **INTS)},
        "q_lens is given with cu_seqlens; only one of them may be",
    ),
    "q_lens_no_tensor": (PADDED | {"q_lens": [1, 2]}, "q_lens is a list; it must be a torch.Tensor"),
    "q_lens_dtype": (PADDED | {"q_lens": zeros(2)}, "q_lens is torch.bfloat16; it must be torch.int32 or"),
    "q_lens_shape": (PADDED | {"q_lens": zeros(3, **INTS)}, "q_lens has shape [3]; it must be [batch]: [2]"),
    "q_lens_device": (PADDED | {"q_lens": zeros(2, **INTS, **META)}, f"q_lens {NOT_ON_CPU}"),
    "q_lens_strides": (PADDED | {"q_lens": zeros(4, **INTS)[::2]}, f"q_lens has strides (2,); {LAST}"),
    "q_of_q_lens": (
        {"q_lens": zeros(2, **INTS)},
        "q has shape [2, 8, 64]; with q_lens it must be [batch, max_tokens, q_heads, head_dim]",
    ),
    "lse_layout": (
        {"lse_layout": "heads"},
        "lse_layout is 'heads'; it must be one of tokens-first, heads-first",
    ),
    "lse_base": ({"lse_base": 10}, "lse_base is 10; it must be 'e' or 2"),
    "lse_base_tensor": ({"lse_base": torch.ones(2, 2)}, "lse_base is a Tensor; it must be 'e' or 2"),
    "lse_layout_tensor": (
        {"lse_layout": torch.ones(2, 2)},
        "lse_layout is a Tensor; it must be one of tokens-first, heads-first",
    ),
    "return_lse_tensor": ({"return_lse": torch.ones(2)}, "return_lse is a Tensor; it must be True or False"),
    "lse_base_bool": ({"lse_base": True}, "lse_base is True; it must be 'e' or 2"),
    "out_lse_heads_first": (
        {"out": (zeros(2, 8, 64), FLOATS), "return_lse": True, "lse_layout": "heads-first"},
        "out[1] has shape [2, 8]; it must be the shape of q without head_dim, heads before tokens: [8, 2]",
    ),
    "table_no_tensor": ({"block_table": [[0]]}, "block_table is a list; it must be a torch.Tensor"),
    "table_dtype": ({"block_table": zeros(2, 4)}, "block_table is torch.bfloat16; it must be torch.int32 or"),
    "table_shape": (
        {"block_table": zeros(3, 4, **INTS)},
        "block_table has shape [3, 4]; it must be [batch, max_pages]: [2, any]",
    ),
    "table_empty": ({"block_table": zeros(2, 0, **INTS)}, f"block_table has shape [2, 0]; {ALL_SIZES}"),
    "table_device": ({"block_table": zeros(2, 4, **INTS, **META)}, f"block_table {NOT_ON_CPU}"),
    "table_strides": ({"block_table": zeros(4, 2, **INTS).T}, f"block_table has strides (1, 2); {LAST}"),
    "pages_head_dim": (
        {"k_cache": zeros(9, 16, 2, 72), "block_table": zeros(2, 4, **INTS)},
        (
            "k_cache has shape [9, 16, 2, 72]; it must be [pages, page_size, kv_heads, head_dim] "
            "with head_dim of q: [any, any, any, 64]"
        ),
    ),
    "cache_too_long": (
        {name: zeros(2, 1, 2, 64).expand(2, 2**30 + 1, 2, 64) for name in ("k_cache", "v_cache")},
        "k_cache gives a sequence 1073741825 tokens; it may give at most 1073741824",
    ),
    "table_too_long": (
        {name: zeros(1, 1, 2, 64).expand(1, 2**28, 2, 64) for name in ("k_cache", "v_cache")}
        | {"block_table": zeros(2, 5, **INTS)},
        "block_table gives a sequence 1342177280 tokens; it may give at most 1073741824",
    ),
    "scale_nan": ({"scale": float("nan")}, "scale is nan; it must be finite"),
    "scale_shape": ({"scale": torch.ones(2)}, "scale has shape [2]; it must be [] or [1]"),
    "softcap_shape": ({"softcap": torch.ones(1, 1)}, "softcap has shape [1, 1]; it must be [] or [1]"),
    "out_scale_shape": ({"out_scale": torch.ones(8)}, "out_scale has shape [8]; it must be [] or [1]"),
    "out_scale_0": ({"out_scale": 0.0}, "out_scale is 0.0; it must be positive"),
    "out_scale_device": ({"out_scale": torch.ones((), **META)}, f"out_scale {NOT_ON_CPU}"),
    "out_dtype_integer": (
        {"out_dtype": torch.int8},
        (
            "out_dtype is torch.int8; it must be one of None, torch.bfloat16, torch.float16, torch.float32, "
            "torch.float8_e4m3fn, torch.float8_e5m2"
        ),
    ),
    "q_scale_shape": (
        {"q_scale": torch.ones(4)},
        (
            "q_scale has shape [4]; it must be [], [1], [q_heads], [kv_heads], [batch, kv_heads], or that of "
            "q without head_dim: [8], [2], [2, 2], [2, 8]"
        ),
    ),
    "scale_bool": ({"scale": True}, "scale is a bool; it must be a number"),
    "window_0": ({"window": 0}, "window is 0; it must be at least 1"),
    "window_float": ({"window": 4.0}, "window is a float; it must be an int"),
    "window_bool": ({"window": True}, "window is a bool; it must be an int"),
    "softcap_0": ({"softcap": 0.0}, "softcap is 0.0; it must be positive"),
    "softcap_negative": ({"softcap": -1}, "softcap is -1; it must be positive"),
    "softcap_infinite": ({"softcap": float("inf")}, "softcap is inf; it must be finite"),
    "softcap_text": ({"softcap": "30"}, "softcap is a str; it must be a number"),
    "sinks_no_tensor": ({"sinks": [0.0] * 8}, "sinks is a list; it must be a torch.Tensor"),
    "sinks_dtype": ({"sinks": zeros(8, **INTS)}, "sinks is torch.int32; it must be torch.bfloat16"),
    "sinks_shape": ({"sinks": zeros(2)}, "sinks has shape [2]; it must be [q_heads]: [8]"),
    "sinks_device": ({"sinks": zeros(8, **META)}, f"sinks {NOT_ON_CPU}"),
    "sinks_strides": ({"sinks": zeros(16)[::2]}, f"sinks has strides (2,); {LAST}"),
    "num_splits_0": ({"num_splits": 0}, "num_splits is 0; it must be at least 1 and at most 65536"),
    "num_splits_many": (
        {"num_splits": 65537},
        "num_splits is 65537; it must be at least 1 and at most 65536",
    ),
    "num_splits_float": ({"num_splits": 2.0}, "num_splits is a float; it must be an int"),
    "tiling": ({"tiling": 3}, "tiling is a int; it must be a DecodeTiling"),
    "out_shape": (
        {"out": zeros(2, 8, 63)},
        "out has shape [2, 8, 63]; it must be the shape of q with the head_dim of v_cache: [2, 8, 64]",
    ),
    "out_list": ({"out": [zeros(2, 8, 64)]}, "out is a list; it must be a torch.Tensor"),
    "out_pair_without_lse": (
        {"out": (zeros(2, 8, 64), FLOATS)},
        "out is a tuple; it may be the pair of output and log-sum-exp with return_lse",
    ),
    "out_of_three": (
        {"out": (zeros(2, 8, 64), FLOATS, FLOATS), "return_lse": True},
        "out is a tuple; it may be the pair of output and log-sum-exp with return_lse",
    ),
    "out_pair_output": (
        {"out": (zeros(2, 8, 72), FLOATS), "return_lse": True},
        "out has shape [2, 8, 72]; it must be the shape of q with the head_dim of v_cache: [2, 8, 64]",
    ),
    "out_lse_no_tensor": (
        {"out": (zeros(2, 8, 64), 0), "return_lse": True},
        "out[1] is a int; it must be a torch.Tensor",
    ),
    "out_lse_shape": (
        {"out": (zeros(2, 8, 64), FLOATS[:1]), "return_lse": True},
        "out[1] has shape [1, 8]; it must be the shape of q without head_dim: [2, 8]",
    ),
    "out_lse_dtype": (
        {"out": (zeros(2, 8, 64), zeros(2, 8)), "return_lse": True},
        "out[1] is torch.bfloat16; it must be torch.float32",
    ),
    "out_lse_device": (
        {"out": (zeros(2, 8, 64), FLOATS.to("meta")), "return_lse": True},
        f"out[1] {NOT_ON_CPU}",
    ),
    "out_lse_strides": (
        {"out": (zeros(2, 8, 64), torch.zeros(8, 2).T), "return_lse": True},
        "out[1] has strides (1, 2); it must be contiguous",
    ),
    "workspace_no_tensor": ({"workspace": 64}, "workspace is a int; it must be a torch.Tensor"),
    "workspace_device": ({"workspace": zeros(9999, **META)}, f"workspace {NOT_ON_CPU}"),
    "workspace_strides": (
        {"workspace": zeros(9999)[::2]},
        "workspace has strides (2,); it must be contiguous",
    ),
    "workspace_small": (
        {"workspace": zeros(8), "num_splits": 2},
        "workspace has 16 bytes; it must have at least 8384",
    ),
    "workspace_misaligned": (
        {"workspace": zeros(9999)[1:], "num_splits": 2},
        "it must be aligned to 16 bytes",
    ),
    "out_dtype": (
        {"out": zeros(2, 8, 64, dtype=torch.float32), "out_dtype": torch.bfloat16},
        "out is torch.float32; it must be torch.bfloat16",
    ),
    "out_integer": (
        {"out": zeros(2, 8, 64, dtype=torch.int8)},
        "out is torch.int8; it must be torch.bfloat16 or torch.float16 or torch.float32 or",
    ),
    "out_device": ({"out": zeros(2, 8, 64, **META)}, f"out {NOT_ON_CPU}"),
    "out_strides": ({"out": zeros(2, 64, 8).transpose(1, 2)}, f"out has strides (512, 1, 8); {LAST}"),
    "out_shared": (
        {"out": zeros(1, 8, 64).expand(2, 8, 64)},
        "out has strides (0, 64, 1); its elements must not share memory",
    ),
}


SCALES = {
    "nan": (float("nan"), "is nan; it must be finite"),
    "text": ("1", "is a str; it must be a number"),
    "dtype": (zeros(2, **INTS), "is torch.int32; it must be torch.bfloat16, torch.float16 or"),
    "shape": (
        FLOATS[0, :3],
        (
            "has shape [3]; it must be [], [1], [kv_heads], "
            "[batch, kv_heads], or that of the cache without head_dim: [2], [2, 2], [2, 20, 2]"
        ),
    ),
    "dimensions": (
        FLOATS[:1, :1],
        (
            "has shape [1, 1]; it must be [], [1], [kv_heads], "
            "[batch, kv_heads], or that of the cache without head_dim: [2], [2, 2], [2, 20, 2]"
        ),
    ),
    "device": (FLOATS[0, :2].to("meta"), NOT_ON_CPU),
}
DECODE |= {
    f"{name}_{kind}": ({name: scale}, f"{name} {message}")
    for name in ("k_scale", "v_scale")
    for kind, (scale, message) in SCALES.items()
}


@pytest.mark.parametrize(("wrong", "message"), DECODE.values(), ids=DECODE.keys())
def test_decode_attention_rejects_bad_argument(wrong, message):
    arguments = decode_inputs([20, 20], capacity=20) | wrong
    with pytest.raises(ValueError, match=re.escape(message)):
        decode_attention(**arguments)
    if wrong.keys().isdisjoint({"out", "workspace"}):
        with pytest.raises(ValueError, match=re.escape(message)):
            decode_attention_workspace_bytes(**arguments)


def test_cpu_tensors_without_interpreter_name_the_setting(monkeypatch):
    monkeypatch.setattr(checks, "interpreting", lambda: False)
    with pytest.raises(
        ValueError, match=r"x is on the CPU.*set TRITON_INTERPRET=1 before triton is imported"
    ):
        prefill_matmul(zeros(4, 32), zeros(8, 32))
    with pytest.raises(
        ValueError, match=r"q is on the CPU.*set TRITON_INTERPRET=1 before triton is imported"
    ):
        decode_attention(**decode_inputs([20], capacity=20))
    with pytest.raises(
        ValueError, match=r"o is on the CPU.*set TRITON_INTERPRET=1 before triton is imported"
    ):
        merge_states(zeros(3, 16), torch.zeros(3), zeros(3, 16), torch.zeros(3))


MATMUL_TILING = {
    "block_m": 16,
    "block_n": 16,
    "block_k": 16,
    "group_m": 1,
    "num_splits": 1,
    "num_warps": 4,
    "num_stages": 2,
}
DECODE_TILING = {"block_g": 16, "block_n": 16, "num_splits": 1, "num_warps": 4, "num_stages": 2}


@pytest.mark.parametrize(
    ("kind", "right", "name"),
    [(MatmulTiling, MATMUL_TILING, name) for name in ("block_m", "block_n", "block_k", "num_warps")]
    + [(DecodeTiling, DECODE_TILING, name) for name in ("block_g", "block_n", "num_warps")],
)
@pytest.mark.parametrize("value", [0, 12])
def test_tilings_reject_sizes_that_are_no_power_of_two(kind, right, name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be a power of two"):
        kind(**right | {name: value})


@pytest.mark.parametrize(
    ("kind", "right", "name"),
    [(MatmulTiling, MATMUL_TILING, name) for name in ("group_m", "num_splits", "num_stages")]
    + [(DecodeTiling, DECODE_TILING, name) for name in ("programs", "min_tiles", "num_stages")],
)
def test_tilings_reject_counts_below_one(kind, right, name):
    for wrong in (0, 1.0, True):
        with pytest.raises(ValueError, match=f"{name} is {wrong}; it must be an int"):
            kind(**right | {name: wrong})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_splits": -1}, "num_splits is -1; it must be an int from 0 to 65536"),
        ({"block_n": 8}, "block_n is 8; it must be at least 16"),
        ({"max_registers": 31}, "max_registers is 31; it must be from 32 to 255, or None"),
        ({"max_registers": 256}, "max_registers is 256; it must be from 32 to 255, or None"),
    ],
    ids=["num_splits", "block_n", "few_registers", "many_registers"],
)
def test_decode_tiling_rejects_bad_field(wrong, message):
    with pytest.raises(ValueError, match=message):
        DecodeTiling(**DECODE_TILING | wrong)
