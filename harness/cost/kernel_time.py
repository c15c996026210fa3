"""Modelled kernel times: rooflines with efficiencies and fixed costs calibrated on measured kernels.

`docs/accuracy.md` has the formulas, the constants and their error against measured times. Each `*_terms`
function takes floats or arrays: the same formula is fitted and used.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias

from ..core.data_table import data_table
from ..core.errors import UsageError
from ..core.gpus import Gpu

Quantity: TypeAlias = Any  # a float, or an array of floats with one element a case

_DTYPES = ("bf16", "fp8")
SINGLE, GROUPED = "decode_attention_single", "decode_attention_grouped"

_TILES = ((16, 128), (64, 64), (64, 128), (128, 128), (128, 256))  # rows, columns of an output tile
_LARGEST_TILE = 128 * 256
_SPLITS = (1, 2, 4)  # split-K factors, to occupy more SMs
_PARTIAL_BYTES = 4  # split-K partial sums are fp32
_SHARPNESS = 3  # exponent of the smooth maximum of overlapping terms
_PREFILL_TILE = 128  # queries of a CTA of prefill attention, and keys of its step


@dataclass(frozen=True)
class KernelTime:
    """The modelled time of one call, or an array with an element a call.

    Attributes:
        time_s: time of the call; at most the sum of the terms, as memory and compute overlap.
        memory_s: time to read and write at the bandwidth that kernels reach.
        compute_s: time to multiply at the rate that kernels reach, with tile and wave quantization.
        fixed_s: time independent of bytes and operations: launches, costs per CTA, ramp-up.
    """

    time_s: Quantity
    memory_s: Quantity
    compute_s: Quantity
    fixed_s: Quantity

    @property
    def bound(self) -> str:
        """The largest of the three terms: "memory", "compute" or "fixed"."""
        terms = {"memory": self.memory_s, "compute": self.compute_s, "fixed": self.fixed_s}
        return max(terms, key=lambda name: terms[name])


@dataclass(frozen=True, kw_only=True)
class GemmConstants:
    """Constants of GEMM; shares are of the datasheet's figures.

    Attributes:
        memory_share: share of the bandwidth reached.
        compute_share: share of the rate reached by the largest tile.
        fixed_s: time of an empty call; in fp8 with the launch of the pass that quantises activations.
        tile_exponent: a tile of 1/x of the largest tile's area reaches 1/x to this power of its rate.
        split_bandwidth_share: share of the bandwidth at which split-K partial sums are exchanged; above 1
            where the L2 cache holds them.
        split_s: launch of the split-K reduction.
        quantise_share: share of the bandwidth of the pass that quantises activations; fp8 only.
    """

    memory_share: float
    compute_share: float
    fixed_s: float
    tile_exponent: float
    split_bandwidth_share: float
    split_s: float
    quantise_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class DecodeConstants:
    """Constants of decode attention, of the kernel for one query head per KV head or of that for GQA groups.

    Attributes:
        memory_share: share of the bandwidth reached by long reads.
        compute_share: share of the rate reached; that of GEMM, as no group up to 16 is compute-bound.
        fixed_s: time of an empty call.
        item_s: an SM's time per KV head of a sequence, independent of the context.
        item_row_s: time added to `item_s` by each query head of the group.
        ramp_s: time that a long read loses while not all SMs read at full rate.
        ramp_half_s: the reading time at which half of `ramp_s` is lost.
        unsplit_share: bandwidth of a CTA that reads an entire context, as a share of an SM's part of the
            bandwidth; None where the kernel splits long contexts (flash-decoding).
    """

    memory_share: float
    compute_share: float
    fixed_s: float
    item_s: float
    item_row_s: float = 0.0
    ramp_s: float
    ramp_half_s: float
    unsplit_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class PrefillConstants:
    """Constants of prefill attention.

    Attributes:
        memory_share: share of the bandwidth reached; low, as the measured call also fills the cache.
        compute_share: share of the rate reached.
        fixed_s: time of an empty call.
        tile_s: an SM's time per tile of queries, independent of the number of keys.
    """

    memory_share: float
    compute_share: float
    fixed_s: float
    tile_s: float


@dataclass(frozen=True, kw_only=True)
class KernelConstants:
    """The constants used for a GPU.

    Attributes:
        gpu: the GPU whose measured kernels they were fitted to.
        basis: "calibrated on <gpu>", or "derived from the datasheet" for any other GPU.
        prefill_attention_gpu: the GPU whose prefill attention was measured.
        gemm: constants of GEMM by dtype.
        decode_attention: constants by kernel (`SINGLE` or `GROUPED`) and dtype.
        prefill_attention: constants for every dtype.
    """

    gpu: str
    basis: str
    prefill_attention_gpu: str
    gemm: Mapping[str, GemmConstants] = field(hash=False)
    decode_attention: Mapping[tuple[str, str], DecodeConstants] = field(hash=False)
    prefill_attention: PrefillConstants


Constants: TypeAlias = GemmConstants | DecodeConstants | PrefillConstants

KIND_OF: Mapping[str, type[Constants]] = {
    "gemm": GemmConstants,
    SINGLE: DecodeConstants,
    GROUPED: DecodeConstants,
    "prefill_attention": PrefillConstants,
}


def constants_for(gpu: Gpu) -> KernelConstants:
    """Gives a GPU's constants.

    A GPU with measurements has its own. Any other takes the efficiencies and costs of H100 if it multiplies
    fp8, of A100 if not, applied to its own datasheet. Prefill attention was measured on H100 only.
    """
    table, has_fp8 = calibrated(), gpu.flop_per_s["fp8"] is not None
    names = dict.fromkeys(name for _, name, _ in table)
    own = min(names, key=lambda name: (name != gpu.name, (("gemm", name, "fp8") in table) != has_fp8))
    prefill = min(names, key=lambda name: (("prefill_attention", name, "bf16") not in table, name != own))
    by_kernel = {(kernel, dtype): each for (kernel, name, dtype), each in table.items() if name == own}
    return KernelConstants(
        gpu=own,
        basis=f"calibrated on {own}" if own == gpu.name else "derived from the datasheet",
        prefill_attention_gpu=prefill,
        gemm={dtype: each for (kernel, dtype), each in by_kernel.items() if kernel == "gemm"},
        decode_attention={key: each for key, each in by_kernel.items() if key[0] in (SINGLE, GROUPED)},
        prefill_attention=table["prefill_attention", prefill, "bf16"],
    )


def gemm_time(
    gpu: Gpu,
    *,
    rows: int,
    out_features: int,
    in_features: int,
    dtype: str,
    weight_bytes_per_element: float,
    activation_bytes_per_element: float = 2.0,
) -> KernelTime:
    """Models x [rows, in_features] times weight [out_features, in_features] transposed.

    Args:
        gpu: the GPU.
        rows: M.
        out_features: N.
        in_features: K.
        dtype: dtype of the multiplication, "bf16" or "fp8"; a GPU without fp8 multiplies in bf16, one without
            bf16 in fp16.
        weight_bytes_per_element: bytes per element of the stored weight.
        activation_bytes_per_element: bytes per element of x and the result. An fp8 GEMM quantises wider
            activations in a separate pass.
    """
    sizes = positive(
        rows=rows,
        out_features=out_features,
        in_features=in_features,
        weight_bytes_per_element=weight_bytes_per_element,
        activation_bytes_per_element=activation_bytes_per_element,
    )
    gemm, dtype = constants_for(gpu).gemm, multiplied_in(gpu, dtype)
    constants = gemm[dtype]
    if activation_bytes_per_element <= 1:  # already quantised: neither the pass nor its launch
        constants = replace(constants, fixed_s=gemm["bf16"].fixed_s, quantise_share=None)
    return gemm_terms(gpu, constants, dtype=dtype, **sizes)


def decode_attention_time(
    gpu: Gpu,
    *,
    sequences: int,
    kv_heads: int,
    kv_bytes: float,
    operations: float,
    dtype: str,
    group: int,
) -> KernelTime:
    """Models one layer's attention of one query token per sequence.

    Args:
        gpu: the GPU.
        sequences: number of sequences, of about equal lengths.
        kv_heads: number of KV heads.
        kv_bytes: bytes of the live keys and values of all sequences.
        operations: operations of all sequences and query heads.
        dtype: dtype of the cache, "bf16" or "fp8"; a GPU without fp8 multiplies in bf16.
        group: query heads per KV head (GQA group); calibrated up to 16.
    """
    sizes = positive(
        sequences=sequences, kv_heads=kv_heads, kv_bytes=kv_bytes, operations=operations, group=group
    )
    dtype = multiplied_in(gpu, dtype)
    constants = constants_for(gpu).decode_attention[GROUPED if group > 1 else SINGLE, dtype]
    return decode_attention_terms(gpu, constants, dtype=dtype, **sizes)


def prefill_attention_time(
    gpu: Gpu,
    *,
    sequences: int,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    prompt: int,
    dtype: str = "bf16",
) -> KernelTime:
    """Models one layer's causal attention of `sequences` prompts of `prompt` tokens each.

    Calibrated in bf16 with head dimension 128; fp8 has the same shares of its own rate and bytes.
    """
    sizes = positive(
        sequences=sequences, q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim, prompt=prompt
    )
    constants, dtype = constants_for(gpu).prefill_attention, multiplied_in(gpu, dtype)
    return prefill_attention_terms(gpu, constants, dtype=dtype, **sizes)


def gemm_terms(
    gpu: Gpu,
    constants: GemmConstants,
    *,
    rows: Quantity,
    out_features: Quantity,
    in_features: Quantity,
    dtype: str,
    weight_bytes_per_element: float,
    activation_bytes_per_element: float,
    least: Callable[[Sequence[Quantity]], Quantity] = min,
) -> KernelTime:
    """GEMM's formula; `least` is the minimum of several, elementwise for arrays."""
    bandwidth, pass_s, x_bytes = gpu.bandwidth_bytes_per_s, 0.0, activation_bytes_per_element
    if constants.quantise_share is not None:
        x_bytes = 1.0
        pass_bytes = rows * in_features * (activation_bytes_per_element + x_bytes)
        pass_s = pass_bytes / (bandwidth * constants.quantise_share)
    moved = weight_bytes_per_element * out_features * in_features
    moved = moved + x_bytes * rows * in_features + activation_bytes_per_element * rows * out_features
    memory_s = moved / (bandwidth * constants.memory_share)
    sm_rate = rate_of(gpu, dtype) / gpu.sm_count * constants.compute_share
    ways = []
    for tile_rows, tile_columns in _TILES:
        area = tile_rows * tile_columns
        tile_s = 2 * area * in_features / (sm_rate * (area / _LARGEST_TILE) ** constants.tile_exponent)
        tiles = ceil_div(rows, tile_rows) * ceil_div(out_features, tile_columns)
        for parts in _SPLITS:
            way_s = ceil_div(tiles * parts, gpu.sm_count) * tile_s / parts
            if parts > 1:
                exchanged = _PARTIAL_BYTES * parts * rows * out_features
                way_s = way_s + exchanged / (bandwidth * constants.split_bandwidth_share) + constants.split_s
            ways.append(way_s)
    compute_s = least(ways)
    time_s = smooth_maximum(memory_s, compute_s) + pass_s + constants.fixed_s
    return KernelTime(time_s, memory_s + pass_s, compute_s, constants.fixed_s)


