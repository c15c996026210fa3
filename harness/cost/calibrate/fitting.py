"""Fits the constants of `cost.kernel_time` to measured kernels."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeAlias

import numpy as np

from ...core.errors import UsageError
from .. import kernel_time
from ..kernel_time import GROUPED, SINGLE
from .tables import BYTES, Array, Measured

Fitted: TypeAlias = dict[tuple[str, str, str], dict[str, str]]  # cells by kernel, GPU and dtype

# The constants that are fitted, with where the search starts; the others keep their defaults.
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
# No share of a roof passes it; no measured call reads at over 0.93 of the datasheet's bandwidth.
_AT_MOST = {"memory_share": 0.95, "compute_share": 1.0, "quantise_share": 1.0}
_TAIL_WEIGHT, _REST_WEIGHT = 0.3, 0.15
_SEARCH_STEPS, _SEARCH_ITERATIONS = (0.3, 0.15, 0.1, 0.075), 150


def modelled_s(measured: Measured, constants: Any) -> Array:
    """The model's time of each row, with any GPU's constants."""
    peaks, dtype, sizes = measured.peaks, measured.dtype, dict(measured.sizes)
    if measured.table == "gemm":
        terms = kernel_time.gemm_terms(
            peaks,
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
            peaks,
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
        terms = kernel_time.prefill_attention_terms(peaks, constants, **sizes, prompt=prompt, dtype=dtype)
    times: Array = terms.time_s
    return times


def errors(measured: Measured, constants: Any) -> Array:
    """The relative error of each row, |modelled - measured| / measured."""
    return np.abs(modelled_s(measured, constants) / measured.time_s - 1)


def fit(measured: Measured, compute_share: float | None = None) -> dict[str, str]:
    """Fits a kernel's constants: the cells of its row of the table, four digits each.

    Decode attention is given its share of the rate. Whether its kernel for one query head cuts long contexts
    is found by trying both: an error that falls to less than half shows that it does not.
    """
    start = dict(_STARTS[measured.kernel])
    if measured.table == "gemm" and measured.dtype == "fp8":
        start["quantise_share"] = 0.4
    given = {} if compute_share is None else {"compute_share": compute_share}
    cells, loss = _search(measured, start, given)
    if measured.kernel == SINGLE:
        uncut, uncut_loss = _search(measured, {**start, "unsplit_share": 1.0}, given)
        if uncut_loss < loss / 2:
            return uncut
    return cells


def _search(
    measured: Measured, start: Mapping[str, float], given: Mapping[str, float]
) -> tuple[dict[str, str], float]:
    """Minimises |log(modelled / measured)|, its mean and its tail, with little weight on small calls."""
    kind = kernel_time.KIND_OF[measured.kernel]
    classes = list(measured.classes().values())
    aimed = measured.only(classes[0])
    rest = measured.only(classes[1]) if len(classes) > 1 and classes[1].any() else None
    if not len(aimed.time_s):
        raise UsageError(f"{measured.table}.csv: too few rows of {measured.gpu} in {measured.dtype} to fit")

    def values(logs: Array) -> dict[str, float]:
        found = dict(zip(start, np.exp(logs).tolist(), strict=True))
        return {**given, **{name: min(value, _AT_MOST.get(name, value)) for name, value in found.items()}}

    def loss(logs: Array) -> float:
        constants = kind(**values(logs))
        off = np.abs(np.log(modelled_s(aimed, constants) / aimed.time_s))
        total = off.mean() + _TAIL_WEIGHT * np.percentile(off, 90)
        if rest is not None:
            total += _REST_WEIGHT * np.abs(np.log(modelled_s(rest, constants) / rest.time_s)).mean()
        return float(total)

    best = np.log(np.array(list(start.values())))
    for step in _SEARCH_STEPS:
        best = nelder_mead(loss, best, step, _SEARCH_ITERATIONS)
    cells = dict.fromkeys(constant_columns(), "")
    for name, value in values(best).items():
        column, scale = (f"{name[:-2]}_us", 1e6) if name.endswith("_s") else (name, 1.0)
        cells[column] = f"{value * scale:.4g}"
    return cells, loss(best)


def nelder_mead(function: Callable[[Array], float], start: Array, step: float, iterations: int) -> Array:
    """Minimises a function by the downhill simplex method, from a simplex of `step` around the start."""
    points = [start, *(start + step * axis for axis in np.eye(len(start)))]
    simplex = [(function(point), point) for point in points]
    for _ in range(iterations):
        simplex.sort(key=lambda pair: pair[0])
        (worst, worst_point), second_worst, best = simplex[-1], simplex[-2][0], simplex[0][0]
        centre = np.mean([point for _, point in simplex[:-1]], axis=0)
        reflected = 2 * centre - worst_point
        value = function(reflected)
        new = (value, reflected)
        if value < best:
            expanded = 3 * centre - 2 * worst_point
            new = min(new, (function(expanded), expanded), key=lambda pair: pair[0])
        elif value >= second_worst:
            contracted = (centre + (reflected if value < worst else worst_point)) / 2
            new = (function(contracted), contracted)
        if new[0] < worst:
            simplex[-1] = new
        else:
            least = simplex[0]
            halved = [(point + least[1]) / 2 for _, point in simplex[1:]]
            simplex = [least, *((function(point), point) for point in halved)]
    return min(simplex, key=lambda pair: pair[0])[1]


def fit_all(tables: Iterable[Measured]) -> Fitted:
    """Fits every kernel, on every GPU and in every dtype that there are measurements of."""
    fitted: Fitted = {}
    for measured in sorted(tables, key=lambda m: m.table != "gemm"):
        share = None
        if measured.table == "decode_attention":
            product = fitted.get(("gemm", measured.gpu, measured.dtype))
            if product is None:
                raise UsageError(f"gemm.csv: has no rows of {measured.gpu} in {measured.dtype}")
            share = float(product["compute_share"])
        fitted[measured.kernel, measured.gpu, measured.dtype] = fit(measured, share)
    return fitted


def constant_columns() -> list[str]:
    """The columns of the table of constants, of all kernels; seconds are kept as microseconds."""
    names = [constant.name for kind in kernel_time.KIND_OF.values() for constant in fields(kind)]
    return list(dict.fromkeys(f"{name[:-2]}_us" if name.endswith("_s") else name for name in names))
