"""Executes one CTA: its registers and state, and the order of blocks where lanes diverge."""

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from .async_copies import AsyncCopies
from .counters import LaunchCounters
from .global_memory import GlobalAccess, GlobalMemory
from .lanes import UNSIGNED, Array, CtaLanes, Mask
from .local_memory import GenericMemory, LocalMemory
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
_BLOCKS_BETWEEN_PAUSES = 2000
_FIRST_REGISTER = 0xCDCDCDCDCDCDCDCD  # what registers hold before they are written


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What the CTAs of one launch share.

    Attributes:
        kernel: the parsed PTX.
        translation: its blocks as Python.
        shared_bytes: shared memory of a CTA.
        local_bytes: local memory of a thread.
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
    local_bytes: int
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
        self._tma = Tma(self._lanes, access, self._shared, mbarriers, launch.tensor_maps)
        local = LocalMemory(self._lanes, launch.local_bytes)
        functions = launch.translation.bind(
            {
                "R": registers,
                "cta": self._lanes,
                "global_": access,
                "shared_": self._shared,
                "matrices": MatrixMemory(self._lanes, self._shared),
                "copies": AsyncCopies(self._lanes, access, self._shared),
                "mbarriers": mbarriers,
                "tma": self._tma,
                "local": local,
                "generic": GenericMemory(self._lanes, access, self._shared, local),
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

    def steps(self) -> Iterator[None]:
        """Executes the CTA to its end; pauses now and then, so that one that waits for another can be left.

        Raises:
            StuckError: it waits for what never comes; reported as a violation.
        """
        at: int | None = 0
        everyone = np.arange(self._lanes.warps)
        while at is not None:
            block = self._blocks[at]
            with np.errstate(all="ignore"):
                taken = self._whole[at](None)
            if self._count(at, self._lanes.warps):
                yield
            if taken is not None and taken.any() and not taken.all():
                if block.kind == "barrier":
                    at = yield from self._diverge(np.full(self._lanes.threads, at + 1), taken)
                else:
                    at = yield from self._diverge(np.where(taken, block.target, at + 1))
            elif block.kind == "jump" or (block.kind == "branch" and taken is not None and taken.any()):
                at = block.target
            elif block.kind == "exit" and (taken is None or taken.any()):
                at = None
            else:
                if block.kind == "barrier" and (taken is None or taken.any()):
                    self._shared.clocks.join(everyone)
                at += 1
        self._finish()

    def _finish(self) -> None:
        self._tma.finish()
        if self._tensor_memory is not None:
            self._tensor_memory.finish()

    def _count(self, at: int, warps: int) -> bool:
        """Counts an executed block; whether it is time to pause."""
        self._launch.counters.executions[at] += warps
        self.executed_blocks += 1
        if self.executed_blocks > self._launch.max_blocks:
            block = self._blocks[at]
            instruction = block.end or block.instructions[-1]
            self._lanes.report(Kind.STUCK, instruction.line, f"after {self._launch.max_blocks} basic blocks")
            raise StuckError
        return self.executed_blocks % _BLOCKS_BETWEEN_PAUSES == 0

    def _diverge(self, at: Array, waiting: Mask = None) -> Generator[None, None, int | None]:
        """Executes diverged lanes, those at the lowest block first, until they are together again.

        Args:
            at: the block of each lane; -1 for lanes that exited.
            waiting: lanes that wait at a barrier before their block; None for none.

        Returns:
            The block where all lanes are; None where all exited.
        """
        waiting = np.zeros(self._lanes.threads, np.bool_) if waiting is None else waiting.copy()
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
            with np.errstate(all="ignore"):
                taken = self._masked[lowest](mask)
            if self._count(lowest, len(np.unique(self._lanes.warp[mask]))):
                yield
            if block.kind == "jump" or (block.kind == "exit" and taken is None):
                at = np.where(mask, block.target, at)
            elif taken is None or block.kind == "barrier":
                at = np.where(mask, lowest + 1, at)
                if block.kind == "barrier":
                    waiting |= mask if taken is None else mask & taken
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
