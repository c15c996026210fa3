"""What bounds a compiled kernel: headrooms of its hot loop, and the lowest bound of all. Pure arithmetic.

Every figure bounds what the code can reach; none is a time. An iteration is one program's, a program being
`warps` warps of 32 threads; each of an SM's four schedulers issues one instruction of one warp a clock.
"""

import math
from dataclasses import dataclass

from ..core.gpus import Gpu
from .hot_loop import HotLoop

SCHEDULERS = 4
# What a load takes from memory while the memory is busy; an idle one takes 466 clocks on A100, 479 on H100
# (Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture", 2024).
MEMORY_LATENCY_S = 800e-9
# The same source has 262 and 263 clocks of an idle L2 cache; twice that, for a busy one.
L2_LATENCY_S = 300e-9
_REGISTER_UNIT = 256  # CUDA occupancy calculator: registers are allotted to a warp in steps of these
_WARP_UNIT = 4  # and warps in fours, one a scheduler
_SHARED_UNIT = 128
_SHARED_RESERVED_BYTES = 1024  # of each program, from sm_80 up
_TENSOR_MEMORY_COLUMNS = 512  # of an SM, sm_100
# CUDA C++ programming guide, arithmetic instructions: float32 multiply-adds of an SM in a clock.
_FLOAT_LANES = {80: 64, 86: 128, 89: 128, 90: 128, 100: 128, 120: 128}
# Tensor units reach their peak through warp-group products alone (HGMMA, UTC*MMA). What a warp's own product
# (HMMA, QMMA, IMMA) reaches of it: sm_90 as measured by Luo et al.; sm_100 assumed to be A100's rate an SM.
_WARP_PRODUCT_SHARE = {90: 0.63, 100: 0.26}


@dataclass(frozen=True, kw_only=True)
class Residency:
    """How many programs an SM holds at one time.

    Attributes:
        programs: the number; 0 where not even one fits.
        limited_by: "registers", "shared_memory", "warps", "blocks" or "tensor_memory".
    """

    programs: int
    limited_by: str


@dataclass(frozen=True, kw_only=True)
class Flight:
    """Bytes that a program's loads keep on their way, steadily turning its hot loop.

    Attributes:
        ahead_bytes: most at any moment.
        at_wait_bytes: what the tightest wait leaves; 0 where it waits for everything.
        slots_to_refill: instructions of a warp from that wait to the end of the iteration's last load.
    """

    ahead_bytes: float
    at_wait_bytes: float
    slots_to_refill: int


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What one iteration of one program is for.

    Attributes:
        useful_bytes: bytes that must come from memory, however the kernel is cut: of keys and values for a
            decode step, of the weights for a few rows; of a tile that several programs load, its share.
        streamed_bytes: bytes of the tiles that come from memory at all, each counted whole; one that stays in
            the L2 cache (of x, where one block of rows holds it all) is none.
        flop: operations that the result needs; padding left out.
        tile_bytes: bytes of the tiles that it loads; None where unknown.
        dtype: of the operands, "bf16", "fp16", "fp32", "fp8" or "int8".
    """

    useful_bytes: float
    streamed_bytes: float
    flop: float
    tile_bytes: float | None
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The lowest bound.

    Attributes:
        which: "memory", "issue", "latency", "matrix" or "float": the lowest bound of the hot loop.
        bandwidth_bytes_per_s: useful bytes from memory, where bandwidth is the roof; else None.
        flop_per_s: useful operations, where arithmetic is the roof; else None.
        share_of_peak: of the datasheet's bandwidth, or rate of that dtype.
    """

    which: str
    bandwidth_bytes_per_s: float | None
    flop_per_s: float | None
    share_of_peak: float


