"""Promises of the matmul chooser over the projections of language models, and the tables of the docs.

By default a slice is simulated. With --slow and DECODETAX_FULL_MATRIX=1 the tables of the docs are too, which
have the extremes of all products; with DECODETAX_FULL_MATRIX=2 each choice meets its set, in minutes.
"""

import functools
import os
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from decodetax.harness.core.gpus import find_gpu
from decodetax.harness.offline.cache_model import matmul_traffic
from decodetax.harness.offline.default_tilings import kernel_limits, matmul_problem, matmul_tiling
from decodetax.harness.offline.headroom import peak_flop_per_s
from decodetax.harness.offline.schedule import dram_bandwidth, simulate_grid
from decodetax.kernels.matmul_tile_tables import SM_RATES
from decodetax.kernels.matmul_tiling import matmul_tilings
from matmul_grids import matmul_compute_grid, matmul_memory_grid, min_bytes, tensor_cores
from matmul_suite import (
    FEW,
    MANY,
    WEIGHTS,
    bf16_shape,
    cells,
    group_m_traffic,
    product,
    product_row,
    programs_per_sm,
    simulated_efficiency,
)

TABLES = bool(os.environ.get("DECODETAX_FULL_MATRIX"))
FULL = os.environ.get("DECODETAX_FULL_MATRIX") == "2"
GPUS = ("a100", "h100", "b200")
H100_AND_SLOW = [pytest.param(gpu, marks=[] if gpu == "h100" else pytest.mark.slow) for gpu in GPUS]
SMALL = ((4096, 4096), (4096, 6144), (14336, 4096), (8192, 10240))
SLICE = WEIGHTS if FULL else SMALL
SLOW_ROWS = [
    pytest.param(rows, marks=pytest.mark.slow) for rows in (300, 512, *((2048, 4096, 8192) if FULL else ()))
]
ROWS = (*FEW, *MANY) if FULL else (1, 64, 1024, 2048)
DOCS = Path(__file__).parents[2] / "docs" / "kernels" / "prefill_matmul.md"

# Products of so many rows whose schedule does not reach 90% on B200: a tile takes 18 us there and 1.5 us to
# begin, and split-K costs 3 us.
B200_MISSES = {1024: 9, 2048: 5, 4096: 1, 8192: 0}


@functools.cache
def row_of(gpu, rows, weights=WEIGHTS):
    return product_row(find_gpu(gpu), rows, weights)


@pytest.mark.parametrize("gpu", H100_AND_SLOW)
@pytest.mark.parametrize("rows", [rows for rows in ROWS if rows in MANY])
def test_many_rows_are_well_scheduled_and_ordered(rows, gpu):
    row = row_of(gpu, rows, SLICE)
    misses = B200_MISSES[rows] if gpu == "b200" else 0
    assert row["well_scheduled"] >= row["products"] - misses
    assert row["operations_per_byte_over_balance"] >= 1.5
    assert row["most_dram_over_best"] <= 1.05


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("rows", [rows for rows in ROWS if rows in FEW])
def test_few_rows_fill_the_gpu_and_leave_few_partial_sums(rows, gpu):
    row = row_of(gpu, rows)
    assert row["least_filled"] >= 0.9
    # On B200, 64 rows of 4096 to 6144 columns are split in two: narrower tiles keep too few bytes in flight.
    assert row["most_partial_share"] <= (0.125 if (gpu, rows) == ("b200", 64) else 0.0)


def test_split_k_for_64_rows_on_b200_is_the_fastest_choice():
    gpu = find_gpu("b200")
    for weight in WEIGHTS:
        shape = bf16_shape(64, *weight)
        chosen = product(shape, gpu)
        if chosen.partial_share > 0.05:
            tilings = tilings_to_choose_from(shape, gpu)
            assert {tiling.block_n for tiling in tilings} == {chosen.tiling.block_n}  # none is narrower
            assert chosen.efficiency == max(simulated_efficiency(shape, gpu, tiling) for tiling in tilings)


@pytest.mark.parametrize("gpu", H100_AND_SLOW)
@pytest.mark.parametrize("rows", [1, 24, 64, 100, 1024, *SLOW_ROWS])
def test_the_chosen_tiling_is_within_a_tenth_of_the_best_of_its_set(rows, gpu):
    found = find_gpu(gpu)
    # From 4096 rows on all projections fill the GPU, and the largest take the longest to simulate.
    for weight in SLICE if rows < 4096 else SMALL:
        shape = bf16_shape(rows, *weight)
        # Tensor cores or memory bound each tiling; the schedule is the rest.
        tilings = tilings_to_choose_from(shape, found)
        reached = {tiling: limit(shape, tiling, found) for tiling in tilings}
        chosen = matmul_tiling(shape, found)
        assert reached[chosen] >= 0.9 * max(reached.values()), (shape, chosen)


def tilings_to_choose_from(shape, gpu):
    return matmul_tilings(matmul_problem(shape), kernel_limits(gpu))


def limit(shape, tiling, gpu):
    """One over the seconds of the slower of the two units, its schedule included."""
    peak = peak_flop_per_s("bf16", gpu)
    grids = (
        (matmul_compute_grid(shape, tiling), tensor_cores(peak)),
        (matmul_memory_grid(shape, tiling), dram_bandwidth(gpu)),
    )
    per_sm = programs_per_sm(tiling, gpu)
    return 1 / max(simulate_grid(grid, gpu, per_sm, resource=unit).time_s for grid, unit in grids)


