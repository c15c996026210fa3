"""Translates logic, shifts, comparisons and moves."""

from .parser import Instruction
from .translator import Handler, Opcodes, Translator, kind_of, vector
from .unsupported import UnsupportedPtxError

_COMPARISONS = {
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "lo": "<",
    "ls": "<=",
    "hi": ">",
    "hs": ">=",
}
_LOGIC = {"and": "&", "or": "|", "xor": "^"}


def _logic(operator: str) -> Handler:
    def handler(t: Translator, i: Instruction) -> None:
        bits = kind_of(i.modifiers[-1]).bits
        destination, x, y = i.operands
        t.store(destination, f"{t.integer(x, bits)}{operator}{t.integer(y, bits)}", bits)

    return handler


def _not(t: Translator, i: Instruction) -> None:
    bits = kind_of(i.modifiers[-1]).bits
    t.store(i.operands[0], f"~{t.integer(i.operands[1], bits)}", bits)


def _shl(t: Translator, i: Instruction) -> None:
    kind = kind_of(i.modifiers[-1])
    destination, x, amount = i.operands
    value, fixed = t.integer(x, kind.bits), t.immediate(amount)
    if fixed is not None and fixed < kind.bits:
        t.store(destination, f"{value}<<U{kind.bytes}({fixed})", kind.bits)
    else:
        t.store(destination, f"shift_left({value},{t.integer(amount, 32)},{kind.bits})", kind.bits)


def _shr(t: Translator, i: Instruction) -> None:
    kind = kind_of(i.modifiers[-1])
    destination, x, amount = i.operands
    value, fixed, w = t.integer(x, kind.bits), t.immediate(amount), kind.bytes
    if fixed is None or fixed >= kind.bits:
        result = f"shift_right({value},{t.integer(amount, 32)},{kind.bits},{kind.signed})"
    elif kind.signed:
        result = f"({value}.view(S{w})>>S{w}({fixed})).view(U{w})"
    else:
        result = f"{value}>>U{w}({fixed})"
    t.store(destination, result, kind.bits)


def _bfe(t: Translator, i: Instruction) -> None:
    kind = kind_of(i.modifiers[-1])
    destination, x, position, length = i.operands
    field = f"{t.integer(position, 32)},{t.integer(length, 32)}"
    t.store(
        destination, f"extract_bits({t.integer(x, kind.bits)},{field},{kind.bits},{kind.signed})", kind.bits
    )


def _bfi(t: Translator, i: Instruction) -> None:
    bits = kind_of(i.modifiers[-1]).bits
    destination, x, y, position, length = i.operands
    field = f"{t.integer(position, 32)},{t.integer(length, 32)}"
    t.store(destination, f"insert_bits({t.integer(x, bits)},{t.integer(y, bits)},{field},{bits})", bits)


def _prmt(t: Translator, i: Instruction) -> None:
    if i.modifiers != ("b32",):
        raise UnsupportedPtxError("a mode of prmt")
    t.store(i.operands[0], f"permute_bytes({','.join(t.integer(each, 32) for each in i.operands[1:])})", 32)


def _lop3(t: Translator, i: Instruction) -> None:
    table = t.immediate(i.operands[4])
    if i.modifiers != ("b32",) or table is None:
        raise UnsupportedPtxError("a form of lop3")
    t.store(
        i.operands[0], f"lookup3({','.join(t.integer(each, 32) for each in i.operands[1:4])},{table})", 32
    )


def _shf(t: Translator, i: Instruction) -> None:
    operands = ",".join(t.integer(each, 32) for each in i.operands[1:])
    left, wrap = i.modifiers[0] == "l", "wrap" in i.modifiers
    t.store(i.operands[0], f"funnel_shift({operands},{left},{wrap})", 32)


def _popc(t: Translator, i: Instruction) -> None:
    t.store(i.operands[0], f"count_ones({t.integer(i.operands[1], kind_of(i.modifiers[-1]).bits)})", 32)


def _clz(t: Translator, i: Instruction) -> None:
    bits = kind_of(i.modifiers[-1]).bits
    t.store(i.operands[0], f"count_leading_zeros({t.integer(i.operands[1], bits)},{bits})", 32)


def _bfind(t: Translator, i: Instruction) -> None:
    kind = kind_of(i.modifiers[-1])
    value, shift = t.integer(i.operands[1], kind.bits), "shiftamt" in i.modifiers
    t.store(i.operands[0], f"find_leading_bit({value},{kind.bits},{kind.signed},{shift})", 32)


def _brev(t: Translator, i: Instruction) -> None:
    bits = kind_of(i.modifiers[-1]).bits
    t.store(i.operands[0], f"reverse_bits({t.integer(i.operands[1], bits)},{bits})", bits)


