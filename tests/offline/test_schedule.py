"""Simulated grids: hand-computed times, a plain simulation, and the grids of the kernels."""

import dataclasses
import math
import time

import pytest
from decodetax.harness.core.gpus import find_gpu
from decodetax.harness.offline.kernel_grids import (
    decode_grid,
    schedule_efficiency,
)
from decodetax.harness.offline.schedule import (
    PROGRAM_OVERHEAD_S,
    READ_LENGTHS_S,
    SECOND_KERNEL_S,
    CtaWork,
    Grid,
    fixed_time_s,
    simulate_grid,
)
from decodetax.harness.offline.variants import (
    case_matmul_tiling,
    case_shape,
    default_cases,
    multiplied_dtype,
)
from decodetax.kernels.decode_tiling import ITEM_COST_TILES
from hypothesis import given
from hypothesis import strategies as st
from matmul_grids import matmul_compute_grid, matmul_grid, matmul_memory_grid, tensor_cores
from small_calls import decode_tiling, matmul_shape, matmul_tiling

H100 = find_gpu("h100")
# 10 SMs, 1000 bytes per second: the fair share is 100 per SM, and an SM gets 160 at most.
TEN = dataclasses.replace(H100, sm_count=10, bandwidth_bytes_per_s=1000.0)


def grid(works, *, fixed_s=0.0, persistent=False):
    ctas = tuple(CtaWork(work=work, fixed_s=fixed_s) for work in works)
    return Grid(ctas=ctas, useful_work=math.fsum(works), second_kernel_bytes=None, persistent=persistent)


def simulated(works, *, gpu=TEN, programs_per_sm=1, resource=None, **options):
    return simulate_grid(grid(works, **options), gpu, programs_per_sm, resource=resource)


def about(figure):
    return pytest.approx(figure, rel=1e-9)


def test_one_cta_gets_no_more_than_its_sm_can_take():
    schedule = simulated([160.0], fixed_s=2.0)
    assert schedule.time_s == about(2 + 1)
    assert schedule.ideal_s == about(0.16)
    assert schedule.efficiency == about(0.16 / 3)
    assert schedule.sm_end_s == (about(3), *[0] * 9)
    assert schedule.longest_sm_over_mean == about(10)
    assert schedule.waves == about(0.1)


def test_two_ctas_on_one_sm_share_what_it_can_take():
    two = dataclasses.replace(TEN, sm_count=2)  # fair are 500, at most 800
    schedule = simulated([400.0, 100.0, 800.0], gpu=two, programs_per_sm=2)
    # Three CTAs draw: 1000 / 3 each, until the 100 are done at 0.3; then 400 each on the first SM.
    first = 0.3 + (400 - 100) / 400
    assert schedule.sm_end_s == (about(first + (800 - 400) / 800), about(0.3))


@pytest.mark.parametrize(
    ("works", "time_s"),
    [
        pytest.param([100.0] * 10, 1, id="one full wave"),
        # The first ten end at 1; the five left get 160 of their 200 each.
        pytest.param([100.0] * 15, 1 + 100 / 160, id="half a second wave"),
        # 100 a second each; at 0.5 nine are done, and the last one gets 160.
        pytest.param([50.0] * 9 + [200.0], 0.5 + 150 / 160, id="freed bandwidth goes to the others"),
        # The eleventh starts where 50 are done.
        pytest.param([50.0] + [100.0] * 9 + [50.0], 1, id="a CTA takes the first free slot"),
        pytest.param([], 0, id="no CTAs"),
    ],
)
def test_wave_quantization(works, time_s):
    schedule = simulated(works)
    assert schedule.time_s == about(time_s)
    assert schedule.waves == about(len(works) / 10)
    assert schedule.efficiency == about(sum(works) / 1000 / time_s if works else 1)


def test_load_imbalance_is_the_last_sm_over_the_mean():
    assert simulated([100.0] * 10).longest_sm_over_mean == about(1)
    assert simulated([100.0] * 15).longest_sm_over_mean == about(1.625 / ((5 * 1 + 5 * 1.625) / 10))
    assert simulated([]).longest_sm_over_mean == 1


def test_bandwidth_that_an_sm_at_its_limit_leaves_goes_to_the_others():
    uneven = dataclasses.replace(TEN, sm_count=5)  # fair are 200, at most 320
    # Six CTAs, two of them on SM 0: equal shares are 166.7, SM 0 is at its 320 with 160 each, and the 680
    # left are 170 for each of the others.
    schedule = simulated([160.0, *[170.0] * 4, 160.0], gpu=uneven, programs_per_sm=2)
    assert schedule.sm_end_s == (about(1),) * 5


