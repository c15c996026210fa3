"""Translates Python functions, and all that they use, to one JavaScript program.

Functions and methods are translated from their source; a method only if some translated code names it.
Constants, and results of functions without parameters such as a table of data, become values.
"""

import ast
import builtins
import dataclasses
import functools
import importlib
import inspect
import itertools
import json
import math
import re
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import msgspec

from .names import Parameter, UntranslatableError, literal, parameters_of
from .statements import Statements

_BUILTINS = (
    "abs",
    "divmod",
    "all",
    "any",
    "bool",
    "dict",
    "enumerate",
    "float",
    "int",
    "isinstance",
    "len",
    "list",
    "max",
    "min",
    "next",
    "range",
    "repr",
    "reversed",
    "round",
    "set",
    "sorted",
    "str",
    "sum",
    "tuple",
    "zip",
)
_COUNTERPARTS: dict[int, str] = {id(getattr(builtins, name)): f"py.{name}" for name in _BUILTINS} | {
    id(value): text
    for value, text in (
        (math.ceil, "Math.ceil"),
        (math.floor, "Math.floor"),
        (math.exp, "Math.exp"),
        (math.log, "Math.log"),
        (math.log2, "Math.log2"),
        (math.sqrt, "Math.sqrt"),
        (math.isfinite, "Number.isFinite"),
        (math.fsum, "py.sum"),
        (math.isclose, "py.isclose"),
        (dataclasses.fields, "py.fields"),
        (math.prod, "py.prod"),
        (math.gcd, "py.gcd"),
        (dataclasses.replace, "py.replace"),
        (msgspec.structs.replace, "py.replace"),
        (itertools.pairwise, "py.pairwise"),
        (itertools.chain, "py.chain"),
        (itertools.product, "py.product"),
        (ValueError, "Error"),
        (KeyError, "Error"),
        (NotImplementedError, "Error"),
        (types.MappingProxyType, "py.dict"),
        (getattr, "py.getattr"),
    )
}
_BY_QUALIFIED_NAME = {"dict.fromkeys": "py.fromkeys", "chain.from_iterable": "py.flat"}