def _compared(comparison: str, x: str, y: str, *, floating: bool) -> str:
    """Of floats, comparisons are false where either is NaN, and those that end in u are true."""
    if not floating:
        return f"({x}{_COMPARISONS[comparison]}{y})"
    unordered = f"(np.isnan({x})|np.isnan({y}))"
    if comparison == "nan":
        return unordered
    if comparison == "num":
        return f"~{unordered}"
    if comparison == "ne":
        return f"(({x}!={y})&~{unordered})"
    if comparison not in _COMPARISONS:
        return f"(({x}{_COMPARISONS[comparison.removesuffix('u')]}{y})|{unordered})"
    return f"({x}{_COMPARISONS[comparison]}{y})"


def _setp(t: Translator, i: Instruction) -> None:
    kind = kind_of(i.modifiers[-1])
    comparison, flush = i.modifiers[0], "ftz" in i.modifiers
    logic = next((each for each in i.modifiers[1:-1] if each in _LOGIC), None)
    destination, x, y = i.operands[:3]
    destinations = [each.strip() for each in destination.split("|")]
    if kind.name in {"f16x2", "bf16x2"}:  # a predicate of the low halves and one of the high ones
        if logic or len(destinations) != 2:
            raise UnsupportedPtxError("setp on halves with logic or one predicate")
        halves = zip(t.halves(x, kind.name), t.halves(y, kind.name), strict=True)
        t.emit("p,q=" + ",".join(_compared(comparison, *each, floating=True) for each in halves))
        t.store(destinations[0], "p", 1)
        t.store(destinations[1], "q", 1)
        return
    if kind.floating:
        a, b = t.floats(x, kind.name, flush=flush), t.floats(y, kind.name, flush=flush)
    else:
        view = f".view(S{kind.bytes})" if kind.signed else ""
        a, b = (t.integer(each, kind.bits, signed=kind.signed) + view for each in (x, y))
    tail = f"{_LOGIC[logic]}{t.predicate(i.operands[3])}" if logic else ""
    t.emit(f"p={_compared(comparison, a, b, floating=kind.floating)}")
    if tail:
        t.emit(f"p,q=p{tail},(~p){tail}")
    elif len(destinations) == 2:
        t.emit("q=~p")
    t.store(destinations[0], "p", 1)
    if len(destinations) == 2:
        t.store(destinations[1], "q", 1)


def _set(t: Translator, i: Instruction) -> None:
    """As setp, with all ones (or 1.0) for true."""
    comparison, to, kind = i.modifiers[0], i.modifiers[-2], i.modifiers[-1]
    if kind not in {"f16x2", "bf16x2"}:
        raise UnsupportedPtxError(f"set of {kind}")
    true = {"f16x2": "0x3C00", "bf16x2": "0x3F80"}.get(to, "0xFFFF")
    halves = zip(t.halves(i.operands[1], kind), t.halves(i.operands[2], kind), strict=True)
    low, high = (f"W({_compared(comparison, *each, floating=True)},U2({true}),U2(0))" for each in halves)
    t.store(i.operands[0], f"pack_halves({low},{high})", 32)


def _selp(t: Translator, i: Instruction) -> None:
    bits = kind_of(i.modifiers[-1]).bits
    destination, x, y, condition = i.operands
    t.store(destination, f"W({t.integer(condition, 1)},{t.integer(x, bits)},{t.integer(y, bits)})", bits)


def _mov(t: Translator, i: Instruction) -> None:
    bits = kind_of(i.modifiers[-1]).bits
    destination, source = i.operands
    if destination.startswith("{"):
        parts = vector(destination)
        each = bits // len(parts)
        t.emit(f"v={t.integer(source, bits)}")
        for n, part in enumerate(parts):
            shifted = f"(v>>U{bits // 8}({n * each}))" if n else "v"
            t.store(part, f"{shifted}.astype(U{each // 8})", each)
    elif source.startswith("{"):
        parts = vector(source)
        each, wide = bits // len(parts), f"U{bits // 8}"
        words = [
            f"({t.integer(part, each)}.astype({wide})<<{wide}({n * each}))" for n, part in enumerate(parts)
        ]
        t.store(destination, "|".join(words), bits)
    else:
        t.store(destination, t.integer(source, bits), bits)


def _cvta(t: Translator, i: Instruction) -> None:
    """Addresses are numbered so that those of each state space are generic addresses too."""
    t.store(i.operands[0], t.integer(i.operands[1], 64), 64)


HANDLERS: Opcodes = {
    "and": _logic("&"),
    "or": _logic("|"),
    "xor": _logic("^"),
    "not": _not,
    "shl": _shl,
    "shr": _shr,
    "bfe": _bfe,
    "bfi": _bfi,
    "prmt": _prmt,
    "lop3": _lop3,
    "shf": _shf,
    "popc": _popc,
    "clz": _clz,
    "bfind": _bfind,
    "brev": _brev,
    "setp": _setp,
    "set": _set,
    "selp": _selp,
    "mov": _mov,
    "cvta": _cvta,
}
