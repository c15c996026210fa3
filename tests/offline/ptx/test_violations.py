"""Each violation: hand-written PTX that makes it, and the same PTX without the fault, which makes none.

Two warps. `%rd8` is 4 times the lane, `%rd9` the lane's word of the tensor `out`, `%rd7` that of `source`,
`%r2` the start of shared memory and `%r3` the lane's word there.
"""

import numpy as np
import pytest
from decodetax.harness.offline.ptx.global_memory import GlobalMemory
from decodetax.harness.offline.ptx.tensor_maps import TensorMap
from decodetax.harness.offline.ptx.violations import Kind
from ptx_snippets import run_snippet

ADDRESSES = """
mul.wide.u32 %rd8, %r0, 4;
add.u64 %rd9, %rd0, %rd8;
add.u64 %rd7, %rd1, %rd8;
shl.b32 %r1, %r0, 2;
mov.u32 %r2, global_smem;
add.u32 %r3, %r2, %r1;
and.b32 %r4, %r0, 31;
setp.eq.u32 %p0, %r0, 0;
setp.lt.u32 %p1, %r0, 32;
"""
OTHER_WARP = "xor.b32 %r5, %r1, 128; add.u32 %r5, %r2, %r5;\n"
COPY = "shl.b32 %r6, %r0, 2; cp.async.ca.shared.global [%r3], [%rd7], 4;\n"
OTHER_WORD = "xor.b32 %r5, %r1, 128; cvt.u64.u32 %rd6, %r5; add.u64 %rd6, %rd0, %rd6;\n"
STORE, LOAD_OTHER = "st.global.b32 [%rd9], %r0;\n", "ld.global.b32 %r6, [%rd6];\n"
INIT = "@%p0 mbarrier.init.shared::cta.b64 [%r2+512], 1;\n"
ARRIVE = "@%p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2+512], 256;\n"
LOAD = """
@%p0 cp.async.bulk.tensor.1d.shared::cta.global.mbarrier::complete_tx::bytes [%r2], [map, {0}], [%r2+512];
"""
WAIT = """
mov.b32 %r9, 0;
wait: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2+512], %r9;
@!%p2 bra wait;
"""
READ, READ_OTHER = "ld.shared.b32 %r6, [%r3];", "ld.shared.b32 %r6, [%r5];"
WRITE = "st.shared.b32 [%r3], %r0;"
BAR = "bar.sync 0;\n"
TMA_STORE = "@%p0 cp.async.bulk.tensor.1d.global.shared::cta.bulk_group [map, {0}], [%r2];\n"
COMMIT, DRAIN = "cp.async.bulk.commit_group;\n", "cp.async.bulk.wait_group.read 0;\n"
FENCE = "fence.proxy.async.shared::cta;\n"
RELEASE = "bar.sync 0; @%p0 atom.global.gpu.acq_rel.add.u32 %r7, [%rd0+256], 1; bar.sync 0;\n"

