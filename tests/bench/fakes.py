"""Fake devices, clocks and `torch.cuda` for the tests of bench."""

from decodetax.harness.bench.clocks import Clocks
from decodetax.harness.bench.device import CpuDevice
from decodetax.harness.bench.runner import Bench
from decodetax.harness.bench.timer import Budget
from decodetax.harness.core.arena import Arena
from decodetax.harness.core.records import Roof
from small_cases import CPU

BRIEF = Budget(time_limit_s=0.002, warm_up_s=0.0, enough_samples=3, max_samples=6)
WIDE_ROOF = Roof(flop_per_s=1e12, bandwidth_bytes_per_s=1e11)


class Clock:
    """A wall clock that moves only when it is set."""

    def __init__(self):
        self.time_s = 0.0

    def __call__(self):
        return self.time_s


class FakeDevice:
    """Runs calls at once and reports `seconds_of(call)` as the time of each; the clock advances by it."""

    torch_device = CPU
    settings = ()
    name = "a device of the tests"

    def __init__(
        self,
        *,
        kind="cpu",
        seconds_of=lambda _call: 1e-3,
        graphs=False,
        cache_bytes=4096,
        memory_bytes=2**30,
        free_bytes=2**30,
        clocks=None,
    ):
        self.kind, self.cache_bytes, self.memory_bytes = kind, cache_bytes, memory_bytes
        self.clocks = clocks or Clocks()
        self.clock, self.timed_s = Clock(), 0.0
        self.captured, self.blocks, self.released, self.left_s = None, [], 0, 0.0
        self._seconds_of, self._graphs, self._free_bytes = seconds_of, graphs, free_bytes

    def free_bytes(self):
        return self._free_bytes

    def time_each(self, calls, *, before=lambda: None, limit_s=None):
        self.limit_s, samples = limit_s, []
        for call in calls:
            before()
            call()
            parts = self.captured if getattr(call, "is_replay", False) else [call]
            samples.append(sum(self._seconds_of(part) for part in parts))
            self.clock.time_s += samples[-1]
        self.blocks.append(len(samples))
        return samples

    def size_head_start(self, call):
        """Nothing: calls run at once."""

    def capture(self, calls):
        if not self._graphs:
            return None
        self.captured = list(calls)

        def replay():
            for call in calls:
                call()

        replay.is_replay = True
        return replay

    def copy_at_once(self, rewrite, output):
        rewrite()
        return output().clone()

    def busy_after_s(self, call):
        call()
        return self.left_s

    def release(self):
        self.released += 1


class SmallCpu(CpuDevice):
    """This CPU with a cache of 4 KiB, so that buffers are small."""

    def __init__(self):
        super().__init__()
        self.cache_bytes = 4096


class FakeClocks:
    """Gives clocks one after another, and throttle reasons."""

    def __init__(self, *clocks_hz, throttle_reasons=(), facts=None):
        self._clocks_hz, self._throttle_reasons = iter(clocks_hz), throttle_reasons
        self._facts = {"driver": "1.2.3", "power_limit_w": 700.0} if facts is None else facts

    def clock_hz(self):
        return next(self._clocks_hz)

    def throttle_reasons(self):
        return self._throttle_reasons

    def facts(self):
        return self._facts


def arena(size_bytes=2**23, seed=0):
    return Arena(CPU, seed, size_bytes=size_bytes)


def bench(device, *, budget=BRIEF, roof=WIDE_ROOF, size_bytes=2**18):
    return Bench(device=device, arena=arena(size_bytes), budget=budget, roof=roof)
