"""The tables of what tokens cost: gaps, their parts, the whole model, and price ratios."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..core.errors import printable
from ..core.gap import TOKEN_PARTS, Gap
from ..core.records import Run
from ..core.table import Column, Table
from ..core.units import seconds
from ..cost.break_even import measured_batch
from .chart_data import OUTPUT_PARTS, PriceRatio, gap_lines, output_parts
from .run_columns import (
    AT_A_PRICE,
    MEASURED,
    MODELLED,
    PUBLISHED,
    Rows,
    Runs,
    bounds,
    interval_column,
    table_of_runs,
    three_digits,
    two_decimals,
)
from .whole_sentences import layers_text


def gaps_table(runs: Runs) -> Table:
    """Rates and costs of an input and an output token, at each batch and context."""
    columns = (
        Column("batch"),
        Column("context"),
        Column("prompt", wide=True),
        Column("input tokens/s", "input_tokens_per_s", MEASURED),
        interval_column("input tokens/s", "input_tokens_per_s"),
        Column("output tokens/s", "output_tokens_per_s", MEASURED),
        interval_column("output tokens/s", "output_tokens_per_s"),
        Column("gap", "", MEASURED, two_decimals),
        replace(interval_column("", "gap"), wide=False),
        Column("gap, Triton alone", "triton_gap", MEASURED, two_decimals),
        interval_column("gap, Triton alone", "triton_gap"),
        Column("$ per 1M input", "input_usd_per_mtok", AT_A_PRICE),
        interval_column("$ per 1M input", "input_usd_per_mtok", AT_A_PRICE),
        Column("$ per 1M output", "output_usd_per_mtok", AT_A_PRICE),
        interval_column("$ per 1M output", "output_usd_per_mtok", AT_A_PRICE),
        Column("layer over parts, prefill", "layer_over_parts_prefill", MEASURED, two_decimals, wide=True),
        Column("layer over parts, decode", "layer_over_parts_decode", MEASURED, two_decimals, wide=True),
        Column("providers", wide=True),
    )

    def rows(run: Run) -> Rows:
        for gap in run.gaps:
            input_rate, output_rate = map(bounds, gap.tokens_per_s_intervals)
            input_usd, output_usd = map(bounds, gap.usd_intervals)
            yield (
                gap.batch, gap.context, gap.prompt,
                1 / gap.input_s_per_token, input_rate, 1 / gap.output_s_per_token, output_rate,
                gap.gap, bounds(gap.gap_interval), gap.triton_gap, bounds(gap.triton_gap_interval),
                gap.usd_per_mtok(gap.input_s_per_token), input_usd,
                gap.usd_per_mtok(gap.output_s_per_token), output_usd,
                gap.prefill_layer_over_parts, gap.decode_layer_over_parts,
                ", ".join(sorted(set(gap.providers.values()))),
            )  # fmt: skip

    title = "Gap: device seconds per output token over seconds per input token"
    return table_of_runs(runs, "gaps", title, columns, rows)


def output_parts_table(runs: Runs) -> Table:
    """Seconds of an output token, by part."""
    parts = output_parts([gap for run in runs.values() for gap in run.gaps])
    columns = (
        Column("batch"),
        Column("context"),
        *(
            Column(
                OUTPUT_PARTS.get(part, printable(part)),
                f"{part}_s",
                MEASURED,
                seconds,
                wide=part not in OUTPUT_PARTS,
            )
            for part in parts
        ),
        Column("total", "output_s_per_token", MEASURED, seconds, wide="communication" in parts),
    )

    def row(gap: Gap) -> tuple[Any, ...]:
        return (gap.batch, gap.context, *map(gap.output_parts_s.get, parts), gap.output_s_per_token)

    title = "Where an output token's time goes"
    return table_of_runs(runs, "output_parts", title, columns, lambda run: map(row, run.gaps))


def whole_model_table(runs: Runs) -> Table:
    """Forwards of all layers, measured in one piece, beside the rates that the gap composes."""
    columns = (
        Column("forward"),
        Column("by"),
        Column("sequences"),
        Column("tokens"),
        Column("layers"),
        Column("tokens/s", "tokens_per_s", MEASURED),
        Column("composed tokens/s", "composed_tokens_per_s", MEASURED),
        Column("composed over measured", "composed_over_measured", MEASURED, two_decimals),
        Column("why not measured", "reason"),
        Column("median", "median_s", MEASURED, seconds, wide=True),
        Column("95% from", "low_s", MEASURED, seconds, wide=True),
        Column("to", "high_s", MEASURED, seconds, wide=True),
        Column("samples", "", MEASURED, wide=True),
        Column("one layer for all", "one_layer_s", MEASURED, seconds, wide=True),
        *(Column(OUTPUT_PARTS[part], f"{part}_s", MEASURED, seconds, wide=True) for part in TOKEN_PARTS),
        Column("relative error", "relative_error", MEASURED, three_digits, wide=True),
        Column("tolerance", "tolerance", MODELLED, three_digits, wide=True),
        Column("fewer layers for", "limited_by", wide=True),
    )

    def rows(run: Run) -> Rows:
        whole = run.whole_model
        if whole is None:
            return
        for forward in whole.forwards:
            figures: tuple[Any, ...] = (None,) * 3
            times: tuple[Any, ...] = (None,) * 4
            if forward.status == "ok":
                figures = (
                    forward.tokens_per_s, forward.composed_tokens_per_s, forward.composed_over_measured
                )  # fmt: skip
                time_s = forward.time_s
                times = (time_s.median, time_s.low, time_s.high, len(forward.samples_s))
            yield (
                forward.phase, forward.by, forward.sequences, forward.tokens,
                layers_text(forward, whole), *figures, forward.reason, *times, forward.one_layer_s,
                *map((forward.parts_s or {}).get, TOKEN_PARTS),
                forward.relative_error, forward.tolerance, forward.limited_by,
            )  # fmt: skip

    return table_of_runs(runs, "whole_model", "The whole model, measured in one piece", columns, rows)


def price_ratios_table(runs: Runs, ratios: Sequence[PriceRatio]) -> Table:
    """The batch at which the gap of each context equals an API price ratio."""
    columns = (
        Column("context"),
        Column("output:input price", "output_over_input", PUBLISHED),
        Column("models", "", PUBLISHED),
        Column("break-even batch", "break_even_batch", MEASURED, three_digits),
        Column("meaning", "where"),
    )

    def rows(run: Run) -> Rows:
        for line in gap_lines({"": run}):
            for price in ratios:
                batch = measured_batch(line.gaps, float(price.ratio))
                if batch is None:
                    meaning = "the gap is above the ratio at every measured batch"
                elif line.gaps[0].gap <= price.ratio:
                    meaning = f"the gap is at most the ratio already at the smallest batch, {line.batches[0]}"
                else:
                    meaning = "interpolated between two measured batches, as a power of the batch"
                yield line.context, float(price.ratio), ", ".join(price.models), batch, meaning

    title = "Price ratios and the batch at which the gap equals them"
    return table_of_runs(runs, "price_ratios", title, columns, rows)
