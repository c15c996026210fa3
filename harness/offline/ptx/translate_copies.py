"""Translates asynchronous copies: cp.async, TMA with tensor maps, and the mbarriers that complete them."""

from .atomics import ATOMICS
from .parser import Instruction
from .tensor_maps import FIELDS
from .translator import Opcodes, Translator, kind_of, vector
from .unsupported import UnsupportedPtxError


def _cp(t: Translator, i: Instruction) -> None:
    if i.modifiers[:2] == ("async", "commit_group"):
        t.emit(t.call("copies.commit", line=i.line))
    elif i.modifiers[:2] == ("async", "wait_group"):
        t.emit(t.call("copies.wait", int(i.operands[0], 0), line=i.line))
    elif i.modifiers[:2] == ("async", "wait_all"):
        t.emit(t.call("copies.wait_all", line=i.line))
    elif i.modifiers[:2] in {("async", "ca"), ("async", "cg")}:
        _cp_async(t, i)
    elif "bulk" in i.modifiers and {"async", "reduce"} & set(i.modifiers):
        _bulk(t, i)
    else:
        raise UnsupportedPtxError("a form of cp")


def _cp_async(t: Translator, i: Instruction) -> None:
    size = int(i.operands[2], 0)
    used = t.constant(size, 32)
    hinted = any("cache_hint" in each for each in i.modifiers)
    if len(i.operands) > 3 + hinted:
        if t.kernel.registers.get(i.operands[3], (0, 32))[1] == 1:
            raise UnsupportedPtxError("cp.async under ignore-src")
        used = t.integer(i.operands[3], 32)
    target, source = t.address(i.operands[0]), t.address(i.operands[1])
    t.emit(t.call("copies.copy", target, source, size, used, line=i.line))


def _bulk(t: Translator, i: Instruction) -> None:
    names = set(i.modifiers)
    if "commit_group" in names:
        t.emit(t.call("tma.commit", line=i.line))
    elif "wait_group" in names:
        t.emit(t.call("tma.wait", int(i.operands[0], 0), line=i.line))
    elif "prefetch" in names:
        return
    elif "tensor" not in names or {"im2col", "im2col_no_offs"} & names or "multicast::cluster" in names:
        raise UnsupportedPtxError("a form of cp.async.bulk")
    elif "bulk_group" in names:
        tensor_map, coordinates = _tensor(t, i.operands[0])
        operation = next((each for each in i.modifiers if each in ATOMICS), "")
        place = (tensor_map, coordinates, t.address(i.operands[1]), repr(operation))
        t.emit(t.call("tma.store", *place, line=i.line))
    elif any(each.startswith("mbarrier") for each in names) and not any("gather" in each for each in names):
        place = (t.address(i.operands[0]), *_tensor(t, i.operands[1]), t.address(i.operands[2]))
        t.emit(t.call("tma.load", *place, line=i.line))
    else:
        raise UnsupportedPtxError("a form of cp.async.bulk.tensor")


def _tensor(t: Translator, operand: str) -> tuple[str, str]:
    """The tensor map and the coordinates of `[map, {coordinates}]`."""
    tensor_map, coordinates = operand.strip("[] ").split(",", 1)
    at = ",".join(t.integer(each, 32) for each in vector(coordinates.strip()))
    return t.integer(tensor_map.strip(), 64), f"[{at}]"


def _mbarrier(t: Translator, i: Instruction) -> None:
    form = i.modifiers[0]
    if form == "init":
        address, count = t.address(i.operands[0]), t.integer(i.operands[1], 32)
        t.emit(t.call("mbarriers.init", address, count, line=i.line))
    elif form == "inval":
        t.emit(t.call("mbarriers.invalidate", t.address(i.operands[0]), line=i.line))
    elif form == "arrive" and not i.operands[0].startswith("["):
        address, expects = t.address(i.operands[1]), "expect_tx" in i.modifiers
        given = t.integer(i.operands[2], 32) if len(i.operands) > 2 else t.constant(1, 32)
        count, copied_bytes = (t.constant(1, 32), given) if expects else (given, t.constant(0, 32))
        t.emit(t.call("mbarriers.arrive", address, count, copied_bytes, line=i.line))
    elif form in {"try_wait", "test_wait"} and i.modifiers[1] == "parity":
        address, parity = t.address(i.operands[1]), t.integer(i.operands[2], 32)
        t.emit("v=" + t.call("mbarriers.wait", address, parity, line=i.line))
        t.store(i.operands[0], "v", 1)
    else:
        raise UnsupportedPtxError("a form of mbarrier")


def _tensormap(t: Translator, i: Instruction) -> None:
    if i.modifiers[0] == "cp_fenceproxy":
        target, source = t.address(i.operands[0]), t.address(i.operands[1])
        t.emit(t.call("tma.publish_map", target, source, line=i.line))
        return
    field = i.modifiers[2]
    if i.modifiers[0] != "replace" or field not in FIELDS:
        raise UnsupportedPtxError("a form of tensormap")
    *dimension, value = i.operands[1:]
    index = int(dimension[0], 0) if dimension else 0
    bits = kind_of(i.modifiers[-1]).bits
    new = t.integer(value, bits)
    place = (repr(field), t.address(i.operands[0]), index, new, repr(i.state_space))
    t.emit(t.call("tma.replace", *place, line=i.line))


def _createpolicy(t: Translator, i: Instruction) -> None:
    t.store(i.operands[0], t.constant(0, 64), 64)


HANDLERS: Opcodes = {
    "cp": _cp,
    "mbarrier": _mbarrier,
    "tensormap": _tensormap,
    "createpolicy": _createpolicy,
}
