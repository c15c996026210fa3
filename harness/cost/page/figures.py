"""The figures that the page shows; translated to JavaScript with all that they use."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...core.formats import FORMATS
from ...core.language_model import LanguageModel
from ..deployment import Deployment
from ..forward import Forward, decode_forward
from ..kernel_constants import constants_for
from ..kernel_time import rate_of
from ..memory import resident_weight_bytes
from ..memory_fit import USABLE_MEMORY, largest_batch
from ..part_time import product_dtype
from ..parts import Matmul, RoutedExperts
from ..prediction import (
    Prediction,
    break_even_batch,
    input_split_s,
    largest,
    output_split_s,
)

AS_STORED = "as stored"
"""The precision of weights that a model comes with."""

CURVE_POINTS_PER_DOUBLING = 3
"""Batches of the curve between a batch and its double."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the reader chooses.

    Attributes:
        model: the language model, as it is stored.
        dtype: format of all weights, a name of `FORMATS`, or `AS_STORED`.
        on: the GPUs and the engine.
        batch: sequences decoded together.
        context: tokens in each sequence's cache.
        prompt: tokens of a prompt.
        hit_share: share of input tokens found in a prefix cache, which cost nothing; below 1.
        price_ratio: output price over the price of an average input token, as `price_ratio_at` gives it.
    """

    model: LanguageModel
    dtype: str
    on: Deployment
    batch: int
    context: int
    prompt: int
    hit_share: float
    price_ratio: float


@dataclass(frozen=True, kw_only=True)
class ApiPrice:
    """What an API charges for a model, US dollars per 1M tokens.

    Attributes:
        model: name in the price list.
        input_usd_per_mtok: input tokens that are not in the API's cache; above 0.
        cached_input_usd_per_mtok: input tokens in the cache; as `input_usd_per_mtok` if none is listed.
        output_usd_per_mtok: output tokens.
    """

    model: str
    input_usd_per_mtok: float
    cached_input_usd_per_mtok: float
    output_usd_per_mtok: float


def price_ratio_at(price: ApiPrice, hit_share: float) -> float:
    """Output price over the price of an average input token, of which a share is in the API's cache."""
    uncached = price.input_usd_per_mtok * (1 - hit_share)
    return price.output_usd_per_mtok / (uncached + price.cached_input_usd_per_mtok * hit_share)


@dataclass(frozen=True, kw_only=True)
class RooflinePoint:
    """A forward in the roofline, on each GPU.

    Attributes:
        operations_per_byte: operations over bytes of weights, cache and activations.
        flop_per_s: operations over the modelled time.
        roof_flop_per_s: the datasheet's roof at these operations per byte.
    """

    operations_per_byte: float
    flop_per_s: float
    roof_flop_per_s: float


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The figures of a setting; all are modelled.

    Attributes:
        input_s: device seconds of an input token that is computed.
        billed_input_s: the same of an average input token, cache hits included.
        output_s: device seconds of an output token.
        step_s: time of a decode step, which each sequence waits for its next token.
        input_split_s: `input_s` by component.
        output_split_s: `output_s` by component.
        gap: output_s over billed_input_s.
        bound: the component that takes the most of an output token's time.
        input_usd_per_mtok: US dollars of 1M computed input tokens; None without a price, as the next two.
        billed_input_usd_per_mtok: the same of 1M average input tokens.
        output_usd_per_mtok: the same of 1M output tokens.
        largest_batch: the largest batch that fits the memory.
        weight_bytes: bytes of weights on each GPU.
        kv_bytes: bytes of caches on each GPU.
        usable_bytes: memory of a GPU that weights and caches may take.
        prefill: the prefill in the roofline.
        decode: the decode step in the roofline.
        roof_bytes_per_s: the datasheet's bandwidth.
        roof_flop_per_s: the datasheet's rate in the dtype that most operations of a decode step are done in.
    """

    input_s: float
    billed_input_s: float
    output_s: float
    step_s: float
    input_split_s: Mapping[str, float]
    output_split_s: Mapping[str, float]
    gap: float
    bound: str
    input_usd_per_mtok: float | None
    billed_input_usd_per_mtok: float | None
    output_usd_per_mtok: float | None
    largest_batch: int
    weight_bytes: float
    kv_bytes: float
    usable_bytes: float
    prefill: RooflinePoint
    decode: RooflinePoint
    roof_bytes_per_s: float
    roof_flop_per_s: float


def served_model(setting: Setting) -> LanguageModel:
    """The model in the precision of the setting."""
    if setting.dtype == AS_STORED:
        return setting.model
    return setting.model.with_formats(FORMATS[setting.dtype])


def fitting_batch(setting: Setting) -> int:
    """The largest batch that fits the memory; 0 if not one sequence does.

    Raises:
        UsageError: the GPUs cannot share the model.
    """
    return largest_batch(served_model(setting), setting.on, context=setting.context)


def weight_bytes(setting: Setting) -> float:
    """Bytes of weights on each GPU.

    Raises:
        UsageError: the GPUs cannot share the model.
    """
    return resident_weight_bytes(served_model(setting), parallelism=setting.on.parallelism)


def usable_bytes(setting: Setting) -> float:
    """Bytes of a GPU's memory that weights and caches may take."""
    return USABLE_MEMORY * setting.on.gpu.memory_bytes


