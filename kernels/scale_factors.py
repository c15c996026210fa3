"""Scales that are numbers, combined to the factors that a kernel takes as float32 arguments.

A product, a quotient or log2(e) times a number may leave the range of float32 though each number is in it:
as infinity it makes NaN of a score of 0. What cannot be represented is rejected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

LOG2_E = 1.0 / math.log(2.0)

_LARGEST = torch.finfo(torch.float32).max
_SMALLEST_NORMAL = torch.finfo(torch.float32).tiny

Scale = torch.Tensor | float | None
WeightScale = torch.Tensor | tuple[torch.Tensor, torch.Tensor] | float | None


@dataclass(frozen=True, kw_only=True)
class DecodeFactors:
    """Factors of an attention kernel; scales that are tensors multiply or divide them in it.

    Attributes:
        score: of q . k; with `softcap` divided by it, without any times log2(e).
        softcap_log2: log2(e) times the soft cap; None without one, or if it is a tensor.
        value: of the output.
        tensors: the scales that are tensors, by argument.
        split_k_scale: whether `k_scale` is one of the values' elements of a latent cache, one of the rest.
    """

    score: float
    softcap_log2: float | None
    value: float
    tensors: dict[str, torch.Tensor]
    split_k_scale: bool = False

    @property
    def k_scale(self) -> torch.Tensor | None:
        """The scale of the K cache, if it is a tensor."""
        return self.tensors.get("k_scale")

    @property
    def v_scale(self) -> torch.Tensor | None:
        """The scale of the V cache, if it is a tensor."""
        return self.tensors.get("v_scale")


def decode_factors(
    *,
    head_dim: int,
    scale: Scale = None,
    softcap: Scale = None,
    q_scale: Scale = None,
    k_scale: Scale = None,
    v_scale: Scale = None,
    out_scale: Scale = None,
    cache_factor: float = 1.0,
    split_k_scale: bool = False,
) -> DecodeFactors:
    """The factors of a call with checked arguments.

    Args:
        head_dim: elements of a key; without `scale` scores are multiplied by 1 / sqrt(head_dim).
        scale: as `decode_attention` documents it.
        softcap: likewise.
        q_scale: likewise.
        k_scale: likewise.
        v_scale: likewise.
        out_scale: likewise.
        cache_factor: multiplies the elements of both caches, which the kernel decodes too small by it.
        split_k_scale: whether a `k_scale` of 2 elements is one of the values' elements of a latent cache and
            one of the rest.

    Raises:
        ValueError: a factor is outside the range of float32; names the argument and its range.
    """
    split_k_scale = split_k_scale and isinstance(k_scale, torch.Tensor) and k_scale.numel() == 2
    if split_k_scale and v_scale is None:
        assert isinstance(k_scale, torch.Tensor)  # noqa: S101  (the line above)
        v_scale = k_scale[:1]
    named = {
        "scale": scale, "softcap": softcap, "q_scale": q_scale,
        "k_scale": k_scale, "v_scale": v_scale, "out_scale": out_scale,
    }  # fmt: skip
    tensors = {name: each for name, each in named.items() if isinstance(each, torch.Tensor)}
    numbers = {
        name: float(each)
        for name, each in {**named, "scale": 1.0 / math.sqrt(head_dim) if scale is None else scale}.items()
        if each is not None and not isinstance(each, torch.Tensor)
    }
    of_scores = [name for name in ("scale", "q_scale", "k_scale") if name in numbers]
    name, score = " times ".join(of_scores) or "scale", math.prod(numbers[each] for each in of_scores)
    _check_at_most(name, score, _LARGEST / (LOG2_E * cache_factor))
    value = _value_factor(numbers, cache_factor)
    number, score, softcap_log2 = score, score * cache_factor, None
    if "softcap" in numbers:
        softcap = numbers["softcap"]
        _check_at_most("softcap", softcap, _LARGEST / LOG2_E)
        if abs(score) > softcap * _LARGEST:
            raise ValueError(
                f"softcap is {softcap}; with {name} of {number} it must be at least "
                f"{abs(score) / _LARGEST:.4g}"
            )
        # A cap over 8e37 times the scale changes no score below 1e34, and the quotient would lose bits.
        if abs(score) >= softcap * _SMALLEST_NORMAL:
            score, softcap_log2 = score / softcap, softcap * LOG2_E
    if softcap_log2 is None and "softcap" not in tensors:
        score *= LOG2_E
    return DecodeFactors(
        # Triton 3.6 interprets a number below the smallest normal float32 as float64, which no kernel has.
        score=score if abs(score) >= _SMALLEST_NORMAL else 0.0,
        softcap_log2=softcap_log2,
        value=value,
        tensors=tensors,
        split_k_scale=split_k_scale,
    )


def _value_factor(numbers: dict[str, float], cache_factor: float) -> float:
    """Factor of the output: v_scale / out_scale."""
    v_scale, out_scale = numbers.get("v_scale", 1.0), numbers.get("out_scale", 1.0)
    _check_at_most("v_scale", v_scale, _LARGEST / cache_factor)
    if abs(v_scale) * cache_factor > abs(out_scale) * _LARGEST:
        raise ValueError(
            f"out_scale is {out_scale}; with v_scale of {v_scale} it must be at least "
            f"{abs(v_scale) * cache_factor / _LARGEST:.4g} in magnitude"
        )
    value = v_scale * cache_factor / out_scale if out_scale else 0.0
    return value if abs(value) >= _SMALLEST_NORMAL else 0.0


def matmul_factors(
    x_scale: Scale, weight_scale: WeightScale, *, operand_factor: float, device: torch.device
) -> tuple[float, torch.Tensor | None, torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None]:
    """One factor of all numbers, and the scales of x and weight that are tensors.

    If float32 does not hold the product of two numbers, the scale of the weight becomes a tensor: the kernel
    multiplies by one after the other.

    Args:
        x_scale: as `prefill_matmul` documents it.
        weight_scale: likewise.
        operand_factor: multiplies the products, which the kernel computes too small by it.
        device: of the operands.

    Raises:
        ValueError: a scale times `operand_factor` is outside the range of float32.
    """
    x_number, x_tensor = _number_and_tensor(x_scale)
    pair = weight_scale if isinstance(weight_scale, tuple) else None
    weight_number, weight_tensor = _number_and_tensor(
        None if isinstance(weight_scale, tuple) else weight_scale
    )
    factor = x_number * weight_number * operand_factor
    too_large = abs(factor) > _LARGEST
    # Both at most 1: the result of the first multiplication cannot overflow.
    too_small = 0.0 < abs(factor) < _SMALLEST_NORMAL and max(abs(x_number), abs(weight_number)) <= 1.0
    if weight_tensor is None and pair is None and (too_large or too_small):
        weight_tensor = torch.full((), weight_number, dtype=torch.float32, device=device)
        factor = x_number * operand_factor
    _check_at_most("x_scale", x_number, _LARGEST / operand_factor)
    return float(factor), x_tensor, pair or weight_tensor


def _number_and_tensor(scale: Scale) -> tuple[float, torch.Tensor | None]:
    """A scale as a number, 1 if there is none, and as a tensor, None if it is none."""
    if isinstance(scale, torch.Tensor):
        return 1.0, scale
    return 1.0 if scale is None else float(scale), None


def _check_at_most(name: str, value: float, limit: float) -> None:
    if abs(value) > limit:
        raise ValueError(f"{name} is {value}; it must be from {-limit:.7g} to {limit:.7g}")
