"""Parses the output of `nvdisasm` and `cuobjdump` for a cubin: instructions, labels, registers, stack."""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_SECTION = re.compile(r"^\s*\.section\s+\.text\.(?P<name>[^,\s]+)")
_LABEL = re.compile(r"^(?P<label>[.$\w]+):\s*$")
_INSTRUCTION = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:\{\s*)?(?:@(?P<guard>!?U?P\w+)\s+)?"
    r"(?P<opcode>[A-Z][\w.]*)(?P<operands>[^;]*)"
)
_TARGET = re.compile(r"`\((?P<label>[^)]+)\)")
# Some versions print scheduling hints after the operands.
_HINTS = re.compile(r"\s+\?\w+(?:\s.*)?$")
_TARGETS = re.compile(r'BRANCH_TARGETS (?P<labels>[^"]+)"')
_WIDTH = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
_MMA = re.compile(r"(?:[HIQOBD]G?MMA|UTC\w*MMA)")
_WARP_SHAPE = re.compile(r"(?P<m>16|8)(?P<n>8)(?P<k>4|8|16|32|64|128|256)")
_GROUP_SHAPE = re.compile(r"(?P<m>64)x(?P<n>\d+)x(?P<k>\d+)")
_TMA_LOADS = ("UTMALDG", "UBLKCP")
_TMA_LINE_BYTES = 16  # the granularity of a TMA copy

# Instruction classes, by the name before the first dot; a leading U is the uniform datapath's variant.
_CLASSES = {
    "load_global": "LDG LDGSTS LD UTMALDG UBLKCP UTMAPF UTMACCTL CCTL",
    "load_shared": "LDS LDSM LDTM UTCCP",
    "store": "STG ST STS STSM STTM STAS RED REDG REDAS ATOM ATOMG ATOMS UTMASTG UTMAREDG",
    "spill": "LDL STL",
    "float": "FADD FMUL FFMA FMNMX FMNMX3 FSEL FSETP FSET FCHK FSWZADD FADD2 FMUL2 FFMA2 HADD2 HMUL2 HFMA2 "
    "HMNMX2 HSETP2 HSET2 DADD DMUL DFMA DSETP FADD32I FMUL32I FFMA32I FADD3",
    "mufu": "MUFU",
    "integer": "IADD IADD2 IADD3 IMAD LEA LOP LOP3 SHF SHL SHR ISETP IMNMX VIMNMX VIMNMX3 IABS VIADD "
    "VIADDMNMX SEL PLOP3 BMSK SGXT POPC FLO BREV IDP ISCADD VABSDIFF PSETP LOP32I IADD32I ISCADD32I",
    "convert": "F2F F2FP F2I F2IP I2F I2FP I2I I2IP FRND PRMT",
    "move": "MOV MOV32I CS2R S2R S2UR R2UR UR2UP R2P P2R B2R R2B LDC LDCU GETLMEMBASE LEPC",
    "shuffle": "SHFL VOTE VOTEU REDUX MATCH CREDUX",
    "barrier": "BAR DEPBAR LDGDEPBAR SYNCS WARPSYNC WARPGROUP WARPGROUPSET MEMBAR FENCE ERRBAR BSSY BSYNC "
    "BMOV UTCBAR ARRIVES ELECT NANOSLEEP UTMACMDFLUSH ACQBULK ACQSHMINIT UTCATOMSWS UCGABAR_ARV UCGABAR_WAIT",
    "control": "BRA BRX BRXU JMP JMX CALL RET EXIT NOP BREAK YIELD PREEXIT KILL BPT RPCMOV",
}
_CLASS_OF = {name: kind for kind, names in _CLASSES.items() for name in names.split()}
INSTRUCTION_CLASSES = ("matrix", *_CLASSES, "other")