class Program:
    """A JavaScript program that grows by each object that is referred to."""

    def __init__(self) -> None:
        self._name_of: dict[int, str] = {}
        self._kept: list[Any] = []  # objects whose id is a key above
        self._functions: dict[str, str] = {}
        self._classes: dict[str, type] = {}
        self._methods: dict[tuple[str, str], str] = {}
        self._values: dict[str, str] = {}
        self._named: set[str] = set()
        self._made: set[int] = set()
        self._to_translate: list[Callable[[], None]] = []

    def add(self, value: Any, name: str) -> str:
        """Adds an object and all that it uses; gives its name in JavaScript.

        Raises:
            UntranslatableError: it, or something it uses, has no JavaScript.
        """
        found = self.reference(value, name)
        while self._to_translate or self._add_methods():
            while self._to_translate:
                self._to_translate.pop()()
        return found

    def text(self) -> str:
        """The program: classes, values and functions, after the functions of `python.js`."""
        runtime = files(__package__).joinpath("assets", "python.js").read_text(encoding="utf-8")
        classes = (self._class_text(name, each) for name, each in self._classes.items())
        return "\n".join([runtime, *classes, *self._values.values(), *self._functions.values()])

    def reference(self, value: Any, name: str) -> str:
        """JavaScript for an object, which is added."""
        if id(value) in _COUNTERPARTS:
            return _COUNTERPARTS[id(value)]
        if value is None or isinstance(value, bool | str) or value is math.inf:
            return self._literal(value)
        if isinstance(value, types.UnionType):
            return f"[{', '.join(self.reference(each, each.__name__) for each in value.__args__)}]"
        if (key := getattr(value, "__qualname__", "")) in _BY_QUALIFIED_NAME:
            return _BY_QUALIFIED_NAME[key]
        if isinstance(value, int | float):  # equal numbers may be one object
            self._values.setdefault(name, f"const {name} = {self._literal(value)};")
            return name
        if id(value) not in self._name_of:
            self._add(value, name)
        return self._name_of[id(value)]

    def _add(self, value: Any, name: str) -> None:
        name = getattr(value, "__name__", name.rpartition(".")[2])
        taken = set(self._name_of.values())
        while name in taken:
            name += "_"
        self._name_of[id(value)] = name
        self._kept.append(value)
        if isinstance(value, type):
            self._classes[name] = value
        elif _is_function(value):
            self._to_translate.append(lambda: self._add_function(name, value))
        else:
            self._values[name] = ""  # keeps its place before values that need it
            self._values[name] = f"const {name} = {self._literal(value)};"

    def _add_function(self, name: str, value: Any) -> None:
        function = inspect.unwrap(value)
        cached = hasattr(value, "cache_info")
        if cached and not inspect.signature(function).parameters:
            self._values[name] = f"const {name}_ = {self._literal(value())};\nconst {name} = () => {name}_;"
            return
        lines = list(self._translator(function).function(_node_of(function), "function"))
        lines[0] = lines[0].replace(_node_of(function).name, name, 1)
        if cached:
            lines[0], lines[-1] = f"const {name} = py.cached({lines[0]}", "});"
        self._functions[name] = "\n".join(lines)

    def _translator(self, function: types.FunctionType) -> Statements:
        closure = inspect.getclosurevars(function).nonlocals
        imports = _local_imports(function)

        def find(name: str) -> Any:
            for names in (imports, closure, function.__globals__, vars(builtins)):
                if name in names:
                    return names[name]
            raise KeyError(name)

        return Statements(self, find, f"{function.__module__}.{function.__qualname__}")

    def _add_methods(self) -> bool:
        """Translates the methods that code names and that are not yet translated; whether there were any."""
        found = False
        for name, each in list(self._classes.items()):
            for attribute, value in _members(each).items():
                wanted = attribute in self._named or (attribute == "__post_init__" and id(each) in self._made)
                if wanted and (name, attribute) not in self._methods:
                    self._methods[name, attribute] = ""
                    self._methods[name, attribute] = self._method(each, attribute, value)
                    found = True
        return found

    def _method(self, owner: type, name: str, value: Any) -> str:
        head = ""
        if isinstance(value, property | functools.cached_property):
            head, value = "get", value.fget if isinstance(value, property) else value.func
        if not isinstance(value, types.FunctionType):
            return f"static {{ {self._name_of[id(owner)]}.prototype.{name} = {self._literal(value)}; }}"
        lines = self._translator(value).function(_node_of(value), head, method=True)
        return "\n".join(lines)

    def _class_text(self, name: str, value: type) -> str:
        """A class whose constructor takes all fields by position."""
        if issubclass(value, Exception):
            return f"class {name} extends Error {{ static bases = []; }}"
        defaults = _defaults(value)
        fields = list(inspect.signature(value).parameters)
        parameters = [
            f"{each} = {self._literal(defaults[each])}" if each in defaults else each for each in fields
        ]
        bases = [self._name_of[id(base)] for base in value.__mro__[1:] if id(base) in self._name_of]
        members = [text for (owner, _), text in self._methods.items() if owner == name]
        lines = [
            f"static bases = {json.dumps(bases)};",
            f"static fields = {json.dumps(fields)};",
            f"constructor({', '.join(parameters)}) {{",
            *(f"  this.{each} = {each};" for each in fields),
            *(["  this.__post_init__();"] if (name, "__post_init__") in self._methods else []),
            "}",
            *members,
        ]
        return "\n".join([f"class {name} {{", *(textwrap.indent(line, "  ") for line in lines), "}"])

    def signature(self, function: Any) -> Sequence[Parameter] | None:
        """Parameters of a translated function or class; None for a function of `python.js`."""
        if id(function) in _COUNTERPARTS or getattr(function, "__qualname__", "") in _BY_QUALIFIED_NAME:
            return None
        if isinstance(function, type) and issubclass(function, Exception):
            return [Parameter("message")]
        if isinstance(function, type):
            self._made.add(id(function))
            return [Parameter(name) for name in inspect.signature(function).parameters]
        return parameters_of(_node_of(inspect.unwrap(function)).args)

    def use_attribute(self, name: str) -> None:
        """Has the methods and properties of this name translated."""
        self._named.add(name)

    def method(self, name: str, keywords: Sequence[str]) -> Sequence[Parameter]:
        """Parameters, without self, of the methods of this name that take these keywords."""
        found: list[Sequence[Parameter]] = []
        for each in self._classes.values():
            value = _members(each).get(name)
            if isinstance(value, types.FunctionType):
                parameters = parameters_of(_node_of(value).args)[1:]
                found += [parameters] if {*keywords} <= {each.name for each in parameters} else []
        longest = max(found, key=len, default=[])
        if not found or any(list(each) != list(longest[: len(each)]) for each in found):
            raise UntranslatableError(f"the methods {name} differ in the order of {', '.join(keywords)}")
        return longest

    def _literal(self, value: Any) -> str:
        """JavaScript that makes a value."""
        if value is None or isinstance(value, bool | str | int | float):
            return literal(value)
        if isinstance(value, type) or _is_function(value) or id(value) in _COUNTERPARTS:
            return self.reference(value, "")
        if isinstance(value, re.Pattern):
            return f"py.pattern({literal(value.pattern)})"
        if isinstance(value, Mapping | set | frozenset):
            kind, elements = ("dict", value.items()) if isinstance(value, Mapping) else ("set", sorted(value))
            return f"py.{kind}({self._literal(list(elements))})"
        if isinstance(value, list | tuple | range):
            return f"[{', '.join(map(self._literal, value))}]"
        if isinstance(value, types.BuiltinFunctionType):
            raise UntranslatableError(f"{value.__name__} has no JavaScript")
        pairs = (f"{name}: {self._literal(getattr(value, name))}" for name in _field_names(type(value)))
        return f"py.made({self.reference(type(value), '')}, {{{', '.join(pairs)}}})"


