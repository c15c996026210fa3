"""Warm calls of host functions on the fake GPU (see `fake_gpu.py`), with Triton's own launch.

python warm_calls.py time GPU prints the host time of a call that is not recorded, and of a warm one. With
"few" or "all" calls and a file for the log of the fake library it prints what each check gives, as JSON:

python warm_calls.py CALLS GPU LOG
"""

import contextlib
import functools
import gc
import json
import os
import sys
import threading
import time
import weakref
from pathlib import Path
from unittest import mock

import click
import fake_gpu
import torch
import triton
from decodetax.harness.core.gpus import find_gpu
from decodetax.kernels import (
    DecodeTiling,
    decode_attention,
    launch,
    merge_states,
    prefill_attention,
    prefill_matmul,
)
from triton import knobs
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime import driver

BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn
HOST_FUNCTIONS = decode_attention, merge_states, prefill_attention, prefill_matmul
REPETITIONS = 400


def empty(*size, dtype=BF16, first=0):
    """A tensor that begins `first` elements after an address that is a multiple of 64."""
    memory = torch.empty(first + torch.Size(size).numel(), dtype=torch.float32).view(-1).to(dtype)
    return memory[first:].view(size)


def decode(batch=2, q_heads=8, kv_heads=2, head_dim=64, capacity=512, dtype=BF16, first=0, **options):
    return {
        "q": empty(batch, q_heads, head_dim, first=first),
        "k_cache": empty(batch, capacity, kv_heads, head_dim, dtype=dtype),
        "v_cache": empty(batch, capacity, kv_heads, head_dim, dtype=dtype),
        "context_lens": torch.full((batch,), capacity, dtype=torch.int32),
        **options,
    }


def paged():
    pages = empty(16, 16, 2, 64, dtype=E4M3), empty(16, 16, 2, 64, dtype=E4M3)
    table = torch.zeros(2, 8, dtype=torch.int32)
    scales = {"k_scale": torch.ones(2), "v_scale": torch.ones(2), "sinks": torch.zeros(8)}
    return decode() | {"k_cache": pages[0], "v_cache": pages[1], "block_table": table} | scales


def interleaved():
    memory = empty(4, 512, 2, 64)
    return decode() | {"k_cache": memory[0::2], "v_cache": memory[1::2]}


def same_cache():
    inputs = decode()
    return inputs | {"v_cache": inputs["k_cache"]}


def latent():
    cache = empty(2, 512, 1, 576)
    inputs = decode() | {"q": empty(2, 16, 576), "k_cache": cache, "v_cache": cache[..., :512]}
    return inputs | {"context_lens": torch.full((2,), 512)}


def packed():
    return decode(cu_seqlens=torch.tensor([0, 1, 4])) | {"q": empty(4, 8, 64)}


def scalars():
    numbers = {
        name: torch.ones(()) for name in ("scale", "softcap", "q_scale", "k_scale", "v_scale", "out_scale")
    }
    return decode(**numbers, out_dtype=E4M3, return_lse=True, lse_layout="heads-first")


def matmul(rows, in_features, out_features, dtype=BF16, **options):
    return {"x": empty(rows, in_features), "weight": empty(out_features, in_features, dtype=dtype), **options}


def prompts(**options):
    size = (300,) if "cu_seqlens" in options else (2, 150)
    return {"q": empty(*size, 8, 64), "k": empty(*size, 2, 64), "v": empty(*size, 2, 64), **options}


def usual():
    """Of the same kernels as the call of `launched_calls.small`."""
    return decode(return_lse=True, softcap=3.5)


def merged():
    states = {"o": empty(2, 8, 64), "o2": empty(2, 8, 64)}
    return states | {"lse": empty(2, 8, dtype=torch.float32), "lse2": empty(2, 8, dtype=torch.float32)}


FEW = {
    "decode with LSE and softcap": (decode_attention, usual),
    "merge": (merge_states, merged),
    "matmul of gate and up": (prefill_matmul, lambda: matmul(300, 520, 256, activation="swiglu")),
    "matmul in splits": (prefill_matmul, lambda: matmul(64, 4096, 256)),
}  # fmt: skip
"""Calls by name: the host function, and what makes its arguments, at other addresses each time."""

