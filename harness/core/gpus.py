"""GPUs: datasheet peaks, SM limits, links and rental prices, and the names that find them."""

import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .data_table import data_table
from .errors import UsageError
from .suggestions import counted, did_you_mean, option_of_command, vendor

# A cell of the data is a number, or two of which the lower is taken, and the mark that qualifies it:
# "989", "80 (unverified)", "58 or 60 (sources differ)".
_MARKED_NUMBER = re.compile(
    r"(?P<figure>\d+(\.\d+)?)(?: (?P<joint>or|to) (?P<other>\d+(\.\d+)?))?(?: \((?P<mark>.+)\))?"
)
_ONLY_FP16 = "fp16"  # the mark of a rate that the GPU has in fp16 and lacks in bf16

# The driver reserves about a tenth of the memory at most (ECC, firmware): a T4 shows 14.6 GiB of 16.
# A MIG slice, or another card of the same name, differs by far more.
_MEMORY_AT_LEAST = 0.85
_MEMORY_AT_MOST = 1.1


@dataclass(frozen=True, kw_only=True)
class SmLimits:
    """Limits of one streaming multiprocessor (SM) that decide occupancy and issue rate.

    Attributes:
        clock_hz: boost clock, the clock of the datasheet's rates.
        registers_per_sm: registers of 32 bits.
        max_warps_per_sm: resident warps of 32 threads.
        max_blocks_per_sm: resident CTAs.
        shared_bytes_per_block: shared memory of one CTA, KB counted as 2^10 bytes.
    """

    clock_hz: float
    registers_per_sm: int
    max_warps_per_sm: int
    max_blocks_per_sm: int
    shared_bytes_per_block: int


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU of the table; rates are dense, None where no source states a figure.

    Attributes:
        name: such as "H100-SXM5-80GB".
        compute_capability: such as "9.0".
        flop_per_s: by dtype "fp32", "bf16", "fp16", "fp8", "int8" (integer operations per second) and "fp4".
            fp32 is None: the table has tensor-core rates only.
        bandwidth_bytes_per_s: memory bandwidth.
        memory_bytes: device memory; the datasheet's GB count 2^30 bytes each, as memory chips are made.
        l2_bytes: L2 cache, MB counted as 2^20 bytes.
        sm_count: streaming multiprocessors.
        shared_bytes_per_sm: shared memory of an SM, KB counted as 2^10 bytes.
        sm_limits: further limits of an SM; None where the table has none.
        link_bytes_per_s: NVLink or PCIe bandwidth of one GPU, in each direction.
        usd_per_hour: lowest on-demand rental price listed; an assumed price, a median of listings or a total
            cost of ownership is not one. None where none is listed.
        usd_source: kind of price and who lists it.
        marks: qualification of a figure by field name ("flop_per_s.fp8" for a rate): "unverified", "derived",
            or how sources differ, in the units of the table (TFLOP/s, GB/s, GB, MB).
        note: a remark on the GPU.
        source: the vendor's document.
    """

    name: str
    compute_capability: str
    flop_per_s: Mapping[str, float | None] = field(hash=False)
    bandwidth_bytes_per_s: float
    memory_bytes: int
    l2_bytes: int
    sm_count: int
    shared_bytes_per_sm: int
    sm_limits: SmLimits | None
    link_bytes_per_s: float
    usd_per_hour: float | None
    usd_source: str
    marks: Mapping[str, str] = field(hash=False)
    note: str
    source: str

    @property
    def sm(self) -> int:
        """Compute capability as the compiler writes it: 90 of sm_90 for 9.0."""
        return int(self.compute_capability.replace(".", ""))

    @property
    def limits(self) -> SmLimits:
        """Its SM limits.

        Raises:
            UsageError: the table has none; names `--gpu` and the GPUs with limits.
        """
        if self.sm_limits is None:
            known = ", ".join(gpu.name for gpu in gpu_table().values() if gpu.sm_limits)
            raise UsageError(f"--gpu: {self.name} has no SM limits in the table of GPUs; these have: {known}")
        return self.sm_limits


@dataclass(frozen=True)
class _Marked:
    value: float | None
    mark: str = ""


@functools.cache
def gpu_table() -> Mapping[str, Gpu]:
    """Every GPU of the table by its name, in the table's order."""
    return {row["gpu"]: _gpu(row) for row in data_table("gpus.csv")}


