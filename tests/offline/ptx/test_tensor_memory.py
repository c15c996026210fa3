"""Tensor memory of sm_100 and tcgen05, by hand-written PTX: results, and faults planted in it."""

import struct

import numpy as np
import pytest
from decodetax.harness.offline.ptx.executable import Executable
from decodetax.harness.offline.ptx.formats import bf16_codes
from decodetax.harness.offline.ptx.global_memory import GlobalMemory
from decodetax.harness.offline.ptx.tensor_memory import Access
from decodetax.harness.offline.ptx.unsupported import UnsupportedPtxError
from decodetax.harness.offline.ptx.violations import Kind

ROWS, COLUMNS, K = 128, 16, 16
SHARED_BYTES = 8192
HEAD = """
.version 8.7
.target sm_100a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry kernel(.param .u64 kernel_param_0, .param .u64 kernel_param_1, .param .u64 kernel_param_2)
.reqntid 128
{
.reg .pred %p<8>;
.reg .b32 %r<80>;
.reg .b64 %rd<16>;
mov.u32 %r1, %tid.x;
mov.b32 %r2, global_smem;
setp.lt.u32 %p1, %r1, 32;
setp.eq.b32 %p3, %r1, 0;
add.s32 %r3, %r2, 4616;
@%p1 tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r3], 32;
bar.sync 0;
ld.shared.b32 %r4, [%r3];
@%p1 tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;
shr.u32 %r5, %r1, 5;
shl.b32 %r5, %r5, 21;
add.s32 %r5, %r5, %r4;
ld.param.b64 %rd1, [kernel_param_0];
ld.param.b64 %rd2, [kernel_param_1];
ld.param.b64 %rd3, [kernel_param_2];
mul.wide.u32 %rd4, %r1, 32;
"""
TAIL = """
bar.sync 0; // last
@%p1 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r4, 32;
ret;
}
"""
STORE_RESULT = """
mul.wide.u32 %rd7, %r1, 64;
add.s64 %rd7, %rd3, %rd7;
st.global.v4.b32 [%rd7], {%r40, %r41, %r42, %r43};
st.global.v4.b32 [%rd7+16], {%r44, %r45, %r46, %r47};
st.global.v4.b32 [%rd7+32], {%r48, %r49, %r50, %r51};
st.global.v4.b32 [%rd7+48], {%r52, %r53, %r54, %r55};
"""
RESULT = "{" + ", ".join(f"%r{40 + n}" for n in range(16)) + "}"
# Core matrices of 8 rows of 16 bytes, no swizzle: 128 bytes from one to the next along K, 256 along the rows.
# The descriptor's upper word: 256 / 16, and the constant of sm_100 at bit 46.
PRODUCT = (
    HEAD
    + """
add.s64 %rd5, %rd1, %rd4;
add.s64 %rd6, %rd2, %rd4;
shr.u32 %r6, %r1, 3;
shl.b32 %r6, %r6, 8;
and.b32 %r7, %r1, 7;
shl.b32 %r7, %r7, 4;
add.s32 %r8, %r6, %r7;
add.s32 %r8, %r8, %r2;
ld.global.v4.b32 {%r10, %r11, %r12, %r13}, [%rd5];
ld.global.v4.b32 {%r14, %r15, %r16, %r17}, [%rd5+16];
st.shared.v4.b32 [%r8], {%r10, %r11, %r12, %r13};
st.shared.v4.b32 [%r8+128], {%r14, %r15, %r16, %r17};
setp.lt.u32 %p2, %r1, 16;
@%p2 ld.global.v4.b32 {%r10, %r11, %r12, %r13}, [%rd6];
@%p2 ld.global.v4.b32 {%r14, %r15, %r16, %r17}, [%rd6+16];
@%p2 st.shared.v4.b32 [%r8+4096], {%r10, %r11, %r12, %r13};
@%p2 st.shared.v4.b32 [%r8+4224], {%r14, %r15, %r16, %r17};
add.s32 %r20, %r2, 4608;
@%p3 mbarrier.init.shared::cta.b64 [%r20], 1;
fence.proxy.async.shared::cta;
bar.sync 0; // ready
shr.u32 %r21, %r2, 4;
or.b32 %r22, %r21, 0x80000;
mov.b32 %r23, 0x4010;
mov.b64 %rd8, {%r22, %r23};
add.s32 %r22, %r22, 256;
mov.b64 %rd9, {%r22, %r23};
mov.b32 %r24, 0x8040490;
mov.pred %p4, 0;
@%p3 tcgen05.mma.cta_group::1.kind::f16 [%r4 + 0], %rd8, %rd9, %r24, %p4;
mov.pred %p4, -1;
@%p3 tcgen05.mma.cta_group::1.kind::f16 [%r4 + 0], %rd8, %rd9, %r24, %p4;
@%p3 tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%r20];
wait:
mbarrier.try_wait.parity.shared::cta.b64 %p5, [%r20], 0;
@!%p5 bra wait;
tcgen05.ld.sync.aligned.32x32b.x16.b32 """
    + RESULT
    + """, [%r5 + 0];
tcgen05.wait::ld.sync.aligned;
"""
    + STORE_RESULT
    + TAIL
)
FAULTS = {
    "no commit": ("@%p3 tcgen05.commit", "@%p6 tcgen05.commit", Kind.STUCK),
    "no wait for the product": ("@!%p5 bra wait;", "", Kind.TENSOR_IN_FLIGHT),
    "no wait for the load": ("tcgen05.wait::ld.sync.aligned;", "", Kind.TENSOR_IN_FLIGHT),
    "no proxy fence": ("fence.proxy.async.shared::cta;", "", Kind.NO_PROXY_FENCE),
    "no barrier before the product": ("bar.sync 0; // ready", "", Kind.SHARED_RACE),
    "no barrier before the deallocation": ("bar.sync 0; // last", "", Kind.TENSOR_RACE),
    "no deallocation": ("@%p1 tcgen05.dealloc", "@%p6 tcgen05.dealloc", Kind.TENSOR_MEMORY),
    "deallocates other columns": ("b32 %r4, 32;", "b32 %r4, 64;", Kind.TENSOR_MEMORY),
    "another warp's lanes": ("shl.b32 %r5, %r5, 21;", "shl.b32 %r5, %r5, 20;", Kind.TENSOR_OUTSIDE),
    "columns past the allocation": ("[%r5 + 0]", "[%r5 + 24]", Kind.TENSOR_OUTSIDE),
    "all lanes issue the product": ("@%p3 tcgen05.mma", "tcgen05.mma", Kind.TENSOR_MEMORY),
    "adds to what nothing wrote": ("mov.pred %p4, 0;", "mov.pred %p4, -1;", Kind.TENSOR_UNWRITTEN),
    "an allocation of 48 columns": ("[%r3], 32;", "[%r3], 48;", Kind.TENSOR_MEMORY),
    "an operand outside shared memory": (
        "add.s32 %r22, %r22, 256;",
        "add.s32 %r22, %r22, 8000;",
        Kind.OUTSIDE_SHARED,
    ),
    "a descriptor of sm_90": ("mov.b32 %r23, 0x4010;", "mov.b32 %r23, 0x10;", Kind.DESCRIPTOR),
    "a shape that the ISA has not": ("0x8040490;", "0x8020490;", Kind.DESCRIPTOR),
    "no rows": ("0x8040490;", "0x0040490;", Kind.DESCRIPTOR),
    "stores over an operand in flight": (
        "wait:\n",
        "st.shared.b32 [%r8], %r10;\nwait:\n",
        Kind.ASYNC_OPERAND,
    ),
}


