"""The same model in Hugging Face transformers, on the same weights: a peer of the measured whole model."""

import importlib
import importlib.metadata
import importlib.util
import inspect
from typing import Any

import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.timed_model import TimedModel
from .decoder import DecoderWeights


def require_transformers() -> None:
    """Make sure that transformers is installed.

    Raises:
        UsageError: it is not.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UsageError(
            "--whole-model: 'transformers' needs the package transformers, which is not installed: "
            "pip install transformers"
        )


def peer_name() -> str:
    """The package and its version."""
    return f"transformers {importlib.metadata.version('transformers')}"


def load() -> None:
    """Import transformers and the models that are used."""
    for name in ("Llama", "Qwen3"):
        _module(name)


class Peer:
    """A model of transformers, called with token ids [sequences, tokens] and a cache, which grows by them.

    Returns the logits [sequences, vocab_size] of the last token.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        # transformers 5 renamed the argument.
        renamed = "cache" in inspect.signature(module.forward).parameters
        self._cache_argument = "cache" if renamed else "past_key_values"

    def __call__(self, token_ids: Tensor, cache: Any) -> Tensor:  # noqa: D102  (the class says it)
        options = {"use_cache": True, "logits_to_keep": 1, self._cache_argument: cache}
        logits: Tensor = self._module(token_ids, **options).logits
        return logits[:, -1]


def peer_of(model: TimedModel, weights: DecoderWeights) -> Peer:
    """A Llama, or a Qwen3 where queries and keys have norms, with the layers of the weights; shares them."""
    name = "Qwen3" if model.qk_norm else "Llama"
    module = _module(name)
    config = getattr(module, f"{name}Config")(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=len(weights.layers),
        num_attention_heads=model.q_heads,
        num_key_value_heads=model.kv_heads,
        head_dim=model.head_dim,
        rms_norm_eps=model.rms_norm_eps,
        tie_word_embeddings=model.tied_embeddings,
        rope_parameters=_rope_parameters(model),
        max_position_embeddings=2**17,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        peer = getattr(module, f"{name}ForCausalLM")(config)
    state = _state_of(model, weights)
    # An untied embedding may have fewer rows than the vocabulary, which loading a state refuses.
    embedding = state.pop("model.embed_tokens.weight")
    peer.load_state_dict(state, assign=True, strict=False)
    peer.model.embed_tokens.weight = torch.nn.Parameter(embedding, requires_grad=False)
    # Its frequencies are no part of the state: those on the meta device have no values.
    peer.model.rotary_emb = getattr(module, f"{name}RotaryEmbedding")(config).to(weights.norm.device)
    return Peer(peer.eval())


def _module(name: str) -> Any:
    return importlib.import_module(f"transformers.models.{name.lower()}.modeling_{name.lower()}")


def empty_cache() -> Any:
    """The default KV cache of transformers, which grows by concatenation."""
    return importlib.import_module("transformers").DynamicCache()


def _rope_parameters(model: TimedModel) -> dict[str, Any]:
    rotary = model.rotary
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": rotary.theta}
    if rotary.factor != 1.0:
        parameters |= {"rope_type": "linear", "factor": rotary.factor}
    if rotary.low_freq_factor is not None:
        parameters |= {
            "rope_type": "llama3",
            "factor": rotary.factor,
            "low_freq_factor": rotary.low_freq_factor,
            "high_freq_factor": rotary.high_freq_factor,
            "original_max_position_embeddings": rotary.original_positions,
        }
    return parameters


def _state_of(model: TimedModel, weights: DecoderWeights) -> dict[str, Tensor]:
    """The weights under the names of transformers, as views."""
    state = {
        "model.embed_tokens.weight": weights.embedding,
        "model.norm.weight": weights.norm,
        "lm_head.weight": weights.lm_head,
    }
    heads = [count * model.head_dim for count in (model.q_heads, model.kv_heads, model.kv_heads)]
    for number, layer in enumerate(weights.layers):
        q, k, v = torch.split(layer.projections["qkv"], heads)
        gate, up = layer.projections["gate_up"].chunk(2)
        named = {
            "input_layernorm": layer.norms[0],
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": layer.projections["o"],
            "post_attention_layernorm": layer.norms[1],
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": layer.projections["down"],
        }
        if layer.head_norms is not None:
            named |= {"self_attn.q_norm": layer.head_norms[0], "self_attn.k_norm": layer.head_norms[1]}
        state |= {f"model.layers.{number}.{name}.weight": weight for name, weight in named.items()}
    return state
