"""What a provider changes in the process is seen, said and put back."""

import os
import threading
import time
from pathlib import Path

import pytest
import torch
from decodetax.harness.bench import process_state
from decodetax.harness.bench.process_state import SETTINGS, ProcessState, Setting


class Watcher(torch.overrides.TorchFunctionMode):
    """Sees each call of a torch function."""


class Dispatcher(torch.utils._python_dispatch.TorchDispatchMode):
    """Sees each operator."""


def many_threads():
    torch.set_num_threads(torch.get_num_threads() + 1)


CHANGES = {
    "changed the number of threads from 1 to 2": many_threads,
    "changed the default dtype from torch.float32 to torch.float64": lambda: torch.set_default_dtype(
        torch.float64
    ),
    "changed the precision of float32 products from highest to medium": (
        lambda: torch.set_float32_matmul_precision("medium")
    ),
    "changed deterministic algorithms from (False, False) to (True, True)": (
        lambda: torch.use_deterministic_algorithms(True, warn_only=True)
    ),
    "changed the grad mode from True to False": lambda: torch.set_grad_enabled(False),
    "changed autocast: cpu to True": lambda: torch.set_autocast_enabled("cpu", True),
    "changed the flushing of denormals from False to True": lambda: torch.set_flush_denormal(True),
    "changed the use of oneDNN from True to False": lambda: torch._C._set_mkldnn_enabled(False),
    "changed the use of flash attention from True to False": (
        lambda: torch.backends.cuda.enable_flash_sdp(False)
    ),
    "changed PyTorch's modes from (0, 0) to (1, 0)": lambda: Watcher().__enter__(),
    "changed PyTorch's modes from (0, 0) to (0, 1)": lambda: Dispatcher().__enter__(),
    "changed the garbage collector from True to False": process_state.gc.disable,
    "changed environment variables: OMP_NUM_THREADS to 1": lambda: os.environ.update(OMP_NUM_THREADS="1"),
    "replaced time.perf_counter_ns": lambda: setattr(time, "perf_counter_ns", time.time_ns),
    "replaced torch.matmul": lambda: setattr(torch, "matmul", torch.mm),
    "replaced Tensor.clone": lambda: setattr(torch.Tensor, "clone", lambda tensor: tensor),
}


@pytest.mark.parametrize("text", CHANGES)
def test_change_is_said_and_undone(text, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = [setting.read() for setting in SETTINGS]
    functions = time.perf_counter_ns, torch.matmul, torch.Tensor.clone
    state = ProcessState()
    CHANGES[text]()
    try:
        assert text in state.restore()
    finally:
        state.restore()
    assert [setting.read() for setting in SETTINGS] == before
    assert (time.perf_counter_ns, torch.matmul, torch.Tensor.clone) == functions
    assert ProcessState().restore() == []


def test_precision_of_one_backend_is_seen():
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("this PyTorch has one precision for all backends")
    state = ProcessState()
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    assert state.restore() == ["changed the precision of float32 products from highest to mixed"]
    assert torch.get_float32_matmul_precision() == "highest"


def test_changed_folder_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    state = ProcessState()
    os.chdir("elsewhere")
    assert state.restore() == [f"changed the current folder from {tmp_path} to {tmp_path / 'elsewhere'}"]
    assert Path.cwd() == tmp_path


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU alone")
def test_cpus_of_this_thread_and_of_those_it_started_are_put_back():
    before = os.sched_getaffinity(0)
    state, done, of_worker = ProcessState(), threading.Event(), []
    os.sched_setaffinity(0, {min(before)})
    worker = threading.Thread(target=lambda: (done.wait(), of_worker.append(os.sched_getaffinity(0))))
    worker.start()
    [change] = state.restore()
    done.set()
    worker.join()
    assert change.startswith("changed the CPU affinity from {")
    assert os.sched_getaffinity(0) == before
    assert of_worker == [before]


def test_settings_of_the_device_are_compared_too():
    stream = ["main"]
    setting = Setting(
        name="the current stream", read=lambda: stream[0], write=lambda value: stream.insert(0, value)
    )
    state = ProcessState([setting])
    stream[0] = "side"
    assert state.restore() == ["changed the current stream from main to side"]
    assert stream[0] == "main"


def test_what_is_added_is_no_change():
    state = ProcessState()
    torch.a_name_of_the_tests = 3
    del torch.a_name_of_the_tests
    os.environ["A_NAME_OF_THE_TESTS"] = "3"
    del os.environ["A_NAME_OF_THE_TESTS"]
    torch.nn.functional.a_name_of_the_tests = len
    assert state.restore() == []
    del torch.nn.functional.a_name_of_the_tests
