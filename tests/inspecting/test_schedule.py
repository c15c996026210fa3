"""Simulated grids: hand-computed times, a plain simulation beside, and the launches of the kernels."""

import dataclasses
import math
import time

import pytest
from decodetax.harness.accounting.gpu_limits import find_gpu
from decodetax.harness.inspecting.cache_model import MatmulShape
from decodetax.harness.inspecting.schedule import (
    LENGTHS_S,
    PROGRAM_S,
    SECOND_KERNEL_S,
    Launch,
    ProgramWork,
    decode_launch,
    fixed_time_s,
    matmul_matrix_launch,
    matmul_memory_launch,
    matrix_units_of,
    simulate,
    simulate_launch,
)
from decodetax.kernels import DecodeTiling, MatmulTiling
from hypothesis import given
from hypothesis import strategies as st

H100 = find_gpu("h100")
# 10 SMs, 1000 bytes a second: fair are 100 to an SM, and it gets 160 at most.
TEN = dataclasses.replace(H100, sm_count=10, memory_bytes_per_s=1000.0)


def simulated(works, *, gpu=TEN, programs_per_sm=1, fixed_s=0.0, resource=None):
    programs = [ProgramWork(work=work, fixed_s=fixed_s) for work in works]
    return simulate(programs, gpu, programs_per_sm, resource=resource)


def about(figure):
    return pytest.approx(figure, rel=1e-9)


def test_one_program_gets_no_more_than_its_sm_can_take():
    schedule = simulated([160.0], fixed_s=2.0)
    assert schedule.time_s == about(2 + 1)
    assert schedule.ideal_s == about(0.16)
    assert schedule.efficiency == about(0.16 / 3)
    assert schedule.sm_end_s == (about(3), *[0] * 9)
    assert schedule.longest_sm_over_mean == about(10)
    assert schedule.waves == about(0.1)


def test_two_programs_on_one_sm_share_what_it_can_take():
    two = dataclasses.replace(TEN, sm_count=2)  # fair are 500, at most 800
    schedule = simulated([400.0, 100.0, 800.0], gpu=two, programs_per_sm=2)
    # Three programs draw: 1000 / 3 each, until the 100 are done at 0.3; then 400 each on the first SM.
    first = 0.3 + (400 - 100) / 400
    assert schedule.sm_end_s == (about(first + (800 - 400) / 800), about(0.3))


def test_one_full_wave_runs_at_the_full_rate():
    schedule = simulated([100.0] * 10)
    assert schedule.time_s == about(1)
    assert schedule.efficiency == about(1)
    assert schedule.longest_sm_over_mean == about(1)


def test_half_a_second_wave_runs_at_what_its_sms_can_take():
    # The first ten end at 1; the five left get 160 of their 200 each.
    schedule = simulated([100.0] * 15)
    assert schedule.waves == about(1.5)
    assert schedule.time_s == about(1 + 100 / 160)
    assert schedule.longest_sm_over_mean == about(1.625 / ((5 * 1 + 5 * 1.625) / 10))


def test_bandwidth_that_ends_free_goes_to_the_others():
    # 100 a second each; at 0.5 nine are done, and the last one gets 160.
    assert simulated([50.0] * 9 + [200.0]).time_s == about(0.5 + 150 / 160)


def test_what_an_sm_at_its_most_leaves_goes_to_the_others():
    uneven = dataclasses.replace(TEN, sm_count=5)  # fair are 200, at most 320
    # Six programs, two of them on SM 0: equal shares are 166.7, SM 0 is at its 320 with 160 each, and the
    # 680 left are 170 for each of the others.
    schedule = simulated([160.0, *[170.0] * 4, 160.0], gpu=uneven, programs_per_sm=2)
    assert schedule.sm_end_s == (about(1),) * 5


def test_program_takes_the_first_slot_that_is_free():
    # The eleventh starts where 50 are done; 100 a second each throughout but for the end.
    schedule = simulated([50.0] + [100.0] * 9 + [50.0])
    assert schedule.time_s == about(1)
    assert schedule.sm_end_s == (about(1),) * 10


def test_fixed_time_passes_without_drawing():
    # Ten draw from 1 to 2; the others on the same SMs wait out their fixed time in the same second.
    programs = [ProgramWork(work=100.0, fixed_s=1.0)] * 10 + [ProgramWork(work=100.0, fixed_s=2.0)] * 10
    assert simulate(programs, TEN, 2).time_s == about(3)


@pytest.mark.parametrize(("programs", "waves"), [(1, 1), (10, 1), (11, 2), (25, 3)])
def test_empty_programs_cost_their_fixed_time(programs, waves):
    schedule = simulated([0.0] * programs, fixed_s=PROGRAM_S)
    assert schedule.time_s == about(waves * 1.5e-6)
    assert schedule.efficiency == 0


def test_empty_programs_ahead_delay_the_work_behind():
    programs = [ProgramWork(work=0.0, fixed_s=1.0)] * 30 + [ProgramWork(work=100.0, fixed_s=1.0)] * 10
    assert simulate(programs, TEN, 1).time_s == about(3 + 1 + 1)


