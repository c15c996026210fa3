"""A provider of the user's own: any function that takes an operation's inputs."""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from ..accounting.cases import Case
from ..accounting.errors import UsageError
from .device import Device
from .inputs import DecodeAttentionInputs, MatmulInputs
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
        name=text, run=_caller(function, operation, takes_out=takes_out), refuses=_refusal(module)
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
    except Exception as error:  # the module is the user's and may raise anything
        problem = " ".join(str(error).split())[:200]
        raise UsageError(
            f"--provider: {name!r} cannot be imported ({type(error).__name__}: {problem})"
        ) from error


def _operation(text: str, function: Callable[..., Any]) -> tuple[str, bool]:
    """The operation, and whether the function takes the output."""
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
        result = function(*(getattr(inputs, name) for name in SIGNATURES[operation]), **options)
        result = inputs.out if result is None and takes_out else result
        if not isinstance(result, Tensor) or result.shape != inputs.out.shape:
            found = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise TypeError(f"gave {found}, not a tensor of shape {tuple(inputs.out.shape)}")
        return result

    return run


def _refusal(module: ModuleType) -> Callable[[Case, Device], str | None]:
    """Triton kernels of the module are never timed while Triton interprets: they are checked on twins."""

    def refuses(_case: Case, _device: Device) -> str | None:
        if interpreting() and has_triton_kernel(module):
            return "the interpreter is not timed; see the interpreter checks"
        return None

    return refuses


def has_triton_kernel(module: ModuleType) -> bool:
    """Whether a module holds a kernel of Triton's."""
    return any(type(value).__module__.startswith("triton.") for value in vars(module).values())