def decode_attention_terms(
    gpu: Gpu,
    constants: DecodeConstants,
    *,
    sequences: Quantity,
    kv_heads: Quantity,
    kv_bytes: Quantity,
    operations: Quantity,
    dtype: str,
    group: Quantity,
) -> KernelTime:
    """Decode attention's formula; an item is a KV head of a sequence."""
    bandwidth, sm_count, items = gpu.bandwidth_bytes_per_s, gpu.sm_count, sequences * kv_heads
    memory_s = kv_bytes / (bandwidth * constants.memory_share)
    compute_s = operations / (rate_of(gpu, dtype) * constants.compute_share)
    items_s = items / sm_count * (constants.item_s + constants.item_row_s * group)
    overlapping = [memory_s, compute_s, items_s]
    if constants.unsplit_share is not None:
        overlapping.append(kv_bytes / items / (bandwidth / sm_count * constants.unsplit_share))
    ramp_s = constants.ramp_s * memory_s / (memory_s + constants.ramp_half_s)
    time_s = smooth_maximum(*overlapping) + ramp_s + constants.fixed_s
    return KernelTime(time_s, memory_s, compute_s, constants.fixed_s + ramp_s + items_s)


def prefill_attention_terms(
    gpu: Gpu,
    constants: PrefillConstants,
    *,
    sequences: Quantity,
    q_heads: Quantity,
    kv_heads: Quantity,
    head_dim: Quantity,
    prompt: Quantity,
    dtype: str,
) -> KernelTime:
    """Prefill attention's formula: tiles of queries and keys; the longest tile bounds the time."""
    size = 1 if dtype == "fp8" else 2
    moved = 2 * size * sequences * prompt * head_dim * (q_heads + kv_heads)
    memory_s = moved / (gpu.bandwidth_bytes_per_s * constants.memory_share)
    rate = rate_of(gpu, dtype) * constants.compute_share
    tiles = ceil_div(prompt, _PREFILL_TILE)
    step = 4 * _PREFILL_TILE**2 * head_dim
    all_s = sequences * q_heads * tiles * (tiles + 1) / 2 * step / rate
    last_s = tiles * step / (rate / gpu.sm_count)
    programs_s = sequences * q_heads * tiles / gpu.sm_count * constants.tile_s
    time_s = memory_s + smooth_maximum(all_s + programs_s, last_s) + constants.fixed_s
    return KernelTime(time_s, memory_s, smooth_maximum(all_s, last_s), constants.fixed_s + programs_s)


