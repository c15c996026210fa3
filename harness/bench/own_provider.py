"""A provider of the user's own: any function that takes an operation's inputs."""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from ..core.cases import Case
from ..core.errors import UsageError, one_line
from ..core.inputs import DecodeAttentionInputs, MatmulInputs
from .device import Device
from .providers import Provider, interpreting

SIGNATURES: Mapping[str, tuple[str, ...]] = {
    "prefill_matmul": ("x", "weight"),
    "decode_attention": ("q", "k_cache", "v_cache", "context_lens"),
}
"""How the parameters of a function begin, by the operation that it is taken for."""


def own_provider(text: str) -> tuple[str, Provider]:
    """The operation that a function computes, and the provider that calls it.

    Its first parameters tell the operation: `x, weight` or `q, k_cache, v_cache, context_lens`, as
    `kernels.prefill_matmul` and `kernels.decode_attention` take them. Where it has a parameter `out`, it is
    given the output to write to. Others need a default.

    Args:
        text: "module:function"; modules of the current folder are found too.

    Raises:
        UsageError: there is no such function, or it takes something else.
    """
    module_name, _, name = text.partition(":")
    if not (module_name and name):
        raise UsageError(f"--provider: {text[:80]!r} is not module:function, such as my_module:my_function")
    module = _imported(module_name)
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"--provider: {module_name} has no function {name!r}")
    operation, takes_out = _operation(text, function)
    return operation, Provider(
        name=text, run=_caller(function, operation, takes_out=takes_out), refuses=_refusal(module, function)
    )


def own_providers(texts: Sequence[str]) -> dict[str, list[Provider]]:
    """The providers of several functions, by operation.

    Raises:
        UsageError: see `own_provider`.
    """
    found: dict[str, list[Provider]] = {}
    for text in dict.fromkeys(texts):
        operation, provider = own_provider(text)
        found.setdefault(operation, []).append(provider)
    return found


def _imported(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the module is the user's and may raise anything, and leave
        raise UsageError(f"--provider: {name!r} cannot be imported ({one_line(error)})") from error


def _operation(text: str, function: Callable[..., Any]) -> tuple[str, bool]:
    """The operation, and whether the function takes the output."""
    if inspect.iscoroutinefunction(function):
        raise UsageError(f"--provider: {text} is asynchronous; it must give its result when it is called")
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise UsageError(f"--provider: {text}: its parameters cannot be told") from error
    names = tuple(parameters)
    for operation, begin in SIGNATURES.items():
        if names[: len(begin)] == begin:
            rest = [parameters[name] for name in names[len(begin) :] if name != "out"]
            needed = [
                p.name
                for p in rest
                if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
            ]
            if needed:
                raise UsageError(f"--provider: {text}: {needed[0]} needs a default")
            return operation, "out" in names
    begins = " or ".join(", ".join(begin) for begin in SIGNATURES.values())
    raise UsageError(
        f"--provider: {text} takes ({', '.join(names)[:80]}); its parameters must begin with {begins}"
    )


def _caller(function: Callable[..., Any], operation: str, *, takes_out: bool) -> Callable[[Any], Tensor]:
    def run(inputs: MatmulInputs | DecodeAttentionInputs) -> Tensor:
        options = {"out": inputs.out} if takes_out else {}
        try:
            result = function(*(getattr(inputs, name) for name in SIGNATURES[operation]), **options)
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as error:  # such as sys.exit: it would end the command
            raise RuntimeError(f"raised {one_line(error)}") from error
        result = inputs.out if result is None and takes_out else result
        if _kind(result) != _kind(inputs.out):
            raise TypeError(f"gave {_kind(result)}, not {_kind(inputs.out)}")
        return result

    return run


def _kind(value: object) -> str:
    """What a result is, in words: a tensor's dtype and shape, else its type."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)} on {value.device.type}"


def _refusal(module: ModuleType, function: Callable[..., Any]) -> Callable[[Case, Device], str | None]:
    """Triton kernels are never timed while Triton interprets: they are checked on twins."""

    def refuses(_case: Case, _device: Device) -> str | None:
        if interpreting() and any(map(has_triton_kernel, _reached(module, function))):
            return "the interpreter is not timed; see the interpreter checks"
        return None

    return refuses


def has_triton_kernel(module: ModuleType) -> bool:
    """Whether a module holds a kernel of Triton's."""
    return any(type(value).__module__.startswith("triton.") for value in vars(module).values())


def _reached(module: ModuleType, function: Callable[..., Any]) -> Iterator[ModuleType]:
    """The modules in which a function's kernels may stand, Triton's and PyTorch's own left out.

    Its own, the one that it was imported through, and those from which these two have anything.
    """
    home = sys.modules.get(getattr(inspect.unwrap(function), "__module__", ""))
    own = [module, *([home] if home else [])]
    names = {each.__name__ for each in own}
    for value in (value for each in own for value in vars(each).values()):
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if isinstance(name, str):
            names.add(name)
    for name in sorted(names):
        if name.partition(".")[0] not in {"torch", "triton", "numpy"} and name in sys.modules:
            yield sys.modules[name]
