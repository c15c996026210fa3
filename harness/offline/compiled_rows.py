"""One launch compiled for one GPU: figures read from its machine code, and bounds modelled from them."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import msgspec

from ..core.gpus import Gpu
from . import headroom
from .headroom import BytesInFlight, IterationWork, Limit
from .hot_loop import HotLoop, find_hot_loops
from .kernel_grids import ScheduleEfficiency
from .machine_code import Instruction, MachineCode, ResourceUsage

# Fields modelled from the machine code and the GPU's rates; all others are read from the machine code.
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
# Fraction of a tile's bytes that its main loads carry; other loads, such as page indices, are left out.
_MAIN_FRACTION = 0.875


@dataclass(frozen=True, kw_only=True)
class LaunchName:
    """The launch of a row.

    Attributes:
        kernel: "decode_attention" or "prefill_matmul"; for other kernels the function's name.
        variant: case and launch, such as "pages_16:split_kv".
        gpu: name of the GPU.
        dtype: dtype of the operands, such as "bf16".
        tiling: the launch's compile-time sizes, warps and stages.
    """

    kernel: str
    variant: str
    gpu: str
    dtype: str
    tiling: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, kw_only=True)
class CompiledRow(LaunchName):
    """One launch compiled for one GPU. A figure is None where it does not apply or the status is not "ok".

    Attributes:
        status: "ok", "failed" (it does not compile) or "unsupported" (it does not fit on the GPU).
        reason: why it is not ok, else None.
        registers: 32-bit registers per thread.
        spill_bytes: register spills: local memory per thread.
        shared_bytes: shared memory per CTA.
        shared_limit_bytes: the most shared memory that the GPU gives one CTA.
        programs_per_sm: occupancy, in CTAs per SM.
        programs_limited_by: what limits the occupancy.
        matrix_instruction: tensor-core instruction of the hot loop, such as "HGMMA"; the most frequent one.
        load_bytes: narrowest main load of the hot loop from global memory, in bytes per lane; 16 for TMA.
            Main loads are the largest that together carry seven eighths of the tiles.
        asynchronous: whether all main loads go to shared memory without passing through registers.
        loop_instructions: instructions of an iteration of the hot loop, per warp (see `hot_loop`).
        loop_instructions_by_class: the same by class.
        matrix_drains: waits of an iteration that leave none of a warp's asynchronous MMAs in flight.
        drained_instructions: instructions of a warp from these waits to its next MMA (see `hot_loop`).
        bytes_per_iteration: bytes that a CTA loads from global memory in it, masked lanes included.
        issue_headroom: see `headroom.issue_headroom`.
        latency_headroom: see `headroom.latency_headroom`; of the bytes that the pipeline issues ahead.
        latency_headroom_at_wait: the same of the bytes that the tightest wait leaves in flight.
        matrix_share: see `headroom.matrix_share`.
        schedule_efficiency: see `kernel_grids.ScheduleEfficiency`.
        schedule_efficiency_ragged: the same with contexts of unequal lengths.
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
    matrix_drains: int | None = None
    drained_instructions: int | None = None
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
        return msgspec.convert(row, cls)


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
    work: IterationWork | None = None,
    schedule: Callable[[int], ScheduleEfficiency] | None = None,
) -> CompiledRow:
    """Reads and bounds one compiled launch.

    Args:
        name: the launch.
        code: its machine code.
        usage: its registers and stack.
        shared_bytes: shared memory per CTA, dynamic and static.
        warps: warps per CTA.
        gpu: the GPU that it was compiled for.
        stages: stages of the software pipeline, where known.
        tensor_memory_columns: tensor memory columns per CTA, on GPUs that have it.
        work: what an iteration needs; None counts every loaded byte and every multiply-add as useful.
        schedule: simulates the grid at an occupancy in CTAs per SM; None where the grid is not simulated.
    """
    resident = headroom.occupancy(
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
        "programs_per_sm": resident.programs,
        "programs_limited_by": resident.limited_by,
    }
    if resident.programs == 0:
        reason = f"no CTA fits on an SM of {gpu.name}: limited by {resident.limited_by}"
        if shared_bytes > gpu.limits.shared_bytes_per_block:
            limit = gpu.limits.shared_bytes_per_block
            reason = f"needs {shared_bytes} bytes of shared memory; a CTA on {gpu.name} has at most {limit}"
        return CompiledRow(**vars(name), status="unsupported", reason=reason, **resources)
    loops = find_hot_loops(code)
    if not loops:
        return CompiledRow(**vars(name), status="ok", **resources)
    efficiency = 1.0
    if schedule is not None:
        simulated = schedule(resident.programs)
        efficiency = simulated.uniform
        resources |= {
            "schedule_efficiency": simulated.uniform,
            "schedule_efficiency_ragged": simulated.ragged,
        }
    hot, loading = loops[0], loops[-1]
    tile_bytes = work.tile_bytes if work is not None else None
    figures = _loop_figures(hot, loading, warps, gpu, tile_bytes)
    loaded = headroom.bytes_loaded(loading, warps)
    if loaded is None:
        loaded = tile_bytes
    if loaded:
        work = work or _all_useful(hot, loaded, warps, name.dtype)
        flight = headroom.bytes_in_flight(loading, warps=warps, stages=stages, tile_bytes=loaded)
        figures |= _bounds(hot, warps, resident.programs, flight, loaded, work, gpu, efficiency)
    return CompiledRow(**vars(name), status="ok", **resources, **figures)


