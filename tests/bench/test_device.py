"""Devices: CudaDevice on a fake of `torch.cuda`, CpuDevice on this CPU."""

import ast
import contextlib
import gc
import inspect
import re
import subprocess
import sys
import time
import types

import pytest
import torch
from decodetax.harness.bench import device as module
from decodetax.harness.bench.clocks import Clocks
from decodetax.harness.bench.device import (
    CpuDevice,
    CudaDevice,
    open_device,
    out_of_memory,
)
from decodetax.harness.bench.process_state import ProcessState
from decodetax.harness.bench.timer import Budget, measure
from decodetax.harness.core.errors import UsageError
from fake_torch_cuda import FakeCuda
from fakes import Clock, FakeClocks


def device_with_cuda(**options):
    cuda = FakeCuda(**options)
    device = CudaDevice(0, cuda=cuda, clocks=Clocks())
    cuda.log.clear()
    return cuda, device


def cuda_device(**options):
    cuda, device = device_with_cuda(**options)
    return device, cuda.log


def test_torch_has_all_that_the_fake_of_it_offers():
    of_the_tests = {"item", "launch", "_wait", "_end_allocate_to_pool"}
    offered = {name for name in vars(FakeCuda) if not name.startswith("__")} - of_the_tests
    assert {name for name in offered if not hasattr(torch.cuda, name)} == set()
    assert {"pool", "stream"} <= set(inspect.signature(torch.cuda.graph).parameters)
    assert hasattr(torch.cuda.memory, "_cuda_endAllocateToPool")


def test_gpu_reports_what_torch_reports():
    cuda = FakeCuda(count=2, major=10, minor=3)
    device = CudaDevice(1, cuda=cuda, clocks=Clocks())
    assert device.name == "NVIDIA H100 80GB HBM3"
    assert device.torch_device == torch.device("cuda", 1)
    assert device.cache_bytes == 50 * 2**20
    assert device.memory_bytes == 80 * 2**30
    assert (device.compute_capability, device.sm_count) == ("10.3", 132)
    assert cuda.log == ["properties 1", "set device 1"]
    assert device.free_bytes() == 123
    assert cuda.log[2:] == ["memory of cuda:1"]


def test_events_bracket_each_call_behind_a_head_start():
    device, log = cuda_device(elapsed_ms=2.5)
    samples = device.time_each([lambda: log.append("call a"), lambda: log.append("call b")])
    each = ["sleep", "record", "call {}", "record"]
    assert log == [
        *(line.format("a") for line in each),
        *(line.format("b") for line in each),
        "synchronize",
        "elapsed",
        "elapsed",
    ]
    assert samples == pytest.approx([2.5e-3] * 2)


def test_what_comes_before_a_call_is_enqueued_behind_the_head_start_and_not_timed():
    device, log = cuda_device()
    device.time_each([lambda: log.append("call")] * 2, before=lambda: log.append("before"))
    assert log[:10] == ["sleep", "before", "record", "call", "record"] * 2


def test_cpu_does_not_time_what_comes_before_a_call():
    samples = module.CpuDevice().time_each([lambda: None], before=lambda: time.sleep(0.2), limit_s=1)
    assert samples[0] < 0.1


@pytest.mark.parametrize("limit_s", [0.5, 4.0])
def test_gpu_that_is_not_done_after_the_limit_is_not_waited_for(limit_s, monkeypatch):
    clock, cuda = Clock(), FakeCuda(looks=3)
    device, log = CudaDevice(0, cuda=cuda, clocks=Clocks(), now_s=clock), cuda.log
    monkeypatch.setattr(module.time, "sleep", lambda _s: setattr(clock, "time_s", clock.time_s + 1))
    log.clear()
    if limit_s > 3:
        assert device.time_each([lambda: None], limit_s=limit_s) == [2e-3]
        assert log[-3:] == ["look", "synchronize", "elapsed"]
    else:
        with pytest.raises(TimeoutError, match=r"the GPU was not done after 0\.5 s"):
            device.time_each([lambda: None], limit_s=limit_s)
        assert "synchronize" not in log


