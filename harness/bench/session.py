"""A run: ceilings, the rounds of all cases, cost gaps, interpreter checks and hardware counters."""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from msgspec import to_builtins

from ...kernels import interpreting
from ..core.arena import Arena
from ..core.cases import Case
from ..core.errors import FailureError, one_line
from ..core.gpus import Gpu, gpu_of_device
from ..core.inputs import DTYPES
from ..core.parallelism import ONE_GPU
from ..core.records import Ceiling, Roof, Row, Run
from ..core.sweep import cases_of
from ..core.work import ELEMENT_BYTES
from .case_groups import CaseGroup, Kernels, drop_late, merge_row, skip_rest
from .ceilings import datasheet_ceilings, measure_ceilings, time_again
from .counters import read_counters
from .device import Device
from .environment import describe
from .executor import Executor
from .interpreter_checks import check_in_interpreter
from .load import LoadPoint, load_point, other_load
from .providers import user_providers
from .rounds import FEW_ROUNDS, MIN_ROUNDS, ROUNDS, Deadline, equal_share_s, round_budget, rounds_left
from .run_settings import Settings
from .runner import Bench, TilingOf, arena_of, no_tiling, run_case
from .timer import Budget
from .token_cost import gaps_of
from .trust import warnings_of
from .whole_model import WholeBench, measure_whole_model

Progress = Callable[[float, str], None]
"""Takes the share that is done, 0 to 1, and what comes next."""

WHOLE_MODEL_SHARE = 0.18
"""Share of a run's time limit for the whole model."""

LONGEST_CALL_S, LONGEST_CALL_SHARE = 20.0, 0.1
"""A case is skipped if one call takes longer than either: in seconds, and as a share of the time limit."""

SAVE_EVERY_S = 5.0
"""Seconds after which a run is saved again while it is measured."""


