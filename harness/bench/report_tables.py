"""The tables of a report as columns and values: one source for the page, CSV and Markdown."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..core.records import COUNTER_NAMES, Gap, Row, Run
from ..core.tables import CEILING_NAMES, provider_name
from ..core.units import number, seconds, si
from ..cost.break_even import measured_batch
from .series import OUTPUT_PARTS, PriceRatio, gap_lines, output_parts, shape_of

MEASURED, MODELLED, DATASHEET, PUBLISHED = "measured", "modelled", "datasheet", "published"
AGAINST_DATASHEET = "measured over datasheet"
AT_A_PRICE = "measured, at the price of the device"
COUNTERS = "measured by hardware counters"


def _plain(value: Any) -> str:
    return str(value)


def _significant(value: float) -> str:
    return f"{value:.3g}"


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _bytes(value: float) -> str:
    return f"{si(value)}B"


def _two_decimals(value: float) -> str:
    return f"{value:.2f}"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table.

    Attributes:
        name: with its unit, for files.
        title: for people.
        provenance: of its figures; empty for what only names a row.
        show: a value as text.
    """

    name: str
    title: str
    provenance: str = ""
    show: Callable[[Any], str] = _plain

    @property
    def file_name(self) -> str:
        """The name with its provenance before it."""
        return "_".join(filter(None, (*self.provenance.replace(",", "").split(), self.name)))

    def text(self, value: Any) -> str:
        """A value as text; a dash where there is none."""
        return "-" if value is None else self.show(value)


@dataclass(frozen=True, kw_only=True)
class DataTable:
    """A table: rows of values, a value a column."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]


def without_empty_columns(table: DataTable) -> DataTable:
    """A table for people: columns that hold no value at all are left out."""
    kept = [at for at in range(len(table.columns)) if any(row[at] is not None for row in table.rows)]
    return replace(
        table,
        columns=tuple(table.columns[at] for at in kept),
        rows=tuple(tuple(row[at] for at in kept) for row in table.rows),
    )


Runs = Mapping[str, Run]
Found = Iterator[tuple[Any, ...]]


def all_tables(runs: Runs, ratios: Sequence[PriceRatio]) -> tuple[DataTable, ...]:
    """Every table of a report; where there are several runs, their names are the first column."""
    return (
        gaps_table(runs),
        parts_table(runs),
        ratios_table(runs, ratios),
        kernels_table(runs),
        not_timed_table(runs),
        ceilings_table(runs),
        interpreter_table(runs),
        environment_table(runs),
    )


def _table(
    runs: Runs, name: str, title: str, columns: Sequence[Column], rows_of: Callable[[Run], Found]
) -> DataTable:
    several = len(runs) > 1
    return DataTable(
        name=name,
        title=title,
        columns=(*([Column(name="run", title="run")] if several else []), *columns),
        rows=tuple((*([run_name] if several else []), *row) for run_name, run in runs.items()
                   for row in rows_of(run)),
    )  # fmt: skip


def ceilings_table(runs: Runs) -> DataTable:
    """Every ceiling that was measured, beside the datasheet's."""
    columns = (
        Column(name="ceiling", title="ceiling"),
        Column(name="dtype", title="dtype"),
        Column(name="bytes_per_s", title="bandwidth", provenance=MEASURED, show=_bandwidth),
        Column(name="bytes_per_s", title="bandwidth", provenance=DATASHEET, show=_bandwidth),
        Column(name="flop_per_s", title="FLOP/s", provenance=MEASURED, show=si),
        Column(name="flop_per_s", title="FLOP/s", provenance=DATASHEET, show=si),
        Column(name="how", title="how it was measured"),
    )

    def rows(run: Run) -> Found:
        sheets = {(c.kind, c.dtype): c for c in run.ceilings if c.provenance == DATASHEET}
        for c in run.ceilings:
            if c.provenance == MEASURED:
                sheet = sheets.get((c.kind, c.dtype))
                yield (
                    CEILING_NAMES[c.kind], c.dtype,
                    c.bandwidth_bytes_per_s, sheet and sheet.bandwidth_bytes_per_s,
                    c.flop_per_s, sheet and sheet.flop_per_s,
                    c.reason or c.detail,
                )  # fmt: skip

    return _table(runs, "ceilings", "Ceilings: what the device cannot pass", columns, rows)


def _bandwidth(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.4g} GB/s"


