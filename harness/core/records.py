"""The records of a run: ceilings, rows, gaps and checks; their types are the schema of a run file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from msgspec import UNSET, Meta, UnsetType, convert, to_builtins

from .cases import Case
from .collectives import CollectiveRow
from .gap import Gap
from .parallelism import ONE_GPU, Parallelism
from .record_fields import Count, Dtype, Length, NonNegative, Positive, Status, check_ok, finite, require_keys
from .statistics import Summary, summarise, winsorised_rounds
from .whole_model import WholeForward, WholeModel
from .work import Work

SCHEMA_VERSION = 1

Provenance = Literal["measured", "datasheet"]

ABOVE_CEILING = 1.05
"""Share of a measured ceiling above which a row shows that the ceiling was measured too low. A row of 100 to
105% was as fast as the fastest call of the ceiling, within the noise of a median."""

COUNTER_NAMES = ("dram_bytes_read", "dram_bytes_written", "matrix_active_share")
"""Hardware counters of a row: DRAM bytes of all launches of a call; and the share of time with active tensor
cores, the largest of all launches."""


def _check_rounds(record: "Ceiling | Row") -> None:
    if record.rounds and len(record.rounds) != len(record.samples_s):
        raise ValueError(f"rounds: {len(record.rounds)} of {len(record.samples_s)} samples")


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """A rate that the device cannot exceed, measured on it or given by its datasheet.

    Attributes:
        dtype: dtype of the matmul; None for a bandwidth.
        bandwidth_bytes_per_s: bandwidth; None for a matmul or if unknown.
        flop_per_s: dense matmul rate; None for a bandwidth or if unknown.
        detail: how the rate was measured, or the datasheet and its footnotes.
        samples_s: seconds of each call at the fastest size; empty for a datasheet.
        work: operations or bytes of one such call; None for a datasheet.
        reason: why the rate is unknown; None if it is known.
        call: the fastest of several functions that do the same work; empty if there is only one.
        rounds: round of the run, from 0, in which each sample was taken; empty in older files.

    Raises:
        ValueError: the fields contradict one another.
    """

    kind: Literal["read_bandwidth", "copy_bandwidth", "matmul"]
    provenance: Provenance
    dtype: Dtype | None = None
    bandwidth_bytes_per_s: Positive | None = None
    flop_per_s: Positive | None = None
    detail: str = ""
    samples_s: Sequence[Positive] = ()
    work: Mapping[str, Count] | None = None
    reason: str | None = None
    call: str = ""
    rounds: Sequence[Length] = ()

    def __post_init__(self) -> None:
        _check_rounds(self)
        if (self.kind == "matmul") != (self.dtype is not None):
            raise ValueError(f"dtype: is {self.dtype!r} on a ceiling of kind {self.kind}")
        if self.samples_s and self.rate is not None:
            require_keys("work", self.work or {}, ["operations" if self.kind == "matmul" else "bytes_read"])

    @property
    def rate(self) -> float | None:
        """Bytes or operations per second; None if unknown."""
        return self.bandwidth_bytes_per_s if self.bandwidth_bytes_per_s is not None else self.flop_per_s

    def with_round(self, samples_s: Sequence[float], number: int) -> Self:
        """This ceiling with samples of the same call in a later round; the rate is that of the fastest."""
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
    """Peak compute and memory bandwidth of one provenance, for one dtype; None where unknown."""

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
        """The ridge point: operations per byte at which compute and memory take equally long."""
        if self.flop_per_s is None or self.bandwidth_bytes_per_s is None:
            return None
        return self.flop_per_s / self.bandwidth_bytes_per_s

    def roofline_time_s(self, work: Work) -> tuple[float, Literal["compute", "memory"]] | None:
        """Minimum seconds of some work under this roof, and which side limits it."""
        if self.flop_per_s is None or self.bandwidth_bytes_per_s is None:
            return None
        compute_s = work.operations / self.flop_per_s
        memory_s = work.bytes_total / self.bandwidth_bytes_per_s
        return (compute_s, "compute") if compute_s > memory_s else (memory_s, "memory")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case run by one provider: its status and, if ok, its samples.

    Attributes:
        relative_error, tolerance: the largest relative L2 error of an output row at the gate, and its limit.
        samples_s: seconds of each call, in the order they were taken; empty unless ok.
        method: how the samples were taken.
        input_copies: copies of the inputs that the calls use in turn.
        clock_before_hz, clock_after_hz: SM clock before and after the samples; None if not reported.
        throttle_reasons: why the device lowered its clock; empty if it did not, or does not report it.
        tiling: the tuned tiling that the provider used; None if it chose one itself.
        variant: the kernel variant that ran; None for a kernel without variants.
        rounds: round of the run, from 0, in which each sample was taken; empty in older files.
        counters: hardware counters by COUNTER_NAMES; None if they were not read.
        ranks_s: median seconds of each rank in each of the rounds, of which the slowest rank's samples are
            kept; unset, and left out of files, on one rank.

    Raises:
        ValueError: the fields contradict one another.
    """

    case: Case
    provider: str
    status: Status
    reason: str | None = None
    relative_error: NonNegative | None = None
    tolerance: NonNegative | None = None
    samples_s: Sequence[Positive] = ()
    method: str | None = None
    input_copies: Length | None = None
    clock_before_hz: NonNegative | None = None
    clock_after_hz: NonNegative | None = None
    throttle_reasons: Sequence[str] = ()
    tiling: Mapping[str, bool | Count | str | None] | None = None
    variant: str | None = None
    rounds: Sequence[Length] = ()
    counters: Mapping[str, NonNegative] | None = None
    ranks_s: Sequence[Annotated[Sequence[Positive], Meta(min_length=1)]] | UnsetType = UNSET

    def __post_init__(self) -> None:
        _check_rounds(self)
        if not isinstance(self.ranks_s, UnsetType) and len(self.ranks_s) != len(set(self.rounds)):
            raise ValueError(f"ranks_s: {len(self.ranks_s)} of {len(set(self.rounds))} rounds")
        if self.counters is not None:
            require_keys("counters", self.counters, COUNTER_NAMES)
        check_ok(self.status, self.samples_s, self.reason)

    @property
    def key(self) -> tuple[str, str, int, int]:
        """Case, provider, operations and bytes: models of the same name may differ in their sizes."""
        work = self.case.work()
        return self.case.id, self.provider, work.operations, work.bytes_total

    @cached_property
    def rounds_s(self) -> Mapping[int, float]:
        """Median seconds of a call in each round, outliers winsorised; empty in older files."""
        return winsorised_rounds(self.samples_s, self.rounds)

    @cached_property
    def time_s(self) -> Summary:
        """Median seconds of a call with its 95% interval; of an ok row only."""
        return summarise(self.samples_s, self.rounds)

    @property
    def flop_per_s(self) -> float:
        """Operations per second at the median time; of an ok row only."""
        return self.case.work().operations / self.time_s.median

    @property
    def bandwidth_bytes_per_s(self) -> float:
        """Bytes per second at the median time; of an ok row only."""
        return self.case.work().bytes_total / self.time_s.median

    def with_round(self, later: "Row") -> "Row":
        """This row merged with that of a later round.

        The samples are joined if both rows are ok. A later failure replaces this row; a row that was skipped
        later keeps its samples.
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
            ranks_s=_joined(self.ranks_s, later.ranks_s),
        )

    def figures(self, measured: Roof, datasheet: Roof) -> dict[str, float | str | bool | None] | None:
        """Rates and their shares of the roofs; None unless the row is ok. Provenance: measured."""
        if self.status != "ok":
            return None
        work, time_s = self.case.work(), self.time_s.median
        roof, sheet = measured.roofline_time_s(work), datasheet.roofline_time_s(work)
        return {
            "operations_per_byte": work.operations_per_byte,
            "flop_per_s": self.flop_per_s,
            "bandwidth_bytes_per_s": self.bandwidth_bytes_per_s,
            "bound": roof and roof[1],
            "share_of_measured_ceiling": roof and roof[0] / time_s,
            "above_measured_ceiling": roof and roof[0] / time_s > ABOVE_CEILING,
            "share_of_datasheet_ceiling": sheet and sheet[0] / time_s,
        }


def _joined(
    earlier: Sequence[Sequence[float]] | UnsetType, later: Sequence[Sequence[float]] | UnsetType
) -> Sequence[Sequence[float]] | UnsetType:
    if isinstance(earlier, UnsetType) or isinstance(later, UnsetType):
        return UNSET
    return (*earlier, *later)


@dataclass(frozen=True, kw_only=True)
class InterpreterCheck:
    """A Triton kernel run in the interpreter on a small case and compared with the oracle; not timed."""

    case: Case
    provider: str
    status: Status
    reason: str | None
    relative_error: NonNegative | None
    tolerance: NonNegative | None


@dataclass(kw_only=True)
class Run:
    """All results of one `decodetax run`; it grows during the run, so that an interrupted run can be kept.

    Attributes:
        broken: the error that ended the run early; None if there was none.
        counters_reason: why requested hardware counters are missing; None if none are.
        elapsed_s, timed_s, timed_share: seconds of the measurement, those of them in timed calls, and their
            share.
        late: how the time limit cut the run short; None if it did not.
        altered: that memory was altered by a provider that is not known; None if none was.
        other_load: share of the cores that other processes used meanwhile; None if unknown.
        warnings: why the figures cannot be trusted, a line for each reason.
        whole_model: forwards of all layers; None if they were not measured.
        collectives: what ranks exchange; empty on one rank, and then left out of files.
        one_rank_rows: the kernels of the whole model on rank 0 alone, of which one_rank_gaps are; as these.
        one_rank_gaps: the gaps of the whole model on one rank alone, beside those of several; empty, and left
            out of files, where there is one rank, or where one cannot hold the model.
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
    elapsed_s: NonNegative = 0.0
    timed_s: NonNegative = 0.0
    timed_share: NonNegative = 0.0
    late: str | None = None
    altered: str | None = None
    other_load: NonNegative | None = None
    warnings: Sequence[str] = ()
    whole_model: WholeModel | None = None
    collectives: list[CollectiveRow] = field(default_factory=list)
    one_rank_rows: list[Row] = field(default_factory=list)
    one_rank_gaps: list[Gap] = field(default_factory=list)

    @property
    def parallelism(self) -> Parallelism:
        """How ranks share the model; files of one rank do not have it."""
        return convert(self.settings.get("parallelism", ONE_GPU), Parallelism)

    @property
    def dtype(self) -> str:
        """The dtype of the run's cases."""
        return str(self.settings["dtype"])

    @property
    def measured(self) -> Roof:
        """The measured roof."""
        return Roof.of(self.ceilings, dtype=self.dtype, provenance="measured")

    @property
    def datasheet(self) -> Roof:
        """The datasheet's roof; without figures for an unknown device."""
        return Roof.of(self.ceilings, dtype=self.dtype, provenance="datasheet")

    @property
    def rows_above_ceilings(self) -> list[Row]:
        """Rows that reach over ABOVE_CEILING of the measured roof, so that the roof was measured too low."""
        return [row for row in self.rows if (self.share_of_ceiling(row) or 0.0) > ABOVE_CEILING]

    def rows_above(self, ceiling: Ceiling) -> list[Row]:
        """Those of `rows_above_ceilings` that exceed this ceiling of the roof."""
        sides = {"matmul": "compute", "read_bandwidth": "memory", "copy_bandwidth": ""}
        if ceiling.provenance != "measured" or ceiling.dtype not in (None, self.dtype):
            return []
        return [row for row in self.rows_above_ceilings if self._bound(row) == sides[ceiling.kind]]

    def _bound(self, row: Row) -> str | None:
        roof = self.measured.roofline_time_s(row.case.work())
        return roof and roof[1]

    def share_of_ceiling(self, row: Row) -> float | None:
        """Share of the measured roof that a row reaches; None if the roof is unknown or the row is not ok."""
        roof = self.measured.roofline_time_s(row.case.work())
        return None if roof is None or row.status != "ok" else roof[0] / row.time_s.median

    @property
    def failures(self) -> list[Row | CollectiveRow | InterpreterCheck | WholeForward]:
        """Rows, checks and forwards of the whole model with wrong results."""
        forwards = () if self.whole_model is None else self.whole_model.forwards
        entries: list[Row | CollectiveRow | InterpreterCheck | WholeForward]
        entries = [*self.rows, *self.collectives, *self.one_rank_rows, *self.interpreter_checks, *forwards]
        return [entry for entry in entries if entry.status == "failed"]

    def to_json(self) -> dict[str, Any]:
        """The run as a JSON object of version SCHEMA_VERSION: its fields and derived figures."""
        measured, datasheet = self.measured, self.datasheet
        of_ranks = {
            "collectives": [row.to_json() for row in self.collectives],
            "one_rank_rows": [_row_to_json(row, measured, datasheet) for row in self.one_rank_rows],
            "one_rank_gaps": [gap.to_json() for gap in self.one_rank_gaps],
        }
        return {
            "schema_version": SCHEMA_VERSION,
            **{name: value for name, value in vars(self).items() if name not in of_ranks},
            "ceilings": to_builtins(self.ceilings),
            "rows": [_row_to_json(row, measured, datasheet) for row in self.rows],
            "gaps": [gap.to_json() for gap in self.gaps],
            "interpreter_checks": [_entry_to_json(check) for check in self.interpreter_checks],
            "whole_model": self.whole_model and self.whole_model.to_json(),
            **{name: entries for name, entries in of_ranks.items() if entries},
        }


def _row_to_json(row: Row, measured: Roof, datasheet: Roof) -> dict[str, Any]:
    work = row.case.work()
    return {
        **_entry_to_json(row),
        "provenance": "measured",
        "work": {
            "provenance": "modelled",
            "operations": work.operations,
            "bytes_read": work.bytes_read,
            "bytes_written": work.bytes_written,
            **to_builtins(work),
        },
        "time_s": to_builtins(row.time_s) if row.status == "ok" else None,
        "figures": row.figures(measured, datasheet),
    }


def _entry_to_json(record: Row | InterpreterCheck) -> dict[str, Any]:
    entry: dict[str, Any] = to_builtins(record)
    shape = entry["case"]
    return {
        **entry,
        "case": record.case.id,
        "operation": shape.pop("operation"),
        "phase": record.case.phase,
        "shape": shape,
        "relative_error": finite(record.relative_error),
    }
