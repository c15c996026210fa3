"""Reads the shapes of a language model from a Hugging Face `config.json`; refuses what they misdescribe."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

from .errors import UsageError, shown
from .model_parts import Experts, LatentAttention
from .user_file import read_user_json

_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_TIED_BY_DEFAULT = ("gemma", "cohere", "smollm3")
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k")
# Families whose `intermediate_size` is that of an expert: their layers have no dense MLP.
_EXPERT_INTERMEDIATE_SIZE = ("mixtral", "gpt_oss", "phimoe", "granitemoe", "jetmoe")
# Of families whose config.json may leave out which layers slide: every layer but each so-manieth.
_WINDOW_PATTERNS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}

# Families whose `model_type` alone says that the projections of a gated decoder layer misdescribe them.
_OTHER_FAMILIES = {
    "its MLP is not gated": (
        "arcee bloom biogpt codegen falcon gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gptj mpt "
        "nemotron opt persimmon phi starcoder2 xglm"
    ),
    "it is an encoder, not a decoder": (
        "albert bert camembert deberta deberta-v2 distilbert electra ernie modernbert mpnet roberta "
        "xlm-roberta"
    ),
    "it is an encoder-decoder": "bart mbart mt5 pegasus t5 t5gemma umt5 whisper",
    "not every layer is attention": (
        "bamba falcon_h1 falcon_mamba jamba lfm2 mamba mamba2 nemotron_h qwen3_next recurrent_gemma rwkv "
        "zamba zamba2"
    ),
    "its experts are described in fields of their own": "dbrx arctic llama4 llama4_text",
    "its layers differ in shape": "gemma3n gemma3n_text nemotron-nas openelm",
    "its intermediate_size counts both halves of the gated MLP": "qwen",
}
_REASON_OF_FAMILY = {family: reason for reason, names in _OTHER_FAMILIES.items() for family in names.split()}


class ModelShapes(TypedDict):
    """The shape fields of a `LanguageModel`: sizes in elements, counts of heads and layers."""

    hidden_size: int
    layers: int
    q_heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int | None
    vocab_size: int
    tied_embeddings: bool
    window: int | None
    window_layers: int
    experts: Experts | None
    latent: LatentAttention | None


def read_model_config(path: Path) -> tuple[ModelShapes, str]:
    """Reads a `config.json`; of a multimodal one, its `text_config`.

    Args:
        path: the file.

    Returns:
        The shapes, and one line that says how the file was read.

    Raises:
        UsageError: the file cannot be read, is not a JSON object, lacks fields, holds fields of a wrong type,
            or is of a model that is not decoder layers with attention and a gated MLP or experts.
    """
    outer = _read_object(path)
    config = outer.get("text_config", outer)
    if not isinstance(config, dict):
        raise UsageError(f"text_config: must be an object, was {shown(config)}")
    reasons = tuple(dict.fromkeys(_reasons_to_refuse(outer, config)))
    if reasons:
        raise UsageError(f"cannot be modelled yet: {'; '.join(reasons)}")
    model_type = config.get("model_type", outer.get("model_type"))
    family = "no model_type" if model_type is None else f"model_type {shown(model_type)}"
    shapes = _shapes(outer, config)
    kind = "a dense decoder with a gated MLP" if shapes["experts"] is None else "a decoder with experts"
    return shapes, f"config.json ({family}, read as {kind})"


def _read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object; a UsageError says in one line why the file holds none."""
    config = read_user_json(path, "config.json", max_mib=16)
    if not isinstance(config, dict):
        raise UsageError(f"must hold a JSON object, holds {shown(config)}")
    return config


def _reasons_to_refuse(outer: dict[str, Any], config: dict[str, Any]) -> Iterator[str]:
    """Gives each reason why the shapes alone would misdescribe this model."""
    for level in (outer, config):
        model_type = level.get("model_type")
        if isinstance(model_type, str) and model_type in _REASON_OF_FAMILY:
            yield f"{_REASON_OF_FAMILY[model_type]} (model_type {model_type})"
        if level.get("is_encoder_decoder") is True:
            yield "it is an encoder-decoder (is_encoder_decoder)"
    step = config.get("decoder_sparse_step", config.get("moe_layer_freq", 1))
    if step not in (None, 1):
        yield f"its layers alternate between experts and a dense MLP (every {shown(step)} layers)"
    if config.get("cross_attention_layers"):
        yield "some layers attend to images (cross_attention_layers)"
    if config.get("num_kv_shared_layers"):
        yield "some layers share a KV cache (num_kv_shared_layers)"
    layer_types = config.get("layer_types")
    if isinstance(layer_types, list):
        others = [kind for kind in layer_types if kind not in ("full_attention", "sliding_attention")]
        if others:
            yield f"not every layer is attention to all or a window (layer_types has {shown(others[0])})"


def _window(config: dict[str, Any]) -> tuple[int | None, int]:
    """The tokens of the window, and how many layers slide; None and 0 where none cuts any context."""
    window, layers = config.get("sliding_window"), config["num_hidden_layers"]
    if window is None or config.get("use_sliding_window") is False:
        return None, 0
    _check_size("sliding_window", window)
    layer_types = config.get("layer_types")
    if isinstance(layer_types, list) and layer_types:
        sliding = layer_types.count("sliding_attention")
        return (window, sliding) if sliding else (None, 0)
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and window >= positions:
        return None, 0  # it never cuts a context that the model takes
    pattern = config.get("sliding_window_pattern", _WINDOW_PATTERNS.get(str(config.get("model_type"))))
    if pattern is not None:
        _check_size("sliding_window_pattern", pattern)
        return window, layers - layers // pattern
    if config.get("use_sliding_window") is True and config.get("max_window_layers") is not None:
        _check_size("max_window_layers", config["max_window_layers"])
        return window, max(0, layers - config["max_window_layers"])
    return window, layers


