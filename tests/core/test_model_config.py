"""Files of real models, by the figures that they publish or that transformers counts, and what is refused.

`configs/` holds the config.json of published models, or what a class of transformers writes for its defaults
(names that start with "tf-"). MODELS gives parameters, active parameters, bytes of the KV cache a token in 16
bits, and bytes of recurrent states a sequence.
"""

import copy
import dataclasses
import json
import re
from pathlib import Path

import pytest
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.language_model import language_model, load_language_model
from decodetax.harness.core.layers import (
    Experts,
    GroupedQueryAttention,
    Indexer,
    LatentAttention,
    LinearAttention,
    Mlp,
)
from decodetax.harness.core.model_config import model_config
from decodetax.harness.core.model_families import families
from odd_config import CONFIG

CONFIGS = Path(__file__).parent / "configs"

MODELS = {
    "apertus8b": (8053338176, 8053338176, 131072, 0),
    "deci7b": (7088640000, 7088640000, 56320, 0),
    "dsa-glm51": (743911199232, 41784709632, 109824, 0),
    "ernie-300b": (298636913856, 47079337152, 221184, 0),
    "gemma3-12b-headdim": (11766034176, 11766034176, 393216, 0),
    "gemma4-31b": (30697345280, 30697345280, 901120, 0),
    "kda-48b": (49122675072, 3484453248, 8064, 43417600),
    "kda-k3": (2779481383008, 105360924768, 27648, 449372160),
    "q-fp8": (32762123264, 32762123264, 262144, 0),
    "q-int4ct": (1026408209408, 32861477888, 70272, 0),
    "q-mxfp4": (116829156672, 5750551872, 73728, 0),
    "q-nvfp4": (228689748992, 11030537216, 253952, 0),
    "r-coder480": (480154875392, 35474765312, 253952, 0),
    "r-gemma4-moe": (25233141760, 3822530560, 225280, 0),
    "r-hunyuan": (80393183232, 12747448320, 131072, 0),
    "r-m3": (426174565632, 25962466560, 137472, 0),
    "r-qwen3moe": (1245452544, 679221504, 2048, 0),
    "tf-afmoe": (19232600000, 3678547904, 262144, 0),
    "tf-ernie4_5_moe": (21825437888, 3352150208, 57344, 0),
    "tf-exaone_moe": (28550639616, 6706704384, 524288, 0),
    "tf-jais2": (8090401280, 8090401280, 425984, 0),
    "tf-nanochat": (256573440, 256573440, 36864, 0),
}

REFUSED = {
    "eagle3-ds": "cannot be modelled: it is a draft for speculative decoding (eagle_config)",
    "git": "cannot be modelled: it describes images with a BERT-like decoder (model_type git)",
    "plamo2": "cannot be modelled: its linear-attention or Mamba layers are not modelled (model_type plamo2)",
    "r-dsv4": "cannot be modelled: its compressed sparse attention is not modelled (model_type deepseek_v4)",
    "short-layer-types": "layer_types: must be a list of 48, one for each layer, was a list of 2",
    "tf-jetmoe": "cannot be modelled: its attention has experts (model_type jetmoe)",
    "tf-rembert": "cannot be modelled: it is an encoder, not a decoder (model_type rembert)",
    "tf-xlm-roberta-xl": "cannot be modelled: it is an encoder, not a decoder (model_type xlm-roberta-xl)",
}

EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 2}


def read(changes=None, /, *, assume=None, **more):
    """The model of CONFIG with changed fields; None takes one away."""
    config = {**CONFIG, **(changes or {}), **more}
    fields = {name: value for name, value in config.items() if value is not None}
    return language_model(model_config(fields, assume), name="tiny")


def refusal(changes=None, /, **more):
    with pytest.raises(UsageError) as caught:
        read(changes, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def stored(name):
    return json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))


def only_group(model):
    [group] = model.layer_groups
    return group


# Published files.


