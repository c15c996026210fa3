"""Simulates a grid on a GPU's SMs: the cost of wave quantization, uneven CTAs and empty CTAs.

CTAs go in launch order to the first free slot of SM count x CTAs per SM (occupancy). The work tiles of a
persistent kernel are statically assigned to the slots, round-robin. A CTA first spends its fixed time, then
draws on what bounds the kernel: DRAM bandwidth or tensor cores. All CTAs that draw share the resource
equally (max-min fair), up to what their SM can take. The model has no latency, caches or clocks: its times
rank schedules and do not predict a GPU's time.
"""

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ...kernels.matmul_tiling import PROGRAM_OVERHEAD_S, SECOND_KERNEL_S, SM_MEMORY_SHARE
from ..core.gpus import Gpu

# Assumed, not measured, like the kernels' PROGRAM_OVERHEAD_S (start and end of a CTA, and each further item
# inside one), SECOND_KERNEL_S and SM_MEMORY_SHARE. On-device scheduling reads all lengths of the batch.
READ_LENGTHS_S = 0.5e-6

_SAME_TIME = 1e-12  # relative: ends that differ by rounding are one event, and slots refill in order


def fixed_time_s(items: int = 1, *, reads_lengths: bool = False) -> float:
    """Seconds that a CTA spends beside its work: an overhead for each item, at least one."""
    return max(items, 1) * PROGRAM_OVERHEAD_S + (READ_LENGTHS_S if reads_lengths else 0.0)


@dataclass(frozen=True, kw_only=True)
class SharedResource:
    """What the CTAs of a grid share.

    Attributes:
        unit: what it moves or does.
        rate_per_s: rate of the whole GPU.
        sm_share: the most that one SM gets, as a multiple of the rate over the SM count.
    """

    unit: Literal["bytes", "operations"]
    rate_per_s: float
    sm_share: float


def dram_bandwidth(gpu: Gpu) -> SharedResource:
    """DRAM bandwidth, of which an SM gets at most 1.6 times its fair share."""
    return SharedResource(unit="bytes", rate_per_s=gpu.bandwidth_bytes_per_s, sm_share=SM_MEMORY_SHARE)


