"""Language models whose parts can be timed: those of `decodetax run` and `tune`."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from msgspec import UNSET, UnsetType

from .errors import UsageError, short_repr
from .language_model import LanguageModel, find_model
from .layers import Experts, GroupedQueryAttention, LatentAttention, LayerGroup, Mlp, Projection
from .model_config import ModelConfig
from .rotary import Rotary, is_positive, require_positive, require_size

_SIZES = ("hidden_size", "layers", "q_heads", "kv_heads", "head_dim", "intermediate_size", "vocab_size")
_HEAD_DIMS = range(16, 513, 8)  # supported by the decode-attention kernel
_MAX_GROUP = 128
_RUN_BYTES = 2  # least bytes of an element that a run times
_LATENT_ELEMENTS, _LATENT_VALUES, _LATENT_HEADS = 576, 512, 128  # most of them in a latent cache

# Fields of `Rotary` by their names in a config.json with Llama 3's scaling.
_LLAMA3_SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_positions": "original_max_position_embeddings",
}


@dataclass(frozen=True, kw_only=True)
class TimedLayers:
    """Layers of one shape, which are timed part by part.

    Attributes:
        count: number of layers.
        grouped: their grouped-query attention; None if they have none.
        latent: their multi-head latent attention (MLA); None if they have none.
        dense: their dense MLP; None if they have none.
        experts: their mixture of experts; None if they have none.

    Raises:
        UsageError: the kernels do not take the attention; the line starts with its field.
    """

    count: int
    grouped: GroupedQueryAttention | None = None
    latent: LatentAttention | None = None
    dense: Mlp | None = None
    experts: Experts | None = None

    def __post_init__(self) -> None:
        if self.grouped is not None:
            _require_heads(self.grouped.q_heads, self.grouped.kv_heads)
            for name, size in (("head_dim", self.grouped.head_dim), ("v_head_dim", self.grouped.value_dim)):
                _require_head_dim(name, size)
        if self.latent is not None:
            for name, size, most in (
                ("kv_lora_rank + qk_rope_head_dim", self.latent.latent_elements, _LATENT_ELEMENTS),
                ("kv_lora_rank", self.latent.kv_rank, _LATENT_VALUES),
            ):
                if size % 8 or not 16 <= size <= most:
                    raise UsageError(f"{name}: must be a multiple of 8 from 16 to {most}, was {size}")
            if self.latent.q_heads > _LATENT_HEADS:
                raise UsageError(f"q_heads: must be at most {_LATENT_HEADS}, was {self.latent.q_heads}")

    @property
    def attention(self) -> GroupedQueryAttention | LatentAttention | None:
        """The attention of a layer."""
        return self.latent if self.grouped is None else self.grouped

    @property
    def layer_group(self) -> LayerGroup:
        """The layers as a cost model takes them."""
        return LayerGroup(count=self.count, attention=self.attention, mlp=self.experts or self.dense)


@dataclass(frozen=True, kw_only=True)
class TimedModel:
    """A decoder: one with grouped-query attention and a gated MLP in every layer, or one of `layer_groups`.

    The sizes of heads and MLP are those of every layer, or of the first where layers are in groups.

    Attributes:
        name: the preset's name, or one taken from the path of a `config.json`.
        source: where the shapes come from.
        hidden_size: elements of the residual stream of one token.
        layers: number of decoder layers.
        q_heads: query heads of a layer, a multiple of `kv_heads`.
        kv_heads: key heads of a layer, and as many value heads; fewer than `q_heads` in grouped-query
            attention (GQA).
        head_dim: elements of a head, a multiple of 8 from 16 to 512.
        intermediate_size: elements between the MLP's gated and last projections.
        vocab_size: rows of the embedding.
        tied_embeddings: whether the output projection is the embedding itself.
        rotary: frequencies of the rotary embedding; they change no time.
        rms_norm_eps: added to the mean square in each norm.
        qk_norm: whether each head's queries and keys pass through a norm before the rotary embedding.
        layer_groups: layers by shape, which are timed part by part, never in one piece; unset, and left out
            of files, where every layer is alike and has none of the options of `DecodeAttention`.
        stored_in: formats of the published weights where they are not of 16 bits; unset otherwise. All are
            timed in the dtype of the run.

    Raises:
        UsageError: a field is not as described; the line starts with its name.
    """

    name: str
    source: str
    hidden_size: int
    layers: int
    q_heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tied_embeddings: bool
    rotary: Rotary = field(default_factory=Rotary)
    rms_norm_eps: float = 1e-6
    qk_norm: bool = False
    layer_groups: tuple[TimedLayers, ...] | UnsetType = UNSET
    stored_in: tuple[str, ...] | UnsetType = UNSET

    def __post_init__(self) -> None:
        for name in _SIZES:
            require_size(name, getattr(self, name))
        _require_heads(self.q_heads, self.kv_heads)
        _require_head_dim("head_dim", self.head_dim)
        if not isinstance(self.tied_embeddings, bool):
            raise UsageError(
                f"tied_embeddings: must be True or False, was {short_repr(self.tied_embeddings)}"
            )
        require_positive("rms_norm_eps", self.rms_norm_eps)

    @property
    def attention(self) -> GroupedQueryAttention:
        """The attention of each layer."""
        return GroupedQueryAttention(q_heads=self.q_heads, kv_heads=self.kv_heads, head_dim=self.head_dim)

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The matmuls of one decoder layer in the order they run: qkv, o, gate_up, down."""
        mlp = Mlp(intermediate_size=self.intermediate_size)
        return (*self.attention.projections(self.hidden_size), *mlp.projections(self.hidden_size))

    @property
    def groups(self) -> tuple[TimedLayers, ...]:
        """All layers by shape: one group where every layer is alike."""
        if isinstance(self.layer_groups, UnsetType):
            mlp = Mlp(intermediate_size=self.intermediate_size)
            return (TimedLayers(count=self.layers, grouped=self.attention, dense=mlp),)
        return self.layer_groups

    @property
    def in_parts(self) -> str | None:
        """What its layers have that is timed part by part alone, in words; None if a layer is timed whole."""
        if isinstance(self.layer_groups, UnsetType):
            return None
        found = dict.fromkeys(part for group in self.layer_groups for part in _in_parts(group))
        return ", ".join(found) or "layers of several shapes"

    def language_model(self) -> LanguageModel:
        """The model by its layers, as a cost model takes it."""
        norms = 2 * self.hidden_size
        return LanguageModel(
            name=self.name,
            source=self.source,
            hidden_size=self.hidden_size,
            vocab_size=self.vocab_size,
            tied_embeddings=self.tied_embeddings,
            layer_groups=tuple(replace(each.layer_group, other_parameters=norms) for each in self.groups),
            other_parameters=self.hidden_size,
        )

    @property
    def lm_head(self) -> Projection:
        """The matmul that computes logits; it runs whether its weights are tied or not."""
        return Projection("lm_head", self.hidden_size, self.vocab_size, "lm_head")

    @property
    def parameters(self) -> int:
        """Weights of embedding, an untied lm_head, projections, two norms per layer and the last one."""
        return self.language_model().parameters

    @property
    def kv_elements_per_token_and_layer(self) -> int:
        """Elements that a token adds to a layer's cache: a key and a value per KV head."""
        return self.attention.cached_elements

    @property
    def kv_elements_per_token(self) -> int:
        """Elements that a token adds to the KV cache of all layers."""
        return self.language_model().kv_elements_per_token

    @property
    def group(self) -> int:
        """Size of a GQA group: query heads that read the same KV head."""
        return self.q_heads // self.kv_heads


