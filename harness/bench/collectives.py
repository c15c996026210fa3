"""Runs collectives on all ranks in step: each provider is checked, then timed, and checked again.

What is timed: one call of a provider, on a message that lies in its memory as a matmul has just written it.
An all-reduce in place gets its addend anew before each sample, outside of the time. All ranks start together:
an untimed barrier comes before each sample, on GPUs an all-reduce of one element in the stream's order. A
sample is the time of its slowest rank. Small messages on GPUs are sent several times in one sample.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ..core.collectives import LATENCY_BYTES, Collective, CollectiveRow, collective
from ..core.inputs import DTYPES
from ..core.statistics import summarise
from .collective_gate import DRAWN, bound_of, drawn, verdict_of
from .collective_groups import Group, Groups
from .collective_providers import CollectiveProvider, Exchange, providers_of
from .runner import Blocked
from .timer import GRAPH_CALLS, SETTLED, Budget

LINK_BYTES: Mapping[str, Sequence[int]] = {
    "cpu": (LATENCY_BYTES, 2**16, 2**19, 2**22, 2**24),
    "cuda": (LATENCY_BYTES, 2**16, 2**19, 2**22, 2**25, 2**28, 2**30),
}
"""Message sizes that show the link's latency and its bandwidth."""

QUICK_LINK_BYTES: Mapping[str, Sequence[int]] = {
    "cpu": (LATENCY_BYTES, 2**19, 2**22),
    "cuda": (LATENCY_BYTES, 2**22, 2**30),
}
"""Those of a quick run."""

LINK_DTYPE = "bf16"
"""Dtype of the link's messages: that of most models. Symmetric memory adds up bf16 and float32 alone."""

SAMPLE_BYTES = 2**26
"""On a GPU a sample sends a message up to `GRAPH_CALLS` times, as long as all of them are not larger than
this: one call alone may be as short as 20 times the resolution of an event."""

LEAST_S = 0.02
"""Seconds of sampling even where a round leaves less: the other steps of a row take about as long."""

RELEASED_BYTES = 2**29
"""Memory of a message above which it is returned afterwards."""

WARM_UP_CALLS, BLOCK_SAMPLES = 5, 50
"""Calls between two decisions of rank 0 in the warm-up, and most samples between two."""