def resident_programs(
    *, registers: int, shared_bytes: int, warps: int, gpu: Gpu, tensor_memory_columns: int = 0
) -> Residency:
    """Programs that an SM holds: the least of what registers, shared memory, warps and blocks allow.

    Registers of a warp are 32 x `registers`, rounded up to 256, and warps come in fours; shared memory is
    that of the program and 1 KB that every program gives up.

    Args:
        registers: 32-bit registers of a thread.
        shared_bytes: shared memory of a program.
        warps: warps of a program.
        gpu: the GPU.
        tensor_memory_columns: of a program, where the GPU has tensor memory.
    """
    warp_registers = math.ceil(max(1, registers) * 32 / _REGISTER_UNIT) * _REGISTER_UNIT
    by_registers = gpu.limits.registers_per_sm // warp_registers // _WARP_UNIT * _WARP_UNIT
    taken = math.ceil((shared_bytes + _SHARED_RESERVED_BYTES) / _SHARED_UNIT) * _SHARED_UNIT
    bounds = {
        "registers": by_registers // warps,
        "shared_memory": gpu.shared_bytes_per_sm // taken
        if shared_bytes <= gpu.limits.shared_bytes_per_block
        else 0,
        "warps": gpu.limits.max_warps_per_sm // warps,
        "blocks": gpu.limits.max_blocks_per_sm,
    }
    if tensor_memory_columns:
        bounds["tensor_memory"] = _TENSOR_MEMORY_COLUMNS // tensor_memory_columns
    limited_by = min(bounds, key=lambda name: bounds[name])
    return Residency(programs=bounds[limited_by], limited_by=limited_by)


def bytes_loaded(loop: HotLoop, warps: int) -> float | None:
    """Bytes that an iteration of a program loads: lane bytes x 32 lanes x warps, added up.

    Lanes that a mask turns off count. None where a bulk copy is among the loads: it tells no size.
    """
    if any(each.is_bulk for each in loop.global_loads):
        return None
    return float(sum(each.lane_bytes for each in loop.global_loads) * 32 * warps)


def bytes_in_flight(
    loop: HotLoop, *, warps: int, stages: int | None, tile_bytes: float | None
) -> Flight | None:
    """Follows the copies of a hot loop from iteration to iteration until they repeat.

    `LDGSTS` copies join the group that the next `LDGDEPBAR` closes; `DEPBAR.LE SB0, n` waits until no more
    than the n newest groups are on their way. Loads into registers are on their way within an iteration
    alone: all of its bytes ahead, nothing across its end. Of bulk copies, whose waits name no count,
    stages - 1 tiles are ahead, and one less at the wait, which is for the oldest.

    Args:
        loop: the loop that loads.
        warps: warps of a program.
        stages: of the kernel's pipeline; None where unknown.
        tile_bytes: bytes of an iteration's tiles; None where unknown.

    Returns:
        The bytes, per program; None where the loop loads nothing or bulk copies of an unknown size.
    """
    loads = loop.global_loads
    if not loads:
        return None
    waits = [each for each in loop.instructions if _groups_left(each.opcode, each.operands) is not None]
    counted = bytes_loaded(loop, warps)
    copied = any(each.name == "LDGSTS" for each in loads)
    if counted is not None and not copied:
        return Flight(ahead_bytes=counted, at_wait_bytes=0.0, slots_to_refill=loop.count)
    if counted is not None and waits:
        return _followed(loop, warps)
    size = counted if counted is not None else tile_bytes
    if size is None or stages is None:
        return None
    return Flight(
        ahead_bytes=max(1, stages - 1) * size,
        at_wait_bytes=max(0, stages - 2) * size,
        slots_to_refill=loop.count,
    )


def _followed(loop: HotLoop, warps: int) -> Flight:
    turns = 4 + sum(each.name == "LDGDEPBAR" for each in loop.instructions)
    turns += max(_groups_left(each.opcode, each.operands) or 0 for each in loop.instructions)
    groups: list[float] = []
    ahead, tightest, tightest_at, last_load = 0.0, math.inf, 0, 0
    for turn in range(turns):
        settled = turn == turns - 1
        filling = 0.0
        for at, each in enumerate(loop.instructions):
            left = _groups_left(each.opcode, each.operands)
            if each.name == "LDGSTS":
                filling += each.lane_bytes * 32 * warps
                last_load = at
            elif each.name == "LDGDEPBAR":
                groups.append(filling)
                filling = 0.0
            elif left is not None:
                groups = groups[len(groups) - left :] if left < len(groups) else groups
                if settled and sum(groups) < tightest:
                    tightest, tightest_at = sum(groups), at
            if settled:
                ahead = max(ahead, sum(groups) + filling)
    return Flight(
        ahead_bytes=ahead,
        at_wait_bytes=tightest,
        slots_to_refill=(last_load - tightest_at) % max(1, loop.count),
    )


