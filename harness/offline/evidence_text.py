"""What `decodetax count` and `decodetax inspect` found, as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from ..core.units import number, si

INSPECT_COLUMNS = {
    "gpu": "gpu",
    "kernel": "kernel",
    "variant": "variant",
    "dtype": "dtype",
    "registers": "registers",
    "spill B": "spill_bytes",
    "shared B": "shared_bytes",
    "programs/SM": "programs_per_sm",
    "matrix": "matrix_instruction",
    "load B": "load_bytes",
    "async": "asynchronous",
    "loop instr.": "loop_instructions",
    "issue": "issue_headroom",
    "latency": "latency_headroom",
    "at wait": "latency_headroom_at_wait",
    "matrix share": "matrix_share",
    "schedule": "schedule_efficiency",
    "ragged": "schedule_efficiency_ragged",
}


def count_text(row: Mapping[str, Any]) -> str:
    """One counted case: its tensors, its operations, ops:bytes at each level."""
    tiling = ", ".join(f"{name} {value}" for name, value in row["tiling"].items())
    lines = [f"{row['case']} as tiled on {row['gpu']}: {tiling}"]
    if row["status"] == "counted":
        lines += [_tensors(row), *_totals(row)]
    else:
        lines.append(f"modelled alone: {row['reason']}")
        lines.append(
            f"modelled: {si(row['modelled_bytes_requested'])}B requested, "
            f"{si(row['modelled_bytes_written'])}B written, "
            f"{si(row['modelled_operations'])}operations with padding"
        )
    cache = row["modelled_cache"]
    if cache is not None:
        lines.append(
            f"through an L2 cache of {cache['l2_capacity_bytes'] / 2**20:.0f} MiB "
            f"(modelled, {cache['programs_per_sm']} programs an SM): {si(cache['dram_bytes'])}B of DRAM; "
            f"ops:bytes requested {number(cache['requested_operations_per_byte'])}, "
            f"L2 {number(cache['l2_operations_per_byte'])}, DRAM {number(cache['dram_operations_per_byte'])}"
        )
    return "\n".join(lines)


def own_count_text(row: Mapping[str, Any]) -> str:
    """A user's own kernel, counted: the tensors of each launch by its parameters, and the whole."""
    title = f"{row['kernel']}: {row['case']}"
    if row["status"] != "counted":
        return f"{title}\n{row['status']}: {row['reason']}"
    cells = [
        (
            launch["kernel"],
            launch["programs"],
            name,
            tensor["bytes_requested"],
            tensor["bytes_written"],
            tensor["bytes_distinct"],
            tensor["sectors"],
        )
        for launch in row["launches"]
        for name, tensor in launch["tensors"].items()
    ]
    headers = ("launch", "programs", "tensor", "requested B", "written B", "distinct B", "sectors")
    operations = "; ".join(f"{si(count)}in {types}" for types, count in row["operations"].items()) or "none"
    needed = (
        f"{si(row['modelled_work_operations'])}operations and {si(row['modelled_work_bytes'])}B (modelled)"
    )
    intensity = number(row["operations_per_counted_byte"])
    return "\n".join(
        (
            f"{title} (counted; its result is right)",
            tabulate(cells, headers=headers, disable_numparse=True),
            f"products (counted): {operations}; the case needs {needed}",
            f"bytes requested and written over those needed: {row['bytes_counted_over_work']:.4g}",
            f"operations needed per byte requested or written: {intensity}",
        )
    )


def _tensors(row: Mapping[str, Any]) -> str:
    headers = (
        "tensor",
        "requested (counted)",
        "written (counted)",
        "requested + written (modelled)",
        "counted/modelled",
        "distinct (counted)",
        "work (modelled)",
        "sectors (counted)",
    )
    cells = [
        (
            name,
            tensor["bytes_requested"],
            tensor["bytes_written"],
            tensor["modelled_bytes_requested"] + tensor["modelled_bytes_written"],
            "-" if tensor["counted_over_modelled"] is None else f"{tensor['counted_over_modelled']:.4f}",
            tensor["bytes_distinct"],
            tensor["modelled_work_bytes"],
            tensor["sectors"],
        )
        for name, tensor in row["tensors"].items()
    ]
    return tabulate(cells, headers=headers, disable_numparse=True)


def _totals(row: Mapping[str, Any]) -> list[str]:
    operations = "; ".join(f"{si(count)}in {types}" for types, count in row["operations"].items()) or "none"
    programs = ", ".join(f"{launch['kernel']} {launch['programs']}" for launch in row["launches"])
    arithmetic = (
        f"operations (counted): {operations}; useful {row['useful_share_of_operations']:.1%}; "
        f"counted/modelled {row['operations_counted_over_modelled']:.4f}"
    )
    intensity = (
        f"ops:bytes (counted): requested {number(row['operations_per_requested_byte'])}, "
        f"distinct {number(row['operations_per_distinct_byte'])}; programs: {programs}"
    )
    return [arithmetic, intensity]


def inspect_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Compiled launches, a row each, and a line for each that is not ok."""
    cells = [
        (
            *(_cell(row[name]) for name in INSPECT_COLUMNS.values()),
            _cell(row["limit"] and row["limit"]["which"]),
            "-" if row["limit"] is None else f"{row['limit']['share_of_peak']:.0%}",
        )
        for row in rows
        if row["status"] == "ok"
    ]
    headers = (*INSPECT_COLUMNS, "limit", "of peak")
    table = tabulate(cells, headers=headers, disable_numparse=True)
    bad = [
        f"{row['status']}: {row['gpu']} {row['kernel']} {row['variant']} {row['dtype']}: {row['reason']}"
        for row in rows
        if row["status"] != "ok"
    ]
    title = "Compiled (registers to loop instructions) and modelled (headrooms, shares, limit)"
    return "\n".join([title, table, *bad])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