@pytest.mark.parametrize("persistent", [False, True])
def test_work_tiles_of_a_persistent_kernel_wait_for_their_own_slot(persistent):
    # Ten draw 100 a second each, until nine are done at 0.5; then each draws 160. The eleventh begins on a
    # free SM, or round-robin after the first.
    start = 0.5 + 50 / 160 if persistent else 0.5
    schedule = simulated([100.0, *[50.0] * 9, 80.0], persistent=persistent)
    assert schedule.time_s == about(start + 80 / 160)


def test_fixed_time_passes_without_drawing():
    # Ten draw from 1 to 2; the others on the same SMs wait out their fixed time in the same second.
    ctas = [CtaWork(work=100.0, fixed_s=1.0)] * 10 + [CtaWork(work=100.0, fixed_s=2.0)] * 10
    assert simulate_grid(dataclasses.replace(grid([]), ctas=ctas), TEN, 2).time_s == about(3)


@pytest.mark.parametrize(("ctas", "waves"), [(1, 1), (10, 1), (11, 2), (25, 3)])
def test_empty_ctas_cost_their_fixed_time(ctas, waves):
    schedule = simulated([0.0] * ctas, fixed_s=PROGRAM_OVERHEAD_S)
    assert schedule.time_s == about(waves * 1.5e-6)
    assert schedule.efficiency == 0


def test_empty_ctas_ahead_delay_the_work_behind():
    assert simulated([0.0] * 30 + [100.0] * 10, fixed_s=1.0).time_s == about(3 + 1 + 1)


def test_each_sm_has_its_own_tensor_cores():
    resource = tensor_cores(1000.0)
    # One CTA has 100 a second, whatever the others do; two on an SM have 50 each.
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
    resource = dataclasses.replace(tensor_cores(1000.0), sm_share=sm_share)
    ctas = [CtaWork(work=work, fixed_s=fixed[index % len(fixed)]) for index, work in enumerate(works)]
    schedule = simulate_grid(
        dataclasses.replace(grid(works), ctas=ctas), gpu, programs_per_sm, resource=resource
    )
    assert schedule.sm_end_s == pytest.approx(plain_simulation(ctas, sms, programs_per_sm, resource))
    assert schedule.time_s == max(schedule.sm_end_s)


def plain_simulation(ctas, sms, programs_per_sm, resource):
    """All CTAs and all rates anew at each event; when each SM ends."""
    queue, running, ends, now = list(ctas), {}, [0.0] * sms, 0.0
    while queue or running:
        for slot in range(sms * programs_per_sm):
            if queue and slot not in running:
                cta = queue.pop(0)
                running[slot] = [cta.fixed_s, cta.work]
        rates = plain_rates([slot for slot, (fixed, _) in running.items() if fixed <= 0], sms, resource)
        left = {slot: work / rates[slot] if fixed <= 0 else fixed for slot, (fixed, work) in running.items()}
        step = min(left.values())
        now += step
        for slot, state in list(running.items()):
            phase = 1 if state[0] <= 0 else 0
            state[phase] -= step * (rates[slot] if phase else 1)
            # Work that only rounding leaves at the end of a phase does not count.
            state[phase] = 0.0 if left[slot] <= step + 1e-12 else state[phase]
            if state == [0.0, 0.0]:
                del running[slot]
                ends[slot % sms] = now
    return ends


def plain_rates(drawing, sms, resource):
    """Raises all rates together; an SM at its limit stays there."""
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


def test_ten_thousand_unequal_ctas_take_about_a_second():
    works = [index * 7919 % 10_007 * 200.0 for index in range(10_000)]
    start = time.process_time()
    schedule = simulated(works, gpu=H100, programs_per_sm=3, fixed_s=PROGRAM_OVERHEAD_S)
    assert time.process_time() - start < 5
    assert schedule.time_s >= math.fsum(works) / H100.bandwidth_bytes_per_s
    assert schedule.efficiency > 0.95


@pytest.mark.parametrize(
    ("items", "reads_lengths", "time_s"),
    [(0, False, 1.5e-6), (1, False, 1.5e-6), (1, True, 2e-6), (3, True, 5e-6)],
)
def test_fixed_time_counts_items_and_the_reading_of_lengths(items, reads_lengths, time_s):
    assert fixed_time_s(items, reads_lengths=reads_lengths) == about(time_s)
    assert (PROGRAM_OVERHEAD_S, READ_LENGTHS_S, SECOND_KERNEL_S) == (1.5e-6, 0.5e-6, 3e-6)


