"""The report of a run of several ranks: tables, sentences and charts of a run made by hand."""

import csv
import io
import json
import re
from dataclasses import replace

import pytest
from decodetax.harness.bench import rank_tables, run_tables
from decodetax.harness.bench.chart_data import points_and_roofs
from decodetax.harness.bench.fleet import Fleet
from decodetax.harness.bench.html_report import html_report
from decodetax.harness.bench.report_command import markdown_report, run_text
from decodetax.harness.bench.scaling import link_bytes_per_s, ranks_by_host, ranks_text
from decodetax.harness.bench.summary import failures, heading, missing_from, sentences, workload
from decodetax.harness.core.collectives import collective
from decodetax.harness.core.gap import Interval
from decodetax.harness.core.run_file import run_of
from hand_made import GPU, SMALL_MATMUL, decodetax, failed_row, gap, run_record
from rank_runs import collective_row, deployment_gap, failed_collective, link_row, rank_run
from report_runs import CONTROL, HOSTILE, SCRIPT, whole_run, with_intervals

H100 = {**GPU, "name": "NVIDIA H100 80GB HBM3"}


def priced(run):
    run.gaps = [replace(each, usd_per_hour=3.6) for each in run.gaps]
    run.settings = {**run.settings, "usd_per_hour": 3.6, "usd_per_hour_source": "a list"}
    return run


def shown(table):
    """The rows of a table as a terminal shows them, by heading."""
    headings = [column.heading for column in table.columns]
    return [
        dict(zip(headings, (c.text(value) for c, value in zip(table.columns, row, strict=True)), strict=True))
        for row in table.rows
    ]


def test_the_deployment_by_hand():
    first, second = shown(rank_tables.deployment_table({"a": priced(rank_run())}))
    # 3.2 s per input and 25 s per output token on 2 ranks; 4 s and 40 s on one. A second costs $0.001 each.
    assert first == {
        "batch": "1",
        "context": "16",
        "ranks": "2",
        "input tokens/s": "0.3125",
        "input tokens/s per device": "0.1562",
        "output tokens/s": "0.04",
        "output tokens/s per device": "0.02",
        "$ per 1M input": "6,400",
        "$ per 1M input, one device": "3,200",
        "$ per 1M output": "50,000",
        "$ per 1M output, one device": "25,000",
        "communication, input": "25%",
        "communication, output": "12%",
        "scaling efficiency, input": "62%",
        "scaling efficiency, output": "80%",
        "95% interval, scaling efficiency, input": "-",
        "95% interval, scaling efficiency, output": "-",
        "one rank, input tokens/s": "0.25",
        "one rank, output tokens/s": "0.025",
        "one rank, gap": "10.00",
    }
    assert second["batch"] == "8"
    assert {second[name] for name in second if "scaling" in name or "one rank" in name} == {"-"}


def test_the_interval_of_a_scaling_efficiency_reaches_as_far_as_both_intervals_allow():
    # 20 to 30 s on 2 ranks and 36 to 48 s on one: 36 / (2 x 30) to 48 / (2 x 20); no interval of an input.
    found = deployment_gap(output_s_per_token_interval=Interval(low=20.0, high=30.0))
    run = rank_run(gaps=[found], one_rank_gaps=[with_intervals()])
    [row] = shown(rank_tables.deployment_table({"a": run}))
    assert row["95% interval, scaling efficiency, output"] == "60% to 120%"
    assert row["95% interval, scaling efficiency, input"] == "-"


def test_a_run_without_a_price_has_no_dollars_of_a_deployment():
    first, _ = shown(rank_tables.deployment_table({"a": rank_run()}))
    assert {text for name, text in first.items() if "$" in name} == {"-"}


def test_a_collective_by_hand():
    # 900 MB in 4 ms of the slowest rank: 225 GB/s and, gathered among 4 ranks, 3/4 of it; NVLink has 450.
    case = collective("all_gather", "decode", 450_000_000, 4, "bf16")
    row = collective_row(case, samples_s=(4e-3,) * 3, skew_s=5e-7)
    [found] = shown(rank_tables.collectives_table({"a": rank_run(collectives=[row], device=H100)}))
    assert found == {
        "phase": "decode",
        "collective": "all-gather",
        "ranks": "4",
        "message": "858 MiB",
        "provider": "gloo",
        "median": "4 ms",
        "95% from": "4 ms",
        "to": "4 ms",
        "samples": "3",
        "rounds": "3",
        "algorithm GB/s": "225",
        "bus GB/s": "169",
        "of the link": "38%",
        "skew": "0.5 us",
    }


