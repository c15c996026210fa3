"""Translates instructions of a warp or warp group: tensor cores, matrix loads, shuffles, votes, barriers."""

import re

from .parser import Instruction
from .translator import Opcodes, Translator, vector
from .unsupported import UnsupportedPtxError

_ALL_LANES = "np.ones(cta.threads,np.bool_)"


def _ldmatrix(t: Translator, i: Instruction) -> None:
    if "m8n8" not in i.modifiers or i.modifiers[-1] != "b16":
        raise UnsupportedPtxError("a shape of ldmatrix")
    destinations = vector(i.operands[0])
    address, transposed = t.address(i.operands[1]), "trans" in i.modifiers
    t.emit("v=" + t.call("matrices.load", address, len(destinations), transposed, line=i.line))
    for n, destination in enumerate(destinations):
        t.store(destination, f"v[{n}]", 32)


def _stmatrix(t: Translator, i: Instruction) -> None:
    if "m8n8" not in i.modifiers or i.modifiers[-1] != "b16":
        raise UnsupportedPtxError("a shape of stmatrix")
    words = ",".join(t.integer(each, 32) for each in vector(i.operands[1]))
    transposed = "trans" in i.modifiers
    t.emit(t.call("matrices.store", t.address(i.operands[0]), f"[{words}]", transposed, line=i.line))


def _mma(t: Translator, i: Instruction) -> None:
    shape = next(each for each in i.modifiers if re.fullmatch(r"m\d+n\d+k\d+", each))
    _, a_type, b_type, sum_type = i.modifiers[-4:]
    destinations = vector(i.operands[0])
    lists = ("[" + ",".join(t.integer(each, 32) for each in vector(text)) + "]" for text in i.operands[1:4])
    t.emit("v=" + t.call("mma", repr(shape), repr((a_type, b_type, sum_type)), *lists, line=i.line))
    for n, destination in enumerate(destinations):
        t.store(destination, f"v[{n}]", 32)


def _wgmma(t: Translator, i: Instruction) -> None:
    form = i.modifiers[0]
    if form == "commit_group":
        t.emit(t.call("wgmma.commit", line=i.line))
    elif form == "wait_group":
        t.emit(t.call("wgmma.wait", int(i.operands[0], 0), line=i.line))
    elif form == "mma_async":
        _wgmma_product(t, i)
    elif form != "fence":
        raise UnsupportedPtxError("a form of wgmma")


def _wgmma_product(t: Translator, i: Instruction) -> None:
    n, k = next(
        map(int, found.groups()) for each in i.modifiers if (found := re.fullmatch(r"m64n(\d+)k(\d+)", each))
    )
    sum_type, a_type, b_type = i.modifiers[-3:]
    if sum_type != "f32":
        raise UnsupportedPtxError(f"a wgmma that sums in {sum_type}")
    accumulators = vector(i.operands[0])
    a, b, keep, a_sign, b_sign, *transposed = i.operands[1:]
    from_registers = a.startswith("{")
    operands = vector(a) if from_registers else []
    words = "[" + ",".join(t.integer(each, 32) for each in operands) + "]"
    flags = [False] * from_registers + [bool(int(each)) for each in transposed]
    flags += [False] * (2 - len(flags))
    sums = ",".join(t.integer(each, 32) for each in accumulators)
    t.emit(
        "v="
        + t.call(
            "wgmma.product",
            (n, k),
            (a_type, b_type),
            f"[{sums}]",
            words if from_registers else t.integer(a, 64),
            t.integer(b, 64),
            t.integer(keep, 1),
            int(a_sign) * int(b_sign),
            flags,
            line=i.line,
        )
    )
    for number, accumulator in enumerate(accumulators):
        t.store(accumulator, f"v[{number}]", 32)
    indices, taken = ([t.kernel.registers[each][0] for each in names] for names in (accumulators, operands))
    t.emit(f"wgmma.started({indices},{taken},{i.line})")


def _bar(t: Translator, i: Instruction) -> None:
    """`bar.warp.sync`; barriers of the CTA end a block."""
    if i.modifiers[0] != "warp":
        raise UnsupportedPtxError("a form of barrier")
    t.emit(t.call("cta.active_warps", line=i.line))


def _shfl(t: Translator, i: Instruction) -> None:
    destinations = [each.strip() for each in i.operands[0].split("|")]
    value, lane, clamp = (t.integer(each, 32) for each in i.operands[1:4])
    t.emit("v,q=" + t.call("warps.shuffle", repr(i.modifiers[1]), value, lane, clamp, line=i.line))
    t.store(destinations[0], "v", 32)
    if len(destinations) == 2:
        t.store(destinations[1], "q", 1)


def _redux(t: Translator, i: Instruction) -> None:
    operation, kind = i.modifiers[1], i.modifiers[-1]
    value = t.integer(i.operands[1], 32)
    t.emit("v=" + t.call("warps.reduce", repr(operation), repr(kind), value, line=i.line))
    t.store(i.operands[0], "v", 32)


def _vote(t: Translator, i: Instruction) -> None:
    mode = i.modifiers[1]
    t.emit("v=" + t.call("warps.vote", repr(mode), t.predicate(i.operands[1]), line=i.line))
    t.store(i.operands[0], "v", 32 if mode == "ballot" else 1)


def _activemask(t: Translator, i: Instruction) -> None:
    t.emit("v=" + t.call("warps.vote", "'ballot'", _ALL_LANES, line=i.line))
    t.store(i.operands[0], "v", 32)


def _elect(t: Translator, i: Instruction) -> None:
    t.emit("v=" + t.call("warps.elect", line=i.line))
    t.store(i.operands[0].split("|")[1].strip(), "v", 1)


def _trap(t: Translator, i: Instruction) -> None:
    t.emit(t.call("cta.trap", line=i.line))


HANDLERS: Opcodes = {
    "ldmatrix": _ldmatrix,
    "stmatrix": _stmatrix,
    "mma": _mma,
    "wgmma": _wgmma,
    "bar": _bar,
    "shfl": _shfl,
    "redux": _redux,
    "vote": _vote,
    "activemask": _activemask,
    "elect": _elect,
    "trap": _trap,
}
