"""Measured kernels of layers (MoE, MLA decode attention, all-reduce): reads their tables by their columns."""

import csv
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...core.data_table import data_table
from ...core.errors import UsageError
from ...core.gpus import Gpu, gpu_table
from ..all_reduce_time import HOW
from ..expert_routing import ROW_TILES, expert_loads
from ..mla_time import LATENT_ELEMENTS, VALUE_ELEMENTS
from ..moe_time import NARROW_WEIGHTS
from .measured import Array

MOE, MLA, ALL_REDUCE = "moe", "mla_decode", "all_reduce"

_SIZES: Mapping[str, tuple[str, ...]] = {
    MOE: (
        "tokens",
        "hidden_size",
        "expert_intermediate",
        "experts_per_token",
        "experts",
        "tensor_parallel",
        "expert_parallel",
    ),
    MLA: ("batch", "q_heads", "context"),
    ALL_REDUCE: ("num_gpus", "message_elements", "element_bytes"),
}
_CASE: Mapping[str, str] = {MOE: "dtype", MLA: "kv_dtype", ALL_REDUCE: "how"}  # the column of the variant
# Sizes that name a family: rows of one are held out together.
_FAMILY: Mapping[str, tuple[str, ...]] = {
    MOE: ("hidden_size", "expert_intermediate", "experts_per_token", "experts"),
    MLA: ("q_heads",),
    ALL_REDUCE: ("message_elements",),
}
_COMMON = ("gpu", "framework", "version", "latency_us")
_OTHER = {"kv_heads", "head_dim"}  # columns of attention that is not of latents

# By the table's dtype: variant of the constants, dtype of the rate, bytes of a weight with its scales.
_MOE_DTYPES: Mapping[str, tuple[str, str, float]] = {
    "bfloat16": ("bf16", "bf16", 2.0),
    "fp8": ("fp8", "fp8", 1.0),
    "fp8_block": ("fp8_block", "fp8", 1.0),
    "nvfp4": ("fp4", "fp4", 0.5 + 1 / 16),
    "w4a16_mxfp4": (NARROW_WEIGHTS, "bf16", 0.5 + 1 / 32),
    "int4_wo": (NARROW_WEIGHTS, "bf16", 0.5 + 2 / 128),
}
_CACHE_DTYPES: Mapping[str, str] = {"bfloat16": "bf16", "fp8": "fp8"}

# Experts without a gate, by hidden size of the experts and intermediate size: those of Nemotron 3. Their
# measured calls read two matrices an expert, as three would exceed the bandwidth.
_UNGATED = {(2688, 1856), (2048, 5120), (8192, 5120)}


@dataclass(frozen=True, kw_only=True)
class MeasuredLayer:
    """Measured calls of one kernel and variant on one GPU.

    Attributes:
        table: `MOE`, `MLA` or `ALL_REDUCE`.
        variant: dtype of products ("bf16", "fp8", "fp8_block", "w4a16") or of the cache, or how GPUs reduce.
        gpu: the GPU.
        software: framework and version.
        routing: the routing of each row; empty where the table has none.
        sizes: by the column's name, an element a row.
        row_tiles: of MoE, by the rows of a tile, an element a row.
        time_s: an element a row.
    """

    table: str
    variant: str
    gpu: Gpu
    software: str
    routing: Array
    sizes: Mapping[str, Array]
    row_tiles: Mapping[int, Array]
    time_s: Array

    @property
    def key(self) -> tuple[str, str, str]:
        """Table, GPU and variant."""
        return self.table, self.gpu.name, self.variant

    def only(self, rows: Array) -> "MeasuredLayer":
        """Some of the rows, by mask or by index."""
        return replace(
            self,
            routing=self.routing[rows],
            sizes={name: values[rows] for name, values in self.sizes.items()},
            row_tiles={tile: values[rows] for tile, values in self.row_tiles.items()},
            time_s=self.time_s[rows],
        )

    def families(self) -> Array:
        """A number of each row's family: the shape of the experts, the number of heads, the message."""
        columns = np.stack([self.sizes[name] for name in _FAMILY[self.table]])
        return np.unique(columns, axis=1, return_inverse=True)[1].ravel()

    def classes(self) -> dict[str, Array]:
        """Masks of the row classes that errors are stated for."""
        if self.table != MOE:
            return {self.table: np.ones(len(self.time_s), dtype=bool)}
        return {f"{self.table}, {name}": self.routing == name for name in sorted(set(self.routing))}

    def hashes(self) -> Array:
        """A hash of each row's sizes and routing."""
        columns = zip(self.routing, *(self.sizes[name] for name in _SIZES[self.table]), strict=True)
        return np.array([zlib.crc32("x".join(str(each) for each in row).encode()) for row in columns])


