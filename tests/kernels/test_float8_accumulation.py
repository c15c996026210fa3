"""Float8 on sm_90: sums of 128 products, which tensor cores keep in 14 bits, are promoted to float32."""

import dataclasses
import importlib

import numpy as np
import pytest
import torch
from decodetax.kernels import interpreter_patches, prefill_matmul
from decodetax.kernels.gpu_limits import H100_LIMITS
from decodetax.kernels.matmul_plan import plan_matmul
from kernel_inputs import by_default, dtype_name
from matmul_checks import FLOAT8, assert_right, error, matmul_tiling, operands, positive_operands
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

module = importlib.import_module("decodetax.kernels.prefill_matmul")
FORMS = {
    "pointers": {},
    "split": {"num_splits": 2},
    "weight_first": {"weight_first": True},
    "descriptors": {"variant": "descriptors", "programs": 2},
    "split_descriptors": {"variant": "descriptors", "num_splits": 3, "whole_tiles": 2, "programs": 4},
}
_INSTRUCTION_K = 32
_FRACTION_BITS = 13


def on(capability, patch):
    limits = dataclasses.replace(H100_LIMITS, compute_capability=capability)
    patch.setattr(module, "gpu_limits", lambda _device: limits)
    return limits


def truncated(values, largest):
    """Values cut to 13 bits below the leading bit of the largest of their sum."""
    unit = np.exp2(np.floor(np.log2(np.where(largest > 0, largest, 1.0))) - _FRACTION_BITS)
    return np.trunc(values / unit) * unit


def hopper_dot(_self, a, b, d, *_rest):
    """`tl.dot` as Hopper's tensor cores add float8 products: SageAttention2, arXiv 2411.10958.

    For each instruction the 32 products and the sum so far are aligned to the largest and cut to 13 bits of
    fraction; so is their sum.
    """
    left, right = (interpreter_patches._decoded(each).data.astype(np.float64) for each in (a, b))
    total = d.data.astype(np.float64)
    for k in range(0, left.shape[1], _INSTRUCTION_K):
        terms = left[:, None, k : k + _INSTRUCTION_K] * right.T[None, :, k : k + _INSTRUCTION_K]
        terms = np.concatenate([terms, total[:, :, None]], axis=2)
        total = truncated(terms, np.abs(terms).max(axis=2, keepdims=True)).sum(axis=2)
        total = truncated(total, np.abs(total))
    return TensorHandle(total.astype(np.float32), d.dtype.scalar)


@pytest.mark.parametrize("block_k", by_default({256}, [16, 128, 256, 512]))
@pytest.mark.parametrize("form", by_default({"pointers", "split_descriptors"}, FORMS.values(), FORMS.keys()))
def test_every_number_of_parts_is_right(form, block_k, monkeypatch):
    limits = on(90, monkeypatch)
    x, weight = operands(19, 33, 1499, torch.float8_e4m3fn)  # the last part is partly used
    tiling = matmul_tiling(block_k=block_k, **form)
    assert plan_matmul(x, weight, None, "halves", "ieee", tiling, limits).promoted_parts == max(
        1, block_k // 128
    )
    assert_right(x, weight, tiling=tiling, out_dtype=torch.float32)
    assert_right(x, weight, tiling=tiling, activation="silu")


@pytest.mark.parametrize("out_dtype", by_default({torch.float32}, [torch.float32, torch.bfloat16]))
@pytest.mark.parametrize("weight_dtype", FLOAT8, ids=dtype_name)
@pytest.mark.parametrize("x_dtype", FLOAT8, ids=dtype_name)
def test_operands_of_both_kinds_and_an_infinity_keep_to_their_rows(
    x_dtype, weight_dtype, out_dtype, monkeypatch
):
    on(90, monkeypatch)
    x, weight = operands(5, 6, 300, x_dtype, weight_dtype)
    tiling = matmul_tiling(block_k=256)
    assert_right(x, weight, tiling=tiling, out_dtype=out_dtype)
    x[2, 299] = float("nan")
    out = prefill_matmul(x, weight, tiling=tiling)
    assert out[2].isnan().all()
    assert out[[0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("block_k", [128, 256])
def test_sums_of_14_bits_keep_the_tolerance_of_the_output_with_promotion_alone(block_k, monkeypatch):
    monkeypatch.setattr(InterpreterBuilder, "create_dot", hopper_dot)
    x, weight = positive_operands(3, 9, 4096, dtype=torch.float8_e4m3fn)
    tiling = matmul_tiling(block_k=block_k)
    on(90, monkeypatch)
    assert error(prefill_matmul(x, weight, tiling=tiling), x, weight) <= 1
    on(89, monkeypatch)
    assert error(prefill_matmul(x, weight, tiling=tiling), x, weight) > 1


@pytest.mark.parametrize(
    ("dtype", "capability", "parts"),
    [
        (torch.bfloat16, 90, 0),
        (torch.float8_e5m2, 89, 0),
        (torch.float8_e5m2, 100, 0),
        (torch.float8_e5m2, 90, 2),
    ],
)
def test_only_float8_on_sm_90_is_promoted(dtype, capability, parts, monkeypatch):
    x, weight = operands(19, 33, 75, dtype)
    plan = plan_matmul(
        x, weight, None, "halves", "ieee", matmul_tiling(block_k=256), on(capability, monkeypatch)
    )
    assert plan.promoted_parts == parts
    assert plan.flattens == (dtype == torch.bfloat16)
