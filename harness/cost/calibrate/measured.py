"""Measured kernels: reads their tables and groups the rows by kernel, GPU, dtype and software."""

import csv
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...core.data_table import data_table
from ...core.errors import UsageError
from ...core.gpus import Gpu, gpu_table
from ..kernel_constants import GROUPED, SINGLE

Array: TypeAlias = NDArray[Any]

# The size columns of each table, and the names of the sizes here.
_HEADS = {"batch": "sequences", "q_heads": "q_heads", "kv_heads": "kv_heads", "head_dim": "head_dim"}
SIZES = {
    "gemm": {"m": "rows", "n": "out_features", "k": "in_features"},
    "decode_attention": {**_HEADS, "context": "tokens"},
    "prefill_attention": {**_HEADS, "prompt": "tokens"},
}
_DTYPES = {"bfloat16": "bf16", "fp8": "fp8"}
_DTYPE_COLUMN = {"gemm": "dtype", "decode_attention": "kv_dtype", "prefill_attention": "kv_dtype"}
_DTYPE_IF_MISSING = {"prefill_attention": "bfloat16"}  # tables of one dtype have no column for it
# A file with these columns is one of the table's; it may be several.
_RECOGNISED_BY = {
    "gemm": {"m", "n", "k"},
    "decode_attention": {"context", "head_dim"},
    "prefill_attention": {"prompt"},
}
BYTES = {"bf16": 2.0, "fp8": 1.0}

_LARGEST_GROUP = 16
_LARGE_BYTES = 16e6


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measured calls of one kernel on one GPU in one dtype.

    Attributes:
        table: "gemm", "decode_attention" or "prefill_attention".
        kernel: as the table of constants names it.
        gpu: the GPU.
        dtype: "bf16" or "fp8".
        software: framework and version.
        sizes: by name, an element a row.
        time_s: an element a row.
    """

    table: str
    kernel: str
    gpu: Gpu
    dtype: str
    software: str
    sizes: Mapping[str, Array]
    time_s: Array

    @property
    def key(self) -> tuple[str, str, str]:
        """Kernel, GPU and dtype, which have constants of their own."""
        return self.kernel, self.gpu.name, self.dtype

    @property
    def group(self) -> Array:
        """Query heads per KV head (GQA group)."""
        return self.sizes["q_heads"] / self.sizes["kv_heads"]

    @property
    def kv_bytes(self) -> Array:
        """Keys and values of decode attention."""
        s = self.sizes
        return 2 * BYTES[self.dtype] * s["sequences"] * s["tokens"] * s["kv_heads"] * s["head_dim"]

    def only(self, rows: Array) -> "Measured":
        """Some of the rows, by mask or by index."""
        sizes = {name: values[rows] for name, values in self.sizes.items()}
        return replace(self, sizes=sizes, time_s=self.time_s[rows])

    def classes(self) -> dict[str, Array]:
        """Masks of the row classes that errors are stated for; the constants are fitted to the first."""
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
        """A hash of each row's sizes, the same on every GPU and in every dtype."""
        columns = zip(*(self.sizes[name] for name in SIZES[self.table].values()), strict=True)
        return np.array([zlib.crc32("x".join(f"{size:.0f}" for size in sizes).encode()) for sizes in columns])


def read(folder: Path) -> list[Measured]:
    """Reads a folder's tables, which their columns tell apart; a table may have several files.

    Raises:
        UsageError: the folder, a table, a column or a value is missing or invalid.
    """
    if not folder.is_dir():
        raise UsageError(f"FOLDER: {folder} is not a folder")
    found = [each for path in sorted(folder.glob("*.csv")) for each in read_file(path)]
    for table, columns in _RECOGNISED_BY.items():
        if table not in {each.table for each in found}:
            raise UsageError(
                f"FOLDER: {folder} has no table of {table}, with columns {', '.join(sorted(columns))}"
            )
    return _joined(sorted(found, key=lambda each: list(SIZES).index(each.table)))


