"""Calls whose launches are checked on the fake GPU. As a program it prints the launches of one as JSON:

python launched_calls.py GPU CALL LOG [SHARE SHARES]
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import click
import fake_gpu
import torch
import triton
import triton.language as tl
from decodetax.harness.bench import tilings
from decodetax.harness.bench.compile_ahead import CompileAhead
from decodetax.harness.bench.providers import PROVIDERS
from decodetax.harness.core.cases import DecodeAttention, PrefillMatmul
from decodetax.harness.core.gpus import find_gpu
from decodetax.harness.core.inputs import BlankSource, draw
from decodetax.harness.core.sweep import Sweep, cases_of
from decodetax.harness.core.timed_model import load_timed_model
from decodetax.harness.offline.default_tilings import kernel_limits
from decodetax.kernels import decode_attention, merge_states, prefill_matmul
from triton.backends.nvidia.driver import CudaLauncher
from triton.runtime import driver, jit

BF16 = torch.bfloat16


def default_run(gpu):
    """Every Triton provider on every case of `decodetax run` without options."""
    sweep = Sweep(batches=(1, 8, 32), contexts=(1024, 4096), prompt=None, prefill_tokens=8192, dtype="bf16")
    for case in cases_of(load_timed_model("llama-3.1-8b"), sweep):
        device = SimpleNamespace(
            kind="cuda", compute_capability=gpu.compute_capability, torch_device=torch.device("cpu")
        )
        run = [
            provider.run
            for provider in PROVIDERS[case.operation]
            if provider.name.startswith("triton") and not provider.refuses(case, device)
        ]
        for launch in run:
            launch(draw(case, BlankSource(torch.device("cpu"), 0)))


def small(_gpu):
    """Each kernel once, with arguments that are None and that are not."""
    x, weight = torch.empty(300, 520, dtype=BF16), torch.empty(256, 520, dtype=BF16)
    prefill_matmul(x, weight, x_scale=0.75, bias=torch.empty(256))
    prefill_matmul(x, weight, activation="swiglu")
    prefill_matmul(torch.empty(64, 4096, dtype=BF16), torch.empty(256, 4096, dtype=BF16))  # split-K
    cache = torch.empty(2, 512, 2, 64, dtype=BF16)
    q, lengths = torch.empty(2, 8, 64, dtype=BF16), torch.empty(2, dtype=torch.int32)
    output, lse = decode_attention(q, cache, cache, lengths, softcap=3.5, return_lse=True)
    merge_states(output, lse, output, lse)


def kernel_tests(gpu, share="0", shares="1"):
    """A share of the tests of `tests/gpu` that call kernels."""
    from on_cpu_tensors import run_gpu_tests  # noqa: PLC0415  (its pytest is needed for this alone)

    with contextlib.redirect_stdout(sys.stderr):
        done = run_gpu_tests(gpu, share=int(share), shares=int(shares))
    return {"tests": done.tests, "errors": done.errors}


def timed_tests(gpu):
    """The cases of `tests/gpu` that are timed or tuned: the default tiling, and the first that differs."""
    from test_run import SMALL  # noqa: PLC0415
    from test_tune import CASES  # noqa: PLC0415

    for case in (SMALL, *CASES):
        tunable = tilings.TUNABLE[case.operation]
        default = tunable.default(case, kernel_limits(gpu))
        inputs = draw(case, BlankSource(torch.device("cpu"), 0))
        for tiling in tunable.candidates(case, default, kernel_limits(gpu))[:2]:
            tunable.run(inputs, tiling)


def compiled_ahead(gpu, cache):
    """Launches tilings that `decodetax tune` compiled ahead; the cubins in the cache before and after."""
    os.environ["TRITON_CACHE_DIR"] = cache
    matmul = PrefillMatmul(
        phase="prefill", part="o", rows=300, in_features=512, out_features=1000, dtype="bf16"
    )
    decode = DecodeAttention(contexts=(700, 700), q_heads=8, kv_heads=2, head_dim=64, dtype="bf16")
    limits, cubins = kernel_limits(gpu), []
    for case in (matmul, decode):
        tunable = tilings.TUNABLE[case.operation]
        found = tunable.candidates(case, tunable.default(case, limits), limits)
        some = [found[1], found[len(found) // 2], found[-1]]
        with contextlib.closing(CompileAhead(limits, processes=1)) as ahead:
            ahead.begin(case, some)
            answers = [ahead.next(None) for _ in some]
        cubins.append(sorted(map(str, Path(cache).glob("*/*.cubin"))))
        for tiling in some:
            tunable.run(draw(case, BlankSource(torch.device("cpu"), 0)), tiling)
        cubins.append(sorted(map(str, Path(cache).glob("*/*.cubin"))))
        assert answers == [(0, None), (1, None), (2, None)], answers
    return cubins


@triton.jit
def _copy_kernel(x_ptr, out_ptr, size, factor, BLOCK: tl.constexpr):
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x_ptr + offsets, mask=offsets < size)
    tl.store(out_ptr + offsets, values * factor, mask=offsets < size)


@contextlib.contextmanager
def launcher_that(alter):
    """Triton's launcher, which alters its arguments first: the grid at 0 to 2, the kernel's from 9 on."""
    call = CudaLauncher.__call__

    def altered(self, *args):
        changed = list(args)
        alter(changed)
        return call(self, *changed)

    with mock.patch.object(CudaLauncher, "__call__", altered):
        yield


def _setting(name, value):
    return mock.patch.dict(os.environ, {name: value})


@contextlib.contextmanager
def _more_registers():
    """A fake library that says that each kernel has 255 registers."""
    read = fake_gpu.Log.new

    def new(self):
        return [event | {"registers": 255} for event in read(self)]

    with mock.patch.object(fake_gpu.Log, "new", new):
        yield


def _kernel_of_the_first_launch():
    """Triton takes the kernel that it compiled first, whatever the arguments are."""
    return mock.patch.object(jit, "compute_cache_key", lambda keys, *_arguments: next(iter(keys.values())))


def _set(place, change):
    def alter(args):
        args[place] = change(args[place])

    return launcher_that(alter)


LAUNCH_FAULTS = {
    "none": (contextlib.nullcontext, {}),
    "grid": (contextlib.nullcontext, {"grid": (1, 65536)}),
    "pointer": (lambda: _set(9, lambda x: x[4:]), {}),
    "integer": (lambda: _set(11, lambda size: size + 1), {}),
    "float": (lambda: _set(12, lambda factor: factor / 2), {}),
    "multiple of 16": (_kernel_of_the_first_launch, {"size": 1000}),
    "constant": (_kernel_of_the_first_launch, {"BLOCK": 128}),
    "one program more": (lambda: _set(1, lambda grid_y: grid_y + 1), {}),
    "warps": (lambda: _set(5, lambda packed: (8, *packed[1:])), {}),
    "shared memory": (lambda: _set(5, lambda packed: (*packed[:2], 300_000, *packed[3:])), {}),
    "registers": (_more_registers, {"maxnreg": 64}),
    "another GPU": (lambda: _setting("FAKE_CUDA_CAPABILITY", "80"), {"BLOCK": 512}),
}
"""Faults of a launch of `_copy_kernel` by name: where it happens, and how it is launched."""


GOOD_MAP = {"address": 4096, "swizzle": 3, "box": [128, 64], "shape": [1000, 512], "strides": [512, 1]}
MAP_FAULTS = {
    "none": {},
    "box": {"box": [512, 64]},
    "inner size": {"box": [128, 128]},
    "inner size of a narrow swizzle": {"swizzle": 1},
    "row of the box": {"box": [128, 4]},
    "stride": {"strides": [516, 1]},
    "long stride": {"strides": [2**39, 1]},
    "address": {"address": 4104},
    "dimension": {"shape": [0, 512]},
    "not ascending": {
        "box": [64, 2, 64], "shape": [500, 2, 512], "strides": [512, 512 * 500, 1],
    },
}  # fmt: skip
"""Faults of a tensor map of 2-byte elements by name: what differs from a good one."""


def faults(_gpu):
    """Each of `LAUNCH_FAULTS`, launched in that order; what the fake library says of each of `MAP_FAULTS`."""
    x, out = torch.empty(1024), torch.empty(1024)
    for planted, options in LAUNCH_FAULTS.values():
        named = {"grid": (1, 4), "size": 1024, "BLOCK": 256, "num_warps": 4, **options}
        with planted():
            _copy_kernel[named.pop("grid")](x, out, factor=0.3, **named)
    utils = driver.active.utils
    encode = getattr(utils, "fill_tma_descriptor_tiled", None) or utils.fill_tma_descriptor
    log, found = fake_gpu.Log(Path(os.environ["FAKE_CUDA_LOG"])), {}
    log.new()
    for name, fault in MAP_FAULTS.items():
        given = GOOD_MAP | fault
        with contextlib.suppress(RuntimeError):
            encode(
                given["address"], given["swizzle"], 2, 9, given["box"], given["shape"], given["strides"], 0
            )
        [event] = log.new()
        found[name] = {key: event.get(key) for key in ("refused", "ascending_strides")}
    return found


CALLS = {
    call.__name__: call for call in (default_run, small, kernel_tests, timed_tests, compiled_ahead, faults)
}


def main():
    """Prints the launches, and what the call returns."""
    name, call, log, *options = sys.argv[1:]
    gpu = find_gpu(name, with_limits=True)
    returned = []
    launches = fake_gpu.report(lambda: returned.append(CALLS[call](gpu, *options)), gpu, Path(log))
    click.echo(json.dumps({"launches": launches, "returned": returned[0]}))


if __name__ == "__main__":
    main()
