"""One product as a peer's test suite makes it: operands, our call, and a plain float64 reference."""

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from decodetax.harness.core.gate import SAFETY, unit_roundoff
from decodetax.kernels import prefill_matmul

INT8_UNIT = 1 / 40
BLOCK = 128
GATED = {"silu": "swiglu", "gelu": "geglu", "gelu_tanh": "geglu_tanh", "relu": "reglu", None: "bilinear"}
CLAMPED = {"swiglu_alpha": 1.702, "swiglu_beta": 1.0, "swiglu_limit": 7.0}
"""gpt-oss."""


@dataclass(frozen=True, kw_only=True)
class Matmul:
    """One call.

    Attributes:
        mnk: rows, columns of the result, and in_features.
        x_dtype: of x; `weight_dtype` of the weight, None for the same.
        out_dtype: None leaves it to our call.
        batch: products of a weight each; None is one product without that dimension.
        lead: sizes before the rows of x; `vector` is x without rows.
        x_layout: "N" (rows contiguous), "T" (columns contiguous), "pad" (rows longer than what they hold) or
            "rev" (leading dimensions in reverse order in memory).
        weight_layout: likewise.
        out: None (allocated), "given", "T" or "strided"; "rev" as x.
        bias: None, "N", "1N", "BN", "B1N" or "strided"; `bias_dtype` None for the dtype of the result.
        x_scale: None, "number", "one" ([]), "1", "11", "row" ([M]) or "M1"; "blocks" of 128 of K.
        weight_scale: None, "number", "one", "1", "11", "row" ([N]), "N1", "1N" or "neg" (of both signs);
            "blocks" of 128 x 128, "groups" of a row and 128 of K.
        scale_dtype: of scales that are tensors.
        activation: of one element, or of the gate.
        gate: None, "halves", "interleaved" or "pair" (two weights); `clamped` as in gpt-oss.
        residual: None, "N", "M1" or "MN"; `alias` makes it the output.
        alpha: multiplies the product; `beta` the residual.
        precision: as ours.
    """

    mnk: tuple[int, int, int]
    x_dtype: torch.dtype = torch.bfloat16
    weight_dtype: torch.dtype | None = None
    out_dtype: torch.dtype | None = None
    batch: int | None = None
    lead: tuple[int, ...] = ()
    vector: bool = False
    x_layout: str = "N"
    weight_layout: str = "N"
    out: str | None = None
    bias: str | None = None
    bias_dtype: torch.dtype | None = None
    x_scale: str | None = None
    weight_scale: str | None = None
    scale_dtype: torch.dtype = torch.float32
    activation: str | None = None
    gate: str | None = None
    clamped: bool = False
    residual: str | None = None
    alias: bool = False
    alpha: float | None = None
    beta: float = 1.0
    precision: str = "ieee"


def check(case: Matmul) -> str:
    """Empty if our result agrees with the reference, else how it does not.

    Raises:
        ValueError: `prefill_matmul` refuses the call.
    """
    inputs = _Inputs(case)
    expected, rounding = _reference(case, inputs)
    result = prefill_matmul(
        inputs.x,
        inputs.weight,
        bias=inputs.bias,
        activation=case.activation if case.gate is None else GATED[case.activation],
        x_scale=inputs.x_scale if case.alpha is None else case.alpha,
        weight_scale=inputs.weight_scale,
        out_dtype=None if inputs.out is not None else case.out_dtype,
        precision=case.precision,
        out=inputs.out,
        residual=inputs.residual,
        residual_scale=case.beta,
        gate_up="interleaved" if case.gate == "interleaved" else "halves",
        **(CLAMPED if case.clamped else {}),
    )
    return compared(result, expected, rounding, case.out_dtype)


def compared(
    result: torch.Tensor, expected: torch.Tensor, rounding: torch.Tensor, dtype: torch.dtype | None = None
) -> str:
    """Empty if rows agree within one rounding of the result and `rounding`, that of its float32 steps."""
    if dtype not in (None, result.dtype):
        return f"result is {result.dtype}"
    if result.shape != expected.shape:
        return f"result has shape {tuple(result.shape)}, not {tuple(expected.shape)}"
    # Past the range of the result's dtype both are the same infinity.
    error = torch.where(result == expected.to(result.dtype), 0.0, result.double() - expected).norm(dim=-1)
    bound = SAFETY * (unit_roundoff(result.dtype) * expected.norm(dim=-1) + rounding.norm(dim=-1))
    if bool((error <= bound).all()):
        return ""
    return f"error of a row {float((error / bound).nan_to_num(nan=torch.inf).max()):.3g} times its bound"


