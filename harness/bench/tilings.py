"""The search space of each kernel's tilings: cache key, default and candidates, and how to run a tiling."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ... import kernels
from ...kernels import DecodeTiling, GpuLimits, MatmulProblem, MatmulTiling, PrefillAttentionTiling
from ...kernels.matmul_tiling import TMA_FROM_CAPABILITY, Variant, matmul_tilings
from ..core.cases import DecodeAttention, PrefillAttention, PrefillMatmul
from ..core.inputs import DecodeAttentionInputs, MatmulInputs, PrefillAttentionInputs
from ..core.work import ELEMENT_BYTES

if TYPE_CHECKING:
    from ...kernels.prefill_attention_tiling import PrefillAttentionVariant

Key = dict[str, int | str]

MAX_PROGRAMS_PER_SM = 4

MIN_BLOCK_K = 32
"""Minimum elements of K per step: a 32-byte memory sector of 8-bit elements."""

MIN_BLOCK_N = 16
"""Minimum tokens per step: no tensor-core instruction takes fewer."""


@dataclass(frozen=True, kw_only=True)
class Tunable:
    """How the tilings of a kernel are searched; tilings are frozen dataclasses of numbers and words.

    Attributes:
        key: gives the facts of a case that its best tiling depends on.
        default: gives the tiling that the kernel itself chooses for a case on a GPU.
        candidates: gives the tilings to try for a case, its default and a GPU; the default comes first.
        run: computes the output of some inputs with a tiling.
        tiling: the class of its tilings.
    """

    key: Callable[[Any], Key]
    default: Callable[[Any, GpuLimits], Any]
    candidates: Callable[[Any, Any, GpuLimits], Sequence[Any]]
    run: Callable[[Any, Any], Tensor]
    tiling: type[Any]


def _decode_key(case: DecodeAttention) -> Key:
    return {
        "batch": case.batch,
        "capacity": case.capacity,
        "q_heads": case.q_heads,
        "kv_heads": case.kv_heads,
        "head_dim": case.head_dim,
        "page_size": 0,  # cases have contiguous caches
        "dtype": case.dtype,
        **_options(case),
    }


def _options(case: DecodeAttention) -> Key:
    """Options of an attention, without those that it does not have."""
    found = {
        "v_head_dim": case.value_dim if case.value_dim != case.head_dim else 0,
        "latent": int(case.latent),
        "window": case.window or 0,
        "softcap": int(case.softcap is not None),
        "sinks": int(case.sinks),
    }
    return {name: value for name, value in found.items() if value}


def _decode_default(case: DecodeAttention, limits: GpuLimits) -> DecodeTiling:
    return kernels.choose_decode_tiling(
        batch=case.batch,
        q_heads=case.q_heads,
        kv_heads=case.kv_heads,
        head_dim=case.head_dim,
        v_head_dim=case.value_dim,
        latent=case.latent,
        capacity=case.capacity,
        page_size=0,
        element_bytes=ELEMENT_BYTES[case.dtype],
        limits=limits,
    )


def _decode_candidates(
    case: DecodeAttention, default: DecodeTiling, limits: GpuLimits
) -> Sequence[DecodeTiling]:
    """Half and twice the tokens per step, 4 or 8 warps, a stage more or less, other numbers of programs.

    Every number of programs is one wave of the GPU. Tilings whose stages exceed shared memory are left out.
    `num_splits` never changes: a sequence's result must not depend on the rest of the batch.
    """
    found = {
        tiling
        for block_n, num_warps, num_stages in itertools.product(
            (default.block_n // 2, default.block_n, 2 * default.block_n),
            (4, 8, default.num_warps),
            (default.num_stages - 1, default.num_stages, default.num_stages + 1),
        )
        if block_n >= MIN_BLOCK_N and num_stages >= 1
        for programs, min_tiles in _program_counts(case, default, limits, block_n)
        if _may_fit(case, limits, block_n=block_n, num_stages=num_stages, programs=programs)
        for tiling in _in_one_wave(
            default,
            limits,
            block_n=block_n,
            num_warps=num_warps,
            num_stages=num_stages,
            programs=programs,
            min_tiles=min_tiles,
        )
    }
    return _nearest_first(found, default)


def _program_counts(
    case: DecodeAttention, default: DecodeTiling, limits: GpuLimits, block_n: int
) -> set[tuple[int, int]]:
    """Numbers of programs, each with the largest `min_tiles` that gives work to all of them."""
    blocks = math.ceil(case.q_heads // case.kv_heads / default.block_g)
    tiles = case.batch * case.kv_heads * blocks * math.ceil(case.capacity / block_n)
    waves = (limits.sm_count * per_sm for per_sm in range(1, MAX_PROGRAMS_PER_SM + 1))
    counts = {max(1, min(n, tiles)) for n in (default.programs // 2, 2 * default.programs, *waves)}
    others = counts - {default.programs}
    return {
        (default.programs, default.min_tiles),
        *((programs, max(1, min(default.min_tiles, tiles // programs))) for programs in others),
    }


def _may_fit(
    case: DecodeAttention, limits: GpuLimits, *, block_n: int, num_stages: int, programs: int
) -> bool:
    """Whether the stages in flight, a program's minimum shared memory, fit for all programs of an SM."""
    elements = case.head_dim + (0 if case.latent else case.value_dim)
    step_bytes = block_n * elements * ELEMENT_BYTES[case.dtype]
    least_bytes = (num_stages - 1) * step_bytes
    per_sm = math.ceil(programs / limits.sm_count)
    return least_bytes <= limits.shared_bytes_per_block and per_sm * least_bytes <= limits.shared_bytes_per_sm


