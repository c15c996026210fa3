"""Headrooms and limits, against figures worked out by hand."""

import pytest
from decodetax.harness.core.gpus import find_gpu
from decodetax.harness.offline import headroom
from decodetax.harness.offline.headroom import IterationWork
from decodetax.harness.offline.hot_loop import HotLoop
from decodetax.harness.offline.machine_code import Instruction

A100, H100, B200 = (find_gpu(name) for name in ("a100", "h100", "b200"))


def loop_of(*lines, multiply_adds=0.0):
    """A loop of instructions written as "OPCODE operands", an integer before one repeating it."""
    instructions = []
    for line in lines:
        times, _, rest = line.partition(" ") if line[0].isdigit() else ("1", "", line)
        opcode, _, operands = rest.partition(" ")
        instructions += [Instruction(0, opcode, operands) for _ in range(int(times))]
    return HotLoop(tuple(range(len(instructions))), tuple(instructions), multiply_adds)


COPY = "LDGSTS.E.BYPASS.128 [R1], [R2.64]"
LOAD = "LDG.E.128 R4, [R2.64]"
COMMIT = "LDGDEPBAR"


def wait(groups):
    return f"DEPBAR.LE SB0, {groups:#x}"


@pytest.mark.parametrize(
    ("registers", "shared_kib", "warps", "gpu", "programs", "limited_by"),
    [
        (24, 0, 4, "h100", 16, "warps"),
        (24, 0, 1, "h100", 32, "blocks"),
        (24, 0, 1, "rtx3090", 16, "blocks"),
        (33, 0, 4, "h100", 12, "registers"),  # 1056 rounded up to 1280 registers: 51 warps, in fours 48
        (33, 0, 2, "h100", 24, "registers"),
        (80, 70, 4, "h100", 3, "shared_memory"),  # 71 KB each of 228
        (80, 75.5, 4, "h100", 2, "shared_memory"),  # three times 76 would fit without the reserved KB
        (255, 0, 8, "a100", 1, "registers"),
        (24, 163, 4, "a100", 1, "shared_memory"),
        (24, 163.5, 4, "a100", 0, "shared_memory"),
        (255, 0, 16, "a100", 0, "registers"),
    ],
)
def test_occupancy_is_the_least_of_four_bounds(registers, shared_kib, warps, gpu, programs, limited_by):
    found = headroom.occupancy(
        registers=registers, shared_bytes=int(shared_kib * 1024), warps=warps, gpu=find_gpu(gpu)
    )
    assert (found.programs, found.limited_by) == (programs, limited_by)


def test_tensor_memory_bounds_occupancy():
    found = headroom.occupancy(registers=40, shared_bytes=0, warps=4, gpu=B200, tensor_memory_columns=256)
    assert (found.programs, found.limited_by) == (2, "tensor_memory")


@pytest.mark.parametrize(
    ("body", "ahead", "at_wait"),
    [
        # Keys and values in groups of their own, two tiles issued ahead, one of them left by the wait.
        ([wait(2), "HMMA.16816", f"4 {COPY}", COMMIT, f"4 {COPY}", COMMIT], 4, 2),
        ([wait(0), "HMMA.16816", f"4 {COPY}", COMMIT, f"4 {COPY}", COMMIT], 2, 0),
        # Each operand waited for just before its use, as late as can be: values leave keys on their way.
        ([wait(1), "HMMA.16816", f"4 {COPY}", COMMIT, wait(1), "HMMA.16816", f"4 {COPY}", COMMIT], 2, 1),
        # One generous wait and one that drains: the tightest counts.
        ([wait(3), f"4 {COPY}", COMMIT, f"4 {COPY}", COMMIT, wait(0)], 2, 0),
        # Small groups take places among those that a wait leaves.
        ([wait(2), f"4 {COPY}", COMMIT, COMMIT, COMMIT], 1, 0),
        # A wait on another counter does not concern copies.
        ([wait(1), "DEPBAR.LE SB1, 0x0", f"4 {COPY}", COMMIT], 2, 1),
    ],
    ids=["pipelined", "drained", "alternating", "tightest_of_two", "empty_groups", "other_counter"],
)
def test_bytes_in_flight_follow_commits_and_waits(body, ahead, at_wait):
    group_bytes = 4 * 16 * 32 * 4  # four copies of 16 bytes per lane, of four warps
    flight = headroom.bytes_in_flight(loop_of(*body), warps=4, stages=3, tile_bytes=None)
    assert flight.ahead_bytes == ahead * group_bytes
    assert flight.at_wait_bytes == at_wait * group_bytes


def test_loads_into_registers_leave_nothing_in_flight_across_iterations():
    flight = headroom.bytes_in_flight(loop_of(f"3 {LOAD}", "5 FFMA"), warps=8, stages=3, tile_bytes=None)
    assert (flight.ahead_bytes, flight.at_wait_bytes) == (3 * 16 * 32 * 8, 0)
    assert flight.slots_to_refill == 8


