"""Translates loads, stores, atomics and fences."""

from .atomics import ATOMICS
from .parser import Instruction
from .translator import Kind, Opcodes, Translator, kind_of, vector
from .unsupported import UnsupportedPtxError

_STATE = {
    "global": "global_",
    "const": "global_",
    "shared": "shared_",
    "local": "local",
    "param": "local",
    "generic": "generic",
}
_ORDERED = {"acquire", "release", "relaxed", "volatile", "mmio"}
_ORDERS = {"relaxed", "acquire", "release", "acq_rel"}


def _element(i: Instruction) -> Kind:
    kind = kind_of(i.modifiers[-1])
    if kind.bits > 64:
        raise UnsupportedPtxError(f"an access of {kind.name}")
    return kind


def _state(i: Instruction, *known: str) -> str:
    """The CTA's state that an instruction accesses."""
    if i.state_space not in known:
        raise UnsupportedPtxError(f"{i.opcode} in {i.state_space} memory")
    return _STATE[i.state_space]


def _parameter(address: str) -> str:
    """The name in an address of parameter space."""
    return address.strip("[] ").partition("+")[0].strip()


def _is_ordered(i: Instruction) -> bool:
    """Whether other CTAs may rely on the order of a global access."""
    return i.state_space in {"global", "generic"} and bool(_ORDERED & set(i.modifiers))


def _ld(t: Translator, i: Instruction) -> None:
    kind, destinations = _element(i), vector(i.operands[0])
    if i.state_space == "param" and _parameter(i.operands[1]) not in t.kernel.local_arrays:
        name, _, offset = i.operands[1].strip("[] ").partition("+")
        for n, destination in enumerate(destinations):
            place = int(offset or "0", 0) + n * kind.bytes
            value = f"cta.parameter({name.strip()!r},{place},{kind.bytes})"
            t.store(destination, value, kind.bits, signed=kind.signed)
        return
    state = _state(i, "global", "const", "shared", "local", "generic", "param")
    access: list[object] = [t.address(i.operands[1]), kind.bytes, len(destinations)]
    if _is_ordered(i):
        state, access = "global_", [*access, "acquire" in i.modifiers and "cta" not in i.modifiers]
    t.emit("v=" + t.call(f"{state}.{'ordered_' * _is_ordered(i)}load", *access, line=i.line))
    for n, destination in enumerate(destinations):
        t.store(destination, f"v[{n}]", kind.bits, signed=kind.signed)


def _st(t: Translator, i: Instruction) -> None:
    kind, state = _element(i), _state(i, "global", "shared", "local", "generic", "param")
    if {"async", "bulk"} & set(i.modifiers):
        raise UnsupportedPtxError("an asynchronous store")
    values = ",".join(t.integer(each, kind.bits) for each in vector(i.operands[1]))
    access: list[object] = [t.address(i.operands[0]), kind.bytes, f"[{values}]"]
    if _is_ordered(i):
        state, access = "global_", [*access, "release" in i.modifiers and "cta" not in i.modifiers]
    t.emit(t.call(f"{state}.{'ordered_' * _is_ordered(i)}store", *access, line=i.line))


def _atom(t: Translator, i: Instruction) -> None:
    _atomic(t, i, i.operands[0], i.operands[1], i.operands[2:])


def _red(t: Translator, i: Instruction) -> None:
    if "async" in i.modifiers:
        raise UnsupportedPtxError("an asynchronous reduction")
    _atomic(t, i, "_", i.operands[0], i.operands[1:])


def _atomic(t: Translator, i: Instruction, destination: str, address: str, operands: tuple[str, ...]) -> None:
    kind, state = _element(i), _state(i, "global", "shared", "generic")
    (operation,) = ATOMICS & set(i.modifiers)
    order = next((each for each in i.modifiers if each in _ORDERS), "relaxed")
    if "cta" in i.modifiers:
        order = "relaxed"  # to other CTAs
    destinations = vector(destination) if destination != "_" else []
    values = [vector(each) for each in operands]
    for n in range(len(values[0])):
        bits = ",".join(t.integer(each[n], kind.bits) for each in values)
        at = f"({t.address(address)}+{n * kind.bytes})" if n else t.address(address)
        what = (repr(kind.name), repr(operation), f"[{bits}]", repr(order))
        t.emit("v=" + t.call(f"{state}.atomic", at, *what, line=i.line))
        if destinations:
            t.store(destinations[n], "v", kind.bits, signed=kind.signed)


def _fence(t: Translator, i: Instruction) -> None:
    if i.modifiers[:2] == ("proxy", "async"):
        t.emit(t.call("shared_.fence_proxy", line=i.line))
    elif i.modifiers[0] == "proxy" and i.modifiers[1].startswith("tensormap"):
        if i.operands:
            t.emit(t.call("tma.fence_map", t.address(i.operands[0]), line=i.line))
    elif i.modifiers[0] == "proxy":
        raise UnsupportedPtxError("a form of fence.proxy")
    elif {"gpu", "sys"} & set(i.modifiers):
        t.emit("global_.fence()")


def _membar(t: Translator, i: Instruction) -> None:
    if {"gl", "sys"} & set(i.modifiers):
        t.emit("global_.fence()")


def _no_result(_t: Translator, _i: Instruction) -> None:
    """Changes no value here: caches are not modelled."""


HANDLERS: Opcodes = {
    "ld": _ld,
    "ldu": _ld,
    "st": _st,
    "atom": _atom,
    "red": _red,
    "fence": _fence,
    "membar": _membar,
    **dict.fromkeys(
        ("prefetch", "prefetchu", "discard", "applypriority", "griddepcontrol", "nanosleep", "setmaxnreg"),
        _no_result,
    ),
}
