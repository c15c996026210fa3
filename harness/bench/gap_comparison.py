"""The gap of two runs at one batch and context: its ratio, from the gap of each round."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ..core.gap import Gap
from ..core.records import Run
from ..core.statistics import winsorised_level
from .changes import Change, Control, Verdict, tested
from .row_comparison import TimedRow, throttling, timed_rows, too_few_rounds

ControlsOf = Callable[[TimedRow, TimedRow], Sequence[Control]]
"""The controls that affect a row before and after."""


@dataclass(frozen=True, kw_only=True)
class GapChange(Change):
    """The gap at a batch, context and prompt of both runs.

    Attributes:
        gap_before, gap_after: the gaps.
        input_s_per_token_ratio, output_s_per_token_ratio: seconds of a token, after over before.
        changes: parts whose fastest provider differs.
    """

    BELOW: ClassVar[Verdict] = "lower"
    ABOVE: ClassVar[Verdict] = "higher"

    batch: int
    context: int
    prompt: int
    gap_before: float
    gap_after: float
    input_s_per_token_ratio: float
    output_s_per_token_ratio: float

    @property
    def ratio(self) -> float:
        """Gap after over gap before."""
        return self.gap_after / self.gap_before


def compare_gaps(
    before: Run,
    after: Run,
    autocorrelations: tuple[float, float],
    controls_of: ControlsOf,
    blocked: str,
) -> Iterator[GapChange]:
    """The change of each gap that both runs have, without a verdict yet.

    Args:
        before: the baseline.
        after: the run to judge.
        autocorrelations: `round_autocorrelation` of both runs.
        controls_of: the controls that affect a row.
        blocked: why nothing in these runs can have a verdict; empty if it can.
    """
    old = {(gap.batch, gap.context, gap.prompt): gap for gap in before.gaps}
    rows = [{(row.case.id, row.provider): row for row in timed_rows(run)} for run in (before, after)]
    for gap in after.gaps:
        was = old.get((gap.batch, gap.context, gap.prompt))
        if was is None:
            continue
        names = dict.fromkeys((*was.providers.items(), *gap.providers.items()))
        pairs = [(rows[0][name], rows[1][name]) for name in names if name in rows[0] and name in rows[1]]
        throttled = next(filter(None, (throttling(*pair) for pair in pairs)), "")
        controls = _on_a_ratio([control for pair in pairs for control in controls_of(*pair)])
        yield _compare_gap(was, gap, autocorrelations, controls, blocked or throttled)


def _compare_gap(
    old: Gap, new: Gap, autocorrelations: tuple[float, float], controls: Sequence[Control], blocked: str
) -> GapChange:
    change = GapChange(
        batch=new.batch,
        context=new.context,
        prompt=new.prompt,
        gap_before=old.gap,
        gap_after=new.gap,
        input_s_per_token_ratio=new.input_s_per_token / old.input_s_per_token,
        output_s_per_token_ratio=new.output_s_per_token / old.output_s_per_token,
        rounds_before=len(old.rounds),
        rounds_after=len(new.rounds),
        changes=tuple(_provider_changes(old.providers, new.providers)),
    )
    if few := too_few_rounds(min(change.rounds_before, change.rounds_after)):
        return replace(change, reason=few)
    logs = ([math.log(value) for value in gap.gap_rounds] for gap in (old, new))
    before, after = map(winsorised_level, logs, autocorrelations)
    return tested(change, before, after, controls, blocked, _machine_change)


def _on_a_ratio(controls: Sequence[Control]) -> list[Control]:
    """The controls of an output token's time over an input token's: each affects either of them alone."""
    least = min([1.0, *(control.least for control in controls)])
    most = max([1.0, *(control.most for control in controls)])
    if not controls or least == most:
        return []
    widest = max(controls, key=lambda control: max(control.most, 1 / control.least))
    return [Control(name=widest.name, least=least / most, most=most / least)]


def _machine_change(controls: Sequence[Control], _shift: float) -> str:
    """The change of the machine that could explain why the gap is higher or lower."""
    [control] = controls
    return f"the machine changed: {control.name} and others by up to {control.most - 1:.1%}"


def _provider_changes(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for case, provider in new.items():
        if case in old and old[case] != provider:
            yield f"fastest provider of {case}: {old[case]} -> {provider}"
