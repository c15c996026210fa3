"""Models that can be timed: shapes by hand, what is refused, and the rotary embedding of a config."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.language_model import load_language_model, preset_table
from decodetax.harness.core.layers import Projection
from decodetax.harness.core.rotary import Rotary
from decodetax.harness.core.timed_model import TimedModel, load_timed_model
from msgspec import UNSET
from odd_config import CONFIG


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
    return TimedModel(**(fields | changes))


@pytest.fixture
def load_config(tmp_path):
    """Writes a config with changes (None stands for an absent field) and loads it."""

    def load(changes=None, /, **more):
        config = {**CONFIG, **(changes or {}), **more}
        path = tmp_path / "config.json"
        path.write_text(json.dumps({field: value for field, value in config.items() if value is not None}))
        return load_timed_model(str(path))

    return load


def test_llama_3_1_8b_by_hand():
    llama = load_timed_model("llama-3.1-8b")
    assert llama.projections == (
        Projection("qkv", 4096, 6144, "attention"),  # (32 + 2 * 8) * 128
        Projection("o", 4096, 4096, "attention"),
        Projection("gate_up", 4096, 28672, "mlp"),
        Projection("down", 14336, 4096, "mlp"),
    )
    assert llama.lm_head == Projection("lm_head", 4096, 128256, "lm_head")
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
        ({"q_heads": 258}, "q_heads: must be at most 128 times kv_heads, 2, was 258"),
        ({"head_dim": 20}, "head_dim: must be a multiple of 8 from 16 to 512, was 20"),
        ({"head_dim": 8}, "head_dim: must be a multiple of 8 from 16 to 512, was 8"),
        ({"head_dim": 520}, "head_dim: must be a multiple of 8 from 16 to 512, was 520"),
        ({"tied_embeddings": 1}, "tied_embeddings: must be True or False, was 1"),
        ({"intermediate_size": None}, "intermediate_size: must be an integer from 1 to 2147483647, was None"),
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


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("gemma-2-9b", "a sliding window, a softcap"),
        ("mixtral-8x7b", "experts"),
        ("gpt-oss-20b", "a sliding window, attention sinks, experts"),
        ("deepseek-v3", "multi-head latent attention (MLA), experts"),
        ("llama-3.2-1b", None),
    ],
)
def test_model_says_what_is_timed_part_by_part_alone(name, parts):
    assert load_timed_model(name).in_parts == parts


def test_formats_of_published_weights_are_kept_for_the_output():
    assert load_timed_model("deepseek-v3").stored_in == ("fp8 blocks",)
    assert load_timed_model("gpt-oss-20b").stored_in == ("mxfp4",)
    assert load_timed_model("llama-3.2-1b").stored_in is UNSET


def test_deepseek_v3_by_hand():
    dense, routed = load_timed_model("deepseek-v3").groups
    assert (dense.count, routed.count) == (3, 58)
    assert dense.latent == routed.latent
    assert dense.latent.projections(7168) == (
        Projection("q_a", 7168, 1536, "attention"),
        Projection("q_b", 1536, 128 * 192, "attention"),
        Projection("kv_a", 7168, 576, "attention"),
        Projection("kv_b", 512, 128 * 256, "attention"),
        Projection("o", 128 * 128, 7168, "attention"),
    )
    assert (routed.experts.count, routed.experts.per_token, routed.dense) == (256, 8, None)


def test_gemma_2_has_a_window_in_every_other_layer_and_a_softcap_in_all():
    sliding, full = load_timed_model("gemma-2-9b").groups
    assert (sliding.count, full.count) == (21, 21)
    assert (sliding.grouped.window, full.grouped.window) == (4096, None)
    assert sliding.grouped.softcap == full.grouped.softcap == 50.0


@pytest.mark.parametrize(
    ("changes", "softcap"),
    [({}, 50.0), ({"attn_logit_softcapping": 30}, 30.0), ({"attn_logit_softcapping": "none"}, None)],
    ids=str,
)
def test_softcap_of_a_config_counts_before_its_familys(load_config, changes, softcap):
    if "attn_logit_softcapping" in changes and softcap is None:
        with pytest.raises(UsageError, match="attn_logit_softcapping: must be a positive number"):
            load_config(model_type="gemma2", sliding_window=16, **changes)
        return
    groups = load_config(model_type="gemma2", sliding_window=16, **changes).groups
    assert {group.grouped.softcap for group in groups} == {softcap}


def test_every_preset_can_be_timed():
    for row in preset_table():
        assert row["can_run"] == "yes"
        assert load_timed_model(row["model"]).parameters == pytest.approx(
            load_language_model(row["model"]).parameters, rel=4e-4
        )


def test_config_gives_every_shape(load_config):
    assert dataclasses.replace(load_config(), name="tiny", source="test") == model()


def test_layers_by_group_have_the_same_parameters():
    assert model().language_model().parameters == model().parameters
    assert model().language_model().kv_elements_per_token == model().kv_elements_per_token


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 20}, "head_dim: must be a multiple of 8 from 16 to 512, was 20"),
        (
            {"model_type": "gemma2", "head_dim": 20},
            "head_dim: must be a multiple of 8 from 16 to 512, was 20",
        ),
    ],
    ids=str,
)
def test_config_that_cannot_be_timed_is_refused(load_config, changes, message):
    with pytest.raises(UsageError, match=rf"config\.json': {re.escape(message)}$"):
        load_config(changes)


def test_layers_of_different_shapes_are_groups(load_config):
    groups = load_config(num_key_value_heads=[2, 1, 2]).groups
    assert [(group.count, group.grouped.kv_heads) for group in groups] == [(2, 2), (1, 1)]


@pytest.mark.parametrize(
    ("file", "parts"),
    [
        ("kda-48b", "KDA"),
        ("dsa-glm51", "sparse attention"),
        ("kda-k3", "KDA; experts of another hidden size"),
    ],
)
def test_what_cannot_be_timed_is_refused_by_name(file, parts):
    message = f"cannot be timed: {parts}; `decodetax predict` models it"
    with pytest.raises(UsageError, match=re.escape(message)):
        load_timed_model(str(Path(__file__).parent / "configs" / f"{file}.json"))


def test_attention_in_chunks_cannot_be_timed(load_config):
    changes = {"model_type": "llama4_text", "attention_chunk_size": 16, "intermediate_size_mlp": 40}
    with pytest.raises(UsageError, match="cannot be timed: attention in chunks"):
        load_config(changes, num_local_experts=4, num_experts_per_tok=1, interleave_moe_layer_step=1)


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
    assert load_timed_model("qwen3-8b").qk_norm
    assert not load_timed_model("llama-3.1-8b").qk_norm
