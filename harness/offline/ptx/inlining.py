"""Inlines device functions (`.func`) into the kernel that calls them, so that it has one list of blocks."""

import re

from .unsupported import UnsupportedPtxError

_FUNCTION = re.compile(
    r"^\s*(?:\.\w+\s+)*\.func\s+(?:\(([^)]*)\)\s*)?([\w$]+)\s*\(([^)]*)\)(?:\s|//[^\n]*|\.\w+)*\{",
    re.MULTILINE,
)
_CALL = re.compile(r"\bcall(?:\.uni)?\s+(?:\(([^)]*)\)\s*,\s*)?([\w$]+)\s*(?:,\s*\(([^)]*)\))?\s*;")
_MAX_DEPTH = 8  # of calls within calls; recursion has no end


def inlined(ptx: str) -> str:
    """PTX with each call of a function that it defines replaced by its body, in the line of the call.

    A body is in braces of its own, which keep its registers and labels apart. Its parameters take the names
    of the call's. Calls of functions without a body, such as printf, stay.

    Raises:
        UnsupportedPtxError: functions call one another too deeply.
    """
    functions = {}
    for found in _FUNCTION.finditer(ptx):
        results, name, parameters = found.groups()
        functions[name] = (_names(results), _names(parameters), _body(ptx, found.end()))
    if not functions:
        return ptx
    count = 0

    def body(call: re.Match[str]) -> str:
        nonlocal count
        if call.group(2) not in functions:
            return call.group(0)
        count += 1
        results, parameters, text = functions[call.group(2)]
        given = [*_names(call.group(1)), *_names(call.group(3))]
        for name, argument in zip([*results, *parameters], given, strict=True):
            text = re.sub(rf"\b{re.escape(name)}\b", argument, text)
        text = re.sub(r"\bret(\.uni)?\s*;", f"bra $returned_{count};", text)
        return f"{{ {text} $returned_{count}: }}"

    for _ in range(_MAX_DEPTH):
        before, ptx = ptx, _CALL.sub(body, ptx)
        if ptx == before:
            return ptx
    raise UnsupportedPtxError("functions that call one another without end")


def _names(declarations: str | None) -> list[str]:
    """Names of parameters: the last word of each declaration, without the length of an array."""
    return [
        re.sub(r"\[\d+\]", "", each).split()[-1] for each in (declarations or "").split(",") if each.strip()
    ]


def _body(ptx: str, start: int) -> str:
    """The text after an opening brace up to its closing one, in one line, without comments and locations."""
    depth, stop = 1, start
    while depth:
        depth += {"{": 1, "}": -1}.get(ptx[stop], 0)
        stop += 1
    text = re.sub(r"//[^\n]*|^\s*\.loc\b[^\n]*", "", ptx[start : stop - 1], flags=re.MULTILINE)
    return " ".join(text.split())
