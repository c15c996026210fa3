"""What an input and an output token cost on a GPU, modelled: the times of a forward's parts, added up."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .data_table import data_table
from .errors import UsageError
from .forward import (
    ACTIVATION_BYTES,
    STORED_BYTES,
    Attention,
    Elementwise,
    Forward,
    Matmul,
    Part,
    cache_bytes_per_sequence,
    decode_forward,
    prefill_forward,
    resident_weight_bytes,
)
from .kernel_time import KernelTime, decode_attention_time, gemm_time, prefill_attention_time
from .language_model import LanguageModel
from .peaks import DevicePeaks

PREFILL_TOKENS = 8192
"""Of a prefill forward: so many prompts share one as fit, and a longer prompt takes several."""

USABLE_MEMORY = 0.9
"""Share of a GPU's memory for weights and cache; the rest is the driver's, activations and workspaces."""

ELEMENTWISE_LAUNCH_S = 2e-6
"""To begin and end one small kernel of a CUDA graph; stated, not measured."""

COMPONENTS = (
    "weights",
    "matmul_arithmetic",
    "kv_cache",
    "attention_arithmetic",
    "activations",
    "communication",
    "launch",
)
"""What the time of a forward goes to: each kernel's to the roof that it is at, beyond its fixed costs."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """What joins the GPUs of a tensor-parallel group.

    Attributes:
        bytes_per_s: of one GPU, in each direction.
        latency_s: of an all-reduce of nothing.
    """

    bytes_per_s: float
    latency_s: float

    def all_reduce_s(self, reduced_bytes: float, gpus: int) -> float:
        """Seconds of a ring: each GPU sends 2 (n - 1) / n of the bytes."""
        return self.latency_s + 2.0 * (gpus - 1) / gpus * reduced_bytes / self.bytes_per_s


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """GPUs, and how a model is stored on them.

    Attributes:
        peaks: of each GPU.
        link: between them.
        tensor_parallel: how many GPUs share each layer.
        dtype: of weights; "fp8" is multiplied as it is where the GPU can, "int8" and "int4" as bf16.
        cache_dtype: of the KV cache.
        usd_per_hour: of one GPU; None where it is not known.
    """

    peaks: DevicePeaks
    link: Link
    tensor_parallel: int
    dtype: str
    cache_dtype: str
    usd_per_hour: float | None

    def usd_per_mtok(self, s_per_token: float) -> float | None:
        """Dollars of 1M tokens of so many seconds on all GPUs."""
        if self.usd_per_hour is None:
            return None
        return s_per_token * 1e6 / 3600 * self.usd_per_hour * self.tensor_parallel


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Tokens of one model on one deployment; all figures are modelled.

    Attributes:
        batch: sequences decoded together.
        context: tokens in each sequence's cache.
        prompt: tokens of a prompt.
        input_split_s: seconds of an input token by component.
        output_split_s: seconds of an output token by component.
        break_even_batch: the smallest batch at which the gap is at most the price ratio; None where no batch
            that fits has one.
        largest_batch: that fits the memory.
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
        """Device seconds of an output token: a step over its batch."""
        return math.fsum(self.output_split_s.values())

    @property
    def gap(self) -> float:
        """What an output token costs over what an input token costs."""
        return self.output_s_per_token / self.input_s_per_token

    def to_json(self) -> dict[str, Any]:
        """The figures by name, and what they were computed from."""
        on = self.deployment
        return {
            "provenance": "modelled",
            "model": self.model.name,
            "gpu": on.peaks.gpu,
            "tensor_parallel": on.tensor_parallel,
            "batch": self.batch,
            "context": self.context,
            "prompt": self.prompt,
            "dtype": on.dtype,
            "cache_dtype": on.cache_dtype,
            "input_s_per_token": self.input_s_per_token,
            "output_s_per_token": self.output_s_per_token,
            "input_tokens_per_s": 1 / self.input_s_per_token,
            "output_tokens_per_s": 1 / self.output_s_per_token,
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
        }


def largest(split_s: Mapping[str, float]) -> str:
    """The component that takes the most time."""
    return max(split_s, key=lambda name: split_s[name])


def link_of(peaks: DevicePeaks) -> Link:
    """What joins GPUs of this kind: the bandwidth of its datasheet, and a stated latency."""
    row = next(row for row in data_table("links.csv") if row["gpu"] == peaks.gpu)
    return Link(bytes_per_s=float(row["gb_per_s"]) * 1e9, latency_s=float(row["latency_us"]) * 1e-6)


def predict(
    model: LanguageModel,
    on: Deployment,
    *,
    batch: int,
    context: int,
    prompt: int,
    price_ratio: float,
) -> Prediction:
    """Model an input token of a prompt and an output token at a batch and a context.

    Raises:
        UsageError: the weights, or so many sequences, do not fit the GPUs' memory, or the model cannot be
            split among so many.
    """
    fits = largest_batch(model, on, context=context)
    if batch > fits:
        raise UsageError(_too_large(model, on, batch, context, fits))
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


def largest_batch(model: LanguageModel, on: Deployment, *, context: int) -> int:
    """The most sequences of a context whose caches fit beside the weights; 0 where the weights do not."""
    weights = resident_weight_bytes(model, dtype=on.dtype, tensor_parallel=on.tensor_parallel)
    free = USABLE_MEMORY * on.peaks.memory_bytes - weights
    each = cache_bytes_per_sequence(
        model, context=context, dtype=on.cache_dtype, tensor_parallel=on.tensor_parallel
    )
    return max(0, math.floor(free / each))


def _too_large(model: LanguageModel, on: Deployment, batch: int, context: int, fits: int) -> str:
    gpus = f"{on.tensor_parallel} x {on.peaks.gpu}" if on.tensor_parallel > 1 else on.peaks.gpu
    usable = f"{USABLE_MEMORY:.0%} of {on.peaks.memory_bytes / 2**30:.0f} GiB"
    if not fits:
        weights = resident_weight_bytes(model, dtype=on.dtype, tensor_parallel=on.tensor_parallel)
        return (
            f"--gpu: {model.name} in {on.dtype} takes {weights / 2**30:.1f} GiB of weights a GPU; with one "
            f"sequence of {context} tokens it does not fit {gpus} ({usable}); try --tensor-parallel, --dtype"
        )
    return (
        f"--batch: {batch} sequences of {context} tokens do not fit {gpus} ({usable}) beside {model.name} in "
        f"{on.dtype}; at most {fits} do"
    )


def input_split_s(model: LanguageModel, on: Deployment, *, prompt: int) -> dict[str, float]:
    """Seconds of an input token by component: its share of prefill forwards full of such prompts."""
    sequences = max(1, PREFILL_TOKENS // prompt)
    rows = min(PREFILL_TOKENS, sequences * prompt)
    forward = prefill_forward(
        model, sequences=sequences, prompt=prompt, rows=rows, tensor_parallel=on.tensor_parallel
    )

    def tokens(part: Part) -> int:
        if isinstance(part, Attention):
            return sequences * prompt
        return prompt if part.name == "lm_head" else rows

    split = dict.fromkeys(COMPONENTS, 0.0)
    for part in forward.parts:
        for name, seconds in _part_split(part, on).items():
            split[name] += seconds / tokens(part)
    split["communication"] += _communication_s(forward, on) / rows
    return split


def output_split_s(model: LanguageModel, on: Deployment, *, batch: int, context: int) -> dict[str, float]:
    """Seconds of an output token by component: a decode step over its batch."""
    forward = decode_forward(model, batch=batch, context=context, tensor_parallel=on.tensor_parallel)
    split = dict.fromkeys(COMPONENTS, 0.0)
    for part in forward.parts:
        for name, seconds in _part_split(part, on).items():
            split[name] += seconds / batch
    split["communication"] += _communication_s(forward, on) / batch
    return split


def _communication_s(forward: Forward, on: Deployment) -> float:
    if not forward.all_reduces:
        return 0.0
    return forward.all_reduces * on.link.all_reduce_s(forward.reduced_bytes, on.tensor_parallel)


def _part_split(part: Part, on: Deployment) -> dict[str, float]:
    """Seconds of all runs of a part in a forward, by component."""
    if isinstance(part, Elementwise):
        moved_s = part.activation_bytes / on.peaks.bandwidth_bytes_per_s
        return {
            "activations": part.times * moved_s,
            "launch": part.times * part.kernels * ELEMENTWISE_LAUNCH_S,
        }
    if isinstance(part, Matmul):
        return _split(part.times, matmul_time(part, on), "weights", "matmul_arithmetic")
    return _split(part.times, attention_time(part, on), "kv_cache", "attention_arithmetic")


def _split(times: int, kernel: KernelTime, by_memory: str, by_compute: str) -> dict[str, float]:
    fixed_s = min(kernel.fixed_s, kernel.time_s)
    name = by_memory if kernel.memory_s >= kernel.compute_s else by_compute
    return {name: times * (kernel.time_s - fixed_s), "launch": times * fixed_s}


def matmul_time(part: Matmul, on: Deployment) -> KernelTime:
    """Seconds of one run of a projection; fp8 takes activations of 16 bits, and the time to quantise them."""
    return gemm_time(
        on.peaks,
        rows=max(1, math.ceil(part.rows)),
        out_features=max(1, round(part.out_features)),
        in_features=part.in_features,
        dtype="fp8" if on.dtype == "fp8" else "bf16",
        weight_bytes_per_element=STORED_BYTES[on.dtype],
        activation_bytes_per_element=ACTIVATION_BYTES,
    )


def attention_time(part: Attention, on: Deployment) -> KernelTime:
    """Seconds of one run of attention."""
    if part.decode:
        return decode_attention_time(
            on.peaks,
            sequences=part.sequences,
            kv_heads=part.kv_heads,
            kv_bytes=part.cached * STORED_BYTES[on.cache_dtype],
            operations=part.operations,
            dtype=on.cache_dtype,
            group=part.q_heads // part.kv_heads,
        )
    whole = prefill_attention_time(
        on.peaks,
        sequences=part.sequences,
        q_heads=part.q_heads,
        kv_heads=part.kv_heads,
        head_dim=(part.head_dim + part.v_head_dim) // 2,
        prompt=part.tokens,
    )
    if part.window is None or part.window >= part.tokens:
        return whole
    # A window leaves out whole tiles of keys; what is left runs as fast as the whole did.
    share = part.pairs / (part.sequences * part.tokens * (part.tokens + 1) // 2)
    return KernelTime(
        time_s=whole.fixed_s + (whole.time_s - whole.fixed_s) * share,
        bound=whole.bound,
        memory_s=whole.memory_s * share,
        compute_s=whole.compute_s * share,
        fixed_s=whole.fixed_s,
    )


def break_even_batch(
    model: LanguageModel, on: Deployment, *, context: int, prompt: int, price_ratio: float, largest: int
) -> int | None:
    """The smallest batch that fits at which the gap is at most a ratio; None where there is none.

    The gap falls with the batch, so that halving finds it.
    """
    input_s = math.fsum(input_split_s(model, on, prompt=prompt).values())

    def closes(batch: int) -> bool:
        split = output_split_s(model, on, batch=batch, context=context)
        return math.fsum(split.values()) / input_s <= price_ratio

    if not largest or not closes(largest):
        return None
    below, at = 0, largest
    while at - below > 1:
        middle = (below + at) // 2
        below, at = (below, middle) if closes(middle) else (middle, at)
    return at


@dataclass(frozen=True, kw_only=True)
class RequestCost:
    """One request, modelled.

    Attributes:
        prompt: input tokens.
        output: output tokens.
        cache_hits: share of the prompt whose keys and values are found in a prefix cache; they cost nothing.
        input_s, output_s: device seconds of all its tokens.
        usd: of both; None without a price of the GPU.
    """

    prompt: int
    output: int
    cache_hits: float
    input_s: float
    output_s: float
    usd: float | None

    def to_json(self) -> dict[str, Any]:
        """The fields by their names, and where they come from."""
        return {
            "provenance": "modelled",
            "prompt": self.prompt,
            "output": self.output,
            "cache_hits": self.cache_hits,
            "input_s": self.input_s,
            "output_s": self.output_s,
            "usd": self.usd,
        }


def request_cost(
    model: LanguageModel, on: Deployment, *, prompt: int, output: int, batch: int, cache_hits: float
) -> RequestCost:
    """Device seconds and dollars of a request whose output is decoded at a batch.

    The context grows from the prompt to prompt + output; a token in its middle stands for all of them.
    """
    context = prompt + output // 2
    input_s = math.fsum(input_split_s(model, on, prompt=prompt).values()) * prompt * (1 - cache_hits)
    output_s = math.fsum(output_split_s(model, on, batch=batch, context=context).values()) * output
    usd = on.usd_per_mtok((input_s + output_s) / 1e6)
    return RequestCost(
        prompt=prompt, output=output, cache_hits=cache_hits, input_s=input_s, output_s=output_s, usd=usd
    )
