"""What a kernel may not do: the kinds of violations, and the log of those that one launch makes."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from .parser import Instruction

_SHOWN_PTX_CHARACTERS = 90


class Kind(StrEnum):
    """Kinds of violations."""

    OUTSIDE_TENSOR = "global access outside every tensor"
    MISALIGNED_GLOBAL = "misaligned global access"
    DEAD_READ = "read of dead global memory"
    UNWRITTEN_GLOBAL = "read of global memory that nothing wrote"
    GLOBAL_RACE = "global race"
    OUTSIDE_SHARED = "access outside shared memory"
    MISALIGNED_SHARED = "misaligned shared access"
    UNWRITTEN_SHARED = "read of shared memory that nothing wrote"
    OUTSIDE_LOCAL = "misaligned or outside local memory"
    UNWRITTEN_LOCAL = "read of local memory that nothing wrote"
    SHARED_RACE = "shared race"
    ONE_ADDRESS = "lanes store different values to one address"
    READ_IN_FLIGHT = "read of an asynchronous copy in flight"
    WRITE_IN_FLIGHT = "write over an asynchronous copy in flight"
    ASYNC_OPERAND = "write of what an asynchronous operation reads"
    WGMMA_REGISTER = "use of registers of a wgmma in flight"
    NO_PROXY_FENCE = "asynchronous read of plain stores without fence.proxy.async"
    TENSOR_MEMORY = "wrong use of tensor memory"
    TENSOR_OUTSIDE = "access outside allocated tensor memory"
    TENSOR_UNWRITTEN = "read of tensor memory that nothing wrote"
    TENSOR_IN_FLIGHT = "tensor memory used before the wait for what uses it"
    TENSOR_RACE = "tensor memory race"
    TENSOR_LOAD_UNWRITTEN = "note: tcgen05.ld of tensor memory that nothing wrote"
    DESCRIPTOR = "wrong matrix or tensor descriptor"
    COPY_SIZE = "asynchronous copy of a wrong size"
    UNFINISHED = "CTA ends before an asynchronous read of its shared memory"
    PARTIAL_WARP = "warp instruction with lanes missing"
    MISSED_BARRIER = "barrier that lanes miss"
    MBARRIER = "wrong use of an mbarrier"
    STUCK = "wait that nothing completes"
    DIVISION = "division by zero"
    TRAP = "trap"
    SAME_VALUE = "note: two warps write the same value"
    NOTHING_COPIED = "note: cp.async of no bytes from a misaligned address"

    @property
    def harmless(self) -> bool:
        """Whether it is a note, such as two warps that write the same value."""
        return self.value.startswith("note: ")


@dataclass
class Violation:
    """One violation, or several of one kind at one instruction.

    Attributes:
        kind: what is wrong.
        kernel: name of the kernel.
        detail: of the first occurrence.
        tensor: name of the kernel's argument whose memory it is; empty if it is none.
        shared_address: offset from the start of the CTA's shared memory, in bytes; None if it is not shared.
        cta: coordinates of the CTA that was first.
        warp: the warp that was first; None where it is none alone.
        ptx_line: line in the PTX, from 1.
        ptx: the instruction.
        source: file and line of the Triton source, such as "decode_tile.py:120"; empty if PTX has none.
        count: occurrences.
    """

    kind: Kind
    kernel: str
    detail: str
    tensor: str
    shared_address: int | None
    cta: tuple[int, int, int]
    warp: int | None
    ptx_line: int
    ptx: str
    source: str
    count: int = 1

    def __str__(self) -> str:
        where = [self.tensor] if self.tensor else []
        if self.shared_address is not None:
            where.append(f"shared memory + {self.shared_address:#x}")
        where.append(f"CTA {','.join(map(str, self.cta))}")
        if self.warp is not None:
            where.append(f"warp {self.warp}")
        times = f" x{self.count}" if self.count > 1 else ""
        detail = f" ({self.detail})" if self.detail else ""
        return (
            f"{self.kind}{times}: {', '.join(where)}{detail}; {self.kernel}, PTX line {self.ptx_line}"
            f"{f', {self.source}' if self.source else ''}: {self.ptx}"
        )


class ViolationLog:
    """The violations of one launch, one for each kind and PTX line.

    Args:
        kernel: name of the kernel.
        instructions: by PTX line.
    """

    def __init__(self, kernel: str, instructions: Mapping[int, Instruction]) -> None:
        self.kernel, self.instructions = kernel, instructions
        self.found: dict[tuple[Kind, int], Violation] = {}

    def add(
        self,
        kind: Kind,
        line: int,
        detail: str,
        *,
        tensor: str,
        shared_address: int | None,
        cta: tuple[int, int, int],
        warp: int | None,
    ) -> None:
        """Adds a violation, or counts it where one of its kind at its line is known."""
        known = self.found.get((kind, line))
        if known is not None:
            known.count += 1
            return
        instruction = self.instructions[line]
        self.found[kind, line] = Violation(
            kind=kind,
            kernel=self.kernel,
            detail=detail,
            tensor=tensor,
            shared_address=shared_address,
            cta=cta,
            warp=warp,
            ptx_line=line,
            ptx=instruction.text[:_SHOWN_PTX_CHARACTERS],
            source=instruction.source,
        )
