"""Shapes of a decoder-only language model: a preset, or any Hugging Face `config.json`."""

import difflib
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from . import layers as shapes
from .data_table import data_table
from .errors import UsageError, short_repr
from .formats import BF16, Format, Formats, layers_in
from .model_config import read_model_config
from .model_parts import Experts, LatentAttention, Rotary, require_positive, require_size

_SIZE_FIELDS = ("hidden_size", "layers", "q_heads", "kv_heads", "head_dim", "vocab_size")
_TABLE_FIELDS = (*_SIZE_FIELDS[:-1], "intermediate_size", "vocab_size")
_HEAD_DIMS = range(16, 257, 8)  # supported by the decode-attention kernel

Cell: TypeAlias = str | int | float | None


@dataclass(frozen=True)
class Projection:
    """One matmul of a model, with weights `[out_features, in_features]`.

    Attributes:
        name: such as "qkv", "o", "gate_up", "down" or "lm_head".
        in_features: elements of one token's input.
        out_features: elements of one token's output.
    """

    name: str
    in_features: int
    out_features: int

    @property
    def parameters(self) -> int:
        """Number of weights; a bias is not counted."""
        return self.in_features * self.out_features


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """The shapes of a decoder whose layers are attention and a gated MLP or a mixture of experts (MoE).

    Attributes:
        name: the preset's name, or one taken from the path of a `config.json`.
        source: where the shapes come from.
        hidden_size: elements of the residual stream of one token.
        layers: number of decoder layers.
        q_heads: query heads of a layer, a multiple of `kv_heads`.
        kv_heads: key heads of a layer, and as many value heads; fewer than `q_heads` in grouped-query
            attention (GQA).
        head_dim: elements of a head, a multiple of 8 from 16 to 256.
        intermediate_size: elements between the MLP's gated and last projections; None if no layer has a
            dense MLP.
        vocab_size: rows of the embedding.
        tied_embeddings: whether the output projection is the embedding itself.
        window: tokens that a sliding-window layer attends to, its own included; None if no layer has one.
        window_layers: number of sliding-window layers.
        experts: the mixture of experts in place of the MLP; None for a dense model.
        latent: multi-head latent attention (MLA) in place of `kv_heads` keys and values; None without.
        rotary: frequencies of the rotary embedding; they change no time.
        rms_norm_eps: added to the mean square in each norm.
        qk_norm: whether each head's queries and keys pass through a norm before the rotary embedding.
        max_position_embeddings: longest context the model is made for; None if unknown.
        assumed: lines that say what was assumed where the config says nothing.
        weights: format of all weights.

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
    intermediate_size: int | None
    vocab_size: int
    tied_embeddings: bool
    window: int | None = None
    window_layers: int = 0
    experts: Experts | None = None
    latent: LatentAttention | None = None
    rotary: Rotary = field(default_factory=Rotary)
    rms_norm_eps: float = 1e-6
    qk_norm: bool = False
    max_position_embeddings: int | None = None
    assumed: tuple[str, ...] = ()
    weights: Format = BF16

    def __post_init__(self) -> None:
        for name in _SIZE_FIELDS:
            require_size(name, getattr(self, name))
        if self.intermediate_size is not None or self.dense_layers:
            require_size("intermediate_size", self.intermediate_size)
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
        require_size("window_layers", self.window_layers, least=0)
        if self.window is not None:
            require_size("window", self.window)
        if self.window_layers > (0 if self.window is None else self.layers):
            allowed = "0 without a window" if self.window is None else f"at most layers, {self.layers}"
            raise UsageError(f"window_layers: must be {allowed}, was {self.window_layers}")
        if self.experts is not None and self.experts.dense_layers > self.layers:
            raise UsageError(
                f"experts.dense_layers: must be at most layers, {self.layers}, "
                f"was {self.experts.dense_layers}"
            )

    @property
    def layer_groups(self) -> tuple[shapes.LayerGroup, ...]:
        """The layers by shape."""
        mlps: list[tuple[int, shapes.Mlp | shapes.Experts]] = []
        if self.dense_layers and self.intermediate_size is not None:
            mlps.append((self.dense_layers, shapes.Mlp(intermediate_size=self.intermediate_size)))
        if self.experts is not None and self.layers > self.dense_layers:
            size, shared = self.experts.intermediate_size, self.experts.shared
            experts = shapes.Experts(
                count=self.experts.count,
                per_token=self.experts.per_token,
                expert=shapes.Mlp(intermediate_size=size),
                shared=shapes.Mlp(intermediate_size=shared * size) if shared else None,
            )
            mlps.append((self.layers - self.dense_layers, experts))
        left, groups = self.window_layers, []
        for count, mlp in mlps:
            windowed = min(left, count)
            left -= windowed
            for times, window in ((windowed, self.window), (count - windowed, None)):
                if times:
                    groups.append(
                        shapes.LayerGroup(
                            count=times, attention=self._attention(window), mlp=mlp, formats=self.formats
                        )
                    )
        return tuple(groups)

    def _attention(self, window: int | None) -> shapes.Attention:
        latent = self.latent
        if latent is None:
            return shapes.GroupedQueryAttention(
                q_heads=self.q_heads, kv_heads=self.kv_heads, head_dim=self.head_dim, window=window
            )
        return shapes.LatentAttention(
            q_heads=self.q_heads,
            q_rank=latent.q_rank,
            kv_rank=latent.kv_rank,
            nope_head_dim=latent.nope_head_dim,
            rope_head_dim=latent.rope_head_dim,
            v_head_dim=latent.v_head_dim,
        )

    @property
    def formats(self) -> Formats:
        """The formats of all parts."""
        return layers_in(self.weights)

    def with_formats(self, weights: Format) -> "LanguageModel":
        """The model with all weights stored in one format."""
        return replace(self, weights=weights)

    @property
    def dense_layers(self) -> int:
        """Layers with a dense MLP: all but those with experts."""
        return self.layers if self.experts is None else self.experts.dense_layers

    @property
    def attention_projections(self) -> tuple[Projection, ...]:
        """The matmuls around a layer's attention in the order they run: qkv and o, or q_a to o for MLA.

        kv_b, the latent's projection to keys and values, has the same weights whether it is applied to each
        cached token or, as in decoding, absorbed into queries and outputs.
        """
        hidden, latent = self.hidden_size, self.latent
        if latent is None:
            qkv = (self.q_heads + 2 * self.kv_heads) * self.head_dim
            return Projection("qkv", hidden, qkv), Projection("o", self.q_heads * self.head_dim, hidden)
        q = self.q_heads * (latent.nope_head_dim + latent.rope_head_dim)
        queries: tuple[Projection, ...] = (Projection("q", hidden, q),)
        if latent.q_rank is not None:
            queries = Projection("q_a", hidden, latent.q_rank), Projection("q_b", latent.q_rank, q)
        return (
            *queries,
            Projection("kv_a", hidden, latent.cached_elements),
            Projection("kv_b", latent.kv_rank, self.q_heads * (latent.nope_head_dim + latent.v_head_dim)),
            Projection("o", self.q_heads * latent.v_head_dim, hidden),
        )

    @property
    def mlp_projections(self) -> tuple[Projection, Projection] | tuple[()]:
        """The matmuls of a dense layer's MLP; empty if no layer has one."""
        return () if self.intermediate_size is None else self._gated_mlp(self.intermediate_size)

    @property
    def expert_projections(self) -> tuple[Projection, Projection] | tuple[()]:
        """The matmuls of one expert; empty for a dense model."""
        return () if self.experts is None else self._gated_mlp(self.experts.intermediate_size)

    def _gated_mlp(self, intermediate_size: int) -> tuple[Projection, Projection]:
        hidden = self.hidden_size
        gate_up = Projection("gate_up", hidden, 2 * intermediate_size)
        return gate_up, Projection("down", intermediate_size, hidden)

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The matmuls of one dense decoder layer in the order they run: qkv, o, gate_up, down."""
        return (*self.attention_projections, *self.mlp_projections)

    @property
    def untimed_parts(self) -> str | None:
        """The parts of the model that `decodetax run` cannot time; None if it can time all."""
        parts = {
            "mixture of experts": self.experts is not None,
            "sliding window": self.window_layers > 0,
            "multi-head latent attention (MLA)": self.latent is not None,
        }
        return "; ".join(part for part, present in parts.items() if present) or None

    @property
    def lm_head(self) -> Projection:
        """The matmul that computes logits; it runs whether its weights are tied or not."""
        return Projection("lm_head", self.hidden_size, self.vocab_size)

    @property
    def parameters(self) -> int:
        """Number of weights.

        Embedding, an untied lm_head, projections, experts and routers, two norms per layer and the last one.
        Not counted, as the shapes do not give them: biases, norms of q and k, third and fourth norms of a
        layer. They are below 0.1% of every preset; each count is within 1% of the published one.
        """
        return self._parameters_with(0 if self.experts is None else self.experts.count)

    @property
    def active_parameters(self) -> int:
        """Number of weights with only a token's own routed experts, embedding and lm_head included."""
        return self._parameters_with(0 if self.experts is None else self.experts.per_token)

    def _parameters_with(self, routed: int) -> int:
        """Number of weights with a number of routed experts per layer."""
        embeddings = self.lm_head.parameters * (1 if self.tied_embeddings else 2)
        attention = _parameters(self.attention_projections) + 2 * self.hidden_size
        mlps = self.dense_layers * _parameters(self.mlp_projections)
        if self.experts is not None:
            experts = (routed + self.experts.shared) * _parameters(self.expert_projections)
            router = self.hidden_size * self.experts.count
            mlps += (self.layers - self.dense_layers) * (experts + router)
        return embeddings + self.layers * attention + mlps + self.hidden_size

    @property
    def kv_elements_per_token_and_layer(self) -> int:
        """Elements that a token adds to a layer's cache: a key and a value per KV head, or its latent."""
        return 2 * self.kv_heads * self.head_dim if self.latent is None else self.latent.cached_elements

    @property
    def kv_elements_per_token(self) -> int:
        """Elements that a token adds to the KV cache of all layers, while within their windows."""
        return self.layers * self.kv_elements_per_token_and_layer

    @property
    def group(self) -> int:
        """Size of a GQA group: query heads that read the same KV head."""
        return self.q_heads // self.kv_heads


