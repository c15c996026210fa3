"""What the compiler made of one launch for one GPU, as a row: read from its code, and bounded from it."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from ..core.gpus import Gpu
from . import headroom
from .headroom import Limit, Workload
from .hot_loop import HotLoop, find_hot_loops
from .machine_code import Instruction, MachineCode, ResourceUsage
from .scheduled import ScheduleEfficiency

# Fields that are computed from what the code says and the GPU's rates; all others are read from the code.
MODELLED_FIELDS = (
    "programs_per_sm",
    "issue_headroom",
    "latency_headroom",
    "latency_headroom_at_wait",
    "matrix_share",
    "schedule_efficiency",
    "schedule_efficiency_ragged",
    "limit",
)
# Of the bytes that an iteration is for; the rest, page indices for one, says nothing of how a kernel loads.
_MAIN_SHARE = 0.875


@dataclass(frozen=True, kw_only=True)
class LaunchName:
    """Which launch a row is about.

    Attributes:
        kernel: the operation, "decode_attention" or "prefill_matmul"; for other kernels the function's name.
        variant: what of it, such as "pages_16:split_kv"; after the colon, the launch.
        gpu: name in the table of GPU limits.
        dtype: of the operands, such as "bf16".
        tiling: the launch's compile-time sizes, warps and stages.
    """

    kernel: str
    variant: str
    gpu: str
    dtype: str
    tiling: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, kw_only=True)
class CompiledRow(LaunchName):
    """One launch as compiled for one GPU; figures are None where it has none, on rows not ok all of them.

    Attributes:
        status: "ok", "failed" (it does not compile) or "unsupported" (the GPU cannot hold it).
        reason: why it is not ok, else None.
        registers: 32-bit registers of a thread.
        spill_bytes: local memory of a thread, in which registers that did not fit are kept.
        shared_bytes: shared memory of a program.
        shared_limit_bytes: most that the GPU gives one program.
        programs_per_sm: programs that an SM holds at one time.
        programs_limited_by: what allows no more.
        matrix_instruction: of the hot loop, such as "HGMMA"; the most frequent where there are several.
        load_bytes: narrowest load of the hot loop from global memory, in bytes of a lane, among those that,
            largest first, make up its tiles (seven eighths of them); bulk copies count as 16.
        asynchronous: whether all of those loads go to shared memory without passing through registers.
        loop_instructions: of an iteration of the hot loop, per warp (see `hot_loop`).
        loop_instructions_by_class: the same by class.
        bytes_per_iteration: that a program loads from global memory in it, lanes that are masked included.
        issue_headroom: see `headroom.issue_headroom`.
        latency_headroom: see `headroom.latency_headroom`, of the bytes that the pipeline issues ahead.
        latency_headroom_at_wait: the same of what the tightest wait leaves.
        matrix_share: see `headroom.matrix_share`.
        schedule_efficiency: see `scheduled.schedule_efficiency`.
        schedule_efficiency_ragged: the same with contexts of unequal lengths; None for a product.
        limit: see `headroom.modelled_limit`.
    """

    status: str
    reason: str | None = None
    registers: int | None = None
    spill_bytes: int | None = None
    shared_bytes: int | None = None
    shared_limit_bytes: int | None = None
    programs_per_sm: int | None = None
    programs_limited_by: str | None = None
    matrix_instruction: str | None = None
    load_bytes: int | None = None
    asynchronous: bool | None = None
    loop_instructions: int | None = None
    loop_instructions_by_class: Mapping[str, int] | None = field(default=None, hash=False)
    bytes_per_iteration: float | None = None
    issue_headroom: float | None = None
    latency_headroom: float | None = None
    latency_headroom_at_wait: float | None = None
    matrix_share: float | None = None
    schedule_efficiency: float | None = None
    schedule_efficiency_ragged: float | None = None
    limit: Limit | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields by their names, and where the figures come from."""
        row = asdict(self)
        if self.limit is not None:
            row["limit"]["provenance"] = "modelled"
        return row | {"provenance": "compiled", "modelled_fields": list(MODELLED_FIELDS)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """The row that `to_json` wrote."""
        fields = {name: value for name, value in row.items() if name not in {"provenance", "modelled_fields"}}
        if fields.get("limit") is not None:
            limit = {name: value for name, value in fields["limit"].items() if name != "provenance"}
            fields["limit"] = Limit(**limit)
        return cls(**fields)


def failed_row(name: LaunchName, reason: str) -> CompiledRow:
    """The row of a launch that does not compile."""
    return CompiledRow(**vars(name), status="failed", reason=reason)


def compiled_row(
    name: LaunchName,
    code: MachineCode,
    usage: ResourceUsage,
    *,
    shared_bytes: int,
    warps: int,
    gpu: Gpu,
    stages: int | None = None,
    tensor_memory_columns: int = 0,
    workload: Workload | None = None,
    schedule: Callable[[int], ScheduleEfficiency | None] = lambda _programs: None,
) -> CompiledRow:
    """Reads and bounds one compiled launch.

    Args:
        name: which launch it is.
        code: its machine code.
        usage: its registers and stack.
        shared_bytes: shared memory of a program, dynamic and static.
        warps: warps of a program.
        gpu: the GPU that it was compiled for.
        stages: of the pipeline, where known.
        tensor_memory_columns: of a program, where the GPU has tensor memory.
        workload: what an iteration is for; where none, every byte that it loads and every multiply-add
            counts as useful.
        schedule: from the programs that an SM holds, what the schedule of the grid reaches; None where no
            grid is known.
    """
    residency = headroom.resident_programs(
        registers=usage.registers,
        shared_bytes=shared_bytes,
        warps=warps,
        gpu=gpu,
        tensor_memory_columns=tensor_memory_columns,
    )
    resources: dict[str, Any] = {
        "registers": usage.registers,
        "spill_bytes": _spill_bytes(code, usage),
        "shared_bytes": shared_bytes,
        "shared_limit_bytes": gpu.limits.shared_bytes_per_block,
        "programs_per_sm": residency.programs,
        "programs_limited_by": residency.limited_by,
    }
    loops = find_hot_loops(code)
    if residency.programs == 0:
        reason = f"an SM of {gpu.name} holds no program of it: {residency.limited_by}"
        if shared_bytes > gpu.limits.shared_bytes_per_block:
            most = gpu.limits.shared_bytes_per_block
            reason = f"needs {shared_bytes} bytes of shared memory; {gpu.name} gives a program {most}"
        return CompiledRow(**vars(name), status="unsupported", reason=reason, **resources)
    if not loops:
        return CompiledRow(**vars(name), status="ok", **resources)
    efficiency = schedule(residency.programs)
    if efficiency is not None:
        resources |= {
            "schedule_efficiency": efficiency.uniform,
            "schedule_efficiency_ragged": efficiency.ragged,
        }
    hot, loading = loops[0], loops[-1]
    loaded = headroom.bytes_loaded(loading, warps)
    if loaded is None and workload is not None:
        loaded = workload.tile_bytes
    flight = headroom.bytes_in_flight(loading, warps=warps, stages=stages, tile_bytes=loaded)
    tile_bytes = workload.tile_bytes if workload is not None else None
    figures = _loop_figures(hot, loading, warps, gpu, tile_bytes) | {"bytes_per_iteration": loaded or None}
    if loaded and workload is None:
        workload = _all_useful(hot, loaded, warps, name.dtype)
    if loaded and workload is not None:
        share = min(1.0, workload.streamed_bytes / loaded)
        figures["issue_headroom"] = headroom.issue_headroom(
            useful_bytes=workload.useful_bytes, instructions=hot.count, warps=warps, gpu=gpu
        )
        if flight is not None:
            for figure, size in (
                ("latency_headroom", flight.ahead_bytes),
                ("latency_headroom_at_wait", flight.at_wait_bytes),
            ):
                figures[figure] = headroom.latency_headroom(
                    bytes_per_program=size * share, programs=residency.programs, gpu=gpu
                )
        figures["limit"] = headroom.modelled_limit(
            loop=hot,
            warps=warps,
            programs=residency.programs,
            flight=flight,
            loaded_bytes=loaded,
            workload=workload,
            gpu=gpu,
            schedule_efficiency=efficiency.uniform if efficiency is not None else 1.0,
        )
    return CompiledRow(**vars(name), status="ok", **resources, **figures)


def _spill_bytes(code: MachineCode, usage: ResourceUsage) -> int:
    # A spill without a stack frame cannot be, but the count of its instructions costs nothing to believe.
    spills = sum(each.kind == "spill" for each in code.instructions)
    return max(usage.stack_bytes, 4 * spills if usage.stack_bytes == 0 else 0)


def _loop_figures(
    hot: HotLoop, loading: HotLoop, warps: int, gpu: Gpu, tile_bytes: float | None
) -> dict[str, Any]:
    main = _main_loads(loading, warps, tile_bytes)
    return {
        "matrix_instruction": next(iter(hot.matrix_names), None),
        "load_bytes": min((each.lane_bytes for each in main), default=None),
        "asynchronous": all(each.is_asynchronous for each in main) if main else None,
        "loop_instructions": hot.count,
        "loop_instructions_by_class": hot.by_class(),
        "matrix_share": headroom.matrix_share(hot, warps=warps, gpu=gpu),
    }


def _main_loads(loop: HotLoop, warps: int, tile_bytes: float | None) -> list[Instruction]:
    """The kinds of load (name and width), largest first, that make up the tiles, or all bytes."""
    loads = loop.global_loads
    if any(each.is_bulk for each in loads):
        return [each for each in loads if each.is_bulk]
    carried: Counter[tuple[str, int]] = Counter()
    for each in loads:
        carried[each.name, each.lane_bytes] += each.lane_bytes * 32 * warps
    wanted = _MAIN_SHARE * min(tile_bytes or math.inf, carried.total())
    main, total = set(), 0
    for kind, size in carried.most_common():
        if total < wanted:
            main.add(kind)
        total += size
    return [each for each in loads if (each.name, each.lane_bytes) in main]


def _all_useful(hot: HotLoop, loaded: float, warps: int, dtype: str) -> Workload:
    issuing = 1 if any(name.startswith("UTC") for name in hot.matrix_names) else warps
    flop = 2 * (hot.multiply_adds or 0.0) * issuing
    return Workload(
        useful_bytes=loaded,
        streamed_bytes=loaded,
        flop=flop if math.isfinite(flop) else 0.0,
        tile_bytes=loaded,
        dtype=dtype,
    )
