"""Runs and times on all ranks together: rank 0 conducts, the others follow its commands.

Rank 0 takes every decision (rounds, budgets, what is due), so that ranks never part. A command is broadcast,
each rank executes it, and the results are gathered on rank 0, which merges them:

- A kernel starts on all ranks together, and has the samples of the slowest rank in each round.
- A ceiling is measured on all ranks together, and has the rate of the slowest: with the roof of a faster
  rank, no kernel of the slowest could reach it.
- A row fails if it fails on one rank; its reason then begins with the rank.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ..core.arena import Arena
from ..core.cases import Case
from ..core.collectives import Collective, CollectiveRow
from ..core.errors import FailureError
from ..core.records import Ceiling, Roof, Row, Run
from ..core.sweep import cases_of, collectives_of
from .case_groups import TIME_OVER, CaseGroup, Kernels
from .ceilings import measure_ceilings, time_again
from .collective_groups import Groups
from .collective_providers import providers_of
from .collectives import link_collectives, run_collective
from .load import LoadPoint, load_point
from .providers import Provider, user_providers
from .rank_merging import merged_row, one_rank_sweep, slowest_ceiling
from .ranks import Ranks
from .run_settings import Settings
from .runner import Bench, arena_of, run_case
from .timer import Budget

NO_ROOF = Roof(flop_per_s=None, bandwidth_bytes_per_s=None)


@dataclass
class Share:
    """What one rank holds from one command to the next.

    Attributes:
        ranks: this rank, and messages to the others.
        arena: holds inputs on its device.
        bench: its gates and whatever else cases leave behind; None until the first case.
    """

    ranks: Ranks
    arena: Arena | None = None
    bench: Bench | None = None
    own: Mapping[str, Sequence[Provider]] = field(default_factory=dict)
    groups: Groups | None = None

    def the_arena(self) -> Arena:
        """The arena, which the first command makes."""
        if self.arena is None:
            raise RuntimeError("no arena was made yet")
        return self.arena

    def the_bench(self) -> Bench:
        """Where kernels run."""
        if self.bench is None:
            self.bench = Bench(
                device=self.ranks.device,
                arena=self.the_arena(),
                budget=Budget(time_limit_s=0.0, warm_up_s=0.0),
                roof=NO_ROOF,
                user_providers=self.own,
            )
        return self.bench


class Command(Protocol):
    """What all ranks execute together; its answers are gathered on rank 0."""

    def run(self, share: Share) -> Any:
        """Execute it on this rank."""


@dataclass(frozen=True, kw_only=True)
class MakeArena:
    """Make the arena for the cases of a run in a dtype, also for those of one rank alone."""

    settings: Settings
    dtype: str

    def run(self, share: Share) -> None:
        """Replaces an earlier arena, of a narrower dtype."""
        share.arena = share.bench = None
        share.ranks.device.release()
        settings, sweep = self.settings, self.settings.sweep(self.dtype)
        alone = one_rank_sweep(settings.model, sweep, share.ranks.device.free_bytes())
        cases = [*cases_of(settings.model, sweep), *(cases_of(settings.model, alone) if alone else ())]
        share.arena = arena_of(cases, share.ranks.device, settings.seed)
        share.own = share.own or user_providers(settings.providers)


@dataclass(frozen=True, kw_only=True)
class MeasureCeilings:
    """Measure all ceilings of this rank's device, each beside those of the other ranks."""

    time_limit_s: float

    def run(self, share: Share) -> list[tuple[str, Ceiling]]:
        """The ceilings by name."""
        found = []
        share.ranks.barrier()
        for named in measure_ceilings(share.ranks.device, share.the_arena(), time_limit_s=self.time_limit_s):
            found.append(named)
            share.ranks.barrier()
        return found


@dataclass(frozen=True, kw_only=True)
class TimeCeilingAgain:
    """Time a ceiling in a later round."""

    ceiling: Ceiling
    budget: Budget
    number: int

    def run(self, share: Share) -> Ceiling:
        """The ceiling with samples of this rank."""
        share.ranks.barrier()
        return time_again(
            self.ceiling, share.ranks.device, share.the_arena(), self.budget, number=self.number
        )