@dataclass(frozen=True)
class Instruction:
    """One machine instruction.

    Attributes:
        address: bytes from the start of its function.
        opcode: opcode with all modifiers, such as "LDGSTS.E.BYPASS.128".
        operands: the rest of the line, trimmed.
        guard: its predicate, such as "!P0" or "UP1"; empty where it always runs.
    """

    address: int
    opcode: str
    operands: str = ""
    guard: str = ""

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def targets(self) -> tuple[str, ...]:
        """The labels that it may branch to or call; for a computed branch, those that the tool lists."""
        if listed := _TARGETS.search(self.operands):
            return tuple(label.strip() for label in listed["labels"].split(","))
        match = _TARGET.search(self.operands)
        return (match["label"],) if match else ()

    @property
    def kind(self) -> str:
        """One of `INSTRUCTION_CLASSES`."""
        if self.is_mma:
            return "matrix"
        if self.opcode.startswith(("IMAD.MOV", "IMAD.U32")):
            return "move"  # a move on the multiplier's datapath
        name = self.name
        return _CLASS_OF.get(name) or _CLASS_OF.get(name.removeprefix("U"), "other")

    @property
    def is_mma(self) -> bool:
        """Whether it is a tensor-core instruction (MMA) of any kind."""
        return _MMA.fullmatch(self.name) is not None

    @property
    def is_group_mma(self) -> bool:
        """Whether it is an asynchronous MMA of a group of four warps (wgmma of sm_90)."""
        return self.is_mma and self.name.endswith("GMMA")

    @property
    def mma_groups_left(self) -> int | None:
        """The groups of such MMAs that a wait leaves in flight; None for other instructions."""
        if not self.opcode.startswith("WARPGROUP.DEPBAR"):
            return None
        return int(self.operands.rpartition(",")[2], 16)

    @property
    def is_global_load(self) -> bool:
        """Whether it reads global memory into registers or shared memory."""
        return self.name in {"LDG", "LDGSTS", *_TMA_LOADS}

    @property
    def is_asynchronous(self) -> bool:
        """Whether it copies global to shared memory without passing through registers."""
        return self.name in {"LDGSTS", *_TMA_LOADS}

    @property
    def is_tma(self) -> bool:
        """Whether it is a TMA copy: one thread copies a whole tile, whose size is not in the instruction."""
        return self.name in _TMA_LOADS

    @property
    def lane_bytes(self) -> int:
        """Bytes that a lane of a global load reads; 16 for a TMA copy, 0 for other instructions."""
        if not self.is_global_load:
            return 0
        if self.is_tma:
            return _TMA_LINE_BYTES
        return next((_WIDTH[part] for part in reversed(self.opcode.split(".")) if part in _WIDTH), 4)


@dataclass(frozen=True)
class MachineCode:
    """The instructions of one kernel.

    Attributes:
        name: name of the function.
        instructions: instructions in address order.
        labels: number of instructions before each label.
    """

    name: str
    instructions: Sequence[Instruction]
    labels: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class ResourceUsage:
    """A kernel's line of `cuobjdump -res-usage`.

    Attributes:
        registers: 32-bit registers per thread.
        stack_bytes: local memory per thread.
    """

    registers: int
    stack_bytes: int


def parse_listing(listing: str) -> dict[str, MachineCode]:
    """Parses the output of `nvdisasm -c`.

    Args:
        listing: its complete output.

    Returns:
        The code of each function by its name, in the listing's order.
    """
    functions: dict[str, tuple[list[Instruction], dict[str, int]]] = {}
    current: tuple[list[Instruction], dict[str, int]] | None = None
    for line in listing.splitlines():
        if section := _SECTION.match(line):
            current = functions.setdefault(section["name"], ([], {}))
        elif current is None:
            continue
        elif label := _LABEL.match(line):
            current[1][label["label"]] = len(current[0])
        elif found := _INSTRUCTION.match(line):
            current[0].append(
                Instruction(
                    address=int(found["address"], 16),
                    opcode=found["opcode"],
                    operands=_HINTS.sub("", found["operands"]).strip(" }"),
                    guard=found["guard"] or "",
                )
            )
    return {name: MachineCode(name, tuple(code), labels) for name, (code, labels) in functions.items()}