def test_second_kernel_costs_its_launch_and_its_bytes():
    first = dataclasses.replace(grid([100.0] * 10), useful_work=900.0)
    schedule = simulate_grid(dataclasses.replace(first, second_kernel_bytes=500), TEN, 1)
    assert schedule.second_kernel_s == about(3e-6 + 0.5)
    assert schedule.time_s == about(1 + 3e-6 + 0.5)
    assert schedule.efficiency == about(0.9 / schedule.time_s)
    alone = simulate_grid(first, TEN, 1)
    assert (alone.second_kernel_s, alone.time_s) == (0, about(1))


def decode(context_lens, tiling, *, q_heads=8, kv_heads=2, **options):
    return decode_grid(
        context_lens=context_lens,
        capacity=1000,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=128,
        element_bytes=2,
        tiling=tiling,
        **options,
    )


def test_decode_cta_moves_the_keys_and_values_of_its_item():
    grid = decode([100, 0, 1], decode_tiling(1))
    assert [cta.work for cta in grid.ctas] == [51200, 51200, 0, 0, 512, 512]
    assert grid.useful_work == 101 * 2 * 512
    assert grid.second_kernel_bytes is None
    assert {cta.fixed_s for cta in grid.ctas} == {1.5e-6}


def test_split_kv_partials_are_written_and_read():
    # 150 tokens are 3 tiles: one to each of three splits, and the fourth is empty.
    grid = decode([150], decode_tiling(4))
    partial = 4 * (128 + 1) * 4
    assert [cta.work for cta in grid.ctas] == [
        512 * count + (partial if count else 0) for count in [64, 64, 22, 0] * 2
    ]
    assert grid.useful_work == 150 * 2 * 512
    assert grid.second_kernel_bytes == 6 * partial + 8 * 128 * 2 + 8 * 8


def test_ctas_of_one_gqa_group_share_its_keys_and_values():
    # 20 query heads are two blocks of 16, the second of 4.
    grid = decode([100], decode_tiling(2), q_heads=20, kv_heads=1)
    partial = (128 + 1) * 4
    assert [cta.work for cta in grid.ctas] == [
        64 * 256 + 16 * partial,
        36 * 256 + 16 * partial,
        64 * 256 + 4 * partial,
        36 * 256 + 4 * partial,
    ]
    assert grid.useful_work == 100 * 512


