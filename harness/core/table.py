"""One table type, rendered as text for a terminal, CSV, Markdown, HTML and rows for JSON.

A table holds plain values; its columns say how each is shown. Text may come from a user's file, so every
renderer passes it through `printable`: control characters become spaces, and no text begins a line of its
own, ends its cell or becomes markup.
"""

import csv
import html
import io
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import groupby
from typing import Any, Self

import click

from .errors import printable
from .units import number

TERMINAL_COLUMNS = 80
BETWEEN_COLUMNS = 2
MIN_TEXT_COLUMNS = 6
LONG_TEXT_CHARACTERS = 32

wide_option = click.option(
    "--wide", is_flag=True, help="Show all columns of the tables; without it, tables fit 80 characters."
)
"""The option `--wide` of a command that prints tables; its value goes to `Table.text`."""


def _shown(value: Any) -> str:
    """A value as text: a dash for no text, yes or no, numbers as `units.number` writes them."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return number(value) if isinstance(value, float) else str(value) or "-"


percent = "{:.0%}".format
"""A share as a whole percentage."""


def markdown_escaped(text: str) -> str:
    """Text in one line in which nothing is markup, neither of HTML nor of Markdown."""
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(printable(text), quote=False))


def html_escaped(text: str) -> str:
    """Text in one line in which nothing is markup of HTML."""
    return html.escape(printable(text))


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        heading: text above the column, with the unit unless `show` writes it.
        name: name in CSV and JSON, with its unit, such as "median_s"; empty means the heading.
        provenance: origin of its figures, such as "measured"; empty for a column that only names a row.
        show: formats a value other than None.
        wide: whether a terminal shows it only with `--wide`.
        interval: whether its values are pairs, the lower and upper bound of an interval; CSV and JSON have a
            column for each, whose names end in `_low` and `_high`.
    """

    heading: str
    name: str = ""
    provenance: str = ""
    show: Callable[[Any], str] = _shown
    wide: bool = False
    interval: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of its columns in CSV and JSON: one, or two of an interval."""
        return (f"{self.key}_low", f"{self.key}_high") if self.interval else (self.key,)

    def values(self, value: Any) -> tuple[Any, ...]:
        """A value as those columns hold it."""
        if not self.interval:
            return (value,)
        low, high = (None, None) if value is None else value
        return low, high

    @property
    def key(self) -> str:
        """The name in CSV and JSON after its provenance, such as "measured_median_s"."""
        return "_".join((*self.provenance.replace(",", "").split(), self.name or self.heading))

    def text(self, value: Any) -> str:
        """A value as text in one line; a dash where there is none."""
        if value is None:
            return "-"
        return printable(" to ".join(map(self.show, self.values(value))))


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of plain values, one per column; None where a row has no value.

    Attributes:
        title: text above the table.
        id: name of the table in files and links.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]
    title: str = ""
    id: str = ""

    @classmethod
    def select(cls, title: str, columns: Mapping[str, Column], rows: Iterable[Mapping[str, Any]]) -> Self:
        """A table of the rows' values under the keys of the columns."""
        cells = tuple(tuple(row[key] for key in columns) for row in rows)
        return cls(title=title, columns=tuple(columns.values()), rows=cells)

    def text(self, *, wide: bool = False) -> str:
        """For a terminal: within 80 characters unless `wide`, which shows all columns and wraps nothing.

        Words of a heading above numbers are broken only where the table would not fit otherwise.
        Columns without any value are left out. Numbers stand at the right. Where the first column is wrapped,
        consecutive rows with the same value in it show it once.
        """
        from tabulate import tabulate  # noqa: PLC0415  (slow to load, and `--help` shows no table)

        table = _with_values(self, [column for column in self.columns if wide or not column.wide])
        if not table.rows:
            return "\n".join(filter(None, (printable(self.title), "(none)")))
        numeric = [_is_numeric(table, at) for at in range(len(table.columns))]
        cells = _texts(table)
        widths = [
            max(map(len, ([column.heading] if wide else column.heading.split()) + [row[at] for row in cells]))
            for at, column in enumerate(table.columns)
        ]
        if not wide:
            min_widths = [
                _min_width(column.heading, [row[at] for row in cells]) if numeric[at] else MIN_TEXT_COLUMNS
                for at, column in enumerate(table.columns)
            ]
            for numbers in (False, True):
                _shrink(widths, {at: min_widths[at] for at, kind in enumerate(numeric) if kind == numbers})
            cell_widths = [max(len(row[at]) for row in cells) for at in range(len(table.columns))]
            _shrink(widths, {at: cell_widths[at] for at, is_number in enumerate(numeric) if is_number})
        wrapped = [[_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)] for row in cells]
        if any(len(row[0]) > 1 for row in wrapped):
            wrapped = list(_merged(wrapped))
        headings = [
            _wrapped(column.heading, width, indent="", word=r"[^ ]* |[^ ]+")
            for column, width in zip(table.columns, widths, strict=True)
        ]
        grid = tabulate(
            [["\n".join(cell) for cell in row] for row in (headings, *wrapped)],
            tablefmt="plain",  # its head is a row like any other, without padding
            colalign=["right" if is_number else "left" for is_number in numeric],
            disable_numparse=True,
        )
        lines = [line.rstrip() for line in grid.splitlines()]
        head_lines = max(map(len, headings))
        columns = zip(headings, *wrapped, strict=True)
        widths = [max(len(line) for cell in column for line in cell) for column in columns]
        rule = (" " * BETWEEN_COLUMNS).join("-" * width for width in widths)
        return "\n".join((*_captions(table, wide=wide), *lines[:head_lines], rule, *lines[head_lines:]))

    def csv(self) -> str:
        """Comma-separated values with all digits, under the keys of the columns."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_csv_value(key) for column in self.columns for key in column.keys)
        writer.writerows(map(_csv_value, self._values(row)) for row in self.rows)
        return text.getvalue().removesuffix("\n")

    def markdown(self) -> str:
        """A Markdown table of all columns that hold a value."""
        table = _with_values(self, self.columns)
        if not table.rows:
            return "None."
        heads = [f"{c.heading} ({c.provenance})" if c.provenance else c.heading for c in table.columns]
        rules = ["---:" if _is_numeric(table, at) else "---" for at in range(len(heads))]
        lines = [map(markdown_escaped, heads), rules, *(map(markdown_escaped, row) for row in _texts(table))]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def html(self) -> str:
        """An HTML table of all columns that hold a value; each head has a button to sort by."""
        table, title = _with_values(self, self.columns), html_escaped(self.title)
        heads = (
            f"<span>{html_escaped(c.heading)}</span>"
            + (f"<small>{html_escaped(c.provenance)}</small>" if c.provenance else "")
            for c in table.columns
        )
        head = "".join(f'<th scope="col"><button type="button">{inner}</button></th>' for inner in heads)
        body = "".join(
            f"<tr>{''.join(_html_cell(*pair) for pair in zip(table.columns, row, strict=True))}</tr>\n"
            for row in table.rows
        )
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table>'
            f'<caption class="unseen">{title}; press a column\'s head to sort by it</caption>'
            f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
        )

    def json_rows(self) -> list[dict[str, Any]]:
        """The rows as JSON objects, under the keys of the columns."""
        keys = [key for column in self.columns for key in column.keys]
        return [dict(zip(keys, self._values(row), strict=True)) for row in self.rows]

    def _values(self, row: Sequence[Any]) -> Iterator[Any]:
        """The values of a row as CSV and JSON hold them."""
        for column, value in zip(self.columns, row, strict=True):
            yield from column.values(value)


def _with_values(table: Table, columns: Sequence[Column]) -> Table:
    """The table with those of the columns that hold a value in any row."""
    kept = [
        at
        for at, column in enumerate(table.columns)
        if column in columns and any(row[at] not in (None, "") for row in table.rows)
    ]
    return replace(
        table,
        columns=tuple(table.columns[at] for at in kept),
        rows=tuple(tuple(row[at] for at in kept) for row in table.rows),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _is_numeric(table: Table, at: int) -> bool:
    return all(row[at] is None or _is_number(row[at]) for row in table.rows)


def _texts(table: Table) -> list[list[str]]:
    return [[c.text(value) for c, value in zip(table.columns, row, strict=True)] for row in table.rows]


def _captions(table: Table, *, wide: bool) -> Iterator[str]:
    """The title, and the provenance of the columns: beside the title where all have the same."""
    by_provenance: dict[str, list[str]] = {}
    for column in table.columns:
        if column.provenance:
            by_provenance.setdefault(column.provenance, []).append(column.heading)
    title = printable(table.title)
    if len(by_provenance) == 1 and title:
        lines = [f"{title} ({next(iter(by_provenance))})"]
    else:
        lines = [title] if title else []
        lines += (f"{provenance}: {', '.join(headings)}" for provenance, headings in by_provenance.items())
    for line in lines:
        yield prose(line, wide=wide)


def prose(text: str, *, wide: bool) -> str:
    """The lines of a text; without `wide`, a line longer than a terminal's goes on in indented lines."""
    if wide:
        return text
    return "\n".join(
        textwrap.fill(line, TERMINAL_COLUMNS, subsequent_indent="  ", break_on_hyphens=False)
        for line in text.splitlines()
    )