def _groups_left(opcode: str, operands: str) -> int | None:
    if not opcode.startswith("DEPBAR") or not operands.startswith("SB0"):
        return None
    count = operands.partition(",")[2].partition(",")[0].strip()
    return int(count, 16) if count.startswith("0x") else 0


def issue_headroom(*, useful_bytes: float, instructions: int, warps: int, gpu: Gpu) -> float:
    """Bandwidth at which issue slots run out, over the memory's.

    useful_bytes / (instructions x warps) x SMs x 4 x clock / memory bandwidth. Below 1 the kernel cannot use
    the memory's bandwidth, however many programs run.

    Args:
        useful_bytes: of an iteration of a program.
        instructions: of an iteration, per warp.
        warps: of a program.
        gpu: the GPU.
    """
    bytes_per_slot = useful_bytes / (instructions * warps)
    return bytes_per_slot * gpu.sm_count * SCHEDULERS * gpu.limits.clock_hz / gpu.bandwidth_bytes_per_s


def latency_headroom(
    *, bytes_per_program: float, programs: int, gpu: Gpu, latency_s: float = MEMORY_LATENCY_S
) -> float:
    """Bytes in flight on an SM over what Little's law asks for.

    bytes_per_program x programs / (memory bandwidth / SMs x latency_s).

    Args:
        bytes_per_program: streamed bytes that a program keeps on their way.
        programs: that an SM holds.
        gpu: the GPU.
        latency_s: from a load's issue to its data.
    """
    return bytes_per_program * programs / (gpu.bandwidth_bytes_per_s / gpu.sm_count * latency_s)


def multiply_adds_per_clock(matrix_name: str, opcode: str, gpu: Gpu) -> float | None:
    """Multiply-adds that the matrix units of an SM do in a clock with one kind of instruction.

    The datasheet's dense rate / (2 x SMs x boost clock): about 1024 in bf16 on A100, 2048 on H100, 3870 on
    B200, 512 on L40S, 256 on RTX 3090 and 5090 (float32 accumulation); half that in tf32.

    Args:
        matrix_name: such as "HGMMA".
        opcode: with its modifiers, which tell tf32.
        gpu: the GPU.

    Returns:
        The rate, or None where the datasheet has none.
    """
    kind = matrix_name.removeprefix("UTC")[0]
    peak = gpu.flop_per_s[{"Q": "fp8", "I": "int8", "O": "fp4"}.get(kind, "fp16")]
    if peak is None:
        return None
    share = 0.5 if "TF32" in opcode else 1.0
    if "G" not in matrix_name and not matrix_name.startswith("UTC"):
        share *= _WARP_PRODUCT_SHARE.get(gpu.sm, 1.0)
    return share * peak / (2 * gpu.sm_count * gpu.limits.clock_hz)


def matrix_cycles(loop: HotLoop, *, warps: int, gpu: Gpu) -> float | None:
    """Clocks that the matrix units of an SM need for one iteration of a program.

    Multiply-adds of the program / multiply-adds of an SM in a clock. 0 without matrix instructions; None
    where a shape or a rate is unknown.
    """
    if not loop.matrix_names:
        return 0.0
    first = next(each for each in loop.instructions if each.is_matrix)
    rate = multiply_adds_per_clock(first.name, first.opcode, gpu)
    if rate is None or loop.multiply_adds is None:
        return None
    issuing = 1 if first.name.startswith("UTC") else warps
    return loop.multiply_adds * issuing / rate


def issue_cycles(instructions: int, warps: int) -> float:
    """Clocks that an SM's four schedulers need for one iteration of a program."""
    return instructions * warps / SCHEDULERS


