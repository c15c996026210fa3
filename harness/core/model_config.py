"""Reads a language model's shapes from a Hugging Face `config.json`; refuses models it cannot describe."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UsageError, short_repr
from .files import read_user_json
from .model_parts import Experts, LatentAttention, Rotary, is_positive

_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_TIED_BY_DEFAULT = ("gemma", "cohere", "smollm3")
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k")
# Families whose `intermediate_size` is an expert's: their layers have no dense MLP.
_EXPERT_INTERMEDIATE_SIZE = ("mixtral", "gpt_oss", "phimoe", "granitemoe", "jetmoe")
# Families whose config.json may omit the pattern: every layer except each n-th uses a sliding window.
_WINDOW_PATTERNS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}

# Families with a norm of each head's queries and keys before the rotary embedding.
_QK_NORMS = ("qwen3", "qwen3_moe")
# Fields of `Rotary` by their names in a config.json with Llama 3's scaling.
_LLAMA3_SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_positions": "original_max_position_embeddings",
}

# Families that are no stack of gated decoder layers, by `model_type`, and why.
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


def read_model_config(path: Path) -> dict[str, Any]:
    """Reads a `config.json`; in a multimodal one, its `text_config`.

    Returns:
        The fields of a `LanguageModel` except its name; `source` says how the file was read.

    Raises:
        UsageError: the file cannot be read, is not a JSON object, lacks fields, holds fields of a wrong type,
            or is of a model other than decoder layers with attention and a gated MLP or experts.
    """
    outer = _read_object(path)
    config = outer.get("text_config", outer)
    if not isinstance(config, dict):
        raise UsageError(f"text_config: must be an object, was {short_repr(config)}")
    reasons = tuple(dict.fromkeys(_reasons_to_refuse(outer, config)))
    if reasons:
        raise UsageError(f"cannot be modelled yet: {'; '.join(reasons)}")
    model_type = config.get("model_type", outer.get("model_type"))
    family = "no model_type" if model_type is None else f"model_type {short_repr(model_type)}"
    shapes = _shapes(outer, config)
    kind = "a dense decoder with a gated MLP" if shapes["experts"] is None else "a decoder with experts"
    return {**shapes, "source": f"config.json ({family}, read as {kind})"}


def _read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object; a UsageError says in one line why the file holds none."""
    config = read_user_json(path, "config.json", max_mib=16)
    if not isinstance(config, dict):
        raise UsageError(f"must hold a JSON object, holds {short_repr(config)}")
    return config


def _reasons_to_refuse(outer: dict[str, Any], config: dict[str, Any]) -> Iterator[str]:
    """Each reason why the shapes alone would misdescribe this model."""
    for level in (outer, config):
        model_type = level.get("model_type")
        if isinstance(model_type, str) and model_type in _REASON_OF_FAMILY:
            yield f"{_REASON_OF_FAMILY[model_type]} (model_type {model_type})"
        if level.get("is_encoder_decoder") is True:
            yield "it is an encoder-decoder (is_encoder_decoder)"
    step = config.get("decoder_sparse_step", config.get("moe_layer_freq", 1))
    if step not in (None, 1):
        yield f"its layers alternate between experts and a dense MLP (every {short_repr(step)} layers)"
    if config.get("cross_attention_layers"):
        yield "some layers attend to images (cross_attention_layers)"
    if config.get("num_kv_shared_layers"):
        yield "some layers share a KV cache (num_kv_shared_layers)"
    layer_types = config.get("layer_types")
    if isinstance(layer_types, list):
        others = [kind for kind in layer_types if kind not in ("full_attention", "sliding_attention")]
        if others:
            yield f"not every layer is full or sliding attention (layer_types has {short_repr(others[0])})"


def _window(config: dict[str, Any]) -> tuple[int | None, int]:
    """Tokens of the sliding window, and number of layers that use it; None and 0 if no context exceeds it."""
    window, layers = config.get("sliding_window"), config["num_hidden_layers"]
    if window is None or config.get("use_sliding_window") is False:
        return None, 0
    _checked_size("sliding_window", window)
    layer_types = config.get("layer_types")
    if isinstance(layer_types, list) and layer_types:
        sliding = layer_types.count("sliding_attention")
        return (window, sliding) if sliding else (None, 0)
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and window >= positions:
        return None, 0  # the window covers the longest context
    pattern = config.get("sliding_window_pattern", _WINDOW_PATTERNS.get(str(config.get("model_type"))))
    if pattern is not None:
        pattern = _checked_size("sliding_window_pattern", pattern)
        return window, layers - layers // pattern
    if config.get("use_sliding_window") is True and config.get("max_window_layers") is not None:
        return window, max(0, layers - _checked_size("max_window_layers", config["max_window_layers"]))
    return window, layers


def _first_size(config: dict[str, Any], *names: str) -> int | None:
    """The size under the first of these names that the config has."""
    for name in names:
        if config.get(name) is not None:
            return _checked_size(name, config[name])
    return None


def _checked_size(name: str, value: object) -> int:
    if type(value) is not int or value < 1:
        raise UsageError(f"{name}: must be a positive integer, was {short_repr(value)}")
    return value


