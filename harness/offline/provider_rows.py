"""`--provider` of `count` and `inspect`: the same evidence of a user's own kernel."""

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..core.cases import PrefillMatmul
from ..core.errors import UsageError

if TYPE_CHECKING:
    from ..bench.providers import Provider
    from ..core.gpu_limits import SmLimits
    from .own_kernel import OwnCase

OWN_DTYPES = ("bf16", "fp16", "fp32")

MOST_RESULTS = 2**22
"""Of a product: a program gives as many as its tile holds, and each takes the interpreter its time."""

Own = Mapping[str, "tuple[str, Provider]"]
"""Operation and provider of each function, by what it was called by."""


def provider_option(help_text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option, which may be repeated."""
    return click.option("--provider", "providers", multiple=True, metavar="MODULE:FUNCTION", help=help_text)


def apart_from_stdout() -> contextlib.AbstractContextManager[Any]:
    """What a user's code prints goes to stderr: what stands on stdout is the command's."""
    return contextlib.redirect_stdout(sys.stderr)


def countable(texts: Sequence[str], cases: Mapping[str, "OwnCase"]) -> Own:
    """The functions, and Triton made to interpret, before anything is counted.

    Raises:
        UsageError: no such function, or a case too large to interpret.
    """
    if not texts:
        return {}
    from ..bench.providers import use_interpreter

    use_interpreter()
    from .count_rows import MOST_OPERATIONS

    own = _resolved(texts)
    for operation in {operation for operation, _ in own.values()}:
        case = cases[operation]
        results = case.rows * case.out_features if isinstance(case, PrefillMatmul) else 0
        for what, amount, most in (
            ("operations", case.work().operations, MOST_OPERATIONS),
            ("results", results, MOST_RESULTS),
        ):
            if amount > most:
                option = "--rows" if results else "--context"
                raise UsageError(f"{option}: {amount:.3g} {what} are over {most:.3g}, too many to interpret")
    return own


def count_providers(own: Own, cases: Mapping[str, "OwnCase"], *, seed: int) -> list[dict[str, Any]]:
    """A counted row a function, each on the case of its operation."""
    if not own:
        return []
    from ..bench.providers import gate_of
    from .own_kernel import count_own

    def gate(case: Any, inputs: Any) -> Callable[[Any], str]:
        whole = gate_of(case, inputs, every=True)
        return lambda output: whole.judge(output).reason or ""

    with apart_from_stdout():
        return [
            count_own(text, provider.run, cases[operation], seed=seed, gate=gate)
            for text, (operation, provider) in own.items()
        ]


def compile_providers(texts: Sequence[str], gpus: Sequence["SmLimits"], dtype: str) -> list[dict[str, Any]]:
    """A compiled row a launch of each function, on each GPU; call it before anything imports Triton.

    Raises:
        UsageError: no such function, or a dtype that its inputs are never given in.
    """
    if not texts:
        return []
    if dtype not in ("all", *OWN_DTYPES):
        raise UsageError(f"--dtype: {dtype!r} does not go with --provider; all, {', '.join(OWN_DTYPES)} do")
    os.environ.pop("TRITON_INTERPRET", None)  # here kernels are compiled, however they run elsewhere
    from .own_kernel import compile_own

    dtypes = OWN_DTYPES if dtype == "all" else (dtype,)
    own = _resolved(texts)
    with apart_from_stdout():
        return [
            row.to_json()
            for text, (operation, provider) in own.items()
            for row in compile_own(text, provider.run, operation, gpus, dtypes)
        ]


def _resolved(texts: Sequence[str]) -> Own:
    from ..bench.own_provider import own_provider

    with apart_from_stdout():
        return {text: own_provider(text) for text in texts}
