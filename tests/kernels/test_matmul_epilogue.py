"""`prefill_matmul`: activations, gate and up, residual, shapes and dtypes of scales, empty results."""

import dataclasses
import importlib

import pytest
import torch
from decodetax.kernels import prefill_matmul, prefill_matmul_workspace_bytes
from decodetax.kernels.gpu_limits import H100_LIMITS
from kernel_inputs import by_default, normal, poisoned
from matmul_checks import FLOAT8, TILINGS, assert_right, error, matmul_tiling, multiply, operands

module = importlib.import_module("decodetax.kernels.prefill_matmul")
BF16 = torch.bfloat16
CLAMPED = {"activation": "swiglu", "swiglu_alpha": 1.702, "swiglu_beta": 1.0, "swiglu_limit": 7.0}
GATED = ["swiglu", "geglu", "geglu_tanh", "reglu", "bilinear"]
few_tilings = pytest.mark.parametrize(
    "tiling", by_default({"slices", "split_descriptors"}, TILINGS.values(), TILINGS.keys())
)


def values(*shape, seed, dtype=BF16):
    return normal(*shape, dtype=dtype, seed=seed)


def pair_of(tensor):
    """Two tensors of their own."""
    return tuple(each.clone() for each in tensor.chunk(2, dim=-2 if tensor.dim() > 1 else -1))


@few_tilings
@pytest.mark.parametrize("activation", by_default({"relu_squared"}, ["gelu_tanh", "relu", "relu_squared"]))
def test_activation_and_residual(tiling, activation):
    x, weight = operands(37, 70, 100)
    residual = values(37, 70, seed=6, dtype=torch.float16)
    assert_right(x, weight, tiling=tiling, activation=activation, residual=residual, residual_scale=-3.0)


@few_tilings
@pytest.mark.parametrize("activation", by_default({"geglu_tanh"}, GATED))
def test_interleaved_gate_and_up(tiling, activation):
    x, weight = operands(37, 70, 100)
    options = {"activation": activation, "bias": values(70, seed=3), "weight_scale": values(70, 1, seed=4)}
    assert_right(x, weight, tiling=tiling, gate_up="interleaved", **options)


@few_tilings
def test_clamped_swiglu_of_gpt_oss(tiling):
    x, weight = operands(37, 70, 100)
    assert_right(x, weight, tiling=tiling, gate_up="interleaved", bias=values(70, seed=3), **CLAMPED)


@few_tilings
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["up_after", "up_before"])
def test_gate_and_up_as_two_weights(tiling, order):
    x, weight = operands(37, 70, 96)
    both = torch.stack(weight.chunk(2))  # the order of their addresses is that of `order`
    pair = tuple(both[position] for position in order)
    options = {"bias": pair_of(values(70, seed=3)), "weight_scale": pair_of(values(70, 1, seed=4))}
    assert_right(x, pair, tiling=tiling, activation="swiglu", residual=values(35, seed=6), **options)
    one_scale = (torch.tensor([0.5]), torch.tensor([2.0]))
    assert_right(x, pair, tiling=tiling, activation="geglu", bias=values(70, seed=3), weight_scale=one_scale)


def test_fault_of_gate_and_up_in_the_wrong_order_is_found():
    x, weight = operands(17, 34, 50)
    out = multiply(x, weight, activation="swiglu", gate_up="interleaved")
    assert error(out, x, weight, activation="swiglu") > 1


def test_output_accumulates_into_the_residual():
    x, weight = operands(19, 33, 50)
    for tiling in (None, matmul_tiling(2)):
        total = values(19, 33, seed=6, dtype=torch.float32)
        before = total.clone()
        assert prefill_matmul(x, weight, residual=total, out=total, tiling=tiling) is total
        assert error(total, x, weight, residual=before) <= 1


def test_residual_of_scale_0_is_not_read():
    x, weight = operands(5, 33, 50)
    nothing = torch.full((5, 33), float("nan"))
    assert_right(x, weight, residual=nothing, residual_scale=0.0)


@pytest.mark.parametrize("shape", [(), (33,), (17, 1), (1, 33), (2, 1, 33), (2, 17, 33)], ids=str)
def test_residual_broadcasts(shape):
    x, weight = values(2, 17, 50, seed=1), values(33, 50, seed=2)
    assert_right(x, weight, residual=values(*shape, seed=6))