def _sizes(config: dict[str, Any], **names: tuple[str, ...]) -> dict[str, int]:
    """Sizes that the config must have, each under the first of its names; a UsageError lists those absent."""
    found = {field: _first_size(config, *some) for field, some in names.items()}
    if absent := [names[field][0] for field, size in found.items() if size is None]:
        raise UsageError(f"lacks {', '.join(absent)}")
    return {field: size for field, size in found.items() if size is not None}


def _experts(config: dict[str, Any]) -> Experts | None:
    """The mixture of experts; None for a dense model."""
    count = _first_size(config, *_EXPERT_COUNTS)
    if count is None or count == 1:
        return None
    sizes = _sizes(
        config,
        per_token=_EXPERTS_PER_TOKEN,
        intermediate_size=("moe_intermediate_size", "intermediate_size"),
    )
    shared = config.get("n_shared_experts") or 0
    shared_size = _first_size(config, "shared_expert_intermediate_size")
    if shared_size is not None:
        shared, rest = divmod(shared_size, sizes["intermediate_size"])
        if rest:
            raise UsageError(
                "shared_expert_intermediate_size: must be a multiple of moe_intermediate_size, "
                f"{sizes['intermediate_size']}, was {shared_size}"
            )
    dense_only = config.get("mlp_only_layers")
    dense_layers = config.get("first_k_dense_replace") or 0
    if isinstance(dense_only, list) and dense_only:
        dense_layers = len(dense_only)
    return Experts(count=count, shared=shared, dense_layers=dense_layers, **sizes)


def _latent(config: dict[str, Any]) -> LatentAttention | None:
    """Multi-head latent attention (MLA); None for a model without."""
    kv_rank = _first_size(config, "kv_lora_rank")
    if kv_rank is None:
        return None
    head_dims = _sizes(
        config,
        nope_head_dim=("qk_nope_head_dim",),
        rope_head_dim=("qk_rope_head_dim",),
        v_head_dim=("v_head_dim",),
    )
    return LatentAttention(q_rank=_first_size(config, "q_lora_rank"), kv_rank=kv_rank, **head_dims)


def _shapes(outer: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The shape fields of a `LanguageModel`, from a config that can be modelled."""
    required = {name: (name,) for name in _REQUIRED}
    if not config.get("moe_intermediate_size"):
        required["intermediate_size"] = ("intermediate_size",)
    sizes = _sizes(config, **required)
    experts, latent = _experts(config), _latent(config)
    window, window_layers = _window(config)
    hidden_size, q_heads = sizes["hidden_size"], sizes["num_attention_heads"]
    head_dim = _first_size(config, "head_dim")
    if latent is not None:
        head_dim = latent.v_head_dim
    if head_dim is None:
        head_dim, rest = divmod(hidden_size, q_heads)
        if rest:
            raise UsageError(
                "head_dim: absent, so hidden_size must be a multiple of num_attention_heads, "
                f"was {short_repr(hidden_size)} and {short_repr(q_heads)}"
            )
    no_dense_mlp = experts is not None and (
        not experts.dense_layers or config.get("model_type") in _EXPERT_INTERMEDIATE_SIZE
    )
    return {
        "hidden_size": hidden_size,
        "layers": sizes["num_hidden_layers"],
        "q_heads": q_heads,
        "kv_heads": _first_size(config, "num_key_value_heads") or q_heads,
        "head_dim": head_dim,
        "intermediate_size": None if no_dense_mlp else config.get("intermediate_size"),
        "vocab_size": sizes["vocab_size"],
        "tied_embeddings": _tied_embeddings(outer, config),
        "window": window,
        "window_layers": window_layers,
        "experts": experts,
        "latent": latent,
        "rotary": _rotary(config),
        "qk_norm": config.get("model_type") in _QK_NORMS,
        "max_position_embeddings": _first_size(config, "max_position_embeddings"),
        **({"rms_norm_eps": config["rms_norm_eps"]} if config.get("rms_norm_eps") is not None else {}),
    }


def _rotary(config: dict[str, Any]) -> Rotary:
    """The rotary embedding: `rope_parameters`, or in older files `rope_theta` and `rope_scaling`.

    Other scalings than linear and Llama 3's, and different ones by kind of layer, are read as unscaled.
    """
    scaling = config.get("rope_parameters") or config.get("rope_scaling")
    scaling = scaling if isinstance(scaling, dict) else {}
    theta = scaling.get("rope_theta", config.get("rope_theta"))
    fields: dict[str, Any] = {"theta": theta} if is_positive(theta) else {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "llama3":
        fields |= {field: scaling.get(name) for field, name in _LLAMA3_SCALING.items()}
    elif kind == "linear":
        fields |= {"factor": scaling.get("factor")}
    return Rotary(**fields)


def _tied_embeddings(outer: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether the output projection is the embedding; the inner config takes precedence over the outer."""
    for level in (config, outer):
        tied = level.get("tie_word_embeddings")
        if tied is not None:
            if not isinstance(tied, bool):
                raise UsageError(f"tie_word_embeddings: must be true or false, was {short_repr(tied)}")
            return tied
    # A config.json leaves out what equals its family's default. It is true in the configuration classes of
    # these families in Hugging Face transformers (src/transformers/models/*/configuration_*.py), false in
    # those of Llama, Mistral, Qwen and most others.
    return str(config.get("model_type", "")).startswith(_TIED_BY_DEFAULT)