def test_output_is_copied_in_the_order_of_the_stream_without_a_wait():
    device, log = cuda_device()
    out = torch.zeros(3)
    found = device.copy_at_once(lambda: log.append("rewrite"), lambda: (log.append("call"), out)[1])
    assert log == ["synchronize", "sleep", "rewrite", "call"]
    out += 1
    assert found.tolist() == [0, 0, 0]


def test_gpu_is_busy_after_a_call_until_all_streams_are_idle(monkeypatch):
    clock, cuda = Clock(), FakeCuda()
    device, log = CudaDevice(0, cuda=cuda, clocks=Clocks(), now_s=clock), cuda.log
    log.clear()
    waits = iter([0.0, 0.003])

    def synchronize():
        log.append("synchronize")
        clock.time_s += next(waits)

    monkeypatch.setattr(cuda, "synchronize", synchronize)
    assert device.busy_after_s(lambda: log.append("call")) == pytest.approx(0.003)
    assert log == ["synchronize", "call", "record", "wait for event", "synchronize"]


def test_stream_and_gpu_that_a_provider_leaves_current_are_put_back():
    cuda, device = device_with_cuda()
    main, state = cuda.current_stream(), ProcessState(device.settings)
    cuda.set_stream(cuda.Stream())
    cuda.set_device(1)
    found = state.restore()
    assert [change.partition(" from ")[0] for change in found] == [
        "changed the current stream",
        "changed the current GPU",
    ]
    assert (cuda.current_stream(), cuda.current_device()) == (main, 0)


def test_cpu_copies_an_output_as_it_is_when_the_call_returns():
    device, inputs = module.CpuDevice(), torch.zeros(3)
    out = torch.zeros(3)
    found = device.copy_at_once(lambda: inputs.fill_(2), lambda: torch.add(inputs, 1, out=out))
    out.zero_()
    assert found.tolist() == [3, 3, 3]
    assert device.busy_after_s(lambda: None) == 0
    assert device.settings == ()


PEAK_HZ = 2e9


def timed_behind(enqueue_s, *, clocks):
    """The spins before the samples of a call that takes `enqueue_s` to enqueue, in seconds at PEAK_HZ."""
    cuda, wall = FakeCuda(), Clock()
    device = CudaDevice(0, cuda=cuda, clocks=clocks, now_s=wall)
    first_s = iter([3.0])  # it compiles

    def call():
        wall.time_s += next(first_s, enqueue_s)

    samples = []
    measure(
        device,
        [call],
        Budget(time_limit_s=1.0, warm_up_s=1e3),
        before_sampling=lambda: samples.append(len(cuda.slept_cycles)),
        now_s=wall,
    )
    return [cycles / PEAK_HZ for cycles in cuda.slept_cycles[samples[0] :]]


@pytest.mark.parametrize(
    ("enqueue_s", "spin_s"),
    [(1e-5, 0.5e-3), (0.3e-3, 0.6e-3), (7e-3, 14e-3), (5.0, 0.02)],
    ids=["fast", "decoder layer", "slow", "waits for the GPU"],
)
def test_call_that_is_slow_to_enqueue_gets_a_longer_spin(enqueue_s, spin_s):
    spins_s = timed_behind(enqueue_s, clocks=FakeClocks(facts={"sm_clock_max_hz": PEAK_HZ}))
    assert spins_s == pytest.approx([spin_s] * len(spins_s), rel=1e-3)
    assert spins_s


def test_spin_at_an_unknown_clock_is_long_enough_at_any():
    spins_s = timed_behind(7e-3, clocks=Clocks())
    assert min(spins_s) * PEAK_HZ >= 14e-3 * 3.1e9  # the highest boost clock of a GPU in the table


