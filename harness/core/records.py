"""What a run keeps: ceilings, rows, gaps and checks, and the versioned JSON they become."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Self

from .cases import Case
from .samples import Summary, summarise
from .work import Work

SCHEMA_VERSION = 1

Status = Literal["ok", "failed", "skipped", "unsupported"]

COUNTER_NAMES = ("dram_bytes_read", "dram_bytes_written", "matrix_active_share")
"""What hardware counters tell of a row: bytes of all launches of a call, and the share of the time that the
matrix units were active, of the launch in which it was largest."""


def _check_rounds(rounds: Sequence[int], samples_s: Sequence[float]) -> None:
    """A round a sample, where there are rounds."""
    if not all(isinstance(number, int) for number in rounds):
        raise TypeError("rounds: are not whole numbers")
    if rounds and len(rounds) != len(samples_s):
        raise ValueError(f"rounds: {len(rounds)} of {len(samples_s)} samples")


def _check_counters(counters: Mapping[str, float]) -> None:
    for name in COUNTER_NAMES:
        value = counters[name]
        if isinstance(value, bool) or not (isinstance(value, int | float) and 0 <= value < math.inf):
            raise ValueError(f"{name}: is {value!r}, must be a number of at least 0")


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """A rate that the device cannot pass, measured on it or named by its datasheet.

    Attributes:
        kind: "read_bandwidth", "copy_bandwidth" or "matmul".
        dtype: of a matmul; None for a bandwidth, which has none.
        provenance: "measured" or "datasheet".
        bandwidth_bytes_per_s: of a bandwidth.
        flop_per_s: of a matmul, dense.
        detail: how it was found, or the datasheet and its marks.
        samples_s: seconds of each call of the size that won; empty for a datasheet.
        work: operations or bytes of one such call; None for a datasheet.
        reason: why there is no rate, where there is none.
        call: which of several functions that do the same work won; empty where there is but one.
        rounds: of each sample the round of the run that it was taken in, from 0; none in files of before.
    """

    kind: Literal["read_bandwidth", "copy_bandwidth", "matmul"]
    provenance: Literal["measured", "datasheet"]
    dtype: str | None = None
    bandwidth_bytes_per_s: float | None = None
    flop_per_s: float | None = None
    detail: str = ""
    samples_s: Sequence[float] = ()
    work: Mapping[str, int] | None = None
    reason: str | None = None
    call: str = ""
    rounds: Sequence[int] = ()

    def __post_init__(self) -> None:
        _check_rounds(self.rounds, self.samples_s)
        if not isinstance(self.call, str):
            raise TypeError(f"call: is a {type(self.call).__name__}, must be a text")

    @property
    def rate(self) -> float | None:
        """Bytes or operations per second; None where it is not known."""
        return self.bandwidth_bytes_per_s if self.bandwidth_bytes_per_s is not None else self.flop_per_s

    def with_round(self, samples_s: Sequence[float], number: int) -> Self:
        """This ceiling with samples of the same call in a later round: the fastest of all makes the rate."""
        faster = max(1.0, min(self.samples_s) / min(samples_s))
        rates = {
            name: rate * faster
            for name in ("bandwidth_bytes_per_s", "flop_per_s")
            if (rate := getattr(self, name)) is not None
        }
        return replace(
            self,
            **rates,
            samples_s=(*self.samples_s, *samples_s),
            rounds=(*(self.rounds or (0,) * len(self.samples_s)), *(number,) * len(samples_s)),
        )


@dataclass(frozen=True, kw_only=True)
class Roof:
    """The two roofs of one provenance, for one dtype; None where unknown."""

    flop_per_s: float | None
    bandwidth_bytes_per_s: float | None

    @classmethod
    def of(cls, ceilings: Sequence[Ceiling], *, dtype: str, provenance: str) -> Self:
        """The roof that these ceilings make for a dtype."""
        known = [c for c in ceilings if c.provenance == provenance]
        flops = [c.flop_per_s for c in known if c.kind == "matmul" and c.dtype == dtype]
        reads = [c.bandwidth_bytes_per_s for c in known if c.kind == "read_bandwidth"]
        return cls(flop_per_s=next(iter(flops), None), bandwidth_bytes_per_s=next(iter(reads), None))

    @property
    def balance_operations_per_byte(self) -> float | None:
        """Operations per byte at which both roofs take equally long."""
        if self.flop_per_s is None or self.bandwidth_bytes_per_s is None:
            return None
        return self.flop_per_s / self.bandwidth_bytes_per_s

    def least_time_s(self, work: Work) -> tuple[float, Literal["compute", "memory"]] | None:
        """Seconds that work takes at least under this roof, and which side says so."""
        if self.flop_per_s is None or self.bandwidth_bytes_per_s is None:
            return None
        compute_s = work.operations / self.flop_per_s
        memory_s = work.bytes_total / self.bandwidth_bytes_per_s
        return (compute_s, "compute") if compute_s > memory_s else (memory_s, "memory")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case by one provider: its status and, where ok, its samples.

    Attributes:
        relative_error, tolerance: the worst output row's relative L2 error at the gate, and what it may be.
        samples_s: seconds of each call, in the order they were taken; empty unless ok.
        method: how the samples were taken.
        clock_before_hz, clock_after_hz: SM clock around the samples, where the device tells.
        throttle_reasons: why the device slowed its clock, where it says that it did.
        tiling: the tuned tiling that the provider was cut by; None where it chose one itself.
        variant: of a kernel of several forms, the one that ran.
        rounds: of each sample the round of the run that it was taken in, from 0; none in files of before.
        counters: by COUNTER_NAMES, where hardware counters were read.
    """

    case: Case
    provider: str
    status: Status
    reason: str | None = None
    relative_error: float | None = None
    tolerance: float | None = None
    samples_s: Sequence[float] = ()
    method: str | None = None
    input_copies: int | None = None
    clock_before_hz: float | None = None
    clock_after_hz: float | None = None
    throttle_reasons: Sequence[str] = ()
    tiling: Mapping[str, int | str | None] | None = None
    variant: str | None = None
    rounds: Sequence[int] = ()
    counters: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        _check_rounds(self.rounds, self.samples_s)
        if self.counters is not None:
            _check_counters(self.counters)
        if (self.status == "ok") != bool(self.samples_s):
            raise ValueError(f"samples_s: {len(self.samples_s)} of a row that is {self.status}")
        if (self.status == "ok") != (self.reason is None):
            raise ValueError(f"reason: is {self.reason!r} on a row that is {self.status}")

    @cached_property
    def time_s(self) -> Summary:
        """Median seconds of a call with its 95% interval; of an ok row only."""
        return summarise(self.samples_s, self.rounds)

    def with_round(self, later: "Row") -> "Row":
        """This row and the same of a later round, as one.

        Samples are put together where both are ok. A result that was wrong or broke in any round counts; what
        a later round could not run for another reason leaves what was measured before.
        """
        if self.status != "ok":
            return self
        if later.status != "ok":
            return later if later.status == "failed" else self
        worst = max(self, later, key=lambda row: row.relative_error or 0.0)
        return replace(
            later,
            samples_s=(*self.samples_s, *later.samples_s),
            rounds=(*self.rounds, *later.rounds),
            relative_error=worst.relative_error,
            clock_before_hz=self.clock_before_hz,
            throttle_reasons=tuple(dict.fromkeys((*self.throttle_reasons, *later.throttle_reasons))),
        )

    def figures(self, measured: Roof, datasheet: Roof) -> dict[str, float | str | None] | None:
        """Rates and shares of the roofs; None unless the row is ok. Provenance: measured."""
        if self.status != "ok":
            return None
        work, time_s = self.case.work(), self.time_s.median
        least, sheet = measured.least_time_s(work), datasheet.least_time_s(work)
        return {
            "operations_per_byte": work.operations_per_byte,
            "flop_per_s": work.operations / time_s,
            "bandwidth_bytes_per_s": work.bytes_total / time_s,
            "bound": least and least[1],
            "share_of_measured_ceiling": least and least[0] / time_s,
            "share_of_datasheet_ceiling": sheet and sheet[0] / time_s,
        }


