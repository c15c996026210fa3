"""Formats in which weights are stored: bytes per element with scales, and the dtype of their products."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Format:
    """How the elements of a weight are stored.

    Attributes:
        name: such as "bf16", "fp8", "fp8 blocks", "int4", "mxfp4" or "nvfp4".
        bytes_per_element: bytes of an element, with its share of scales and zero points.
        multiplied_in: dtype of the product on a GPU that has it; narrower weights are dequantised to it.
    """

    name: str
    bytes_per_element: float
    multiplied_in: Literal["bf16", "fp8", "fp4"]


BF16 = Format(name="bf16", bytes_per_element=2.0, multiplied_in="bf16")

FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        each.name: each
        for each in (
            BF16,
            Format(name="fp16", bytes_per_element=2.0, multiplied_in="bf16"),
            Format(name="fp8", bytes_per_element=1.0, multiplied_in="fp8"),
            Format(name="int8", bytes_per_element=1.0, multiplied_in="bf16"),
            Format(name="int4", bytes_per_element=0.5, multiplied_in="bf16"),
        )
    }
)
"""The formats that `--dtype` names."""


@dataclass(frozen=True, kw_only=True)
class Formats:
    """The formats of one layer's weights, or of those outside the layers, by part.

    Attributes:
        attention: projections of attention, softmax or linear.
        mlp: projections of a dense MLP.
        experts: projections of routed experts.
        shared: projections of shared experts.
        router: the router of a mixture of experts.
        embedding: the embedding, and lm_head where they are tied.
        lm_head: an untied output projection.
    """

    attention: Format = BF16
    mlp: Format = BF16
    experts: Format = BF16
    shared: Format = BF16
    router: Format = BF16
    embedding: Format = BF16
    lm_head: Format = BF16


ALL_BF16 = Formats()
