"""Presets, Hugging Face configs, and what is refused with its reason."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from decodetax.harness.accounting.errors import UsageError
from decodetax.harness.accounting.language_model import (
    LanguageModel,
    Projection,
    load_language_model,
    preset_table,
)
from decodetax.harness.accounting.model_config import shown

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
REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
RUNNABLE = [row for row in preset_table() if row["can_run"] == "yes"]
REFUSED = [row for row in preset_table() if row["can_run"] != "yes"]


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


def test_head_dim_apart_from_hidden_size_shapes_q_and_o():
    tiny = model()
    qkv, o, _, _ = tiny.projections
    assert (qkv.out_features, o.in_features) == (240, 144)  # 144 is not the hidden size, 96


def test_tied_embeddings_are_counted_once():
    assert model().parameters - model(tied_embeddings=True).parameters == 96 * 1001


def test_tiny_parameters_by_hand():
    layer = 96 * 240 + 144 * 96 + 96 * 400 + 200 * 96 + 2 * 96
    assert model().parameters == 2 * 1001 * 96 + 3 * layer + 96


@pytest.mark.parametrize("row", RUNNABLE, ids=lambda row: row["model"])
def test_parameters_are_within_one_percent_of_the_published_ones(row):
    computed = load_language_model(row["model"]).parameters / 1e9
    assert computed == pytest.approx(row["published_parameters_billion"], rel=0.01)
    assert row["parameters_billion"] == computed


@pytest.mark.parametrize(
    "field", ["hidden_size", "layers", "kv_heads", "head_dim", "intermediate_size", "vocab_size"]
)
@pytest.mark.parametrize("value", [0, -1, 2.0, "8", True, None, 2**31], ids=repr)
def test_size_that_is_no_positive_integer_is_refused_by_name(field, value):
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
    ],
)
def test_shape_that_the_kernels_do_not_take_is_refused(changes, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        model(**changes)


@pytest.mark.parametrize("head_dim", [16, 24, 80, 256])
def test_every_multiple_of_eight_that_the_kernels_take_is_a_head_dim(head_dim):
    assert model(head_dim=head_dim).head_dim == head_dim


def test_model_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        model().layers = 1


def test_preset_name_is_taken_in_any_case():
    assert load_language_model("Llama-3.1-8B") is not None
    assert load_language_model("QWEN3-8B").name == "qwen3-8b"


def test_llama_3_3_70b_has_the_shape_of_llama_3_1_70b():
    old, new = load_language_model("llama-3.1-70b"), load_language_model("llama-3.3-70b")
    assert dataclasses.replace(new, name=old.name, source=old.source) == old
    assert "Llama-3.3" in new.source


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gemma-2-9b", "sliding window"),
        ("mixtral-8x7b", "mixture of experts"),
        ("qwen3-30b-a3b", "mixture of experts"),
        ("gpt-oss-20b", "mixture of experts; sliding window"),
        ("deepseek-v3", "mixture of experts; multi-head latent attention (MLA)"),
    ],
)
def test_preset_that_cannot_be_modelled_is_refused_with_its_reason(name, reason):
    assert refusal(name) == f"--model: {name} cannot be modelled yet: {reason}"


def test_preset_table_says_of_each_preset_whether_it_runs():
    assert len(RUNNABLE) == 13
    assert [row["model"] for row in REFUSED] == [
        "gemma-2-9b",
        "mixtral-8x7b",
        "qwen3-30b-a3b",
        "gpt-oss-20b",
        "deepseek-v3",
    ]
    assert all(row["can_run"].startswith("no: ") for row in REFUSED)
    assert all(row["source"].startswith("Hugging Face config.json of ") for row in RUNNABLE + REFUSED)


def test_preset_table_computes_no_parameters_for_a_mixture_of_experts():
    parameters = {row["model"]: row["parameters_billion"] for row in REFUSED}
    assert parameters.pop("gemma-2-9b") == pytest.approx(9.24, rel=0.01)
    assert set(parameters.values()) == {None}


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
def test_name_near_a_preset_is_met_with_that_preset(text, near):
    message = refusal(text)
    assert message.startswith(f"--model: {text!r} is neither a preset (llama-2-7b, llama-2-13b, ")
    assert " nor a config.json; did you mean " in message
    assert near in message.partition("did you mean")[2]


@pytest.mark.parametrize(
    "text", ["", " ", "zzz", "no/such/config.json", "a\0b", "x" * 5000, "two\nlines", "\ud800"], ids=ascii
)
def test_text_that_names_nothing_is_refused_with_the_presets(text):
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


def test_directory_that_holds_a_config_is_the_config(load_config, tmp_path):
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


def test_absent_kv_heads_are_as_many_as_the_q_heads(load_config):
    assert load_config(num_key_value_heads=None).kv_heads == 6


def test_absent_head_dim_divides_the_hidden_size(load_config):
    assert load_config(head_dim=None).head_dim == 16


def test_null_is_absent(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(CONFIG | {"num_key_value_heads": None, "head_dim": None, "sliding_window": None})
    )
    loaded = load_language_model(str(path))
    assert (loaded.kv_heads, loaded.head_dim) == (6, 16)


@pytest.mark.parametrize(
    ("model_type", "tied"),
    [
        ("llama", False),
        ("mistral", False),
        ("qwen3", False),
        ("gemma", True),
        ("cohere", True),
        (None, False),
    ],
)
def test_absent_tie_is_the_default_of_the_family(load_config, model_type, tied):
    assert load_config(tie_word_embeddings=None, model_type=model_type).tied_embeddings is tied


def test_stated_tie_goes_before_the_default_of_the_family(load_config):
    assert load_config(model_type="gemma", tie_word_embeddings=False).tied_embeddings is False
    assert load_config(model_type="llama", tie_word_embeddings=True).tied_embeddings is True


def test_multimodal_config_is_read_at_its_text_config(tmp_path):
    path = tmp_path / "config.json"
    inner = {field: value for field, value in CONFIG.items() if field != "tie_word_embeddings"}
    outer = {"model_type": "seer", "hidden_size": 7, "tie_word_embeddings": True, "text_config": inner}
    path.write_text(json.dumps(outer))
    loaded = load_language_model(str(path))
    assert (loaded.hidden_size, loaded.tied_embeddings) == (96, True)


def test_tie_of_the_text_config_goes_before_the_outer_one(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"tie_word_embeddings": True, "text_config": CONFIG}))
    assert load_language_model(str(path)).tied_embeddings is False


def test_byte_order_mark_is_allowed(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG), encoding="utf-8-sig")
    assert load_language_model(str(path)).layers == 3


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("Llama-3.1-8B/config.json", "Llama-3.1-8B"),
        ("my shapes.json", "my-shapes"),
        ("models--Qwen--Qwen3-8B/snapshots/0123abc/config.json", "Qwen3-8B"),
    ],
)
def test_config_is_named_after_its_place(tmp_path, place, name):
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
    ],
    ids=str,
)
def test_config_that_only_mentions_what_it_does_not_use_is_taken(load_config, changes):
    assert load_config(changes).layers == 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "mixtral", "num_local_experts": 8}, "mixture of experts (num_local_experts 8)"),
        ({"num_experts": 128}, "mixture of experts (num_experts 128)"),
        ({"n_routed_experts": 2}, "mixture of experts (n_routed_experts 2)"),
        ({"model_type": "dbrx"}, "mixture of experts (model_type dbrx)"),
        ({"kv_lora_rank": 512}, "multi-head latent attention (MLA; kv_lora_rank)"),
        ({"model_type": "mistral", "sliding_window": 4096}, "sliding window (sliding_window 4096)"),
        (
            {"sliding_window": 4096, "max_position_embeddings": 32768},
            "sliding window (sliding_window 4096)",
        ),
        ({"sliding_window": 4096, "use_sliding_window": True}, "sliding window (sliding_window 4096)"),
        ({"quantization_config": {"bits": 4}}, "quantized weights (quantization_config)"),
        (
            {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            "sliding window (layer_types has 'sliding_attention')",
        ),
        (
            {"layer_types": ["linear_attention", "full_attention"]},
            "not every layer is full attention (layer_types has 'linear_attention')",
        ),
        ({"is_encoder_decoder": True}, "it is an encoder-decoder (is_encoder_decoder)"),
        ({"cross_attention_layers": [1]}, "some layers attend to images (cross_attention_layers)"),
        ({"num_kv_shared_layers": 2}, "some layers share a KV cache (num_kv_shared_layers)"),
        (
            {"num_local_experts": 8, "sliding_window": 128},
            "mixture of experts (num_local_experts 8); sliding window (sliding_window 128)",
        ),
        ({"model_type": "bert"}, "it is an encoder, not a decoder (model_type bert)"),
        ({"model_type": "t5"}, "it is an encoder-decoder (model_type t5)"),
        ({"model_type": "mamba"}, "not every layer is attention (model_type mamba)"),
        (
            {"model_type": "qwen"},
            "its intermediate_size counts both halves of the gated MLP (model_type qwen)",
        ),
    ],
    ids=str,
)
def test_config_that_cannot_be_modelled_is_refused_with_its_reason(load_config, changes, reason):
    with pytest.raises(UsageError, match=rf"config\.json': cannot be modelled yet: {re.escape(reason)}$"):
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
def test_family_without_a_gated_mlp_is_refused_before_its_fields_are_missed(tmp_path, family):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": family}))
    assert refusal(path).endswith(f"cannot be modelled yet: its MLP is not gated (model_type {family})")


def test_all_missing_fields_are_named_at_once(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{}")
    assert refusal(path).endswith(f"config.json': lacks {', '.join(REQUIRED)}")


@pytest.mark.parametrize("missing", REQUIRED)
def test_missing_field_is_named(load_config, missing):
    with pytest.raises(UsageError, match=rf": lacks {missing}$"):
        load_config({missing: None})


@pytest.mark.parametrize("field", [*REQUIRED, "num_key_value_heads", "head_dim", "sliding_window"])
@pytest.mark.parametrize("value", ["8", True, 8.0, -8, 0, [8], {"a": 8}, float("nan")], ids=repr)
def test_field_of_a_wrong_type_is_refused_by_its_name_in_the_file(load_config, field, value):
    with pytest.raises(UsageError, match=rf"config\.json': {field}: must be a positive integer, was \S"):
        load_config({field: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: must be true or false, was 'yes'"),
        ({"text_config": 3}, "text_config: must be an object, was 3"),
        ({"head_dim": 20}, "head_dim: must be a multiple of 8 from 16 to 256, was 20"),
        ({"num_key_value_heads": 4}, "q_heads: must be a multiple of kv_heads, 4, was 6"),
        (
            {"head_dim": None, "hidden_size": 97},
            "head_dim: absent, so hidden_size must be a multiple of num_attention_heads, was 97 and 6",
        ),
        ({"vocab_size": 10**40}, f"vocab_size: must be an integer from 1 to {2**31 - 1}, was {10**40}"),
    ],
    ids=str,
)
def test_config_of_an_impossible_shape_is_refused(load_config, changes, message):
    with pytest.raises(UsageError, match=rf"^--model: .*config\.json': {re.escape(message)}$"):
        load_config(changes)


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
def test_file_that_holds_no_config_is_one_clear_line(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    assert refusal(path) == f"--model: {shown(str(path))}: {message}"


def test_directory_without_a_config_is_refused(tmp_path):
    assert refusal(tmp_path) == f"--model: {shown(str(tmp_path))} is a directory without a config.json"


def test_config_that_is_itself_a_directory_is_refused(tmp_path):
    (tmp_path / "config.json").mkdir()
    assert refusal(tmp_path).endswith("config.json': is not a regular file")


def test_device_file_is_refused_without_being_read():
    assert refusal("/dev/zero") == "--model: '/dev/zero': is not a regular file"


def test_unreadable_file_is_refused(load_config, tmp_path, monkeypatch):
    load_config()

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert refusal(tmp_path / "config.json").endswith("config.json': cannot be read: Permission denied")


def test_unsearchable_directory_is_refused(tmp_path, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", refuse)
    assert refusal(tmp_path).endswith(" cannot be read: permission denied")


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
    assert shown(value) == text
