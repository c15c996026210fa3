"""Translates instructions of a warp or warp group: tensor cores, matrix loads, shuffles, votes, barriers."""

import re

from .mma import ACCUMULATORS, ELEMENT_BYTES
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
    m, k = next(
        (int(found[1]), int(found[2]))
        for each in i.modifiers
        if (found := re.fullmatch(r"m(\d+)n8k(\d+)", each))
    )
    to_type, a_type, b_type, sum_type = i.modifiers[-4:]
    scaled = any("block_scale" in each or each.startswith("sp") for each in i.modifiers)
    _check_types(a_type, b_type, sum_type)
    destinations, a, b, c = (vector(each) for each in i.operands[:4])
    elements = (8 if a_type == "f64" else 4) // ELEMENT_BYTES[a_type]
    known_shape = len(a) * 8 == len(b) * m and 4 * elements * len(b) == k
    if to_type != sum_type or not known_shape or scaled:
        raise UnsupportedPtxError("a form of mma")
    lists = (
        "[" + ",".join(t.integer(each, 64 if kind == "f64" else 32) for each in registers) + "]"
        for registers, kind in ((a, a_type), (b, b_type), (c, sum_type))
    )
    t.emit("v=" + t.call("mma", repr((a_type, b_type, sum_type)), *lists, line=i.line))
    for n, destination in enumerate(destinations):
        t.store(destination, f"v[{n}]", 64 if sum_type == "f64" else 32)


def _check_types(a_type: str, b_type: str, sum_type: str) -> None:
    if not {a_type, b_type} <= set(ELEMENT_BYTES) or sum_type not in ACCUMULATORS:
        raise UnsupportedPtxError(f"products of {a_type} and {b_type} summed in {sum_type}")


def _wgmma(t: Translator, i: Instruction) -> None:
    form = i.modifiers[0]
    if form == "commit_group":
        t.emit(t.call("wgmma.commit", line=i.line))
    elif form == "wait_group":
        t.emit(t.call("wgmma.wait", int(i.operands[0], 0), line=i.line))
    elif form == "mma_async":
        _wgmma_product(t, i)
    elif form == "fence":
        t.emit(t.call("wgmma.fence", line=i.line))
    else:
        raise UnsupportedPtxError("a form of wgmma")


def _wgmma_product(t: Translator, i: Instruction) -> None:
    n, k = next(
        map(int, found.groups()) for each in i.modifiers if (found := re.fullmatch(r"m64n(\d+)k(\d+)", each))
    )
    sum_type, a_type, b_type = i.modifiers[-3:]
    _check_types(a_type, b_type, sum_type)
    if "sp" in i.modifiers:
        raise UnsupportedPtxError("a sparse wgmma")
    accumulators = vector(i.operands[0])
    a, b, keep, *rest = i.operands[1:]
    a_sign, b_sign, *transposed = rest or ("1", "1")  # integers have neither signs nor transposition
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
            (a_type, b_type, sum_type),
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


def _call(t: Translator, i: Instruction) -> None:
    """Calls of the two functions that GPUs provide; printf prints nothing here."""
    function = next((each for each in i.operands if not each.startswith("(")), "")
    if function == "__assertfail":
        t.emit(t.call("cta.trap", line=i.line))
    elif function != "vprintf":
        raise UnsupportedPtxError(f"a call of {function}")


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
    "call": _call,
}
