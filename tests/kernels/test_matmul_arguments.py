"""Every misuse of `prefill_matmul` is a ValueError that names the argument, its value and what it may be."""

import re

import pytest
import torch
from decodetax.kernels import DecodeTiling, MatmulTiling, prefill_matmul, prefill_matmul_workspace_bytes

BATCH = {"x": torch.zeros(2, 4, 32), "weight": torch.zeros(2, 8, 32)}
SPLIT_K = MatmulTiling(block_m=16, block_n=16, block_k=16, group_m=1, num_splits=2, num_warps=4, num_stages=2)


def zeros(*shape, dtype=torch.bfloat16, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


def scales(*shape, **options):
    return torch.ones(shape, **options)


INTS = {"dtype": torch.int32}
HALF = {"dtype": torch.float16}
META = {"device": "meta"}
NOT_ON_CPU = "is on meta; it must be on cpu, the device of x"
OF_ROWS = "it must have one element, or be that of x without its last dimension: [4], or with 1 in its place"
OF_FEATURES = "it must be [features], [1, features], [batch, features] or [batch, 1, features]"
PAIR = (zeros(8, 32), zeros(8, 32))
GATED = {"activation": "swiglu"}

WRONG = {
    "x_integer": ({"x": zeros(4, 32, **INTS)}, "x is torch.int32; it must be one of torch.bfloat16"),
    "x_double": ({"x": zeros(4, 32, dtype=torch.float64)}, "x is torch.float64; it must be one of"),
    "x_no_tensor": ({"x": [1.0]}, "x is a list; it must be a torch.Tensor"),
    "x_scalar": ({"x": zeros()}, "x has no dimensions; it must be [..., in_features]"),
    "x_device": ({"x": zeros(4, 32, **META)}, "x is on meta; it must be on a CUDA device, or on the CPU"),
    "x_under_batch": (BATCH | {"x": torch.zeros(4, 32)}, "it must be [batch, tokens, in_features]"),
    "weight_no_tensor": ({"weight": None}, "weight is a NoneType; it must be a torch.Tensor"),
    "weight_features": (
        {"weight": zeros(8, 31)},
        "weight has shape [8, 31]; it must be [out_features, in_features of x]: [any, 32]",
    ),
    "weight_batch": (
        BATCH | {"weight": torch.zeros(3, 8, 32)},
        "weight has shape [3, 8, 32]; it must be [batch of x, out_features, in_features of x]: [2, any, 32]",
    ),
    "weight_dimensions": ({"weight": zeros(8)}, "weight has shape [8]"),
    "weight_dtype": (
        {"weight": zeros(8, 32, **HALF)},
        "weight is torch.float16; under x of torch.bfloat16 it must be torch.bfloat16 or torch.float32",
    ),
    "weight_int8_under_float8": (
        {"x": zeros(4, 32, dtype=torch.float8_e5m2), "weight": zeros(8, 32, dtype=torch.int8)},
        "weight is torch.int8; under x of torch.float8_e5m2 it must be torch.float8_e4m3fn",
    ),
    "weight_of_three": ({"weight": (*PAIR, zeros(8, 32)), **GATED}, "weight is a tuple of 3; it must be"),
    "weight_pair_ungated": (
        {"weight": PAIR},
        "weight is a pair; under activation None it must be one tensor",
    ),
    "weight_pair_interleaved": (
        {"weight": PAIR, **GATED, "gate_up": "interleaved"},
        "gate_up is 'interleaved'; with a pair of weights it must be 'halves'",
    ),
    "weight_pair_shapes": (
        {"weight": (zeros(8, 32), zeros(9, 32)), **GATED},
        "weight[1] has shape [9, 32]; it must be the shape of weight[0]: [8, 32]",
    ),
    "weight_pair_dtypes": (
        {"weight": (zeros(8, 32), zeros(8, 32, dtype=torch.int8)), **GATED},
        "weight[1] is torch.int8; it must be torch.bfloat16, the dtype of weight[0]",
    ),
    "weight_pair_strides": (
        {"weight": (zeros(8, 32), zeros(32, 8).T), **GATED},
        "weight[1] has strides (1, 8); it must have those of weight[0]: (32, 1)",
    ),
    "gate_up": ({"gate_up": "thirds"}, "gate_up is 'thirds'; it must be one of halves, interleaved"),
    "gate_up_ungated": (
        {"gate_up": "interleaved"},
        "gate_up is 'interleaved'; without a gated activation it must be 'halves'",
    ),
    "weight_device": ({"weight": zeros(8, 32, **META)}, f"weight {NOT_ON_CPU}"),
    "bias_no_tensor": ({"bias": 1.0}, "bias is a float; it must be a torch.Tensor"),
    "bias_shape": ({"bias": zeros(7)}, f"bias has shape [7]; {OF_FEATURES}, with 8 rows of weight"),
    "bias_number": ({"bias": zeros()}, f"bias has shape []; {OF_FEATURES}"),
    "bias_column": ({"bias": zeros(8, 1)}, f"bias has shape [8, 1]; {OF_FEATURES}"),
    "bias_batch": (
        BATCH | {"bias": torch.zeros(3, 8)},
        f"bias has shape [3, 8]; {OF_FEATURES}, with 8 rows of weight and batch 2",
    ),
    "bias_dtype": ({"bias": zeros(8, **INTS)}, "bias is torch.int32; it must be one of torch.bfloat16"),
    "bias_pair": ({"bias": (zeros(4), zeros(4))}, "bias is a tuple of 2; it may be a pair beside a pair"),
    "bias_pair_dtypes": (
        {"weight": PAIR, **GATED, "bias": (zeros(8), zeros(8, **HALF))},
        "bias[1] is torch.float16 of strides (1,); it must be as bias[0]: torch.bfloat16",
    ),
    "bias_device": ({"bias": zeros(8, **META)}, f"bias {NOT_ON_CPU}"),
    "activation": (
        {"activation": "selu"},
        "activation is 'selu'; it must be one of None, silu, gelu, gelu_tanh, relu, relu_squared, swiglu",
    ),
    "activation_no_word": ({"activation": 1}, "activation is 1; it must be one of None"),
    "swiglu_odd": (
        {"weight": zeros(7, 32), "activation": "swiglu"},
        "weight has 7 rows; for swiglu it must have as many up as gate rows",
    ),
    "swiglu_alpha": ({"swiglu_alpha": 1.7}, "swiglu_alpha is 1.7; with activation None it must be 1.0"),
    "swiglu_beta": (GATED | {"swiglu_beta": None}, "swiglu_beta is None; it must be a number"),
    "swiglu_limit": (GATED | {"swiglu_limit": -7.0}, "swiglu_limit is -7.0; it must be positive"),
    "residual_shape": (
        {"residual": zeros(8, 4)},
        "residual has shape [8, 4]; it must broadcast to that of the result: [4, 8]",
    ),
    "residual_dimensions": ({"residual": zeros(1, 4, 8)}, "residual has shape [1, 4, 8]; it must broadcast"),
    "residual_dtype": ({"residual": zeros(4, 8, **INTS)}, "residual is torch.int32; it must be one of"),
    "residual_device": ({"residual": zeros(4, 8, **META)}, f"residual {NOT_ON_CPU}"),
    "residual_scale": ({"residual_scale": "1"}, "residual_scale is a str; it must be a number"),
    "precision": ({"precision": "fp64"}, "precision is 'fp64'; it must be one of ieee, tf32, tf32x3"),
    "result_dtype": (
        {"out_dtype": torch.int8},
        "out_dtype is torch.int8; it must be one of None, torch.bfloat16, torch.float16, torch.float32",
    ),
    "x_scale_shape": ({"x_scale": scales(3)}, f"x_scale has shape [3]; {OF_ROWS}"),
    "x_scale_of_columns": ({"x_scale": scales(1, 4)}, f"x_scale has shape [1, 4]; {OF_ROWS}"),
    "x_scale_dtype": ({"x_scale": scales(4, **INTS)}, "x_scale is torch.int32; it must be one of"),
    "x_scale_device": ({"x_scale": scales(4, **META)}, f"x_scale {NOT_ON_CPU}"),
    "x_scale_infinite": ({"x_scale": float("inf")}, "x_scale is inf; it must be finite in float32"),
    "x_scale_word": ({"x_scale": "1"}, "x_scale is a str; it must be a number"),
    "weight_scale_shape": (
        {"weight_scale": scales(7)},
        f"weight_scale has shape [7]; {OF_FEATURES} or one element, or [features, 1]",
    ),
    "weight_scale_bool": ({"weight_scale": True}, "weight_scale is a bool; it must be a number"),
    "out_no_tensor": ({"out": 1}, "out is a int; it must be a torch.Tensor"),
    "out_shape": (
        {"out": zeros(4, 9)},
        "out has shape [4, 9]; it must be [..., out_features] with the leading dimensions of x: [4, 8]",
    ),
    "out_of_swiglu": ({"out": zeros(4, 8), "activation": "swiglu"}, "out has shape [4, 8]"),
    "out_dtype": (
        {"out": zeros(4, 8, **HALF), "out_dtype": torch.float32},
        "out is torch.float16; it must be torch.float32, as out_dtype says",
    ),
    "out_integer": ({"out": zeros(4, 8, **INTS)}, "out_dtype is torch.int32; under x of torch.bfloat16"),
    "out_double": ({"out": zeros(4, 8, dtype=torch.float64)}, "out is torch.float64; it must be one of"),
    "out_device": ({"out": zeros(4, 8, **META)}, f"out {NOT_ON_CPU}"),
    "out_shared": (
        {"out": zeros(1, 8).expand(4, 8)},
        "out has strides (0, 1); its elements must not share memory",
    ),
    "out_view": (
        {"x": zeros(2, 3, 32), "out": zeros(3, 2, 8).transpose(0, 1)},
        "out has strides (8, 16, 1); all dimensions but the last must view as one",
    ),
    "tiling": (
        {"tiling": DecodeTiling(block_g=16, block_n=16, num_warps=4, num_stages=2)},
        "tiling is a DecodeTiling; it must be a MatmulTiling",
    ),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG.values(), ids=WRONG.keys())
def test_prefill_matmul_rejects_bad_argument(wrong, message):
    arguments = {"x": zeros(4, 32), "weight": zeros(8, 32)} | wrong
    with pytest.raises(ValueError, match=re.escape(message)):
        prefill_matmul(**arguments)
    if "out" not in wrong:
        with pytest.raises(ValueError, match=re.escape(message)):
            prefill_matmul_workspace_bytes(**arguments)


BYTES = 4 * 2 * 16 * 16
WORKSPACES = {
    "no_tensor": (1, "workspace is a int; it must be a torch.Tensor"),
    "small": (
        zeros(BYTES - 1, dtype=torch.uint8),
        f"workspace has {BYTES - 1} bytes; it must have at least {BYTES}",
    ),
    "strides": (torch.zeros(BYTES, 2)[:, 0], "workspace has strides (2,); it must be contiguous"),
    "misaligned": (zeros(BYTES + 1, dtype=torch.uint8)[1:], "it must be aligned to 16 bytes"),
    "device": (zeros(BYTES, **META), f"workspace {NOT_ON_CPU}"),
}


@pytest.mark.parametrize(("workspace", "message"), WORKSPACES.values(), ids=WORKSPACES.keys())
def test_prefill_matmul_rejects_bad_workspace(workspace, message):
    x, weight = zeros(4, 64), zeros(8, 64)
    assert prefill_matmul_workspace_bytes(x, weight, tiling=SPLIT_K) == BYTES
    with pytest.raises(ValueError, match=re.escape(message)):
        prefill_matmul(x, weight, tiling=SPLIT_K, workspace=workspace)


TILINGS = {
    "variant": ({"variant": "textures"}, "variant is 'textures'; it must be one of pointers, descriptors"),
    "whole_tiles": ({"whole_tiles": -1}, "whole_tiles is -1; it must be an int of at least 0"),
    "programs": ({"programs": 0}, "programs is 0; it must be an int of at least 1"),
    "columns_odd": ({"columns": 3}, "columns is 3; it must be even, from 2 to block_n, or None"),
    "columns_many": ({"columns": 18}, "columns is 18; it must be even"),
    "columns_of_descriptors": ({"columns": 8, "variant": "descriptors"}, "columns is 8; it must be None"),
    "block_n": ({"block_n": 1}, "block_n is 1; it must be at least 2"),
    "splits": (
        {"variant": "warp_specialized"},
        "num_splits is 2; it must be 1 where the variant is warp_specialized",
    ),
    "registers": ({"max_registers": 300}, "max_registers is 300; it must be from 32 to 255, or None"),
}


@pytest.mark.parametrize(("wrong", "message"), TILINGS.values(), ids=TILINGS.keys())
def test_matmul_tiling_rejects_bad_field(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MatmulTiling(**vars(SPLIT_K) | wrong)


WITHOUT_STRIDES = {
    "sparse": (lambda x: x.to_sparse(), "x has layout torch.sparse_coo; it must be torch.strided"),
    "mkldnn": (lambda x: x.float().to_mkldnn(), "x has layout torch._mkldnn; it must be torch.strided"),
    "fake": (
        lambda x: torch._subclasses.FakeTensorMode().from_tensor(x),
        "x is a FakeTensor without memory; it must have its own",
    ),
    "negated": (torch._neg_view, "x is a view with a lazy negation; it must be x.resolve_neg()"),
}


@pytest.mark.parametrize(("turned", "message"), WITHOUT_STRIDES.values(), ids=WITHOUT_STRIDES)
def test_tensor_that_is_no_plain_memory_is_rejected(turned, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        prefill_matmul(turned(torch.ones(3, 16)), torch.ones(5, 16))


def test_tensor_inside_vmap_is_rejected():
    with pytest.raises(ValueError, match=r"^x is a Tensor without memory; it must have its own$"):
        torch.vmap(lambda x: prefill_matmul(x, torch.ones(5, 16)))(torch.ones(2, 3, 16))


def test_scales_that_are_no_plain_memory_are_rejected():
    with pytest.raises(ValueError, match=r"^x_scale has layout torch\.sparse_coo"):
        prefill_matmul(torch.ones(3, 16), torch.ones(5, 16), x_scale=torch.ones(3).to_sparse())