def test_no_programs_take_no_time():
    schedule = simulated([])
    assert (schedule.time_s, schedule.efficiency, schedule.longest_sm_over_mean) == (0, 1, 1)


def test_matrix_units_are_each_sm_s_own():
    resource = matrix_units_of(1000.0)
    # One program has 100 a second, whatever the others do; two on an SM have 50 each.
    assert simulated([100.0], resource=resource).time_s == about(1)
    schedule = simulated([100.0] * 11, programs_per_sm=2, resource=resource)
    assert schedule.sm_end_s == (about(2), *[about(1)] * 9)
    assert schedule.ideal_s == about(1.1)


@given(
    st.lists(st.sampled_from([0.0, 1.0, 50.0, 100.0, 130.0, 999.0]), max_size=40),
    st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from([0.5, 1.0, 1.6, 9.0]),
)
def test_simulation_agrees_with_a_plain_one(works, fixed, sms, programs_per_sm, sm_share):
    gpu = dataclasses.replace(TEN, sm_count=sms)
    resource = dataclasses.replace(matrix_units_of(1000.0), sm_share=sm_share)
    programs = [ProgramWork(work=work, fixed_s=fixed[index % len(fixed)]) for index, work in enumerate(works)]
    schedule = simulate(programs, gpu, programs_per_sm, resource=resource)
    assert schedule.sm_end_s == pytest.approx(plain_simulation(programs, sms, programs_per_sm, resource))
    assert schedule.time_s == max(schedule.sm_end_s)


def plain_simulation(programs, sms, programs_per_sm, resource):
    """All programs and all rates anew at each event; when each SM ends."""
    queue, running, ends, now = list(programs), {}, [0.0] * sms, 0.0
    while queue or running:
        for slot in range(sms * programs_per_sm):
            if queue and slot not in running:
                program = queue.pop(0)
                running[slot] = [program.fixed_s, program.work]
        rates = plain_rates([slot for slot, (fixed, _) in running.items() if fixed <= 0], sms, resource)
        left = {slot: work / rates[slot] if fixed <= 0 else fixed for slot, (fixed, work) in running.items()}
        step = min(left.values())
        now += step
        for slot, state in list(running.items()):
            phase = 1 if state[0] <= 0 else 0
            state[phase] -= step * (rates[slot] if phase else 1)
            # What rounding leaves of a phase that ends now is no work.
            state[phase] = 0.0 if left[slot] <= step + 1e-12 else state[phase]
            if state == [0.0, 0.0]:
                del running[slot]
                ends[slot % sms] = now
    return ends


def plain_rates(drawing, sms, resource):
    """Raises all rates together; an SM at its most stays there."""
    most = resource.rate_per_s * resource.sm_share / sms
    rates, free, rate = {}, set(drawing), resource.rate_per_s
    while free:
        per_sm = {sm: [slot for slot in free if slot % sms == sm] for sm in range(sms)}
        full = [slots for slots in per_sm.values() if len(slots) * rate / len(free) > most]
        if not full:
            return rates | dict.fromkeys(free, rate / len(free))
        busiest = max(full, key=len)
        rates |= dict.fromkeys(busiest, most / len(busiest))
        rate -= most
        free -= set(busiest)
    return rates


def test_ten_thousand_unequal_programs_take_about_a_second():
    works = [index * 7919 % 10_007 * 200.0 for index in range(10_000)]
    start = time.process_time()
    schedule = simulated(works, gpu=H100, programs_per_sm=3, fixed_s=PROGRAM_S)
    assert time.process_time() - start < 5
    assert schedule.time_s >= math.fsum(works) / H100.memory_bytes_per_s
    assert schedule.efficiency > 0.95


@pytest.mark.parametrize(
    ("parts", "reads_lengths", "time_s"),
    [(0, False, 1.5e-6), (1, False, 1.5e-6), (1, True, 2e-6), (3, True, 5e-6)],
)
def test_fixed_time_counts_parts_and_the_reading_of_lengths(parts, reads_lengths, time_s):
    assert fixed_time_s(parts, reads_lengths=reads_lengths) == about(time_s)
    assert (PROGRAM_S, LENGTHS_S, SECOND_KERNEL_S) == (1.5e-6, 0.5e-6, 3e-6)


def test_second_kernel_costs_its_launch_and_its_bytes():
    launch = Launch(
        programs=(ProgramWork(work=100.0, fixed_s=0.0),) * 10, useful_work=900.0, second_kernel_bytes=500
    )
    schedule = simulate_launch(launch, TEN, 1)
    assert schedule.second_kernel_s == about(3e-6 + 0.5)
    assert schedule.time_s == about(1 + 3e-6 + 0.5)
    assert schedule.efficiency == about(0.9 / schedule.time_s)
    alone = simulate_launch(dataclasses.replace(launch, second_kernel_bytes=None), TEN, 1)
    assert (alone.second_kernel_s, alone.time_s) == (0, about(1))


