"""Hand-written PTX: what it computes, and the violations that it makes."""

import numpy as np
from decodetax.harness.offline.ptx.violations import Kind
from ptx_snippets import run_snippet

LANE_ADDRESS = """
mul.wide.u32 %rd8, %r0, 4;
add.u64 %rd9, %rd0, %rd8;
shl.b32 %r1, %r0, 2;
mov.u32 %r2, global_smem;
add.u32 %r3, %r2, %r1;
"""


def kinds(found):
    return {each.kind for each in found}


def test_each_lane_stores_its_number():
    out = np.zeros(64, np.uint32)
    assert not run_snippet(LANE_ADDRESS + "st.global.b32 [%rd9], %r0;", out=out)
    assert (out == np.arange(64)).all()


def test_a_store_outside_the_tensor_names_tensor_cta_warp_and_line():
    out = np.zeros(64, np.uint32)
    (violation,) = run_snippet(LANE_ADDRESS + "st.global.b32 [%rd9+4], %r0;", out=out)
    assert violation.kind is Kind.OUTSIDE_TENSOR
    assert (violation.tensor, violation.cta, violation.warp) == ("out", (0, 0, 0), 1)
    assert violation.ptx == "st.global.b32 [%rd9+4], %r0"
    assert violation.ptx_line == 21


def test_reading_what_another_warp_stored_needs_a_barrier():
    out = np.zeros(64, np.uint32)
    body = LANE_ADDRESS + "st.shared.b32 [%r3], %r0; xor.b32 %r4, %r1, 128; add.u32 %r5, %r2, %r4;\n"
    load = "ld.shared.b32 %r6, [%r5]; st.global.b32 [%rd9], %r6;"
    assert kinds(run_snippet(body + load, out=out)) == {Kind.SHARED_RACE}
    assert not run_snippet(body + "bar.sync 0;\n" + load, out=out)
    assert (out == np.arange(64) ^ 32).all()
