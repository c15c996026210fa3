"""The tables that a run of several ranks has besides: its rates per device, collectives and links."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from msgspec import UnsetType

from ..core.collectives import LATENCY_BYTES, CollectiveRow
from ..core.records import Row, Run
from ..core.table import Column, Table, percent
from ..core.units import number, seconds
from .chart_data import input_usd, output_usd
from .run_columns import (
    AGAINST_DATASHEET,
    AT_A_PRICE,
    MEASURED,
    Rows,
    Runs,
    bounds,
    gigabytes,
    interval_column,
    table_of_runs,
    two_decimals,
)
from .scaling import (
    communication_shares,
    link_bytes_per_s,
    one_rank_gap,
    scaling_efficiencies,
    scaling_intervals,
)

RANKS_RATIO = Column("slowest over fastest rank", "", MEASURED, two_decimals, wide=True)


def has_ranks(run: Run) -> bool:
    """Whether several ranks share the model."""
    return run.parallelism.gpus > 1


def rank_tables(runs: Runs) -> tuple[Table, ...]:
    """The tables of those runs that have several ranks; none if all have one."""
    if not any(map(has_ranks, runs.values())):
        return ()
    return deployment_table(runs), collectives_table(runs), links_table(runs)


def slowest_over_fastest(row: Row) -> float | None:
    """Median seconds of the slowest rank over those of the fastest, at the median round; None on one rank."""
    if isinstance(row.ranks_s, UnsetType):
        return None
    return statistics.median(max(ranks_s) / min(ranks_s) for ranks_s in row.ranks_s)


def message_size(size_bytes: float) -> str:
    """Bytes of a message as people write them: 8 KiB."""
    for name, unit in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size_bytes >= unit:
            return f"{number(size_bytes / unit, 3)} {name}"
    return f"{size_bytes} B"


def collective_name(row: CollectiveRow) -> str:
    """The collective as the field writes it: all-reduce."""
    return row.case.kind.replace("_", "-")


def deployment_table(runs: Runs) -> Table:
    """What all ranks do together, a device's part of it, and how that compares with one rank."""
    columns = (
        Column("batch"),
        Column("context"),
        Column("ranks", wide=True),
        Column("input tokens/s", "input_tokens_per_s", MEASURED, wide=True),
        Column("input tokens/s per device", "input_tokens_per_s_per_device", MEASURED),
        Column("output tokens/s", "output_tokens_per_s", MEASURED, wide=True),
        Column("output tokens/s per device", "output_tokens_per_s_per_device", MEASURED),
        Column("$ per 1M input", "input_usd_per_mtok", AT_A_PRICE, wide=True),
        Column("$ per 1M input, one device", "input_usd_per_mtok_per_device", AT_A_PRICE, wide=True),
        Column("$ per 1M output", "output_usd_per_mtok", AT_A_PRICE, wide=True),
        Column("$ per 1M output, one device", "output_usd_per_mtok_per_device", AT_A_PRICE, wide=True),
        Column("communication, input", "input_communication_share", MEASURED, percent, wide=True),
        Column("communication, output", "output_communication_share", MEASURED, percent),
        Column("scaling efficiency, input", "input_scaling_efficiency", MEASURED, percent),
        Column("scaling efficiency, output", "output_scaling_efficiency", MEASURED, percent),
        _percent_interval("input"),
        _percent_interval("output"),
        Column("one rank, input tokens/s", "one_rank_input_tokens_per_s", MEASURED, wide=True),
        Column("one rank, output tokens/s", "one_rank_output_tokens_per_s", MEASURED, wide=True),
        Column("one rank, gap", "one_rank_gap", MEASURED, two_decimals, wide=True),
    )

    def rows(run: Run) -> Rows:
        for gap in run.gaps if has_ranks(run) else ():
            rates = 1 / gap.input_s_per_token, 1 / gap.output_s_per_token
            dollars = input_usd(gap), output_usd(gap)
            one = one_rank_gap(run, gap)
            yield (
                gap.batch, gap.context, gap.ranks,
                rates[0], rates[0] / gap.ranks, rates[1], rates[1] / gap.ranks,
                dollars[0], dollars[0] and dollars[0] / gap.ranks,
                dollars[1], dollars[1] and dollars[1] / gap.ranks,
                *communication_shares(gap), *scaling_efficiencies(run, gap),
                *map(bounds, scaling_intervals(run, gap)),
                *((None,) * 3 if one is None else
                  (1 / one.input_s_per_token, 1 / one.output_s_per_token, one.gap)),
            )  # fmt: skip

    return table_of_runs(runs, "deployment", "All ranks together, and each device", columns, rows)


