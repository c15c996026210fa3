"""Language models whose every layer is the same and can be timed: those of `decodetax run` and `tune`."""

from dataclasses import dataclass, field
from typing import Any

from .errors import UsageError, short_repr
from .language_model import LanguageModel, find_model
from .layers import GroupedQueryAttention, LayerGroup, Mlp, Projection
from .model_config import ModelConfig
from .rotary import Rotary, is_positive, require_positive, require_size

_SIZES = ("hidden_size", "layers", "q_heads", "kv_heads", "head_dim", "intermediate_size", "vocab_size")
_HEAD_DIMS = range(16, 257, 8)  # supported by the decode-attention kernel

# Fields of `Rotary` by their names in a config.json with Llama 3's scaling.
_LLAMA3_SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_positions": "original_max_position_embeddings",
}


@dataclass(frozen=True, kw_only=True)
class TimedModel:
    """A decoder with grouped-query attention and a gated MLP in every layer.

    Attributes:
        name: the preset's name, or one taken from the path of a `config.json`.
        source: where the shapes come from.
        hidden_size: elements of the residual stream of one token.
        layers: number of decoder layers.
        q_heads: query heads of a layer, a multiple of `kv_heads`.
        kv_heads: key heads of a layer, and as many value heads; fewer than `q_heads` in grouped-query
            attention (GQA).
        head_dim: elements of a head, a multiple of 8 from 16 to 256.
        intermediate_size: elements between the MLP's gated and last projections.
        vocab_size: rows of the embedding.
        tied_embeddings: whether the output projection is the embedding itself.
        rotary: frequencies of the rotary embedding; they change no time.
        rms_norm_eps: added to the mean square in each norm.
        qk_norm: whether each head's queries and keys pass through a norm before the rotary embedding.

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

    def __post_init__(self) -> None:
        for name in _SIZES:
            require_size(name, getattr(self, name))
        if self.q_heads % self.kv_heads:
            raise UsageError(f"q_heads: must be a multiple of kv_heads, {self.kv_heads}, was {self.q_heads}")
        if self.q_heads > 64 * self.kv_heads:
            raise UsageError(
                f"q_heads: must be at most 64 times kv_heads, {self.kv_heads}, was {self.q_heads}"
            )
        if self.head_dim not in _HEAD_DIMS:
            raise UsageError(f"head_dim: must be a multiple of 8 from 16 to 256, was {self.head_dim}")
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

    def language_model(self) -> LanguageModel:
        """The model by its layers, as a cost model takes it."""
        mlp = Mlp(intermediate_size=self.intermediate_size)
        norms = 2 * self.hidden_size
        layers = LayerGroup(count=self.layers, attention=self.attention, mlp=mlp, other_parameters=norms)
        return LanguageModel(
            name=self.name,
            source=self.source,
            hidden_size=self.hidden_size,
            vocab_size=self.vocab_size,
            tied_embeddings=self.tied_embeddings,
            layer_groups=(layers,),
            other_parameters=self.hidden_size,
        )

    @property
    def lm_head(self) -> Projection:
        """The matmul that computes logits; it runs whether its weights are tied or not."""
        return Projection("lm_head", self.hidden_size, self.vocab_size, "lm_head")

    @property
    def parameters(self) -> int:
        """Weights of embedding, an untied lm_head, projections, two norms per layer and the last one."""
        embeddings = self.lm_head.parameters * (1 if self.tied_embeddings else 2)
        layer = sum(projection.parameters for projection in self.projections) + 2 * self.hidden_size
        return embeddings + self.layers * layer + self.hidden_size

    @property
    def kv_elements_per_token_and_layer(self) -> int:
        """Elements that a token adds to a layer's cache: a key and a value per KV head."""
        return self.attention.cached_elements

    @property
    def kv_elements_per_token(self) -> int:
        """Elements that a token adds to the KV cache of all layers."""
        return self.layers * self.kv_elements_per_token_and_layer

    @property
    def group(self) -> int:
        """Size of a GQA group: query heads that read the same KV head."""
        return self.q_heads // self.kv_heads


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
        UsageError: a size is none that the kernels take, or layers differ.
    """
    shapes = {(group.attention, group.mlp) for group in model.layer_groups}
    attention, mlp = next(iter(shapes))
    if len(shapes) > 1 or not isinstance(attention, GroupedQueryAttention) or not isinstance(mlp, Mlp):
        raise UsageError("its layers differ in shape; `decodetax predict` models it")
    epsilon = config.text.get("rms_norm_eps")
    return TimedModel(
        name=model.name,
        source=model.source,
        hidden_size=model.hidden_size,
        layers=model.layers,
        q_heads=attention.q_heads,
        kv_heads=attention.kv_heads,
        head_dim=attention.head_dim,
        intermediate_size=mlp.intermediate_size,
        vocab_size=model.vocab_size,
        tied_embeddings=model.tied_embeddings,
        rotary=_rotary(config.text),
        qk_norm=config.fields.text("qk_norm") == "head",
        **({} if epsilon is None else {"rms_norm_eps": epsilon}),
    )


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
