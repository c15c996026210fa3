"""Bounds of a compiled kernel: the headrooms of its hot loop, and the lowest bound. Pure arithmetic.

Every figure is an upper bound of what the code can reach, not a time. An iteration is that of one program
(CTA) of `warps` warps of 32 threads. Each of an SM's four schedulers issues one instruction per clock.
"""

import math
from dataclasses import dataclass

from ..core.gpus import Gpu
from .hot_loop import HotLoop
from .machine_code import Instruction

SCHEDULERS = 4
# Memory latency of a load while DRAM is busy. Idle it is 466 clocks on A100 and 479 on H100 (Luo et al.,
# "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture", 2024).
MEMORY_LATENCY_S = 800e-9
# ASSUMPTION: L2 hit latency under load, about twice the 262 idle clocks of the paper above, which are quoted
# from memory and not checked.
L2_LATENCY_S = 300e-9
_REGISTER_UNIT = 256  # CUDA occupancy calculator: a warp's registers are allocated in these units
_WARP_UNIT = 4  # and warps in fours, one per scheduler
_SHARED_UNIT = 128
_SHARED_RESERVED_BYTES = 1024  # per CTA, from sm_80 up
_TENSOR_MEMORY_COLUMNS = 512  # per SM, sm_100
# CUDA C++ programming guide, arithmetic instructions: float32 multiply-adds per SM and clock.
_FLOAT_LANES = {80: 64, 86: 128, 89: 128, 90: 128, 100: 128, 120: 128}
# ASSUMPTION: on sm_90 and sm_100 tensor cores reach their peak only through warp-group instructions (HGMMA,
# UTC*MMA). Fraction of it that warp-level ones (HMMA, QMMA, IMMA) reach: on sm_90 from Luo et al., quoted
# from memory and not checked; on sm_100 A100's rate per SM.
_WARP_MMA_FRACTION = {90: 0.63, 100: 0.26}


@dataclass(frozen=True, kw_only=True)
class Occupancy:
    """CTAs resident on an SM at one time.

    Attributes:
        programs: number of CTAs; 0 where none fits.
        limited_by: "registers", "shared_memory", "warps", "blocks" or "tensor_memory".
    """

    programs: int
    limited_by: str


@dataclass(frozen=True, kw_only=True)
class BytesInFlight:
    """Bytes that a CTA's loads keep in flight, in the steady state of its hot loop.

    Attributes:
        ahead_bytes: the most at any moment.
        at_wait_bytes: what the tightest wait leaves in flight; 0 where it waits for everything.
        slots_to_refill: issue slots of a warp from that wait to the last load that follows it.
    """

    ahead_bytes: float
    at_wait_bytes: float
    slots_to_refill: int