def test_rates_of_the_chooser_are_those_of_the_datasheets():
    for gpu in (find_gpu(f"sm_{capability}") for capability in SM_RATES):
        flop_per_s, bytes_per_s, l2_bytes = SM_RATES[gpu.sm]
        peak = gpu.flop_per_s["fp16"]
        assert flop_per_s == pytest.approx(peak / gpu.sm_count, rel=0.01)
        assert bytes_per_s == pytest.approx(gpu.bandwidth_bytes_per_s / gpu.sm_count, rel=0.01)
        assert l2_bytes == gpu.l2_bytes


def test_a_product_by_hand():
    found = product(bf16_shape(1, 4096, 4096), find_gpu("h100"))
    assert (found.tiling.block_n, found.tiling.num_splits) == (32, 1)
    assert found.filled == pytest.approx(128 / 132)
    assert found.partial_share == 0
    useful = 2 * (4096 * 4096 + 4096 + 4096)
    assert found.efficiency == pytest.approx(useful / 3.35e12 / (useful / 3.35e12 + 1.5e-6), rel=1e-3)


def test_a_worse_tiling_is_worse():
    shape, gpu = bf16_shape(1024, 4096, 6144), find_gpu("h100")
    best = product(shape, gpu)
    worse = product(shape, gpu, replace(best.tiling, group_m=1, block_n=32, num_splits=1, whole_tiles=0))
    assert worse.efficiency < best.efficiency
    assert worse.dram_over_best > 1.05


@pytest.mark.slow
@pytest.mark.skipif(not TABLES, reason="the table of the docs takes a minute")
@pytest.mark.parametrize("gpu", GPUS)
def test_the_table_of_the_docs_is_what_the_suite_finds(gpu):
    page = DOCS.read_text(encoding="utf-8")
    for rows in (*FEW, *MANY):
        assert f"| {' | '.join(cells(row_of(gpu, rows)))} |" in page


def test_rows_at_the_balance_point_in_the_docs():
    page = DOCS.read_text(encoding="utf-8")
    _, _, table = page.partition("<!-- rows at the balance point -->")
    for gpu in GPUS:
        peaks = find_gpu(gpu)
        cells = [peaks.name, f"{peaks.flop_per_s['bf16'] / peaks.bandwidth_bytes_per_s:.0f}"]
        for x_bytes, weight_bytes, dtype in ((2, 2, "bf16"), (1, 1, "fp8"), (2, 1, "bf16")):
            peak = peaks.flop_per_s[dtype]
            balance = peak and peak / peaks.bandwidth_bytes_per_s
            cells.append(str(rows_at(balance, x_bytes, weight_bytes)) if balance else "-")
        assert f"| {' | '.join(cells)} |" in table
    shown = [f"{square(rows, 2, 2):.2f}" for rows in (1, 8)]
    shown += [f"{square(rows, 2, 2):.0f}" for rows in (64, 128, 256, 512, 1024, 4096, 8192)]
    assert f"| ops:byte, 8192 x 8192, bf16 | {' | '.join(shown)} |" in page


@pytest.mark.parametrize("gpu", H100_AND_SLOW)
def test_worked_products_of_the_docs(gpu):
    page = (DOCS.parents[1] / "evidence.md").read_text(encoding="utf-8")
    found, shape = find_gpu(gpu), bf16_shape(4096, 4096, 28672)
    tiling = product(shape, found).tiling
    per_sm = programs_per_sm(tiling, found)
    on = {"gpu": found, "programs_per_sm": per_sm}
    whole = matmul_traffic(shape, tiling, **on)
    half = matmul_traffic(shape, tiling, **on | {"gpu": replace(found, l2_bytes=found.l2_bytes // 2)})
    balance = found.flop_per_s["bf16"] / found.bandwidth_bytes_per_s
    figures = (
        f"{tiling.block_m} x {tiling.block_n} x {tiling.block_k}",
        f"{whole.requested_bytes / 1e9:.3f} GB",
        f"{whole.dram_bytes / 1e9:.3f} GB",
        f"{whole.requested_ops_per_byte:.1f}",
        *(f"{each.dram_ops_per_byte:.0f}" for each in (whole, half)),
        f"{1.5 * balance:.0f}",
    )
    assert f"| {gpu.upper()} ({per_sm}) | {' | '.join(figures)} |" in page
    assert whole.requested_bytes == whole.l2_bytes
    orders = group_m_traffic(shape, tiling, **on, candidates=(1, 2, 4, 6, 8, 12, 16, 24, 32)).values()
    figures = (*(f"{each.dram_bytes / 1e9:.3f}" for each in orders), str(tiling.group_m))
    assert f"| {gpu.upper()} ({per_sm}) | {' | '.join(figures)} |" in page
    grid = matmul_compute_grid(shape, tiling)
    units = tensor_cores(peak_flop_per_s("bf16", found))
    schedule = simulate_grid(grid, found, per_sm, resource=units)
    figures = (
        str(len(grid.ctas)),
        f"{schedule.waves:.2f}",
        f"{schedule.ideal_s * 1e6:.1f} us",
        f"{schedule.time_s * 1e6:.1f} us",
        f"{schedule.efficiency:.3f}",
        f"{schedule.longest_sm_over_mean:.3f}",
    )
    assert f"| {gpu.upper()} ({per_sm}) | {' | '.join(figures)} |" in page


def rows_at(balance, x_bytes, weight_bytes):
    """The fewest rows of an 8192 x 8192 weight with as many operations per byte."""
    rows = range(1, 10_000)
    return next(m for m in rows if square(m, x_bytes, weight_bytes) >= balance)


def square(rows, x_bytes, weight_bytes):
    """Operations per byte of an 8192 x 8192 weight, the result in 16 bits."""
    sizes = {"x_bytes": x_bytes, "weight_bytes": weight_bytes, "out_bytes": 2}
    shape = msgspec.structs.replace(bf16_shape(rows, 8192, 8192), **sizes)
    return shape.operations / min_bytes(shape)
