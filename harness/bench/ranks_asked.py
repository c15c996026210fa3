"""How many ranks a run has, and how they share its model."""

import os
from pathlib import Path
from typing import Any

from ..core.errors import UsageError
from ..core.parallelism import ONE_GPU, Parallelism
from ..core.rank_process import rank_and_size, require_environment
from ..core.run_file import read_run
from ..core.timed_model import TimedModel, load_timed_model
from .run_writer import locked_run

SMALLEST_DEFAULT = "llama-3.2-1b"
"""The default model with the fewest heads."""


def ranks_to_start(device: str, asked: dict[str, Any], resume: Path | None) -> int:
    """The ranks that this process starts; 1 if it runs alone, or is a rank that torchrun started.

    Raises:
        UsageError: the options do not fit several ranks, the file to continue is not a run, or torchrun's
            variables are not as it sets them.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        require_environment()
        return 1
    if resume is not None:
        with locked_run("--resume", resume):
            return read_run(resume).parallelism.gpus
    size = asked["tensor_parallel"] or asked["expert_parallel"] or 1
    parallelism = parallelism_of(size, asked)
    if parallelism != ONE_GPU:
        require_for_ranks(device, asked)
        require_shares(load_timed_model(asked["model"] or SMALLEST_DEFAULT), parallelism)
    return parallelism.gpus


def parallelism_asked(asked: dict[str, Any]) -> Parallelism:
    """How the ranks of this run, of which this process is one, share the model.

    Raises:
        UsageError: the options do not fit the number of ranks.
    """
    found = rank_and_size()
    return parallelism_of(found[1] if found is not None else 1, asked)


def parallelism_of(size: int, asked: dict[str, Any]) -> Parallelism:
    """How `size` ranks share a model.

    Tensor parallelism is over all ranks, or over one if only --expert-parallel is given.

    Raises:
        UsageError: a size does not divide.
    """
    tensor, expert = asked["tensor_parallel"], asked["expert_parallel"]
    tensor = tensor or (size if expert is None else 1)
    if size % tensor:
        raise UsageError(
            f"--tensor-parallel: must divide the number of ranks that torchrun started, {size}, was {tensor}"
        )
    return Parallelism(tensor_parallel=tensor, data_parallel=size // tensor, expert_parallel=expert or 1)


def require_for_ranks(device: str, asked: dict[str, Any]) -> None:
    """Require that no option asks for one GPU, or for what one rank alone measures.

    Raises:
        UsageError: one does.
    """
    if device.startswith("cuda:"):
        raise UsageError(
            f"--device: {device!r} is one GPU, but each rank has its own; cuda gives rank N of a machine "
            "its GPU N"
        )
    if asked["whole_model"] not in (None, "none"):
        raise UsageError(
            f"--whole-model: {asked['whole_model']} is measured on one rank only; leave it out or choose none"
        )
    if asked["counters"]:
        raise UsageError("--counters: are read on one rank only; leave it out with several ranks")


def require_shares(model: TimedModel, parallelism: Parallelism) -> None:
    """Require that the model has heads and experts for all ranks.

    Raises:
        UsageError: it has not.
    """
    if parallelism == ONE_GPU:
        return
    heads = min(group.attention.q_heads for group in model.groups if group.attention is not None)
    if parallelism.tensor_parallel > heads:
        raise UsageError(
            f"--tensor-parallel: {model.name} has {heads} query heads, too few for "
            f"{parallelism.tensor_parallel} ranks"
        )
    experts = min((group.experts.count for group in model.groups if group.experts is not None), default=0)
    if parallelism.expert_parallel > max(1, experts):
        raise UsageError(
            f"--expert-parallel: {model.name} has {experts or 'no'} routed experts to divide among "
            f"{parallelism.expert_parallel} ranks"
        )