FAULTS = {
    "a load outside the tensor": (
        "ld.global.b32 %r6, [%rd7+4];",
        "ld.global.b32 %r6, [%rd7];",
        Kind.OUTSIDE_TENSOR,
    ),
    "a load that is misaligned for its width": (
        "ld.global.v2.b32 {%r6, %r7}, [%rd7];",
        "@%p0 ld.global.v2.b32 {%r6, %r7}, [%rd7];",
        Kind.MISALIGNED_GLOBAL,
    ),
    "a store past shared memory": (
        "st.shared.b32 [%r3+1000], %r0;",
        "st.shared.b32 [%r3+768], %r0;",
        Kind.OUTSIDE_SHARED,
    ),
    "a store that is misaligned for its width in shared memory": (
        "st.shared.v2.b32 [%r3], {%r0, %r0};",
        "@%p0 st.shared.v2.b32 [%r3], {%r0, %r0};",
        Kind.MISALIGNED_SHARED,
    ),
    "a read of global memory after another warp's write": (
        OTHER_WORD + STORE + LOAD_OTHER,
        OTHER_WORD + STORE + BAR + LOAD_OTHER,
        Kind.GLOBAL_RACE,
    ),
    "a write of global memory after another warp's read": (
        OTHER_WORD + LOAD_OTHER + STORE,
        OTHER_WORD + LOAD_OTHER + BAR + STORE,
        Kind.GLOBAL_RACE,
    ),
    "shared memory that nothing wrote": (READ, WRITE + READ, Kind.UNWRITTEN_SHARED),
    "a read after another warp's write": (
        OTHER_WARP + WRITE + READ_OTHER,
        OTHER_WARP + WRITE + BAR + READ_OTHER,
        Kind.SHARED_RACE,
    ),
    "a write after another warp's read": (
        OTHER_WARP + WRITE + BAR + READ_OTHER + WRITE,
        OTHER_WARP + WRITE + BAR + READ_OTHER + BAR + WRITE,
        Kind.SHARED_RACE,
    ),
    "a write after another warp's write": (
        OTHER_WARP + "@%p1 st.shared.b32 [%r3], %r0; @!%p1 st.shared.b32 [%r5], %r0;",
        OTHER_WARP + "@%p1 st.shared.b32 [%r3], %r0; bar.sync 0; @!%p1 st.shared.b32 [%r5], %r0;",
        Kind.SHARED_RACE,
    ),
    "a read of what another warp added to": (
        OTHER_WARP + WRITE + BAR + "atom.shared.add.u32 %r6, [%r5], 1;" + READ,
        OTHER_WARP + WRITE + BAR + "atom.shared.add.u32 %r6, [%r5], 1;" + BAR + READ,
        Kind.SHARED_RACE,
    ),
    "lanes that store different values to one address": (
        "@%p1 st.shared.b32 [%r2], %r0;",
        "@%p1 st.shared.b32 [%r2], 7;",
        Kind.ONE_ADDRESS,
    ),
    "a read of cp.async before its wait": (
        COPY + "cp.async.commit_group;" + READ,
        COPY + "cp.async.commit_group; cp.async.wait_group 0;" + READ,
        Kind.READ_IN_FLIGHT,
    ),
    "a wait_group that is one too high": (
        COPY + "cp.async.commit_group; cp.async.wait_group 1;" + READ,
        COPY + "cp.async.commit_group; cp.async.commit_group; cp.async.wait_group 1;" + READ,
        Kind.READ_IN_FLIGHT,
    ),
    "a copy that no group holds": (
        COPY + "cp.async.wait_group 0;" + READ,
        COPY + "cp.async.wait_all;" + READ,
        Kind.READ_IN_FLIGHT,
    ),
    "a write over cp.async": (
        COPY + "cp.async.commit_group; st.shared.b32 [%r3], %r0;",
        COPY + "cp.async.commit_group; cp.async.wait_group 0; st.shared.b32 [%r3], %r0;",
        Kind.WRITE_IN_FLIGHT,
    ),
    "cp.async with more source bytes than it copies": (
        "cp.async.ca.shared.global [%r3], [%rd7], 4, 8;",
        "cp.async.ca.shared.global [%r3], [%rd7], 4, 4;",
        Kind.COPY_SIZE,
    ),
    "a read of TMA before its wait": (
        INIT + BAR + ARRIVE + LOAD + READ,
        INIT + BAR + ARRIVE + LOAD + WAIT + READ,
        Kind.READ_IN_FLIGHT,
    ),
    "an mbarrier used with no barrier after its init": (
        INIT + "@!%p1 mbarrier.arrive.shared::cta.b64 _, [%r2+512];",
        INIT + BAR + "setp.eq.u32 %p3, %r0, 32; @%p3 mbarrier.arrive.shared::cta.b64 _, [%r2+512];",
        Kind.MBARRIER,
    ),
    "more arrivals than an mbarrier expects": (
        INIT + BAR + "setp.lt.u32 %p3, %r0, 2;@%p3 mbarrier.arrive.shared::cta.b64 _, [%r2+512], 2;",
        INIT + BAR + "setp.lt.u32 %p3, %r0, 2;@%p3 mbarrier.arrive.shared::cta.b64 _, [%r2+512];",
        Kind.MBARRIER,
    ),
    "a wait that nothing completes": (
        INIT + BAR + "@%p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2+512], 260;" + LOAD + WAIT,
        INIT + BAR + ARRIVE + LOAD + WAIT,
        Kind.STUCK,
    ),
    "no tensor map": (
        INIT + BAR + ARRIVE + LOAD.replace("[map,", "[out,"),
        INIT + BAR + ARRIVE + LOAD,
        Kind.DESCRIPTOR,
    ),
    "a TMA store with no proxy fence": (
        WRITE + BAR + TMA_STORE + COMMIT + DRAIN,
        WRITE + FENCE + BAR + TMA_STORE + COMMIT + DRAIN,
        Kind.NO_PROXY_FENCE,
    ),
    "a write over what a TMA store reads": (
        "st.shared.b32 [%r3], %r0;"
        + FENCE
        + BAR
        + TMA_STORE
        + COMMIT
        + "@%p0 st.shared.b32 [%r3], 1;"
        + DRAIN,
        "st.shared.b32 [%r3], %r0;"
        + FENCE
        + BAR
        + TMA_STORE
        + COMMIT
        + DRAIN
        + "@%p0 st.shared.b32 [%r3], 1;",
        Kind.ASYNC_OPERAND,
    ),
    "a CTA that ends before its TMA store has read": (
        WRITE + FENCE + BAR + TMA_STORE + COMMIT,
        WRITE + FENCE + BAR + TMA_STORE + COMMIT + DRAIN,
        Kind.UNFINISHED,
    ),
    "a shuffle with lanes missing": (
        "setp.lt.u32 %p2, %r4, 9; @%p2 shfl.sync.bfly.b32 %r6, %r0, 1, 31, -1;",
        "@%p1 shfl.sync.bfly.b32 %r6, %r0, 1, 31, -1;",
        Kind.PARTIAL_WARP,
    ),
    "a barrier that a warp misses": (
        "@%p1 bra past; bar.sync 0;\npast: mov.u32 %r6, 1;",
        "@%p1 bra past; mov.u32 %r6, 2;\npast: bar.sync 0;",
        Kind.MISSED_BARRIER,
    ),
    "a barrier under a guard that a warp does not pass": (
        "@%p1 bar.sync 0;",
        "setp.lt.u32 %p2, %r0, 64; @%p2 bar.sync 0;",
        Kind.MISSED_BARRIER,
    ),
    "a division by zero": (
        "div.u32 %r6, 5, %r0;",
        "add.u32 %r7, %r0, 1; div.u32 %r6, 5, %r7;",
        Kind.DIVISION,
    ),
    "a trap": ("@%p0 trap;", "setp.gt.u32 %p2, %r0, 99; @%p2 trap;", Kind.TRAP),
    "local memory that nothing wrote": (
        ".local .align 4 .b8 area[8]; ld.local.b32 %r6, [area+4];",
        ".local .align 4 .b8 area[8]; st.local.b32 [area+4], %r0; ld.local.b32 %r6, [area+4];",
        Kind.UNWRITTEN_LOCAL,
    ),
    "local memory past its end": (
        ".local .align 4 .b8 area[8]; st.local.b32 [area+8], %r0;",
        ".local .align 4 .b8 area[8]; st.local.b32 [area+4], %r0;",
        Kind.OUTSIDE_LOCAL,
    ),
}


