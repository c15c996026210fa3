"""Follows the registers of wgmma: which instructions use those of a product that may be in flight."""

import re

from .parser import Instruction, PtxKernel

_REGISTER = re.compile(r"%[\w@]+")
_WRITES_MEMORY = {"st", "cp", "red", "stmatrix", "mbarrier"}


class WgmmaRegisters:
    """The accumulators and register operands of a kernel's wgmma, by index.

    Args:
        kernel: the parsed PTX.
    """

    def __init__(self, kernel: PtxKernel) -> None:
        self._kernel = kernel
        every = [each for block in kernel.blocks for each in block.instructions]
        products = [each for each in every if "mma_async" in each.modifiers]
        self._accumulators = {index for each in products for index in self._indices(each.operands[0])}
        self._operands = {
            index
            for each in products
            if each.operands[1].startswith("{")
            for index in self._indices(each.operands[1])
        }
        moves = [
            (destination, source)
            for each in every
            if each.opcode == "mov" and len(each.operands) == 2
            for destination in self._indices(each.operands[0])
            for source in self._indices(each.operands[1])
        ]
        before = -1
        while self._accumulators and len(self._accumulators) != before:
            before = len(self._accumulators)
            self._accumulators |= {to for to, source in moves if source in self._accumulators}

    def _indices(self, operand: str) -> list[int]:
        registers = self._kernel.registers
        return [registers[name][0] for name in _REGISTER.findall(operand) if name in registers]

    def statements(self, instruction: Instruction) -> list[str]:
        """Python statements that note what an instruction does with these registers."""
        if not self._accumulators or instruction.opcode == "wgmma" or not instruction.operands:
            return []
        statements = []
        named = [self._indices(operand) for operand in instruction.operands]
        destination = [] if instruction.opcode in _WRITES_MEMORY else named[0]
        overwritten = [index for index in destination if index in self._operands]
        if overwritten:
            statements.append(f"wgmma.operand_written({overwritten},{instruction.line})")
        written = [index for index in destination if index in self._accumulators]
        sources = named if instruction.opcode in _WRITES_MEMORY else named[1:]
        read = [index for indices in sources for index in indices if index in self._accumulators]
        if instruction.opcode == "mov" and len(written) == len(read) == 1:
            statements.append(f"wgmma.accumulator_moved({written[0]},{read[0]})")
        elif written or read:
            statements.append(f"wgmma.accumulator_used({read},{written},{instruction.line})")
        return statements
