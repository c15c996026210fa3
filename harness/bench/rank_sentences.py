"""A run of several ranks in sentences: where they run, what each rank gives, what is missing."""

from collections.abc import Iterator

from ..core.collectives import LATENCY_BYTES, CollectiveRow
from ..core.gap import Gap
from ..core.records import Run
from ..core.units import number, seconds
from .rank_tables import collective_name, has_ranks, message_size
from .scaling import one_rank_gap, ranks_by_host, ranks_text, scaling_efficiencies


def rank_heading(run: Run) -> Iterator[str]:
    """How many ranks of what device on which hosts, in a line; nothing on one rank."""
    if not has_ranks(run):
        return
    parallelism, hosts = run.parallelism, ranks_by_host(run)
    text = f"Ranks: {parallelism.gpus} ({parallelism.text}) on {run.environment['device']['name']}"
    if len(hosts) == 1:
        text += f", host {next(iter(hosts))}"
    elif hosts:
        text += f", {len(hosts)} hosts: "
        text += "; ".join(f"{ranks_text(ranks)} on {host}" for host, ranks in hosts.items())
    yield text


def deployment_price(run: Run) -> str:
    """What all ranks cost per hour, to follow the price of one; empty on one rank or without a price."""
    price = run.settings["usd_per_hour"]
    if price is None or not has_ranks(run):
        return ""
    return f" for each of {run.parallelism.gpus} ranks, ${price * run.parallelism.gpus:g} for all"


def rank_sentences(run: Run) -> Iterator[str]:
    """What each rank gives at the smallest and the largest batch, and the link between the ranks."""
    if not has_ranks(run):
        return
    if run.gaps:
        smallest, largest = (extreme(run.gaps, key=lambda gap: gap.batch) for extreme in (min, max))
        for gap in (smallest,) if smallest is largest else (smallest, largest):
            yield _device_sentence(run, gap)
    yield from _link_sentence(run)


def _device_sentence(run: Run, gap: Gap) -> str:
    input_rate, output_rate = (
        number(1 / (gap.ranks * time_s), 3) for time_s in (gap.input_s_per_token, gap.output_s_per_token)
    )
    text = (
        f"At batch {gap.batch} and context {gap.context} each of {gap.ranks} ranks gives {input_rate} "
        f"input and {output_rate} output tokens/s"
    )
    input_share, output_share = scaling_efficiencies(run, gap)
    if input_share is None or output_share is None:
        return f"{text}."
    return f"{text}, {input_share:.0%} and {output_share:.0%} of one alone (scaling efficiency)."


def _link_sentence(run: Run) -> Iterator[str]:
    rows = [row for row in run.collectives if row.status == "ok" and row.case.phase == "link"]
    latencies = [row for row in rows if row.case.message_bytes == LATENCY_BYTES]
    facts = []
    if latencies:
        fastest = min(latencies, key=lambda row: row.time_s.median)
        facts.append(f"a latency of {seconds(fastest.time_s.median, 3)} at {_message(fastest)}")
    if rows:
        widest = max(rows, key=lambda row: row.bus_bytes_per_s)
        facts.append(
            f"a bus bandwidth of {number(widest.bus_bytes_per_s / 1e9, 3)} GB/s at {_message(widest)}"
        )
    if facts:
        yield f"The link between the ranks has {' and '.join(facts)} (measured)."


def _message(row: CollectiveRow) -> str:
    return f"{message_size(row.case.message_bytes)} ({row.provider} {collective_name(row)})"


def rank_failures(run: Run) -> Iterator[str]:
    """A line for each collective with a wrong result."""
    for row in run.collectives:
        if row.status == "failed":
            yield f"FAILED: {row.case.id} {row.provider}: {row.reason}"


def rank_missing(run: Run) -> Iterator[str]:
    """A sentence for each part of a run of several ranks that this one lacks."""
    if not has_ranks(run):
        return
    if not any(row.status == "ok" for row in run.collectives):
        yield "No collective was timed with a correct result, so communication is not known."
    elif not any(row.status == "ok" and row.case.phase == "link" for row in run.collectives):
        yield "The link between the ranks was not measured."
    if run.gaps and not any(one_rank_gap(run, gap) for gap in run.gaps):
        yield "There is no scaling efficiency: the whole model was not timed on one rank alone."
