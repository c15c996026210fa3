"""Simulates a grid on a GPU's multiprocessors: what uneven, empty and too many programs cost.

Programs go in launch order to the first free slot; a GPU has SM count x programs-per-SM of them. Items of
programs that stay go in turn to the slots, as they are told off before anything runs. A program
first spends its fixed time, then draws on what the kernel is limited by, DRAM bandwidth or the matrix units.
All programs that draw share it equally, as far as their SM may have so much. Nothing else is in the model:
no latency, no caches, no clocks. Times are modelled, and show how a schedule ranks, not what a GPU measures.
"""

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..core.gpus import Gpu
from .cache_model import MatmulShape
from .subjects import PROGRAM_OVERHEAD_S, SECOND_KERNEL_S, SM_MEMORY_SHARE
from .tile_order import PARTIAL_BYTES, MatmulCut, TileShare

# A stated assumption, not a measurement, as are those that the choosers of tilings count with:
# PROGRAM_OVERHEAD_S to start a program and end it, and for each further sequence and head or item inside
# one; SECOND_KERNEL_S; SM_MEMORY_SHARE.
LENGTHS_S = 0.5e-6  # for a program that works out its share from all lengths of the batch

_TOGETHER = 1e-12  # ends that differ by rounding alone are one event, and slots are filled in their order


def fixed_time_s(parts: int = 1, *, reads_lengths: bool = False) -> float:
    """Seconds of a program beside its work: `parts` sequences and heads, none counting as one."""
    return max(parts, 1) * PROGRAM_OVERHEAD_S + (LENGTHS_S if reads_lengths else 0.0)


@dataclass(frozen=True, kw_only=True)
class SharedResource:
    """What the programs of a launch share.

    Attributes:
        unit: what it moves or does.
        rate_per_s: of the whole GPU.
        sm_share: the most that one SM gets, as a multiple of the rate over the SM count.
    """

    unit: Literal["bytes", "operations"]
    rate_per_s: float
    sm_share: float


def memory_of(gpu: Gpu) -> SharedResource:
    """DRAM bandwidth, of which an SM gets at most 1.6 times its fair share."""
    return SharedResource(unit="bytes", rate_per_s=gpu.bandwidth_bytes_per_s, sm_share=SM_MEMORY_SHARE)


def matrix_units_of(flop_per_s: float) -> SharedResource:
    """Matrix units at a peak of `flop_per_s` (see `core.gpus`); each SM has its own."""
    return SharedResource(unit="operations", rate_per_s=flop_per_s, sm_share=1.0)


