"""Constants of the kernels of layers (MoE, MLA decode, all-reduce): one constant a row of their table."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from ..core.data_table import data_table
from ..core.gpus import Gpu, gpu_table

Key: TypeAlias = tuple[str, str, str]  # kernel, GPU, variant

HELD_OUT, OTHER_GPUS = "held-out families", "other GPUs"
"""Rows whose errors are stated: those that a fit did not see, and those of other GPUs."""


@functools.cache
def _values() -> Mapping[Key, Mapping[str, float]]:
    """The constants of each kernel, GPU and variant, by their names in the table."""
    found: dict[Key, dict[str, float]] = {}
    for row in data_table("layer_constants.csv"):
        key = row["kernel"], row["gpu"], row["variant"]
        found.setdefault(key, {})[row["constant"]] = float(row["value"])
    return found


def measured_gpu(gpu: Gpu, kernel: str, variant: str, among: Sequence[str] = ()) -> Gpu:
    """The measured GPU whose constants a GPU takes.

    That is the GPU itself, else the measured one of the highest compute capability that is not above its own,
    else the measured one of the lowest. `among` names the measured GPUs; without it, the table does.
    """
    names = among or [name for found, name, of in _values() if (found, of) == (kernel, variant)]
    if gpu.name in names:
        return gpu
    measured = sorted((gpu_table()[name] for name in names), key=lambda each: each.sm)
    return max(
        (each for each in measured if each.sm <= gpu.sm), key=lambda each: each.sm, default=measured[0]
    )


@dataclass(frozen=True)
class LayerBasis:
    """The measurements behind a modelled kernel of a layer.

    Attributes:
        gpu: the GPU whose measured kernels the constants were fitted to.
        measured: whether it is the GPU itself; if not, the constants are applied to another datasheet.
        median_error: relative error to expect at the median; None where no other GPU was measured.
        p90_error: the 90th percentile of that error.
    """

    gpu: str
    measured: bool
    median_error: float | None
    p90_error: float | None


def basis_of(gpu: Gpu, kernel: str, variant: str, *, fitted: tuple[str, str] | None = None) -> LayerBasis:
    """Says what a GPU's constants of a kernel rest on, and the error to expect.

    Args:
        gpu: the GPU.
        kernel: "moe", "mla_decode" or "all_reduce".
        variant: as the table of errors names it: a dtype, or how GPUs reduce.
        fitted: kernel and variant in the table of constants, where these are others.
    """
    own = measured_gpu(gpu, *(fitted or (kernel, variant)))
    is_own = own.name == gpu.name
    rows = HELD_OUT if is_own else OTHER_GPUS
    for row in data_table("layer_errors.csv"):
        found = row["kernel"], row["gpu"], row["variant"], row["rows"]
        if found == (kernel, own.name if is_own else "", variant, rows):
            return LayerBasis(
                own.name, is_own, float(row["median_percent"]) / 100, float(row["p90_percent"]) / 100
            )
    return LayerBasis(own.name, is_own, None, None)


def constants_of(kind: type[Any], gpu: Gpu, kernel: str, variant: str) -> Any:
    """A GPU's constants of a kernel, as `kind`, whose fields name them; times are in seconds."""
    values = _values()[kernel, measured_gpu(gpu, kernel, variant).name, variant]
    return from_values(kind, values)


def from_values(kind: type[Any], values: Mapping[str, float]) -> Any:
    """Makes `kind` of values by their names in the table; those missing have their defaults."""
    columns = {each.name: _column_of(each.name) for each in fields(kind)}
    return kind(
        **{name: values[column] * unit for name, (column, unit) in columns.items() if column in values}
    )


def values_of(constants: Any) -> dict[str, str]:
    """The cells of the table for `constants`, four digits each; without those that have their defaults."""
    cells = {}
    for each in fields(constants):
        column, unit = _column_of(each.name)
        value = getattr(constants, each.name)
        if value != each.default:
            cells[column] = f"{value / unit:.4g}"
    return cells


def _column_of(constant: str) -> tuple[str, float]:
    """A constant's name in the table, and the unit of its values there: seconds as microseconds."""
    return (
        (f"{constant[:-2]}_us", 1e-6)
        if constant.endswith("_s") and "_per_" not in constant
        else (constant, 1.0)
    )
