"""Fits the constants of the modelled kernels to measured ones."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeAlias

import numpy as np
from scipy.optimize import minimize

from ...core.errors import UsageError
from ..attention_time import decode_attention_terms, prefill_attention_terms
from ..gemm_time import gemm_terms
from ..kernel_constants import GROUPED, KIND_OF, SINGLE, Constants, calibrated, column_of, constants_from
from .measured import BYTES, Array, Measured

Fitted: TypeAlias = Mapping[tuple[str, str, str], Constants]  # by kernel, GPU and dtype

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
# An SM reads at most 64 bytes a clock from L2, which is 112 GB/s at 1.755 GHz.
_AT_MOST = {"memory_share": 0.95, "compute_share": 1.0, "quantise_share": 1.0, "l2_sm_bytes_per_s": 112e9}
# Constants of a mechanism, the kernels that may have it, and how far the loss must fall to show that they do.
_MECHANISMS: tuple[tuple[Mapping[str, float], tuple[str, ...], float], ...] = (
    ({"unsplit_share": 1.0}, (SINGLE,), 0.5),
    ({"l2_share": 0.8, "l2_sm_bytes_per_s": 40e9}, (SINGLE, GROUPED), 0.9),
    ({"l2_share": 0.3, "l2_sm_bytes_per_s": 40e9}, ("gemm",), 0.9),
    ({"tile_depth": 300.0}, ("gemm",), 0.95),
)
_BETTER = 0.9
_TAIL_WEIGHT, _SMALL_CALL_WEIGHT = 0.3, 0.15
# Nelder-Mead restarts from simplexes of these sizes: one search alone stops in a local minimum.
_SIMPLEX_STEPS, _ITERATIONS = (0.5, 0.3, 0.2, 0.15, 0.1, 0.075), 150


def modelled_s(measured: Measured, constants: Any) -> Array:
    """The modelled time of each row, with the constants of any GPU."""
    gpu, dtype, sizes = measured.gpu, measured.dtype, dict(measured.sizes)
    if measured.table == "gemm":
        terms = gemm_terms(
            gpu,
            constants,
            rows=sizes["rows"],
            out_features=sizes["out_features"],
            in_features=sizes["in_features"],
            dtype=dtype,
            weight_bytes_per_element=BYTES[dtype],
            activation_bytes_per_element=2.0,
            least=lambda ways: np.minimum.reduce(list(ways)),
        )
    elif measured.table == "decode_attention":
        tokens = sizes["sequences"] * sizes["tokens"]
        terms = decode_attention_terms(
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
        terms = prefill_attention_terms(gpu, constants, **sizes, prompt=prompt, dtype=dtype)
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

    Decode attention takes `compute_share` as given. Constants of a mechanism that only some kernels show are
    kept if the loss falls by enough: whether the kernel of decode attention for one query head reads a long
    context with one CTA, and whether the L2 keeps what the call before read.

    Raises:
        UsageError: there are no rows to fit to.
    """
    if not next(iter(measured.classes().values())).any():
        raise UsageError(f"{measured.table}: too few rows of {measured.gpu.name} in {measured.dtype} to fit")
    start = dict(_STARTS[measured.kernel])
    if measured.table == "gemm" and measured.dtype == "fp8":
        start["quantise_share"] = 0.4
    given = {} if compute_share is None else {"compute_share": compute_share}
    found = _minimised(measured, start, given)
    for mechanism, kernels, at_most in _MECHANISMS:
        if measured.kernel in kernels:
            more = _minimised(measured, {**start, **mechanism}, given)
            if loss(measured, more) < at_most * loss(measured, found):
                found, start = more, {**start, **mechanism}
    rounded: Constants = constants_from(measured.kernel, cells_of(found))
    return rounded


def _minimised(measured: Measured, start: Mapping[str, float], given: Mapping[str, float]) -> Constants:
    kind = KIND_OF[measured.kernel]

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


def settled(tables: Iterable[Measured], fitted: Fitted) -> Fitted:
    """The constants to keep: those that the project has, unless a fit is better than them by a tenth.

    Searches that take other paths end in other minima, whose losses differ by 1%; figures do not move for
    that.
    """
    kept = calibrated()
    return {
        each.key: kept[each.key]
        if each.key in kept and loss(each, kept[each.key]) <= loss(each, fitted[each.key]) / _BETTER
        else fitted[each.key]
        for each in tables
    }


def constant_columns() -> list[str]:
    """The columns of the table of constants, of all kernels; seconds are kept as microseconds."""
    kinds = KIND_OF.values()
    return list(dict.fromkeys(column_of(each.name)[0] for kind in kinds for each in fields(kind)))


def cells_of(constants: Constants) -> dict[str, str]:
    """A row of the table of constants, four digits a cell; empty where a constant has its default."""
    cells = dict.fromkeys(constant_columns(), "")
    for constant in fields(constants):
        column, unit = column_of(constant.name)
        value = getattr(constants, constant.name)
        if value != constant.default:
            cells[column] = f"{value / unit:.4g}"
    return cells
