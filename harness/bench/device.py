"""The devices that are timed: a CPU, or a CUDA GPU with its clocks.

Every line that needs a CUDA GPU is in this module and in `clocks`; tests pass fakes of `torch.cuda` and NVML.
"""

import contextlib
import ctypes
import gc
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch

from ...kernels import use_interpreter
from ..core.errors import UsageError, one_line
from . import cpu_facts
from .clocks import Clocks, NvmlClocks
from .process_state import Setting

Call = Callable[[], object]

MIN_HEAD_START_S, MAX_HEAD_START_S = 0.5e-3, 0.02
"""Limits of the seconds that the GPU spins before each timed call, so that launch overhead is not timed."""

HEAD_START_OVER_ENQUEUE = 2
"""How many times as long as the host needs to enqueue a call the GPU spins before it."""

HIGHEST_CLOCK_HZ = 3.5e9
"""Above the boost clock of any GPU; a spin is counted in cycles, so that a lower clock only lengthens it."""

POLL_S = 1e-4
"""Seconds between two looks at an event with a time limit."""

M_TRIM_THRESHOLD, M_MMAP_MAX = (-1, 2**31 - 1), (-4, 0)
"""Parameters of glibc's `mallopt`, with values: up to this size memory is kept that is freed at the end of
the heap, and no block is mapped on its own."""


def out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out; on a CPU, by CUDA and by Triton a plain RuntimeError."""
    text = one_line(error)
    no_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return no_memory or "allocate memory" in text or "out of memory" in text


class Device(Protocol):
    """A device that runs and times calls.

    Attributes:
        timed_s: seconds in sampled calls so far; the timer adds to it.
    """

    kind: str
    name: str
    torch_device: torch.device
    clocks: Clocks
    cache_bytes: int
    memory_bytes: int
    settings: Sequence[Setting]
    timed_s: float

    def free_bytes(self) -> int:
        """Bytes of memory that are free for inputs."""

    def time_each(
        self, calls: Sequence[Call], *, before: Call | None = None, limit_s: float = math.inf
    ) -> list[float]:
        """Run the calls one after another; seconds of each on the device.

        Args:
            calls: what to time.
            before: called before each of them, outside of its time; lets several ranks start together.
            limit_s: seconds to wait for the device.

        Raises:
            TimeoutError: a GPU is not done by then.
        """

    def size_head_start(self, call: Call) -> None:
        """Let the next calls to `time_each` cover the time that the host needs to enqueue this call."""

    def capture(self, calls: Sequence[Call]) -> Call | None:
        """A CUDA graph of all calls, as one call; None if they cannot be captured."""

    def copy_at_once(self, rewrite: Call, output: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Rewrite the inputs, call `output`, and copy what it returns before other work can catch up."""

    def busy_after_s(self, call: Call) -> float:
        """Seconds for which the device still computes after the end of a call."""

    def release(self) -> None:
        """Return unused memory to the system or the driver."""


