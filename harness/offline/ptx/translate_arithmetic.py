"""Translates arithmetic on integers and floats."""

from .parser import Instruction
from .translator import Handler, Kind, Opcodes, Translator, kind_of
from .unsupported import UnsupportedPtxError

_DIRECTED_ROUNDING = {"rz", "rm", "rp"}


def _elementwise(t: Translator, i: Instruction, floats: str, integers: str) -> None:
    """An operation on elements; `{0}`, `{1}`, ... in the expressions are its operands."""
    kind = kind_of(i.modifiers[-1])
    destination, *operands = i.operands
    flush = "ftz" in i.modifiers
    if kind.floating and (mode := _DIRECTED_ROUNDING & set(i.modifiers)):
        _directed(t, i, floats, min(mode))
        return
    if kind.name == "f32x2":  # both floats at once: they lie one behind the other
        pairs = [f"{t.integer(each, 64)}.view(F)" for each in operands]
        pairs = [f"flush_to_zero({pair})" for pair in pairs] if flush else pairs
        result = floats.format(*pairs)
        result = f"flush_to_zero({result})" if flush else f"({result})"
        t.store(destination, f"{result}.view(U8)", 64)
    elif kind.name in {"f16x2", "bf16x2"}:
        halves = zip(*(t.halves(each, kind.name) for each in operands), strict=True)
        low, high = (floats.format(*each) for each in halves)
        t.store_halves(destination, low, high, kind.name)
    elif kind.floating:
        result = floats.format(*(t.floats(each, kind.name, flush=flush) for each in operands))
        if "sat" in i.modifiers:
            result = f"np.clip(np.nan_to_num({result},nan=0),0,1)"
        t.store_floats(destination, result, kind.name, flush=flush)
    else:
        if "sat" in i.modifiers:
            raise UnsupportedPtxError("saturation of integers")
        if kind.name in {"u16x2", "s16x2"}:  # both integers at once: they lie one behind the other
            both = [f"{t.integer(each, 32)}.view({'S2' if kind.signed else 'U2'})" for each in operands]
            t.store(destination, f"({integers.format(*both)}).view(U4)", 32)
            return
        view = f".view(S{kind.bytes})" if kind.signed else ""
        back = f".view(U{kind.bytes})" if kind.signed else ""
        result = integers.format(
            *(t.integer(each, kind.bits, signed=kind.signed) + view for each in operands)
        )
        t.store(destination, f"({result}){back}", kind.bits, signed=kind.signed)


def _directed(t: Translator, i: Instruction, floats: str, mode: str) -> None:
    """Rounded toward zero, down or up, from numbers long enough to hold the exact result of float32."""
    if i.modifiers[-1] != "f32" or "sat" in i.modifiers:
        raise UnsupportedPtxError("directed rounding")
    flush = "ftz" in i.modifiers
    exact = floats.replace(".astype(D)", "").replace(".astype(F)", "")
    operands = (f"{t.floats(each, 'f32', flush=flush)}.astype(np.longdouble)" for each in i.operands[1:])
    rounded = f"round_directed({exact.format(*operands)},{mode!r},F)"
    t.store_floats(i.operands[0], rounded, "f32", flush=flush)


def _with_carry(t: Translator, i: Instruction, a: str, b: str, *, takes: bool, function: str) -> None:
    """An addition or subtraction that takes the carry flag, gives it (`.cc`), or both."""
    bits = kind_of(i.modifiers[-1]).bits
    carry = "cta.carry" if takes else "np.zeros(cta.threads,np.bool_)"
    t.emit(f"v,q={function}({a},{b},{carry})")
    if "cc" in i.modifiers:
        t.emit("cta.carry=q" if t.mask == "None" else f"cta.carry=W({t.mask},q,cta.carry)")
    t.store(i.operands[0], "v", bits)


def _carried(function: str, *, takes: bool) -> Handler:
    def handler(t: Translator, i: Instruction) -> None:
        bits = kind_of(i.modifiers[-1]).bits
        a, b = (t.integer(each, bits) for each in i.operands[1:])
        _with_carry(t, i, a, b, takes=takes, function=function)

    return handler