def _require_heads(q_heads: int, kv_heads: int) -> None:
    if q_heads % kv_heads:
        raise UsageError(f"q_heads: must be a multiple of kv_heads, {kv_heads}, was {q_heads}")
    if q_heads > _MAX_GROUP * kv_heads:
        raise UsageError(f"q_heads: must be at most {_MAX_GROUP} times kv_heads, {kv_heads}, was {q_heads}")


def _require_head_dim(name: str, size: int) -> None:
    if size not in _HEAD_DIMS:
        raise UsageError(
            f"{name}: must be a multiple of 8 from {_HEAD_DIMS[0]} to {_HEAD_DIMS[-1]}, was {size}"
        )


def _in_parts(group: TimedLayers) -> Iterator[str]:
    """What a layer has beyond plain grouped-query attention and a gated MLP."""
    grouped = group.grouped
    if group.latent is not None:
        yield "multi-head latent attention (MLA)"
    if grouped is not None:
        plain = GroupedQueryAttention(
            q_heads=grouped.q_heads, kv_heads=grouped.kv_heads, head_dim=grouped.head_dim
        )
        named = {
            "window": "a sliding window",
            "softcap": "a softcap",
            "sinks": "attention sinks",
            "v_head_dim": "values of another size than keys",
            "values_are_keys": "values that are keys",
            "output_gate": "an output gate of attention",
        }
        yield from (text for name, text in named.items() if getattr(grouped, name) != getattr(plain, name))
    if group.attention is None:
        yield "layers without attention"
    if group.experts is not None:
        yield "experts"
    elif group.dense is None:
        yield "layers without MLP"
    elif not group.dense.gated:
        yield "an MLP without a gate"