def test_spin_of_one_provider_does_not_last_for_the_next():
    cuda, wall = FakeCuda(), Clock()
    device = CudaDevice(0, cuda=cuda, clocks=FakeClocks(facts={"sm_clock_max_hz": PEAK_HZ}), now_s=wall)

    def slow():
        wall.time_s += 7e-3

    device.size_head_start(slow)
    device.size_head_start(lambda: None)
    device.time_each([lambda: None])
    assert cuda.slept_cycles == [0.5e-3 * PEAK_HZ]


def test_capture_tries_the_calls_on_the_capture_stream_and_replays():
    cuda, device = device_with_cuda()
    streams = []

    def call(name):
        cuda.launch(name)
        streams.append(cuda.current_stream())

    calls = [lambda: call("a"), lambda: call("b")]
    replay = device.capture(calls * 2)
    kernels = [entry for entry in cuda.log if entry in {"a", "b", "begin capture", "end capture"}]
    assert kernels == ["a", "b", "begin capture", *"abab", "end capture"]
    assert len({id(stream) for stream in streams}) == 1
    assert cuda.log[0] == "side waits for main"
    assert cuda.log[-1] == "main waits for side"
    assert cuda.current_stream().name == "main"
    device.capture(calls)
    assert len({id(stream) for stream in streams}) == 1  # each stream has a cuBLAS workspace of its own
    cuda.log.clear()
    replay()
    assert cuda.log == ["replay"]


@pytest.mark.parametrize("wait", ["item", "synchronize"])
def test_call_that_waits_for_the_gpu_is_never_captured(wait):
    cuda, device = device_with_cuda()

    def waiting():
        cuda.launch("kernel")
        getattr(cuda, wait)()

    assert device.capture([waiting]) is None
    assert "begin capture" not in cuda.log
    assert_usable(device, cuda)


@pytest.mark.parametrize("error", [RuntimeError, ValueError], ids=lambda error: error.__name__)
def test_failed_capture_leaves_the_process_usable(error):
    cuda, device = device_with_cuda()
    calls = iter([None, error("not in a capture")])

    def failing():
        if (problem := next(calls)) is not None:
            cuda._invalid = error is RuntimeError
            raise problem

    assert device.capture([failing]) is None
    assert "begin capture" in cuda.log
    assert_usable(device, cuda)


def test_failed_capture_leaves_older_pytorch_usable():
    """Before 2.8 it has no function of this name, and a failed capture leaves the allocator as it was."""
    cuda, device = device_with_cuda()
    del cuda.memory._cuda_endAllocateToPool

    def fails_in_capture():
        if cuda.pools_in_capture:
            cuda.pools_in_capture.clear()
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    assert device.capture([fails_in_capture]) is None
    assert cuda.current_stream().name == "main"


def test_empty_graph_does_not_warn_and_replays():
    cuda, device = device_with_cuda()
    replay = device.capture([lambda: None])
    replay()
    assert cuda.log[-1] == "replay"
    assert_usable(device, cuda)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_garbage_is_collected_between_calls_and_captures_alone(kind, fails):
    device = CpuDevice() if kind == "cpu" else device_with_cuda()[1]
    enabled = []

    def call():
        enabled.append(gc.isenabled())
        if fails:
            raise ValueError("a kernel failed")

    with pytest.raises(ValueError, match="a kernel failed") if fails else contextlib.nullcontext():
        device.time_each([call])
    assert gc.isenabled()
    device.capture([call])
    assert gc.isenabled()
    assert set(enabled) == {False}
    gc.disable()
    try:
        device.capture([call])
        assert not gc.isenabled()
    finally:
        gc.enable()


def assert_usable(device, cuda):
    """No capture is under way, waiting is allowed, and the next case is captured."""
    assert cuda.current_stream().name == "main"
    cuda.item()
    cuda.synchronize()
    device.release()
    assert device.capture([lambda: cuda.launch("next")]) is not None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("out of resource: shared memory, Required: 262144"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
    ids=str,
)
def test_out_of_memory_differs_from_other_errors(error, expected):
    assert out_of_memory(error) == expected


def test_release_gives_cached_memory_back():
    device, log = cuda_device()
    device.release()
    assert log == ["empty cache"]


