"""Measured kernels: reads their tables, and sorts their rows by kernel, GPU and dtype."""

import csv
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...core.data_table import data_table
from ...core.errors import UsageError
from ...core.gpus import Gpu, gpu_of_device
from ..kernel_time import GROUPED, SINGLE

Array: TypeAlias = NDArray[Any]

# The columns of a shape by table, as the table names them and as they are named here.
_HEADS = {"batch": "sequences", "q_heads": "q_heads", "kv_heads": "kv_heads", "head_dim": "head_dim"}
SHAPES = {
    "gemm": {"m": "rows", "n": "out_features", "k": "in_features"},
    "decode_attention": {**_HEADS, "context": "tokens"},
    "prefill_attention": {**_HEADS, "prompt": "tokens"},
}
_DTYPES = {"bfloat16": "bf16", "fp8": "fp8"}
_DTYPE_COLUMN = {"gemm": "dtype", "decode_attention": "kv_dtype", "prefill_attention": None}
BYTES = {"bf16": 2.0, "fp8": 1.0}

_LARGEST_GROUP = 16
_LARGE_BYTES = 16e6


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measured calls of one kernel on one GPU in one dtype.

    Attributes:
        table: "gemm", "decode_attention" or "prefill_attention".
        kernel: as the table of constants names it.
        gpu: name in the table of devices.
        dtype: "bf16" or "fp8".
        software: framework and version.
        sizes: by name, an element a row.
        time_s: an element a row.
    """

    table: str
    kernel: str
    gpu: str
    dtype: str
    software: str
    sizes: Mapping[str, Array]
    time_s: Array

    @property
    def peaks(self) -> Gpu:
        """The GPU's datasheet."""
        peaks = gpu_of_device(self.gpu)
        if peaks is None:
            raise UsageError(f"{self.table}.csv: gpu {self.gpu!r} is not in the table of devices")
        return peaks

    @property
    def group(self) -> Array:
        """Query heads a kv head."""
        return self.sizes["q_heads"] / self.sizes["kv_heads"]

    @property
    def kv_bytes(self) -> Array:
        """Keys and values of decode attention."""
        s = self.sizes
        return 2 * BYTES[self.dtype] * s["sequences"] * s["tokens"] * s["kv_heads"] * s["head_dim"]

    def only(self, rows: Array) -> "Measured":
        """Some of the rows, by mask or by index."""
        sizes = {name: values[rows] for name, values in self.sizes.items()}
        return Measured(**{**vars(self), "sizes": sizes, "time_s": self.time_s[rows]})

    def classes(self) -> dict[str, Array]:
        """What errors are stated of: the rows of each class, the one that is fitted first."""
        if self.table != "decode_attention":
            return {self.table: np.ones(len(self.time_s), dtype=bool)}
        small_group = self.group <= _LARGEST_GROUP
        large = self.kv_bytes > _LARGE_BYTES
        return {
            self.table: small_group & large,
            f"{self.table}, up to 16 MB": small_group & ~large,
            f"{self.table}, groups over 16": ~small_group,
        }

    def hashes(self) -> Array:
        """A number from each row's shape, the same on every GPU and in every dtype."""
        columns = zip(*(self.sizes[name] for name in SHAPES[self.table].values()), strict=True)
        return np.array([zlib.crc32("x".join(f"{size:.0f}" for size in shape).encode()) for shape in columns])


def read(folder: Path) -> list[Measured]:
    """Reads a folder's tables."""
    if not folder.is_dir():
        raise UsageError(f"FOLDER: {folder} is not a folder")
    found = []
    for table, shape in SHAPES.items():
        path = folder / f"{table}.csv"
        if not path.is_file():
            raise UsageError(f"FOLDER: {folder} has no {path.name}")
        with path.open(encoding="utf-8", newline="") as lines:
            reader = csv.DictReader(lines)
            dtype_column = _DTYPE_COLUMN[table]
            needed = {"gpu", "framework", "version", "latency_us", *shape, *filter(None, [dtype_column])}
            missing = sorted(needed - set(reader.fieldnames or ()))
            if missing:
                raise UsageError(f"{path.name}: has no column {', '.join(missing)}")
            rows = [
                {
                    "gpu": row["gpu"],
                    "software": f"{row['framework']} {row['version']}",
                    "dtype": _DTYPES.get(row[dtype_column] if dtype_column else "bfloat16", ""),
                    **{name: row[column] for column, name in shape.items()},
                    "latency_us": row["latency_us"],
                }
                for row in reader
            ]
        found += _measured(table, rows)
    return found


def read_sample() -> list[Measured]:
    """Reads the rows that the project keeps."""
    rows = data_table("measured_kernels.csv")
    return [m for table in SHAPES for m in _measured(table, [row for row in rows if row["table"] == table])]


def _measured(table: str, rows: Sequence[Mapping[str, str]]) -> list[Measured]:
    """Checks rows and sorts them by kernel, GPU, dtype and software."""
    names = tuple(SHAPES[table].values())
    sorted_rows: dict[tuple[str, str, str, str], list[list[float]]] = {}
    for number, row in enumerate(rows, start=2):
        try:
            values = [float(row[name]) for name in (*names, "latency_us")]
        except (TypeError, ValueError):
            raise UsageError(f"{table}.csv: line {number} has a size or time that is no number") from None
        if not all(0 < value < float("inf") for value in values) or not row["dtype"]:
            raise UsageError(
                f"{table}.csv: line {number} needs positive numbers and a dtype of {', '.join(_DTYPES)}"
            )
        kernel = table
        if table == "decode_attention":
            is_single = values[names.index("q_heads")] == values[names.index("kv_heads")]
            kernel = SINGLE if is_single else GROUPED
        key = (row["gpu"], row["dtype"], kernel, row["software"])
        sorted_rows.setdefault(key, []).append(values)
    found = []
    for (gpu, dtype, kernel, software), values_of_rows in sorted_rows.items():
        columns = np.array(values_of_rows).T
        measured = Measured(
            table=table,
            kernel=kernel,
            gpu=gpu,
            dtype=dtype,
            software=software,
            sizes=dict(zip(names, columns, strict=False)),
            time_s=columns[-1] * 1e-6,
        )
        if measured.peaks.flop_per_s[dtype] is None:
            raise UsageError(f"{table}.csv: {gpu} has no {dtype}")
        found.append(measured)
    return found
