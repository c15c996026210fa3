"""The decoder equals Llama, Mistral and Qwen3 of Hugging Face transformers on the same weights."""

import dataclasses
import importlib
import sys

import pytest
import torch
from decodetax.harness.bench import decoder as decoder_module
from decodetax.harness.bench.decoder import (
    DecoderWeights,
    LayerWeights,
    agreement,
    completed,
    decoder,
    rotary_tables,
)
from decodetax.harness.bench.decoder_parts import DecodeCache, PrefillCache, matmul_by
from decodetax.harness.bench.providers import PROVIDERS
from decodetax.harness.bench.transformers_peer import Peer, empty_cache
from decodetax.harness.core.gate import judge
from decodetax.harness.core.rotary import Rotary
from decodetax.harness.core.timed_model import load_timed_model

SIZES = {
    "vocab_size": 70,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,  # large, so that a wrong one is seen
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES = {
    "Llama": ("Llama", {"tie_word_embeddings": False}),
    "Llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "Llama, a head per KV head": ("Llama", {"num_key_value_heads": 6}),
    "Llama, one KV head": ("Llama", {"num_key_value_heads": 1}),
    "Llama, scaled rotary": ("Llama", {"rope_parameters": LLAMA3}),
    "Llama, linear rotary": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 700.0, "factor": 3.0}},
    ),
    "Mistral": ("Mistral", {"sliding_window": None}),
    "Mistral, a window longer than any prompt": ("Mistral", {"sliding_window": 64}),
    "Qwen3": ("Qwen3", {"tie_word_embeddings": True}),
    "Qwen3, untied": ("Qwen3", {"tie_word_embeddings": False, "head_dim": 32}),
}
FAST = "Llama, scaled rotary"
CHANGES = {}
"""Fields of the language model that a planted fault reads wrongly."""


