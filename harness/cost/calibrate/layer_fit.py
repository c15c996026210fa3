"""Fits the constants of MoE layers, MLA decode attention and all-reduce; states the error that remains."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from scipy.optimize import minimize

from .. import all_reduce_time, mla_time, moe_time
from ..all_reduce_time import DIRECT, EAGER, HOW, RING, DirectConstants, EagerConstants, RingConstants
from ..kernel_time import KernelTime
from ..layer_constants import Key, constants_of, from_values, values_of
from ..mla_time import MlaConstants
from ..moe_time import NARROW_WEIGHTS, MoeConstants
from .layers import ALL_REDUCE, MLA, MOE, MeasuredLayer, kv_bytes, moe_dtype, operations
from .measured import Array

Fitted: TypeAlias = dict[Key, Any]  # constants by kernel, GPU and variant
Errors: TypeAlias = dict[tuple[str, str, str], Array]  # by class of rows, GPU and variant

_KINDS: Mapping[str, type[Any]] = {
    moe_time.KERNEL: MoeConstants,
    mla_time.KERNEL: MlaConstants,
    RING: RingConstants,
    DIRECT: DirectConstants,
    EAGER: EagerConstants,
}
_STARTS: Mapping[str, Mapping[str, float]] = {
    moe_time.KERNEL: {
        "memory_share": 0.8,
        "compute_share": 0.7,
        "tile_exponent": 0.1,
        "pass_share": 0.3,
        "fixed_s": 20e-6,
        "expert_s": 0.02e-6,
    },
    mla_time.KERNEL: {
        "memory_share": 0.9,
        "compute_share": 0.6,
        "heads_share": 0.5,
        "sequence_s": 6e-6,
        "ramp_s": 20e-6,
        "ramp_half_s": 20e-6,
        "fixed_s": 10e-6,
    },
    RING: {"launch_s": 5e-6, "hop_s": 1e-6, "small_share": 0.2, "large_s": 20e-6, "large_share": 0.75},
    DIRECT: {
        "launch_s": 4e-6,
        "peer_s": 0.1e-6,
        "two_shot_s": 4e-6,
        "one_shot_share": 0.7,
        "two_shot_share": 0.7,
    },
    EAGER: {"host_s": 20e-6, "copy_share": 0.8},
}
_SWITCH_START = {"switch_s": 40e-6, "switch_share": 0.6}
_SWITCH_GAIN = 0.9  # the switch counts as used if its constants lower the loss to this share
_NARROW_START = {"sm_dequantised_per_s": 1e11}
# Weights of 4 bits are multiplied by the tensor cores of bf16, at the same share of their rate.
_NARROW_TAKES = ("compute_share", "expert_s")
_AT_MOST = 0.95  # of every share: no measured call reaches more of a roof
_TAIL_WEIGHT = 0.3
_SIMPLEX_STEPS, _ITERATIONS = (0.5, 0.3, 0.2, 0.1), 400
_LARGEST_LOG = 60.0  # of a constant or its inverse; keeps the search finite


def modelled(measured: MeasuredLayer, constants: Fitted) -> Array:
    """The modelled time of each row in seconds, with constants by kernel, GPU and variant."""
    times: Array = _terms(measured, constants).time_s
    return times


def _terms(measured: MeasuredLayer, constants: Fitted) -> KernelTime:
    gpu, s = measured.gpu, measured.sizes
    if measured.table == MOE:
        dtype, weight_bytes = moe_dtype(measured)
        return moe_time.moe_terms(
            gpu,
            constants[kernels_of(measured)[0]],
            tokens=s["tokens"],
            hidden_size=s["hidden_size"],
            inner_size=np.ceil(s["expert_intermediate"] / s["tensor_parallel"]),
            local_experts=s["experts"] / s["expert_parallel"],
            gates=s["gates"],
            distinct=s["distinct"],
            rows=s["rows"],
            row_tiles=measured.row_tiles,
            dtype=dtype,
            weight_bytes_per_element=weight_bytes,
            least=_least,
            round_up=np.ceil,
        )
    if measured.table == MLA:
        return mla_time.mla_decode_terms(
            gpu,
            constants[mla_time.KERNEL, gpu.name, measured.variant],
            sequences=s["batch"],
            q_heads=s["q_heads"],
            kv_bytes=kv_bytes(measured),
            operations=operations(measured),
            dtype=measured.variant,
        )
    engine = HOW[measured.variant]
    return all_reduce_time.all_reduce_terms(
        gpu,
        constants[RING, gpu.name, RING],
        constants[DIRECT, gpu.name, engine] if engine else None,
        constants[EAGER, gpu.name, engine] if measured.variant == "vllm_eager" else None,
        gpus=s["num_gpus"],
        reduced_bytes=s["message_elements"] * s["element_bytes"],
        least=_least,
        where=np.where,
    )


def _least(ways: Sequence[Any]) -> Any:
    return np.minimum.reduce(np.broadcast_arrays(*ways))


def kernels_of(measured: MeasuredLayer) -> tuple[Key, ...]:
    """The keys of the constants that a table's rows are fitted to; the last is of these rows alone."""
    gpu, engine = measured.gpu.name, HOW.get(measured.variant, "")
    if measured.table != ALL_REDUCE:
        return ((measured.table, gpu, moe_time.FITTED_AS.get(measured.variant, measured.variant)),)
    keys = [(RING, gpu, RING)]
    if engine:
        keys.append((DIRECT, gpu, engine))
    if measured.variant == "vllm_eager":
        keys.append((EAGER, gpu, engine))
    return tuple(keys)


