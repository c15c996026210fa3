"""A run's device, workload, results and missing parts, in sentences.

Every line is safe to print: text of a run file is stripped of control characters and begins no line.
"""

from collections.abc import Iterator
from itertools import product

from ..core.cases import DecoderLayer
from ..core.errors import printable
from ..core.gap import Gap, Interval
from ..core.records import Run
from ..core.units import number, si
from .rank_sentences import deployment_price, rank_failures, rank_heading, rank_missing, rank_sentences
from .run_tables import provider_name
from .whole_sentences import whole_failures, whole_missing, whole_sentences

_WEIGHTS = ("projections", "experts", "lm_head")

_KINDS = {
    "attention": "attention to the whole context",
    "window_attention": "sliding window",
    "latent_attention": "MLA",
}
"""Parts of attention by kind, in words."""


def heading(run: Run) -> str:
    """The device, its ranks where there are several, and the software of the run, in a line each."""
    device, versions = run.environment["device"], run.environment["versions"]
    facts = [f"{device['memory_bytes'] / 2**30:.0f} GiB memory"]
    if device["kind"] == "cpu":
        quota = f" (quota {device['cpu_quota_cores']:.3g})" if device.get("cpu_quota_cores") else ""
        facts.append(f"{device['cores']} cores{quota}, {device['capability']}")
    else:
        facts.append(f"compute capability {device['compute_capability']}, {device['sm_count']} SMs")
    assumed = " (assumed)" if device.get("last_level_cache_assumed") else ""
    facts.append(f"{device['last_level_cache_bytes'] / 2**20:.0f} MiB last-level cache{assumed}")
    if "driver" in device:
        facts.append(f"driver {device['driver']}")
    if "sm_clock_hz" in device:
        most = f", at most {device['sm_clock_max_hz'] / 1e6:.0f}" if "sm_clock_max_hz" in device else ""
        facts.append(f"SM clock {device['sm_clock_hz'] / 1e6:.0f} MHz before the run{most}")
    if "power_limit_w" in device:
        facts.append(f"power limit {device['power_limit_w']:.0f} W")
    software = [f"{name} {version or 'none'}" for name, version in versions.items()]
    lines = (
        f"{device['kind'].upper()}: {device['name']}, {', '.join(facts)}",
        *rank_heading(run),
        f"Software: {', '.join(software)}, commit {run.environment['commit'] or 'unknown'}",
    )
    return "\n".join(map(printable, lines))


def workload(run: Run) -> str:
    """What was timed, in one line."""
    settings, price = run.settings, run.settings["usd_per_hour"]
    stored = settings["model"].get("stored_in") or ()
    dtype = settings["dtype"] + (f" (published in {', '.join(map(str, stored))})" if stored else "")
    cost = (
        ""
        if price is None
        else f"; ${price:g} per hour{deployment_price(run)} ({settings['usd_per_hour_source']})"
    )
    return printable(
        f"Model: {settings['model']['name']}, {si(settings['parameters'])} parameters, {dtype}; "
        f"prefill in forwards of {settings['prefill_tokens']} tokens{cost}"
    )


def sentences(run: Run) -> Iterator[str]:
    """The balance point, the gap and the parts of an output token's time, as far as the run has them."""
    if run.measured.balance_operations_per_byte is not None:
        yield printable(_balance(run, run.measured.balance_operations_per_byte))
    if run.gaps:
        smallest, largest = (extreme(run.gaps, key=lambda gap: gap.batch) for extreme in (min, max))
        text = f"An output token costs {_times(smallest)} an input token at {_at(smallest)}"
        if largest.batch != smallest.batch:
            text += f" and {_times(largest)} at {_at(largest)}"
        yield text + "."
        yield _shares(smallest)
    yield from map(printable, rank_sentences(run))
    yield from map(printable, whole_sentences(run))


def _balance(run: Run, balance: float) -> str:
    """The balance point, and the side of it that a layer is on; unless rows contradict its ceilings."""
    point = f"{number(balance, 3)} FLOP per byte in {run.dtype}"
    if above := run.rows_above_ceilings:
        rows = "a row is" if len(above) == 1 else f"{len(above)} rows are"
        return (
            f"The balance point of this device is not known: its ceilings give {point}, but {rows} above "
            "them, so a ceiling was measured too low."
        )
    sides = "; ".join(_sides(run, balance))
    return f"This device balances at {point} (measured)" + (f": {sides}." if sides else ".")


def _sides(run: Run, balance: float) -> Iterator[str]:
    """Which roof limits a complete layer, in prefill and in decode of the smallest and the largest batch."""
    layers = {row.case for row in run.rows if row.status == "ok" and isinstance(row.case, DecoderLayer)}
    decode = sorted((case for case in layers if case.phase == "decode"), key=lambda case: case.sequences)
    named = [("prefill", case) for case in layers if case.phase == "prefill"]
    named += [(f"decode at batch {case.sequences}", case) for case in dict.fromkeys(decode[:1] + decode[-1:])]
    for name, case in named:
        ratio = case.work().operations_per_byte
        side = "compute-bound" if ratio > balance else "memory-bound"
        yield f"a layer in {name} has {number(ratio, 3)} ({side})"


