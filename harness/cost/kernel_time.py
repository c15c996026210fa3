"""How long a kernel takes on a GPU: roofs, with efficiencies and costs calibrated on measured kernels.

`docs/accuracy.md` has the formulas, the constants and how far they are from measured times. Each formula
stands once, in a `*_terms` function, for floats and arrays alike: what is used is what was fitted.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, TypeAlias

from ..core.data_table import data_table
from ..core.errors import UsageError
from ..core.gpus import Gpu

Quantity: TypeAlias = Any  # a float, or an array of floats with one element a case

_DTYPES = ("bf16", "fp8")
SINGLE, GROUPED = "decode_attention_single", "decode_attention_grouped"

_TILES = ((16, 128), (64, 64), (64, 128), (128, 128), (128, 256))  # rows, columns of a tile of the output
_LARGEST_TILE = 128 * 256
_SPLITS = (1, 2, 4)  # parts that the sum over in_features is cut into, to occupy more SMs
_PARTIAL_BYTES = 4  # a part's sum is kept in fp32
_SHARPNESS = 3  # of the smooth maximum of terms that overlap
_PREFILL_TILE = 128  # queries of a program of prefill attention, and keys of its step


@dataclass(frozen=True, kw_only=True)
class KernelTime:
    """The modelled time of one call.

    Attributes:
        time_s: the whole call. It is no sum: memory and compute overlap.
        bound: "memory", "compute" or "fixed", the largest of the three terms.
        memory_s: reading and writing at the bandwidth that kernels reach.
        compute_s: multiplying at the rate that kernels reach, in whole tiles on whole multiprocessors.
        fixed_s: what neither bytes nor operations explain: launches, costs per program, ramp.
    """

    time_s: float
    bound: str
    memory_s: float
    compute_s: float
    fixed_s: float


@dataclass(frozen=True, kw_only=True)
class GemmConstants:
    """A matrix product's.

    Attributes:
        memory_share: bandwidth reached, of the datasheet's.
        compute_share: rate reached by the largest tile, of the datasheet's.
        fixed_s: a call on nothing; in fp8 the launch of the pass that quantises activations is in it.
        tile_exponent: a tile of 1/x of the largest's area reaches 1/x to this power of its rate.
        split_bandwidth_share: bandwidth at which the parts of a split sum are exchanged, of the datasheet's;
            above 1 where the level-2 cache holds them.
        split_s: launching what adds the parts of a split sum.
        quantise_share: bandwidth of the pass that quantises activations, of the datasheet's; fp8 alone.
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
    """Decode attention's, of the kernel for one query head a kv head or of that for groups of them.

    Attributes:
        memory_share: bandwidth reached by long reads, of the datasheet's.
        compute_share: rate reached, of the datasheet's; the matrix product's, as no group up to 16 needs it.
        fixed_s: a call on nothing.
        item_s: a multiprocessor's time for a sequence's kv head, whatever its length.
        item_row_s: what each query head of the group adds to it.
        ramp_s: what a long read loses, at most, while not all multiprocessors read at full rate.
        ramp_half_s: the reading time at which half of it is lost.
        unsplit_share: bandwidth of a program that reads a whole context, of a multiprocessor's fair share;
            None where the kernel cuts long contexts.
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
    """Prefill attention's.

    Attributes:
        memory_share: bandwidth reached, of the datasheet's; low, as the measured call also fills the cache.
        compute_share: rate reached, of the datasheet's.
        fixed_s: a call on nothing.
        tile_s: a multiprocessor's time for a tile of queries, whatever its keys.
    """

    memory_share: float
    compute_share: float
    fixed_s: float
    tile_s: float


@dataclass(frozen=True, kw_only=True)
class KernelConstants:
    """The constants that stand for a GPU.

    Attributes:
        gpu: whose measured kernels they were fitted to.
        basis: "calibrated on <gpu>", or "derived from the datasheet" for any other GPU.
        prefill_attention_gpu: whose prefill attention its constants were fitted to.
        gemm: by dtype.
        decode_attention: by kernel (`SINGLE` or `GROUPED`) and dtype.
        prefill_attention: whatever the dtype.
    """

    gpu: str
    basis: str
    prefill_attention_gpu: str
    gemm: Mapping[str, GemmConstants] = field(hash=False)
    decode_attention: Mapping[tuple[str, str], DecodeConstants] = field(hash=False)
    prefill_attention: PrefillConstants


class Terms(NamedTuple):
    """The time and the three terms of `KernelTime`, floats or arrays."""

    time_s: Quantity
    memory_s: Quantity
    compute_s: Quantity
    fixed_s: Quantity


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
        rows: rows of x.
        out_features: columns of the result.
        in_features: length of the sum.
        dtype: what is multiplied, "bf16" or "fp8"; a GPU without fp8 takes bf16, one without bf16 takes fp16.
        weight_bytes_per_element: as the weight is stored.
        activation_bytes_per_element: as x comes and the result goes. An fp8 product of wider activations
            quantises them in a pass of its own.
    """
    sizes = _positive(
        rows=rows,
        out_features=out_features,
        in_features=in_features,
        weight_bytes_per_element=weight_bytes_per_element,
        activation_bytes_per_element=activation_bytes_per_element,
    )
    gemm, dtype = constants_for(gpu).gemm, multiplied_in(gpu, dtype)
    constants = gemm[dtype]
    if activation_bytes_per_element <= 1:  # they come quantised: no pass, and not its launch
        constants = replace(constants, fixed_s=gemm["bf16"].fixed_s, quantise_share=None)
    return _kernel_time(gemm_terms(gpu, constants, dtype=dtype, **sizes))


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
    """Models one layer's attention of one query token a sequence.

    Args:
        gpu: the GPU.
        sequences: of about equal lengths.
        kv_heads: heads of the cache.
        kv_bytes: live keys and values of all sequences.
        operations: of all sequences and query heads.
        dtype: of the cache, "bf16" or "fp8"; a GPU without fp8 multiplies in bf16.
        group: query heads a kv head. Calibrated up to 16.
    """
    sizes = _positive(
        sequences=sequences, kv_heads=kv_heads, kv_bytes=kv_bytes, operations=operations, group=group
    )
    dtype = multiplied_in(gpu, dtype)
    constants = constants_for(gpu).decode_attention[GROUPED if group > 1 else SINGLE, dtype]
    return _kernel_time(decode_attention_terms(gpu, constants, dtype=dtype, **sizes))


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

    Calibrated in bf16 and head dimension 128; fp8 takes the same shares of its own rate and bytes.
    """
    sizes = _positive(
        sequences=sequences, q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim, prompt=prompt
    )
    constants, dtype = constants_for(gpu).prefill_attention, multiplied_in(gpu, dtype)
    return _kernel_time(prefill_attention_terms(gpu, constants, dtype=dtype, **sizes))


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
) -> Terms:
    """The matrix product's formula; `least` takes the smallest of several, elementwise for arrays."""
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
        tiles = _pieces(rows, tile_rows) * _pieces(out_features, tile_columns)
        for parts in _SPLITS:
            way_s = _pieces(tiles * parts, gpu.sm_count) * tile_s / parts
            if parts > 1:
                exchanged = _PARTIAL_BYTES * parts * rows * out_features
                way_s = way_s + exchanged / (bandwidth * constants.split_bandwidth_share) + constants.split_s
            ways.append(way_s)
    compute_s = least(ways)
    time_s = _smooth_maximum(memory_s, compute_s) + pass_s + constants.fixed_s
    return Terms(time_s, memory_s + pass_s, compute_s, constants.fixed_s)


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
) -> Terms:
    """Decode attention's formula; an item is a kv head of a sequence."""
    bandwidth, sm_count, items = gpu.bandwidth_bytes_per_s, gpu.sm_count, sequences * kv_heads
    memory_s = kv_bytes / (bandwidth * constants.memory_share)
    compute_s = operations / (rate_of(gpu, dtype) * constants.compute_share)
    items_s = items / sm_count * (constants.item_s + constants.item_row_s * group)
    overlapping = [memory_s, compute_s, items_s]
    if constants.unsplit_share is not None:
        overlapping.append(kv_bytes / items / (bandwidth / sm_count * constants.unsplit_share))
    ramp_s = constants.ramp_s * memory_s / (memory_s + constants.ramp_half_s)
    time_s = _smooth_maximum(*overlapping) + ramp_s + constants.fixed_s
    return Terms(time_s, memory_s, compute_s, constants.fixed_s + ramp_s + items_s)


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
) -> Terms:
    """Prefill attention's formula: whole tiles of queries and keys, and no end before the last tile's."""
    size = 1 if dtype == "fp8" else 2
    moved = 2 * size * sequences * prompt * head_dim * (q_heads + kv_heads)
    memory_s = moved / (gpu.bandwidth_bytes_per_s * constants.memory_share)
    rate = rate_of(gpu, dtype) * constants.compute_share
    tiles = _pieces(prompt, _PREFILL_TILE)
    step = 4 * _PREFILL_TILE**2 * head_dim
    all_s = sequences * q_heads * tiles * (tiles + 1) / 2 * step / rate
    last_s = tiles * step / (rate / gpu.sm_count)
    programs_s = sequences * q_heads * tiles / gpu.sm_count * constants.tile_s
    time_s = memory_s + _smooth_maximum(all_s + programs_s, last_s) + constants.fixed_s
    return Terms(time_s, memory_s, _smooth_maximum(all_s, last_s), constants.fixed_s + programs_s)


