"""What the multiprocessors of a GPU hold and share: the sizes and rates that bound a kernel on it."""

import difflib
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .data_table import data_table
from .errors import UsageError

_SHOWN_CHARACTERS = 40


@dataclass(frozen=True, kw_only=True)
class SmLimits:
    """Limits of one GPU and of each of its streaming multiprocessors (SMs).

    Attributes:
        gpu: name in the table, such as "H100-SXM5-80GB"; the same name as in the table of peaks.
        compute_capability: such as "9.0".
        sm: the compiler's number for it: 90 for 9.0.
        sm_count: streaming multiprocessors.
        clock_hz: SM clock.
        memory_bytes_per_s: memory bandwidth.
        registers_per_sm: registers of 32 bits.
        max_warps_per_sm: most warps of 32 threads that an SM holds.
        max_blocks_per_sm: most programs that an SM holds.
        shared_bytes_per_sm: shared memory of an SM, KB counted as 2^10 bytes.
        shared_bytes_per_block: most shared memory of one program, KB counted as 2^10 bytes.
        l2_bytes: level-2 cache, MB counted as 2^20 bytes.
        source: the vendor's documents, and the mark of a figure that is in doubt.
    """

    gpu: str
    compute_capability: str
    sm: int
    sm_count: int
    clock_hz: float
    memory_bytes_per_s: float
    registers_per_sm: int
    max_warps_per_sm: int
    max_blocks_per_sm: int
    shared_bytes_per_sm: int
    shared_bytes_per_block: int
    l2_bytes: int
    source: str


@functools.cache
def gpu_limits_table() -> Mapping[str, SmLimits]:
    """Gives the limits of each GPU of the table by its name, in the table's order."""
    return MappingProxyType({row["gpu"]: _limits(row) for row in data_table("gpu_limits.csv")})


def find_gpu(name: str) -> SmLimits:
    """Finds a GPU by any of its names; case, spaces, hyphens and underscores do not matter.

    Args:
        name: a name of the table ("H100-SXM5-80GB"), a short one ("h100", "rtx3090", "3090"), or a compiler
            target ("sm_90"), which means the table's GPU of that generation.

    Returns:
        The limits of that GPU.

    Raises:
        UsageError: no GPU of the table has that name; names `--gpu`, what it was and what it may be.
    """
    by_name = _by_name()
    key = _key(name)
    if key in by_name:
        return by_name[key]
    near = dict.fromkeys(by_name[match].gpu for match in difflib.get_close_matches(key[:80], by_name, n=3))
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    known = ", ".join(gpu_limits_table())
    targets = ", ".join(f"sm_{gpu.sm}" for gpu in gpu_limits_table().values())
    shown = repr(name[:_SHOWN_CHARACTERS])
    raise UsageError(f"--gpu: {shown} is none of {known}, a short form such as h100, or {targets}{hint}")


@functools.cache
def _by_name() -> Mapping[str, SmLimits]:
    """Every name of every GPU, as `_key` writes it."""
    names: dict[str, SmLimits] = {}
    for gpu in gpu_limits_table().values():
        words = gpu.gpu.split("-")
        model = "".join(words[:2]) if words[0] == "RTX" else words[0]
        for name in (gpu.gpu, model, model.removeprefix("RTX"), f"sm_{gpu.sm}"):
            names[_key(name)] = gpu
    return names


def _key(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _limits(row: Mapping[str, str]) -> SmLimits:
    """Turns one row of the data into figures in base units."""
    major, minor = row["compute_capability"].split(".")
    return SmLimits(
        gpu=row["gpu"],
        compute_capability=row["compute_capability"],
        sm=10 * int(major) + int(minor),
        sm_count=int(row["sm_count"]),
        clock_hz=float(row["clock_ghz"]) * 1e9,
        memory_bytes_per_s=float(row["memory_gb_per_s"]) * 1e9,
        registers_per_sm=int(row["registers_per_sm"]),
        max_warps_per_sm=int(row["max_warps_per_sm"]),
        max_blocks_per_sm=int(row["max_blocks_per_sm"]),
        shared_bytes_per_sm=int(row["shared_kb_per_sm"]) * 2**10,
        shared_bytes_per_block=int(row["shared_kb_per_block"]) * 2**10,
        l2_bytes=int(row["l2_mb"]) * 2**20,
        source=row["source"],
    )
