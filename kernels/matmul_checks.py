"""Argument checks of `prefill_matmul`: every misuse raises a ValueError that names the argument."""

from __future__ import annotations

from typing import Any

import torch

from .checks import (
    FLOAT8_DTYPES,
    FLOAT_DTYPES,
    check_device,
    check_nonempty,
    check_number,
    check_one_of,
    check_runnable,
    check_same,
    check_shape,
    check_tensor,
    check_workspace,
    check_writable,
    default_out_dtype,
)
from .matmul_operands import ACTIVATIONS, GATED_ACTIVATIONS, Pair, feature_dims, gate_of, row_shape
from .matmul_scale_shapes import LEAST_BLOCK_K, block_size, weight_has_blocks, x_has_blocks
from .matmul_tiling import MatmulTiling

__all__ = ["check_prefill_matmul", "check_workspace", "default_out_dtype", "result_features"]

_OPERAND_DTYPES = (*FLOAT_DTYPES, *FLOAT8_DTYPES, torch.int8)
_VECTOR_DTYPES = (*FLOAT_DTYPES, torch.float64)
_MAX_INT8_K = 2**17 - 1
"""Products of two int8 elements are at most 2^14: so many of them stay below 2^31."""


def check_prefill_matmul(
    *,
    x: torch.Tensor,
    weight: torch.Tensor | Pair,
    bias: torch.Tensor | Pair | None = None,
    activation: str | None = None,
    x_scale: torch.Tensor | float | None = None,
    weight_scale: torch.Tensor | Pair | float | None = None,
    out_dtype: torch.dtype | None = None,
    precision: str = "ieee",
    out: torch.Tensor | None = None,
    tiling: MatmulTiling | None = None,
    gate_up: str = "halves",
    swiglu_alpha: float = 1.0,
    swiglu_beta: float = 0.0,
    swiglu_limit: float | None = None,
    residual: torch.Tensor | None = None,
    residual_scale: float = 1.0,
) -> None:
    """Raise ValueError unless the arguments are as `prefill_matmul` documents them."""
    check_one_of("activation", activation, (*ACTIVATIONS, *GATED_ACTIVATIONS))
    check_one_of("precision", precision, ("ieee", "tf32", "tf32x3"))
    check_one_of("out_dtype", out_dtype, (None, *FLOAT_DTYPES, torch.int32))
    check_one_of("gate_up", gate_up, ("halves", "interleaved"))
    if tiling is not None and not isinstance(tiling, MatmulTiling):
        raise ValueError(f"tiling is a {type(tiling).__name__}; it must be a MatmulTiling")
    _check_operands(x, weight)
    gated = activation in GATED_ACTIVATIONS
    _check_gate(weight, activation, gate_up, gated=gated)
    _check_swiglu(activation, swiglu_alpha, swiglu_beta, swiglu_limit)
    _check_features("bias", bias, x, weight)
    _check_matmul_scales(x, weight, x_scale, weight_scale)
    if (out_dtype or getattr(out, "dtype", None)) == torch.int32:
        _check_integer_out(
            *(x, weight),
            bias=bias,
            activation=activation,
            x_scale=x_scale,
            weight_scale=weight_scale,
            residual=residual,
        )
    shape = (*x.shape[:-1], result_features(weight, activation))
    if residual is not None:
        _check_vector("residual", residual, x)
        if not _broadcasts(tuple(residual.shape), shape):
            raise ValueError(
                f"residual has shape {list(residual.shape)}; it must broadcast to that of the result: "
                f"{list(shape)}"
            )
    check_number("residual_scale", residual_scale)
    if residual_scale is None:
        raise ValueError("residual_scale is None; it must be a number")
    if out is not None:
        check_shape("out", out, shape, "[..., out_features] with the leading dimensions of x")
        if out.dtype not in ((out_dtype,) if out_dtype else (*FLOAT_DTYPES, torch.int32)):
            wanted = (
                f"{out_dtype}, as out_dtype says"
                if out_dtype
                else f"one of {', '.join(map(str, FLOAT_DTYPES))}"
            )
            raise ValueError(f"out is {out.dtype}; it must be {wanted}")
        check_device("out", out, "x", x)
        check_writable("out", out)
        _check_rows_view(out, gate_of(weight))