@pytest.mark.parametrize(("stages", "ahead", "at_wait"), [(4, 3000, 2000), (2, 1000, 0), (1, 1000, 0)])
def test_tma_copies_are_in_flight_by_stages(stages, ahead, at_wait):
    flight = headroom.bytes_in_flight(
        loop_of("UTMALDG.2D [UR8], [UR4]", "HGMMA.64x64x16"), warps=4, stages=stages, tile_bytes=1000.0
    )
    assert (flight.ahead_bytes, flight.at_wait_bytes) == (ahead, at_wait)


def test_tma_copies_of_unknown_size_and_loops_without_loads_have_no_bytes_in_flight():
    bulk = loop_of("UTMALDG.2D [UR8], [UR4]")
    assert headroom.bytes_loaded(bulk, 4) is None
    assert headroom.bytes_in_flight(bulk, warps=4, stages=3, tile_bytes=None) is None
    assert headroom.bytes_in_flight(loop_of("FFMA"), warps=4, stages=3, tile_bytes=1000.0) is None


@pytest.mark.parametrize(
    ("gpu", "instructions", "expected"), [(A100, 307, 7.97), (H100, 338, 6.99), (B200, 322, 3.70)]
)
def test_issue_headroom_of_a_textbook_decode_loop(gpu, instructions, expected):
    # 64 tokens of 128 elements, keys and values, in 16 bits, by four warps.
    found = headroom.issue_headroom(useful_bytes=32768, instructions=instructions, warps=4, gpu=gpu)
    assert found == pytest.approx(expected, rel=2e-3)


def test_latency_headroom_is_littles_law():
    # H100: 3350e9 / 132 x 800e-9 = 20303 bytes must be on their way to an SM.
    found = headroom.latency_headroom(bytes_per_program=65536, programs=3, gpu=H100)
    assert found == pytest.approx(3 * 65536 / 20303, rel=1e-4)


@pytest.mark.parametrize(
    ("opcode", "gpu", "expected"),
    [
        ("HMMA.16816.F32.BF16", "a100", 1024),
        ("HMMA.1688.F32.TF32", "a100", 512),
        ("IMMA.16832.S8.S8", "a100", 2048),
        ("HGMMA.64x256x16.F32.BF16", "h100", 2048),
        ("QGMMA.64x256x32.F32.E4M3.E4M3", "h100", 4096),
        ("HMMA.16816.F32.BF16", "h100", 0.63 * 2048),
        ("UTCHMMA", "b200", 3868),
        ("HMMA.16816.F32.BF16", "l40s", 512),
        ("HMMA.16816.F32.BF16", "rtx3090", 256),
        ("HMMA.16816.F32.BF16", "rtx5090", 256),
    ],
)
def test_tensor_core_rates_follow_from_the_datasheet(opcode, gpu, expected):
    assert headroom.multiply_adds_per_clock(opcode, find_gpu(gpu)) == pytest.approx(expected, rel=0.015)


def test_a_rate_that_no_datasheet_has_is_unknown():
    assert headroom.multiply_adds_per_clock("QMMA.16832", A100) is None
    loop = loop_of("QMMA.16832", multiply_adds=4096.0)
    assert headroom.tensor_core_cycles(loop, warps=4, gpu=A100) is None
    assert headroom.matrix_share(loop, warps=4, gpu=A100) is None


def test_matrix_share_is_tensor_core_clocks_over_issue_clocks():
    # Tutorial 03 on A100: 128 x 256 x 64 multiply-adds are 2048 clocks; 282 slots of 8 warps are 564.
    loop = loop_of("128 HMMA.16816.F32.BF16", "154 FFMA", multiply_adds=128 * 2048.0)
    assert headroom.tensor_core_cycles(loop, warps=8, gpu=A100) == pytest.approx(2048, rel=1e-3)
    assert headroom.issue_cycles(loop.count, 8) == 564
    assert headroom.matrix_share(loop, warps=8, gpu=A100) == pytest.approx(2048 / 564, rel=1e-3)


DECODE = IterationWork(useful_bytes=32768, streamed_bytes=32768, flop=131072, tile_bytes=32768, dtype="bf16")
MATMUL = IterationWork(
    useful_bytes=1024, streamed_bytes=49152, flop=2.0 * 128 * 256 * 64, tile_bytes=49152, dtype="bf16"
)


def limit_of(body, work, *, gpu=A100, warps=4, programs=2, multiply_adds=0.0, **more):
    loop = loop_of(*body, multiply_adds=multiply_adds)
    flight = headroom.bytes_in_flight(loop, warps=warps, stages=3, tile_bytes=None)
    loaded = headroom.bytes_loaded(loop, warps)
    return headroom.modelled_limit(
        loop=loop,
        warps=warps,
        programs=programs,
        flight=flight,
        loaded_bytes=loaded,
        work=work,
        gpu=gpu,
        **more,
    )


PIPELINED = [wait(2), f"8 {COPY}", COMMIT, f"8 {COPY}", COMMIT]


