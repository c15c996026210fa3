"""Patches for Triton's interpreter where it differs from a GPU, so that the same kernel code runs on both.

Triton 3.6 to 3.9 emulate kernels in numpy, which has neither bfloat16 nor float8: the emulation multiplies,
adds and compares bit patterns as integers, rounds wrongly, and warns where a GPU silently computes an
infinity or NaN. Each function below replaces the method of the same name on the interpreter's classes. This
fixes kernels of any library, and tools that wrap the methods of Triton's `interpreter_builder` object keep
working.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from triton import language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter
from triton.runtime.autotuner import Autotuner
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, ReduceOps, TensorHandle

from . import rounding

_FORMATS = {tl.bfloat16: rounding.BF16, tl.float8e4nv: rounding.E4M3, tl.float8e5: rounding.E5M2}
_FLOAT8_VALUES = {tl.float8e4nv: rounding.E4M3_VALUES, tl.float8e5: rounding.E5M2_VALUES}
_NUMPY_FLOATS = {tl.float16: np.float16, tl.float32: np.float32, tl.float64: np.float64}

_cast_impl = InterpreterBuilder.cast_impl
_create_clampf = InterpreterBuilder.create_clampf
_create_dot = InterpreterBuilder.create_dot
_create_fma = InterpreterBuilder.create_fma
_create_fp_to_fp = InterpreterBuilder.create_fp_to_fp
_create_splat = InterpreterBuilder.create_splat
_binary_op = InterpreterBuilder.binary_op
_unary_op = InterpreterBuilder.unary_op
_reduce_min_max = ReduceOps.min_max
_reduce_sum = ReduceOps.sum
_launch = GridExecutor.__call__
_patch_lang_tensor = interpreter._patch_lang_tensor  # noqa: SLF001  (Triton binds tensor methods there)


def apply() -> None:
    """Install the patches; calling it again changes nothing."""
    for method in (
        cast_impl,
        create_clampf,
        create_dot,
        create_fma,
        create_fp_to_fp,
        create_maxnumf,
        create_minnumf,
        create_splat,
        binary_op,
        unary_op,
        get_bf16,
    ):
        setattr(InterpreterBuilder, method.__name__, method)
    ReduceOps.min_max = min_max
    ReduceOps.sum = sum_
    GridExecutor.__call__ = launch
    Autotuner._bench = bench  # noqa: SLF001  (it times one configuration)
    interpreter._patch_lang_tensor = patch_lang_tensor  # noqa: SLF001  (Triton binds tensor methods there)


def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
    """Casts between number types; bfloat16 and float8 by value."""
    source, kind = _decoded(src), dst_type.scalar
    return _encoded(source, kind) if kind in _FORMATS else _cast_impl(self, source, dst_type)


def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
    """Casts with float8 or with an explicit rounding mode."""
    source, kind = _decoded(src), dst_type.scalar
    toward_zero = rounding_mode == ir.ROUNDING_MODE.RTZ
    if source.dtype.scalar in _NUMPY_FLOATS and kind in _FORMATS:
        return _encoded(source, kind, toward_zero=toward_zero)
    if source.dtype.scalar in _NUMPY_FLOATS and kind in _NUMPY_FLOATS and not toward_zero:
        return TensorHandle(source.data.astype(_NUMPY_FLOATS[kind]), kind)
    return _create_fp_to_fp(self, source, dst_type, rounding_mode)


def get_bf16(self: Any, value: float) -> Any:
    """A bfloat16 constant; Triton 3.6 does not implement it."""
    return cast_impl(self, self.get_fp32(value), tl.bfloat16)


def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
    """`tl.dot`; products of bfloat16 and float8 are exact in float32, as on a GPU."""
    return _create_dot(self, _decoded(a), _decoded(b), d, *rest)


def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
    """Binary arithmetic and comparisons; bfloat16 is computed in float32 and rounded."""
    if lhs.dtype.scalar != tl.bfloat16:
        return _binary_op(self, lhs, rhs, op)
    output = op(_decoded(lhs).data, _decoded(rhs).data)
    # Comparisons give bool arrays, whose type Triton sets itself.
    return TensorHandle(
        rounding.bf16_codes(output) if output.dtype == np.float32 else output, lhs.dtype.scalar
    )


def unary_op(self: Any, arg: Any, op: Any) -> Any:
    """Unary arithmetic; bfloat16 is computed in float32 and rounded."""
    if arg.dtype.scalar != tl.bfloat16:
        return _unary_op(self, arg, op)
    return TensorHandle(rounding.bf16_codes(op(_decoded(arg).data)), tl.bfloat16)


def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
    """Fused multiply-add x * y + z, rounded once."""
    if z.dtype.scalar != tl.bfloat16:
        return _create_fma(self, x, y, z)
    product = _decoded(x).data.astype(np.float64) * _decoded(y).data  # exact
    return TensorHandle(rounding.BF16.encode(product + _decoded(z).data), tl.bfloat16)


def create_clampf(self: Any, arg: Any, lo: Any, hi: Any, propagate_nans: Any) -> Any:
    """`arg` clamped to [lo, hi]."""
    clamped = _create_clampf(self, _decoded(arg), _decoded(lo), _decoded(hi), propagate_nans)
    return _encoded(clamped, tl.bfloat16) if arg.dtype.scalar == tl.bfloat16 else clamped


def create_minnumf(self: Any, lhs: Any, rhs: Any) -> Any:
    """Minimum; if one operand is NaN, the other one (Triton 3.6 returns NaN)."""
    return self.binary_op(lhs, rhs, np.fmin)


def create_maxnumf(self: Any, lhs: Any, rhs: Any) -> Any:
    """Maximum; if one operand is NaN, the other one (Triton 3.6 returns NaN)."""
    return self.binary_op(lhs, rhs, np.fmax)


def create_splat(self: Any, ret_ty: Any, arg: Any) -> Any:
    """A scalar as a block; gives the bool of a comparison its own type, not that of the operands."""
    if arg.data.dtype != np.bool_:
        return _create_splat(self, ret_ty, arg)
    return TensorHandle(np.broadcast_to(arg.data, ret_ty.shape), tl.int1)


def sum_(self: Any, values: Any) -> Any:
    """`tl.sum`; bfloat16 is summed in float32 and rounded once."""
    return _narrowed(_reduce_sum(self, _widened(values)), values.dtype.scalar)


def min_max(self: Any, values: Any, val_reduce_op: Any, idx_reduce_op: Any = None) -> Any:
    """`tl.min`, `tl.max` and their indices; a row of only NaN gives NaN without a warning."""
    values = values[0] if isinstance(values, tuple) else values
    if idx_reduce_op is None:
        if val_reduce_op in {np.max, np.nanmax}:
            val_reduce_op = np.fmax.reduce
        elif val_reduce_op in {np.min, np.nanmin}:
            val_reduce_op = np.fmin.reduce
    result = _reduce_min_max(self, _widened(values), val_reduce_op, idx_reduce_op)
    if isinstance(result, tuple):
        return _narrowed(result[0], values.dtype.scalar), result[1]
    return result if val_reduce_op is None else _narrowed(result, values.dtype.scalar)


def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A kernel launch; overflow and invalid operations are silent, as on a GPU."""
    with np.errstate(all="ignore"):
        return _launch(self, *args, **kwargs)