@dataclass(frozen=True, kw_only=True)
class TimeKernel:
    """Run the providers of a case that are due, each on all ranks at the same time.

    Attributes:
        case: what to run.
        earlier: rows of earlier rounds, by provider.
        bench: fields of rank 0's `Bench` that hold for all ranks.
        tiling: the tuned tiling of the case.
    """

    case: Case
    earlier: Mapping[str, Row]
    bench: Mapping[str, Any]
    tiling: Any

    def run(self, share: Share) -> list[Row]:
        """This rank's rows."""
        bench = replace(
            share.the_bench(),
            **self.bench,
            tiling_of=lambda _case: self.tiling,
            together=share.ranks.barrier,
        )
        return list(run_case(self.case, bench, self.earlier))


@dataclass(frozen=True, kw_only=True)
class TimeCollective:
    """Run the providers of a collective that are due."""

    case: Collective
    earlier: Mapping[str, CollectiveRow]
    budget: Budget
    number: int

    def run(self, share: Share) -> list[CollectiveRow]:
        """The rows, the same on all ranks."""
        share.groups = share.groups or Groups(share.ranks)
        return run_collective(self.case, share.groups, self.budget, number=self.number, earlier=self.earlier)


@dataclass(frozen=True)
class CheckArena:
    """Look whether the arena holds its numbers, and put them back if not."""

    def run(self, share: Share) -> bool:
        """Whether it held them."""
        bench = share.the_bench()
        intact = bench.arena.intact()
        if not intact:
            bench.refill()
        return intact


@dataclass(frozen=True)
class ReadLoad:
    """Read what the cores and each rank's process have done."""

    def run(self, share: Share) -> LoadPoint:
        """This rank's point."""
        del share
        return load_point()


@dataclass(frozen=True)
class End:
    """The run is complete."""

    def run(self, share: Share) -> None:
        """Nothing: the ranks then leave the group."""


def follow(ranks: Ranks) -> None:
    """Execute rank 0's commands until the run is complete.

    Raises:
        RankLostError: a rank was lost.
    """
    share, command = Share(ranks), None
    while not isinstance(command, End):
        command = ranks.receive()
        ranks.gather(command.run(share))