@dataclass(frozen=True, kw_only=True)
class IterationWork:
    """What one iteration of one CTA needs.

    Attributes:
        useful_bytes: bytes that must come from memory under any tiling: keys and values in decode attention,
            the weight in a matmul of few rows; of a tile that several CTAs load, this CTA's share.
        streamed_bytes: bytes of the tiles that come from memory, each counted in full. A tile that stays in
            L2 (x, where one block of rows holds all of it) does not count.
        flop: operations that the result needs, without padding.
        tile_bytes: bytes of the tiles that the iteration loads; None where unknown.
        dtype: dtype of the operands: "bf16", "fp16", "fp32", "fp8" or "int8".
    """

    useful_bytes: float
    streamed_bytes: float
    flop: float
    tile_bytes: float | None
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What bounds a kernel, and the rate that the bound allows.

    Attributes:
        which: the lowest bound of the hot loop: "memory", "issue", "latency", "matrix" (tensor cores) or
            "float" (float32 units).
        bandwidth_bytes_per_s: useful bytes from memory where the kernel is memory-bound; else None.
        flop_per_s: useful operations where it is compute-bound; else None.
        share_of_peak: share of the datasheet's bandwidth, or of its rate of that dtype.
    """

    which: str
    bandwidth_bytes_per_s: float | None
    flop_per_s: float | None
    share_of_peak: float


def occupancy(
    *, registers: int, shared_bytes: int, warps: int, gpu: Gpu, tensor_memory_columns: int = 0
) -> Occupancy:
    """CTAs per SM: the least of what registers, shared memory, warps and blocks allow.

    A warp takes 32 x `registers` registers, rounded up to 256, and warps are allocated in fours. Each CTA
    takes its shared memory and 1 KB more.

    Args:
        registers: 32-bit registers per thread.
        shared_bytes: shared memory per CTA.
        warps: warps per CTA.
        gpu: the GPU.
        tensor_memory_columns: tensor memory columns per CTA, on GPUs that have it.
    """
    warp_registers = math.ceil(max(1, registers) * 32 / _REGISTER_UNIT) * _REGISTER_UNIT
    by_registers = gpu.limits.registers_per_sm // warp_registers // _WARP_UNIT * _WARP_UNIT
    taken_bytes = math.ceil((shared_bytes + _SHARED_RESERVED_BYTES) / _SHARED_UNIT) * _SHARED_UNIT
    bounds = {
        "registers": by_registers // warps,
        "shared_memory": gpu.shared_bytes_per_sm // taken_bytes
        if shared_bytes <= gpu.limits.shared_bytes_per_block
        else 0,
        "warps": gpu.limits.max_warps_per_sm // warps,
        "blocks": gpu.limits.max_blocks_per_sm,
    }
    if tensor_memory_columns:
        bounds["tensor_memory"] = _TENSOR_MEMORY_COLUMNS // tensor_memory_columns
    limited_by = min(bounds, key=lambda name: bounds[name])
    return Occupancy(programs=bounds[limited_by], limited_by=limited_by)


def bytes_loaded(loop: HotLoop, warps: int) -> float | None:
    """Bytes that an iteration of a CTA loads from global memory: the sum of lane bytes x 32 lanes x warps.

    Masked lanes count. None with a TMA load: the instruction does not say its size.
    """
    if any(each.is_tma for each in loop.global_loads):
        return None
    return float(sum(each.lane_bytes for each in loop.global_loads) * 32 * warps)


def bytes_in_flight(
    loop: HotLoop, *, warps: int, stages: int | None, tile_bytes: float | None
) -> BytesInFlight | None:
    """Follows the asynchronous copies of a hot loop until their groups repeat.

    `LDGSTS` copies join the group that the next `LDGDEPBAR` commits. `DEPBAR.LE SB0, n` waits until at most
    the n newest groups are in flight. Loads into registers are in flight within one iteration only. The waits
    of TMA loads give no count: stages - 1 tiles are in flight, and one less at the wait for the oldest.

    Args:
        loop: the loop that loads.
        warps: warps per CTA.
        stages: stages of the kernel's software pipeline; None where unknown.
        tile_bytes: bytes of an iteration's tiles; None where unknown.

    Returns:
        The bytes, per CTA; None where the loop loads nothing, or by TMA an unknown size.
    """
    loads = loop.global_loads
    if not loads:
        return None
    waits = any(_groups_left(each) is not None for each in loop.instructions)
    counted = bytes_loaded(loop, warps)
    copied = any(each.name == "LDGSTS" for each in loads)
    if counted is not None and not copied:
        return BytesInFlight(ahead_bytes=counted, at_wait_bytes=0.0, slots_to_refill=loop.count)
    if counted is not None and waits:
        return _follow_groups(loop, warps)
    size = counted if counted is not None else tile_bytes
    if size is None or stages is None:
        return None
    return BytesInFlight(
        ahead_bytes=max(1, stages - 1) * size,
        at_wait_bytes=max(0, stages - 2) * size,
        slots_to_refill=loop.count,
    )


def _follow_groups(loop: HotLoop, warps: int) -> BytesInFlight:
    """Commits and waits of `LDGSTS` groups, over as many iterations as it takes until they repeat."""
    iterations = 4 + sum(each.name == "LDGDEPBAR" for each in loop.instructions)
    iterations += max(_groups_left(each) or 0 for each in loop.instructions)
    groups: list[float] = []
    ahead, tightest, tightest_at, last_load = 0.0, math.inf, 0, 0
    for iteration in range(iterations):
        settled = iteration == iterations - 1
        uncommitted = 0.0
        for at, each in enumerate(loop.instructions):
            left = _groups_left(each)
            if each.name == "LDGSTS":
                uncommitted += each.lane_bytes * 32 * warps
                last_load = at
            elif each.name == "LDGDEPBAR":
                groups.append(uncommitted)
                uncommitted = 0.0
            elif left is not None:
                groups = groups[len(groups) - left :] if left < len(groups) else groups
                if settled and sum(groups) < tightest:
                    tightest, tightest_at = sum(groups), at
            if settled:
                ahead = max(ahead, sum(groups) + uncommitted)
    return BytesInFlight(
        ahead_bytes=ahead,
        at_wait_bytes=tightest,
        slots_to_refill=(last_load - tightest_at) % max(1, loop.count),
    )


def _groups_left(instruction: Instruction) -> int | None:
    """The groups that a wait leaves in flight; None for other instructions."""
    if instruction.name != "DEPBAR" or not instruction.operands.startswith("SB0"):
        return None
    count = instruction.operands.partition(",")[2].partition(",")[0].strip()
    return int(count, 16) if count.startswith("0x") else 0


def issue_headroom(*, useful_bytes: float, instructions: int, warps: int, gpu: Gpu) -> float:
    """Bandwidth at which issue slots run out, over the memory bandwidth.

    useful_bytes / (instructions x warps) x SMs x 4 x clock / memory bandwidth. Below 1 the kernel cannot
    reach the memory bandwidth at any occupancy.

    Args:
        useful_bytes: useful bytes of an iteration of a CTA.
        instructions: instructions of an iteration, per warp.
        warps: warps per CTA.
        gpu: the GPU.
    """
    bytes_per_slot = useful_bytes / (instructions * warps)
    return bytes_per_slot * gpu.sm_count * SCHEDULERS * gpu.limits.clock_hz / gpu.bandwidth_bytes_per_s


def latency_headroom(*, bytes_per_program: float, programs: int, gpu: Gpu) -> float:
    """Bytes in flight on an SM over the bytes that Little's law requires.

    bytes_per_program x programs / (memory bandwidth / SMs x `MEMORY_LATENCY_S`).

    Args:
        bytes_per_program: streamed bytes that a CTA keeps in flight.
        programs: CTAs per SM.
        gpu: the GPU.
    """
    return bytes_per_program * programs / (gpu.bandwidth_bytes_per_s / gpu.sm_count * MEMORY_LATENCY_S)


def multiply_adds_per_clock(opcode: str, gpu: Gpu) -> float | None:
    """Multiply-adds per SM and clock of the tensor cores, with one kind of instruction.

    The datasheet's dense rate / (2 x SMs x boost clock): about 1024 in bf16 on A100, 2048 on H100, 3870 on
    B200, 512 on L40S, 256 on RTX 3090 and 5090 (float32 accumulation); half that in tf32.

    Args:
        opcode: an MMA with its modifiers, such as "HMMA.1688.F32.TF32".
        gpu: the GPU.

    Returns:
        The rate, or None where the datasheet has none.
    """
    name = opcode.partition(".")[0]
    kind = name.removeprefix("UTC")[0]
    peak = gpu.flop_per_s[{"Q": "fp8", "I": "int8", "O": "fp4"}.get(kind, "fp16")]
    if peak is None:
        return None
    fraction = 0.5 if "TF32" in opcode else 1.0
    if "G" not in name and not name.startswith("UTC"):
        fraction *= _WARP_MMA_FRACTION.get(gpu.sm, 1.0)
    return fraction * peak / (2 * gpu.sm_count * gpu.limits.clock_hz)


def tensor_core_cycles(loop: HotLoop, *, warps: int, gpu: Gpu) -> float | None:
    """Clocks that an SM's tensor cores need for one iteration of a CTA.

    Multiply-adds of the CTA / multiply-adds per SM and clock. 0 without MMA instructions; None where a shape
    or a rate is unknown.
    """
    if not loop.mma_names:
        return 0.0
    first = next(each for each in loop.instructions if each.is_mma)
    rate = multiply_adds_per_clock(first.opcode, gpu)
    if rate is None or loop.multiply_adds is None:
        return None
    issuing = 1 if first.name.startswith("UTC") else warps
    return loop.multiply_adds * issuing / rate


def dependent_cycles(loop: HotLoop, *, warps: int, gpu: Gpu) -> float:
    """Clocks that one CTA needs for an iteration, however many others share its SM.

    `tensor_core_cycles`, and the issue slots of a warp from each wait for all its MMAs in flight to its next
    MMA (`HotLoop.drains`), in which no other warp of the CTA has MMAs in flight either. ASSUMPTION: CTA
    barriers keep its warp groups in step. The latency of the wait itself is left out. 0 where unknown.
    """
    return (tensor_core_cycles(loop, warps=warps, gpu=gpu) or 0.0) + sum(loop.drains)


def issue_cycles(instructions: int, warps: int) -> float:
    """Clocks that an SM's four schedulers need to issue one iteration of a CTA."""
    return instructions * warps / SCHEDULERS


