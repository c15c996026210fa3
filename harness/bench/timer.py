"""Takes samples of a case until they say enough, and keeps every one."""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..core.samples import summarise
from .device import Call, Device

GRAPH_BELOW_S = 50e-6
"""Calls shorter than this are replayed from a graph: launching one takes several microseconds."""

GRAPH_CALLS = 20
"""At least this many calls a graph, so that an event's resolution of 0.5 us is little against it."""

ENOUGH_SAMPLES, MOST_SAMPLES = 10, 1000
"""Of a row: not to stop before so many when within the time limit, and to stop at so many."""

SETTLED = 0.02
"""Warm-up ends when two medians in a row differ by less than this."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When to stop taking samples.

    Attributes:
        time_limit_s: of sampling; at least `least_samples` are taken even when they take longer.
        warm_up_s: no call of the warm-up begins later.
        enough_samples: not to stop before, when within the time limit.
        most_samples: stop at this many.
        noise: stop when half the median's 95% interval falls under this share of it.
    """

    time_limit_s: float
    warm_up_s: float
    least_samples: int = 3
    enough_samples: int = ENOUGH_SAMPLES
    most_samples: int = MOST_SAMPLES
    noise: float = 0.005


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Samples in the order they were taken, in seconds of one call, and how they were taken."""

    samples_s: tuple[float, ...]
    method: str


def measure(
    device: Device,
    calls: Sequence[Call],
    budget: Budget,
    *,
    first_s: float = 0.0,
    before_sampling: Callable[[], None] = lambda: None,
    now_s: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time `calls`, the same work on copies of its inputs, turn by turn, so that the caches are cold.

    Args:
        device: runs and times the calls.
        calls: each runs the work once on a copy of its own.
        budget: when to stop.
        first_s: what a call took already; one as long as the whole warm-up is warm-up enough.
        before_sampling: runs after warm-up and capture, before the first sample; poisons the outputs.
        now_s: the wall clock in seconds, for the limits alone.
    """
    estimate_s = first_s if first_s > budget.warm_up_s else _warm_up(device, calls, budget, now_s)
    unit: Sequence[Call] = calls
    calls_a_sample, method = 1, f"{device.kind}: each call"
    if estimate_s < GRAPH_BELOW_S:
        rounds = math.ceil(GRAPH_CALLS / len(calls))
        replay = device.capture([*calls] * rounds)
        if replay is not None:
            unit, calls_a_sample = [replay], rounds * len(calls)
            method = f"{device.kind}: mean of {calls_a_sample} calls a graph replay"
    before_sampling()
    samples = _sample(device, unit, budget, now_s, calls_a_sample * estimate_s)
    return Timing(samples_s=tuple(s / calls_a_sample for s in samples), method=method)


def _warm_up(device: Device, calls: Sequence[Call], budget: Budget, now_s: Callable[[], float]) -> float:
    """Call until the time of a call settles or the warm-up's time is over; seconds of a call by then."""
    turns = itertools.cycle(calls)
    start_s = now_s()
    median_s = device.time_each([next(turns)])[0]  # compiles, allocates, starts threads
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
    """Seconds of each call, until the budget says that they are enough."""
    turns = itertools.cycle(unit)
    block = min(50, max(1, int(budget.time_limit_s / 10 / max(estimate_s, 1e-9))))
    samples: list[float] = []
    start_s = now_s()
    while len(samples) < budget.most_samples:
        samples += device.time_each(
            [next(turns) for _ in range(min(block, budget.most_samples - len(samples)))]
        )
        if now_s() - start_s >= budget.time_limit_s and len(samples) >= budget.least_samples:
            break
        summary = summarise(samples)
        if len(samples) >= budget.enough_samples and (
            summary.high - summary.low < 2 * budget.noise * summary.median
        ):
            break
    return samples