def kernels_table(runs: Runs) -> DataTable:
    """Every row that was timed."""
    columns = (
        Column(name="case", title="case"),
        Column(name="provider", title="provider"),
        Column(name="shape", title="shape"),
        Column(name="operations", title="operations", provenance=MODELLED, show=si),
        Column(name="bytes", title="bytes", provenance=MODELLED, show=si),
        Column(name="operations_per_byte", title="ops:bytes", provenance=MODELLED, show=_significant),
        Column(name="median_s", title="median", provenance=MEASURED, show=seconds),
        Column(name="low_s", title="95% from", provenance=MEASURED, show=seconds),
        Column(name="high_s", title="to", provenance=MEASURED, show=seconds),
        Column(name="samples", title="samples", provenance=MEASURED),
        Column(name="rounds", title="rounds", provenance=MEASURED),
        Column(name="flop_per_s", title="FLOP/s", provenance=MEASURED, show=si),
        Column(name="bytes_per_s", title="bandwidth", provenance=MEASURED, show=_bandwidth),
        Column(name="bound", title="bound", provenance=MEASURED),
        Column(name="share_of_ceiling", title="of the roof", provenance=MEASURED, show=_percent),
        Column(name="share", title="of the roof", provenance=AGAINST_DATASHEET, show=_percent),
        Column(name="throttled", title="throttled", provenance=MEASURED),
        Column(name="dram_bytes_read", title="DRAM read", provenance=COUNTERS, show=_bytes),
        Column(name="dram_bytes_written", title="DRAM written", provenance=COUNTERS, show=_bytes),
        Column(name="matrix_active_share", title="matrix units active", provenance=COUNTERS, show=_percent),
    )

    def rows(run: Run) -> Found:
        return (_kernel(run, row) for row in run.rows if row.status == "ok")

    return _table(runs, "kernels", "Kernels that were timed", columns, rows)


def _kernel(run: Run, row: Row) -> tuple[Any, ...]:
    work, time_s = row.case.work(), row.time_s
    measured, sheet = run.measured.least_time_s(work), run.datasheet.least_time_s(work)
    return (
        row.case.id, provider_name(row), shape_of(row.case),
        work.operations, work.bytes_total, work.operations_per_byte,
        time_s.median, time_s.low, time_s.high, len(row.samples_s), len(set(row.rounds)) or 1,
        work.operations / time_s.median, work.bytes_total / time_s.median,
        measured and measured[1], measured and measured[0] / time_s.median,
        sheet and sheet[0] / time_s.median,
        ", ".join(row.throttle_reasons) or None,
        *((row.counters or {}).get(name) for name in COUNTER_NAMES),
    )  # fmt: skip


def not_timed_table(runs: Runs) -> DataTable:
    """Every row without figures, and why."""
    columns = (
        Column(name="case", title="case"),
        Column(name="provider", title="provider"),
        Column(name="status", title="status"),
        Column(name="reason", title="why"),
        Column(name="relative_error", title="relative error", provenance=MEASURED, show=_significant),
        Column(name="tolerance", title="at most", provenance=MODELLED, show=_significant),
    )

    def rows(run: Run) -> Found:
        return (
            (row.case.id, provider_name(row), row.status, row.reason, row.relative_error, row.tolerance)
            for row in run.rows
            if row.status != "ok"
        )

    return _table(runs, "not_timed", "Kernels that were not timed", columns, rows)


def gaps_table(runs: Runs) -> DataTable:
    """What an input and an output token take and cost, at each batch and context."""
    columns = (
        Column(name="batch", title="batch"),
        Column(name="context", title="context"),
        Column(name="prompt", title="prompt"),
        Column(name="input_tokens_per_s", title="input tokens/s", provenance=MEASURED, show=number),
        Column(name="output_tokens_per_s", title="output tokens/s", provenance=MEASURED, show=number),
        Column(name="gap", title="gap", provenance=MEASURED, show=_two_decimals),
        Column(name="triton_gap", title="gap, Triton alone", provenance=MEASURED, show=_two_decimals),
        Column(name="input_usd_per_mtok", title="$ per 1M input", provenance=AT_A_PRICE, show=number),
        Column(name="output_usd_per_mtok", title="$ per 1M output", provenance=AT_A_PRICE, show=number),
        Column(name="layer_over_parts_prefill", title="layer over parts, prefill", provenance=MEASURED,
               show=_two_decimals),
        Column(name="layer_over_parts_decode", title="layer over parts, decode", provenance=MEASURED,
               show=_two_decimals),
        Column(name="providers", title="providers"),
    )  # fmt: skip

    def rows(run: Run) -> Found:
        for gap in run.gaps:
            yield (
                gap.batch, gap.context, gap.prompt,
                1 / gap.input_s_per_token, 1 / gap.output_s_per_token, gap.gap, gap.triton_gap,
                gap.usd_per_mtok(gap.input_s_per_token), gap.usd_per_mtok(gap.output_s_per_token),
                gap.prefill_layer_over_parts, gap.decode_layer_over_parts,
                ", ".join(sorted(set(gap.providers.values()))),
            )  # fmt: skip

    title = "Gap: device seconds per output token over seconds per input token"
    return _table(runs, "gaps", title, columns, rows)


