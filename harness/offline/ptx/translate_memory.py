"""Translates loads, stores, atomics, asynchronous copies, fences and mbarriers."""

from .parser import Instruction
from .translator import Kind, Opcodes, Translator, kind_of, vector
from .unsupported import UnsupportedPtxError

_ATOMICS = {"add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"}


def _element(i: Instruction) -> Kind:
    kind = kind_of(i.modifiers[-1])
    if kind.bits > 64:
        raise UnsupportedPtxError(f"an access of {kind.name}")
    return kind


def _ld(t: Translator, i: Instruction) -> None:
    kind, destinations, space = _element(i), vector(i.operands[0]), i.state_space
    if space == "param":
        name, _, offset = i.operands[1].strip("[] ").partition("+")
        for n, destination in enumerate(destinations):
            place = int(offset or "0", 0) + n * kind.bytes
            value = f"cta.parameter({name.strip()!r},{place},{kind.bytes})"
            t.store(destination, value, kind.bits, signed=kind.signed)
        return
    if space not in {"global", "shared"}:
        raise UnsupportedPtxError(f"a load from {space} memory")
    address = t.address(i.operands[1])
    t.emit("v=" + t.call(f"{space}_.load", address, kind.bytes, len(destinations), line=i.line))
    for n, destination in enumerate(destinations):
        t.store(destination, f"v[{n}]", kind.bits, signed=kind.signed)


def _st(t: Translator, i: Instruction) -> None:
    kind, space = _element(i), i.state_space
    if space not in {"global", "shared"}:
        raise UnsupportedPtxError(f"a store to {space} memory")
    values = ",".join(t.integer(each, kind.bits) for each in vector(i.operands[1]))
    t.emit(t.call(f"{space}_.store", t.address(i.operands[0]), kind.bytes, f"[{values}]", line=i.line))


def _atom(t: Translator, i: Instruction) -> None:
    _atomic(t, i, i.operands[0], i.operands[1], i.operands[2:])


def _red(t: Translator, i: Instruction) -> None:
    _atomic(t, i, "_", i.operands[0], i.operands[1:])


def _atomic(t: Translator, i: Instruction, destination: str, address: str, operands: tuple[str, ...]) -> None:
    kind, space = _element(i), i.state_space
    if space != "global":
        raise UnsupportedPtxError(f"an atomic in {space} memory")
    (operation,) = _ATOMICS & set(i.modifiers)
    values = ",".join(t.integer(each, kind.bits) for each in operands)
    t.emit(
        "v="
        + t.call(
            f"{space}_.atomic",
            t.address(address),
            repr(kind.name),
            repr(operation),
            f"[{values}]",
            line=i.line,
        )
    )
    t.store(destination, "v", kind.bits)


def _cp(t: Translator, i: Instruction) -> None:
    if i.modifiers[0] != "async" or len(i.modifiers) < 2:
        raise UnsupportedPtxError("a form of cp")
    form = i.modifiers[1]
    if form == "commit_group":
        t.emit(t.call("copies.commit", line=i.line))
    elif form == "wait_group":
        t.emit(t.call("copies.wait", int(i.operands[0], 0), line=i.line))
    elif form == "wait_all":
        t.emit(t.call("copies.wait_all", line=i.line))
    elif form in {"ca", "cg"}:
        _cp_async(t, i)
    elif i.modifiers[1:3] == ("bulk", "tensor") and any(each.startswith("mbarrier") for each in i.modifiers):
        tensor_map, coordinates = i.operands[1].strip("[] ").split(",", 1)
        at = ",".join(t.integer(each, 32) for each in vector(coordinates.strip()))
        target, barrier = t.address(i.operands[0]), t.address(i.operands[2])
        t.emit(t.call("tma.load", target, t.integer(tensor_map.strip(), 64), f"[{at}]", barrier, line=i.line))
    else:
        raise UnsupportedPtxError("a form of cp.async")


def _cp_async(t: Translator, i: Instruction) -> None:
    size = int(i.operands[2], 0)
    used = t.constant(size, 32)
    if (len(i.operands) > 3 and "cache_hint" not in i.modifiers[-1]) or len(i.operands) > 4:
        used = t.integer(i.operands[3], 32)
    target, source = t.address(i.operands[0]), t.address(i.operands[1])
    t.emit(t.call("copies.copy", target, source, size, used, line=i.line))


def _fence(t: Translator, i: Instruction) -> None:
    if i.modifiers[:2] == ("proxy", "async"):
        t.emit(t.call("shared_.fence_proxy", line=i.line))
    elif i.modifiers[0] == "proxy":
        raise UnsupportedPtxError("a form of fence.proxy")


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


def _createpolicy(t: Translator, i: Instruction) -> None:
    t.store(i.operands[0], t.constant(0, 64), 64)


def _no_result(_t: Translator, _i: Instruction) -> None:
    """Changes no value here: order of memory is followed by barriers alone, and caches are not modelled."""


HANDLERS: Opcodes = {
    "ld": _ld,
    "st": _st,
    "atom": _atom,
    "red": _red,
    "cp": _cp,
    "fence": _fence,
    "mbarrier": _mbarrier,
    "createpolicy": _createpolicy,
    **dict.fromkeys(("prefetch", "membar", "griddepcontrol", "nanosleep", "setmaxnreg"), _no_result),
}
