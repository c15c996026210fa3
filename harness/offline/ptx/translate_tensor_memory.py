"""Translates tcgen05: tensor memory and its products (sm_100)."""

import re

from .parser import Instruction
from .tensor_cores import ELEMENT_TYPES
from .tensor_memory import Access
from .translator import Handler, Opcodes, Translator, vector
from .unsupported import UnsupportedPtxError

_REGISTERS_PER_REPEAT = {"32x32b": 1, "16x32bx2": 1, "16x64b": 1, "16x128b": 2, "16x256b": 4}


def _tcgen05(t: Translator, i: Instruction) -> None:
    form = i.modifiers[0]
    if "cta_group::2" in i.modifiers:
        raise UnsupportedPtxError("tcgen05 of two CTAs")
    if form in _FORMS:
        _FORMS[form](t, i)
    elif not form.startswith("fence::"):  # order is followed by barriers alone
        raise UnsupportedPtxError(f"tcgen05.{form}")


def _alloc(t: Translator, i: Instruction) -> None:
    t.emit(t.call("tensor_memory.allocate", t.address(i.operands[0]), int(i.operands[1], 0), line=i.line))


def _dealloc(t: Translator, i: Instruction) -> None:
    address = f"{t.integer(i.operands[0], 32)}.astype(S8)"
    t.emit(t.call("tensor_memory.deallocate", address, int(i.operands[1], 0), line=i.line))


def _commit(t: Translator, i: Instruction) -> None:
    if len(i.operands) != 1:
        raise UnsupportedPtxError("tcgen05.commit to several CTAs")
    t.emit(t.call("tensor_cores.commit", t.address(i.operands[0]), line=i.line))


def _without_operands(function: str) -> Handler:
    return lambda t, i: t.emit(t.call(function, line=i.line))


def _access(i: Instruction, registers: int, half_columns: int) -> Access:
    """The shape of tcgen05.ld or .st, of which `registers` are named.

    Raises:
        UnsupportedPtxError: a shape that this executor does not know, or a reduction.
    """
    shape = next((each for each in i.modifiers if each in _REGISTERS_PER_REPEAT), None)
    repeats = next((int(each[1:]) for each in i.modifiers if re.fullmatch(r"x\d+", each)), 0)
    if shape is None or "red" in i.modifiers or _REGISTERS_PER_REPEAT[shape] * repeats != registers:
        raise UnsupportedPtxError("a shape of tcgen05.ld or tcgen05.st")
    packed = "pack::16b" in i.modifiers or "unpack::16b" in i.modifiers
    return Access(shape, registers, half_columns, packed)


def _ld(t: Translator, i: Instruction) -> None:
    destinations = vector(i.operands[0])
    access = _access(i, len(destinations), int(i.operands[2], 0) if len(i.operands) > 2 else 0)
    t.emit("v=" + t.call("tensor_memory.load", t.address(i.operands[1]), repr(access), line=i.line))
    for n, destination in enumerate(destinations):
        t.store(destination, f"v[{n}]", 32)


def _st(t: Translator, i: Instruction) -> None:
    words = vector(i.operands[-1])
    access = _access(i, len(words), int(i.operands[1], 0) if len(i.operands) > 2 else 0)
    values = "[" + ",".join(t.integer(each, 32) for each in words) + "]"
    t.emit(t.call("tensor_memory.store", t.address(i.operands[0]), repr(access), values, line=i.line))


def _mma(t: Translator, i: Instruction) -> None:
    kind = next((each for each in i.modifiers if each.startswith("kind::")), "")
    others = {
        each for each in i.modifiers[1:] if not each.startswith(("cta_group::1", "kind::", "collector::"))
    }
    if kind not in ELEMENT_TYPES or others or len(i.operands) != 5:
        raise UnsupportedPtxError(f"tcgen05.mma of {kind or 'no kind'} {' '.join(sorted(others))}".strip())
    target, a, b, descriptor, accumulates = i.operands
    in_tensor_memory = a.startswith("[")
    t.emit(
        t.call(
            "tensor_cores.product",
            repr(kind),
            t.address(target),
            t.address(a) if in_tensor_memory else t.integer(a, 64),
            t.integer(b, 64),
            t.integer(descriptor, 32),
            t.predicate(accumulates),
            in_tensor_memory,
            line=i.line,
        )
    )


_FORMS: Opcodes = {
    "alloc": _alloc,
    "dealloc": _dealloc,
    "relinquish_alloc_permit": _without_operands("tensor_memory.relinquish"),
    "ld": _ld,
    "st": _st,
    "wait::ld": _without_operands("tensor_memory.wait_loads"),
    "wait::st": _without_operands("tensor_memory.wait_stores"),
    "mma": _mma,
    "commit": _commit,
}
HANDLERS: Opcodes = {"tcgen05": _tcgen05}
