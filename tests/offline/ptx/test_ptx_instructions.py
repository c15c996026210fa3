"""What instructions compute, one lane each, against Python's integers and floats; and PTX that is refused."""

import numpy as np
import pytest
from decodetax.harness.offline.ptx.parser import PtxKernel
from decodetax.harness.offline.ptx.unsupported import UnsupportedPtxError
from ptx_snippets import run_snippet

LANES = 64
MASK32, MASK64 = 2**32 - 1, 2**64 - 1
SPECIAL = (0, 1, 2, 31, 32, 33, 63, 64, 127, 128, 255, 2**31 - 1, 2**31, 2**31 + 1, MASK32 - 1, MASK32)


def signed(value, bits=32):
    return value - 2**bits if value >> (bits - 1) else value


def operands(count, seed=0):
    rng = np.random.default_rng(seed)
    columns = [rng.permutation(np.resize(SPECIAL, LANES // 2)) for _ in range(count)]
    columns = [np.concatenate([each, rng.integers(0, 2**32, LANES // 2)]) for each in columns]
    return [each.astype(np.uint32) for each in columns]


def compute(body, *columns):
    """%r10, %r11, ... hold a lane's operands; the lane's %r20 is returned."""
    out = np.zeros(LANES, np.uint32)
    arrays = {f"x{n}": column for n, column in enumerate(columns)}
    loads = [
        f"add.u64 %rd9, %rd{n + 1}, %rd8; ld.global.b32 %r{n + 10}, [%rd9];" for n in range(len(columns))
    ]
    text = "\n".join(["mul.wide.u32 %rd8, %r0, 4;", *loads, body, "add.u64 %rd9, %rd0, %rd8;"])
    assert run_snippet(text + "st.global.b32 [%rd9], %r20;", out=out, **arrays) == []
    return out


def floor_shift(x, n, most):
    return x >> min(n, most)


INTEGERS = {
    "mul.hi.u32 %r20, %r10, %r11;": lambda x, y: x * y >> 32,
    "mul.hi.s32 %r20, %r10, %r11;": lambda x, y: signed(x) * signed(y) >> 32,
    "mad.lo.s32 %r20, %r10, %r11, %r10;": lambda x, y: x * y + x,
    "shl.b32 %r20, %r10, %r11;": lambda x, y: x << min(y, 32),
    "shr.u32 %r20, %r10, %r11;": lambda x, y: x >> min(y, 32),
    "shr.s32 %r20, %r10, %r11;": lambda x, y: floor_shift(signed(x), y, 31),
    "shf.l.wrap.b32 %r20, %r10, %r11, 9;": lambda x, y: (y << 32 | x) << 9 >> 32,
    "shf.r.wrap.b32 %r20, %r10, %r11, 9;": lambda x, y: (y << 32 | x) >> 9,
    "min.s32 %r20, %r10, %r11;": lambda x, y: min(signed(x), signed(y)),
    "max.u32 %r20, %r10, %r11;": max,
    "popc.b32 %r20, %r10;": lambda x, _: x.bit_count(),
    "clz.b32 %r20, %r10;": lambda x, _: 32 - x.bit_length(),
    "bfind.u32 %r20, %r10;": lambda x, _: x.bit_length() - 1,
    "bfind.shiftamt.u32 %r20, %r10;": lambda x, _: 32 - x.bit_length() if x else -1,
    "brev.b32 %r20, %r10;": lambda x, _: int(f"{x:032b}"[::-1], 2),
    "bfe.u32 %r20, %r10, 5, 9;": lambda x, _: x >> 5 & 511,
    "bfe.s32 %r20, %r10, 5, 9;": lambda x, _: signed(x >> 5 & 511, 9),
    "bfi.b32 %r20, %r10, %r11, 5, 9;": lambda x, y: y & ~(511 << 5) | (x & 511) << 5,
    "prmt.b32 %r20, %r10, %r11, 0x7503;": lambda x, y: (
        y >> 24 << 24 | (y >> 8 & 255) << 16 | (x & 255) << 8 | x >> 24
    ),
    "lop3.b32 %r20, %r10, %r11, %r10, 0x3c;": lambda x, y: x ^ y,
    "sad.s32 %r20, %r10, %r11, 7;": lambda x, y: abs(signed(x) - signed(y)) + 7,
    "sub.s32 %r20, %r10, %r11;": lambda x, y: x - y,
    "add.cc.u32 %r20, %r10, %r11; addc.u32 %r20, 0, 0;": lambda x, y: x + y >> 32,
    "sub.cc.u32 %r20, %r10, %r11; subc.u32 %r20, 0, 0;": lambda x, y: -(x < y),
    "mad.lo.cc.u32 %r21, %r10, %r11, %r11; madc.hi.u32 %r20, %r10, %r11, 0;": lambda x, y: x * y + y >> 32,
    "cvt.s64.s32 %rd2, %r10; shr.s64 %rd2, %rd2, 3; cvt.u32.u64 %r20, %rd2;": lambda x, _: signed(x) >> 3,
    "cvt.s32.s8 %r20, %r10;": lambda x, _: signed(x & 255, 8),
    "cvt.sat.u8.s32 %h0, %r10; cvt.u32.u16 %r20, %h0;": lambda x, _: min(max(signed(x), 0), 255),
    "setp.lt.s32 %p1, %r10, %r11; selp.b32 %r20, 1, 0, %p1;": lambda x, y: signed(x) < signed(y),
}


@pytest.mark.parametrize("body", INTEGERS)
def test_integer_instructions(body):
    x, y = operands(2)
    wanted = [int(INTEGERS[body](int(a), int(b))) & MASK32 for a, b in zip(x, y, strict=True)]
    assert compute(body, x, y).tolist() == wanted


@pytest.mark.parametrize(("rounding", "toward"), [("rz", 0), ("rm", -np.inf), ("rp", np.inf)])
def test_directed_rounding_is_next_to_the_exact_result(rounding, toward):
    rng = np.random.default_rng(1)
    x, y = (rng.standard_normal(LANES).astype(np.float32) for _ in range(2))
    got = compute(f"mul.{rounding}.f32 %r20, %r10, %r11;", x.view(np.uint32), y.view(np.uint32)).view(
        np.float32
    )
    exact = x.astype(np.float64) * y
    nearest = exact.astype(np.float32)
    outside = {0: np.abs(nearest) > np.abs(exact), -np.inf: nearest > exact, np.inf: nearest < exact}[toward]
    assert (got == np.where(outside, np.nextafter(nearest, np.float32(toward)), nearest)).all()


def test_atomics_of_lanes_on_one_word_follow_one_another():
    out = np.zeros(2, np.uint32)
    body = "atom.global.add.u32 %r20, [%rd0], %r0; red.global.max.u32 [%rd0+4], %r20;"
    assert run_snippet(body, out=out) == []
    assert out[0] == sum(range(LANES))
    assert out[1] == sum(range(LANES - 1))


def test_generic_addresses_reach_shared_local_and_global_memory():
    out = np.zeros(LANES, np.uint32)
    body = """
    .shared .align 4 .b8 box[256]; .local .align 4 .b8 area[4];
    mul.wide.u32 %rd8, %r0, 4; mov.u64 %rd1, box; add.u64 %rd1, %rd1, %rd8; mov.u64 %rd2, area;
    st.u32 [%rd1], %r0; ld.u32 %r6, [%rd1]; st.u32 [%rd2], %r6; ld.u32 %r7, [%rd2];
    add.u64 %rd9, %rd0, %rd8; st.u32 [%rd9], %r7;
    """
    assert run_snippet(body, out=out) == []
    assert (out == np.arange(LANES)).all()


@pytest.mark.parametrize(
    "statement",
    [
        "frobnicate.b32 %r6, %r0;",
        "mma.sync.aligned.m8n8k32.row.col.s32.s4.s4.s32 {%r1, %r2}, {%r5}, {%r6}, {%r1, %r2};",
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd0], 16, [%r2];",
        "bar.arrive 1, 64;",
        "add.rz.f64 %rd1, %rd1, %rd1;",
        "ld.global.b128 %rd1, [%rd0];",
        "tex.2d.v4.f32.f32 {%r1,%r2,%r3,%r4}, [t, {%r1,%r2}];",
        "call.uni f, ();",
        "ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8 {%r1,%r2}, [%r3];",
    ],
)
def test_ptx_that_is_not_known_is_refused_with_its_line(statement):
    with pytest.raises(UnsupportedPtxError) as refused:
        run_snippet(f"mov.u32 %r1, 0;\n{statement}", out=np.zeros(1, np.uint32))
    assert f"PTX line 16, '{statement[:-1]}'" in str(refused.value)


def test_an_operand_that_only_its_value_shows_to_be_unknown_is_refused_with_lines():
    body = """
    .shared .align 4 .b8 box[256]; mul.wide.u32 %rd8, %r0, 4; mov.u64 %rd1, box; add.u64 %rd1, %rd1, %rd8;
    setp.eq.u32 %p0, %r0, 0; selp.b64 %rd1, %rd0, %rd1, %p0;
    st.u32 [%rd1], %r0;
    """
    with pytest.raises(UnsupportedPtxError, match=r"PTX lines 13 to 18: generic addresses of several"):
        run_snippet(body, out=np.zeros(1, np.uint32))


def test_clusters_and_wide_registers_are_refused():
    kernel = ".visible .entry k()\n.reqntid 32\n{0}{{\n{1}\nret;\n}}"
    assert PtxKernel(kernel.format("", "")).threads == 32
    with pytest.raises(UnsupportedPtxError, match="k runs in clusters of CTAs"):
        PtxKernel(kernel.format(".reqnctapercluster 2\n", ""))
    with pytest.raises(UnsupportedPtxError, match="register %rq0 of 128 bits"):
        PtxKernel(kernel.format("", ".reg .b128 %rq<2>;"))


FUNCTIONS = """
.func (.param .b32 result) twice(.param .b32 value)  // of a function with a loop and labels of its own
{
.reg .b32 %r<3>; .reg .pred %p<2>;
ld.param.b32 %r1, [value];
mov.u32 %r2, 0;
again: add.u32 %r2, %r2, %r1;
setp.lt.u32 %p1, %r2, %r1;
@%p1 bra again;
add.u32 %r2, %r2, %r1;
st.param.b32 [result], %r2;
ret;
}
"""
CALL = (
    "{{ .param .b32 param0; .param .b32 back; st.param.b32 [param0], {0}; call.uni (back), twice, (param0);\n"
)
CALL += "ld.param.b32 {1}, [back]; }}"


def test_device_functions_are_inlined_at_each_call():
    out = np.zeros(LANES, np.uint32)
    body = "\n".join(
        [
            CALL.format("%r0", "%r5"),
            CALL.format("%r5", "%r6"),
            "mul.wide.u32 %rd8, %r0, 4; add.u64 %rd9, %rd0, %rd8;\nst.global.b32 [%rd9+4], %r6;",
        ]
    )
    (violation,) = run_snippet(body, out=out, functions=FUNCTIONS)
    assert (out[1:] == 4 * np.arange(LANES - 1)).all()
    assert violation.ptx == "st.global.b32 [%rd9+4], %r6"
    assert violation.ptx_line == FUNCTIONS.count("\n") + 20


def test_functions_that_call_themselves_are_refused():
    functions = "\n.func () f()\n{\ncall.uni f, ();\nret;\n}\n"
    with pytest.raises(UnsupportedPtxError, match="call one another without end"):
        run_snippet("call.uni f, ();", out=np.zeros(1, np.uint32), functions=functions)
