"""The schedule of a compiled case's grid: what waves, uneven shares, empty programs and merges leave."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.gpus import Gpu
from .cache_model import MatmulShape
from .decode_launch import decode_launch
from .headroom import peak_flop_per_s
from .schedule import (
    Launch,
    SharedResource,
    matmul_matrix_launch,
    matmul_memory_launch,
    matrix_units_of,
    memory_of,
    simulate_launch,
)
from .subjects import choose_decode_tiling, kernel_limits
from .tile_order import MatmulCut
from .variants import ELEMENT_BYTES, CompileCase, multiplied_dtype, product_shape, product_tiling


@dataclass(frozen=True, kw_only=True)
class ScheduleEfficiency:
    """Ideal time of a grid's useful work over its simulated time (see `schedule`).

    Attributes:
        uniform: with contexts as long as the cache has room for; of a product, its one figure.
        ragged: with contexts of capacity / 1, / 2, / 3 and so on; None for a product.
    """

    uniform: float
    ragged: float | None = None


@dataclass(frozen=True)
class _Cut:
    """A launch's compile-time sizes as the tiling that they came from, with what else is known of it."""

    sizes: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.sizes[name]
        except KeyError as error:
            raise AttributeError(name) from error


def schedule_efficiency(
    case: CompileCase, launch: str, constants: Mapping[str, Any], gpu: Gpu, programs_per_sm: int
) -> ScheduleEfficiency | None:
    """Simulates the grid of one launch of a case.

    Args:
        case: the call.
        launch: which of its launches: "split_kv", "matmul"; the second kernels are part of these.
        constants: the launch's compile-time sizes, in lower case.
        gpu: the GPU.
        programs_per_sm: that an SM holds at one time.

    Returns:
        None for a launch whose grid this module does not know, or without the sizes that it needs.
    """

    def efficiency(grid: Launch, resource: SharedResource) -> float:
        return simulate_launch(grid, gpu, programs_per_sm, resource=resource).efficiency

    try:
        if launch == "split_kv":
            capacity, batch = case.shape["capacity"], case.shape["batch"]
            cut = _Cut({**constants, "programs": _programs(case, gpu)})
            uniform, ragged = (
                efficiency(_decode(case, cut, lengths), memory_of(gpu))
                for lengths in ([capacity] * batch, [capacity // (i + 1) for i in range(batch)])
            )
            return ScheduleEfficiency(uniform=uniform, ragged=ragged)
        if launch in {"matmul", "tma"}:
            return ScheduleEfficiency(uniform=efficiency(*_product(case, constants, gpu)))
    except AttributeError:  # a kernel whose sizes have other names has no grid that is known here
        pass
    return None


def _programs(case: CompileCase, gpu: Gpu) -> int:
    """Shares of the balanced schedule: the launch's grid, which is none of its compile-time sizes."""
    shape = case.shape
    return choose_decode_tiling(
        batch=shape["batch"],
        q_heads=shape["q_heads"],
        kv_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        capacity=shape["capacity"],
        page_size=shape["page_size"],
        element_bytes=ELEMENT_BYTES[case.dtype],
        limits=kernel_limits(gpu),
    ).programs


def _decode(case: CompileCase, cut: _Cut, lengths: list[int]) -> Launch:
    shape = case.shape
    return decode_launch(
        context_lens=lengths,
        capacity=shape["capacity"],
        q_heads=shape["q_heads"],
        kv_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        element_bytes=ELEMENT_BYTES[case.dtype],
        tiling=cut,
    )


def _product(case: CompileCase, constants: Mapping[str, Any], gpu: Gpu) -> tuple[Launch, SharedResource]:
    """The grid under the roof that holds: the one under which all the useful work takes longer."""
    shape = product_shape(case)
    cut = _Cut(
        {
            **constants,
            "block_columns": constants.get("columns", constants["block_n"]),
            # The launch's whole tiles are a number that it is given, and none of its compile-time sizes.
            "whole_tiles": product_tiling(case, kernel_limits(gpu)).whole_tiles,
        }
    )
    return product_grid(shape, cut, gpu, multiplied_dtype(case, gpu.sm))


def product_grid(shape: MatmulShape, cut: MatmulCut, gpu: Gpu, dtype: str) -> tuple[Launch, SharedResource]:
    """A product's grid, by the matrix units or by memory, whichever needs longer for the useful work."""
    peak = peak_flop_per_s(dtype, gpu)
    if peak is None or shape.operations / peak < shape.least_bytes / gpu.bandwidth_bytes_per_s:
        return matmul_memory_launch(shape, cut), memory_of(gpu)
    return matmul_matrix_launch(shape, cut), matrix_units_of(peak)