@dataclass(frozen=True, kw_only=True)
class InterpreterCheck:
    """A Triton kernel in the interpreter, on a small twin of a case, held against the oracle: no times."""

    case: Case
    provider: str
    status: Status
    reason: str | None
    relative_error: float | None
    tolerance: float | None


@dataclass(frozen=True, kw_only=True)
class Gap:
    """What an output token costs against an input token, at one batch and context.

    The parts of each token are seconds of device time per token over all layers: projections, attention,
    rest (the whole layer less its parts) and lm_head; they sum to `..._s_per_token`.
    """

    batch: int
    context: int
    prompt: int
    input_parts_s: Mapping[str, float]
    output_parts_s: Mapping[str, float]
    providers: Mapping[str, str]
    prefill_layer_over_parts: float | None
    decode_layer_over_parts: float | None
    triton_gap: float | None = None
    usd_per_hour: float | None = None
    provenance: Literal["measured"] = "measured"

    def __post_init__(self) -> None:
        for name, seconds in (("input", self.input_s_per_token), ("output", self.output_s_per_token)):
            if not seconds > 0:
                raise ValueError(f"{name}_parts_s: sum to {seconds} s, must be above 0")

    @property
    def input_s_per_token(self) -> float:
        """Device seconds of an input token."""
        return sum(self.input_parts_s.values())

    @property
    def output_s_per_token(self) -> float:
        """Device seconds of an output token."""
        return sum(self.output_parts_s.values())

    @property
    def gap(self) -> float:
        """Seconds of an output token over seconds of an input token."""
        return self.output_s_per_token / self.input_s_per_token

    def usd_per_mtok(self, s_per_token: float) -> float | None:
        """Dollars for a million tokens that take this long each, at the price of the device."""
        return None if self.usd_per_hour is None else s_per_token * 1e6 * self.usd_per_hour / 3600

    def to_json(self) -> dict[str, Any]:
        """The gap as a JSON object."""
        dollars = {
            "usd_per_hour": self.usd_per_hour,
            "input_usd_per_mtok": self.usd_per_mtok(self.input_s_per_token),
            "output_usd_per_mtok": self.usd_per_mtok(self.output_s_per_token),
        }
        return {
            "batch": self.batch,
            "context": self.context,
            "prompt": self.prompt,
            "provenance": self.provenance,
            "input_s_per_token": self.input_s_per_token,
            "output_s_per_token": self.output_s_per_token,
            "input_tokens_per_s": 1 / self.input_s_per_token,
            "output_tokens_per_s": 1 / self.output_s_per_token,
            "gap": self.gap,
            "triton_gap": self.triton_gap,
            **(dollars if self.usd_per_hour is not None else {}),
            "input_parts_s": dict(self.input_parts_s),
            "output_parts_s": dict(self.output_parts_s),
            "prefill_layer_over_parts": self.prefill_layer_over_parts,
            "decode_layer_over_parts": self.decode_layer_over_parts,
            "providers": dict(self.providers),
        }


