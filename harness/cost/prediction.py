"""Modelled cost of an input and an output token on a GPU: the sum of the times of a forward's parts."""

import functools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..core.errors import UsageError
from ..core.language_model import LanguageModel
from .attention_parts import Attention, IndexScores
from .deployment import Deployment
from .forward import Forward, Part, decode_forward, prefill_forward
from .memory import resident_weight_bytes, weight_formats
from .memory_fit import USABLE_MEMORY, largest_batch, memory_fit, sequence_bytes, sequences_per_gpu
from .part_time import COMPONENTS, communication_s, forward_split_s, part_split_s

PREFILL_TOKENS = 8192
"""Tokens of a prefill forward: as many prompts as fit share one; a longer prompt takes several."""

TILE_ROWS = 16
"""Rows of the smallest GEMM tile: until a tile is full, another sequence costs little."""

MAX_BATCH = 65_536
"""Largest batch in the search for the break-even batch."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Tokens of one model on one deployment; all figures are modelled.

    Attributes:
        model: the language model.
        deployment: the GPUs and what runs on them.
        batch: sequences decoded together.
        context: tokens in each sequence's cache.
        prompt: tokens of a prompt.
        input_split_s: seconds of an input token by component.
        output_split_s: seconds of an output token by component.
        price_ratio: output price over input price.
        break_even_batch: the smallest batch whose gap is at most the price ratio; None if none that fits.
        largest_batch: the largest batch that fits the memory.
    """

    model: LanguageModel
    deployment: Deployment
    batch: int
    context: int
    prompt: int
    input_split_s: Mapping[str, float]
    output_split_s: Mapping[str, float]
    price_ratio: float
    break_even_batch: int | None
    largest_batch: int

    @property
    def input_s_per_token(self) -> float:
        """Device seconds of an input token."""
        return math.fsum(self.input_split_s.values())

    @property
    def output_s_per_token(self) -> float:
        """Device seconds of an output token: those of a decode step over its batch."""
        return math.fsum(self.output_split_s.values())

    @property
    def tpot_s(self) -> float:
        """Time per output token of each user: that of a decode step."""
        return self.output_s_per_token * self.batch

    @property
    def gap(self) -> float:
        """Cost of an output token over the cost of an input token."""
        return self.output_s_per_token / self.input_s_per_token

    def to_json(self) -> dict[str, Any]:
        """The figures by name, and their inputs."""
        on = self.deployment
        return {
            "provenance": "modelled",
            "model": self.model.name,
            "gpu": on.gpu.name,
            **asdict(on.parallelism),
            "gpus": on.gpus,
            "engine": on.engine.name,
            "batch": self.batch,
            "context": self.context,
            "prompt": self.prompt,
            "dtype": weight_formats(self.model),
            "cache_dtype": on.cache_format.name,
            "input_s_per_token": self.input_s_per_token,
            "output_s_per_token": self.output_s_per_token,
            "input_tokens_per_s": 1 / self.input_s_per_token,
            "output_tokens_per_s": 1 / self.output_s_per_token,
            "tpot_s": self.tpot_s,
            "gap": self.gap,
            "usd_per_hour": on.usd_per_hour,
            "input_usd_per_mtok": on.usd_per_mtok(self.input_s_per_token),
            "output_usd_per_mtok": on.usd_per_mtok(self.output_s_per_token),
            "bound": largest(self.output_split_s),
            "input_bound": largest(self.input_split_s),
            "input_split_s": dict(self.input_split_s),
            "output_split_s": dict(self.output_split_s),
            "price_ratio": self.price_ratio,
            "break_even_batch": self.break_even_batch,
            "largest_batch": self.largest_batch,
            "memory": self.memory(),
            "decode_parts": _work(self.decode),
            "prefill_parts": _work(self.prefill),
        }

    @property
    def decode(self) -> Forward:
        """The decode step."""
        return _decode(self.model, self.deployment, self.batch, self.context)

    @property
    def prefill(self) -> Forward:
        """The prefill forward whose time the input tokens share."""
        return _full_prefill(self.model, self.deployment, self.prompt)

    def memory(self) -> dict[str, float]:
        """Bytes on each GPU: weights, caches, both, what is usable, and one token in a cache."""
        model, on = self.model, self.deployment
        weights = resident_weight_bytes(model, parallelism=on.parallelism)
        sequence, token = (sequence_bytes(model, on, context) for context in (self.context, 1))
        caches = sequences_per_gpu(on, self.batch) * sequence
        return {
            "weight_bytes": weights,
            "kv_bytes": caches,
            "needed_bytes": weights + caches,
            "usable_bytes": USABLE_MEMORY * on.gpu.memory_bytes,
            "kv_bytes_per_token": token,
        }


