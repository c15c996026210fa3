"""One rank's share of a language model, and what the ranks exchange in a forward of it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from msgspec import UNSET, UnsetType

from .cases import Phase
from .collectives import COLLECTIVES, Collective, collective
from .layers import Experts, GroupedQueryAttention, LatentAttention, Mlp
from .parallelism import Parallelism, attention_share, reached_ranks
from .timed_model import TimedLayers, TimedModel


def shard_of(model: TimedModel, parallelism: Parallelism) -> TimedModel:
    """The model of one rank: its heads, its columns of QKV and gate_up, rows of O and down, its vocabulary.

    Sizes that do not divide are padded, so that all ranks have the same. Routed experts keep their number,
    of which a rank has a part (see `local_share`); their sizes are those of one rank.

    Raises:
        UsageError: there are more ranks than query heads.
    """
    ranks = parallelism.tensor_parallel
    if ranks == 1 and parallelism.expert_tensor_parallel == 1:
        return model
    groups = tuple(_group_share(group, parallelism) for group in model.groups)
    attention = next(group.attention for group in groups if group.attention is not None)
    return replace(
        model,
        name=f"{model.name} ({parallelism.text})",
        q_heads=attention.q_heads,
        kv_heads=attention.q_heads if isinstance(attention, LatentAttention) else attention.kv_heads,
        intermediate_size=math.ceil(model.intermediate_size / ranks),
        vocab_size=math.ceil(model.vocab_size / ranks),
        layer_groups=UNSET if isinstance(model.layer_groups, UnsetType) else groups,
    )


def _group_share(group: TimedLayers, parallelism: Parallelism) -> TimedLayers:
    ranks = parallelism.tensor_parallel
    share = None if group.attention is None else attention_share(group.attention, ranks)
    return replace(
        group,
        grouped=share if isinstance(share, GroupedQueryAttention) else None,
        latent=share if isinstance(share, LatentAttention) else None,
        dense=_mlp_share(group.dense, ranks),
        experts=None if group.experts is None else _experts_share(group.experts, parallelism),
    )


def _mlp_share(mlp: Mlp | None, ranks: int) -> Mlp | None:
    if mlp is None:
        return None
    return replace(mlp, intermediate_size=math.ceil(mlp.intermediate_size / ranks))


def _experts_share(experts: Experts, parallelism: Parallelism) -> Experts:
    inner = math.ceil(experts.expert.intermediate_size / parallelism.expert_tensor_parallel)
    return replace(
        experts,
        expert=replace(experts.expert, intermediate_size=inner),
        shared=_mlp_share(experts.shared, parallelism.tensor_parallel),
    )


def local_share(experts: Experts, parallelism: Parallelism) -> float:
    """Share of the routed experts that the rank with the most of them has."""
    return math.ceil(experts.count / parallelism.expert_parallel) / experts.count


@dataclass(frozen=True, kw_only=True)
class CollectiveUse:
    """A collective of a forward.

    Attributes:
        times: number of them in a forward of all layers.
        of_logits: whether it exchanges logits, which not every token of a prompt has.
    """

    case: Collective
    times: int
    of_logits: bool = False


def collective_uses(
    model: TimedModel, parallelism: Parallelism, *, phase: Phase, rows: int, head_rows: int, dtype: str
) -> Iterator[CollectiveUse]:
    """What the ranks exchange in one forward, as Megatron shards a model (arXiv 1909.08053).

    Tensor parallelism adds up the outputs of O and of the MLP in each layer, and those of the embedding,
    whose vocabulary is split; it gathers the logits. With data-parallel attention the rows of a layer of
    experts travel to their experts and back in place of being added up.

    Args:
        model: the whole model.
        parallelism: how the ranks share it.
        phase: of the forward.
        rows: tokens of one replica's forward.
        head_rows: those of them with logits.
        dtype: dtype of the activations.
    """
    ranks, hidden = parallelism.tensor_parallel, model.hidden_size
    routed = [group for group in model.groups if group.experts is not None]
    travelling = sum(group.count for group in routed) if parallelism.data_parallel > 1 else 0
    if ranks > 1:
        reduced = sum(_reduced(group) for group in model.groups) - travelling + 1
        yield CollectiveUse(case=collective("all_reduce", phase, rows * hidden, ranks, dtype), times=reduced)
        logits = head_rows * math.ceil(model.vocab_size / ranks) * ranks
        gathered = collective("all_gather", phase, logits, ranks, dtype)
        yield CollectiveUse(case=gathered, times=1, of_logits=True)
    if travelling:
        per_token = max(group.experts.per_token for group in routed if group.experts is not None)
        sent = math.ceil(rows / ranks * reached_ranks(parallelism.stage_gpus, per_token)) * hidden
        case = collective("all_to_all", phase, sent, parallelism.stage_gpus, dtype)
        yield CollectiveUse(case=case, times=2 * travelling)


def _reduced(group: TimedLayers) -> int:
    """All-reduces of a group's layers: after attention, and after the MLP or the experts."""
    has_mlp = group.dense is not None or group.experts is not None
    return group.count * ((group.attention is not None) + has_mlp)


def compared_collectives(
    model: TimedModel, parallelism: Parallelism, *, phase: Phase, rows: int, dtype: str
) -> tuple[Collective, ...]:
    """Every kind of collective among all ranks, with the hidden states of a forward as its message."""
    return tuple(
        collective(kind, phase, rows * model.hidden_size, parallelism.stage_gpus, dtype)
        for kind in COLLECTIVES
    )
