"""What `prefill_matmul` does beside a plain product, at odd sizes, cut in every way, against the oracle."""

import dataclasses
import importlib

import pytest
import torch
from decodetax.kernels import prefill_matmul, prefill_matmul_workspace_bytes, reference
from decodetax.kernels.gpu_limits import H100_LIMITS
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_inputs import NAN, dtype_name, normal, poisoned
from matmul_checks import (
    CUTS,
    FLOAT8,
    assert_right,
    error,
    multiply,
    operands,
    positive_operands,
    tiling,
)
from triton.runtime.interpreter import interpreter_builder

module = importlib.import_module("decodetax.kernels.prefill_matmul")
ACTIVATIONS = [None, "silu", "gelu", "swiglu"]
every_cut = pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())


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


@every_cut
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_scales_bias_and_activation_are_applied_however_the_work_is_cut(cut, activation):
    x, weight = operands(37, 70, 100)
    assert_right(x, weight, tiling=cut, **epilogue(37, 70, activation))


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16, torch.float32], ids=dtype_name)
@pytest.mark.parametrize("weight_dtype", FLOAT8, ids=dtype_name)
@pytest.mark.parametrize("x_dtype", FLOAT8, ids=dtype_name)
def test_float8_of_both_kinds_is_multiplied_as_it_is(x_dtype, weight_dtype, out_dtype):
    x, weight = operands(19, 33, 75, x_dtype, weight_dtype)
    assert_right(x, weight, x_scale=0.5, weight_scale=torch.tensor([3.0]), out_dtype=out_dtype)
    assert prefill_matmul(x, weight).dtype == torch.bfloat16


@pytest.mark.parametrize("rows", [1, 17, 64, 65, 200])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_name)
def test_int8_weights_are_multiplied_as_whole_numbers_with_a_scale_a_column(rows, dtype):
    x, weight = operands(rows, 45, 130, dtype, torch.int8)
    assert_right(x, weight, weight_scale=uniform(45, seed=5) / 40)
    ends = torch.tensor([[-128, 127, 0, -1]], dtype=torch.int8)
    assert prefill_matmul(torch.eye(4, dtype=dtype), ends)[:, 0].tolist() == [-128, 127, 0, -1]


@pytest.mark.parametrize("capability", [80, 86])
@pytest.mark.parametrize("other", FLOAT8, ids=dtype_name)
def test_every_code_of_e4m3_is_decoded_where_a_gpu_has_no_instruction_for_it(other, capability, monkeypatch):
    limits = dataclasses.replace(H100_LIMITS, compute_capability=capability)
    monkeypatch.setattr(module, "gpu_limits", lambda _device: limits)
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)[:, None]
    one = torch.ones(1, 1).to(other)
    for result in (prefill_matmul(codes, one)[:, 0], prefill_matmul(one, codes)[0]):
        torch.testing.assert_close(result.float(), codes[:, 0].float(), rtol=0, atol=0, equal_nan=True)
    x, weight = operands(19, 33, 75, torch.float8_e4m3fn, other)
    assert_right(x, weight, x_scale=0.25)


def test_tf32_is_said_explicitly():
    x, weight = operands(17, 33, 75, torch.float32)
    seen = []
    kernel = module._matmul_kernel

    class Spy:
        def __getitem__(self, grid):
            return lambda **named: (seen.append(named["PRECISION"]), kernel[grid](**named))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_matmul_kernel", Spy())
        for precision in ("ieee", "tf32"):
            assert_right(x, weight, precision=precision, tiling=tiling())
    assert seen == ["ieee", "tf32"]


@pytest.mark.parametrize("cut", [None, CUTS["last_tiles_split"], CUTS["columns"], CUTS["descriptors"]])
@pytest.mark.parametrize("activation", [None, "swiglu"])
def test_each_batch_has_a_weight_of_its_own(cut, activation):
    x, weight = operands(19, 34, 50, batch=(3,))
    assert_right(
        x,
        weight,
        tiling=cut,
        activation=activation,
        bias=normal(3, 34, dtype=torch.bfloat16, seed=3),
        x_scale=uniform(3, 19, seed=4),
        weight_scale=uniform(3, 34, seed=5),
    )
    assert_right(x, weight, bias=normal(34, dtype=torch.bfloat16, seed=3))


def test_rows_of_two_strides_are_not_copied(monkeypatch):
    x = normal(5, 3, 48, dtype=torch.bfloat16, seed=1).transpose(0, 1)
    weight = normal(33, 48, dtype=torch.bfloat16, seed=2)
    monkeypatch.setattr(torch.Tensor, "reshape", lambda *_args: pytest.fail("x was copied"))
    out = poisoned(3, 5, 33, dtype=torch.bfloat16)
    prefill_matmul(x, weight, x_scale=(scales := uniform(3, 5, seed=4)), out=out)
    monkeypatch.undo()
    assert error(out, x, weight, x_scale=scales) <= 1