class OneProcess:
    """Runs and times on the device of this process, the only one."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def arena(self, settings: Settings, dtype: str) -> Arena:
        """The arena for the cases of a run in a dtype."""
        return arena_of(cases_of(settings.model, settings.sweep(dtype)), self.device, settings.seed)

    def measure_ceilings(self, arena: Arena, *, time_limit_s: float) -> Iterator[tuple[str, Ceiling]]:
        """Measure one ceiling after another, as `ceilings.measure_ceilings`."""
        return measure_ceilings(self.device, arena, time_limit_s=time_limit_s)

    def time_again(self, ceiling: Ceiling, arena: Arena, budget: Budget, *, number: int) -> Ceiling:
        """Time a ceiling in a later round, as `ceilings.time_again`."""
        return time_again(ceiling, self.device, arena, budget, number=number)

    def groups(self, result: Run, settings: Settings, bench: Bench) -> Sequence[CaseGroup]:
        """What is timed in each round."""
        del bench
        cases = cases_of(settings.model, settings.sweep(result.dtype))
        return [Kernels(cases, result.rows, self.run_case)]

    def run_case(self, case: Case, bench: Bench, earlier: Mapping[str, Row]) -> Iterator[Row]:
        """A row for each provider of a case in turn, as `runner.run_case`."""
        return run_case(case, bench, earlier)

    def arenas_intact(self, bench: Bench) -> bool:
        """Whether the arena holds its numbers."""
        return bench.arena.intact()

    def load_point(self) -> LoadPoint | None:
        """What the cores and this process have done up to now."""
        return load_point()

    def loss(self) -> str | None:
        """None: this process is all there is."""
        return None


def begin(settings: Settings, device: Device) -> Run:
    """A run before any measurement: its environment, settings and datasheet ceilings."""
    gpu = gpu_of_device(device.name, device.memory_bytes) if device.kind == "cuda" else None
    price, price_source = _price(settings, gpu)
    options = to_builtins(settings)
    if settings.parallelism == ONE_GPU:
        del options["parallelism"], options["link_bytes"]
    return Run(
        environment=describe(device),
        settings={
            **options,
            "dtype_asked": settings.dtype,
            "parameters": settings.model.parameters,
            "usd_per_hour": price,
            "usd_per_hour_source": price_source,
        },
        ceilings=datasheet_ceilings(gpu),
    )


def measure(
    result: Run,
    settings: Settings,
    device: Device,
    progress: Progress,
    tiling_of: TilingOf = no_tiling,
    save: Callable[[], None] = lambda: None,
    executor: Executor | None = None,
) -> None:
    """Measure what the settings ask for and the run does not hold yet, into the run.

    The run is marked as interrupted until the end. Ctrl-C or an error of the device ends it early: what was
    measured so far is kept, and the run stays marked as interrupted, or is marked as broken.

    Args:
        result: the run to fill, from `begin`, or one to continue.
        settings: the settings of that run.
        device: runs and times the cases.
        progress: takes the share that is done, 0 to 1, and what comes next.
        tiling_of: gives the tuned tiling of a case.
        save: called at the start and then, between cases, every SAVE_EVERY_S.
        executor: what the run runs on; None means this process alone.
    """
    start_s, before_s = time.perf_counter() - result.elapsed_s, device.timed_s - result.timed_s
    executor = executor or OneProcess(device)
    started: LoadPoint | None = None

    saved_s = -math.inf

    def update() -> None:
        result.elapsed_s, result.timed_s = time.perf_counter() - start_s, device.timed_s - before_s
        result.timed_share = result.timed_s / max(result.elapsed_s, 1e-9)
        _derive(result, settings)

    def save_so_far() -> None:
        nonlocal saved_s
        if time.perf_counter() - saved_s >= SAVE_EVERY_S:
            update()
            save()
            saved_s = time.perf_counter()

    result.interrupted, result.broken, result.late = True, None, None
    for rows in (result.rows, result.collectives, result.one_rank_rows):
        drop_late(rows)
    gc.collect()
    gc.freeze()  # collections after each case then skip what is loaded by now
    try:
        started = executor.load_point()
        _fill(result, settings, executor, progress, tiling_of, save_so_far)
        result.interrupted = False
    except KeyboardInterrupt:
        result.broken = executor.loss()
        result.interrupted = result.broken is None
    except Exception as error:  # noqa: BLE001  (the device broke; what was measured so far is kept)
        result.interrupted = False
        text = str(error) if isinstance(error, FailureError) else one_line(error)
        result.broken = executor.loss() or text
    finally:
        gc.unfreeze()
    update()
    ended = executor.load_point()
    load = None if started is None or ended is None else other_load(started, ended)
    loads = (result.other_load, load)  # the first is of the run that goes on
    result.other_load = max((load for load in loads if load is not None), default=None)
    result.warnings = warnings_of(result)


def _derive(result: Run, settings: Settings) -> None:
    """Derive the gaps from the rows so far."""
    sweep, price = settings.sweep(result.dtype), result.settings["usd_per_hour"]
    result.gaps = gaps_of((*result.rows, *result.collectives), settings.model, sweep, usd_per_hour=price)
    if result.one_rank_rows:
        alone = replace(sweep, parallelism=ONE_GPU)
        result.one_rank_gaps = gaps_of(result.one_rank_rows, settings.model, alone, usd_per_hour=price)


def _fill(
    result: Run,
    settings: Settings,
    executor: Executor,
    progress: Progress,
    tiling_of: TilingOf,
    save: Callable[[], None],
) -> None:
    device = executor.device
    measures_whole = settings.whole_model != "none" and settings.model.in_parts is None
    whole_limit_s = settings.total_limit_s * WHOLE_MODEL_SHARE if measures_whole else 0.0
    deadline = Deadline(settings.total_limit_s - whole_limit_s)
    progress(0.0, "read bandwidth")

    def say(what: str) -> None:
        progress(deadline.share, what)

    first = "bf16" if settings.dtype == "auto" else settings.dtype
    arena = executor.arena(settings, first)
    save()
    _measure_ceilings(result, settings, executor, arena, say)
    dtype = settings.dtype if settings.dtype != "auto" else _fastest_dtype(result.ceilings, device)
    result.settings = {**result.settings, "dtype": dtype}
    save()
    cases = cases_of(settings.model, settings.sweep(dtype))
    if ELEMENT_BYTES[dtype] > ELEMENT_BYTES[first]:
        del arena  # its memory serves the larger one
        device.release()
        arena = executor.arena(settings, dtype)
    own = user_providers(settings.providers)
    if interpreting() and not result.interpreter_checks:
        say("Triton kernels in the interpreter")
        # The user's own functions with Triton kernels, which are not timed here.
        kernels = {name: [p for p in ps if p.refuses(cases[0], device)] for name, ps in own.items()}
        result.interpreter_checks += check_in_interpreter(
            settings.model, dtype, seed=settings.seed, user_providers=kernels
        )
    bench = Bench(
        device=device,
        arena=arena,
        budget=round_budget(0.0, first=True),
        roof=result.measured,
        longest_call_s=min(LONGEST_CALL_S, LONGEST_CALL_SHARE * settings.total_limit_s),
        tiling_of=tiling_of,
        user_providers=own,
    )
    result.late = _run_rounds(result, settings, executor, bench, deadline, say, save)
    if settings.whole_model != "none" and result.whole_model is None:
        del arena, bench  # their memory serves the weights
        device.release()
        _derive(result, settings)
        whole = WholeBench(
            run=result,
            device=device,
            limit_s=whole_limit_s,
            peer=settings.whole_model == "transformers",
            user_providers=own,
            tiling_of=tiling_of,
            seed=settings.seed,
            progress=say,
        )
        result.whole_model = measure_whole_model(whole, settings.model, settings.sweep(dtype))
        save()
    if settings.counters:
        result.counters_reason = read_counters(
            result, device, lambda share, what: progress(0.95 + 0.05 * share, f"counters of {what}")
        )
    progress(1.0, "done")


def _run_rounds(
    result: Run,
    settings: Settings,
    executor: Executor,
    bench: Bench,
    deadline: Deadline,
    progress: Callable[[str], None],
    save: Callable[[], None],
) -> str | None:
    """Time every case in each round, as far as the deadline allows; why there are fewer, or None."""
    limit, overhead_s = f"the time limit of {deadline.limit_s:.0f} s", 0.0
    groups = executor.groups(result, settings, bench)
    for number in range(ROUNDS):
        bench = replace(bench, round=number)
        due = [(group, case) for group in groups for case in group.due(bench)]
        if not due:
            continue
        calls_s = [call_s for group, case in due for call_s in group.calls_s(case, bench)]
        if number >= MIN_ROUNDS and sum(calls_s) + overhead_s > deadline.left_s:
            return None if number >= FEW_ROUNDS else f"{limit} allowed {number} of {ROUNDS} rounds"
        left = rounds_left(number, sum(calls_s) + overhead_s, deadline.left_s)
        share_s = equal_share_s(calls_s, deadline.left_s / left - overhead_s)
        bench = replace(bench, budget=round_budget(share_s, first=not number), last_round=left == 1)
        start_s, timed_s = deadline.elapsed_s, bench.device.timed_s
        if number:
            _time_ceilings_again(result, settings, executor, bench)
        for group, case in due:
            if deadline.over:
                skip_rest(groups, bench, limit)
                return f"{limit} was over in round {number + 1} of {ROUNDS}"
            progress(f"{case.id}, round {number + 1}")
            for row in group.time(case, bench):
                merge_row(group.rows, row)
            save()
        if (number == 0 or bench.last_round) and not executor.arenas_intact(bench):
            bench.refill()
            bench = replace(bench, arena_altered=True)
            result.altered = f"a provider altered memory outside its inputs in round {number + 1}"
        if number:  # the first round also computes the oracles
            overhead_s = max(0.0, deadline.elapsed_s - start_s - (bench.device.timed_s - timed_s))
    return None


def _measure_ceilings(
    result: Run, settings: Settings, executor: Executor, arena: Arena, progress: Callable[[str], None]
) -> None:
    """Measure all ceilings, unless the run has all: a continued run never mixes two sets."""
    count = 2 + len(DTYPES)
    if sum(ceiling.provenance == "measured" for ceiling in result.ceilings) == count:
        return
    result.ceilings = [ceiling for ceiling in result.ceilings if ceiling.provenance != "measured"]
    for what, ceiling in executor.measure_ceilings(arena, time_limit_s=settings.ceiling_limit_s):
        result.ceilings.append(ceiling)
        progress(f"ceilings: {what} done")


def _time_ceilings_again(result: Run, settings: Settings, executor: Executor, bench: Bench) -> None:
    """Time the ceilings of the run's dtype again in a later round; the first round measured them."""
    budget = round_budget(settings.ceiling_limit_s / ROUNDS, first=False)
    for place, ceiling in enumerate(result.ceilings):
        if (
            ceiling.provenance == "measured"
            and ceiling.dtype in (None, result.dtype)
            and bench.round not in (ceiling.rounds or (0,))
        ):
            result.ceilings[place] = executor.time_again(ceiling, bench.arena, budget, number=bench.round)


def _fastest_dtype(ceilings: Sequence[Ceiling], device: Device) -> str:
    """bf16 where its matmul is at least as fast as fp32's, else fp32."""
    rates = {dtype: Roof.of(ceilings, dtype=dtype, provenance="measured").flop_per_s for dtype in DTYPES}
    if device.kind == "cuda" and (rates["bf16"] or 0.0) < (rates["fp16"] or 0.0) / 2:
        return "fp16"  # bf16 is missing or emulated
    return "bf16" if (rates["bf16"] or 0.0) >= (rates["fp32"] or 0.0) else "fp32"


def _price(settings: Settings, gpu: Gpu | None) -> tuple[float | None, str | None]:
    """Dollars per hour of the device, and their source."""
    if settings.usd_per_hour is not None:
        return settings.usd_per_hour, "--usd-per-hour"
    if gpu is None or gpu.usd_per_hour is None:
        return None, None
    return gpu.usd_per_hour, gpu.usd_source
