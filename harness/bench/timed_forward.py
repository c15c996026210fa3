"""Times a forward of a decoder: section by section on a CPU, as a CUDA graph on a GPU."""

import statistics
from collections.abc import Callable

import torch

from ..core.gap import TOKEN_PARTS
from .decoder import Forward, completed
from .device import Call, Device


class TimedForward:
    """A forward that can be run many times; keeps its last output and how its samples were taken.

    Args:
        device: runs and times it.
        make: begins a forward, which yields the part of TOKEN_PARTS that each of its sections belongs to.
    """

    def __init__(self, device: Device, make: Callable[[], Forward]) -> None:
        self.make, self.output, self.method = make, torch.empty(0), ""
        self._device = device
        self._call: Call | None = None
        self._parts_s: list[dict[str, float]] = []

    def sample(self, samples: list[float], enough: Callable[[], bool]) -> None:
        """Append the seconds of each forward to the samples until there are enough."""
        if self._device.kind == "cpu":
            self.method = "cpu: the sections of each forward"
            while not enough():
                samples.append(self._by_sections())
            return
        if self._call is None:
            replay = self._device.capture([self._complete])
            self.method = f"{self._device.kind}: each forward" + (", a graph replay" if replay else "")
            self._call = replay or self._complete
            self._device.size_head_start(self._call)
        while not enough():
            samples += self._device.time_each([self._call])

    def parts_s(self) -> dict[str, float]:
        """Median seconds of each part, by TOKEN_PARTS."""
        if not self._parts_s:
            output = self.output
            self._by_sections()
            self.output = output
        return {part: statistics.median(parts[part] for parts in self._parts_s) for part in TOKEN_PARTS}

    def _complete(self) -> None:
        self.output = completed(self.make())

    def _by_sections(self) -> float:
        """Seconds of one forward, the sum of its sections."""
        forward, parts_s = self.make(), dict.fromkeys(TOKEN_PARTS, 0.0)
        done: list[str] = []

        def section() -> None:
            try:
                done.append(next(forward))
            except StopIteration as end:
                self.output = end.value

        while True:
            before = len(done)
            [section_s] = self._device.time_each([section])
            if len(done) == before:
                break
            parts_s[done[-1]] += section_s
        self._parts_s.append(parts_s)
        return sum(parts_s.values())
