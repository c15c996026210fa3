"""`decodetax compare`: what it prints, its exit codes, and what it says to wrong arguments and files."""

import json
import math
import re
from pathlib import Path

import pytest
from decodetax.harness.core.run_file import read_run
from drifting_runs import Machine, case, drifting_runs
from hand_made import (
    CPU,
    SMALL_MATMUL,
    assert_misuse,
    decodetax,
    failed_row,
    gap,
    ok_row,
    run_record,
    strict_json,
)
from rank_runs import collective_row, failed_collective, rank_run
from report_runs import with_intervals

QUIET = Machine(noise=0.005, row_shift=0.002, round_shift=0.002, drift_step=0.001)
RUNS = Path(__file__).resolve().parents[2] / "docs" / "runs"


def runs(slowdown=None, rows=3):
    return drifting_runs(1, machine=QUIET, rows=rows, slowdown=slowdown)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes runs, or documents, as before.json and after.json in the folder where the command then runs."""
    monkeypatch.chdir(tmp_path)

    def write(before, after):
        for name, run in (("before.json", before), ("after.json", after)):
            document = run if isinstance(run, dict) else run.to_json()
            (tmp_path / name).write_text(json.dumps(document), encoding="utf-8")
        return "before.json", "after.json"

    return write


def test_the_same_code_passes(written):
    outcome = decodetax("compare", *written(*runs()))
    assert (outcome.code, outcome.err) == (0, "")
    assert "0 slower, 0 faster" in outcome.out
    assert "No row is significantly slower by over 5%, and none became wrong" in outcome.out


def test_a_slowdown_fails_and_is_named(written):
    outcome = decodetax("compare", *written(*runs({1: 1.2})))
    assert outcome.code == 1
    assert "1 slower, 0 faster" in outcome.out
    last = outcome.out.splitlines()[-1]
    assert last.startswith(f"slower by over 5%: {case(1).id} torch: 1.2")


@pytest.mark.parametrize(
    ("limit", "code"), [("0%", 1), ("5%", 1), ("10.5%", 1), ("25%", 0), ("100%", 0), ("100.000000%", 0)]
)
def test_limit_changes_only_the_exit_code(written, limit, code):
    outcome = decodetax("compare", *written(*runs({1: 1.2})), "--fail-above", limit)
    assert outcome.code == code
    assert "1 slower, 0 faster" in outcome.out


BAD_LIMITS = [
    "5", "0.05", "", "%", "-1%", "+5%", "nan%", "inf%", "1000%", "100.1%", "1e1%", "5 %", " 5%", "5%%",
    "5%\n", "1_0%", "٣%", ".5%", "5.%", "five", "5.0000000%", "٣٣%",
]  # fmt: skip


@pytest.mark.parametrize("limit", BAD_LIMITS)
def test_rejects_a_limit_that_is_not_a_percentage(written, limit):
    outcome = decodetax("compare", *written(*runs()), f"--fail-above={limit}")
    assert_misuse(outcome, "--fail-above", repr(limit), "a percentage from 0% to 100%, such as 5% or 2.5%")


def test_a_row_that_gives_wrong_results_now_fails(written):
    before, after = runs()
    after.rows[2] = failed_row(after.rows[2].case)
    outcome = decodetax("compare", *written(before, after), "--fail-above", "100%")
    assert outcome.code == 1
    assert f"BROKE: {case(2).id} torch: wrong result: row 3" in outcome.out
    assert f"wrong now: {case(2).id} torch" in outcome.out


def test_names_rows_of_one_run_only(written):
    before, after = runs()
    del before.rows[0], after.rows[2]
    outcome = decodetax("compare", *written(before, after))
    assert outcome.code == 0
    assert f"only after (ok): {case(0).id} torch" in outcome.out
    assert f"only before (ok): {case(2).id} torch" in outcome.out


def test_fail_on_missing_fails_and_names_the_rows_that_were_ok_before(written):
    before, after = runs()
    del after.rows[2]
    after.rows[0] = failed_row(after.rows[0].case, status="skipped", reason="the time was over")
    files = written(before, after)
    assert decodetax("compare", *files).code == 0
    outcome = decodetax("compare", *files, "--fail-on-missing")
    assert outcome.code == 1
    assert f"ok before, missing now: {case(2).id} torch" in outcome.out
    assert f"ok before, skipped now: {case(0).id} torch" in outcome.out
    assert "none became wrong" in outcome.out
    document = strict_json(decodetax("compare", *files, "--fail-on-missing", "--json").out)
    assert document["worse"] is True
    assert document["lost"] == [{"case": case(row).id, "provider": "torch"} for row in (0, 2)]
    assert decodetax("compare", "after.json", "before.json", "--fail-on-missing").code == 0


def test_fail_on_missing_fails_where_every_row_is_missing(written):
    before, after = runs()
    after.rows = []
    outcome = decodetax("compare", *written(before, after), "--fail-on-missing")
    assert outcome.code == 1
    assert outcome.out.count("ok before, missing now: ") == 3


def test_the_gap_is_shown_with_the_interval_of_its_ratio_and_a_verdict(written):
    before, after = runs()
    before.gaps = [with_intervals()]
    after.gaps = [with_intervals(input_parts_s={**gap().input_parts_s, "rest": 4.5})]
    out = decodetax("compare", *written(before, after)).out
    # 40 s over 4 s before, over 8 s after; of three rounds at 0.95, 1 and 1.1 in both runs.
    assert re.search(r"\n +1 +16 +10\.00 +5\.00 +0\.500 +0\.4\d\d to 0\.5\d\d +lower\n", out)
    assert max(map(len, out.partition("Gap, after / before")[2].partition("No row")[0].splitlines())) <= 80


def test_another_device_fails_only_with_across_devices(written):
    before, after = runs({1: 1.2})
    after.environment = {**after.environment, "device": {**CPU, "name": "Another CPU"}}
    files = written(before, after)
    outcome = decodetax("compare", *files)
    assert outcome.code == 0
    assert "The devices differ" in outcome.out
    assert "device.name: Made-up CPU -> Another CPU" in outcome.out
    assert "0 slower, 0 faster, 0 same, 3 not sure" in outcome.out
    asked = decodetax("compare", *files, "--across-devices")
    assert asked.code == 1
    assert "1 slower" in asked.out


def test_prints_differences_of_software_and_settings(written):
    before, after = runs()
    after.environment = {**after.environment, "versions": {"python": "3.12", "cuda": None}, "commit": "abc"}
    after.settings = {**after.settings, "dtype": "fp32"}
    out = decodetax("compare", *written(before, after)).out
    for line in ("versions.python: 3.11 -> 3.12", "commit: None -> abc", "dtype: bf16 -> fp32"):
        assert f"  {line}\n" in out


def test_prints_gaps_and_ratios_of_the_ceilings(written):
    before, after = runs()
    before.gaps, after.gaps = [gap()], [gap(input_parts_s={**gap().input_parts_s, "rest": 1.5})]
    before.interrupted = True
    out = decodetax("compare", *written(before, after)).out
    # 40 s over 4 s before, over 5 s after.
    assert " 1 16 10.00 8.00 0.800 not sure not sure: samples of 0 rounds, needs 3" in " ".join(out.split())
    wide = " ".join(decodetax("compare", "before.json", "after.json", "--wide").out.split())
    assert " 1 16 16 10.00 8.00 0.800 1.250 1.000 not sure samples of" in wide
    assert "before: was interrupted" in out
    assert "Ratios of the ceilings and the clock, which widen the intervals: read bandwidth" in out


def test_json_is_strict_and_has_every_row(written):
    before, after = runs({1: 1.2})
    before.rows.append(ok_row(SMALL_MATMUL, provider="triton"))
    after.rows.append(failed_row(SMALL_MATMUL, provider="triton"))
    before.gaps = after.gaps = [gap()]
    outcome = decodetax("compare", *written(before, after), "--json", "--fail-above", "2.5%")
    assert (outcome.code, outcome.err) == (1, "")
    document = strict_json(outcome.out)
    assert (document["before"], document["after"]) == ("before.json", "after.json")
    assert document["limit"] == 0.025
    assert document["worse"] is True
    assert [row["case"] for row in document["rows"]] == [case(row).id for row in range(3)]
    slower = document["rows"][1]
    assert slower["verdict"] == "slower"
    assert slower["low"] < slower["ratio"] < slower["high"]
    assert slower["p"] <= slower["corrected_p"] <= 0.05
    assert all(row["reason"] for row in document["rows"])
    assert document["regressions"] == [{"case": case(1).id, "provider": "torch"}]
    assert document["broke"] == [{"case": SMALL_MATMUL.id, "provider": "triton"}]
    assert document["gaps"][0]["ratio"] == 1
    assert document["controls"][0]["name"] == "read bandwidth"


def test_json_without_any_verdict_is_strict(written):
    wild = [ok_row(case(0), samples_s=(1e-6, 1e3, 1e-6), rounds=(0, 1, 2)), ok_row(case(1))]
    document = strict_json(decodetax("compare", *written(*[run_record(rows=wild)] * 2), "--json").out)
    assert math.isfinite(document["rows"][0]["high"])
    assert [row["verdict"] for row in document["rows"]] == ["not sure"] * 2
    assert document["rows"][1]["low"] is None
    assert decodetax("compare", "before.json", "after.json").code == 0


@pytest.mark.parametrize("run_file", sorted(RUNS.glob("*.json")), ids=lambda path: path.name)
def test_a_published_run_is_not_worse_than_itself(run_file):
    outcome = decodetax("compare", run_file, run_file, "--json")
    assert outcome.code == 0
    document = strict_json(outcome.out)
    assert {row["ratio"] for row in document["rows"]} == {1}
    assert {row["verdict"] for row in document["rows"]} <= {"same", "not sure"}
    assert len(document["rows"]) == sum(row.status == "ok" for row in read_run(run_file).rows)
    assert document["differences"] == []


def test_an_older_file_without_rounds_is_compared_and_not_judged(written):
    before, after = (run.to_json() for run in runs({1: 1.2}))
    for row in before["rows"]:
        del row["rounds"]
    outcome = decodetax("compare", *written(before, after), "--wide")
    assert outcome.code == 0
    assert "samples of 1 round, needs 3: drift is not known" in outcome.out
    assert "3 not sure" in outcome.out


def test_rejects_runs_without_common_rows(written):
    before, after = runs()
    after.rows = [ok_row(case(9))]
    after.settings = {**after.settings, "dtype": "fp32", "model": {"name": "other"}}
    outcome = decodetax("compare", *written(before, after))
    assert_misuse(outcome, "no row to compare", "tiny in bf16 with 3 rows and other in fp32 with 1 rows")


@pytest.mark.parametrize(
    "arguments", [[], ["before.json"], ["before.json", "after.json", "more.json"], ["--limit", "5%"]]
)
def test_rejects_a_wrong_number_of_files_and_an_unknown_option(written, arguments):
    written(*runs())
    assert_misuse(decodetax("compare", *arguments))


def test_help_states_the_exit_codes():
    outcome = decodetax("compare", "--help")
    assert outcome.code == 0
    assert "Exit code 1" in outcome.out
    assert "[default: 5%]" in outcome.out


def test_the_text_fits_80_columns_and_shows_no_control_characters(written):
    before, after = runs()
    for run in (before, after):
        run.rows.append(ok_row(SMALL_MATMUL, provider="\x1b[2Kmine\nNo row is significantly slower"))
        run.environment = {**run.environment, "commit": "\x1b]0;owned\x07\nfake"}
    after.settings = {**after.settings, "usd_per_hour_source": "\x1b[31m"}
    out = decodetax("compare", *written(before, after)).out
    assert "\x1b" not in out
    assert "\x07" not in out
    forged = ("fake", "No row is significantly slower\n")
    assert not [line for line in out.splitlines() if line.startswith(forged)]
    table = out.partition("Ratio of times")[2].partition("; the median")[0].splitlines()
    assert max(map(len, table)) <= 80


def of_ranks(factor=1.0, **changes):
    """Two ranks with one collective in 6 rounds that differ by 0.2%, `factor` times as slow."""
    case = rank_run().collectives[0].case
    samples_s = tuple(1e-3 * factor * (1 + 1e-3 * (at % 3)) for at in range(12))
    row = collective_row(case, samples_s=samples_s, rounds=tuple(at // 2 for at in range(12)))
    return rank_run(**{"collectives": [row], "rows": [], "gaps": [], **changes})


def test_a_slower_collective_is_found_as_a_slower_kernel_is(written):
    outcome = decodetax("compare", *written(of_ranks(), of_ranks(1.2)))
    assert outcome.code == 1
    case = of_ranks().collectives[0].case.id
    assert f"slower by over 5%: {case} gloo: 1.200" in outcome.out
    assert decodetax("compare", *written(of_ranks(), of_ranks())).code == 0
    assert "Before: before.json: 2 ranks (TP 2) of Made-up CPU" in outcome.out


def test_a_collective_whose_sum_became_wrong_fails(written):
    case = of_ranks().collectives[0].case
    outcome = decodetax("compare", *written(of_ranks(), of_ranks(collectives=[failed_collective(case)])))
    assert outcome.code == 1
    assert f"wrong now: {case.id} gloo" in outcome.out


def test_another_host_of_a_rank_is_a_difference(written):
    outcome = decodetax("compare", *written(of_ranks(), of_ranks(hosts=("one", "two"))))
    assert "  ranks.1.host: one -> two" in outcome.out


def test_runs_of_other_ranks_are_not_compared(written):
    outcome = decodetax("compare", *written(run_record(rows=[ok_row(SMALL_MATMUL)]), rank_run()))
    assert_misuse(
        outcome,
        "AFTER.json: 'after.json' is a run of 2 ranks (TP 2) and 'before.json' of 1 rank",
        "same ranks",
    )
    four = rank_run()
    four.settings = {**four.settings, "parallelism": {"tensor_parallel": 2, "data_parallel": 2}}
    outcome = decodetax("compare", *written(four, rank_run()), "--json")
    assert_misuse(outcome, "2 ranks (TP 2)", "4 ranks (TP 2, DP 2)")
