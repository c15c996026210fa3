"""Presets, Hugging Face configs, and what is refused with its reason."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
from decodetax.harness.core.errors import UsageError, short_repr
from decodetax.harness.core.language_model import (
    LanguageModel,
    Projection,
    load_language_model,
    load_timed_model,
    preset_table,
)
from decodetax.harness.core.model_parts import Experts, LatentAttention, Rotary

# Odd on purpose: no field equals another one or follows from it, so a mix-up shows.
CONFIG = {
    "model_type": "llama",
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "intermediate_size": 200,
    "vocab_size": 1001,
    "tie_word_embeddings": False,
}
REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size")
PRESETS = preset_table()
NOT_TIMED = {row["model"]: row["can_run"] for row in PRESETS if row["can_run"] != "yes"}


def model(**changes):
    fields = {
        "name": "tiny",
        "source": "test",
        "hidden_size": 96,
        "layers": 3,
        "q_heads": 6,
        "kv_heads": 2,
        "head_dim": 24,
        "intermediate_size": 200,
        "vocab_size": 1001,
        "tied_embeddings": False,
    }
    return LanguageModel(**(fields | changes))


@pytest.fixture
def load_config(tmp_path):
    """Writes a config with changes (None stands for an absent field) and loads it."""

    def load(changes=None, /, **more):
        config = {**CONFIG, **(changes or {}), **more}
        path = tmp_path / "config.json"
        path.write_text(json.dumps({field: value for field, value in config.items() if value is not None}))
        return load_language_model(str(path))

    return load


def refusal(text):
    """The message of the one-line refusal of `--model text`."""
    with pytest.raises(UsageError) as caught:
        load_language_model(str(text))
    message = str(caught.value)
    assert message.startswith("--model: ")
    assert "\n" not in message
    return message


def test_llama_3_1_8b_by_hand():
    llama = load_language_model("llama-3.1-8b")
    assert llama.projections == (
        Projection(name="qkv", in_features=4096, out_features=6144),  # (32 + 2 * 8) * 128
        Projection(name="o", in_features=4096, out_features=4096),
        Projection(name="gate_up", in_features=4096, out_features=28672),
        Projection(name="down", in_features=14336, out_features=4096),
    )
    assert llama.lm_head == Projection(name="lm_head", in_features=4096, out_features=128256)
    assert llama.kv_elements_per_token == 65536  # 128 KiB in bf16
    assert llama.group == 4
    assert llama.parameters == 8_030_261_248  # what the published weights hold, to the last one
    assert (llama.name, llama.source) == (
        "llama-3.1-8b",
        "Hugging Face config.json of meta-llama/Llama-3.1-8B",
    )


def test_tiny_model_by_hand():
    qkv, o, _, _ = model().projections
    assert (qkv.out_features, o.in_features) == (240, 144)  # 144 is not the hidden size, 96
    layer = 96 * 240 + 144 * 96 + 96 * 400 + 200 * 96 + 2 * 96
    assert model().parameters == 2 * 1001 * 96 + 3 * layer + 96
    assert model(tied_embeddings=True).parameters == 1001 * 96 + 3 * layer + 96


@pytest.mark.parametrize("row", PRESETS, ids=lambda row: row["model"])
def test_parameters_are_within_one_percent_of_the_published_ones(row):
    computed = load_language_model(row["model"]).parameters / 1e9
    assert computed == pytest.approx(row["published_parameters_billion"], rel=0.01)
    assert row["parameters_billion"] == computed


@pytest.mark.parametrize(
    "field", ["hidden_size", "layers", "kv_heads", "head_dim", "intermediate_size", "vocab_size"]
)
@pytest.mark.parametrize("value", [0, -1, 2.0, "8", True, None, 2**31], ids=repr)
def test_rejects_a_size_that_is_not_a_positive_integer(field, value):
    with pytest.raises(
        UsageError, match=rf"^{field}: must be an integer from 1 to .*, was {re.escape(repr(value))}$"
    ):
        model(**{field: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q_heads": 7}, "q_heads: must be a multiple of kv_heads, 2, was 7"),
        ({"q_heads": 130}, "q_heads: must be at most 64 times kv_heads, 2, was 130"),
        ({"head_dim": 20}, "head_dim: must be a multiple of 8 from 16 to 256, was 20"),
        ({"head_dim": 8}, "head_dim: must be a multiple of 8 from 16 to 256, was 8"),
        ({"head_dim": 264}, "head_dim: must be a multiple of 8 from 16 to 256, was 264"),
        ({"tied_embeddings": 1}, "tied_embeddings: must be True or False, was 1"),
        ({"window_layers": 1}, "window_layers: must be 0 without a window, was 1"),
        ({"window": 8, "window_layers": 4}, "window_layers: must be at most layers, 3, was 4"),
        ({"window": 0}, "window: must be an integer from 1 to 2147483647, was 0"),
        ({"intermediate_size": None}, "intermediate_size: must be an integer from 1 to 2147483647, was None"),
        (
            {"experts": Experts(count=4, per_token=1, intermediate_size=8, dense_layers=4)},
            "experts.dense_layers: must be at most layers, 3, was 4",
        ),
    ],
)
def test_rejects_contradictory_or_unsupported_shape(changes, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        model(**changes)


@pytest.mark.parametrize("head_dim", [16, 24, 80, 256])
def test_every_multiple_of_eight_that_the_kernels_take_is_a_head_dim(head_dim):
    assert model(head_dim=head_dim).head_dim == head_dim


def test_model_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        model().layers = 1


def test_preset_name_is_accepted_in_any_case():
    assert load_language_model("QWEN3-8B").name == "qwen3-8b"


def test_llama_3_3_70b_has_the_shape_of_llama_3_1_70b():
    old, new = load_language_model("llama-3.1-70b"), load_language_model("llama-3.3-70b")
    assert dataclasses.replace(new, name=old.name, source=old.source) == old
    assert "Llama-3.3" in new.source


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("gemma-2-9b", "sliding window"),
        ("mixtral-8x7b", "mixture of experts"),
        ("qwen3-30b-a3b", "mixture of experts"),
        ("gpt-oss-20b", "mixture of experts; sliding window"),
        ("deepseek-v3", "mixture of experts; multi-head latent attention (MLA)"),
    ],
)
def test_preset_with_parts_that_cannot_be_timed_says_which(name, parts):
    assert load_language_model(name).untimed_parts == parts
    with pytest.raises(UsageError) as caught:
        load_timed_model(name)
    expected = f"--model: {name!r} cannot be timed: {parts}; `decodetax predict` models it"
    assert str(caught.value) == expected
    assert NOT_TIMED[name] == f"no: {parts}"


def test_all_other_presets_can_be_timed():
    assert len(NOT_TIMED) == 5
    assert load_timed_model("llama-3.1-8b") == load_language_model("llama-3.1-8b")
    assert all(row["source"].startswith("Hugging Face config.json of ") for row in PRESETS)


def test_deepseek_v3_by_hand():
    model = load_language_model("deepseek-v3")
    assert {p.name: (p.in_features, p.out_features) for p in model.attention_projections} == {
        "q_a": (7168, 1536),
        "q_b": (1536, 128 * (128 + 64)),
        "kv_a": (7168, 512 + 64),
        "kv_b": (512, 128 * (128 + 128)),
        "o": (128 * 128, 7168),
    }
    assert model.kv_elements_per_token_and_layer == 576
    assert model.kv_elements_per_token == 61 * 576
    assert (model.dense_layers, model.experts.dense_layers, model.experts.shared) == (3, 3, 1)
    assert model.mlp_projections[0].out_features == 2 * 18432
    assert model.expert_projections[0].out_features == 2 * 2048


@pytest.mark.parametrize(
    ("name", "published_billion", "without_embedding"),
    [("mixtral-8x7b", 12.88, False), ("gpt-oss-20b", 3.6, True), ("deepseek-v3", 37, True)],
)
def test_active_parameters_are_near_the_published_ones(name, published_billion, without_embedding):
    model = load_language_model(name)
    active = model.active_parameters - (model.lm_head.parameters if without_embedding else 0)
    assert active / 1e9 == pytest.approx(published_billion, rel=0.015)
    assert load_language_model("llama-3.1-8b").active_parameters == 8_030_261_248


def test_distinct_experts_are_the_expected_number():
    experts = Experts(count=8, per_token=2, intermediate_size=64)
    assert experts.expected_distinct(0) == 0
    assert experts.expected_distinct(1) == pytest.approx(2)
    assert experts.expected_distinct(2) == pytest.approx(8 * (1 - (6 / 8) ** 2))
    assert experts.expected_distinct(1000) == pytest.approx(8)


def test_a_mixture_of_experts_by_hand():
    tiny = model(
        intermediate_size=None, experts=Experts(count=8, per_token=2, intermediate_size=40, shared=1)
    )
    attention = 96 * 240 + 144 * 96 + 2 * 96
    expert = 96 * 80 + 40 * 96
    rest = 2 * 1001 * 96 + 96 + 3 * (attention + 96 * 8)
    assert tiny.parameters == rest + 3 * 9 * expert
    assert tiny.active_parameters == rest + 3 * 3 * expert
    assert (tiny.mlp_projections, tiny.dense_layers) == ((), 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Experts(count=4, per_token=5, intermediate_size=8), "experts.per_token: must be at most"),
        (lambda: Experts(count=0, per_token=1, intermediate_size=8), "experts.count: must be an integer"),
        (
            lambda: Experts(count=4, per_token=1, intermediate_size=8, shared=-1),
            "experts.shared: must be an integer from 0",
        ),
        (
            lambda: LatentAttention(
                q_rank=None, kv_rank=True, nope_head_dim=8, rope_head_dim=8, v_head_dim=8
            ),
            "latent.kv_rank: must be an integer",
        ),
    ],
)
def test_rejects_impossible_experts_and_latents(make, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}"):
        make()


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("llama-3.1-8", "llama-3.1-8b"),
        ("meta-llama/Llama-3.1-8B", "llama-3.1-8b"),
        ("an-organisation-of-a-long-name/Llama-3.1-8B", "llama-3.1-8b"),
        ("qwen3-32", "qwen3-32b"),
        ("mistral-7b", "mistral-7b-v0.3"),
    ],
)
def test_suggests_the_preset_of_a_similar_name(text, near):
    message = refusal(text)
    assert message.startswith(f"--model: {text!r} is neither a preset (llama-2-7b, llama-2-13b, ")
    assert " nor a config.json; did you mean " in message
    assert near in message.partition("did you mean")[2]


@pytest.mark.parametrize(
    "text", ["", " ", "zzz", "no/such/config.json", "a\0b", "x" * 5000, "two\nlines", "\ud800"], ids=ascii
)
def test_rejects_an_unknown_name_and_lists_the_presets(text):
    message = refusal(text)
    assert "is neither a preset (llama-2-7b, " in message
    assert message.endswith(" nor a config.json")
    assert len(message.partition(" is neither")[0]) <= len("--model: ") + 80


@pytest.mark.parametrize("text", ["", " "])
def test_blank_is_not_the_config_of_this_directory(load_config, tmp_path, monkeypatch, text):
    load_config()
    (tmp_path / " ").touch()
    monkeypatch.chdir(tmp_path)
    assert "is neither a preset" in refusal(text)
    assert load_language_model(".").layers == 3


def test_config_gives_every_shape(load_config):
    loaded = load_config()
    assert dataclasses.replace(loaded, name="tiny", source="test") == model()
    assert loaded.source == "config.json (model_type 'llama', read as a dense decoder with a gated MLP)"


def test_directory_stands_for_its_config(load_config, tmp_path):
    loaded = load_config()
    assert load_language_model(str(tmp_path)) == loaded


def test_config_of_a_preset_gives_the_preset(load_config):
    llama = load_language_model("llama-3.1-8b")
    loaded = load_config(
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=None,
        intermediate_size=14336,
        vocab_size=128256,
    )
    assert dataclasses.replace(loaded, name=llama.name, source=llama.source) == llama


@pytest.mark.parametrize("absent", ["left out", "null"])
def test_absent_fields_have_their_defaults(tmp_path, absent):
    fields = ("num_key_value_heads", "head_dim", "sliding_window")
    config = {name: value for name, value in CONFIG.items() if name not in fields}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config if absent == "left out" else CONFIG | dict.fromkeys(fields)))
    loaded = load_language_model(str(path))
    assert (loaded.kv_heads, loaded.head_dim, loaded.window) == (6, 16, None)


@pytest.mark.parametrize(
    ("model_type", "stated", "tied"),
    [
        ("llama", None, False),
        ("mistral", None, False),
        ("qwen3", None, False),
        ("gemma", None, True),
        ("cohere", None, True),
        (None, None, False),
        ("gemma", False, False),
        ("llama", True, True),
    ],
)
def test_explicit_tied_embeddings_override_the_family_default(load_config, model_type, stated, tied):
    assert load_config(tie_word_embeddings=stated, model_type=model_type).tied_embeddings is tied


@pytest.mark.parametrize("inner_tie", [None, False])
def test_multimodal_config_with_a_byte_order_mark_is_read_at_its_text_config(tmp_path, inner_tie):
    inner = CONFIG | {"tie_word_embeddings": inner_tie}
    outer = {"model_type": "seer", "hidden_size": 7, "tie_word_embeddings": True, "text_config": inner}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(outer), encoding="utf-8-sig")  # with a byte order mark
    loaded = load_language_model(str(path))
    assert (loaded.hidden_size, loaded.tied_embeddings) == (96, inner_tie is None)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("Llama-3.1-8B/config.json", "Llama-3.1-8B"),
        ("my shapes.json", "my-shapes"),
        ("models--Qwen--Qwen3-8B/snapshots/0123abc/config.json", "Qwen3-8B"),
    ],
)
def test_model_is_named_after_the_path_of_its_config(tmp_path, place, name):
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(CONFIG))
    assert load_language_model(str(path)).name == name


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False},
        {"model_type": "qwen3", "layer_types": ["full_attention"] * 3, "sliding_window": 4096},
        {"sliding_window": 4096, "max_position_embeddings": 4096},
        {"num_experts": 1},
        {"model_type": "a-family-of-tomorrow"},
        {"quantization_config": {"bits": 4}},
    ],
    ids=str,
)
def test_accepts_a_config_with_unused_unsupported_fields(load_config, changes):
    loaded = load_config(changes)
    assert (loaded.layers, loaded.untimed_parts) == (3, None)


@pytest.mark.parametrize(
    ("changes", "window_layers"),
    [
        ({"model_type": "mistral"}, 3),
        ({"max_position_embeddings": 32768}, 3),
        ({"use_sliding_window": True}, 3),
        ({"use_sliding_window": True, "max_window_layers": 2}, 1),
        ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, 1),
        ({"model_type": "gemma2"}, 2),
        ({"model_type": "gemma3_text", "num_hidden_layers": 13}, 11),
        ({"sliding_window_pattern": 3, "num_hidden_layers": 7}, 5),
    ],
    ids=str,
)
def test_sliding_window_layers_are_counted(load_config, changes, window_layers):
    loaded = load_config({"sliding_window": 4096, **changes})
    assert (loaded.window, loaded.window_layers) == (4096, window_layers)


MIXTURE = {"num_local_experts": 8, "num_experts_per_tok": 2}


@pytest.mark.parametrize(
    ("changes", "experts", "dense_size"),
    [
        ({"model_type": "mixtral", **MIXTURE}, Experts(count=8, per_token=2, intermediate_size=200), None),
        (
            {
                "model_type": "qwen3_moe",
                "num_experts": 16,
                "num_experts_per_tok": 4,
                "moe_intermediate_size": 24,
            },
            Experts(count=16, per_token=4, intermediate_size=24),
            None,
        ),
        (
            {
                "model_type": "qwen2_moe",
                "num_experts": 16,
                "num_experts_per_tok": 4,
                "moe_intermediate_size": 24,
                "shared_expert_intermediate_size": 48,
                "mlp_only_layers": [0],
            },
            Experts(count=16, per_token=4, intermediate_size=24, shared=2, dense_layers=1),
            200,
        ),
        (
            {
                "model_type": "deepseek_v3",
                "n_routed_experts": 32,
                "num_experts_per_tok": 4,
                "moe_intermediate_size": 24,
                "n_shared_experts": 1,
                "first_k_dense_replace": 2,
            },
            Experts(count=32, per_token=4, intermediate_size=24, shared=1, dense_layers=2),
            200,
        ),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else "",
)  # fmt: skip
def test_experts_are_read(load_config, changes, experts, dense_size):
    loaded = load_config(changes)
    assert (loaded.experts, loaded.intermediate_size) == (experts, dense_size)
    assert "a decoder with experts" in loaded.source


def test_latent_attention_is_read(load_config):
    ranks = {"kv_lora_rank": 64, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 32}
    loaded = load_config(ranks, num_key_value_heads=6)
    expected = LatentAttention(q_rank=None, kv_rank=64, nope_head_dim=16, rope_head_dim=8, v_head_dim=32)
    assert (loaded.latent, loaded.head_dim) == (expected, 32)  # the head_dim of the config is another
    assert load_config(ranks, num_key_value_heads=6, q_lora_rank=48).latent.q_rank == 48


NOT_YET = "cannot be modelled yet: "


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 8}, "lacks num_experts_per_tok"),
        ({"kv_lora_rank": 8, "v_head_dim": 8}, "lacks qk_nope_head_dim, qk_rope_head_dim"),
        ({**MIXTURE, "num_local_experts": "8"}, "num_local_experts: must be a positive integer, was '8'"),
        (
            {**MIXTURE, "shared_expert_intermediate_size": 300},
            "shared_expert_intermediate_size: must be a multiple of moe_intermediate_size, 200, was 300",
        ),
        ({**MIXTURE, "first_k_dense_replace": 9}, "experts.dense_layers: must be at most layers, 3, was 9"),
        (
            {**MIXTURE, "n_shared_experts": "1"},
            "experts.shared: must be an integer from 0 to 2147483647, was '1'",
        ),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: must be true or false, was 'yes'"),
        ({"text_config": 3}, "text_config: must be an object, was 3"),
        ({"head_dim": 20}, "head_dim: must be a multiple of 8 from 16 to 256, was 20"),
        ({"num_key_value_heads": 4}, "q_heads: must be a multiple of kv_heads, 4, was 6"),
        (
            {"head_dim": None, "hidden_size": 97},
            "head_dim: absent, so hidden_size must be a multiple of num_attention_heads, was 97 and 6",
        ),
        ({"vocab_size": 10**40}, f"vocab_size: must be an integer from 1 to {2**31 - 1}, was {10**40}"),
        (
            {"model_type": "dbrx"},
            f"{NOT_YET}its experts are described in fields of their own (model_type dbrx)",
        ),
        (
            {**MIXTURE, "decoder_sparse_step": 2},
            f"{NOT_YET}its layers alternate between experts and a dense MLP (every 2 layers)",
        ),
        (
            {"layer_types": ["linear_attention", "full_attention"]},
            f"{NOT_YET}not every layer is full or sliding attention (layer_types has 'linear_attention')",
        ),
        ({"is_encoder_decoder": True}, f"{NOT_YET}it is an encoder-decoder (is_encoder_decoder)"),
        (
            {"cross_attention_layers": [1]},
            f"{NOT_YET}some layers attend to images (cross_attention_layers)",
        ),
        ({"num_kv_shared_layers": 2}, f"{NOT_YET}some layers share a KV cache (num_kv_shared_layers)"),
        ({"model_type": "bert"}, f"{NOT_YET}it is an encoder, not a decoder (model_type bert)"),
        ({"model_type": "t5"}, f"{NOT_YET}it is an encoder-decoder (model_type t5)"),
        ({"model_type": "mamba"}, f"{NOT_YET}not every layer is attention (model_type mamba)"),
        (
            {"model_type": "qwen"},
            f"{NOT_YET}its intermediate_size counts both halves of the gated MLP (model_type qwen)",
        ),
        *(({field: None}, f"lacks {field}") for field in REQUIRED),
    ],
    ids=str,
)
def test_rejects_incomplete_contradictory_or_unmodelled_config(load_config, changes, message):
    with pytest.raises(UsageError, match=rf"^--model: .*config\.json': {re.escape(message)}$"):
        load_config(changes)


@pytest.mark.parametrize(
    "family",
    [
        "gpt2",
        "gpt_neox",
        "gptj",
        "opt",
        "falcon",
        "bloom",
        "phi",
        "mpt",
        "starcoder2",
        "gpt_bigcode",
        "nemotron",
    ],
)
def test_rejects_a_family_without_a_gated_mlp_before_its_fields(tmp_path, family):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": family}))
    assert refusal(path).endswith(f"cannot be modelled yet: its MLP is not gated (model_type {family})")


def test_names_all_missing_fields_at_once(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{}")
    assert refusal(path).endswith(f"config.json': lacks {', '.join(REQUIRED)}")


@pytest.mark.parametrize("field", [*REQUIRED, "num_key_value_heads", "head_dim", "sliding_window"])
@pytest.mark.parametrize("value", ["8", True, 8.0, -8, 0, [8], {"a": 8}, float("nan")], ids=repr)
def test_rejects_a_field_of_a_wrong_type(load_config, field, value):
    with pytest.raises(UsageError, match=rf"config\.json': {field}: must be a positive integer, was \S"):
        load_config({field: value})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON: Expecting value at line 1, column 1"),
        (
            b"{'hidden_size': 4}",
            "is not JSON: Expecting property name enclosed in double quotes at line 1, column 2",
        ),
        (b"[1, 2]", "must hold a JSON object, holds a list of 2"),
        (b'"text"', "must hold a JSON object, holds 'text'"),
        (b"null", "must hold a JSON object, holds None"),
        (b'{"a": "\xff"}', "is not UTF-8: byte 7 cannot be decoded"),
        (b"[" * 200_000, "is nested too deeply"),
        (b'{"a":' * 200_000, "is nested too deeply"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "holds a number of too many digits"),
        (b" " * (16 * 2**20 + 1), "is too large for a config.json: more than 16 MiB"),
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_rejects_a_file_without_a_config(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    assert refusal(path) == f"--model: {short_repr(str(path))}: {message}"


def test_rejects_a_directory_without_a_config_and_a_special_file(tmp_path):
    assert refusal(tmp_path) == f"--model: {short_repr(str(tmp_path))} is a directory without a config.json"
    (tmp_path / "config.json").mkdir()
    assert refusal(tmp_path).endswith("config.json': is not a regular file")
    assert refusal("/dev/zero") == "--model: '/dev/zero': is not a regular file"


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("open", "config.json': cannot be read: Permission denied"),  # the file
        ("exists", " cannot be read: permission denied"),  # its directory
    ],
)
def test_rejects_an_unreadable_file(load_config, tmp_path, monkeypatch, method, message):
    load_config()

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, method, refuse)
    assert refusal(tmp_path / "config.json").endswith(message)


def test_hostile_values_are_shortened_to_one_line(load_config):
    with pytest.raises(UsageError) as caught:
        load_config(vocab_size="a\nb" * 10_000)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message.partition(", was ")[2]) == 80


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        ("a\nb", r"'a\nb'"),
        ([1, 2], "a list of 2"),
        ({"a": 1}, "an object of 1 fields"),
        (None, "None"),
    ],
    ids=repr,
)
def test_value_is_shown_on_one_line(value, text):
    assert short_repr(value) == text


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
    ],
    ids=["transformers 4", "transformers 5"],
)
def test_rotary_embedding_of_llama_3(load_config, fields):
    rotary = load_config(**fields).rotary
    assert rotary == Rotary(
        theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=8192
    )
    frequencies = rotary.frequencies(128)
    assert frequencies[0] == 1.0  # a wavelength of 6 positions is below 8192 / 4
    assert frequencies[-1] == pytest.approx(5e5 ** (-126 / 128) / 8)  # 2.6 M positions, above 8192 / 1
    between = 5e5 ** (-64 / 128)  # 4443 positions
    kept = (8192 * between / (2 * math.pi) - 1) / 3
    assert frequencies[32] == pytest.approx(between * (kept + (1 - kept) / 8))


@pytest.mark.parametrize(
    ("fields", "rotary"),
    [
        ({}, Rotary()),
        ({"rope_theta": 1e6}, Rotary(theta=1e6)),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, Rotary(factor=4.0)),
        ({"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0}}, Rotary(theta=1e6)),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, Rotary()),
        ({"rope_theta": None, "rope_scaling": None}, Rotary()),
    ],
    ids=str,
)
def test_rotary_embedding_of_a_config(load_config, fields, rotary):
    assert load_config(**fields).rotary == rotary


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rms_norm_eps": 0}, "rms_norm_eps: must be a finite number above 0, was 0"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps: must be a finite number above 0, was '1e-5'"),
        (
            {"rope_scaling": {"type": "linear", "factor": -1}},
            "rotary.factor: must be a finite number above 0, was -1",
        ),
        (
            {"rope_scaling": {**LLAMA3, "high_freq_factor": 0.5}},
            "rotary.high_freq_factor: must be above low_freq_factor, 1.0, was 0.5",
        ),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}},
            "rotary: needs all of low_freq_factor, high_freq_factor and original_positions",
        ),
    ],
    ids=str,
)
def test_invalid_numbers_of_a_config_are_named(load_config, fields, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        load_config(**fields)


def test_norms_of_queries_and_keys_are_those_of_qwen3(load_config):
    assert load_config(model_type="qwen3", rms_norm_eps=1e-5).qk_norm
    assert load_config(rms_norm_eps=1e-5).rms_norm_eps == 1e-5
    assert not load_config().qk_norm
    assert load_language_model("qwen3-8b").qk_norm
    assert not load_language_model("llama-3.1-8b").qk_norm
