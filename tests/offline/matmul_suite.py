"""Simulated schedules and modelled tile orders of `prefill_matmul` over the projections of four models.

    python tests/offline/matmul_suite.py --gpu a100 h100 b200

prints the table of docs/kernels/prefill_matmul.md, about a minute a GPU. All products are bf16, contiguous
and aligned, in the tiling that the kernel chooses. All figures are modelled.
"""

import argparse
import math
from dataclasses import replace
from types import SimpleNamespace

from decodetax.harness.core.gpus import find_gpu
from decodetax.harness.offline.cache_model import MatmulOperands, matmul_traffic
from decodetax.harness.offline.default_tilings import matmul_tiling
from decodetax.harness.offline.schedule import simulate_grid
from decodetax.harness.offline.tile_order import PARTIAL_BYTES, matmul_tile_order
from matmul_grids import matmul_grid

ELEMENT_BYTES = 2

# In and out features of QKV, O, gate and up, down (each model's config.json on Hugging Face).
PROJECTIONS = {
    "Llama-3-8B": ((4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096)),
    "Llama-3.3-70B": ((8192, 10240), (8192, 8192), (8192, 57344), (28672, 8192)),
    "Qwen3-8B": ((4096, 6144), (4096, 4096), (4096, 24576), (12288, 4096)),
    "Qwen3-32B": ((5120, 10240), (8192, 5120), (5120, 51200), (25600, 5120)),
}
WEIGHTS = tuple(sorted({weight for weights in PROJECTIONS.values() for weight in weights}))
FEW = (1, 16, 32, 64)
MANY = (1024, 2048, 4096, 8192)
GOOD_EFFICIENCY = 0.9
COLUMNS = {
    "gpu": ("gpu", "s"),
    "rows": ("rows", "d"),
    "products": ("products", "d"),
    "90% or more": ("well_scheduled", "d"),
    "least efficiency": ("least_efficiency", ".3f"),
    "least SMs filled": ("least_filled", ".2f"),
    "most partial sums/weights": ("most_partial_share", ".2f"),
    "ops:DRAM byte/balance": ("operations_per_byte_over_balance", ".2f"),
    "DRAM/best order": ("most_dram_over_best", ".3f"),
}


def bf16_shape(rows, in_features, out_features):
    sizes = dict.fromkeys(("x_bytes", "weight_bytes", "out_bytes"), ELEMENT_BYTES)
    return MatmulOperands(rows=rows, out_features=out_features, in_features=in_features, **sizes)


def programs_per_sm(tiling, gpu):
    """CTAs that the tiling counts on an SM to hold."""
    return max(1, tiling.programs // gpu.sm_count)


def simulated_efficiency(shape, gpu, tiling):
    """Roofline time over simulated time."""
    grid, resource = matmul_grid(shape, tiling, gpu, "bf16")
    return simulate_grid(grid, gpu, programs_per_sm(tiling, gpu), resource=resource).efficiency


def product(shape, gpu, tiling=None):
    """Figures of one product by its default tiling, or by another."""
    tiling = tiling or matmul_tiling(shape, gpu)
    order = matmul_tile_order(shape, tiling)
    partial = sum(
        min(tiling.block_m, shape.rows - tile.block_m * tiling.block_m)
        * min(tiling.block_columns, shape.out_features - tile.block_n * tiling.block_columns)
        for tile in order
        if not tile.whole
    )
    intensity = over_best = None
    if shape.rows > max(FEW):
        on = {"gpu": gpu, "programs_per_sm": programs_per_sm(tiling, gpu)}
        traffic = matmul_traffic(shape, tiling, **on)
        orders = group_m_traffic(shape, tiling, **on).values()
        intensity = traffic.dram_ops_per_byte
        over_best = traffic.dram_bytes / min(each.dram_bytes for each in orders)
    return SimpleNamespace(
        tiling=tiling,
        efficiency=simulated_efficiency(shape, gpu, tiling),
        filled=min(1.0, len(order) / gpu.sm_count),
        # Written and read, over the bytes of the weights.
        partial_share=2
        * PARTIAL_BYTES
        * partial
        / (shape.out_features * shape.in_features * shape.weight_bytes),
        operations_per_dram_byte=intensity,
        dram_over_best=over_best,
    )


def group_m_traffic(shape, tiling, *, candidates=None, **on):
    """Modelled traffic by `group_m`; by default powers of two and those times 1.5, to all row blocks."""
    if candidates is None:
        blocks_m = math.ceil(shape.rows / tiling.block_m)
        powers = [1 << exponent for exponent in range(blocks_m.bit_length())]
        candidates = (size for power in powers for size in (power, 3 * power) if size < blocks_m)
        candidates = (*candidates, blocks_m)
    return {
        group_m: matmul_traffic(shape, replace(tiling, group_m=group_m), **on)
        for group_m in sorted(set(candidates))
    }


def product_row(gpu, rows, weights=WEIGHTS):
    """The extremes of all products of as many rows on a GPU; `weights` holds in and out features."""
    products = [product(bf16_shape(rows, *weight), gpu) for weight in weights]
    balance = gpu.flop_per_s["fp16"] / gpu.bandwidth_bytes_per_s
    intensities = [each.operations_per_dram_byte for each in products if each.operations_per_dram_byte]
    return {
        "gpu": gpu.name,
        "rows": rows,
        "products": len(products),
        "well_scheduled": sum(each.efficiency >= GOOD_EFFICIENCY for each in products),
        "least_efficiency": min(each.efficiency for each in products),
        "least_filled": min(each.filled for each in products),
        "most_partial_share": max(each.partial_share for each in products),
        "operations_per_byte_over_balance": min(intensities) / balance if intensities else None,
        "most_dram_over_best": max(
            (each.dram_over_best for each in products if each.dram_over_best), default=None
        ),
    }


def cells(row):
    """A row as the documented table shows it."""
    return ["-" if row[name] is None else format(row[name], shown) for name, shown in COLUMNS.values()]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", nargs="+", default=["a100", "h100", "b200"])
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")  # noqa: T201  (its result)
    for gpu in (find_gpu(name, with_limits=True) for name in parser.parse_args().gpu):
        for rows in (*FEW, *MANY):
            print(f"| {' | '.join(cells(product_row(gpu, rows)))} |")  # noqa: T201


if __name__ == "__main__":
    main()