def multiplied_in(gpu: Gpu, dtype: str) -> str:
    """The dtype in which a GPU multiplies: bf16 where it lacks fp8."""
    if dtype not in _DTYPES:
        raise UsageError(f"dtype: {dtype!r} is not one of {', '.join(_DTYPES)}")
    return "bf16" if gpu.flop_per_s[dtype] is None else dtype


def rate_of(gpu: Gpu, dtype: str) -> float:
    """The datasheet's operations per second; on a GPU without bf16 those of fp16."""
    return gpu.flop_per_s[dtype] or gpu.flop_per_s["fp16"] or math.nan


def column_of(constant: str) -> tuple[str, float]:
    """A constant's column in `kernel_constants.csv` and the unit of its cells: seconds as microseconds."""
    return (f"{constant[:-2]}_us", 1e-6) if constant.endswith("_s") else (constant, 1.0)


def constants_from(kernel: str, cells: Mapping[str, str]) -> Any:
    """Reads a row of `kernel_constants.csv`; an empty cell means the default."""
    kind = KIND_OF[kernel]
    columns = {constant.name: column_of(constant.name) for constant in fields(kind)}
    return kind(**{n: float(cells[column]) * unit for n, (column, unit) in columns.items() if cells[column]})


@functools.cache
def calibrated() -> Mapping[tuple[str, str, str], Any]:
    """The constants fitted to measured kernels, by kernel, GPU and dtype."""
    return {
        (row["kernel"], row["gpu"], row["dtype"]): constants_from(row["kernel"], row)
        for row in data_table("kernel_constants.csv")
    }


def smooth_maximum(*terms_s: Quantity) -> Quantity:
    """The largest term, and more if others are near it, because they overlap imperfectly."""
    return sum(term_s**_SHARPNESS for term_s in terms_s) ** (1 / _SHARPNESS)


def ceil_div(size: Quantity, by: int) -> Quantity:
    """Size / by, rounded up."""
    return -(-size // by)


def positive(**sizes: float) -> dict[str, Quantity]:
    """The sizes as floats, whose products do not overflow.

    Raises:
        UsageError: a size is not positive and finite; names it.
    """
    for name, size in sizes.items():
        if not (math.isfinite(size) and size > 0):
            raise UsageError(f"{name}: {size} is not positive and finite")
    return {name: float(size) for name, size in sizes.items()}
