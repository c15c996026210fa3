"""Translates the expressions of one Python function to JavaScript.

The subset is what formulas need: arithmetic, comparisons, comprehensions, loops, `match` on classes, data
classes. Anything else raises `UntranslatableError`, which names the line. Operators that differ between the
languages for some operands (`+`, `==`, `in`, `[]`, truth) call functions of `assets/python.js`.
"""

import ast
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from .names import Names, Parameter, UntranslatableError, arguments_of, js_name, literal

RENAMED_METHODS = {
    "append": "push",
    "startswith": "startsWith",
    "endswith": "endsWith",
    "replace": "replaceAll",
}
_INFIX = {ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Mod: "%", ast.Pow: "**"}
_COMPARED = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
UNKNOWN = object()
"""Stands for the object of a name that is known only when the function runs."""


@dataclass
class Expressions:
    """Translates the expressions of one function, each to one text.

    Attributes:
        names: meaning of the function's global names.
        find: gives the object of a global name; raises KeyError if there is none.
        where: the function, for messages.
        scopes: local names and, for local functions, their parameters; innermost last.
    """

    names: Names
    find: Callable[[str], Any]
    where: str
    scopes: list[dict[str, Sequence[Parameter] | None]] = field(default_factory=list)

    def value(self, node: ast.expr) -> str:
        """An expression."""
        found = self.object_of(node)
        if found is not UNKNOWN and not isinstance(node, ast.Constant):
            return self.names.reference(found, ast.unparse(node).rpartition(".")[2])
        translate = getattr(self, f"_{type(node).__name__.lower()}", None)
        if translate is None:
            self._refuse(node)
        text: str = translate(node)
        return text

    def object_of(self, node: ast.expr) -> Any:
        """The object of a global name, perhaps with a module before it; UNKNOWN for anything else."""
        if isinstance(node, ast.Name) and not any(node.id in scope for scope in self.scopes):
            try:
                return self.find(node.id)
            except KeyError:
                self._refuse(node, f"the name {node.id}")
        if isinstance(node, ast.Attribute):
            base = self.object_of(node.value)
            if type(base).__name__ == "module" or isinstance(base, type):
                return getattr(base, node.attr)
        return UNKNOWN

    def _truth(self, node: ast.expr) -> str:
        """An expression as a condition: an empty list is false in Python, true in JavaScript."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return f"!{self._truth(node.operand)}"
        if isinstance(node, ast.BoolOp):
            joint = " && " if isinstance(node.op, ast.And) else " || "
            return f"({joint.join(map(self._truth, node.values))})"
        return self.value(node) if _is_boolean(node) else f"py.truth({self.value(node)})"

    def _iterated(self, node: ast.expr) -> str:
        return f"py.iter({self.value(node)})"

    def _constant(self, node: ast.Constant) -> str:
        return literal(node.value)

    def _name(self, node: ast.Name) -> str:
        return js_name(node.id)

    def _attribute(self, node: ast.Attribute) -> str:
        self.names.use_attribute(node.attr)
        return f"{self.value(node.value)}.{js_name(node.attr)}"

    def _subscript(self, node: ast.Subscript) -> str:
        base = self.value(node.value)
        if isinstance(node.slice, ast.Slice):
            bounds = (node.slice.lower, node.slice.upper)
            low, high = ("null" if each is None else self.value(each) for each in bounds)
            return f"py.slice({base}, {low}, {high})"
        return f"py.at({base}, {self.value(node.slice)})"

    def _binop(self, node: ast.BinOp) -> str:
        left, right = self.value(node.left), self.value(node.right)
        if isinstance(node.op, ast.FloorDiv):
            return f"Math.floor({left} / {right})"
        if isinstance(node.op, ast.Add):
            plain = _is_number(node.left) or _is_number(node.right)
            return f"({left} + {right})" if plain else f"py.add({left}, {right})"
        if isinstance(node.op, ast.BitOr | ast.BitAnd):
            return f"py.{'either' if isinstance(node.op, ast.BitOr) else 'both'}({left}, {right})"
        if isinstance(node.op, ast.Sub) and isinstance(node.left, ast.Set | ast.SetComp):
            return f"py.without({left}, {right})"
        if type(node.op) not in _INFIX:
            self._refuse(node)
        return f"({left} {_INFIX[type(node.op)]} {right})"

    def _unaryop(self, node: ast.UnaryOp) -> str:
        if isinstance(node.op, ast.Not):
            return self._truth(node)
        if not isinstance(node.op, ast.USub | ast.UAdd):
            self._refuse(node)
        return f"({'-' if isinstance(node.op, ast.USub) else '+'}{self.value(node.operand)})"

    def _boolop(self, node: ast.BoolOp) -> str:
        if all(map(_is_boolean, node.values)):
            return self._truth(node)
        name = "and" if isinstance(node.op, ast.And) else "or"
        first, *others = map(self.value, node.values)
        for other in others:
            first = f"py.{name}({first}, () => {other})"
        return first

    def _compare(self, node: ast.Compare) -> str:
        operands = [node.left, *node.comparators]
        tests = [
            self._comparison(op, left, right)
            for op, left, right in zip(node.ops, operands, operands[1:], strict=False)
        ]
        return tests[0] if len(tests) == 1 else f"({' && '.join(tests)})"

    def _comparison(self, op: ast.cmpop, left: ast.expr, right: ast.expr) -> str:
        one, other = self.value(left), self.value(right)
        if isinstance(op, ast.Is | ast.IsNot):
            return f"({one} {'===' if isinstance(op, ast.Is) else '!=='} {other})"
        if isinstance(op, ast.In | ast.NotIn):
            return f"{'!' if isinstance(op, ast.NotIn) else ''}py.has({other}, {one})"
        if isinstance(op, ast.Eq | ast.NotEq):
            return f"{'!' if isinstance(op, ast.NotEq) else ''}py.eq({one}, {other})"
        return f"({one} {_COMPARED[type(op)]} {other})"

    def _ifexp(self, node: ast.IfExp) -> str:
        return f"({self._truth(node.test)} ? {self.value(node.body)} : {self.value(node.orelse)})"

    def _namedexpr(self, node: ast.NamedExpr) -> str:
        return f"({js_name(node.target.id)} = {self.value(node.value)})"

    def _elements(self, nodes: Iterable[ast.expr]) -> str:
        return ", ".join(
            f"...{self._iterated(each.value)}" if isinstance(each, ast.Starred) else self.value(each)
            for each in nodes
        )

    def _tuple(self, node: ast.Tuple | ast.List) -> str:
        return f"[{self._elements(node.elts)}]"

    _list = _tuple

    def _set(self, node: ast.Set) -> str:
        return f"py.set([{self._elements(node.elts)}])"

    def _dict(self, node: ast.Dict) -> str:
        pairs = (
            f"...{self.value(value)}.items()" if key is None else f"[{self.value(key)}, {self.value(value)}]"
            for key, value in zip(node.keys, node.values, strict=True)
        )
        return f"py.dict([{', '.join(pairs)}])"

    def _lambda(self, node: ast.Lambda) -> str:
        names = [each.arg for each in arguments_of(node.args)]
        self.scopes.append(dict.fromkeys(names))
        body = self.value(node.body)
        self.scopes.pop()
        return f"(({', '.join(map(js_name, names))}) => {body})"

    def _listcomp(self, node: ast.ListComp | ast.GeneratorExp) -> str:
        return self._comprehension(node.generators, lambda: self.value(node.elt))

    _generatorexp = _listcomp

    def _setcomp(self, node: ast.SetComp) -> str:
        return f"py.set({self._comprehension(node.generators, lambda: self.value(node.elt))})"

    def _dictcomp(self, node: ast.DictComp) -> str:
        pairs = self._comprehension(
            node.generators, lambda: f"[{self.value(node.key)}, {self.value(node.value)}]"
        )
        return f"py.dict({pairs})"

    def _comprehension(self, loops: Sequence[ast.comprehension], element: Callable[[], str]) -> str:
        if not loops:
            return element()
        loop, *inner = loops
        source = f"py.list({self.value(loop.iter)})"
        self.scopes.append(dict.fromkeys(_targets(loop.target)))
        name = f"({self._pattern(loop.target)})"
        for test in loop.ifs:
            source += f".filter({name} => {self._truth(test)})"
        mapped = f"{source}.{'flatMap' if inner else 'map'}({name} => {self._comprehension(inner, element)})"
        self.scopes.pop()
        return mapped

    def _joinedstr(self, node: ast.JoinedStr) -> str:
        return f"[{', '.join(map(self.value, node.values))}].join('')"

    def _formattedvalue(self, node: ast.FormattedValue) -> str:
        inner = self.value(node.value)
        if node.conversion == ord("r"):
            inner = f"py.repr({inner})"
        spec = '""' if node.format_spec is None else self.value(node.format_spec)
        return f"py.format({inner}, {spec})"

    def _call(self, node: ast.Call) -> str:
        target = self.object_of(node.func)
        if getattr(target, "__name__", "") == "data_table" and isinstance(node.args[0], ast.Constant):
            table = str(node.args[0].value)  # read here, as the page reads no files
            return self.names.reference(target(table), re.sub(r"\W", "_", table))
        if target is not UNKNOWN:
            name = self.names.reference(target, ast.unparse(node.func))
            new = "new " if isinstance(target, type) and self.names.signature(target) is not None else ""
            return f"{new}{name}({self._arguments(node, self.names.signature(target), optional=target)})"
        if isinstance(node.func, ast.Attribute):
            base, method = self.value(node.func.value), node.func.attr
            if method in {"join", "extend", "index", "count", "partition", "removeprefix"}:
                return f"py.{method}({base}, {self._elements(node.args)})"
            self.names.use_attribute(method)
            keywords = [each.arg for each in node.keywords if each.arg is not None]
            parameters = self.names.method(method, keywords) if keywords else None
            name = RENAMED_METHODS.get(method, js_name(method))
            return f"{base}.{name}({self._arguments(node, parameters)})"
        if not node.args and [each.arg for each in node.keywords] == [None]:  # a class that is an argument
            return f"py.construct({self.value(node.func)}, {self.value(node.keywords[0].value)})"
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        local = [scope[name] for scope in self.scopes if name in scope]
        return f"{self.value(node.func)}({self._arguments(node, local[-1] if local else None)})"

    def _arguments(
        self, node: ast.Call, parameters: Sequence[Parameter] | None, optional: Any = UNKNOWN
    ) -> str:
        """Arguments in the order of the parameters; of a function of `python.js`, keywords as an object."""
        if parameters is None:
            if not node.keywords:
                return self._elements(node.args)
            if optional is UNKNOWN:
                self._refuse(node, "a keyword of an unknown function")
            return ", ".join(filter(None, [self._elements(node.args), f"py.keywords({self._pairs(node)})"]))
        if any(isinstance(each, ast.Starred) for each in node.args) and not any(
            p.collects for p in parameters
        ):
            self._refuse(node, "a starred argument")
        if any(each.arg is None for each in node.keywords):
            given = self._given(node, parameters)
            head = ", ".join(f"[{json.dumps(name)}, {text}]" for name, text in given.items())
            splats = ", ".join(self.value(each.value) for each in node.keywords if each.arg is None)
            order = json.dumps([[each.name, each.collects] for each in parameters])
            return f"...py.bound({order}, [{head}], {splats})"
        given = self._given(node, parameters)
        texts = [given.get(each.name, "undefined") for each in parameters]
        while texts and texts[-1] == "undefined":
            texts.pop()
        return ", ".join(texts)

    def _given(self, node: ast.Call, parameters: Sequence[Parameter]) -> dict[str, str]:
        """The text of each argument by parameter."""
        given: dict[str, str] = {}
        args = list(node.args)
        for each in parameters:
            if each.collects == "*":
                given[each.name], args = f"[{self._elements(args)}]", []
            elif args and not each.keyword_only and not each.collects:
                given[each.name] = self.value(args.pop(0))
        known = {each.name for each in parameters if not each.collects}
        more = []
        for keyword in node.keywords:
            if keyword.arg in known:
                given[keyword.arg] = self.value(keyword.value)
            elif keyword.arg is not None:
                more.append(f"[{json.dumps(keyword.arg)}, {self.value(keyword.value)}]")
        collecting = [each.name for each in parameters if each.collects == "**"]
        if args or (more and not collecting):
            self._refuse(node, "an argument without a parameter")
        if collecting:
            given[collecting[0]] = f"py.dict([{', '.join(more)}])"
        return given

    def _pairs(self, node: ast.Call) -> str:
        texts = (
            f"...py.object({self.value(each.value)})"
            if each.arg is None
            else f"{each.arg}: {self.value(each.value)}"
            for each in node.keywords
        )
        return f"{{{', '.join(texts)}}}"

    def _refuse(self, node: ast.AST, why: str = "") -> NoReturn:
        text = ast.unparse(node).partition("\n")[0]
        raise UntranslatableError(f"{self.where}: {why or type(node).__name__} has no JavaScript: {text}")

    def _pattern(self, target: ast.expr) -> str:
        """A name, or names that a value is taken apart into."""
        if isinstance(target, ast.Name):
            return js_name(target.id)
        if isinstance(target, ast.Starred):
            return f"...{self._pattern(target.value)}"
        if isinstance(target, ast.Tuple | ast.List):  # JavaScript lets no two elements be called _
            names = (self._pattern(each) for each in target.elts)
            return f"[{', '.join('' if name == '_' else name for name in names)}]"
        return self._refuse(target)


def _is_boolean(node: ast.expr) -> bool:
    if isinstance(node, ast.BoolOp):
        return all(map(_is_boolean, node.values))
    is_not = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    return is_not or isinstance(node, ast.Compare)


def _is_number(node: ast.expr) -> bool:
    """Whether an operand is a number by its form, so that JavaScript's + adds it as Python's does."""
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Div | ast.Pow) or (
            isinstance(node.op, ast.Mult | ast.Sub | ast.Add | ast.FloorDiv)
            and (_is_number(node.left) or _is_number(node.right))
        )
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def _targets(target: ast.expr) -> list[str]:
    return [node.id for node in ast.walk(target) if isinstance(node, ast.Name)]
