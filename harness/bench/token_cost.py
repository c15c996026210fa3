"""Device seconds of an input and an output token, from the rows of a run.

An input token costs its share of a prefill forward: projections, experts and attention of all layers, their
rest, and its share of the prompt's single row of logits. An output token costs its share of a decode step:
the same with one row per sequence, and one row of logits per sequence. The rest is the time of a complete
layer minus that of its projections and attention, all timed with LAYER_PROVIDER; layers that are timed part
by part alone have none. On several ranks the kernels are those of one rank, and the collectives
between them are a part of their own, which overlaps with nothing. Every other part has the time of its
fastest provider that passed the gate.

Intervals come from rounds: in each round in which every part was timed, the same sums of that round's medians
of the same providers give its gap. The gap is taken round by round because an input and an output token of
one round share the state of the machine, which then cancels. Outliers of a row are winsorised before, because
the medians of all samples, of which the gap is made, do not move with them either.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from ..core.cases import Case, DecoderLayer
from ..core.collectives import Collective, CollectiveRow
from ..core.gap import PARTS, Gap, Interval
from ..core.record_fields import LARGEST, SMALLEST
from ..core.records import Row
from ..core.statistics import MIN_ROUNDS, winsorised_level
from ..core.sweep import Sweep, TokenCases
from ..core.timed_model import TimedModel
from .changes import ERROR, exponential
from .row_comparison import round_autocorrelation

LAYER_PROVIDER = "torch"
"""The provider of the complete layer, and of the parts subtracted from it."""

TimedRow = Row | CollectiveRow
TimedCase = Case | Collective
SecondsOf = Callable[[TimedCase, str | None], float]
"""Seconds of a call of a case by a provider; None means the fastest."""


class MissingRowError(LookupError):
    """No provider has an ok row for a case that a token's cost needs, or none in a round."""


def gaps_of(
    rows: Sequence[TimedRow], model: TimedModel, sweep: Sweep, *, usd_per_hour: float | None
) -> list[Gap]:
    """The gap at each batch and context for which every needed case has an ok row."""
    gaps, times = [], _Times(rows)
    for batch in sweep.batches:
        for context in sweep.contexts:
            with suppress(MissingRowError):
                gaps.append(_gap(times, model, sweep, batch, context, usd_per_hour))
    return gaps


class _Times:
    """The times of the ok rows by case and provider, over all samples and in each round."""

    def __init__(self, rows: Sequence[TimedRow]) -> None:
        ok_rows = [row for row in rows if row.status == "ok"]
        self._by_case: dict[TimedCase, dict[str, TimedRow]] = {}
        for row in ok_rows:
            self._by_case.setdefault(row.case, {})[row.provider] = row
        self._fastest = {
            case: min(by_provider, key=lambda name: by_provider[name].time_s.median)
            for case, by_provider in self._by_case.items()
        }
        self._rounds = sorted({number for row in ok_rows for number in row.rounds_s})
        self._autocorrelation = round_autocorrelation(ok_rows)

    def fastest(self, case: TimedCase) -> str:
        """The provider of a case with the smallest median of all samples."""
        if case not in self._fastest:
            raise MissingRowError(case.id)
        return self._fastest[case]

    def time_s(self, case: TimedCase, provider: str | None) -> float:
        """Median seconds of a case over all samples."""
        return self._row(case, provider).time_s.median

    def time_in_round_s(self, number: int, case: TimedCase, provider: str | None) -> float:
        """Median seconds of a case over the samples of a round, as `Row.rounds_s` has it."""
        found = self._row(case, provider).rounds_s.get(number)
        if found is None:
            raise MissingRowError(f"{case.id} in round {number}")
        return found

    def _row(self, case: TimedCase, provider: str | None) -> TimedRow:
        name = provider or self.fastest(case)
        if name not in self._by_case.get(case, {}):
            raise MissingRowError(case.id)
        return self._by_case[case][name]

    def in_rounds(self, sum_of: Callable[[SecondsOf], float]) -> dict[int, float]:
        """A sum of seconds by round, for each round that has all of its rows."""
        found = {}
        for number in self._rounds:
            with suppress(MissingRowError):
                found[number] = sum_of(partial(self.time_in_round_s, number))
        return found

    def interval(self, figure: float, rounds: Iterable[float]) -> Interval | None:
        """The 95% interval of a figure, from its value in each round; None with too few rounds.

        It reaches beyond the figure and the level of the rounds by Student's t of that level. What all
        rounds of a run share is not in it (docs/method.md, "The gap").
        """
        logs = list(map(math.log, rounds))
        if len(logs) < MIN_ROUNDS:
            return None
        found = winsorised_level(logs, self._autocorrelation)
        factor = exponential(found.half_width(ERROR))
        ends = sorted((figure, math.exp(found.mean)))
        return Interval(low=max(SMALLEST, ends[0] / factor), high=min(LARGEST, ends[1] * factor))