def fit_layers(tables: Iterable[MeasuredLayer]) -> Fitted:
    """Fits every kernel, GPU and variant that was measured, rounded to four digits.

    bf16 comes before narrower weights, NCCL before engines' own all-reduce, graphs before eager calls: the
    later take the constants of the earlier as given. Tables without the earlier are left out, as are those of
    dtypes that take the constants of another.
    """
    order = ("bf16", "nccl", "vllm_graph", "trtllm", "vllm_eager")
    fitted: Fitted = {}
    for measured in sorted(
        tables, key=lambda each: order.index(each.variant) if each.variant in order else len(order)
    ):
        *given, own = kernels_of(measured)
        narrow = measured.variant == NARROW_WEIGHTS
        if narrow:
            given = [(moe_time.KERNEL, measured.gpu.name, "bf16")]
        borrows = measured.table == MOE and measured.variant in moe_time.FITTED_AS
        if len(measured.time_s) and not borrows and all(key in fitted for key in given):
            base = fitted[given[0]] if narrow else None
            fitted[own] = _fit(measured, own, fitted, base)
    return fitted


def _fit(measured: MeasuredLayer, key: Key, fitted: Fitted, base: Any) -> Any:
    kernel, kind = key[0], _KINDS[key[0]]

    def found(start: Mapping[str, float], taken: Mapping[str, float]) -> Any:
        best = _minimised(lambda values: loss(measured, fitted | {key: kind(**values, **taken)}), start)
        rounded = values_of(kind(**best, **taken))
        return from_values(kind, {name: float(value) for name, value in rounded.items()})

    start = dict(_STARTS[kernel])
    if base is not None:
        taken = {name: getattr(base, name) for name in _NARROW_TAKES}
        start = {name: value for name, value in start.items() if name not in taken} | _NARROW_START
        return found(start, taken)
    first = found(start, {})
    if kernel == RING:
        with_switch = found(start | _SWITCH_START, {})
        losses = [loss(measured, fitted | {key: each}) for each in (first, with_switch)]
        return with_switch if losses[1] < _SWITCH_GAIN * losses[0] else first
    return first


def loss(measured: MeasuredLayer, constants: Fitted) -> float:
    """What a fit minimises: the mean and the tail of |log(modelled / measured)|."""
    off = np.abs(np.log(modelled(measured, constants) / measured.time_s))
    return float(off.mean() + _TAIL_WEIGHT * np.percentile(off, 90))


def _minimised(loss_of: Callable[[dict[str, float]], float], start: Mapping[str, float]) -> dict[str, float]:
    """Nelder-Mead, restarted from smaller simplexes, without random numbers; in logarithms, so above 0."""

    def values(logs: Array) -> dict[str, float]:
        named = zip(start, np.exp(np.clip(logs, -_LARGEST_LOG, _LARGEST_LOG)).tolist(), strict=True)
        return {name: min(value, _AT_MOST) if name.endswith("share") else value for name, value in named}

    best = np.log(np.array(list(start.values())))
    for step in _SIMPLEX_STEPS:
        simplex = np.vstack([best, best + step * np.eye(len(best))])
        options = {"initial_simplex": simplex, "maxiter": _ITERATIONS, "xatol": 1e-5, "fatol": 1e-7}
        best = minimize(lambda logs: loss_of(values(logs)), best, method="Nelder-Mead", options=options).x
    return values(best)


def kept_constants(tables: Iterable[MeasuredLayer]) -> Fitted:
    """The constants that the project keeps, of the kernels of these tables."""
    keys = {key for measured in tables for key in kernels_of(measured)}
    gpus = {measured.gpu.name: measured.gpu for measured in tables}
    return {key: constants_of(_KINDS[key[0]], gpus[key[1]], key[0], key[2]) for key in keys}


def errors_by_class(tables: Iterable[MeasuredLayer], constants: Fitted) -> Errors:
    """The relative error of each class of rows, |modelled - measured| / measured."""
    found: dict[tuple[str, str, str], list[Array]] = {}
    for measured in tables:
        if all(key in constants for key in kernels_of(measured)):
            off = np.abs(modelled(measured, constants) / measured.time_s - 1)
            for name, rows in measured.classes().items():
                found.setdefault((name, measured.gpu.name, measured.variant), []).append(off[rows])
    return {key: np.concatenate(parts) for key, parts in sorted(found.items())}
