"""Parameter counts of families against the models that Hugging Face transformers builds on the meta device.

Small configs with odd sizes show that every field is read; a family's default config shows its defaults.
"""

import json
from pathlib import Path

import pytest
from decodetax.harness.core.language_model import language_model
from decodetax.harness.core.model_config import model_config

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of transformers, about its own configs
]

# Sizes by field name: no two alike where a model may have both.
ODD = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 96),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers"), 5),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 6),
    "num_key_value_heads": 2,
    "head_dim": 24,
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner"), 200),
    **dict.fromkeys(("intermediate_size_mlp", "dense_intermediate_size"), 152),
    "vocab_size": 1000,
    "max_position_embeddings": 512,
    "n_positions": 77,
    "sliding_window": 16,
    "moe_intermediate_size": 40,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 7),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 3),
    **dict.fromkeys(
        ("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts"), 2
    ),
    **dict.fromkeys(
        (
            "shared_expert_intermediate_size",
            "shared_intermediate_size",
            "moe_shared_expert_intermediate_size",
        ),
        136,
    ),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), 2),
    "moe_layer_start_index": 1,
    "moe_layer_end_index": 3,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 40,
    "index_n_heads": 4,
    "index_head_dim": 16,
    "index_topk": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_num_heads": 4,
    "linear_head_dim": 24,
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 24),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size"), 16),
    **dict.fromkeys(("mamba_n_groups", "n_groups"), 2),
    "mamba_dt_rank": 9,
    **dict.fromkeys(("attention_bias", "mlp_bias", "use_bias", "bias"), True),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# What a family needs beside, such as lists of layers.
ODD_OF_FAMILY = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere": {"use_qk_norm": True},
    "gemma4_text": {
        "hidden_size_per_layer_input": 0,
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
        "global_head_dim": 40,
        "enable_moe_block": True,
        "top_k_experts": 3,
    },
    "glm4_moe": {"use_qk_norm": True},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "mamba", "attention"]},
    "helium": {"head_dim": 16},  # its output projection is square
    "jamba": {"num_hidden_layers": 9},
    "minimax_m3_vl_text": {
        "index_n_heads": 2,
        "layer_types": [
            "full_attention",
            "minimax_m3_sparse",
            "minimax_m3_sparse",
            *["full_attention"] * 2,
        ],
    },
}

# Without these, transformers 5.24 cannot build a family's default config.
NEEDED = {
    "gemma4_text": {"hidden_size_per_layer_input": 0},
    "hunyuan_v1_dense": {"head_dim": 128},
    "nemotron": {"head_dim": 128, "num_key_value_heads": 8},
    "ministral": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 4, "moe_topk": 2},
    "glm4_moe": {"head_dim": 128},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "bamba": {"attn_layer_indices": [9, 18, 27]},
}

FAMILY_NAMES = """
    afmoe apertus arcee bamba bloom cohere cohere2 deepseek_v2 deepseek_v3 deepseek_v32 dots1 ernie4_5
    ernie4_5_moe exaone exaone4 exaone_moe falcon gemma gemma2 gemma3_text gemma4_text glm glm4
    glm4_moe glm4_moe_lite glm_moe_dsa gpt2 gpt_bigcode gpt_neox gpt_oss gptj granite granitemoe
    granitemoehybrid granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hy_v3 internlm3 jais2
    jamba kimi_linear llama llama4_text minicpm3 minimax minimax_m2 minimax_m3_vl_text ministral
    ministral3 mistral mixtral mpt nanochat nemotron nemotron_h olmo olmo2 olmo3 olmoe opt phi phi3
    phimoe qwen2 qwen2_moe qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next seed_oss smollm3
    solar_open stablelm starcoder2
"""
FAMILIES = FAMILY_NAMES.split()


def config_class(family):
    mapping = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    if family not in mapping:
        pytest.skip(f"this transformers has no {family}")
    return mapping[family]


def counts(config):
    """Parameters that transformers builds, and those that are read from the file that it writes."""
    with torch.device("meta"):
        built = transformers.AutoModelForCausalLM.from_config(config)
    written = json.loads(config.to_json_string(use_diff=False))
    written["architectures"] = [type(built).__name__]
    read = language_model(model_config(written), name="x")
    return sum(parameter.numel() for parameter in built.parameters()), read.parameters


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_of_odd_sizes_are_those_of_transformers(family):
    own = config_class(family)
    fields = own(**NEEDED.get(family, {})).to_dict()
    fields |= {"num_experts": None} if family.startswith("qwen3_moe") else {}
    sizes = {name: value for name, value in ODD.items() if name in fields}
    built, read = counts(own(**sizes | ODD_OF_FAMILY.get(family, {})))
    assert read == pytest.approx(built, rel=0.005)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_of_the_default_config_are_those_of_transformers(family):
    built, read = counts(config_class(family)(**{"pad_token_id": 0, **NEEDED.get(family, {})}))
    assert read == pytest.approx(built, rel=0.005)


def test_the_docs_give_the_number_of_families():
    text = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
    assert f"parameter counts of {len(FAMILIES)} families" in text