SCALE_SHAPES = [(), (1,), (1, 1), (33,), (1, 33), (33, 1)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SCALE_SHAPES, ids=str)
def test_weight_scale_and_bias_of_any_shape_and_dtype(shape, dtype):
    x, weight = operands(17, 33, 50)
    bias = values(1, 33, seed=3, dtype=dtype)
    x_scale = values(17, 1, seed=5, dtype=BF16).abs().expand(17, 2)[:, :1]
    assert_right(x, weight, weight_scale=values(*shape, seed=4, dtype=dtype), bias=bias, x_scale=x_scale)


@pytest.mark.parametrize("shared", [False, True], ids=["own_weights", "one_weight"])
@pytest.mark.parametrize("shape", [(3, 1, 33), (1, 1, 33), (33,), (3, 33)], ids=str)
def test_bias_and_scales_of_batches(shape, shared):
    x, weight = values(3, 17, 50, seed=1), values(33, 50, seed=2)
    weight = weight if shared else torch.stack([weight, -weight, 2 * weight])
    scale = values(*shape, seed=4) if shape != (3, 33) or not shared else None
    assert_right(x, weight, bias=values(*shape, seed=3), weight_scale=scale, x_scale=values(3, 1, 1, seed=5))


MIXED = [
    (BF16, torch.float8_e4m3fn),
    (torch.float8_e5m2, torch.float16),
    (torch.float32, torch.int8),
    (torch.int8, BF16),
    (torch.float32, BF16),
]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("x_dtype", "weight_dtype"), MIXED, ids=str)
def test_operands_of_two_dtypes(x_dtype, weight_dtype, capability, limits_of):
    limits_of(capability)
    x, weight = values(19, 75, seed=1, dtype=torch.float32), values(33, 75, seed=2, dtype=torch.float32)
    x, weight = (
        (40 * each).round().clamp(-128, 127).to(dtype) if dtype == torch.int8 else each.to(dtype)
        for each, dtype in ((x, x_dtype), (weight, weight_dtype))
    )
    wider = max(x_dtype, weight_dtype, key=lambda dtype: dtype.itemsize)
    result = prefill_matmul(x, weight, weight_scale=0.5)
    assert result.dtype == wider
    assert error(result, x, weight, weight_scale=0.5) <= 1


@pytest.fixture
def limits_of(monkeypatch):
    """Sets the compute capability that tilings and formats are chosen for."""

    def choose(capability):
        limits = dataclasses.replace(H100_LIMITS, compute_capability=capability)
        monkeypatch.setattr(module, "gpu_limits", lambda _device: limits)

    return choose


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_dtype_of_out_is_taken_without_out_dtype(dtype):
    x, weight = operands(5, 33, 50, FLOAT8[0])
    out = poisoned(5, 33, dtype=dtype)
    assert prefill_matmul(x, weight, out=out) is out
    assert error(out, x, weight) <= 1


@pytest.mark.parametrize(
    ("x_shape", "weight_shape"),
    [((0, 32), (8, 32)), ((2, 0, 32), (8, 32)), ((0, 3, 32), (0, 8, 32)), ((4, 32), (0, 32))],
    ids=str,
)
def test_no_rows_columns_or_batches_launch_nothing(x_shape, weight_shape, monkeypatch):
    monkeypatch.setattr(module, "launch", lambda *_args, **_named: pytest.fail("launched"))
    x, weight = torch.zeros(x_shape), torch.zeros(weight_shape)
    assert prefill_matmul(x, weight).shape == (*x_shape[:-1], weight_shape[-2])
    assert prefill_matmul_workspace_bytes(x, weight) == 0


def test_without_in_features_only_the_epilogue_is_left():
    bias = values(8, seed=3)
    out = prefill_matmul(torch.zeros(4, 0), torch.zeros(8, 0), bias=bias, activation="relu")
    assert torch.equal(out, torch.relu(bias.float()).expand(4, 8))


def test_call_with_two_weights_is_never_repeated_from_a_record(monkeypatch):
    # The distance between the weights may be another one in the next call.
    forbidden = []
    monkeypatch.setattr(module, "forbid_repetition", lambda: forbidden.append(True))
    x, weight = operands(5, 34, 50)
    prefill_matmul(x, pair_of(weight), activation="swiglu")
    assert forbidden