def _binary(operator: str) -> Handler:
    carry = "add_with_carry" if operator == "+" else "subtract_with_borrow"

    def handler(t: Translator, i: Instruction) -> None:
        if "cc" in i.modifiers:
            _carried(carry, takes=False)(t, i)
            return
        if len(i.operands) != 3:
            raise UnsupportedPtxError("two operands expected")
        _elementwise(t, i, f"({{0}}{operator}{{1}})", f"{{0}}{operator}{{1}}")

    return handler


def _mul(t: Translator, i: Instruction) -> None:
    kind = kind_of(i.modifiers[-1])
    destination, x, y = i.operands
    if kind.floating:
        _elementwise(t, i, "({0}*{1})", "")
    elif "wide" in i.modifiers:
        t.store(destination, _wide_product(t, x, y, kind), 2 * kind.bits)
    else:
        t.store(destination, _product(t, x, y, kind, high="hi" in i.modifiers), kind.bits)


def _mad(t: Translator, i: Instruction) -> None:
    kind = kind_of(i.modifiers[-1])
    destination, x, y, z = i.operands
    if kind.floating:
        _fma(t, i)
    elif "sat" in i.modifiers:
        raise UnsupportedPtxError("saturation")
    elif "cc" in i.modifiers or i.opcode == "madc":
        product = _product(t, x, y, kind, high="hi" in i.modifiers)
        addend = t.integer(z, kind.bits)
        _with_carry(t, i, product, addend, takes=i.opcode == "madc", function="add_with_carry")
    elif "wide" in i.modifiers:
        wide = _wide_product(t, x, y, kind)
        t.store(destination, f"{wide}+{t.integer(z, 2 * kind.bits)}", 2 * kind.bits)
    else:
        product = _product(t, x, y, kind, high="hi" in i.modifiers)
        t.store(destination, f"{product}+{t.integer(z, kind.bits)}", kind.bits)


def _product(t: Translator, x: str, y: str, kind: Kind, *, high: bool) -> str:
    a, b = t.integer(x, kind.bits), t.integer(y, kind.bits)
    return f"multiply_high({a},{b},{kind.bits},{kind.signed})" if high else f"{a}*{b}"


def _wide_product(t: Translator, x: str, y: str, kind: Kind) -> str:
    letter, narrow, wide = "S" if kind.signed else "U", kind.bytes, 2 * kind.bytes
    a, b = (f"{t.integer(each, kind.bits)}.view({letter}{narrow}).astype({letter}{wide})" for each in (x, y))
    return f"({a}*{b}).view(U{wide})"


def _fma(t: Translator, i: Instruction) -> None:
    """Fused: a longer float holds the product, of float64 nearly, and the sum is rounded from it."""
    exact = "({0}.astype(D)*{1}+{2})"
    if i.modifiers[-1] == "f64":
        exact = "({0}.astype(np.longdouble)*{1}+{2}).astype(D)"
    if i.modifiers[-1] in {"f32", "f32x2"}:
        exact += ".astype(F)"
    if "relu" in i.modifiers:
        exact = f"np.maximum({exact},0.0)"
    _elementwise(t, i, exact, "")


def _div(t: Translator, i: Instruction) -> None:
    kind = kind_of(i.modifiers[-1])
    if kind.floating:
        exact = "({0}.astype(D)/{1})"
        _elementwise(t, i, exact + ".astype(F)" if kind.name == "f32" else exact, "")
    else:
        _integer_division(t, i, kind, remainder=False)


def _rem(t: Translator, i: Instruction) -> None:
    _integer_division(t, i, kind_of(i.modifiers[-1]), remainder=True)


def _integer_division(t: Translator, i: Instruction, kind: Kind, *, remainder: bool) -> None:
    destination, x, y = i.operands
    divisor = t.integer(y, kind.bits)
    t.emit(t.call("cta.check_divisor", divisor, line=i.line))
    t.store(destination, f"divide({t.integer(x, kind.bits)},{divisor},{kind.signed},{remainder})", kind.bits)