@pytest.mark.parametrize(
    ("argument", "gpus", "opened"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 0, "cpu"),
        ("cpu", 2, "cpu"),
        ("cuda", 2, "cuda:0"),
        ("cuda:0", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_device_argument_opens(argument, gpus, opened, monkeypatch):
    interpreted, cublas = [], types.SimpleNamespace()
    monkeypatch.setattr(torch.backends.cuda, "matmul", cublas)
    monkeypatch.setattr(module, "use_interpreter", lambda: interpreted.append(True))
    device = open_device(argument, cuda=FakeCuda(count=gpus))
    narrow = {f"allow_{dtype}_reduced_precision_reduction": False for dtype in ("bf16", "fp16")}
    assert vars(cublas) == ({} if opened == "cpu" else narrow)
    assert interpreted == ([True] if opened == "cpu" else [])
    assert device.torch_device == torch.device(opened)
    assert device.kind == opened.partition(":")[0]


NO_WORD = "is not auto, cpu, cuda or cuda:INDEX"


@pytest.mark.parametrize(
    ("argument", "gpus", "reason"),
    [
        ("cuda", 0, "needs a CUDA GPU and torch finds none here; cpu works"),
        ("cuda:0", 0, "needs a CUDA GPU and torch finds none here; cpu works"),
        ("cuda:9", 2, "does not exist, can be cuda:0, cuda:1"),
        ("cuda:2", 2, "does not exist, can be cuda:0, cuda:1"),
        *(
            (word, gpus, NO_WORD)
            for gpus in (0, 1)
            for word in ("gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1.0")
        ),
        *((word, 1, NO_WORD) for word in ("", ":", "auto:0", "cpu:0", "CUDA", "cuda0", "cuda:0:0", " cpu")),
    ],
)
def test_rejects_bad_device_argument_in_one_line(argument, gpus, reason):
    with pytest.raises(UsageError, match=re.escape(f"--device: {argument!r} {reason}")) as caught:
        open_device(argument, cuda=FakeCuda(count=gpus))
    assert "\n" not in str(caught.value)


def test_cpu_times_each_call_on_its_own():
    waits_s = [0.0, 0.02, 0.005]
    log = []

    def call_of(index):
        def call():
            log.append(index)
            end_s = time.perf_counter() + waits_s[index]
            while time.perf_counter() < end_s:
                pass

        return call

    device, start_s = CpuDevice(), time.perf_counter()
    samples = device.time_each([call_of(i) for i in range(3)])
    wall_s = time.perf_counter() - start_s
    assert log == [0, 1, 2]
    assert all(wait <= sample for wait, sample in zip(waits_s, samples, strict=True))
    assert sum(samples) < wall_s


def test_cpu_reads_nanoseconds(monkeypatch):
    ticks = iter([1_000, 3_501, 10_000, 10_004])
    monkeypatch.setattr(module, "time", types.SimpleNamespace(perf_counter_ns=lambda: next(ticks)))
    samples = CpuDevice().time_each([lambda: None] * 2)
    assert samples == pytest.approx([2501e-9, 4e-9])


def test_cpu_has_no_graphs():
    device = CpuDevice()
    assert device.capture([lambda: None]) is None
    device.release()
    assert device.clocks.clock_hz() is None
    assert device.name
    assert 0 < device.free_bytes() <= device.memory_bytes


FAULTS = """
import resource, torch
from decodetax.harness.bench.device import keep_freed_memory

keep_freed_memory()
a, b = torch.ones(250, 10), torch.ones(10, 40_000)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    (a @ b).relu()  # two outputs of 40 MB, which glibc by default maps anew
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print([faults() for _ in range(30)])
"""


def test_calls_that_allocate_their_output_cause_no_page_faults_in_steady_state():
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, timeout=60, check=True
    )
    faults = ast.literal_eval(done.stdout)
    assert faults[0] > 10_000  # pages of 4 KiB
    assert max(faults[-10:]) < 100  # it takes up to 8 calls until the heap has what aligned blocks need
