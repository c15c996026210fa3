"""Time of an engine's steps: decode steps, and prompts whose chunks share steps with decoding."""

import functools
import math

from ..core.language_model import LanguageModel
from .attention_parts import Attention, IndexScores, StateUpdate
from .deployment import Deployment
from .forward import Forward, decode_forward, prefill_forward
from .part_time import communication_s, forward_split_s, part_split_s

CHUNK_TOKENS = 8192
"""Most tokens of a step, as engines set it on data-centre GPUs; a longer prompt is prefilled in chunks."""


def decode_step_s(model: LanguageModel, on: Deployment, *, batch: int, context: int) -> float:
    """Seconds of a step in which `batch` sequences decode a token each."""
    forward = decode_forward(
        model, batch=batch, context=context, parallelism=on.parallelism, cache_format=on.cache_format
    )
    return math.fsum(forward_split_s(forward, on).values()) + engine_s(on, batch)


def engine_s(on: Deployment, sequences: int) -> float:
    """Seconds of the engine's own work in a step."""
    return on.engine.step_s + on.engine.sequence_s * sequences


def prompt_s(model: LanguageModel, on: Deployment, *, prompt: int, decoding: int) -> float:
    """Seconds that a prompt adds to the steps that its chunks share with `decoding` sequences.

    A step of c prompt tokens and d sequences multiplies c + d rows with the same weights, which are read
    once; the projections of d rows would have run anyway. Attention is that of the prompt. Attention replicas
    prefill at the same time, as they share the steps of the experts. Without decoding sequences it is the
    time of one prefill alone, without the engine's own.
    """
    chunk = min(prompt, CHUNK_TOKENS)
    replica = math.ceil(decoding / (on.parallelism.data_parallel * on.parallelism.pipeline_parallel))
    if not decoding:
        own_s, shared_s = _prefill_s(model, on, prompt, chunk, replicas=1)
        return own_s + prompt / chunk * shared_s
    replicas = on.parallelism.data_parallel
    own_s, shared_s = _prefill_s(model, on, prompt, chunk + replica, replicas)
    without_s = _prefill_s(model, on, prompt, replica, replicas)[1]
    return own_s + prompt / chunk * (shared_s - without_s)


@functools.lru_cache(maxsize=4096)
def _prefill_s(
    model: LanguageModel, on: Deployment, prompt: int, rows: int, replicas: int
) -> tuple[float, float]:
    """Seconds of a prompt's attention and logits, and of all that its rows share with others'."""
    forward: Forward = prefill_forward(
        model,
        sequences=1,
        prompt=prompt,
        rows=rows,
        replicas=replicas,
        parallelism=on.parallelism,
        cache_format=on.cache_format,
    )
    own_s = shared_s = 0.0
    for part in forward.parts:
        seconds = math.fsum(part_split_s(part, on).values())
        if isinstance(part, Attention | IndexScores | StateUpdate) or part.name == "lm_head":
            own_s += seconds
        else:
            shared_s += seconds
    return own_s, shared_s + communication_s(forward, on)