@functools.cache
def _node_of(function: types.FunctionType) -> ast.FunctionDef:
    node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    if not isinstance(node, ast.FunctionDef):
        raise UntranslatableError(f"{function.__module__}.{function.__qualname__} is no plain function")
    return node


def _is_function(value: Any) -> bool:
    """Whether it is a plain function, perhaps one whose results are cached."""
    return isinstance(value, types.FunctionType) or hasattr(value, "cache_info")


def _local_imports(function: types.FunctionType) -> dict[str, Any]:
    """Names that a function imports for itself."""
    found: dict[str, Any] = {}
    for node in ast.walk(_node_of(function)):
        if isinstance(node, ast.ImportFrom):
            package = function.__module__.rsplit(".", node.level)[0] if node.level else ""
            module = importlib.import_module(".".join(filter(None, [package, node.module or ""])))
            found |= {each.asname or each.name: getattr(module, each.name) for each in node.names}
    return found


def _members(owner: type) -> dict[str, Any]:
    """Methods, properties and constants of a class and its bases, without what Python adds."""
    found: dict[str, Any] = {}
    fields = set() if issubclass(owner, Exception) else set(_field_names(owner))
    for base in reversed(owner.__mro__):
        if dataclasses.is_dataclass(base) or (
            issubclass(base, msgspec.Struct) and base is not msgspec.Struct
        ):
            members = {
                name: value
                for name, value in vars(base).items()
                if name == "__post_init__" or not name.startswith("__")
            }
            found |= {name: value for name, value in members.items() if name not in fields}
    return {
        name: value
        for name, value in found.items()
        if isinstance(
            value,
            types.FunctionType | property | functools.cached_property | bool | int | float | str | tuple,
        )
    }


def _field_names(owner: type) -> Iterable[str]:
    if dataclasses.is_dataclass(owner):
        return [each.name for each in dataclasses.fields(owner)]
    if issubclass(owner, msgspec.Struct):
        return owner.__struct_fields__
    raise UntranslatableError(f"{owner.__name__} has no JavaScript, as it is no data class")


def _defaults(owner: type) -> dict[str, Any]:
    if dataclasses.is_dataclass(owner):
        found = {f.name: f.default for f in dataclasses.fields(owner) if f.default is not dataclasses.MISSING}
        factories = {f.name: f.default_factory for f in dataclasses.fields(owner)}
        return found | {n: make() for n, make in factories.items() if make is not dataclasses.MISSING}
    if issubclass(owner, msgspec.Struct):
        optional = zip(reversed(owner.__struct_fields__), reversed(owner.__struct_defaults__), strict=False)
        return dict(optional)
    return {}