def read_layers(folder: Path) -> list[MeasuredLayer]:
    """Reads the tables of a folder that are of layers' kernels; none is needed.

    Raises:
        UsageError: the folder is missing, or a row invalid.
    """
    if not folder.is_dir():
        raise UsageError(f"FOLDER: {folder} is not a folder")
    return [each for path in sorted(folder.glob("*.csv")) for each in read_layer_file(path)]


def read_layer_file(path: Path) -> list[MeasuredLayer]:
    """Reads one file of measured kernels of layers; none if its columns are those of no table.

    Raises:
        UsageError: a row is invalid; names the file and the line.
    """
    with path.open(encoding="utf-8", newline="") as lines:
        return _grouped(list(csv.DictReader(lines)), path.name)


def read_layer_sample() -> list[MeasuredLayer]:
    """Reads the sample of rows that comes with the package."""
    files = (f"measured_{table}.csv" for table in _SIZES)
    return [each for name in files for each in _grouped(data_table(name), name)]


def sample_of(measured: MeasuredLayer, count: int) -> list[dict[str, str]]:
    """The rows with the lowest hashes, as cells of the table they came from."""
    chosen = measured.only(np.sort(np.argsort(measured.hashes(), kind="stable")[:count]))
    dtypes: Mapping[str, Any] = {MOE: _MOE_DTYPES, MLA: _CACHE_DTYPES, ALL_REDUCE: {}}[measured.table]
    written: dict[str, str] = {}
    for name, of in dtypes.items():
        written.setdefault(of if isinstance(of, str) else of[0], name)
    framework, _, version = measured.software.rpartition(" ")
    return [
        {
            "gpu": measured.gpu.name,
            "framework": framework,
            "version": version,
            _CASE[measured.table]: written.get(measured.variant, measured.variant),
            **({"distribution": chosen.routing[row]} if measured.table == MOE else {}),
            **{name: f"{chosen.sizes[name][row]:.0f}" for name in _SIZES[measured.table]},
            "latency_us": f"{chosen.time_s[row] * 1e6:.6g}",
        }
        for row in range(len(chosen.time_s))
    ]


def _grouped(rows: Sequence[Mapping[str, str]], file: str) -> list[MeasuredLayer]:
    """Validates rows and groups them by variant, GPU and software."""
    columns = set(rows[0]) if rows else set()
    needed = {table: {*_COMMON, _CASE[table], *sizes} for table, sizes in _SIZES.items()}
    table = next((each for each, names in needed.items() if names <= columns and not columns & _OTHER), None)
    if table is None:
        return []
    groups: dict[tuple[str, str, str], list[tuple[str, list[float]]]] = {}
    for line, row in enumerate(rows, start=2):
        values = _numbers(row, (*_SIZES[table], "latency_us"), f"{file}: line {line}")
        if row["gpu"] not in gpu_table():
            raise UsageError(f"{file}: gpu {row['gpu']!r} is not a name of `decodetax devices`")
        variants: Iterable[str] = {MOE: _MOE_DTYPES, MLA: _CACHE_DTYPES, ALL_REDUCE: HOW}[table]
        case = row[_CASE[table]]
        if case not in variants:
            raise UsageError(
                f"{file}: line {line}: {_CASE[table]} {case!r} is not one of {', '.join(variants)}"
            )
        key = case, row["gpu"], f"{row['framework']} {row['version']}"
        groups.setdefault(key, []).append((row.get("distribution", ""), values))
    return [_measured(table, key, found, file) for key, found in groups.items()]


