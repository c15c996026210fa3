"""Formats of stored weights and caches: bytes per element with scales, and the dtype of products."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, TypeAlias

ProductDtype: TypeAlias = Literal["bf16", "fp8", "fp4"]


@dataclass(frozen=True, kw_only=True)
class Format:
    """How the elements of a weight are stored.

    Attributes:
        name: such as "bf16", "fp8", "fp8 blocks", "int4", "mxfp4" or "nvfp4".
        bytes_per_element: bytes of an element, with its share of scales and zero points.
        multiplied_in: dtype of the product on a GPU that has it, by the format of the activations; any other
            GPU, and a weight-only format on every GPU, dequantises the weights and multiplies in bf16.
    """

    name: str
    bytes_per_element: float
    multiplied_in: ProductDtype


def grouped_format(
    name: str,
    multiplied_in: ProductDtype = "bf16",
    *,
    bits: float,
    group: int | None = None,
    scale_bits: float = 0,
    zero_bits: float = 0,
) -> Format:
    """A format whose groups of elements share a scale, and perhaps a zero point.

    Args:
        name: its name.
        multiplied_in: dtype of the product.
        bits: bits of an element.
        group: elements that share a scale; None for a scale per tensor or output channel, which adds at most
            0.2% to rows of 2048 elements and is not counted.
        scale_bits: bits of a group's scale.
        zero_bits: bits of a group's zero point.
    """
    shared = 0.0 if group is None else (scale_bits + zero_bits) / group
    return Format(name=name, bytes_per_element=(bits + shared) / 8, multiplied_in=multiplied_in)


_ABSMAX_GROUP = 64
"""Elements that share an absolute maximum in bitsandbytes' 4-bit formats (QLoRA, arXiv 2305.14314)."""

_ABSMAX_OF_ABSMAX_GROUP = 256
"""Absolute maxima, in 8 bits, that share one of 32 bits: double quantisation of the same paper."""

_DOUBLE_QUANTISED_BITS = 8 + 32 / _ABSMAX_OF_ABSMAX_GROUP

BF16 = grouped_format("bf16", bits=16)
FP16 = grouped_format("fp16", bits=16)
FP8 = grouped_format("fp8", "fp8", bits=8)
FP8_WEIGHTS = grouped_format("fp8 w8a16", bits=8)
FP8_BLOCKS = grouped_format("fp8 blocks", "fp8", bits=8, group=128 * 128, scale_bits=32)
MXFP8 = grouped_format("mxfp8", "fp8", bits=8, group=32, scale_bits=8)
INT8 = grouped_format("int8", bits=8)
INT8_W8A8 = grouped_format("int8 w8a8", "fp8", bits=8)
"""Products of int8 count as those of fp8, whose rate most GPUs have in int8 too; elsewhere as bf16."""
INT4 = grouped_format("int4", bits=4, group=128, scale_bits=16)
MXFP4 = grouped_format("mxfp4", bits=4, group=32, scale_bits=8)
NVFP4 = grouped_format("nvfp4", "fp4", bits=4, group=16, scale_bits=8)
NVFP4_WEIGHTS = replace(NVFP4, name="nvfp4 w4a16", multiplied_in="bf16")
NF4 = grouped_format("nf4", bits=4, group=_ABSMAX_GROUP, scale_bits=32)
NF4_DOUBLE = grouped_format("nf4", bits=4, group=_ABSMAX_GROUP, scale_bits=_DOUBLE_QUANTISED_BITS)

FORMATS: Mapping[str, Format] = MappingProxyType(
    {each.name: each for each in (BF16, FP16, FP8, INT8, INT4, MXFP4, NVFP4)}
    | {"fp4": replace(NVFP4, name="fp4")}
)
"""The formats that `--dtype` names: int8 and int4 are weight-only, int4 in groups of 128 with a scale of 16
bits; fp4 is nvfp4; mxfp4 is weight-only, as engines run it."""

_CACHE_GROUP = 128
"""Elements of a head that share a scale and a zero point in an integer cache; heads usually have 128."""

CACHE_FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        each.name: each
        for each in (
            BF16,
            FP16,
            FP8,
            grouped_format("int8", bits=8, group=_CACHE_GROUP, scale_bits=16, zero_bits=16),
            grouped_format("int4", bits=4, group=_CACHE_GROUP, scale_bits=16, zero_bits=16),
            NVFP4,
        )
    }
)
"""The formats that `--cache-dtype` names: fp8 has a scale per tensor, which costs nothing; int8 and int4 have
a scale and a zero point of 16 bits per token and head."""


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
        projections: projections whose format is not their part's, as pairs of ("attention kv_b", format): the
            part and the name of a `core.layers.Projection`.
    """

    attention: Format = BF16
    mlp: Format = BF16
    experts: Format = BF16
    shared: Format = BF16
    router: Format = BF16
    embedding: Format = BF16
    lm_head: Format = BF16
    projections: tuple[tuple[str, Format], ...] = ()

    def of(self, part: str, projection: str = "") -> Format:
        """The format of a part, or of one of its projections.

        Args:
            part: a field's name, such as the `role` of a `core.layers.Projection`.
            projection: its name, with or without the part's before it; "" for the part's own format.
        """
        own = dict(self.projections).get(f"{part} {projection.removeprefix(f'{part} ')}")
        if own is not None:
            return own
        found = getattr(self, part)
        if not isinstance(found, Format):
            raise TypeError(f"part: {part!r} has no format")
        return found


def layers_in(format_: Format, *, rest: Format = BF16) -> Formats:
    """All projections of attention, MLP and experts in one format, as engines quantise a 16-bit checkpoint.

    Routers, embedding and lm_head stay in 16 bits: vLLM, TensorRT-LLM and SGLang leave them out, and so do
    AWQ, GPTQ and bitsandbytes.

    Args:
        format_: of the projections.
        rest: format of everything else.
    """
    return Formats(
        attention=format_,
        mlp=format_,
        experts=format_,
        shared=format_,
        router=rest,
        embedding=rest,
        lm_head=rest,
    )


ALL_BF16 = Formats()
