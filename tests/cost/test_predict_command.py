"""`decodetax predict` from the command line, with every option."""

import itertools
import math
import re
from dataclasses import replace

import pytest
from decodetax.harness.core.gpus import find_gpu, gpu_table
from decodetax.harness.core.language_model import load_language_model
from decodetax.harness.cost.deployment import deployment
from decodetax.harness.cost.engine import ENGINES, engines
from decodetax.harness.cost.steady_state import steady_state
from hand_made import assert_misuse, decodetax, strict_json, write_config

PREDICT = ("predict", "--model", "llama-3.2-1b", "--batch", "8", "--context", "1024")
FIELDS = {
    "model", "gpu", "batch", "context", "prompt", "dtype", "input_s_per_token", "output_s_per_token", "gap",
    "input_usd_per_mtok", "output_usd_per_mtok", "bound", "break_even_batch",
}  # fmt: skip


def predictions(*arguments):
    outcome = decodetax(*arguments, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    document = strict_json(outcome.out)
    assert document["schema_version"] == 1
    assert all(row["provenance"] == "modelled" for row in document["predictions"])
    return document["predictions"]


def prediction(*arguments):
    [row] = predictions(*arguments)
    return row


def printed(*arguments):
    outcome = decodetax(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    return outcome.out


# JSON.


def test_json_has_the_figures_of_a_prediction():
    row = prediction(*PREDICT)
    assert set(row) >= FIELDS
    assert (row["model"], row["gpu"]) == ("llama-3.2-1b", "H100-SXM5-80GB")
    assert (row["batch"], row["context"], row["prompt"], row["dtype"]) == (8, 1024, 1024, "bf16")
    assert row["gap"] == pytest.approx(row["output_s_per_token"] / row["input_s_per_token"])
    assert row["output_s_per_token"] == pytest.approx(sum(row["output_split_s"].values()))
    assert row["input_s_per_token"] == pytest.approx(sum(row["input_split_s"].values()))
    assert row["tpot_s"] == pytest.approx(8 * row["output_s_per_token"])


def test_without_options_llama_31_8b_is_predicted_on_an_h100():
    rows = predictions("predict")
    assert {(row["model"], row["gpu"], row["price_ratio"]) for row in rows} == {
        ("llama-3.1-8b", "H100-SXM5-80GB", 1.0)
    }
    assert [(row["context"], row["batch"]) for row in rows] == list(
        itertools.product((1024, 4096), (1, 8, 32))
    )


def test_every_gpu_batch_and_context_has_a_prediction():
    rows = predictions(
        "predict",
        "--model",
        "llama-3.2-1b",
        "--gpu",
        "b200, 4090,H100",
        "--batch",
        "4,1",
        "--context",
        "64,32",
    )
    assert [(row["gpu"], row["context"], row["batch"]) for row in rows] == list(
        itertools.product(("B200", "RTX-4090", "H100-SXM5-80GB"), (32, 64), (1, 4))
    )
    assert [row["prompt"] for row in rows] == [row["context"] for row in rows]


def test_a_gpu_named_twice_is_predicted_once():
    assert len(predictions(*PREDICT, "--gpu", "h100,H100-SXM5-80GB,h-100")) == 1


@pytest.mark.parametrize(
    "named", ["--gpu h200,a100", "--gpu h200 a100", "--gpu h200 --gpu a100", "--gpu=h200 --batch 2 a100"]
)
def test_gpus_are_separated_by_commas_or_spaces_or_repeated(named):
    rows = predictions(*PREDICT, *named.split())
    assert [row["gpu"] for row in rows] == ["H200-SXM-141GB", "A100-SXM4-80GB"]


def test_every_gpu_of_the_table_in_one_command():
    names = list(gpu_table())
    assert [row["gpu"] for row in predictions(*PREDICT, "--gpu", ",".join(names))] == names


def test_prompt_differs_from_the_context():
    row = prediction(*PREDICT, "--prompt", "300")
    assert (row["context"], row["prompt"]) == (1024, 300)
    assert row["output_split_s"] == prediction(*PREDICT)["output_split_s"]


@pytest.mark.parametrize("dtype", ["bf16", "fp8", "int8", "int4"])
@pytest.mark.parametrize("option", ["--dtype", "--cache-dtype"])
def test_every_dtype_of_the_help_predicts(option, dtype):
    row = prediction(*PREDICT, option, dtype)
    assert {"dtype": row["dtype"], "cache_dtype": row["cache_dtype"]} == {
        "dtype": "bf16",
        "cache_dtype": "bf16",
        option.removeprefix("--").replace("-", "_"): dtype,
    }


def test_link_options_override_the_datasheet():
    def moved_s(*options):
        row = prediction(*PREDICT, "--tensor-parallel", "2", *options)
        assert row["tensor_parallel"] == 2
        return row["output_split_s"]["communication"]

    # 2 all-reduces in each of 16 layers, 8 rows of 2048 elements of 2 bytes; of 2 GPUs each sends all once.
    given = moved_s("--link-gb-per-s", "1", "--link-latency-us", "5")
    assert given > 32 * (5e-6 + 8 * 2048 * 2 / 1e9) / 8
    assert moved_s("--link-gb-per-s", "1") > 10 * moved_s()
    more_s = moved_s("--link-latency-us", "50") - moved_s("--link-latency-us", "5")
    assert more_s == pytest.approx(32 * 45e-6 / 8)
    assert prediction(*PREDICT, "--link-gb-per-s", "1")["output_split_s"]["communication"] == 0


def test_mixture_of_experts_from_a_config(tmp_path):
    path = write_config(tmp_path, model_type="mixtral", num_local_experts=8, num_experts_per_tok=2)
    rows = predictions("predict", "--model", path, "--batch", "1,64", "--context", "128")
    assert [row["model"] for row in rows] == [tmp_path.name] * 2
    assert all(row["gap"] > 0 and math.isfinite(row["gap"]) for row in rows)
    dense = prediction("predict", "--model", write_config(tmp_path), "--batch", "64", "--context", "128")
    assert dense["output_s_per_token"] < rows[1]["output_s_per_token"]


def test_latent_attention_and_windows_from_a_config(tmp_path):
    latent = {
        "model_type": "deepseek_v3", "num_key_value_heads": 4, "head_dim": None, "q_lora_rank": 24,
        "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    }  # fmt: skip
    rows = [
        prediction(
            "predict", "--model", write_config(tmp_path, **changes), "--batch", "1", "--context", "4096"
        )
        for changes in ({}, latent, {"sliding_window": 16})
    ]
    plain, latent_one, windowed = (row["largest_batch"] for row in rows)
    # 64, 40 elements a token and layer; 16 tokens in place of 4096.
    assert latent_one == pytest.approx(plain * 64 / 40, rel=1e-3)
    assert windowed == pytest.approx(plain * 256, rel=1e-3)


# Money, the price ratio and requests.


def test_price_of_a_gpu_hour_is_the_option_or_the_listed_one():
    cited, given = prediction(*PREDICT), prediction(*PREDICT, "--usd-per-hour", "3.6")
    assert cited["usd_per_hour"] == find_gpu("h100").usd_per_hour
    assert given["usd_per_hour"] == 3.6
    # 3.6 $ an hour is 0.001 $ a second.
    for side in ("input", "output"):
        assert given[f"{side}_usd_per_mtok"] == pytest.approx(given[f"{side}_s_per_token"] * 1000)
        assert cited[f"{side}_usd_per_mtok"] == pytest.approx(
            given[f"{side}_usd_per_mtok"] * cited["usd_per_hour"] / 3.6
        )


def test_gpu_without_a_listed_price_has_no_dollars():
    assert find_gpu("L4").usd_per_hour is None
    row = prediction(*PREDICT, "--gpu", "l4")
    assert (row["usd_per_hour"], row["input_usd_per_mtok"], row["output_usd_per_mtok"]) == (None, None, None)
    assert row["output_s_per_token"] > 0


def test_price_counts_every_gpu():
    row = prediction(*PREDICT, "--usd-per-hour", "3.6", "--tensor-parallel", "4")
    assert row["output_usd_per_mtok"] == pytest.approx(row["output_s_per_token"] * 1000 * 4)


def test_higher_price_ratio_needs_a_smaller_batch():
    found = [
        prediction(*PREDICT, "--price-ratio", ratio)["break_even_batch"] for ratio in (8, 16, 64, 10_000)
    ]
    assert found == sorted(set(found), reverse=True)
    assert found[-1] == 1
    assert prediction(*PREDICT, "--price-ratio", "0.001")["break_even_batch"] is None


# Requests.

REQUESTS = ("predict", "--model", "llama-3.2-1b", "--requests", "1k/200")


def requests(*arguments):
    outcome = decodetax(*arguments, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    document = strict_json(outcome.out)
    assert "predictions" not in document
    return document


def test_requests_give_latency_throughput_and_cost_at_each_concurrency():
    document = requests(*REQUESTS, "--concurrency", "4,1", "--gpu", "h100,a100", "--usd-per-hour", "3.6")
    rows = document["requests"]
    assert [(row["gpu"], row["concurrency"]) for row in rows] == list(
        itertools.product(("H100-SXM5-80GB", "A100-SXM4-80GB"), (1, 4))
    )
    model = load_language_model("llama-3.2-1b")
    for row in rows:
        assert (row["input_tokens"], row["output_tokens"], row["cache_hits"]) == (1024, 200, 0.0)
        on = replace(deployment(row["gpu"]), usd_per_hour=3.6)
        size = {"input_tokens": 1024, "output_tokens": 200, "concurrency": row["concurrency"]}
        expected = steady_state(model, on, **size).to_json()
        assert {name: row[name] for name in expected} == expected
        assert row["usd_per_request"] == pytest.approx(0.001 / row["requests_per_s"])
        assert row["ttft_s"] >= row["ttft_alone_s"]
    alone, four = rows[:2]
    assert four["tpot_s"] > alone["tpot_s"]  # of one user: never divided by the batch
    assert four["output_tokens_per_s"] < 4 / four["tpot_s"]


def test_cache_hits_shorten_the_time_to_the_first_token():
    cold, warm = (
        requests(*REQUESTS, "--cache-hits", hits, "--concurrency", "8")["requests"][0]
        for hits in ("0", "0.5")
    )
    assert warm["ttft_alone_s"] < cold["ttft_alone_s"]
    assert warm["cache_hits"] == 0.5


def test_largest_concurrency_meets_the_bounds_and_one_more_does_not():
    document = requests(*REQUESTS, "--slo-tpot", "3", "--slo-ttft", "100")
    [limits] = document["limits"]
    most = limits["slo_concurrency"]
    assert (limits["slo_tpot_s"], limits["slo_ttft_s"]) == (0.003, 0.1)
    assert 1 < most < limits["memory_concurrency"]
    at, beyond = requests(*REQUESTS, "--concurrency", f"{most},{most + 1}")["requests"]
    assert limits["slo"] == {name: at[name] for name in limits["slo"]}
    assert at["tpot_s"] <= 0.003
    assert beyond["tpot_s"] > 0.003 or beyond["ttft_s"] > 0.1


def test_bounds_that_no_concurrency_meets_are_told_in_one_line():
    asked = (*REQUESTS, "--slo-tpot", "0.001", "--slo-ttft", "5")
    [limits] = requests(*asked)["limits"]
    assert (limits["slo_concurrency"], limits["slo"]) == (0, None)
    lines = printed(*asked).splitlines()
    assert "H100-SXM5-80GB: no concurrency meets TTFT 5 ms and TPOT 0.001 ms." in lines


def test_saturation_is_where_more_requests_hardly_add_throughput():
    [limits] = requests(*REQUESTS)["limits"]
    at, most = (
        requests(*REQUESTS, "--concurrency", str(limits[name]))["requests"][0]["output_tokens_per_s"]
        for name in ("saturation_concurrency", "memory_concurrency")
    )
    assert 0.9 * most < at <= most


@pytest.mark.parametrize("engine", [None, "vllm"])
@pytest.mark.parametrize("waiting", [False, True])
def test_text_of_requests_names_the_engine_and_those_that_wait(engine, waiting):
    most = requests(*REQUESTS)["limits"][0]["memory_concurrency"]
    asked = (*REQUESTS, "--concurrency", str(most + waiting), *(("--engine", engine) if engine else ()))
    text = " ".join(printed(*asked).split())
    assert ("Engine: vllm." in text) == (engine is not None)
    assert ("No engine's own time is counted" in text) == (engine is None)
    assert ("wait, which TTFT counts" in text) == waiting


def test_requests_on_a_gpu_that_one_does_not_fit_are_left_out():
    document = requests(
        "predict",
        "--model",
        "llama-3.1-70b",
        "--requests",
        "1k/1k",
        "--gpu",
        "h100,b200",
        "--concurrency",
        "1",
    )
    assert [row["gpu"] for row in document["requests"]] == ["B200"]
    assert [row["gpu"] for row in document["does_not_fit"]] == ["H100-SXM5-80GB"]


@pytest.mark.parametrize("option", ["--batch", "--context", "--prompt", "--price-ratio"])
def test_options_of_single_tokens_do_not_go_with_requests(option):
    assert_misuse(decodetax(*REQUESTS, option, "8"), option, "--requests")


@pytest.mark.parametrize("option", ["--concurrency", "--cache-hits", "--slo-ttft", "--slo-tpot"])
def test_options_of_requests_need_them(option):
    assert_misuse(decodetax(*PREDICT, option, "1"), option, "--requests INPUT/OUTPUT")


@pytest.mark.parametrize("text", ["1024", "1024/", "/1", "1/2/3", "0/5", "1k/x", "a/b", "", "1024:1024"])
def test_requests_are_two_sizes(text):
    assert_misuse(decodetax("predict", "--requests", text), "--requests", repr(text), "1024/1024")


def test_a_thousands_separator_in_requests_is_refused_by_name():
    assert_misuse(decodetax("predict", "--requests", "1,024/8"), "--requests", "thousands separator", "1024")


# Memory.


def test_a_default_batch_that_does_not_fit_is_told():
    asked = ("predict", "--model", "llama-2-7b", "--gpu", "l4", "--usd-per-hour", "1")
    document = strict_json(decodetax(*asked, "--json").out)
    [*left_out] = document["does_not_fit"]
    assert left_out
    assert len(left_out) + len(document["predictions"]) == 6
    for row in left_out:
        assert row["batch"] > row["largest_batch"]
        assert row["context"] > row["largest_context"]
        assert row["weight_bytes"] + row["kv_bytes"] > row["usable_bytes"]
        assert row["reason"].startswith("--batch: ")
    text = printed(*asked)
    assert "Left out: does not fit the memory of a GPU" in text
    assert max(map(len, text.splitlines())) <= 80


def test_one_gpu_that_does_not_fit_leaves_the_others():
    asked = ("predict", "--model", "llama-3.1-70b", "--gpu", "h100,b200", "--batch", "1", "--context", "1k")
    document = strict_json(decodetax(*asked, "--json").out)
    assert [row["gpu"] for row in document["predictions"]] == ["B200"]
    [row] = document["does_not_fit"]
    assert (row["gpu"], row["largest_batch"], row["largest_context"]) == ("H100-SXM5-80GB", 0, 0)
    assert row["fitting_tensor_parallel"] == 2
    assert predictions(*asked, "--gpu", "h100", "--tensor-parallel", "2")[0]["gpus"] == 2


def test_a_refusal_names_weights_cache_and_what_fits():
    asked = ("predict", "--batch", "1000", "--context", "1k")
    outcome = decodetax(*asked)
    assert_misuse(outcome, "--batch", "cache of 125.0 GiB", "weights of 15.0 GiB", "72.0 GiB usable")
    batch, context = map(int, re.search(r"context is (\d+), .* batch is (\d+)", outcome.err).groups())
    assert predictions("predict", "--batch", str(batch), "--context", "1k")
    assert_misuse(decodetax("predict", "--batch", str(batch + 1), "--context", "1k"), "--batch")
    assert predictions("predict", "--batch", "1000", "--context", str(context))
    assert_misuse(decodetax("predict", "--batch", "1000", "--context", str(context + 1)), "--batch")


def test_a_refusal_of_a_context_names_the_longest():
    outcome = decodetax("predict", "--context", "1M", "--batch", "1")
    assert_misuse(
        outcome, "--context", "a sequence of 1048576 tokens does not fit", "no batch of this context"
    )
    [context] = re.findall(r"context of this batch is (\d+)", outcome.err)
    assert predictions("predict", "--context", context, "--batch", "1")


def test_a_windowed_model_has_no_largest_context(tmp_path):
    path = write_config(tmp_path, model_type="mistral", sliding_window=16)
    outcome = decodetax("predict", "--model", path, "--batch", "1G")
    assert outcome.code == 2
    row = prediction("predict", "--model", path, "--batch", "1", "--context", "2147483647")
    assert row["largest_batch"] > 1000


# The model's facts and warnings.


def test_json_has_the_facts_of_the_model():
    document = strict_json(decodetax("predict", "--model", "qwen3-30b-a3b", "--batch", "1", "--json").out)
    facts, model = document["model"], load_language_model("qwen3-30b-a3b")
    assert (facts["parameters"], facts["active_parameters"]) == (model.parameters, model.active_parameters)
    assert facts["kv_bytes_per_token"] == 48 * 2 * 4 * 128 * 2
    assert facts["assumed"] == list(model.assumed)
    assert facts["formats"] == "bf16"
    parts = {row["part"]: row for row in facts["weights"]}
    assert list(parts) == ["attention", "experts", "router", "embedding", "lm_head"]
    assert parts["router"] | {"part": "router"} == {
        "part": "router",
        "format": "bf16",
        "parameters": 48 * 128 * 2048,
        "bytes": 2 * 48 * 128 * 2048,
    }
    text = printed("predict", "--model", "qwen3-30b-a3b", "--batch", "1")
    assert "30.5 B parameters, 3.35 B active" in " ".join(text.split())
    assert "98,304 bytes a token" in " ".join(text.split())


def test_contexts_beyond_those_of_the_model_warn(tmp_path):
    path = write_config(tmp_path, max_position_embeddings=2048)
    asked = ("predict", "--model", path, "--batch", "1", "--context", "2k,4k,8k")
    [warning] = strict_json(decodetax(*asked, "--json").out)["warnings"]
    assert "up to 2,048 tokens" in warning
    assert "4,096, 8,192 are beyond" in warning
    assert "Warning:" in printed(*asked)
    within = ("predict", "--model", path, "--batch", "1", "--context", "2k")
    assert strict_json(decodetax(*within, "--json").out)["warnings"] == []
    assert "Warning" not in printed(*within)
    assert strict_json(decodetax(*within, "--prompt", "3k", "--json").out)["warnings"]
    of_requests = ("predict", "--model", path, "--requests", "1k/1025", "--json")
    assert strict_json(decodetax(*of_requests).out)["warnings"]


def test_an_unknown_model_type_is_read_only_by_assumption(tmp_path):
    path = write_config(tmp_path, model_type="unheard_of", architectures=["UnheardOfForCausalLM"])
    asked = ("predict", "--model", path, "--batch", "1", "--context", "128")
    assert_misuse(decodetax(*asked), "--model", "unheard_of", "--assume dense")
    document = strict_json(decodetax(*asked, "--assume", "dense", "--json").out)
    assert "unheard_of" in document["model"]["assumed"][0]
    assert "--assume" in document["warnings"][0]
    text = " ".join(printed(*asked, "--assume", "dense").split())
    assert "Warning:" in text
    assert "Assumed: model_type 'unheard_of' is not known" in text
    assert_misuse(decodetax(*asked, "--assume", "moe"), "--assume", "'moe'", "dense")


def test_formats_are_those_of_the_config_unless_given(tmp_path):
    quantised = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }
    path = write_config(tmp_path, quantization_config=quantised)
    asked = ("predict", "--model", path, "--batch", "1", "--context", "128")
    row, given = prediction(*asked), prediction(*asked, "--dtype", "bf16", "--cache-dtype", "fp8")
    assert row["dtype"].startswith("fp8 blocks")
    assert (row["cache_dtype"], given["dtype"], given["cache_dtype"]) == ("bf16", "bf16", "fp8")
    assert row["memory"]["weight_bytes"] < given["memory"]["weight_bytes"]
    assert "weights: attention and MLPs fp8 blocks" in " ".join(printed(*asked).split())


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_adds_its_own_time(name):
    plain, served = prediction(*PREDICT), prediction(*PREDICT, "--engine", name)
    assert (plain["engine"], served["engine"]) == ("one CUDA graph", name)
    assert served["tpot_s"] > plain["tpot_s"]
    assert list(engines()) == list(ENGINES)


def test_a_row_without_a_measured_basis_says_so_with_the_error_to_expect():
    asked = (*PREDICT, "--gpu", "h100,h20")
    own, other = predictions(*asked)
    assert (own["basis"]["measured"], other["basis"]["measured"]) == (True, False)
    _, tokens, *_, conditions = printed(*asked).split("\n\n")
    assert "derived" in tokens
    assert f"{other['basis']['expected_error']:.0%}" in tokens.splitlines()[-1]
    assert any(line.endswith("  -") for line in tokens.splitlines())
    assert "gemm bf16 (from H100-SXM5-80GB)" in " ".join(conditions.split())
    assert "derived" not in printed(*PREDICT)
    [row] = requests(*REQUESTS, "--gpu", "h20", "--concurrency", "8")["requests"]
    assert not row["basis"]["measured"]
    assert "derived" in printed(*REQUESTS, "--gpu", "h20", "--concurrency", "8")


# Parallelism.


def test_every_kind_of_parallelism_counts_its_gpus():
    row = prediction(*PREDICT, "--tensor-parallel", "2", "--data-parallel", "2", "--usd-per-hour", "3.6")
    assert (row["gpus"], row["tensor_parallel"], row["data_parallel"]) == (4, 2, 2)
    assert row["output_usd_per_mtok"] == pytest.approx(row["output_s_per_token"] * 1000 * 4)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("--expert-parallel", "3"), "--expert-parallel"),
        (("--tensor-parallel", "4097"), "--tensor-parallel"),
        (("--data-parallel", "4096", "--pipeline-parallel", "2"), "--pipeline-parallel"),
        (("--data-parallel", "0"), "--data-parallel"),
        (("--tensor-parallel", "2", "--expert-parallel", "2"), "--expert-parallel"),  # a dense model
        (("--pipeline-parallel", "17"), "--pipeline-parallel"),  # of 16 layers
        (
            ("--model", "mixtral-8x7b", "--data-parallel", "16", "--expert-parallel", "16"),
            "--expert-parallel",
        ),  # of 8 experts
    ],
)
def test_rejects_parallelism_that_cannot_be(arguments, option):
    assert_misuse(decodetax(*PREDICT, *arguments), option)


