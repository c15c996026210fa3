"""What several ranks' rows and ceilings are together, and what one rank alone can time."""

import dataclasses

import pytest
from decodetax.harness.bench.rank_merging import merged_row, one_rank_sweep, slowest_ceiling
from decodetax.harness.core.parallelism import ONE_GPU, Parallelism
from decodetax.harness.core.records import Ceiling, Row
from hand_made import SMALL_MATMUL, TINY, ok_row, sweep


def ok(*samples_s, error=0.01, throttle=()):
    return ok_row(
        SMALL_MATMUL,
        samples_s=samples_s,
        rounds=(2,) * len(samples_s),
        relative_error=error,
        tolerance=0.1,
        throttle_reasons=throttle,
    )


def not_ok(status, reason):
    return Row(case=SMALL_MATMUL, provider="torch", status=status, reason=reason)


def test_kernel_has_the_samples_of_the_slowest_rank_and_the_medians_of_all():
    merged = merged_row([ok(1.0, 2.0, 3.0, error=0.02), ok(2.0, 5.0, 3.0), ok(2.5, 2.5, throttle=("heat",))])
    assert merged.samples_s == (2.0, 5.0, 3.0)
    assert merged.ranks_s == ((2.0, 3.0, 2.5),)
    assert merged.relative_error == 0.02
    assert merged.throttle_reasons == ("heat",)


def test_rounds_of_merged_rows_keep_the_medians_of_each_rank():
    first = merged_row([ok(1.0), ok(2.0)])
    later = merged_row([dataclasses.replace(ok(samples_s), rounds=(3,)) for samples_s in (4.0, 3.0)])
    assert first.with_round(later).ranks_s == ((1.0, 2.0), (4.0, 3.0))
    assert first.with_round(later).samples_s == (2.0, 4.0)


@pytest.mark.parametrize(
    ("rows", "status", "reason"),
    [
        ([ok(1.0), not_ok("failed", "wrong result")], "failed", "rank 1: wrong result"),
        ([ok(1.0), not_ok("skipped", "out of memory")], "skipped", "rank 1: out of memory"),
        ([not_ok("skipped", "a"), not_ok("failed", "b")], "failed", "rank 1: b"),
        ([not_ok("unsupported", "no GPU")] * 2, "unsupported", "no GPU"),
        ([not_ok("failed", "a"), not_ok("failed", "b")], "failed", "rank 0: a"),
    ],
)
def test_one_rank_that_is_not_ok_decides_and_is_named_unless_all_say_the_same(rows, status, reason):
    merged = merged_row(rows)
    assert (merged.status, merged.reason) == (status, reason)


def read(rate=None, reason=None):
    return Ceiling(kind="read_bandwidth", provenance="measured", bandwidth_bytes_per_s=rate, reason=reason)


def test_ceiling_is_that_of_the_slowest_rank():
    assert slowest_ceiling([read(3e9), read(1e9), read(2e9)]).rate == 1e9


@pytest.mark.parametrize(
    ("ceilings", "reason"),
    [
        ([read(1e9), read(reason="out of memory")], "rank 1: out of memory"),
        ([read(reason="no")] * 2, "no"),
    ],
)
def test_ceiling_that_a_rank_lacks_is_unknown(ceilings, reason):
    merged = slowest_ceiling(ceilings)
    assert (merged.rate, merged.reason) == (None, reason)


def test_one_rank_alone_decodes_the_batches_that_fit_with_all_weights_and_caches():
    # 2 bytes of weights and, for each sequence, 2 layers x 16 tokens x 2 x 2 heads x 16 elements x 2 bytes.
    weights, cache = 2 * TINY.parameters, 2 * 16 * 2 * 2 * 16 * 2
    several = sweep(batches=(1, 4, 100), parallelism=Parallelism(tensor_parallel=2))
    assert one_rank_sweep(TINY, several, weights) is None
    found = one_rank_sweep(TINY, several, weights + 50 * cache)
    assert (found.batches, found.parallelism) == ((1, 4), ONE_GPU)
    assert one_rank_sweep(TINY, several, 10 * (weights + 100 * cache)).batches == (1, 4, 100)
