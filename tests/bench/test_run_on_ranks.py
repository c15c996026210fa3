"""Runs of two ranks through the command line, over gloo: complete, broken, interrupted, continued."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from decodetax.harness.core.run_file import read_run
from hand_made import assert_misuse, decodetax, strict_json, write_config

ARGUMENTS = (
    *("run", "--device", "cpu", "--quick", "--model", "config.json", "--batch", "3", "--context", "16"),
    *("--prefill-tokens", "32", "--dtype", "fp32", "-o", "out.json"),
)
TWO_RANKS = ("--tensor-parallel", "2")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "decodetax.harness")
DECODETAX = (sys.executable, "-m", "decodetax.harness")
LIMIT_S = 120


def start(folder, *command, **environment):
    hidden = {"TRITON_INTERPRET", "RANK", "WORLD_SIZE"}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=kept | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ranks_of(process):
    """The processes of the ranks by number: children of the process that started them."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
            variables = stat.with_name("environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        if parent == process.pid:
            found |= {int(each[5:]): int(stat.parent.name) for each in variables if each.startswith(b"RANK=")}
    return found


def measured(folder, process):
    """Wait until rows are in the file; the ranks."""
    path, end_s = folder / "out.json", time.monotonic() + LIMIT_S
    while process.poll() is None and time.monotonic() < end_s:
        if path.exists() and read_run(path).rows:
            return ranks_of(process)
        time.sleep(0.2)
    raise AssertionError(process.communicate())


def ended(process, ranks, *, within_s):
    """What a process printed, once it and all ranks have ended, in time."""
    begin_s = time.monotonic()
    out, err = process.communicate(timeout=within_s)
    while left := [pid for pid in ranks.values() if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() - begin_s < within_s, left
        time.sleep(0.1)
    return out, err


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [(*DECODETAX, *ARGUMENTS, *TWO_RANKS), (*TORCHRUN, *ARGUMENTS)], ids=["ours", "torchrun"]
)
def test_two_ranks_measure_a_gap_with_communication(tmp_path, command):
    write_config(tmp_path)
    process = start(tmp_path, *command, "--json")
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    run = strict_json(out)
    assert run == strict_json((tmp_path / "out.json").read_text(encoding="utf-8"))
    [gap], [alone] = run["gaps"], run["one_rank_gaps"]
    assert gap["ranks"] == 2
    assert gap["output_parts_s"]["communication"] > 0
    assert "communication" not in alone["output_parts_s"]
    assert {"0", "1"} == set(run["environment"]["ranks"])
    for row in run["rows"]:
        assert (row["status"] == "ok") == bool(row["samples_s"])
        assert {len(medians) for medians in row.get("ranks_s", [])} <= {2}
    if command[: len(DECODETAX)] == DECODETAX:
        assert err == ""


def signalled(number, *, rank=None):
    """Send a signal to a rank, or to the process that started the ranks."""
    return lambda process, ranks: os.kill(process.pid if rank is None else ranks[rank], number)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strike", "code", "words"),
    [
        pytest.param(
            signalled(signal.SIGKILL, rank=1),
            1,
            "rank 1 on {host} died (process {pid} was",
            id="rank 1 killed",
        ),
        pytest.param(
            signalled(signal.SIGTERM, rank=1), 1, "rank 1 on {host} was ended by SIGTERM", id="rank 1 ended"
        ),
        pytest.param(
            signalled(signal.SIGSTOP, rank=1),
            1,
            "rank 1 on {host} was stopped (process {pid})",
            id="rank 1 stopped",
        ),
        pytest.param(
            signalled(signal.SIGKILL, rank=0),
            1,
            "rank 0 was killed by SIGKILL; what was measured",
            id="rank 0 killed",
        ),
        pytest.param(signalled(signal.SIGTERM), 130, "", id="all ended"),
        pytest.param(lambda process, _ranks: os.killpg(process.pid, signal.SIGINT), 130, "", id="Ctrl-C"),
        pytest.param(
            signalled(signal.SIGKILL), -9, "the process that started the ranks ended", id="parent killed"
        ),
    ],
)
def test_end_of_a_rank_is_one_line_and_the_file_continues(tmp_path, strike, code, words):
    write_config(tmp_path)
    process = start(tmp_path, *DECODETAX, *ARGUMENTS, *TWO_RANKS, "--collective-timeout", "4")
    ranks = measured(tmp_path, process)
    before = read_run(tmp_path / "out.json").rows
    strike(process, ranks)
    _, err = ended(process, ranks, within_s=20)
    assert process.returncode == code, err
    assert words.format(host=os.uname().nodename, pid=ranks[1]) in err
    assert len(err.splitlines()) == (1 if words else 0)
    assert decodetax("report", tmp_path / "out.json").code == 0
    found = read_run(tmp_path / "out.json")
    assert len(found.rows) >= len(before)
    assert found.interrupted == (found.broken is None)


