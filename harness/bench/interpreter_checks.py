"""Correctness of the Triton kernels without a GPU: small cases in Triton's interpreter."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import torch
from msgspec import structs

from ..core.cases import Case, DecodeAttention, PrefillAttention, PrefillMatmul
from ..core.errors import one_line
from ..core.inputs import Source, draw
from ..core.records import InterpreterCheck
from ..core.sweep import decode_attention, prefill_attention
from ..core.timed_model import TimedModel
from ..core.work import ELEMENT_BYTES
from .honesty import BoundCall
from .providers import PROVIDERS, Provider, gate_of

SMALL_SOFTCAP = 1.5
"""Most of a softcap here: one far above the scores, which are of order one, changes the output too little."""

MAX_PREFILL_GROUP = 2
"""Most query heads of a KV head in a prefill here: each is interpreted on its own."""

MAX_LATENT_HEADS = 32
"""Most query heads of a latent cache here: interpreting 128 takes five seconds."""

SMALL_PROMPT = 150
"""Tokens of a prompt: one tile of queries and a part of the next."""


def small_cases_of(model: TimedModel, dtype: str) -> tuple[Case, ...]:
    """Small ragged cases with each head dimension and kind of attention of the model, in decode its groups.

    One matmul has few rows and takes the split-K path; the other has more rows than a tile. The contexts of
    the attention are empty, one token, within a tile, and long enough for several splits in any dtype; a
    window ends within the longest, and a softcap is small. The prompts are longer than a tile.
    """
    shapes = dict.fromkeys(group.attention for group in model.groups if group.attention is not None)
    prompts = dict.fromkeys(
        _small_prompts(prefill_attention(each, (1,), dtype), sequences=1 if place else 2)
        for place, each in enumerate(shapes)
    )
    attentions = dict.fromkeys(_small_attention(decode_attention(each, (1,), dtype)) for each in shapes)
    return (
        PrefillMatmul(phase="decode", part="twin", rows=3, in_features=1000, out_features=130, dtype=dtype),
        PrefillMatmul(phase="prefill", part="twin", rows=130, in_features=72, out_features=150, dtype=dtype),
        *([_small_absorbed(dtype)] if any(group.latent for group in model.groups) else []),
        *prompts,
        *attentions,
    )


def _small_absorbed(dtype: str) -> PrefillMatmul:
    """A batch of products, as those of MLA with each head's part of a projection."""
    return PrefillMatmul(
        phase="decode", part="twin", batch=3, rows=3, in_features=72, out_features=130, dtype=dtype
    )


def _small_prompts(case: PrefillAttention, *, sequences: int) -> PrefillAttention:
    """Prompts of few heads that end within the second tile; one is enough after the first kind."""
    return structs.replace(
        case,
        sequences=sequences,
        prompt=SMALL_PROMPT,
        window=None if case.window is None else min(case.window, SMALL_PROMPT - 5),
        **_small_options(case),
    )


def _small_options(case: DecodeAttention | PrefillAttention) -> dict[str, int | float | None]:
    """Few heads, in decode with the group of the case, and a softcap that shows."""
    kv_heads, group = min(2, case.kv_heads), case.q_heads // case.kv_heads
    if isinstance(case, PrefillAttention):
        group = min(group, MAX_PREFILL_GROUP)
    elif case.latent:
        group = min(group, MAX_LATENT_HEADS)
    return {
        "q_heads": kv_heads * group,
        "kv_heads": kv_heads,
        "softcap": None if case.softcap is None else min(case.softcap, SMALL_SOFTCAP),
    }


def _small_attention(case: DecodeAttention) -> DecodeAttention:
    """An attention of few KV heads and short contexts."""
    # Nine tiles of the kernel; a tile holds at most 128 tokens and 32 KiB of keys and values, or 64 latents.
    tile = 64 if case.latent else min(128, 32 * 1024 // (2 * case.head_dim * ELEMENT_BYTES[case.dtype]))
    several_splits = 9 * tile - 50
    longest = max(70, several_splits)
    return structs.replace(
        case,
        contexts=(0, 1, 70, longest),
        window=None if case.window is None else min(case.window, longest - 5),
        **_small_options(case),
    )


def check_in_interpreter(
    model: TimedModel,
    dtype: str,
    *,
    seed: int,
    user_providers: Mapping[str, Sequence[Provider]] = MappingProxyType({}),
) -> Iterator[InterpreterCheck]:
    """Compare each Triton kernel with its oracle, on the CPU. Triton must run interpreted in this process.

    `user_providers` are the user's own, by operation; they are checked too.
    """
    source = Source(torch.device("cpu"), seed)
    for case in small_cases_of(model, dtype):
        # An alias of several variants is left out: it runs one of them. Descriptors take no batch.
        batched = isinstance(case, PrefillMatmul) and case.batch > 1
        ours = [
            provider
            for provider in PROVIDERS[case.operation]
            if provider.name.startswith("triton") and not provider.best_of
            if not (batched and provider.variant in ("descriptors", "warp_specialized"))
        ]
        for provider in (*ours, *user_providers.get(case.operation, ())):
            inputs = draw(case, source)
            relative_error = tolerance = None
            try:
                gate = gate_of(case, inputs, all_columns=True)
                call = BoundCall(provider, inputs)
                call()
                verdict = gate.judge(call.checked_output())
                reason, relative_error, tolerance = verdict.reason, verdict.relative_error, verdict.tolerance
            except Exception as error:  # noqa: BLE001  (a kernel may raise anything; the run goes on)
                reason = one_line(error)
            yield InterpreterCheck(
                case=case,
                provider=provider.name,
                status="failed" if reason else "ok",
                reason=reason,
                relative_error=relative_error,
                tolerance=tolerance,
            )
