"""The Triton kernels without a GPU: run in Triton's interpreter on small twins of a run's cases."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import torch

from ..core.cases import Case, DecodeAttention, PrefillMatmul
from ..core.errors import one_line
from ..core.inputs import Source, draw
from ..core.language_model import LanguageModel
from ..core.records import InterpreterCheck
from ..core.work import ELEMENT_BYTES
from .providers import PROVIDERS, Provider, gate_of

NO_MORE: Mapping[str, Sequence[Provider]] = MappingProxyType({})


def twins_of(model: LanguageModel, dtype: str) -> tuple[Case, ...]:
    """Cases with the model's group and head dimension and the run's dtype, small and ragged.

    A product of few rows, which takes the split-K path, and one of more rows than a tile; an attention over
    contexts that are empty, single, in the middle of a tile, and long enough for several splits in any dtype.
    """
    kv_heads = min(2, model.kv_heads)
    element_bytes = ELEMENT_BYTES[dtype]
    # Nine tiles of the kernel, which takes at most 32 KiB of keys and values a tile, and 128 tokens.
    several_splits = 9 * min(128, 32 * 1024 // (2 * model.head_dim * element_bytes)) - 50
    return (
        PrefillMatmul(phase="decode", part="twin", rows=3, in_features=1000, out_features=130, dtype=dtype),
        PrefillMatmul(phase="prefill", part="twin", rows=130, in_features=72, out_features=150, dtype=dtype),
        DecodeAttention(
            contexts=(0, 1, 70, several_splits),
            q_heads=kv_heads * model.group,
            kv_heads=kv_heads,
            head_dim=model.head_dim,
            dtype=dtype,
        ),
    )


def check_twins(
    model: LanguageModel, dtype: str, *, seed: int, more: Mapping[str, Sequence[Provider]] = NO_MORE
) -> Iterator[InterpreterCheck]:
    """Hold each Triton kernel against its oracle, on the CPU. Triton must run interpreted in this process.

    `more` holds providers of the user's own by operation; those are checked too.
    """
    source = Source(torch.device("cpu"), seed)
    for case in twins_of(model, dtype):
        # What stands for the best of several is one of them.
        ours = [p for p in PROVIDERS[case.operation] if p.name.startswith("triton") and not p.best_of]
        for provider in (*ours, *more.get(case.operation, ())):
            inputs = draw(case, source)
            try:
                gate = gate_of(case, inputs, all_columns=True)
                verdict = gate.judge(provider.run(inputs))
            except Exception as error:  # noqa: BLE001  (a kernel may raise anything; the run goes on)
                yield InterpreterCheck(
                    case=case,
                    provider=provider.name,
                    status="failed",
                    reason=one_line(error),
                    relative_error=None,
                    tolerance=None,
                )
                continue
            yield InterpreterCheck(
                case=case,
                provider=provider.name,
                status="ok" if verdict.passed else "failed",
                reason=verdict.reason,
                relative_error=verdict.relative_error,
                tolerance=verdict.tolerance,
            )
