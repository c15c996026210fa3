"""Runs the providers of a case: each is checked against the oracle, then timed; the result is a row."""

import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..core.arena import Arena, arena_bytes, copies_needed, input_bytes, memory_bytes
from ..core.cases import Case
from ..core.errors import ProviderError, one_line
from ..core.gate import Gate, Verdict
from ..core.inputs import CacheLayout, Inputs, in_layout, poison
from ..core.record_fields import Status
from ..core.records import Roof, Row
from .device import Device, out_of_memory
from .honesty import (
    LEFT_WORK,
    LONGER,
    BoundCall,
    Unseen,
    becomes_right,
    busy_threads,
    check_idle_after,
    check_on_unseen,
    check_time_on_new,
    unseen_of,
)
from .input_watch import InputWatch, checksum
from .launcher import launcher_error
from .process_state import ProcessState
from .providers import PROVIDERS, Provider, gate_of
from .timer import GRAPH_METHOD, Budget, measure

MAX_CPU_COPIES = 128
"""Most copies on a CPU: a round makes about as many calls, and between two rounds the inputs of all other
cases pass through the caches. On a GPU a graph replays all copies over and over."""

RECHECKED_BELOW_S = 0.01
"""Providers are called on unseen inputs after the first round, and after the last where a call is shorter."""

MIN_BUFFER_BYTES = {"cpu": 2**28, "cuda": 2**31}
"""Least size of the arena, which is the buffer of the bandwidth ceilings: in a shorter read the ramp-up takes
too large a share."""

TilingOf = Callable[[Case], Any]
"""The tuned tiling of a case; None leaves the choice to the provider."""


def no_tiling(_case: Case) -> None:
    """No case has a tuned tiling."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where and how cases are run.

    Attributes:
        device: runs and times them.
        arena: holds their inputs on that device.
        budget: limits of each row's samples.
        roof: the measured roof.
        longest_call_s: a case is skipped if one call takes longer by the measured ceilings.
        tiling_of: the tuned tiling of a case.
        round: number of the run's round, from 0.
        user_providers: providers of the user's own functions, by operation.
        gates: the gates of the cases so far, by cache layout: an oracle is computed once.
        unseen: other numbers for the inputs of the cases so far, by layout: their oracle is computed once.
        last_round: whether this is the last round, in which providers are checked on unseen inputs again.
        arena_altered: whether a provider wrote to the arena outside its inputs; each is then watched for it.
        together: waits for all ranks before each provider, so that they run it at the same time.
    """

    device: Device
    arena: Arena
    budget: Budget
    roof: Roof
    longest_call_s: float = math.inf
    tiling_of: TilingOf = no_tiling
    round: int = 0
    user_providers: Mapping[str, Sequence[Provider]] = field(default_factory=dict)
    gates: dict[tuple[Case, CacheLayout], Gate] = field(default_factory=dict)
    unseen: dict[tuple[Case, CacheLayout], Unseen] = field(default_factory=dict)
    last_round: bool = False
    arena_altered: bool = False
    together: Callable[[], None] = lambda: None

    def refill(self) -> None:
        """Put back the numbers of the arena, and forget the oracles, which may be of altered ones."""
        self.arena.refill()
        self.gates.clear()
        self.unseen.clear()


