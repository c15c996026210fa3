"""How far the model is from measured kernels, as a table."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.gpus import gpu_of_device
from .. import kernel_time
from .fitting import Fitted, errors, fit_all
from .tables import Array, Measured

HELD_OUT_OF = 5  # one shape of so many is held out

ConstantsOf = Callable[[Measured], Any]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The relative errors of a class of rows, |modelled - measured| / measured, in no order.

    Attributes:
        kind: what was measured, and which rows of it.
        gpu: where.
        dtype: in what.
        all: with the constants fitted to all rows.
        held_out: of the held-out shapes, with constants fitted to the others.
        other_gpu: with the constants of the other GPU on this one's datasheet.
    """

    kind: str
    gpu: str
    dtype: str
    all: Array
    held_out: Array
    other_gpu: Array


def held_out(measured: Measured) -> Array:
    """Which rows are held out: whole shapes, on every GPU and in every dtype."""
    rows: Array = measured.hashes() % HELD_OUT_OF == 0
    return rows


def accuracy_of(tables: Sequence[Measured], fitted: Fitted) -> list[Accuracy]:
    """Compares all rows, a held-out fifth of the shapes, and either GPU by the constants of the other."""
    kept = fit_all(measured.only(~held_out(measured)) for measured in tables)
    fifth = [measured.only(held_out(measured)) for measured in tables]
    by_all = _errors_of(tables, lambda m: constants_of(fitted, m))
    by_kept = _errors_of(fifth, lambda m: constants_of(kept, m))
    by_other = _errors_of(tables, lambda m: _other_constants(fitted, m))
    none = np.array([])
    return [
        Accuracy(
            kind=key[0],
            gpu=key[1],
            dtype=key[2],
            all=errors_of_class,
            held_out=by_kept.get(key, none),
            other_gpu=by_other.get(key, none),
        )
        for key, errors_of_class in by_all.items()
    ]


def sample_accuracy(sample: Sequence[Measured]) -> list[Accuracy]:
    """Compares the rows that the project keeps with the constants that it keeps."""
    none = np.array([])
    return [
        Accuracy(kind=kind, gpu=gpu, dtype=dtype, all=off, held_out=none, other_gpu=none)
        for (kind, gpu, dtype), off in _errors_of(sample, _kept_constants).items()
    ]


def constants_of(fitted: Fitted, measured: Measured) -> Any:
    """What was fitted for the kernel, GPU and dtype of some rows, rounded as it is written."""
    cells = fitted[measured.kernel, measured.gpu, measured.dtype]
    return kernel_time.constants_from(measured.kernel, cells)


def accuracy_table(rows: Iterable[Accuracy]) -> str:
    """Median and 90th percentile of the relative error, in percent."""
    header = ("kernel", "GPU", "dtype", "rows", "all rows", "held-out fifth", "constants of the other GPU")
    lines = [
        header,
        *(
            (
                r.kind,
                r.gpu,
                r.dtype,
                str(len(r.all)),
                _percent(r.all),
                _percent(r.held_out),
                _percent(r.other_gpu),
            )
            for r in rows
        ),
    ]
    kept = [column for column in zip(*lines, strict=True) if any(column[1:])]
    padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in kept]
    return "\n".join("  ".join(line).rstrip() for line in zip(*padded, strict=True))


def _percent(off: Array) -> str:
    if not len(off):
        return ""
    return f"{100 * np.median(off):.1f}% / {100 * np.percentile(off, 90):.1f}%"


def _errors_of(tables: Iterable[Measured], constants: ConstantsOf) -> dict[tuple[str, str, str], Array]:
    """The errors of each class of rows, of kernels that share a table together."""
    found: dict[tuple[str, str, str], list[Array]] = {}
    for measured in tables:
        its_constants = constants(measured)
        if its_constants is None:
            continue
        off = errors(measured, its_constants)
        for kind, rows in measured.classes().items():
            found.setdefault((kind, measured.gpu, measured.dtype), []).append(off[rows])
    joined = {key: np.concatenate(parts) for key, parts in found.items()}
    return {key: joined[key] for key in sorted(joined, key=_order) if len(joined[key])}


def _order(key: tuple[str, str, str]) -> tuple[int, str, str, str]:
    kind, gpu, dtype = key
    place = next(place for place, table in enumerate(("gemm", "decode", "prefill")) if kind.startswith(table))
    return place, kind, gpu, dtype


def _other_constants(fitted: Fitted, measured: Measured) -> Any:
    """The constants of the other GPU; None where it has no such measurements."""
    for (kernel, gpu, dtype), cells in fitted.items():
        if kernel == measured.kernel and dtype == measured.dtype and gpu != measured.gpu:
            return kernel_time.constants_from(kernel, cells)
    return None


def _kept_constants(measured: Measured) -> Any:
    peaks = gpu_of_device(measured.gpu)
    if peaks is None:
        return None
    constants = kernel_time.constants_for(peaks)
    if measured.table == "gemm":
        return constants.gemm[measured.dtype]
    if measured.table == "decode_attention":
        return constants.decode_attention[measured.kernel, measured.dtype]
    return constants.prefill_attention
