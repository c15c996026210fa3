"""Collectives: what ranks exchange in a forward of a sharded model, each with its message size.

Sizes and bandwidths are those of nccl-tests (its PERFORMANCE.md): the message is the whole tensor on one
rank, the algorithm bandwidth is message bytes over time, and the bus bandwidth is that times a factor with
which it compares with the bandwidth of a link in one direction, whatever the number of ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct, to_builtins

from .record_fields import Dtype, Length, NonNegative, Positive, Size, Status, check_ok, finite
from .statistics import Summary, summarise, winsorised_rounds
from .work import ELEMENT_BYTES

CollectiveKind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
COLLECTIVES: tuple[CollectiveKind, ...] = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")

LATENCY_BYTES = 8192
"""Message of the link's latency: a token's hidden state of 4,096 elements in 16 bits."""


class Collective(Struct, frozen=True, kw_only=True, tag_field="operation", tag="collective"):
    """One exchange among ranks, which all of them enter with a message of the same size.

    Attributes:
        kind: all_reduce adds a tensor up over the ranks, and each gets the sum; reduce_scatter leaves each a
            part of the sum; all_gather gives each the parts of all; all_to_all sends a part to each.
        phase: where a forward has such messages; "link" where the message only measures the link.
        elements: of the whole tensor: reduced, gathered, scattered, or sent by one rank to all, itself
            included. A multiple of `ranks`.
        ranks: ranks that take part, at least 2.
        dtype: dtype of the tensor.

    Raises:
        ValueError: the elements do not divide among the ranks.
    """

    operation: ClassVar[str] = "collective"
    part: ClassVar[str] = "communication"
    kind: CollectiveKind
    phase: Literal["prefill", "decode", "link"]
    elements: Size
    ranks: Annotated[int, Meta(ge=2, le=2**20)]
    dtype: Dtype

    def __post_init__(self) -> None:
        if self.elements % self.ranks:
            raise ValueError(f"elements: {self.elements} do not divide among {self.ranks} ranks")

    @property
    def id(self) -> str:
        """Readable and unique among a run's cases."""
        return f"{self.phase}/{self.kind}/n{self.ranks}-e{self.elements}/{self.dtype}"

    @property
    def message_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.elements * ELEMENT_BYTES[self.dtype]

    @property
    def input_elements(self) -> int:
        """Elements that each rank puts in."""
        return self.elements // self.ranks if self.kind == "all_gather" else self.elements

    @property
    def output_elements(self) -> int:
        """Elements that each rank gets."""
        return self.elements // self.ranks if self.kind == "reduce_scatter" else self.elements

    @property
    def bus_factor(self) -> float:
        """Bus bandwidth over algorithm bandwidth: bytes that each rank must send, per byte of the message.

        An all-reduce is a reduce-scatter and an all-gather.
        """
        return (2 if self.kind == "all_reduce" else 1) * (self.ranks - 1) / self.ranks


def collective(kind: CollectiveKind, phase: str, elements: int, ranks: int, dtype: str) -> Collective:
    """A collective of at least so many elements: as many more as make them divide among the ranks."""
    whole = -(-elements // ranks) * ranks
    return Collective(kind=kind, phase=phase, elements=whole, ranks=ranks, dtype=dtype)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class CollectiveRow:
    """One collective run by one provider on all ranks that take part.

    Attributes:
        provider: "nccl", "gloo", or one of symmetric memory.
        relative_error, tolerance: as in `Row`; of the worst rank. What only moves data has a tolerance of 0.
        samples_s: seconds of each call, of its slowest rank; empty unless ok.
        skew_s: median over the samples of the slowest rank's seconds minus the fastest's: how unevenly the
            ranks entered and left; None unless ok.
        method: how the samples were taken.
        rounds: round of the run, from 0, in which each sample was taken.

    Raises:
        ValueError: the fields contradict one another.
    """

    case: Collective
    provider: str
    status: Status
    reason: str | None = None
    relative_error: NonNegative | None = None
    tolerance: NonNegative | None = None
    samples_s: Sequence[Positive] = ()
    skew_s: NonNegative | None = None
    method: str | None = None
    rounds: Sequence[Length] = ()

    def __post_init__(self) -> None:
        if len(self.rounds) != len(self.samples_s):
            raise ValueError(f"rounds: {len(self.rounds)} of {len(self.samples_s)} samples")
        check_ok(self.status, self.samples_s, self.reason)
        if (self.status == "ok") != (self.skew_s is not None):
            raise ValueError(f"skew_s: is {self.skew_s!r} on a row that is {self.status}")

    @cached_property
    def rounds_s(self) -> Mapping[int, float]:
        """Median seconds of a call in each round, outliers winsorised."""
        return winsorised_rounds(self.samples_s, self.rounds)

    @cached_property
    def time_s(self) -> Summary:
        """Median seconds of a call with its 95% interval; of an ok row only."""
        return summarise(self.samples_s, self.rounds)

    @property
    def algorithm_bytes_per_s(self) -> float:
        """Message bytes over the median time; of an ok row only."""
        return self.case.message_bytes / self.time_s.median

    @property
    def bus_bytes_per_s(self) -> float:
        """Bytes that a rank's link must carry in one direction, over the median time; of an ok row only."""
        return self.algorithm_bytes_per_s * self.case.bus_factor

    def with_round(self, later: "CollectiveRow") -> "CollectiveRow":
        """This row merged with that of a later round, as `Row.with_round`; the skew is the larger one."""
        if self.status != "ok":
            return self
        if later.status != "ok":
            return later if later.status == "failed" else self
        return replace(
            later,
            samples_s=(*self.samples_s, *later.samples_s),
            rounds=(*self.rounds, *later.rounds),
            skew_s=max(self.skew_s or 0.0, later.skew_s or 0.0),
            relative_error=max(self.relative_error or 0.0, later.relative_error or 0.0),
        )

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON object: its fields and derived figures."""
        entry: dict[str, Any] = to_builtins(self)
        shape, ok = entry["case"], self.status == "ok"
        return {
            **entry,
            "case": self.case.id,
            "operation": shape.pop("operation"),
            "shape": shape,
            "relative_error": finite(self.relative_error),
            "provenance": "measured",
            "message_bytes": self.case.message_bytes,
            "time_s": to_builtins(self.time_s) if ok else None,
            "algorithm_bytes_per_s": self.algorithm_bytes_per_s if ok else None,
            "bus_bytes_per_s": self.bus_bytes_per_s if ok else None,
        }
