"""Translates a kernel's basic blocks to Python source: each register an array with a value per lane.

A block becomes two functions: `b7(None)` for all lanes and `b7m(m)` for those of the mask `m`. The source
has registers as `R[i]`, constants as `C[i]`, numpy's types by the names of `_NAMES`, and calls the state of
the CTA by the names that `Cta` binds. `Opcodes` are the handlers that write each instruction's statements.
"""

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any, TypeAlias

import numpy as np

from . import formats, integers
from .lanes import UNSIGNED, Array
from .parser import Block, Instruction, PtxKernel
from .unsupported import UnsupportedPtxError
from .wgmma_registers import WgmmaRegisters

Handler: TypeAlias = "Callable[[Translator, Instruction], None]"
Opcodes: TypeAlias = Mapping[str, Handler]
"""The function that translates each opcode."""

_NUMBER = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|\d+)U?")
_ADDRESS = re.compile(r"([%\w$@]+)\s*(?:\+\s*(-?\w+))?")
_SPECIAL = re.compile(
    r"%(tid|ctaid|nctaid|ntid|cluster_ctaid|cluster_nctaid)\.[xyz]"
    r"|%(laneid|warpid|nwarpid|clock|clock64|clock_hi|globaltimer|globaltimer_lo|globaltimer_hi|smid|nsmid"
    r"|cluster_ctarank|cluster_nctarank)"
)
_NAMES: dict[str, Any] = {
    **{name: value for module in (formats, integers) for name, value in vars(module).items()},
    **{f"U{bits // 8}": UNSIGNED[bits] for bits in (8, 16, 32, 64)},
    "S1": np.int8,
    "S2": np.int16,
    "S4": np.int32,
    "S8": np.int64,
    "H": np.float16,
    "F": np.float32,
    "D": np.float64,
    "W": np.where,
    "np": np,
}


@dataclass(frozen=True)
class Kind:
    """A PTX type: its name, bits, and whether it is signed or floating."""

    name: str
    bits: int
    signed: bool
    floating: bool

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return self.bits // 8


_KINDS = {
    "pred": Kind("pred", 1, signed=False, floating=False),
    **{
        f"{letter}{bits}": Kind(f"{letter}{bits}", bits, signed=letter == "s", floating=letter == "f")
        for letter in "busf"
        for bits in (8, 16, 32, 64)
    },
    "bf16": Kind("bf16", 16, signed=False, floating=True),
    "u16x2": Kind("u16x2", 32, signed=False, floating=False),
    "s16x2": Kind("s16x2", 32, signed=True, floating=False),
    "f16x2": Kind("f16x2", 32, signed=False, floating=True),
    "bf16x2": Kind("bf16x2", 32, signed=False, floating=True),
    "f32x2": Kind("f32x2", 64, signed=False, floating=True),
    "b128": Kind("b128", 128, signed=False, floating=False),
}


def kind_of(name: str) -> Kind:
    """The type of a modifier such as "f32".

    Raises:
        UnsupportedPtxError: this executor has no such type.
    """
    if name not in _KINDS:
        raise UnsupportedPtxError(f"type {name}")
    return _KINDS[name]


