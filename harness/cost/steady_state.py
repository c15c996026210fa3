"""Steady state of continuous batching: time per output token, time to first token, throughput and cost."""

import functools
from dataclasses import asdict, dataclass
from typing import Any

from ..core.errors import UsageError
from ..core.language_model import LanguageModel
from .deployment import Deployment
from .memory_fit import largest_batch, last_that_holds
from .prediction import MAX_BATCH
from .step_time import decode_step_s, engine_s, prompt_s

BUNCHED = 1 / 8
"""Share of the sequences whose prompts arrive together: requests that begin together and are followed by
seven more rounds, in which prompts no longer meet, wait as long in the mean."""

SATURATED_WITHIN = 0.95
"""Share of the throughput of the largest concurrency from which on a deployment counts as saturated."""


@dataclass(frozen=True, kw_only=True)
class SteadyState:
    """Requests of one size, of which always `concurrency` are in the system; all figures are modelled.

    Attributes:
        concurrency: requests in the system.
        running: requests that are decoded together; fewer than `concurrency` where no more fit the memory.
        tpot_s: time per output token after the first, as a user sees it.
        ttft_s: time to the first token at this load.
        ttft_alone_s: time to the first token of a request alone.
        requests_per_s: requests that finish per second.
        output_tokens_per_s: their output tokens.
        usd_per_request: cost of all GPUs over the requests; None without a price, as the next three.
        usd_per_mtok: cost of 1M tokens, input and output alike.
        usd_per_input_mtok: cost of 1M input tokens, by the share of time spent in prefill.
        usd_per_output_mtok: cost of 1M output tokens, by the share of time spent in decode steps.
        saturated: whether requests wait for memory.
    """

    concurrency: int
    running: int
    tpot_s: float
    ttft_s: float
    ttft_alone_s: float
    requests_per_s: float
    output_tokens_per_s: float
    usd_per_request: float | None
    usd_per_mtok: float | None
    usd_per_input_mtok: float | None
    usd_per_output_mtok: float | None
    saturated: bool

    def to_json(self) -> dict[str, Any]:
        """The fields by their names, and their provenance."""
        return {"provenance": "modelled", **asdict(self)}


@functools.lru_cache(maxsize=4096)
def steady_state(
    model: LanguageModel,
    on: Deployment,
    *,
    input_tokens: int,
    output_tokens: int,
    concurrency: int,
    cache_hits: float = 0.0,
) -> SteadyState:
    """Models requests of `input_tokens` and `output_tokens` at a concurrency.

    A sequence's first token comes from its prefill, the others from a decode step each. While it decodes, the
    other sequences of its replica are prefilled once each, in chunks that share those steps (`prompt_s`), so
    that TPOT = decode step + (sequences - 1) / (output_tokens - 1) x prompt.

    TTFT = the engine's time of a request + prefill alone + half of the decode step that is under way + the
    queue behind other prompts. Of these, `BUNCHED` arrive together; the mean of them waits for half of the
    others; with one output token each waits for all others. A prefix cache spares its share of a prefill,
    down to the time of one token. Requests that do not fit the memory wait in addition, by Little's law.

    Raises:
        UsageError: not one such request fits the memory.
    """
    longest = input_tokens + output_tokens
    fits = largest_batch(model, on, context=longest)
    if not fits:
        raise UsageError(f"--requests: {input_tokens}/{output_tokens}: one request does not fit the memory")
    running = min(concurrency, fits)
    steps, computed = output_tokens - 1, 1 - cache_hits
    step_s = decode_step_s(model, on, batch=running, context=input_tokens + output_tokens // 2)
    whole_s = prompt_s(model, on, prompt=input_tokens, decoding=0) + engine_s(on, 1)
    # The last token is always computed, and the weights are read for it.
    least_s = decode_step_s(model, on, batch=1, context=input_tokens)
    alone_s = max(computed * whole_s, min(least_s, whole_s)) + on.engine.request_s
    prefill_s = computed * prompt_s(model, on, prompt=input_tokens, decoding=running)
    others = max(0.0, running / on.parallelism.data_parallel - 1)
    others_s = others * prefill_s / on.parallelism.pipeline_parallel
    tpot_s = step_s + (others_s / steps if steps else 0.0)
    bunched_s = BUNCHED * others_s / 2 + (step_s / 2 if running > 1 else 0.0)
    queued_s = bunched_s if steps else others_s  # without steps each prompt waits for all others
    busy_s = alone_s + queued_s + steps * tpot_s
    requests_per_s = running / busy_s
    # Little's law: concurrency requests in the system finish at that rate.
    waiting_s = max(0.0, concurrency / requests_per_s - busy_s)
    usd_per_s = None if on.usd_per_hour is None else on.usd_per_hour * on.gpus / 3600
    request = None if usd_per_s is None else usd_per_s / requests_per_s
    input_share = min(1.0, (prefill_s + others_s) / busy_s)
    return SteadyState(
        concurrency=concurrency,
        running=running,
        tpot_s=tpot_s,
        ttft_s=alone_s + queued_s + waiting_s,
        ttft_alone_s=alone_s,
        requests_per_s=requests_per_s,
        output_tokens_per_s=requests_per_s * output_tokens,
        usd_per_request=request,
        usd_per_mtok=_per_million(request, longest),
        usd_per_input_mtok=_per_million(request, input_tokens, input_share),
        usd_per_output_mtok=_per_million(request, output_tokens, 1 - input_share),
        saturated=concurrency > fits,
    )


def _per_million(usd: float | None, tokens: int, share: float = 1.0) -> float | None:
    return None if usd is None else usd * share / tokens * 1e6


def saturation_concurrency(
    model: LanguageModel, on: Deployment, *, input_tokens: int, output_tokens: int, cache_hits: float = 0.0
) -> int:
    """The smallest concurrency with `SATURATED_WITHIN` of the throughput of the largest that fits."""
    sizes = {"input_tokens": input_tokens, "output_tokens": output_tokens, "cache_hits": cache_hits}
    most = min(MAX_BATCH, max(1, largest_batch(model, on, context=input_tokens + output_tokens)))
    goal = SATURATED_WITHIN * steady_state(model, on, concurrency=most, **sizes).output_tokens_per_s

    def below(concurrency: int) -> bool:
        state = steady_state(model, on, concurrency=concurrency, **sizes)
        return state.output_tokens_per_s < goal

    return min(most, last_that_holds(below, most) + 1)


def largest_concurrency(
    model: LanguageModel,
    on: Deployment,
    *,
    input_tokens: int,
    output_tokens: int,
    slo_ttft_s: float | None = None,
    slo_tpot_s: float | None = None,
    cache_hits: float = 0.0,
) -> int:
    """The largest concurrency without waiting for memory that meets the objectives; 0 if even 1 does not."""
    sizes = {"input_tokens": input_tokens, "output_tokens": output_tokens, "cache_hits": cache_hits}

    def meets(concurrency: int) -> bool:
        state = steady_state(model, on, concurrency=concurrency, **sizes)
        ttft_met = slo_ttft_s is None or state.ttft_s <= slo_ttft_s
        return ttft_met and (slo_tpot_s is None or state.tpot_s <= slo_tpot_s)

    return last_that_holds(
        meets, min(MAX_BATCH, largest_batch(model, on, context=input_tokens + output_tokens))
    )