def _parameters(projections: tuple[Projection, ...]) -> int:
    return sum(projection.parameters for projection in projections)


def load_timed_model(name_or_path: str) -> LanguageModel:
    """Gives the model that `--model` names if all of its parts can be timed.

    Raises:
        UsageError: as `load_language_model`; or a part cannot be timed, which the line names.
    """
    model = load_language_model(name_or_path)
    if model.untimed_parts is not None:
        raise UsageError(
            f"--model: {short_repr(name_or_path)} cannot be timed: {model.untimed_parts}; "
            "`decodetax predict` models it"
        )
    return model


def load_language_model(name_or_path: str) -> LanguageModel:
    """Gives the model that the argument `--model` names.

    Args:
        name_or_path: a preset's name in any case, or the path of a `config.json` or of a directory that
            holds one. A preset takes precedence over a file of the same name.

    Raises:
        UsageError: there is no such preset or file, or the file's model cannot be described; one line that
            starts with `--model:`.
    """
    preset = _presets().get(name_or_path.lower())
    if preset is not None:
        return _language_model(preset)
    path = _config_path(name_or_path)
    try:
        return LanguageModel(name=_name_of(path), **read_model_config(path))
    except UsageError as error:
        raise UsageError(f"--model: {short_repr(str(path))}: {error}") from None