def decode_tiling(num_splits):
    return DecodeTiling(block_g=16, block_n=64, num_splits=num_splits, num_warps=4, num_stages=3)


def decode(context_lens, num_splits, *, q_heads=8, kv_heads=2):
    return decode_launch(
        context_lens=context_lens,
        capacity=1000,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=128,
        element_bytes=2,
        tiling=decode_tiling(num_splits),
    )


def test_decode_program_moves_the_keys_and_values_of_its_share():
    launch = decode([100, 0, 1], 1)
    assert [program.work for program in launch.programs] == [51200, 51200, 0, 0, 512, 512]
    assert launch.useful_work == 101 * 2 * 512
    assert launch.second_kernel_bytes is None
    assert {program.fixed_s for program in launch.programs} == {1.5e-6}


def test_cut_context_moves_partial_results_twice():
    # 150 tokens are 3 tiles: one to each of three shares, and the fourth is empty.
    launch = decode([150], 4)
    partial = 4 * (128 + 2) * 4
    tokens = [64, 64, 64, 64, 22, 22, 0, 0]
    assert [program.work for program in launch.programs] == [
        512 * count + (partial if count else 0) for count in tokens
    ]
    assert launch.useful_work == 150 * 2 * 512
    assert launch.second_kernel_bytes == 6 * partial + 8 * 128 * 2


def test_programs_of_one_group_share_its_keys_and_values():
    # 20 query heads are two blocks of 16, the second of 4.
    launch = decode([100], 2, q_heads=20, kv_heads=1)
    partial = (128 + 2) * 4
    assert [program.work for program in launch.programs] == [
        64 * 256 + 16 * partial,
        64 * 256 + 4 * partial,
        36 * 256 + 16 * partial,
        36 * 256 + 4 * partial,
    ]
    assert launch.useful_work == 100 * 512


def test_one_long_sequence_among_short_ones_leaves_sms_idle():
    ragged = simulate_launch(decode([1000] + [10] * 31, 1, kv_heads=8), H100, 2)
    equal = simulate_launch(decode([1000] * 32, 1, kv_heads=8), H100, 2)
    assert ragged.longest_sm_over_mean > 5
    assert equal.longest_sm_over_mean < 1.25
    assert ragged.efficiency < 0.2 < equal.efficiency


def matmul_tiling(num_splits=1):
    return MatmulTiling(
        block_m=128, block_n=256, block_k=64, group_m=8, num_splits=num_splits, num_warps=8, num_stages=3
    )


def product(rows, out_features, in_features):
    return MatmulShape(
        rows=rows, out_features=out_features, in_features=in_features, x_bytes=2, weight_bytes=1, out_bytes=2
    )


def test_matmul_program_does_its_whole_tile():
    launch = matmul_matrix_launch(product(129, 256, 100), matmul_tiling())
    assert [program.work for program in launch.programs] == [2 * 128 * 256 * 128] * 2
    assert launch.useful_work == 2 * 129 * 256 * 100
    assert launch.second_kernel_bytes is None


def test_split_k_shares_the_steps_and_is_added_up():
    # 5 steps in 4 splits: two each, then one, then none.
    launch = matmul_matrix_launch(product(128, 256, 320), matmul_tiling(4))
    step = 2 * 128 * 256 * 64
    assert [program.work for program in launch.programs] == [2 * step, 2 * step, step, 0]
    assert launch.second_kernel_bytes == 128 * 256 * (4 * 4 + 2)


def test_matmul_programs_read_inputs_once_together():
    for splits, last_k in ((1, 100), (2, 100), (4, 300)):
        shape = product(200, 700, last_k)
        launch = matmul_memory_launch(shape, matmul_tiling(splits))
        inputs = 200 * last_k * 2 + 700 * last_k
        assert launch.useful_work == inputs + 200 * 700 * 2
        written = 200 * 700 * (2 if splits == 1 else 4 * splits)
        assert math.fsum(program.work for program in launch.programs) == about(inputs + written)


def test_whole_tiles_of_a_large_matmul_fill_the_gpu_wave_by_wave():
    # 32 x 112 tiles on 132 SMs are 27.15 waves, so 28 rounds of tiles that take one SM's share each.
    launch = matmul_matrix_launch(product(4096, 28672, 4096), matmul_tiling())
    schedule = simulate_launch(launch, H100, 1, resource=matrix_units_of(989e12))
    tile_s = 2 * 128 * 256 * 4096 / (989e12 / 132)
    assert schedule.waves == about(32 * 112 / 132)
    assert schedule.time_s == about(28 * (tile_s + 1.5e-6))
    assert schedule.efficiency == about(32 * 112 / 132 * tile_s / schedule.time_s)


@pytest.mark.parametrize("field", ["work", "fixed_s"])
@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_program_without_a_finite_cost_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} is .*; it must be finite and at least 0"):
        ProgramWork(**{"work": 1.0, field: value})


def test_no_programs_per_sm_is_refused():
    with pytest.raises(ValueError, match="programs_per_sm is 0; it must be at least 1"):
        simulated([1.0], programs_per_sm=0)
