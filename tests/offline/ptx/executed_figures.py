"""Executes cases for a GPU and prints, for each launch, its executed figures and `inspect`'s of its hot loop.

Run as a program, without TRITON_INTERPRET: python executed_figures.py GPU CASE..., each case in JSON.
"""

import collections
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import msgspec
import torch
import triton
from decodetax import kernels
from decodetax.harness.core.cases import DecodeAttention, PrefillMatmul
from decodetax.harness.core.gpus import find_gpu
from decodetax.harness.core.inputs import Source, draw
from decodetax.harness.offline.default_tilings import kernel_limits
from decodetax.harness.offline.hot_loop import find_hot_loops
from decodetax.harness.offline.machine_code import disassemble
from decodetax.harness.offline.ptx.launch import executed
from decodetax.harness.offline.tiling_traffic import chosen_tiling

SM_COUNT = 4


def small_tiling(case, gpu_name):
    """The chooser's tiling on a GPU of so few SMs that a case takes few CTAs."""
    gpu = find_gpu(gpu_name, with_limits=True)
    return chosen_tiling(case, replace(kernel_limits(gpu), sm_count=SM_COUNT))


def execute(case, gpu_name):
    """The executed launches of a case."""
    tensors = draw(case, Source(torch.device("cpu"), 0))
    tiling = small_tiling(case, gpu_name)
    with executed(find_gpu(gpu_name, with_limits=True), sm_count=SM_COUNT) as execution:
        if case.operation == "prefill_matmul":
            kernels.prefill_matmul(tensors.x, tensors.weight, tiling=tiling)
        else:
            inputs = (tensors.q, tensors.k_cache, tensors.v_cache, tensors.context_lens)
            kernels.decode_attention(*inputs, tiling=tiling)
    assert not execution.violations
    return execution.launches


def inspected(compiled):
    """Instructions by class of the hot loop in machine code, without the loads that follow its waits."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    code, _ = disassemble(compiled.asm["cubin"], compiled.metadata.name, tools=tools)
    counted = [each for each in find_hot_loops(code)[0].instructions if each.operands != "RZ, [RZ]"]
    return collections.Counter(each.kind for each in counted)


def main():
    """Prints a line of JSON for each case."""
    _ = kernels.decode_attention, kernels.prefill_matmul  # loaded before launches are patched
    gpu_name, *cases = sys.argv[1:]
    for text in cases:
        launches = execute(msgspec.json.decode(text, type=DecodeAttention | PrefillMatmul), gpu_name)
        row = {
            each.kernel: {"figures": asdict(each.counters), "inspected": inspected(each.compiled)}
            for each in launches
        }
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