def patch_lang_tensor(tensor: Any, *scope: Any) -> None:
    """Methods of `tl.tensor` during a launch; makes `range` accept bounds that the kernel computed.

    Triton 3.6 calls int() on a one-element array, which numpy deprecates and rejects from 2.4 on.
    """
    _patch_lang_tensor(tensor, *scope)
    tensor.__index__ = lambda self: int(self.handle.data.item())


def bench(_self: Any, *_args: Any, **_meta: Any) -> Any:
    """Makes `triton.autotune` take its first configuration: interpreted times are meaningless."""
    return (0.0, 0.0, 0.0)


def _decoded(source: Any) -> Any:
    """bfloat16 or float8 values as float32; others unchanged."""
    kind = source.dtype.scalar
    if kind == tl.bfloat16:
        return TensorHandle(rounding.bf16_values(source.data), tl.float32)
    if kind in _FLOAT8_VALUES:
        return TensorHandle(_FLOAT8_VALUES[kind][source.data], tl.float32)
    return source


def _encoded(source: Any, kind: Any, *, toward_zero: bool = False) -> Any:
    if kind == tl.bfloat16 and source.data.dtype == np.float32 and not toward_zero:
        return TensorHandle(rounding.bf16_codes(source.data), kind)
    return TensorHandle(_FORMATS[kind].encode(source.data, toward_zero=toward_zero), kind)


def _widened(values: Any) -> Any:
    """A bfloat16 tensor as float32; others unchanged."""
    if values.dtype.scalar != tl.bfloat16:
        return values
    return tl.core.tensor(_decoded(values.handle), tl.block_type(tl.float32, list(values.handle.data.shape)))


def _narrowed(values: Any, kind: Any) -> Any:
    """A float32 result rounded to bfloat16 if its operands were bfloat16."""
    if kind != tl.bfloat16:
        return values
    narrow = tl.block_type(kind, list(values.type.shape)) if values.type.is_block() else kind
    return tl.core.tensor(_encoded(values.handle, kind), narrow)
