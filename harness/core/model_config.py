"""Reads a language model from a Hugging Face `config.json`; refuses models that it cannot describe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from .errors import UsageError, short_repr
from .files import read_user_json
from .model_families import Family, Fields, families, reason_to_refuse

Assume: TypeAlias = Literal["dense"]

_TEXT_PARTS = ("text_config", "thinker_config", "language_config", "llm_config")
"""Fields of a multimodal config that hold the config of its language model."""

_PREDICTION_LAYERS = (
    "num_nextn_predict_layers",
    "num_mtp_modules",
    "mtp_num_hidden_layers",
    "mtp_transformer_layers",
)
"""Fields that count layers for multi-token prediction."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A config.json whose family is known.

    Attributes:
        outer: the whole file.
        text: the config of the language model, which is the whole file unless the model is multimodal.
        fields: its fields by the slots of its family.
        origin: how the file names its family.
    """

    outer: dict[str, Any]
    text: dict[str, Any]
    fields: Fields
    origin: str

    def assumed(self) -> tuple[str, ...]:
        """Lines on what was assumed, and on what the file describes and the model leaves out."""
        lines = list(self.fields.assumed.values())
        if self.text is not self.outer:
            lines.append("only the language model is counted, not the parts for images or sound")
        names = [name for name in _PREDICTION_LAYERS if self.text.get(name)]
        if names:
            lines.append(f"layers for multi-token prediction are not counted ({names[0]})")
        if self.text.get("attn_res_block_size"):
            lines.append("attention over the outputs of earlier blocks is not counted (attn_res_block_size)")
        return tuple(lines)


def read_model_config(path: Path, assume: Assume | None = None) -> ModelConfig:
    """Reads a `config.json`; in a multimodal one, its text config.

    Raises:
        UsageError: the file cannot be read, is not a JSON object, or is of a family that is not known; in one
            line.
    """
    config = read_user_json(path, "config.json", max_mib=16)
    if not isinstance(config, dict):
        raise UsageError(f"must hold a JSON object, holds {short_repr(config)}")
    return model_config(_with_quantization_beside(path, config), assume)


def _with_quantization_beside(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The config with ModelOpt's hf_quant_config.json, where older checkpoints have their formats."""
    beside = path.with_name("hf_quant_config.json")
    if path.name != "config.json" or config.get("quantization_config") is not None or not beside.is_file():
        return config
    try:
        found = read_user_json(beside, "hf_quant_config.json", max_mib=16)
    except UsageError as error:
        raise UsageError(f"hf_quant_config.json: {error}") from None
    return {**config, "quantization_config": found}


def model_config(outer: dict[str, Any], assume: Assume | None = None) -> ModelConfig:
    """Finds the family of a config.

    Args:
        outer: the JSON object.
        assume: "dense" to read a model of an unknown family as a dense decoder with a gated MLP.

    Raises:
        UsageError: the family is not known, or fields describe what it does not have.
    """
    levels = [outer]
    while part := next((name for name in _TEXT_PARTS if levels[-1].get(name) is not None), None):
        inner = levels[-1][part]
        if not isinstance(inner, dict):
            raise UsageError(f"{part}: must be an object, was {short_repr(inner)}")
        levels.append(inner)
    text = levels[-1]
    for level in levels:
        model_type, reason = level.get("model_type"), reason_to_refuse(level)
        if model_type is not None and not isinstance(model_type, str):
            raise UsageError(f"model_type: must be text, was {short_repr(model_type)}")
        if reason is not None:
            raise UsageError(f"cannot be modelled: {reason}")
    family, origin, assumed = _family(levels, assume)
    text = _with_tied_embeddings(text, levels)
    fields = Fields(config=text, family=family, assumed=assumed)
    reasons = list(fields.reasons_to_refuse())
    if text is not outer:
        reasons += Fields(config=outer, family=family).reasons_to_refuse()
    if reasons:
        raise UsageError(f"cannot be modelled: {'; '.join(dict.fromkeys(reasons))}")
    return ModelConfig(outer=outer, text=text, fields=fields, origin=origin)


def _with_tied_embeddings(text: dict[str, Any], levels: list[dict[str, Any]]) -> dict[str, Any]:
    """The text config, with an outer level's `tie_word_embeddings` if it has none."""
    if len(levels) == 1:
        return text
    tied = [each["tie_word_embeddings"] for each in levels if each.get("tie_word_embeddings") is not None]
    return {**text, "tie_word_embeddings": tied[-1]} if tied else dict(text)


def _family(levels: list[dict[str, Any]], assume: Assume | None) -> tuple[Family, str, dict[str, str]]:
    """The family, how the file names it, and the line that says that it was assumed."""
    text = levels[-1]
    model_type = text.get("model_type", levels[-2].get("model_type") if len(levels) > 1 else None)
    named = _architectures(text)
    family = families().get(model_type) if isinstance(model_type, str) else None
    if model_type is None:
        family = next((each for each in families().values() if set(named) & set(each.architectures)), None)
    kind = f"model_type {short_repr(model_type)}" if model_type is not None else "a config without model_type"
    if family is not None:
        unknown = [name for name in named if name not in family.architectures]
        if not unknown:
            return family, kind, {}
        kind = f"architectures {short_repr(unknown[0])} of {kind}"
    elif model_type is None and named:
        kind = f"architectures {short_repr(named[0])}"
    if assume is None:
        raise UsageError(
            f"{kind} is not a known family of decoders; --assume dense reads it as a dense decoder with a "
            "gated MLP"
        )
    line = f"{kind} is not known: read as a dense decoder with a gated MLP, as --assume dense asks"
    return families()["llama"], kind, {"family": line}


def _architectures(text: dict[str, Any]) -> list[str]:
    named = text.get("architectures")
    if named is None:
        return []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise UsageError(f"architectures: must be a list of names, was {short_repr(named)}")
    return named