@dataclass(kw_only=True)
class Run:
    """Everything one `decodetax run` found; grows while it runs, so that an interrupted run can be kept.

    `broken` says what broke a run off, `counters_reason` why it lacks hardware counters that it was to read.
    """

    environment: Mapping[str, Any]
    settings: Mapping[str, Any]
    ceilings: list[Ceiling] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    interpreter_checks: list[InterpreterCheck] = field(default_factory=list)
    interrupted: bool = False
    broken: str | None = None
    counters_reason: str | None = None
    elapsed_s: float = 0.0

    @property
    def dtype(self) -> str:
        """The dtype of the run's cases."""
        return str(self.settings["dtype"])

    @property
    def measured(self) -> Roof:
        """The roof that was measured."""
        return Roof.of(self.ceilings, dtype=self.dtype, provenance="measured")

    @property
    def datasheet(self) -> Roof:
        """The roof that the datasheet names; empty for an unknown device."""
        return Roof.of(self.ceilings, dtype=self.dtype, provenance="datasheet")

    @property
    def failures(self) -> list[Row | InterpreterCheck]:
        """What gave wrong results."""
        entries: list[Row | InterpreterCheck] = [*self.rows, *self.interpreter_checks]
        return [entry for entry in entries if entry.status == "failed"]

    def to_json(self) -> dict[str, Any]:
        """The run as a JSON object of version SCHEMA_VERSION."""
        return {
            "schema_version": SCHEMA_VERSION,
            "interrupted": self.interrupted,
            "broken": self.broken,
            "counters_reason": self.counters_reason,
            "elapsed_s": self.elapsed_s,
            "environment": dict(self.environment),
            "settings": dict(self.settings),
            "ceilings": [asdict(ceiling) for ceiling in self.ceilings],
            "rows": [self._row_to_json(row) for row in self.rows],
            "gaps": [gap.to_json() for gap in self.gaps],
            "interpreter_checks": [
                {**_case_to_json(check.case), **_without_case(asdict(check))}
                for check in self.interpreter_checks
            ],
        }

    def _row_to_json(self, row: Row) -> dict[str, Any]:
        work = row.case.work()
        return {
            **_case_to_json(row.case),
            "provider": row.provider,
            "status": row.status,
            "reason": row.reason,
            "provenance": "measured",
            "work": {
                "provenance": "modelled",
                "operations": work.operations,
                "bytes_read": work.bytes_read,
                "bytes_written": work.bytes_written,
                "operation_terms": dict(work.operation_terms),
                "read_terms": dict(work.read_terms),
                "written_terms": dict(work.written_terms),
            },
            "samples_s": list(row.samples_s),
            "rounds": list(row.rounds),
            "time_s": asdict(row.time_s) if row.status == "ok" else None,
            "figures": row.figures(self.measured, self.datasheet),
            "relative_error": _finite(row.relative_error),
            "tolerance": row.tolerance,
            "method": row.method,
            "input_copies": row.input_copies,
            "clock_before_hz": row.clock_before_hz,
            "clock_after_hz": row.clock_after_hz,
            "throttle_reasons": list(row.throttle_reasons),
            "tiling": None if row.tiling is None else dict(row.tiling),
            "variant": row.variant,
            "counters": None if row.counters is None else dict(row.counters),
        }


def _case_to_json(case: Case) -> dict[str, Any]:
    return {"case": case.id, "operation": case.operation, "phase": case.phase, "shape": asdict(case)}


def _without_case(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        **{k: v for k, v in entry.items() if k != "case"},
        "relative_error": _finite(entry["relative_error"]),
    }


def _finite(value: float | None) -> float | None:
    """JSON has no infinity and no NaN; the row's reason tells of them."""
    return value if value is not None and math.isfinite(value) else None
