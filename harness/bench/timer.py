"""Samples the time of a call until the median is precise enough; every sample is kept."""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..core.statistics import summarise
from .device import Call, Device

GRAPH_BELOW_S = 50e-6
"""Calls shorter than this are replayed from a CUDA graph: a launch takes several microseconds."""

GRAPH_METHOD = "calls a graph replay"
"""How the method of a row that was replayed from a graph ends."""

GRAPH_CALLS = 20
"""Minimum calls in a graph, so that the 0.5 us resolution of an event is small against the graph's time."""

ENOUGH_SAMPLES, MAX_SAMPLES = 10, 1000
"""Samples of a row: at least the first number within the time limit, and at most the second."""

SETTLED = 0.02
"""Warm-up ends when two successive medians differ by less than this share."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When to stop taking samples.

    Attributes:
        time_limit_s: seconds of sampling.
        warm_up_s: seconds after which no call of the warm-up begins.
        min_samples: samples taken even after the time limit.
        enough_samples: samples taken within the time limit even if the noise is low.
        max_samples: number of samples at which sampling stops.
        noise: sampling stops when half of the median's 95% interval is below this share of the median.
    """

    time_limit_s: float
    warm_up_s: float
    min_samples: int = 3
    enough_samples: int = ENOUGH_SAMPLES
    max_samples: int = MAX_SAMPLES
    noise: float = 0.005


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one call, by sample in order, and how they were taken."""

    samples_s: tuple[float, ...]
    method: str


def measure(
    device: Device,
    calls: Sequence[Call],
    budget: Budget,
    *,
    first_s: float = 0.0,
    first_counts: bool = False,
    graph: bool | None = None,
    before_sampling: Callable[[], None] = lambda: None,
    now_s: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time `calls` in turn: the same work on different copies of the inputs, so that caches are cold.

    Args:
        device: runs and times the calls.
        calls: each runs the work once on its own copy of the inputs.
        budget: when to stop.
        first_s: seconds of an earlier call; if it exceeds `warm_up_s`, there is no warm-up.
        first_counts: whether that call was on the first of `calls` just now; it is the only sample if it took
            longer than the budget.
        graph: whether to replay a CUDA graph, if the device captures one; None decides by the time of a call.
        before_sampling: called after warm-up and capture, before the first sample; poisons the outputs.
        now_s: the wall clock in seconds, for the limits only.
    """
    if first_counts and first_s > budget.warm_up_s + budget.time_limit_s and budget.min_samples == 1:
        device.timed_s += first_s
        return Timing(samples_s=(first_s,), method=f"{device.kind}: each call")
    if first_s > budget.warm_up_s:
        estimate_s = first_s
        device.size_head_start(calls[0])
    else:
        estimate_s = _warm_up(device, calls, budget, now_s)
    unit: Sequence[Call] = calls
    calls_a_sample, method = 1, f"{device.kind}: each call"
    if estimate_s < GRAPH_BELOW_S if graph is None else graph:
        rounds = math.ceil(GRAPH_CALLS / len(calls))
        replay = device.capture([*calls] * rounds)
        if replay is not None:
            device.time_each([replay])  # the first one uploads the graph
            unit, calls_a_sample = [replay], rounds * len(calls)
            method = f"{device.kind}: mean of {calls_a_sample} {GRAPH_METHOD}"
    before_sampling()
    samples = _sample(device, unit, budget, now_s, calls_a_sample * estimate_s)
    device.timed_s += math.fsum(samples)
    return Timing(samples_s=tuple(s / calls_a_sample for s in samples), method=method)


def _warm_up(device: Device, calls: Sequence[Call], budget: Budget, now_s: Callable[[], float]) -> float:
    """Call until the time of a call settles or the warm-up is over; returns the last median in seconds."""
    turns = itertools.cycle(reversed(calls))  # the samples begin with the first copies, which stay cold
    start_s = now_s()
    median_s = device.time_each([next(turns)])[0]  # compiles, allocates, starts threads
    device.size_head_start(calls[-1])
    while now_s() - start_s < budget.warm_up_s:
        before_s = median_s
        samples: list[float] = []
        while not samples or (len(samples) < 5 and now_s() - start_s < budget.warm_up_s):
            samples += device.time_each([next(turns)])
        median_s = summarise(samples).median
        if abs(median_s - before_s) < SETTLED * before_s:
            break
    return median_s


def _sample(
    device: Device,
    unit: Sequence[Call],
    budget: Budget,
    now_s: Callable[[], float],
    estimate_s: float,
) -> list[float]:
    """Seconds of each call, until the budget is used or the noise is low."""
    turns = itertools.cycle(unit)
    block = min(50, max(1, int(budget.time_limit_s / 10 / max(estimate_s, 1e-9))))
    samples: list[float] = []
    start_s, next_look = now_s(), budget.enough_samples
    while len(samples) < budget.max_samples:
        samples += device.time_each(
            [next(turns) for _ in range(min(block, budget.max_samples - len(samples)))]
        )
        if now_s() - start_s >= budget.time_limit_s and len(samples) >= budget.min_samples:
            break
        if len(samples) >= next_look:
            next_look = 2 * len(samples)  # each look takes as long as a short call
            summary = summarise(samples)
            if summary.high - summary.low < 2 * budget.noise * summary.median:
                break
    return samples
