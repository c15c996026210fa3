"""Executed figures of hand-written PTX, counted by hand."""

import struct

import numpy as np
import pytest
from decodetax.harness.offline.machine_code import INSTRUCTION_CLASSES
from decodetax.harness.offline.ptx.counters import LaunchCounters, bank_passes
from decodetax.harness.offline.ptx.executable import Executable
from decodetax.harness.offline.ptx.figures import TensorSectors, launch_figures
from decodetax.harness.offline.ptx.global_memory import GlobalMemory
from decodetax.harness.offline.ptx.instruction_classes import INSPECT_CLASSES, class_of
from decodetax.harness.offline.ptx.parser import PtxKernel

LANES = np.arange(32)
LOOP = """
.version 8.0
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry kernel(.param .u64 kernel_param_0, .param .u64 kernel_param_1)
.reqntid 64
{
.reg .pred %p<4>;
.reg .b32 %r<16>;
.reg .b64 %rd<8>;
mov.u32 %r1, %tid.x;
ld.param.b64 %rd1, [kernel_param_0];
ld.param.b64 %rd2, [kernel_param_1];
mul.wide.u32 %rd3, %r1, 4;
add.s64 %rd4, %rd1, %rd3;
add.s64 %rd5, %rd2, %rd3;
mov.b32 %r2, global_smem;
shl.b32 %r3, %r1, 3;
add.s32 %r4, %r2, %r3;
mov.b32 %r5, 0;
again:
ld.global.b32 %r6, [%rd4];
st.shared.b32 [%r4], %r6;
bar.sync 0;
ld.shared.b32 %r7, [%r4];
add.f32 %r8, %r7, %r6;
st.global.b32 [%rd5], %r8;
add.s32 %r5, %r5, 1;
setp.lt.u32 %p1, %r5, 3;
@%p1 bra again;
ret;
}
"""


@pytest.mark.parametrize(
    ("what", "offset", "size", "passes"),
    [
        ("consecutive words", 4 * LANES, 4, (1, 0)),
        ("one word for all", 0 * LANES, 4, (1, 0)),
        ("every second word", 8 * LANES, 4, (1, 1)),
        ("one bank", 128 * LANES, 4, (1, 31)),
        ("a row of 33 words", 132 * LANES, 4, (1, 0)),
        ("pairs of halves in a word", 2 * LANES, 2, (1, 0)),
        ("consecutive pairs of words", 8 * LANES, 8, (2, 0)),
        ("pairs of words, every second", 16 * LANES, 8, (2, 2)),
        ("consecutive rows of 16 bytes", 16 * LANES, 16, (4, 0)),
        ("rows of 16 bytes in one bank group", 128 * LANES, 16, (4, 28)),
        ("rows of 16 bytes, 144 bytes apart", 144 * LANES, 16, (4, 0)),
        ("quarters that share their rows", 16 * (LANES % 4), 16, (4, 0)),
    ],
)
def test_passes_of_shared_memory_by_the_bank_rule(what, offset, size, passes):
    assert bank_passes(offset, LANES, size) == passes, what
    # Half of a second warp does the same again.
    both = np.concatenate((LANES, LANES + 32))
    assert bank_passes(np.concatenate((offset, offset)), both, size) == (2 * passes[0], 2 * passes[1])


def test_inactive_lanes_need_no_pass():
    assert bank_passes(16 * LANES[:3], LANES[:3], 16) == (1, 0)
    assert bank_passes(128 * LANES[8:], LANES[8:], 16) == (3, 21)


def executed(ptx, threads_read=64):
    source, target = np.ones(threads_read, np.float32), np.zeros(threads_read, np.float32)
    memory, parameters = GlobalMemory(), {}
    for number, array in enumerate((source, target)):
        memory.add(("source", "target")[number], array.ctypes.data, array.nbytes)
        parameters[f"kernel_param_{number}"] = struct.pack("<Q", array.ctypes.data)
    executable = Executable(ptx, 1024)
    counters = LaunchCounters(len(executable.kernel.blocks))
    found, _ = executable.launch(
        (1,), parameters, memory, tensor_maps={}, rng=np.random.default_rng(0), counters=counters
    )
    assert not found
    np.testing.assert_array_equal(target, 2)
    return launch_figures(executable.kernel, counters)


