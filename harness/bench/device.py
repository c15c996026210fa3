"""The one interface behind which a device is timed, and its two implementations.

Every line that needs a CUDA GPU stands here or in `clocks.py`; tests put a fake of `torch.cuda` in its place.
"""

import ctypes
import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from ..core.errors import UsageError
from .clocks import Clocks, NoClocks, NvmlClocks

Call = Callable[[], object]

HEAD_START_CYCLES = 1_000_000
"""Clock cycles that the GPU spins before each timed call, so that the call is enqueued by then: about 0.5 ms,
the time Python needs to launch the twenty kernels of a decoder layer."""


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is short; on a CPU PyTorch raises a RuntimeError."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


class Device(Protocol):
    """What measuring needs of a device."""

    kind: str
    name: str
    torch_device: torch.device
    clocks: Clocks
    cache_bytes: int
    memory_bytes: int

    def free_bytes(self) -> int:
        """Memory that inputs may take, in bytes."""

    def time_each(self, calls: Sequence[Call]) -> list[float]:
        """Run the calls one after another; device seconds of each."""

    def capture(self, calls: Sequence[Call]) -> Call | None:
        """One call that replays all of `calls` without the host in between; None where that cannot be."""

    def release(self) -> None:
        """Give unused memory back."""


class CpuDevice:
    """The processor this runs on, timed with `time.perf_counter_ns`."""

    kind = "cpu"

    def __init__(self) -> None:
        self.name = cpu_name()
        self.torch_device = torch.device("cpu")
        self.clocks: Clocks = NoClocks()
        self.cache_bytes = last_level_cache_bytes()
        self.memory_bytes = _meminfo_bytes("MemTotal")

    def free_bytes(self) -> int:
        """Memory available to this process: the machine's, or less where a control group sets a limit."""
        return min([_meminfo_bytes("MemAvailable"), *_control_group_free_bytes()])

    def time_each(self, calls: Sequence[Call]) -> list[float]:
        """Run the calls one after another; seconds of each."""
        samples = []
        for call in calls:
            start_ns = time.perf_counter_ns()
            call()
            samples.append((time.perf_counter_ns() - start_ns) * 1e-9)
        return samples

    def capture(self, calls: Sequence[Call]) -> Call | None:
        """A CPU call has no launch to take out."""
        del calls
        return None

    def release(self) -> None:
        """Give freed memory back to the system, so that what is free is known."""
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


class CudaDevice:
    """A CUDA GPU, timed with events.

    Args:
        index: of the device, as torch counts.
        cuda: stands in for `torch.cuda` in tests.
        clocks: stands in for NVML in tests.
    """

    kind = "cuda"

    def __init__(self, index: int, *, cuda: Any = torch.cuda, clocks: Clocks | None = None) -> None:
        self._cuda = cuda
        properties = cuda.get_device_properties(index)
        self.name = str(properties.name)
        self.torch_device = torch.device("cuda", index)
        self.clocks = clocks or NvmlClocks.of(str(properties.uuid))
        self.cache_bytes = int(properties.L2_cache_size)
        self.memory_bytes = int(properties.total_memory)
        self.compute_capability = f"{properties.major}.{properties.minor}"
        self.sm_count = int(properties.multi_processor_count)
        cuda.set_device(index)

    def free_bytes(self) -> int:
        """Memory free on the GPU, in bytes."""
        return int(self._cuda.mem_get_info(self.torch_device)[0])

    def time_each(self, calls: Sequence[Call]) -> list[float]:
        """Run the calls one after another; seconds of each between two events, launches not counted."""
        pairs = []
        for call in calls:
            start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
            self._cuda._sleep(HEAD_START_CYCLES)  # noqa: SLF001  (no public spin kernel exists)
            start.record()
            call()
            end.record()
            pairs.append((start, end))
        self._cuda.synchronize()
        return [start.elapsed_time(end) * 1e-3 for start, end in pairs]

    def capture(self, calls: Sequence[Call]) -> Call | None:
        """A CUDA graph of the calls; None where one of them synchronises or cannot be captured else."""
        stream = self._cuda.Stream()
        stream.wait_stream(self._cuda.current_stream())
        with self._cuda.stream(stream):
            for call in calls:
                call()
        self._cuda.current_stream().wait_stream(stream)
        graph = self._cuda.CUDAGraph()
        try:
            with self._cuda.graph(graph):
                for call in calls:
                    call()
        except RuntimeError:
            self._cuda.synchronize()
            return None
        replay: Call = graph.replay
        return replay

    def release(self) -> None:
        """Give cached memory back."""
        gc.collect()
        self._cuda.empty_cache()


def open_device(argument: str, *, cuda: Any = torch.cuda) -> Device:
    """The device that `--device` names: auto, cpu, cuda or cuda:INDEX.

    Raises:
        UsageError: another word, or a CUDA device that is not there.
    """
    kind, _, index = argument.partition(":")
    count = cuda.device_count() if cuda.is_available() else 0
    if argument == "cpu" or (argument == "auto" and count == 0):
        return CpuDevice()
    if kind not in {"auto", "cuda"} or (":" in argument and not (kind == "cuda" and index.isdecimal())):
        raise UsageError(f"--device: {argument!r} is not auto, cpu, cuda or cuda:INDEX")
    if count == 0:
        raise UsageError(f"--device: {argument!r} needs a CUDA GPU and torch finds none here; cpu works")
    if int(index or 0) >= count:
        names = ", ".join(f"cuda:{i}" for i in range(count))
        raise UsageError(f"--device: {argument!r} is not there; there is {names}")
    return CudaDevice(int(index or 0), cuda=cuda)


def cpu_name() -> str:
    """The processor's name, as the kernel tells it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), "unknown CPU")


def last_level_cache_bytes(root: Path = Path("/sys/devices/system/cpu")) -> int:
    """Bytes of all last-level caches together; 32 MiB where the system does not tell."""
    caches: dict[tuple[int, str], int] = {}
    for folder in root.glob("cpu[0-9]*/cache/index[0-9]*"):
        try:
            level, size, shared = (
                (folder / name).read_text(encoding="ascii").strip()
                for name in ("level", "size", "shared_cpu_list")
            )
            caches[int(level), shared] = int(size.removesuffix("K")) * 1024
        except (OSError, ValueError):
            continue
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last) or 32 * 2**20


def _meminfo_bytes(key: str, path: Path = Path("/proc/meminfo")) -> int:
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{path}: has no line {key}")


def _reclaimable(stat: Path, key: str) -> int:
    """Bytes of file cache that give way when memory is asked for; 0 where the group does not tell."""
    try:
        lines = stat.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.removeprefix(key)) for line in lines if line.startswith(key)), 0)


def _control_group_free_bytes(root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Bytes left under the control group's limit, in a list that is empty where none is set."""
    names = (
        ("memory.max", "memory.current", "memory.stat", "inactive_file "),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file ",
        ),
    )
    for limit, usage, stat, cached in names:
        try:
            most, used = (int((root / name).read_text(encoding="ascii")) for name in (limit, usage))
            return [most - used + _reclaimable(root / stat, cached)]
        except (OSError, ValueError):  # not mounted, or "max"
            continue
    return []
