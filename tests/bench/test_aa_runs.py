"""The summary of pairs of runs of the same code, on runs of random numbers."""

import json
from collections import Counter
from pathlib import Path

import aa_runs
import pytest
from click.testing import CliRunner
from decodetax.harness.bench.comparison import compare_runs
from drifting_runs import Machine, case, drifting_runs

QUIET = Machine(noise=0.005, row_shift=0.002, round_shift=0.002, drift_step=0.001)


def test_twenty_pairs_of_the_same_code_show_no_regression():
    found = aa_runs.findings([compare_runs(*drifting_runs(seed)) for seed in range(20)])
    assert found.regressions == ()
    assert found.pairs == 20
    assert found.verdicts.total() == 20 * 60
    assert not {"slower", "faster"} & set(found.verdicts)
    # Two levels of 5 rounds: a round's median has 0.03 x 1.25 / sqrt(5) = 1.7% of noise, 1% of its own and 1%
    # of the round's shift, 2.2% together; two means of 5 differ by 1.4%; the level's walk adds about 0.9%.
    assert 0.012 < found.spread < 0.024
    assert found.missed < 0.05
    assert "0 sure regressions in 20 pairs" in aa_runs.text_of(found)


def test_the_script_compares_runs_of_this_machine(monkeypatch):
    pairs = iter(drifting_runs(3, count=4, rows=3))
    started = []

    def run_of_a_process(command, *, check):
        assert check
        started.append(command)
        target = command[command.index("--one") + 1]
        Path(target).write_text(json.dumps(next(pairs).to_json()), encoding="utf-8")

    monkeypatch.setattr(aa_runs.subprocess, "run", run_of_a_process)
    result = CliRunner().invoke(aa_runs.main, ["--pairs", "2"])
    assert result.exit_code == 0
    assert len(started) == 4
    assert [line.split(":")[0] for line in result.stdout.splitlines()[:2]] == ["pair 1 of 2", "pair 2 of 2"]
    assert "0 sure regressions in 2 pairs of the same code (must be 0)" in result.stdout


def test_reports_a_planted_slowdown():
    pairs = [drifting_runs(1, machine=QUIET), drifting_runs(2, machine=QUIET, slowdown={4: 1.5})]
    found = aa_runs.findings([compare_runs(*pair) for pair in pairs])
    [line] = found.regressions
    assert line.startswith(f"pair 2: {case(4).id} torch 1.5")
    assert found.largest == pytest.approx(1.5, rel=0.02)
    assert "1 sure regressions in 2 pairs" in aa_runs.text_of(found)


def test_older_runs_without_rounds_have_no_intervals():
    runs = drifting_runs(1, rows=3, rounds=1)
    found = aa_runs.findings([compare_runs(*runs)])
    assert found.verdicts == Counter({"not sure": 3})
    assert found.missed == 0