class CpuDevice:
    """The CPU, timed with `time.perf_counter_ns`.

    Args:
        sharers: processes of this run that share its memory.
    """

    kind = "cpu"
    settings: Sequence[Setting] = ()

    def __init__(self, sharers: int = 1) -> None:
        self._sharers = sharers
        self.name = cpu_facts.cpu_name()
        self.torch_device, self.timed_s = torch.device("cpu"), 0.0
        self.clocks = Clocks()
        self.cache_bytes = cpu_facts.last_level_cache_bytes() or cpu_facts.ASSUMED_CACHE_BYTES
        self.memory_bytes = cpu_facts.memory_bytes()

    def free_bytes(self) -> int:
        """Bytes available to this process: of the machine, or fewer under a limit of its own."""
        return cpu_facts.free_bytes() // self._sharers

    def time_each(
        self, calls: Sequence[Call], *, before: Call | None = None, limit_s: float = math.inf
    ) -> list[float]:
        """Run the calls one after another; seconds of each by the wall clock. A call ends by itself."""
        del limit_s
        samples = []
        with _no_garbage_collection():
            for call in calls:
                if before is not None:
                    before()
                start_ns = time.perf_counter_ns()
                call()
                samples.append((time.perf_counter_ns() - start_ns) * 1e-9)
        return samples

    def size_head_start(self, call: Call) -> None:
        """Nothing: a call on a CPU is not enqueued."""

    def capture(self, calls: Sequence[Call]) -> Call | None:
        """None: a CPU has no graphs."""
        del calls
        return None

    def copy_at_once(self, rewrite: Call, output: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Rewrite the inputs, call `output`, and copy what it returns as it is then."""
        rewrite()
        return torch.clone(output())

    def busy_after_s(self, call: Call) -> float:
        """0: what goes on in a thread shows in the output (see `copy_at_once`)."""
        del call
        return 0.0

    def release(self) -> None:
        """Return freed memory to the system, so that `free_bytes` counts it."""
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def keep_freed_memory() -> None:
    """Let glibc's allocator keep what is freed: calls that allocate their output then cause no page faults.

    By default it maps large blocks anew each time. Other C libraries stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in (M_TRIM_THRESHOLD, M_MMAP_MAX):
            mallopt(parameter, value)


class CudaDevice:
    """A CUDA GPU, timed with events.

    Args:
        index: torch's index of the device.
        cuda: replaces `torch.cuda` in tests.
        clocks: replaces NVML in tests.
        now_s: the wall clock in seconds.
    """

    kind = "cuda"

    def __init__(
        self,
        index: int,
        *,
        cuda: Any = torch.cuda,
        clocks: Clocks | None = None,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._cuda, self._now_s = cuda, now_s
        properties = cuda.get_device_properties(index)
        self.name = str(properties.name)
        self.torch_device, self.timed_s = torch.device("cuda", index), 0.0
        self.clocks = clocks or NvmlClocks.of(str(properties.uuid))
        self.cache_bytes = int(properties.L2_cache_size)
        self.memory_bytes = int(properties.total_memory)
        self.compute_capability = f"{properties.major}.{properties.minor}"
        self.sm_count = int(properties.multi_processor_count)
        self.settings: Sequence[Setting] = (
            Setting(name="the current stream", read=cuda.current_stream, write=cuda.set_stream),
            Setting(name="the current GPU", read=cuda.current_device, write=cuda.set_device),
        )
        self._capture_stream: Any = None
        self._highest_clock_hz = float(self.clocks.facts().get("sm_clock_max_hz", HIGHEST_CLOCK_HZ))
        self._head_start_cycles = round(MIN_HEAD_START_S * self._highest_clock_hz)
        cuda.set_device(index)

    def free_bytes(self) -> int:
        """Bytes free on the GPU."""
        return int(self._cuda.mem_get_info(self.torch_device)[0])

    def time_each(
        self, calls: Sequence[Call], *, before: Call | None = None, limit_s: float = math.inf
    ) -> list[float]:
        """Run the calls one after another; seconds of each between two CUDA events, without launch.

        `before` is enqueued behind the head start, so that what it waits for has waited for the host too.

        Raises:
            TimeoutError: the GPU is not done after `limit_s` seconds.
        """
        pairs = []
        with _no_garbage_collection():
            for call in calls:
                start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
                self._cuda._sleep(self._head_start_cycles)  # noqa: SLF001  (no public spin kernel exists)
                if before is not None:
                    before()
                start.record()
                call()
                end.record()
                pairs.append((start, end))
        if limit_s < math.inf:
            self._await(pairs[-1][1], limit_s)
        self._cuda.synchronize()
        return [start.elapsed_time(end) * 1e-3 for start, end in pairs]

    def _await(self, event: Any, limit_s: float) -> None:
        """Wait for an event; other than `synchronize`, a GPU that waits for a lost one does not stop it."""
        start_s = self._now_s()
        while not event.query():
            if self._now_s() - start_s > limit_s:
                raise TimeoutError(f"the GPU was not done after {limit_s:g} s")
            time.sleep(POLL_S)

    def size_head_start(self, call: Call) -> None:
        """Enqueue the call on an idle GPU; the GPU spins twice as long before the calls timed next."""
        self._cuda.synchronize()
        start_s = self._now_s()
        call()
        head_start_s = HEAD_START_OVER_ENQUEUE * (self._now_s() - start_s)
        head_start_s = min(max(head_start_s, MIN_HEAD_START_S), MAX_HEAD_START_S)
        self._head_start_cycles = round(head_start_s * self._highest_clock_hz)

    def capture(self, calls: Sequence[Call]) -> Call | None:
        """A CUDA graph of the calls; None if one of them waits for the GPU or cannot be captured.

        Each call is tried before the capture. One that waits would make the capture fail, and after a failed
        one PyTorch 2.11 and 2.12 leave the allocator in capture (pytorch #180395), and every version leaves
        the capture stream current.
        """
        cuda, main, pool = self._cuda, self._cuda.current_stream(), self._cuda.graph_pool_handle()
        self._capture_stream = self._capture_stream or cuda.Stream()
        self._capture_stream.wait_stream(main)
        graph = cuda.CUDAGraph()
        try:
            with cuda.stream(self._capture_stream), _waiting_raises(cuda), _no_garbage_collection():
                for call in dict.fromkeys(calls):
                    call()
            with warnings.catch_warnings(), _no_garbage_collection():
                # The gate finds a graph that computes nothing.
                warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
                with cuda.graph(graph, pool=pool, stream=self._capture_stream):
                    for call in calls:
                        call()
        except Exception:  # noqa: BLE001  (a kernel may raise anything; without a graph it raises again)
            cuda.set_stream(main)
            # PyTorch before 2.8 has another name for it, and no need of it.
            end_allocation = getattr(cuda.memory, "_cuda_endAllocateToPool", None)
            if end_allocation is not None:
                with contextlib.suppress(RuntimeError):  # it is not in capture
                    end_allocation(self.torch_device.index, pool)
            return None
        finally:
            main.wait_stream(self._capture_stream)
        replay: Call = graph.replay
        return replay

    def copy_at_once(self, rewrite: Call, output: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Rewrite the inputs, call `output` and copy what it returns, all in the current stream's order.

        The rewriting waits behind a spin kernel, so that work in another stream that does not wait for the
        current one reads the numbers of before.
        """
        self._cuda.synchronize()
        self._cuda._sleep(self._head_start_cycles)  # noqa: SLF001  (as in `time_each`)
        rewrite()
        return torch.clone(output())

    def busy_after_s(self, call: Call) -> float:
        """Seconds from the end of a call in the current stream until the whole GPU is idle."""
        end = self._cuda.Event(enable_timing=True)
        self._cuda.synchronize()
        call()
        end.record()
        end.synchronize()
        start_s = self._now_s()
        self._cuda.synchronize()
        return self._now_s() - start_s

    def release(self) -> None:
        """Return cached memory to the driver."""
        gc.collect()
        self._cuda.empty_cache()


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A collection would pause the host between two launches; in a capture it may destroy another graph."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _waiting_raises(cuda: Any) -> Iterator[None]:
    """Calls that wait for the GPU raise RuntimeError, `synchronize` too, which PyTorch's mode misses."""

    def refuse(*_arguments: object) -> None:
        raise RuntimeError("called a synchronizing CUDA operation")

    mode, synchronize = cuda.get_sync_debug_mode(), cuda.synchronize
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        try:
            cuda.set_sync_debug_mode("error")
            cuda.synchronize = refuse
            yield
        finally:
            cuda.synchronize = synchronize
            cuda.set_sync_debug_mode(mode)


def open_device(argument: str, *, cuda: Any = torch.cuda, sharers: int = 1) -> Device:
    """The device that `--device` names: auto, cpu, cuda or cuda:INDEX; makes PyTorch and Triton ready for it.

    On a CPU this process runs Triton's interpreter from here on. cuBLAS accumulates in float32, as all other
    kernels do, and not in a narrower dtype.

    Args:
        argument: the device.
        cuda: replaces `torch.cuda` in tests.
        sharers: processes of this run that share the CPU.

    Raises:
        UsageError: another word, or a CUDA device that does not exist.
    """
    kind, _, index = argument.partition(":")
    count = cuda.device_count() if cuda.is_available() else 0
    if argument == "cpu" or (argument == "auto" and count == 0):
        use_interpreter()
        keep_freed_memory()
        return CpuDevice(sharers)
    if kind not in {"auto", "cuda"} or (":" in argument and not (kind == "cuda" and index.isdecimal())):
        raise UsageError(f"--device: {argument!r} is not auto, cpu, cuda or cuda:INDEX")
    if count == 0:
        raise UsageError(f"--device: {argument!r} needs a CUDA GPU and torch finds none here; cpu works")
    if int(index or 0) >= count:
        names = ", ".join(f"cuda:{i}" for i in range(count))
        raise UsageError(f"--device: {argument!r} does not exist, can be {names}")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    return CudaDevice(int(index or 0), cuda=cuda)