# Tables.


def test_tables_are_marked_modelled_and_fit_80_columns():
    asked = (*PREDICT, "--gpu", "h100,l4")
    narrow, wide = printed(*asked), printed(*asked, "--wide")
    assert max(map(len, narrow.splitlines())) <= 80
    heading, tokens, shares, conditions = wide.split("\n\n")
    assert heading.startswith("Modelled, not measured: llama-3.2-1b, 1.24 B parameters; weights: bf16; KV")
    assert " ".join(conditions.split()).count("at most 4, the price ratio; - where there is none.") == 1
    for column in ("gpu", "s/input token", "s/output token", "gap", "$/1M output", "output bound"):
        assert column in tokens.splitlines()[1]
    for component in ("weights", "KV cache", "activations", "launch"):
        assert component in shares
    for table in (tokens, shares):
        assert len([line for line in table.splitlines() if line.startswith(("H100-SXM5-80GB", "L4"))]) == 2


def test_table_shows_what_json_holds():
    asked = (*PREDICT, "--usd-per-hour", "3.6", "--price-ratio", "16")
    row = prediction(*asked)
    _, tokens, shares, _ = printed(*asked, "--wide").split("\n\n")
    for text in (
        f"{row['tpot_s'] * 1e3:.4g}",
        f"{row['gap']:.2f}",
        f"{row['output_usd_per_mtok']:.4g}",
        f"{row['break_even_batch']} ",
    ):
        assert text in tokens
    shown = [int(word[:-1]) for word in shares.split() if word.endswith("%")]
    assert row["output_split_s"].pop("communication") == 0
    assert shown == [
        round(100 * value / row["output_s_per_token"]) for value in row["output_split_s"].values()
    ]
    assert sum(shown) == pytest.approx(100, abs=3)


