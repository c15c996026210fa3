"""Language models: a preset, or any Hugging Face `config.json` of a known family."""

import difflib
import functools
import importlib.resources
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from .data_table import data_table
from .errors import UsageError, short_repr
from .formats import ALL_BF16, Format, Formats, layers_in
from .gpus import is_gpu
from .layers import Experts, GroupedQueryAttention, LayerGroup, LinearAttention
from .model_config import Assume, ModelConfig, model_config, read_model_config
from .model_layers import layer_groups, parameters_outside
from .quantization import read_quantization
from .suggestions import did_you_mean

Cell: TypeAlias = str | int | float | None


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """A decoder-only language model by its layers.

    Attributes:
        name: the preset's name, or one taken from the path of a `config.json`.
        source: where the shapes come from.
        hidden_size: elements of the residual stream of one token.
        vocab_size: rows of the embedding.
        tied_embeddings: whether the output projection is the embedding itself.
        layer_groups: its layers by shape.
        formats: formats of the embedding and of lm_head.
        other_parameters: parameters outside of layers, embedding and lm_head: norms and learned positions.
        max_position_embeddings: longest context the model is made for; None if unknown.
        cache_format: format that the config names for the KV cache, of `formats.CACHE_FORMATS`; None without.
        assumed: lines that say what was assumed where the config says nothing, and what is not counted.
    """

    name: str
    source: str
    hidden_size: int
    vocab_size: int
    tied_embeddings: bool
    layer_groups: tuple[LayerGroup, ...]
    formats: Formats = ALL_BF16
    other_parameters: int = 0
    max_position_embeddings: int | None = None
    cache_format: str | None = None
    assumed: tuple[str, ...] = ()

    def with_formats(self, weights: Format) -> "LanguageModel":
        """The model with the weights of its layers in one format, as engines quantise; see `layers_in`."""
        formats = layers_in(weights)
        groups = tuple(replace(group, formats=formats) for group in self.layer_groups)
        return replace(self, layer_groups=groups, formats=formats)

    @property
    def layers(self) -> int:
        """Number of layers."""
        return sum(group.count for group in self.layer_groups)

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding, and of lm_head if it has its own."""
        return self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)

    @property
    def parameters(self) -> int:
        """Number of weights, without layers for multi-token prediction."""
        layers = sum(group.count * group.parameters(self.hidden_size) for group in self.layer_groups)
        return self.embedding_parameters + self.other_parameters + layers

    @property
    def active_parameters(self) -> int:
        """Number of weights with only a token's own routed experts, embedding and lm_head included."""
        layers = sum(
            group.count
            * group.parameters(
                self.hidden_size, routed=group.mlp.per_token if isinstance(group.mlp, Experts) else None
            )
            for group in self.layer_groups
        )
        return self.embedding_parameters + self.other_parameters + layers

    @property
    def kv_elements_per_token(self) -> int:
        """Elements that a token adds to the caches of all layers, while within their windows."""
        return sum(
            group.count * group.attention.cached_elements
            for group in self.layer_groups
            if group.attention is not None
        )

    @property
    def state_bytes_per_sequence(self) -> int:
        """Bytes of a sequence's recurrent states in all layers, which do not grow with the context."""
        return sum(
            group.count * group.attention.state_elements * group.attention.state_bytes
            for group in self.layer_groups
            if isinstance(group.attention, LinearAttention)
        )

    @property
    def untimed_parts(self) -> str | None:
        """The parts of the model that `decodetax run` cannot time; None if it can time all."""
        return (
            "; ".join(dict.fromkeys(part for group in self.layer_groups for part in _untimed(group))) or None
        )


def _untimed(group: LayerGroup) -> tuple[str, ...]:
    """What `decodetax run` cannot time in a layer."""
    attention, mlp = group.attention, group.mlp
    if isinstance(attention, LinearAttention):
        return (attention.kind,)
    parts = {
        "sparse attention": attention is not None and attention.indexer is not None,
        "attention in chunks": isinstance(attention, GroupedQueryAttention) and attention.chunked,
        "experts of another hidden size": isinstance(mlp, Experts) and mlp.hidden_size is not None,
    }
    return tuple(part for part, present in parts.items() if present)


