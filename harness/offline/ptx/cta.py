"""Executes one CTA: its registers and state, and the order of blocks where lanes diverge."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .async_copies import AsyncCopies
from .counters import LaunchCounters
from .global_memory import GlobalAccess, GlobalMemory
from .lanes import UNSIGNED, Array, CtaLanes, Mask
from .matrix_memory import MatrixMemory
from .mbarriers import Mbarriers, StuckError
from .mma import Mma
from .parser import PtxKernel
from .shared_memory import SharedMemory
from .tensor_cores import TensorCores
from .tensor_maps import TensorMap
from .tensor_memory import Access, TensorMemory
from .tma import Tma
from .translator import Translation
from .violations import Kind, ViolationLog
from .warps import Warps
from .wgmma import Wgmma

_EXITED = -1
_FIRST_REGISTER = 0xCDCDCDCDCDCDCDCD  # what registers hold before they are written


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What the CTAs of one launch share.

    Attributes:
        kernel: the parsed PTX.
        translation: its blocks as Python.
        shared_bytes: dynamic shared memory of a CTA.
        grid: number of CTAs along each axis.
        parameters: bytes of each parameter by its PTX name.
        tensor_maps: by the address of the parameter that holds them.
        memory: global memory.
        log: takes violations.
        counters: takes executed figures.
        max_blocks: basic blocks that a CTA may execute before it counts as endless.
    """

    kernel: PtxKernel
    translation: Translation
    shared_bytes: int
    grid: tuple[int, int, int]
    parameters: Mapping[str, bytes]
    tensor_maps: Mapping[int, TensorMap]
    memory: GlobalMemory
    log: ViolationLog
    counters: LaunchCounters
    max_blocks: int


class Cta:
    """One CTA of a launch.

    Args:
        launch: what it shares with others.
        position: its coordinates in the grid.
        number: its place in the grid.

    Attributes:
        executed_blocks: basic blocks executed, each by all or some of the lanes.
    """

    def __init__(self, launch: Launch, position: tuple[int, int, int], number: int) -> None:
        kernel = launch.kernel
        self._launch, self._blocks = launch, kernel.blocks
        self._lanes = CtaLanes(
            kernel.threads, position, launch.grid, number, launch.parameters, launch.log, launch.counters
        )
        self._shared = SharedMemory(self._lanes, launch.shared_bytes)
        access = GlobalAccess(self._lanes, launch.memory)
        mbarriers = Mbarriers(self._lanes, self._shared)
        registers = [
            np.full(kernel.threads, _FIRST_REGISTER & (2**bits - 1) if bits > 1 else 0, UNSIGNED[bits])
            for bits in kernel.register_bits
        ]
        self._tensor_memory = TensorMemory(self._lanes, self._shared) if kernel.uses("tcgen05") else None
        functions = launch.translation.bind(
            {
                "R": registers,
                "cta": self._lanes,
                "global_": access,
                "shared_": self._shared,
                "matrices": MatrixMemory(self._lanes, self._shared),
                "copies": AsyncCopies(self._lanes, access, self._shared),
                "mbarriers": mbarriers,
                "tma": Tma(self._lanes, access, self._shared, mbarriers, launch.tensor_maps),
                "mma": Mma(self._lanes),
                "wgmma": Wgmma(self._lanes, self._shared),
                "warps": Warps(self._lanes),
                "Access": Access,
                "tensor_memory": self._tensor_memory,
                "tensor_cores": self._tensor_memory
                and TensorCores(self._lanes, self._shared, self._tensor_memory, mbarriers),
            }
        )
        self._whole: list[Callable[[Mask], Array | None]] = [
            functions[f"b{block.index}"] for block in self._blocks
        ]
        self._masked: list[Callable[[Mask], Array | None]] = [
            functions[f"b{block.index}m"] for block in self._blocks
        ]
        self.executed_blocks = 0

    def run(self) -> None:
        """Executes the CTA to its end.

        Raises:
            StuckError: it waits for what never comes; reported as a violation.
        """
        at: int | None = 0
        everyone = np.arange(self._lanes.warps)
        executions = self._launch.counters.executions
        with np.errstate(all="ignore"):
            while at is not None:
                block = self._blocks[at]
                taken = self._whole[at](None)
                executions[at] += self._lanes.warps
                self._count(at)
                if block.kind == "jump":
                    at = block.target
                elif taken is None and block.kind == "exit":
                    at = None
                elif taken is None or not taken.any():
                    if block.kind == "barrier":
                        self._shared.clocks.join(everyone)
                    at += 1
                elif taken.all():
                    at = block.target if block.kind == "branch" else None
                else:
                    at = self._diverge(np.where(taken, block.target, at + 1))
        if self._tensor_memory is not None:
            self._tensor_memory.finish()

    def _count(self, at: int) -> None:
        self.executed_blocks += 1
        if self.executed_blocks > self._launch.max_blocks:
            block = self._blocks[at]
            instruction = block.end or block.instructions[-1]
            self._lanes.report(Kind.STUCK, instruction.line, f"after {self._launch.max_blocks} basic blocks")
            raise StuckError

    def _diverge(self, at: Array) -> int | None:
        """Executes diverged lanes, those at the lowest block first, until they are together again.

        Args:
            at: the block of each lane; -1 for lanes that exited.

        Returns:
            The block where all lanes are; None where all exited.
        """
        waiting = np.zeros(self._lanes.threads, np.bool_)
        while (alive := at != _EXITED).any():
            ready = alive & ~waiting
            if not ready.any():
                self._join(at, alive)
                waiting[:] = False
                continue
            lowest = int(at[ready].min())
            mask = ready & (at == lowest)
            if mask.all():
                return lowest
            block = self._blocks[lowest]
            taken = self._masked[lowest](mask)
            self._launch.counters.executions[lowest] += len(np.unique(self._lanes.warp[mask]))
            self._count(lowest)
            if block.kind == "jump" or (block.kind == "exit" and taken is None):
                at = np.where(mask, block.target, at)
            elif taken is None:
                at = np.where(mask, lowest + 1, at)
                if block.kind == "barrier":
                    waiting |= mask
            else:
                at = np.where(mask, np.where(taken, block.target, lowest + 1), at)
        return None

    def _join(self, at: Array, alive: Array) -> None:
        """Completes a barrier at which all lanes that have not exited wait."""
        waits = [self._blocks[each - 1].last for each in np.unique(at[alive])]
        line = waits[0].line
        if not alive.all():
            missing = int(self._lanes.warp[~alive][0])
            self._lanes.report(Kind.MISSED_BARRIER, line, f"{int((~alive).sum())} lanes exited", warp=missing)
        if len(waits) > 1:
            others = ", ".join(str(each.line) for each in waits[1:])
            self._lanes.report(Kind.MISSED_BARRIER, line, f"other lanes wait at PTX line {others}")
        self._shared.clocks.join(np.unique(self._lanes.warp[alive]))