def test_tables_show_prompt_tensor_parallelism_and_a_dash_for_unknown_figures():
    text = printed(
        *PREDICT, "--gpu", "l4", "--prompt", "300", "--tensor-parallel", "2", "--price-ratio", "0.01"
    )
    assert "Prompts have 300 tokens." in " ".join(text.split())
    _, tokens, shares, _ = text.split("\n\n")
    assert "2 x L4" in tokens
    assert "all-reduce" in shares
    for unknown in ("$/1M", "break-even"):  # the L4 has no price; no batch that fits closes the gap
        assert unknown not in tokens


# Wrong input.


@pytest.mark.parametrize(
    ("arguments", "option", "fragments"),
    [
        pytest.param(
            ("--model", "llama-3.1-8c"), "--model", ("'llama-3.1-8c'", "llama-3.1-8b"), id="unknown model"
        ),
        pytest.param(("--model", ""), "--model", ("''",), id="empty model"),
        pytest.param(("--gpu", "h1000"), "--gpu", ("'h1000'", "did you mean", "H100"), id="unknown GPU"),
        pytest.param(("--gpu", "h100,b20"), "--gpu", ("'b20'", "B200"), id="second GPU unknown"),
        pytest.param(("--gpu", "zzzz"), "--gpu", ("'zzzz'", "decodetax devices"), id="GPU like no other"),
        pytest.param(("--gpu", "h100,,b200"), "--gpu", ("''",), id="empty GPU within"),
        pytest.param(("--gpu", "h100,"), "--gpu", ("''",), id="empty GPU at the end"),
        pytest.param(("--gpu", ""), "--gpu", ("''",), id="no GPU"),
        pytest.param(("--gpu", "x" * 1000), "--gpu", (), id="very long GPU"),
        pytest.param(("--gpu", "h100\nx"), "--gpu", (), id="GPU of two lines"),
        pytest.param(
            ("--batch", "1000000"),
            "--batch",
            ("1000000 sequences of 1024 tokens", "largest batch", "H100"),
            id="batch",
        ),
        pytest.param(
            ("--model", "llama-3.1-405b"),
            "--gpu",
            ("llama-3.1-405b", "756.0 GiB", "--tensor-parallel"),
            id="model",
        ),
        pytest.param(("--context", "2147483647"), "--context", ("2147483647 tokens",), id="context"),
        pytest.param(("--tensor-parallel", "0"), "--tensor-parallel", ("'0'",), id="zero GPUs"),
        pytest.param(("--dtype", "fp32"), "--dtype", ("'fp32'", "bf16, fp16, fp8, int8, int4"), id="dtype"),
        pytest.param(("--dtype", ""), "--dtype", ("''",), id="empty dtype"),
        pytest.param(("--cache-dtype", "BF16"), "--cache-dtype", ("'BF16'",), id="cache dtype"),
    ],
)
def test_rejects_wrong_input_in_one_line(arguments, option, fragments):
    assert_misuse(decodetax(*PREDICT, *arguments), option, *fragments)


