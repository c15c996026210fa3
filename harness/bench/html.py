"""A report of runs as one HTML file that fetches nothing: style, script, plotly and data stand in it.

All text that came from a file is escaped, and a content security policy lets no script run but the two that
are named by their hash, and nothing be fetched at all.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from plotly.offline import get_plotlyjs

from ..core.records import Run
from .drawing import Drawing
from .figures import drawings
from .missing import missing_from
from .report_tables import Column, DataTable, all_tables, without_empty_columns
from .series import PriceRatio
from .summary import heading, sentences, workload

LONG_TEXT_CHARACTERS = 32
FOLDED_TABLES = frozenset({"kernels", "not_timed", "interpreter_checks", "environment"})
PROVENANCES = (
    ("measured", "timed on the device named above"),
    ("modelled", "computed from shapes: the least operations and bytes that a case needs"),
    ("datasheet", "the maker's figure"),
    ("published", "somebody else's figure, such as the price of an API"),
)


def html_report(runs: Mapping[str, Run], ratios: Sequence[PriceRatio]) -> str:
    """The page.

    Args:
        runs: by the name that each is shown by.
        ratios: of API prices, to set the gap against.
    """
    found = drawings(runs, ratios)
    plotly, script = get_plotlyjs(), _asset("report.js")
    devices = ", ".join(dict.fromkeys(str(run.environment["device"]["name"]) for run in runs.values()))
    title = f"What an output token costs: {devices}"
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(plotly, script)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>",
            f"<style>{_asset('report.css')}</style>",
            "</head>",
            "<body>",
            f"<header><h1>{escape(title)}</h1></header>",
            "<main>",
            *(part for name, run in runs.items() for part in _answer(name, run, several=len(runs) > 1)),
            "<noscript><p>The figures need JavaScript; the tables hold the same numbers.</p></noscript>",
            *(part for drawing in found for part in _figure(drawing)),
            *(part for table in all_tables(runs, ratios) for part in _section(without_empty_columns(table))),
            "</main>",
            "<footer><h2>Where figures come from</h2><ul>",
            *(f"<li><b>{name}</b>: {meaning}</li>" for name, meaning in PROVENANCES),
            "</ul></footer>",
            f'<script type="application/json" id="drawings">{_data(found)}</script>',
            f"<script>{plotly}</script>",
            f"<script>{script}</script>",
            "</body>",
            "</html>",
        )
    )


def _asset(name: str) -> str:
    return files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


def _policy(*scripts: str) -> str:
    """Nothing is fetched, and only these scripts run; plotly adds style of its own and saves images."""
    hashes = (
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii") for script in scripts
    )
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _data(found: Sequence[Drawing]) -> str:
    """The figures by the name of their element; no tag stands in their JSON, nor in those names."""
    return "{" + ",".join(f"{json.dumps(drawing.name)}:{drawing.figure}" for drawing in found) + "}"


def _answer(name: str, run: Run, *, several: bool) -> Iterator[str]:
    """What the run says in sentences, what it lacks, and what it ran on."""
    if several:
        yield f"<h2>{escape(name)}</h2>"
    if told := list(sentences(run)):
        yield f'<div class="answer">{"".join(f"<p>{escape(sentence)}</p>" for sentence in told)}</div>'
    if lacking := list(missing_from(run)):
        items = "".join(f"<li>{escape(sentence)}</li>" for sentence in lacking)
        yield f'<div class="missing"><b>What is missing</b><ul>{items}</ul></div>'
    yield f'<p class="facts">{escape(heading(run))}\n{escape(workload(run))}</p>'


def _figure(drawing: Drawing) -> Iterator[str]:
    """A figure with its sentence, which those read who cannot see it, and the way to its table."""
    name = drawing.name
    low = " low" if name.startswith("heat") else ""
    yield f'<section class="figure" aria-labelledby="{name}-title">'
    yield f'<h2 id="{name}-title">{escape(drawing.title)}</h2>'
    yield (
        f'<p class="provenance">Provenance: {escape(drawing.provenance)}. '
        f'<a href="#{drawing.table}">Its numbers as a table</a></p>'
    )
    label = escape(f"{drawing.title}. {drawing.sentence}")
    yield f'<div class="plot{low}" id="{name}" role="img" aria-label="{label}"></div>'
    yield f'<details><summary>In words</summary><p class="notes">{escape(drawing.sentence)}</p></details>'
    yield "</section>"


def _section(table: DataTable) -> Iterator[str]:
    yield f'<section><h2 id="{table.name}">{escape(table.title)}</h2>'
    if not table.rows:
        yield "<p>None.</p>"
    elif table.name in FOLDED_TABLES:
        count = "1 row" if len(table.rows) == 1 else f"{len(table.rows)} rows"
        yield f"<details><summary>{count}</summary>{_table(table)}</details>"
    else:
        yield _table(table)
    yield "</section>"


def _table(table: DataTable) -> str:
    head = "".join(_head(column) for column in table.columns)
    body = "".join(
        f"<tr>{''.join(_cell(*pair) for pair in zip(table.columns, row, strict=True))}</tr>\n"
        for row in table.rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}"><table>'
        f'<caption class="unseen">{escape(table.title)}; press a column\'s head to sort by it</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _head(column: Column) -> str:
    provenance = f"<small>{escape(column.provenance)}</small>" if column.provenance else ""
    return (
        f'<th scope="col"><button type="button"><span>{escape(column.title)}</span>{provenance}</button></th>'
    )


def _cell(column: Column, value: Any) -> str:
    if value is None:
        return "<td data-none>-</td>"
    text = escape(column.text(value))
    if isinstance(value, (int, float)):
        return f'<td class="number" data-value="{value!r}">{text}</td>'
    return f'<td class="{"long" if len(text) > LONG_TEXT_CHARACTERS else "key"}">{text}</td>'
