"""Loops are found in the flow of control, and an iteration counts what a warp issues in it."""

import random

import pytest
from decodetax.harness.offline.hot_loop import basic_blocks, dominators, find_hot_loops, natural_loops
from decodetax.harness.offline.machine_code import parse_listing


def code_of(text):
    """The code of a listing with one instruction or label per line."""
    lines, address = ['\t.section\t.text.k,"ax",@progbits'], 0
    for line in text.strip().splitlines():
        if line.strip().endswith(":"):
            lines.append(line.strip())
        else:
            lines.append(f"        /*{address:04x}*/  {line.strip()} ;")
            address += 16
    return parse_listing("\n".join(lines))["k"]


def hot(text):
    (loop,) = find_hot_loops(code_of(text))
    return loop


PLAIN = """
    MOV R1, R2
    @!P0 BRA `(.L_end)
    .L_loop:
    LDG.E.128 R4, [R2.64]
    FFMA R1, R4, R5, R1
    IADD3 R2, R2, 0x10, RZ
    @P0 BRA `(.L_loop)
    .L_end:
    STG.E [R2], R1
    EXIT
    .L_trap:
    BRA `(.L_trap)
"""


def test_counts_the_instructions_of_a_plain_loop():
    loop = hot(PLAIN)
    assert loop.count == 4
    assert loop.by_class() == {"load_global": 1, "float": 1, "integer": 1, "control": 1}


def test_code_without_loops_has_no_hot_loop():
    assert find_hot_loops(code_of("MOV R1, R2\nEXIT\n.L_trap:\nBRA `(.L_trap)")) == ()


def test_backward_branch_to_a_block_that_does_not_dominate_it_is_not_a_loop():
    code = code_of("""
        @P0 BRA `(.L_second)
        .L_first:
        LDG.E R1, [R2.64]
        BRA `(.L_second)
        .L_second:
        FADD R1, R1, R1
        @P1 BRA `(.L_first)
        EXIT
    """)
    assert natural_loops(basic_blocks(code)) == ()


def test_innermost_loop_with_work_is_hot():
    loop = hot("""
        .L_tile:
        HMMA.16816.F32 R4, R8, R2, R4
        HMMA.16816.F32 R4, R8, R2, R4
        HMMA.16816.F32 R4, R8, R2, R4
        .L_step:
        LDGSTS.E.128 [R1], [R2.64]
        HMMA.16816.F32 R4, R8, R2, R4
        @P0 BRA `(.L_step)
        STG.E [R2], R1
        @P1 BRA `(.L_tile)
        EXIT
    """)
    assert [each.name for each in loop.instructions] == ["LDGSTS", "HMMA", "BRA"]


def test_loop_with_most_mma_is_hot():
    loop = hot("""
        .L_sum:
        LDG.E.128 R4, [R2.64]
        LDG.E.128 R8, [R2.64]
        @P0 BRA `(.L_sum)
        .L_product:
        LDS R1, [R2]
        LDG.E R1, [R2.64]
        HMMA.16816.F32 R4, R8, R2, R4
        @P0 BRA `(.L_product)
        EXIT
    """)
    assert loop.mma_names == ("HMMA",)
    assert loop.count == 4


SPIN_OUT_OF_LINE = """
    .L_loop:
    LDGSTS.E.128 [R1], [R2.64]
    @P3 BRA `(.L_rest)
    UMOV UR23, 0x8400490
    UTCHMMA gdesc[UR4], tmem[UR9], idesc[UR23], UPT
    .L_rest:
    SYNCS.PHASECHK.TRANS64.TRYWAIT P4, [UR26], R5
    @!P4 BRA `(.L_spin)
    .L_back:
    IADD3 R2, R2, 0x10, RZ
    @P6 BRA `(.L_loop)
    EXIT
    .L_spin:
    SYNCS.PHASECHK.TRANS64.TRYWAIT P4, [UR26], R5
    @!P4 BRA `(.L_spin)
    BRA `(.L_back)
"""


def test_elected_mma_counts_and_a_spin_wait_does_not():
    loop = hot(SPIN_OUT_OF_LINE)
    # Of the 12 instructions of the loop, the spin's 3 are left out.
    names = "LDGSTS BRA UMOV UTCHMMA SYNCS BRA IADD3 BRA"
    assert [each.name for each in loop.instructions] == names.split()
    assert loop.multiply_adds == 128 * 256 * 16
    # One of four warps issues UMOV and UTCHMMA.
    assert (loop.elected, loop.issue_slots(4)) == (2, 6 * 4 + 2)


@pytest.mark.parametrize(("moves", "counts"), [(0, False), (6, False), (7, True)])
def test_a_spin_wait_of_at_most_8_instructions_on_the_path_does_not_count(moves, counts):
    listing = """
        .L_loop:
        LDS R1, [R2]
        .L_spin:
        SYNCS.PHASECHK.TRANS64.TRYWAIT P4, [UR26], R5
        @!P4 BRA `(.L_spin)
        HGMMA.64x64x16.F32 R24, gdesc[UR8], R24
        @P0 BRA `(.L_loop)
        EXIT
    """
    loop = hot(listing.replace("@!P4", "MOV R3, R4\n" * moves + "@!P4"))
    spin = ["SYNCS", *["MOV"] * moves, "BRA"] if counts else []
    assert [each.name for each in loop.instructions] == ["LDS", *spin, "HGMMA", "BRA"]