def multiplied_in(gpu: Gpu, dtype: str) -> str:
    """What a GPU multiplies in where it is asked for a dtype."""
    if dtype not in _DTYPES:
        raise UsageError(f"dtype: {dtype!r} is not one of {', '.join(_DTYPES)}")
    return "bf16" if gpu.flop_per_s[dtype] is None else dtype


def rate_of(gpu: Gpu, dtype: str) -> float:
    """The datasheet's operations per second; those of fp16, as fast, on a GPU without bf16."""
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


def _kernel_time(terms: Terms) -> KernelTime:
    by_bound = {"memory": terms.memory_s, "compute": terms.compute_s, "fixed": terms.fixed_s}
    return KernelTime(bound=max(by_bound, key=lambda bound: by_bound[bound]), **terms._asdict())


def _smooth_maximum(*terms_s: Quantity) -> Quantity:
    """At least the largest, and above it where others are near: they overlap, not perfectly."""
    return sum(term_s**_SHARPNESS for term_s in terms_s) ** (1 / _SHARPNESS)


def _pieces(size: Quantity, piece: int) -> Quantity:
    return -(-size // piece)


def _positive(**sizes: float) -> dict[str, Quantity]:
    """The sizes as floats, whose products don't overflow."""
    for name, size in sizes.items():
        if not (math.isfinite(size) and size > 0):
            raise UsageError(f"{name}: {size} is not positive and finite")
    return {name: float(size) for name, size in sizes.items()}
