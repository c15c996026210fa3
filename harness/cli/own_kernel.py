"""`--provider` of `count` and `inspect`: the same evidence of a user's own kernel."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..accounting.errors import UsageError

if TYPE_CHECKING:
    from ..accounting.gpu_limits import SmLimits
    from ..inspecting.compiled_rows import CompiledRow
    from ..inspecting.own_kernel import OwnCase

OWN_DTYPES = ("bf16", "fp16", "fp32")


def provider_option(help_text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option, which may be repeated."""
    return click.option("--provider", "providers", multiple=True, metavar="MODULE:FUNCTION", help=help_text)


def count_providers(
    texts: Sequence[str], cases: Mapping[str, "OwnCase"], *, seed: int
) -> Iterator[dict[str, Any]]:
    """A counted row a function, each on the case of its operation.

    Raises:
        UsageError: no such function, a case too large to interpret, or one that launches no Triton kernel.
        TrafficError: a kernel touched memory as it must not.
    """
    if not texts:
        return
    from ..measuring.providers import gate_of, use_interpreter

    use_interpreter()
    from ..inspecting.count_rows import MOST_OPERATIONS
    from ..inspecting.own_kernel import count_own
    from ..measuring.own_provider import own_provider

    def check(case: Any, inputs: Any, output: Any) -> str:
        return gate_of(case, inputs).judge(output).reason or ""

    for text in dict.fromkeys(texts):
        operation, provider = own_provider(text)
        case = cases[operation]
        operations = case.work().operations
        if operations > MOST_OPERATIONS:
            option = "--rows" if operation == "prefill_matmul" else "--context"
            raise UsageError(
                f"{option}: {operations:.3g} operations are over {MOST_OPERATIONS:.3g}, too many to interpret"
            )
        yield count_own(text, provider.run, case, seed=seed, check=check)


def compile_providers(
    texts: Sequence[str], gpus: Sequence["SmLimits"], dtype: str
) -> Iterator["CompiledRow"]:
    """A compiled row a launch of each function, on each GPU; call it before anything imports Triton.

    Raises:
        UsageError: no such function, or a dtype that its inputs are never given in.
    """
    if not texts:
        return
    if dtype not in ("all", *OWN_DTYPES):
        raise UsageError(f"--dtype: {dtype!r} does not go with --provider; all, {', '.join(OWN_DTYPES)} do")
    os.environ.pop("TRITON_INTERPRET", None)  # here kernels are compiled, however they run elsewhere
    from ..inspecting.own_kernel import compile_own
    from ..measuring.own_provider import own_provider

    for text in dict.fromkeys(texts):
        operation, provider = own_provider(text)
        yield from compile_own(
            text, provider.run, operation, gpus, OWN_DTYPES if dtype == "all" else (dtype,)
        )