def datasheet_rows() -> tuple[dict[str, str], ...]:
    """The datasheet columns of the table as they are written: units in their names, marks with values."""
    rows = data_table("gpus.csv")
    columns = list(rows[0])
    shown = columns[: columns.index("source") + 1]
    return tuple({column: row[column] for column in shown} for row in rows)


def gpu_of_device(device_name: str, memory_bytes: int | None = None) -> Gpu | None:
    """Finds the GPU that a device is.

    Args:
        device_name: what `torch.cuda.get_device_name` returns, or a name of the table. The complete name must
            match: a laptop GPU or a MIG slice is not the card.
        memory_bytes: the device's memory. It distinguishes cards of one name, and excludes a card whose
            memory differs from the table's. Without it, the first of that name in the table is taken.

    Returns:
        The GPU, or None for a device that is not in the table.
    """
    for row in data_table("gpus.csv"):
        if device_name != row["gpu"] and not re.fullmatch(row["device_name_pattern"], device_name):
            continue
        gpu = gpu_table()[row["gpu"]]
        if memory_bytes is None or _MEMORY_AT_LEAST <= memory_bytes / gpu.memory_bytes <= _MEMORY_AT_MOST:
            return gpu
    return None


def find_gpu(name: str, *, with_limits: bool = False) -> Gpu:
    """Finds a GPU by any of its names; case, spaces, hyphens and underscores do not matter.

    Args:
        name: a name of the table ("H100-SXM5-80GB"), the driver's ("NVIDIA H100 80GB HBM3"), the start of a
            name ("h100", "rtx4090", "4090"), some of its words ("h100-sxm", "a100 80gb") or a compiler target
            ("sm_90"). Where several GPUs share it, the first with SM limits is meant, else the first.
        with_limits: whether its SM limits are needed.

    Raises:
        UsageError: no GPU has that name, or its SM limits are needed and not known; names `--gpu`, what it
            was and what it may be.
    """
    found = _named(name)
    if found is None:
        raise UsageError(f"--gpu: {name[:40]!r} {_problem(name)}")
    if with_limits:
        _ = found.limits
    return found


def is_gpu(name: str) -> bool:
    """Whether a name is a GPU's, as `find_gpu` reads it."""
    return _named(name) is not None


def _named(name: str) -> Gpu | None:
    return _by_name().get(_key(name)) or gpu_of_device(name.strip()) or _in_part(name)


def _in_part(name: str) -> Gpu | None:
    """The first GPU with these words in its name: its short name, then starts of others in order."""
    words = [word for word in re.split(r"[\s_-]+", name.lower().strip()) if word != "nvidia"]
    for gpu in gpu_table().values():
        short = _short_name(gpu).split("-")
        rest = iter(gpu.name.lower().split("-")[len(short) :])
        if words[: len(short)] == short and all(
            len(word) > 1 and any(other.startswith(word) for other in rest) for word in words[len(short) :]
        ):
            return gpu
    return None


def _problem(name: str) -> str:
    """Why a name is no GPU's, and what it may be."""
    several = counted(name)
    if several is not None and (gpu := _named(several[0])) is not None:
        split = f" --tensor-parallel {several[1]}" if option_of_command("--tensor-parallel") else ""
        return f"is a number of GPUs; give --gpu {_short_name(gpu)}{split}"
    words = name.split()
    if len(words) > 1 and all(map(_named, words)):
        return f"names {len(words)} GPUs; separate them by commas: {','.join(words)}"
    if name.strip().lower() in {row["model"] for row in data_table("models.csv")}:
        return "is a language model; give it with --model"
    if what := vendor(name):
        return f"is {what}; the table has NVIDIA GPUs: {', '.join(_short_names())}"
    by_name = _by_name()
    close = difflib.get_close_matches(_key(name)[:80], by_name, n=3)
    if near := did_you_mean(by_name[each].name for each in close):
        return f"is not a known GPU; {near} see `decodetax devices`"
    return f"is not a known GPU; `decodetax devices` lists {', '.join(_short_names())}"


