"""What README and docs say is what the project does."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from decodetax.harness.accounting.run_file import read_run
from decodetax.harness.cli import cli
from decodetax.harness.reporting import summary, tables

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
RUN_BLOCK = re.compile(r"<!-- from (?P<file>\S+\.json) -->\n```text\n(?P<text>.*?)```", re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_the_readme_shows_what_its_run_file_holds():
    block = RUN_BLOCK.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert block is not None
    run = read_run(ROOT / block["file"])
    shown = [
        summary.heading(run),
        summary.workload(run),
        tables.gap_table(run),
        "\n".join(summary.sentences(run)),
    ]
    assert block["text"].split() == "\n".join(shown).split()


def test_every_command_of_the_readme_exists_and_none_is_left_out():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`decodetax ([a-z]+)", text)) == set(cli.commands)


@pytest.mark.parametrize("run_file", sorted(ROOT.glob("docs/runs/*.json")), ids=lambda path: path.name)
def test_run_files_are_readable_and_came_from_a_clean_commit(run_file):
    result = CliRunner().invoke(cli, ["report", str(run_file)])
    assert result.exit_code == 0
    run = read_run(run_file)
    assert not run.interrupted
    assert not run.failures
    assert re.fullmatch(r"[0-9a-f]{40}", run.environment["commit"])
