"""Runs of the same code on a drifting machine, made of random numbers from a seed."""

import itertools
import math
import random
from dataclasses import dataclass

from decodetax.harness.core.cases import PrefillMatmul
from decodetax.harness.core.records import Ceiling
from hand_made import ok_row, run_record


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Standard deviations of the disturbances of a machine, in the logarithm of a time.

    Attributes:
        noise: of a sample alone.
        row_shift: of a row in a round.
        round_shift: of a whole round.
        drift_step: from round to round for good: the level walks, from one run into the next.
        trend: of a run, by how much the level rises steadily from its first round to the next run's first.
    """

    noise: float = 0.03
    row_shift: float = 0.01
    round_shift: float = 0.01
    drift_step: float = 0.005
    trend: float = 0.0


def drifting_runs(seed, count=2, *, machine=Machine(), rows=60, rounds=5, samples=5, slowdown=None):
    """Runs one after another; in the last, row i is slower by slowdown[i]."""
    draw = random.Random(seed)  # noqa: S311  (no secret)
    level, step = 0.0, draw.gauss(0, machine.trend) / rounds
    runs = []
    for index in range(count):
        slower = (slowdown or {}) if index == count - 1 else {}
        ceilings = [ceiling(draw, level)]
        taken = [[] for _ in range(rows)]
        for _ in range(rounds):
            level += draw.gauss(0, machine.drift_step) + step
            now = level + draw.gauss(0, machine.round_shift)
            for row in range(rows):
                here = (
                    now + draw.gauss(0, machine.row_shift) + math.log(slower.get(row, 1.0) * 1e-3 * (row + 1))
                )
                taken[row] += [math.exp(here + draw.gauss(0, machine.noise)) for _ in range(samples)]
        numbers = tuple(itertools.chain.from_iterable([number] * samples for number in range(rounds)))
        runs.append(
            run_record(
                ceilings=ceilings,
                rows=[ok_row(case(row), samples_s=taken[row], rounds=numbers) for row in range(rows)],
            )
        )
    return runs


def ceiling(draw, level):
    """The read bandwidth at a run's start: the fastest call, so nearly without noise."""
    rate = 1e9 * math.exp(-level + draw.gauss(0, 0.003))
    return Ceiling(kind="read_bandwidth", provenance="measured", bandwidth_bytes_per_s=rate, detail="")


def case(row):
    return PrefillMatmul(
        phase="prefill", part="qkv", rows=row + 1, in_features=5, out_features=7, dtype="bf16"
    )
