"""A ratio of two runs: its 95% interval, widened by changes of the machine itself, and the verdict on it.

Rounds give a level in each run. Two levels give the ratio and Welch's interval. p is the chance of such a
ratio if both runs are the same; corrected for the number of ratios that are judged together (Holm) it gives
the verdict.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeVar

from ..core.statistics import Level, holm, t_tail

SAME_WITHIN = 0.02
"""Times closer than this are the same. The timer ends a warm-up when two medians differ by less than 2%, so
more samples do not determine the level of a run better than that."""

ERROR = 0.05
"""Chance of any wrong verdict other than "same" in a comparison, and of a ratio outside its interval."""

LARGEST_LOG = 700.0
"""Largest logarithm whose exponential is taken; it is about that of the largest float."""

Verdict = Literal["faster", "slower", "lower", "higher", "same", "not sure"]


@dataclass(frozen=True, kw_only=True)
class Control:
    """A change of the machine itself between the runs, shown by something that both measured.

    Attributes:
        name: a ceiling or the SM clock.
        least, most: bounds of the factor by which this change alone makes times longer, after over before.
    """

    name: str
    least: float
    most: float


@dataclass(frozen=True, kw_only=True)
class Change:
    """A figure of two runs, after over before.

    Attributes:
        rounds_before, rounds_after: number of rounds of the samples.
        low, high: 95% interval of the ratio, widened by the controls; None with too few rounds.
        p: chance of such a ratio if the true ratio is 1 within 2%; None if no verdict is possible.
        corrected_p: p corrected for the number of ratios with p (Holm).
        reason: reason for the verdict, or why it is not sure.
        changes: other differences of the figure.
    """

    BELOW: ClassVar[Verdict] = "faster"
    ABOVE: ClassVar[Verdict] = "slower"

    rounds_before: int
    rounds_after: int
    low: float | None = None
    high: float | None = None
    p: float | None = None
    corrected_p: float | None = None
    verdict: Verdict = "not sure"
    reason: str = ""
    changes: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """After over before."""
        raise NotImplementedError


AnyChange = TypeVar("AnyChange", bound=Change)


def tested(
    change: AnyChange,
    before: Level,
    after: Level,
    controls: Sequence[Control],
    blocked: str,
    machine_change: Callable[[Sequence[Control], float], str],
) -> AnyChange:
    """The change with the interval of its ratio and p of "the same", without a verdict yet.

    The interval reaches from the smaller to the larger of the levels' ratio and the change's own, less and
    plus half of Welch's interval, widened by the controls.

    Args:
        change: the change, with its ratio.
        before: the level of the rounds before.
        after: the level of the rounds after.
        controls: changes of the machine that affect the figure.
        blocked: why there can be no verdict; empty if there can.
        machine_change: the reason, in words, where the controls could explain the change.
    """
    shifts = sorted((after.mean - before.mean, math.log(change.ratio)))
    variance, freedom = before.variance + after.variance, 1.0
    if variance > 0:
        freedom = variance**2 / (before.variance**2 / before.freedom + after.variance**2 / after.freedom)
    error, half = math.sqrt(variance), Level(mean=0.0, variance=variance, freedom=freedom).half_width(ERROR)
    least = math.log(min([1.0, *(control.least for control in controls)]))
    most = math.log(max([1.0, *(control.most for control in controls)]))
    change = replace(
        change, low=exponential(shifts[0] - half - most), high=exponential(shifts[1] + half - least)
    )
    if blocked:
        return replace(change, reason=blocked)

    def p_beyond(excess: float) -> float:
        if excess <= 0:
            return 1.0
        return 2 * t_tail(excess / error, freedom) if error > 0 else 0.0

    same = math.log1p(SAME_WITHIN)
    p = p_beyond(max(shifts[0] - most, least - shifts[1]) - same)
    by_machine = p > ERROR and p_beyond(max(shifts[0], -shifts[1]) - same) <= ERROR
    return replace(change, p=p, reason=machine_change(controls, shifts[0]) if by_machine else "")


def exponential(logarithm: float) -> float:
    """The exponential within the range of a float: intervals of few, very different rounds exceed it."""
    return math.exp(max(-LARGEST_LOG, min(LARGEST_LOG, logarithm)))


def with_verdicts(changes: Sequence[AnyChange]) -> tuple[AnyChange, ...]:
    """The changes with p corrected for the number of them that have one, and their verdicts."""
    p_values = [change.p for change in changes if change.p is not None]
    corrected = iter(holm(p_values))
    return tuple(
        change
        if change.p is None
        else _with_verdict(replace(change, corrected_p=next(corrected)), len(p_values))
        for change in changes
    )


def _with_verdict(change: AnyChange, count: int) -> AnyChange:
    """The verdict on a change with p; `count` changes were judged together."""
    if change.p is None or change.corrected_p is None or change.low is None or change.high is None:
        return change
    if change.low >= 1 / (1 + SAME_WITHIN) and change.high <= 1 + SAME_WITHIN:
        return replace(change, verdict="same", reason=f"within {SAME_WITHIN:.0%}")
    if change.corrected_p <= ERROR:
        verdict = change.ABOVE if change.ratio > 1 else change.BELOW
        return replace(change, verdict=verdict, reason=f"by over {SAME_WITHIN:.0%}")
    if change.p <= ERROR:
        doubt = f"by chance one of {count} rows may differ as much"
    else:
        doubt = "the interval is too wide to tell"
    return replace(change, reason=change.reason or doubt)
