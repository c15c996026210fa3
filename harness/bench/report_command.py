"""`decodetax report`, and the report files that `decodetax run` can also write."""

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import FailureError, UsageError, path_text
from ..core.files import file_problem, folder_problem, require_writable, written
from ..core.options import complain
from ..core.table import prose, wide_option

if TYPE_CHECKING:
    from ..core.records import Run
    from .chart_data import PriceRatio
    from .fleet import Fleet

OUTPUTS = {
    "html": (
        "FILE",
        "Write charts and tables as one self-contained HTML file; an existing file is replaced.",
    ),
    "markdown": ("FILE", "Write all tables as Markdown."),
    "csv": (
        "DIR",
        "Write each table as a file in this folder: gaps.csv, kernels.csv and others, fleet.csv of a folder.",
    ),
    "png": (
        "DIR",
        "Write roofline.png and gap.png, of a folder fleet.png too, into this folder; needs matplotlib.",
    ),
}
LIBRARIES = {"html": "plotly", "png": "matplotlib"}


def report_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for report files and `--wide` to a command."""
    command = wide_option(command)
    for name, (metavar, text) in reversed(OUTPUTS.items()):
        option = click.option(f"--{name}", type=click.Path(path_type=Path), metavar=metavar, help=text)
        command = option(command)
    return command


class Outputs:
    """The files and folders of a report, by the names of the options that were given.

    Args:
        asked: the values of all options of a command.
    """

    def __init__(self, asked: Mapping[str, Any]) -> None:
        self.places: dict[str, Path] = {name: asked[name] for name in OUTPUTS if asked[name] is not None}

    def require_writable(self, kept: Sequence[Path], fleet: "Fleet | None" = None) -> None:
        """Check all places before anything is read or measured.

        Raises:
            UsageError: a place cannot be written to, is a run file in `kept` or the place of another option,
                or needs a library that is not installed.
        """
        for name, library in LIBRARIES.items():
            if name in self.places and importlib.util.find_spec(library) is None:
                raise UsageError(f"--{name}: needs {library}, which is not installed: pip install {library}")
        taken = {os.path.realpath(path): "a run" for path in kept}
        for name, place in self.places.items():
            files = [place]
            if OUTPUTS[name][0] == "DIR":
                require_writable(name, place, folder_problem)
                files = [place / file for file in _contents(name, {}, (), fleet)]
            for file in files:
                if (other := taken.setdefault(os.path.realpath(file), f"--{name}")) != f"--{name}":
                    raise UsageError(f"--{name}: {str(file)!r} is also the file of {other}; name another")
                if file == place or file.exists():
                    require_writable(name, file, file_problem)

    def write(self, runs: Mapping[str, "Run"], fleet: "Fleet | None" = None) -> Iterator[str]:
        """Write what is asked for, and yield a line about each file.

        Raises:
            FailureError: after the others were written: a file can no longer be written, for instance because
                the disk is full.
        """
        from ..cost.prices import price_list
        from .chart_data import price_ratios

        ratios, problems = price_ratios(price_list()), []
        for name, place in self.places.items():
            for file, content in _contents(name, runs, ratios, fleet).items():
                if content is None:
                    yield f"No {file}: the run has no data for it."
                    continue
                try:
                    yield written("Report", place / file, content)
                except OSError as error:
                    problems.append(f"{path_text(place / file)}: {error.strerror}")
        if problems:
            more = f"; nor were {len(problems) - 1} more files of the report" if len(problems) > 1 else ""
            raise FailureError(f"{problems[0]}; it was not written{more}")


def _contents(
    name: str, runs: Mapping[str, "Run"], ratios: Sequence["PriceRatio"], fleet: "Fleet | None"
) -> Mapping[str, bytes | None]:
    """The files of an option by name; the names do not depend on the runs.

    The single file of `--html` or `--markdown` has an empty name; a chart without data is None.
    """
    if name == "png":
        from .png_charts import fleet_png, png_charts

        of_fleet = {} if fleet is None else {"fleet.png": fleet_png(fleet.series())}
        return {**of_fleet, **png_charts(runs, ratios)}
    if name == "html":
        from .html_report import html_report

        texts = {"": html_report(runs, ratios, fleet)}
    elif name == "markdown":
        texts = {"": markdown_report(runs, ratios, fleet)}
    else:
        from .run_tables import run_tables

        tables = (*([fleet.table()] if fleet is not None else []), *run_tables(runs, ratios))
        texts = {f"{table.id}.csv": table.csv() for table in tables}
    return {file: f"{text}\n".encode() for file, text in texts.items()}


def markdown_report(
    runs: Mapping[str, "Run"], ratios: Sequence["PriceRatio"], fleet: "Fleet | None" = None
) -> str:
    """The fleet, the sentences of each run, what it lacks, and every table, as Markdown."""
    from ..core.table import markdown_escaped
    from .run_tables import run_tables
    from .summary import fastest_providers, heading, missing_from, sentences, workload
    from .trust import warnings_of

    blocks = ["# What an output token costs"]
    if fleet is not None:
        blocks += [f"## {markdown_escaped(fleet.table().title)}", fleet.table().markdown()]
        blocks += map(markdown_escaped, fleet.notes())
    for name, run in runs.items():
        if len(runs) > 1:
            blocks.append(f"## {markdown_escaped(name)}")
        facts = [*heading(run).splitlines(), workload(run), fastest_providers(run)]
        blocks.append("\n".join(f"- {markdown_escaped(fact)}" for fact in facts if fact))
        blocks += map(markdown_escaped, sentences(run))
        for title, lines in (("Not to be trusted", warnings_of(run)), ("Missing", missing_from(run))):
            if listed := "\n".join(f"- {markdown_escaped(line)}" for line in lines):
                blocks.append(f"{title}:\n\n{listed}")
    for table in run_tables(runs, ratios):
        blocks += [f"## {markdown_escaped(table.title)}", table.markdown()]
    return "\n\n".join(blocks)


def run_text(run: "Run", *, wide: bool) -> str:
    """The tables of a run for a terminal, what they show in sentences, what it lacks, and what to doubt."""
    from ..core.gap import TOKEN_PARTS
    from . import gap_tables, rank_tables, run_tables, summary
    from .trust import warnings_of

    runs = {"": run}
    tables = [run_tables.ceilings_table(runs), run_tables.kernels_table(runs)]
    if not wide:  # with --wide the kernels' table has the columns of counters
        tables.append(run_tables.counters_table(run))
    tables += [run_tables.not_timed_summary(run), run_tables.interpreter_table(runs)]
    gaps, whole = gap_tables.gaps_table(runs), gap_tables.whole_model_table(runs)
    parts = gap_tables.output_parts_table(runs)
    in_kinds = any(part not in TOKEN_PARTS for gap in run.gaps for part in gap.output_parts_s)
    blocks = [
        prose(summary.workload(run), wide=wide),
        *(table.text(wide=wide) for table in tables if table.rows),
        "\n".join(summary.failures(run)),
        gaps.text(wide=wide) if gaps.rows else "",
        *(table.text(wide=wide) for table in rank_tables.rank_tables(runs) if table.rows),
        parts.text(wide=wide) if in_kinds else "",
        whole.text(wide=wide) if whole.rows else "",
        summary.fastest_providers(run) if wide else "",
        prose("\n".join(summary.sentences(run)), wide=wide),
        prose("\n".join(summary.missing_from(run)), wide=wide),
        prose("\n".join(f"Not to be trusted: {warning}." for warning in warnings_of(run)), wide=wide),
    ]
    return "\n\n".join(filter(None, blocks))


@click.command("report")
@click.argument("places", type=click.Path(path_type=Path), metavar="RUN.json|DIR...", nargs=-1, required=True)
@report_options
def report_command(places: tuple[Path, ...], wide: bool, **asked: Any) -> None:
    """Print the results of a run, or write them as a report.

    RUN.json is a file of `decodetax run`. Several runs go into one report, each under the name of its file.

    DIR is a folder of such files, of many devices: the report then begins with one table of them all, and a
    chart of dollars against the tokens per second of one user. Without a file to write, the table alone is
    printed.
    """
    from .fleet import Fleet
    from .run_files import is_folder, names_with_folders, read_run_files, run_files, run_names

    of_fleet = any(map(is_folder, places))
    files, outputs = run_files(places), Outputs(asked)
    outputs.require_writable([file.path for file in files], Fleet(runs={}) if of_fleet else None)
    found, left_out = read_run_files(files)
    names = (names_with_folders if of_fleet else run_names)([path for path, _ in found])
    runs = {name: run for name, (_, run) in zip(names, found, strict=True)}
    fleet = Fleet(runs=runs, left_out=left_out) if of_fleet else None
    if outputs.places:
        for line in outputs.write(runs, fleet):
            click.echo(line)
        if fleet is not None and (note := fleet.left_out_note):
            complain(note)
        return
    if fleet is not None:
        click.echo(fleet.text(wide=wide))
        return
    from .summary import heading

    for at, run in enumerate(runs.values()):
        head = prose(heading(run), wide=wide)
        text = f"{head}\n{run_text(run, wide=wide)}"
        click.echo(f"\n{text}" if at else text)