@pytest.mark.parametrize("option", ["--batch", "--context", "--prompt"])
@pytest.mark.parametrize("text", ["0", "-1", "1.5", "nan", "", "2147483648", "1e3", "x"])
def test_sizes_are_whole_numbers_of_at_least_1(option, text):
    assert_misuse(decodetax(*PREDICT, option, text), option, repr(text))


@pytest.mark.parametrize("option", ["--batch", "--context"])
@pytest.mark.parametrize("text", ["1,,2", "1,", "1,0", "1 2"])
def test_lists_of_sizes_have_no_gaps(option, text):
    assert_misuse(decodetax(*PREDICT, option, text), option, repr(text))


@pytest.mark.parametrize("option", ["--link-gb-per-s", "--link-latency-us", "--usd-per-hour"])
@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "", "1e9", "x", "1_0"])
def test_rates_and_prices_are_above_0_and_finite(option, text):
    assert_misuse(decodetax(*PREDICT, option, text), option, repr(text))


@pytest.mark.parametrize("text", ["1.1", "-0.1", "nan", "inf", "", "50%"])
def test_cache_hits_are_a_share(text):
    assert_misuse(decodetax(*REQUESTS, "--cache-hits", text), "--cache-hits", repr(text))


def test_link_too_slow_for_a_finite_time_is_named_in_one_line():
    options = ("--tensor-parallel", "2", "--link-gb-per-s", "1e-320")
    assert_misuse(decodetax(*PREDICT, *options, "--json"), "--link-gb-per-s")


def test_more_gpus_than_heads_are_named_in_one_line(tmp_path):
    model = ("predict", "--model", write_config(tmp_path))
    assert predictions(*model, "--tensor-parallel", "3")
    assert_misuse(decodetax(*model, "--tensor-parallel", "8"), "--tensor-parallel", "8 GPUs", "4 heads")


def test_broken_config_is_named_in_one_line(tmp_path):
    path = write_config(tmp_path, model_type="mixtral", num_local_experts=8)
    assert_misuse(decodetax("predict", "--model", path), "--model", "num_experts_per_tok")
    path = write_config(tmp_path, model_type="mixtral", num_local_experts=2, num_experts_per_tok=3)
    assert_misuse(decodetax("predict", "--model", path), "--model", "num_experts_per_tok: must be at most 2")


def test_requests_that_do_not_fit_are_refused_by_their_option():
    outcome = decodetax("predict", "--requests", "500000/1000")
    assert outcome.code == 2
    assert outcome.err.startswith("decodetax: --requests: a sequence of 501000 tokens does not fit")