def link_collectives(ranks: int, sizes: Sequence[int]) -> tuple[Collective, ...]:
    """All-reduces of messages of these bytes, which measure the link between ranks; none for one rank."""
    if ranks == 1:
        return ()
    width = DTYPES[LINK_DTYPE].itemsize
    return tuple(collective("all_reduce", "link", size // width, ranks, LINK_DTYPE) for size in sizes)


def run_collective(
    case: Collective,
    groups: Groups,
    budget: Budget,
    *,
    number: int = 0,
    earlier: Mapping[str, CollectiveRow] = MappingProxyType({}),
    providers: Sequence[CollectiveProvider] | None = None,
    now_s: Callable[[], float] = time.perf_counter,
) -> list[CollectiveRow]:
    """Run the providers of a collective; all ranks call it together.

    Args:
        case: what to run; its ranks divide the number of all ranks, and all such groups exchange at once.
        groups: the groups of ranks.
        budget: limits of each row's samples in this round; rank 0's counts.
        number: of the run's round, from 0; rank 0's counts.
        earlier: rows of earlier rounds by provider; rank 0's count. A provider that was not ok, or that has
            samples of this round, is left out.
        providers: who runs it; None means the backend and symmetric memory.
        now_s: the wall clock in seconds, for the limits only.

    Returns:
        A row for each provider that is due, the same on all ranks, with the samples of this round.

    Raises:
        RankLostError: a rank was lost, or a collective never ends on a GPU.
    """
    ranks = groups.ranks
    providers = providers_of(ranks.backend) if providers is None else providers
    due = [p.name for p in providers if p.name not in earlier or _goes_on(earlier[p.name], number)]
    due, known, number = ranks.broadcast((due, [*earlier], number))
    rows = []
    for provider in providers:
        if provider.name in due:
            run = _Run(case, provider, groups, first=provider.name not in known)
            rows.append(run.row(budget, number, now_s))
            del run
            if needed_bytes(case, 1) > RELEASED_BYTES:
                ranks.device.release()  # the next large message needs the memory
    return rows


def _goes_on(row: CollectiveRow, number: int) -> bool:
    return row.status == "ok" and number not in row.rounds


class _Run:
    """One provider of a collective on this rank, in one round.

    Args:
        case: what to run.
        provider: who runs it.
        groups: the groups of ranks.
        first: whether it has no samples of an earlier round.
    """

    _group: Group
    _exchange: Exchange

    def __init__(
        self, case: Collective, provider: CollectiveProvider, groups: Groups, *, first: bool
    ) -> None:
        self._case, self._provider, self._groups, self._first = case, provider, groups, first
        self._ranks, self._device = groups.ranks, groups.ranks.device
        self._calls = calls_a_sample(case, self._device.kind)

    def row(self, budget: Budget, number: int, now_s: Callable[[], float]) -> CollectiveRow:
        """The row of this round."""
        row = functools.partial(CollectiveRow, case=self._case, provider=self._provider.name)
        try:
            self._groups.together(self._require_possible)
            self._groups.together(self._allocate)
            self._groups.together(self._bind, first=True)
            [first_s, *_] = self._groups.together(self._call_first, first=True)
            if self._first:
                self._require_right()
            samples_s, skew_s = self._sampled(budget, first_s, now_s)
            error = self._require_right()
        except Blocked as blocked:
            return row(status=blocked.status, reason=blocked.reason)
        except _WrongResultError as wrong:
            return row(
                status="failed", reason=str(wrong), relative_error=wrong.error, tolerance=bound_of(self._case)
            )
        return row(
            status="ok",
            relative_error=error,
            tolerance=bound_of(self._case),
            samples_s=samples_s,
            rounds=(number,) * len(samples_s),
            skew_s=skew_s,
            method=self._method,
        )

    def _require_possible(self) -> None:
        """Make the group; raise Blocked if the provider refuses the case or this machine lacks the memory."""
        self._group = self._groups.of(self._case.ranks)
        refusal = self._provider.refuses(self._case, self._group)
        if refusal is not None:
            raise Blocked("unsupported", refusal)
        needed, free = needed_bytes(self._case, self._calls), self._device.free_bytes()
        if self._device.kind == "cpu":
            needed *= self._groups.local_ranks
        if needed > free:
            raise Blocked("skipped", f"needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free")

    def _allocate(self) -> None:
        case, group = self._case, self._group
        self._x = drawn(case, group.rank, group.device, 0, case.input_elements)
        self._memory = self._provider.buffers(case, group, self._calls)

    def _bind(self) -> None:
        self._exchange = self._provider.bind(self._case, self._group, self._x, self._memory)

    def _poison(self) -> None:
        """Fill the outputs with NaN; where they are the inputs too, these are put back before each sample."""
        for output in self._exchange.outputs:
            output.fill_(math.nan)

    def _call_first(self) -> float:
        """Seconds of the first call, which connects the ranks; its output is judged."""
        self._poison()
        [first_s] = self._timed(1)
        return first_s

    def _timed(self, samples: int) -> list[float]:
        """Seconds of each sample on this rank."""
        return self._device.time_each(
            [self._sample] * samples, before=self._start_together, limit_s=self._ranks.timeout_s
        )

    def _sample(self) -> None:
        for call in self._exchange.calls:
            call()

    def _start_together(self) -> None:
        self._exchange.restore()
        self._groups.align()

    def _sampled(
        self, budget: Budget, first_s: float, now_s: Callable[[], float]
    ) -> tuple[tuple[float, ...], float]:
        """Seconds of a call in each sample on its slowest rank, and the median of slowest minus fastest.

        Raises:
            Blocked: a rank failed.
        """
        self._groups.together(lambda: self._device.size_head_start(self._sample))
        plan = _plan(budget, first_s, now_s) if self._ranks.rank == 0 else None
        slowest: list[float] = []
        skews: list[float] = []
        before, block = _Block(samples=0, kept=False), self._ranks.broadcast(plan and next(plan))
        while block is not None:
            if block.kept and not before.kept:
                self._poison()  # so that the gate finds samples that exchange nothing
            taken = self._groups.together(functools.partial(self._timed, block.samples))
            block_s = [max(ranks_s) for ranks_s in zip(*taken, strict=True)]
            if block.kept:
                slowest += block_s
                skews += [max(ranks_s) - min(ranks_s) for ranks_s in zip(*taken, strict=True)]
            before, block = block, self._ranks.broadcast(plan and _next_block(plan, block_s))
        self._device.timed_s += math.fsum(slowest)
        return tuple(s / self._calls for s in slowest), statistics.median(skews) / self._calls

    def _require_right(self) -> float:
        """The relative error of the worst rank.

        Raises:
            _WrongResultError: it is beyond the bound.
        """
        verdicts = self._groups.together(
            lambda: verdict_of(self._case, self._group.rank, self._exchange.outputs)
        )
        rank = max(range(len(verdicts)), key=lambda each: verdicts[each].relative_error)
        if not verdicts[rank].passed:
            raise _WrongResultError(f"rank {rank}: {verdicts[rank].reason}", verdicts[rank].relative_error)
        return verdicts[rank].relative_error

    @property
    def _method(self) -> str:
        kind = self._device.kind
        if self._calls == 1:
            return f"{kind}: each call, of its slowest rank"
        return f"{kind}: mean of {self._calls} calls one after another, of its slowest rank"


class _WrongResultError(Exception):
    """The worst rank's result is wrong, with its relative error."""

    def __init__(self, reason: str, error: float) -> None:
        super().__init__(reason)
        self.error = error


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Samples to take before rank 0 decides again; kept, or of the warm-up."""

    samples: int
    kept: bool


_Plan = Generator[_Block, Sequence[float], None]
"""Yields blocks, and is sent the seconds of each sample of the last one on its slowest rank."""


def _plan(budget: Budget, first_s: float, now_s: Callable[[], float]) -> _Plan:
    """Blocks of a round: a warm-up until samples settle; samples until time is up or the noise is low."""
    start_s, median_s = now_s(), first_s
    while now_s() - start_s < budget.warm_up_s:
        before_s = median_s
        fitting = int((budget.warm_up_s - (now_s() - start_s)) / max(median_s, 1e-9))
        block_s = yield _Block(samples=min(WARM_UP_CALLS, max(1, fitting)), kept=False)
        median_s = statistics.median(block_s)
        if abs(median_s - before_s) < SETTLED * before_s:
            break
    start_s, samples, next_look = now_s(), list[float](), budget.enough_samples
    limit_s = max(budget.time_limit_s, LEAST_S)
    while len(samples) < budget.max_samples:
        spent_s = now_s() - start_s
        each_s = spent_s / len(samples) if samples else median_s
        fitting = int((limit_s - spent_s) / max(each_s, 1e-9))
        wanted = min(next_look, budget.max_samples) - len(samples)
        samples += yield _Block(samples=max(1, min(wanted, fitting, BLOCK_SAMPLES)), kept=True)
        if now_s() - start_s >= limit_s and len(samples) >= budget.min_samples:
            break
        if len(samples) >= next_look:
            next_look = 2 * len(samples)
            summary = summarise(samples)
            if summary.high - summary.low < 2 * budget.noise * summary.median:
                break


def _next_block(plan: _Plan, block_s: Sequence[float]) -> _Block | None:
    """The next block of a plan; None if there is none."""
    try:
        return plan.send(block_s)
    except StopIteration:
        return None


def calls_a_sample(case: Collective, device_kind: str) -> int:
    """Calls that one sample times: several on a GPU where messages are small, see `SAMPLE_BYTES`."""
    if device_kind == "cpu":
        return 1
    return max(1, min(GRAPH_CALLS, SAMPLE_BYTES // case.message_bytes))


def needed_bytes(case: Collective, calls: int) -> int:
    """Most bytes a rank needs: its input, twice while it is drawn; the messages; float64 while judged."""
    elements = 2 * case.input_elements + calls * (case.input_elements + case.output_elements)
    return DTYPES[case.dtype].itemsize * elements + 6 * 8 * min(DRAWN, case.elements)
