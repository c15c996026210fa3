"""The cases of models whose layers differ: which, how often, and shared by how many tokens."""

import pytest
from decodetax.harness.core.layers import Experts, Mlp
from decodetax.harness.core.sweep import cases_of, expert_rows
from decodetax.harness.core.timed_model import load_timed_model
from hand_made import sweep


def uses(token):
    """Case id without its dtype: part, times, tokens."""
    return {
        use.case.id.removesuffix("/bf16"): (use.part, pytest.approx(use.times), use.tokens)
        for use in token.uses
    }


def test_a_sliding_and_a_full_layer_share_projections_and_have_an_attention_each():
    token = sweep(batches=(3,), contexts=(16,)).output_token(load_timed_model("gemma-2-9b"), 3, 5000)
    assert uses(token) == {
        "decode/qkv/m3-k3584-n8192": ("projections", 42, 3),
        "decode/o/m3-k4096-n3584": ("projections", 42, 3),
        "decode/gate_up/m3-k3584-n28672": ("projections", 42, 3),
        "decode/down/m3-k14336-n3584": ("projections", 42, 3),
        "decode/attention/b3-c5000-q16-kv8-d256-w4096-softcap50": ("window_attention", 21, 3),
        "decode/attention/b3-c5000-q16-kv8-d256-softcap50": ("attention", 21, 3),
        "decode/lm_head/m3-k3584-n256000": ("lm_head", 1, 3),
    }
    assert token.layer is None


def test_an_experts_products_run_as_often_as_experts_are_hit_with_their_average_rows():
    token = sweep(prefill_tokens=64).input_token(load_timed_model("gpt-oss-20b"), 16)
    # 64 tokens pick 4 of 32 experts: 32 (1 - (28 / 32)^64) are hit, 64 x 4 / 31.99 = 8 rows each.
    hit = 32 * (1 - (28 / 32) ** 64)
    assert uses(token) == {
        "prefill/qkv/m64-k2880-n5120": ("projections", 24, 64),
        "prefill/o/m64-k4096-n2880": ("projections", 24, 64),
        "prefill/router/m64-k2880-n32": ("projections", 24, 64),
        "prefill/expert_gate_up/m8-k2880-n5760": ("experts", 24 * hit, 64),
        "prefill/expert_down/m8-k2880-n2880": ("experts", 24 * hit, 64),
        "prefill/attention/s4-p16-q64-kv8-d64-w128-sinks": ("window_attention", 12, 64),
        "prefill/attention/s4-p16-q64-kv8-d64-sinks": ("attention", 12, 64),
        "prefill/lm_head/m1-k2880-n201088": ("lm_head", 1, 16),
    }


MLA = {
    "q_a": (61, 7168, 1536),
    "q_b": (61, 1536, 24576),
    "kv_a": (61, 7168, 576),
    "o": (61, 16384, 7168),
    "gate_up": (3, 7168, 36864),
    "down": (3, 18432, 7168),
    "router": (58, 7168, 256),
    "shared_gate_up": (58, 7168, 4096),
    "shared_down": (58, 2048, 7168),
}


def test_mla_decodes_over_latents_with_kv_b_absorbed():
    token = sweep().output_token(load_timed_model("deepseek-v3"), 1, 16)
    projections = {f"decode/{name}/m1-k{k}-n{n}": n_of for name, (n_of, k, n) in MLA.items()}
    projections |= {f"decode/absorbed_{name}": 61 for name in ("k/b128-m1-k128-n512", "v/b128-m1-k512-n128")}
    assert uses(token) == {
        **{name: ("projections", times, 1) for name, times in projections.items()},
        "decode/attention/b1-c16-q128-kv1-d576v512-latent": ("latent_attention", 61, 1),
        "decode/expert_gate_up/m1-k7168-n4096": ("experts", 58 * 8, 1),  # one token hits its 8 experts
        "decode/expert_down/m1-k2048-n7168": ("experts", 58 * 8, 1),
        "decode/lm_head/m1-k7168-n129280": ("lm_head", 1, 1),
    }


def test_mla_prefills_with_keys_and_values_of_each_head():
    token = sweep(prefill_tokens=32).input_token(load_timed_model("deepseek-v3"), 16)
    found = uses(token)
    assert found["prefill/kv_b/m32-k512-n32768"] == ("projections", 61, 32)
    assert found["prefill/attention/s2-p16-q128-kv128-d192v128"] == ("latent_attention", 61, 32)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("name", ["gemma-2-9b", "deepseek-v3", "llama-3.2-1b"])
def test_operations_of_a_token_are_two_for_each_active_weight(name, phase):
    model = load_timed_model(name)
    swept = sweep(prefill_tokens=1)
    token = swept.input_token(model, 1) if phase == "prefill" else swept.output_token(model, 1, 1)
    matmuls = [use for use in token.uses if use.case.operation == "prefill_matmul"]
    operations = sum(use.times * use.case.work().operations / use.tokens for use in matmuls)
    weights = model.language_model().active_parameters - model.hidden_size * (2 * model.layers + 1)
    embedding = 0 if model.tied_embeddings else model.vocab_size * model.hidden_size
    assert operations == pytest.approx(2 * (weights - embedding), rel=1e-3)


@pytest.mark.parametrize(
    ("tokens", "hit", "rows"),
    [(1, 2, 1), (2, 2 + 2 * 6 / 8, 1), (1000, 8, 250)],
)
def test_experts_that_are_hit_in_expectation(tokens, hit, rows):
    # 2 of 8 experts: a second token misses an expert that the first missed with probability 6 / 8.
    experts = Experts(count=8, per_token=2, expert=Mlp(intermediate_size=5))
    assert expert_rows(experts, tokens) == (pytest.approx(hit), rows)


def test_no_case_of_deepseek_v3_takes_over_two_gigabytes():
    cases = cases_of(
        load_timed_model("deepseek-v3"), sweep(batches=(1, 8), contexts=(256,), prefill_tokens=256)
    )
    largest = max(cases, key=lambda case: case.work().bytes_total)
    assert largest.part == "lm_head"
    assert largest.work().bytes_total < 2e9