class Blocked(Exception):  # noqa: N818  (not an error: it becomes the status and reason of rows)
    """No provider can run this case here."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def run_case(case: Case, bench: Bench, earlier: Mapping[str, Row] = MappingProxyType({})) -> Iterator[Row]:
    """A row for each provider of the case in turn; a provider that cannot run gets a row with the reason.

    Args:
        case: what to run.
        bench: where and how.
        earlier: rows of earlier rounds, by provider (see `providers_due`).
    """
    providers = providers_due(case, bench, earlier)
    reasons: dict[str, tuple[Status, str]] = {}
    for provider in providers:
        refusal = provider.refuses(case, bench.device)
        if refusal is not None:
            reasons[provider.name] = ("unsupported", refusal)
    copies: list[Inputs] = []
    gate: Gate | None = None
    if len(reasons) < len(providers):
        try:
            copies, gate = prepare(case, bench)
        except Blocked as blocked:
            for provider in providers:
                reasons.setdefault(provider.name, (blocked.status, blocked.reason))
    rows: dict[str, Row] = {}
    watch: InputWatch | None = None
    for provider in providers:
        bench.together()
        if gate is None or provider.name in reasons:
            status, reason = reasons[provider.name]
            yield Row(case=case, provider=provider.name, status=status, reason=reason)
            continue
        before = earlier.get(provider.name)
        tiling = None if provider.tunable is None else bench.tiling_of(case)
        chosen = (
            provider.with_tiling(tiling) if tiling is not None else _best_of(provider, case, rows, before)
        )
        if isinstance(chosen, Provider):
            watch = watch or InputWatch(copies, fully=not bench.round)
            laid_out, own_gate = _in_its_layout(case, chosen, copies, bench)
            chosen = run_provider(case, chosen, laid_out, own_gate, bench, before, watch=watch)
            if watch.found:
                bench.refill()  # no later provider gets altered inputs
                copies, gate = prepare(case, bench)
                watch = None
        rows[provider.name] = chosen
        yield chosen
    bench.arena.restore()


def providers_due(case: Case, bench: Bench, earlier: Mapping[str, Row]) -> list[Provider]:
    """The providers without samples of this round, except those that were not ok in an earlier one."""
    return [
        provider
        for provider in (*PROVIDERS[case.operation], *bench.user_providers.get(case.operation, ()))
        if provider.name not in earlier
        or (earlier[provider.name].status == "ok" and bench.round not in earlier[provider.name].rounds)
    ]


def _best_of(provider: Provider, case: Case, rows: Mapping[str, Row], before: Row | None) -> Provider | Row:
    """The fastest correct variant of an alias, under the alias's name; other providers stay unchanged.

    The alias is timed again, because selecting the fastest variant biases its samples. It keeps its variant
    in later rounds. If no variant passed the gate, the result is a row with the reason.
    """
    if not provider.best_of:
        return provider
    if before is not None:
        variant = before.variant
    else:
        tried = [rows[name] for name in provider.best_of if name in rows]
        passed = [row for row in tried if row.status == "ok"]
        if not passed:
            first = tried[0]
            reason = f"none of its variants passed; {first.provider}: {first.reason}"
            return Row(case=case, provider=provider.name, status=first.status, reason=reason)
        variant = min(passed, key=lambda row: row.time_s.median).variant
    run = next(p.run for p in PROVIDERS[case.operation] if p.variant == variant)
    return dataclasses.replace(provider, run=run, variant=variant)


def arena_of(cases: Sequence[Case], device: Device, seed: int) -> Arena:
    """The arena for cases on a device."""
    size_bytes = arena_bytes(
        cases,
        cache_bytes=device.cache_bytes,
        free_bytes=device.free_bytes(),
        least_bytes=MIN_BUFFER_BYTES[device.kind],
    )
    return Arena(device.torch_device, seed, size_bytes=size_bytes)


def resolved(provider: Provider, case: Case, tiling_of: TilingOf, row: Row) -> Provider:
    """A provider as it ran in a row: with the tuned tiling, or as the variant that an alias resolved to."""
    tiling = None if provider.tunable is None else tiling_of(case)
    chosen = provider.with_tiling(tiling) if tiling is not None else _best_of(provider, case, {}, row)
    if not isinstance(chosen, Provider):
        raise TypeError(f"row: {row.provider!r} has no variant")
    return chosen


def _check_possible(case: Case, bench: Bench) -> None:
    """Raise Blocked if the dtype, the memory or the time of a call does not allow a case."""
    if bench.roof.flop_per_s is None:
        raise Blocked("unsupported", f"no {case.dtype} matmul runs on this device")
    needed, free = memory_bytes(case), bench.device.free_bytes() + bench.arena.size_bytes
    if needed > free or input_bytes(case) > bench.arena.size_bytes:
        raise Blocked("skipped", f"needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free")
    roofline = bench.roof.roofline_time_s(case.work())
    if roofline is not None and roofline[0] > bench.longest_call_s:
        raise Blocked(
            "skipped", f"one call would take {roofline[0]:.0f} s or more, over {bench.longest_call_s:.3g} s"
        )


def prepare(case: Case, bench: Bench) -> tuple[list[Inputs], Gate]:
    """Copies of the inputs, and the gate on the first of them.

    Raises:
        Blocked: the case cannot run here.
    """
    if (case, "heads-first") not in bench.gates:
        _check_possible(case, bench)
    try:
        count = copies_needed(case, bench.roof, cache_bytes=bench.device.cache_bytes)
        if bench.device.kind == "cpu":
            count = min(count, MAX_CPU_COPIES)
        copies = bench.arena.copies_of(case, count)
        return copies, _gate_of(case, copies[0], bench)
    except (MemoryError, RuntimeError) as error:
        explained = explain(error)
    bench.device.release()  # what did not fit
    raise Blocked(*explained)


def _gate_of(case: Case, inputs: Inputs, bench: Bench, layout: CacheLayout = "heads-first") -> Gate:
    """The gate on the first copy of a case's inputs in a cache layout; computed when first asked for."""
    if (case, layout) not in bench.gates:
        bench.gates[case, layout] = gate_of(case, inputs)
    return bench.gates[case, layout]


