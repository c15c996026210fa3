"""`prefill_matmul` against its oracle: odd sizes, strides, dtypes, epilogues, tile order, split-K, TMA."""

import dataclasses
import importlib
import math

import pytest
import torch
from decodetax.harness.offline import count_traffic
from decodetax.kernels import prefill_matmul, prefill_matmul_workspace_bytes, reference
from decodetax.kernels.gpu_limits import H100_LIMITS
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_inputs import DTYPES, NAN, by_default, dtype_name, normal, poisoned
from matmul_checks import (
    FLOAT8,
    TILINGS,
    assert_right,
    error,
    matmul_tiling,
    multiply,
    operands,
    positive_operands,
)

module = importlib.import_module("decodetax.kernels.prefill_matmul")
ACTIVATIONS = [None, "silu", "gelu", "swiglu"]
every_tiling = pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS.keys())


def uniform(*shape, seed):
    """Scales of both signs, none near 0."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.5


def epilogue(rows, features, activation):
    return {
        "bias": normal(features, dtype=torch.float32, seed=3),
        "x_scale": uniform(rows, seed=4),
        "weight_scale": -uniform(features, 1, seed=5),
        "activation": activation,
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("rows", by_default({1, 17, 129}, [1, 15, 16, 17, 63, 65, 127, 129]))
def test_numbers_of_rows(rows, dtype):
    assert_right(*operands(rows, 65, 96, dtype))


@pytest.mark.parametrize("out_features", by_default({1, 33}, [1, 31, 32, 33]))
@pytest.mark.parametrize("in_features", by_default({1, 17, 49}, [1, 15, 16, 17, 49]))
@pytest.mark.parametrize("num_splits", by_default({1, 7}, [1, 2, 7]))
def test_numbers_of_features_and_k_splits(out_features, in_features, num_splits):
    # 49 features are 4 steps of 16: 7 splits are more than there are steps.
    assert_right(*positive_operands(17, out_features, in_features), tiling=matmul_tiling(num_splits))


@pytest.mark.parametrize("group_m", by_default({3, 8}, [1, 2, 3, 8]))
def test_grouped_tile_order_covers_every_tile(group_m):
    assert_right(*operands(16 * 5 + 1, 32 * 3 + 1, 16), tiling=matmul_tiling(group_m=group_m))


@pytest.mark.parametrize("num_splits", [1, 3])
@pytest.mark.parametrize("bias_dtype", [torch.float16, torch.float32], ids=dtype_name)
def test_bias_is_added_before_rounding(bias_dtype, num_splits):
    x, weight = operands(5, 33, 48, torch.float16)
    bias = normal(33, dtype=bias_dtype, seed=3)
    assert_right(x, weight, bias=bias, tiling=matmul_tiling(num_splits))
    # 2048 + 1 + 1: rounded after each addition float16 would stay at 2048.
    ones = torch.ones(1, 1, dtype=torch.float16)
    rounded_once = prefill_matmul(2048 * ones, ones, bias=torch.tensor([2.0], dtype=bias_dtype))
    assert rounded_once.item() == 2050


def test_leading_dimensions_of_x():
    x, weight = normal(2, 3, 5, 24, dtype=torch.bfloat16, seed=1), normal(9, 24, dtype=torch.bfloat16, seed=2)
    assert_right(x, weight)
    assert_right(x[0, 0, 0], weight)
    # Transposed leading dimensions do not view as rows of one stride.
    assert_right(x.transpose(0, 1), weight)


@pytest.mark.parametrize("num_splits", [1, 2])
def test_strided_operands_and_output(num_splits):
    x = normal(48, 17, dtype=torch.bfloat16, seed=1).T
    weight = normal(33, 3 * 48, dtype=torch.bfloat16, seed=2)[:, ::3]
    bias = normal(33, 2, dtype=torch.bfloat16, seed=3)[:, 0]
    out = poisoned(33, 2 * 17, dtype=torch.bfloat16)
    result = prefill_matmul(x, weight, bias=bias, out=out[:, :17].T, tiling=matmul_tiling(num_splits))
    assert error(result, x, weight, bias=bias) <= 1
    assert out[:, 17:].isnan().all()


@pytest.mark.usefixtures("overflow_raises")
@pytest.mark.parametrize(
    ("far", "rows"),
    [(2**31 + 16, 2), (2**30 + 16, 3), (2**26 + 16, 33)],
    ids=["of_a_stride", "in_a_tile", "of_a_tile"],
)
@pytest.mark.parametrize("num_splits", [1, 2])
def test_offsets_over_32_bits(far, rows, num_splits):
    # Of the storage only the touched pages take memory.
    storage = torch.empty((rows - 1) * far + 2**16, dtype=torch.bfloat16)
    x = storage.as_strided((rows, 32), (far, 1), 0)
    weight = storage.as_strided((32, rows), (1, far), 2**12).T
    out = storage.as_strided((rows, rows), (far, 1), 2**13)
    for tensor, values in zip((x, weight), operands(rows, rows, 32), strict=True):
        tensor.copy_(values)
    out.fill_(float("nan"))
    assert_right(x, weight, tiling=matmul_tiling(num_splits))
    prefill_matmul(x, weight, out=out, tiling=matmul_tiling(num_splits))
    assert error(out, x, weight) <= 1
    # K itself may be strided past 2^31.
    assert_right(x.T[:2], weight.T[:2], tiling=matmul_tiling(num_splits))


@every_tiling
def test_accesses_nothing_out_of_bounds(tiling):
    with count_traffic():
        prefill_matmul(*operands(16, 64, 32), tiling=tiling)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_fault_of_a_missing_product_is_found(dtype):
    x, weight = operands(3, 5, 100, dtype)
    assert error(prefill_matmul(x[:, :-1], weight[:, :-1]), x, weight) > 1


@every_tiling
@pytest.mark.parametrize("activation", by_default({"swiglu"}, ACTIVATIONS))
def test_fused_epilogue_with_every_tiling(tiling, activation):
    x, weight = operands(37, 70, 100)
    assert_right(x, weight, tiling=tiling, **epilogue(37, 70, activation))


@pytest.mark.parametrize("out_dtype", by_default({torch.float16}, DTYPES))
@pytest.mark.parametrize("weight_dtype", FLOAT8, ids=dtype_name)
@pytest.mark.parametrize("x_dtype", FLOAT8, ids=dtype_name)
def test_float8_operands(x_dtype, weight_dtype, out_dtype):
    x, weight = operands(19, 33, 75, x_dtype, weight_dtype)
    assert_right(x, weight, x_scale=0.5, weight_scale=torch.tensor([3.0]), out_dtype=out_dtype)
    assert prefill_matmul(x, weight).dtype == torch.bfloat16


@pytest.mark.parametrize("rows", by_default({1, 65}, [1, 17, 64, 65, 200]))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_name)
def test_int8_weights_with_column_scales(rows, dtype):
    x, weight = operands(rows, 45, 130, dtype, torch.int8)
    assert_right(x, weight, weight_scale=uniform(45, seed=5) / 40)
    ends = torch.tensor([[-128, 127, 0, -1]], dtype=torch.int8)
    assert prefill_matmul(torch.eye(4, dtype=dtype), ends)[:, 0].tolist() == [-128, 127, 0, -1]


@pytest.mark.parametrize("capability", by_default({80}, [80, 86]))
@pytest.mark.parametrize("other", FLOAT8, ids=dtype_name)
def test_every_e4m3_code_is_exact_without_gpu_instructions(other, capability, monkeypatch):
    limits = dataclasses.replace(H100_LIMITS, compute_capability=capability)
    monkeypatch.setattr(module, "gpu_limits", lambda _device: limits)
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)[:, None]
    one = torch.ones(1, 1).to(other)
    for result in (prefill_matmul(codes, one)[:, 0], prefill_matmul(one, codes)[0]):
        torch.testing.assert_close(result.float(), codes[:, 0].float(), rtol=0, atol=0, equal_nan=True)
    x, weight = operands(19, 33, 75, torch.float8_e4m3fn, other)
    assert_right(x, weight, x_scale=0.25)


def test_precision_reaches_the_kernel():
    x, weight = operands(17, 33, 75, torch.float32)
    seen = []
    kernel = module._matmul_kernel

    class Spy:
        def __getitem__(self, grid):
            return lambda **named: (seen.append(named["PRECISION"]), kernel[grid](**named))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_matmul_kernel", Spy())
        for precision in ("ieee", "tf32"):
            assert_right(x, weight, precision=precision, tiling=matmul_tiling())
    assert seen == ["ieee", "tf32"]


@pytest.mark.parametrize(
    "tiling", [None, TILINGS["last_tiles_split"], TILINGS["columns"], TILINGS["descriptors"]]
)
@pytest.mark.parametrize("activation", by_default({"swiglu"}, [None, "swiglu"]))
def test_batched_weights(tiling, activation):
    x, weight = operands(19, 34, 50, batch=(3,))
    assert_right(
        x,
        weight,
        tiling=tiling,
        activation=activation,
        bias=normal(3, 34, dtype=torch.bfloat16, seed=3),
        x_scale=uniform(3, 19, seed=4),
        weight_scale=uniform(3, 34, seed=5),
    )
    assert_right(x, weight, bias=normal(34, dtype=torch.bfloat16, seed=3))


def test_x_with_two_row_strides_is_not_copied(monkeypatch):
    x = normal(5, 3, 48, dtype=torch.bfloat16, seed=1).transpose(0, 1)
    weight = normal(33, 48, dtype=torch.bfloat16, seed=2)
    monkeypatch.setattr(torch.Tensor, "reshape", lambda *_args: pytest.fail("x was copied"))
    out = poisoned(3, 5, 33, dtype=torch.bfloat16)
    prefill_matmul(x, weight, x_scale=(scales := uniform(3, 5, seed=4)), out=out)
    monkeypatch.undo()
    assert error(out, x, weight, x_scale=scales) <= 1


@pytest.mark.parametrize(
    "tiling", by_default({"whole", "split", "split_descriptors"}, TILINGS.values(), TILINGS.keys())
)
def test_no_allocation_with_out_and_workspace(tiling, monkeypatch):
    x, weight = operands(37, 70, 100)
    size = prefill_matmul_workspace_bytes(x, weight, tiling=tiling)
    assert (size > 0) == (tiling.num_splits > 1)
    memory = poisoned(size // 4 + 8, dtype=torch.float32)
    out = poisoned(37, 70, dtype=torch.bfloat16)
    monkeypatch.setattr(torch, "empty", lambda *_args, **_options: pytest.fail("allocated"))
    prefill_matmul(x, weight, out=out, workspace=memory[4:-4], tiling=tiling)
    monkeypatch.undo()
    assert error(out, x, weight) <= 1
    assert memory[:4].isnan().all()
    assert memory[-4:].isnan().all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    x, weight = operands(17, 34, 50)
    assert_right(x, weight, tiling=TILINGS["split"], **epilogue(17, 34, activation))


@pytest.mark.parametrize(
    "tiling", by_default({"last_tiles_split", "descriptors"}, TILINGS.values(), TILINGS.keys())
)
def test_results_are_bitwise_reproducible(tiling):
    x, weight = operands(37, 70, 100)
    assert torch.equal(multiply(x, weight, tiling=tiling), multiply(x, weight, tiling=tiling))


def shifted(values):
    """The same values, 2 bytes past a 16-byte aligned address."""
    return torch.empty(values.numel() + 1, dtype=values.dtype)[1:].view_as(values).copy_(values)


@pytest.mark.parametrize(
    "layout",
    [
        lambda values: values.clone()[:, :63],  # rows of 128 bytes, of which 126 count: descriptors take them
        lambda values: values[:, :61].clone(),
        lambda values: values.T.contiguous().T,
        shifted,
    ],
    ids=["descriptors", "odd_rows", "transposed", "misaligned"],
)
def test_operands_that_tma_cannot_load_use_pointers(layout, request, monkeypatch):
    x = layout(normal(19, 64, dtype=torch.bfloat16, seed=1))
    weight = normal(33, 64, dtype=torch.bfloat16, seed=2)[:, : x.shape[1]]
    launched = []
    for name in ("_matmul_kernel", "_tma_kernel"):
        monkeypatch.setattr(module, name, Recorded(name, getattr(module, name), launched))
    assert_right(x, weight, tiling=TILINGS["descriptors"])
    expected = "_tma_kernel" if "[descriptors]" in request.node.name else "_matmul_kernel"
    assert launched == [expected]


class Recorded:
    def __init__(self, name, kernel, launched):
        self.name, self.kernel, self.launched = name, kernel, launched

    def __getitem__(self, grid):
        self.launched.append(self.name)
        return self.kernel[grid]


@pytest.mark.usefixtures("overflow_raises")
@pytest.mark.parametrize(
    "tiling", [matmul_tiling(), matmul_tiling(2), TILINGS["weight_first"]], ids=["whole", "split", "first"]
)
def test_batch_and_gate_offsets_over_32_bits(tiling):
    far = 2**31 + 16
    storage = torch.empty(2 * far, dtype=torch.bfloat16)  # of which only the touched pages take memory
    weight = normal(4, 32, dtype=torch.bfloat16, seed=2)
    for batch, stride in ((2, far), (3, 2**30 + 16)):
        x = storage.as_strided((batch, 3, 32), (stride, 32, 1), 0)
        x.copy_(normal(batch, 3, 32, dtype=torch.bfloat16, seed=1))
        assert_right(x, weight.expand(batch, 4, 32), tiling=tiling)
    # The up rows are 2^31 elements past the gate rows.
    gated = storage.as_strided((4, 32), (far // 2 + 16, 1), 2**12)
    gated.copy_(normal(4, 32, dtype=torch.bfloat16, seed=2))
    assert_right(normal(3, 32, dtype=torch.bfloat16, seed=1), gated, tiling=tiling, activation="swiglu")


@pytest.mark.parametrize(
    "tiling", by_default({"last_tiles_split", "columns", "descriptors"}, TILINGS.values(), TILINGS.keys())
)
@pytest.mark.parametrize("activation", by_default({None}, [None, "swiglu"]))
def test_nan_and_infinity_affect_only_their_row_and_column(tiling, activation):
    x, weight = operands(19, 20, 40)
    x[2, 7], weight[3, 0] = NAN, math.inf
    out = multiply(x, weight, tiling=tiling, activation=activation)
    assert out[2].isnan().all()
    assert not out[:, 3].isfinite().any()
    others = [column for column in range(out.shape[1]) if column != 3]
    assert out[[row for row in range(19) if row != 2]][:, others].isfinite().all()


@pytest.mark.parametrize("fault", by_default({"up", "last_split"}, ["scale", "bias", "up", "last_split"]))
def test_fault_in_the_epilogue_or_split_k_is_found(fault, monkeypatch):
    x, weight = operands(5, 34, 64)
    options = {**epilogue(5, 34, "swiglu" if fault == "up" else None), "tiling": matmul_tiling(2)}
    assert_right(x, weight, **options)
    wrong = {**options}
    if fault == "scale":
        wrong["weight_scale"] = options["weight_scale"].roll(1)
    elif fault == "bias":
        wrong["bias"] = options["bias"].roll(1)
    elif fault == "up":
        weight = weight.roll(1, 0)
    else:
        monkeypatch.setattr(module, "_split_k_reduce_kernel", SkipsLastSplit(module._split_k_reduce_kernel))
    out = multiply(x, weight, **wrong)
    original = operands(5, 34, 64)[1]
    assert error(out, x, original, **options) > 1


class SkipsLastSplit:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return lambda **named: self.kernel[grid](**named | {"NUM_SPLITS": named["NUM_SPLITS"] - 1})


@pytest.mark.slow
@settings(max_examples=40)
@given(
    rows=st.integers(1, 70),
    pairs=st.integers(1, 35),
    in_features=st.integers(1, 70),
    tiling=st.sampled_from([None, *TILINGS.values()]),
    activation=st.sampled_from(ACTIVATIONS),
    dtypes=st.sampled_from(
        [
            (torch.bfloat16, torch.bfloat16),
            (torch.bfloat16, torch.int8),
            (torch.float16, torch.float16),
            (torch.float32, torch.float32),
            (torch.float8_e4m3fn, torch.float8_e4m3fn),
        ]
    ),
    transposed=st.booleans(),
)
def test_random_shapes_and_options(rows, pairs, in_features, tiling, activation, dtypes, transposed):
    x, weight = positive_operands(rows, 2 * pairs, in_features, dtype=dtypes[0], weight_dtype=dtypes[1])
    if transposed:
        weight = weight.T.contiguous().T
    # Small sums keep the activation where it does not cancel.
    scale = 1.0 / (in_features * (40 if dtypes[1] == torch.int8 else 1))
    assert_right(x, weight, tiling=tiling, activation=activation, weight_scale=scale)


@pytest.mark.parametrize("in_features", [1, 70])
def test_one_pair_of_gate_and_up_features(in_features):
    x, weight = positive_operands(65, 2, in_features, dtype=torch.bfloat16, weight_dtype=torch.bfloat16)
    assert_right(x, weight, activation="swiglu", weight_scale=1.0 / in_features)


def test_products_computed_by_hand():
    x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    plain = prefill_matmul(x, weight, bias=torch.tensor([1.0, 0.0, 0.0, 0.0]), x_scale=2.0)
    assert plain.tolist() == [[23.0, 2.0, 4.0, 4.0]]
    gated = prefill_matmul(x, weight, activation="swiglu")
    # silu of 11 and 1, times 2 and 2.
    expected = torch.nn.functional.silu(torch.tensor([[11.0, 1.0]])) * 2.0
    torch.testing.assert_close(gated, expected)
    assert reference.prefill_matmul(x, weight, activation="swiglu").shape == (1, 2)


@pytest.mark.parametrize("activation", [None, "swiglu"])
def test_batches_that_share_a_weight_have_scales_of_their_own(activation):
    shared = normal(1, 6, 16, dtype=torch.float32, seed=1).expand(3, 6, 16)
    scale, x = uniform(3, 6, seed=2), normal(3, 5, 16, dtype=torch.float32, seed=3)
    options = {"weight_scale": scale, "activation": activation}
    found = prefill_matmul(x, shared, **options)
    torch.testing.assert_close(found, prefill_matmul(x, shared.contiguous(), **options))
