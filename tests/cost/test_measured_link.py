"""The link of a run of several ranks in place of the modelled one."""

import json

import pytest
from click.testing import CliRunner
from decodetax.harness.core.errors import UsageError
from decodetax.harness.cost.communication import transfer_s
from decodetax.harness.cost.deployment import deployment
from decodetax.harness.cost.forward import Transfer
from decodetax.harness.cost.measured_link import with_measured_link
from decodetax.harness.cost.predict_command import predict_command
from hand_made import run_record
from rank_runs import failed_collective, link_row, rank_run

H100 = deployment("h100")


def saved(tmp_path, run):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run.to_json()), encoding="utf-8")
    return path


@pytest.fixture
def run_file(tmp_path):
    """A link of 50 us, and 8 ms for 16 MiB."""
    return saved(tmp_path, rank_run())


def all_reduce_s(on, message_bytes):
    return transfer_s(Transfer(kind="all-reduce", times=1, gpus=2, moved_bytes=message_bytes), on)


def test_modelled_all_reduces_take_as_long_as_measured(run_file):
    found = with_measured_link(H100, run_file)
    assert found.all_reduce_latency_s == pytest.approx(50e-6)
    assert all_reduce_s(found, 2**24) == pytest.approx(8e-3)
    assert all_reduce_s(found, 2**23) == pytest.approx(50e-6 + (8e-3 - 50e-6) / 2)
    assert all_reduce_s(H100, 2**24) < 1e-3


def test_the_fastest_provider_of_each_message_counts(tmp_path):
    rows = [
        link_row(8192, 50e-6), link_row(8192, 20e-6, provider="symm-one-shot"),
        link_row(2**24, 8e-3), link_row(2**24, 9e-3, provider="symm-one-shot"),
        failed_collective(link_row(2**30, 1.0).case),
    ]  # fmt: skip
    found = with_measured_link(H100, saved(tmp_path, rank_run(collectives=rows)))
    assert found.all_reduce_latency_s == pytest.approx(20e-6)
    assert all_reduce_s(found, 2**24) == pytest.approx(8e-3)


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (run_record(), "has no measured link; it must be a run of several ranks"),
        (rank_run(collectives=[]), "has no measured link"),
        (rank_run(hosts=("one", "two")), "is a run on 2 hosts"),
        (rank_run(collectives=[link_row(8192, 1e-3), link_row(2**24, 1e-3)]), "shows no bandwidth"),
    ],
)
def test_runs_without_the_link_of_a_host_are_refused(tmp_path, run, reason):
    with pytest.raises(UsageError, match=f"--link-from: '.*run.json' {reason}"):
        with_measured_link(H100, saved(tmp_path, run))


def predicted(*words):
    command = ["--model", "llama-3.1-8b", "--gpu", "h100", "--tensor-parallel", "2", "--batch", "1"]
    return CliRunner().invoke(predict_command, [*command, "--context", "1024", *words])


def test_predict_takes_the_link_of_a_run(run_file):
    given = ["--link-from", str(run_file)]
    slow, fast = (json.loads(predicted("--json", *words).output) for words in (given, []))
    taken_s = [row["output_s_per_token"] for document in (slow, fast) for row in document["predictions"]]
    assert taken_s[0] - taken_s[1] == pytest.approx(64 * 50e-6, rel=0.15)


@pytest.mark.parametrize("option", ["--link-gb-per-s", "--link-latency-us"])
def test_a_link_is_given_once(run_file, option):
    result = predicted("--link-from", str(run_file), option, "5")
    assert isinstance(result.exception, UsageError)
    assert str(result.exception) == f"{option}: does not go with --link-from, which has both"
