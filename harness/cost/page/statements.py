"""Translates the statements of one Python function to JavaScript."""

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from .expressions import Expressions
from .names import Parameter, arguments_of, js_name, literal, parameters_of


@dataclass
class Statements(Expressions):
    """Translates one function.

    Attributes:
        loops: flags to clear before `break`, by loop; None where the loop has no else.
        made: number of names that the translation made up.
    """

    loops: list[str | None] = field(default_factory=list)
    made: int = 0

    def _fresh(self, name: str) -> str:
        self.made += 1
        return f"{name}{self.made}_"

    def function(self, node: ast.FunctionDef, head: str, *, method: bool = False) -> Iterator[str]:
        """Lines of a function; `head` precedes its parameters, such as "function" or "get"."""
        parameters = parameters_of(node.args)[1 if method else 0 :]
        scope: dict[str, Sequence[Parameter] | None] = dict.fromkeys(
            (each.arg for each in arguments_of(node.args)), None
        )
        hoisted = [name for name in _assigned(node.body) if name not in scope]
        scope |= dict.fromkeys(hoisted, None)
        scope |= {
            each.name: parameters_of(each.args) for each in node.body if isinstance(each, ast.FunctionDef)
        }
        star = "*" if _is_generator(node) else ""
        name = f"{head}{star} {js_name(node.name)}".strip()
        yield f"{name}({self._parameters(node.args, parameters)}) {{"
        self.scopes.append(scope)
        if method:
            yield f"  const {js_name(node.args.args[0].arg)} = this;"
        if hoisted:
            yield f"  let {', '.join(map(js_name, hoisted))};"
        for line in self._block(node.body):
            yield f"  {line}"
        self.scopes.pop()
        yield "}"

    def _parameters(self, arguments: ast.arguments, parameters: Sequence[Parameter]) -> str:
        """JavaScript's parameters by position; one that collects arguments is a list or a dict."""
        positional = [*arguments.posonlyargs, *arguments.args]
        firsts = [each.arg for each in positional[len(positional) - len(arguments.defaults) :]]
        defaults = dict(zip(firsts, arguments.defaults, strict=True))
        defaults |= {
            each.arg: value
            for each, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
            if value is not None
        }
        return ", ".join(
            f"{js_name(each.name)} = {self.value(defaults[each.name])}"
            if each.name in defaults
            else js_name(each.name)
            for each in parameters
        )

    def _block(self, body: Iterable[ast.stmt]) -> Iterator[str]:
        for statement in body:
            translate = getattr(self, f"_{type(statement).__name__.lower()}", None)
            if translate is None:
                self._refuse(statement)
            yield from translate(statement)

    def _indented(self, body: Iterable[ast.stmt]) -> Iterator[str]:
        for line in self._block(body):
            yield f"  {line}"

    # Statements, each a generator of lines.

    def _expr(self, node: ast.Expr) -> Iterator[str]:
        if isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):  # a docstring
                yield f"// {node.value.value.strip().splitlines()[0]}"
        elif isinstance(node.value, ast.YieldFrom):
            yield f"yield* {self._iterated(node.value.value)};"
        elif isinstance(node.value, ast.Yield) and node.value.value is not None:
            yield f"yield {self.value(node.value.value)};"
        else:
            yield f"{self.value(node.value)};"

    def _pass(self, _node: ast.Pass) -> Iterator[str]:
        yield from ()

    def _import(self, _node: ast.stmt) -> Iterator[str]:
        yield from ()

    _importfrom = _import

    def _assign(self, node: ast.Assign) -> Iterator[str]:
        value = self.value(node.value)
        for target in node.targets:
            yield f"{self._assigned_to(target, value)};"

    def _annassign(self, node: ast.AnnAssign) -> Iterator[str]:
        if node.value is not None:
            yield f"{self._assigned_to(node.target, self.value(node.value))};"

    def _augassign(self, node: ast.AugAssign) -> Iterator[str]:
        read = ast.parse(ast.unparse(node.target), mode="eval").body
        value = self._binop(ast.BinOp(read, node.op, node.value))
        yield f"{self._assigned_to(node.target, value)};"

    def _assigned_to(self, target: ast.expr, value: str) -> str:
        if isinstance(target, ast.Subscript):
            return f"py.put({self.value(target.value)}, {self.value(target.slice)}, {value})"
        if isinstance(target, ast.Attribute):
            return f"{self.value(target)} = {value}"
        pattern = self._pattern(target)
        return f"{pattern} = {f'py.list({value})' if pattern.startswith('[') else value}"

    def _return(self, node: ast.Return) -> Iterator[str]:
        yield "return null;" if node.value is None else f"return {self.value(node.value)};"

    def _raise(self, node: ast.Raise) -> Iterator[str]:
        yield "throw error_;" if node.exc is None else f"throw {self.value(node.exc)};"

    def _assert(self, node: ast.Assert) -> Iterator[str]:
        yield f"py.assert({self._truth(node.test)});"

    def _if(self, node: ast.If) -> Iterator[str]:
        yield f"if ({self._truth(node.test)}) {{"
        yield from self._indented(node.body)
        if node.orelse:
            yield "} else {"
            yield from self._indented(node.orelse)
        yield "}"

    def _for(self, node: ast.For) -> Iterator[str]:
        head = f"for ({self._pattern(node.target)} of {self._iterated(node.iter)}) {{"
        yield from self._loop(head, node)

    def _while(self, node: ast.While) -> Iterator[str]:
        yield from self._loop(f"while ({self._truth(node.test)}) {{", node)

    def _loop(self, head: str, node: ast.For | ast.While) -> Iterator[str]:
        flag = self._fresh("ended") if node.orelse else None
        self.loops.append(flag)
        if flag:
            yield f"let {flag} = true;"
        yield head
        yield from self._indented(node.body)
        yield "}"
        self.loops.pop()
        if flag:
            yield f"if ({flag}) {{"
            yield from self._indented(node.orelse)
            yield "}"

    def _break(self, _node: ast.Break) -> Iterator[str]:
        if self.loops[-1]:
            yield f"{self.loops[-1]} = false;"
        yield "break;"

    def _continue(self, _node: ast.Continue) -> Iterator[str]:
        yield "continue;"

    def _functiondef(self, node: ast.FunctionDef) -> Iterator[str]:
        yield from self.function(node, "function")

    def _try(self, node: ast.Try) -> Iterator[str]:
        if node.finalbody or node.orelse:
            self._refuse(node)
        yield "try {"
        yield from self._indented(node.body)
        yield "} catch (error_) {"
        for handler in node.handlers:
            if handler.type is None:
                self._refuse(handler)
            yield f"  if (py.isinstance(error_, {self.value(handler.type)})) {{"
            if handler.name:
                yield f"    {js_name(handler.name)} = error_;"
            for line in self._indented(handler.body):
                yield f"  {line}"
            yield "  } else"
        yield "  throw error_;"
        yield "}"

    def _match(self, node: ast.Match) -> Iterator[str]:
        subject = self._fresh("subject")
        yield f"const {subject} = {self.value(node.subject)};"
        for number, case in enumerate(node.cases):
            bound: list[str] = []
            tests = [self._case(case.pattern, subject, bound)]
            tests += [] if case.guard is None else [self._truth(case.guard)]
            assigned = [f"({each}, true)" for each in bound]
            yield f"{'} else ' if number else ''}if ({' && '.join([*assigned, *tests])}) {{"
            yield from self._indented(case.body)
        yield "}"

    def _case(self, pattern: ast.pattern, subject: str, bound: list[str]) -> str:
        """The test of a pattern; adds the assignments of the names that it binds."""
        if isinstance(pattern, ast.MatchOr):
            return f"({' || '.join(self._case(each, subject, bound) for each in pattern.patterns)})"
        if isinstance(pattern, ast.MatchAs):
            if pattern.name is not None:
                bound.append(f"{js_name(pattern.name)} = {subject}")
            return "true" if pattern.pattern is None else self._case(pattern.pattern, subject, bound)
        if isinstance(pattern, ast.MatchValue):
            return f"py.eq({subject}, {self.value(pattern.value)})"
        if isinstance(pattern, ast.MatchSingleton):
            return f"{subject} === {literal(pattern.value)}"
        if isinstance(pattern, ast.MatchClass) and not pattern.patterns:
            tests = [f"py.isinstance({subject}, {self.value(pattern.cls)})"]
            for name, inner in zip(pattern.kwd_attrs, pattern.kwd_patterns, strict=True):
                tests.append(self._case(inner, f"{subject}.{name}", bound))
            return " && ".join(tests)
        return self._refuse(pattern)


def _is_generator(node: ast.FunctionDef) -> bool:
    return any(isinstance(each, ast.Yield | ast.YieldFrom) for each in _own_nodes(node.body))


def _own_nodes(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """The nodes of a function without those of functions inside."""
    for node in body:
        yield node
        if not isinstance(node, ast.FunctionDef | ast.Lambda):
            yield from _own_nodes(ast.iter_child_nodes(node))


def _assigned(body: Iterable[ast.stmt]) -> list[str]:
    """Names that a function assigns, other than those of its comprehensions, in order."""
    found: dict[str, None] = {}
    for node in _own_nodes(body):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                names = [] if isinstance(target, ast.Attribute | ast.Subscript) else _stored(target)
                found |= dict.fromkeys(names)
        elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.For | ast.NamedExpr):
            found |= dict.fromkeys(_stored(node.target))
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            found[node.name] = None
    return list(found)


def _stored(target: ast.expr) -> list[str]:
    return [
        node.id for node in ast.walk(target) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]
