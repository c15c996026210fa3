"""Runs hand-written PTX: a body between a kernel's braces, with tensors for its pointers."""

import numpy as np
from decodetax.harness.offline.ptx.executable import Executable
from decodetax.harness.offline.ptx.global_memory import GlobalMemory

HEADER = """
.version 8.4
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];{functions}
.visible .entry snippet({parameters})
.reqntid {threads}
{{
.reg .pred %p<9>;
.reg .b16 %h<9>;
.reg .b32 %r<40>;
.reg .b64 %rd<20>;
{body}
ret;
}}
"""


def run_snippet(
    body,
    *,
    threads=64,
    grid=(1,),
    shared_bytes=1024,
    tensor_maps=None,
    seed=0,
    edit_memory=None,
    functions="",
    **tensors,
):
    """Violations, notes among them, of a body; %rd0, %rd1, ... hold the tensors' addresses, %r0 the lane.

    `edit_memory` takes the launch's memory before it is executed.
    """
    tensor_maps = tensor_maps or {}
    loads = [f"ld.param.u64 %rd{n}, [{name}];" for n, name in enumerate(tensors)]
    text = HEADER.format(
        parameters=", ".join(
            [f".param .u64 {name}" for name in tensors]
            + [f".param .align 64 .b8 {name}[128]" for name in tensor_maps]
        ),
        threads=threads,
        functions=functions,
        body="\n".join([*loads, "mov.u32 %r0, %tid.x;", body]),
    )
    memory = GlobalMemory()
    parameters = {name: bytes(128) for name in tensor_maps}
    for name, array in tensors.items():
        memory.add(name, array.ctypes.data, array.nbytes)
        parameters[name] = array.ctypes.data.to_bytes(8, "little")
    if edit_memory:
        edit_memory(memory)
    executable = Executable(text, shared_bytes)
    rng = np.random.default_rng(seed)
    found, _ = executable.launch(grid, parameters, memory, tensor_maps=tensor_maps, rng=rng)
    return found