def _bounds(
    hot: HotLoop,
    warps: int,
    programs: int,
    flight: BytesInFlight | None,
    loaded_bytes: float,
    work: IterationWork,
    gpu: Gpu,
    schedule_efficiency: float,
) -> dict[str, Any]:
    """Headrooms and the limit of a loop that loads from global memory."""
    return {
        "bytes_per_iteration": loaded_bytes,
        "issue_headroom": headroom.issue_headroom(
            useful_bytes=work.useful_bytes, instructions=hot.count, warps=warps, gpu=gpu
        ),
        "limit": headroom.modelled_limit(
            loop=hot,
            warps=warps,
            programs=programs,
            flight=flight,
            loaded_bytes=loaded_bytes,
            work=work,
            gpu=gpu,
            schedule_efficiency=schedule_efficiency,
        ),
    } | _latency_headrooms(flight, work.streamed_bytes / loaded_bytes, programs, gpu)


def _latency_headrooms(
    flight: BytesInFlight | None, streamed_share: float, programs: int, gpu: Gpu
) -> dict[str, float]:
    """Latency headrooms of the streamed bytes ahead and at the wait."""
    if flight is None:
        return {}
    sizes = {"latency_headroom": flight.ahead_bytes, "latency_headroom_at_wait": flight.at_wait_bytes}
    share = min(1.0, streamed_share)
    return {
        figure: headroom.latency_headroom(bytes_per_program=size * share, programs=programs, gpu=gpu)
        for figure, size in sizes.items()
    }


def _spill_bytes(code: MachineCode, usage: ResourceUsage) -> int:
    # A spill needs a stack frame; counting the instructions guards against a tool that does not report it.
    spills = sum(each.kind == "spill" for each in code.instructions)
    return max(usage.stack_bytes, 4 * spills if usage.stack_bytes == 0 else 0)


def _loop_figures(
    hot: HotLoop, loading: HotLoop, warps: int, gpu: Gpu, tile_bytes: float | None
) -> dict[str, Any]:
    """Figures of the hot loop and of the loop that loads for it."""
    main = _main_loads(loading, warps, tile_bytes)
    return {
        "matrix_instruction": next(iter(hot.mma_names), None),
        "load_bytes": min((each.lane_bytes for each in main), default=None),
        "asynchronous": all(each.is_asynchronous for each in main) if main else None,
        "loop_instructions": hot.count,
        "loop_instructions_by_class": hot.by_class(),
        "matrix_drains": len(hot.drains),
        "drained_instructions": sum(hot.drains),
        "matrix_share": headroom.matrix_share(hot, warps=warps, gpu=gpu),
    }


def _main_loads(loop: HotLoop, warps: int, tile_bytes: float | None) -> list[Instruction]:
    """Loads of the kinds (name and width) that, largest first, carry seven eighths of the tiles or bytes."""
    loads = loop.global_loads
    if any(each.is_tma for each in loads):
        return [each for each in loads if each.is_tma]
    carried: Counter[tuple[str, int]] = Counter()
    for each in loads:
        carried[each.name, each.lane_bytes] += each.lane_bytes * 32 * warps
    wanted = _MAIN_FRACTION * min(tile_bytes or math.inf, carried.total())
    main, total = set(), 0
    for kind, size in carried.most_common():
        if total < wanted:
            main.add(kind)
        total += size
    return [each for each in loads if (each.name, each.lane_bytes) in main]


def _all_useful(hot: HotLoop, loaded: float, warps: int, dtype: str) -> IterationWork:
    """The work of an iteration whose loaded bytes and multiply-adds are all useful."""
    issuing = 1 if any(name.startswith("UTC") for name in hot.mma_names) else warps
    flop = 2 * (hot.multiply_adds or 0.0) * issuing
    return IterationWork(
        useful_bytes=loaded,
        streamed_bytes=loaded,
        flop=flop if math.isfinite(flop) else 0.0,
        tile_bytes=loaded,
        dtype=dtype,
    )