@pytest.mark.parametrize("name", MODELS)
def test_parameters_cache_and_states_of_a_published_model(name):
    model = load_language_model(str(CONFIGS / f"{name}.json"))
    assert (
        model.parameters,
        model.active_parameters,
        2 * model.kv_elements_per_token,
        model.state_bytes_per_sequence,
    ) == MODELS[name]


@pytest.mark.parametrize("name", REFUSED)
def test_model_that_is_no_known_decoder_is_refused_by_name(name):
    with pytest.raises(UsageError, match=rf"^--model: .*{name}\.json': {re.escape(REFUSED[name])}$"):
        load_language_model(str(CONFIGS / f"{name}.json"))


def test_every_stored_file_is_read_or_refused():
    assert {path.stem for path in CONFIGS.glob("*.json")} == {*MODELS, *REFUSED}


def test_global_layers_of_gemma_4_have_their_own_heads():
    sliding, full = language_model(model_config(stored("gemma4-31b")), name="x").layer_groups
    assert (sliding.count, full.count) == (50, 10)
    assert sliding.attention == GroupedQueryAttention(q_heads=32, kv_heads=16, head_dim=256, window=1024)
    assert full.attention == GroupedQueryAttention(q_heads=32, kv_heads=4, head_dim=512, values_are_keys=True)


def test_sparse_attention_of_glm_5_reads_at_most_its_top_k():
    model = language_model(model_config(stored("dsa-glm51")), name="x")
    assert {group.attention.indexer for group in model.layer_groups} == {
        Indexer(heads=32, head_dim=128, top_k=2048)
    }


def test_sparse_attention_of_minimax_m3_counts_blocks_in_the_layers_that_have_it():
    dense, sparse = language_model(model_config(stored("r-m3")), name="x").layer_groups
    assert (dense.count, dense.attention.indexer, dense.mlp.intermediate_size) == (3, None, 12288)
    assert sparse.attention.indexer == Indexer(heads=4, head_dim=128, top_k=16 * 128, weighted=False)


def test_kimi_linear_has_recurrent_states_in_three_of_four_layers():
    model = language_model(model_config(stored("kda-48b")), name="x")
    counts = {LinearAttention: 0, LatentAttention: 0}
    for group in model.layer_groups:
        counts[type(group.attention)] += group.count
    assert counts == {LinearAttention: 20, LatentAttention: 7}
    [linear] = {group.attention for group in model.layer_groups if group.attention.cached_elements == 0}
    # 32 heads x 128 x 128 in float32, and 3 inputs of 3 x 4096 channels in 16 bits.
    assert linear.state_elements * linear.state_bytes == 4 * 32 * 128 * 128 + 2 * 3 * 3 * 4096


def test_lists_of_layers_that_contradict_each_other_are_refused():
    config = stored("kda-48b")
    config["linear_attn_config"]["kda_layers"].append(4)
    with pytest.raises(
        UsageError,
        match=r"^linear_attn_config\.kda_layers: must be the layers that are not in "
        r"linear_attn_config\.full_attn_layers, was 21 of 27 beside 7$",
    ):
        language_model(model_config(config), name="x")


def test_formats_are_read_by_layer_and_part():
    model = language_model(model_config(stored("q-mxfp4")), name="x")
    formats = model.layer_groups[0].formats
    assert (formats.experts.name, formats.attention.name, model.formats.lm_head.name) == (
        "mxfp4",
        "bf16",
        "bf16",
    )


def test_what_is_not_counted_or_assumed_is_said():
    model = language_model(model_config(stored("gemma3-12b-headdim")), name="x")
    assert "head_dim: absent, taken as 256" in model.assumed
    assert "tie_word_embeddings: absent, taken as true" in model.assumed
    assert "only the language model is counted, not the parts for images or sound" in model.assumed
    prediction = language_model(model_config(stored("dsa-glm51")), name="x").assumed
    assert prediction == ("layers for multi-token prediction are not counted (num_nextn_predict_layers)",)
    residual = language_model(model_config(stored("kda-k3")), name="x").assumed[-1]
    assert residual == "attention over the outputs of earlier blocks is not counted (attn_res_block_size)"