def test_the_link_by_hand():
    rows = [
        link_row(8192, 50e-6),
        link_row(2**20, 1e-3),
        link_row(2**30, 4.7722e-3),
        link_row(2**30, 9e-3, provider="other"),
    ]
    found = shown(rank_tables.links_table({"a": rank_run(collectives=rows, device=H100)}))
    names = ("message", "provider", "latency", "algorithm GB/s", "bus GB/s", "of the link")
    # 1 GiB in 4.77 ms is 225 GB/s, half of the 450 GB/s of NVLink.
    assert [tuple(row[name] for name in names) for row in found] == [
        ("8 KiB", "gloo", "50 us", "0.164", "0.164", "0%"),
        ("1 MiB", "gloo", "-", "1.05", "1.05", "0%"),
        ("1 GiB", "gloo", "-", "225", "225", "50%"),
        ("1 GiB", "other", "-", "119", "119", "27%"),
    ]


def test_a_share_of_the_link_needs_the_datasheet_of_the_only_link():
    assert link_bytes_per_s(rank_run(device=H100)) == 450e9
    assert link_bytes_per_s(rank_run(device=H100, hosts=("a", "b"))) is None
    assert link_bytes_per_s(rank_run(device=GPU)) is None
    assert link_bytes_per_s(rank_run()) is None


def test_kernels_say_how_much_slower_the_slowest_rank_is():
    run = rank_run()
    first, second, *_ = shown(run_tables.kernels_table({"a": run}))
    assert first["slowest over fastest rank"] == "2.00"  # of 1.5, 2 and 4
    assert second["slowest over fastest rank"] == "1.00"
    assert len(shown(run_tables.kernels_table({"a": run}))) == len(run.rows)
    beside = shown(run_tables.kernels_table({"a": run, "one": whole_run()}))
    assert beside[-1]["slowest over fastest rank"] == "-"


def test_kernels_of_one_rank_alone_have_a_table_of_their_own():
    run = rank_run()
    found = shown(run_tables.kernels_table({"a": run}, one_rank=True))
    assert [row["case"] for row in found] == [row.case.id for row in run.one_rank_rows]
    assert {row["median"] for row in found} == {"2 ms"}
    tables = [table.id for table in run_tables.run_tables({"a": run}, ())]
    assert tables.index("kernels") + 1 == tables.index("one_rank_kernels")
    run.one_rank_rows = [failed_row(SMALL_MATMUL)]
    assert list(failures(run)) == [f"FAILED: {SMALL_MATMUL.id} torch on one rank alone: wrong result: row 3"]
    assert [row["case"] for row in shown(run_tables.not_timed_table({"a": run}))] == [SMALL_MATMUL.id]


def test_runs_on_one_device_have_no_table_or_column_of_ranks():
    run = whole_run()
    assert rank_tables.rank_tables({"a": run}) == ()
    assert "slowest over fastest rank" not in shown(run_tables.kernels_table({"a": run}))[0]
    text = run_text(run, wide=True)
    assert not re.search(r"(?i)rank|communication|deployment|collective", text)


def test_every_table_fits_80_columns_and_each_key_is_unique():
    run = priced(rank_run(device=H100))
    text = run_text(run, wide=False)
    assert [line for line in text.splitlines() if len(line) > 80] == []
    for title in ("All ranks together", "Collectives: ", "Link between the ranks", "Where an output token's"):
        assert f"\n{title}" in text
    assert "communication:" in text  # no word of a heading is broken
    for table in run_tables.run_tables({"a": run}, ()):
        keys = [key for column in table.columns for key in column.keys]
        assert len(set(keys)) == len(keys)
        head = table.text(wide=True).partition("---")[0]
        for at, column in enumerate(table.columns):
            assert column.heading in head or not [row for row in table.rows if row[at] not in (None, "")]