def _check_matmul_scales(
    x: torch.Tensor,
    weight: torch.Tensor | Pair,
    x_scale: torch.Tensor | float | None,
    weight_scale: torch.Tensor | Pair | float | None,
) -> None:
    """Scales of one element, per row or feature, or per block of K."""
    for name, scale in (("x_scale", x_scale), ("weight_scale", weight_scale)):
        if isinstance(scale, torch.Tensor):
            check_tensor(name, scale)
    if isinstance(x_scale, torch.Tensor) and x_has_blocks(x_scale, x):
        _check_block_scale("x_scale", x_scale, ("x", x), gate_of(weight))
    else:
        _check_row_scale(x_scale, x)
    one_weight = isinstance(weight, torch.Tensor) and isinstance(weight_scale, torch.Tensor)
    if one_weight and weight_has_blocks(weight_scale, weight):  # type: ignore[arg-type]  # tensors both
        _check_block_scale("weight_scale", weight_scale, ("weight", weight), weight)  # type: ignore[arg-type]
    else:
        _check_features("weight_scale", weight_scale, x, weight)
        if one_weight and isinstance(x_scale, torch.Tensor) and x_has_blocks(x_scale, x):
            _check_not_blocks(weight_scale, weight)  # type: ignore[arg-type]  # tensors both


def _check_not_blocks(scale: torch.Tensor, weight: torch.Tensor) -> None:
    """Under scales of x per block of K, refuse [1, features] that could as well be [1, blocks of K]."""
    features, in_features = weight.shape[-2:]
    if scale.dim() != weight.dim() or scale.shape[-2] != 1 or not 1 < features == scale.shape[-1]:
        return
    block_k = block_size(in_features, features)
    if block_k is not None and block_k >= LEAST_BLOCK_K:
        raise ValueError(
            f"weight_scale has shape {list(scale.shape)}, one per feature or block of in_features; it "
            f"must be [{features}] for features, or expanded to [{features}, {features}] for blocks"
        )


def result_features(weight: torch.Tensor | Pair, activation: str | None) -> int:
    """Columns of the result."""
    features = gate_of(weight).shape[-2]
    halved = activation in GATED_ACTIVATIONS and not isinstance(weight, tuple)
    return features // 2 if halved else features


def _check_operands(x: torch.Tensor, weight: torch.Tensor | Pair) -> None:
    check_tensor("x", x)
    if x.dtype not in _OPERAND_DTYPES:
        raise ValueError(f"x is {x.dtype}; it must be one of {', '.join(map(str, _OPERAND_DTYPES))}")
    if x.dim() == 0:
        raise ValueError("x has no dimensions; it must be [..., in_features]")
    check_runnable("x", x)
    if not isinstance(weight, tuple):
        _check_weight("weight", weight, x)
        return
    if len(weight) != 2:
        raise ValueError(f"weight is a tuple of {len(weight)}; it must be a tensor or a pair: gate and up")
    for position, each in enumerate(weight):
        _check_weight(f"weight[{position}]", each, x)
    gate, up = weight
    check_shape("weight[1]", up, tuple(gate.shape), "the shape of weight[0]")
    check_same("weight[1]", up, "weight[0]", gate)
    if up.stride() != gate.stride():
        raise ValueError(
            f"weight[1] has strides {tuple(up.stride())}; it must have those of weight[0]: "
            f"{tuple(gate.stride())}"
        )
    _check_distance("weight[1]", gate, up)


