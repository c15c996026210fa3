"""README and docs agree with the commands and the run files."""

import json
import os
import re
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import CliRunner
from decodetax.harness.bench import gap_tables, summary
from decodetax.harness.cli import cli
from decodetax.harness.core.run_file import read_run
from decodetax.harness.cost.price_names import prices_of_served_model
from decodetax.harness.cost.prices import price_list

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
RUN_BLOCK = re.compile(r"<!-- from (?P<file>\S+\.json) -->\n```text\n(?P<text>.*?)```", re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_pages_exist(page):
    text = re.sub(r"(?s)```.*?```", "", page.read_text(encoding="utf-8"))
    links = re.findall(r"\[[^\]()]*\]\((?!https?:)([^)#]+)", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing
    for place, anchor in re.findall(r"\]\((?!https?:)([^)#]*\.md)?#([^)]+)\)", text):
        assert anchor in anchors(page.parent / place if place else page), (place, anchor)


def anchors(page):
    """The headings of a page, as GitHub links to them."""
    text = re.sub(r"(?s)```.*?```", "", page.read_text(encoding="utf-8"))
    headings = (re.sub(r"[^\w -]", "", heading.lower()) for heading in re.findall(r"(?m)^#+ (.*)$", text))
    return {heading.replace(" ", "-") for heading in headings}


def test_method_page_shows_what_the_run_file_holds():
    block = RUN_BLOCK.search((ROOT / "docs" / "method.md").read_text(encoding="utf-8"))
    assert block is not None
    run = read_run(ROOT / block["file"])
    shown = [
        summary.heading(run),
        summary.workload(run),
        gap_tables.gaps_table({"": run}).text(),
        "\n".join(summary.sentences(run)),
    ]
    assert block["text"].split() == "\n".join(shown).split()


def attention_shares(run):
    """Markdown: the share of the read bandwidth that each provider of decode attention reaches."""
    rows = [row for row in run.rows if row.case.operation == "decode_attention" and row.status == "ok"]
    providers = list(dict.fromkeys(row.provider for row in rows))
    lines = [["batch", "context", *providers], ["---"] * (2 + len(providers))]
    for case in dict.fromkeys(row.case for row in rows):
        shares = {row.provider: run.share_of_ceiling(row) for row in rows if row.case == case}
        figures = [f"{shares[name]:.0%}" if name in shares else "-" for name in providers]
        lines.append([str(case.batch), f"{case.capacity:,}", *figures])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def test_method_page_shows_the_decode_attention_of_the_run_file():
    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- decode attention of (\S+) -->\n((?:\|.*\n)*)", page)
    assert block is not None
    assert block[2] == attention_shares(read_run(ROOT / block[1]))


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_readme_gap_table_is_what_predict_and_the_run_file_give(page):
    mark = re.search(
        r"<!-- gap table: --context (\d+) --dtype bf16, (\S+), (\S+) -->",
        (ROOT / "README.md").read_text(encoding="utf-8"),
    )
    context, model, run_file = int(mark[1]), mark[2], mark[3]
    rows = re.findall(r"(?m)^\| (\d+) \| (.*) \|$", (ROOT / page).read_text(encoding="utf-8"))
    columns = {
        gpu: {row["batch"]: row["gap"] for row in predictions(model, gpu, context)}
        for gpu in ("h100", "h200")
    }
    run = read_run(ROOT / run_file)
    columns["measured"] = {gap.batch: gap.gap for gap in run.gaps if gap.context == context}
    expected = [
        (
            str(batch),
            " | ".join(f"{column[batch]:.3g}" if batch in column else "-" for column in columns.values()),
        )
        for batch in (1, 8, 32, 128)
    ]
    assert rows == expected


def predictions(model, gpu, context):
    options = ["--model", model, "--gpu", gpu, "--batch", "1,8,32,128", "--context", str(context), "--json"]
    return json.loads(CliRunner().invoke(cli, ["predict", *options]).stdout)["predictions"]


def test_claims_page_shows_what_the_command_prints(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- claims of (?P<file>\S+) -->\n```text\n(?P<text>.*?)```", page, re.DOTALL)
    assert block is not None
    assert CliRunner().invoke(cli, ["claims", block["file"]]).stdout == block["text"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_marked_blocks_are_in_the_output_of_their_command(page):
    text = page.read_text(encoding="utf-8")
    for arguments, block in re.findall(r"(?s)<!-- in decodetax ([^>]+) -->\n```text\n(.*?)```", text):
        assert block in CliRunner().invoke(cli, arguments.split()).stdout


def test_command_page_lists_every_command():
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`decodetax ([a-z]+)", text)) == set(cli.commands)


def test_translation_has_the_same_commands():
    def commands(name):
        text = (ROOT / name).read_text(encoding="utf-8")
        return re.findall(r"(?m)`(decodetax [^`]+)`|^    (pip .*)$", text)

    assert commands("README.zh-CN.md") == commands("README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_the_pages_have_the_options_that_are_shown(page):
    text = page.read_text(encoding="utf-8")
    shown = re.findall(r"(?m)^    decodetax ([a-z]+)(.*)$", text)
    shown += re.findall(r"`decodetax ([a-z]+)([^`]*)`", text)
    for name, rest in shown:
        options = {opt for param in cli.commands[name].params for opt in param.opts} | {"--help"}
        given = set(re.findall(r"(?<![\w-])(--?[a-z][a-z-]*)", rest))
        assert given <= options, (name, given - options)


@pytest.mark.parametrize("run_file", sorted(ROOT.glob("docs/runs/*.json")), ids=lambda path: path.name)
def test_run_files_are_readable_and_came_from_a_clean_commit(run_file):
    result = CliRunner().invoke(cli, ["report", str(run_file)])
    assert result.exit_code == 0
    run = read_run(run_file)
    assert not run.interrupted
    assert not run.failures
    assert re.fullmatch(r"[0-9a-f]{40}", run.environment["commit"])


@pytest.mark.slow
def test_the_example_of_counting_prints_what_the_page_says():
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```\n\nprints `([^`]+)`", page, re.DOTALL)
    assert example is not None
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "example.py"  # Triton reads a kernel's source from its file
        script.write_text(example[1], encoding="utf-8")
        done = subprocess.run(
            [sys.executable, script], env=environment, capture_output=True, text=True, check=True
        )
    assert done.stdout.strip() == example[2]


@pytest.mark.slow
def test_the_counted_figures_of_the_page_are_what_the_command_prints():
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    result = CliRunner().invoke(
        cli, ["count", "--kernel", "decode_attention", "--context", "1000,37", "--json"]
    )
    [row] = json.loads(result.stdout)["rows"]
    tensors = row["tensors"]
    partial = sum(
        tensors[name]["bytes_requested"] + tensors[name]["bytes_written"]
        for name in ("partial", "partial_lse")
    )
    needed = sum(tensor["modelled_work_bytes"] for tensor in tensors.values())
    asked = row["bytes_requested"] + row["bytes_written"]
    figures = [
        f"{tensors['k_cache']['bytes_requested']:,} bytes",
        f"({tensors['q']['bytes_requested']:,} bytes of {tensors['q']['bytes_distinct']:,})",
        f"{row['useful_share_of_operations']:.1%} of the operations",
        f"the flash-decoding partials add {partial:,} bytes",
        f"is {asked / needed:.3f} times the minimum",
    ]
    assert [figure for figure in figures if figure not in page] == []


def test_questions_page_states_what_price_computes():
    page = " ".join((ROOT / "docs" / "faq.md").read_text(encoding="utf-8").split())
    [(request, hits, cached, plain)] = re.findall(
        r"`decodetax (price [^`]*?) --cache-hits (\S+)` charges 9,000 tokens at the cached price: "
        r"\$(\S+), and \$(\S+) without",
        page,
    )

    def usd(*arguments):
        outcome = CliRunner().invoke(cli, [*request.split(), *arguments, "--json"])
        return Decimal(json.loads(outcome.stdout)["usd"])

    assert usd("--cache-hits", hits) == Decimal(cached)
    assert usd() == Decimal(plain)
    assert "a ratio of 1 for llama-3.1-8b, by one provider" in page
    [own] = prices_of_served_model("llama-3.1-8b", price_list())
    assert own.output_over_input == 1