def float_cycles(loop: HotLoop, *, warps: int, gpu: Gpu) -> float:
    """Clocks that an SM's float32 units need for one iteration of a CTA: 32 lanes of each instruction."""
    return loop.by_class().get("float", 0) * warps * 32 / _FLOAT_LANES[gpu.sm]


def matrix_share(loop: HotLoop, *, warps: int, gpu: Gpu) -> float | None:
    """Tensor-core clocks of an iteration over the clocks that issuing it needs.

    Above 1 the tensor cores can be kept busy; below 1 issue slots run out first.
    """
    cycles = tensor_core_cycles(loop, warps=warps, gpu=gpu)
    return None if cycles is None else cycles / issue_cycles(loop.count, warps)


def peak_flop_per_s(dtype: str, gpu: Gpu) -> float | None:
    """The datasheet's dense rate of a dtype; for fp32 without tensor cores: lanes x 2 x SMs x clock."""
    if dtype == "fp32":
        return 2.0 * _FLOAT_LANES[gpu.sm] * gpu.sm_count * gpu.limits.clock_hz
    return gpu.flop_per_s.get(dtype)


def modelled_limit(
    *,
    loop: HotLoop,
    warps: int,
    programs: int,
    flight: BytesInFlight | None,
    loaded_bytes: float,
    work: IterationWork,
    gpu: Gpu,
    schedule_efficiency: float = 1.0,
) -> Limit:
    """The lowest bound of a kernel that runs its hot loop on every SM, with `programs` CTAs per SM.

    One iteration of all CTAs of an SM takes at least the longest of
    - memory: programs x useful bytes / (memory bandwidth / SMs);
    - issue: programs x `issue_cycles` / clock;
    - matrix: the longer of programs x `tensor_core_cycles` and `dependent_cycles`, / clock;
    - float: programs x `float_cycles` / clock;
    - latency (Little's law): (mean latency + time from the tightest wait to the last load that follows it) x
      loaded bytes / bytes ahead. The mean latency is the memory's for the useful share of the loaded
      bytes and L2's for the rest, which other CTAs load too.

    The limit is the rate that this bound allows, multiplied by the schedule efficiency of the grid.

    Args:
        loop: the hot loop.
        warps: warps per CTA.
        programs: CTAs per SM, at least 1.
        flight: bytes in flight; None leaves the latency bound out.
        loaded_bytes: bytes that an iteration of a CTA loads.
        work: what an iteration needs.
        gpu: the GPU.
        schedule_efficiency: see `kernel_grids.ScheduleEfficiency`; 1 where unknown.
    """
    memory_s = programs * work.useful_bytes * gpu.sm_count / gpu.bandwidth_bytes_per_s
    peak = peak_flop_per_s(work.dtype, gpu)
    arithmetic_s = programs * work.flop * gpu.sm_count / peak if peak else 0.0
    roof_s = max(memory_s, arithmetic_s)
    matrix_cycles = max(
        programs * (tensor_core_cycles(loop, warps=warps, gpu=gpu) or 0.0),
        dependent_cycles(loop, warps=warps, gpu=gpu),
    )
    times = {
        "memory": memory_s,
        "matrix": matrix_cycles / gpu.limits.clock_hz,
        "float": programs * float_cycles(loop, warps=warps, gpu=gpu) / gpu.limits.clock_hz,
        "issue": programs * issue_cycles(loop.count, warps) / gpu.limits.clock_hz,
    }
    if flight is not None and flight.ahead_bytes:
        useful = min(1.0, work.useful_bytes / loaded_bytes)
        mean_latency_s = MEMORY_LATENCY_S * useful + L2_LATENCY_S * (1.0 - useful)
        refill_s = flight.slots_to_refill * math.ceil(warps / SCHEDULERS) / gpu.limits.clock_hz
        times["latency"] = (mean_latency_s + refill_s) * loaded_bytes / flight.ahead_bytes
    which = max(times, key=lambda name: times[name])
    longest_s = times[which] / schedule_efficiency
    by_memory = memory_s >= arithmetic_s
    return Limit(
        which=which,
        bandwidth_bytes_per_s=programs * work.useful_bytes * gpu.sm_count / longest_s if by_memory else None,
        flop_per_s=None if by_memory else programs * work.flop * gpu.sm_count / longest_s,
        share_of_peak=roof_s / longest_s,
    )
