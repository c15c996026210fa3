"""The schedule and tile order of `prefill_matmul` over the projections of language models, for 1 row to many.

Every product is simulated (see `schedule`) and its DRAM traffic modelled (see `cache_model`): figures are
modelled, and show how the chosen tiling ranks. All are bf16, contiguous and aligned, as the default tiling
cuts them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from ..core.gpu_limits import SmLimits, find_gpu
from ..core.peaks import peaks_of
from .cache_model import MatmulShape, group_m_traffic, matmul_traffic
from .schedule import simulate_launch
from .scheduled import product_grid
from .subjects import MatmulTiling, kernel_limits, matmul_tiling
from .tile_order import PARTIAL_BYTES

DTYPE, ELEMENT_BYTES = "bf16", 2

PROJECTIONS: Mapping[str, Sequence[tuple[int, int]]] = MappingProxyType(
    {
        "Llama-3-8B": ((4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096)),
        "Llama-3.3-70B": ((8192, 10240), (8192, 8192), (8192, 57344), (28672, 8192)),
        "Qwen3-8B": ((4096, 6144), (4096, 4096), (4096, 24576), (12288, 4096)),
        "Qwen3-32B": ((5120, 10240), (8192, 5120), (5120, 51200), (25600, 5120)),
    }
)
"""In and out features of QKV, O, gate and up, down (each model's config.json on Hugging Face)."""

WEIGHTS = tuple(sorted({weight for weights in PROJECTIONS.values() for weight in weights}))
FEW = (1, 16, 32, 64)
MANY = (1024, 2048, 4096, 8192)
GOOD = 0.9
"""Of the roof: a product that reaches it counts as well scheduled."""


@dataclass(frozen=True, kw_only=True)
class Product:
    """One product on one GPU, by its default tiling.

    Attributes:
        shape: its sizes.
        tiling: how it is cut.
        efficiency: time of its useful work under the roof that holds, over the simulated time.
        filled: programs over SMs, 1 where there are more.
        partial_share: bytes of partial sums, written and read, over those of the weights.
        operations_per_dram_byte: operations per byte between L2 and DRAM; None of few rows.
        dram_over_best: DRAM bytes over those of the best tile order found; None of few rows.
    """

    shape: MatmulShape
    tiling: MatmulTiling
    efficiency: float
    filled: float
    partial_share: float
    operations_per_dram_byte: float | None
    dram_over_best: float | None


@dataclass(frozen=True, kw_only=True)
class ProductRow:
    """All products of as many rows on one GPU; figures are modelled.

    Attributes:
        gpu: name in the table of GPU limits.
        rows: of x.
        products: how many.
        well_scheduled: of these, how many reach `GOOD` of their roof.
        least_efficiency: of any.
        least_filled: of any.
        most_partial_share: of any.
        operations_per_byte_over_balance: least of any, over the GPU's balance point; None of few rows.
        most_dram_over_best: of any; None of few rows.
    """

    gpu: str
    rows: int
    products: int
    well_scheduled: int
    least_efficiency: float
    least_filled: float
    most_partial_share: float
    operations_per_byte_over_balance: float | None
    most_dram_over_best: float | None

    def to_json(self) -> dict[str, Any]:
        """The fields by their names, and where they come from."""
        return asdict(self) | {"provenance": "modelled"}


def simulate_product(shape: MatmulShape, gpu: SmLimits, tiling: MatmulTiling) -> float:
    """Share of the roof that the schedule of a product's grid reaches."""
    grid, resource = product_grid(shape, tiling, gpu, DTYPE)
    per_sm = programs_per_sm(tiling, gpu)
    return simulate_launch(grid, gpu, per_sm, resource=resource).efficiency


def programs_per_sm(tiling: MatmulTiling, gpu: SmLimits) -> int:
    """Programs that the tiling counts on an SM to hold."""
    return max(1, tiling.programs // gpu.sm_count)


def bf16_shape(rows: int, in_features: int, out_features: int) -> MatmulShape:
    """A product of bf16 operands and result."""
    return MatmulShape(
        rows=rows,
        out_features=out_features,
        in_features=in_features,
        x_bytes=ELEMENT_BYTES,
        weight_bytes=ELEMENT_BYTES,
        out_bytes=ELEMENT_BYTES,
    )


def product(shape: MatmulShape, gpu: SmLimits) -> Product:
    """One product by its default tiling."""
    tiling = matmul_tiling(
        kernel_limits(gpu),
        rows=shape.rows,
        out_features=shape.out_features,
        in_features=shape.in_features,
        x_bytes=shape.x_bytes,
        weight_bytes=shape.weight_bytes,
    )
    order = shape.tile_order(tiling)
    shares = [share for share in order if not share.whole]
    partial = sum(
        min(tiling.block_m, shape.rows - share.block_m * tiling.block_m)
        * min(tiling.block_columns, shape.out_features - share.block_n * tiling.block_columns)
        for share in shares
    )
    weight_bytes = shape.out_features * shape.in_features * shape.weight_bytes
    intensity = over_best = None
    if shape.rows > max(FEW):
        per_sm = programs_per_sm(tiling, gpu)
        traffic = matmul_traffic(shape, tiling, gpu=gpu, programs_per_sm=per_sm)
        orders = group_m_traffic(shape, tiling, gpu=gpu, programs_per_sm=per_sm).values()
        intensity = traffic.dram_ops_per_byte
        over_best = traffic.dram_bytes / min(each.dram_bytes for each in orders)
    return Product(
        shape=shape,
        tiling=tiling,
        efficiency=simulate_product(shape, gpu, tiling),
        filled=min(1.0, len(order) / gpu.sm_count),
        partial_share=2 * PARTIAL_BYTES * partial / weight_bytes,
        operations_per_dram_byte=intensity,
        dram_over_best=over_best,
    )


def product_row(gpu: SmLimits, rows: int, weights: Iterable[tuple[int, int]] = WEIGHTS) -> ProductRow:
    """All products of as many rows on a GPU; `weights` holds in and out features."""
    products = [product(bf16_shape(rows, *weight), gpu) for weight in weights]
    peaks = peaks_of(gpu.gpu)
    peak = peaks.flop_per_s["fp16"] if peaks is not None else None
    balance = (peak or math.nan) / gpu.memory_bytes_per_s
    intensities = [each.operations_per_dram_byte for each in products if each.operations_per_dram_byte]
    over_best = [each.dram_over_best for each in products if each.dram_over_best]
    return ProductRow(
        gpu=gpu.gpu,
        rows=rows,
        products=len(products),
        well_scheduled=sum(each.efficiency >= GOOD for each in products),
        least_efficiency=min(each.efficiency for each in products),
        least_filled=min(each.filled for each in products),
        most_partial_share=max(each.partial_share for each in products),
        operations_per_byte_over_balance=min(intensities) / balance if intensities else None,
        most_dram_over_best=max(over_best, default=None),
    )


def product_rows(gpus: Iterable[str], rows: Iterable[int] = (*FEW, *MANY)) -> list[dict[str, Any]]:
    """The suite on each GPU, as JSON.

    Args:
        gpus: names that `find_gpu` knows.
        rows: of x.

    Raises:
        UsageError: no GPU of that name.
    """
    found = [find_gpu(name) for name in gpus]
    counts = tuple(rows)
    return [product_row(gpu, count).to_json() for gpu in found for count in counts]