# Families.


def test_unknown_family_is_refused_with_the_option_that_reads_it():
    assert refusal(model_type="a-family-of-tomorrow") == (
        "model_type 'a-family-of-tomorrow' is not a known family of decoders; --assume dense reads it as a "
        "dense decoder with a gated MLP"
    )
    assert refusal(model_type=None).startswith(
        "a config without model_type is not a known family of decoders; --assume"
    )
    assert refusal(model_type=None, architectures=["XForCausalLM"]).startswith(
        "architectures 'XForCausalLM' "
    )
    assert refusal(architectures=["LlamaForSequenceClassification"]).startswith(
        "architectures 'LlamaForSequenceClassification' of model_type 'llama' is not a known family"
    )


def test_unknown_family_is_read_as_dense_with_a_warning():
    model = read(model_type="a-family-of-tomorrow", assume="dense")
    assert model.assumed[0] == (
        "model_type 'a-family-of-tomorrow' is not known: read as a dense decoder with a gated MLP, as "
        "--assume dense asks"
    )
    assert dataclasses.replace(model, assumed=(), source=read().source) == read()
    assert read(assume="dense") == read()  # a known family needs no assumption


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 8}, "cannot be modelled: its family has no experts (num_experts)"),
        ({"model_type": "bert"}, "cannot be modelled: it is an encoder, not a decoder (model_type bert)"),
        ({"intermediate_size": None}, "lacks intermediate_size"),
    ],
    ids=str,
)
def test_assuming_dense_does_not_hide_what_is_known(changes, message):
    assert refusal({"model_type": "tomorrow", **changes}, assume="dense") == message


def test_architectures_name_the_family_where_there_is_no_type():
    model = read(model_type=None, architectures=["LlamaForCausalLM"])
    assert dataclasses.replace(model, source=read().source) == read()


def test_source_names_the_family():
    assert read().source == "config.json (model_type 'llama', read as a dense decoder with a gated MLP)"
    assert read(model_type="nemotron").source.endswith("read as a dense decoder with an ungated MLP)")
    assert read(model_type="mixtral", **EXPERTS).source.endswith("read as a decoder with experts)")


@pytest.mark.parametrize("absent", ["left out", "null"])
def test_absent_fields_have_their_defaults(absent):
    fields = ("num_key_value_heads", "head_dim", "sliding_window")
    config = {name: value for name, value in CONFIG.items() if name not in fields}
    config |= {} if absent == "left out" else dict.fromkeys(fields)
    model = language_model(model_config(config), name="tiny")
    assert only_group(model).attention == GroupedQueryAttention(q_heads=6, kv_heads=6, head_dim=16)
    assert model.assumed == ("num_key_value_heads: absent, taken as 6",)


@pytest.mark.parametrize(
    ("model_type", "stated", "tied"),
    [
        ("llama", None, False),
        ("mistral", None, False),
        ("qwen3", None, False),
        ("gemma", None, True),
        ("cohere", None, True),
        ("gemma", False, False),
        ("llama", True, True),
    ],
)
def test_explicit_tied_embeddings_override_the_family_default(model_type, stated, tied):
    assert read(tie_word_embeddings=stated, model_type=model_type).tied_embeddings is tied


