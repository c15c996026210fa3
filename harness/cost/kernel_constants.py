"""Constants of the modelled kernels: those fitted to measured kernels, and what other GPUs and dtypes take.

`kernel_constants.csv` has a row for each kernel, GPU and dtype that was measured, `kernel_errors.csv` the
error that remains. `docs/accuracy.md` explains both.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias

from ..core.data_table import data_table
from ..core.gpus import Gpu
from .kernel_time import DTYPES, multiplied_in

SINGLE, GROUPED = "decode_attention_single", "decode_attention_grouped"

# GPUs whose constants a GPU takes, the nearest first, by compute capability.
_NEAREST: Mapping[str, tuple[str, ...]] = {
    "10": ("B200", "H100-SXM5-80GB", "L40S", "A100-SXM4-80GB"),
    "9": ("H100-SXM5-80GB", "B200", "A100-SXM4-80GB", "L40S"),
    "12": ("L40S", "A100-SXM4-80GB", "H100-SXM5-80GB", "B200"),
    "8.9": ("L40S", "A100-SXM4-80GB", "H100-SXM5-80GB", "B200"),
    "8": ("A100-SXM4-80GB", "L40S", "H100-SXM5-80GB", "B200"),
    "7": ("A100-SXM4-80GB", "L40S", "H100-SXM5-80GB", "B200"),
}
_NEAREST_DTYPE = {"bf16": ("bf16",), "fp8": ("fp8", "bf16"), "fp4": ("fp8", "bf16")}


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
        tile_depth: in_features whose time a tile takes to fill its pipeline and to write its result.
        l2_share: bytes of weights that stay in L2 from one measured call to the next, as a share of the L2;
            None where measured calls show no hits.
        l2_sm_bytes_per_s: bandwidth from L2 to one SM.
    """

    memory_share: float
    compute_share: float
    fixed_s: float
    tile_exponent: float
    split_bandwidth_share: float
    split_s: float
    quantise_share: float | None = None
    tile_depth: float = 0.0
    l2_share: float | None = None
    l2_sm_bytes_per_s: float | None = None


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
        l2_share: bytes of keys and values that stay in L2 from one measured call to the next, as a share of
            the L2; None where measured calls show no hits.
        l2_sm_bytes_per_s: bandwidth from L2 to one SM.
    """

    memory_share: float
    compute_share: float
    fixed_s: float
    item_s: float
    item_row_s: float = 0.0
    ramp_s: float = 0.0
    ramp_half_s: float = 1.0
    unsplit_share: float | None = None
    l2_share: float | None = None
    l2_sm_bytes_per_s: float | None = None


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


Constants: TypeAlias = GemmConstants | DecodeConstants | PrefillConstants

KIND_OF: Mapping[str, type[Constants]] = {
    "gemm": GemmConstants,
    SINGLE: DecodeConstants,
    GROUPED: DecodeConstants,
    "prefill_attention": PrefillConstants,
}


@dataclass(frozen=True, kw_only=True)
class Basis:
    """The measurements behind one modelled kernel on a GPU.

    Attributes:
        gpu: the GPU whose measured kernels the constants were fitted to.
        dtype: the dtype of those kernels.
        measured: whether they are this GPU's, in this dtype; if not, the constants are applied to another
            datasheet or rate.
        median_error: relative error to expect at the median: of measured kernels that the fit did not see.
        p90_error: the 90th percentile of that error.
    """

    gpu: str
    dtype: str
    measured: bool
    median_error: float
    p90_error: float

    @property
    def text(self) -> str:
        """Says whether the kernels of the GPU were measured, or from which others they are derived."""
        if self.measured:
            return f"calibrated on {self.gpu}"
        return f"derived from the datasheet, with the constants of {self.gpu} in {self.dtype}"


@dataclass(frozen=True, kw_only=True)
class KernelConstants:
    """The constants used for a GPU.

    Attributes:
        gemm: constants of GEMM by dtype.
        decode_attention: constants by kernel (`SINGLE` or `GROUPED`) and dtype.
        prefill_attention: constants by dtype.
        basis: measurements behind each, by kernel ("gemm", "decode_attention", "prefill_attention") and
            dtype.
    """

    gemm: Mapping[str, GemmConstants] = field(hash=False)
    decode_attention: Mapping[tuple[str, str], DecodeConstants] = field(hash=False)
    prefill_attention: Mapping[str, PrefillConstants] = field(hash=False)
    basis: Mapping[tuple[str, str], Basis] = field(hash=False)


@functools.cache
def constants_for(gpu: Gpu) -> KernelConstants:
    """Gives a GPU's constants.

    A measured GPU has its own. Any other takes those of the nearest measured architecture, applied to its own
    bandwidth, rates, SMs and L2; so does each kernel or dtype that was not measured on the GPU.
    """
    table, dtypes = calibrated(), tuple(dict.fromkeys(multiplied_in(gpu, dtype) for dtype in DTYPES))
    found: dict[tuple[str, str], Any] = {}
    basis = {}
    for kernel in KIND_OF:
        for dtype in dtypes:
            name, measured_dtype = nearest(gpu, kernel, dtype, table) or ("", "")
            own = name == gpu.name
            constants = table[kernel, name, measured_dtype]
            found[kernel, dtype] = constants if own else carried(constants)
            basis[class_of(kernel), dtype] = _basis(gpu, kernel, dtype, name, measured_dtype)
    return KernelConstants(
        gemm={dtype: found["gemm", dtype] for dtype in dtypes},
        decode_attention={(k, dtype): found[k, dtype] for k in (SINGLE, GROUPED) for dtype in dtypes},
        prefill_attention={dtype: found["prefill_attention", dtype] for dtype in dtypes},
        basis=basis,
    )


def class_of(kernel: str) -> str:
    """The kernel whose error is stated: both kernels of decode attention have one."""
    return "decode_attention" if kernel in (SINGLE, GROUPED) else kernel


def nearest(
    gpu: Gpu, kernel: str, dtype: str, measured: Iterable[tuple[str, str, str]], *, own: bool = True
) -> tuple[str, str] | None:
    """The measured GPU and dtype whose constants a kernel takes: the own GPU, then the own dtype.

    Args:
        gpu: the GPU.
        kernel: name of the kernel in the table of constants.
        dtype: dtype in which the GPU multiplies.
        measured: kernel, GPU and dtype of every fit.
        own: whether the GPU's own measurements count.
    """
    major = gpu.compute_capability.partition(".")[0]
    architectures = _NEAREST.get(gpu.compute_capability) or _NEAREST.get(major) or _NEAREST["9"]
    names = dict.fromkeys((gpu.name, *architectures)) if own else [n for n in architectures if n != gpu.name]
    found, dtypes = set(measured), _NEAREST_DTYPE[dtype]
    candidates = [(name, each) for name in names for each in dtypes if (kernel, name, each) in found]
    return min(candidates, key=lambda each: (each[0] != gpu.name, each[1] != dtypes[0]), default=None)


def carried(constants: Any) -> Any:
    """Constants on another GPU: an L2 share above 1 corrects the table's L2 of the measured GPU alone."""
    if getattr(constants, "l2_share", None) is None:
        return constants
    return replace(constants, l2_share=min(1.0, constants.l2_share))