def where(setting: Setting) -> str:
    """The GPUs, such as "8 x H100-SXM5-80GB (TP 8)"."""
    return setting.on.text


def basis_of(setting: Setting) -> str:
    """What the kernel times of the setting's GPU rest on."""
    return constants_for(setting.on.gpu).basis["gemm", "bf16"].text


def figures(setting: Setting) -> Figures:
    """The figures of a setting whose batch fits the memory.

    Raises:
        UsageError: the GPUs cannot share the model.
    """
    model, on = served_model(setting), setting.on
    found = Prediction(
        model=model,
        deployment=on,
        batch=setting.batch,
        context=setting.context,
        prompt=setting.prompt,
        input_split_s=input_split_s(model, on, prompt=setting.prompt),
        output_split_s=output_split_s(model, on, batch=setting.batch, context=setting.context),
        price_ratio=setting.price_ratio,
        break_even_batch=None,  # `break_even` finds it, which takes longer
        largest_batch=fitting_batch(setting),
    )
    billed_input_s = found.input_s_per_token * (1 - setting.hit_share)
    memory, prefill = found.memory(), found.prefill
    step_s = found.output_s_per_token * setting.batch
    return Figures(
        input_s=found.input_s_per_token,
        billed_input_s=billed_input_s,
        output_s=found.output_s_per_token,
        step_s=step_s,
        input_split_s=found.input_split_s,
        output_split_s=found.output_split_s,
        gap=found.output_s_per_token / billed_input_s,
        bound=largest(found.output_split_s),
        input_usd_per_mtok=on.usd_per_mtok(found.input_s_per_token),
        billed_input_usd_per_mtok=on.usd_per_mtok(billed_input_s),
        output_usd_per_mtok=on.usd_per_mtok(found.output_s_per_token),
        largest_batch=found.largest_batch,
        weight_bytes=memory["weight_bytes"],
        kv_bytes=memory["kv_bytes"],
        usable_bytes=memory["usable_bytes"],
        prefill=_point(prefill, on, prefill.rows * _prefills_at_once(on) * found.input_s_per_token),
        decode=_point(found.decode, on, step_s),
        roof_bytes_per_s=on.gpu.bandwidth_bytes_per_s,
        roof_flop_per_s=_roof_flop_per_s(found.decode, on),
    )


def _prefills_at_once(on: Deployment) -> int:
    """Attention replicas and stages, which prefill different prompts at the same time."""
    return on.parallelism.data_parallel * on.parallelism.pipeline_parallel


def break_even(setting: Setting) -> int | None:
    """The smallest batch that fits and whose gap is at most the price ratio; None if there is none."""
    return break_even_batch(
        served_model(setting),
        setting.on,
        context=setting.context,
        prompt=setting.prompt,
        price_ratio=setting.price_ratio * (1 - setting.hit_share),
        largest=fitting_batch(setting),
    )


def _point(forward: Forward, on: Deployment, time_s: float) -> RooflinePoint:
    intensity = forward.operations / (forward.weight_bytes + forward.kv_bytes + forward.activation_bytes)
    return RooflinePoint(
        operations_per_byte=intensity,
        flop_per_s=forward.operations / time_s,
        roof_flop_per_s=min(_roof_flop_per_s(forward, on), intensity * on.gpu.bandwidth_bytes_per_s),
    )


def _roof_flop_per_s(forward: Forward, on: Deployment) -> float:
    """The datasheet's rate of the dtype that the most operations of a forward are done in."""
    operations: dict[float, float] = {}
    for part in forward.parts:
        if isinstance(part, Matmul | RoutedExperts):
            rate = rate_of(on.gpu, product_dtype(on.gpu, part.weight_format))
            operations[rate] = operations.get(rate, 0.0) + part.times * part.operations
    return max(operations, key=lambda rate: operations[rate])


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """A batch on the curve of gaps: its gap, and its decode step in the roofline."""

    batch: int
    gap: float
    decode: RooflinePoint


def curve(setting: Setting, billed_input_s: float) -> Sequence[CurvePoint]:
    """Batches from 1 to the largest that fits; gaps are over an average input token of `billed_input_s`."""
    fits = fitting_batch(setting)
    batches = [1]
    while batches[-1] < fits:
        following = math.ceil(batches[-1] * 2 ** (1 / CURVE_POINTS_PER_DOUBLING))
        batches.append(min(fits, max(batches[-1] + 1, following)))
    return [_curve_point(setting, batch, billed_input_s) for batch in batches]


def _curve_point(setting: Setting, batch: int, billed_input_s: float) -> CurvePoint:
    model, on = served_model(setting), setting.on
    output_s = math.fsum(output_split_s(model, on, batch=batch, context=setting.context).values())
    forward = decode_forward(
        model,
        batch=batch,
        context=setting.context,
        parallelism=on.parallelism,
        cache_format=on.cache_format,
    )
    return CurvePoint(
        batch=batch, gap=output_s / billed_input_s, decode=_point(forward, on, batch * output_s)
    )
