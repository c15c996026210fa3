"""A fleet: the runs of many devices in one table, and dollars against the tokens per second of one user."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ..core.errors import printable
from ..core.gap import Gap, Interval
from ..core.records import Run
from ..core.table import Column, Table, prose
from .chart_data import COLOURS, input_usd, output_usd, shortened
from .run_columns import AT_A_PRICE, MEASURED, Rows, bounds, interval_column, two_decimals
from .scaling import devices_text
from .trust import warnings_of

PRICE = "published or given"
"""Provenance of the price of a device-hour; its source stands beside it."""


def user_tokens_per_s(gap: Gap) -> float:
    """Output tokens per second of one of the sequences that are decoded together: 1 over a decode step."""
    return 1 / (gap.output_s_per_token * gap.batch)


def user_interval(gap: Gap) -> Interval | None:
    """The 95% interval of `user_tokens_per_s`."""
    output_s = gap.output_s_per_token_interval
    return output_s and output_s.scaled(gap.batch).inverse()


def mark(at: int) -> int:
    """The number of a series' marker: of 6 colours and 9 markers, 54 series differ in one."""
    return at + at // (3 * len(COLOURS))


@dataclass(frozen=True, kw_only=True)
class Point:
    """A gap that has a price, in the chart.

    Attributes:
        tokens_per_s: output tokens per second of one user.
        usd_per_mtok: US dollars of a million output tokens.
    """

    gap: Gap
    tokens_per_s: float
    usd_per_mtok: float


@dataclass(frozen=True, kw_only=True)
class Series:
    """The points of a run.

    Attributes:
        label: the run and its device, and its model where the runs have several.
        contexts: the points of each context, in order of batch.
    """

    run: str
    label: str
    contexts: tuple[tuple[Point, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Runs by name, and why files beside them were left out."""

    runs: Mapping[str, Run]
    left_out: Sequence[str] = ()

    @property
    def title(self) -> str:
        """How many runs of which devices, in words."""
        devices = [printable(text) for text in dict.fromkeys(map(devices_text, self.runs.values()))]
        of_devices = devices[0] if len(devices) == 1 else f"{len(devices)} devices"
        runs = "1 run" if len(self.runs) == 1 else f"{len(self.runs)} runs"
        return f"{runs} on {of_devices}"

    def table(self) -> Table:
        """A row for each gap of each run."""
        columns = (
            Column("run"),
            Column("device"),
            Column("ranks"),
            Column("TP", "tensor_parallel", wide=True),
            Column("EP", "expert_parallel", wide=True),
            Column("model", wide=True),
            Column("dtype", wide=True),
            Column("batch"),
            Column("context"),
            Column("input tokens/s", "input_tokens_per_s", MEASURED, wide=True),
            Column("input tokens/s per device", "input_tokens_per_s_per_device", MEASURED, wide=True),
            Column("output tokens/s", "output_tokens_per_s", MEASURED),
            Column("output tokens/s per device", "output_tokens_per_s_per_device", MEASURED, wide=True),
            Column("tokens/s per user", "tokens_per_s_per_user", MEASURED),
            interval_column("tokens/s per user", "tokens_per_s_per_user"),
            Column("$ per 1M input", "input_usd_per_mtok", AT_A_PRICE, wide=True),
            Column("$ per 1M output", "output_usd_per_mtok", AT_A_PRICE),
            interval_column("$ per 1M output", "output_usd_per_mtok", AT_A_PRICE),
            Column("gap", "", MEASURED, two_decimals),
            Column("$ per device-hour", "usd_per_hour", PRICE, wide=True),
            Column("price from", "usd_per_hour_source", wide=True),
        )
        rows = tuple(row for name, run in self.runs.items() for row in _rows(name, run))
        return Table(id="fleet", title="What a token costs, by run", columns=columns, rows=rows)

    def series(self) -> list[Series]:
        """The runs that have a price."""
        several = len({_model(run) for run in self.runs.values()}) > 1
        found = []
        for name, run in self.runs.items():
            if points := _points(run):
                label = ", ".join((devices_text(run), *([_model(run)] if several else [])))
                contexts = tuple(
                    tuple(same) for _, same in groupby(points, key=lambda point: point.gap.context)
                )
                found.append(Series(run=name, label=shortened(f"{name}: {label}"), contexts=contexts))
        return found

    @property
    def left_out_note(self) -> str:
        """The files that were left out, and why, in a line; empty if there are none."""
        return f"Left out, as no run file: {'; '.join(self.left_out)}." if self.left_out else ""

    def text(self, *, wide: bool) -> str:
        """The table and the notes for a terminal."""
        notes = prose("\n".join(self.notes()), wide=wide)
        return "\n\n".join(filter(None, (self.table().text(wide=wide), notes)))

    def notes(self) -> list[str]:
        """What the table and the chart lack, and what to doubt, a line each; safe to print."""
        return list(map(printable, self._notes()))

    def _notes(self) -> Iterator[str]:
        with_gaps = {name: run for name, run in self.runs.items() if run.gaps}
        if without := [name for name in self.runs if name not in with_gaps]:
            yield f"Not in the table, as no gap could be computed: {_listed(without)}."
        priced = {series.run for series in self.series()}
        if with_gaps and not priced:
            yield (
                "No price of a device is known, so there are no dollars and no chart of them; give one with "
                "decodetax run --usd-per-hour."
            )
        elif without := [name for name in with_gaps if name not in priced]:
            yield (
                "Without dollars and not in the chart, as no price of the device above $0 is known "
                f"(decodetax run --usd-per-hour): {_listed(without)}."
            )
        if len(models := dict.fromkeys(map(_model, with_gaps.values()))) > 1:
            yield f"Only runs of the same model and dtype can be compared; these are of {_listed(models)}."
        for what, names in (
            ("Ended early", [name for name, run in self.runs.items() if run.broken or run.interrupted]),
            ("With wrong results", [name for name, run in self.runs.items() if run.failures]),
            ("Not to be trusted", [name for name, run in self.runs.items() if warnings_of(run)]),
        ):
            if names:
                yield f"{what}, as decodetax report says of each: {_listed(names)}."
        if note := self.left_out_note:
            yield note


def _rows(name: str, run: Run) -> Rows:
    settings, split = run.settings, run.parallelism
    for gap in run.gaps:
        input_rate, output_rate = 1 / gap.input_s_per_token, 1 / gap.output_s_per_token
        yield (
            name, str(run.environment["device"]["name"]),
            gap.ranks, split.tensor_parallel, split.expert_parallel,
            settings["model"]["name"], run.dtype, gap.batch, gap.context,
            input_rate, input_rate / gap.ranks, output_rate, output_rate / gap.ranks,
            user_tokens_per_s(gap), bounds(user_interval(gap)),
            input_usd(gap), output_usd(gap), bounds(gap.usd_intervals[1]),
            gap.gap, gap.usd_per_hour,
            None if gap.usd_per_hour is None else settings["usd_per_hour_source"],
        )  # fmt: skip


def _points(run: Run) -> list[Point]:
    """The gaps that have a price above 0, in order of context and batch."""
    return [
        Point(gap=gap, tokens_per_s=user_tokens_per_s(gap), usd_per_mtok=usd)
        for gap in sorted(run.gaps, key=lambda gap: (gap.context, gap.batch))
        if (usd := output_usd(gap))
    ]


def _model(run: Run) -> str:
    return printable(f"{run.settings['model']['name']} in {run.dtype}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