def parts_table(runs: Runs) -> DataTable:
    """Seconds of an output token, by what they go to."""
    parts = output_parts([gap for run in runs.values() for gap in run.gaps])
    columns = (
        Column(name="batch", title="batch"),
        Column(name="context", title="context"),
        *(
            Column(name=f"{part}_s", title=OUTPUT_PARTS.get(part, part), provenance=MEASURED, show=seconds)
            for part in parts
        ),
        Column(name="output_s_per_token", title="all of it", provenance=MEASURED, show=seconds),
    )

    def rows(run: Run) -> Found:
        return (_parts(gap, parts) for gap in run.gaps)

    return _table(runs, "output_parts", "Where an output token's time goes", columns, rows)


def _parts(gap: Gap, parts: Sequence[str]) -> tuple[Any, ...]:
    return (gap.batch, gap.context, *(gap.output_parts_s.get(part) for part in parts), gap.output_s_per_token)


def ratios_table(runs: Runs, ratios: Sequence[PriceRatio]) -> DataTable:
    """At which batch the gap of each context equals what APIs charge."""
    columns = (
        Column(name="context", title="context"),
        Column(name="output_over_input", title="output:input price", provenance=PUBLISHED, show=number),
        Column(name="models", title="models", provenance=PUBLISHED),
        Column(name="break_even_batch", title="break-even batch", provenance=MEASURED, show=_significant),
        Column(name="where", title="what that means"),
    )

    def rows(run: Run) -> Found:
        for line in gap_lines("", run):
            for price in ratios:
                batch = measured_batch(line.gaps, float(price.ratio))
                means = _means(batch, line.batches[0], line.gaps[0].gap <= price.ratio)
                yield line.context, float(price.ratio), ", ".join(price.models), batch, means

    return _table(
        runs, "price_ratios", "Price ratios and the batch at which the gap equals them", columns, rows
    )


def _means(batch: float | None, smallest: int, at_once: bool) -> str:
    if batch is None:
        return "the gap stays above the ratio at every batch that was measured"
    if at_once:
        return f"the gap is at most the ratio from the smallest batch on, {smallest}"
    return "between two measured batches, the gap taken as a power of the batch"


def interpreter_table(runs: Runs) -> DataTable:
    """Whether the Triton kernels agree with the oracle in the interpreter; no times."""
    columns = (
        Column(name="case", title="case"),
        Column(name="provider", title="provider"),
        Column(
            name="status", title="against the oracle", show=lambda s: "agrees" if s == "ok" else s.upper()
        ),
        Column(name="relative_error", title="relative error", provenance=MEASURED, show=_significant),
        Column(name="tolerance", title="at most", provenance=MODELLED, show=_significant),
        Column(name="reason", title="why"),
    )

    def rows(run: Run) -> Found:
        return (
            (check.case.id, check.provider, check.status, check.relative_error, check.tolerance, check.reason)
            for check in run.interpreter_checks
        )

    title = "Triton kernels in the interpreter (results alone, no times)"
    return _table(runs, "interpreter_checks", title, columns, rows)


def environment_table(runs: Runs) -> DataTable:
    """What each run ran on and was asked to do, field by field."""
    columns = (Column(name="field", title="field"), Column(name="value", title="value"))

    def rows(run: Run) -> Found:
        yield from _flat("environment", run.environment)
        yield from _flat("settings", run.settings)
        yield "elapsed_s", f"{run.elapsed_s:.1f}"

    return _table(runs, "environment", "Environment and settings", columns, rows)


def _flat(name: str, value: Any) -> Iterator[tuple[str, str | None]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    elif isinstance(value, (list, tuple)):
        yield name, ", ".join(map(str, value))
    else:
        yield name, None if value is None else str(value)