def _in_one_wave(default: DecodeTiling, limits: GpuLimits, **changes: int) -> Iterator[DecodeTiling]:
    """The default with these changes, if they make a valid tiling whose registers allow one wave."""
    with contextlib.suppress(ValueError):
        tiling = dataclasses.replace(default, **changes)
        one_wave = tiling.in_one_wave(limits.sm_count)
        yield tiling if tiling == default else one_wave


def run_decode_attention(inputs: DecodeAttentionInputs, tiling: DecodeTiling | None = None) -> Tensor:
    """`decode_attention` with a tiling; None leaves the choice to the kernel."""
    kernels.decode_attention(
        inputs.q,
        inputs.k_cache,
        inputs.v_cache,
        inputs.context_lens,
        window=inputs.window,
        softcap=inputs.softcap,
        sinks=inputs.sinks,
        out=inputs.out,
        tiling=tiling,
    )
    return inputs.out


def _matmul_key(case: PrefillMatmul) -> Key:
    return {
        "rows": case.rows,
        "in_features": case.in_features,
        "out_features": case.out_features,
        "dtype": case.dtype,
        **({} if case.batch == 1 else {"batch": case.batch}),
    }


def _matmul_problem(case: PrefillMatmul) -> MatmulProblem:
    """M, N, K and element sizes of a case, for `choose_matmul_tiling` and `matmul_tilings`."""
    element_bytes = ELEMENT_BYTES[case.dtype]
    return MatmulProblem.contiguous(
        rows=case.rows,
        out_features=case.out_features,
        in_features=case.in_features,
        x_bytes=element_bytes,
        weight_bytes=element_bytes,
        batch=case.batch,
    )


def _matmul_default(case: PrefillMatmul, limits: GpuLimits) -> MatmulTiling:
    return kernels.choose_matmul_tiling(_matmul_problem(case), limits)


def warp_specializes(compute_capability: int) -> bool:
    """Whether Triton specialises the warps of a matmul on this GPU (90: Hopper, 100: Blackwell)."""
    return compute_capability // 10 == 10


