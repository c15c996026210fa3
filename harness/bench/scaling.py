"""A run of several ranks against one rank, and against the links between its devices."""

from collections.abc import Sequence
from itertools import groupby

from ..core.errors import printable
from ..core.gap import Gap, Interval, Intervals
from ..core.gpus import gpu_of_device
from ..core.records import Run


def one_rank_gap(run: Run, gap: Gap) -> Gap | None:
    """The gap of the whole model on one rank, at the same batch, context and prompt; None if unknown."""
    place = (gap.batch, gap.context, gap.prompt)
    return next((one for one in run.one_rank_gaps if (one.batch, one.context, one.prompt) == place), None)


def scaling_efficiencies(run: Run, gap: Gap) -> tuple[float | None, float | None]:
    """Rates of input and of output tokens over those of as many single ranks; None without one rank's gap."""
    one = one_rank_gap(run, gap)
    if one is None:
        return None, None
    return (
        one.input_s_per_token / (gap.ranks * gap.input_s_per_token),
        one.output_s_per_token / (gap.ranks * gap.output_s_per_token),
    )


def scaling_intervals(run: Run, gap: Gap) -> Intervals:
    """The intervals of `scaling_efficiencies`, as wide as both runs' 95% intervals allow; None if unknown."""
    one = one_rank_gap(run, gap)
    if one is None:
        return None, None
    return (
        _ratio(one.input_s_per_token_interval, gap.input_s_per_token_interval, gap.ranks),
        _ratio(one.output_s_per_token_interval, gap.output_s_per_token_interval, gap.ranks),
    )


def _ratio(one: Interval | None, all_ranks: Interval | None, ranks: int) -> Interval | None:
    if one is None or all_ranks is None:
        return None
    return Interval(low=one.low / all_ranks.high / ranks, high=one.high / all_ranks.low / ranks)


def communication_shares(gap: Gap) -> tuple[float, float]:
    """Shares of an input and of an output token's time that ranks exchange in."""
    parts = ((gap.input_parts_s, gap.input_s_per_token), (gap.output_parts_s, gap.output_s_per_token))
    shares = [parts_s.get("communication", 0.0) / total_s for parts_s, total_s in parts]
    return shares[0], shares[1]


def devices_text(run: Run) -> str:
    """The devices of a run, in words: their name, and the number of ranks where there are several.

    Several ranks on CPUs may share one.
    """
    device, ranks = run.environment["device"], run.parallelism.gpus
    if ranks == 1:
        return str(device["name"])
    return f"{ranks} {'ranks on' if device['kind'] == 'cpu' else 'x'} {device['name']}"


def ranks_by_host(run: Run) -> dict[str, list[int]]:
    """The ranks on each host, in order of their numbers; empty on one rank."""
    found: dict[str, list[int]] = {}
    facts = run.environment.get("ranks", {})
    for rank in sorted(map(int, facts)):
        found.setdefault(printable(str(facts[str(rank)].get("host", "an unknown host"))), []).append(rank)
    return found


def ranks_text(ranks: Sequence[int]) -> str:
    """Numbers of ranks as people write them: 0 to 3, 8."""
    listed = []
    for _, same in groupby(enumerate(ranks), key=lambda pair: pair[1] - pair[0]):
        numbers = [rank for _, rank in same]
        listed.append(f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else str(numbers[0]))
    return ", ".join(listed)


def link_bytes_per_s(run: Run) -> float | None:
    """The datasheet's rate of a device's link in one direction; None if unknown or not the only link.

    Between hosts a network carries the messages, of which the datasheet of a GPU says nothing.
    """
    device = run.environment["device"]
    if device["kind"] != "cuda" or len(ranks_by_host(run)) > 1:
        return None
    gpu = gpu_of_device(device["name"], device["memory_bytes"])
    return None if gpu is None else gpu.link_bytes_per_s