@pytest.mark.parametrize("inner_tie", [None, False])
def test_multimodal_config_is_read_at_its_text_config(inner_tie):
    inner = CONFIG | {"tie_word_embeddings": inner_tie}
    outer = {"model_type": "seer", "hidden_size": 7, "tie_word_embeddings": True, "text_config": inner}
    model = language_model(model_config(outer), name="tiny")
    assert (model.hidden_size, model.tied_embeddings) == (96, inner_tie is None)


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"model_type": "mistral"}, 3),
        ({"max_position_embeddings": 32768}, 3),
        ({"max_position_embeddings": 4096}, 0),
        ({"model_type": "qwen2"}, 0),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 2}, 1),
        ({"layer_types": ["full_attention"] * 3}, 0),
        ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, 1),
        ({"model_type": "gemma2"}, 2),
        ({"model_type": "gemma3_text", "num_hidden_layers": 13}, 11),
        ({"sliding_window_pattern": 3, "num_hidden_layers": 7}, 5),
    ],
    ids=str,
)
def test_sliding_window_layers_are_counted(changes, windows):
    groups = read({"sliding_window": 4096, **changes}).layer_groups
    assert sum(group.count for group in groups if group.attention.window == 4096) == windows


@pytest.mark.parametrize(
    ("changes", "with_experts"),
    [
        ({"model_type": "mixtral"}, [0, 1, 2, 3]),
        ({"model_type": "deepseek_v3", "first_k_dense_replace": 2}, [2, 3]),
        ({"model_type": "qwen2_moe", "mlp_only_layers": [0]}, [1, 2, 3]),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 2}, [1, 3]),
        ({"model_type": "dots1", "moe_layer_freq": [0, 1, 1, 0]}, [1, 2]),
        ({"model_type": "llama4_text", "interleave_moe_layer_step": 2}, [1, 3]),
        ({"model_type": "ernie4_5_moe", "moe_layer_start_index": 1, "moe_layer_end_index": 2}, [1, 2]),
        ({"model_type": "afmoe", "num_dense_layers": 3}, [3]),
        ({"model_type": "exaone_moe", "mlp_layer_types": ["dense", "sparse", "dense", "dense"]}, [1]),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else "",
)
def test_layers_with_experts_are_those_that_the_family_names(changes, with_experts):
    sizes = {"num_hidden_layers": 4, "moe_intermediate_size": 24, "sliding_window": 8, **EXPERTS}
    if changes["model_type"] == "deepseek_v3":
        sizes |= {"kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
    # Every layer has heads of its own, so that groups are single layers in their order.
    groups = read({**sizes, "num_attention_heads": [2, 4, 6, 8], **changes}).layer_groups
    assert [layer for layer, group in enumerate(groups) if isinstance(group.mlp, Experts)] == with_experts


def test_shared_experts_of_a_total_size_or_a_number():
    sizes = {"moe_intermediate_size": 24, **EXPERTS}
    total = read({"model_type": "qwen2_moe", "shared_expert_intermediate_size": 136, **sizes})
    assert only_group(total).mlp.shared == Mlp(intermediate_size=136)
    none = read({"model_type": "qwen2_moe", "shared_expert_intermediate_size": 0, **sizes})
    assert only_group(none).mlp.shared is None
    number = read({"model_type": "dots1", "n_shared_experts": 2, **sizes})
    assert only_group(number).mlp.shared == Mlp(intermediate_size=48)


def test_lists_give_each_layer_its_own_heads():
    groups = read(num_key_value_heads=[2, 3, 2]).layer_groups
    assert [(group.count, group.attention.kv_heads) for group in groups] == [(2, 2), (1, 3)]
    constant = read(num_key_value_heads=[2, 2, 2])
    assert constant.layer_groups == read().layer_groups


def test_every_family_is_described_by_known_slots():
    known = {slot for family in families().values() for slot in family.slots}
    for family in families().values():
        for replaced in family.slots.get("when", ()):
            assert set(replaced[1]) <= known


# What is refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mixtral", "num_local_experts": 8}, "lacks num_experts_per_tok"),
        (
            {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 3},
            "num_experts_per_tok: must be at most 2 experts, was 3",
        ),
        (
            {"model_type": "deepseek_v3", "kv_lora_rank": 8, "v_head_dim": 8},
            "lacks qk_nope_head_dim",
        ),
        (
            {"model_type": "dots1", **EXPERTS, "moe_intermediate_size": 8, "first_k_dense_replace": 9},
            "first_k_dense_replace: must be at most 3 layers, was 9",
        ),
        (
            {"model_type": "dots1", **EXPERTS, "moe_intermediate_size": 8, "n_shared_experts": "1"},
            "n_shared_experts: must be an integer from 0 to 2147483647, was '1'",
        ),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: must be true or false, was 'yes'"),
        ({"text_config": 3}, "text_config: must be an object, was 3"),
        ({"model_type": 3}, "model_type: must be text, was 3"),
        ({"architectures": "x"}, "architectures: must be a list of names, was 'x'"),
        (
            {"num_key_value_heads": 4},
            "num_attention_heads: must be a multiple of num_key_value_heads, 4, was 6",
        ),
        (
            {"head_dim": None, "hidden_size": 97},
            "head_dim: absent, so hidden_size must be a multiple of num_attention_heads, was 97 and 6",
        ),
        ({"vocab_size": 10**40}, f"vocab_size: must be an integer from 1 to {2**31 - 1}, was {10**40}"),
        ({"num_hidden_layers": 5000}, "num_hidden_layers: must be an integer from 1 to 4096, was 5000"),
        (
            {"num_key_value_heads": [2, 2]},
            "num_key_value_heads: must be a list of 3, one for each layer, was a list of 2",
        ),
        ({"layer_types": ["full_attention"] * 2 + ["x"]}, "cannot be modelled: layer_types has 'x'"),
        ({"layer_types": ["sliding_attention"] * 3}, "lacks sliding_window"),
        (
            {"is_encoder_decoder": True},
            "cannot be modelled: it is an encoder-decoder (is_encoder_decoder)",
        ),
        (
            {"cross_attention_layers": [1]},
            "cannot be modelled: some layers attend to images (cross_attention_layers)",
        ),
        (
            {"num_kv_shared_layers": 2},
            "cannot be modelled: some layers share a KV cache (num_kv_shared_layers)",
        ),
        (
            {"n_routed_experts": 8},
            "cannot be modelled: its family has no experts (n_routed_experts)",
        ),
        ({"kv_lora_rank": 8}, "cannot be modelled: its family has no latent attention (MLA) (kv_lora_rank)"),
        ({"model_type": "t5"}, "cannot be modelled: it is an encoder-decoder (model_type t5)"),
        (dict.fromkeys(("vocab_size", "hidden_size")), "lacks hidden_size, vocab_size"),
    ],
    ids=str,
)
def test_contradictory_or_missing_fields_are_named_in_one_line(changes, message):
    assert refusal(changes) == message


@pytest.mark.parametrize(
    "field",
    [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "intermediate_size",
        "head_dim",
    ],
)
@pytest.mark.parametrize("value", ["8", True, 8.0, -8, 0, [8], {"a": 8}, float("nan")], ids=repr)
def test_field_of_a_wrong_type_is_refused(field, value):
    assert refusal({field: value}).startswith(f"{field}: must be a")


@pytest.mark.parametrize("name", ["kda-48b", "r-m3", "tf-ernie4_5_moe", "deci7b"])
def test_any_value_in_any_field_is_read_or_refused_in_one_line(name):
    config = stored(name)
    for path in list(paths(config)):
        for value in (None, True, -1, 0, 3, 10**40, 0.5, "x", [], [1], {}):
            changed = copy.deepcopy(config)
            at = changed
            for part in path[:-1]:
                at = at[part]
            at[path[-1]] = value
            try:
                model = language_model(model_config(changed), name="x")
            except UsageError as error:
                assert "\n" not in str(error)  # noqa: PT017
            else:
                assert 0 < model.active_parameters <= model.parameters


def paths(config, before=()):
    for name, value in config.items():
        yield (*before, name)
        if isinstance(value, dict):
            yield from paths(value, (*before, name))
