"""Executed figures of a launch: instructions by class, sectors of global memory, bank conflicts.

Instructions are those of PTX, once for each warp that executes their block; guarded ones count, as they take
an issue slot either way. Sectors and bank conflicts are worked out from the addresses of the lanes.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..hot_loop import Block, Loop, natural_loops
from .counters import LaunchCounters
from .instruction_classes import INSPECT_CLASSES, class_of
from .lanes import WARP_LANES
from .parser import PtxKernel

_WORK = {"tensor_core", "copy_async", "tma", "load_global", "load_shared", "store_global", "store_shared"}


@dataclass(frozen=True)
class TensorSectors:
    """32-byte sectors asked of global memory through one tensor.

    Attributes:
        requested: of loads and asynchronous copies, once for each instruction of a warp (each copy by TMA).
        written: of stores, likewise. An atomic counts as a load and a store.
    """

    requested: float = 0
    written: float = 0


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Executed figures of some instructions.

    Attributes:
        instructions: by class, in the order of `instruction_classes.INSPECT_CLASSES`; per warp.
        sectors: by tensor.
        shared_wavefronts: passes that shared memory needs without conflicts: 128 bytes each at most.
        bank_conflicts: further passes, for lanes that use different words of one bank.
    """

    instructions: Mapping[str, float]
    sectors: Mapping[str, TensorSectors]
    shared_wavefronts: float
    bank_conflicts: float


@dataclass(frozen=True, kw_only=True)
class LoopFigures(Figures):
    """Figures of one iteration of a CTA, on average; its instructions are those of one of its warps.

    Attributes:
        iterations: of all CTAs.
        warps: of a CTA that run the loop: not all where warps are specialised.
        first_line, last_line: of the loop in the PTX.
    """

    iterations: float
    warps: int
    first_line: int
    last_line: int


@dataclass(frozen=True, kw_only=True)
class LaunchFigures(Figures):
    """Figures of all CTAs of a launch.

    Attributes:
        warps: of a CTA.
        hot_loop: of the innermost loop with the most work that was executed; None without one.
    """

    warps: int
    hot_loop: LoopFigures | None


class _Summary:
    """Sums of a launch's counts.

    Args:
        kernel: the parsed PTX.
        counters: what was counted.
    """

    def __init__(self, kernel: PtxKernel, counters: LaunchCounters) -> None:
        self._kernel, self._counters = kernel, counters

    def launch(self) -> LaunchFigures:
        """In total, and for the hot loop."""
        everything = set(range(len(self._kernel.blocks)))
        warps = self._kernel.threads // WARP_LANES
        loop = self._hot_loop()
        return LaunchFigures(
            **self._sum(everything, 1.0, 1.0),
            warps=warps,
            hot_loop=None if loop is None else self._loop_figures(loop),
        )

    def _sum(self, blocks: set[int], instruction_share: float, share: float) -> dict[str, Any]:
        """The figures of some blocks, multiplied by shares."""
        classes: Counter[str] = Counter()
        requested: Counter[str] = Counter()
        written: Counter[str] = Counter()
        wavefronts = conflicts = 0
        for index in blocks:
            for instruction in self._instructions(index):
                classes[class_of(instruction)] += self._counters.executions[index]
        lines = {each.line for index in blocks for each in self._instructions(index)}
        for counts in (self._counters.lines[line] for line in lines & self._counters.lines.keys()):
            requested.update(counts.requested)
            written.update(counts.written)
            wavefronts += counts.wavefronts
            conflicts += counts.conflicts
        return {
            "instructions": {
                name: classes[name] * instruction_share for name in INSPECT_CLASSES if classes[name]
            },
            "sectors": {
                tensor: TensorSectors(requested[tensor] * share, written[tensor] * share)
                for tensor in sorted(requested | written)
            },
            "shared_wavefronts": wavefronts * share,
            "bank_conflicts": conflicts * share,
        }

    def _instructions(self, index: int) -> list[Any]:
        block = self._kernel.blocks[index]
        return [*block.instructions, *([block.end] if block.end else [])]

    def _loop_figures(self, loop: Loop) -> LoopFigures:
        warps = self._counters.executing_warps[loop.header].bit_count()
        iterations = self._iterations(loop) / warps
        lines = [each.line for index in loop.body for each in self._instructions(index)]
        return LoopFigures(
            **self._sum(set(loop.body), 1 / (iterations * warps), 1 / iterations),
            iterations=iterations,
            warps=warps,
            first_line=min(lines),
            last_line=max(lines),
        )

    def _iterations(self, loop: Loop) -> int:
        """Iterations, each counted once for each warp."""
        return sum(self._counters.executions[latch] for latch in loop.latches)

    def _hot_loop(self) -> Loop | None:
        """Of the innermost loops that ran, the first by tensor-core instructions, then copies, then loads."""
        loops = natural_loops(_control_flow(self._kernel))
        working = [loop for loop in loops if self._iterations(loop) and self._rank(loop)[-1]]
        innermost = [loop for loop in working if not any(other.body < loop.body for other in working)]
        return max(innermost, key=self._rank, default=None)

    def _rank(self, loop: Loop) -> tuple[int, ...]:
        classes = Counter(class_of(each) for index in loop.body for each in self._instructions(index))
        work = sum(classes[name] for name in _WORK)
        return classes["tensor_core"], classes["tma"], classes["copy_async"], classes["load_global"], work


def launch_figures(kernel: PtxKernel, counters: LaunchCounters) -> LaunchFigures:
    """Figures of what was counted."""
    return _Summary(kernel, counters).launch()


def _control_flow(kernel: PtxKernel) -> list[Block]:
    """The kernel's blocks as `hot_loop` takes them."""
    flow = []
    for block in kernel.blocks:
        following = [block.target] if block.kind in {"jump", "branch"} else [*block.targets]
        falls = block.kind in {"fall", "branch", "barrier"} or (
            block.kind == "exit" and block.end is not None and block.end.guard is not None
        )
        if falls and block.index + 1 < len(kernel.blocks):
            following.append(block.index + 1)
        flow.append(Block(block.index, block.index + 1, tuple(dict.fromkeys(following))))
    return flow