def _basis(gpu: Gpu, kernel: str, dtype: str, basis_gpu: str, basis_dtype: str) -> Basis:
    """What to expect: the error on held-out rows of the own, on other GPUs, or in another dtype."""
    table, name = expected_errors(), class_of(kernel)
    own_gpu, own_dtype = gpu.name == basis_gpu, dtype == basis_dtype
    found = []
    if not own_gpu:
        same = (name, "", basis_dtype, "other GPUs")
        found.append(table[same if same in table else (name, "", "bf16", "other GPUs")])
    if not own_dtype:
        found.append(table[name, "", "", "other dtype"])
    if own_gpu and own_dtype:
        found.append(table[name, basis_gpu, basis_dtype, "held-out fifth"])
    return Basis(
        gpu=basis_gpu,
        dtype=basis_dtype,
        measured=own_gpu and own_dtype,
        median_error=max(median for median, _ in found),
        p90_error=max(p90 for _, p90 in found),
    )


def column_of(constant: str) -> tuple[str, float]:
    """A constant's column in `kernel_constants.csv` and the unit of its cells."""
    for ending, written, unit in (("_bytes_per_s", "_gb_per_s", 1e9), ("_s", "_us", 1e-6)):
        if constant.endswith(ending):
            return constant.removesuffix(ending) + written, unit
    return constant, 1.0


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


@functools.cache
def expected_errors() -> Mapping[tuple[str, str, str, str], tuple[float, float]]:
    """Median and 90th percentile of the relative error of constants, by kernel, GPU, dtype and rows.

    The rows are the "held-out fifth" of the GPU and dtype; those of all GPUs, with constants of the nearest
    "other GPUs"; or those of fp8 with constants of the "other dtype", bf16, of the same GPU.
    """
    return {
        (row["kernel"], row["gpu"], row["dtype"], row["rows"]): (
            float(row["median_percent"]) / 100,
            float(row["p90_percent"]) / 100,
        )
        for row in data_table("kernel_errors.csv")
    }