def _matmul_candidates(
    case: PrefillMatmul, default: MatmulTiling, limits: GpuLimits
) -> Sequence[MatmulTiling]:
    """All tilings of the chooser's tables, in each variant that runs here, and neighbours of the default.

    Neighbours have half and twice the elements of K per step, 4 or 8 warps, a stage more or less, half and
    twice the row blocks of a group. Tilings whose stages exceed shared memory are left out.
    """
    problem = _matmul_problem(case)
    variants: list[Variant] = ["pointers"]
    if problem.tma and limits.compute_capability >= TMA_FROM_CAPABILITY:
        variants.append("descriptors")
        variants += ["warp_specialized"] if warp_specializes(limits.compute_capability) else []
    from_tables = {
        tiling for variant in variants for tiling in _from_tables(problem, limits, variant, default)
    }
    neighbours = {
        dataclasses.replace(default, block_k=block_k, num_warps=warps, num_stages=stages, group_m=group_m)
        for block_k, warps, stages, group_m in itertools.product(
            (default.block_k // 2, default.block_k, 2 * default.block_k),
            (4, 8, default.num_warps),
            (default.num_stages - 1, default.num_stages, default.num_stages + 1),
            {max(1, default.group_m // 2), default.group_m, 2 * default.group_m},
        )
        if block_k >= MIN_BLOCK_K and stages >= 2
    }
    found = {
        t
        for t in neighbours | from_tables
        if (t.num_stages - 1) * (t.block_m + t.block_n) * t.block_k * ELEMENT_BYTES[case.dtype]
        <= limits.shared_bytes_per_block
    }
    return _nearest_first(found, default)


def _from_tables(
    problem: MatmulProblem, limits: GpuLimits, variant: Variant, default: MatmulTiling
) -> set[MatmulTiling]:
    """The chooser's tilings of one variant, or the default's tile where none has enough of K per step.

    Float32 tiles for many rows step through K by 16. They are what the tables have for the TMA; one row would
    use 1 of their 128 rows.
    """
    least = min(MIN_BLOCK_K, default.block_k)
    tilings = {each for each in matmul_tilings(problem, limits, variant) if each.block_k >= least}
    return tilings or {
        dataclasses.replace(default, variant=variant, columns=None, num_splits=1, whole_tiles=0)
    }


def run_matmul(inputs: MatmulInputs, tiling: MatmulTiling | None = None) -> Tensor:
    """`prefill_matmul` with a tiling; None leaves the choice to the kernel."""
    return kernels.prefill_matmul(inputs.x, inputs.weight, out=inputs.out, tiling=tiling)


def _prefill_attention_key(case: PrefillAttention) -> Key:
    return {
        "sequences": case.sequences,
        "prompt": case.prompt,
        "q_heads": case.q_heads,
        "kv_heads": case.kv_heads,
        "head_dim": case.head_dim,
        "v_head_dim": case.value_dim,
        "window": case.window or 0,
        "dtype": case.dtype,
    }


def _prefill_attention_default(case: PrefillAttention, limits: GpuLimits) -> PrefillAttentionTiling:
    return kernels.choose_prefill_attention_tiling(
        batch=case.sequences,
        tokens=case.prompt,
        q_heads=case.q_heads,
        kv_heads=case.kv_heads,
        head_dim=case.head_dim,
        v_head_dim=case.value_dim,
        element_bytes=ELEMENT_BYTES[case.dtype],
        limits=limits,
    )


def _prefill_attention_candidates(
    case: PrefillAttention, default: PrefillAttentionTiling, limits: GpuLimits
) -> Sequence[PrefillAttentionTiling]:
    """Each variant that runs here with half and twice the rows and tokens of a tile, 4 or 8 warps, a stage
    more or less, and one or two CTAs per SM. Tilings whose stages exceed shared memory are left out.
    """  # noqa: D205  (one sentence)
    variants: list[PrefillAttentionVariant] = ["pointers"]
    if limits.compute_capability >= TMA_FROM_CAPABILITY:
        variants.append("descriptors")
        variants += ["warp_specialized"] if warp_specializes(limits.compute_capability) else []
    found = {
        dataclasses.replace(
            default,
            variant=variant,
            block_m=block_m,
            block_n=block_n,
            num_warps=warps,
            num_stages=stages,
            programs=programs,
        )
        for variant, block_m, block_n, warps, stages, programs in itertools.product(
            variants,
            (default.block_m // 2, default.block_m, 2 * default.block_m),
            (default.block_n // 2, default.block_n, 2 * default.block_n),
            (4, 8, default.num_warps),
            (default.num_stages - 1, default.num_stages, default.num_stages + 1),
            {default.programs, limits.sm_count, 2 * limits.sm_count},
        )
        if min(block_m, block_n) >= MIN_BLOCK_N and stages >= 1
        if _stages_bytes(case, block_m, block_n, stages) <= limits.shared_bytes_per_block
    }
    return _nearest_first(found, default)


def _stages_bytes(case: PrefillAttention, block_m: int, block_n: int, stages: int) -> int:
    """Least shared memory of a CTA: keys and values in flight, and in 16 bits the queries."""
    size = ELEMENT_BYTES[case.dtype]
    in_flight = (stages - 1) * block_n * (case.head_dim + case.value_dim)
    return size * (in_flight + block_m * case.head_dim)


def run_prefill_attention(
    inputs: PrefillAttentionInputs, tiling: PrefillAttentionTiling | None = None
) -> Tensor:
    """`prefill_attention` with a tiling; None leaves the choice to the kernel."""
    q, k, v, out = (each.transpose(1, 2) for each in (inputs.q, inputs.k, inputs.v, inputs.out))
    kernels.prefill_attention(
        q, k, v, window=inputs.window, softcap=inputs.softcap, sinks=inputs.sinks, out=out, tiling=tiling
    )
    return inputs.out


def _nearest_first(found: set[Any], default: Any) -> tuple[Any, ...]:
    """The default, then the others by how many fields differ from it, then by their values."""

    def distance(tiling: Any) -> tuple[int, tuple[tuple[bool, int, str], ...]]:
        values = dataclasses.astuple(tiling)
        ordered = tuple((isinstance(v, int), v if isinstance(v, int) else 0, str(v)) for v in values)
        return sum(a != b for a, b in zip(values, dataclasses.astuple(default), strict=True)), ordered

    return (default, *sorted(found - {default}, key=distance))


TUNABLE = {
    "prefill_matmul": Tunable(
        key=_matmul_key,
        default=_matmul_default,
        candidates=_matmul_candidates,
        run=run_matmul,
        tiling=MatmulTiling,
    ),
    "decode_attention": Tunable(
        key=_decode_key,
        default=_decode_default,
        candidates=_decode_candidates,
        run=run_decode_attention,
        tiling=DecodeTiling,
    ),
    "prefill_attention": Tunable(
        key=_prefill_attention_key,
        default=_prefill_attention_default,
        candidates=_prefill_attention_candidates,
        run=run_prefill_attention,
        tiling=PrefillAttentionTiling,
    ),
}
"""The kernels that take a tiling, by operation."""
