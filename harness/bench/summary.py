"""What a run ran on, and what its numbers show, in words."""

from collections.abc import Iterator

from ..core.cases import DecoderLayer
from ..core.records import Gap, Run
from ..core.units import si


def heading(run: Run) -> str:
    """What the run ran on, in a few lines."""
    device, versions = run.environment["device"], run.environment["versions"]
    facts = [f"{device['memory_bytes'] / 2**30:.0f} GiB memory"]
    if device["kind"] == "cpu":
        facts.append(f"{device['cores']} cores, {device['capability']}")
    else:
        facts.append(f"compute capability {device['compute_capability']}, {device['sm_count']} SMs")
    facts.append(f"{device['last_level_cache_bytes'] / 2**20:.0f} MiB last-level cache")
    if "driver" in device:
        facts.append(f"driver {device['driver']}")
    if "sm_clock_hz" in device:
        most = f", at most {device['sm_clock_max_hz'] / 1e6:.0f}" if "sm_clock_max_hz" in device else ""
        facts.append(f"SM clock {device['sm_clock_hz'] / 1e6:.0f} MHz before the run{most}")
    if "power_limit_w" in device:
        facts.append(f"power limit {device['power_limit_w']:.0f} W")
    software = [f"{name} {version or 'none'}" for name, version in versions.items()]
    return "\n".join(
        (
            f"{device['kind'].upper()}: {device['name']}, {', '.join(facts)}",
            f"Software: {', '.join(software)}, commit {run.environment['commit'] or 'unknown'}",
        )
    )


def workload(run: Run) -> str:
    """What was timed, in a line."""
    model, settings = run.settings["model"], run.settings
    price = settings["usd_per_hour"]
    cost = "" if price is None else f"; ${price:g} per hour ({settings['usd_per_hour_source']})"
    return (
        f"Model: {model['name']}, {si(settings['parameters'])} parameters, {settings['dtype']}; "
        f"prefill in forwards of {settings['prefill_tokens']} tokens{cost}"
    )


def sentences(run: Run) -> Iterator[str]:
    """Two or three plain sentences; fewer where a figure is missing."""
    balance = run.measured.balance_operations_per_byte
    if balance is not None:
        sides = "; ".join(_sides(run, balance))
        yield f"This device balances at {balance:.3g} FLOP per byte in {run.dtype} (measured)" + (
            f": {sides}." if sides else "."
        )
    if run.gaps:
        smallest, largest = (extreme(run.gaps, key=lambda gap: gap.batch) for extreme in (min, max))
        text = f"An output token costs {smallest.gap:.3g} times an input token at {_at(smallest)}"
        if largest.batch != smallest.batch:
            text += f" and {largest.gap:.3g} times at {_at(largest)}"
        yield text + "."
        yield _shares(smallest)


def _sides(run: Run, balance: float) -> Iterator[str]:
    """Where a whole layer falls, in prefill and in the decode steps of the smallest and the largest batch."""
    layers = {row.case for row in run.rows if row.status == "ok" and isinstance(row.case, DecoderLayer)}
    decode = sorted((case for case in layers if case.phase == "decode"), key=lambda case: case.sequences)
    named = [("prefill", case) for case in layers if case.phase == "prefill"]
    named += [(f"decode at batch {case.sequences}", case) for case in dict.fromkeys(decode[:1] + decode[-1:])]
    for name, case in named:
        ratio = case.work().operations_per_byte
        side = "limited by arithmetic" if ratio > balance else "limited by memory"
        yield f"a layer in {name} has {ratio:.3g}, {side}"


def _at(gap: Gap) -> str:
    return f"batch {gap.batch} and context {gap.context}"


def _shares(gap: Gap) -> str:
    parts, whole = gap.output_parts_s, gap.output_s_per_token
    weights = (parts["projections"] + parts["lm_head"]) / whole
    return (
        f"At {_at(gap)} an output token's time is {weights:.0%} weights, {parts['attention'] / whole:.0%} "
        f"KV cache and {parts['rest'] / whole:.0%} the rest."
    )