def _decode(model: LanguageModel, on: Deployment, batch: int, context: int) -> Forward:
    return decode_forward(
        model, batch=batch, context=context, parallelism=on.parallelism, cache_format=on.cache_format
    )


def _work(forward: Forward) -> list[dict[str, Any]]:
    """Operations and bytes of one occurrence of each part, and the number of occurrences."""
    return [
        {
            "part": part.name,
            "times": part.times,
            "operations": part.operations,
            "weight_bytes": part.weight_bytes,
            "kv_bytes": part.kv_bytes,
            "activation_bytes": part.activation_bytes,
        }
        for part in forward.parts
    ]


def largest(split_s: Mapping[str, float]) -> str:
    """The component that takes the most time."""
    return max(split_s, key=lambda name: split_s[name])


def predict(
    model: LanguageModel,
    on: Deployment,
    *,
    batch: int,
    context: int,
    prompt: int,
    price_ratio: float,
) -> Prediction:
    """Models an input token of a prompt, and an output token at a batch and a context.

    Raises:
        UsageError: weights and caches do not fit the memory, or the GPUs cannot share the model.
    """
    fits = largest_batch(model, on, context=context)
    if batch > fits:
        raise UsageError(memory_fit(model, on, batch=batch, context=context).refusal(model, on))
    return Prediction(
        model=model,
        deployment=on,
        batch=batch,
        context=context,
        prompt=prompt,
        input_split_s=input_split_s(model, on, prompt=prompt),
        output_split_s=output_split_s(model, on, batch=batch, context=context),
        price_ratio=price_ratio,
        break_even_batch=break_even_batch(
            model, on, context=context, prompt=prompt, price_ratio=price_ratio, largest=fits
        ),
        largest_batch=fits,
    )


def input_split_s(model: LanguageModel, on: Deployment, *, prompt: int) -> dict[str, float]:
    """Seconds of an input token by component: its share of a prefill forward filled with such prompts.

    Attention replicas and the stages of a pipeline prefill different prompts at the same time.
    """
    forward = _full_prefill(model, on, prompt)
    rows = forward.rows
    at_once = on.parallelism.data_parallel * on.parallelism.pipeline_parallel

    def tokens(part: Part) -> int:
        whole = isinstance(part, Attention | IndexScores) or part.name == "lm_head"
        return max(1, PREFILL_TOKENS // prompt) * prompt if whole else rows

    split = dict.fromkeys(COMPONENTS, 0.0)
    for part in forward.parts:
        for name, seconds in part_split_s(part, on).items():
            split[name] += seconds / tokens(part) / at_once
    split["communication"] += communication_s(forward, on) / rows / at_once
    split["engine"] += on.engine.step_s / rows / at_once
    return split


def _full_prefill(model: LanguageModel, on: Deployment, prompt: int) -> Forward:
    """As many prompts as fit into a forward; a longer prompt takes several, with attention over all of it."""
    sequences = max(1, PREFILL_TOKENS // prompt)
    rows = min(PREFILL_TOKENS, sequences * prompt)
    return prefill_forward(
        model,
        sequences=sequences,
        prompt=prompt,
        rows=rows,
        parallelism=on.parallelism,
        cache_format=on.cache_format,
    )


def output_split_s(model: LanguageModel, on: Deployment, *, batch: int, context: int) -> dict[str, float]:
    """Seconds of an output token by component: a decode step over its batch."""
    split = forward_split_s(_decode(model, on, batch, context), on)
    split["engine"] += on.engine.step_s + on.engine.sequence_s * batch
    return {name: seconds / batch for name, seconds in split.items()}


@functools.cache
def break_even_batch(
    model: LanguageModel, on: Deployment, *, context: int, prompt: int, price_ratio: float, largest: int
) -> int | None:
    """The smallest batch that fits and whose gap is at most a ratio; None if there is none.

    The gap falls with the batch, except that it rises when the rows need one more tile. So the search goes
    tile by tile, and bisects the first tile whose last batch has a gap of at most the ratio.
    """
    input_s = math.fsum(input_split_s(model, on, prompt=prompt).values())

    def closes(batch: int) -> bool:
        split = output_split_s(model, on, batch=batch, context=context)
        return math.fsum(split.values()) / input_s <= price_ratio

    below = 0
    while below < min(largest, MAX_BATCH):
        at = min(below + TILE_ROWS, largest)
        if closes(at):
            break
        below = at
    else:
        return None
    while at - below > 1:
        middle = (below + at) // 2
        below, at = (below, middle) if closes(middle) else (middle, at)
    return at
