"""The tables of a report as files of comma-separated values and as Markdown."""

import csv
import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..core.records import Run
from .missing import missing_from
from .report_tables import DataTable, all_tables, without_empty_columns
from .series import PriceRatio
from .summary import heading, sentences, workload

CSV_NAMES = (
    "gaps.csv",
    "output_parts.csv",
    "price_ratios.csv",
    "kernels.csv",
    "not_timed.csv",
    "ceilings.csv",
    "interpreter_checks.csv",
    "environment.csv",
)


def csv_texts(runs: Mapping[str, Run], ratios: Sequence[PriceRatio]) -> dict[str, str]:
    """Every table by its file's name: a column's name holds provenance and unit, figures have all digits."""
    return {f"{table.name}.csv": _csv(table) for table in all_tables(runs, ratios)}


def _csv(table: DataTable) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column.file_name for column in table.columns)
    writer.writerows([_csv_cell(value) for value in row] for row in table.rows)
    return text.getvalue().removesuffix("\n")


def _csv_cell(value: Any) -> Any:
    """A value; text that a spreadsheet would take for a formula has an apostrophe before it."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value


def markdown_text(runs: Mapping[str, Run], ratios: Sequence[PriceRatio]) -> str:
    """What a run says in sentences, what it lacks, and every table that has rows."""
    blocks = ["# What an output token costs"]
    for name, run in runs.items():
        if len(runs) > 1:
            blocks.append(f"## {_escaped(name)}")
        facts = f"{heading(run)}\n{workload(run)}".splitlines()
        blocks.append("\n".join(f"- {_escaped(line)}" for line in facts))
        blocks += [_escaped(sentence) for sentence in sentences(run)]
        if lacking := [_escaped(sentence) for sentence in missing_from(run)]:
            blocks.append("Missing:\n\n" + "\n".join(f"- {sentence}" for sentence in lacking))
    for table in map(without_empty_columns, all_tables(runs, ratios)):
        blocks.append(f"## {_escaped(table.title)}")
        blocks.append("\n".join(_lines(table)) if table.rows else "None.")
    return "\n\n".join(blocks)


def _lines(table: DataTable) -> Iterator[str]:
    heads = (f"{c.title} ({c.provenance})" if c.provenance else c.title for c in table.columns)
    yield _line(map(_escaped, heads))
    numbers = (
        any(isinstance(row[at], (int, float)) for row in table.rows) for at in range(len(table.columns))
    )
    yield _line("---:" if number else "---" for number in numbers)
    for row in table.rows:
        yield _line(_escaped(c.text(value)) for c, value in zip(table.columns, row, strict=True))


def _line(cells: Iterator[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """One line in which nothing is markup, neither of HTML nor of Markdown."""
    line = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", line)
