"""Groups of cases that a run times in each of its rounds, each with its rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from ..core.cases import Case
from ..core.records import Row
from .runner import Bench, providers_due

TIME_OVER = " was over"
"""End of the reason of a row that the time limit left out; a run that continues measures such rows."""

RunCase = Callable[[Case, Bench, Mapping[str, Row]], Iterator[Row]]


class CaseGroup(Protocol):
    """Cases that are timed in the same way, and the list that their rows go to."""

    rows: list[Any]

    def due(self, bench: Bench) -> Sequence[Any]:
        """The cases with something to time in the round of `bench`."""

    def calls_s(self, case: Any, bench: Bench) -> Iterator[float]:
        """Expected seconds of a call of each provider of a case that is due."""

    def time(self, case: Any, bench: Bench) -> Iterator[Any]:
        """Time what is due of a case; a row for each provider in turn."""

    def skip_rest(self, bench: Bench, limit: str) -> None:
        """Give what has no row yet one that says that the time was over."""


def skip_rest(groups: Sequence[CaseGroup], bench: Bench, limit: str) -> None:
    """Give what has no row yet one that says that the time was over."""
    for group in groups:
        group.skip_rest(bench, limit)


def drop_late(rows: list[Any]) -> None:
    """Take away the rows that the time limit left out."""
    rows[:] = [row for row in rows if not (row.reason or "").endswith(TIME_OVER)]


class Kernels:
    """The kernels of a model.

    Args:
        cases: the cases, in the order in which they are timed.
        rows: the rows so far, to which those of each round are merged.
        run_case: runs the providers of a case.
    """

    def __init__(self, cases: Sequence[Case], rows: list[Row], run_case: RunCase) -> None:
        self.cases, self.rows, self._run_case = cases, rows, run_case

    def due(self, bench: Bench) -> Sequence[Case]:
        """The cases with a provider to time in the round of `bench`."""
        return [case for case in self.cases if providers_due(case, bench, self._rows_of(case))]

    def calls_s(self, case: Case, bench: Bench) -> Iterator[float]:
        """Expected seconds of a call of each provider that is due: as earlier, or twice the minimum."""
        roofline, earlier = bench.roof.roofline_time_s(case.work()), self._rows_of(case)
        for provider in providers_due(case, bench, earlier):
            if provider.name in earlier:
                yield earlier[provider.name].time_s.median
            elif provider.refuses(case, bench.device) is None:
                yield 2 * roofline[0] if roofline else 0.0

    def time(self, case: Case, bench: Bench) -> Iterator[Row]:
        """Time the providers of a case that are due; a row for each in turn."""
        return self._run_case(case, bench, self._rows_of(case))

    def skip_rest(self, bench: Bench, limit: str) -> None:
        """Give the cases without rows one that says that the time was over."""
        for case in self.cases:
            present = self._rows_of(case)
            for provider in providers_due(case, bench, present):
                if provider.name not in present:
                    reason = provider.refuses(case, bench.device)
                    row = Row(
                        case=case,
                        provider=provider.name,
                        status="skipped" if reason is None else "unsupported",
                        reason=reason or f"{limit}{TIME_OVER}",
                    )
                    self.rows.append(row)

    def _rows_of(self, case: Case) -> dict[str, Row]:
        return {row.provider: row for row in self.rows if row.case == case}


def merge_row(rows: list[Any], found: Any) -> None:
    """Merge a row of one round into that of earlier rounds, or add it."""
    for place, row in enumerate(rows):
        if (row.case, row.provider) == (found.case, found.provider):
            rows[place] = row.with_round(found)
            return
    rows.append(found)