def load_language_model(name_or_path: str, assume: Assume | None = None) -> LanguageModel:
    """Gives the model that the argument `--model` names.

    Args:
        name_or_path: a preset's name in any case, or the path of a `config.json` or of a directory that
            holds one. A preset takes precedence over a file of the same name.
        assume: "dense" to read a model of an unknown family as a dense decoder with a gated MLP; the model's
            `assumed` then says so.

    Raises:
        UsageError: there is no such preset or file, or the file's model cannot be described; one line that
            starts with `--model:`.
    """
    return find_model(name_or_path, assume)[0]


def find_model(name_or_path: str, assume: Assume | None = None) -> tuple[LanguageModel, ModelConfig]:
    """The model that the argument `--model` names, and its config; see `load_language_model`."""
    preset = _presets().get(name_or_path.lower())
    if preset is not None:
        return _preset_model(preset), _preset_config(preset["model"])
    path = _config_path(name_or_path)
    try:
        config = read_model_config(path, assume)
        return language_model(config, name=_name_of(path)), config
    except UsageError as error:
        raise UsageError(f"--model: {short_repr(str(path))}: {error}") from None


def language_model(config: ModelConfig, *, name: str, source: str | None = None) -> LanguageModel:
    """The model that a config describes.

    Raises:
        UsageError: fields are absent, of a wrong type, or contradict each other; one line that names one.
    """
    slots = config.fields
    dense = () if slots.raw("experts")[1] or slots.raw("dense_size")[1] else ("intermediate_size",)
    slots.require("hidden_size", "layers", "q_heads", "vocab_size", *dense)
    quantization = read_quantization(config.outer, config.text)
    groups = layer_groups(slots, quantization)
    has_experts = any(isinstance(group.mlp, Experts) for group in groups)
    gated = "a gated" if slots.flag("gated") else "an ungated"
    kind = "decoder with experts" if has_experts else f"dense decoder with {gated} MLP"
    return LanguageModel(
        name=name,
        source=source or f"config.json ({config.origin}, read as a {kind})",
        hidden_size=slots.required_size("hidden_size"),
        vocab_size=slots.required_size("vocab_size"),
        tied_embeddings=slots.flag("tied"),
        layer_groups=groups,
        formats=quantization.of_layer(0),
        other_parameters=parameters_outside(slots),
        max_position_embeddings=slots.size("positions"),
        cache_format=quantization.cache_format,
        assumed=config.assumed(),
    )


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


@functools.cache
def _preset_configs() -> Mapping[str, dict[str, Any]]:
    """The presets' configs by name, without the fields that change no shape."""
    path = importlib.resources.files(__package__) / "data" / "model_configs.json"
    return MappingProxyType(json.loads(path.read_text(encoding="utf-8")))


def _preset_config(name: str) -> ModelConfig:
    return model_config(_preset_configs()[name])


def _preset_model(preset: Mapping[str, str]) -> LanguageModel:
    return language_model(_preset_config(preset["model"]), name=preset["model"], source=preset["source"])


def _table_row(preset: Mapping[str, str]) -> dict[str, Cell]:
    model, slots = _preset_model(preset), _preset_config(preset["model"]).fields
    sizes = ("hidden_size", "layers", "q_heads", "kv_heads", "head_dim", "intermediate_size", "vocab_size")
    return {
        "model": model.name,
        "parameters_billion": model.parameters / 1e9,
        "published_parameters_billion": float(preset["published_parameters_billion"]),
        "active_billion": model.active_parameters / 1e9,
        **{size: slots.size(size) for size in sizes},
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
    raise UsageError(f"--model: {short_repr(text)} {_unknown(text)}")


def _unknown(text: str) -> str:
    """Why a text names no model, and what it may mean."""
    if text.lower().endswith(".json"):
        return "is no file; a preset or the path of a config.json is needed"
    if is_gpu(text):
        return "is a GPU; give it with --gpu"
    names = tuple(_presets())
    name = re.sub(r"-(instruct|chat|it|hf|base)$", "", text.lower().rpartition("/")[2])
    near = [name] if name in names else difflib.get_close_matches(name, names, n=3)
    if near:
        return f"is neither a preset nor a config.json; {did_you_mean(near)} `decodetax models` lists all"
    return f"is neither a preset ({', '.join(names)}) nor a config.json"


def _name_of(path: Path) -> str:
    """A model's name: the name of its file, or of the directory if the file is called `config.json`.

    In Hugging Face's cache, `models--organisation--model/snapshots/<commit>/config.json`, it is `model`.
    """
    path = path.absolute()
    cached = [part.rpartition("--")[2] for part in path.parts if part.startswith("models--")]
    name = cached[-1] if cached else path.parent.name if path.name == "config.json" else path.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:80] or "config"
