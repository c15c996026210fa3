"""Presets, and config files by name and path: what is read and what is refused with its reason."""

import dataclasses
import json
from pathlib import Path

import pytest
from decodetax.harness.core.errors import UsageError, short_repr
from decodetax.harness.core.formats import FORMATS
from decodetax.harness.core.language_model import load_language_model, preset_table
from decodetax.harness.core.layers import Experts, LatentAttention, Mlp
from odd_config import CONFIG

REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size")
PRESETS = preset_table()


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


@pytest.mark.parametrize("row", PRESETS, ids=lambda row: row["model"])
def test_parameters_are_within_one_percent_of_the_published_ones(row):
    computed = load_language_model(row["model"]).parameters / 1e9
    assert computed == pytest.approx(row["published_parameters_billion"], rel=0.01)
    assert row["parameters_billion"] == computed


def test_model_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_language_model("llama-2-7b").name = "x"


def test_preset_name_is_accepted_in_any_case():
    assert load_language_model("QWEN3-8B").name == "qwen3-8b"


def test_llama_3_3_70b_has_the_shape_of_llama_3_1_70b():
    old, new = load_language_model("llama-3.1-70b"), load_language_model("llama-3.3-70b")
    assert dataclasses.replace(new, name=old.name, source=old.source) == old
    assert "Llama-3.3" in new.source


def test_source_of_a_preset_is_its_config():
    assert all(row["source"].startswith("Hugging Face config.json of ") for row in PRESETS)


def test_deepseek_v3_by_hand():
    model = load_language_model("deepseek-v3")
    dense, sparse = model.layer_groups
    assert (dense.count, sparse.count) == (3, 58)
    assert dense.attention == sparse.attention
    assert dense.attention == LatentAttention(
        q_heads=128, q_rank=1536, kv_rank=512, nope_head_dim=128, rope_head_dim=64, v_head_dim=128
    )
    assert {p.name: (p.in_features, p.out_features) for p in dense.attention.projections(7168)} == {
        "q_a": (7168, 1536),
        "q_b": (1536, 128 * (128 + 64)),
        "kv_a": (7168, 512 + 64),
        "kv_b": (512, 128 * (128 + 128)),
        "o": (128 * 128, 7168),
    }
    assert model.kv_elements_per_token == 61 * 576
    assert dense.mlp == Mlp(intermediate_size=18432)
    expert = Mlp(intermediate_size=2048)
    assert sparse.mlp == Experts(count=256, per_token=8, expert=expert, shared=expert)
    assert model.parameters == 671_026_404_352  # of transformers' DeepseekV3ForCausalLM


@pytest.mark.parametrize(
    ("name", "published_billion", "without_embedding"),
    [("mixtral-8x7b", 12.88, False), ("gpt-oss-20b", 3.6, True), ("deepseek-v3", 37, True)],
)
def test_active_parameters_are_near_the_published_ones(name, published_billion, without_embedding):
    model = load_language_model(name)
    active = model.active_parameters - (model.vocab_size * model.hidden_size if without_embedding else 0)
    assert active / 1e9 == pytest.approx(published_billion, rel=0.015)
    assert load_language_model("llama-3.1-8b").active_parameters == 8_030_261_248


def test_one_format_replaces_those_of_the_layers():
    model = load_language_model("llama-3.1-8b").with_formats(FORMATS["fp8"])
    assert {group.formats.mlp for group in model.layer_groups} == {FORMATS["fp8"]}
    assert model.formats.lm_head == FORMATS["bf16"]  # engines leave lm_head as it is


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
    assert message.startswith(f"--model: {text!r} is neither a preset nor a config.json; did you mean ")
    assert message.endswith("? `decodetax models` lists all")
    assert near in message.partition("did you mean")[2]


@pytest.mark.parametrize(
    "text", ["", " ", "zzz", "no/such/folder", "a\0b", "x" * 5000, "two\nlines", "\ud800"], ids=ascii
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
        max_position_embeddings=131072,
    )
    assert dataclasses.replace(loaded, name=llama.name, source=llama.source) == llama


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