def run(body, **options):
    source = np.arange(64, dtype=np.uint32)
    out = np.zeros(65, np.uint32)
    found = run_snippet(
        ADDRESSES + body,
        tensor_maps={"map": TensorMap(source.ctypes.data, (64,), (4,), (64,), "u32", 0)},
        shared_bytes=1024,
        out=out,
        source=source,
        **options,
    )
    return [each for each in found if not each.kind.harmless], out


@pytest.mark.parametrize("name", FAULTS)
def test_a_violation_is_found_and_only_where_it_is(name):
    faulty, correct, kind = FAULTS[name]
    assert kind in {each.kind for each in run(faulty)[0]}
    assert run(correct)[0] == []


def test_a_violation_says_where_it_is():
    body = OTHER_WARP + "st.shared.b32 [%r3], %r0;\nld.shared.b32 %r6, [%r5];"
    (violation,) = run(body, grid=(1, 2))[0]
    assert violation.kind is Kind.SHARED_RACE
    assert (violation.shared_address, violation.warp, violation.count) == (128, 0, 2)
    assert violation.cta[0] == violation.cta[2] == 0
    assert violation.ptx == "ld.shared.b32 %r6, [%r5]"
    text = str(violation)
    for part in (
        "shared race x2",
        "shared memory + 0x80",
        "warp 0",
        "reads what warp 1 wrote",
        "ld.shared.b32",
    ):
        assert part in text


