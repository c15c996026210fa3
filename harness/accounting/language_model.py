"""Shapes of a dense decoder-only language model: a preset, or any Hugging Face `config.json`."""

import difflib
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from .data_table import data_table
from .errors import UsageError
from .model_config import ModelShapes, read_model_config, shown

_SIZE_FIELDS = ("hidden_size", "layers", "q_heads", "kv_heads", "head_dim", "intermediate_size", "vocab_size")
_SIZE_AT_MOST = 2**31 - 1
_HEAD_DIMS = range(16, 257, 8)  # what the decode-attention kernel takes

Cell: TypeAlias = str | int | float | None


@dataclass(frozen=True, kw_only=True)
class Projection:
    """One matmul of a model with its weights `[out_features, in_features]`.

    Attributes:
        name: "qkv", "o", "gate_up", "down" or "lm_head".
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
    """The shapes of a decoder whose layers are full attention and a gated MLP.

    Attributes:
        name: preset name, or a name taken from the path of a `config.json`.
        source: where the shapes come from.
        hidden_size: elements of the residual stream of one token.
        layers: number of decoder layers.
        q_heads: query heads of a layer, a multiple of `kv_heads`.
        kv_heads: key heads, and as many value heads, of a layer.
        head_dim: elements of a head, a multiple of 8 from 16 to 256.
        intermediate_size: elements between the MLP's gated and its last projection.
        vocab_size: rows of the embedding.
        tied_embeddings: whether the output projection is the embedding itself.

    Raises:
        UsageError: a field is not what is said above.
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

    def __post_init__(self) -> None:
        for field in _SIZE_FIELDS:
            value = getattr(self, field)
            if type(value) is not int or not 1 <= value <= _SIZE_AT_MOST:
                raise UsageError(f"{field}: must be an integer from 1 to {_SIZE_AT_MOST}, was {shown(value)}")
        if self.q_heads % self.kv_heads:
            raise UsageError(f"q_heads: must be a multiple of kv_heads, {self.kv_heads}, was {self.q_heads}")
        if self.q_heads > 64 * self.kv_heads:
            raise UsageError(
                f"q_heads: must be at most 64 times kv_heads, {self.kv_heads}, was {self.q_heads}"
            )
        if self.head_dim not in _HEAD_DIMS:
            raise UsageError(f"head_dim: must be a multiple of 8 from 16 to 256, was {self.head_dim}")
        if not isinstance(self.tied_embeddings, bool):
            raise UsageError(f"tied_embeddings: must be True or False, was {shown(self.tied_embeddings)}")

    @property
    def projections(self) -> tuple[Projection, Projection, Projection, Projection]:
        """The four matmuls of one decoder layer in the order they run: qkv, o, gate_up, down."""
        heads_out = self.q_heads * self.head_dim
        qkv_out = (self.q_heads + 2 * self.kv_heads) * self.head_dim
        return (
            Projection(name="qkv", in_features=self.hidden_size, out_features=qkv_out),
            Projection(name="o", in_features=heads_out, out_features=self.hidden_size),
            Projection(name="gate_up", in_features=self.hidden_size, out_features=2 * self.intermediate_size),
            Projection(name="down", in_features=self.intermediate_size, out_features=self.hidden_size),
        )

    @property
    def lm_head(self) -> Projection:
        """The matmul that gives the logits, run once a token whether its weights are tied or not."""
        return Projection(name="lm_head", in_features=self.hidden_size, out_features=self.vocab_size)

    @property
    def parameters(self) -> int:
        """Number of weights: embedding, an untied lm_head, projections, two norms a layer and the last one.

        Not counted, as the shapes do not tell them: biases, norms of q and k, third and fourth norms of a
        layer. They are below 0.01% of every preset; each count is within 1% of the published one.
        """
        embeddings = self.lm_head.parameters * (1 if self.tied_embeddings else 2)
        layer = sum(projection.parameters for projection in self.projections) + 2 * self.hidden_size
        return embeddings + self.layers * layer + self.hidden_size

    @property
    def kv_elements_per_token(self) -> int:
        """Elements that one token adds to the KV cache: a key and a value for each KV head of each layer."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def group(self) -> int:
        """Query heads that read the same KV head."""
        return self.q_heads // self.kv_heads


def load_language_model(name_or_path: str) -> LanguageModel:
    """Gives the model that the argument `--model` names.

    Args:
        name_or_path: a preset's name in any case, or the path of a `config.json` or of a directory that
            holds one. A preset goes before a file of the same name.

    Raises:
        UsageError: there is no such preset or file, or it holds no model that can be described; one line
            that starts with `--model:`.
    """
    preset = _presets().get(name_or_path.lower())
    if preset is not None:
        if reason := preset["refused_because"]:
            raise UsageError(f"--model: {preset['model']} cannot be modelled yet: {reason}")
        return _language_model(preset)
    path = _config_path(name_or_path)
    try:
        shapes, source = read_model_config(path)
        return LanguageModel(name=_name_of(path), source=source, **shapes)
    except UsageError as error:
        raise UsageError(f"--model: {shown(str(path))}: {error}") from None


def preset_table() -> tuple[dict[str, Cell], ...]:
    """Gives a row for each preset, those that cannot be modelled included.

    `parameters_billion` is computed from the shapes, and None for a mixture of experts;
    `published_parameters_billion` is the published figure. `can_run` is "yes", or "no" with the reason.
    """
    return tuple(_table_row(preset) for preset in _presets().values())


@functools.cache
def _presets() -> Mapping[str, Mapping[str, str]]:
    """Rows of the preset file by name, in its order."""
    return MappingProxyType({row["model"]: row for row in data_table("models.csv")})


def _language_model(preset: Mapping[str, str]) -> LanguageModel:
    shapes = ModelShapes(
        hidden_size=int(preset["hidden_size"]),
        layers=int(preset["layers"]),
        q_heads=int(preset["q_heads"]),
        kv_heads=int(preset["kv_heads"]),
        head_dim=int(preset["head_dim"]),
        intermediate_size=int(preset["intermediate_size"]),
        vocab_size=int(preset["vocab_size"]),
        tied_embeddings=preset["tied_embeddings"] == "yes",
    )
    return LanguageModel(name=preset["model"], source=preset["source"], **shapes)


def _table_row(preset: Mapping[str, str]) -> dict[str, Cell]:
    refused_because = preset["refused_because"]
    return {
        "model": preset["model"],
        "parameters_billion": None if preset["experts"] else _language_model(preset).parameters / 1e9,
        "published_parameters_billion": float(preset["published_parameters_billion"]),
        "hidden_size": int(preset["hidden_size"]),
        "layers": int(preset["layers"]),
        "q_heads": int(preset["q_heads"]),
        "kv_heads": int(preset["kv_heads"]),
        "head_dim": int(preset["head_dim"]),
        "intermediate_size": int(preset["intermediate_size"]) if preset["intermediate_size"] else None,
        "vocab_size": int(preset["vocab_size"]),
        "can_run": f"no: {refused_because}" if refused_because else "yes",
        "source": preset["source"],
    }


def _config_path(text: str) -> Path:
    """Finds the config file that the text means."""
    path = Path(text)
    try:
        if path.is_dir():
            if text.strip() and not (path / "config.json").exists():
                raise UsageError(f"--model: {shown(text)} is a directory without a config.json")
            path /= "config.json"
        exists = path.exists()
    except PermissionError:
        raise UsageError(f"--model: {shown(text)} cannot be read: permission denied") from None
    except OSError:  # too long for a path
        exists = False
    if text.strip() and exists:
        return path
    names = tuple(_presets())
    near = difflib.get_close_matches(text.lower().rpartition("/")[2], names, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UsageError(
        f"--model: {shown(text)} is neither a preset ({', '.join(names)}) nor a config.json{hint}"
    )


def _name_of(path: Path) -> str:
    """Names a model after its file, or after the directory of a file that is called `config.json`.

    In Hugging Face's cache, `models--organisation--model/snapshots/<commit>/config.json`, it is the model's.
    """
    path = path.absolute()
    cached = [part.rpartition("--")[2] for part in path.parts if part.startswith("models--")]
    name = cached[-1] if cached else path.parent.name if path.name == "config.json" else path.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:80] or "config"
