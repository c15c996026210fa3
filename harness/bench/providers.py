"""The providers of each operation: PyTorch, our Triton kernels, libraries and the user's own functions."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ... import kernels
from ...kernels import MatmulProblem, gpu_limits, interpreting, reference
from ...kernels.matmul_tiling import TMA_FROM_CAPABILITY, VARIANTS, Variant
from ..core import gate
from ..core.cases import (
    MAX_PREFILL_HEAD_DIM,
    Case,
    DecodeAttention,
    DecoderLayer,
    PrefillAttention,
    PrefillMatmul,
    attention_options,
)
from ..core.gate import Gate
from ..core.inputs import CacheLayout, DecoderLayerInputs, Inputs, MatmulInputs
from ..core.user_function import UserFunction, load_user_functions
from ..core.work import ELEMENT_BYTES
from . import cpu_attention, decoder_layer, library_providers, torch_providers, unfused_attention
from .device import Device
from .launcher import launcher_problem
from .tilings import (
    TUNABLE,
    Tunable,
    run_decode_attention,
    run_matmul,
    run_prefill_attention,
    warp_specializes,
)

Refuses = Callable[[Case, Device], str | None]
"""Why a provider does not run a case on a device, or None."""


@dataclass(frozen=True, kw_only=True)
class Provider:
    """One way to run an operation.

    Attributes:
        name: its name in rows.
        run: computes the output of one copy of the inputs.
        refuses: gives the reason why it does not run a case on a device, or None.
        tunable: how its tilings are searched; None if it takes no tiling.
        tiling: the tiling it runs with; None if it chooses one itself.
        variant: the kernel variant it runs; None for a kernel without variants.
        best_of: variants this alias stands for; it resolves to the fastest correct one.
        bind: plans once for a copy of the inputs, without reading their values; the call that it returns is
            timed in place of `run`. None if there is nothing to plan.
        layout: the order of the KV cache that it reads.
    """

    name: str
    run: Callable[[Any], Tensor]
    refuses: Refuses = lambda case, device: None  # noqa: ARG005
    tunable: Tunable | None = None
    tiling: Mapping[str, int | str | None] | None = None
    variant: str | None = None
    best_of: tuple[str, ...] = ()
    bind: Callable[[Any], Callable[[], Tensor]] | None = None
    layout: CacheLayout = "heads-first"

    def with_tiling(self, tiling: Any) -> "Provider":
        """This provider with a tiling in place of its own choice; unchanged if `tiling` is None."""
        tunable = self.tunable
        if tunable is None or tiling is None:
            return self
        return dataclasses.replace(
            self,
            run=lambda inputs: tunable.run(inputs, tiling),
            tiling=dataclasses.asdict(tiling),
            variant=getattr(tiling, "variant", None),
        )


def taking(*options: str, refuses: Refuses = lambda case, device: None) -> Refuses:  # noqa: ARG005
    """A refusal of attention with options (see `attention_options`) other than these, and of a batch."""

    def refuses_options(case: Case, device: Device) -> str | None:
        if isinstance(case, PrefillMatmul) and case.batch > 1:
            return "does not take a batch of products"
        missing = [option for option in attention_options(case) if option not in options]
        return f"does not take {', '.join(missing)}" if missing else refuses(case, device)

    return refuses_options


def _needs_compiled_triton(_case: Case, device: Device) -> str | None:
    if device.kind != "cuda":
        return "compiled Triton kernels need a CUDA GPU; see the interpreter checks"
    if interpreting():
        return "TRITON_INTERPRET is set: the interpreter is not timed"
    if float(getattr(device, "compute_capability", 0)) < 8:
        return "Triton kernels need compute capability 8.0 or newer"
    return launcher_problem()


def _prefill_attention_in_triton(case: Case, device: Device) -> str | None:
    if isinstance(case, PrefillAttention) and max(case.head_dim, case.value_dim) > MAX_PREFILL_HEAD_DIM:
        return f"takes a head_dim up to {MAX_PREFILL_HEAD_DIM}"
    return _needs_compiled_triton(case, device)


def _decode_attention_in_triton(case: Case, device: Device) -> str | None:
    reason = _needs_compiled_triton(case, device)
    if reason is not None or not isinstance(case, DecodeAttention):
        return reason
    try:
        TUNABLE["decode_attention"].default(case, gpu_limits(device.torch_device))
    except ValueError as error:
        return str(error)
    return None


def _matmul_variant(variant: Variant) -> Provider:
    """One variant of the matmul kernel, with the tiling that the kernel chooses for that variant."""

    def run(inputs: MatmulInputs) -> Tensor:
        (*batch, rows, in_features), size = inputs.x.shape, inputs.x.element_size()
        problem = MatmulProblem.contiguous(
            rows=rows,
            out_features=inputs.weight.shape[-2],
            in_features=in_features,
            x_bytes=size,
            weight_bytes=size,
            batch=math.prod(batch),
        )
        tiling = kernels.choose_matmul_tiling(problem, gpu_limits(inputs.x.device), variant)
        return run_matmul(inputs, tiling)

    def refuses(case: Case, device: Device) -> str | None:
        reason = _needs_compiled_triton(case, device)
        if reason is not None or variant == "pointers":
            return reason
        capability = float(getattr(device, "compute_capability", 0))
        if capability < TMA_FROM_CAPABILITY / 10:
            return "tensor descriptors need compute capability 9.0 or newer"
        if variant == "warp_specialized" and not warp_specializes(round(10 * capability)):
            return "warps are specialised on compute capability 10 alone"
        if isinstance(case, PrefillMatmul) and case.batch > 1:
            return "descriptors take no batch of products"
        if isinstance(case, PrefillMatmul) and case.in_features * ELEMENT_BYTES[case.dtype] % 16:
            return f"descriptors need rows of a multiple of 16 bytes, not {case.in_features} elements"
        return None

    return Provider(name=f"triton-{variant.replace('_', '-')}", run=run, refuses=refuses, variant=variant)


def _library(
    library: str,
    bind: Callable[[Any], Callable[[], Tensor]],
    *,
    takes: Sequence[str],
    name: str | None = None,
    ragged: bool = True,
) -> Provider:
    return Provider(
        name=name or library.replace("_", "-"),
        run=lambda inputs: bind(inputs)(),
        refuses=taking(*takes, refuses=library_providers.refuses_without(library, ragged=ragged)),
        bind=bind,
    )


def _key_pages(name: str, bind: Callable[[Any], Callable[[], Tensor]]) -> Provider:
    return Provider(
        name=name,
        run=lambda inputs: bind(inputs)(),
        refuses=taking(refuses=torch_providers.pages_on_cpu),
        bind=bind,
        layout="k-pages",
    )


PROVIDERS: Mapping[str, Sequence[Provider]] = {
    "prefill_matmul": (
        Provider(name="torch", run=torch_providers.matmul),
        Provider(
            name="torch-weight-first",
            run=torch_providers.matmul_weight_first,
            refuses=torch_providers.few_rows_on_cpu,
        ),
        Provider(
            name="torch-batched", run=torch_providers.matmul_batched, refuses=torch_providers.batched_on_cpu
        ),
        *(_matmul_variant(variant) for variant in VARIANTS),
        Provider(
            name="triton",
            run=run_matmul,
            refuses=_needs_compiled_triton,
            tunable=TUNABLE["prefill_matmul"],
            best_of=tuple(f"triton-{variant.replace('_', '-')}" for variant in VARIANTS),
        ),
    ),
    "decode_attention": (
        Provider(
            name="torch",
            run=torch_providers.decode_attention,
            refuses=taking(*torch_providers.UNFUSED, refuses=torch_providers.ragged),
        ),
        Provider(
            name="torch-matmul",
            run=unfused_attention.decode,
            refuses=taking(*torch_providers.UNFUSED, refuses=torch_providers.fused_alone),
        ),
        Provider(
            name="torch-v-transposed",
            run=unfused_attention.decode,
            refuses=taking(
                "a sliding window",
                "a softcap",
                "attention sinks",
                "values of another size than keys",
                refuses=torch_providers.ragged_or_not_cpu,
            ),
            layout="v-transposed",
        ),
        _key_pages("torch-k-pages", cpu_attention.key_pages),
        _key_pages("torch-k-pages-v-rows", cpu_attention.key_pages_value_rows),
        Provider(
            name="triton",
            run=run_decode_attention,
            refuses=taking(*torch_providers.UNFUSED, refuses=_decode_attention_in_triton),
            tunable=TUNABLE["decode_attention"],
        ),
        _library("flashinfer", library_providers.flashinfer, takes=("a sliding window", "a softcap")),
        _library("flash_attn", library_providers.flash_attn, takes=("a sliding window", "a softcap")),
        _library(
            "torch",
            library_providers.flex_attention,
            takes=("a sliding window",),
            name="torch-flex",
            ragged=False,
        ),
    ),
    "prefill_attention": (
        Provider(name="torch", run=torch_providers.prefill_attention),
        Provider(
            name="triton",
            run=run_prefill_attention,
            refuses=_prefill_attention_in_triton,
            tunable=TUNABLE["prefill_attention"],
        ),
        _library("flash_attn", library_providers.prefill_flash_attn, takes=("a sliding window", "a softcap")),
        _library(
            "torch", library_providers.prefill_flex_attention, takes=("a sliding window",), name="torch-flex"
        ),
    ),
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


def _refuses_interpreted(function: UserFunction) -> Refuses:
    """A refusal in the interpreter: a function that launches Triton kernels is checked there, not timed."""

    def refuses(_case: Case, _device: Device) -> str | None:
        if interpreting() and function.uses_triton:
            return "the interpreter is not timed; see the interpreter checks"
        return None

    return taking(refuses=refuses)


def tunable_provider(operation: str) -> tuple[Provider, Tunable]:
    """The provider of an operation that takes a tiling, and how its tilings are searched.

    Raises:
        ValueError: no provider of this operation takes a tiling.
    """
    for provider in PROVIDERS[operation]:
        if provider.tunable is not None:
            return provider, provider.tunable
    raise ValueError(f"operation: {operation!r} has no tiling; {', '.join(TUNABLE)} have")


def gate_of(case: Case, inputs: Inputs, *, all_columns: bool = False) -> Gate:
    """The gate of any case on these inputs, its oracle computed in float64 (see `core.gate.gate_of`)."""
    if isinstance(case, DecoderLayer) and isinstance(inputs, DecoderLayerInputs):
        return decoder_layer.gate_of(case, inputs)
    return gate.gate_of(case, inputs, reference, all_columns=all_columns)