class AllRanks:
    """An `Executor` of all ranks; on rank 0.

    Args:
        ranks: the ranks.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.device, self._ranks = ranks.device, ranks
        self._share, self._ended = Share(ranks), False

    def arena(self, settings: Settings, dtype: str) -> Arena:
        """The arena for the cases of a run in a dtype: rank 0's."""
        self._on_all(MakeArena(settings=settings, dtype=dtype))
        return self._share.the_arena()

    def measure_ceilings(self, arena: Arena, *, time_limit_s: float) -> Iterator[tuple[str, Ceiling]]:
        """Measure the ceilings of all ranks together; of each, that of the slowest rank."""
        del arena
        for same in zip(*self._on_all(MeasureCeilings(time_limit_s=time_limit_s)), strict=True):
            yield same[0][0], slowest_ceiling([ceiling for _, ceiling in same])

    def time_again(self, ceiling: Ceiling, arena: Arena, budget: Budget, *, number: int) -> Ceiling:
        """Time a ceiling in a later round; the samples are those of the slowest rank."""
        del arena
        known = len(ceiling.samples_s)
        again: list[Ceiling] = self._on_all(TimeCeilingAgain(ceiling=ceiling, budget=budget, number=number))
        return max(again, key=lambda found: min(found.samples_s[known:], default=float("inf")))

    def groups(self, result: Run, settings: Settings, bench: Bench) -> Sequence[CaseGroup]:
        """The kernels of a rank's share, the collectives, and the kernels of one rank alone, if that fits."""
        model, sweep = settings.model, settings.sweep(result.dtype)
        self._share.bench = bench
        collectives = (
            *collectives_of(model, sweep),
            *link_collectives(self._ranks.size, settings.link_bytes),
        )
        found: list[CaseGroup] = [
            Kernels(cases_of(model, sweep), result.rows, self.run_case),
            _Collectives(collectives, result.collectives, self._on_all, self._ranks.backend),
        ]
        free = self.device.free_bytes() + bench.arena.size_bytes
        if alone := one_rank_sweep(model, sweep, free):
            found.append(Kernels(cases_of(model, alone), result.one_rank_rows, run_case))
        return found

    def run_case(self, case: Case, bench: Bench, earlier: Mapping[str, Row]) -> Iterator[Row]:
        """A row for each provider of a case in turn, merged over the ranks."""
        same = ("budget", "roof", "longest_call_s", "round", "last_round", "arena_altered")
        command = TimeKernel(
            case=case,
            earlier=earlier,
            bench={name: getattr(bench, name) for name in same},
            tiling=bench.tiling_of(case),
        )
        for rows in zip(*self._on_all(command), strict=True):
            yield merged_row(rows)

    def arenas_intact(self, bench: Bench) -> bool:
        """Whether every rank's arena holds its numbers; those that do not are put back."""
        del bench
        return all(self._on_all(CheckArena()))

    def load_point(self) -> LoadPoint | None:
        """What the cores and all ranks on this host have done up to now; None after an error."""
        points: list[LoadPoint] = []
        if not self._ended:
            with contextlib.suppress(FailureError):
                points = self._on_all(ReadLoad())
        peers = self._ranks.peers
        here = [point for point, peer in zip(points, peers, strict=False) if peer.host == peers[0].host]
        return replace(here[0], own_s=sum(point.own_s for point in here)) if here else None

    def loss(self) -> str | None:
        """The rank that was lost and why, in one line; None if none was. Ends the other ranks."""
        self._ended = True
        lost = self._ranks.loss()
        return None if lost is None else str(lost)

    def close(self) -> None:
        """End all ranks after a complete run."""
        with contextlib.suppress(FailureError):
            self._on_all(End())
            self._ranks.watch.disarm()
            self._ranks.close()

    def _on_all(self, command: Command) -> list[Any]:
        """Execute a command on all ranks; their answers in order."""
        self._ranks.broadcast(command)
        return self._ranks.gather(command.run(self._share)) or []


class _Collectives:
    """The collectives of a run, as a group of cases."""

    def __init__(
        self,
        cases: Sequence[Collective],
        rows: list[CollectiveRow],
        on_all: Callable[[Command], list[Any]],
        backend: str,
    ) -> None:
        self.cases, self.rows, self._on_all, self._backend = cases, rows, on_all, backend

    def due(self, bench: Bench) -> Sequence[Collective]:
        """The cases with a provider to time in the round of `bench`."""
        return [case for case in self.cases if self._due(case, bench)]

    def calls_s(self, case: Collective, bench: Bench) -> Iterator[float]:
        """Expected seconds of a call of each provider that is due, as earlier."""
        rows = self._rows_of(case)
        for name in self._due(case, bench):
            yield rows[name].time_s.median if name in rows else 0.0

    def time(self, case: Collective, bench: Bench) -> Iterator[CollectiveRow]:
        """Time the providers of a case that are due."""
        command = TimeCollective(
            case=case, earlier=self._rows_of(case), budget=bench.budget, number=bench.round
        )
        yield from self._on_all(command)[0]

    def skip_rest(self, bench: Bench, limit: str) -> None:
        """Give what has no row yet one that says that the time was over."""
        for case in self.cases:
            present = self._rows_of(case)
            for name in self._due(case, bench):
                if name not in present:
                    reason = f"{limit}{TIME_OVER}"
                    self.rows.append(CollectiveRow(case=case, provider=name, status="skipped", reason=reason))

    def _due(self, case: Collective, bench: Bench) -> Sequence[str]:
        rows = self._rows_of(case)
        return [
            provider.name
            for provider in providers_of(self._backend)
            if (row := rows.get(provider.name)) is None
            or (row.status == "ok" and bench.round not in row.rounds)
        ]

    def _rows_of(self, case: Collective) -> dict[str, CollectiveRow]:
        return {row.provider: row for row in self.rows if row.case == case}
