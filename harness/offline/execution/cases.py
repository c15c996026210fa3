"""All cases that `execute` runs, of every kernel."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import msgspec

from ...core.cases import DecodeAttention, PrefillAttention, PrefillMatmul
from .decode_cases import DECODE, MERGE, MORE_DECODE, MORE_MERGE, DecodeCase, MergeCase
from .matmul_cases import MATMUL, MORE_MATMUL, MORE_TMA, TMA, MatmulCase
from .prefill_cases import MORE_PREFILL, PREFILL, PrefillCase

KERNELS = (DecodeCase.kernel, PrefillCase.kernel, MatmulCase.kernel, MergeCase.kernel)


@dataclass(frozen=True, kw_only=True)
class UserCase:
    """One call of a user's own function.

    Attributes:
        kernel: MODULE:FUNCTION.
        sizes: the operation that it computes, and its sizes.
        sm_count: SMs that tilings are chosen for, if it calls host functions of this package.
    """

    kernel: str
    sizes: PrefillMatmul | DecodeAttention | PrefillAttention
    sm_count: int = 3

    @property
    def name(self) -> str:
        """The id of the operation without its dtype."""
        return self.sizes.id.rpartition("/")[0]

    @property
    def dtype(self) -> str:
        """Dtype of the operands."""
        return self.sizes.dtype


KernelCase = DecodeCase | PrefillCase | MatmulCase | MergeCase
Case = KernelCase | UserCase
_CLASSES: dict[str, Any] = {
    each.__name__: each for each in (DecodeCase, PrefillCase, MatmulCase, MergeCase, UserCase)
}


def default_cases() -> tuple[KernelCase, ...]:
    """Each form of the kernels once."""
    return (*DECODE, *PREFILL, *MATMUL, *TMA, *MERGE)


def full_cases() -> tuple[KernelCase, ...]:
    """The default cases, and more lengths, sizes, layouts, dtypes and tilings."""
    return (
        *DECODE,
        *MORE_DECODE,
        *PREFILL,
        *MORE_PREFILL,
        *MATMUL,
        *MORE_MATMUL,
        *TMA,
        *MORE_TMA,
        *MERGE,
        *MORE_MERGE,
    )


def sized_case(
    sizes: DecodeAttention | PrefillAttention | PrefillMatmul, dtype: str
) -> DecodeCase | PrefillCase | MatmulCase:
    """A call of this package's kernel with sizes of the user's own, in one dtype."""
    name = sizes.id.rpartition("/")[0]
    scale: Literal["one"] | None = "one" if dtype == "int8" else None
    if isinstance(sizes, PrefillMatmul):
        shape = (sizes.rows, sizes.out_features, sizes.in_features)
        return MatmulCase(name, shape, dtype=dtype, weight_scale=scale)
    if isinstance(sizes, PrefillAttention):
        return PrefillCase(
            name,
            dtype=dtype,
            lengths=(sizes.prompt,) * sizes.sequences,
            heads_first=True,
            kv_heads=sizes.kv_heads,
            group=sizes.q_heads // sizes.kv_heads,
            head_dim=sizes.head_dim,
        )
    return DecodeCase(
        name,
        dtype=dtype,
        lengths=sizes.contexts,
        kv_heads=sizes.kv_heads,
        group=sizes.q_heads // sizes.kv_heads,
        head_dim=sizes.head_dim,
        v_head_dim=sizes.v_head_dim,
        latent=sizes.latent,
        k_scale=scale,
        v_scale=scale,
    )


def user_sizes(operation: str) -> tuple[DecodeAttention | PrefillAttention | PrefillMatmul, ...]:
    """The sizes that a user's function is executed with where none are given, in bf16.

    As in language models, in_features and out_features are multiples of 64; the number of rows is any.
    """
    if operation == "decode_attention":
        return (DecodeAttention(contexts=(300, 131, 1), q_heads=8, kv_heads=2, head_dim=128, dtype="bf16"),)
    if operation == "prefill_attention":
        return tuple(
            PrefillAttention(sequences=2, prompt=prompt, q_heads=2, kv_heads=1, head_dim=64, dtype="bf16")
            for prompt in (150, 1)
        )
    return tuple(
        PrefillMatmul(
            phase="prefill", part="product", rows=rows, in_features=320, out_features=192, dtype="bf16"
        )
        for rows in (130, 16, 1)
    )


def skip_reason(case: Case, sm: int) -> str | None:
    """Why GPUs of a compute capability do not run it; None where they do."""
    return case.skip_reason(sm) if isinstance(case, MatmulCase) else None


def to_json(case: Case) -> dict[str, Any]:
    """The case as an object that JSON can hold."""
    sizes = {"sizes": msgspec.to_builtins(case.sizes)} if isinstance(case, UserCase) else {}
    return {"class": type(case).__name__, **asdict(case), **sizes}


def from_json(written: dict[str, Any]) -> Case:
    """The case that `to_json` wrote."""
    fields = {name: value for name, value in written.items() if name != "class"}
    case: Case = msgspec.convert(fields, _CLASSES[written["class"]])
    return case
