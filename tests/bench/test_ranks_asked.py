"""How many ranks a run has and how they share its model."""

import types

import pytest
from decodetax.harness.bench import ranks_asked
from decodetax.harness.bench.ranks_asked import parallelism_of, ranks_to_start, require_shares
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.parallelism import Parallelism
from decodetax.harness.core.timed_model import load_timed_model
from small_cases import tiny_model


def asked(tensor=None, expert=None, **changes):
    return {
        "tensor_parallel": tensor,
        "expert_parallel": expert,
        "model": None,
        "whole_model": None,
        "counters": False,
        **changes,
    }


@pytest.fixture(autouse=True)
def _no_torchrun(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("size", "tensor", "expert", "expected"),
    [
        (1, None, None, (1, 1, 1)),
        (4, None, None, (4, 1, 1)),
        (4, 4, None, (4, 1, 1)),
        (4, 2, None, (2, 2, 1)),
        (4, 4, 2, (4, 1, 2)),
        (4, None, 4, (1, 4, 4)),
        (4, 2, 4, (2, 2, 4)),
    ],
)
def test_tensor_parallelism_is_over_all_ranks_unless_only_experts_are_divided(size, tensor, expert, expected):
    found = parallelism_of(size, asked(tensor, expert))
    assert (found.tensor_parallel, found.data_parallel, found.expert_parallel) == expected


@pytest.mark.parametrize(
    ("size", "tensor", "expert", "message"),
    [
        (3, 2, None, "--tensor-parallel: must divide the number of ranks that torchrun started, 3, was 2"),
        (1, 2, None, "--tensor-parallel: must divide the number of ranks that torchrun started, 1, was 2"),
        (4, 4, 3, "--expert-parallel: must divide tensor parallel x data parallel, 4 x 1 = 4 GPUs, was 3"),
    ],
)
def test_sizes_that_do_not_divide_are_misuse(size, tensor, expert, message):
    with pytest.raises(UsageError) as caught:
        parallelism_of(size, asked(tensor, expert))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("tensor", "expert", "model", "expected"),
    [(None, None, None, 1), (1, None, None, 1), (4, None, None, 4), (None, 8, "mixtral-8x7b", 8)],
)
def test_as_many_ranks_are_started_as_the_options_say(tensor, expert, model, expected):
    assert ranks_to_start("auto", asked(tensor, expert, model=model), None) == expected


def test_rank_of_torchrun_starts_no_ranks(monkeypatch):
    for name, text in (
        ("RANK", "1"),
        ("WORLD_SIZE", "2"),
        ("MASTER_ADDR", "host0"),
        ("MASTER_PORT", "29500"),
    ):
        monkeypatch.setenv(name, text)
    assert ranks_to_start("auto", asked(2), None) == 1
    assert ranks_asked.parallelism_asked(asked()) == Parallelism(tensor_parallel=2)


def test_continued_run_starts_the_ranks_that_it_began_with(monkeypatch, tmp_path):
    run = types.SimpleNamespace(parallelism=Parallelism(data_parallel=3, expert_parallel=3))
    monkeypatch.setattr(ranks_asked, "read_run", lambda _path: run)
    assert ranks_to_start("auto", asked(), tmp_path / "run.json") == 3


@pytest.mark.parametrize(
    ("device", "changes", "message"),
    [
        ("cuda:1", {}, "--device: 'cuda:1' is one GPU, but each rank has its own"),
        ("auto", {"whole_model": "measure"}, "--whole-model: measure is measured on one rank only"),
        ("auto", {"counters": True}, "--counters: are read on one rank only"),
    ],
)
def test_what_one_rank_alone_measures_is_refused_before_ranks_start(device, changes, message):
    with pytest.raises(UsageError) as caught:
        ranks_to_start(device, asked(2, **changes), None)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("model", "sizes", "message"),
    [
        ("tiny", {"tensor_parallel": 5}, "--tensor-parallel: tiny has 4 query heads, too few for 5 ranks"),
        (
            "tiny",
            {"data_parallel": 2, "expert_parallel": 2},
            "--expert-parallel: tiny has no routed experts to divide among 2 ranks",
        ),
        (
            "mixtral-8x7b",
            {"tensor_parallel": 16, "expert_parallel": 16},
            "--expert-parallel: mixtral-8x7b has 8 routed experts to divide among 16 ranks",
        ),
    ],
)
def test_model_needs_heads_and_experts_for_all_ranks(model, sizes, message):
    found = tiny_model() if model == "tiny" else load_timed_model(model)
    with pytest.raises(UsageError) as caught:
        require_shares(found, Parallelism(**sizes))
    assert str(caught.value) == message
