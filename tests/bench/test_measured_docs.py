"""What the scripts that are run by hand measured stands in the docs as they print it."""

import json
from pathlib import Path

import aa_runs
import busy_runs
import pytest
from msgspec import convert

DOCS = Path(__file__).resolve().parents[2] / "docs"
SCRIPTS = {
    "pairs.json": (aa_runs.Report, aa_runs.text_of),
    "busy.json": (list[busy_runs.BusyRun], busy_runs.text_of),
}
"""Files of docs/measured, which the scripts write with --json."""


@pytest.mark.parametrize("file", sorted(DOCS.glob("measured/*.json")), ids=lambda file: file.name)
def test_results_in_the_docs_are_those_of_the_files(file):
    kind, text_of = SCRIPTS[file.name]
    text = text_of(convert(json.loads(file.read_text(encoding="utf-8")), kind))
    assert f"```text\n{text}\n```" in (DOCS / "method.md").read_text(encoding="utf-8")