@dataclass(frozen=True, kw_only=True)
class CtaWork:
    """One CTA, or one work tile of a persistent kernel.

    Attributes:
        work: bytes or operations that it draws from the shared resource; 0 for an empty CTA.
        fixed_s: seconds in its slot before it draws.
    """

    work: float
    fixed_s: float = PROGRAM_OVERHEAD_S

    def __post_init__(self) -> None:
        for name in ("work", "fixed_s"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; it must be finite and at least 0")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A call: the CTAs of its first kernel, and the combine or split-K reduction kernel that follows.

    Attributes:
        ctas: the first kernel's CTAs in launch order.
        useful_work: bytes or operations that the call needs at least.
        second_kernel_bytes: bytes that the second kernel reads and writes; None without one.
        persistent: whether `ctas` are work tiles of a persistent kernel, statically assigned to its CTAs.
    """

    ctas: tuple[CtaWork, ...]
    useful_work: float
    second_kernel_bytes: int | None
    persistent: bool = False


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A simulated grid.

    Attributes:
        time_s: from the first CTA's start to the last one's end, and the second kernel.
        ideal_s: the useful work at the full rate.
        second_kernel_s: part of `time_s`.
        waves: CTAs over slots.
        sm_end_s: when each SM ends its last CTA; 0 for an SM that had none.
    """

    time_s: float
    ideal_s: float
    second_kernel_s: float
    waves: float
    sm_end_s: tuple[float, ...]

    @property
    def efficiency(self) -> float:
        """Ideal over simulated time; 1 for an empty grid."""
        return self.ideal_s / self.time_s if self.time_s else 1.0

    @property
    def longest_sm_over_mean(self) -> float:
        """Load imbalance: the last SM's end over the mean end of the SMs; 1 where all end together."""
        total = math.fsum(self.sm_end_s)
        return max(self.sm_end_s) * len(self.sm_end_s) / total if total else 1.0


def simulate_grid(
    grid: Grid, gpu: Gpu, programs_per_sm: int, *, resource: SharedResource | None = None
) -> Schedule:
    """Simulates the CTAs of a grid on the GPU's slots, then its second kernel at full bandwidth.

    Slots are filled SM after SM, then again; a free slot takes the next CTA. Rates change only where a CTA
    starts or stops drawing, so the result is exact but for rounding. 10^4 CTAs take about a second.

    Args:
        grid: from `kernel_grids`.
        gpu: SM count and bandwidth.
        programs_per_sm: occupancy, in CTAs per SM.
        resource: what the CTAs share, in the unit of their work; None means the GPU's DRAM bandwidth.

    Returns:
        The schedule, against the grid's useful work.

    Raises:
        ValueError: `programs_per_sm` below 1.
    """
    if programs_per_sm < 1:
        raise ValueError(f"programs_per_sm is {programs_per_sm}; it must be at least 1")
    resource = resource or dram_bandwidth(gpu)
    sm_end_s = _sm_end_s(grid, gpu.sm_count, programs_per_sm, resource)
    second_kernel_s = 0.0
    if grid.second_kernel_bytes is not None:
        second_kernel_s = SECOND_KERNEL_S + grid.second_kernel_bytes / gpu.bandwidth_bytes_per_s
    return Schedule(
        time_s=max(sm_end_s) + second_kernel_s,
        ideal_s=grid.useful_work / resource.rate_per_s,
        second_kernel_s=second_kernel_s,
        waves=len(grid.ctas) / (gpu.sm_count * programs_per_sm),
        sm_end_s=tuple(sm_end_s),
    )


def _sm_end_s(grid: Grid, sm_count: int, programs_per_sm: int, resource: SharedResource) -> list[float]:
    """When each SM ends its last CTA; slot s is on SM s mod SM count."""
    sharing = _FairSharing(resource, sm_count, programs_per_sm)
    slots = sm_count * programs_per_sm
    free = list(range(slots))
    starting: list[tuple[float, int, float]] = []  # a heap: end of the fixed time, slot, work
    # A persistent CTA's next tile is `slots` after its last one; other slots share one queue.
    queues = [iter(grid.ctas[slot::slots]) for slot in free] if grid.persistent else [iter(grid.ctas)] * slots
    sm_end_s = [0.0] * sm_count
    now = 0.0
    while True:
        for slot in sorted(free):
            cta = next(queues[slot], None)
            if cta is not None:
                heapq.heappush(starting, (now + cta.fixed_s, slot, cta.work))
        time_s = min(starting[0][0] - now if starting else math.inf, sharing.first_end_s())
        if time_s == math.inf:
            return sm_end_s
        now += time_s
        sharing.advance(time_s)
        free = sharing.take_ended(within_s=_SAME_TIME * now)
        while starting and starting[0][0] <= now * (1 + _SAME_TIME):
            _, slot, work = heapq.heappop(starting)
            if work:
                sharing.start(slot, work)
            else:
                free.append(slot)
        for slot in free:
            sm_end_s[slot % sm_count] = now


class _FairSharing:
    """CTAs that draw on a resource at equal rates, except where their SM is at its limit.

    CTAs on SMs with the same number of drawing CTAs have the same rate. For each such number a virtual clock
    counts what one of them has drawn. A CTA that starts or ends moves only the others on its SM to another
    clock, so an event costs the logarithm of the CTAs.
    """

    def __init__(self, resource: SharedResource, sm_count: int, slots_per_sm: int) -> None:
        self._rate = resource.rate_per_s
        self._sm_limit = resource.rate_per_s * resource.sm_share / sm_count
        self._sm_count = sm_count
        self._drawing: list[set[int]] = [set() for _ in range(sm_count)]
        self._sms_with = [0] * (slots_per_sm + 1)  # by number of drawing CTAs, as the lists below
        self._clock = [0.0] * (slots_per_sm + 1)
        self._rates = [0.0] * (slots_per_sm + 1)
        self._ends: list[list[tuple[float, int]]] = [[] for _ in range(slots_per_sm + 1)]  # heaps
        self._end: dict[int, tuple[int, float]] = {}  # by slot: its clock, and the clock's value at its end

    def start(self, slot: int, work: float) -> None:
        """Lets a slot draw until it has had its work."""
        self._regroup(slot % self._sm_count, {slot: work})

    def advance(self, time_s: float) -> None:
        """Draws for a time in which nothing starts or ends."""
        for count, rate in enumerate(self._rates):
            self._clock[count] += rate * time_s

    def first_end_s(self) -> float:
        """Seconds until the first CTA ends; infinite where none draws."""
        self._set_rates()
        seconds = math.inf
        for count, ends in enumerate(self._ends):
            while ends and self._end.get(ends[0][1]) != (count, ends[0][0]):
                heapq.heappop(ends)
            if ends:
                seconds = min(seconds, max(0.0, ends[0][0] - self._clock[count]) / self._rates[count])
        return seconds

    def take_ended(self, within_s: float) -> list[int]:
        """Removes the CTAs that end within a time, and returns their slots."""
        ended: list[int] = []
        for count, ends in enumerate(self._ends):
            reached = self._clock[count] + self._rates[count] * within_s
            while ends and ends[0][0] <= reached:
                end, slot = heapq.heappop(ends)
                if self._end.get(slot) == (count, end):
                    del self._end[slot]
                    ended.append(slot)
        by_sm: dict[int, set[int]] = {}
        for slot in ended:
            by_sm.setdefault(slot % self._sm_count, set()).add(slot)
        for sm, slots in by_sm.items():
            self._regroup(sm, {}, slots)
        return ended

    def _regroup(self, sm: int, started: dict[int, float], ended: Iterable[int] = ()) -> None:
        """Moves the CTAs of an SM to the clock of their new number."""
        drawing = self._drawing[sm]
        self._sms_with[len(drawing)] -= 1
        left = {slot: self._end[slot][1] - self._clock[len(drawing)] for slot in drawing.difference(ended)}
        left |= started
        self._drawing[sm] = set(left)
        count = len(left)
        self._sms_with[count] += 1
        for slot, work in left.items():
            end = self._clock[count] + work
            self._end[slot] = (count, end)
            heapq.heappush(self._ends[count], (end, slot))

    def _set_rates(self) -> None:
        """Shares the rate equally; SMs at their limit leave the rest to the others."""
        rate = self._rate
        ctas = sum(count * sms for count, sms in enumerate(self._sms_with) if count)
        for count in range(len(self._sms_with) - 1, 0, -1):
            sms = self._sms_with[count]
            if not sms:
                self._rates[count] = 0.0
                continue
            self._rates[count] = min(rate / ctas, self._sm_limit / count)
            if self._rates[count] == self._sm_limit / count:
                rate -= sms * self._sm_limit
                ctas -= sms * count
