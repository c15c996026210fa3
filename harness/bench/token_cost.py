"""What an input and an output token cost, in device seconds, from the rows of a run.

An input token takes its share of a prefill forward: `layers` times (projections + attention + rest), and its
share of the prompt's one row of logits. An output token takes its share of a decode step: the same with the
batch's rows, and a row of logits each. The rest is what a whole layer takes beyond its own parts, both by the
provider that timed the whole layer. Each part counts by its fastest provider that passed the gate.
"""

from collections.abc import Mapping, Sequence

from ..core.cases import Case, DecoderLayer, Sweep
from ..core.language_model import LanguageModel
from ..core.records import Gap, Row

LAYER_PROVIDER = "torch"
"""Who runs the whole layer, and the parts that it is compared with."""


class MissingRowError(LookupError):
    """No provider has an ok row for a case that a token's cost needs."""


def gaps_of(
    rows: Sequence[Row], model: LanguageModel, sweep: Sweep, *, usd_per_hour: float | None
) -> list[Gap]:
    """The gap at each batch and context for which every needed case has an ok row."""
    gaps, medians = [], _Medians(rows)
    for batch in sweep.batches:
        for context in sweep.contexts:
            try:
                gaps.append(
                    _gap(medians, model, sweep, batch=batch, context=context, usd_per_hour=usd_per_hour)
                )
            except MissingRowError:
                continue
    return gaps


class _Medians:
    """Median seconds by case and provider, of the ok rows."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._by_case: dict[Case, dict[str, float]] = {}
        for row in rows:
            if row.status == "ok":
                self._by_case.setdefault(row.case, {})[row.provider] = row.time_s.median

    def fastest(self, case: Case) -> tuple[str, float]:
        """The fastest provider of a case, and its seconds."""
        if case not in self._by_case:
            raise MissingRowError(case.id)
        return min(self._by_case[case].items(), key=lambda item: item[1])

    def by(self, provider: str, case: Case) -> float:
        """Seconds of a case by this provider."""
        if provider not in self._by_case.get(case, {}):
            raise MissingRowError(case.id)
        return self._by_case[case][provider]


def _gap(
    medians: _Medians,
    model: LanguageModel,
    sweep: Sweep,
    *,
    batch: int,
    context: int,
    usd_per_hour: float | None,
) -> Gap:
    prompt = sweep.prompt_of(context)
    prefill_projections = [sweep.prefill_matmul(p) for p in model.projections]
    prefill_attention = sweep.prefill_attention(model, prompt)
    prefill_head = sweep.prefill_lm_head(model)
    decode_projections = [sweep.decode_matmul(p, batch) for p in model.projections]
    decode_attention = sweep.decode_attention(model, batch, context)
    decode_head = sweep.decode_matmul(model.lm_head, batch)
    attention_tokens = prefill_attention.sequences * prompt
    prefill_rest_s, prefill_ratio = _rest(medians, sweep.prefill_layer(model))
    decode_rest_s, decode_ratio = _rest(medians, sweep.decode_layer(model, batch))

    def seconds(*cases: Case) -> float:
        return sum(medians.fastest(case)[1] for case in cases)

    needed: tuple[Case, ...] = (
        *prefill_projections,
        prefill_attention,
        prefill_head,
        *decode_projections,
        decode_attention,
        decode_head,
    )
    return Gap(
        batch=batch,
        context=context,
        prompt=prompt,
        input_parts_s={
            "projections": model.layers * seconds(*prefill_projections) / sweep.prefill_tokens,
            "attention": model.layers * seconds(prefill_attention) / attention_tokens,
            "rest": model.layers * prefill_rest_s,
            "lm_head": seconds(prefill_head) / prompt,
        },
        output_parts_s={
            "projections": model.layers * seconds(*decode_projections) / batch,
            "attention": model.layers * seconds(decode_attention) / batch,
            "rest": model.layers * decode_rest_s,
            "lm_head": seconds(decode_head) / batch,
        },
        providers={case.id: medians.fastest(case)[0] for case in needed},
        prefill_layer_over_parts=prefill_ratio,
        decode_layer_over_parts=decode_ratio,
        triton_gap=_triton_gap(
            medians,
            model.layers,
            prefill={**dict.fromkeys(prefill_projections, sweep.prefill_tokens), prefill_head: prompt},
            decode=dict.fromkeys((*decode_projections, decode_attention, decode_head), batch),
        ),
        usd_per_hour=usd_per_hour,
    )


def _rest(medians: _Medians, layer: DecoderLayer) -> tuple[float, float]:
    """Seconds a token of a whole layer beyond its parts (at least 0), and whole over parts.

    All is compared per token: a prefill layer of several forwards stands against the projections of one.
    """
    tokens = layer.sequences * layer.query_tokens
    whole_s = medians.by(LAYER_PROVIDER, layer) / tokens
    parts_s = medians.by(LAYER_PROVIDER, layer.attention) / tokens + sum(
        medians.by(LAYER_PROVIDER, projection) / layer.rows for projection in layer.projections
    )
    return max(0.0, whole_s - parts_s), whole_s / parts_s


def _triton_gap(
    medians: _Medians, layers: int, *, prefill: Mapping[Case, int], decode: Mapping[Case, int]
) -> float | None:
    """The gap of the Triton kernels alone, over the cases they have; None where one did not run.

    Args:
        medians: of the rows.
        layers: of the model.
        prefill: by case, the tokens that share one call of it.
        decode: likewise.
    """

    def token_s(cases: Mapping[Case, int]) -> float:
        return sum(
            medians.by("triton", case) / tokens * (1 if case.part == "lm_head" else layers)
            for case, tokens in cases.items()
        )

    try:
        return token_s(decode) / token_s(prefill)
    except MissingRowError:
        return None
