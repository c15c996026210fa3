"""Predictions of checkpoints as they are stored: bytes, cache and words, by shapes of published models."""

import json
from typing import Any

import pytest
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.language_model import load_language_model
from decodetax.harness.core.stored_weights import weights_sentence
from hand_made import assert_misuse, decodetax, strict_json

QWEN3_32B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 128,
    "hidden_size": 5120,
    "intermediate_size": 25600,
    "num_attention_heads": 64,
    "num_hidden_layers": 64,
    "num_key_value_heads": 8,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
LINEAR = 64 * (5120 * (64 + 16) * 128 + 64 * 128 * 5120 + 3 * 5120 * 25600)
OUTSIDE = 2 * 151936 * 5120
NORMS = 64 * (2 * 5120 + 2 * 128) + 5120
FP8_BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
NVFP4 = {
    "quant_method": "modelopt",
    "quant_algo": "NVFP4",
    "kv_cache_scheme": {"num_bits": 8, "type": "float"},
}


def outcome_of(folder: Any, quantization: dict[str, Any] | None, *arguments: str) -> Any:
    """What predict prints of the model, stored so, at batch 1 on one H100."""
    path = folder / "model.json"
    path.write_text(json.dumps({**QWEN3_32B, "quantization_config": quantization}), encoding="utf-8")
    asked = ["--gpu", "h100", "--batch", "1", "--context", "1k", "--json"]
    return decodetax("predict", "--model", str(path), *asked, *arguments)


def predicted(folder: Any, quantization: dict[str, Any] | None, *arguments: str) -> dict[str, Any]:
    done = outcome_of(folder, quantization, *arguments)
    assert done.code == 0, done.err
    found: dict[str, Any] = strict_json(done.out)
    return found


@pytest.mark.parametrize(
    ("quantization", "arguments", "stored_bytes", "sentence"),
    [
        (None, (), 2 * LINEAR, "bf16"),
        (FP8_BLOCKS, (), LINEAR * (1 + 4 / 16384), "attention and MLPs fp8 blocks, the rest bf16"),
        (NVFP4, (), LINEAR * 0.5625, "attention and MLPs nvfp4, the rest bf16"),
        (FP8_BLOCKS, ("--dtype", "mxfp4"), LINEAR * 0.53125, "attention and MLPs mxfp4, the rest bf16"),
        (FP8_BLOCKS, ("--dtype", "bf16"), LINEAR * 2, "bf16"),
    ],
)
def test_weights_have_the_bytes_of_their_formats(
    tmp_path: Any,
    quantization: dict[str, Any] | None,
    arguments: tuple[str, ...],
    stored_bytes: float,
    sentence: str,
) -> None:
    found = predicted(tmp_path, quantization, *arguments)
    weight_bytes = found["predictions"][0]["memory"]["weight_bytes"]
    assert weight_bytes == pytest.approx(stored_bytes + 2 * OUTSIDE + 2 * NORMS, rel=1e-6)
    assert found["model"]["formats"] == sentence


@pytest.mark.parametrize(
    ("quantization", "arguments", "name"),
    [(NVFP4, (), "fp8"), (NVFP4, ("--cache-dtype", "bf16"), "bf16"), (FP8_BLOCKS, (), "bf16")],
)
def test_the_cache_has_the_file_s_format_unless_another_is_asked_for(
    tmp_path: Any, quantization: dict[str, Any], arguments: tuple[str, ...], name: str
) -> None:
    found = predicted(tmp_path, quantization, *arguments)
    assert found["predictions"][0]["cache_dtype"] == name
    assert found["model"]["kv_bytes_per_token"] == 64 * 2 * 8 * 128 * {"fp8": 1, "bf16": 2}[name]


def test_an_unknown_method_is_refused_in_one_line(tmp_path: Any) -> None:
    refused = outcome_of(tmp_path, {"quant_method": "aqlm"})
    assert_misuse(refused, "quantization_config.quant_method: must be one of fp8, ", "was 'aqlm'")


def test_formats_of_an_older_modelopt_checkpoint_are_read_beside_its_config(tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_32B), encoding="utf-8")
    inner = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    beside = tmp_path / "hf_quant_config.json"
    beside.write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": inner}), encoding="utf-8")
    model = load_language_model(str(tmp_path))
    assert (weights_sentence(model), model.cache_format) == ("attention and MLPs fp8, the rest bf16", "fp8")
    beside.write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match=r"hf_quant_config\.json: is not JSON"):
        load_language_model(str(tmp_path))
