"""Steady state of requests: latency of a user, throughput, cost, objectives."""

import dataclasses

import pytest
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.language_model import load_language_model
from decodetax.harness.cost.deployment import deployment
from decodetax.harness.cost.steady_state import largest_concurrency, saturation_concurrency, steady_state

LLAMA = load_language_model("llama-3.1-8b")
H100 = dataclasses.replace(deployment("h100"), usd_per_hour=3.6)
SIZES = {"input_tokens": 1024, "output_tokens": 256}


def state(concurrency, **changes):
    return steady_state(LLAMA, H100, concurrency=concurrency, **{**SIZES, **changes})


def test_the_time_of_a_token_is_that_of_a_user_and_rises_with_the_concurrency():
    times = [state(concurrency).tpot_s for concurrency in (1, 4, 16, 64)]
    assert times == sorted(times)
    assert times[0] > LLAMA.parameters * 1.9 / H100.gpu.bandwidth_bytes_per_s


def test_requests_in_the_system_follow_littles_law():
    for concurrency in (1, 8, 64, 1000):
        found = state(concurrency)
        in_system = found.requests_per_s * (found.ttft_s + 255 * found.tpot_s)
        assert in_system == pytest.approx(concurrency, rel=0.05)


def test_money_per_request_is_that_of_its_tokens():
    found = state(16)
    assert found.usd_per_request == pytest.approx(0.001 / found.requests_per_s)
    assert found.usd_per_mtok == pytest.approx(found.usd_per_request / 1280 * 1e6)
    parts = found.usd_per_input_mtok * 1024 + found.usd_per_output_mtok * 256
    assert parts == pytest.approx(found.usd_per_request * 1e6)


def test_requests_beyond_the_memory_wait():
    found = state(4000)
    assert found.saturated
    assert found.running < 4000
    assert found.ttft_s > 10 * state(found.running).ttft_s


def test_a_prefix_cache_shortens_the_first_token_and_the_others():
    assert state(16, cache_hits=0.9).ttft_s < state(16).ttft_s
    assert state(16, cache_hits=0.9).tpot_s < state(16).tpot_s


def test_the_saturation_point_is_the_smallest_with_almost_all_throughput():
    at = saturation_concurrency(LLAMA, H100, **SIZES)
    assert state(at).output_tokens_per_s >= 0.95 * state(10 * at).output_tokens_per_s
    assert state(at - 1).output_tokens_per_s < state(at).output_tokens_per_s


def test_the_largest_concurrency_meets_the_objectives_and_one_more_does_not():
    at = largest_concurrency(LLAMA, H100, **SIZES, slo_ttft_s=0.2, slo_tpot_s=0.015)
    assert state(at).ttft_s <= 0.2
    assert state(at).tpot_s <= 0.015
    assert state(at + 1).ttft_s > 0.2 or state(at + 1).tpot_s > 0.015


def test_an_objective_that_nothing_meets_gives_zero():
    assert largest_concurrency(LLAMA, H100, **SIZES, slo_tpot_s=1e-6) == 0


def test_a_request_that_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="--requests: 10000000/1: one request does not fit"):
        state(1, input_tokens=10_000_000, output_tokens=1)


@pytest.mark.parametrize("concurrency", [4, 32, 128])
def test_prompts_alone_take_no_less_than_their_arithmetic(concurrency):
    # With one output token each, all time is prefill: operations bound the requests per second.
    found = state(concurrency, output_tokens=1)
    operations = 2 * (LLAMA.parameters - LLAMA.embedding_parameters) * 1024
    assert found.requests_per_s < H100.gpu.flop_per_s["bf16"] / operations
    assert found.requests_per_s * found.ttft_s == pytest.approx(concurrency)


@pytest.mark.parametrize("cache_hits", [0.9, 1.0])
def test_a_prompt_in_the_prefix_cache_still_reads_all_weights(cache_hits):
    alone_s = state(1, cache_hits=cache_hits).ttft_alone_s
    assert alone_s > LLAMA.parameters * 1.8 / H100.gpu.bandwidth_bytes_per_s
