"""Wrong arguments of `merge_states`: each is a ValueError that names the argument."""

import re

import pytest
import torch
from decodetax.kernels import merge_states

BF16, META = {"dtype": torch.bfloat16}, {"device": "meta"}


def outputs(*size, **options):
    return torch.zeros(size, **BF16 | options)


def lses(*size, **options):
    return torch.zeros(size, **options)


def pair():
    return {"o": outputs(3, 4, 16), "lse": lses(3, 4), "o2": outputs(3, 4, 16), "lse2": lses(3, 4)}


def stack():
    return {"o": outputs(5, 3, 4, 16), "lse": lses(5, 3, 4)}


OF_PAIRS = {
    "o_no_tensor": ({"o": 1.0}, "o is a float; it must be a torch.Tensor"),
    "o_dtype": ({"o": outputs(3, 4, 16, dtype=torch.int32)}, "o is torch.int32; it must be torch.bfloat16"),
    "o_scalar": ({"o": outputs()}, "o has no dimensions; it must be [..., head_dim]"),
    "o_no_head_dim": ({"o": outputs(3, 4, 0)}, "o has shape [3, 4, 0]; head_dim must be at least 1"),
    "o_device": (
        {"o": outputs(3, 4, 16, **META)},
        "o is on meta; it must be on a CUDA device, or on the CPU",
    ),
    "o_sequence": ({"o": [outputs(3, 4, 16)]}, "o is a list; it must be a torch.Tensor"),
    "o2_no_tensor": ({"o2": 1}, "o2 is a int; it must be a torch.Tensor"),
    "o2_missing": ({"o2": None}, "o2 is None; with lse2 it must be a torch.Tensor"),
    "o2_shape": ({"o2": outputs(3, 4, 15)}, "o2 has shape [3, 4, 15]; it must be the shape of o: [3, 4, 16]"),
    "o2_dtype": (
        {"o2": outputs(3, 4, 16, dtype=torch.float16)},
        "o2 is torch.float16; it must be torch.bfloat16",
    ),
    "o2_device": ({"o2": outputs(3, 4, 16, **META)}, "o2 is on meta; it must be on cpu, the device of o"),
    "lse2_missing": ({"lse2": None}, "lse2 is None; with o2 it must be a torch.Tensor"),
    **{
        f"{name}_{kind}": ({name: wrong}, f"{name} {message}")
        for name in ("lse", "lse2")
        for kind, wrong, message in (
            ("no_tensor", [0.0], "is a list; it must be a torch.Tensor"),
            ("dtype", lses(3, 4, **BF16), "is torch.bfloat16; it must be torch.float32"),
            ("shape", lses(4, 3), "has shape [4, 3]; it must be the shape of o without head_dim: [3, 4]"),
            ("device", lses(3, 4, **META), "is on meta; it must be on cpu, the device of o"),
        )
    },
    "heads_first": (
        {"lse_layout": "heads-first"},
        "lse has shape [3, 4]; it must be the shape of o without head_dim, heads before tokens: [4, 3]",
    ),
}
OF_ALL = {
    "lse_layout": (
        {"lse_layout": "rows"},
        "lse_layout is 'rows'; it must be one of tokens-first, heads-first",
    ),
    "lse_base": ({"lse_base": 10}, "lse_base is 10; it must be 'e' or 2"),
    "mask_no_tensor": ({"mask": [True]}, "mask is a list; it must be a torch.Tensor"),
    "mask_dtype": ({"mask": lses(3, 4)}, "mask is torch.float32; it must be torch.bool"),
    "mask_device": ({"mask": torch.ones(1, dtype=torch.bool, **META)}, "mask is on meta; it must be on cpu"),
    "mask_shape": ({"mask": torch.ones(3, dtype=torch.bool)}, "mask has shape [3]; it must broadcast to ["),
    "mask_dimensions": (
        {"mask": torch.ones(1, 1, 1, 1, dtype=torch.bool)},
        "mask has shape [1, 1, 1, 1]; it must broadcast to [",
    ),
    "out_dtype": (
        {"out_dtype": torch.float64},
        "out_dtype is torch.float64; it must be one of None, torch.b",
    ),
    "out_scale_kind": ({"out_scale": "1"}, "out_scale is a str; it must be a number"),
    "out_scale_zero": ({"out_scale": 0.0}, "out_scale is 0.0; it must be positive"),
    "out_scale_small": ({"out_scale": 1e-40}, "out_scale is 1e-40; it must be at least 1.18e-38"),
    "out_scale_shape": ({"out_scale": lses(4)}, "out_scale has shape [4]; it must be [], [1]"),
    "out_scale_dtype": ({"out_scale": outputs(1)}, "out_scale is torch.bfloat16; it must be torch.float32"),
    "out_scale_device": ({"out_scale": lses(1, **META)}, "out_scale is on meta; it must be on cpu"),
    "out_no_tensor": ({"out": [outputs(3, 4, 16)]}, "out is a list; it must be a torch.Tensor"),
    "out_tuple": (
        {"out": (outputs(3, 4, 16),)},
        "out is a tuple of 1; it may be the pair of output and log-sum",
    ),
    "out_shape": ({"out": outputs(3, 4, 8)}, "out has shape [3, 4, 8]; it must be the shape of an output"),
    "out_kind": ({"out": outputs(3, 4, 16, dtype=torch.int8)}, "out.dtype is torch.int8; it must be one of"),
    "out_of_another_dtype": (
        {"out": outputs(3, 4, 16), "out_dtype": torch.float32},
        "out is torch.bfloat16; it must be torch.float32, as out_dtype says",
    ),
    "out_device": ({"out": outputs(3, 4, 16, **META)}, "out is on meta; it must be on cpu, the device of o"),
    "out_strides": (
        {"out": outputs(3, 16, 4).transpose(1, 2)},
        "out has strides (64, 1, 4); the last must be 1",
    ),
    "out_shared": ({"out": outputs(4, 16).expand(3, 4, 16)}, "its elements must not share memory"),
    "out_lse_shape": (
        {"out": (outputs(3, 4, 16), lses(3))},
        "out[1] has shape [3]; it must be the shape of o without head_dim: [3, 4]",
    ),
    "out_lse_dtype": (
        {"out": (outputs(3, 4, 16), outputs(3, 4))},
        "out[1] is torch.bfloat16; it must be torch.float32",
    ),
    "out_lse_shared": (
        {"out": (outputs(3, 4, 16), lses(4).expand(3, 4))},
        "out[1] has strides (0, 1); its elem",
    ),
    "negation_of_out": ({"out": torch._neg_view(outputs(3, 4, 16))}, "out is a view with a lazy negation"),
}
OF_STACKS = {
    "one_output": ({"o": outputs(16)}, "o has shape [16]; without o2 it must be [parts, ..., head_dim]"),
    "no_parts": ({"o": outputs(0, 3, 4, 16)}, "o has shape [0, 3, 4, 16]; without o2 it must be [parts"),
    "empty_sequence": ({"o": [], "lse": []}, "o has no parts; it must have at least one"),
    "sequence_shape": (
        {"o": [outputs(3, 4, 16), outputs(3, 4, 8)]},
        "o[1] has shape [3, 4, 8]; it must be the shape of o[0]: [3, 4, 16]",
    ),
    "sequence_kind": ({"o": [outputs(3, 4, 16), None]}, "o[1] is a NoneType; it must be a torch.Tensor"),
    "sequence_dtype": (
        {"o": [outputs(3, 4, 16), lses(3, 4, 16)]},
        "o[1] is torch.float32; it must be torch.bfloat16, the dtype of o[0]",
    ),
    "lse_of_a_sequence": ({"o": [outputs(3, 4, 16)]}, "lse is a Tensor; it must be a sequence of 1 tensors"),
    "lse_in_a_sequence": (
        {"o": [outputs(3, 4, 16)], "lse": [lses(3)]},
        "lse[0] has shape [3]; it must be the shape of o without head_dim: [3, 4]",
    ),
    "lse_shape": (
        {"lse": lses(3, 4)},
        "lse has shape [3, 4]; it must be the shape of o without head_dim: [5, 3, 4]",
    ),
    "heads_first_of_rows": (
        {"o": outputs(5, 3, 16), "lse": lses(5, 3), "lse_layout": "heads-first"},
        "lse_layout is 'heads-first'; with outputs of shape [3, 16] it must be 'tokens-first'",
    ),
}


@pytest.mark.parametrize(("wrong", "message"), (OF_PAIRS | OF_ALL).values(), ids=(OF_PAIRS | OF_ALL).keys())
def test_pair_with_a_bad_argument(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        merge_states(**pair() | wrong)


@pytest.mark.parametrize(("wrong", "message"), (OF_STACKS | OF_ALL).values(), ids=(OF_STACKS | OF_ALL).keys())
def test_stack_with_a_bad_argument(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        merge_states(**stack() | wrong)


def test_dimensions_of_out_that_do_not_view_as_one():
    out = outputs(3, 3, 4, 16)[:, :2]
    states = {"o": outputs(2, 3, 2, 4, 16), "lse": lses(2, 3, 2, 4)}
    with pytest.raises(ValueError, match=r"out has strides .* its dimensions before heads must view as one"):
        merge_states(**states, out=out)