def _first_size(config: dict[str, Any], names: tuple[str, ...]) -> int | None:
    """The first of several names of a field that the config has."""
    for name in names:
        if config.get(name) is not None:
            _check_size(name, config[name])
            return int(config[name])
    return None


def _experts(config: dict[str, Any]) -> Experts | None:
    """The mixture of experts; None of a dense model."""
    count = _first_size(config, _EXPERT_COUNTS)
    if count is None or count == 1:
        return None
    per_token = _first_size(config, _EXPERTS_PER_TOKEN)
    size = _first_size(config, ("moe_intermediate_size", "intermediate_size"))
    lacking = {"num_experts_per_tok": per_token, "moe_intermediate_size": size}
    if missing := [field for field, value in lacking.items() if value is None]:
        raise UsageError(f"lacks {', '.join(missing)}")
    assert per_token is not None and size is not None  # noqa: S101, PT018  (checked above)
    shared = config.get("n_shared_experts") or 0
    wide = _first_size(config, ("shared_expert_intermediate_size",))
    if wide is not None:
        if wide % size:
            raise UsageError(
                "shared_expert_intermediate_size: must be a multiple of moe_intermediate_size, "
                f"{size}, was {wide}"
            )
        shared = wide // size
    dense = config.get("first_k_dense_replace") or 0
    only = config.get("mlp_only_layers")
    if isinstance(only, list) and only:
        dense = len(only)
    return Experts(
        count=count, per_token=per_token, intermediate_size=size, shared=shared, dense_layers=dense
    )


def _latent(config: dict[str, Any]) -> LatentAttention | None:
    """Multi-head latent attention; None of a model without."""
    kv_rank = _first_size(config, ("kv_lora_rank",))
    if kv_rank is None:
        return None
    names = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    sizes = [_first_size(config, (name,)) for name in names]
    if None in sizes:
        raise UsageError(
            f"lacks {', '.join(n for n, size in zip(names, sizes, strict=True) if size is None)}"
        )
    nope, rope, value = (size or 0 for size in sizes)
    return LatentAttention(
        q_rank=_first_size(config, ("q_lora_rank",)),
        kv_rank=kv_rank,
        nope_head_dim=nope,
        rope_head_dim=rope,
        v_head_dim=value,
    )


def _shapes(outer: dict[str, Any], config: dict[str, Any]) -> ModelShapes:
    """Takes the shapes out of a config whose kind is known to fit."""
    experts_alone = str(config.get("model_type")) in _EXPERT_INTERMEDIATE_SIZE
    required = _REQUIRED if config.get("moe_intermediate_size") else (*_REQUIRED, "intermediate_size")
    missing = [field for field in required if config.get(field) is None]
    if missing:
        raise UsageError(f"lacks {', '.join(missing)}")
    for field in (*required, "num_key_value_heads", "head_dim"):
        if config.get(field) is not None:
            _check_size(field, config[field])
    experts, latent = _experts(config), _latent(config)
    window, window_layers = _window(config)
    hidden_size, q_heads, head_dim = (
        config["hidden_size"],
        config["num_attention_heads"],
        config.get("head_dim") if latent is None else latent.v_head_dim,
    )
    if head_dim is None:
        if hidden_size % q_heads:
            raise UsageError(
                "head_dim: absent, so hidden_size must be a multiple of num_attention_heads, "
                f"was {shown(hidden_size)} and {shown(q_heads)}"
            )
        head_dim = hidden_size // q_heads
    kv_heads = config.get("num_key_value_heads")
    return ModelShapes(
        hidden_size=hidden_size,
        layers=config["num_hidden_layers"],
        q_heads=q_heads,
        kv_heads=q_heads if kv_heads is None else kv_heads,
        head_dim=head_dim,
        intermediate_size=_dense_size(config, experts, experts_alone=experts_alone),
        vocab_size=config["vocab_size"],
        tied_embeddings=_tied_embeddings(outer, config),
        window=window,
        window_layers=window_layers,
        experts=experts,
        latent=latent,
    )


def _dense_size(config: dict[str, Any], experts: Experts | None, *, experts_alone: bool) -> int | None:
    """Elements inside the dense MLP; None where no layer has one."""
    if experts is not None and (experts_alone or not experts.dense_layers):
        return None
    size: int | None = config.get("intermediate_size")
    return size


def _check_size(field: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise UsageError(f"{field}: must be a positive integer, was {shown(value)}")


def _tied_embeddings(outer: dict[str, Any], config: dict[str, Any]) -> bool:
    """Says whether the output projection is the embedding; the inner config decides, then the outer one."""
    for level in (config, outer):
        tied = level.get("tie_word_embeddings")
        if tied is not None:
            if not isinstance(tied, bool):
                raise UsageError(f"tie_word_embeddings: must be true or false, was {shown(tied)}")
            return tied
    # A config.json leaves out what equals its family's default. It is true in the configuration classes of
    # these families in Hugging Face transformers (src/transformers/models/*/configuration_*.py), false in
    # those of Llama, Mistral, Qwen and most others.
    return str(config.get("model_type", "")).startswith(_TIED_BY_DEFAULT)
