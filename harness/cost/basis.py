"""What the modelled time of a decode step rests on: kernels that were measured, and the error to expect."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ..core.gpus import Gpu
from ..core.language_model import LanguageModel
from .all_reduce_time import DIRECT, HOW, RING
from .attention_parts import Attention
from .communication import transfer_s
from .deployment import Deployment
from .forward import Forward, Part, decode_forward
from .kernel_constants import constants_for, expected_errors
from .kernel_time import multiplied_in
from .layer_constants import basis_of
from .moe_time import variant_of
from .part_time import cache_dtype, expert_dtype, part_split_s, product_dtype
from .parts import Elementwise, Matmul, RoutedExperts

SMALL_SHARE = 0.1
"""Share of a step up to which kernels of unknown error leave the error of the others as that of the step."""


@dataclass(frozen=True, kw_only=True)
class KernelBasis:
    """The measurements behind one kernel of a forward.

    Attributes:
        kernel: "gemm", "decode_attention", "mla_decode", "moe", "all_reduce", or the name of a kernel that
            was measured nowhere.
        variant: dtype of the product or of the cache, with the format of narrower weights; how GPUs reduce.
        gpu: the GPU that was measured; empty where none was.
        measured: whether that is the GPU itself, in this variant.
        median_error: relative error to expect at the median; None if unknown.
        p90_error: the 90th percentile of that error; None if unknown.
    """

    kernel: str
    variant: str
    gpu: str
    measured: bool
    median_error: float | None
    p90_error: float | None


@dataclass(frozen=True, kw_only=True)
class StepBasis:
    """The kernels of a step, and the error to expect of their sum.

    Attributes:
        kernels: each kernel once, with its share of the time of all.
    """

    kernels: tuple[tuple[KernelBasis, float], ...]

    @property
    def measured(self) -> bool:
        """Whether every kernel was measured on the GPU in its format."""
        return all(each.measured for each, _ in self.kernels)

    @property
    def expected_error(self) -> float | None:
        """Mean of the kernels' median errors by their time; None where too much of it is of unknown error."""
        known = [(each.median_error, share) for each, share in self.kernels if each.median_error is not None]
        covered = math.fsum(share for _, share in known)
        if covered < 1 - SMALL_SHARE:
            return None
        return math.fsum(error * share for error, share in known) / covered

    def to_json(self) -> dict[str, Any]:
        """The fields by their names."""
        return {
            "measured": self.measured,
            "expected_error": self.expected_error,
            "kernels": [{**asdict(each), "share_of_time": share} for each, share in self.kernels],
        }


def decode_basis(model: LanguageModel, on: Deployment, *, batch: int, context: int) -> StepBasis:
    """The basis of a decode step's kernels; elementwise kernels, which fuse with others, do not count.

    Args:
        model: the model.
        on: its deployment.
        batch: sequences decoded together.
        context: tokens in each sequence's cache.
    """
    forward = decode_forward(
        model, batch=batch, context=context, parallelism=on.parallelism, cache_format=on.cache_format
    )
    times: dict[KernelBasis, float] = {}
    for basis, time_s in _kernels(forward, on):
        times[basis] = times.get(basis, 0.0) + time_s
    total_s = math.fsum(times.values())
    return StepBasis(kernels=tuple((basis, time_s / total_s) for basis, time_s in times.items()))


def _kernels(forward: Forward, on: Deployment) -> Iterator[tuple[KernelBasis, float]]:
    for part in forward.parts:
        if not isinstance(part, Elementwise):
            yield _part_basis(part, on), math.fsum(part_split_s(part, on).values())
    for transfer in forward.transfers:
        time_s = transfer.times * transfer_s(transfer, on)
        if transfer.kind == "all-reduce":
            how = on.engine.all_reduce
            fitted = (DIRECT, HOW[how]) if HOW[how] else (RING, RING)
            yield _layer_basis(on.gpu, "all_reduce", how, fitted=fitted), time_s
        else:
            yield _unmeasured(transfer.kind), time_s


def _part_basis(part: Part, on: Deployment) -> KernelBasis:
    if isinstance(part, Matmul):
        return _gemm_basis(part, on.gpu)
    if isinstance(part, RoutedExperts):
        stored = part.weight_format.bytes_per_element
        variant, _ = variant_of(on.gpu, expert_dtype(on.gpu, part.weight_format), stored)
        return _layer_basis(on.gpu, "moe", variant, like="gemm")
    if isinstance(part, Attention):
        dtype = multiplied_in(on.gpu, cache_dtype(part.cache_format))
        if part.latent:
            return _layer_basis(on.gpu, "mla_decode", dtype, like="decode_attention")
        return _kernel_basis(on.gpu, "decode_attention", dtype)
    return _unmeasured(part.name)


def _gemm_basis(part: Matmul, gpu: Gpu) -> KernelBasis:
    """A GEMM's; no weight-only format was measured, whose error is at least that of another dtype's."""
    found = _kernel_basis(gpu, "gemm", product_dtype(gpu, part.weight_format))
    if found.variant != "bf16" or part.weight_format.bytes_per_element >= 2:
        return found
    median, p90 = expected_errors()["gemm", "", "", "other dtype"]
    return KernelBasis(
        kernel="gemm",
        variant=f"{part.weight_format.name} in bf16",
        gpu=found.gpu,
        measured=False,
        median_error=max(median, found.median_error or 0.0),
        p90_error=max(p90, found.p90_error or 0.0),
    )


def _kernel_basis(gpu: Gpu, kernel: str, dtype: str) -> KernelBasis:
    found = constants_for(gpu).basis[kernel, dtype]
    return KernelBasis(
        kernel=kernel,
        variant=dtype,
        gpu=found.gpu,
        measured=found.measured,
        median_error=found.median_error,
        p90_error=found.p90_error,
    )


def _layer_basis(
    gpu: Gpu, kernel: str, variant: str, *, like: str = "", fitted: tuple[str, str] | None = None
) -> KernelBasis:
    """A layer's; one measured on a single GPU is expected to err elsewhere as the kernel it is `like`."""
    found = basis_of(gpu, kernel, variant, fitted=fitted)
    median, p90 = found.median_error, found.p90_error
    if median is None and like:
        median, p90 = expected_errors()[like, "", "bf16", "other GPUs"]
    return KernelBasis(
        kernel=kernel,
        variant=variant,
        gpu=found.gpu,
        measured=found.measured,
        median_error=median,
        p90_error=p90,
    )


def _unmeasured(kernel: str) -> KernelBasis:
    return KernelBasis(kernel=kernel, variant="", gpu="", measured=False, median_error=None, p90_error=None)