def test_csv_keeps_all_digits_under_names_with_provenance_and_unit():
    tables = {table.id: table for table in run_tables.run_tables({"a": priced(rank_run(device=H100))}, ())}
    first, *_ = csv.DictReader(io.StringIO(tables["deployment"].csv()))
    assert float(first["measured_output_scaling_efficiency"]) == pytest.approx(0.8)
    assert float(first["measured_output_communication_share"]) == pytest.approx(0.12)
    assert float(first["measured_at_the_price_of_the_device_output_usd_per_mtok"]) == pytest.approx(50_000)
    [*_, last] = csv.DictReader(io.StringIO(tables["links"].csv()))
    assert float(last["measured_bus_bytes_per_s"]) == pytest.approx(2**24 / 8e-3)
    assert float(last["measured_over_datasheet_share_of_link"]) == pytest.approx(2**24 / 8e-3 / 450e9)
    [part, *_] = csv.DictReader(io.StringIO(tables["output_parts"].csv()))
    assert float(part["measured_communication_s"]) == 3.0


def test_heading_says_how_many_ranks_of_what_run_where():
    _, ranks, _ = heading(rank_run()).splitlines()
    assert ranks == "Ranks: 2 (TP 2) on Made-up CPU, host one"
    _, ranks, _ = heading(rank_run(hosts=("b", "a", "a", "b", "a"))).splitlines()
    assert ranks.endswith(", 2 hosts: 0, 3 on b; 1 to 2, 4 on a")
    run = rank_run()
    del run.environment["ranks"]
    assert "Ranks: 2 (TP 2) on Made-up CPU" in heading(run).splitlines()
    assert Fleet(runs={"a": rank_run(device=H100)}).title == "1 run on 2 x NVIDIA H100 80GB HBM3"


def test_ranks_are_sorted_by_number_and_not_by_name():
    assert ranks_text(ranks_by_host(rank_run(hosts=("a",) * 12))["a"]) == "0 to 11"


def test_the_price_of_all_devices_stands_beside_that_of_one():
    assert "$3.6 per hour for each of 2 ranks, $7.2 for all (a list)" in workload(priced(rank_run()))
    assert "for each" not in workload(run_record(usd_per_hour=3.6))


def test_sentences_by_hand():
    found = " ".join(sentences(rank_run()))
    assert "time is 40% weights, 36% KV cache, 12% communication and 12% the rest." in found
    assert (
        "At batch 1 and context 16 each of 2 ranks gives 0.156 input and 0.02 output tokens/s, 62% and 80% "
        "of one alone (scaling efficiency). At batch 8 and context 16 each of 2 ranks gives 0.156 input "
        "and 0.02 output tokens/s. The link between the ranks has a latency of 50 us at 8 KiB (gloo "
        "all-reduce) and a bus bandwidth of 2.1 GB/s at 16 MiB (gloo all-reduce) (measured)." in found
    )


def test_a_model_without_a_complete_layer_has_communication_last():
    parts = {"projections": 8.0, "attention": 9.0, "communication": 3.0}
    run = rank_run(
        gaps=[
            deployment_gap(output_parts_s={**parts, "lm_head": 0.0}, input_parts_s={**parts, "lm_head": 1.0})
        ]
    )
    assert "40% weights, 45% KV cache and 15% communication." in " ".join(sentences(run))


def test_what_a_run_of_ranks_lacks_is_said():
    assert not [line for line in missing_from(rank_run()) if "rank" in line or "ollective" in line]
    case = collective("all_reduce", "decode", 64, 2, "bf16")
    run = rank_run(collectives=[failed_collective(case)], one_rank_gaps=[gap(batch=2)])
    found = " ".join(missing_from(run))
    assert "No collective was timed with a correct result, so communication is not known." in found
    assert "no scaling efficiency: the whole model was not timed on one rank alone" in found
    assert "1 result was wrong" in found
    assert list(failures(run)) == [f"FAILED: {case.id} gloo: wrong sum"]
    found = " ".join(missing_from(rank_run(collectives=[collective_row(case)])))
    assert "The link between the ranks was not measured." in found


def test_collectives_that_were_not_timed_are_listed_with_their_reasons():
    case = collective("all_to_all", "decode", 64, 2, "bf16")
    rows = [
        failed_collective(case, status="unsupported", reason="gloo has none"),
        failed_collective(case, provider="x"),
    ]
    run = rank_run(collectives=rows)
    assert shown(run_tables.not_timed_summary(run)) == [
        {"status": "unsupported", "provider": "gloo", "rows": "1", "why": "gloo has none"}
    ]
    found = [(row["case"], row["why"]) for row in shown(run_tables.not_timed_table({"a": run}))]
    assert found == [(case.id, "gloo has none"), (case.id, "wrong sum")]
    assert "Kernels and collectives that were not timed" in run_text(run, wide=False)