def test_a_lean_pipelined_decode_loop_is_limited_by_memory():
    limit = limit_of([*PIPELINED, "200 FFMA"], DECODE)
    assert (limit.which, limit.share_of_peak, limit.flop_per_s) == ("memory", 1.0, None)
    assert limit.bandwidth_bytes_per_s == pytest.approx(2039e9)


def test_a_long_loop_is_limited_by_issue_at_its_headroom():
    body = [*PIPELINED, "4000 IADD3"]
    limit = limit_of(body, DECODE)
    count = loop_of(*body).count
    found = headroom.issue_headroom(useful_bytes=32768, instructions=count, warps=4, gpu=A100)
    assert limit.which == "issue"
    assert limit.share_of_peak == pytest.approx(found)
    assert limit.bandwidth_bytes_per_s == pytest.approx(found * 2039e9)


def test_a_loop_that_loads_little_at_a_time_is_limited_by_latency():
    # One load of 16 bytes per lane by one program of four warps: 2048 bytes in 800 ns and 2 clocks.
    work = IterationWork(useful_bytes=2048, streamed_bytes=2048, flop=0.0, tile_bytes=2048, dtype="bf16")
    limit = limit_of([LOAD, "FFMA"], work, programs=1)
    assert limit.which == "latency"
    assert limit.bandwidth_bytes_per_s == pytest.approx(108 * 2048 / (800e-9 + 2 / 1.41e9))


def test_a_wait_that_drains_the_pipeline_lowers_the_latency_bound():
    def bandwidth(groups):
        body = [wait(groups), "HMMA.16816", COPY, COMMIT, COPY, COMMIT]
        work = IterationWork(useful_bytes=4096, streamed_bytes=4096, flop=0.0, tile_bytes=4096, dtype="bf16")
        limit = limit_of(body, work, programs=1)
        assert limit.which == "latency"
        return limit.bandwidth_bytes_per_s

    assert bandwidth(0) == pytest.approx(bandwidth(2) / 2, rel=0.01)


def test_a_large_matmul_is_limited_by_tensor_cores():
    body = [wait(2), f"6 {COPY}", COMMIT, f"6 {COPY}", COMMIT, "4 HGMMA.64x256x16.F32.BF16"]
    limit = limit_of(body, MATMUL, gpu=H100, warps=8, programs=1, multiply_adds=262144.0)
    assert (limit.which, limit.bandwidth_bytes_per_s) == ("matrix", None)
    assert limit.flop_per_s == pytest.approx(989e12)
    assert limit.share_of_peak == pytest.approx(1)


def test_float32_work_is_limited_by_the_float_units_where_they_are_narrow():
    work = IterationWork(
        useful_bytes=32768, streamed_bytes=32768, flop=2 * 32 * 4 * 4000.0, tile_bytes=32768, dtype="fp32"
    )
    limit = limit_of([*PIPELINED, "4000 FFMA"], work)
    assert (limit.which, limit.share_of_peak) == ("float", pytest.approx(1.0))


def test_schedule_efficiency_scales_the_limit():
    whole, scheduled = (
        limit_of([*PIPELINED, "200 FFMA"], DECODE, schedule_efficiency=share) for share in (1.0, 0.8)
    )
    assert scheduled.which == whole.which
    assert scheduled.share_of_peak == pytest.approx(0.8 * whole.share_of_peak)
    assert scheduled.bandwidth_bytes_per_s == pytest.approx(0.8 * whole.bandwidth_bytes_per_s)


FLOAT8 = IterationWork(
    useful_bytes=1024, streamed_bytes=32768, flop=2.0 * 128**3, tile_bytes=32768, dtype="fp8"
)


@pytest.mark.parametrize(("left", "programs", "share"), [(0, 1, 512 / 614), (1, 1, 1.0), (0, 2, 1.0)])
def test_a_wait_for_every_product_lowers_the_tensor_core_limit_of_one_cta_alone(left, programs, share):
    # 128 x 128 x 128 multiply-adds are 512 clocks at 4096 a clock. After the wait 100 additions and a load
    # are issued before the next product. A second CTA keeps the tensor cores busy meanwhile.
    mma = "QGMMA.64x128x32.F32.E4M3.E4M3 R24, gdesc[UR4], R24"
    body = [f"3 {mma}", f"{mma}, gsb0", f"WARPGROUP.DEPBAR.LE gsb0, {left:#x}", "100 FADD", "2 UTMALDG.2D"]
    loop = loop_of(*body, multiply_adds=128**3 / 8)
    limit = headroom.modelled_limit(
        loop=loop, warps=8, programs=programs, flight=None, loaded_bytes=32768.0, work=FLOAT8, gpu=H100
    )
    assert limit.which == "matrix"
    assert limit.share_of_peak == pytest.approx(share, rel=2e-3)
    if left == 0:
        assert headroom.dependent_cycles(loop, warps=8, gpu=H100) == pytest.approx(614, rel=2e-3)