def _short_names() -> Iterable[str]:
    return dict.fromkeys(map(_short_name, gpu_table().values()))


def _short_name(gpu: Gpu) -> str:
    """The name without memory and form factor: h100, rtx-4090.

    Of an RTX card the number alone is not its name: an RTX 6000 is Turing, Ada or a PRO.
    """
    words = gpu.name.lower().split("-")
    count = 1 if words[0] != "rtx" else 3 if words[1:3] == ["pro", "6000"] else len(words)
    return "-".join(words[:count])


@functools.cache
def _by_name() -> Mapping[str, Gpu]:
    """GPUs by each of their names, normalised by `_key`."""
    names: dict[str, Gpu] = {}
    for gpu in sorted(gpu_table().values(), key=lambda each: each.sm_limits is None):
        short = _short_name(gpu)
        second = "-".join(gpu.name.split("-")[: max(2, short.count("-") + 1)])
        for name in (gpu.name, short, second, short.removeprefix("rtx-"), f"sm_{gpu.sm}"):
            names.setdefault(_key(name), gpu)
    return names


def _key(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _gpu(row: Mapping[str, str]) -> Gpu:
    """Converts one row of the data to base units, and collects the marks of its figures."""
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
        "shared_bytes_per_sm": _scaled(row["shared_kb_per_sm"], 2**10),
    }
    rental = _lowest_on_demand_rental(row["gpu"])
    marked = sizes | {f"flop_per_s.{dtype}": rate for dtype, rate in rates.items()}
    return Gpu(
        name=row["gpu"],
        compute_capability=row["compute_capability"],
        flop_per_s={dtype: rate.value for dtype, rate in rates.items()},
        bandwidth_bytes_per_s=_known(sizes["bandwidth_bytes_per_s"]),
        memory_bytes=int(_known(sizes["memory_bytes"])),
        l2_bytes=int(_known(sizes["l2_bytes"])),
        sm_count=int(_known(sizes["sm_count"])),
        shared_bytes_per_sm=int(_known(sizes["shared_bytes_per_sm"])),
        sm_limits=_sm_limits(row) if row["sm_limits_source"] else None,
        link_bytes_per_s=float(row["link_gb_per_s"]) * 1e9,
        usd_per_hour=float(rental["usd_per_gpu_hour"]) if rental else None,
        usd_source=f"{rental['basis']}, {rental['source']}" if rental else "",
        marks={name: figure.mark for name, figure in marked.items() if figure.mark},
        note=row["note"],
        source=row["source"],
    )


def rental_rows() -> tuple[Mapping[str, str], ...]:
    """What an hour of a GPU costs, by each source: on demand, at the operator's cost, or as it assumes."""
    return data_table("gpu_rental.csv")


def _lowest_on_demand_rental(gpu: str) -> Mapping[str, str] | None:
    listed = (row for row in rental_rows() if row["gpu"] == gpu and row["basis"].startswith("on demand"))
    return min(listed, key=lambda row: float(row["usd_per_gpu_hour"]), default=None)


def _sm_limits(row: Mapping[str, str]) -> SmLimits:
    return SmLimits(
        clock_hz=_known(_scaled(row["boost_mhz"], 1e6)),
        registers_per_sm=int(row["registers_per_sm"]),
        max_warps_per_sm=int(row["max_warps_per_sm"]),
        max_blocks_per_sm=int(row["max_blocks_per_sm"]),
        shared_bytes_per_block=int(row["shared_kb_per_block"]) * 2**10,
    )


def _scaled(cell: str, unit: float) -> _Marked:
    """Reads a cell in its unit; of two figures that sources give, the lower."""
    if not cell:
        return _Marked(None)
    match = _MARKED_NUMBER.fullmatch(cell)
    if match is None:
        raise ValueError(f"gpus.csv: {cell!r} is not a number with an optional mark")
    figure, mark = float(match["figure"]), match["mark"] or ""
    if match["other"]:
        figure = min(figure, float(match["other"]))
        mark = f"{match['figure']} {match['joint']} {match['other']}, {mark or 'sources differ'}"
    return _Marked(figure * unit, mark)


def _known(figure: _Marked) -> float:
    if figure.value is None:
        raise ValueError("gpus.csv: a figure that every GPU needs is empty")
    return figure.value