def _at(gap: Gap) -> str:
    return f"batch {gap.batch} and context {gap.context}"


def _times(gap: Gap) -> str:
    """The gap with its interval."""
    interval = "" if gap.gap_interval is None else f" ({interval_text(gap.gap_interval)})"
    return f"{number(gap.gap, 3)} times{interval}"


def interval_text(interval: Interval) -> str:
    """The bounds with three digits each."""
    return " to ".join(number(bound, 3) for bound in interval.bounds)


def _shares(gap: Gap) -> str:
    shares = {part: part_s / gap.output_s_per_token for part, part_s in gap.output_parts_s.items()}
    weights = f"{sum(shares.get(part, 0.0) for part in _WEIGHTS):.0%} weights"
    if "experts" in shares:
        weights += f" ({shares['experts']:.0%} experts)"
    kinds = {part: name for part, name in _KINDS.items() if part in shares}
    cache = f"{sum(shares[part] for part in kinds):.0%} KV cache"
    if [*kinds] != ["attention"]:
        cache += f" ({', '.join(f'{shares[part]:.0%} {name}' for part, name in kinds.items())})"
    listed = [weights, cache]
    if "communication" in shares:
        listed.append(f"{shares['communication']:.0%} communication")
    if "rest" in shares:
        listed.append(f"{shares['rest']:.0%} the rest")
    return f"At {_at(gap)} an output token's time is {', '.join(listed[:-1])} and {listed[-1]}."


def fastest_providers(run: Run) -> str:
    """The fastest correct provider of each part of the gap, in one line; empty without a gap."""
    chosen: dict[str, set[str]] = {}
    for gap in run.gaps:
        for case, provider in gap.providers.items():
            chosen.setdefault(" ".join(case.split("/")[:2]), set()).add(provider)
    parts = "; ".join(f"{part}: {', '.join(sorted(names))}" for part, names in chosen.items())
    return printable(f"Fastest correct provider: {parts}") if parts else ""


def failures(run: Run) -> Iterator[str]:
    """A line for each row, and each forward of the whole model, with a wrong result."""
    rows = (
        f"FAILED: {row.case.id} {provider_name(row)}{where}: {row.reason}"
        for some, where in ((run.rows, ""), (run.one_rank_rows, " on one rank alone"))
        for row in some
        if row.status == "failed"
    )
    return map(printable, (*rows, *rank_failures(run), *whole_failures(run)))


def missing_from(run: Run) -> Iterator[str]:
    """A sentence for each part of a complete run that this run lacks."""
    return map(printable, _missing_from(run))


def _missing_from(run: Run) -> Iterator[str]:
    if run.interrupted:
        yield f"The run was interrupted after {run.elapsed_s:.0f} s: these are its results so far."
    if run.broken is not None:
        yield f"The run ended early with an error: {run.broken}."
    if run.failures:
        count = len(run.failures)
        yield f"{count} {'result was' if count == 1 else 'results were'} wrong: those rows have no figures."
    if run.counters_reason is not None:
        yield f"Hardware counters were not read for every row: {run.counters_reason}."
    yield from _missing_roofs(run)
    if not any(row.status == "ok" for row in run.rows):
        yield "No kernel was timed with a correct result, so the roofline has no points."
    yield from _missing_gaps(run)
    yield from rank_missing(run)
    yield from whole_missing(run)


def _missing_gaps(run: Run) -> Iterator[str]:
    if not run.gaps:
        yield "No gap could be computed: it needs a correct time of every part, in prefill and in decode."
        return
    found = {(gap.batch, gap.context) for gap in run.gaps}
    for place in product(run.settings.get("batches", ()), run.settings.get("contexts", ())):
        if place not in found:
            batch, context = place
            yield f"There is no gap at batch {batch} and context {context}: a case has no correct time."
    if any("rest" not in gap.output_parts_s for gap in run.gaps):
        yield (
            "The gap leaves out norms, rotary embedding, activations and routing: no complete layer of this "
            "model is timed, as its layers are timed part by part."
        )
    if all(gap.usd_per_hour is None for gap in run.gaps):
        yield (
            "No price of this device is known, so there are no dollars per token; "
            "give it with decodetax run --usd-per-hour."
        )


def _missing_roofs(run: Run) -> Iterator[str]:
    for provenance, roof in (("measured", run.measured), ("datasheet", run.datasheet)):
        sides = {"read bandwidth": roof.bandwidth_bytes_per_s, f"{run.dtype} matmul": roof.flop_per_s}
        lacks = [name for name, rate in sides.items() if rate is None]
        if len(lacks) == 2 and provenance == "datasheet":
            yield "No datasheet of this device is known, so there is no datasheet roof."
        elif lacks:
            yield f"The {provenance} roof lacks its {' and its '.join(lacks)}."
