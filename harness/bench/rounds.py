"""How a run divides its wall-clock limit among rounds and rows."""

import time
from collections.abc import Callable, Sequence

from .timer import Budget

ROUNDS = 10
"""Rounds of a run; each times every case once, because machines drift. The longest calls have one sample in
each round, so that they have ten."""

MIN_ROUNDS = 3
"""Rounds that are begun even where the time limit does not hold them."""

FEW_ROUNDS = 5
"""A run of fewer rounds than this says so: its intervals are wide."""

GRACE = 1.6
"""Nothing more begins after this multiple of the time limit."""

WARM_UP_SHARE = 0.25
"""Share of a row's time for its warm-up in the first round; a longer call is sampled at once."""

ENOUGH_ROUND_SAMPLES, MAX_ROUND_SAMPLES = 5, 100
"""Samples of a row in one round: at least the first number within its time, and at most the second."""


class Deadline:
    """A limit of wall-clock seconds, counted from its creation.

    Args:
        limit_s: the limit in seconds.
        now_s: the wall clock in seconds.
    """

    def __init__(self, limit_s: float, now_s: Callable[[], float] = time.perf_counter) -> None:
        self.limit_s, self._now_s, self._start_s = limit_s, now_s, now_s()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self._now_s() - self._start_s

    @property
    def left_s(self) -> float:
        """Seconds until the limit; negative after it."""
        return self.limit_s - self.elapsed_s

    @property
    def share(self) -> float:
        """Share of the limit that has passed, at most 0.95, for a progress bar."""
        return min(0.95, self.elapsed_s / self.limit_s)

    @property
    def over(self) -> bool:
        """Whether nothing more may begin."""
        return self.elapsed_s > GRACE * self.limit_s


def equal_share_s(calls_s: Sequence[float], available_s: float) -> float:
    """Sampling seconds of each row with which all rows together take the available time.

    A row whose call is longer than its share is called once. 0 if one call of each row takes longer in all.

    Args:
        calls_s: expected seconds of a call, by row.
        available_s: seconds for all rows together.
    """
    left_s, ascending = available_s, sorted(calls_s)
    while ascending and ascending[-1] > left_s / len(ascending):
        left_s -= ascending.pop()
    return max(0.0, left_s) / len(ascending) if ascending else 0.0


def rounds_left(done: int, round_s: float, left_s: float) -> int:
    """Rounds that are still begun, at least one, at most until there are ROUNDS.

    Args:
        done: rounds so far.
        round_s: expected seconds of a round that calls each row once.
        left_s: seconds until the limit.
    """
    fitting = left_s / round_s if round_s > 0 else ROUNDS
    return max(1, min(ROUNDS - done, max(MIN_ROUNDS - done, int(fitting))))


def round_budget(share_s: float, *, first: bool) -> Budget:
    """The budget of a row in one round.

    Args:
        share_s: seconds for its warm-up and its samples.
        first: whether it is the first round; in later ones nothing is left to warm up but the inputs.
    """
    warm_up_s = WARM_UP_SHARE * share_s if first else 0.0
    return Budget(
        time_limit_s=share_s - warm_up_s,
        warm_up_s=warm_up_s,
        min_samples=1,
        enough_samples=ENOUGH_ROUND_SAMPLES,
        max_samples=MAX_ROUND_SAMPLES,
    )
