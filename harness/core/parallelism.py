"""How GPUs share a model: tensor, data, expert and pipeline parallelism, and each GPU's share of a layer."""

import math
from dataclasses import dataclass, replace

from .errors import UsageError
from .language_model import LanguageModel
from .layers import Attention, Experts, GroupedQueryAttention, LatentAttention, LinearAttention
from .options import MAX_GPUS


@dataclass(frozen=True, kw_only=True)
class Parallelism:
    """GPUs by the way they share a model, as engines name it.

    `tensor_parallel` GPUs share each layer's attention and dense MLP; `data_parallel` such groups hold copies
    of these and decode different sequences. Routed experts are divided among `expert_parallel` GPUs, which
    divides tensor_parallel x data_parallel; the rest of that product splits each expert. `pipeline_parallel`
    stages have equal shares of the layers.

    Raises:
        UsageError: a size is not a positive integer, `expert_parallel` does not divide, or there are more
            GPUs than `MAX_GPUS`; the line starts with the option's name.
    """

    tensor_parallel: int = 1
    data_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: int = 1

    def __post_init__(self) -> None:
        for name in ("tensor_parallel", "data_parallel", "pipeline_parallel", "expert_parallel"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise UsageError(
                    f"--{name.replace('_', '-')}: must be an integer of at least 1, was {size!r}"
                )
        if self.stage_gpus % self.expert_parallel:
            raise UsageError(
                f"--expert-parallel: must divide tensor parallel x data parallel, {self.tensor_parallel} x "
                f"{self.data_parallel} = {self.stage_gpus} GPUs, was {self.expert_parallel}"
            )
        if self.gpus > MAX_GPUS:
            raise UsageError(f"--pipeline-parallel: {self.gpus} GPUs in all; at most {MAX_GPUS}")

    @property
    def stage_gpus(self) -> int:
        """GPUs of one pipeline stage, which share its experts."""
        return self.tensor_parallel * self.data_parallel

    @property
    def gpus(self) -> int:
        """All GPUs."""
        return self.stage_gpus * self.pipeline_parallel

    @property
    def expert_tensor_parallel(self) -> int:
        """GPUs that share each routed expert."""
        return self.stage_gpus // self.expert_parallel

    @property
    def text(self) -> str:
        """Such as "TP 8" or "TP 2, DP 4, EP 8"; empty on one GPU."""
        sizes = {
            "TP": self.tensor_parallel,
            "DP": self.data_parallel,
            "PP": self.pipeline_parallel,
            "EP": self.expert_parallel,
        }
        return ", ".join(f"{name} {size}" for name, size in sizes.items() if size > 1)


ONE_GPU = Parallelism()


def require_parts(model: LanguageModel, parallelism: Parallelism) -> None:
    """Require that the model has a part for every GPU of a pipeline and of expert parallelism.

    Raises:
        UsageError: there are more stages than layers, or more GPUs for experts than experts.
    """
    layers = sum(group.count for group in model.layer_groups)
    if parallelism.pipeline_parallel > layers:
        raise UsageError(
            f"--pipeline-parallel: {model.name} has {layers} layers, too few for "
            f"{parallelism.pipeline_parallel} stages"
        )
    experts = min((g.mlp.count for g in model.layer_groups if isinstance(g.mlp, Experts)), default=0)
    if parallelism.expert_parallel > max(1, experts):
        raise UsageError(
            f"--expert-parallel: {model.name} has {experts or 'no'} routed experts to divide among "
            f"{parallelism.expert_parallel} GPUs"
        )


def attention_share(attention: Attention, tensor_parallel: int) -> Attention:
    """The attention of the busiest GPU: its heads, padded where they do not divide.

    With more GPUs than KV heads, GPUs hold copies of these and split their query heads.

    Raises:
        UsageError: there are more GPUs than query heads.
    """
    heads = attention.heads if isinstance(attention, LinearAttention) else attention.q_heads
    if tensor_parallel > heads:
        raise UsageError(
            f"--tensor-parallel: {tensor_parallel} GPUs cannot share an attention of {heads} heads; "
            "--data-parallel adds more GPUs"
        )
    if isinstance(attention, LinearAttention):
        return _linear_share(attention, math.ceil(heads / tensor_parallel))
    if isinstance(attention, LatentAttention):
        return replace(attention, q_heads=math.ceil(heads / tensor_parallel))
    return _grouped_share(attention, tensor_parallel)


def _grouped_share(attention: GroupedQueryAttention, tensor_parallel: int) -> GroupedQueryAttention:
    group = attention.q_heads // attention.kv_heads
    if tensor_parallel <= attention.kv_heads:
        kv_heads = math.ceil(attention.kv_heads / tensor_parallel)
        return replace(attention, q_heads=kv_heads * group, kv_heads=kv_heads)
    copies = tensor_parallel // attention.kv_heads  # of the KV head with the fewest
    return replace(attention, q_heads=math.ceil(group / copies), kv_heads=1)


def _linear_share(attention: LinearAttention, heads: int) -> LinearAttention:
    def part(size: int) -> int:
        return math.ceil(size * heads / attention.heads)

    return replace(
        attention,
        heads=heads,
        state_elements=part(attention.state_elements),
        operations_per_token=part(attention.operations_per_token),
        in_features_out=part(attention.in_features_out),
        out_features_in=part(attention.out_features_in),
    )


def reached_ranks(ranks: int, experts_per_token: int) -> float:
    """Ranks that a token's experts lie on in expectation: n (1 - (1 - 1/n)^k) of n ranks for k experts."""
    return ranks * (1 - (1 - 1 / ranks) ** experts_per_token)
