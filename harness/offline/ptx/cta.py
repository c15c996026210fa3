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
from .parser import Barrier, PtxKernel
from .shared_memory import SharedMemory
from .tensor_cores import TensorCores
from .tensor_maps import TensorMap
from .tensor_memory import Access, TensorMemory
from .tma import Tma
from .translator import Translation
from .unsupported import UnsupportedPtxError
from .violations import Kind, ViolationLog
from .warps import Warps
from .wgmma import Wgmma

_EXITED = -1
_NOT_WAITING = -1
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
        barriers: of the blocks that end in one.
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
    barriers: Mapping[int, Barrier]
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
        access = GlobalAccess(self._lanes, launch.memory, self._shared.clocks)
        self._mbarriers = mbarriers = Mbarriers(self._lanes, self._shared)
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
        self._barriers = launch.barriers
        self._all_warps = (1 << self._lanes.warps) - 1
        self.executed_blocks = 0

    def steps(self) -> Iterator[None]:
        """Executes the CTA to its end; yields now and then, so that one that waits lets others run.

        Raises:
            StuckError: it waits for what never comes; reported as a violation.
        """
        at: int | None = 0
        while at is not None:
            block = self._blocks[at]
            taken = self._execute(at, None)
            if self._count(at, self._all_warps):
                yield
            if block.kind == "barrier" and taken is None:
                self._release(np.full(self._lanes.threads, True), {at})
                at += 1
            elif block.kind == "jump":
                at = block.target
            elif block.kind == "branch" and taken is not None and (taken.all() or not taken.any()):
                at = block.target if taken[0] else at + 1
            elif taken is None:
                at = None if block.kind == "exit" else at + 1
            else:
                at = yield from self._diverge(*self._next(at, None, taken))
        self._finish()

    def _execute(self, at: int, mask: Mask) -> Array | None:
        """Executes a block; returns what `_next` takes.

        Raises:
            UnsupportedPtxError: an operand that only its value shows to be unknown; names the block's lines.
        """
        function = self._whole[at] if mask is None else self._masked[at]
        try:
            with np.errstate(all="ignore"):
                return function(mask)
        except UnsupportedPtxError as error:
            lines = [each.line for each in self._blocks[at].instructions]
            raise UnsupportedPtxError(f"PTX lines {lines[0]} to {lines[-1]}: {error}") from error

    def _next(self, block: int, mask: Mask, taken: Array | None) -> tuple[Array, Array]:
        """Where the lanes of a mask go from a block, and the barriers at which they wait.

        Args:
            block: that they executed.
            mask: None for all lanes.
            taken: of a branch, exit or barrier whether its guard holds; the index of a switch.
        """
        kind, everywhere = self._blocks[block].kind, np.full(self._lanes.threads, True)
        holds = everywhere if taken is None or kind == "switch" else taken
        following, waiting = (
            np.full(self._lanes.threads, block + 1),
            np.full(self._lanes.threads, _NOT_WAITING),
        )
        if kind == "switch" and taken is not None:
            following = self._switch(block, mask, taken)
        elif kind in {"jump", "branch", "exit"}:
            following = np.where(holds, self._blocks[block].target, following)
        elif kind == "barrier":
            waiting = np.where(holds, self._barriers[block].number, waiting)
        return following, waiting

    def _switch(self, block: int, mask: Mask, index: Array) -> Array:
        """The targets of a brx.idx; an index past its list is reported, and its last target taken."""
        targets = np.array(self._blocks[block].targets)
        active = self._lanes.active(mask)
        outside = active[index[active] >= len(targets)]
        if len(outside):
            detail = f"index {int(index[outside[0]])} of {len(targets)} targets"
            warp = int(self._lanes.warp[outside[0]])
            self._lanes.report(Kind.TRAP, self._blocks[block].last.line, detail, warp=warp)
        return targets[np.minimum(index, len(targets) - 1)]

    def _finish(self) -> None:
        self._tma.finish()
        if self._tensor_memory is not None:
            self._tensor_memory.finish()

    def _count(self, at: int, warps: int) -> bool:
        """Counts a block that some warps (a bit each) executed; whether it is time to pause."""
        self._launch.counters.executed(at, warps)
        self.executed_blocks += 1
        if self.executed_blocks > self._launch.max_blocks:
            block = self._blocks[at]
            instruction = block.end or block.instructions[-1]
            self._lanes.report(Kind.STUCK, instruction.line, f"after {self._launch.max_blocks} basic blocks")
            raise StuckError
        return self.executed_blocks % _BLOCKS_BETWEEN_PAUSES == 0

    def _diverge(self, at: Array, waiting: Array) -> Generator[None, None, int | None]:
        """Executes lanes that are not together, those at the lowest block first, until they are again.

        Lanes whose wait for an mbarrier failed are left until all others wait too: warps that are specialised
        run concurrently.

        Args:
            at: the block of each lane; -1 for lanes that exited.
            waiting: number of the barrier at which each lane waits before its block; -1 for none.

        Returns:
            The block where all lanes are; None where all exited.
        """
        stalled = np.zeros(self._lanes.threads, np.bool_)
        while (alive := at != _EXITED).any():
            self._complete(at, waiting)
            ready = alive & (waiting == _NOT_WAITING)
            if not (ready & ~stalled).any():
                if not ready.any():
                    self._miss(at, alive, waiting)
                stalled[:] = False
                continue
            lowest = int(at[ready & ~stalled].min())
            if ready.all() and (at == lowest).all():
                return lowest
            mask = ready & ~stalled & (at == lowest)
            failures = self._mbarriers.failures
            taken = self._execute(lowest, mask)
            warps = sum(1 << int(warp) for warp in np.unique(self._lanes.warp[mask]))
            if self._count(lowest, warps):
                yield
            if self._mbarriers.failures > failures:
                stalled |= mask
            following, barrier = self._next(lowest, mask, taken)
            at, waiting = np.where(mask, following, at), np.where(mask, barrier, waiting)
        return None

    def _complete(self, at: Array, waiting: Array) -> None:
        """Lets lanes go from barriers at which as many wait as take part."""
        for number in np.unique(waiting[waiting != _NOT_WAITING]):
            members = (waiting == number) & (at != _EXITED)
            blocks = set((at[members] - 1).tolist())
            if members.sum() >= min(self._barriers[block].threads for block in blocks):
                self._release(members, blocks)
                waiting[members] = _NOT_WAITING

    def _release(self, members: Array, blocks: set[int]) -> None:
        """Completes a barrier at the end of these blocks; its warps know what any of them did."""
        barriers = sorted((self._barriers[block] for block in blocks), key=lambda each: each.line)
        arrived = int(members.sum())
        first = barriers[0]
        if any(each.threads != arrived for each in barriers):
            detail = f"{arrived} threads arrive at a barrier of {first.threads}"
            self._lanes.report(Kind.MISSED_BARRIER, first.line, detail)
        # Specialised warps meet at a barrier from different places; others are compiled to meet at one.
        if len(barriers) > 1 and not self._launch.kernel.specialized:
            others = ", ".join(str(each.line) for each in barriers[1:])
            self._lanes.report(Kind.MISSED_BARRIER, first.line, f"other lanes wait at PTX line {others}")
        self._shared.clocks.join(np.unique(self._lanes.warp[members]))

    def _miss(self, at: Array, alive: Array, waiting: Array) -> None:
        """Reports barriers that cannot complete, and lets all lanes go on."""
        for number in np.unique(waiting[alive]):
            members = alive & (waiting == number)
            if not alive.all():
                line = min(self._barriers[block].line for block in set((at[members] - 1).tolist()))
                missing = int(self._lanes.warp[~alive][0])
                detail = f"{int((~alive).sum())} lanes exited"
                self._lanes.report(Kind.MISSED_BARRIER, line, detail, warp=missing)
                self._shared.clocks.join(np.unique(self._lanes.warp[members]))
            else:
                self._release(members, set((at[members] - 1).tolist()))
        waiting[:] = _NOT_WAITING
