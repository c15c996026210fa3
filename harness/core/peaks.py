"""Datasheet peaks of GPUs: what a device could do at best, and how sure that figure is."""

import difflib
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from .data_table import data_table
from .errors import UsageError
from .gpu_limits import gpu_limits_table

# A cell of the data is a number, or two of which the lower is taken, and the mark that qualifies it:
# "989", "80 (unverified)", "58 or 60 (sources differ)".
_MARKED_NUMBER = re.compile(
    r"(?P<figure>\d+(\.\d+)?)(?: (?P<joint>or|to) (?P<other>\d+(\.\d+)?))?(?: \((?P<mark>.+)\))?"
)
_ONLY_FP16 = "fp16"  # the mark of a rate that the GPU has in fp16 and lacks in bf16

# What the driver sets aside (error correction, firmware) is about a tenth at most: a T4 shows 14.6 GiB of 16.
# A slice of a card, or another card of the same name, differs by far more.
_MEMORY_AT_LEAST = 0.85
_MEMORY_AT_MOST = 1.1


@dataclass(frozen=True, kw_only=True)
class DevicePeaks:
    """Datasheet figures of one GPU, dense rates; None where the data has none.

    Attributes:
        gpu: name in the table, such as "H100-SXM5-80GB".
        compute_capability: such as "9.0".
        flop_per_s: by dtype "fp32", "bf16", "fp16", "fp8", "int8" (integer operations per second) and "fp4".
            fp32 is None: the data holds tensor-core rates alone.
        bandwidth_bytes_per_s: memory bandwidth.
        memory_bytes: device memory; the datasheet's GB count 2^30 bytes each, as memory chips are made.
        l2_bytes: level-2 cache, MB counted as 2^20 bytes.
        sm_count: streaming multiprocessors.
        boost_hz: boost clock.
        shared_bytes_per_sm: shared memory of a multiprocessor, KB counted as 2^10 bytes.
        marks: what qualifies a figure, by its field ("flop_per_s.fp8" for a rate): "unverified", "derived",
            or that sources differ and how, in the units of the data (TFLOP/s, GB/s, GB, MB).
        note: a remark on the whole device.
        source: the vendor's document.
    """

    gpu: str
    compute_capability: str
    flop_per_s: Mapping[str, float | None] = field(hash=False)
    bandwidth_bytes_per_s: float
    memory_bytes: int
    l2_bytes: int
    sm_count: int
    boost_hz: float | None
    shared_bytes_per_sm: int
    marks: Mapping[str, str] = field(hash=False)
    note: str
    source: str


@dataclass(frozen=True)
class _Marked:
    value: float | None
    mark: str = ""


def peaks_of(device_name: str, memory_bytes: int | None = None) -> DevicePeaks | None:
    """Finds the peaks of a device.

    Args:
        device_name: what `torch.cuda.get_device_name` returns, or a `gpu` of the table. The whole name must
            match, so a laptop's part or a slice of a card is no match for the card.
        memory_bytes: the device's memory, which tells apart cards that share a name and turns down one that
            is smaller or larger than the table's. Without it, the first of that name in the table is taken.

    Returns:
        The peaks, or None for a device that the table does not hold.
    """
    for pattern, peaks in _devices():
        if device_name != peaks.gpu and not pattern.fullmatch(device_name):
            continue
        if memory_bytes is None or _MEMORY_AT_LEAST <= memory_bytes / peaks.memory_bytes <= _MEMORY_AT_MOST:
            return peaks
    return None


def device_table() -> tuple[dict[str, str], ...]:
    """Gives a row for each device, as the data states it: units in the names, marks with their values."""
    return tuple(
        {column: value for column, value in row.items() if column != "match"}
        for row in data_table("devices.csv")
    )