@pytest.mark.slow
def test_run_of_ranks_that_was_killed_continues_with_as_many(tmp_path):
    write_config(tmp_path)
    process = start(tmp_path, *DECODETAX, *ARGUMENTS, *TWO_RANKS)
    ranks = measured(tmp_path, process)
    os.kill(ranks[1], signal.SIGKILL)
    ended(process, ranks, within_s=20)
    before = read_run(tmp_path / "out.json")
    assert "rank 1" in before.broken
    outcome = start(tmp_path, *DECODETAX, "run", "--resume", "out.json", "--device", "cpu", "--json")
    out, err = outcome.communicate(timeout=LIMIT_S)
    assert outcome.returncode == 0, err
    after = strict_json(out)
    assert (after["interrupted"], after["broken"]) == (False, None)
    samples = {(row["case"], row["provider"]): row["samples_s"] for row in after["rows"]}
    for row in before.rows:  # nothing that was measured is lost
        assert samples[row.case.id, row.provider][: len(row.samples_s)] == list(row.samples_s)
    assert len(after["gaps"]) == 1


PROVIDER = """
import os
first = True
def product(x, weight):
    {body}
    return x @ weight.t()
"""


@pytest.mark.slow
def test_provider_that_fails_on_one_rank_fails_its_rows_alone(tmp_path):
    write_config(tmp_path)
    body = 'assert os.environ["RANK"] == "0", "not here"'
    (tmp_path / "own.py").write_text(PROVIDER.format(body=body), encoding="utf-8")
    process = start(tmp_path, *DECODETAX, *ARGUMENTS, *TWO_RANKS, "--provider", "own:product", "--json")
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1, err
    run = strict_json(out)
    own = [row for row in run["rows"] if row["provider"] == "own:product"]
    assert {row["reason"] for row in own} == {"rank 1: AssertionError: not here"}
    assert run["broken"] is None
    assert len(run["gaps"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("top", "words"),
    [
        ('if os.environ["RANK"] == "1": raise ValueError("no")', "failed: UsageError: --provider: "),
        ('if os.environ["RANK"] == "1": os._exit(3)', "died (process "),
    ],
    ids=["raises", "exits"],
)
def test_rank_that_fails_outside_of_a_case_ends_the_run_with_its_reason(tmp_path, top, words):
    write_config(tmp_path)
    source = PROVIDER.format(body="pass").replace("first = True", top)
    (tmp_path / "own.py").write_text(source, encoding="utf-8")
    process = start(tmp_path, *DECODETAX, *ARGUMENTS, *TWO_RANKS, "--provider", "own:product")
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1, err
    assert len(err.splitlines()) == 1
    assert f"rank 1 on {os.uname().nodename} {words}" in err


@pytest.mark.slow
def test_ranks_of_torchrun_that_do_not_fit_the_options_say_so_once(tmp_path):
    write_config(tmp_path)
    process = start(tmp_path, *TORCHRUN, *ARGUMENTS, "--tensor-parallel", "3")
    out, err = process.communicate(timeout=LIMIT_S)
    line = "decodetax: --tensor-parallel: must divide the number of ranks that torchrun started, 2, was 3"
    assert out == ""
    assert [each for each in err.splitlines() if "decodetax:" in each] == [line]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tensor-parallel", "2", "--expert-parallel", "3"], "--expert-parallel: must divide"),
        (["--tensor-parallel", "64"], "--tensor-parallel: llama-3.2-1b has 32 query heads"),
        (["--tensor-parallel", "2", "--device", "cuda:1"], "--device: 'cuda:1' is one GPU"),
        (["--tensor-parallel", "0"], "--tensor-parallel: '0' is not a whole number from 1 to 4096"),
        (["--collective-timeout", "x"], "--collective-timeout: 'x' is not a whole number of seconds"),
    ],
)
def test_misuse_is_found_before_ranks_start(arguments, message):
    outcome = decodetax("run", "--quick", *arguments)
    assert_misuse(outcome, message)