def preset_table() -> tuple[dict[str, Cell], ...]:
    """Gives a row for each preset.

    `parameters_billion` and `active_billion` are computed from the shapes; `published_parameters_billion` is
    the published figure. `can_run` is "yes", or "no" with the parts that `decodetax run` cannot time.
    """
    return tuple(_table_row(preset) for preset in _presets().values())


@functools.cache
def _presets() -> Mapping[str, Mapping[str, str]]:
    """Rows of the preset file by name, in its order."""
    return MappingProxyType({row["model"]: row for row in data_table("models.csv")})


def _language_model(preset: Mapping[str, str]) -> LanguageModel:
    sizes = {column: int(text) for column, text in preset.items() if text.isdigit()}
    experts = latent = None
    if "experts" in sizes:
        experts = Experts(
            count=sizes["experts"],
            per_token=sizes["experts_per_token"],
            intermediate_size=sizes["moe_intermediate_size"],
            shared=sizes.get("shared_experts", 0),
            dense_layers=sizes.get("dense_layers", 0),
        )
    if "kv_rank" in sizes:
        head_dims = {name: sizes[name] for name in ("nope_head_dim", "rope_head_dim", "v_head_dim")}
        latent = LatentAttention(q_rank=sizes.get("q_rank"), kv_rank=sizes["kv_rank"], **head_dims)
    return LanguageModel(
        name=preset["model"],
        source=preset["source"],
        tied_embeddings=preset["tied_embeddings"] == "yes",
        intermediate_size=sizes.get("intermediate_size"),
        window=sizes.get("window"),
        window_layers=sizes.get("window_layers", 0),
        experts=experts,
        latent=latent,
        qk_norm="q and k norms" in preset["notes"],
        hidden_size=sizes["hidden_size"],
        layers=sizes["layers"],
        q_heads=sizes["q_heads"],
        kv_heads=sizes["kv_heads"],
        head_dim=sizes["head_dim"],
        vocab_size=sizes["vocab_size"],
    )


