"""Translates cvt: conversions between number formats."""

from .parser import Instruction
from .translator import Kind, Opcodes, Translator, kind_of
from .unsupported import UnsupportedPtxError

_PAIRS = {"f16x2", "bf16x2"}
_FLOAT8_PAIRS = {"e4m3x2", "e5m2x2"}
_TO_INTEGER = {"rzi", "rni", "rmi", "rpi"}
_DIRECTED_ROUNDING = {"rz", "rm", "rp"}


def _cvt(t: Translator, i: Instruction) -> None:
    to, source = i.modifiers[-2:]
    flags = set(i.modifiers[:-2])
    if {"pack", "rs", "scaled"} & flags:
        raise UnsupportedPtxError("a form of cvt")
    if to == "tf32":
        rounding = "tf32_nearest_away" if "rna" in flags else "tf32_nearest_even"
        t.store(i.operands[0], f"{rounding}({t.integer(i.operands[1], 32)})", 32)
    elif source in _FLOAT8_PAIRS:
        codes, values = t.integer(i.operands[1], 16), f"{source[:4].upper()}_VALUES"
        t.store_halves(i.operands[0], f"{values}[{codes}&U2(255)]", f"{values}[{codes}>>U2(8)]", to)
    elif to in _FLOAT8_PAIRS:
        _to_float8_pair(t, i, to, source, flags)
    elif to in _PAIRS:
        _to_pair(t, i, to, source, flags)
    elif source in _PAIRS:
        raise UnsupportedPtxError(f"conversion of {source} to {to}")
    else:
        _to_number(t, i, kind_of(to), kind_of(source), flags)


def _to_float8_pair(t: Translator, i: Instruction, to: str, source: str, flags: set[str]) -> None:
    if source in _PAIRS:
        low, high = t.halves(i.operands[1], source)
    else:
        high, low = t.floats(i.operands[1], source), t.floats(i.operands[2], source)
    if "relu" in flags:
        low, high = (f"np.maximum({each},F(0))" for each in (low, high))
    encode = f"{to[:4]}_codes"
    t.store(i.operands[0], f"{encode}({low}).astype(U2)|({encode}({high}).astype(U2)<<U2(8))", 16)


def _to_pair(t: Translator, i: Instruction, to: str, source: str, flags: set[str]) -> None:
    if source != "f32":
        raise UnsupportedPtxError(f"conversion of {source} to {to}")
    high, low = t.floats(i.operands[1], source), t.floats(i.operands[2], source)
    if "relu" in flags:
        low, high = (f"np.maximum({each},F(0))" for each in (low, high))
    if "rz" in flags:
        encode = f"{to[:-2]}_codes_toward_zero"
        t.store(i.operands[0], f"pack_halves({encode}({low}),{encode}({high}))", 32)
    else:
        t.store_halves(i.operands[0], low, high, to)


def _to_number(t: Translator, i: Instruction, to: Kind, source: Kind, flags: set[str]) -> None:
    if source.floating and to.floating:
        _float_to_float(t, i, to, source, flags)
    elif source.floating:
        value = t.floats(i.operands[1], source.name, flush="ftz" in flags)
        (mode,) = flags & _TO_INTEGER
        kind = f"{'S' if to.signed else 'U'}{to.bytes}"
        t.store(
            i.operands[0],
            f"float_to_int({value},{mode!r},{kind}).view(U{to.bytes})",
            to.bits,
            signed=to.signed,
        )
    elif to.floating:
        view = f".view(S{source.bytes})" if source.signed else ""
        value = f"{t.integer(i.operands[1], source.bits)}{view}"
        number = "F" if to.name == "f32" else "D"
        if directed := flags & _DIRECTED_ROUNDING:
            value = f"round_directed({value}.astype(np.longdouble),{min(directed)!r},{number})"
        t.store_floats(i.operands[0], f"({value}).astype({number})", to.name)
    else:
        _integer_to_integer(t, i, to, source, saturate="sat" in flags)


def _float_to_float(t: Translator, i: Instruction, to: Kind, source: Kind, flags: set[str]) -> None:
    value = t.floats(i.operands[1], source.name, flush="ftz" in flags)
    if mode := flags & _TO_INTEGER:
        value = f"round_to_integer({value},{min(mode)!r})"
    elif "rz" in flags and source.name == "f32" and to.bits == 16:
        t.store(i.operands[0], f"{to.name}_codes_toward_zero({value})", 16)
        return
    elif directed := flags & _DIRECTED_ROUNDING:
        if to.name not in {"f32", "f16"}:
            raise UnsupportedPtxError("directed rounding")
        value = (
            f"round_directed({value}.astype(np.longdouble),{min(directed)!r},{'F' if to.bits == 32 else 'H'})"
        )
    if "sat" in flags:
        value = f"np.clip(np.nan_to_num({value},nan=0),0,1)"
    if "relu" in flags:
        value = f"np.maximum({value},0)"
    exact = {"f32": ".astype(F)", "f64": ".astype(D)"}.get(to.name, "")
    t.store_floats(i.operands[0], f"({value}){exact}", to.name, flush="ftz" in flags)


def _integer_to_integer(t: Translator, i: Instruction, to: Kind, source: Kind, *, saturate: bool) -> None:
    value = t.integer(i.operands[1], source.bits) + (f".view(S{source.bytes})" if source.signed else "")
    if saturate:
        low, high = (-(2 ** (to.bits - 1)), 2 ** (to.bits - 1) - 1) if to.signed else (0, 2**to.bits - 1)
        largest = 2 ** (source.bits - source.signed) - 1
        smallest = -(2 ** (source.bits - 1)) if source.signed else 0
        value = f"np.clip({value},{max(low, smallest)},{min(high, largest)})"
    # First to the destination's width by value, then by its own sign to the register's.
    letter = "S" if to.signed else "U"
    t.store(
        i.operands[0],
        f"({value}).astype({letter}{to.bytes}).view(U{to.bytes})",
        to.bits,
        signed=to.signed,
    )


HANDLERS: Opcodes = {"cvt": _cvt}