def _joined(found: Sequence[Measured]) -> list[Measured]:
    """Joins the rows of a kernel, GPU and dtype, which may come from several files and frameworks."""
    by_key: dict[tuple[str, str, str], list[Measured]] = {}
    for each in found:
        by_key.setdefault(each.key, []).append(each)
    return [
        replace(
            first,
            software=", ".join(dict.fromkeys(each.software for each in parts)),
            sizes={name: np.concatenate([each.sizes[name] for each in parts]) for name in first.sizes},
            time_s=np.concatenate([each.time_s for each in parts]),
        )
        for parts in by_key.values()
        for first in parts[:1]
    ]


def read_file(path: Path) -> list[Measured]:
    """Reads one file of measured kernels; none if its columns are those of no table.

    Raises:
        UsageError: a column or a value is missing or invalid.
    """
    with path.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        columns = set(reader.fieldnames or ())
        tables = [table for table, needed in _RECOGNISED_BY.items() if needed <= columns]
        if not tables:
            return []
        [table] = tables
        dtype_column, default = _DTYPE_COLUMN[table], _DTYPE_IF_MISSING.get(table)
        needed = {"gpu", "framework", "version", "latency_us", *SIZES[table]}
        missing = sorted((needed | ({dtype_column} if default is None else set())) - columns)
        if missing:
            raise UsageError(f"{path.name}: has no column {', '.join(missing)}")
        rows = [
            {
                "gpu": row["gpu"],
                "software": f"{row['framework']} {row['version']}",
                "dtype": _DTYPES.get(row.get(dtype_column, default) or "", ""),
                **{name: row[column] for column, name in SIZES[table].items()},
                "latency_us": row["latency_us"],
            }
            for row in reader
        ]
    return _grouped(table, rows, path.name)


def read_sample() -> list[Measured]:
    """Reads the sample of rows that comes with the package."""
    rows = data_table("measured_kernels.csv")
    return [
        m
        for table in SIZES
        for m in _grouped(table, [row for row in rows if row["table"] == table], "measured_kernels.csv")
    ]


def _grouped(table: str, rows: Sequence[Mapping[str, str]], file_name: str) -> list[Measured]:
    """Validates rows and groups them by kernel, GPU, dtype and software."""
    names = tuple(SIZES[table].values())
    groups: dict[tuple[str, str, str, str], list[list[float]]] = {}
    for line, row in enumerate(rows, start=2):
        try:
            values = [float(row[name]) for name in (*names, "latency_us")]
        except (TypeError, ValueError):
            raise UsageError(f"{file_name}: line {line} has a size or time that is not a number") from None
        if not all(0 < value < float("inf") for value in values) or not row["dtype"]:
            raise UsageError(
                f"{file_name}: line {line} needs positive numbers and a dtype of {', '.join(_DTYPES)}"
            )
        gpu = gpu_table().get(row["gpu"])
        if gpu is None:
            raise UsageError(f"{file_name}: gpu {row['gpu']!r} is not a name of `decodetax devices`")
        if gpu.flop_per_s[row["dtype"]] is None:
            raise UsageError(f"{file_name}: {gpu.name} has no {row['dtype']}")
        kernel = table
        if table == "decode_attention":
            is_single = values[names.index("q_heads")] == values[names.index("kv_heads")]
            kernel = SINGLE if is_single else GROUPED
        groups.setdefault((kernel, gpu.name, row["dtype"], row["software"]), []).append(values)
    return [
        Measured(
            table=table,
            kernel=kernel,
            gpu=gpu_table()[gpu_name],
            dtype=dtype,
            software=software,
            sizes=dict(zip(names, columns, strict=False)),
            time_s=columns[-1] * 1e-6,
        )
        for (kernel, gpu_name, dtype, software), values_of_rows in groups.items()
        for columns in [np.array(values_of_rows).T]
    ]
