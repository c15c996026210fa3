"""A run: ceilings, the rounds of all cases, cost gaps, interpreter checks and hardware counters."""

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

from msgspec import Meta, convert

from ...kernels import interpreting
from ..core.cases import Case, Size, Sweep, cases_of
from ..core.errors import UsageError, one_line
from ..core.gpus import Gpu, gpu_of_device
from ..core.inputs import CACHES_IN_FLIGHT, DTYPES, Source, memory_bytes
from ..core.language_model import LanguageModel
from ..core.record_fields import NonNegative, Positive
from ..core.records import Ceiling, Roof, Row, Run
from .ceilings import measure_ceilings, time_again
from .counters import read_counters
from .device import Device
from .environment import describe
from .interpreter_checks import check_in_interpreter
from .providers import user_providers
from .runner import Bench, TilingOf, no_tiling, providers_due, run_case
from .timer import ENOUGH_SAMPLES, MAX_SAMPLES, Budget
from .token_cost import gaps_of

Progress = Callable[[float, str], None]
"""Takes the share that is done, 0 to 1, and what comes next."""

MAX_SEQUENCES = 65_536
"""Largest batch: the oracle of decode attention computes one sequence at a time."""

LATE_ROW_LIMIT_S = 0.05
"""Seconds of sampling for a row, in all of its rounds together, after the run's time limit."""

CEILINGS_SHARE = 0.15
"""Share of the progress bar for the ceilings."""

ROUNDS = 5
"""Rounds of a run; each times every case once, because machines drift."""

MIN_ROUNDS = 3
"""Rounds that are run even after the run's time limit."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of a run.

    Attributes:
        model: the language model whose shapes are timed.
        batches, contexts, prompt, prefill_tokens: as in `Sweep`.
        dtype: dtype of weights, activations and cache; "auto" means the faster of bf16 and fp32 on a CPU,
            and bf16 on a GPU that has it.
        usd_per_hour: price of the device; None means the published price of the GPU, if there is one.
        row_limit_s, ceiling_limit_s: seconds of sampling for a row, and for each size of a ceiling.
        total_limit_s: seconds after which rows get fewer samples and rounds.
        seed: seed of the inputs.
        providers: the user's own functions, each MODULE:FUNCTION.
        counters: whether to read hardware counters after the timing.
    """

    model: LanguageModel
    batches: Annotated[tuple[Size, ...], Meta(min_length=1)]
    contexts: Annotated[tuple[Size, ...], Meta(min_length=1)]
    prompt: Size | None
    prefill_tokens: Size
    dtype: str
    usd_per_hour: NonNegative | None
    row_limit_s: Positive
    ceiling_limit_s: Positive
    total_limit_s: Positive
    seed: int = 0
    providers: tuple[str, ...] = ()
    counters: bool = False

    def sweep(self, dtype: str) -> Sweep:
        """The sweep in a dtype."""
        return Sweep(
            batches=self.batches,
            contexts=self.contexts,
            prompt=self.prompt,
            prefill_tokens=self.prefill_tokens,
            dtype=dtype,
        )


def check_memory(settings: Settings, device: Device) -> None:
    """Reject a sweep whose smallest case does not fit in memory.

    Raises:
        UsageError: a case does not fit; names the option, the bytes needed and the bytes free.
    """
    model, free = settings.model, device.free_bytes()
    sweep = settings.sweep("fp32" if settings.dtype == "fp32" else "bf16")

    def needs(*cases: Case) -> int:
        return max(memory_bytes(case, cache_bytes=device.cache_bytes) for case in cases)

    one = sweep.decode_attention(model, 1, min(sweep.contexts)).work().bytes_total
    prompt_option = "--prompt" if settings.prompt else "--context"
    named = [
        ("--prefill-tokens", sweep.prefill_tokens, needs(*map(sweep.prefill_matmul, model.projections))),
        *(("--context", size, needs(sweep.decode_attention(model, 1, size))) for size in sweep.contexts),
        *((prompt_option, size, needs(sweep.prefill_attention(model, size))) for size in sweep.prompts),
        *(
            ("--batch", size, size * one) for size in sweep.batches
        ),  # a case holds the length of each sequence
    ]
    for option, value, needed in named:
        if needed > free:
            raise UsageError(
                f"{option}: {value} needs {needed / 1e9:.1f} GB of memory for {model.name}, "
                f"{free / 1e9:.1f} GB are free on {device.name}"
            )
    if max(sweep.batches) > MAX_SEQUENCES:
        raise UsageError(f"--batch: {max(sweep.batches)} is over {MAX_SEQUENCES}, the most sequences timed")


