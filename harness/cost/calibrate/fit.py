"""Fits the constants of `cost.kernel_time` to measured kernels, and states the error that remains."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeAlias

import numpy as np
from scipy.optimize import minimize
from tabulate import tabulate

from ...core.errors import UsageError
from .. import kernel_time
from ..kernel_time import GROUPED, SINGLE, Constants
from .measured import BYTES, Array, Measured

Fitted: TypeAlias = Mapping[tuple[str, str, str], Constants]  # by kernel, GPU and dtype
Errors: TypeAlias = dict[tuple[str, str, str], Array]  # by class of rows, GPU and dtype

HELD_OUT_OF = 5  # one shape of so many is held out

# The constants that are fitted, and where the search starts; the others keep their defaults.
_STARTS: Mapping[str, Mapping[str, float]] = {
    "gemm": {
        "memory_share": 0.8,
        "compute_share": 0.8,
        "fixed_s": 3e-6,
        "tile_exponent": 0.05,
        "split_bandwidth_share": 5.0,
        "split_s": 3e-6,
    },
    SINGLE: {
        "memory_share": 0.9,
        "fixed_s": 8e-6,
        "item_s": 1.5e-6,
        "ramp_s": 15e-6,
        "ramp_half_s": 20e-6,
    },
    GROUPED: {
        "memory_share": 0.9,
        "fixed_s": 8e-6,
        "item_s": 1e-6,
        "item_row_s": 0.1e-6,
        "ramp_s": 15e-6,
        "ramp_half_s": 20e-6,
    },
    "prefill_attention": {"memory_share": 0.5, "compute_share": 0.6, "fixed_s": 13e-6, "tile_s": 1e-6},
}
# No share of a roof exceeds it; no measured call reads at over 0.93 of the datasheet's bandwidth.
_AT_MOST = {"memory_share": 0.95, "compute_share": 1.0, "quantise_share": 1.0}
_TAIL_WEIGHT, _SMALL_CALL_WEIGHT = 0.3, 0.15
# Nelder-Mead restarts from simplexes of these sizes: one search alone stops in a local minimum.
_SIMPLEX_STEPS, _ITERATIONS = (0.5, 0.3, 0.2, 0.15, 0.1, 0.075), 150


def modelled_s(measured: Measured, constants: Any) -> Array:
    """The modelled time of each row, with the constants of any GPU."""
    gpu, dtype, sizes = measured.gpu, measured.dtype, dict(measured.sizes)
    if measured.table == "gemm":
        terms = kernel_time.gemm_terms(
            gpu,
            constants,
            **sizes,
            dtype=dtype,
            weight_bytes_per_element=BYTES[dtype],
            activation_bytes_per_element=2.0,
            least=lambda ways: np.minimum.reduce(list(ways)),
        )
    elif measured.table == "decode_attention":
        tokens = sizes["sequences"] * sizes["tokens"]
        terms = kernel_time.decode_attention_terms(
            gpu,
            constants,
            sequences=sizes["sequences"],
            kv_heads=sizes["kv_heads"],
            kv_bytes=measured.kv_bytes,
            operations=4 * tokens * sizes["q_heads"] * sizes["head_dim"],
            dtype=dtype,
            group=measured.group,
        )
    else:
        prompt = sizes.pop("tokens")
        terms = kernel_time.prefill_attention_terms(gpu, constants, **sizes, prompt=prompt, dtype=dtype)
    times: Array = terms.time_s
    return times


def loss(measured: Measured, constants: Any) -> float:
    """What a fit minimises: the mean and the tail of |log(modelled / measured)|.

    Small calls of decode attention have little weight, groups over 16 none.
    """
    off = np.abs(np.log(modelled_s(measured, constants) / measured.time_s))
    first, *others = measured.classes().values()
    total = off[first].mean() + _TAIL_WEIGHT * np.percentile(off[first], 90)
    if others and others[0].any():
        total += _SMALL_CALL_WEIGHT * off[others[0]].mean()
    return float(total)


def fit(measured: Measured, compute_share: float | None = None) -> Constants:
    """Fits a kernel's constants, rounded to the four digits that the table of constants has.

    Decode attention takes `compute_share` as given. Whether its kernel for one query head splits long
    contexts is found by trying both: a loss that falls to less than half shows that it does not.

    Raises:
        UsageError: there are no rows to fit to.
    """
    if not next(iter(measured.classes().values())).any():
        raise UsageError(
            f"{measured.table}.csv: too few rows of {measured.gpu.name} in {measured.dtype} to fit"
        )
    start = dict(_STARTS[measured.kernel])
    if measured.table == "gemm" and measured.dtype == "fp8":
        start["quantise_share"] = 0.4
    given = {} if compute_share is None else {"compute_share": compute_share}
    found = _minimised(measured, start, given)
    if measured.kernel == SINGLE:
        unsplit = _minimised(measured, {**start, "unsplit_share": 1.0}, given)
        if loss(measured, unsplit) < loss(measured, found) / 2:
            found = unsplit
    rounded: Constants = kernel_time.constants_from(measured.kernel, cells_of(found))
    return rounded


def _minimised(measured: Measured, start: Mapping[str, float], given: Mapping[str, float]) -> Constants:
    kind = kernel_time.KIND_OF[measured.kernel]

    def constants(logs: Array) -> Constants:
        values = dict(zip(start, np.exp(logs).tolist(), strict=True))
        return kind(
            **given, **{name: min(value, _AT_MOST.get(name, value)) for name, value in values.items()}
        )

    best = np.log(np.array(list(start.values())))
    for step in _SIMPLEX_STEPS:
        simplex = np.vstack([best, best + step * np.eye(len(best))])
        options = {"initial_simplex": simplex, "maxiter": _ITERATIONS, "xatol": 1e-6, "fatol": 1e-9}
        best = minimize(
            lambda logs: loss(measured, constants(logs)), best, method="Nelder-Mead", options=options
        ).x
    return constants(best)


def fit_all(tables: Iterable[Measured]) -> Fitted:
    """Fits every kernel, on every GPU and in every dtype that was measured.

    Raises:
        UsageError: decode attention was measured on a GPU and in a dtype in which GEMM was not.
    """
    fitted: dict[tuple[str, str, str], Constants] = {}
    for measured in sorted(tables, key=lambda m: m.table != "gemm"):
        compute_share = None
        if measured.table == "decode_attention":
            gemm = fitted.get(("gemm", measured.gpu.name, measured.dtype))
            if gemm is None:
                raise UsageError(f"gemm.csv: has no rows of {measured.gpu.name} in {measured.dtype}")
            compute_share = gemm.compute_share
        fitted[measured.key] = fit(measured, compute_share)
    return fitted


def constant_columns() -> list[str]:
    """The columns of the table of constants, of all kernels; seconds are kept as microseconds."""
    kinds = kernel_time.KIND_OF.values()
    return list(dict.fromkeys(kernel_time.column_of(each.name)[0] for kind in kinds for each in fields(kind)))


def cells_of(constants: Constants) -> dict[str, str]:
    """A row of the table of constants, four digits a cell; empty where a constant has its default."""
    cells = dict.fromkeys(constant_columns(), "")
    for constant in fields(constants):
        column, unit = kernel_time.column_of(constant.name)
        value = getattr(constants, constant.name)
        if value != constant.default:
            cells[column] = f"{value / unit:.4g}"
    return cells


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
    order = ("gemm", "decode_attention", "prefill_attention")
    keys = sorted(joined, key=lambda key: (order.index(key[0].partition(",")[0]), key))
    return {key: joined[key] for key in keys if len(joined[key])}


def accuracy_columns(tables: Sequence[Measured], fitted: Fitted) -> dict[str, Errors]:
    """Errors of all rows, of a held-out fifth of the shapes, and with the constants of the other GPU."""
    others = {
        (kernel, gpu, dtype): constants
        for kernel, gpu, dtype in fitted
        for (kernel_2, gpu_2, dtype_2), constants in fitted.items()
        if (kernel_2, dtype_2) == (kernel, dtype) and gpu_2 != gpu
    }
    kept = fit_all(measured.only(~held_out(measured)) for measured in tables)
    return {
        "all rows": errors_by_class(tables, fitted),
        "held-out fifth": errors_by_class([m.only(held_out(m)) for m in tables], kept),
        "constants of the other GPU": errors_by_class(tables, others),
    }


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
