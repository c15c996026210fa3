"""`decodetax predict` from the command line, with every option."""

import itertools
import math

import pytest
from decodetax.harness.core.gpus import find_gpu, gpu_table
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
    assert "request" not in row


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


@pytest.mark.parametrize(("hits", "share"), [(None, 1.0), ("0", 1.0), ("0.5", 0.5), ("1", 0.0)])
def test_request_costs_its_output_and_the_uncached_prompt(hits, share):
    options = () if hits is None else ("--cache-hits", hits)
    row = prediction(*PREDICT, "--usd-per-hour", "3.6", "--output", "200", *options)
    request = row["request"]
    assert (request["provenance"], request["prompt"], request["output"]) == ("modelled", 1024, 200)
    assert request["cache_hits"] == 1 - share
    assert request["input_s"] == pytest.approx(1024 * share * row["input_s_per_token"])
    middle = prediction("predict", "--model", "llama-3.2-1b", "--batch", "8", "--context", "1124")
    assert request["output_s"] == pytest.approx(200 * middle["output_s_per_token"])
    assert request["usd"] == pytest.approx((request["input_s"] + request["output_s"]) * 0.001)


def test_rejects_request_that_outgrows_the_memory():
    # 32 caches of 1024 tokens fit; in the middle of the output each has 51024.
    asked = ("predict", "--model", "llama-3.1-8b", "--batch", "32", "--context", "1024")
    assert predictions(*asked)
    assert_misuse(decodetax(*asked, "--output", "100000"), "--output")


# Tables.


def test_tables_are_marked_modelled_and_fit_80_columns():
    asked = (*PREDICT, "--gpu", "h100,l4", "--output", "200", "--cache-hits", "0.25")
    narrow, wide = printed(*asked), printed(*asked, "--wide")
    assert max(map(len, narrow.splitlines())) <= 80
    heading, tokens, shares, requests = wide.split("\n\n")
    assert heading.startswith(
        "Modelled, not measured: llama-3.2-1b, weights in bf16, KV cache in bf16, prompt\n"
    )
    assert " ".join(heading.split()).count("at most 4, the price ratio; - where there is none.") == 1
    for column in ("gpu", "s/input token", "s/output token", "gap", "$/1M output", "output bound"):
        assert column in tokens.splitlines()[1]
    for component in ("weights", "KV cache", "activations", "launch"):
        assert component in shares
    assert "device seconds" in requests
    assert "25%" in requests
    for table in (tokens, shares, requests):
        assert len([line for line in table.splitlines() if line.startswith(("H100-SXM5-80GB", "L4"))]) == 2


def test_table_shows_what_json_holds():
    asked = (*PREDICT, "--usd-per-hour", "3.6", "--price-ratio", "16")
    row = prediction(*asked)
    _, tokens, shares = printed(*asked, "--wide").split("\n\n")
    for text in (f"{row['gap']:.2f}", f"{row['output_usd_per_mtok']:.4g}", f"{row['break_even_batch']} "):
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
    assert "prompt\n300." in text
    _, tokens, shares = text.split("\n\n")
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
            ("1000000 sequences of 1024 tokens", "at most", "H100"),
            id="batch",
        ),
        pytest.param(
            ("--model", "llama-3.1-405b"),
            "--gpu",
            ("llama-3.1-405b", "756.0 GiB", "--tensor-parallel"),
            id="model",
        ),
        pytest.param(("--context", "2147483647"), "--gpu", ("2147483647 tokens",), id="context"),
        pytest.param(("--tensor-parallel", "9"), "--tensor-parallel", ("'9'", "1 to 8"), id="nine GPUs"),
        pytest.param(("--tensor-parallel", "0"), "--tensor-parallel", ("'0'",), id="zero GPUs"),
        pytest.param(("--dtype", "fp16"), "--dtype", ("'fp16'", "bf16, fp8, int8, int4"), id="dtype"),
        pytest.param(("--dtype", ""), "--dtype", ("''",), id="empty dtype"),
        pytest.param(("--cache-dtype", "BF16"), "--cache-dtype", ("'BF16'",), id="cache dtype"),
        pytest.param(("--cache-hits", "0.5"), "--cache-hits", ("--output",), id="cache hits without output"),
    ],
)
def test_rejects_wrong_input_in_one_line(arguments, option, fragments):
    assert_misuse(decodetax(*PREDICT, *arguments), option, *fragments)


@pytest.mark.parametrize("option", ["--batch", "--context", "--prompt", "--output"])
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
    assert_misuse(decodetax(*PREDICT, "--output", "200", "--cache-hits", text), "--cache-hits", repr(text))


def test_link_too_slow_for_a_finite_time_is_named_in_one_line():
    options = ("--tensor-parallel", "2", "--link-gb-per-s", "1e-320")
    assert_misuse(decodetax(*PREDICT, *options, "--json"), "--link-gb-per-s")


def test_more_gpus_than_heads_are_named_in_one_line(tmp_path):
    model = ("predict", "--model", write_config(tmp_path))
    assert predictions(*model, "--tensor-parallel", "3")
    assert_misuse(decodetax(*model, "--tensor-parallel", "8"), "--tensor-parallel", "8 GPUs", "4 heads")


def test_broken_config_is_named_in_one_line(tmp_path):
    path = write_config(tmp_path, num_local_experts=8)
    assert_misuse(decodetax("predict", "--model", path), "--model", "num_experts_per_tok")
    path = write_config(tmp_path, num_experts=2, num_experts_per_tok=3, moe_intermediate_size=32)
    assert_misuse(decodetax("predict", "--model", path), "--model", "experts.per_token")