def _gap(
    times: _Times,
    model: TimedModel,
    sweep: Sweep,
    batch: int,
    context: int,
    usd_per_hour: float | None,
) -> Gap:
    prompt = sweep.prompt_of(context)
    tokens = sweep.input_token(model, prompt), sweep.output_token(model, batch, context)
    (input_parts_s, prefill_ratio), (output_parts_s, decode_ratio) = (
        _parts_s(times.time_s, token, model.layers) for token in tokens
    )
    input_rounds_s, output_rounds_s = (
        times.in_rounds(partial(_token_s, token=token, layers=model.layers)) for token in tokens
    )
    rounds = [number for number in input_rounds_s if number in output_rounds_s]
    triton_gap, triton_interval = _triton_gap(times, tokens)
    gap = Gap(
        batch=batch,
        context=context,
        prompt=prompt,
        input_parts_s=input_parts_s,
        output_parts_s=output_parts_s,
        providers={use.case.id: times.fastest(use.case) for token in tokens for use in token.uses},
        prefill_layer_over_parts=prefill_ratio,
        decode_layer_over_parts=decode_ratio,
        triton_gap=triton_gap,
        triton_gap_interval=triton_interval,
        usd_per_hour=usd_per_hour,
        ranks=sweep.parallelism.gpus,
        rounds=tuple(rounds),
        input_rounds_s=tuple(input_rounds_s[number] for number in rounds),
        output_rounds_s=tuple(output_rounds_s[number] for number in rounds),
    )
    return replace(
        gap,
        gap_interval=times.interval(gap.gap, gap.gap_rounds),
        input_s_per_token_interval=times.interval(gap.input_s_per_token, gap.input_rounds_s),
        output_s_per_token_interval=times.interval(gap.output_s_per_token, gap.output_rounds_s),
    )


def _parts_s(time_s: SecondsOf, token: TokenCases, layers: int) -> tuple[dict[str, float], float | None]:
    """Seconds per token by part, and the time of the complete layer over that of its parts."""
    found: dict[str, float] = {}
    for use in token.uses:
        found[use.part] = found.get(use.part, 0.0) + use.times * time_s(use.case, None) / use.tokens
    ratio = None
    if token.layer is not None:
        layer_s, layer_parts_s = _layer_s(time_s, token.layer)
        found["rest"] = layers * token.layer_share * max(0.0, layer_s - layer_parts_s)
        ratio = layer_s / layer_parts_s
    return {part: found[part] for part in PARTS if part in found}, ratio


def _layer_s(time_s: SecondsOf, layer: DecoderLayer) -> tuple[float, float]:
    """Seconds per token of a complete layer, and of its parts by the same provider.

    They are compared per token: a prefill layer may need the projections of several forwards.
    """
    layer_tokens = layer.sequences * layer.query_tokens
    layer_s = time_s(layer, LAYER_PROVIDER) / layer_tokens
    layer_parts_s = time_s(layer.attention, LAYER_PROVIDER) / layer_tokens + sum(
        time_s(projection, LAYER_PROVIDER) / layer.rows for projection in layer.projections
    )
    return layer_s, layer_parts_s


def _token_s(time_s: SecondsOf, token: TokenCases, layers: int) -> float:
    """Seconds per token, all parts together."""
    return sum(_parts_s(time_s, token, layers)[0].values())


def _triton_gap(times: _Times, tokens: tuple[TokenCases, TokenCases]) -> tuple[float | None, Interval | None]:
    """The gap of the Triton kernels alone and its interval; None if one of them did not run."""

    def gap_of(time_s: SecondsOf) -> float:
        input_s, output_s = (_triton_s(time_s, token) for token in tokens)
        return output_s / input_s

    with suppress(MissingRowError):
        found = gap_of(times.time_s)
        return found, times.interval(found, times.in_rounds(gap_of).values())
    return None, None


def _triton_s(time_s: SecondsOf, token: TokenCases) -> float:
    """Seconds per token of the Triton kernels and of the collectives between them, without the rest."""
    return sum(
        use.times * time_s(use.case, None if isinstance(use.case, Collective) else "triton") / use.tokens
        for use in token.uses
    )
