"""The tables of a run, defined once; `core.table` renders them for a terminal, CSV, Markdown and HTML.

Each takes runs by name; with several runs, the first column has their names.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

from ..core.cases import Case
from ..core.errors import printable
from ..core.gap import TOKEN_PARTS, Gap, Interval
from ..core.records import COUNTER_NAMES, InterpreterCheck, Row, Run
from ..core.table import Column, Table, percent
from ..core.units import number, seconds, si
from ..cost.break_even import measured_batch
from .chart_data import OUTPUT_PARTS, PriceRatio, gap_lines, output_parts
from .whole_sentences import layers_text

MEASURED, MODELLED, DATASHEET, PUBLISHED = "measured", "modelled", "datasheet", "published"
AGAINST_DATASHEET = "measured over datasheet"
AT_A_PRICE = "measured, at the price of the device"
COUNTERS = "measured by hardware counters"

Runs = Mapping[str, Run]
Rows = Iterator[tuple[Any, ...]]

_two_decimals = "{:,.2f}".format
_three_digits = partial(number, digits=3)
_rate = partial(si, digits=3)


_ATTENTION_OPTIONS = ("v_head_dim", "latent", "window", "softcap", "sinks")


def _gigabytes(bytes_per_s: float) -> str:
    return number(bytes_per_s / 1e9, 3)


def _bytes(value: float) -> str:
    return f"{si(value)}B"


def run_tables(runs: Runs, ratios: Sequence[PriceRatio]) -> tuple[Table, ...]:
    """Every table of a report."""
    return (
        gaps_table(runs),
        output_parts_table(runs),
        whole_model_table(runs),
        price_ratios_table(runs, ratios),
        kernels_table(runs),
        not_timed_table(runs),
        ceilings_table(runs),
        interpreter_table(runs),
        environment_table(runs),
    )


def _table(
    runs: Runs, table_id: str, title: str, columns: Sequence[Column], rows_of: Callable[[Run], Rows]
) -> Table:
    several = len(runs) > 1
    return Table(
        id=table_id,
        title=title,
        columns=(*([Column("run")] if several else []), *columns),
        rows=tuple(
            (*([name] if several else []), *row) for name, run in runs.items() for row in rows_of(run)
        ),
    )


def ceilings_table(runs: Runs) -> Table:
    """Every measured ceiling beside that of the datasheet."""
    columns = (
        Column("ceiling"),
        Column("dtype"),
        Column("GB/s", "bytes_per_s", MEASURED, _gigabytes),
        Column("FLOP/s", "flop_per_s", MEASURED, si),
        Column("rows above", "rows_above", MEASURED),
        Column("datasheet GB/s", "bytes_per_s", DATASHEET, _gigabytes),
        Column("datasheet FLOP/s", "flop_per_s", DATASHEET, si),
        Column("why not measured", "reason"),
        Column("how it was measured", "how", wide=True),
    )

    def rows(run: Run) -> Rows:
        datasheets = {(c.kind, c.dtype): c for c in run.ceilings if c.provenance == DATASHEET}
        for c in run.ceilings:
            if c.provenance == MEASURED:
                datasheet = datasheets.get((c.kind, c.dtype))
                yield (
                    c.kind.replace("_", " "), c.dtype, c.bandwidth_bytes_per_s, c.flop_per_s,
                    len(run.rows_above(c)) or None,
                    datasheet and datasheet.bandwidth_bytes_per_s, datasheet and datasheet.flop_per_s,
                    c.reason, c.detail,
                )  # fmt: skip

    return _table(runs, "ceilings", "Ceilings: rates that the device cannot exceed", columns, rows)


def kernels_table(runs: Runs) -> Table:
    """Every row that was timed."""
    columns = (
        Column("case"),
        Column("provider"),
        Column("shape", wide=True),
        Column("operations", "", MODELLED, si, wide=True),
        Column("bytes", "", MODELLED, si, wide=True),
        Column("ops:bytes", "operations_per_byte", MODELLED, _three_digits, wide=True),
        Column("median", "median_s", MEASURED, seconds),
        Column("95% from", "low_s", MEASURED, seconds, wide=True),
        Column("to", "high_s", MEASURED, seconds, wide=True),
        Column("samples", "", MEASURED, wide=True),
        Column("rounds", "", MEASURED, wide=True),
        Column("FLOP/s", "flop_per_s", MEASURED, _rate),
        Column("GB/s", "bytes_per_s", MEASURED, _gigabytes),
        Column("bound", "", MEASURED, wide=True),
        Column("of roof", "share_of_ceiling", MEASURED, percent),
        Column("above ceiling", "above_ceiling", MEASURED, lambda _: "above"),
        Column("of datasheet roof", "share", AGAINST_DATASHEET, percent, wide=True),
        Column("throttled", "", MEASURED),
        Column("DRAM read", "dram_bytes_read", COUNTERS, _bytes, wide=True),
        Column("DRAM written", "dram_bytes_written", COUNTERS, _bytes, wide=True),
        Column("DRAM over needed", "dram_over_needed", COUNTERS, _three_digits, wide=True),
        Column("tensor cores active", "matrix_active_share", COUNTERS, percent, wide=True),
    )

    def rows(run: Run) -> Rows:
        measured, datasheet = run.measured, run.datasheet
        for row in run.rows:
            figures = row.figures(measured, datasheet)
            if figures is not None:
                work, time_s = row.case.work(), row.time_s
                yield (
                    row.case.id, provider_name(row), shape_text(row.case),
                    work.operations, work.bytes_total, figures["operations_per_byte"],
                    time_s.median, time_s.low, time_s.high, len(row.samples_s), len(set(row.rounds)) or 1,
                    figures["flop_per_s"], figures["bandwidth_bytes_per_s"], figures["bound"],
                    figures["share_of_measured_ceiling"], figures["above_measured_ceiling"] or None,
                    figures["share_of_datasheet_ceiling"],
                    ", ".join(row.throttle_reasons) or None,
                    *_counters(row.counters, work.bytes_total),
                )  # fmt: skip

    return _table(runs, "kernels", "Kernels that were timed", columns, rows)


def _counters(counters: Mapping[str, float] | None, bytes_needed: int) -> tuple[float | None, ...]:
    if counters is None:
        return (None,) * (len(COUNTER_NAMES) + 1)
    read, written, active = (counters[name] for name in COUNTER_NAMES)
    return read, written, (read + written) / bytes_needed, active


def counters_table(run: Run) -> Table:
    """The hardware counters of the rows that have them; for a terminal without `--wide`."""
    kernels = kernels_table({"": run})
    kept = [
        at
        for at, column in enumerate(kernels.columns)
        if column.heading in {"case", "provider", "bytes"} or column.provenance == COUNTERS
    ]
    return replace(
        kernels,
        title="Hardware counters",
        columns=tuple(replace(kernels.columns[at], wide=False) for at in kept),
        rows=tuple(tuple(row[at] for at in kept) for row in kernels.rows if row[-1] is not None),
    )


def provider_name(row: Row) -> str:
    """The provider, the variant that ran, and whether it used a tuned tiling."""
    variant = (row.variant or "").replace("_", "-")
    shown = f" ({variant})" if not row.provider.endswith(variant) else ""
    return f"{row.provider}{shown}" + ("" if row.tiling is None else ", tuned")


def shape_text(case: Case) -> str:
    """The sizes of a case, by name; without options that it does not have."""
    hidden = {"phase", "part", *(name for name in _ATTENTION_OPTIONS if not getattr(case, name, None))}
    if getattr(case, "batch", None) == 1:
        hidden.add("batch")
    sizes = {name: getattr(case, name) for name in case.__struct_fields__ if name not in hidden}
    if "contexts" in sizes:
        lengths = [(length, len(tuple(same))) for length, same in groupby(sizes["contexts"])]
        sizes["contexts"] = " + ".join(f"{count} x {length}" for length, count in lengths)
    return ", ".join(f"{name} {getattr(value, 'name', value)}" for name, value in sizes.items())


def not_timed_table(runs: Runs) -> Table:
    """Every row without figures, and the reason."""
    title = "Kernels that were not timed"
    return _gate_table(runs, "not_timed", title, lambda run: [r for r in run.rows if r.status != "ok"])


def interpreter_table(runs: Runs) -> Table:
    """The errors of the Triton kernels in the interpreter; no times."""
    title = "Triton kernels in the interpreter, compared with the oracle (not timed)"
    return _gate_table(runs, "interpreter_checks", title, lambda run: run.interpreter_checks)


def _gate_table(
    runs: Runs, table_id: str, title: str, entries: Callable[[Run], Sequence[Row | InterpreterCheck]]
) -> Table:
    columns = (
        Column("case"),
        Column("provider"),
        Column("status", show=lambda status: {"ok": "agrees", "failed": "FAILED"}.get(status, status)),
        Column("why", "reason"),
        Column("relative error", "relative_error", MEASURED, _three_digits),
        Column("tolerance", "tolerance", MODELLED, _three_digits),
    )

    def rows(run: Run) -> Rows:
        for entry in entries(run):
            name = provider_name(entry) if isinstance(entry, Row) else entry.provider
            yield entry.case.id, name, entry.status, entry.reason, entry.relative_error, entry.tolerance

    return _table(runs, table_id, title, columns, rows)


def not_timed_summary(run: Run) -> Table:
    """Rows that were neither timed nor failed, counted by status, provider and reason; for a terminal."""
    counts = Counter(
        (row.status, row.provider, row.reason) for row in run.rows if row.status not in {"ok", "failed"}
    )
    return Table(
        title="Kernels that were not timed",
        columns=(Column("status"), Column("provider"), Column("rows"), Column("why")),
        rows=tuple((status, provider, count, reason) for (status, provider, reason), count in counts.items()),
    )


def gaps_table(runs: Runs) -> Table:
    """Rates and costs of an input and an output token, at each batch and context."""
    columns = (
        Column("batch"),
        Column("context"),
        Column("prompt", wide=True),
        Column("input tokens/s", "input_tokens_per_s", MEASURED),
        _interval("input tokens/s", "input_tokens_per_s"),
        Column("output tokens/s", "output_tokens_per_s", MEASURED),
        _interval("output tokens/s", "output_tokens_per_s"),
        Column("gap", "", MEASURED, _two_decimals),
        replace(_interval("", "gap"), wide=False),
        Column("gap, Triton alone", "triton_gap", MEASURED, _two_decimals),
        _interval("gap, Triton alone", "triton_gap"),
        Column("$ per 1M input", "input_usd_per_mtok", AT_A_PRICE),
        _interval("$ per 1M input", "input_usd_per_mtok", AT_A_PRICE),
        Column("$ per 1M output", "output_usd_per_mtok", AT_A_PRICE),
        _interval("$ per 1M output", "output_usd_per_mtok", AT_A_PRICE),
        Column("layer over parts, prefill", "layer_over_parts_prefill", MEASURED, _two_decimals, wide=True),
        Column("layer over parts, decode", "layer_over_parts_decode", MEASURED, _two_decimals, wide=True),
        Column("providers", wide=True),
    )

    def rows(run: Run) -> Rows:
        for gap in run.gaps:
            input_rate, output_rate = map(_bounds, gap.tokens_per_s_intervals)
            input_usd, output_usd = map(_bounds, gap.usd_intervals)
            yield (
                gap.batch, gap.context, gap.prompt,
                1 / gap.input_s_per_token, input_rate, 1 / gap.output_s_per_token, output_rate,
                gap.gap, _bounds(gap.gap_interval), gap.triton_gap, _bounds(gap.triton_gap_interval),
                gap.usd_per_mtok(gap.input_s_per_token), input_usd,
                gap.usd_per_mtok(gap.output_s_per_token), output_usd,
                gap.prefill_layer_over_parts, gap.decode_layer_over_parts,
                ", ".join(sorted(set(gap.providers.values()))),
            )  # fmt: skip

    title = "Gap: device seconds per output token over seconds per input token"
    return _table(runs, "gaps", title, columns, rows)


def _interval(heading: str, name: str, provenance: str = MEASURED) -> Column:
    """The column of the 95% interval of a figure."""
    shown = f"95% interval, {heading}" if heading else "95% interval"
    return Column(shown, name, provenance, _three_digits, wide=True, interval=True)


def _bounds(interval: Interval | None) -> tuple[float, float] | None:
    return None if interval is None else interval.bounds


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
        Column("total", "output_s_per_token", MEASURED, seconds),
    )

    def row(gap: Gap) -> tuple[Any, ...]:
        return (gap.batch, gap.context, *map(gap.output_parts_s.get, parts), gap.output_s_per_token)

    title = "Where an output token's time goes"
    return _table(runs, "output_parts", title, columns, lambda run: map(row, run.gaps))


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
        Column("composed over measured", "composed_over_measured", MEASURED, _two_decimals),
        Column("why not measured", "reason"),
        Column("median", "median_s", MEASURED, seconds, wide=True),
        Column("95% from", "low_s", MEASURED, seconds, wide=True),
        Column("to", "high_s", MEASURED, seconds, wide=True),
        Column("samples", "", MEASURED, wide=True),
        Column("one layer for all", "one_layer_s", MEASURED, seconds, wide=True),
        *(Column(OUTPUT_PARTS[part], f"{part}_s", MEASURED, seconds, wide=True) for part in TOKEN_PARTS),
        Column("relative error", "relative_error", MEASURED, _three_digits, wide=True),
        Column("tolerance", "tolerance", MODELLED, _three_digits, wide=True),
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

    return _table(runs, "whole_model", "The whole model, measured in one piece", columns, rows)


def price_ratios_table(runs: Runs, ratios: Sequence[PriceRatio]) -> Table:
    """The batch at which the gap of each context equals an API price ratio."""
    columns = (
        Column("context"),
        Column("output:input price", "output_over_input", PUBLISHED),
        Column("models", "", PUBLISHED),
        Column("break-even batch", "break_even_batch", MEASURED, _three_digits),
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
    return _table(runs, "price_ratios", title, columns, rows)


def environment_table(runs: Runs) -> Table:
    """The environment and the settings of each run, field by field."""

    def rows(run: Run) -> Rows:
        yield from _flat("environment", run.environment)
        yield from _flat("settings", run.settings)
        yield "elapsed_s", f"{run.elapsed_s:.1f}"

    columns = (Column("field"), Column("value"))
    return _table(runs, "environment", "Environment and settings", columns, rows)


def _flat(name: str, value: Any) -> Iterator[tuple[str, str | None]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    elif isinstance(value, list | tuple) and any(isinstance(each, Mapping) for each in value):
        for index, each in enumerate(value):
            yield from _flat(f"{name}[{index}]", each)
    elif isinstance(value, list | tuple):
        yield name, ", ".join(map(str, value))
    else:
        yield name, None if value is None else str(value)
