"""A fake of `torch.cuda`."""

import contextlib
import types
import warnings


class FakeCuda:
    """`torch.cuda` with `count` GPUs, or with the reason why there is none; records the calls to it in order.

    A wait in a capture fails as in PyTorch 2.11: the capture stream stays current, and the allocator stays in
    capture until `_cuda_endAllocateToPool`. A capture of no kernel warns.
    """

    def __init__(self, *, count=1, no_gpu=None, elapsed_ms=2.0, free_bytes=123, looks=0, **properties):
        self.log, self.slept_cycles, self.pools_in_capture = [], [], []
        self.memory = types.SimpleNamespace(_cuda_endAllocateToPool=self._end_allocate_to_pool)
        self._count, self._no_gpu = 0 if no_gpu else count, no_gpu
        self._elapsed_ms, self._free_bytes, self._looks = elapsed_ms, free_bytes, looks
        self._current, self._sync_mode = FakeStream(self.log, "main"), 0
        self._capturing = self._invalid = False
        self._properties = {
            "name": "NVIDIA H100 80GB HBM3",
            "uuid": "1234",
            "L2_cache_size": 50 * 2**20,
            "total_memory": 80 * 2**30,
            "major": 9,
            "minor": 0,
            "multi_processor_count": 132,
            **properties,
        }

    def is_available(self):
        return self._count > 0

    def device_count(self):
        return self._count

    def init(self):
        if self._no_gpu is not None:
            raise RuntimeError(self._no_gpu)

    def get_device_properties(self, index):
        self.log.append(f"properties {index}")
        return types.SimpleNamespace(**self._properties)

    def set_device(self, index):
        self.index = index
        self.log.append(f"set device {index}")

    def current_device(self):
        return self.index

    def mem_get_info(self, device):
        self.log.append(f"memory of {device}")
        return self._free_bytes, 10 * self._free_bytes

    def empty_cache(self):
        if self.pools_in_capture:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")
        self.log.append("empty cache")

    def synchronize(self):
        """Waits for the GPU; PyTorch's debug mode does not see it."""
        self._wait("synchronize")

    def item(self):
        """Waits for the GPU, as `Tensor.item` does."""
        if self._sync_mode:
            raise RuntimeError("called a synchronizing CUDA operation")
        self._wait("item")

    def _wait(self, name):
        self.log.append(name)
        if self._capturing:
            self._invalid = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    def launch(self, name):
        """A kernel on the current stream."""
        self.log.append(name)

    def get_sync_debug_mode(self):
        return self._sync_mode

    def set_sync_debug_mode(self, mode):
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=2)
        self._sync_mode = {"default": 0, "error": 2}.get(mode, mode)

    def _sleep(self, cycles):
        self.slept_cycles.append(cycles)
        self.log.append("sleep")

    def Event(self, *, enable_timing):  # noqa: N802  (torch's name)
        assert enable_timing
        return FakeEvent(self)

    def Stream(self):  # noqa: N802  (torch's name)
        return FakeStream(self.log, "side")

    def current_stream(self):
        return self._current

    def set_stream(self, stream):
        self._current = stream

    @contextlib.contextmanager
    def stream(self, stream):
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    def CUDAGraph(self):  # noqa: N802  (torch's name)
        return types.SimpleNamespace(replay=lambda: self.log.append("replay"))

    def graph_pool_handle(self):
        return (0, 1)

    @contextlib.contextmanager
    def graph(self, _graph, *, pool=(1, 0), stream=None):
        before, self._current = self._current, stream or FakeStream(self.log, "torch's own")
        self.pools_in_capture.append(pool)
        self.log.append("begin capture")
        begun = len(self.log)
        self._capturing, self._invalid = True, False
        try:
            yield
        finally:
            self._capturing = False
            if self._invalid:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            self.pools_in_capture.remove(pool)
            if len(self.log) == begun:
                warnings.warn("The CUDA Graph is empty. This usually means", stacklevel=2)
            self.log.append("end capture")
            self._current = before

    def _end_allocate_to_pool(self, device, pool):
        assert device == 0
        if pool not in self.pools_in_capture:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.pools_in_capture.remove(pool)


class FakeEvent:
    """Records its time; the time between two events is that of the fake GPU. It is done after some looks."""

    def __init__(self, cuda):
        self._cuda = cuda
        self.recorded = False

    def record(self):
        self.recorded = True
        self._cuda.log.append("record")

    def synchronize(self):
        assert self.recorded
        self._cuda.log.append("wait for event")

    def query(self):
        assert self.recorded
        self._cuda.log.append("look")
        self._cuda._looks -= 1
        return self._cuda._looks < 0

    def elapsed_time(self, end):
        assert self.recorded
        assert end.recorded
        self._cuda.log.append("elapsed")
        return self._cuda._elapsed_ms


class FakeStream:
    """Records the streams it waits for."""

    def __init__(self, log, name):
        self._log, self.name = log, name

    def wait_stream(self, other):
        self._log.append(f"{self.name} waits for {other.name}")
