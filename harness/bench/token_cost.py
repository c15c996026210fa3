"""Device seconds of an input and an output token, from the rows of a run.

An input token costs its share of a prefill forward: `layers` times (projections + attention + rest), and its
share of the prompt's single row of logits. An output token costs its share of a decode step: the same with
one row per sequence, and one row of logits per sequence. The rest is the time of a complete layer minus that
of its projections and attention, all timed with LAYER_PROVIDER. Every other part has the time of its fastest
provider that passed the gate.
"""

from collections.abc import Sequence
from contextlib import suppress

from ..core.cases import Case, DecodeAttention, Sweep, TokenCases
from ..core.gap import Gap
from ..core.language_model import LanguageModel
from ..core.records import Row

LAYER_PROVIDER = "torch"
"""The provider of the complete layer, and of the parts subtracted from it."""


class MissingRowError(LookupError):
    """No provider has an ok row for a case that a token's cost needs."""


def gaps_of(
    rows: Sequence[Row], model: LanguageModel, sweep: Sweep, *, usd_per_hour: float | None
) -> list[Gap]:
    """The gap at each batch and context for which every needed case has an ok row."""
    gaps, medians = [], _Medians(rows)
    for batch in sweep.batches:
        for context in sweep.contexts:
            with suppress(MissingRowError):
                gaps.append(_gap(medians, model, sweep, batch, context, usd_per_hour))
    return gaps


class _Medians:
    """Median seconds by case and provider, of the ok rows."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._by_case: dict[Case, dict[str, float]] = {}
        for row in rows:
            if row.status == "ok":
                self._by_case.setdefault(row.case, {})[row.provider] = row.time_s.median

    def fastest(self, case: Case) -> str:
        """The fastest provider of a case."""
        if case not in self._by_case:
            raise MissingRowError(case.id)
        by_provider = self._by_case[case]
        return min(by_provider, key=lambda provider: by_provider[provider])

    def time_s(self, case: Case, provider: str | None = None) -> float:
        """Median seconds of a case by a provider; None means the fastest."""
        name = provider or self.fastest(case)
        if name not in self._by_case.get(case, {}):
            raise MissingRowError(case.id)
        return self._by_case[case][name]


def _gap(
    medians: _Medians,
    model: LanguageModel,
    sweep: Sweep,
    batch: int,
    context: int,
    usd_per_hour: float | None,
) -> Gap:
    prompt = sweep.prompt_of(context)
    tokens = sweep.input_token(model, prompt), sweep.output_token(model, batch, context)
    (input_parts_s, prefill_ratio), (output_parts_s, decode_ratio) = (
        _parts_s(medians, token, model.layers) for token in tokens
    )
    triton_gap = None
    with suppress(MissingRowError):
        input_s, output_s = (_triton_s(medians, token, model.layers) for token in tokens)
        triton_gap = output_s / input_s
    return Gap(
        batch=batch,
        context=context,
        prompt=prompt,
        input_parts_s=input_parts_s,
        output_parts_s=output_parts_s,
        providers={
            case.id: medians.fastest(case)
            for token in tokens
            for case in (*token.projections, token.attention, token.lm_head)
        },
        prefill_layer_over_parts=prefill_ratio,
        decode_layer_over_parts=decode_ratio,
        triton_gap=triton_gap,
        usd_per_hour=usd_per_hour,
    )


def _parts_s(medians: _Medians, token: TokenCases, layers: int) -> tuple[dict[str, float], float]:
    """Seconds per token by part, and the time of the complete layer over that of its parts.

    The layer and its parts are compared per token: a prefill layer may need the projections of several
    forwards.
    """
    layer = token.layer
    layer_tokens = layer.sequences * layer.query_tokens
    layer_s = medians.time_s(layer, LAYER_PROVIDER) / layer_tokens
    layer_parts_s = medians.time_s(layer.attention, LAYER_PROVIDER) / layer_tokens + sum(
        medians.time_s(projection, LAYER_PROVIDER) / layer.rows for projection in layer.projections
    )
    parts_s = {
        "projections": layers * sum(map(medians.time_s, token.projections)) / token.projection_tokens,
        "attention": layers * medians.time_s(token.attention) / token.attention_tokens,
        "rest": layers * max(0.0, layer_s - layer_parts_s),
        "lm_head": medians.time_s(token.lm_head) / token.lm_head_tokens,
    }
    return parts_s, layer_s / layer_parts_s


def _triton_s(medians: _Medians, token: TokenCases, layers: int) -> float:
    """Seconds per token of the Triton kernels alone, which include no prefill attention."""
    cases: dict[Case, int] = dict.fromkeys(token.projections, token.projection_tokens)
    if isinstance(token.attention, DecodeAttention):
        cases[token.attention] = token.attention_tokens
    layers_s = sum(medians.time_s(case, "triton") / tokens * layers for case, tokens in cases.items())
    return layers_s + medians.time_s(token.lm_head, "triton") / token.lm_head_tokens
