"""Argument checks of `merge_states`: every misuse raises a ValueError that names the argument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .checks import (
    FLOAT8_DTYPES,
    FLOAT_DTYPES,
    check_device,
    check_dtype,
    check_floating,
    check_last_contiguous,
    check_lse_base,
    check_one_of,
    check_runnable,
    check_same,
    check_scale,
    check_shape,
    check_tensor,
    check_writable,
)

if TYPE_CHECKING:
    States = torch.Tensor | Sequence[torch.Tensor]


_SMALLEST_NORMAL = torch.finfo(torch.float32).tiny  # one over it is finite in float32


def check_merge_states(
    *,
    o: States,
    lse: States,
    o2: torch.Tensor | None = None,
    lse2: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    out_scale: torch.Tensor | float | None = None,
    lse_layout: str = "tokens-first",
    lse_base: str | int = "e",
    out: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
) -> None:
    """Raise ValueError unless the arguments are as `merge_states` documents them."""
    check_one_of("out_dtype", out_dtype, (None, *FLOAT_DTYPES, *FLOAT8_DTYPES))
    check_one_of("lse_layout", lse_layout, ("tokens-first", "heads-first"))
    check_lse_base(lse_base)
    if (o2 is None) != (lse2 is None):
        missing, given = ("o2", "lse2") if o2 is None else ("lse2", "o2")
        raise ValueError(f"{missing} is None; with {given} it must be a torch.Tensor")
    first, shape, parts = _check_outputs(o, o2)
    lse_shape = shape[:-1]
    meaning = "the shape of o without head_dim"
    if lse_layout == "heads-first":
        if len(lse_shape) != 2:
            raise ValueError(
                f"lse_layout is 'heads-first'; with outputs of shape {list(shape)} it must be 'tokens-first'"
            )
        lse_shape = lse_shape[::-1]
        meaning += ", heads before tokens"
    pair = o2 is not None
    if isinstance(o, torch.Tensor):
        _check_lse("lse", lse, lse_shape if pair else (parts, *lse_shape), meaning, first)
    else:
        if isinstance(lse, torch.Tensor) or not isinstance(lse, Sequence) or len(lse) != parts:
            raise ValueError(
                f"lse is a {type(lse).__name__}; it must be a sequence of {parts} tensors, as o is"
            )
        for number, each in enumerate(lse):
            _check_lse(f"lse[{number}]", each, lse_shape, meaning, first)
    if lse2 is not None:
        _check_lse("lse2", lse2, lse_shape, meaning, first)
    if mask is not None:
        _check_mask(mask, (parts, *shape[:-1]), first)
    _check_out_scale(out_scale, first)
    _check_out(out, out_dtype, first, shape, lse_shape, meaning)


def _check_outputs(o: States, o2: torch.Tensor | None) -> tuple[torch.Tensor, tuple[int, ...], int]:
    """The first output, the shape of the result, and the number of parts."""
    if not isinstance(o, torch.Tensor) and isinstance(o, Sequence) and o2 is None:
        if len(o) == 0:
            raise ValueError("o has no parts; it must have at least one")
        for number, each in enumerate(o):
            _check_output(f"o[{number}]", each)
            check_shape(f"o[{number}]", each, tuple(o[0].shape), "the shape of o[0]")
            check_same(f"o[{number}]", each, "o[0]", o[0])
        return o[0], tuple(o[0].shape), len(o)
    _check_output("o", o)
    assert isinstance(o, torch.Tensor)  # noqa: S101  (checked)
    if o2 is not None:
        check_shape("o2", o2, tuple(o.shape), "the shape of o")
        check_same("o2", o2, "o", o)
        return o, tuple(o.shape), 2
    if o.dim() < 2 or not o.shape[0]:
        raise ValueError(
            f"o has shape {list(o.shape)}; without o2 it must be [parts, ..., head_dim], one part or more"
        )
    return o, tuple(o.shape[1:]), o.shape[0]


def _check_output(name: str, o: object) -> None:
    check_tensor(name, o)
    assert isinstance(o, torch.Tensor)  # noqa: S101  (checked)
    check_floating(name, o)
    if o.dim() == 0:
        raise ValueError(f"{name} has no dimensions; it must be [..., head_dim]")
    if o.shape[-1] == 0:
        raise ValueError(f"{name} has shape {list(o.shape)}; head_dim must be at least 1")
    check_runnable(name, o)


def _check_lse(name: str, lse: object, shape: tuple[int, ...], meaning: str, o: torch.Tensor) -> None:
    check_tensor(name, lse)
    assert isinstance(lse, torch.Tensor)  # noqa: S101  (checked)
    check_dtype(name, lse, torch.float32)
    check_shape(name, lse, shape, meaning)
    check_device(name, lse, "o", o)


def _check_out_scale(out_scale: torch.Tensor | float | None, o: torch.Tensor) -> None:
    check_scale("out_scale", out_scale, set(), "", ("o", o))
    if isinstance(out_scale, int | float) and out_scale <= 0:
        raise ValueError(f"out_scale is {out_scale}; it must be positive")
    if isinstance(out_scale, int | float) and out_scale < _SMALLEST_NORMAL:
        raise ValueError(f"out_scale is {out_scale}; it must be at least {_SMALLEST_NORMAL:.3g}")


def _check_mask(mask: torch.Tensor, shape: tuple[int, ...], o: torch.Tensor) -> None:
    check_tensor("mask", mask)
    check_dtype("mask", mask, torch.bool)
    check_device("mask", mask, "o", o)
    fits = mask.dim() <= len(shape) and all(
        size in (1, wanted) for size, wanted in zip(reversed(mask.shape), reversed(shape), strict=False)
    )
    if not fits:
        raise ValueError(
            f"mask has shape {list(mask.shape)}; it must broadcast to {list(shape)}: "
            "parts, then the shape of an output without head_dim"
        )


def _check_out(
    out: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None,
    out_dtype: torch.dtype | None,
    o: torch.Tensor,
    shape: tuple[int, ...],
    lse_shape: tuple[int, ...],
    meaning: str,
) -> None:
    if isinstance(out, tuple):
        if len(out) != 2:
            raise ValueError(f"out is a tuple of {len(out)}; it may be the pair of output and log-sum-exp")
        out, lse = out
        _check_lse("out[1]", lse, lse_shape, meaning, o)
        _check_view("out[1]", lse, 0)
    if out is None:
        return
    check_tensor("out", out)
    check_shape("out", out, shape, "the shape of an output")
    check_device("out", out, "o", o)
    if out_dtype is None:
        check_one_of("out.dtype", out.dtype, (*FLOAT_DTYPES, *FLOAT8_DTYPES))
    elif out.dtype != out_dtype:
        raise ValueError(f"out is {out.dtype}; it must be {out_dtype}, as out_dtype says")
    if out.numel():
        check_last_contiguous("out", out)
    _check_view("out", out, 1)


def _check_view(name: str, out: torch.Tensor, last: int) -> None:
    """What is written must be viewed, not copied."""
    check_writable(name, out)
    if not out.numel():
        return
    sizes = out.shape[: out.dim() - last]
    try:
        out.view(-1, *sizes[-1:], *out.shape[out.dim() - last :])
    except RuntimeError as error:
        raise ValueError(
            f"{name} has strides {tuple(out.stride())}; its dimensions before heads must view as one"
        ) from error
