"""Warps that run different code concurrently: brx.idx, barriers of some threads, mbarriers between them."""

import json
from pathlib import Path

import numpy as np
import pytest
from compiled_program import output_of
from decodetax.harness.offline.ptx.unsupported import UnsupportedPtxError
from decodetax.harness.offline.ptx.violations import Kind
from ptx_snippets import run_snippet

# Warp 0 consumes what warps 1 and 2 produce. It waits from a block before theirs.
BODY = """
shr.u32 %r1, %r0, 5;
mov.b32 %r2, global_smem;
setp.eq.u32 %p1, %r0, 0;
add.s32 %r3, %r2, 512;
@%p1 mbarrier.init.shared::cta.b64 [%r3], 64;
table:
.branchtargets
    consume,
    produce,
    produce;
bar.sync 0;
brx.idx %r1, table;
consume:
setmaxnreg.inc.sync.aligned.u32 240;
wait:
mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r3], 0;
@!%p2 bra wait;
shl.b32 %r4, %r0, 3;
add.s32 %r4, %r4, %r2;
ld.shared.v2.b32 {%r5, %r6}, [%r4 + 1024];
mul.wide.u32 %rd2, %r0, 8;
add.s64 %rd3, %rd0, %rd2;
st.global.v2.b32 [%rd3], {%r5, %r6};
bra done;
produce:
setmaxnreg.dec.sync.aligned.u32 24;
sub.s32 %r7, %r0, 32;
shl.b32 %r8, %r7, 2;
add.s32 %r9, %r8, %r2;
st.shared.b32 [%r9], %r7;
bar.sync 1, 64;
xor.b32 %r10, %r8, 128;
add.s32 %r11, %r10, %r2;
ld.shared.b32 %r12, [%r11];
st.shared.b32 [%r9 + 1024], %r12;
mbarrier.arrive.shared::cta.b64 %rd9, [%r3];
done:
"""
FAULTS = {
    "no barrier of the producers": ("bar.sync 1, 64;", "", Kind.SHARED_RACE),
    "a barrier of fewer threads": ("bar.sync 1, 64;", "bar.sync 1, 32;", Kind.MISSED_BARRIER),
    "a barrier of more threads": ("bar.sync 1, 64;", "bar.sync 1, 96;", Kind.STUCK),
    "no arrival": ("mbarrier.arrive.shared::cta.b64 %rd9, [%r3];", "", Kind.STUCK),
    "no wait": ("@!%p2 bra wait;", "", Kind.SHARED_RACE),
    "no barrier after the initialisation": ("bar.sync 0;", "", Kind.MBARRIER),
    "an index past the targets": ("    produce,\n    produce;", "    produce;", Kind.TRAP),
}


def run(body):
    out = np.zeros(64, np.uint32)
    found = run_snippet(body, threads=96, shared_bytes=2048, out=out)
    return {each.kind for each in found}, out


def test_a_consumer_waits_for_producers_that_meet_at_a_barrier_of_their_own():
    kinds, out = run(BODY)
    assert not kinds
    np.testing.assert_array_equal(out, np.arange(64) ^ 32)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault):
    correct, wrong, kind = FAULTS[fault]
    assert correct in BODY
    assert kind in run(BODY.replace(correct, wrong))[0]


def test_more_waits_than_polls_of_one_wait_are_no_endless_wait():
    """Each wait succeeds at its second try; 1,500 of them fail as often in all as one that never does."""
    body = """
    mov.b32 %r2, global_smem;
    setp.eq.u32 %p1, %r0, 0;
    @%p1 mbarrier.init.shared::cta.b64 [%r2], 64;
    bar.sync 0;
    mov.b32 %r3, 0;
    again:
    and.b32 %r4, %r3, 1;
    mbarrier.arrive.shared::cta.b64 %rd9, [%r2];
    wait:
    mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2], %r4;
    @!%p2 bra wait;
    add.s32 %r3, %r3, 1;
    setp.lt.u32 %p3, %r3, 1500;
    @%p3 bra again;
    st.global.b32 [%rd0], %r3;
    """
    out = np.zeros(1, np.uint32)
    found = run_snippet(body, threads=64, out=out)
    assert Kind.STUCK not in {each.kind for each in found}
    assert out[0] == 1500


@pytest.mark.parametrize("barrier", ["bar.arrive 1, 64;", "bar.sync %r1;", "bar.red.popc.u32 %r1, 0, %p1;"])
def test_other_barriers_are_named(barrier):
    with pytest.raises(UnsupportedPtxError, match="barrier"):
        run(BODY.replace("bar.sync 1, 64;", barrier))


@pytest.mark.slow
def test_the_warp_specialized_matmul_of_b200_is_right_and_one_warp_multiplies():
    row = json.loads(output_of(Path(__file__).with_name("specialized_on_b200.py")))
    assert row["specialised"]
    assert row["violations"] == []
    assert row["error"] < 4e-3
    assert row["warps"] > 4
    # 64 of K take four products of 16.
    assert row["hot_loop"] == {"warps": 1, "tensor_core": 4}