def _table_row(preset: Mapping[str, str]) -> dict[str, Cell]:
    model = _language_model(preset)
    return {
        "model": model.name,
        "parameters_billion": model.parameters / 1e9,
        "published_parameters_billion": float(preset["published_parameters_billion"]),
        "active_billion": model.active_parameters / 1e9,
        **{name: getattr(model, name) for name in _TABLE_FIELDS},
        "can_run": f"no: {model.untimed_parts}" if model.untimed_parts else "yes",
        "source": model.source,
    }


def _config_path(text: str) -> Path:
    """The config file that `--model` names."""
    path = Path(text)
    try:
        if path.is_dir():
            if text.strip() and not (path / "config.json").exists():
                raise UsageError(f"--model: {short_repr(text)} is a directory without a config.json")
            path /= "config.json"
        exists = path.exists()
    except PermissionError:
        raise UsageError(f"--model: {short_repr(text)} cannot be read: permission denied") from None
    except OSError:  # too long for a path
        exists = False
    if text.strip() and exists:
        return path
    names = tuple(_presets())
    near = difflib.get_close_matches(text.lower().rpartition("/")[2], names, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UsageError(
        f"--model: {short_repr(text)} is neither a preset ({', '.join(names)}) nor a config.json{hint}"
    )


def _name_of(path: Path) -> str:
    """A model's name: the name of its file, or of the directory if the file is called `config.json`.

    In Hugging Face's cache, `models--organisation--model/snapshots/<commit>/config.json`, it is `model`.
    """
    path = path.absolute()
    cached = [part.rpartition("--")[2] for part in path.parts if part.startswith("models--")]
    name = cached[-1] if cached else path.parent.name if path.name == "config.json" else path.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:80] or "config"