def test_ctas_that_write_one_word_race_and_those_that_add_to_it_do_not():
    assert {each.kind for each in run("@%p0 st.global.b32 [%rd9], 3;", grid=(2,))[0]} == {Kind.GLOBAL_RACE}
    found, out = run("red.global.add.u32 [%rd9], 3;", grid=(2,))
    assert found == []
    assert (out[:64] == 6).all()


def test_reading_what_another_cta_released_is_no_race():
    last = "setp.eq.u32 %p3, %r7, 1; and.pred %p3, %p3, %p0; @%p3 ld.global.b32 %r8, [%rd0{}];"
    store = "mov.u32 %r6, %ctaid.x; mul.wide.u32 %rd6, %r6, 4; add.u64 %rd6, %rd0, %rd6;"
    store += "@%p0 st.global.b32 [%rd6], 5;"
    reads = last.format("") + last.format("+4")
    assert run(store + RELEASE + reads, grid=(2,))[0] == []
    relaxed = RELEASE.replace("acq_rel", "relaxed")
    assert {each.kind for each in run(store + relaxed + reads, grid=(2,))[0]} == {Kind.GLOBAL_RACE}
    fenced = relaxed.replace("@%p0", "fence.acq_rel.gpu; @%p0").replace(
        "; bar.sync 0;\n", "; fence.acq_rel.gpu; bar.sync 0;\n"
    )
    assert run(store + fenced + reads, grid=(2,))[0] == []


def test_a_release_covers_another_warps_store_after_a_barrier_only():
    body = "mov.u32 %r6, %ctaid.x; shl.b32 %r6, %r6, 7; cvt.u64.u32 %rd6, %r6; add.u64 %rd6, %rd0, %rd6;"
    body += "setp.eq.u32 %p3, %r0, 32; @%p3 st.global.b32 [%rd6], 5;" + RELEASE
    body += "setp.eq.u32 %p3, %r7, 1; and.pred %p3, %p3, %p0; @%p3 ld.global.b32 %r8, [%rd0{}];"
    body = body.format("") + body[body.rindex("@%p3") :].format("+128")
    assert run(body, grid=(2,))[0] == []
    assert {each.kind for each in run(body.replace("bar.sync 0; @%p0", "@%p0"), grid=(2,))[0]} == {
        Kind.GLOBAL_RACE
    }


def test_warps_ordered_by_a_release_and_an_acquire_do_not_race():
    body = """
    add.u64 %rd6, %rd0, 128; @!%p1 bra second;
    @%p0 st.global.b32 [%rd6], 5;
    @%p0 st.global.release.gpu.b32 [%rd0], 1;
    bra done;
    second: ld.global.acquire.gpu.b32 %r7, [%rd0]; setp.eq.u32 %p3, %r7, 1; @%p3 ld.global.b32 %r8, [%rd6];
    done:
    """
    assert run(body)[0] == []
    assert {each.kind for each in run(body.replace("release.gpu", "relaxed.gpu"))[0]} == {Kind.GLOBAL_RACE}


