"""What the tables of runs share: provenances, how figures are shown, and a table of several runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from ..core.gap import Interval
from ..core.records import Run
from ..core.table import Column, Table
from ..core.units import number, si

MEASURED, MODELLED, DATASHEET, PUBLISHED = "measured", "modelled", "datasheet", "published"
AGAINST_DATASHEET = "measured over datasheet"
AT_A_PRICE = "measured, at the price of the device"
COUNTERS = "measured by hardware counters"

Runs = Mapping[str, Run]
Rows = Iterator[tuple[Any, ...]]

two_decimals = "{:,.2f}".format
three_digits = partial(number, digits=3)
rate = partial(si, digits=3)


def gigabytes(bytes_per_s: float) -> str:
    """Bytes per second as GB/s, without the unit."""
    return number(bytes_per_s / 1e9, 3)


def byte_size(value: float) -> str:
    """A number of bytes."""
    return f"{si(value)}B"


def table_of_runs(
    runs: Runs, table_id: str, title: str, columns: Sequence[Column], rows_of: Callable[[Run], Rows]
) -> Table:
    """A table of the rows of each run; with several runs, the first column has their names."""
    several = len(runs) > 1
    return Table(
        id=table_id,
        title=title,
        columns=(*([Column("run")] if several else []), *columns),
        rows=tuple(
            (*([name] if several else []), *row) for name, run in runs.items() for row in rows_of(run)
        ),
    )


def interval_column(heading: str, name: str, provenance: str = MEASURED) -> Column:
    """The column of the 95% interval of a figure."""
    shown = f"95% interval, {heading}" if heading else "95% interval"
    return Column(shown, name, provenance, three_digits, wide=True, interval=True)


def bounds(interval: Interval | None) -> tuple[float, float] | None:
    """A value of such a column."""
    return None if interval is None else interval.bounds
