"""The tables of a run, as text."""

from collections.abc import Iterable, Mapping, Sequence

from tabulate import tabulate

from .records import COUNTER_NAMES, Ceiling, Row, Run
from .table import Table
from .units import number, seconds, si

CEILING_NAMES = {"read_bandwidth": "read bandwidth", "copy_bandwidth": "copy bandwidth", "matmul": "matmul"}


def ceilings_table(run: Run) -> str:
    """Every ceiling, measured beside the datasheet's."""
    datasheet = {(c.kind, c.dtype): c for c in run.ceilings if c.provenance == "datasheet"}
    rows = []
    for ceiling in run.ceilings:
        if ceiling.provenance != "measured":
            continue
        name = " ".join(filter(None, (ceiling.dtype, CEILING_NAMES[ceiling.kind])))
        sheet = datasheet.get((ceiling.kind, ceiling.dtype))
        rows.append((name, _rate(ceiling), _rate(sheet) if sheet else "-", ceiling.reason or ceiling.detail))
    return _table("Ceilings", ("ceiling", "measured", "datasheet", "how it was measured"), rows)


def kernels_table(run: Run) -> str:
    """Every row that was timed, and a line for each reason why others were not."""
    headers = (
        "case", "provider", "operations", "bytes", "ops:bytes", "median", "95% interval",
        "FLOP/s", "GB/s", "bound", "of measured", "of datasheet",
    )  # fmt: skip
    rows = [_kernel_row(run, row) for row in run.rows if row.status == "ok"]
    table = _table("Kernels (measured)", headers, rows)
    throttled = [f"throttled: {row.case.id} {row.provider}: {', '.join(row.throttle_reasons)}"
                 for row in run.rows if row.throttle_reasons]  # fmt: skip
    return "\n".join([table, *throttled, *_not_timed(run.rows)])


def _kernel_row(run: Run, row: Row) -> tuple[str, ...]:
    work, time_s = row.case.work(), row.time_s
    measured = run.measured.least_time_s(work)
    datasheet = run.datasheet.least_time_s(work)
    return (
        row.case.id,
        provider_name(row),
        si(work.operations),
        si(work.bytes_total),
        f"{work.operations_per_byte:.3g}",
        seconds(time_s.median),
        f"{seconds(time_s.low)} to {seconds(time_s.high)}",
        si(work.operations / time_s.median),
        f"{work.bytes_total / time_s.median / 1e9:.4g}",
        measured[1] if measured else "-",
        f"{measured[0] / time_s.median:.0%}" if measured else "-",
        f"{datasheet[0] / time_s.median:.0%}" if datasheet else "-",
    )


def counters_table(run: Run) -> str:
    """What hardware counters told of rows, beside the bytes that they cannot do without, and why of no more.

    Empty where a run was not asked for them.
    """
    headers = (
        "case", "provider", "bytes (modelled)", "DRAM read", "DRAM written", "DRAM/modelled", "matrix units",
    )  # fmt: skip
    rows = [
        (row.case.id, provider_name(row), *_counters(row.counters, row.case.work().bytes_total))
        for row in run.rows
        if row.counters is not None
    ]
    lines = [_table("Hardware counters (measured)", headers, rows)] if rows else []
    if run.counters_reason is not None:
        which = "of other rows " if rows else ""
        lines.append(f"Hardware counters {which}were not read: {run.counters_reason}")
    return "\n".join(lines)


def _counters(counters: Mapping[str, float], modelled: int) -> tuple[str, ...]:
    read, written, active = (counters[name] for name in COUNTER_NAMES)
    return si(modelled), si(read), si(written), f"{(read + written) / modelled:.3g}", f"{active:.0%}"


def provider_name(row: Row) -> str:
    """The provider, the form of it that ran, and whether a tuned tiling cut it."""
    variant = (row.variant or "").replace("_", "-")
    told = f" ({variant})" if not row.provider.endswith(variant) else ""
    return f"{row.provider}{told}" + ("" if row.tiling is None else ", tuned")