def begin(settings: Settings, device: Device) -> Run:
    """A run before any measurement: its environment, settings and datasheet ceilings."""
    gpu = gpu_of_device(device.name, device.memory_bytes) if device.kind == "cuda" else None
    price, price_source = _price(settings, gpu)
    return Run(
        environment=describe(device),
        settings={
            **asdict(settings),
            "dtype_asked": settings.dtype,
            "parameters": settings.model.parameters,
            "usd_per_hour": price,
            "usd_per_hour_source": price_source,
        },
        ceilings=datasheet_ceilings(gpu),
    )


def settings_of(run: Run) -> Settings:
    """The settings of a run, read back from it; in place of dtype "auto", the dtype that was chosen.

    Raises:
        ValidationError: a setting is missing or has a wrong type.
    """
    return convert(run.settings, Settings)


def require_same_machine(run: Run, device: Device) -> None:
    """Make sure that a run continues on the device and with the versions that it began with.

    Raises:
        UsageError: the device or a version differs.
    """
    here = describe(device)
    for part in ("device", "versions"):
        before, now = run.environment[part], here[part]
        for name in (
            "kind",
            "name",
            "cores",
            "cpu_quota_cores",
            "capability",
            "decodetax",
            "torch",
            "triton",
            "cuda",
        ):
            if name in before and before[name] != now.get(name):
                raise UsageError(
                    f"--resume: the run was begun with {name} {before[name]!r}, here it is "
                    f"{now.get(name)!r}; begin a new one"
                )