@every_cut
def test_with_out_and_workspace_nothing_is_allocated(cut, monkeypatch):
    x, weight = operands(37, 70, 100)
    size = prefill_matmul_workspace_bytes(x, weight, tiling=cut)
    assert (size > 0) == (cut.num_splits > 1)
    memory = poisoned(size // 4 + 8, dtype=torch.float32)
    out = poisoned(37, 70, dtype=torch.bfloat16)
    monkeypatch.setattr(torch, "empty", lambda *_args, **_options: pytest.fail("allocated"))
    prefill_matmul(x, weight, out=out, workspace=memory[4:-4], tiling=cut)
    monkeypatch.undo()
    assert error(out, x, weight) <= 1
    assert memory[:4].isnan().all()
    assert memory[-4:].isnan().all()


@every_cut
def test_the_same_bits_every_run_however_it_is_cut(cut):
    x, weight = operands(37, 70, 100)
    assert torch.equal(multiply(x, weight, tiling=cut), multiply(x, weight, tiling=cut))


def shifted(values):
    """The same values, 2 bytes past an address that 16 divides."""
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
def test_what_descriptors_cannot_load_is_loaded_through_pointers(layout, request, monkeypatch):
    x = layout(normal(19, 64, dtype=torch.bfloat16, seed=1))
    weight = normal(33, 64, dtype=torch.bfloat16, seed=2)[:, : x.shape[1]]
    launched = []
    for name in ("_matmul_kernel", "_tma_kernel"):
        monkeypatch.setattr(module, name, Recorded(name, getattr(module, name), launched))
    assert_right(x, weight, tiling=CUTS["descriptors"])
    expected = "_tma_kernel" if "[descriptors]" in request.node.name else "_matmul_kernel"
    assert launched == [expected]


class Recorded:
    def __init__(self, name, kernel, launched):
        self.name, self.kernel, self.launched = name, kernel, launched

    def __getitem__(self, grid):
        self.launched.append(self.name)
        return self.kernel[grid]


@pytest.mark.parametrize("cut", [tiling(), tiling(2), CUTS["weight_first"]], ids=["whole", "split", "first"])
def test_batches_and_gates_may_lie_past_32_bits(cut, monkeypatch):
    debug = dataclasses.replace(interpreter_builder.options, debug=True)
    monkeypatch.setattr(interpreter_builder, "options", debug)  # a 32-bit overflow raises
    far = 2**31 + 16
    storage = torch.empty(2 * far, dtype=torch.bfloat16)  # of which only the touched pages take memory
    x, weight = storage.as_strided((2, 3, 32), (far, 32, 1), 0), normal(4, 32, dtype=torch.bfloat16, seed=2)
    x.copy_(normal(2, 3, 32, dtype=torch.bfloat16, seed=1))
    assert_right(x, weight.expand(2, 4, 32), tiling=cut)
    # The up rows lie 2^31 elements past those of the gate.
    gated = storage.as_strided((4, 32), (far // 2 + 16, 1), 2**12)
    gated.copy_(normal(4, 32, dtype=torch.bfloat16, seed=2))
    assert_right(normal(3, 32, dtype=torch.bfloat16, seed=1), gated, tiling=cut, activation="swiglu")


@every_cut
@pytest.mark.parametrize("activation", [None, "swiglu"])
def test_numbers_that_are_none_reach_their_row_and_column_alone(cut, activation):
    x, weight = operands(19, 20, 40)
    x[2, 7], weight[3, 0] = NAN, NAN
    out = multiply(x, weight, tiling=cut, activation=activation)
    assert out[2].isnan().all()
    assert out[:, 3].isnan().all()
    others = [column for column in range(out.shape[1]) if column != 3]
    assert out[[row for row in range(19) if row != 2]][:, others].isfinite().all()


@pytest.mark.parametrize("fault", ["scale", "bias", "up", "last_share"])
def test_a_fault_of_the_epilogue_would_be_noticed(fault, monkeypatch):
    x, weight = operands(5, 34, 64)
    options = {**epilogue(5, 34, "swiglu" if fault == "up" else None), "tiling": tiling(2)}
    assert_right(x, weight, **options)
    wrong = {**options}
    if fault == "scale":
        wrong["weight_scale"] = options["weight_scale"].roll(1)
    elif fault == "bias":
        wrong["bias"] = options["bias"].roll(1)
    elif fault == "up":
        weight = weight.roll(1, 0)
    else:
        monkeypatch.setattr(module, "_split_k_reduce_kernel", SkipsAShare(module._split_k_reduce_kernel))
    out = multiply(x, weight, **wrong)
    original = operands(5, 34, 64)[1]
    assert error(out, x, original, **options) > 1


class SkipsAShare:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return lambda **named: self.kernel[grid](**named | {"NUM_SPLITS": named["NUM_SPLITS"] - 1})


@settings(max_examples=40)
@given(
    rows=st.integers(1, 70),
    pairs=st.integers(1, 35),
    in_features=st.integers(1, 70),
    cut=st.sampled_from([None, *CUTS.values()]),
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
def test_any_product_agrees_with_the_oracle(rows, pairs, in_features, cut, activation, dtypes, transposed):
    x, weight = positive_operands(rows, 2 * pairs, in_features, dtype=dtypes[0], weight_dtype=dtypes[1])
    if transposed:
        weight = weight.T.contiguous().T
    # Small sums keep the activation where it does not cancel.
    scale = 1.0 / (in_features * (40 if dtypes[1] == torch.int8 else 1))
    assert_right(x, weight, tiling=cut, activation=activation, weight_scale=scale)


def test_a_whole_number_by_hand():
    x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    plain = prefill_matmul(x, weight, bias=torch.tensor([1.0, 0.0, 0.0, 0.0]), x_scale=2.0)
    assert plain.tolist() == [[23.0, 2.0, 4.0, 4.0]]
    gated = prefill_matmul(x, weight, activation="swiglu")
    # silu of 11 and 1, times 2 and 2.
    expected = torch.nn.functional.silu(torch.tensor([[11.0, 1.0]])) * 2.0
    torch.testing.assert_close(gated, expected)
    assert reference.prefill_matmul(x, weight, activation="swiglu").shape == (1, 2)