def _shrink(widths: list[int], min_widths: Mapping[int, int]) -> None:
    """Narrow the widest of some columns until the table fits a terminal, none below its minimum."""
    for _ in range(sum(widths) + BETWEEN_COLUMNS * (len(widths) - 1) - TERMINAL_COLUMNS):
        widest = max(
            (at for at in min_widths if widths[at] > min_widths[at]), key=lambda at: widths[at], default=None
        )
        if widest is None:
            return
        widths[widest] -= 1


def _min_width(heading: str, cells: Sequence[str]) -> int:
    """The width of a column whose heading is broken after hyphens too, and no cell is broken."""
    return max(map(len, (*re.findall(r"[^ -]+-?", heading), *cells)))


def _wrapped(text: str, width: int, *, indent: str = " ", word: str = r"[^ /]*[ /]|[^ /]+") -> list[str]:
    """Lines of at most `width` characters, broken after a word; longer words after a hyphen too.

    A word ends with a space or a slash, or is what the expression `word` says. All lines but the first are
    indented, so that no line of a terminal begins with text of a file.
    """
    lines, most = [""], width - len(indent)
    for each in re.findall(word, text):
        parts = re.findall(rf"[^-]{{0,{most - 1}}}-|[^-]{{1,{most}}}", each)
        for part in [each] if len(each.rstrip()) <= most else parts:
            if len((lines[-1] + part).rstrip()) > width:
                lines.append(indent)
            lines[-1] += part
    return [line.rstrip() for line in lines]


def _merged(rows: Sequence[list[list[str]]]) -> Iterator[list[list[str]]]:
    """Rows of wrapped cells; successive rows with the same first cell become one row."""
    for first, same in groupby(rows, key=lambda row: row[0]):
        others: list[list[str]] = [[] for _ in rows[0][1:]]
        for row in same:
            height = max(map(len, row[1:]), default=0)
            for column, cell in zip(others, row[1:], strict=True):
                column += [*cell, *[""] * (height - len(cell))]
        yield [first, *others]


def _csv_value(value: Any) -> Any:
    """A value; text that a spreadsheet would take for a formula has an apostrophe before it."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _html_cell(column: Column, value: Any) -> str:
    if value is None:
        return "<td data-none>-</td>"
    text = html.escape(column.text(value))
    if _is_number(value):
        return f'<td class="number" data-value="{value}">{text}</td>'
    return f'<td class="{"long" if len(text) > LONG_TEXT_CHARACTERS else "key"}">{text}</td>'