def _extremum(name: str) -> Handler:
    def handler(t: Translator, i: Instruction) -> None:
        function = f"np.{name}imum" if "NaN" in i.modifiers else f"np.f{name}"
        floats = f"{function}({{0}},{{1}})"
        if len(i.operands) == 4:  # three operands, from sm_100 on
            floats = f"{function}({floats},{{2}})"
        if "abs" in i.modifiers:
            floats = f"{function}(np.abs({{0}}),np.abs({{1}}))"
        if "xorsign" in i.modifiers:
            floats = f"np.copysign({floats},np.copysign(F(1),{{0}})*np.copysign(F(1),{{1}}))"
        integers = f"np.{name}imum({{0}},{{1}})"
        if "relu" in i.modifiers:
            integers = f"np.maximum({integers},0)"
        _elementwise(t, i, floats, integers)

    return handler


def _abs(t: Translator, i: Instruction) -> None:
    kind = kind_of(i.modifiers[-1])
    x = t.integer(i.operands[1], kind.bits)
    if kind.name in {"f16x2", "bf16x2"}:
        result = f"{x}&U4(0x7FFF7FFF)"
    elif kind.floating:
        result = f"{x}&U{kind.bytes}({2 ** (kind.bits - 1) - 1})"
    else:
        result = f"np.abs({x}.view(S{kind.bytes})).view(U{kind.bytes})"
    t.store(i.operands[0], result, kind.bits)


def _neg(t: Translator, i: Instruction) -> None:
    kind = kind_of(i.modifiers[-1])
    x = t.integer(i.operands[1], kind.bits)
    if kind.name in {"f16x2", "bf16x2"}:
        result = f"{x}^U4(0x80008000)"
    elif kind.floating:
        result = f"{x}^U{kind.bytes}({2 ** (kind.bits - 1)})"
    else:
        result = f"U{kind.bytes}(0)-{x}"
    t.store(i.operands[0], result, kind.bits)


def _sad(t: Translator, i: Instruction) -> None:
    kind = kind_of(i.modifiers[-1])
    operands = ",".join(t.integer(each, kind.bits, signed=kind.signed) for each in i.operands[1:])
    t.store(i.operands[0], f"absolute_difference({operands},{kind.signed})", kind.bits)


def _dp4a(t: Translator, i: Instruction) -> None:
    operands = ",".join(t.integer(each, 32) for each in i.operands[1:])
    signs = ",".join(str(each.startswith("s")) for each in i.modifiers[-2:])
    t.store(i.operands[0], f"dot_bytes({operands},{signs})", 32)


def _copysign(t: Translator, i: Instruction) -> None:
    kind = i.modifiers[-1]
    sign, size = t.floats(i.operands[1], kind), t.floats(i.operands[2], kind)
    t.store_floats(i.operands[0], f"np.copysign({size},{sign})", kind)


def _function(exact: str) -> Handler:
    """A function of one float, computed in float64; the hardware's approximation is not modelled."""

    def handler(t: Translator, i: Instruction) -> None:
        kind = i.modifiers[-1]
        expression = exact.format("{0}.astype(D)")
        _elementwise(t, i, expression + ".astype(F)" if kind == "f32" else expression, "")

    return handler


HANDLERS: Opcodes = {
    "add": _binary("+"),
    "sub": _binary("-"),
    "mul": _mul,
    "mad": _mad,
    "madc": _mad,
    "addc": _carried("add_with_carry", takes=True),
    "subc": _carried("subtract_with_borrow", takes=True),
    "fma": _fma,
    "div": _div,
    "rem": _rem,
    "min": _extremum("min"),
    "max": _extremum("max"),
    "abs": _abs,
    "neg": _neg,
    "sad": _sad,
    "dp4a": _dp4a,
    "copysign": _copysign,
    "ex2": _function("np.exp2({0})"),
    "lg2": _function("np.log2({0})"),
    "rcp": _function("(1.0/{0})"),
    "sqrt": _function("np.sqrt({0})"),
    "rsqrt": _function("(1.0/np.sqrt({0}))"),
    "tanh": _function("np.tanh({0})"),
    "sin": _function("np.sin({0})"),
    "cos": _function("np.cos({0})"),
}