def run(ptx, *arrays):
    """Violations and notes by kind of one CTA on numpy arrays."""
    memory = GlobalMemory()
    parameters = {}
    for number, array in enumerate(arrays):
        memory.add(f"array_{number}", array.ctypes.data, array.nbytes)
        parameters[f"kernel_param_{number}"] = struct.pack("<Q", array.ctypes.data)
    found = Executable(ptx, SHARED_BYTES).launch(
        (1,), parameters, memory, tensor_maps={}, rng=np.random.default_rng(0)
    )[0]
    return {each.kind: each for each in found}


def operands():
    rng = np.random.default_rng(1)
    a, b = (bf16_codes(rng.standard_normal((rows, K)).astype(np.float32)) for rows in (ROWS, COLUMNS))
    return a, b, np.full((ROWS, COLUMNS), np.nan, np.float32)


def values(codes):
    return (codes.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def test_two_products_sum_in_tensor_memory():
    a, b, out = operands()
    assert run(PRODUCT, a, b, out) == {}
    np.testing.assert_allclose(out, 2 * values(a) @ values(b).T, rtol=1e-6, atol=1e-5)


def test_float16_sums_take_the_low_half_of_a_cell():
    a, b, out = operands()
    assert run(PRODUCT.replace("0x8040490;", "0x8040480;"), a, b, out) == {}
    once = (values(a) @ values(b).T).astype(np.float16)
    twice = (values(a) @ values(b).T + once).astype(np.float16)
    np.testing.assert_array_equal(out.view(np.uint32).astype(np.uint16).view(np.float16), twice)


def test_sums_of_64_rows_lie_in_16_lanes_of_each_quarter():
    a, b, out = operands()
    assert Kind.TENSOR_LOAD_UNWRITTEN in run(PRODUCT.replace("0x8040490;", "0x4040490;"), a, b, out)
    lanes = np.arange(ROWS)
    rows = lanes // 32 * 16 + lanes % 32
    used = lanes % 32 < 16
    np.testing.assert_allclose(out[used], 2 * values(a)[rows[used]] @ values(b).T, rtol=1e-6, atol=1e-5)
    assert np.isnan(out[~used]).all()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault):
    correct, wrong, kind = FAULTS[fault]
    assert correct in PRODUCT
    assert kind in run(PRODUCT.replace(correct, wrong), *operands())