ALL = FEW | {
    "decode": (decode_attention, decode),
    "decode with LSE": (decode_attention, lambda: decode(return_lse=True, scale=0.1, window=99)),
    "decode into out": (decode_attention, lambda: decode(out=empty(2, 8, 64), workspace=empty(2**20))),
    "decode of misaligned queries": (decode_attention, lambda: decode(first=3)),
    "decode of one cache": (decode_attention, same_cache),
    "decode of interleaved caches": (decode_attention, interleaved),
    "decode of pages": (decode_attention, paged),
    "decode of a latent cache": (decode_attention, latent),
    "decode of packed queries": (decode_attention, packed),
    "decode with scalars on the device": (decode_attention, scalars),
    "merge of parts": (
        merge_states,
        lambda: {
            "o": empty(4, 7, 8, 64).transpose(0, 1),  # [parts, tokens, heads, head_dim]
            "lse": empty(4, 7, 8, dtype=torch.float32).transpose(0, 1),
            "mask": torch.ones(7, 1, 1, dtype=torch.bool),
            "out": (empty(4, 8, 64), empty(4, 8, dtype=torch.float32)),
        },
    ),
    "decode in splits": (decode_attention, lambda: decode(num_splits=3)),
    "decode in one CTA": (
        decode_attention,
        lambda: decode(tiling=DecodeTiling(block_g=16, block_n=32, programs=1, num_warps=4, num_stages=2)),
    ),
    "matmul by pointers": (
        prefill_matmul,
        lambda: matmul(300, 520, 250, x_scale=0.75, bias=torch.empty(250)),
    ),
    "matmul by TMA": (prefill_matmul, lambda: matmul(300, 512, 256, weight_scale=torch.ones(256))),
    "matmul of int8": (prefill_matmul, lambda: matmul(16, 512, 256, dtype=torch.int8)),
    "prefill attention": (prefill_attention, lambda: prompts(return_lse=True)),
    "prefill attention of ragged prompts": (
        prefill_attention,
        lambda: prompts(cu_seqlens=torch.tensor([0, 100, 300], dtype=torch.int32)),
    ),
    "batched matmul": (
        prefill_matmul,
        lambda: {"x": empty(3, 40, 64), "weight": empty(3, 48, 64), "out_dtype": torch.float32},
    ),
}


def forget():
    """Makes the next call of each host function a first one."""
    for function in HOST_FUNCTIONS:
        function.records.clear()


@contextlib.contextmanager
def allocations_from(memory):
    """Makes `torch.empty` give this memory, from its start on."""
    used = 0

    def allocated(size, *, dtype, device):
        nonlocal used
        start, used = used, used + -(-torch.Size(size).numel() * dtype.itemsize // 64) * 64
        assert device.type == "cpu"
        return memory[start:used].view(dtype)[: torch.Size(size).numel()].view(size)

    with mock.patch.object(torch, "empty", allocated):
        yield


def without_map_numbers(events):
    """What the fake library logged, without the number that it gives each tensor map."""
    for event in events:
        event.pop("number", None)
        event["parameters"] = [
            "tensor map" if len(given) == 256 else given for given in event.get("parameters", ())
        ]
    return [event for event in events if event["event"] != "function"]


def launches(calls, log):
    """For each call what was logged of it as a warm call, and as a first one, with the same tensors."""
    found, memory = {}, torch.empty(2**24, dtype=torch.uint8)
    for name, (function, arguments) in calls.items():
        others, given = arguments(), arguments()
        events = []
        for before in ((), (others,)):
            forget()
            for each in before:
                function(**each)
            log.new()
            with allocations_from(memory):
                function(**given)
            events.append(without_map_numbers(log.new()))
        found[name] = events
    return found


def calls_of_python(call):
    """How many functions of Python and C a call calls."""
    count = 0

    def counted(_frame, event, _arg):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


def least_time_s(call):
    """The least time of many calls: what interrupts some of them does not count."""
    times = []
    for _ in range(REPETITIONS):
        start_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - start_s)
    return min(times)


def steps():
    """A fixed piece of Python, by which the speed of machines can be compared."""
    counts = {}
    for number in range(200):
        counts[number % 7] = counts.get(number % 7, 0) + len((number, number))
    return counts


def host_times(calls):
    """For each call the least host time of one that is not recorded and of a warm one, and what they call."""
    found = {}
    os.environ["FAKE_CUDA_LOG"] = ""
    for name, (function, arguments) in calls.items():
        given = arguments()
        function(**given)  # compiles
        warm_s = least_time_s(lambda: function(**given))  # noqa: B023  (called at once)
        warm_calls = calls_of_python(lambda: function(**given))  # noqa: B023
        plain_s = least_time_s(lambda: function.__wrapped__(**given))  # noqa: B023
        plain_calls = calls_of_python(lambda: function.__wrapped__(**given))  # noqa: B023
        found[name] = {
            "plain_s": plain_s,
            "warm_s": warm_s,
            "plain_calls": plain_calls,
            "warm_calls": warm_calls,
        }
    return {"steps_s": least_time_s(steps), "calls": found}


def hooked():
    """Kernels that launch hooks saw in a first call, and in a warm one."""
    forget()
    seen = []

    def enter(data):
        seen.append(data.get()["name"])

    def leave(_data):
        seen.append("end")

    knobs.runtime.launch_enter_hook.add(enter)
    knobs.runtime.launch_exit_hook.add(leave)
    for _ in range(2):
        seen.append("call")
        decode_attention(**usual())
    knobs.runtime.launch_enter_hook.remove(enter)
    knobs.runtime.launch_exit_hook.remove(leave)
    return seen


