"""Operands of `prefill_matmul` as matrices and vectors: the shapes it takes, and their strides."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

Pair = tuple[torch.Tensor, torch.Tensor]

GATED_ACTIVATIONS = {
    "swiglu": "silu",
    "geglu": "gelu",
    "geglu_tanh": "gelu_tanh",
    "reglu": "relu",
    "bilinear": None,
}
"""Activations of gate and up projections, with the function of the gate; None leaves the gate as it is."""

ACTIVATIONS = (None, "silu", "gelu", "gelu_tanh", "relu", "relu_squared")
"""Functions of one element."""

NO_PAIR = 0
HALVES = 1
INTERLEAVED = 2
"""Order of gate and up rows: without gate, all gate rows first (or a weight each), or in turn."""


class Vector(NamedTuple):
    """Values by batch and by row or feature; strides are in elements, 0 where all share one value.

    Attributes:
        values: their tensor, or None.
        batch_stride: between batches.
        stride: between rows, or features; with gate and up, between their pairs.
        up_values: those of the up features, with the same strides; None without gate.
    """

    values: torch.Tensor | None = None
    batch_stride: int = 0
    stride: int = 0
    up_values: torch.Tensor | None = None


def gate_of(value: torch.Tensor | Pair) -> torch.Tensor:
    """The tensor, or the first of a pair."""
    return value[0] if isinstance(value, tuple) else value


def elements_between(gate: torch.Tensor, up: torch.Tensor) -> int:
    """Elements from the start of one tensor to the start of another of the same dtype."""
    return (up.data_ptr() - gate.data_ptr()) // gate.element_size()


def as_matrices(x: torch.Tensor) -> torch.Tensor:
    """[..., K] as [batch, rows, K], with the fewest batches that strides allow; a copy if none do."""
    for leading in range(x.dim()):
        try:
            return x.view(math.prod(x.shape[:leading]), math.prod(x.shape[leading:-1]), x.shape[-1])
        except RuntimeError:  # the strides of these dimensions do not merge
            continue
    return x.reshape(1, -1, x.shape[-1])


def feature_dims(
    shape: tuple[int, ...], batch: int | None, features: int
) -> tuple[int | None, int | None] | None:
    """Dimensions of the batch and of the features in a bias or in scales; None where the shape does not fit.

    Args:
        shape: [N], [1, N], [N, 1], [batch, N], [1 or batch, 1, N], [1 or batch, N, 1] or [1 or batch, 1, 1],
            with `features` as N; or one element.
        batch: the batches that may have values of their own; None if they may not.
        features: N.
    """
    if math.prod(shape) == 1:
        return None, None
    forms: dict[tuple[int, ...], tuple[int | None, int | None]] = {
        (features,): (None, 0),
        (features, 1): (None, 0),
    }
    for size in (1,) if batch is None else (1, batch):
        forms[(size, features)] = forms[(size, features, 1)] = (0, 1)
        forms[(size, 1, features)] = (0, 2)
        forms[(size, 1, 1)] = (0, None)
    return forms.get(shape)


def feature_vector(
    value: torch.Tensor | Pair | None, *, batch: int | None, features: int, layout: int
) -> Vector:
    """A bias or weight scales, of checked shape, with strides.

    Args:
        value: one value per feature, or a pair: those of gate and of up.
        batch: batches that may have values of their own; None if they may not.
        features: rows of the weight; half of them the gate's if there is one.
        layout: NO_PAIR, HALVES or INTERLEAVED.
    """
    if value is None:
        return Vector()
    values = gate_of(value)
    of_each = features // 2 if isinstance(value, tuple) else features
    dims = feature_dims(tuple(values.shape), batch, of_each)
    assert dims is not None  # noqa: S101  (checked before)
    batch_stride, stride = (
        0 if dim is None or values.shape[dim] == 1 else values.stride(dim) for dim in dims
    )
    if isinstance(value, tuple):
        return Vector(values, batch_stride, stride, value[1])
    if layout == NO_PAIR or dims[1] is None:
        return Vector(values, batch_stride, stride, values if layout else None)
    first_up = 1 if layout == INTERLEAVED else features // 2
    up_values = values.narrow(dims[1], first_up, features - first_up)
    return Vector(values, batch_stride, 2 * stride if layout == INTERLEAVED else stride, up_values)


def varies_by_batch(
    value: torch.Tensor | Pair | float | None, x: torch.Tensor, weight: torch.Tensor | Pair
) -> bool:
    """Whether a bias or weight scales, of checked shape, have values of their own for each batch."""
    if isinstance(value, tuple):
        value = value[0]
    if not isinstance(value, torch.Tensor) or x.dim() != 3:
        return False
    features = gate_of(weight).shape[-2]
    shape = tuple(value.shape)
    dims = feature_dims(shape, x.shape[0], features) or feature_dims(shape, x.shape[0], 2 * features)
    return dims is not None and dims[0] is not None and shape[dims[0]] > 1


def row_shape(shape: tuple[int, ...], x_shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """A shape of scales of x without the dimension in place of in_features; None where it does not fit.

    Every size is that of x or 1.
    """
    rows = x_shape[:-1]
    if math.prod(shape) == 1:
        return (1,) * len(rows)
    if len(shape) == len(x_shape) and shape[-1] == 1:
        shape = shape[:-1]
    fits = len(shape) == len(rows) and all(
        size in (1, whole) for size, whole in zip(shape, rows, strict=True)
    )
    return shape if fits else None


def row_vector(scales: torch.Tensor | None, x_shape: tuple[int, ...], batch: int, rows: int) -> Vector:
    """Scales of x, of checked shape, as [batch, rows]: a view, or a copy if strides cannot express it."""
    if scales is None:
        return Vector()
    if scales.numel() == 1:
        return Vector(scales)
    shape = row_shape(tuple(scales.shape), x_shape)
    assert shape is not None  # noqa: S101  (checked before)
    by_row = scales if scales.dim() == len(shape) else scales[..., 0]
    by_row = by_row.expand(x_shape[:-1])
    try:
        by_row = by_row.view(batch, rows)
    except RuntimeError:  # the strides of its leading dimensions do not merge
        by_row = by_row.reshape(batch, rows)
    return Vector(by_row, by_row.stride(0), by_row.stride(1))


def result_matrices(out: torch.Tensor, batch: int, rows: int) -> torch.Tensor:
    """A result [..., columns] as [batch, rows, columns], a view."""
    if out.dim() == 3 and out.shape[:2] == (batch, rows):
        return out
    return out.view(-1, out.shape[-1]).view(batch, rows, out.shape[-1])


def residual_matrices(residual: torch.Tensor, out: torch.Tensor, batch: int, rows: int) -> torch.Tensor:
    """A residual, broadcast to the shape of `out`, as [batch, rows, columns]; a copy if no view exists."""
    residual = residual.expand(out.shape)
    try:
        return result_matrices(residual, batch, rows)
    except RuntimeError:  # the strides of its leading dimensions do not merge
        return residual.reshape(batch, rows, out.shape[-1])