def result_dtype(case: Matmul) -> torch.dtype:
    """The dtype of the result: that asked for, else of the wider operand, bfloat16 of 8 bits."""
    wider = max((case.x_dtype, case.weight_dtype or case.x_dtype), key=lambda dtype: dtype.itemsize)
    return case.out_dtype or (torch.bfloat16 if wider.itemsize == 1 else wider)


class _Inputs:
    """Tensors of a call, drawn from a seed."""

    def __init__(self, case: Matmul) -> None:
        self._numbers = torch.Generator().manual_seed(zlib.crc32(repr(case).encode()))
        rows, columns, depth = case.mnk
        lead = case.lead if case.batch is None else (case.batch,)
        batch = () if case.batch is None else (case.batch,)
        features = columns * (2 if case.gate else 1)
        x_shape = (*lead, depth) if case.vector else (*lead, rows, depth)
        dtype = case.weight_dtype or case.x_dtype
        self.x = laid_out(self.normal(*x_shape, dtype=case.x_dtype), case.x_layout)
        self.weight: Any = laid_out(self.normal(*batch, features, depth, dtype=dtype), case.weight_layout)
        self.bias = self._bias(case, features)
        self.x_scale = self._x_scale(case, x_shape)
        self.weight_scale = self._weight_scale(case, features, depth)
        shape = (*x_shape[:-1], columns)
        self.residual = None
        if case.residual:
            sizes = {"N": (columns,), "M1": (*shape[:-1], 1), "MN": shape}[case.residual]
            self.residual = self.normal(*sizes, dtype=result_dtype(case))
        self.out = None
        if case.out:
            self.out = laid_out(torch.full(shape, float("nan"), dtype=result_dtype(case)), case.out)
        self.kept_residual = None if self.residual is None else self.residual.clone()
        if case.alias and self.residual is not None:
            self.out = self.residual
        if case.gate == "pair":
            self.weight = tuple(each.clone() for each in self.weight.chunk(2, dim=-2))

    def normal(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Values of standard deviation 1; 40 in int8."""
        values = torch.randn(shape, generator=self._numbers)
        if dtype == torch.int8:
            return (values / INT8_UNIT).round().clamp(-128, 127).to(dtype)
        return values.to(dtype)

    def _bias(self, case: Matmul, features: int) -> torch.Tensor | None:
        if case.bias is None:
            return None
        dtype = case.bias_dtype or result_dtype(case)
        if case.bias == "strided":
            return self.normal(features, 3, dtype=dtype)[:, 1]
        sizes = {"N": (features,), "1N": (1, features), "BN": (case.batch or 1, features)}
        return self.normal(*sizes.get(case.bias, (case.batch or 1, 1, features)), dtype=dtype)

    def _positive(self, case: Matmul, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        """Scales between a half and one and a half units of the dtype they scale."""
        unit = INT8_UNIT if dtype == torch.int8 else 1.0
        return (unit * (torch.rand(shape, generator=self._numbers) + 0.5)).to(case.scale_dtype)

    def _x_scale(self, case: Matmul, x_shape: tuple[int, ...]) -> Any:
        if case.x_scale in (None, "number"):
            return None if case.x_scale is None else 0.75
        shapes = {
            "one": (),
            "1": (1,),
            "11": (1, 1),
            "row": x_shape[:-1],
            "M1": (*x_shape[:-1], 1),
            "blocks": (*x_shape[:-1], -(-x_shape[-1] // BLOCK)),
        }
        return self._positive(case, case.x_dtype, *shapes[case.x_scale])

    def _weight_scale(self, case: Matmul, features: int, depth: int) -> Any:
        if case.weight_scale in (None, "number"):
            return None if case.weight_scale is None else 1.25
        batch = () if case.batch is None else (case.batch,)
        blocks = -(-depth // BLOCK)
        shapes = {
            "one": (),
            "1": (1,),
            "11": (1, 1),
            "row": (*batch, features),
            "N1": (*batch, features, 1),
            "1N": (*batch, 1, features),
            "neg": (*batch, features),
            "blocks": (*batch, -(-features // BLOCK), blocks),
            "groups": (*batch, features, blocks),
        }
        scale = self._positive(case, case.weight_dtype or case.x_dtype, *shapes[case.weight_scale])
        if case.weight_scale == "neg":
            scale *= torch.where(torch.rand(scale.shape, generator=self._numbers) < 0.5, -1.0, 1.0)
        return scale


def laid_out(values: torch.Tensor, layout: str) -> torch.Tensor:
    """The values in a layout of memory; see `Matmul.x_layout` and `Matmul.out`."""
    if layout == "T" and values.dim() > 1:
        return values.mT.contiguous().mT
    if layout in ("pad", "strided"):
        wide = torch.full((*values.shape[:-1], values.shape[-1] + 3), 127.0).to(values.dtype)
        wide[..., : values.shape[-1]] = values
        return wide[..., : values.shape[-1]]
    if layout == "rev" and values.dim() > 2:
        return values.transpose(0, 1).contiguous().transpose(0, 1)
    return values


def double(values: torch.Tensor) -> torch.Tensor:
    """As float64, float8 by way of float32."""
    return (values.float() if values.element_size() == 1 else values).double()


def _spread(scale: torch.Tensor, block: int, size: int, dim: int) -> torch.Tensor:
    """Scales per block of a dimension as scales per element."""
    return scale.repeat_interleave(block, dim).narrow(dim, 0, size)


def _of_elements(scale: torch.Tensor | float | None, form: str | None, operand: torch.Tensor) -> Any:
    """A scale in a shape that multiplies an operand [..., rows, elements]."""
    if not isinstance(scale, torch.Tensor):
        return 1.0 if scale is None else scale
    scale = scale.double()
    if form in ("blocks", "groups"):
        rows = BLOCK if form == "blocks" and scale.shape[-2] < operand.shape[-2] else 1
        return _spread(_spread(scale, BLOCK, operand.shape[-1], -1), rows, operand.shape[-2], -2)
    if form in ("row", "neg"):
        return scale[..., None]
    if form == "1N":
        return scale.mT
    return scale.reshape(()) if scale.numel() == 1 else scale


def _reference(case: Matmul, inputs: _Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """The result in float64, and the rounding error of float32 steps that its elements may have."""
    weight = torch.cat(inputs.weight, dim=-2) if case.gate == "pair" else inputs.weight
    x, weight = double(inputs.x), double(weight)
    x_scale = _of_elements(inputs.x_scale, case.x_scale, x)
    scale = _of_elements(inputs.weight_scale, case.weight_scale, weight)
    x, weight = x * x_scale * (1.0 if case.alpha is None else case.alpha), weight * scale
    product, size = x @ weight.mT, x.abs() @ weight.abs().mT
    if inputs.bias is not None:
        bias = inputs.bias.double()
        bias = bias[:, None] if case.bias == "BN" else bias
        product, size = product + bias, size + bias.abs()
    value, size = _activated(case, product, size)
    if inputs.kept_residual is not None:
        added = case.beta * inputs.kept_residual.double()
        value, size = value + added, size + added.abs()
    # Random walk of the sum's roundings, and one more for each step of the epilogue.
    steps = case.mnk[2] ** 0.5 + 8
    return value, steps * unit_roundoff(torch.float32) * size


def _activated(case: Matmul, product: torch.Tensor, size: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """An activation of sums and of the sizes of their terms; slopes are at most 1.13."""
    if case.gate is None:
        slope = 2.0 * product.abs() if case.activation == "relu_squared" else 1.13 if case.activation else 1.0
        return _function(case, product), size * slope
    if case.gate == "interleaved":
        gate, up, gate_size, up_size = product[..., ::2], product[..., 1::2], size[..., ::2], size[..., 1::2]
    else:
        gate, up = product.chunk(2, dim=-1)
        gate_size, up_size = size.chunk(2, dim=-1)
    if case.clamped:
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0) + 1.0
    value = _function(case, gate)
    return value * up, 1.13 * gate_size * up.abs() + value.abs() * up_size


def _function(case: Matmul, gate: torch.Tensor) -> torch.Tensor:
    if case.activation is None:
        return gate
    if case.activation == "silu":
        return gate * torch.sigmoid(1.702 * gate if case.clamped else gate)
    if case.activation.startswith("gelu"):
        return torch.nn.functional.gelu(gate, approximate="tanh" if "tanh" in case.activation else "none")
    assert case.activation in ("relu", "relu_squared"), case.activation
    return torch.relu(gate) ** (2 if case.activation == "relu_squared" else 1)