def _percent_interval(side: str) -> Column:
    """The column of the interval of a scaling efficiency."""
    name = f"scaling efficiency, {side}"
    return replace(interval_column(name, f"{side}_scaling_efficiency"), show=percent)


def collectives_table(runs: Runs) -> Table:
    """Every collective that was timed at a message size of prefill or decode."""
    columns = (
        Column("phase"),
        Column("collective"),
        Column("ranks", wide=True),
        Column("message", "message_bytes", show=message_size),
        Column("provider"),
        Column("median", "median_s", MEASURED, seconds),
        Column("95% from", "low_s", MEASURED, seconds, wide=True),
        Column("to", "high_s", MEASURED, seconds, wide=True),
        Column("samples", "", MEASURED, wide=True),
        Column("rounds", "", MEASURED, wide=True),
        *_bandwidths(wide=True),
        Column("skew", "skew_s", MEASURED, seconds),
    )

    def row(row: CollectiveRow, link: float | None) -> tuple[Any, ...]:
        time_s = row.time_s
        return (
            row.case.phase, collective_name(row), row.case.ranks, row.case.message_bytes, row.provider,
            time_s.median, time_s.low, time_s.high, len(row.samples_s), len(set(row.rounds)),
            *_bandwidth_values(row, link), row.skew_s,
        )  # fmt: skip

    title = "Collectives: what the ranks exchange, by the slowest rank"
    return table_of_runs(runs, "collectives", title, columns, _rows_of(row, of_link=False))


def links_table(runs: Runs) -> Table:
    """The link between the ranks: its latency, and its bandwidth by message size."""
    columns = (
        Column("message", "message_bytes", show=message_size),
        Column("collective"),
        Column("provider"),
        Column("latency", "latency_s", MEASURED, seconds),
        Column("median", "median_s", MEASURED, seconds),
        *_bandwidths(wide=False),
        Column("skew", "skew_s", MEASURED, seconds, wide=True),
    )

    def row(row: CollectiveRow, link: float | None) -> tuple[Any, ...]:
        size, median_s = row.case.message_bytes, row.time_s.median
        return (
            size, collective_name(row), row.provider, median_s if size == LATENCY_BYTES else None, median_s,
            *_bandwidth_values(row, link), row.skew_s,
        )  # fmt: skip

    title = f"Link between the ranks; its latency is the time of {message_size(LATENCY_BYTES)}"
    return table_of_runs(runs, "links", title, columns, _rows_of(row, of_link=True))


def _bandwidths(*, wide: bool) -> tuple[Column, ...]:
    """Columns of `_bandwidth_values`; `wide` is about the algorithm bandwidth."""
    return (
        Column("algorithm GB/s", "algorithm_bytes_per_s", MEASURED, gigabytes, wide=wide),
        Column("bus GB/s", "bus_bytes_per_s", MEASURED, gigabytes),
        Column("of the link", "share_of_link", AGAINST_DATASHEET, percent),
    )


def _bandwidth_values(row: CollectiveRow, link: float | None) -> tuple[float | None, ...]:
    bus = row.bus_bytes_per_s
    return row.algorithm_bytes_per_s, bus, None if link is None else bus / link


def _rows_of(
    row_of: Callable[[CollectiveRow, float | None], tuple[Any, ...]], *, of_link: bool
) -> Callable[[Run], Rows]:
    """The rows of the ok collectives of a run, those of the link or the others."""

    def rows(run: Run) -> Rows:
        link = link_bytes_per_s(run)
        for row in run.collectives:
            if row.status == "ok" and (row.case.phase == "link") == of_link:
                yield row_of(row, link)

    return rows