def parse_usage(text: str, function: str) -> ResourceUsage:
    """Parses the output of `cuobjdump -res-usage`.

    Args:
        text: its complete output.
        function: name of the kernel.

    Raises:
        ValueError: the text does not list that function.
    """
    found = re.search(rf"Function {re.escape(function)}:\s+REG:(\d+)\s+STACK:(\d+)", text)
    if found is None:
        raise ValueError(f"cuobjdump does not list the function {function!r}")
    return ResourceUsage(registers=int(found[1]), stack_bytes=int(found[2]))


def disassemble(
    cubin: bytes, function: str, *, tools: Path, keep: Path | None = None
) -> tuple[MachineCode, ResourceUsage]:
    """Disassembles one kernel of a cubin and reads its resource usage.

    Args:
        cubin: the compiled kernel.
        function: its name.
        tools: folder of `nvdisasm` and `cuobjdump`, as Triton ships them.
        keep: cache file for the tools' output, named for the cubin's content; None for no cache.

    Raises:
        ValueError: the cubin has no such function.
        subprocess.CalledProcessError: a tool failed on the cubin.
    """
    kept = keep.with_suffix(".json") if keep else None
    if kept is not None and kept.exists():
        listing, usage = json.loads(kept.read_text(encoding="utf-8"))
    else:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            listing = _output(tools / "nvdisasm", "-c", file.name)
            usage = _output(tools / "cuobjdump", "-res-usage", file.name)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            # Another process may write the same file at the same time: replacing is atomic.
            partial = kept.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps([listing, usage]), encoding="utf-8")
            partial.replace(kept)
    functions = parse_listing(listing)
    if function not in functions:
        raise ValueError(f"the cubin has no function {function!r}, but {', '.join(functions) or 'none'}")
    return functions[function], parse_usage(usage, function)


def multiply_adds(code: MachineCode, at: int) -> float | None:
    """Multiply-adds of one MMA instruction, per warp that issues it.

    Four warps issue a warp-group instruction (HGMMA): a quarter each. One warp issues a `UTC*MMA` for the
    CTA; its shape is in the instruction descriptor (PTX ISA, "tcgen05 instruction descriptor"): bits 17 to 22
    hold N / 8, bits 24 to 28 M / 16.

    Args:
        code: the kernel.
        at: index of the instruction.

    Returns:
        M x N x K; None for other instructions and for shapes that cannot be read.
    """
    instruction = code.instructions[at]
    if not instruction.is_mma:
        return None
    if instruction.name.startswith("UTC"):
        return _descriptor_multiply_adds(code, at)
    for part in instruction.opcode.split(".")[1:]:
        if group := _GROUP_SHAPE.fullmatch(part):
            return int(group["m"]) * int(group["n"]) * int(group["k"]) / 4
        if warp := _WARP_SHAPE.fullmatch(part):
            return int(warp["m"]) * int(warp["n"]) * int(warp["k"])
    return None


def _descriptor_multiply_adds(code: MachineCode, at: int) -> float | None:
    """Multiply-adds of a `UTC*MMA` whose descriptor a preceding `UMOV` sets to a constant."""
    instruction = code.instructions[at]
    # K: 32 bytes of each operand row.
    depth = {"UTCHMMA": 16, "UTCQMMA": 32, "UTCIMMA": 32, "UTCOMMA": 64}.get(instruction.name)
    register = re.search(r"idesc\[(UR\d+)\]", instruction.operands)
    if depth is None or register is None:
        return None
    for before in reversed(code.instructions[:at]):
        if before.name in {"UMOV", "MOV"} and before.operands.startswith(register[1] + ","):
            value = before.operands.partition(",")[2].strip()
            if not re.fullmatch(r"0x[0-9a-f]+", value):
                return None
            descriptor = int(value, 16)
            return 16.0 * (descriptor >> 24 & 31) * 8 * (descriptor >> 17 & 63) * depth
    return None


def _output(tool: Path, *arguments: str) -> str:
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout
