"""Runs the kernel tests of this folder on CPU tensors, for their launches: no result is compared.

Run them within `launches_patched` of `harness/offline/offline_driver.py`, which replaces the launches.
"""

import contextlib
from pathlib import Path
from unittest import mock

import pytest
import torch
from decodetax import kernels
from decodetax.harness.offline.default_tilings import kernel_limits
from decodetax.kernels import reference
from torch.overrides import TorchFunctionMode

# Loaded now: while launches are patched, importing them would choose interpreted kernels.
HOST_FUNCTIONS = (
    kernels.decode_attention,
    kernels.merge_states,
    kernels.prefill_attention,
    kernels.prefill_matmul,
)
NAMES = ("test_kernels.py", "test_matmul_variants.py", "test_prompts.py")
FILES = [Path(__file__).with_name(name) for name in NAMES]


class CpuTensors(TorchFunctionMode):
    """Makes tensors on the CPU that were asked for on a GPU; random ones are not drawn."""

    def __torch_function__(self, function, _types, args=(), kwargs=None):
        named = {name: _on_cpu(value) for name, value in (kwargs or {}).items()}
        if function is torch.randn:
            function = torch.empty
        return function(*(_on_cpu(value) for value in args), **named)


def _on_cpu(value):
    is_gpu = isinstance(value, str | torch.device) and str(value).startswith("cuda")
    return "cpu" if is_gpu else value


class Graph:
    """A CUDA graph that replays nothing."""

    def replay(self):
        pass


def _fake_product(x, weight, *, activation=None, **_options):
    if isinstance(weight, tuple):  # gate and up
        columns = weight[0].shape[-2]
    else:
        columns = weight.shape[-2] // (2 if activation == "swiglu" else 1)
    return torch.zeros(1).expand(*x.shape[:-1], columns)


def _fake_attention(q, k_cache, v_cache, context_lens, **_options):
    del k_cache, context_lens
    return torch.zeros(1).expand(*q.shape[:-1], v_cache.shape[-1]), torch.zeros(q.shape[:-1])


def _fake_prefill(q, k, v, **_options):
    del k
    return torch.zeros(1).expand(*q.shape[:-1], v.shape[-1]), torch.zeros(q.shape[:-1])


class Plugin:
    """Runs every `shares`-th test without a GPU, without its oracle and its comparisons."""

    def __init__(self, gpu, share, shares):
        self._share, self._shares, self._limits = share, shares, kernel_limits(gpu)
        self._cuda = {
            "get_device_capability": lambda _device=None: divmod(gpu.sm, 10),
            "memory_stats": lambda: {"allocation.all.allocated": 0},
            "get_sync_debug_mode": lambda: 0,
            "set_sync_debug_mode": lambda _mode: None,
            "CUDAGraph": Graph,
            "graph": lambda _graph: contextlib.nullcontext(),
        }
        self.tests, self.errors = 0, []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        items[:] = items[self._share :: self._shares]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self):
        with mock.patch.multiple(torch.cuda, **self._cuda):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        self.tests += 1
        with contextlib.ExitStack() as patches:
            patches.enter_context(CpuTensors())
            patches.enter_context(mock.patch.multiple(torch.cuda, **self._cuda))
            patches.enter_context(
                mock.patch.multiple(
                    reference,
                    prefill_matmul=_fake_product,
                    decode_attention=_fake_attention,
                    prefill_attention=_fake_prefill,
                )
            )
            patches.enter_context(mock.patch.object(torch, "equal", return_value=True))
            for module, name, fake in (
                (torch.testing, "assert_close", lambda *_tensors, **_named: None),
                (item.module, "row_errors", lambda *_tensors: torch.zeros(1)),
                (item.module, "gpu_limits", lambda _device: self._limits),
            ):
                if hasattr(module, name):
                    patches.enter_context(mock.patch.object(module, name, fake))
            try:
                return (yield)
            except AssertionError:
                return None  # no kernel ran, so its output is not right
            except Exception as error:
                self.errors.append(f"{item.name}: {type(error).__name__}: {error}")
                raise


def run_gpu_tests(gpu, *, share=0, shares=1, words=""):
    """Runs the kernel tests: each `shares`-th from number `share`, with `words` those that `-k` selects.

    Returns:
        The plugin, which has the number of tests and every error that is no failed comparison.
    """
    plugin = Plugin(gpu, share, shares)
    with mock.patch.object(torch.cuda, "is_available", return_value=True):
        options = ["-q", "-m", "gpu", "-n", "0", "-p", "no:cacheprovider", "-k", words]
        code = pytest.main([*options, *map(str, FILES)], plugins=[plugin])
    if code not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED}:
        plugin.errors.append(f"pytest ended with {code!r}")
    return plugin
