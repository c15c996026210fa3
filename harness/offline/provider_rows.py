"""`--provider` of `count` and `inspect`: the same evidence of a user's own kernel."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..core import options
from ..core.cases import PrefillMatmul
from ..core.errors import UsageError

if TYPE_CHECKING:
    from ..core.gpu_limits import SmLimits
    from ..core.user_function import UserFunction
    from .own_kernel import OwnCase

OWN_DTYPES = ("bf16", "fp16", "fp32")

MOST_RESULTS = 2**22
"""Of a product: a program gives as many as its tile holds, and each takes the interpreter its time."""


def countable(texts: Sequence[str], cases: Mapping[str, "OwnCase"]) -> "dict[str, UserFunction]":
    """The functions, and Triton made to interpret, before anything is counted.

    Raises:
        UsageError: no such function, or a case too large to interpret.
    """
    if not texts:
        return {}
    from ...kernels import use_interpreter

    use_interpreter()
    from .count_rows import MOST_OPERATIONS

    own = _loaded(texts)
    for operation in {function.operation for function in own.values()}:
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


def count_providers(
    own: "Mapping[str, UserFunction]", cases: Mapping[str, "OwnCase"], *, seed: int
) -> list[dict[str, Any]]:
    """A counted row a function, each on the case of its operation."""
    if not own:
        return []
    from ...kernels import reference
    from ..core.gate import gate_of
    from .own_kernel import count_own

    def gate(case: Any, inputs: Any) -> Callable[[Any], str]:
        whole = gate_of(case, inputs, reference, all_columns=True)
        return lambda output: whole.judge(output).reason or ""

    with options.stdout_to_stderr():
        return [
            count_own(name, function, cases[function.operation], seed=seed, gate=gate)
            for name, function in own.items()
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
    own = _loaded(texts)
    with options.stdout_to_stderr():
        return [
            row.to_json()
            for name, function in own.items()
            for row in compile_own(name, function, function.operation, gpus, dtypes)
        ]


def _loaded(names: Sequence[str]) -> "dict[str, UserFunction]":
    from ..core.user_function import load_user_functions

    with options.stdout_to_stderr():
        return load_user_functions(names)