def peer_of(family, tmp_path, dtype):
    """A tiny random model of transformers with norms unlike 1, and the path of its config.json."""
    pytest.importorskip("transformers")
    name, options = FAMILIES[family]
    module = importlib.import_module(f"transformers.models.{name.lower()}")
    torch.manual_seed(1)
    config = getattr(module, f"{name}Config")(**(SIZES | options))
    peer = getattr(module, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    config.save_pretrained(tmp_path)
    return peer.to(dtype)


def weights_of(peer, model):
    """The weights of a model of transformers as those of our decoder."""
    state = peer.state_dict()

    def layer(number):
        at = f"model.layers.{number}."

        def joined(*names):
            return torch.cat([state[f"{at}{name}.weight"] for name in names])

        return LayerWeights(
            projections={
                "qkv": joined("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                "o": joined("self_attn.o_proj"),
                "gate_up": joined("mlp.gate_proj", "mlp.up_proj"),
                "down": joined("mlp.down_proj"),
            },
            norms=joined("input_layernorm", "post_attention_layernorm").view(2, -1),
            head_norms=joined("self_attn.q_norm", "self_attn.k_norm").view(2, -1) if model.qk_norm else None,
        )

    return DecoderWeights(
        embedding=state["model.embed_tokens.weight"],
        layers=[*map(layer, range(model.layers))],
        norm=state["model.norm.weight"],
        lm_head=state["lm_head.weight"],
    )


def provider(operation, name="torch"):
    return next(p for p in PROVIDERS[operation] if p.name == name)


def grown(cache, position, q_heads, by):
    """A cache for a step at a position, in the layout of its provider, with the tokens of an earlier one."""
    k, v = cache.tokens()
    memory = torch.full((2, *k.shape[:2], position + 1, k.shape[3]), torch.nan, dtype=k.dtype)
    later = DecodeCache(*memory, position=position, q_heads=q_heads, provider=by)
    for token in range(position):
        later.write(token, k[:, :, token], v[:, :, token])
    return later


@torch.no_grad()
def logits_of_ours(token_ids, prompt, weights, model, *, rows=1000, matmul="torch", attention="torch"):
    """Logits after the prompt, and after each later token with the cache of those before it."""
    sequences, tokens = token_ids.shape
    dtype = weights.norm.dtype
    shape = (2, sequences, model.kv_heads, tokens, model.head_dim)
    caches = [torch.full(shape, torch.nan, dtype=dtype) for _ in weights.layers]

    def forward(first, last, layer_caches):
        positions = torch.arange(first, last)
        rotary = rotary_tables(model, positions, dtype)
        by_name = dict.fromkeys(
            ("qkv", "o", "gate_up", "down", "lm_head"), provider("prefill_matmul", matmul)
        )
        return completed(
            decoder(
                token_ids[:, first:last],
                weights,
                layer_caches,
                model=model,
                rotary=rotary,
                rows=rows,
                matmul=matmul_by(by_name),
            )
        )

    earlier = [PrefillCache(k, v, provider("prefill_attention")) for k, v in caches]
    logits = [forward(0, prompt, earlier)]
    for position in range(prompt, tokens):
        earlier = [
            grown(cache, position, model.q_heads, provider("decode_attention", attention))
            for cache in earlier
        ]
        logits.append(forward(position, position + 1, earlier))
    return torch.stack(logits)


@torch.no_grad()
def logits_of_peer(token_ids, prompt, peer):
    tokens, cache = token_ids.shape[1], empty_cache()
    spans = [(0, prompt), *((position, position + 1) for position in range(prompt, tokens))]
    logits_of = Peer(peer)
    return torch.stack([logits_of(token_ids[:, first:last], cache) for first, last in spans])


def tokens_of(model, sequences=2, tokens=27):
    return torch.randint(model.vocab_size, (sequences, tokens), generator=torch.Generator().manual_seed(3))


def compared(family, tmp_path, dtype, **options):
    peer = peer_of(family, tmp_path, dtype)
    model = dataclasses.replace(load_timed_model(str(tmp_path)), **CHANGES)
    token_ids = tokens_of(model)
    ours = logits_of_ours(token_ids, 22, weights_of(peer, model), model, **options)
    return ours, logits_of_peer(token_ids, 22, peer), model


def verdict(family, tmp_path, dtype, **options):
    ours, theirs, model = compared(family, tmp_path, dtype, **options)
    return judge(ours, theirs, bound=agreement(model, layers=3, tokens=27, dtype=dtype))


ALL_FAMILIES = [pytest.param(f, marks=[] if f == FAST else pytest.mark.slow) for f in FAMILIES]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_logits_equal_those_of_transformers(family, dtype, tmp_path):
    assert verdict(family, tmp_path, dtype).passed


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"matmul": "torch-weight-first"},
        {"attention": "torch-matmul"},
        {"attention": "torch-v-transposed"},
        {"attention": "torch-k-pages"},
        {"attention": "torch-k-pages-v-rows"},
        {"rows": 7},
        {"rows": 1},
    ],
    ids=str,
)
def test_logits_are_the_same_by_every_provider_and_any_rows_of_a_forward(options, tmp_path):
    assert verdict(FAST, tmp_path, torch.float32, **options).passed


def swapped_halves(x, rotary):
    (cos, sin), (first, second) = rotary, x.chunk(2, dim=-1)
    return x * cos + torch.cat((second, -first), dim=-1) * sin


class OffByOne(DecodeCache):
    def store(self, k, v):
        self.write(self._position - 1, k[:, :, 0], v[:, :, 0])
        self.write(self._position, k[:, :, 0], v[:, :, 0])


FAULTS = {
    "rotary halves swapped": lambda patch, _: patch.setattr(decoder_module, "rotate", swapped_halves),
    "no rotary": lambda patch, _: patch.setattr(decoder_module, "rotate", lambda x, _rotary: x),
    "cache off by one": lambda patch, test: patch.setattr(test, "DecodeCache", OffByOne),
    "another epsilon": lambda patch, _: patch.setitem(CHANGES, "rms_norm_eps", 1e-5),
    "rotary unscaled": lambda patch, _: patch.setitem(CHANGES, "rotary", Rotary(theta=500.0)),
    "another theta": lambda patch, _: patch.setitem(CHANGES, "rotary", Rotary()),
    "GQA groups interleaved": lambda patch, _: patch.setattr(
        DecodeCache, "attend", lambda cache, q, attend=DecodeCache.attend: attend(cache, q.flip(1)).flip(2)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_logits_of_a_wrong_decoder_differ(fault, tmp_path, monkeypatch):
    FAULTS[fault](monkeypatch, sys.modules[__name__])
    assert not verdict(FAST, tmp_path, torch.float32).passed
