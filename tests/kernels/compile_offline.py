"""Compiles kernels for a GPU that need not exist, and prints what the machine code uses.

Run as a program, without TRITON_INTERPRET: it reads the cases as JSON from standard input, and
prints one JSON line a kernel. A real launch is recorded, not run: the host functions are called
on CPU tensors, and every launch becomes a compilation with the same arguments.
"""

import functools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch
import triton
from decodetax.kernels import checks, tiling
from decodetax.kernels.decode_attention import decode_attention
from decodetax.kernels.prefill_matmul import prefill_matmul
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver


class OfflineDriver(DriverBase):
    """A driver of a GPU that is not there: it names the target and launches nothing."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability  # a device of its own keeps each target's compiled code apart

    def get_current_stream(self, _device):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_benchmarker(self):
        raise NotImplementedError

    def map_python_to_cpp_type(self, ty):
        raise NotImplementedError

    @classmethod
    def is_active(cls):
        return True


def tensor(shape, dtype="bfloat16"):
    """A tensor of any size that takes no memory until it is touched."""
    return torch.empty(shape, dtype=getattr(torch, dtype))


def call_matmul(*, rows, out_features, in_features, dtype="bfloat16", bias=False, blocks=None):
    prefill_matmul(
        tensor((rows, in_features), dtype),
        tensor((out_features, in_features), dtype),
        bias=tensor((out_features,), dtype) if bias else None,
        tiling=blocks and tiling.MatmulTiling(**blocks),
    )


def call_decode(*, batch, q_heads, kv_heads, head_dim, capacity, page_size=0, dtype="bfloat16", blocks=None):
    if page_size:
        pages = capacity // page_size
        cache, table = (batch * pages, page_size, kv_heads, head_dim), tensor((batch, pages), "int32")
    else:
        cache, table = (batch, capacity, kv_heads, head_dim), None
    decode_attention(
        tensor((batch, q_heads, head_dim), dtype),
        tensor(cache, dtype),
        tensor(cache, dtype),
        tensor((batch,), "int32"),
        block_table=table,
        return_lse=True,
        tiling=blocks and tiling.DecodeTiling(**blocks),
    )


def compile_calls(limits, call):
    """The kernels that `call` launches, compiled for a GPU."""
    driver.set_active(OfflineDriver(limits.compute_capability))
    compiled = []

    def record(self, *args, grid, warmup, **kwargs):  # noqa: ARG001
        compiled.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    run = triton.JITFunction.run
    with (
        mock.patch.object(triton.JITFunction, "run", record),
        mock.patch.object(checks, "interpreting", return_value=True),
        mock.patch("decodetax.kernels.decode_attention.gpu_limits", return_value=limits),
        mock.patch("decodetax.kernels.prefill_matmul.gpu_limits", return_value=limits),
    ):
        call()
    return compiled


def resources(kernel):
    """Registers and stack of one thread, shared memory of a program, and instructions by name."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        usage = subprocess.run(
            [tools / "cuobjdump", "-res-usage", cubin.name], capture_output=True, text=True, check=True
        ).stdout
        code = subprocess.run(
            [tools / "nvdisasm", "-c", cubin.name], capture_output=True, text=True, check=True
        ).stdout
    opcodes = re.findall(
        r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", code, re.MULTILINE
    )
    return {
        "kernel": kernel.metadata.name,
        "gpu": kernel.metadata.target.arch,
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack_bytes": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared_bytes": kernel.metadata.shared,
        "opcodes": {name: opcodes.count(name) for name in sorted(set(opcodes))},
    }


def main():
    calls = {"matmul": call_matmul, "decode": call_decode}
    for case in json.load(sys.stdin):
        call = functools.partial(calls[case["operation"]], **case["shape"])
        for kernel in compile_calls(tiling.GpuLimits(**case["limits"]), call):
            print(json.dumps({"case": case["name"], **resources(kernel)}), flush=True)  # noqa: T201  (its result)


if __name__ == "__main__":
    main()
