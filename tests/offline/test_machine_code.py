"""Disassembler listings are read as they are printed."""

import pytest
from decodetax.harness.offline.machine_code import Instruction, multiply_adds, parse_listing, parse_usage

LISTING = """
	.headerflags	@"EF_CUDA_TEXMODE_UNIFIED EF_CUDA_SM90"
//--------------------- .text.some_kernel     --------------------------
	.section	.text.some_kernel,"ax",@progbits
	.sectioninfo	@"SHI_REGISTERS=40"
        .global         some_kernel
        .other          some_kernel,@"STO_CUDA_ENTRY STV_DEFAULT"
some_kernel:
.text.some_kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   @UP0 SYNCS.EXCH.64 URZ, [UR25], UR4 ;
        /*0030*/                   BRA.U !UP1, `(.L_x_0) ;
        /*0040*/                   CALL.REL.NOINC `($helper) ;
        /*0050*/                   EXIT ;
.L_x_1:
        /*0060*/                   BRA `(.L_x_1);
	.section	.text.other,"ax",@progbits
other:
        /*0000*/                   EXIT ;
"""


def test_functions_labels_guards_and_targets_are_read():
    functions = parse_listing(LISTING)
    assert list(functions) == ["some_kernel", "other"]
    code = functions["some_kernel"]
    assert [each.address for each in code.instructions] == [0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60]
    assert [each.guard for each in code.instructions] == ["", "!P0", "UP0", "", "", "", ""]
    assert [each.targets for each in code.instructions][2:5] == [(), (".L_x_0",), ("$helper",)]
    assert (code.labels[".L_x_0"], code.labels[".L_x_1"]) == (1, 6)
    assert len(functions["other"].instructions) == 1


@pytest.mark.parametrize(
    ("opcode", "kind"),
    [
        ("HMMA.16816.F32.BF16", "matrix"),
        ("HGMMA.64x256x16.F32.BF16", "matrix"),
        ("QGMMA.64x256x32.F32.E4M3.E4M3", "matrix"),
        ("QMMA.16832.F32.E4M3.E4M3", "matrix"),
        ("IMMA.16832.S8.S8", "matrix"),
        ("UTCHMMA", "matrix"),
        ("UTCQMMA", "matrix"),
        ("LDGSTS.E.BYPASS.128", "load_global"),
        ("UTMALDG.2D", "load_global"),
        ("LDSM.16.MT88.4", "load_shared"),
        ("STS.64", "store"),
        ("UTMASTG.2D", "store"),
        ("STL", "spill"),
        ("FFMA", "float"),
        ("MUFU.EX2", "mufu"),
        ("IMAD.WIDE", "integer"),
        ("UIADD3", "integer"),
        ("USEL", "integer"),
        ("IMAD.MOV.U32", "move"),
        ("UMOV", "move"),
        ("ULDC.64", "move"),
        ("F2FP.BF16.F32.PACK_AB", "convert"),
        ("SHFL.BFLY", "shuffle"),
        ("BAR.SYNC.DEFER_BLOCKING", "barrier"),
        ("DEPBAR.LE", "barrier"),
        ("SYNCS.PHASECHK.TRANS64.TRYWAIT", "barrier"),
        ("WARPGROUP.ARRIVE", "barrier"),
        ("BRA.U", "control"),
        ("XYZZY", "other"),
    ],
)
def test_instructions_have_the_class_of_their_unit(opcode, kind):
    assert Instruction(0, opcode).kind == kind


@pytest.mark.parametrize(
    ("opcode", "lane_bytes", "asynchronous"),
    [
        ("LDGSTS.E.BYPASS.LTC128B.128", 16, True),
        ("LDGSTS.E.64", 8, True),
        ("LDGSTS.E", 4, True),
        ("LDG.E.128", 16, False),
        ("LDG.E.U16", 2, False),
        ("LDG.E.U8.CONSTANT", 1, False),
        ("LDG.E", 4, False),
        ("UTMALDG.2D", 16, True),
        ("UBLKCP.S.G", 16, True),
        ("LDS.128", 0, False),
    ],
)
def test_width_and_asynchrony_of_loads(opcode, lane_bytes, asynchronous):
    load = Instruction(0, opcode)
    assert (load.lane_bytes, load.is_asynchronous) == (lane_bytes, asynchronous)


@pytest.mark.parametrize(
    ("before", "product", "expected"),
    [
        ("", "HMMA.16816.F32.BF16 R4, R132, R2, R4", 16 * 8 * 16),
        ("", "HMMA.1688.F32.TF32 R4, R132, R2, R4", 16 * 8 * 8),
        ("", "QMMA.16832.F32.E4M3.E4M3 R4, R132, R2, R4", 16 * 8 * 32),
        ("", "HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8].tnspB, R24, gsb0", 64 * 256 * 16 / 4),
        # The descriptor of 128 x 256 as Triton writes it; 16 deep in 16 bits, 32 in 8.
        ("UMOV UR23, 0x8400490", "UTCHMMA gdesc[UR4], tmem[UR9], idesc[UR23], UPT", 128 * 256 * 16),
        ("UMOV UR23, 0x8400490", "UTCQMMA gdesc[UR4], tmem[UR9], idesc[UR23], UPT", 128 * 256 * 32),
        ("UMOV UR22, 0x8400490", "UTCHMMA gdesc[UR4], tmem[UR9], idesc[UR23], UPT", None),
        ("UMOV UR23, UR7", "UTCHMMA gdesc[UR4], tmem[UR9], idesc[UR23], UPT", None),
        ("", "FFMA R1, R2, R3, R4", None),
    ],
)
def test_multiply_adds_of_mma_instructions(before, product, expected):
    lines = [line for line in (before, product) if line]
    text = '\t.section\t.text.k,"ax"\n' + "\n".join(
        f"        /*{at:04x}*/  {line} ;" for at, line in enumerate(lines)
    )
    code = parse_listing(text)["k"]
    assert multiply_adds(code, len(lines) - 1) == expected


def test_scheduling_hints_are_not_operands():
    text = '\t.section\t.text.k,"ax"\n        /*2300*/   DEPBAR.LE SB0, 0x2                ?WAIT4_END_GROUP ;'
    assert parse_listing(text)["k"].instructions[0].operands == "SB0, 0x2"


def test_targets_of_a_computed_branch_are_read():
    line = 'BRX R2 -0x2310   (*"BRANCH_TARGETS .L_x_25,.L_x_35"*)'
    code = parse_listing(f'\t.section\t.text.k,"ax"\n        /*2300*/   {line} ;')["k"]
    assert code.instructions[0].targets == (".L_x_25", ".L_x_35")


def test_usage_is_that_of_the_named_function():
    text = "\n".join(
        f" Function {name}:\n  REG:{registers} STACK:{stack} SHARED:0 LOCAL:0 CONSTANT[0]:424"
        for name, registers, stack in (("helper", 8, 0), ("kernel", 182, 64))
    )
    usage = parse_usage(text, "kernel")
    assert (usage.registers, usage.stack_bytes) == (182, 64)
    with pytest.raises(ValueError, match="'absent'"):
        parse_usage(text, "absent")
