"""The page of `predict --html` as a file, and the command that writes it."""

import json
import re

import pytest
from decodetax.harness.core.html_page import content_security_policy
from decodetax.harness.cost.page.html_page import COMPONENT_NAMES
from decodetax.harness.cost.part_time import COMPONENTS
from hand_made import decodetax


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opening_of(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="opening">(.*?)</script>', text)[1])


def test_page_opens_with_the_options_of_the_command(folder):
    outcome = decodetax(
        "predict", "--model", "qwen3-8b", "--gpu", "l40s", "--batch", "4,16", "--context", "512",
        "--prompt", "2048",
        "--dtype", "fp8", "--cache-dtype", "fp8", "--tensor-parallel", "2",
        "--usd-per-hour", "1.5", "--engine", "vllm", "--html", "page.html",
    )  # fmt: skip
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == "Page written to page.html.\n"
    assert opening_of(folder / "page.html")["setting"] == {
        "model": "qwen3-8b",
        "gpu": "L40S",
        "parallelism": 1,
        "dtype": "fp8",
        "cache_dtype": "fp8",
        "engine": "vllm",
        "batch": 4,
        "context": 512,
        "prompt": 2048,
        "hits": 0,
        "usd": 1.5,
        "price": 0,
    }


def test_page_of_requests_opens_with_their_concurrency_and_half_of_their_output_cached(folder):
    requests = ["--requests", "1000/200", "--concurrency", "64,128", "--cache-hits", "0.25"]
    assert decodetax("predict", *requests, "--html", "page.html").code == 0
    setting = opening_of(folder / "page.html")["setting"]
    shown = {name: setting[name] for name in ("batch", "context", "prompt", "hits")}
    assert shown == {"batch": 64, "context": 1100, "prompt": 1000, "hits": 25}


def test_page_refers_to_nothing_outside_and_its_policy_allows_its_scripts_alone(folder):
    decodetax("predict", "--html", "page.html")
    text = (folder / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=\"(?!#|data:,)", text)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket", text)
    [script] = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert content_security_policy(script) in text


def test_page_says_that_it_is_modelled_and_explains_every_component(folder):
    decodetax("predict", "--html", "page.html")
    text = (folder / "page.html").read_text(encoding="utf-8")
    assert "modelled, not measured" in text
    assert set(COMPONENT_NAMES) == set(COMPONENTS)


def test_an_existing_page_is_replaced_and_the_message_says_so(folder):
    (folder / "page.html").write_text("mine")
    assert decodetax("predict", "--html", "page.html").out.endswith("replacing the file there.\n")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--html", "missing/page.html"], "--html: 'missing/page.html' cannot be written"),
        (["--html", "."], "--html: '.' cannot be written"),
        (["--html", "page.html", "--json"], "--json: does not go with --html"),
        (["--html", "page.html", "--published"], "--html: does not go with --published"),
        (["--html", "page.html", "--model", "gpt-9000"], "--model: 'gpt-9000'"),
    ],
)
def test_wrong_arguments_end_in_one_line_and_write_nothing(folder, arguments, problem):
    outcome = decodetax("predict", *arguments)
    assert outcome.code == 2
    assert outcome.err.startswith(f"decodetax: {problem}")
    assert outcome.err.count("\n") == 1
    assert list(folder.iterdir()) == []