def find_device(name: str) -> DevicePeaks:
    """Finds a device of the table by any of its names; case, spaces, hyphens and underscores do not matter.

    Args:
        name: a name of the table ("H100-SXM5-80GB"), the driver's ("NVIDIA H100 80GB HBM3"), or the beginning
            that its family shares ("h100", "rtx4090", "4090"), which means the card of the family whose
            limits are known, else the first.

    Raises:
        UsageError: no device has that name; names `--gpu`, what it was, and the nearest.
    """
    by_name = _by_name()
    key = _key(name)
    found = by_name.get(key) or peaks_of(name.strip())
    if found is not None:
        return found
    near = dict.fromkeys(by_name[each].gpu for each in difflib.get_close_matches(key[:80], by_name, n=3))
    hint = f"; did you mean {' or '.join(near)}?" if near else "; see `decodetax devices`"
    raise UsageError(f"--gpu: {name[:40]!r} is no GPU of the table{hint}")


@functools.cache
def _by_name() -> Mapping[str, DevicePeaks]:
    """Every name of every device, as `_key` writes it."""
    names: dict[str, DevicePeaks] = {}
    devices = [peaks for _, peaks in _devices()]
    for peaks in sorted(devices, key=lambda each: each.gpu not in gpu_limits_table()):
        words = peaks.gpu.split("-")
        short = "".join(words[:2]) if words[0] == "RTX" else words[0]
        for name in (peaks.gpu, short, short.removeprefix("RTX"), "-".join(words[:2])):
            names.setdefault(_key(name), peaks)
    return names


def _key(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


@functools.cache
def _devices() -> tuple[tuple[re.Pattern[str], DevicePeaks], ...]:
    return tuple((re.compile(row["match"]), _peaks(row)) for row in data_table("devices.csv"))


def _peaks(row: Mapping[str, str]) -> DevicePeaks:
    """Turns one row of the data into figures in base units, and the marks of those that have one."""
    fp16 = _scaled(row["bf16_dense_tflops"], 1e12)
    bf16 = fp16
    if fp16.mark == _ONLY_FP16:
        fp16, bf16 = _Marked(fp16.value), _Marked(None)
    rates = {
        "fp32": _Marked(None),
        "bf16": bf16,
        "fp16": fp16,
        "fp8": _scaled(row["fp8_dense_tflops"], 1e12),
        "int8": _scaled(row["int8_dense_tops"], 1e12),
        "fp4": _scaled(row["fp4_dense_tflops"], 1e12),
    }
    sizes = {
        "bandwidth_bytes_per_s": _scaled(row["memory_gb_per_s"], 1e9),
        "memory_bytes": _scaled(row["memory_gb"], 2**30),
        "l2_bytes": _scaled(row["l2_mb"], 2**20),
        "sm_count": _scaled(row["sm_count"], 1),
        "boost_hz": _scaled(row["boost_mhz"], 1e6),
        "shared_bytes_per_sm": _scaled(row["shared_kb_per_sm"], 2**10),
    }
    marked = sizes | {f"flop_per_s.{dtype}": rate for dtype, rate in rates.items()}
    return DevicePeaks(
        gpu=row["gpu"],
        compute_capability=row["compute_capability"],
        flop_per_s={dtype: rate.value for dtype, rate in rates.items()},
        bandwidth_bytes_per_s=_known(sizes["bandwidth_bytes_per_s"]),
        memory_bytes=int(_known(sizes["memory_bytes"])),
        l2_bytes=int(_known(sizes["l2_bytes"])),
        sm_count=int(_known(sizes["sm_count"])),
        boost_hz=sizes["boost_hz"].value,
        shared_bytes_per_sm=int(_known(sizes["shared_bytes_per_sm"])),
        marks={name: figure.mark for name, figure in marked.items() if figure.mark},
        note=row["note"],
        source=row["source"],
    )


def _scaled(cell: str, unit: float) -> _Marked:
    """Reads a cell in its unit; of two figures that sources give, the lower."""
    if not cell:
        return _Marked(None)
    match = _MARKED_NUMBER.fullmatch(cell)
    if match is None:
        raise ValueError(f"devices.csv: {cell!r} is not a number with an optional mark")
    figure, mark = float(match["figure"]), match["mark"] or ""
    if match["other"]:
        figure = min(figure, float(match["other"]))
        mark = f"{match['figure']} {match['joint']} {match['other']}, {mark or 'sources differ'}"
    return _Marked(figure * unit, mark)


def _known(figure: _Marked) -> float:
    if figure.value is None:
        raise ValueError("devices.csv: a size that every device has is empty")
    return figure.value