def test_charts_leave_collectives_out_and_show_communication_as_a_part():
    run = rank_run()
    points, _ = points_and_roofs({"a": run})
    assert [point.row for point in points] == run.rows
    page = html_report({"a": run}, ())
    [data] = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL)
    names = [trace["name"] for trace in json.loads(data)["parts-1"]["data"]]
    assert "communication: collectives" in names
    assert 'id="collectives"' in page
    assert "## Link between the ranks" in markdown_report({"a": run}, ())


def test_a_fleet_has_rates_of_the_deployment_and_of_each_device():
    first, *_ = shown(Fleet(runs={"a": priced(rank_run())}).table())
    assert Fleet(runs={"a": rank_run()}).title == "1 run on 2 ranks on Made-up CPU"
    names = (
        "ranks",
        "TP",
        "EP",
        "input tokens/s per device",
        "output tokens/s",
        "output tokens/s per device",
        "$ per 1M output",
    )
    assert [first[name] for name in names] == ["2", "2", "1", "0.1562", "0.04", "0.02", "50,000"]


def test_a_run_of_ranks_is_written_and_read_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = priced(rank_run(device=H100))
    (tmp_path / "a.json").write_text(json.dumps(run.to_json()), encoding="utf-8")
    done = decodetax("report", "a.json", "--csv", "c", "--html", "r.html", "--png", "p")
    assert (done.code, done.err) == (0, "")
    assert {path.name for path in (tmp_path / "c").iterdir()} > {
        "deployment.csv",
        "collectives.csv",
        "links.csv",
    }
    assert decodetax("report", "a.json").out == f"{heading_text(run)}\n{run_text(run, wide=False)}\n"


def heading_text(run):
    from decodetax.harness.core.table import prose  # noqa: PLC0415  (beside its only use)

    return prose(heading(run), wide=False)


def test_hostile_hosts_and_providers_become_no_markup_and_no_control_character():
    texts = (*HOSTILE, CONTROL)
    run = rank_run(hosts=texts)
    run.collectives = [
        replace(row, provider=texts[at % len(texts)]) for at, row in enumerate(run.collectives)
    ]
    case = collective("all_to_all", "decode", 10, 2, "bf16")
    run.collectives += [failed_collective(case, provider=text, reason=text) for text in texts]
    run = run_of(json.loads(json.dumps(run.to_json())))
    printed = f"{heading(run)}\n{run_text(run, wide=False)}"
    assert printed.replace("\n", "").isprintable()
    assert not [line for line in printed.splitlines() if line.startswith("OWNED")]
    markdown, page = markdown_report({"a": run}, ()), html_report({"a": run}, ())
    body = page.partition("<main>")[2].partition("<script")[0]
    assert markdown.replace("\n", "").isprintable()
    assert SCRIPT not in markdown + body
    assert "<img" not in body


def test_a_file_with_a_round_without_ranks_is_refused():
    document = json.loads(json.dumps(rank_run().to_json()))
    document["rows"][0]["ranks_s"][1] = []
    with pytest.raises(ValueError, match="length"):
        run_of(document)


@pytest.mark.parametrize(
    "ranks",
    [[], {"0": "a host"}, {"zero": {"host": "a"}}, {"0": {"host": {"name": "a"}}}, {"0": {"host": 1}}, "two"],
)
def test_a_file_whose_ranks_are_not_described_is_refused(ranks):
    document = rank_run().to_json()
    document["environment"] = {**document["environment"], "ranks": ranks}
    with pytest.raises(ValueError, match=r"environment"):
        run_of(document)


def test_tables_of_ranks_fit_80_columns_whatever_the_figures():
    case = collective("reduce_scatter", "prefill", 1001 * 513, 3, "bf16")
    row = collective_row(case, samples_s=(1.2345678e-3,) * 3, skew_s=9.87654e-4, provider="symm-multimem")
    link = link_row(2**29, 123.4567e-3, provider="symm-multimem")
    gaps = [deployment_gap(batch=512, context=131072, usd_per_hour=3.6)]
    gaps[0] = replace(gaps[0], output_parts_s={p: t / 987654.0 for p, t in gaps[0].output_parts_s.items()})
    run = rank_run(device=H100, collectives=[row, link], gaps=gaps, one_rank_gaps=gaps)
    for table in rank_tables.rank_tables({"": run}):
        text = table.text()
        assert max(map(len, text.splitlines())) <= 80
        assert "bus GB/s" in " ".join(text.split()) or table.id == "deployment"
