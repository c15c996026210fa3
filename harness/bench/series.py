"""What the figures of a report show, as plain numbers: points, roofs, lines of the gap and price ratios."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby

from ..core.cases import Case
from ..core.records import Gap, Roof, Row, Run
from ..core.statistics import Summary
from ..core.tables import provider_name
from ..core.units import si
from ..cost.break_even import measured_batch
from ..cost.prices import TokenPrice

RATIOS_SHOWN = 5
EXAMPLES_SHOWN = 2
GAP_TICKS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
OPERATIONS = {
    "prefill_matmul": "projection",
    "decode_attention": "attention",
    "prefill_attention": "attention",
    "decoder_layer": "whole layer",
}
OUTPUT_PARTS = {
    "projections": "weights: projections",
    "lm_head": "weights: LM head",
    "attention": "KV cache: attention",
    "rest": "rest: norms, activation, launches",
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """A row that is ok, on the roofline: where its work and its measured time put it."""

    run: str
    kind: str
    case: str
    provider: str
    shape: str
    operations: int
    operations_per_byte: float
    time_s: Summary

    @property
    def flop_per_s(self) -> float:
        """At the median time."""
        return self.operations / self.time_s.median


@dataclass(frozen=True, kw_only=True)
class RoofLine:
    """What a roof allows at ops:bytes from the left of the figure to its right."""

    run: str
    provenance: str
    label: str
    operations_per_byte: tuple[float, ...]
    flop_per_s: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class GapLine:
    """The gaps of a run at one context, by rising batch."""

    run: str
    context: int
    gaps: tuple[Gap, ...]

    @property
    def batches(self) -> tuple[int, ...]:
        """Their batches."""
        return tuple(gap.batch for gap in self.gaps)

    def break_even_batch(self, ratio: float) -> float | None:
        """The batch at which this line comes down to a price ratio; None where it does not cross it."""
        if not self.gaps or self.gaps[0].gap <= ratio:
            return None
        return measured_batch(self.gaps, ratio)


@dataclass(frozen=True, kw_only=True)
class PriceRatio:
    """How many times an input token's price an output token's is, and for which models; published."""

    ratio: Decimal
    models: tuple[str, ...]

    @property
    def examples(self) -> str:
        """The first models by name."""
        more = len(self.models) - EXAMPLES_SHOWN
        return ", ".join(self.models[:EXAMPLES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def price_ratios(prices: Mapping[str, TokenPrice], most: int = RATIOS_SHOWN) -> tuple[PriceRatio, ...]:
    """The whole ratios above 1 that most models of a price list have, in rising order."""
    models: dict[Decimal, list[str]] = {}
    for price in prices.values():
        ratio = price.output_over_input
        if ratio is not None and ratio > 1 and ratio == ratio.to_integral_value():
            models.setdefault(ratio, []).append(price.model)
    shown = sorted(models, key=lambda ratio: len(models[ratio]), reverse=True)[:most]
    return tuple(PriceRatio(ratio=ratio, models=tuple(models[ratio])) for ratio in sorted(shown))


def points(name: str, run: Run) -> tuple[Point, ...]:
    """A point for every row that is ok."""
    return tuple(_point(name, row) for row in run.rows if row.status == "ok")


def _point(name: str, row: Row) -> Point:
    work = row.case.work()
    return Point(
        run=name,
        kind=f"{OPERATIONS.get(row.case.operation, row.case.operation)}, {row.case.phase}",
        case=row.case.id,
        provider=provider_name(row),
        shape=shape_of(row.case),
        operations=work.operations,
        operations_per_byte=work.operations_per_byte,
        time_s=row.time_s,
    )


def shape_of(case: Case) -> str:
    """The sizes of a case, by name."""
    return ", ".join(_sizes(case))


def _sizes(case: Case) -> Iterator[str]:
    for name in case.__struct_fields__:
        value = getattr(case, name)
        if name == "contexts":
            runs = [(length, len(tuple(same))) for length, same in groupby(value)]
            yield "contexts " + " + ".join(f"{count} x {length}" for length, count in runs)
        elif name not in {"phase", "part"}:
            yield f"{name} {getattr(value, 'name', value)}"


def roof_lines(name: str, run: Run, span: tuple[float, float]) -> tuple[RoofLine, ...]:
    """The measured and the datasheet roof over a span of ops:bytes, as far as they are known."""
    least, most = span
    lines = (
        _roof_line(name, provenance, roof, least, most)
        for provenance, roof in (("measured", run.measured), ("datasheet", run.datasheet))
    )
    return tuple(line for line in lines if line is not None)


def ops_span(shown: Sequence[tuple[Run, Sequence[Point]]]) -> tuple[float, float]:
    """From half the least ops:bytes of points and balances to twice the most."""
    marks = [
        point.operations_per_byte for _, some in shown for point in some if point.operations_per_byte > 0
    ]
    for run, _ in shown:
        balances = (roof.balance_operations_per_byte for roof in (run.measured, run.datasheet))
        marks += [balance for balance in balances if balance]
    return (min(marks) / 2, max(marks) * 2) if marks else (0.1, 1000.0)


def _roof_line(name: str, provenance: str, roof: Roof, least: float, most: float) -> RoofLine | None:
    """None where neither side is known; a single side is a line of its own."""
    flops, bandwidth = roof.flop_per_s, roof.bandwidth_bytes_per_s
    told = [f"{bandwidth / 1e9:.4g} GB/s"] if bandwidth else []
    told += [f"{si(flops)}FLOP/s"] if flops else []
    if not told:
        return None
    balance = flops / bandwidth if flops and bandwidth else least
    at = tuple(sorted({least, most} | ({balance} if least < balance < most else set())))

    def allowed(operations_per_byte: float) -> float:
        sides = [operations_per_byte * bandwidth] if bandwidth else []
        return min([*sides, flops] if flops else sides)

    return RoofLine(
        run=name,
        provenance=provenance,
        label=f"{provenance} roof: {', '.join(told)}",
        operations_per_byte=at,
        flop_per_s=tuple(map(allowed, at)),
    )


def under_roofs(runs: Mapping[str, Run]) -> tuple[dict[str, tuple[Point, ...]], list[RoofLine]]:
    """The points of each run, and the roofs of all over the ops:bytes that they span."""
    shown = {name: points(name, run) for name, run in runs.items()}
    span = ops_span([(run, shown[name]) for name, run in runs.items()])
    return shown, [line for name, run in runs.items() for line in roof_lines(name, run, span)]


def gap_lines(name: str, run: Run) -> tuple[GapLine, ...]:
    """A line for each context that has gaps."""
    contexts = sorted({gap.context for gap in run.gaps})
    return tuple(
        GapLine(
            run=name,
            context=context,
            gaps=tuple(
                sorted((gap for gap in run.gaps if gap.context == context), key=lambda gap: gap.batch)
            ),
        )
        for context in contexts
    )


def output_parts(gaps: Sequence[Gap]) -> tuple[str, ...]:
    """The parts that any output token's time is made of, the known ones first."""
    found = dict.fromkeys(part for gap in gaps for part in gap.output_parts_s)
    return (*(part for part in OUTPUT_PARTS if part in found), *(p for p in found if p not in OUTPUT_PARTS))
