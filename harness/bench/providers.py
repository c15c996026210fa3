"""Who runs a case, and what its result is held against; of measuring, this module alone names the kernels."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ... import kernels
from ...kernels import (
    DecodeTiling,
    GpuLimits,
    MatmulTiling,
    gpu_limits,
    interpreting,
    reference,
    use_interpreter,
)
from ...kernels.matmul_tiling import DESCRIPTORS_FROM, VARIANTS, Variant, matmul_tilings
from ..core import gate
from ..core.cases import Case, DecodeAttention, DecoderLayer, PrefillMatmul
from ..core.gate import Gate
from ..core.inputs import DecodeAttentionInputs, DecoderLayerInputs, Inputs, MatmulInputs
from ..core.user_function import UserFunction, load_user_functions
from ..core.work import ELEMENT_BYTES
from . import decoder_layer, library_providers, torch_forms
from .device import Device
from .tilings import (
    Key,
    decode_attention_candidates,
    decode_attention_key,
    prefill_matmul_candidates,
    prefill_matmul_key,
)

__all__ = [
    "PROVIDERS",
    "DecodeTiling",
    "GpuLimits",
    "MatmulTiling",
    "Provider",
    "Tunable",
    "gate_of",
    "gpu_limits",
    "interpreting",
    "tunable_provider",
    "use_interpreter",
    "user_providers",
]


@dataclass(frozen=True, kw_only=True)
class Tunable:
    """What is known of a kernel that can be cut in several ways; tilings are frozen dataclasses of numbers.

    Attributes:
        key: the facts of a case that the choice of its tiling may depend on.
        default: the tiling that the kernel itself chooses for a case on a GPU.
        candidates: tilings to try, of a case, its default and the GPU; the default first.
        run: computes the output of a copy of the inputs, cut by a tiling.
    """

    key: Callable[[Any], Key]
    default: Callable[[Any, GpuLimits], Any]
    candidates: Callable[[Any, Any, GpuLimits], Sequence[Any]]
    run: Callable[[Any, Any], Tensor]


@dataclass(frozen=True, kw_only=True)
class Provider:
    """One way to run an operation.

    Attributes:
        name: as rows tell it.
        run: computes the output of a copy of the inputs.
        refuses: why it does not run a case on a device, or None.
        tunable: how its tiling is found, where it takes one.
        tiling: by which it is cut; None where it chooses that itself.
        variant: of several forms of one kernel, the one that it runs.
        best_of: the providers of those forms, the fastest of which that passed the gate it stands for.
        bind: plans once, for a copy of the inputs, what does not depend on their numbers; gives the call that
            then is timed in place of `run`.
    """

    name: str
    run: Callable[[Any], Tensor]
    refuses: Callable[[Case, Device], str | None] = lambda case, device: None  # noqa: ARG005  (refuse none)
    tunable: Tunable | None = None
    tiling: Mapping[str, int | str | None] | None = None
    variant: str | None = None
    best_of: tuple[str, ...] = ()
    bind: Callable[[Any], Callable[[], Tensor]] | None = None

    def cut_by(self, tiling: Any) -> "Provider":
        """This provider with a tiling in place of its own choice; itself where there is or it takes none."""
        tunable = self.tunable
        if tunable is None or tiling is None:
            return self
        return dataclasses.replace(
            self,
            run=lambda inputs: tunable.run(inputs, tiling),
            tiling=dataclasses.asdict(tiling),
            variant=getattr(tiling, "variant", None),
        )


def _matmul_triton(inputs: MatmulInputs) -> Tensor:
    return kernels.prefill_matmul(inputs.x, inputs.weight, out=inputs.out)


def _matmul_cut(inputs: MatmulInputs, tiling: MatmulTiling) -> Tensor:
    return kernels.prefill_matmul(inputs.x, inputs.weight, out=inputs.out, tiling=tiling)


def _matmul_options(x: Tensor, weight: Tensor, limits: GpuLimits) -> dict[str, Any]:
    """What choosers of tilings are told of contiguous operands."""
    out_features, in_features = weight.shape
    return _product_options(len(x), out_features, in_features, x.element_size(), limits)


def _product_options(
    rows: int, out_features: int, in_features: int, element_bytes: int, limits: GpuLimits
) -> dict[str, Any]:
    by_descriptors = in_features * element_bytes % 16 == 0
    return {
        "rows": rows,
        "out_features": out_features,
        "in_features": in_features,
        "element_bytes": element_bytes,
        "aligned": in_features % 16 == 0,
        "descriptors": by_descriptors and limits.compute_capability >= DESCRIPTORS_FROM,
        "limits": limits,
    }


def _of_case(case: PrefillMatmul, limits: GpuLimits) -> dict[str, Any]:
    size = ELEMENT_BYTES[case.dtype]
    return _product_options(case.rows, case.out_features, case.in_features, size, limits)


def _matmul_default(case: PrefillMatmul, limits: GpuLimits) -> MatmulTiling:
    return kernels.choose_matmul_tiling(**_of_case(case, limits))


def _matmul_candidates(
    case: PrefillMatmul, default: MatmulTiling, limits: GpuLimits
) -> Sequence[MatmulTiling]:
    options = _of_case(case, limits)
    allowed = [
        variant
        for variant in VARIANTS
        if variant == "pointers"
        or (options["descriptors"] and (variant == "descriptors" or _specialises(limits.compute_capability)))
    ]
    sets = [tiling for variant in allowed for tiling in matmul_tilings(**options, variant=variant)]
    return prefill_matmul_candidates(case, default, limits, sets)


def _specialises(compute_capability: int) -> bool:
    """Whether the compiler specialises the warps of a product for this GPU."""
    return compute_capability // 10 == 10


def _matmul_variant(variant: Variant) -> Provider:
    """One form of the kernel, by the tiling that is chosen for that form."""

    def run(inputs: MatmulInputs) -> Tensor:
        options = _matmul_options(inputs.x, inputs.weight, gpu_limits(inputs.x.device))
        return _matmul_cut(inputs, kernels.choose_matmul_tiling(**options, variant=variant))

    def refuses(case: Case, device: Device) -> str | None:
        reason = _needs_compiled_triton(case, device)
        if reason is not None or variant == "pointers":
            return reason
        capability = float(getattr(device, "compute_capability", 0))
        if capability < DESCRIPTORS_FROM / 10:
            return "tensor descriptors need compute capability 9.0 or newer"
        if variant == "warp_specialized" and not _specialises(round(10 * capability)):
            return "warps are specialised on compute capability 10 alone"
        if isinstance(case, PrefillMatmul) and case.in_features * ELEMENT_BYTES[case.dtype] % 16:
            return f"descriptors need rows of a multiple of 16 bytes, not {case.in_features} elements"
        return None

    return Provider(name=f"triton-{variant.replace('_', '-')}", run=run, refuses=refuses, variant=variant)


def _decode_triton(inputs: DecodeAttentionInputs) -> Tensor:
    kernels.decode_attention(inputs.q, inputs.k_cache, inputs.v_cache, inputs.context_lens, out=inputs.out)
    return inputs.out


def _decode_cut(inputs: DecodeAttentionInputs, tiling: DecodeTiling) -> Tensor:
    kernels.decode_attention(
        inputs.q, inputs.k_cache, inputs.v_cache, inputs.context_lens, out=inputs.out, tiling=tiling
    )
    return inputs.out


def _decode_default(case: DecodeAttention, limits: GpuLimits) -> DecodeTiling:
    return kernels.choose_decode_tiling(
        batch=case.batch,
        q_heads=case.q_heads,
        kv_heads=case.kv_heads,
        head_dim=case.head_dim,
        capacity=case.capacity,
        page_size=0,
        element_bytes=ELEMENT_BYTES[case.dtype],
        limits=limits,
    )


def _needs_compiled_triton(_case: Case, device: Device) -> str | None:
    if device.kind != "cuda":
        return "compiled Triton kernels need a CUDA GPU; see the interpreter checks"
    if interpreting():
        return "TRITON_INTERPRET is set: the interpreter is not timed"
    if float(getattr(device, "compute_capability", 0)) < 8:
        return "Triton kernels need compute capability 8.0 or newer"
    return None


def _library(
    library: str,
    bind: Callable[[DecodeAttentionInputs], Callable[[], Tensor]],
    *,
    name: str | None = None,
    ragged: bool = True,
) -> Provider:
    return Provider(
        name=name or library.replace("_", "-"),
        run=lambda inputs: bind(inputs)(),
        refuses=library_providers.refuses_without(library, ragged=ragged),
        bind=bind,
    )


PROVIDERS: Mapping[str, Sequence[Provider]] = {
    "prefill_matmul": (
        Provider(name="torch", run=torch_forms.matmul),
        Provider(
            name="torch-weight-first",
            run=torch_forms.matmul_weight_first,
            refuses=torch_forms.few_rows_on_cpu,
        ),
        Provider(name="torch-batched", run=torch_forms.matmul_batched, refuses=torch_forms.batched_on_cpu),
        *(_matmul_variant(variant) for variant in VARIANTS),
        Provider(
            name="triton",
            run=_matmul_triton,
            refuses=_needs_compiled_triton,
            tunable=Tunable(
                key=prefill_matmul_key,
                default=_matmul_default,
                candidates=_matmul_candidates,
                run=_matmul_cut,
            ),
            best_of=tuple(f"triton-{variant.replace('_', '-')}" for variant in VARIANTS),
        ),
    ),
    "decode_attention": (
        Provider(name="torch", run=torch_forms.decode_attention, refuses=torch_forms.ragged),
        Provider(
            name="torch-matmul",
            run=torch_forms.decode_attention_by_matmul,
            refuses=torch_forms.ragged_or_not_cpu,
        ),
        Provider(
            name="torch-key-first",
            run=torch_forms.decode_attention_key_first,
            refuses=torch_forms.ragged_or_not_cpu,
        ),
        Provider(
            name="triton",
            run=_decode_triton,
            refuses=_needs_compiled_triton,
            tunable=Tunable(
                key=decode_attention_key,
                default=_decode_default,
                candidates=decode_attention_candidates,
                run=_decode_cut,
            ),
        ),
        _library("flashinfer", library_providers.flashinfer),
        _library("flash_attn", library_providers.flash_attn),
        _library("torch", library_providers.flex_attention, name="torch-flex", ragged=False),
    ),
    "prefill_attention": (Provider(name="torch", run=torch_forms.prefill_attention),),
    "decoder_layer": (Provider(name="torch", run=decoder_layer.decoder_layer),),
}


def user_providers(names: Sequence[str]) -> dict[str, list[Provider]]:
    """Providers of the user's own functions, by operation.

    Raises:
        UsageError: see `load_user_functions`.
    """
    found: dict[str, list[Provider]] = {}
    for function in load_user_functions(names).values():
        provider = Provider(name=function.name, run=function, refuses=_refuses_interpreted(function))
        found.setdefault(function.operation, []).append(provider)
    return found


def _refuses_interpreted(function: UserFunction) -> Callable[[Case, Device], str | None]:
    """A function that launches Triton kernels is never timed in the interpreter, only checked."""

    def refuses(_case: Case, _device: Device) -> str | None:
        if interpreting() and function.uses_triton:
            return "the interpreter is not timed; see the interpreter checks"
        return None

    return refuses


def tunable_provider(operation: str) -> tuple[Provider, Tunable] | None:
    """The provider of an operation that takes a tiling, and what is known of it; None where none does."""
    found = ((p, p.tunable) for p in PROVIDERS[operation] if p.tunable is not None)
    return next(found, None)


def gate_of(case: Case, inputs: Inputs, *, all_columns: bool = False) -> Gate:
    """The gate of any case on these inputs, its oracle computed in float64 (see `core.gate.gate_of`)."""
    if isinstance(case, DecoderLayer) and isinstance(inputs, DecoderLayerInputs):
        return decoder_layer.gate_of(case, inputs)
    return gate.gate_of(case, inputs, reference, all_columns=all_columns)