def test_two_warps_may_store_the_same_to_global_memory_but_no_different_values():
    store = "setp.eq.u32 %p3, %r4, 0; @%p3 st.global.b32 [%rd0], {};"
    body = f"@%p1 bra first; {store} bra done; first: {store.format(7)} done:"
    assert run(body.format(7))[0] == []
    assert {each.kind for each in run(body.format(8))[0]} == {Kind.GLOBAL_RACE}


def test_a_trap_and_a_failed_assertion_end_the_launch():
    for end in ("@%p0 trap;", "@%p0 bra fails; bra done; fails: call.uni __assertfail, (param0); done:"):
        found, out = run(f"bar.sync 0; {end} st.global.b32 [%rd9], 9;")
        assert [each.kind for each in found] == [Kind.TRAP]
        assert not (out[:32] == 9).any()


def test_a_cta_that_waits_for_a_later_one_is_paused():
    body = """
    mov.u32 %r6, %ctaid.x; setp.ne.u32 %p2, %r6, 0; @%p2 bra set;
    spin: ld.global.acquire.gpu.b32 %r7, [%rd0]; setp.eq.u32 %p3, %r7, 0; @%p3 bra spin;
    bra done;
    set: @%p0 st.global.release.gpu.b32 [%rd0], 1;
    done: mov.u32 %r8, 0;
    """
    for seed in (0, 1, 2):
        assert run(body, grid=(2,), seed=seed)[0] == []


def test_dead_and_unwritten_global_memory_is_found_and_a_write_makes_it_readable():
    def forbid(memory):
        memory.forbid(memory.buffers[0].start, np.zeros(0, bool))
        for buffer in memory.buffers:
            if buffer.name == "source":
                memory.forbid(buffer.start + 252, np.ones(4, bool))

    (violation,) = run("ld.global.b32 %r6, [%rd7];", edit_memory=forbid)[0]
    assert (violation.kind, violation.tensor, violation.warp) == (Kind.DEAD_READ, "source", 1)

    def never_written(memory):
        for buffer in memory.buffers:
            if buffer.name == "out":
                memory.track_unwritten(buffer.start, np.ones(buffer.end - buffer.start, bool))

    load, store = "ld.global.b32 %r6, [%rd9];", "st.global.b32 [%rd9], %r0;"
    (violation,) = run(load, edit_memory=never_written)[0]
    assert (violation.kind, violation.tensor) == (Kind.UNWRITTEN_GLOBAL, "out")
    assert run(store + load, edit_memory=never_written)[0] == []


# A product of a warp group: A in registers, B [8, 16] of bfloat16 at the start of shared memory, no swizzle.
PRODUCT = """
and.b32 %r10, %r0, 63; shl.b32 %r10, %r10, 2; add.u32 %r10, %r2, %r10; setp.lt.u32 %p4, %r0, 64;
@%p4 st.shared.b32 [%r10], 0x3f803f80;
{fence}
bar.sync 0;
shr.u32 %r11, %r2, 4; cvt.u64.u32 %rd5, %r11; or.b64 %rd5, %rd5, 0x0000001000080000;
mov.b32 %r20, 0x3f803f80; mov.b32 %r21, %r20; mov.b32 %r22, %r20; mov.b32 %r23, %r20;
setp.ne.u32 %p5, %r2, %r2;
wgmma.fence.sync.aligned;
wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16
 {{%r12, %r13, %r14, %r15}}, {{%r20, %r21, %r22, %r23}}, %rd5, %p5, 1, 1, 0;
wgmma.commit_group.sync.aligned;
{before}
wgmma.wait_group.sync.aligned 0;
{after}
st.global.b32 [%rd9], %r12;
"""


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("add.f32 %r30, %r12, %r12;", Kind.WGMMA_REGISTER),
        ("mov.b32 %r13, 0;", Kind.WGMMA_REGISTER),
        ("mov.b32 %r21, 0;", Kind.WGMMA_REGISTER),
        ("@%p0 st.shared.b32 [%r2], 0;", Kind.ASYNC_OPERAND),
    ],
)
def test_registers_and_operands_of_a_wgmma_in_flight_are_left_alone(statement, kind):
    fence = "fence.proxy.async.shared::cta;"
    found, _ = run_group(PRODUCT.format(fence=fence, before=statement, after=""))
    assert kind in {each.kind for each in found}
    found, out = run_group(PRODUCT.format(fence=fence, before="", after=BAR + statement))
    assert found == []
    if "%r12" in statement:
        assert (out.view(np.float32) == 16).all()


