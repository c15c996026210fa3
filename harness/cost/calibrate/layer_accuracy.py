"""States the error of modelled layers (MoE, MLA decode attention, all-reduce), and keeps what was fitted."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..layer_constants import HELD_OUT, OTHER_GPUS, measured_gpu, values_of
from .layer_fit import Errors, Fitted, errors_by_class, fit_layers, kernels_of
from .layers import ALL_REDUCE, MLA, MOE, MeasuredLayer, sample_of

FOLDS = 4
"""Every family is held out once: those of each fold are predicted with constants fitted to the others."""

SAMPLE_ROWS: Mapping[str, int] = {MOE: 60, MLA: 32, ALL_REDUCE: 12}
"""Rows that the project keeps of each GPU and variant."""


def accuracy_columns(tables: Sequence[MeasuredLayer], fitted: Fitted) -> dict[str, Errors]:
    """Errors of all rows, of families that the fit did not see, and with the constants of another GPU."""
    return {
        "all rows": errors_by_class(tables, fitted),
        HELD_OUT: held_out_errors(tables),
        OTHER_GPUS: other_gpu_errors(tables, fitted),
    }


def held_out_errors(tables: Sequence[MeasuredLayer]) -> Errors:
    """The errors of families that the fit did not see: each is held out once."""
    found: dict[tuple[str, str, str], list[Any]] = {}
    for fold in range(FOLDS):
        masks = [measured.families() % FOLDS == fold for measured in tables]
        fitted = fit_layers(measured.only(~mask) for measured, mask in zip(tables, masks, strict=True))
        held = [measured.only(mask) for measured, mask in zip(tables, masks, strict=True)]
        for key, off in errors_by_class(held, fitted).items():
            found.setdefault(key, []).append(off)
    return {key: np.concatenate(parts) for key, parts in sorted(found.items())}


def other_gpu_errors(tables: Sequence[MeasuredLayer], fitted: Fitted) -> Errors:
    """The errors with the constants that a GPU would take if it had not been measured."""
    found: Errors = {}
    for measured in tables:
        others = {}
        for kernel, own, variant in kernels_of(measured):
            names = [name for of, name, each in fitted if (of, each) == (kernel, variant) and name != own]
            if names:
                nearest = measured_gpu(measured.gpu, kernel, variant, among=names)
                others[kernel, own, variant] = fitted[kernel, nearest.name, variant]
        found |= errors_by_class([measured], others)
    return found


def error_rows(columns: Mapping[str, Errors]) -> list[dict[str, str]]:
    """The table of errors to expect: by kernel, GPU and variant, and pooled where the GPU is another."""
    found: dict[tuple[str, str, str, str], list[Any]] = {}
    for column in (HELD_OUT, OTHER_GPUS):
        for (name, gpu, variant), off in columns[column].items():
            table = name.partition(",")[0]
            found.setdefault((table, "" if column == OTHER_GPUS else gpu, variant, column), []).append(off)
    return [
        {
            "kernel": table,
            "gpu": gpu,
            "variant": variant,
            "rows": column,
            "count": str(sum(len(off) for off in parts)),
            "median_percent": f"{100 * np.percentile(np.concatenate(parts), 50):.1f}",
            "p90_percent": f"{100 * np.percentile(np.concatenate(parts), 90):.1f}",
        }
        for (table, gpu, variant, column), parts in found.items()
    ]


def constant_rows(tables: Iterable[MeasuredLayer], fitted: Fitted, source: str) -> list[dict[str, str]]:
    """The table of constants: one constant a row."""
    software = {kernels_of(measured)[-1]: measured.software for measured in tables}
    return [
        {
            "kernel": kernel,
            "gpu": gpu,
            "variant": variant,
            "constant": name,
            "value": value,
            "source": f"fitted to {software[kernel, gpu, variant]} in {source}",
        }
        for (kernel, gpu, variant), constants in sorted(fitted.items(), key=lambda each: each[0])
        for name, value in values_of(constants).items()
    ]


def sample_rows(tables: Iterable[MeasuredLayer], table: str) -> list[dict[str, str]]:
    """The rows that the project keeps of one table."""
    return [row for each in tables if each.table == table for row in sample_of(each, SAMPLE_ROWS[table])]


def files(
    tables: Sequence[MeasuredLayer], fitted: Fitted, columns: Mapping[str, Errors], source: str
) -> dict[str, list[dict[str, str]]]:
    """The rows of each file that the project keeps, by its name; none of a table that was not measured."""
    written = {
        "layer_constants.csv": constant_rows(tables, fitted, source),
        "layer_errors.csv": error_rows(columns),
        **{f"measured_{table}.csv": sample_rows(tables, table) for table in SAMPLE_ROWS},
    }
    return {name: rows for name, rows in written.items() if rows}
