"""Small kernels give the results of a GPU in the patched interpreter."""

import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from decodetax.kernels import interpreting, prefill_matmul, use_interpreter
from decodetax.kernels.interpreter import patch_interpreter
from kernel_inputs import normal
from triton.runtime.interpreter import InterpreterBuilder, interpreter_builder

patch_interpreter()


@triton.jit
def cast_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out_ptr + at, tl.load(x_ptr + at).to(out_ptr.dtype.element_ty))


def cast(x, dtype):
    out = torch.zeros(len(x), dtype=dtype)
    cast_kernel[(1,)](x, out, SIZE=len(x))
    return out


NUMBERS = torch.tensor([1.955, -3.999, 1e-3, 0.0, -0.0, 5e-6, 255.99, -1.01171875])


@pytest.mark.parametrize("source", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "target", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str
)
def test_casts_round_to_nearest_even(source, target):
    x = NUMBERS.to(source)
    assert torch.equal(cast(x, target).float(), x.to(target).float())


@pytest.mark.parametrize("source", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("target", [torch.float64, torch.float32, torch.float16], ids=str)
def test_widening_casts_are_exact_for_infinity_and_nan_too(source, target):
    x = torch.cat([NUMBERS, torch.tensor([math.nan, math.inf, -math.inf, 2.0**-9]).repeat(2)]).to(source)
    torch.testing.assert_close(cast(x, target), x.to(target), rtol=0, atol=0, equal_nan=True)


def test_integers_become_bfloat16_by_value():
    x = torch.tensor([0, 1, -7, 257, 1000, 65537, -3, 12], dtype=torch.int32)
    assert torch.equal(cast(x, torch.bfloat16), x.bfloat16())


def test_bfloat16_becomes_integers_by_value():
    x = torch.tensor([0.0, 1.5, -7.0, 257.0], dtype=torch.bfloat16)
    assert torch.equal(cast(x, torch.int32), x.int())


@triton.jit
def dot_kernel(a_ptr, b_ptr, out_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tile = at[:, None] * SIZE + at[None, :]
    product = tl.dot(tl.load(a_ptr + tile), tl.load(b_ptr + tile), input_precision="ieee")
    tl.store(out_ptr + tile, product)


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2],
    ids=str,
)
def test_dot_products(dtype):
    a, b = normal(16, 16, dtype=dtype, seed=1), normal(16, 16, dtype=dtype, seed=2)
    out = torch.empty(16, 16)
    dot_kernel[(1,)](a, b, out, SIZE=16)
    torch.testing.assert_close(out, a.float() @ b.float(), rtol=1e-5, atol=1e-5)


@triton.jit
def arithmetic_kernel(x_ptr, y_ptr, out_ptr, SIZE: tl.constexpr, OPERATION: tl.constexpr):  # noqa: C901  (one branch per operation)
    at = tl.arange(0, SIZE)
    x, y = tl.load(x_ptr + at), tl.load(y_ptr + at)
    if OPERATION == "add":
        result = x + y
    elif OPERATION == "subtract":
        result = x - y
    elif OPERATION == "multiply":
        result = x * y
    elif OPERATION == "negate":
        result = -x
    elif OPERATION == "maximum":
        result = tl.maximum(x, y)
    elif OPERATION == "minimum":
        result = tl.minimum(x, y)
    elif OPERATION == "compare":
        result = tl.where(x < y, x, y)
    elif OPERATION == "clamp":
        result = tl.clamp(x, -0.5, 0.5)
    elif OPERATION == "fma":
        result = tl.fma(x, y, x)
    elif OPERATION == "constant":
        result = x + 1.5
    elif OPERATION == "sum":
        result = tl.sum(x, 0) + y
    elif OPERATION == "max":
        result = tl.max(x, 0).to(tl.bfloat16) + y
    tl.store(out_ptr + at, result)


ARITHMETIC = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "negate": lambda x, y: -x,  # noqa: ARG005
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "compare": torch.minimum,
    "clamp": lambda x, y: x.clamp(-0.5, 0.5),  # noqa: ARG005
    "fma": lambda x, y: (x.double() * y.double() + x.double()).bfloat16(),
    "constant": lambda x, y: x + 1.5,  # noqa: ARG005
    "sum": lambda x, y: x.float().sum().bfloat16() + y,
    "max": lambda x, y: x.max() + y,
}