@dataclass(frozen=True)
class Translation:
    """A kernel's blocks as Python code, and the constants it refers to."""

    code: CodeType
    constants: list[Array]

    def bind(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """Runs the definitions over one CTA's state; the functions are `b0`, `b0m`, `b1`, ..."""
        space = {**_NAMES, "C": self.constants, **names}
        exec(self.code, space)  # noqa: S102  (source that `Translator` wrote)
        return space


class Translator:
    """Writes the statements of one kernel; handlers use its methods.

    Args:
        kernel: the parsed PTX.
        symbols: addresses of names, such as parameters and shared arrays.
        opcodes: handlers.

    Attributes:
        mask: the expression of the current instruction's active lanes; "None" for all.
    """

    def __init__(self, kernel: PtxKernel, symbols: Mapping[str, int], opcodes: Opcodes) -> None:
        self.kernel, self._symbols, self._opcodes = kernel, symbols, opcodes
        self._constants: list[Array] = []
        self._constant_at: dict[tuple[int, int], int] = {}
        self._wgmma_registers = WgmmaRegisters(kernel)
        self._statements: list[str] = []
        self.mask = "None"

    def translate(self) -> Translation:
        """Python code of all blocks.

        Raises:
            UnsupportedPtxError: names the first PTX line and instruction that this executor does not know.
        """
        source = [
            f"def b{block.index}{'m' if masked else ''}(m):\n "
            + "\n ".join(self._block(block, "m" if masked else ""))
            for block in self.kernel.blocks
            for masked in (False, True)
        ]
        code = compile("\n".join(source), f"<ptx {self.kernel.name}>", "exec")
        return Translation(code, self._constants)

    def _block(self, block: Block, mask: str) -> list[str]:
        self._statements = ["pass"]
        for instruction in block.instructions:
            self._statements += self._wgmma_registers.statements(instruction)
            self._instruction(instruction, mask)
        if block.kind == "switch":
            self.emit(f"return {self.integer(block.last.operands[0], 32)}")
        if block.end is not None and block.end.guard and block.kind != "jump":
            self.emit(f"return {'~' if block.end.negated else ''}{self.register(block.end.guard)}")
        return self._statements

    def _instruction(self, instruction: Instruction, mask: str) -> None:
        self.mask = mask or "None"
        if instruction.guard:
            guard = f"{'~' if instruction.negated else ''}{self.register(instruction.guard)}"
            self.emit(f"g={guard}&m" if mask else f"g={guard}")
            self.mask = "g"
        where = f"PTX line {instruction.line}, {instruction.text!r}"
        handler = self._opcodes.get(instruction.opcode)
        if handler is None:
            raise UnsupportedPtxError(f"{where}: unknown instruction")
        try:
            handler(self, instruction)
        except UnsupportedPtxError as error:
            raise UnsupportedPtxError(f"{where}: {error}") from error
        except (KeyError, ValueError, IndexError) as error:
            raise UnsupportedPtxError(f"{where}: operands of an unknown form") from error

    # Statements -----------------------------------------------------------------------------------------

    def emit(self, statement: str) -> None:
        """Adds a Python statement."""
        self._statements.append(statement)

    def call(self, function: str, *arguments: object, line: int) -> str:
        """A call that ends in the active lanes and the PTX line, as the CTA's state takes them."""
        return f"{function}({','.join(map(str, [*arguments, self.mask, line]))})"

    # Operands -------------------------------------------------------------------------------------------

    def register(self, name: str) -> str:
        """The expression of a register, as it is held."""
        return f"R[{self.kernel.registers[name][0]}]"

    def constant(self, value: int, bits: int) -> str:
        """The expression of a constant in all lanes."""
        value &= 2**bits - 1
        key = (value, bits)
        if key not in self._constant_at:
            self._constant_at[key] = len(self._constants)
            self._constants.append(np.full(self.kernel.threads, value, UNSIGNED[bits]))
        return f"C[{self._constant_at[key]}]"

    def immediate(self, text: str) -> int | None:
        """An integer operand; None if it is a register or a float."""
        return int(text.rstrip("U"), 0) if _NUMBER.fullmatch(text) else None

    def integer(self, text: str, bits: int, *, signed: bool = False) -> str:
        """The expression of an operand as unsigned integers of `bits` bits."""
        if text in self.kernel.registers:
            have = self.kernel.registers[text][1]
            expression = self.register(text)
            if have == bits:
                return expression
            if have < bits and signed:
                return f"{expression}.view(S{have // 8}).astype(S{bits // 8}).view(U{bits // 8})"
            return f"{expression}.astype(U{bits // 8})"
        if _SPECIAL.fullmatch(text):
            return f"cta.special({text!r},{bits})"
        if text in self._symbols:
            return self.constant(self._symbols[text], bits)
        return self.constant(_literal(text, bits), bits)

    def floats(self, text: str, kind: str, *, flush: bool = False) -> str:
        """The expression of an operand as numpy floats; float32 for bfloat16."""
        if kind == "f32":
            expression = f"{self.integer(text, 32)}.view(F)"
            return f"flush_to_zero({expression})" if flush else expression
        if kind == "f64":
            return f"{self.integer(text, 64)}.view(D)"
        if kind == "f16":
            return f"{self.integer(text, 16)}.view(H)"
        if kind == "bf16":
            return f"bf16_values({self.integer(text, 16)})"
        raise UnsupportedPtxError(f"floating type {kind}")

    def halves(self, text: str, kind: str) -> tuple[str, str]:
        """The low and the high half of an operand of two 16-bit floats."""
        word = self.integer(text, 32)
        low, high = f"({word}&U4(65535)).astype(U2)", f"({word}>>U4(16)).astype(U2)"
        if kind == "f16x2":
            return f"{low}.view(H)", f"{high}.view(H)"
        return f"bf16_values({low})", f"bf16_values({high})"

    def predicate(self, text: str) -> str:
        """The expression of a predicate operand, which may be negated."""
        return f"~{self.integer(text[1:].strip(), 1)}" if text.startswith("!") else self.integer(text, 1)

    def address(self, text: str) -> str:
        """The expression of an address `[base + offset]`, as int64."""
        found = _ADDRESS.fullmatch(text.strip("[] "))
        if found is None:
            raise UnsupportedPtxError(f"address {text}")
        base, offset = found.group(1), int(found.group(2) or "0", 0)
        if base in self.kernel.registers:
            expression = f"{self.register(base)}.astype(S8)"
            return f"({expression}+{offset})" if offset else expression
        start = self._symbols[base] if base in self._symbols else int(base, 0)
        return f"{self.constant(start + offset, 64)}.view(S8)"

    # Results --------------------------------------------------------------------------------------------

    def store(self, destination: str, expression: str, bits: int, *, signed: bool = False) -> None:
        """Assigns unsigned integers of `bits` bits (or truth values) to a register, in the active lanes."""
        if destination == "_":
            return
        index, have = self.kernel.registers[destination]
        if have > bits > 1:
            w, h = bits // 8, have // 8
            extended = f"({expression}).view(S{w}).astype(S{h}).view(U{h})"
            expression = extended if signed else f"({expression}).astype(U{h})"
        elif have < bits:
            expression = f"({expression}).astype(U{have // 8})"
        if self.mask != "None":
            expression = f"W({self.mask},{expression},R[{index}])"
        self.emit(f"R[{index}]={expression}")

    def store_floats(self, destination: str, expression: str, kind: str, *, flush: bool = False) -> None:
        """Assigns floats to a register, rounded to its type."""
        if kind == "f32":
            code = f"flush_to_zero({expression})" if flush else f"({expression})"
            self.store(destination, f"{code}.view(U4)", 32)
        elif kind == "f64":
            self.store(destination, f"({expression}).view(U8)", 64)
        elif kind == "f16":
            self.store(destination, f"({expression}).astype(H).view(U2)", 16)
        elif kind == "bf16":
            self.store(destination, f"bf16_codes({expression})", 16)
        else:
            raise UnsupportedPtxError(f"floating type {kind}")

    def store_halves(self, destination: str, low: str, high: str, kind: str) -> None:
        """Assigns two 16-bit floats to a register of 32 bits."""
        code = "({}).astype(H).view(U2)" if kind == "f16x2" else "bf16_codes({})"
        self.store(destination, f"pack_halves({code.format(low)},{code.format(high)})", 32)


def vector(text: str) -> list[str]:
    """The registers of `{a, b}`; a single operand is a vector of one."""
    return [part.strip() for part in text[1:-1].split(",")] if text.startswith("{") else [text]


def _literal(text: str, bits: int) -> int:
    """The bits of a literal: an integer, `0f` with a float32's bits, or `0d` with a float64's."""
    prefix = text[:2].lower()
    if prefix == "0d":
        return int(f"0x{text[2:]}", 0)
    if prefix != "0f":
        return int(text.rstrip("U"), 0)
    value = int(f"0x{text[2:]}", 0)
    if bits == 32:
        return value
    if bits != 64:
        raise UnsupportedPtxError(f"float32 literal {text} for {bits} bits")
    (number,) = struct.unpack("<f", struct.pack("<I", value))
    return int(struct.unpack("<Q", struct.pack("<d", number))[0])