def _numbers(row: Mapping[str, str], names: Sequence[str], where: str) -> list[float]:
    try:
        values = [float(row[name]) for name in names]
    except (TypeError, ValueError):
        raise UsageError(f"{where}: a size or time is not a number") from None
    if not all(0 < value < float("inf") for value in values):
        raise UsageError(f"{where}: sizes and times are positive numbers")
    return values


def _measured(
    table: str, key: tuple[str, str, str], found: Sequence[tuple[str, list[float]]], file: str
) -> MeasuredLayer:
    case, gpu, software = key
    values = np.array([numbers for _, numbers in found]).T
    sizes = dict(zip(_SIZES[table], values, strict=False))
    routing = np.array([name for name, _ in found])
    row_tiles: dict[int, Array] = {}
    variant = case
    if table == MOE:
        variant = _MOE_DTYPES[case][0]
        sizes, row_tiles = _with_loads(sizes, routing, file)
    elif table == MLA:
        variant = _CACHE_DTYPES[case]
    elif case == "nccl":
        sizes["element_bytes"] = _nccl_bytes(sizes)
    return MeasuredLayer(
        table=table,
        variant=variant,
        gpu=gpu_table()[gpu],
        software=software,
        routing=routing,
        sizes=sizes,
        row_tiles=row_tiles,
        time_s=values[-1] * 1e-6,
    )


def _with_loads(
    sizes: Mapping[str, Array], routing: Array, file: str
) -> tuple[dict[str, Array], dict[int, Array]]:
    """Adds each row's expert loads and whether its experts have a gate."""
    names = ("tokens", "experts", "experts_per_token", "expert_parallel")
    loads = []
    for routed, tokens, *counts in zip(routing, *(sizes[name] for name in names), strict=True):
        try:
            loads.append(expert_loads(float(tokens), *(int(each) for each in counts), str(routed)))
        except UsageError as error:
            raise UsageError(f"{file}: {error}") from None
    shapes = zip(sizes["hidden_size"], sizes["expert_intermediate"], strict=True)
    gates = np.array([1.0 if (hidden, inner) in _UNGATED else 2.0 for hidden, inner in shapes])
    added = {
        "distinct": np.array([each.distinct for each in loads]),
        "rows": np.array([each.rows for each in loads]),
        "gates": gates,
    }
    tiles = {tile: np.array([each.row_tiles[tile] for each in loads]) for tile in ROW_TILES}
    return {**sizes, **added}, tiles


def _nccl_bytes(sizes: Mapping[str, Array]) -> Array:
    """Bytes of an element of NCCL's rows: 2 in the first of a message's rows, 1 in the second.

    The source measures NCCL with 16-bit and with 8-bit elements and its table does not tell them apart: the
    second row of each number of elements takes as long as the first of half as many. The largest message has
    the second row alone.
    """
    seen: set[tuple[float, float]] = set()
    pairs = list(zip(sizes["num_gpus"], sizes["message_elements"], strict=True))
    repeated = len(set(pairs)) < len(pairs)
    largest = sizes["message_elements"].max()
    found = []
    for (gpus, elements), stated in zip(pairs, sizes["element_bytes"], strict=True):
        second = (gpus, elements) in seen or (repeated and elements == largest)
        found.append(1.0 if second else stated)
        seen.add((gpus, elements))
    return np.array(found)


def kv_bytes(measured: MeasuredLayer) -> Array:
    """Bytes of the latents that MLA reads."""
    s, size = measured.sizes, {"bf16": 2.0, "fp8": 1.0}[measured.variant]
    return s["batch"] * s["context"] * LATENT_ELEMENTS * size


def operations(measured: MeasuredLayer) -> Array:
    """Operations of MLA's products with keys and values."""
    s = measured.sizes
    return 2 * s["batch"] * s["context"] * s["q_heads"] * (LATENT_ELEMENTS + VALUE_ELEMENTS)


def moe_dtype(measured: MeasuredLayer) -> tuple[str, float]:
    """The dtype of MoE's rate and the bytes of a weight."""
    return next((rate, size) for variant, rate, size in _MOE_DTYPES.values() if variant == measured.variant)