def _not_timed(rows: Sequence[Row]) -> Iterable[str]:
    """Failed rows one by one; other rows without figures by provider, status and reason."""
    counts: dict[str, int] = {}
    for row in rows:
        if row.status == "failed":
            yield f"FAILED: {row.case.id} {provider_name(row)}: {row.reason}"
        elif row.status != "ok":
            line = f"{row.status}: {row.provider}: {row.reason}"
            counts[line] = counts.get(line, 0) + 1
    yield from (f"{line} ({count} {'row' if count == 1 else 'rows'})" for line, count in counts.items())


def gap_table(run: Run) -> str:
    """What an input and an output token take and cost, at each batch and context."""
    priced = any(gap.usd_per_hour is not None for gap in run.gaps)
    triton = any(gap.triton_gap is not None for gap in run.gaps)
    headers = [
        "batch", "context", "prompt", "input tokens/s", "output tokens/s", "gap",
        *(["gap, Triton alone"] if triton else []),
        *(["$ per 1M input", "$ per 1M output"] if priced else []),
        "providers",
        "layer over parts, prefill", "decode",
    ]  # fmt: skip
    rows = [
        (
            gap.batch,
            gap.context,
            gap.prompt,
            number(1 / gap.input_s_per_token),
            number(1 / gap.output_s_per_token),
            f"{gap.gap:.2f}",
            *([_ratio(gap.triton_gap)] if triton else []),
            *(
                [
                    number(gap.usd_per_mtok(gap.input_s_per_token) or 0),
                    number(gap.usd_per_mtok(gap.output_s_per_token) or 0),
                ]
                if priced
                else []
            ),
            ", ".join(sorted(set(gap.providers.values()))),
            _ratio(gap.prefill_layer_over_parts),
            _ratio(gap.decode_layer_over_parts),
        )
        for gap in run.gaps
    ]
    table = _table("Gap: device seconds per output token over seconds per input token", headers, rows)
    return "\n".join([table, *_fastest(run), *missing_gaps(run)])


def missing_gaps(run: Run) -> Iterable[str]:
    """The batches and contexts that have no gap, because a case of theirs has no ok row."""
    found = {(gap.batch, gap.context) for gap in run.gaps}
    for batch in run.settings.get("batches", ()):
        for context in run.settings.get("contexts", ()):
            if (batch, context) not in found:
                yield f"no gap at batch {batch} and context {context}: a case of it has no ok row"


def _fastest(run: Run) -> Iterable[str]:
    """Which provider each part of the gap was taken from, where there was a choice."""
    chosen: dict[str, set[str]] = {}
    for gap in run.gaps:
        for case, provider in gap.providers.items():
            phase, part = case.split("/")[:2]
            chosen.setdefault(f"{phase} {part}", set()).add(provider)
    if chosen:
        parts = "; ".join(f"{part}: {', '.join(sorted(names))}" for part, names in chosen.items())
        yield f"fastest correct provider: {parts}"


def interpreter_table(run: Run) -> str:
    """Whether the Triton kernels agree with the oracle in the interpreter; no times."""
    rows = [
        (
            check.case.id,
            check.provider,
            "agrees" if check.status == "ok" else check.status.upper(),
            "-" if check.relative_error is None else f"{check.relative_error:.2g}",
            "-" if check.tolerance is None else f"{check.tolerance:.2g}",
            check.reason or "",
        )
        for check in run.interpreter_checks
    ]
    headers = ("case", "provider", "against the oracle", "relative error", "at most", "why")
    return _table("Triton kernels in the interpreter (results alone, no times)", headers, rows)


def plain_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of data as they are, headed by their keys."""
    return Table.of(rows).text(wide=True)


def _table(title: str, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return f"{title}\n(none)"
    return f"{title}\n{tabulate(rows, headers=headers, disable_numparse=True)}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _rate(ceiling: Ceiling) -> str:
    if ceiling.bandwidth_bytes_per_s is not None:
        return f"{ceiling.bandwidth_bytes_per_s / 1e9:.4g} GB/s"
    return f"{si(ceiling.flop_per_s)}FLOP/s" if ceiling.flop_per_s is not None else "-"
