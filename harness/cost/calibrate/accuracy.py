"""States the error of the modelled kernel times: by class of rows, on held-out shapes and on other GPUs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from tabulate import tabulate

from ..kernel_constants import GemmConstants, carried, constants_for, nearest
from .fit import Fitted, fit_all, modelled_s
from .measured import SIZES, Array, Measured

Errors: TypeAlias = dict[tuple[str, str, str], Array]  # by class of rows, GPU and dtype

HELD_OUT, OTHER_GPUS, OTHER_DTYPE = "held-out fifth", "other GPUs", "other dtype"  # columns of the table
HELD_OUT_OF = 5  # one shape of so many is held out


def held_out(measured: Measured) -> Array:
    """Mask of the rows that are held out: entire shapes, on every GPU and in every dtype."""
    rows: Array = measured.hashes() % HELD_OUT_OF == 0
    return rows


def errors(measured: Measured, constants: Any) -> Array:
    """The relative error of each row, |modelled - measured| / measured."""
    return np.abs(modelled_s(measured, constants) / measured.time_s - 1)


def errors_by_class(tables: Iterable[Measured], constants: Fitted) -> Errors:
    """The errors of each class of rows; kernels without constants are left out."""
    found: dict[tuple[str, str, str], list[Array]] = {}
    for measured in tables:
        if measured.key in constants:
            off = errors(measured, constants[measured.key])
            for name, rows in measured.classes().items():
                found.setdefault((name, measured.gpu.name, measured.dtype), []).append(off[rows])
    joined = {key: np.concatenate(parts) for key, parts in found.items()}
    order = list(SIZES)
    keys = sorted(joined, key=lambda key: (order.index(key[0].partition(",")[0]), key))
    return {key: joined[key] for key in keys if len(joined[key])}


def model_constants(tables: Iterable[Measured]) -> Fitted:
    """The constants with which the model predicts each kernel, on any GPU of the table of GPUs."""
    found = {}
    for each in tables:
        constants = constants_for(each.gpu)
        of_kernel = {
            "gemm": constants.gemm.get(each.dtype),
            "decode_attention": constants.decode_attention.get((each.kernel, each.dtype)),
            "prefill_attention": constants.prefill_attention.get(each.dtype),
        }
        found[each.key] = of_kernel[each.table]
    return {key: constants for key, constants in found.items() if constants is not None}


def other_gpu_constants(tables: Iterable[Measured], fitted: Fitted) -> Fitted:
    """For each kernel the constants of the nearest other GPU, in the same dtype."""
    found = {}
    for each in tables:
        other = nearest(each.gpu, each.kernel, each.dtype, fitted, own=False)
        if other is not None and other[1] == each.dtype:
            found[each.key] = carried(fitted[each.kernel, *other])
    return found


def other_dtype_constants(tables: Iterable[Measured], fitted: Fitted) -> Fitted:
    """For each kernel in fp8 the constants of the same GPU in bf16; how GEMM quantises stays that of fp8."""
    found = {}
    for each in tables:
        wide = fitted.get((each.kernel, each.gpu.name, "bf16"))
        if each.dtype == "bf16" or wide is None:
            continue
        own = fitted[each.key]
        if isinstance(wide, GemmConstants) and isinstance(own, GemmConstants):
            wide = replace(wide, quantise_share=own.quantise_share, fixed_s=own.fixed_s)
        found[each.key] = wide
    return found


def accuracy_columns(tables: Sequence[Measured], fitted: Fitted) -> dict[str, Errors]:
    """Errors of all rows, of a held-out fifth of the shapes, and with constants of another GPU or dtype."""
    kept = fit_all(measured.only(~held_out(measured)) for measured in tables)
    return {
        "all rows": errors_by_class(tables, fitted),
        HELD_OUT: errors_by_class([m.only(held_out(m)) for m in tables], kept),
        OTHER_GPUS: errors_by_class(tables, other_gpu_constants(tables, fitted)),
        OTHER_DTYPE: errors_by_class(tables, other_dtype_constants(tables, fitted)),
    }


def error_rows(columns: Mapping[str, Errors]) -> list[dict[str, str]]:
    """The table of errors to expect: by kernel, GPU and dtype, and pooled where the basis is another."""
    found: dict[tuple[str, str, str, str], list[Array]] = {}
    for column in (HELD_OUT, OTHER_GPUS, OTHER_DTYPE):
        for (name, gpu, dtype), off in columns[column].items():
            if name not in SIZES:
                continue
            pooled = {HELD_OUT: (gpu, dtype), OTHER_GPUS: ("", dtype), OTHER_DTYPE: ("", "")}[column]
            found.setdefault((name, *pooled, column), []).append(off)
    rows = []
    for (name, gpu, dtype, column), parts in found.items():
        off = np.concatenate(parts)
        median, tail = (f"{100 * value:.1f}" for value in np.percentile(off, [50, 90]))
        sizes = {"kernel": name, "gpu": gpu, "dtype": dtype, "rows": column, "count": str(len(off))}
        rows.append({**sizes, "median_percent": median, "p90_percent": tail})
    return rows


def accuracy_table(columns: Mapping[str, Errors]) -> str:
    """Median and 90th percentile of the relative error, in percent; the first column has every class."""
    all_rows = next(iter(columns.values()))
    rows = [
        [*key, str(len(all_rows[key])), *(_percent(errors.get(key, ())) for errors in columns.values())]
        for key in all_rows
    ]
    heads = ["kernel", "GPU", "dtype", "rows", *columns]
    text = tabulate([heads, *rows], tablefmt="plain", disable_numparse=True)
    return "\n".join(line.rstrip() for line in text.splitlines())


def _percent(off: Array | tuple[()]) -> str:
    return f"{100 * np.median(off):.1f}% / {100 * np.percentile(off, 90):.1f}%" if len(off) else ""
