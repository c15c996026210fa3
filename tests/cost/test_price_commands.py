"""`decodetax prices` and `decodetax price` from the command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from decodetax.harness.core.gpus import find_gpu
from decodetax.harness.core.language_model import load_language_model
from decodetax.harness.core.run_file import read_run
from decodetax.harness.cost.break_even import BreakEven, measured_batch
from decodetax.harness.cost.deployment import deployment
from decodetax.harness.cost.prices import price_list
from hand_made import assert_misuse, decodetax, strict_json

RUN = Path(__file__).resolve().parents[2] / "docs" / "runs" / "cpu-epyc-2-cores.json"
AGAINST = BreakEven(model=load_language_model("llama-3.1-8b"), on=deployment("h100"), context=1024)

MODEL = ("--model", "gpt-4o-2024-08-06")
TOKENS = ("--input", "500", "--output", "700")
SEQUENCE = " with one sequence of 1024 tokens does not fit"
GIVEN = ("--input-price", "0.01", "--output-price", "0.02")

OWN = {
    "model": '"our-model"',
    "effective": '"2030-01-01"',
    "input_usd_per_mtok": "0.1",
    "output_usd_per_mtok": "0.2",
    "source": '"our contract"',
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def entry(**changes):
    """A [[price]] of TOML; a field of None is left out."""
    fields = {name: value for name, value in {**OWN, **changes}.items() if value is not None}
    return "[[price]]\n" + "".join(f"{name} = {value}\n" for name, value in fields.items())


def write(folder, *entries):
    path = folder / "own.toml"
    path.write_text("".join(entries), encoding="utf-8")
    return path


def document(*arguments):
    outcome = decodetax(*arguments, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    return strict_json(outcome.out)


def printed(*arguments):
    outcome = decodetax(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    return outcome.out


def line_of(text, start):
    [line] = [line for line in text.splitlines() if line.startswith(start)]
    return line.split()


# The list.


def test_prices_fits_80_columns_and_lists_every_model_with_its_ratio():
    out = printed("prices", "--run", RUN)
    assert max(map(len, out.splitlines())) <= 80
    table = printed("prices").partition("\n\n")[0].splitlines()[4:]
    prices = price_list()
    for price, line in zip(prices.values(), table, strict=True):
        assert line.startswith(f"{price.model} ")
        assert f"{price.output_over_input:.2f}" in line.split()
    assert line_of(out, "together llama-3.3-70b")[2:6] == ["0.88", "-", "0.88", "1.00"]


def test_wide_prices_show_date_and_source():
    table = printed("prices", "--wide").partition("\n\n")[0].splitlines()[3:]
    for price, line in zip(price_list().values(), table, strict=True):
        assert line.endswith(f" {price.source}")
        assert f" {price.effective} " in line


def test_prices_shows_how_a_family_changed():
    changes = printed("prices", "--wide").partition("\n\n")[2]
    line = " ".join(line_of(changes, "gpt-4o "))
    assert line == "gpt-4o gpt-4o-2024-05-13 gpt-4o-2024-08-06 -50% -33.33% 3.00 4.00"
    assert " +0% +0% 5.00 5.00" in " ".join(changes.split())


def test_prices_distinguishes_a_small_change_no_change_and_a_change_from_0(folder):
    own = write(
        folder,
        entry(model='"a"', family='"f"', input_usd_per_mtok="0", output_usd_per_mtok="10000000"),
        entry(model='"b"', family='"f"', input_usd_per_mtok="1", output_usd_per_mtok="10000001"),
    )
    line = line_of(printed("prices", "--prices", own, "--wide"), "f ")
    assert line[3:] == ["-", "+1e-05%", "-", "10000001.00"]


def test_prices_as_json_keep_money_as_text():
    found = document("prices")
    assert found["schema_version"] == 1
    [gpt] = [price for price in found["prices"] if price["model"] == "gpt-4o-2024-08-06"]
    assert gpt == {
        "model": "gpt-4o-2024-08-06",
        "family": "gpt-4o",
        "effective": "2024-08-06",
        "input_usd_per_mtok": "2.50",
        "cached_input_usd_per_mtok": "1.25",
        "output_usd_per_mtok": "10.00",
        "source": price_list()["gpt-4o-2024-08-06"].source,
        "output_over_input": 4.0,
        "modelled_batch": AGAINST.modelled_batch(4.0),
        "measured_batch": None,
    }
    assert found["break_even"] == AGAINST.to_json()
    assert [price["model"] for price in found["prices"]] == list(price_list())
    [change] = [change for change in found["changes"] if change["family"] == "gpt-4o"]
    assert change == {
        "family": "gpt-4o",
        "earlier": "gpt-4o-2024-05-13",
        "later": "gpt-4o-2024-08-06",
        "input_change_percent": -50.0,
        "output_change_percent": pytest.approx(-100 / 3, rel=1e-15),
    }


def test_prices_show_the_batch_at_which_a_gap_equals_each_ratio():
    served = ("--served-model", "llama-3.2-1b", "--gpu", "b200", "--context", "500")
    plain = printed("prices", *served)
    against = BreakEven(model=load_language_model("llama-3.2-1b"), on=deployment("b200"), context=500)
    assert line_of(plain, "gpt-4o-2024-08-06")[5:] == [f"{against.modelled_batch(4.0):,}"]
    assert "measured" not in plain
    where = "llama-3.2-1b in bf16 on B200 (500 cached tokens)"
    assert f"modelled batch: the smallest at which {where} has a gap of" in " ".join(plain.split())
    measured = printed("prices", *served, "--run", RUN)
    batch = measured_batch(read_run(RUN).gaps, 4.0)
    assert line_of(measured, "gpt-4o-2024-08-06")[5:] == [f"{against.modelled_batch(4.0):,}", f"{batch:.4g}"]


def test_price_shows_the_batch_at_which_the_gap_equals_its_ratio():
    out = printed("price", *TOKENS, *MODEL, "--run", RUN)
    batch = AGAINST.modelled_batch(4.0)
    gap = f"The modelled gap of {AGAINST.where}, another model than the priced, falls to this ratio at batch"
    assert f"{gap} {batch}." in " ".join(out.split())
    measured = measured_batch(read_run(RUN).gaps, 4.0)
    assert f"The measured gap of the run falls to this ratio at batch {measured:.3g}." in out
    dear = printed("price", *TOKENS, "--input-price", "1", "--output-price", "1", "--run", RUN)
    assert "is above this ratio at every batch that fits" in " ".join(dear.split())
    assert "at no measured batch." in dear
    found = document("price", *TOKENS, *MODEL)["break_even"]
    assert found == AGAINST.to_json() | {"modelled_batch": batch, "measured_batch": None}


@pytest.mark.parametrize("command", [("prices",), ("price", *TOKENS, *MODEL)])
@pytest.mark.parametrize(
    ("served", "what"),
    [
        (["llama-3.1-70b", "--tensor-parallel", "1"], f"llama-3.1-70b in bf16{SEQUENCE} H100-SXM5-80GB;"),
        (["llama-3.1-405b"], f"llama-3.1-405b in bf16{SEQUENCE} 8 x H100-SXM5-80GB;"),
        (
            ["qwen3-32b", "--gpu", "rtx4090", "--tensor-parallel", "2"],
            "does not fit 2 x RTX",
        ),
    ],
)
def test_says_that_the_served_model_does_not_fit_the_gpus(command, served, what):
    out = printed(*command, "--served-model", *served)
    assert "o modelled batch: " in out
    assert what in " ".join(out.split())


def test_fewest_gpus_that_hold_the_served_model_serve_it():
    found = [
        document("prices", "--served-model", "llama-3.1-70b", *more)["break_even"]
        for more in ([], ["--dtype", "fp8"], ["--dtype", "int4", "--gpu", "rtx4090"])
    ]
    assert [each["tensor_parallel"] for each in found] == [2, 1, 2]
    assert [each["dtype"] for each in found] == ["bf16", "fp8", "int4"]
    [more] = [document("prices", "--served-model", "llama-3.1-70b", "--tensor-parallel", "4")["break_even"]]
    assert more["tensor_parallel"] == 4


@pytest.mark.parametrize(
    ("option", "value", "where"),
    [
        ("--dtype", "fp8", "llama-3.1-8b in fp8 on H100-SXM5-80GB (1024 cached tokens)"),
        ("--cache-dtype", "fp8", "llama-3.1-8b in bf16 on H100-SXM5-80GB (1024 cached tokens, cache in fp8)"),
        ("--tensor-parallel", "2", "llama-3.1-8b in bf16 on 2 x H100-SXM5-80GB (1024 cached tokens)"),
    ],
)
def test_dtypes_and_tensor_parallelism_change_the_break_even_and_are_said(option, value, where):
    for command in (("prices",), ("price", *TOKENS, *MODEL)):
        assert where in " ".join(printed(*command, option, value).split())
    changed = document("price", *TOKENS, *MODEL, option, value)["break_even"]
    plain = document("price", *TOKENS, *MODEL)["break_even"]
    field = option.removeprefix("--").replace("-", "_")
    assert str(changed[field]) == value
    assert changed["modelled_batch"] != plain["modelled_batch"]
    expected = predict_row("llama-3.1-8b", option, value, "--price-ratio", "4")
    assert changed["modelled_batch"] == expected["break_even_batch"]


@pytest.mark.parametrize(
    ("served", "where"),
    [
        ("--data-parallel 2", "llama-3.1-8b in bf16 on 2 x H100-SXM5-80GB (DP 2) (1024"),
        (
            "--pipeline-parallel 2 --tensor-parallel 2",
            "llama-3.1-8b in bf16 on 4 x H100-SXM5-80GB (TP 2, PP 2)",
        ),
        (
            "--served-model deepseek-v3 --gpu b300 --tensor-parallel 2 --data-parallel 4 --expert-parallel 8",
            "deepseek-v3 in fp8 blocks on 8 x B300 (TP 2, DP 4, EP 8)",
        ),
    ],
)
def test_every_parallelism_of_predict_can_serve(served, where):
    for command in (("prices",), ("price", *TOKENS, *MODEL)):
        assert where in " ".join(printed(*command, *served.split()).split())
    found = document("price", *TOKENS, *MODEL, *served.split())["break_even"]
    asked = served.replace("--served-model", "--model").split()
    model = [] if "--model" in asked else ["--model", "llama-3.1-8b"]
    predicted = ("predict", *model, *asked, "--batch", "8", "--context", "1024", "--price-ratio", "4")
    [row] = document(*predicted)["predictions"]
    for name in ("tensor_parallel", "data_parallel", "expert_parallel", "pipeline_parallel", "dtype"):
        assert found[name] == row[name]
    assert found["modelled_batch"] == row["break_even_batch"]


@pytest.mark.parametrize("dtype", ["fp4", "mxfp4", "fp16", "nvfp4"])
def test_formats_of_predict_can_be_served(dtype):
    found = document("price", *TOKENS, *MODEL, "--dtype", dtype)["break_even"]
    assert found["dtype"] == dtype
    assert (
        found["modelled_batch"]
        == predict_row("llama-3.1-8b", "--dtype", dtype, "--price-ratio", "4")["break_even_batch"]
    )


def predict_row(model, *arguments):
    asked = ("predict", "--model", model, "--batch", "1", "--context", "1024", *arguments)
    [row] = document(*asked)["predictions"]
    return row


def test_price_of_a_preset_is_compared_with_its_own_gap():
    found = document("price", *TOKENS, "--model", "groq llama-3.3-70b")["break_even"]
    assert (found["model"], found["tensor_parallel"]) == ("llama-3.3-70b", 2)
    assert "another model" not in printed("price", *TOKENS, "--model", "groq llama-3.3-70b")
    old = document("price", *TOKENS, "--model", "deepseek-v3 (until 2025-02-08)")["break_even"]
    assert old["model"] == "deepseek-v3"
    assert "another model" in printed("price", *TOKENS, "--model", "gpt-4o")
    assert "another model" not in printed("price", *TOKENS, *GIVEN)
    other = printed("price", *TOKENS, "--model", "groq llama-3.3-70b", "--served-model", "llama-3.1-8b")
    assert "llama-3.1-8b in bf16 on H100-SXM5-80GB (1024 cached tokens), another model than" in " ".join(
        other.split()
    )


@pytest.mark.parametrize("command", [("prices",), ("price", "--input", "1", "--model", "gpt-4o-mini")])
@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--served-model", "llama-3.1-8"], ["--served-model", "llama-3.1-8b"]),
        (["--gpu", "h101"], ["--gpu", "H100"]),
        (["--context", "0"], ["--context", "'0'"]),
        (["--dtype", "fp9"], ["--dtype", "'fp9'", "bf16"]),
        (["--cache-dtype", "x"], ["--cache-dtype", "'x'", "bf16"]),
        (["--tensor-parallel", "0"], ["--tensor-parallel", "'0'"]),
        (["--expert-parallel", "2", "--data-parallel", "2"], ["--expert-parallel", "no routed experts"]),
        (["--pipeline-parallel", "64"], ["--pipeline-parallel", "32 layers"]),
        (["--expert-parallel", "3"], ["--expert-parallel", "must divide"]),
        (["--run", "nothing.json"], ["nothing.json"]),
    ],
    ids=lambda value: value[0],
)
def test_rejects_a_bad_served_model_gpu_context_or_run(command, arguments, fragments):
    assert_misuse(decodetax(*command, *arguments), *fragments)


def test_prices_list_what_an_hour_of_a_gpu_costs_on_which_basis():
    words, rentals = " ".join(printed("prices", "--wide").split()), document("prices")["gpu_rentals"]
    assert {rental["provenance"] for rental in rentals} == {"published"}
    for rental in rentals:
        find_gpu(rental["gpu"])
        cells = " ".join((rental["gpu"], rental["usd_per_gpu_hour"], rental["basis"], rental["source"]))
        assert cells in words


@pytest.mark.parametrize(
    ("gpu", "usd"),
    [
        pytest.param("H100-SXM5-80GB", 2.95, id="the lowest on demand, below which is a cost of ownership"),
        pytest.param("B200", 5.50, id="on demand, not the cost of ownership"),
        pytest.param("GB200", None, id="a cost of ownership alone"),
        pytest.param("H800-SXM", None, id="an assumed price alone"),
        pytest.param("L4", None, id="none"),
    ],
)
def test_a_gpu_hour_has_its_lowest_price_on_demand(gpu, usd):
    assert find_gpu(gpu).usd_per_hour == usd
    assert find_gpu(gpu).usd_source.startswith("on demand") == (usd is not None)


# The cost of a request.


def test_price_shows_each_charge_and_the_exact_total():
    out = printed("price", *TOKENS, *MODEL, "--cached-input", "400")
    assert line_of(out, "input") == ["input", "100", "2.50", "0.00025"]
    assert line_of(out, "cached input") == ["cached", "input", "400", "1.25", "0.0005"]
    assert line_of(out, "output") == ["output", "700", "10.00", "0.007"]
    assert "The request costs $0.00775.\n" in out
    assert "is 4.00." in out
    assert "effective 2024-08-06" in out
    per_token = printed("price", *TOKENS, *GIVEN, "--per", "1")
    assert line_of(per_token, "input") == ["input", "500", "0.01", "5.00"]
    assert line_of(per_token, "kind")[2:] == ["$", "per", "$"]
    assert line_of(per_token, " ")[0] == "token"


@pytest.mark.parametrize(
    ("hits", "cached"), [("0.9", 450), ("0", 0), ("1", 500), ("0.001", 0), ("0.333", 166), (".5", 250)]
)
def test_cache_hits_are_whole_tokens_at_the_cached_price(hits, cached):
    found = document("price", *TOKENS, *MODEL, "--cache-hits", hits)
    assert found["usd"] == document("price", *TOKENS, *MODEL, "--cached-input", str(cached))["usd"]
    terms = {term["kind"]: term["tokens"] for term in found["terms"]}
    assert (terms["input"], terms.get("cached input", 0)) == (500 - cached, cached)


def test_cache_hits_of_the_most_tokens_are_exact():
    asked = ("price", "--input", "9007199254740992", *MODEL, "--cache-hits", "0.999999999999")
    [_, cached, _] = document(*asked)["terms"]
    assert cached["tokens"] == 9007199254740992 * 999999999999 // 10**12


@pytest.mark.parametrize(
    ("arguments", "usd"),
    [
        pytest.param([*TOKENS, *MODEL], "0.00825", id="of the list"),
        pytest.param([*TOKENS, *MODEL, "--cached-input", "400"], "0.00775", id="with cached input"),
        pytest.param([*TOKENS, *GIVEN, "--per", "1"], "19.00", id="per token"),
        pytest.param([*TOKENS, *GIVEN, "--per", "1000"], "0.019", id="per thousand"),
        pytest.param([*TOKENS, *GIVEN], "0.000019", id="per million"),
        pytest.param(
            [*TOKENS, *GIVEN, "--per", "1", "--cached-input", "500", "--cached-input-price", ".001"],
            "14.50",
            id="all cached",
        ),
        pytest.param(
            ["--input", "1000000", "--output", "1000000", "--input-price", "0.1", "--output-price", "0.2"],
            "0.30",
            id="a tenth and two tenths",
        ),
        pytest.param(
            ["--input", "3", "--per", "1", "--input-price", "2.5e-06", "--output-price", "1E-5"],
            "0.0000075",
            id="with exponents",
        ),
        pytest.param(
            ["--input", "9007199254740992", "--input-price", "0.000000000001", "--output-price", "0"],
            "0.009007199254740992",
            id="the most tokens at the finest price",
        ),
        pytest.param(
            ["--output", "9007199254740992", "--per", "1", "--output-price", "1000000", "--input-price", "0"],
            "9007199254740992000000.00",
            id="the most that it can be",
        ),
        pytest.param(["--output", "1", *MODEL, "--cached-input", "0"], "0.00001", id="one token"),
        pytest.param(
            ["--input", "5", "--model", "gpt-4", "--cached-input", "0"], "0.00015", id="none cached"
        ),
        pytest.param(["--input", "5", "--input-price", "0", "--output-price", "0"], "0.00", id="free"),
    ],
)
def test_total_is_exact(arguments, usd):
    found = document("price", *arguments)
    assert found["usd"] == usd
    assert f"costs ${usd}.\n" in printed("price", *arguments)


def test_price_as_json_has_each_term():
    found = document("price", *TOKENS, *MODEL, "--cached-input", "400")
    assert found["price"]["model"] == "gpt-4o-2024-08-06"
    assert found["terms"] == [
        {"kind": "input", "tokens": 100, "usd_per_mtok": "2.50", "usd": "0.00025"},
        {"kind": "cached input", "tokens": 400, "usd_per_mtok": "1.25", "usd": "0.0005"},
        {"kind": "output", "tokens": 700, "usd_per_mtok": "10.00", "usd": "0.007"},
    ]


def test_price_as_json_has_no_model_where_prices_are_given():
    found = document("price", *TOKENS, *GIVEN, "--per", "1")
    assert (found["price"]["model"], found["price"]["effective"]) == (None, None)
    assert found["price"]["input_usd_per_mtok"] == "10000.00"
    assert found["price"]["output_over_input"] == 2


WHOLE = "a whole number of tokens from 0 to 9007199254740992"
AMOUNT = "a number of dollars from 0 to 1000000"
BAD_ARGUMENTS = {
    "input below 0": ([*MODEL, "--input", "-1"], ["--input:", "'-1'", WHOLE]),
    "input with a fraction": ([*MODEL, "--input", "1.5"], ["--input:", "'1.5'", WHOLE]),
    "input past 2^53": ([*MODEL, "--input", "9007199254740993"], ["--input:", WHOLE]),
    "input of ten thousand digits": ([*MODEL, "--input", "9" * 10_000], ["--input:", WHOLE]),
    "input that is a word": ([*MODEL, "--input", "many"], ["--input:", "'many'", WHOLE]),
    "input of nothing": ([*MODEL, "--input", ""], ["--input:", "''", WHOLE]),
    "input in Arabic digits": ([*MODEL, "--input", "٣"], ["--input:", WHOLE]),
    "input with an underscore": ([*MODEL, "--input", "1_0"], ["--input:", WHOLE]),
    "output below 0": ([*MODEL, "--output", "-1"], ["--output:", "'-1'", WHOLE]),
    "output past 2^53": ([*MODEL, "--output", "9007199254740993"], ["--output:", WHOLE]),
    "cached input below 0": ([*MODEL, *TOKENS, "--cached-input", "-1"], ["--cached-input:", WHOLE]),
    "more cached than input": ([*MODEL, *TOKENS, "--cached-input", "501"], ["--cached-input:", "501", "500"]),
    "cache hits above 1": ([*MODEL, *TOKENS, "--cache-hits", "90"], ["--cache-hits:", "'90'", "0 to 1"]),
    "cache hits in percent": ([*MODEL, *TOKENS, "--cache-hits", "90%"], ["--cache-hits:", "'90%'"]),
    "cache hits and cached input": (
        [*MODEL, *TOKENS, "--cache-hits", "0.5", "--cached-input", "0"],
        ["--cache-hits:", "--cached-input"],
    ),
    "cache hits without a price": (
        [*TOKENS, "--model", "gpt-4", "--cache-hits", "0.9"],
        ["--cache-hits:", "'gpt-4'", "no price"],
    ),
    "cache hits without a price given": (
        [*TOKENS, *GIVEN, "--cache-hits", "0.9"],
        ["--cached-input-price:", "missing"],
    ),
    "no tokens": ([*MODEL], ["--input:", "0"]),
    "0 tokens": ([*MODEL, "--input", "0", "--output", "0"], ["--input:", "0"]),
    "no cached price": (
        [*TOKENS, "--model", "gpt-4", "--cached-input", "1"],
        ["--cached-input:", "'gpt-4'", "no price", "0"],
    ),
    "no cached price given": ([*TOKENS, *GIVEN, "--cached-input", "1"], ["--cached-input-price:", "missing"]),
    "no price": ([*TOKENS], ["--input-price:", "missing", "--model", "decodetax prices"]),
    "no output price": ([*TOKENS, "--input-price", "1"], ["--output-price:", "missing"]),
    "no input price": ([*TOKENS, "--output-price", "1"], ["--input-price:", "missing"]),
    "model and an input price": ([*TOKENS, *MODEL, "--input-price", "1"], ["--input-price:", "--model"]),
    "model and an output price": ([*TOKENS, *MODEL, "--output-price", "1"], ["--output-price:", "--model"]),
    "model and a cached price": (
        [*TOKENS, *MODEL, "--cached-input-price", "1"],
        ["--cached-input-price:", "--model"],
    ),
    "model and per": ([*TOKENS, *MODEL, "--per", "1"], ["--per:", "--model"]),
    "prices given and a file": ([*TOKENS, *GIVEN, "--prices", "x"], ["--prices:", "--input-price"]),
    "unknown model": ([*TOKENS, "--model", "gpt-4o-min"], ["--model:", "'gpt-4o-min'", "gpt-4o-mini"]),
    "model of nothing": ([*TOKENS, "--model", ""], ["--model:", "''"]),
    "model over two lines": ([*TOKENS, "--model", "gpt\n4"], ["--model:"]),
    "model of ten thousand letters": ([*TOKENS, "--model", "x" * 10_000], ["--model:"]),
    "price below 0": ([*TOKENS, *GIVEN, "--input-price", "-1"], ["--input-price:", "'-1'", AMOUNT]),
    "price that is no number": ([*TOKENS, *GIVEN, "--output-price", "nan"], ["--output-price:", AMOUNT]),
    "price without end": ([*TOKENS, *GIVEN, "--output-price", "inf"], ["--output-price:", AMOUNT]),
    "price too large": ([*TOKENS, *GIVEN, "--output-price", "1000000.01"], ["--output-price:", AMOUNT]),
    "price of a huge exponent": ([*TOKENS, *GIVEN, "--output-price", "1e99"], ["--output-price:", AMOUNT]),
    "price too fine": ([*TOKENS, *GIVEN, "--output-price", "1e-13"], ["--output-price:", "12 decimals"]),
    "price with an underscore": ([*TOKENS, *GIVEN, "--input-price", "1_0"], ["--input-price:", AMOUNT]),
    "price with a blank": ([*TOKENS, *GIVEN, "--input-price", " 1"], ["--input-price:", AMOUNT]),
    "price in Arabic digits": ([*TOKENS, *GIVEN, "--input-price", "٣"], ["--input-price:", AMOUNT]),
    "price of a lone point": ([*TOKENS, *GIVEN, "--input-price", "."], ["--input-price:", AMOUNT]),
    "cached price below 0": (
        [*TOKENS, *GIVEN, "--cached-input-price", "-1"],
        ["--cached-input-price:", AMOUNT],
    ),
    "per 0": ([*TOKENS, *GIVEN, "--per", "0"], ["--per:", "'0'", "one of 1, 10, 100, "]),
    "per 3": ([*TOKENS, *GIVEN, "--per", "3"], ["--per:", "'3'", "one of 1, 10, 100, "]),
    "per too many": ([*TOKENS, *GIVEN, "--per", "10000000000"], ["--per:", ", 1000000000;"]),
    "unknown option": ([*TOKENS, *MODEL, "--inptu", "1"], ["--inptu"]),
    "unexpected argument": ([*TOKENS, *MODEL, "extra"], ["extra"]),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_rejects_bad_argument_by_name_in_one_line(name):
    arguments, fragments = BAD_ARGUMENTS[name]
    assert_misuse(decodetax("price", *arguments), *fragments)


@pytest.mark.parametrize("arguments", [["prices"], ["price", *TOKENS, *MODEL]], ids=["prices", "price"])
def test_answers_import_no_torch(arguments):
    code = (
        "import sys\n"
        "from decodetax.harness import cli\n"
        f"sys.argv = ['decodetax', *{arguments!r}]\n"
        "try: cli.main()\n"
        "except SystemExit as done: assert not done.code\n"
        "print(*sorted({'torch', 'triton', 'numpy', 'rich'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout
    assert done.stderr.split() == []


def test_help_says_that_cached_input_is_part_of_the_input_and_that_money_is_text():
    text = " ".join(printed("price", "--help").split())
    assert "Input tokens of the request, cached ones included." in text
    assert "In JSON, money is text with all its digits" in text


# Prices of one's own.


def test_own_prices_are_added_to_the_list(folder):
    other = entry(model='"other"', cached_input_usd_per_mtok="5e-2", effective="2030-02-01")
    own = write(folder, entry(), other)
    found = document("prices", "--prices", own)["prices"]
    assert len(found) == len(price_list()) + 2
    first = {
        "model": "our-model",
        "family": None,
        "effective": "2030-01-01",
        "input_usd_per_mtok": "0.10",
        "cached_input_usd_per_mtok": None,
        "output_usd_per_mtok": "0.20",
        "source": "our contract",
        "output_over_input": 2.0,
        "modelled_batch": AGAINST.modelled_batch(2.0),
        "measured_batch": None,
    }
    second = {"model": "other", "cached_input_usd_per_mtok": "0.05", "effective": "2030-02-01"}
    assert found[-2:] == [first, first | second]
    assert document("price", "--input", "1", "--model", "other", "--prices", own)["usd"] == "0.0000001"


def test_own_price_replaces_the_listed_one(folder):
    own = write(folder, entry(model='"GPT-4o-mini"', input_usd_per_mtok="1"))
    found = document("prices", "--prices", own)["prices"]
    assert [price["model"] for price in found] == [
        "GPT-4o-mini" if name == "gpt-4o-mini" else name for name in price_list()
    ]
    asked = document("price", "--input", "1000000", "--model", "gpt-4o-mini", "--prices", own)
    assert asked["usd"] == "1.00"
    assert document("price", "--input", "1000000", "--model", "gpt-4o-mini")["usd"] == "0.15"


def test_own_price_of_a_family_continues_it(folder):
    own = write(folder, entry(family='"gpt-4o"', input_usd_per_mtok="5"))
    found = document("prices", "--prices", own)["changes"]
    assert {
        "family": "gpt-4o",
        "earlier": "gpt-4o-2024-08-06",
        "later": "our-model",
        "input_change_percent": 100.0,
        "output_change_percent": -98.0,
    } in found


@pytest.mark.parametrize("effective", ['"2030"', '"2030-01"', "2030-01-31", '"2030-01-31 read by hand"'])
def test_effective_may_lack_day_or_month_and_have_a_remark(folder, effective):
    found = document("prices", "--prices", write(folder, entry(effective=effective)))["prices"]
    assert found[-1]["effective"] == effective.strip('"')


def test_own_price_is_read_digit_by_digit(folder):
    own = write(folder, entry(input_usd_per_mtok="0.100000000000000001"))
    assert document("prices", "--prices", own)["prices"][-1]["input_usd_per_mtok"] == "0.100000000000000001"


def test_own_file_may_start_with_a_byte_order_mark(folder):
    (folder / "own.toml").write_bytes(b"\xef\xbb\xbf" + entry().encode())
    assert document("prices", "--prices", "own.toml")["prices"][-1]["model"] == "our-model"


A_PRICE = "a number from 0 to 1000000000000 of at most 18 decimals"
BAD_PRICES = {
    "that is a text": ('"0.1"', "'0.1'"),
    "of yes": ("true", "True"),
    "that is a list": ("[1]", "a list of 1"),
    "that is a date": ("2030-01-01", "datetime.date(2030, 1, 1)"),
    "below 0": ("-0.1", "-0.1"),
    "below 0 and whole": ("-1", "-1"),
    "of minus 0": ("-0.0", "-0.0"),
    "that is no number": ("nan", "NaN"),
    "without end": ("inf", "Infinity"),
    "without end below 0": ("-inf", "-Infinity"),
    "too large": ("1000000000001", "1000000000001"),
    "past a float": ("1e999", "1E+999"),
    "too fine": ("1e-19", "1E-19"),
    "of many hexadecimal digits": (f"0x{'f' * 5000}", "was 39802768403379665923"),
    "of many digits": (f"0.{'1' * 5000}", "0.1"),
}


@pytest.mark.parametrize("field", ["input_usd_per_mtok", "cached_input_usd_per_mtok", "output_usd_per_mtok"])
@pytest.mark.parametrize("name", BAD_PRICES)
def test_rejects_own_price_that_is_not_an_amount(folder, field, name):
    value, told = BAD_PRICES[name]
    own = write(folder, entry(), entry(model='"b"', **{field: value}))
    assert_misuse(
        decodetax("prices", "--prices", own), "--prices:", "own.toml", f"[[price]] 2: {field}:", A_PRICE, told
    )


ALONE = "is not a TOML file of [[price]] tables alone: "
LINE = "must be one line of text of at most 200 characters"
DATE = f"effective: {LINE} that starts with a date such as 2024-08-06 or 2025-02"
BAD_FILES = {
    "empty": ("", [f"{ALONE}lacks price"]),
    "without a price": ("price = []", [f"{ALONE}price: must be a list of at least 1"]),
    "with one table": ("[price]\nmodel = 'a'", [f"{ALONE}price: must be a list, was an object"]),
    "with a number": ("price = 1", [f"{ALONE}price: must be a list, was an integer"]),
    "with a list of numbers": ("price = [1]", [f"{ALONE}price[0]: must be an object, was an integer"]),
    "with another key": (f"prices = 1\n{entry()}", [f"{ALONE}has an unknown field 'prices'"]),
    "with another table": (f"{entry()}[other]\n", [f"{ALONE}has an unknown field 'other'"]),
    "that is JSON": ('{"price": []}', [ALONE, "line 1"]),
    "with half a line": ("[[price]]\nmodel = \n", [ALONE, "line 2"]),
    "with a key twice": ("[[price]]\nmodel = 'a'\nmodel = 'a'\n", [ALONE, "line 3"]),
    "with an integer of thousands of digits": (entry(input_usd_per_mtok="9" * 5000), ["too many digits"]),
    "with an exponent past any": (entry(input_usd_per_mtok=f"1e{'9' * 30}"), ["too many digits"]),
    "nested too deeply": (f"price = {'[' * 50_000}", ["nested too deeply"]),
    "too large": ("#" * (2**20 + 1), ["too large", "1 MiB"]),
    "with an unknown field": (
        entry(input_usd_per_mtoken="1"),
        ["[[price]] 1: has an unknown field 'input_usd_per_mtoken'; its fields are model, family, "],
    ),
    "with a model of no letters": (entry(model='" "'), [f"model: {LINE}, was ' '"]),
    "with a number for a model": (entry(model="4"), [f"model: {LINE}, was 4"]),
    "with a model over two lines": (entry(model=r'"a\nb"'), [f"model: {LINE}, was 'a\\nb'"]),
    "with an escape sequence": (entry(source=r'"\u001b[31m"'), [f"source: {LINE}, was '\\x1b[31m'"]),
    "with a long source": (entry(source=f'"{"x" * 201}"'), [f"source: {LINE}, was 'xxx"]),
    "with a list for a family": (entry(family="[]"), [f"family: {LINE}, was a list of 0"]),
    "with a word for a date": (entry(effective='"soon"'), [f"{DATE}, was 'soon'"]),
    "with a month 13": (entry(effective='"2030-13"'), [f"{DATE}, was '2030-13'"]),
    "with a 30 February": (entry(effective='"2030-02-30"'), [f"{DATE}, was '2030-02-30'"]),
    "with a year of 5 digits": (entry(effective='"20300"'), [f"{DATE}, was '20300'"]),
    "with a date without hyphens": (entry(effective='"20300101"'), [f"{DATE}, was '20300101'"]),
    "with a week for a date": (entry(effective='"2030-W01-1"'), [f"{DATE}, was '2030-W01-1'"]),
    "with a number for a date": (entry(effective="2030"), [f"{DATE}, was 2030"]),
    "with a time for a date": (entry(effective="2030-01-01T00:00:00"), [f"{DATE}, was datetime"]),
    "with a model twice": (
        entry() + entry(model='"Our-Model"'),
        ["[[price]] 2: model: 'Our-Model' is in the file twice"],
    ),
    **{
        f"without {field}": (
            entry(**{field: None}),
            [f"[[price]] 1: lacks {field}"],
        )
        for field in OWN
    },
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_rejects_a_file_that_is_not_a_price_file(folder, name):
    text, fragments = BAD_FILES[name]
    own = write(folder, text)
    assert_misuse(decodetax("prices", "--prices", own), "--prices:", "own.toml", *fragments)


def test_price_rejects_a_bad_price_file_too(folder):
    own = write(folder, "price = 1")
    assert_misuse(decodetax("price", *TOKENS, *MODEL, "--prices", own), "--prices:", "own.toml", ALONE)


def test_rejects_a_binary_file(folder):
    (folder / "own.toml").write_bytes(b"\x7fELF\xff\x00")
    assert_misuse(decodetax("prices", "--prices", "own.toml"), "--prices:", "own.toml", "not UTF-8")


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        pytest.param("none.toml", "No such file", id="missing"),
        pytest.param("", "not a regular file", id="of no name"),
        pytest.param("folder", "not a regular file", id="folder"),
        pytest.param("pipe", "not a regular file", id="pipe"),
        pytest.param("/dev/zero", "not a regular file", id="device"),
        pytest.param("x" * 300, "too long", id="too long a name"),
        pytest.param("own.toml/x", "Not a directory", id="below a file"),
    ],
)
def test_rejects_a_file_that_cannot_be_read(folder, name, fragment):
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    write(folder, entry())
    assert_misuse(decodetax("prices", "--prices", name), "--prices:", fragment)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_rejects_a_file_without_read_permission(folder):
    own = write(folder, entry())
    own.chmod(0)
    assert_misuse(decodetax("prices", "--prices", own), "--prices:", "own.toml", "Permission denied")
