"""Loads a function of the user's own by name: a kernel or provider, given as MODULE:FUNCTION."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from .errors import UsageError, one_line
from .outputs import output_fault

SIGNATURES: Mapping[str, tuple[str, ...]] = {
    "prefill_matmul": ("x", "weight"),
    "decode_attention": ("q", "k_cache", "v_cache", "context_lens"),
    "prefill_attention": ("q", "k", "v"),
}
"""The first parameters of a function, by the operation that it computes."""


@dataclass(frozen=True, kw_only=True)
class UserFunction:
    """A function of the user's own that computes an operation; calling it checks the kind of its result.

    Attributes:
        name: MODULE:FUNCTION, as given.
        operation: "prefill_matmul", "decode_attention" or "prefill_attention".
        module: the module it was loaded from.
        function: the function itself.
        takes_out: whether it has a parameter `out`, to which it writes its output.
    """

    name: str
    operation: str
    module: ModuleType
    function: Callable[..., Any]
    takes_out: bool

    def __call__(self, inputs: Any) -> Tensor:
        """The function's result on the inputs of a case of its operation.

        Prompts are views [sequences, tokens, heads, head_dim] for it, and so is its result.

        Raises:
            TypeError: the result is not a plain tensor of the dtype, shape and device of `inputs.out`.
            RuntimeError: the function tried to end the process.
        """
        operands = [getattr(inputs, name) for name in SIGNATURES[self.operation]]
        out, heads_first = inputs.out, self.operation == "prefill_attention"
        if heads_first:
            *operands, out = (each.transpose(1, 2) for each in (*operands, out))
        options = {"out": out} if self.takes_out else {}
        like = out.detach()  # of the shape before the call: the function may change that of `out`
        try:
            result: Any = self.function(*operands, **options)
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as error:  # such as sys.exit, which would end the command
            raise RuntimeError(f"raised {one_line(error)}") from error
        result = out if result is None and self.takes_out else result
        fault = output_fault(result, like)
        if fault is not None:
            raise TypeError(fault)
        output: Tensor = result
        return output.transpose(1, 2) if heads_first else output

    @property
    def uses_triton(self) -> bool:
        """Whether a module that the function may reach defines a Triton kernel."""
        return any(map(_has_triton_kernel, self._reached_modules()))

    def _reached_modules(self) -> Iterator[ModuleType]:
        """The function's own module, the module it was loaded from, and all that these two import from.

        Modules of PyTorch, Triton and NumPy are left out.
        """
        home = sys.modules.get(getattr(inspect.unwrap(self.function), "__module__", ""))
        own = [self.module, *([home] if home else [])]
        names = {each.__name__ for each in own}
        for value in (value for each in own for value in vars(each).values()):
            name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            if isinstance(name, str):
                names.add(name)
        for name in sorted(names):
            if name.partition(".")[0] not in {"torch", "triton", "numpy"} and name in sys.modules:
                yield sys.modules[name]


def load_user_functions(names: Sequence[str]) -> dict[str, UserFunction]:
    """Several functions by name, each once.

    Raises:
        UsageError: see `load_user_function`.
    """
    return {name: load_user_function(name) for name in dict.fromkeys(names)}


def load_user_function(name: str) -> UserFunction:
    """Import a function and find the operation that it computes.

    Its first parameters determine the operation: `x, weight` as in `kernels.prefill_matmul`,
    `q, k_cache, v_cache, context_lens` as in `kernels.decode_attention`, or `q, k, v` as in
    `kernels.prefill_attention`, of padded prompts. A parameter `out` receives the
    output tensor to write to. All other parameters need a default.

    Args:
        name: MODULE:FUNCTION; a module of the current folder is found before others of that name.

    Raises:
        UsageError: there is no such function, or it has other parameters.
    """
    module_name, _, function_name = name.partition(":")
    if not (module_name and function_name):
        raise UsageError(f"--provider: {name[:80]!r} is not module:function, such as my_module:my_function")
    module = _imported(module_name)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UsageError(f"--provider: {module_name} has no function {function_name!r}")
    operation, takes_out = _operation(name, function)
    return UserFunction(name=name, operation=operation, module=module, function=function, takes_out=takes_out)


def _imported(name: str) -> ModuleType:
    """Imports a module; the current folder is searched first for it, and last for what it imports.

    So a queue.py beside it does not take the place of the standard library's.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    first = name.partition(".")[0]
    try:
        spec = None if first in sys.modules else PathFinder.find_spec(first, [here])
        if spec is not None and spec.loader is not None:
            sys.modules[first] = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(sys.modules[first])
            except BaseException:
                sys.modules.pop(first, None)
                raise
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the module is the user's and may raise anything, SystemExit too
        raise UsageError(f"--provider: {name!r} cannot be imported ({one_line(error)})") from error


def _operation(name: str, function: Callable[..., Any]) -> tuple[str, bool]:
    """The operation that a function's parameters determine, and whether it has a parameter `out`."""
    if inspect.iscoroutinefunction(function):
        raise UsageError(f"--provider: {name} is asynchronous; it must give its result when it is called")
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise UsageError(f"--provider: {name}: its parameters cannot be read") from error
    names = tuple(parameters)
    for operation, first in SIGNATURES.items():
        if names[: len(first)] != first:
            continue
        for parameter in [parameters[each] for each in names[len(first) :] if each != "out"]:
            variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            if parameter.default is parameter.empty and not variadic:
                raise UsageError(f"--provider: {name}: {parameter.name} needs a default")
        return operation, "out" in names
    known = " or ".join(", ".join(first) for first in SIGNATURES.values())
    raise UsageError(
        f"--provider: {name} takes ({', '.join(names)[:80]}); its parameters must begin with {known}"
    )


def _has_triton_kernel(module: ModuleType) -> bool:
    return any(type(value).__module__.startswith("triton.") for value in vars(module).values())
