"""A report of runs as one HTML file that fetches nothing: style, scripts, plotly and data are inside.

All text of a file is escaped. A content security policy allows only the two scripts named by their hash and
no request at all.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import chain
from string import Template

from plotly.offline import get_plotlyjs

from ..core.html_page import content_security_policy, page_style
from ..core.records import Run
from ..core.table import Table, html_escaped
from .chart_data import PriceRatio
from .fleet import Fleet
from .html_charts import charts
from .html_fleet_chart import fleet_chart
from .plotly_figure import Chart
from .run_tables import run_tables
from .scaling import devices_text
from .summary import fastest_providers, heading, missing_from, sentences, workload
from .trust import warnings_of

FOLDED_TABLES = frozenset(
    {"kernels", "one_rank_kernels", "collectives", "not_timed", "interpreter_checks", "environment"}
)


def html_report(runs: Mapping[str, Run], ratios: Sequence[PriceRatio], fleet: Fleet | None = None) -> str:
    """The page, from the template `assets/report.html`.

    Args:
        runs: runs by the name to show.
        ratios: API price ratios to compare the gap with.
        fleet: the fleet that the page begins with.
    """
    drawn = charts(runs, ratios)
    of_fleet = [fleet_chart(series)] if fleet is not None and (series := fleet.series()) else []
    plotly, script = get_plotlyjs(), _asset("report.js")
    devices = ", ".join(dict.fromkeys(map(devices_text, runs.values())))
    data = ",".join(f"{json.dumps(chart.id)}:{chart.figure}" for chart in (*of_fleet, *drawn))
    opening = _opening(fleet, of_fleet) if fleet is not None else ()
    answers = (_answer(name if len(runs) > 1 else "", run) for name, run in runs.items())
    page = Template(_asset("report.html")).substitute(
        policy=content_security_policy(plotly, script, images="data: blob:"),  # plotly saves images
        title=html_escaped(f"What an output token costs: {fleet.title if fleet is not None else devices}"),
        style=page_style() + _asset("report.css"),
        answers="\n".join((*opening, *chain.from_iterable(answers))),
        charts="\n".join(chain.from_iterable(map(_figure, drawn))),
        tables="\n".join(chain.from_iterable(map(_section, run_tables(runs, ratios)))),
        data=f"{{{data}}}",
        plotly=plotly,
        script=script,
    )
    return page.removesuffix("\n")


def _asset(name: str) -> str:
    return files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


def _opening(fleet: Fleet, charts_of_fleet: Sequence[Chart]) -> Iterator[str]:
    """The table of a fleet, what it lacks, and its chart."""
    yield from _section(fleet.table())
    if notes := fleet.notes():
        items = "".join(f"<li>{html_escaped(note)}</li>" for note in notes)
        yield f'<div class="missing"><b>About these runs</b><ul>{items}</ul></div>'
    yield from chain.from_iterable(map(_figure, charts_of_fleet))


def _answer(name: str, run: Run) -> Iterator[str]:
    """The run's results in sentences, what it lacks, and its device and workload."""
    if name:
        yield f"<h2>{html_escaped(name)}</h2>"
    if answers := list(sentences(run)):
        yield f'<div class="answer">{"".join(f"<p>{html_escaped(line)}</p>" for line in answers)}</div>'
    for title, lines in (
        ("Not to be trusted", warnings_of(run)),
        ("What is missing", list(missing_from(run))),
    ):
        if lines:
            items = "".join(f"<li>{html_escaped(line)}</li>" for line in lines)
            yield f'<div class="missing"><b>{title}</b><ul>{items}</ul></div>'
    facts = "\n".join(map(html_escaped, (*heading(run).splitlines(), workload(run))))
    yield f'<p class="facts">{facts}</p>'
    if fastest := html_escaped(fastest_providers(run)):
        yield f'<details><summary>Providers</summary><p class="notes">{fastest}</p></details>'


def _figure(chart: Chart) -> Iterator[str]:
    """A chart, its sentence for readers who cannot see it, and a link to its table."""
    title = html_escaped(chart.title)
    low = " low" if chart.id.startswith("heat") else ""
    yield f'<section class="figure" aria-labelledby="{chart.id}-title">'
    yield f'<h2 id="{chart.id}-title">{title}</h2>'
    yield (
        f'<p class="provenance">Provenance: {html_escaped(chart.provenance)}. '
        f'<a href="#{chart.table}">Its numbers as a table</a></p>'
    )
    sentence = html_escaped(chart.sentence)
    yield f'<div class="plot{low}" id="{chart.id}" role="img" aria-label="{title}. {sentence}"></div>'
    yield f'<details><summary>In words</summary><p class="notes">{sentence}</p></details>'
    yield "</section>"


def _section(table: Table) -> Iterator[str]:
    yield f'<section><h2 id="{table.id}">{html_escaped(table.title)}</h2>'
    if not table.rows:
        yield "<p>None.</p>"
    elif table.id in FOLDED_TABLES:
        count = "1 row" if len(table.rows) == 1 else f"{len(table.rows):,} rows"
        yield f"<details><summary>{count}</summary>{table.html()}</details>"
    else:
        yield table.html()
    yield "</section>"
