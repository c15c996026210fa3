"""Names, parameters and constants of Python in JavaScript."""

import ast
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

_RESERVED = frozenset(
    (
        "arguments",
        "case",
        "catch",
        "const",
        "default",
        "delete",
        "do",
        "enum",
        "eval",
        "export",
        "extends",
        "function",
        "new",
        "null",
        "package",
        "private",
        "protected",
        "public",
        "static",
        "super",
        "switch",
        "this",
        "throw",
        "typeof",
        "var",
        "void",
    )
)


class UntranslatableError(NotImplementedError):
    """Syntax outside the subset, or a name that has no counterpart in JavaScript."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a function: its name, and "*" or "**" where it collects arguments."""

    name: str
    collects: str = ""
    keyword_only: bool = False


class Names(Protocol):
    """What a function's names mean outside of it."""

    def reference(self, value: Any, name: str) -> str:
        """JavaScript for an object of Python that a global name stands for."""

    def signature(self, function: Any) -> Sequence[Parameter] | None:
        """Parameters of a translated function or class; None for a function of `python.js`."""

    def use_attribute(self, name: str) -> None:
        """Has the methods and properties of this name translated."""

    def method(self, name: str, keywords: Sequence[str]) -> Sequence[Parameter]:
        """Parameters, without self, of the methods of this name that take these keywords."""


def parameters_of(arguments: ast.arguments) -> list[Parameter]:
    """The parameters in the order in which JavaScript gets them."""
    found = [Parameter(each.arg) for each in (*arguments.posonlyargs, *arguments.args)]
    if arguments.vararg is not None:
        found.append(Parameter(arguments.vararg.arg, "*"))
    found += [Parameter(each.arg, keyword_only=True) for each in arguments.kwonlyargs]
    if arguments.kwarg is not None:
        found.append(Parameter(arguments.kwarg.arg, "**"))
    return found


def arguments_of(arguments: ast.arguments) -> list[ast.arg]:
    """All parameters of a function, in the order of Python's syntax."""
    collecting = [each for each in (arguments.vararg, arguments.kwarg) if each is not None]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *collecting]


def js_name(name: str) -> str:
    """A name that JavaScript does not reserve."""
    return f"{name}_" if name in _RESERVED else name


def literal(value: Any) -> str:
    """JavaScript for a constant of Python."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, bool | str | int | float):
        return json.dumps(value).replace("<", "\\u003c")
    raise UntranslatableError(f"the constant {value!r} has no JavaScript")
