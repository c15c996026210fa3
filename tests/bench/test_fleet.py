"""`decodetax report DIR`: the runs of many devices in one table and one chart."""

import csv
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from decodetax.harness.bench.fleet import Fleet, mark, user_interval, user_tokens_per_s
from decodetax.harness.bench.html_fleet_chart import fleet_chart
from decodetax.harness.bench.png_charts import fleet_png
from decodetax.harness.core.gap import Interval
from hand_made import CPU, GPU, assert_misuse, decodetax, gap, run_record
from report_runs import CONTROL, HOSTILE, SCRIPT, hostile_run, priced_run, whole_run

# 0.02 s per output token at batch 8: 50 tokens/s, 6.25 of them for each user; 0.16 s per decode step.
STEP = {
    "batch": 8,
    "output_parts_s": {"projections": 0.01, "attention": 0.005, "rest": 0.004, "lm_head": 0.001},
}


def fleet_run(name="Made-up GPU", **changes):
    return run_record(
        **{
            "device": {**GPU, "name": name},
            "gaps": [gap(**STEP, usd_per_hour=3.6)],
            "usd_per_hour": 3.6,
            **changes,
        }
    )


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()


def write(path, run):
    Path(path).write_text(json.dumps(run.to_json()), encoding="utf-8")


def report(*arguments):
    done = decodetax("report", *arguments)
    assert done.code == 0, done.err
    return done.out