def _in_its_layout(
    case: Case, provider: Provider, copies: Sequence[Inputs], bench: Bench
) -> tuple[Sequence[Inputs], Gate]:
    """Copies of the inputs in the layout that a provider reads, and the gate on the first of them."""
    laid_out = [in_layout(inputs, provider.layout) for inputs in copies]
    return laid_out, _gate_of(case, laid_out[0], bench, provider.layout)


def run_provider(
    case: Case,
    provider: Provider,
    copies: Sequence[Inputs],
    gate: Gate,
    bench: Bench,
    before: Row | None = None,
    *,
    watch: InputWatch | None = None,
) -> Row:
    """Gate a provider on the first copy, time it on all copies in turn, and find what it must not do.

    Whatever it changes in this process is put back. The inputs are not: see `watch`.

    Args:
        case: what it computes.
        provider: the provider.
        copies: copies of the case's inputs.
        gate: the gate on the first of them.
        bench: where and how.
        before: its row of earlier rounds, which passed the gate: its median says how long a call takes, and
            all rounds use its method.
        watch: what the inputs held before; None reads them here.
    """
    watch = watch or InputWatch(copies, fully=True)
    # A layer writes its new keys to the arena.
    around = [bench.arena.words()] if bench.arena_altered and case.operation != "decoder_layer" else []
    around_before = [checksum(memory) for memory in around]
    state, threads = ProcessState(bench.device.settings), threading.enumerate()
    try:
        row = _timed(case, provider, copies, gate, bench, before)
    finally:
        faults = state.restore()
    faults += [f"altered its {name}" for name in watch.altered()]
    if not watch.found and not all(map(torch.equal, map(checksum, around), around_before)):
        watch.found = ["memory outside its inputs"]
        faults.append("altered memory outside its inputs")
    if (fault := busy_threads(threads)) is not None:
        faults.append(fault)
    if not faults:
        return row
    reason = "; ".join([*([row.reason] if row.reason else []), *faults])
    return Row(
        case=case,
        provider=provider.name,
        tiling=row.tiling,
        variant=row.variant,
        status="failed",
        reason=reason,
        relative_error=row.relative_error,
        tolerance=row.tolerance,
    )


