"""The tables of a run, defined once; `core.table` renders them for a terminal, CSV, Markdown and HTML.

Each takes runs by name; with several runs, the first column has their names.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from ..core.cases import Case
from ..core.collectives import CollectiveRow
from ..core.records import COUNTER_NAMES, InterpreterCheck, Row, Run
from ..core.table import Column, Table, percent
from ..core.units import seconds, si
from .chart_data import PriceRatio
from .gap_tables import gaps_table, output_parts_table, price_ratios_table, whole_model_table
from .rank_tables import RANKS_RATIO, has_ranks, rank_tables, slowest_over_fastest
from .run_columns import (
    AGAINST_DATASHEET,
    COUNTERS,
    DATASHEET,
    MEASURED,
    MODELLED,
    Rows,
    Runs,
    byte_size,
    gigabytes,
    rate,
    table_of_runs,
    three_digits,
)

_ATTENTION_OPTIONS = ("v_head_dim", "latent", "window", "softcap", "sinks")


def run_tables(runs: Runs, ratios: Sequence[PriceRatio]) -> tuple[Table, ...]:
    """Every table of a report."""
    return (
        gaps_table(runs),
        output_parts_table(runs),
        *rank_tables(runs),
        whole_model_table(runs),
        price_ratios_table(runs, ratios),
        kernels_table(runs),
        *([kernels_table(runs, one_rank=True)] if any(map(has_ranks, runs.values())) else []),
        not_timed_table(runs),
        ceilings_table(runs),
        interpreter_table(runs),
        environment_table(runs),
    )


def ceilings_table(runs: Runs) -> Table:
    """Every measured ceiling beside that of the datasheet."""
    columns = (
        Column("ceiling"),
        Column("dtype"),
        Column("GB/s", "bytes_per_s", MEASURED, gigabytes),
        Column("FLOP/s", "flop_per_s", MEASURED, si),
        Column("rows above", "rows_above", MEASURED),
        Column("datasheet GB/s", "bytes_per_s", DATASHEET, gigabytes),
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

    return table_of_runs(runs, "ceilings", "Ceilings: rates that the device cannot exceed", columns, rows)


def kernels_table(runs: Runs, *, one_rank: bool = False) -> Table:
    """Every row that was timed; of a run of several ranks those of each, or those of rank 0 alone."""
    of_ranks = not one_rank and any(map(has_ranks, runs.values()))
    columns = (
        Column("case"),
        Column("provider"),
        Column("shape", wide=True),
        Column("operations", "", MODELLED, si, wide=True),
        Column("bytes", "", MODELLED, si, wide=True),
        Column("ops:bytes", "operations_per_byte", MODELLED, three_digits, wide=True),
        Column("median", "median_s", MEASURED, seconds),
        Column("95% from", "low_s", MEASURED, seconds, wide=True),
        Column("to", "high_s", MEASURED, seconds, wide=True),
        Column("samples", "", MEASURED, wide=True),
        Column("rounds", "", MEASURED, wide=True),
        *([RANKS_RATIO] if of_ranks else []),
        Column("FLOP/s", "flop_per_s", MEASURED, rate),
        Column("GB/s", "bytes_per_s", MEASURED, gigabytes),
        Column("bound", "", MEASURED, wide=True),
        Column("of roof", "share_of_ceiling", MEASURED, percent),
        Column("above ceiling", "above_ceiling", MEASURED, lambda _: "above"),
        Column("of datasheet roof", "share", AGAINST_DATASHEET, percent, wide=True),
        Column("throttled", "", MEASURED),
        Column("DRAM read", "dram_bytes_read", COUNTERS, byte_size, wide=True),
        Column("DRAM written", "dram_bytes_written", COUNTERS, byte_size, wide=True),
        Column("DRAM over needed", "dram_over_needed", COUNTERS, three_digits, wide=True),
        Column("tensor cores active", "matrix_active_share", COUNTERS, percent, wide=True),
    )

    def rows(run: Run) -> Rows:
        measured, datasheet = run.measured, run.datasheet
        for row in run.one_rank_rows if one_rank else run.rows:
            figures = row.figures(measured, datasheet)
            if figures is not None:
                work, time_s = row.case.work(), row.time_s
                yield (
                    row.case.id, provider_name(row), shape_text(row.case),
                    work.operations, work.bytes_total, figures["operations_per_byte"],
                    time_s.median, time_s.low, time_s.high, len(row.samples_s), len(set(row.rounds)) or 1,
                    *([slowest_over_fastest(row)] if of_ranks else []),
                    figures["flop_per_s"], figures["bandwidth_bytes_per_s"], figures["bound"],
                    figures["share_of_measured_ceiling"], figures["above_measured_ceiling"] or None,
                    figures["share_of_datasheet_ceiling"],
                    ", ".join(row.throttle_reasons) or None,
                    *_counters(row.counters, work.bytes_total),
                )  # fmt: skip

    if one_rank:
        title = "Kernels of the whole model on one rank"
        return table_of_runs(runs, "one_rank_kernels", title, columns, rows)
    return table_of_runs(runs, "kernels", "Kernels that were timed", columns, rows)


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
    title = _not_timed_title(runs)
    return _gate_table(
        runs, "not_timed", title, lambda run: [row for row in _all_rows(run) if row.status != "ok"]
    )


def _not_timed_title(runs: Runs) -> str:
    what = "Kernels and collectives" if any(map(has_ranks, runs.values())) else "Kernels"
    return f"{what} that were not timed"


def _all_rows(run: Run) -> list[Row | CollectiveRow]:
    """The kernels of a run and, where it has several ranks, its collectives and the kernels of one rank."""
    return [*run.rows, *run.collectives, *run.one_rank_rows]


def interpreter_table(runs: Runs) -> Table:
    """The errors of the Triton kernels in the interpreter; no times."""
    title = "Triton kernels in the interpreter, compared with the oracle (not timed)"
    return _gate_table(runs, "interpreter_checks", title, lambda run: run.interpreter_checks)


def _gate_table(
    runs: Runs,
    table_id: str,
    title: str,
    entries: Callable[[Run], Sequence[Row | CollectiveRow | InterpreterCheck]],
) -> Table:
    columns = (
        Column("case"),
        Column("provider"),
        Column("status", show=lambda status: {"ok": "agrees", "failed": "FAILED"}.get(status, status)),
        Column("why", "reason"),
        Column("relative error", "relative_error", MEASURED, three_digits),
        Column("tolerance", "tolerance", MODELLED, three_digits),
    )

    def rows(run: Run) -> Rows:
        for entry in entries(run):
            name = provider_name(entry) if isinstance(entry, Row) else entry.provider
            yield entry.case.id, name, entry.status, entry.reason, entry.relative_error, entry.tolerance

    return table_of_runs(runs, table_id, title, columns, rows)


def not_timed_summary(run: Run) -> Table:
    """Rows that were neither timed nor failed, counted by status, provider and reason; for a terminal."""
    counts = Counter(
        (row.status, row.provider, row.reason) for row in _all_rows(run) if row.status not in {"ok", "failed"}
    )
    return Table(
        title=_not_timed_title({"": run}),
        columns=(Column("status"), Column("provider"), Column("rows"), Column("why")),
        rows=tuple((status, provider, count, reason) for (status, provider, reason), count in counts.items()),
    )


def environment_table(runs: Runs) -> Table:
    """The environment and the settings of each run, field by field."""

    def rows(run: Run) -> Rows:
        yield from _flat("environment", run.environment)
        yield from _flat("settings", run.settings)
        yield "elapsed_s", f"{run.elapsed_s:.1f}"

    columns = (Column("field"), Column("value"))
    return table_of_runs(runs, "environment", "Environment and settings", columns, rows)


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