def test_a_wgmma_needs_a_fence_after_its_registers_are_written():
    body = PRODUCT.format(fence="fence.proxy.async.shared::cta;", before="", after="")
    fence = "wgmma.fence.sync.aligned;\n"
    late = body.replace(fence, fence + "mov.b32 %r23, 0x3f803f80;\n")
    for wrong in (body.replace(fence, ""), late):
        assert {each.kind for each in run_group(wrong)[0]} == {Kind.WGMMA_REGISTER}
    assert run_group(late.replace("wgmma.mma_async", fence + "wgmma.mma_async"))[0] == []


def test_a_wgmma_that_reads_plain_stores_needs_a_proxy_fence():
    found, _ = run_group(PRODUCT.format(fence="", before="", after=""))
    assert {each.kind for each in found} == {Kind.NO_PROXY_FENCE}


def run_group(body):
    out = np.zeros(128, np.uint32)
    found = run_snippet(ADDRESSES + body, threads=128, out=out, source=np.zeros(128, np.uint32))
    return [each for each in found if not each.kind.harmless], out


WRITE_MAP = """
@%p1 st.shared.b32 [%r3], 0; bar.warp.sync -1;
@%p0 tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%r2], %rd1;
@%p0 tensormap.replace.tile.rank.shared::cta.b1024.b32 [%r2], 0;
@%p0 tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%r2], 0, 64;
@%p0 tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%r2], 0, 60;
@%p0 tensormap.replace.tile.element_stride.shared::cta.b1024.b32 [%r2], 0, 1;
@%p0 tensormap.replace.tile.elemtype.shared::cta.b1024.b32 [%r2], 2;
@%p0 tensormap.replace.tile.swizzle_mode.shared::cta.b1024.b32 [%r2], 0;
bar.warp.sync -1;
@%p1 tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned
 [%rd0], [%r2], 128;
"""
MAP_FENCE = "@%p1 fence.proxy.tensormap::generic.acquire.gpu [%rd0], 128;\n"


def test_a_tensor_map_that_the_kernel_writes_needs_a_proxy_fence():
    memory = np.zeros(64, np.uint32)
    start = -memory.ctypes.data % 128 // 4
    out, source = memory[start : start + 32], np.arange(64, dtype=np.uint32)
    after = INIT + BAR + ARRIVE + LOAD.replace("[map,", "[%rd0,") + WAIT + READ
    after += "@%p1 st.global.b32 [%rd9], %r6;"
    for fence, kinds in ((MAP_FENCE, set()), ("", {Kind.NO_PROXY_FENCE})):
        body = ADDRESSES + WRITE_MAP + fence + after
        assert {each.kind for each in run_snippet(body, out=out, source=source)} == kinds
    assert (out == source[:32]).all()


def test_tensors_that_overlap_are_one_buffer():
    memory = GlobalMemory()
    whole = np.zeros(64, np.uint8)
    start = whole.ctypes.data

    def spans():
        return [(each.name, each.start - start, each.end - start) for each in memory.buffers]

    memory.add("a", start + 8, 8)
    memory.add("b", start + 32, 8)
    assert spans() == [("a", 8, 16), ("b", 32, 40)]
    memory.add("inside", start + 33, 4)
    assert spans() == [("a", 8, 16), ("b", 32, 40)]
    memory.add("c", start + 12, 8)
    assert spans() == [("a and c", 8, 20), ("b", 32, 40)]
    memory.add("all", start, 64)
    assert spans() == [("all", 0, 64)]