def live_tensors(calls):
    """How many tensors of recorded calls are left after they have been let go of."""
    forget()
    references = []
    for function, arguments in calls.values():
        given = arguments()
        results = function(**given)
        tensors = [each for each in given.values() if isinstance(each, torch.Tensor)]
        tensors += results if isinstance(results, tuple) else [results]
        references += map(weakref.ref, tensors)
        del given, results, tensors
    gc.collect()
    return [len(references), sum(reference() is not None for reference in references)]


def most_records():
    """Records after the first call and after more calls of different keys than are kept."""
    forget()
    given, counts = usual(), []
    for number in range(launch.MAX_RECORDS + 3):
        decode_attention(**given | {"softcap": 1.0 + number})
        counts.append(len(decode_attention.records))
    return [counts[0], counts[-1]]


def threads():
    """Wrong results of calls of two kinds in several threads at once, and the calls."""
    forget()
    arguments = [usual(), usual() | {"out": empty(2, 8, 64)}, decode(batch=3, return_lse=True, softcap=3.5)]
    wrong, done = [], []

    def work(number):
        for at in range(60):
            given = arguments[(number + at) % 3]
            output, _ = decode_attention(**given)
            if output.shape != given["q"].shape or (output is given.get("out")) != ("out" in given):
                wrong.append(number)
            done.append(number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [len(wrong), len(done)]


def refusals():
    """What wrong arguments raise when a call of the right ones is recorded: each, first and again."""
    right = usual()
    wrong = {
        "dtype": {"q": right["q"].float()},
        "strides": {"q": right["q"].transpose(1, 2).contiguous().transpose(1, 2)},
        "negation": {"q": torch._neg_view(right["q"])},
        "layout": {"q": right["q"].to_sparse()},
        "device": {"context_lens": right["context_lens"].to("meta")},
        "shape": {"context_lens": right["context_lens"][:1]},
        "kind": {"num_splits": True},
        "unhashable": {"num_splits": [1]},
        "value": {"softcap": -1.0},
        "unknown": {"causal": True},
        "missing": {"v_cache": None},
    }
    found = {}
    for name, change in wrong.items():
        found[name] = []
        for record in (False, True):
            forget()
            if record:
                decode_attention(**right)
            try:
                decode_attention(**right | change)
            except Exception as error:  # noqa: BLE001  (it is what is asked for)
                found[name].append([type(error).__name__, str(error), error.__context__ is None])
    return found


def changes():
    """Whether a warm call is made as a first one, which looks for the kernel, after each change of Triton."""
    module = sys.modules[f"{launch.__package__}.decode_attention"]
    kernel, run, look_up = module._split_kv_kernel, triton.JITFunction.run, triton.JITFunction.__getitem__
    looked_up = []

    def counted(self, grid):
        looked_up.append(grid)
        return look_up(self, grid)

    def own_run(self, *args, **options):
        return run(self, *args, **options)

    def hook(*_args, **_options):
        pass

    made = {
        "none": contextlib.nullcontext(),
        "pre-run hook": mock.patch.object(kernel, "pre_run_hooks", [hook]),
        "run of all kernels": mock.patch.object(triton.JITFunction, "run", own_run),
        "run of a kernel": mock.patch.object(kernel, "run", functools.partial(run, kernel)),
        "driver": mock.patch.object(driver, "_active", CudaDriver()),
    }
    found, given = {}, usual()
    for name, change in made.items():
        forget()
        decode_attention(**given)
        looked_up.clear()
        with change, mock.patch.object(triton.JITFunction, "__getitem__", counted):
            decode_attention(**given)
        found[name] = bool(looked_up)
    settings = launch._compile_settings()
    with mock.patch.object(knobs.runtime, "debug", new=True):  # no call: its kernels would be compiled again
        found["debug"] = launch._compile_settings() != settings
    return found


def checked(calls, log):
    """What each check gives."""
    return {
        "launches": launches(calls, log),
        "times": host_times(calls),  # it ends the log
        "hooked": hooked(),
        "live_tensors": live_tensors(calls),
        "most_records": most_records(),
        "threads": threads(),
        "refusals": refusals(),
        "changes": changes(),
    }


def main():
    """Prints what the checks give, or the host times."""
    calls, gpu, *log = sys.argv[1:]
    with fake_gpu.fake_driver(find_gpu(gpu, with_limits=True), log[0] if log else ""):
        if log:
            click.echo(json.dumps(checked({"few": FEW, "all": ALL}[calls], fake_gpu.Log(Path(log[0])))))
            return
        click.echo(f"{'host time, us':30} {'first':>8} {'warm':>8}")
        for call, times in host_times(ALL)["calls"].items():
            click.echo(f"{call:30} {1e6 * times['plain_s']:8.1f} {1e6 * times['warm_s']:8.1f}")


if __name__ == "__main__":
    main()