def measure(
    result: Run,
    settings: Settings,
    device: Device,
    progress: Progress,
    tiling_of: TilingOf = no_tiling,
    save: Callable[[], None] = lambda: None,
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
        save: called at the start and after each case.
    """
    start_s, before_s = time.perf_counter(), result.elapsed_s

    def save_so_far() -> None:
        _finish(result, settings, before_s + time.perf_counter() - start_s)
        save()

    result.interrupted, result.broken = True, None
    gc.collect()
    gc.freeze()  # collections after each case then skip what is loaded by now
    try:
        _fill(result, settings, device, progress, tiling_of, save_so_far)
        result.interrupted = False
    except KeyboardInterrupt:
        pass
    except Exception as error:  # noqa: BLE001  (the device broke; what was measured so far is kept)
        result.interrupted = False
        result.broken = one_line(error)
    finally:
        gc.unfreeze()
    _finish(result, settings, before_s + time.perf_counter() - start_s)


def _finish(result: Run, settings: Settings, elapsed_s: float) -> None:
    """Derive the gaps from the rows so far."""
    sweep, price = settings.sweep(result.dtype), result.settings["usd_per_hour"]
    result.gaps = gaps_of(result.rows, settings.model, sweep, usd_per_hour=price)
    result.elapsed_s = elapsed_s


def _fill(
    result: Run,
    settings: Settings,
    device: Device,
    progress: Progress,
    tiling_of: TilingOf,
    save: Callable[[], None],
) -> None:
    keep_above_bytes = max(CACHES_IN_FLIGHT * device.cache_bytes, 2**28)
    source = Source(device.torch_device, settings.seed, keep_above_bytes=keep_above_bytes)
    start_s = time.perf_counter()
    save()
    _measure_ceilings(result, settings, device, source, progress)
    dtype = settings.dtype if settings.dtype != "auto" else _fastest_dtype(result.ceilings, device)
    result.settings = {**result.settings, "dtype": dtype}
    save()
    cases = cases_of(settings.model, settings.sweep(dtype))
    costs = [_expected_s(case, result.measured, settings) for case in cases] * ROUNDS
    turns = [(number, case) for number in range(ROUNDS) for case in cases]
    own = user_providers(settings.providers)
    latest = 0
    for index, (number, case) in enumerate(turns):
        late = time.perf_counter() - start_s > settings.total_limit_s
        earlier = {row.provider: row for row in result.rows if row.case == case}
        bench = Bench(
            device=device,
            source=source,
            budget=_budget(settings, late=late),
            roof=result.measured,
            tiling_of=tiling_of,
            round=number,
            user_providers=own,
            last_round=number == ROUNDS - 1,
        )
        if (late and number >= MIN_ROUNDS) or not providers_due(case, bench, earlier):
            continue
        if number > latest:
            latest = number
            _time_ceilings_again(result, settings, device, source, number)
        share = CEILINGS_SHARE + (0.95 - CEILINGS_SHARE) * sum(costs[:index]) / sum(costs)
        progress(share, f"{case.id}, round {number + 1} of {ROUNDS}")
        for row in run_case(case, bench, earlier):
            merge_row(result.rows, row)
        save()
    if interpreting() and not result.interpreter_checks:
        progress(0.95, "Triton kernels in the interpreter")
        # The user's own functions with Triton kernels, which are not timed here.
        kernels = {name: [p for p in ps if p.refuses(cases[0], device)] for name, ps in own.items()}
        result.interpreter_checks += check_in_interpreter(
            settings.model, dtype, seed=settings.seed, user_providers=kernels
        )
    if settings.counters:
        result.counters_reason = read_counters(
            result, device, lambda share, what: progress(0.95 + 0.05 * share, f"counters of {what}")
        )
    progress(1.0, "done")


def _measure_ceilings(
    result: Run, settings: Settings, device: Device, source: Source, progress: Progress
) -> None:
    """Measure all ceilings, unless the run has all: a continued run never mixes two sets."""
    count = 2 + len(DTYPES)
    if sum(ceiling.provenance == "measured" for ceiling in result.ceilings) == count:
        return
    result.ceilings = [ceiling for ceiling in result.ceilings if ceiling.provenance != "measured"]
    progress(0.0, "read bandwidth")
    for done, (what, ceiling) in enumerate(
        measure_ceilings(device, source, time_limit_s=settings.ceiling_limit_s), start=1
    ):
        result.ceilings.append(ceiling)
        progress(CEILINGS_SHARE * done / count, f"ceilings: {what} done")


def _time_ceilings_again(
    result: Run, settings: Settings, device: Device, source: Source, number: int
) -> None:
    """Time the ceilings of the run's dtype again in a later round; the first round measured them."""
    budget = _round_budget(settings.ceiling_limit_s)
    due = [
        place
        for place, ceiling in enumerate(result.ceilings)
        if ceiling.provenance == "measured"
        and ceiling.dtype in (None, result.dtype)
        and number not in (ceiling.rounds or (0,))
    ]
    for place in due:
        result.ceilings[place] = time_again(result.ceilings[place], device, source, budget, number=number)
    if due:
        device.release()


def _budget(settings: Settings, *, late: bool) -> Budget:
    """The budget of a row in one round."""
    return _round_budget(min(LATE_ROW_LIMIT_S, settings.row_limit_s) if late else settings.row_limit_s)


def _round_budget(limit_s: float) -> Budget:
    """The budget of one round, given the limit for all rounds."""
    return Budget(
        time_limit_s=limit_s / ROUNDS,
        warm_up_s=limit_s / 2 / ROUNDS,
        min_samples=1,
        enough_samples=math.ceil(ENOUGH_SAMPLES / ROUNDS),
        max_samples=MAX_SAMPLES // ROUNDS,
    )


def merge_row(rows: list[Row], found: Row) -> None:
    """Merge a row of one round into that of earlier rounds, or add it."""
    for place, row in enumerate(rows):
        if (row.case, row.provider) == (found.case, found.provider):
            rows[place] = row.with_round(found)
            return
    rows.append(found)


def _expected_s(case: Case, roof: Roof, settings: Settings) -> float:
    """Expected seconds of a case, for the progress bar: five calls, or the time limit if longer."""
    roofline = roof.roofline_time_s(case.work())
    return max(settings.row_limit_s, 5 * roofline[0] if roofline else 0.0)


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


def datasheet_ceilings(gpu: Gpu | None) -> list[Ceiling]:
    """The datasheet's ceilings; none for an unknown device."""
    if gpu is None:
        return []

    def detail(field: str) -> str:
        mark = gpu.marks.get(field)
        return f"{gpu.name}, {gpu.source}" + (f" ({mark})" if mark else "")

    bandwidth = Ceiling(
        kind="read_bandwidth",
        provenance="datasheet",
        bandwidth_bytes_per_s=gpu.bandwidth_bytes_per_s,
        detail=detail("bandwidth_bytes_per_s"),
    )
    return [
        bandwidth,
        *(
            Ceiling(
                kind="matmul",
                provenance="datasheet",
                dtype=dtype,
                flop_per_s=rate,
                detail=detail(f"flop_per_s.{dtype}"),
            )
            for dtype in DTYPES
            if (rate := gpu.flop_per_s[dtype]) is not None
        ),
    ]