def test_balanced_chunks_cross_sequences_and_pay_for_each_item():
    # Two items of 8 + ITEM_COST_TILES tiles: three chunks end in the first, in the second and at its end.
    tiles = 8 + ITEM_COST_TILES
    share = -(-2 * (tiles + ITEM_COST_TILES) // 3)
    grid = decode([64 * tiles] * 2, decode_tiling(programs=3), q_heads=4, kv_heads=1)
    partial = 4 * (128 + 1) * 4
    held = [
        share - ITEM_COST_TILES,
        share - ITEM_COST_TILES,
        2 * (tiles - share + ITEM_COST_TILES),
    ]
    assert [cta.work for cta in grid.ctas] == [
        held[0] * 64 * 512 + partial,
        held[1] * 64 * 512 + 2 * partial,
        held[2] * 64 * 512 + partial,
    ]
    assert [cta.fixed_s for cta in grid.ctas] == [about(2e-6), about(3.5e-6), about(2e-6)]
    assert grid.useful_work == 2 * tiles * 64 * 512
    assert grid.second_kernel_bytes == 4 * partial + 2 * 4 * 128 * 2 + 3 * 8


def test_balanced_grid_of_several_ctas_always_combines():
    # Every chunk is a whole item, but the host does not know it: lengths are on the device.
    whole = decode([64] * 4, decode_tiling(programs=4), q_heads=4, kv_heads=1)
    assert {cta.work for cta in whole.ctas} == {64 * 512}
    assert whole.second_kernel_bytes == 4 * 8
    assert decode([64] * 4, decode_tiling(programs=1)).second_kernel_bytes is None


def test_cta_without_work_costs_its_start_and_the_lengths():
    grid = decode([64], decode_tiling(programs=3, min_tiles=16), q_heads=4, kv_heads=1)
    assert [cta.work for cta in grid.ctas] == [64 * 512, 0, 0]
    assert {cta.fixed_s for cta in grid.ctas} == {2e-6}


def test_window_and_sizes_of_values_count():
    grid = decode([500], decode_tiling(1), v_head_dim=64, window=100, query_tokens=2)
    assert grid.useful_work == 101 * 2 * (128 + 64) * 2


def test_one_long_sequence_among_short_ones_leaves_sms_idle_unless_chunks_are_balanced():
    lengths, slots = [1000] + [10] * 31, 2 * H100.sm_count
    ragged, equal, balanced = (
        simulate_grid(decode(lens, tiling, kv_heads=8), H100, 2)
        for lens, tiling in (
            (lengths, decode_tiling(1)),
            ([1000] * 32, decode_tiling(1)),
            (lengths, decode_tiling(programs=slots)),
        )
    )
    assert ragged.longest_sm_over_mean > 5
    assert equal.longest_sm_over_mean < 1.25
    assert ragged.efficiency < 0.2 < equal.efficiency
    assert balanced.longest_sm_over_mean < 1.7


def test_compiled_decode_attention_is_simulated_with_its_grid():
    case = next(case for case in default_cases() if case.variant == "contiguous")
    efficiency = schedule_efficiency(case, H100, programs_per_sm=3)
    assert 0.88 < efficiency.ragged < efficiency.uniform < 1


@pytest.mark.parametrize(("name", "least"), [("rows_8192", 0.93), ("rows_1", 0.86)])
def test_compiled_matmul_fills_its_grid(name, least):
    case = next(case for case in default_cases() if case.variant == name)
    shape, tiling = case_shape(case), case_matmul_tiling(case, H100)
    grid, resource = matmul_grid(shape, tiling, H100, multiplied_dtype(case, H100.sm))
    assert least < simulate_grid(grid, H100, 1, resource=resource).efficiency < 1


def product(rows, out_features, in_features):
    return matmul_shape(rows, out_features, in_features, weight_bytes=1)


def large_tiles(num_splits=1, **more):
    return matmul_tiling(128, 256, 64, num_splits=num_splits, **more)


def test_matmul_cta_computes_its_whole_tile():
    grid = matmul_compute_grid(product(129, 256, 100), large_tiles())
    assert [cta.work for cta in grid.ctas] == [2 * 128 * 256 * 128] * 2
    assert grid.useful_work == 2 * 129 * 256 * 100
    assert grid.second_kernel_bytes is None


def test_split_k_divides_the_steps_and_is_reduced():
    # 5 steps in 4 splits: two each, then one, then none.
    grid = matmul_compute_grid(product(128, 256, 320), large_tiles(4))
    step = 2 * 128 * 256 * 64
    assert [cta.work for cta in grid.ctas] == [2 * step, 2 * step, step, 0]
    assert grid.second_kernel_bytes == 128 * 256 * (4 * 4 + 2)


def test_matmul_ctas_read_inputs_once_together():
    for splits, last_k in ((1, 100), (2, 100), (4, 300)):
        grid = matmul_memory_grid(product(200, 700, last_k), large_tiles(splits))
        inputs = 200 * last_k * 2 + 700 * last_k
        assert grid.useful_work == inputs + 200 * 700 * 2
        written = 200 * 700 * (2 if splits == 1 else 4 * splits)
        assert math.fsum(cta.work for cta in grid.ctas) == about(inputs + written)


@pytest.mark.parametrize(
    ("variant", "persistent"), [("pointers", False), ("descriptors", True), ("warp_specialized", True)]
)
def test_variants_with_tma_are_persistent(variant, persistent):
    tiling = large_tiles(variant=variant)
    for grid_of in (matmul_compute_grid, matmul_memory_grid):
        assert grid_of(product(200, 700, 100), tiling).persistent == persistent


def test_tiles_of_a_large_matmul_fill_the_gpu_wave_by_wave():
    # 32 x 112 tiles on 132 SMs are 27.15 waves, so 28 rounds of tiles that take one SM's share each.
    grid = matmul_compute_grid(product(4096, 28672, 4096), large_tiles())
    schedule = simulate_grid(grid, H100, 1, resource=tensor_cores(989e12))
    tile_s = 2 * 128 * 256 * 4096 / (989e12 / 132)
    assert schedule.waves == about(32 * 112 / 132)
    assert schedule.time_s == about(28 * (tile_s + 1.5e-6))
    assert schedule.efficiency == about(32 * 112 / 132 * tile_s / schedule.time_s)


@pytest.mark.parametrize("field", ["work", "fixed_s"])
@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_rejects_a_cost_that_is_not_finite(field, value):
    with pytest.raises(ValueError, match=f"{field} is .*; it must be finite and at least 0"):
        CtaWork(**{"work": 1.0, field: value})


def test_rejects_an_occupancy_of_0():
    with pytest.raises(ValueError, match="programs_per_sm is 0; it must be at least 1"):
        simulated([1.0], programs_per_sm=0)