@dataclass(frozen=True, kw_only=True)
class ProgramWork:
    """One program: what it draws from the shared resource, after a fixed time.

    Attributes:
        work: bytes or operations; 0 for an empty program.
        fixed_s: seconds in its slot beside them.
    """

    work: float
    fixed_s: float = PROGRAM_OVERHEAD_S

    def __post_init__(self) -> None:
        for name in ("work", "fixed_s"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; it must be finite and at least 0")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A call: its programs in launch order, and the kernel that follows where anything was cut.

    Attributes:
        programs: of the first kernel.
        useful_work: bytes or operations that the call cannot do without.
        second_kernel_bytes: what a merge or reduction reads and writes; None where none is launched.
        in_turn: whether these are items of programs that stay, each slot's known beforehand.
    """

    programs: tuple[ProgramWork, ...]
    useful_work: float
    second_kernel_bytes: int | None
    in_turn: bool = False


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a launch went.

    Attributes:
        time_s: from the first program's start to the last one's end, and the second kernel.
        ideal_s: the useful work at the full rate.
        second_kernel_s: part of `time_s`.
        waves: programs over slots.
        sm_end_s: when each SM ends its last program; 0 for one that had none.
    """

    time_s: float
    ideal_s: float
    second_kernel_s: float
    waves: float
    sm_end_s: tuple[float, ...]

    @property
    def efficiency(self) -> float:
        """Ideal over simulated time; 1 where there was nothing to do."""
        return self.ideal_s / self.time_s if self.time_s else 1.0

    @property
    def longest_sm_over_mean(self) -> float:
        """When the last SM ends over when SMs end on average; 1 where all end together."""
        total = math.fsum(self.sm_end_s)
        return max(self.sm_end_s) * len(self.sm_end_s) / total if total else 1.0


def simulate(
    programs: Sequence[ProgramWork],
    gpu: Gpu,
    programs_per_sm: int,
    *,
    resource: SharedResource | None = None,
    in_turn: bool = False,
) -> Schedule:
    """Runs programs in launch order on the GPU's slots.

    Slots are filled SM after SM, then again, and each that becomes free takes the next program. Shares
    change only where a program starts or stops drawing, so the result is exact but for rounding.

    Args:
        programs: in launch order.
        gpu: SM count and bandwidth.
        programs_per_sm: how many an SM holds at one time.
        resource: what they share; the GPU's DRAM bandwidth when none.
        in_turn: whether a slot that becomes free takes the program that is as many after its last one as
            there are slots, instead of the next.

    Returns:
        The schedule, all of the programs' work counted as useful. 10^4 programs take about a second.

    Raises:
        ValueError: `programs_per_sm` below 1.
    """
    if programs_per_sm < 1:
        raise ValueError(f"programs_per_sm is {programs_per_sm}; it must be at least 1")
    resource = resource or memory_of(gpu)
    sharing = _Sharing(resource, gpu.sm_count, programs_per_sm)
    slots = gpu.sm_count * programs_per_sm
    free = list(range(slots))
    starting: list[tuple[float, int, float]] = []  # a heap: when the fixed time ends, slot, work
    waiting = [iter(programs[slot::slots]) for slot in free] if in_turn else [iter(programs)] * slots
    sm_end_s = [0.0] * gpu.sm_count
    now = 0.0
    while True:
        for slot in sorted(free):
            program = next(waiting[slot], None)
            if program is not None:
                heapq.heappush(starting, (now + program.fixed_s, slot, program.work))
        time_s = min(starting[0][0] - now if starting else math.inf, sharing.first_end_s())
        if time_s == math.inf:
            break
        now += time_s
        sharing.advance(time_s)
        ended = sharing.take_ended(within_s=_TOGETHER * now)
        while starting and starting[0][0] <= now * (1 + _TOGETHER):
            _, slot, work = heapq.heappop(starting)
            if work:
                sharing.start(slot, work)
            else:
                ended.append(slot)
        free = ended
        for slot in ended:
            sm_end_s[slot % gpu.sm_count] = now
    return Schedule(
        time_s=now,
        ideal_s=math.fsum(program.work for program in programs) / resource.rate_per_s,
        second_kernel_s=0.0,
        waves=len(programs) / (gpu.sm_count * programs_per_sm),
        sm_end_s=tuple(sm_end_s),
    )


def simulate_launch(
    launch: Launch, gpu: Gpu, programs_per_sm: int, *, resource: SharedResource | None = None
) -> Schedule:
    """Simulates a whole call: its programs, then the second kernel at full bandwidth.

    Args:
        launch: of `decode_launch.decode_launch`, `matmul_matrix_launch` or `matmul_memory_launch`.
        gpu: SM count and bandwidth.
        programs_per_sm: how many an SM holds at one time.
        resource: what the programs share, in the unit of their work; the GPU's DRAM bandwidth when none.

    Returns:
        The schedule, against the launch's useful work.

    Raises:
        ValueError: `programs_per_sm` below 1.
    """
    resource = resource or memory_of(gpu)
    grid = simulate(launch.programs, gpu, programs_per_sm, resource=resource, in_turn=launch.in_turn)
    second_kernel_s = 0.0
    if launch.second_kernel_bytes is not None:
        second_kernel_s = SECOND_KERNEL_S + launch.second_kernel_bytes / gpu.bandwidth_bytes_per_s
    return Schedule(
        time_s=grid.time_s + second_kernel_s,
        ideal_s=launch.useful_work / resource.rate_per_s,
        second_kernel_s=second_kernel_s,
        waves=grid.waves,
        sm_end_s=grid.sm_end_s,
    )


def matmul_matrix_launch(shape: MatmulShape, tiling: MatmulCut) -> Launch:
    """The launch of `prefill_matmul`, limited by the matrix units; simulate it with `matrix_units_of`.

    An item counts as a program: one that stays for the next pays the fixed time again. It does the whole of
    its tile, dead rows and columns included; useful are 2 M N K operations.
    """
    tile = 2 * tiling.block_m * tiling.block_n * tiling.block_k
    order = shape.tile_order(tiling)
    return Launch(
        programs=tuple(ProgramWork(work=tile * (share.last_k - share.first_k)) for share in order),
        useful_work=shape.operations,
        second_kernel_bytes=_reduction_bytes(shape, tiling, order),
        in_turn=tiling.variant != "pointers",
    )


def matmul_memory_launch(shape: MatmulShape, tiling: MatmulCut) -> Launch:
    """The launch of `prefill_matmul`, limited by DRAM bandwidth; useful are inputs and result, once each.

    Items that read the same panel share its bytes equally, as if L2 kept it for them (see `cache_model`).
    """
    blocks_m = math.ceil(shape.rows / tiling.block_m)
    blocks_n = math.ceil(shape.out_features / tiling.block_columns)
    order = shape.tile_order(tiling)
    programs = []
    for share in order:
        rows, columns = _live_size(shape, tiling, share)
        depth = min(share.last_k * tiling.block_k, shape.in_features) - share.first_k * tiling.block_k
        inputs = rows * shape.x_bytes / blocks_n + columns * shape.weight_bytes / blocks_m
        out_bytes = shape.out_bytes if share.whole else PARTIAL_BYTES
        programs.append(ProgramWork(work=max(depth, 0) * inputs + rows * columns * out_bytes))
    return Launch(
        programs=tuple(programs),
        useful_work=shape.least_bytes,
        second_kernel_bytes=_reduction_bytes(shape, tiling, order),
        in_turn=tiling.variant != "pointers",
    )


def _reduction_bytes(shape: MatmulShape, tiling: MatmulCut, order: Sequence[TileShare]) -> int | None:
    """Partial sums read and the result written of tiles that are cut; None where there are none."""
    sizes = [(math.prod(_live_size(shape, tiling, share)), share.split) for share in order if not share.whole]
    if not sizes:
        return None
    return sum(size * (PARTIAL_BYTES + (shape.out_bytes if split == 0 else 0)) for size, split in sizes)


def _live_size(shape: MatmulShape, tiling: MatmulCut, share: TileShare) -> tuple[int, int]:
    """Live rows and columns of an item's tile."""
    return (
        min(tiling.block_m, shape.rows - share.block_m * tiling.block_m),
        min(tiling.block_columns, shape.out_features - share.block_n * tiling.block_columns),
    )


class _Sharing:
    """Programs that draw on a resource at equal rates, but for those whose SM is at its most.

    Programs on SMs with the same number of drawing programs have the same rate. For each such number a
    virtual clock counts what one of them has drawn. A program that starts or ends moves the others on its SM,
    and none else, to another clock, so an event costs the logarithm of the programs.
    """

    def __init__(self, resource: SharedResource, sm_count: int, slots_per_sm: int) -> None:
        self._rate = resource.rate_per_s
        self._sm_most = resource.rate_per_s * resource.sm_share / sm_count
        self._sm_count = sm_count
        self._drawing: list[set[int]] = [set() for _ in range(sm_count)]
        self._sms_with = [0] * (slots_per_sm + 1)  # by number of drawing programs, as the lists below
        self._clock = [0.0] * (slots_per_sm + 1)
        self._rates = [0.0] * (slots_per_sm + 1)
        self._ends: list[list[tuple[float, int]]] = [[] for _ in range(slots_per_sm + 1)]  # heaps
        self._end: dict[int, tuple[int, float]] = {}  # by slot: which clock, and what it will show

    def start(self, slot: int, work: float) -> None:
        """Lets a slot draw until it has had its work."""
        self._regroup(slot % self._sm_count, {slot: work})

    def advance(self, time_s: float) -> None:
        """Draws for a time in which nothing starts or ends."""
        for count, rate in enumerate(self._rates):
            self._clock[count] += rate * time_s

    def first_end_s(self) -> float:
        """Seconds until the first program ends; infinite where none draws."""
        self._set_rates()
        seconds = math.inf
        for count, ends in enumerate(self._ends):
            while ends and self._end.get(ends[0][1]) != (count, ends[0][0]):
                heapq.heappop(ends)
            if ends:
                seconds = min(seconds, max(0.0, ends[0][0] - self._clock[count]) / self._rates[count])
        return seconds

    def take_ended(self, within_s: float) -> list[int]:
        """Takes out the programs that have had their work by now, or would so soon."""
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
        """Moves the programs of an SM to the clock of their new number."""
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
        """Shares the rate equally; SMs that would get more than their most leave the rest to the others."""
        rate = self._rate
        programs = sum(count * sms for count, sms in enumerate(self._sms_with) if count)
        for count in range(len(self._sms_with) - 1, 0, -1):
            sms = self._sms_with[count]
            if not sms:
                self._rates[count] = 0.0
                continue
            self._rates[count] = min(rate / programs, self._sm_most / count)
            if self._rates[count] == self._sm_most / count:
                rate -= sms * self._sm_most
                programs -= sms * count