def float_cycles(loop: HotLoop, *, warps: int, gpu: Gpu) -> float:
    """Clocks that the float32 units of an SM need for one iteration: 32 lanes of each instruction."""
    return loop.by_class().get("float", 0) * warps * 32 / _FLOAT_LANES[gpu.sm]


def matrix_share(loop: HotLoop, *, warps: int, gpu: Gpu) -> float | None:
    """Clocks that the matrix instructions need over the clocks that issuing an iteration needs.

    Above 1, the matrix units can be kept busy; below, issue slots run out first.
    """
    cycles = matrix_cycles(loop, warps=warps, gpu=gpu)
    return None if cycles is None else cycles / issue_cycles(loop.count, warps)


def peak_flop_per_s(dtype: str, gpu: Gpu) -> float | None:
    """The datasheet's dense rate of a dtype; for fp32 the plain units', lanes x 2 x SMs x clock."""
    if dtype == "fp32":
        return 2.0 * _FLOAT_LANES[gpu.sm] * gpu.sm_count * gpu.limits.clock_hz
    return gpu.flop_per_s.get(dtype)


def modelled_limit(
    *,
    loop: HotLoop,
    warps: int,
    programs: int,
    flight: Flight | None,
    loaded_bytes: float,
    workload: Workload,
    gpu: Gpu,
    schedule_efficiency: float = 1.0,
    latency_s: float = MEMORY_LATENCY_S,
) -> Limit:
    """The lowest bound of a kernel that turns its hot loop on every SM, each holding `programs` programs.

    One iteration of all an SM's programs takes at least the longest of
    - memory: programs x useful bytes / (memory bandwidth / SMs);
    - issue: programs x `issue_cycles` / clock;
    - matrix, float: programs x `matrix_cycles`, `float_cycles` / clock;
    - latency: (mean latency + time from the tightest wait to the last load that follows it) x loaded bytes /
      bytes ahead: Little's law, with the time that passes before what has arrived is replaced. The mean
      latency is `latency_s` for the useful share of the loaded bytes, and that of the L2 cache for the rest,
      which other programs ask for too;

    The rate that this bound allows is then held on the share of the time that the schedule of the grid fills.

    Args:
        loop: the hot loop.
        warps: warps of a program.
        programs: that an SM holds, at least 1.
        flight: bytes on their way; None leaves the latency bound out.
        loaded_bytes: of an iteration of a program.
        workload: what an iteration is for.
        gpu: the GPU.
        schedule_efficiency: share of the roof that the schedule of the grid can reach; 1 where unknown.
        latency_s: of memory.
    """
    memory_s = programs * workload.useful_bytes * gpu.sm_count / gpu.bandwidth_bytes_per_s
    peak = peak_flop_per_s(workload.dtype, gpu)
    arithmetic_s = programs * workload.flop * gpu.sm_count / peak if peak else 0.0
    roof_s = max(memory_s, arithmetic_s)
    times = {
        "memory": memory_s,
        "matrix": programs * (matrix_cycles(loop, warps=warps, gpu=gpu) or 0.0) / gpu.limits.clock_hz,
        "float": programs * float_cycles(loop, warps=warps, gpu=gpu) / gpu.limits.clock_hz,
        "issue": programs * issue_cycles(loop.count, warps) / gpu.limits.clock_hz,
    }
    if flight is not None and flight.ahead_bytes:
        useful = min(1.0, workload.useful_bytes / loaded_bytes)
        mean_latency_s = latency_s * useful + min(L2_LATENCY_S, latency_s) * (1.0 - useful)
        refill_s = flight.slots_to_refill * math.ceil(warps / SCHEDULERS) / gpu.limits.clock_hz
        times["latency"] = (mean_latency_s + refill_s) * loaded_bytes / flight.ahead_bytes
    which = max(times, key=lambda name: times[name])
    longest_s = times[which] / schedule_efficiency
    by_memory = memory_s >= arithmetic_s
    return Limit(
        which=which,
        bandwidth_bytes_per_s=programs * workload.useful_bytes * gpu.sm_count / longest_s
        if by_memory
        else None,
        flop_per_s=None if by_memory else programs * workload.flop * gpu.sm_count / longest_s,
        share_of_peak=roof_s / longest_s,
    )