def test_a_loop_of_three_iterations_is_counted_in_total_and_per_iteration():
    figures = executed(LOOP)
    warps, iterations = 2, 3
    loop = {"float": 1, "integer": 2, "load_global": 1, "load_shared": 1, "store_global": 1}
    loop |= {"store_shared": 1, "barrier": 1, "control": 1}
    assert figures.hot_loop.instructions == loop
    assert list(figures.hot_loop.instructions) == [each for each in INSPECT_CLASSES if each in loop]
    assert figures.hot_loop.iterations == iterations
    before = {"move": 5, "integer": 5, "control": 1}
    total = {
        name: warps * (iterations * loop.get(name, 0) + before.get(name, 0)) for name in {**loop, **before}
    }
    assert figures.instructions == total
    # 2 warps of 32 lanes of 4 bytes: 4 sectors each, 5 where the array does not start at one.
    sectors = figures.hot_loop.sectors
    assert sectors["source"].requested in {8, 10}
    assert sectors["source"].written == 0
    assert figures.sectors["source"] == TensorSectors(iterations * sectors["source"].requested, 0)
    assert figures.sectors["target"].written == iterations * sectors["target"].written
    # A store and a load of every second word, by two warps.
    assert figures.hot_loop.shared_wavefronts == 4
    assert figures.hot_loop.bank_conflicts == 4
    assert figures.bank_conflicts == 12


def test_lanes_that_skip_a_block_do_not_count():
    skipping = LOOP.replace(
        "again:", "setp.lt.u32 %p2, %r1, 32;\n@%p2 bra join;\nadd.s32 %r9, %r5, 1;\njoin:\nagain:"
    )
    difference = executed(skipping).instructions["integer"] - executed(LOOP).instructions["integer"]
    assert difference == 2 + 1  # setp by both warps, add by one


@pytest.mark.parametrize(
    ("instruction", "name"),
    [
        ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r1}, {%r1}, {%r1}, {%r1};", "tensor_core"),
        (
            "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r1}, %rd1, %rd1, 1, 1, 1, 0, 0;",
            "tensor_core",
        ),
        ("tcgen05.mma.cta_group::1.kind::f16 [%r1], %rd1, %rd1, %r1, %p1;", "tensor_core"),
        ("wgmma.wait_group.sync.aligned 0;", "barrier"),
        ("tcgen05.wait::ld.sync.aligned;", "barrier"),
        ("tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r1}, [%r1];", "tensor_memory"),
        ("cp.async.cg.shared.global [%r1], [%rd1], 16;", "copy_async"),
        ("cp.async.commit_group;", "barrier"),
        (
            "cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r1], [%rd1], [%r1];",
            "tma",
        ),
        ("mbarrier.init.shared::cta.b64 [%r1], 1;", "barrier"),
        ("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1}, [%r1];", "load_shared"),
        ("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r1], {%r1};", "store_shared"),
        ("ld.param.b64 %rd1, [kernel_param_0];", "move"),
        ("atom.global.add.f32 %r1, [%rd1], %r1;", "atomic"),
        ("cvt.rn.bf16x2.f32 %r1, %r1, %r1;", "conversion"),
        ("ex2.approx.ftz.f32 %r1, %r1;", "special"),
        ("fma.rn.f32x2 %rd1, %rd1, %rd1, %rd1;", "float"),
        ("setp.eq.f32 %p1, %r1, %r1;", "float"),
        ("setp.eq.b32 %p1, %r1, %r1;", "integer"),
        ("shfl.sync.bfly.b32 %r1, %r1, 1, 31, -1;", "shuffle"),
        ("nop;", "other"),
    ],
)
def test_classes_of_instructions(instruction, name):
    kernel = PtxKernel(LOOP.replace("again:", f"{instruction}\nagain:"))
    found = next(each for each in kernel.instructions.values() if each.text == instruction.rstrip(";"))
    assert class_of(found) == name
    assert INSPECT_CLASSES[name] in INSTRUCTION_CLASSES