def rows_of(*arguments):
    """The rows of fleet.csv, by the names of their columns."""
    report(*arguments, "--csv", "tables")
    with Path("tables/fleet.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def unwrapped(text):
    return " ".join(text.split())


def test_rates_of_a_user_by_hand():
    found = gap(**STEP, output_s_per_token_interval=Interval(low=0.02, high=0.025))
    assert user_tokens_per_s(found) == pytest.approx(6.25)
    assert user_interval(found).bounds == pytest.approx((5.0, 6.25))
    assert user_interval(gap()) is None


def test_row_of_a_fleet_by_hand():
    write("runs/a.json", fleet_run())
    [row] = rows_of("runs")
    figures = {name: text for name, text in row.items() if text}
    # 4 s per input token; at $3.6 an hour a second costs $0.001: 0.02 s x 1e6 are $20.
    assert {
        name: float(text) for name, text in figures.items() if name.startswith(("measured", "published"))
    } == (
        pytest.approx(
            {
                "measured_input_tokens_per_s": 0.25,
                "measured_input_tokens_per_s_per_device": 0.25,
                "measured_output_tokens_per_s": 50.0,
                "measured_output_tokens_per_s_per_device": 50.0,
                "measured_tokens_per_s_per_user": 6.25,
                "measured_gap": 0.005,
                "measured_at_the_price_of_the_device_input_usd_per_mtok": 4000.0,
                "measured_at_the_price_of_the_device_output_usd_per_mtok": 20.0,
                "published_or_given_usd_per_hour": 3.6,
            }
        )
    )
    named = (
        "run",
        "device",
        "ranks",
        "tensor_parallel",
        "expert_parallel",
        "model",
        "dtype",
        "batch",
        "context",
    )
    assert [row[name] for name in named] == ["a", "Made-up GPU", "1", "1", "1", "tiny", "bf16", "8", "16"]
    assert row["usd_per_hour_source"] == "on demand, a list of prices"


def test_every_gap_of_every_run_has_a_row_in_order_of_file_names():
    for name in ("b", "a", "c"):
        write(f"runs/{name}.json", priced_run())
    rows = rows_of("runs")
    places = [(gap.batch, gap.context) for gap in priced_run().gaps]
    assert [(row["run"], int(row["batch"]), int(row["context"])) for row in rows] == [
        (name, *place) for name in "abc" for place in places
    ]


def test_the_terminal_has_one_table_of_80_columns_and_wide_has_all():
    for at in range(30):
        write(
            f"runs/run {at:02} of a long name.json", fleet_run(f"NVIDIA Made-up GPU {at % 4} of 80 GB HBM3")
        )
    text = report("runs")
    assert all(len(line) <= 80 for line in text.splitlines())
    heads = [heading.heading for heading in Fleet(runs={}).table().columns]
    wide = report("runs", "--wide")
    assert all(head in wide for head in heads if "95%" not in head)
    assert wide.count("\n") == 30 + 6
    for part in ("run 29", "6.25", "20", "tokens/s", "$ per"):
        assert part in text
    assert "price from" not in text
    assert "ceiling" not in text.lower()


def test_folders_and_files_may_be_mixed_and_a_run_counts_once():
    Path("more").mkdir()
    for path in ("runs/b.json", "runs/a.json", "more/a.json", "z.json"):
        write(path, fleet_run())
    Path("more/link.json").symlink_to("../runs/b.json")
    rows = rows_of("z.json", "runs", "more", "runs/a.json")
    assert [row["run"] for row in rows] == ["z", "b", "more/a", "runs/a"]
    assert [row["run"] for row in rows_of("runs", ".", "runs")] == ["a", "b", "z"]


def test_files_of_the_same_name_in_folders_of_the_same_name_are_numbered():
    for place in ("x/runs", "y/runs"):
        Path(place).mkdir(parents=True)
        write(f"{place}/run.json", fleet_run())
    assert [row["run"] for row in rows_of("x/runs", "y/runs")] == ["runs/run", "runs/run (2)"]


def test_other_files_are_named_in_one_line_and_left_out():
    write("runs/good.json", fleet_run())
    Path("runs/no.json").write_text("{", encoding="utf-8")
    Path("runs/other.json").write_text('{"schema_version": 9}', encoding="utf-8")
    Path("runs/sub.json").mkdir()
    os.mkfifo("runs/pipe.json")
    Path("runs/loop.json").symlink_to("loop.json")
    Path("runs/gone.json").symlink_to("nowhere.json")
    Path("runs/.hidden.json").write_text("{", encoding="utf-8")
    Path("runs/notes.txt").write_text("no run", encoding="utf-8")
    text = report("runs")
    [line] = [line for line in report("runs", "--wide").splitlines() if line.startswith("Left out")]
    for name in ("no", "other", "sub", "pipe", "loop", "gone"):
        assert f"'runs/{name}.json': " in line
    assert line in unwrapped(text)
    assert "hidden" not in text
    assert "notes" not in text
    done = decodetax("report", "runs", "--html", "r.html", "--markdown", "r.md")
    assert done.code == 0
    assert done.err == f"decodetax: {line}\n"
    for page in ("r.html", "r.md"):
        assert "other.json" in Path(page).read_text(encoding="utf-8").partition("<script")[0]


def test_a_file_that_cannot_be_read_is_left_out(monkeypatch):
    write("runs/good.json", fleet_run())
    write("runs/secret.json", fleet_run())
    opened = Path.open

    def refusing(path, *arguments, **more):
        if path.name == "secret.json":
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **more)

    monkeypatch.setattr(Path, "open", refusing)
    assert "'runs/secret.json': cannot be read: Permission denied." in unwrapped(report("runs"))


def test_a_folder_without_a_run_is_misuse():
    assert_misuse(decodetax("report", "runs"), "'runs'", "has no run file", "*.json")
    Path("runs/no.json").write_text("{}", encoding="utf-8")
    assert_misuse(
        decodetax("report", "runs"), "'runs'", "has no run file", "'runs/no.json'", "schema_version"
    )
    write("good.json", fleet_run())
    assert_misuse(decodetax("report", "good.json", "runs"), "'runs'", "has no run file")
    Path("circle").symlink_to("circle")
    assert_misuse(decodetax("report", "circle"), "'circle'", "cannot be read", "symbolic links")