def test_multiply_adds_are_unknown_with_an_mma_of_unknown_shape():
    mmas = "HMMA.16816.F32 R4, R8, R12, R4\n{} R4, R8, R12, R4\n@P0 BRA `(.L_loop)\nEXIT"
    known, unknown = (hot(f".L_loop:\n{mmas.format(name)}") for name in ("HMMA.16816.F32", "HMMA.F32"))
    assert (known.multiply_adds, unknown.multiply_adds) == (2 * 16 * 8 * 16, None)


def test_loop_that_waits_and_loads_is_not_a_spin_wait():
    loop = hot("""
        .L_loop:
        SYNCS.PHASECHK.TRANS64.TRYWAIT P4, [UR26], R5
        LDG.E R1, [R2.64]
        @P0 BRA `(.L_loop)
        EXIT
    """)
    assert loop.count == 3


def test_counts_the_shortest_path_of_an_iteration():
    loop = hot("""
        .L_loop:
        LDG.E R1, [R2.64]
        @P1 BRA `(.L_usual)
        STG.E [R3], R1
        STG.E [R3], R1
        .L_usual:
        @P2 BRA `(.L_long)
        FADD R1, R1, R1
        BRA `(.L_join)
        .L_long:
        FMUL R1, R1, R1
        FMUL R1, R1, R1
        FMUL R1, R1, R1
        .L_join:
        @P0 BRA `(.L_loop)
        EXIT
    """)
    assert [each.name for each in loop.instructions] == ["LDG", "BRA", "BRA", "FADD", "BRA", "BRA"]


@pytest.mark.parametrize(
    "ending",
    [
        "@P0 BRA `(.L_loop)",
        "BRA.U !UP0, `(.L_loop)",
        "BRA P0, `(.L_loop)",
        "@P0 CALL.REL.NOINC `(.L_out)\nBRA `(.L_loop)\n.L_out:",
        "@P0 EXIT\nBRA `(.L_loop)",
    ],
    ids=["guard", "uniform", "operand", "call_as_exit", "exit_within"],
)
def test_reads_every_way_to_end_a_loop(ending):
    loop = hot(f".L_loop:\nLDG.E R1, [R2.64]\n{ending}\nMOV R1, R2\nEXIT")
    assert loop.count == 1 + sum(line.startswith(("@", "BRA")) for line in ending.splitlines())


def test_producer_loop_follows_the_mma_loop():
    consumer, producer = find_hot_loops(
        code_of("""
            BRX R2 -0x10 (*"BRANCH_TARGETS .L_consume,.L_produce"*)
            .L_consume:
            HGMMA.64x64x16.F32 R24, gdesc[UR8], R24
            @P1 BRA `(.L_consume)
            EXIT
            .L_produce:
            UTMALDG.2D [UR8], [UR4]
            UTMALDG.2D [UR16], [UR4]
            @P1 BRA `(.L_produce)
            EXIT
        """)
    )
    assert consumer.mma_names == ("HGMMA",)
    assert [each.name for each in producer.global_loads] == ["UTMALDG", "UTMALDG"]


def test_dominators_are_on_every_path():
    rng = random.Random(0)  # noqa: S311  (a repeatable choice of graphs)
    for _ in range(100):
        size = rng.randint(2, 9)
        lines = []
        for block in range(size):
            lines += [f".L_{block}:", "NOP", f"@P0 BRA `(.L_{rng.randrange(size)})"]
        blocks = basic_blocks(code_of("\n".join([*lines, "EXIT"])))
        dominating = dominators(blocks)
        for removed in dominating:
            reached = reachable(blocks, removed)
            assert {block for block in dominating if removed in dominating[block]} == set(
                dominating
            ) - reached


def reachable(blocks, removed):
    """Blocks that the entry reaches without a block."""
    seen, pending = set(), [0]
    while pending:
        block = pending.pop()
        if block not in seen and block != removed:
            seen.add(block)
            pending.extend(blocks[block].successors)
    return seen


def drains_of(*body):
    return hot("\n".join([".L_loop:", *body, "@P0 BRA `(.L_loop)", "EXIT"])).drains


MMA = "QGMMA.64x128x32.F32.E4M3.E4M3 R24, gdesc[UR20], R24"
WAIT = "WARPGROUP.DEPBAR.LE gsb0, "


def test_a_wait_for_all_products_drains_until_the_next_one():
    assert drains_of(
        MMA, MMA + ", gsb0", WAIT + "0x0", "FADD R1, R1, R24", "FADD R2, R2, R25", "BAR.SYNC 0x0"
    ) == (4,)


def test_a_wait_that_leaves_a_group_in_flight_does_not_drain():
    assert drains_of(MMA, MMA + ", gsb0", WAIT + "0x1", "FADD R1, R1, R24") == ()


def test_waiting_for_each_product_drains_as_often():
    assert drains_of(*[MMA + ", gsb0", WAIT + "0x0"] * 3, "FADD R1, R1, R24") == (2, 0, 0)


def test_a_second_group_in_flight_across_the_loop_overlaps_its_end():
    first = [MMA + ", gsb0", WAIT + "0x0", "FADD R1, R1, R88", "FADD R2, R2, R24"]
    assert drains_of(*first, MMA + ", gsb0", "BAR.SYNC 0x0", WAIT + "0x1") == (2,)


def test_products_of_single_warps_never_drain():
    assert drains_of("HMMA.16816.F32.BF16 R4, R8, R12, R4", "FADD R1, R1, R4") == ()