def _check_weight(name: str, weight: torch.Tensor, x: torch.Tensor) -> None:
    check_tensor(name, weight)
    if weight.dim() == 3:
        if x.dim() != 3:
            raise ValueError(
                f"x has shape {list(x.shape)}; under a weight of 3 dimensions it must be "
                "[batch, tokens, in_features]"
            )
        wanted: tuple[int | None, ...] = (x.shape[0], None, x.shape[-1])
        check_shape(name, weight, wanted, "[batch of x, out_features, in_features of x]")
    else:
        check_shape(name, weight, (None, x.shape[-1]), "[out_features, in_features of x]")
    allowed = _weight_dtypes(x.dtype)
    if weight.dtype not in allowed:
        kinds = " or ".join(map(str, allowed))
        raise ValueError(f"{name} is {weight.dtype}; under x of {x.dtype} it must be {kinds}")
    check_device(name, weight, "x", x)
    if x.dtype == weight.dtype == torch.int8 and x.shape[-1] > _MAX_INT8_K:
        raise ValueError(
            f"x has {x.shape[-1]} in_features; in int8 it must have at most {_MAX_INT8_K}, for sums in int32"
        )


def _weight_dtypes(x_dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """Dtypes of a weight beside x: its own, or one of which the wider holds all values of the narrower."""
    if x_dtype in FLOAT8_DTYPES:
        return (*FLOAT8_DTYPES, *FLOAT_DTYPES)
    if x_dtype == torch.int8:
        return (torch.int8, *FLOAT_DTYPES)
    if x_dtype == torch.float32:
        return (*FLOAT_DTYPES, *FLOAT8_DTYPES, torch.int8)
    return (x_dtype, torch.float32, *FLOAT8_DTYPES, torch.int8)


def _check_distance(name: str, gate: torch.Tensor, up: torch.Tensor) -> None:
    """The kernel finds `up` as so many elements past `gate`."""
    if (up.data_ptr() - gate.data_ptr()) % gate.element_size():
        raise ValueError(f"{name} starts at address {up.data_ptr():#x}; it must be aligned to its elements")


def _check_gate(weight: torch.Tensor | Pair, activation: str | None, gate_up: str, *, gated: bool) -> None:
    if isinstance(weight, tuple):
        if not gated:
            raise ValueError(f"weight is a pair; under activation {activation!r} it must be one tensor")
        if gate_up != "halves":
            raise ValueError(f"gate_up is {gate_up!r}; with a pair of weights it must be 'halves'")
    elif gated and weight.shape[-2] % 2:
        raise ValueError(
            f"weight has {weight.shape[-2]} rows; for {activation} it must have as many up as gate rows"
        )
    elif not gated and gate_up != "halves":
        raise ValueError(f"gate_up is {gate_up!r}; without a gated activation it must be 'halves'")


def _check_swiglu(activation: str | None, alpha: float, beta: float, limit: float | None) -> None:
    for name, value, default in (
        ("swiglu_alpha", alpha, 1.0),
        ("swiglu_beta", beta, 0.0),
        ("swiglu_limit", limit, None),
    ):
        check_number(name, value)
        if value is None and default is not None:
            raise ValueError(f"{name} is None; it must be a number")
        if activation != "swiglu" and value != default:
            raise ValueError(f"{name} is {value}; with activation {activation!r} it must be {default}")
    if limit is not None and limit <= 0:
        raise ValueError(f"swiglu_limit is {limit}; it must be positive")


def _check_features(
    name: str, value: torch.Tensor | Pair | float | None, x: torch.Tensor, weight: torch.Tensor | Pair
) -> None:
    """A bias or scales of the weight; a number only as a scale."""
    if value is None:
        return
    if name == "weight_scale" and not isinstance(value, torch.Tensor | tuple):
        check_number(name, value)
        return
    features = gate_of(weight).shape[-2]
    named: list[tuple[str, Any]]
    if isinstance(value, tuple):
        if not isinstance(weight, tuple) or len(value) != 2:
            raise ValueError(f"{name} is a tuple of {len(value)}; it may be a pair beside a pair of weights")
        named = [(f"{name}[{position}]", each) for position, each in enumerate(value)]
    else:
        named = [(name, value)]
        features *= 2 if isinstance(weight, tuple) else 1
    batch = x.shape[0] if x.dim() == 3 else None
    for each_name, each in named:
        _check_vector(each_name, each, x)
        whole = name == "bias" and (each.shape[-1:] != (features,))
        if whole or feature_dims(tuple(each.shape), batch, features) is None:
            forms = "[features], [1, features], [batch, features] or [batch, 1, features]"
            more = " or one element, or [features, 1], [batch, features, 1]" if name == "weight_scale" else ""
            sizes = f"with {features} rows of weight" + ("" if batch is None else f" and batch {batch}")
            raise ValueError(f"{each_name} has shape {list(each.shape)}; it must be {forms}{more}, {sizes}")
    if isinstance(value, tuple):
        (_, first), (second_name, second) = named
        check_shape(second_name, second, tuple(first.shape), f"the shape of {name}[0]")
        if second.dtype != first.dtype or second.stride() != first.stride():
            raise ValueError(
                f"{second_name} is {second.dtype} of strides {tuple(second.stride())}; it must be as "
                f"{name}[0]: {first.dtype} of strides {tuple(first.stride())}"
            )
        _check_distance(second_name, first, second)


def _check_row_scale(scale: torch.Tensor | float | None, x: torch.Tensor) -> None:
    if not isinstance(scale, torch.Tensor):
        check_number("x_scale", scale)
        return
    _check_vector("x_scale", scale, x)
    if row_shape(tuple(scale.shape), tuple(x.shape)) is None:
        raise ValueError(
            f"x_scale has shape {list(scale.shape)}; it must have one element, or be that of x without its "
            f"last dimension: {list(x.shape[:-1])}, or with 1 in its place"
        )


def _check_vector(name: str, value: torch.Tensor, x: torch.Tensor) -> None:
    check_tensor(name, value)
    if value.dtype not in _VECTOR_DTYPES:
        raise ValueError(f"{name} is {value.dtype}; it must be one of {', '.join(map(str, _VECTOR_DTYPES))}")
    check_device(name, value, "x", x)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    trailing = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(size in (1, whole) for size, whole in trailing)


def _check_block_scale(
    name: str, scale: torch.Tensor, of: tuple[str, torch.Tensor], weight: torch.Tensor
) -> None:
    """Scales per block of K: any strides, blocks of a power of two."""
    operand = of[1]
    check_tensor(name, scale)
    if scale.dtype not in FLOAT_DTYPES:
        kinds = ", ".join(map(str, FLOAT_DTYPES))
        raise ValueError(f"{name} is {scale.dtype}; it must be one of {kinds}")
    if weight.element_size() > 1:
        raise ValueError(f"{name} has shape {list(scale.shape)}; blocks need a weight of 8 bits")
    if name == "weight_scale":
        check_nonempty(name, scale, but_batch=operand.shape[0] if operand.dim() == 3 else None)
    in_features = operand.shape[-1]
    block_k = block_size(in_features, scale.shape[-1])
    if block_k is None or block_k < LEAST_BLOCK_K:
        raise ValueError(
            f"{name} has shape {list(scale.shape)}; its last dimension must divide {in_features} in_features "
            f"into blocks of a power of two of at least {LEAST_BLOCK_K}"
        )
    rows = operand.shape[-2] if name == "weight_scale" else 1
    if name == "weight_scale" and block_size(rows, scale.shape[-2]) is None:
        raise ValueError(
            f"{name} has shape {list(scale.shape)}; it must divide {rows} rows of weight into blocks of a "
            "power of two"
        )
    check_device(name, scale, *of)


def _check_integer_out(x: torch.Tensor, weight: torch.Tensor | Pair, **epilogue: object) -> None:
    """int32 sums of int8 products, without an epilogue."""
    for name, operand in (("x", x), ("weight", gate_of(weight))):
        if operand.dtype != torch.int8:
            raise ValueError(
                f"out_dtype is torch.int32; under {name} of {operand.dtype} it must be a float dtype"
            )
    for name, value in epilogue.items():
        if value is not None:
            raise ValueError(f"{name} is given; it must be None where out_dtype is torch.int32")


def _check_rows_view(out: torch.Tensor, weight: torch.Tensor) -> None:
    """The rows of `out` must have one stride, unless the weight is batched."""
    if weight.dim() == 3:
        return
    try:
        out.view(-1, out.shape[-1])
    except RuntimeError as error:
        raise ValueError(
            f"out has strides {tuple(out.stride())}; all dimensions but the last must view as one"
        ) from error