def _timed(
    case: Case,
    provider: Provider,
    copies: Sequence[Inputs],
    gate: Gate,
    bench: Bench,
    before: Row | None,
) -> Row:
    """The row of a provider: gated, timed, gated again, and called on inputs that it has not seen."""
    for inputs in copies:
        poison(inputs)
    calls = [BoundCall(provider, inputs) for inputs in copies]
    clocks = bench.device.clocks
    clock_before_hz: float | None = None
    row = functools.partial(
        Row, case=case, provider=provider.name, tiling=provider.tiling, variant=provider.variant
    )

    def before_sampling() -> None:
        nonlocal clock_before_hz
        clock_before_hz = clocks.clock_hz()  # after the warm-up
        _poison_outputs(calls)

    try:
        for call in calls:
            call.bind()
        first_s = before.time_s.median if before is not None else 0.0
        if before is None:
            [first_s] = bench.device.time_each(calls[:1])
            verdict = gate.judge(calls[0].checked_output())
            if not verdict.passed:
                return _failed(row, verdict, late=becomes_right(calls[0], gate))
            if bench.device.kind != "cpu":
                first_s = 0.0  # a GPU's first call compiles
        timing = measure(
            bench.device,
            calls,
            bench.budget,
            first_s=first_s,
            first_counts=before is None,
            graph=None if before is None else GRAPH_METHOD in (before.method or ""),
            before_sampling=before_sampling,
        )
        clock_after_hz, throttle_reasons = clocks.clock_hz(), clocks.throttle_reasons()
        verdict = gate.judge(_last_output(calls))
        if not verdict.passed:
            return _failed(row, verdict)
        if before is None or (bench.last_round and first_s < RECHECKED_BELOW_S):
            _check_unseen(case, provider, calls[0], gate, bench, call_s=min(timing.samples_s))
    except Exception as error:  # noqa: BLE001  (a kernel may raise anything; the run goes on)
        status, reason = explain(error)
        return row(status=status, reason=reason)
    return row(
        status="ok",
        relative_error=verdict.relative_error,
        tolerance=verdict.tolerance,
        samples_s=timing.samples_s,
        rounds=(bench.round,) * len(timing.samples_s),
        method=timing.method,
        input_copies=len(copies),
        clock_before_hz=clock_before_hz,
        clock_after_hz=clock_after_hz,
        throttle_reasons=throttle_reasons,
    )


def _last_output(calls: Sequence[BoundCall]) -> Tensor:
    """The last output on the first copy, which is computed again if all calls share one output."""
    outputs = [call.checked_output() for call in calls if call.called]
    if any(output.data_ptr() == outputs[0].data_ptr() for output in outputs[1:]):
        if bool(outputs[0].isnan().all()):
            return outputs[0]  # no sample wrote to it
        calls[0].poison()
        calls[0]()
    return calls[0].checked_output()


def _check_unseen(
    case: Case, provider: Provider, call: BoundCall, gate: Gate, bench: Bench, *, call_s: float
) -> None:
    """Call a provider on inputs that it has not seen.

    Raises:
        ProviderError: it did not compute the result, or not in the call.
    """
    key = (case, provider.layout)
    if key not in bench.unseen:
        bench.unseen[key] = unseen_of(case, call.inputs)
    new_s = check_on_unseen(call, bench.unseen[key], gate, bench.device)
    if bench.device.kind != "cpu" or new_s > LONGER * call_s:  # a GPU's call returns early
        check_time_on_new(call, bench.device, call_s=call_s)
    check_idle_after(call, bench.device, call_s=call_s)


def _poison_outputs(calls: Sequence[BoundCall]) -> None:
    """Fill every last output with NaN, so that the gate finds a sample that computed nothing."""
    for call in calls:
        call.poison()


def _failed(row: Callable[..., Row], verdict: Verdict, *, late: bool = False) -> Row:
    return row(
        status="failed",
        reason=LEFT_WORK if late else verdict.reason,
        relative_error=verdict.relative_error,
        tolerance=verdict.tolerance,
    )


def explain(error: Exception) -> tuple[Status, str]:
    """Status and one-line reason of a row whose provider raised this error."""
    text = one_line(error)
    message = text.removeprefix(f"{type(error).__name__}: ")
    if out_of_memory(error):
        return "skipped", f"out of memory: {message}"
    if isinstance(error, ProviderError):
        return "failed", message
    if (problem := launcher_error(error)) is not None:
        return "unsupported", problem
    if isinstance(error, NotImplementedError) or "not implemented for" in text:
        return "unsupported", message
    return "failed", text