def test_a_folder_that_cannot_be_listed_is_misuse(monkeypatch):
    def refuse(_folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert_misuse(decodetax("report", "runs"), "'runs'", "cannot be read", "Permission denied")


def test_a_folder_of_many_other_files_is_one_line_of_misuse_that_names_a_few():
    for at in range(100):
        Path(f"runs/{at:03}.json").write_text("{}", encoding="utf-8")
    assert_misuse(decodetax("report", "runs"), "'runs'", "has no run file", "'runs/000.json'", "97 more")


def test_a_file_that_is_named_itself_must_be_a_run():
    write("runs/good.json", fleet_run())
    Path("no.json").write_text("{}", encoding="utf-8")
    assert_misuse(decodetax("report", "runs", "no.json"), "decodetax: 'no.json': is not a valid run")
    assert_misuse(decodetax("report", "runs", "x" * 300), "cannot be read: File name too long")
    Path("runs/no.json").write_text("{}", encoding="utf-8")
    assert_misuse(decodetax("report", "runs", "runs/no.json"), "'runs/no.json'", "not a valid run")
    assert_misuse(decodetax("report", "runs/no.json", "runs"), "'runs/no.json'", "not a valid run")


def test_no_run_of_a_folder_is_overwritten():
    write("runs/a.json", fleet_run())
    assert_misuse(decodetax("report", "runs", "--html", "runs/a.json"), "--html", "a run")
    assert json.loads(Path("runs/a.json").read_text(encoding="utf-8"))["schema_version"] == 1


def test_runs_without_a_price_or_a_gap_are_named():
    write("runs/priced.json", fleet_run())
    write("runs/free.json", fleet_run(gaps=[gap(**STEP)]))
    write("runs/zero.json", fleet_run(gaps=[gap(**STEP, usd_per_hour=0.0)]))
    write("runs/early.json", fleet_run(gaps=[], interrupted=True))
    text = unwrapped(report("runs"))
    assert "Not in the table, as no gap could be computed: early." in text
    assert "above $0 is known (decodetax run --usd-per-hour): free, zero." in text
    assert "Ended early, as decodetax report says of each: early." in text
    assert {row["run"] for row in rows_of("runs")} == {"free", "priced", "zero"}
    Path("runs/priced.json").unlink()
    Path("runs/zero.json").unlink()
    text = unwrapped(report("runs"))
    assert "No price of a device is known, so there are no dollars and no chart of them" in text
    outcome = decodetax("report", "runs", "--html", "r.html", "--png", "p")
    assert outcome.code == 0
    assert "No fleet.png: the run has no data for it." in outcome.out
    page = Path("r.html").read_text(encoding="utf-8")
    assert "No price of a device is known" in page
    assert 'id="fleet-usd"' not in page
    Path("runs/free.json").unlink()
    assert "(none)" in report("runs")


def test_what_makes_runs_doubtful_or_incomparable_is_said():
    other = fleet_run()
    other.settings = {**other.settings, "model": {"name": "large"}}
    runs = {"a": fleet_run(), "b": other, "c": whole_run(late="after 9 s"), "d": fleet_run(broken="no disk")}
    notes = Fleet(runs=runs).notes()
    assert notes[1:] == [
        "Only runs of the same model and dtype can be compared; these are of tiny in bf16, large in bf16.",
        "Ended early, as decodetax report says of each: d.",
        "With wrong results, as decodetax report says of each: c.",
        "Not to be trusted, as decodetax report says of each: c.",
    ]
    assert [series.label for series in Fleet(runs=runs).series()] == [
        "a: Made-up GPU, tiny in bf16",
        "b: Made-up GPU, large in bf16",
        "d: Made-up GPU, tiny in bf16",
    ]
    assert Fleet(runs={"a": fleet_run()}).notes() == []


def test_the_page_begins_with_the_table_and_the_scatter_and_has_every_report_after():
    write("runs/a.json", priced_run())
    write("runs/b.json", fleet_run(device=CPU))
    report("runs", "--html", "r.html", "--markdown", "r.md")
    report("runs/a.json", "runs/b.json", "--html", "two.html", "--markdown", "two.md")
    page, two = (Path(name).read_text(encoding="utf-8") for name in ("r.html", "two.html"))
    assert "<title>What an output token costs: 2 runs on Made-up CPU</title>" in page
    body, charts = page.partition("<main>")[2], page.partition('id="charts">')[2]
    order = [
        body.index(mark) for mark in ('id="fleet"', 'id="fleet-usd"', "<h2>a</h2>", "<h2>b</h2>", 'id="gaps"')
    ]
    assert order == sorted(order)
    assert charts.startswith('{"fleet-usd":')
    after = two.partition("<main>\n")[2].partition("<script")[0]
    assert body.partition("<script")[0].endswith(after)
    text, rest = (Path(name).read_text(encoding="utf-8") for name in ("r.md", "two.md"))
    assert text.startswith(
        "# What an output token costs\n\n## What a token costs, by run\n\n| run | device |"
    )
    assert text.endswith(rest.removeprefix("# What an output token costs\n\n"))


def test_the_chart_has_a_point_for_each_gap_with_a_price_and_no_line_between_contexts():
    gaps = [
        replace(each, usd_per_hour=3.6) if each.context == 16 or each.batch == 1 else each
        for each in priced_run().gaps
    ]
    gaps[0] = replace(gaps[0], output_s_per_token_interval=None)
    [series] = Fleet(runs={"a": whole_run(gaps=gaps), "none": whole_run()}).series()
    [trace] = json.loads(fleet_chart([series]).figure)["data"]
    # 40 s per token at batch 1; 10 s at batch 8: 1/80 tokens/s per user. A second costs $0.001.
    assert trace["x"] == pytest.approx([1 / 40, 1 / 80, None, 1 / 40, 1 / 80, None])
    assert trace["y"] == pytest.approx([40_000, 10_000, None, 40_000, 10_000, None])
    # From 9 to 12 s per token at batch 8: 1/96 to 1/72 tokens/s per user.
    assert trace["error_x"]["array"] == pytest.approx(
        [0, 1 / 72 - 1 / 80, 0, 1 / 36 - 1 / 40, 1 / 72 - 1 / 80, 0]
    )
    assert trace["error_y"]["arrayminus"] == pytest.approx([0, 1_000, 0, 4_000, 1_000, 0])
    assert "0.0125 tokens/s per user" in trace["hovertext"][1]


def test_as_many_as_54_runs_differ_in_colour_or_marker():
    assert len({(at % 6, mark(at) % 9) for at in range(54)}) == 54


@pytest.mark.filterwarnings("error")
def test_the_picture_of_30_runs_keeps_room_for_its_chart():
    runs = {f"run {at}": fleet_run() for at in range(30)}
    assert fleet_png(Fleet(runs=runs).series()).startswith(b"\x89PNG")
    assert fleet_png(()) is None


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_all_pictures_of_30_runs_keep_room_for_their_charts():
    for at in range(30):
        write(f"runs/{at}.json", priced_run())
    assert report("runs", "--png", "p").count("written to") == 3


def test_hostile_texts_reach_no_markup_and_no_control_character_an_output():
    for name, texts in (("a b", HOSTILE), (CONTROL, (CONTROL,) * len(HOSTILE)), (" ", HOSTILE)):
        write(f"runs/{name}.json", hostile_run(texts))
    Path(f"runs/{CONTROL} <b>no.json").write_text("{", encoding="utf-8")
    out = report("runs")
    report("runs", "--html", "r.html", "--markdown", "r.md", "--csv", "tables")
    assert fleet_png(Fleet(runs={"$a_1$": hostile_run(), "_b": hostile_run()}).series())
    texts = {name: Path(name).read_text(encoding="utf-8") for name in ("r.html", "r.md", "tables/fleet.csv")}
    page = texts["r.html"].partition("<main>")[2].partition("<script")[0]
    assert "onerror=alert(1)>" not in page
    assert "<b>no" not in page
    assert SCRIPT not in texts["r.md"] + page
    [data] = re.findall(r'id="charts">(.*?)</script>', texts["r.html"], re.DOTALL)
    names = [trace["name"] for trace in json.loads(data)["fleet-usd"]["data"]]
    assert all("<" not in name for name in names)
    for text in (out, page, texts["r.md"], texts["tables/fleet.csv"]):
        assert text.replace("\n", "").isprintable()
        assert not [line for line in text.splitlines() if line.startswith("OWNED")]
