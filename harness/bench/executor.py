"""What a run runs on: this process (`session.OneProcess`), or all ranks (`rank_executor.AllRanks`)."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from ..core.arena import Arena
from ..core.records import Ceiling, Run
from .case_groups import CaseGroup
from .device import Device
from .load import LoadPoint
from .run_settings import Settings
from .runner import Bench
from .timer import Budget


class Executor(Protocol):
    """Runs and times on each device of a run.

    Attributes:
        device: that of this process.
    """

    device: Device

    def arena(self, settings: Settings, dtype: str) -> Arena:
        """The arena for the cases of a run in a dtype."""

    def measure_ceilings(self, arena: Arena, *, time_limit_s: float) -> Iterator[tuple[str, Ceiling]]:
        """Measure one ceiling after another, as `ceilings.measure_ceilings`."""

    def time_again(self, ceiling: Ceiling, arena: Arena, budget: Budget, *, number: int) -> Ceiling:
        """Time a ceiling in a later round, as `ceilings.time_again`."""

    def groups(self, result: Run, settings: Settings, bench: Bench) -> Sequence[CaseGroup]:
        """What is timed in each round."""

    def arenas_intact(self, bench: Bench) -> bool:
        """Whether every arena holds its numbers."""

    def load_point(self) -> LoadPoint | None:
        """What the cores and this run's processes on this host have done up to now; None if unknown."""

    def loss(self) -> str | None:
        """After an error or a signal: in one line which part of the run was lost; None if none was."""