@pytest.mark.parametrize("operation", ARITHMETIC)
def test_bfloat16_arithmetic_is_by_value(operation):
    x, y = normal(64, dtype=torch.bfloat16, seed=1), normal(64, dtype=torch.bfloat16, seed=2)
    out = torch.empty(64, dtype=torch.bfloat16)
    arithmetic_kernel[(1,)](x, y, out, SIZE=64, OPERATION=operation)
    assert torch.equal(out, ARITHMETIC[operation](x, y))


@triton.jit
def maximum_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :])
    tl.store(out_ptr + tl.arange(0, SIZE), tl.maximum(tl.max(x, 1), -1.0))


def test_maximum_ignores_nan_without_warning():
    x = torch.full((4, 4), math.nan)
    x[1:, 0] = torch.tensor([3.0, -2.0, math.inf])
    out = torch.empty(4)
    with warnings.catch_warnings(action="error"):
        maximum_kernel[(1,)](x, out, SIZE=4)
    assert out.tolist() == [-1.0, 3.0, -1.0, math.inf]


@triton.jit
def scalar_mask_kernel(out_ptr, limit, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out_ptr + at, at, mask=(at >= 0) & (tl.program_id(0) < limit))


def test_scalar_comparison_masks_a_block():
    out = torch.full((8,), -1, dtype=torch.int32)
    scalar_mask_kernel[(1,)](out, 0, SIZE=8)
    assert (out == -1).all()
    scalar_mask_kernel[(1,)](out, 1, SIZE=8)
    assert out.tolist() == list(range(8))


@triton.jit
def loop_kernel(bound_ptr, out_ptr):
    total = 0
    for step in range(tl.load(bound_ptr), tl.load(bound_ptr + 1)):
        total += step
    tl.store(out_ptr, total)


def test_loop_over_loaded_bounds():
    out = torch.zeros(1, dtype=torch.int32)
    loop_kernel[(1,)](torch.tensor([2, 5], dtype=torch.int32), out)
    assert out.item() == 2 + 3 + 4


def test_wrapped_builder_methods_are_called(monkeypatch):
    shapes = []
    before = interpreter_builder.create_dot

    def counting(a, b, *rest):
        shapes.append((a.data.shape, b.data.shape))
        return before(a, b, *rest)

    monkeypatch.setattr(interpreter_builder, "create_dot", counting)
    x = normal(16, 64, dtype=torch.bfloat16, seed=1)
    prefill_matmul(x, x)
    assert len(shapes) == 1
    assert shapes[0][0][1] == shapes[0][1][0]


def test_patching_again_changes_nothing():
    before = dict(vars(InterpreterBuilder))
    patch_interpreter()
    use_interpreter()
    assert dict(vars(InterpreterBuilder)) == before
    assert interpreting()


def test_rejects_changed_environment(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET was unset after triton was imported"):
        patch_interpreter()


@pytest.mark.slow
def test_bfloat16_is_wrong_without_the_patches(tmp_path):
    # If a first result turns True, Triton has fixed it itself, and a patch can be removed.
    script = tmp_path / "unpatched.py"
    script.write_text(
        "import torch, triton, triton.language as tl\n"
        "@triton.jit\n"
        "def dot_kernel(a_ptr, out_ptr, SIZE: tl.constexpr):\n"
        "    tile = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]\n"
        "    a = tl.load(a_ptr + tile)\n"
        "    tl.store(out_ptr + tile, tl.dot(a, a))\n"
        "    rounded = (a.to(tl.float32) * 1.01).to(tl.bfloat16)\n"
        "    tl.store(out_ptr + SIZE * SIZE + tile, rounded.to(tl.float32))\n"
        "if __import__('sys').argv[1] == 'patched':\n"
        "    from decodetax.kernels import use_interpreter; use_interpreter()\n"
        "a = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()\n"
        "out = torch.empty(2, 16, 16)\n"
        "dot_kernel[(1,)](a, out, SIZE=16)\n"
        "print(torch.allclose(out[0], a.float() @ a.float(), atol=1e-4),"
        " torch.equal(out[1], (a.float() * 1.01).bfloat16().float()))\n"
    )
    results = [
        subprocess.run(
            [sys.executable, script, mode], capture_output=True, text=True, check=True
        ).stdout.split()
        for mode in ("unpatched", "patched")
    ]
    assert results == [["False", "False"], ["True", "True"]]


def test_overflow_to_infinity_does_not_warn():
    assert np.geterr()["over"] != "ignore", "the setting must not leak out of a launch"
    with warnings.catch_warnings(action="error"):
        assert cast(torch.tensor([1e38, -1e38, 1.0, 2.0]), torch.float16).tolist() == [
            math.inf,
            -math.inf,
            1,
            2,
        ]