def round_trip(shape, repeats, registers, half="", unpack="", pack=""):
    """PTX that stores 100 tid + n to tensor memory by one shape, and loads it by the same."""
    fill = "\n".join(f"mad.lo.u32 %r{56 + n}, %r1, 100, {n};" for n in range(registers))
    words = "{" + ", ".join(f"%r{56 + n}" for n in range(registers)) + "}"
    loaded = "{" + ", ".join(f"%r{40 + n}" for n in range(registers)) + "}"
    zero = "\n".join(f"mov.b32 %r{40 + n}, 0;" for n in range(16))
    name = f"{shape}.x{repeats}"
    return (
        f"{HEAD}{fill}\n{zero}\n"
        f"tcgen05.st.sync.aligned.{name}{unpack}.b32 [%r5 + 0]{half}, {words};\n"
        "tcgen05.wait::st.sync.aligned;\n"
        f"tcgen05.ld.sync.aligned.{name}{pack}.b32 {loaded}, [%r5 + 0]{half};\n"
        f"tcgen05.wait::ld.sync.aligned;\n{STORE_RESULT}{TAIL}"
    )


@pytest.mark.parametrize(
    ("shape", "repeats", "registers", "half"),
    [
        ("32x32b", 8, 8, ""),
        ("16x32bx2", 8, 8, ", 8"),
        ("16x64b", 8, 8, ""),
        ("16x128b", 4, 8, ""),
        ("16x256b", 2, 8, ""),
    ],
)
def test_registers_return_by_the_shape_that_stored_them(shape, repeats, registers, half):
    _, _, out = operands()
    ptx = round_trip(shape, repeats, registers, half)
    assert run(ptx, out, out, out) == {}
    expected = 100 * np.arange(ROWS)[:, None] + np.arange(registers)
    np.testing.assert_array_equal(out.view(np.uint32)[:, :registers], expected)
    assert Kind.TENSOR_IN_FLIGHT in run(ptx.replace("tcgen05.wait::st.sync.aligned;", ""), out, out, out)


def test_packed_registers_hold_two_columns():
    _, _, out = operands()
    assert run(round_trip("32x32b", 8, 8, "", ".unpack::16b", ".pack::16b"), out, out, out) == {}
    expected = 100 * np.arange(ROWS)[:, None] + np.arange(8)
    np.testing.assert_array_equal(out.view(np.uint32)[:, :8], expected)


def test_each_shape_places_registers_as_the_isa_says():
    """PTX ISA, matrix fragments of tcgen05.ld: some places of each, and no cell twice."""
    places = {
        ("32x32b", 4, 0): {(31, 3): (31, 3)},
        ("16x32bx2", 4, 7): {(5, 3): (5, 3), (21, 3): (5, 10)},
        ("16x64b", 4, 0): {(0, 0): (0, 0), (1, 0): (8, 0), (2, 0): (0, 1), (4, 1): (1, 2)},
        ("16x128b", 4, 0): {(5, 0): (1, 1), (5, 1): (9, 1), (5, 2): (1, 5)},
        ("16x256b", 8, 0): {(5, 0): (1, 2), (5, 1): (1, 3), (5, 2): (9, 2), (5, 4): (1, 10)},
    }
    for (shape, registers, half), known in places.items():
        lanes, columns = Access(shape, registers, half).cells
        for (thread, register), place in known.items():
            assert (lanes[thread, register], columns[thread, register]) == place, shape
        every = set(zip(lanes.flat, columns.flat, strict=True))
        assert len(every) == 32 * registers


@pytest.mark.parametrize(
    "instruction",
    [
        "tcgen05.mma.cta_group::2.kind::f16 [%r4], %rd8, %rd9, %r24, %p4;",
        "tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale [%r4], %rd8, %rd9, %r24, [%r5], [%r5], %p4;",
        "tcgen05.cp.cta_group::1.128x256b [%r4], %rd8;",
        "tcgen05.shift.cta_group::1.down [%r4];",
        "tcgen05.ld.red.sync.aligned.32x32b.x2.min.u32 {%r40, %r41}, %r42, [%r5];",
    ],
)
def test_what_is_not_executed_is_named(instruction):
    with pytest.raises(UnsupportedPtxError, match="tcgen05"):
        run(f"{HEAD}{instruction}{TAIL}", *operands())
