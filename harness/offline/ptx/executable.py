"""A compiled kernel that is ready to be executed, and its launches."""

from collections import deque
from collections.abc import Iterator, Mapping

import numpy as np

from .counters import LaunchCounters
from .cta import Cta, Launch
from .global_memory import GlobalMemory
from .lanes import LOCAL_BASE, PARAMETER_BASE, SHARED_BASE, TrapError
from .mbarriers import StuckError
from .opcodes import OPCODES
from .parser import PtxKernel
from .tensor_maps import TensorMap
from .translator import Translator
from .violations import Violation, ViolationLog

_MAX_BLOCKS = 200_000  # of a CTA; the longest test case executes some thousands
_PARAMETER_SPACING = 256
_ENDED = object()


class Executable:
    """A kernel's PTX, translated.

    Args:
        ptx: of one kernel.
        shared_bytes: dynamic shared memory of a CTA.
        max_blocks: basic blocks that a CTA may execute before it counts as endless.

    Raises:
        UnsupportedPtxError: names the PTX line and the instruction that this executor does not know.
    """

    def __init__(self, ptx: str, shared_bytes: int, max_blocks: int = _MAX_BLOCKS) -> None:
        self.kernel = PtxKernel(ptx)
        self._parameter_addresses = {
            name: PARAMETER_BASE + _PARAMETER_SPACING * n for n, name in enumerate(self.kernel.parameters)
        }
        symbols = {"global_smem": SHARED_BASE, **self._parameter_addresses}
        self._constants = {
            name: np.frombuffer(raw + bytes(-len(raw) % 16), np.uint8).copy()
            for name, raw in self.kernel.constants.items()
        }
        symbols.update({name: copy.ctypes.data for name, copy in self._constants.items()})
        self._shared_bytes = _place(symbols, self.kernel.shared_arrays, SHARED_BASE, shared_bytes)
        self._local_bytes = _place(symbols, self.kernel.local_arrays, LOCAL_BASE, 0)
        self._max_blocks = max_blocks
        self._translation = Translator(self.kernel, symbols, OPCODES).translate()
        self._instructions = self.kernel.instructions
        self._barriers = self.kernel.barriers()

    def launch(
        self,
        grid: tuple[int, ...],
        parameters: Mapping[str, bytes],
        memory: GlobalMemory,
        *,
        tensor_maps: Mapping[str, TensorMap],
        rng: np.random.Generator,
        counters: LaunchCounters | None = None,
    ) -> tuple[list[Violation], int]:
        """Executes every CTA of a grid, in random order.

        Args:
            grid: number of CTAs along up to three axes.
            parameters: bytes by PTX name.
            memory: the tensors.
            tensor_maps: by the PTX name of the parameter that holds them.
            rng: gives the order.
            counters: takes executed figures.

        Returns:
            The violations, notes among them, and the number of CTAs executed: fewer than the grid's where
            one is stuck or traps.
        """
        for name, copy in self._constants.items():
            memory.add(name, copy.ctypes.data, copy.nbytes)
        width, height, depth = (*grid, 1, 1)[:3]
        launch = Launch(
            kernel=self.kernel,
            translation=self._translation,
            shared_bytes=self._shared_bytes,
            local_bytes=self._local_bytes,
            grid=(width, height, depth),
            parameters=parameters,
            tensor_maps={self._parameter_addresses[name]: used for name, used in tensor_maps.items()},
            memory=memory,
            log=ViolationLog(self.kernel.name, self._instructions),
            counters=counters or LaunchCounters(len(self.kernel.blocks)),
            barriers=self._barriers,
            max_blocks=self._max_blocks,
        )
        executed = 0
        try:
            for _ in _finished(launch, rng):
                executed += 1
        except (StuckError, TrapError):
            pass
        return list(launch.log.found.values()), executed


def _finished(launch: Launch, rng: np.random.Generator) -> Iterator[None]:
    """Executes the CTAs in random order, and yields for each that ends.

    One that pauses lets others start; those that paused then take turns.
    """
    width, height, depth = launch.grid
    paused: deque[Iterator[None]] = deque()
    for number in rng.permutation(width * height * depth).tolist():
        rest, x = divmod(number, width)
        z, y = divmod(rest, height)
        steps = Cta(launch, (x, y, z), number).steps()
        if next(steps, _ENDED) is _ENDED:
            yield
        else:
            paused.append(steps)
    while paused:
        steps = paused.popleft()
        if next(steps, _ENDED) is _ENDED:
            yield
        else:
            paused.append(steps)


def _place(symbols: dict[str, int], arrays: Mapping[str, tuple[int, int]], base: int, used: int) -> int:
    """Gives arrays addresses after `used` bytes from `base` on; returns the bytes used then."""
    for name, (size, alignment) in arrays.items():
        used = (used + alignment - 1) // alignment * alignment
        symbols[name] = base + used
        used += size
    return used