def load_timed_model(name_or_path: str) -> TimedModel:
    """Gives the model that `--model` names if all of its parts can be timed.

    Raises:
        UsageError: as `load_language_model`; or a part cannot be timed, which the line names.
    """
    model, config = find_model(name_or_path)
    if model.untimed_parts is not None:
        raise UsageError(
            f"--model: {short_repr(name_or_path)} cannot be timed: {model.untimed_parts}; "
            "`decodetax predict` models it"
        )
    try:
        return timed_model(model, config)
    except UsageError as error:
        raise UsageError(f"--model: {short_repr(name_or_path)}: {error}") from None


def timed_model(model: LanguageModel, config: ModelConfig) -> TimedModel:
    """The model as it is timed; biases are left out.

    Raises:
        UsageError: a size is none that the kernels take.
    """
    groups = _groups(model)
    attention = next((group.attention for group in groups if group.attention is not None), None)
    if attention is None:
        raise UsageError("no layer has attention")
    first = groups[0]
    mlp = first.dense or (first.experts and (first.experts.shared or first.experts.expert))
    epsilon = config.text.get("rms_norm_eps")
    return TimedModel(
        name=model.name,
        source=model.source,
        hidden_size=model.hidden_size,
        layers=model.layers,
        q_heads=attention.q_heads,
        kv_heads=attention.q_heads if isinstance(attention, LatentAttention) else attention.kv_heads,
        head_dim=(
            attention.nope_head_dim + attention.rope_head_dim
            if isinstance(attention, LatentAttention)
            else attention.head_dim
        ),
        intermediate_size=mlp.intermediate_size if mlp else model.hidden_size,
        vocab_size=model.vocab_size,
        tied_embeddings=model.tied_embeddings,
        rotary=_rotary(config.text),
        qk_norm=config.fields.text("qk_norm") == "head",
        layer_groups=UNSET if len(groups) == 1 and not [*_in_parts(first)] else groups,
        stored_in=_stored_in(model) or UNSET,
        **({} if epsilon is None else {"rms_norm_eps": epsilon}),
    )


def _groups(model: LanguageModel) -> tuple[TimedLayers, ...]:
    """The layers by shape, whatever their formats, in the order in which shapes first occur."""
    counts: dict[tuple[Any, Any], int] = {}
    for group in model.layer_groups:
        shape = (group.attention, group.mlp)
        counts[shape] = counts.get(shape, 0) + group.count
    return tuple(
        TimedLayers(
            count=count,
            grouped=attention if isinstance(attention, GroupedQueryAttention) else None,
            latent=attention if isinstance(attention, LatentAttention) else None,
            dense=mlp if isinstance(mlp, Mlp) else None,
            experts=mlp if isinstance(mlp, Experts) else None,
        )
        for (attention, mlp), count in counts.items()
    )


def _stored_in(model: LanguageModel) -> tuple[str, ...]:
    """Formats of the layers' weights that are not of 16 bits, each once."""
    found = {
        group.formats.of(role).name: None
        for group in model.layer_groups
        for role in ("attention", "mlp", "experts", "shared")
        if _has(group, role) and group.formats.of(role).bytes_per_element < _RUN_BYTES
    }
    return tuple(found)


def _has(group: LayerGroup, role: str) -> bool:
    """Whether a layer has weights of a role."""
    experts = group.mlp if isinstance(group.mlp, Experts) else None
    return {
        "attention": group.attention is not None,
        "mlp": isinstance(group.mlp, Mlp),
        "experts": experts is not None,
        "shared": experts is not None and experts.shared is not None,
    }[role]


def _rotary(config: dict[str, Any]) -> Rotary:
    """The rotary embedding: `rope_parameters`, or in older files `rope_theta` and `rope_scaling`.

    Other scalings than linear and Llama 3's, and different ones by kind of layer, are read as unscaled.
    """
    scaling = config.get("rope_parameters") or config.get("rope_scaling")
    scaling = scaling if isinstance(scaling, dict) else {}
    theta = scaling.get("rope_theta", config.get("rope_theta"))
    values: dict[str, Any] = {"theta": theta} if is_positive(theta) else {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "llama3":
        values |= {name: scaling.get(known) for name, known in _LLAMA3_SCALING.items()}
    elif kind == "linear":
        values |= {"factor": scaling.get("factor")}
    return Rotary(**values)
