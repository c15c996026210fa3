"""The article's claims: each verdict at its threshold, from modelled facts, and from a run."""

import dataclasses
import json
from pathlib import Path

import msgspec
import pytest
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.formats import FORMATS
from decodetax.harness.core.gap import Interval
from decodetax.harness.core.language_model import load_language_model
from decodetax.harness.core.run_file import read_run
from decodetax.harness.cost.claims import Facts, check_claims, measured_facts, modelled_facts
from decodetax.harness.cost.deployment import deployment
from decodetax.harness.cost.prices import price_list
from hand_made import TINY, assert_misuse, decodetax, strict_json
from rank_runs import rank_run

ROOT = Path(__file__).resolve().parents[2]
LLAMA = load_language_model("llama-3.1-8b")
RUN = ROOT / "docs" / "runs" / "cpu-epyc-2-cores.json"
FACTS = Facts(
    where="a model on a device",
    provenance="measured",
    model=LLAMA,
    context=1024,
    balance_ops_per_byte=100.0,
    prefill_ops_per_byte=900.0,
    decode_ops_per_byte={1: 1.0, 32: 30.0},
    bandwidth_share=0.8,
    flop_share=0.01,
    prefill_flop_share=0.6,
    input_s_per_token=1e-5,
    output_s_per_token={1: 1e-2, 32: 1e-3},
)


def verdicts(**changes):
    claims = check_claims(dataclasses.replace(FACTS, **changes), price_list())
    assert [claim.number for claim in claims] == list(range(1, 10))
    return {claim.number: claim.verdict for claim in claims}


def test_all_claims_hold_on_a_clear_case():
    assert set(verdicts().values()) == {"holds"}


@pytest.mark.parametrize(
    ("number", "changes", "verdict"),
    [
        (1, {"context": 100_000}, "holds in part"),
        (1, {"model": load_language_model("llama-3.2-1b")}, "holds in part"),
        (2, {"model": load_language_model("deepseek-v3")}, "holds in part"),
        (3, {"decode_ops_per_byte": {1: 1.0, 32: 100.0}}, "holds in part"),
        (3, {"decode_ops_per_byte": {1: 100.0}}, "does not hold"),
        (3, {"prefill_ops_per_byte": 100.0}, "does not hold"),
        (4, {"bandwidth_share": 0.5, "flop_share": 0.1}, "holds"),
        (4, {"bandwidth_share": 0.49}, "holds in part"),
        (4, {"flop_share": 0.11}, "holds in part"),
        (4, {"bandwidth_share": 0.01}, "does not hold"),
        (5, {"prefill_flop_share": 0.5}, "holds"),
        (5, {"prefill_flop_share": 0.49}, "holds in part"),
        (5, {"prefill_flop_share": 0.24}, "does not hold"),
        (6, {"output_s_per_token": {1: 1.5e-5}}, "holds in part"),
        (6, {"output_s_per_token": {1: 1e-5}}, "does not hold"),
        (6, {"output_s_per_token": {8: 1e-5}}, "holds"),
        (7, {"output_s_per_token": {1: 1e-2}}, "holds in part"),
        (7, {"output_s_per_token": {1: 1e-2, 8: 2e-2}}, "holds in part"),
        (7, {"output_s_per_token": {1: 1e-6, 8: 1e-7}}, "does not hold"),
        (9, {"output_s_per_token": {1: 1e-2, 8: 1.05e-5}}, "holds in part"),
    ],
)
def test_verdict_follows_its_figures(number, changes, verdict):
    assert verdicts(**changes)[number] == verdict


def test_cache_of_a_model_with_windows_holds_only_the_tokens_within_them():
    model, context = load_language_model("gpt-oss-20b"), 1024
    claim = check_claims(dataclasses.replace(FACTS, model=model, context=context), price_list())[1]
    values = {figure.what: figure.value for figure in claim.figures}
    key_and_value = 2 * 8 * 64 * 2  # 8 KV heads of 64 elements of 2 bytes
    assert values["keys and values of a token and layer"] == key_and_value
    assert values["cache of one sequence"] == key_and_value * (12 * 128 + 12 * context)


def test_query_of_latent_attention_has_both_parts_of_its_heads():
    claim = check_claims(dataclasses.replace(FACTS, model=load_language_model("deepseek-v3")), price_list())[
        1
    ]
    values = {figure.what: figure.value for figure in claim.figures}
    assert values["query of a token and layer"] == 128 * (128 + 64) * 2
    assert values["keys and values of a token and layer"] == (512 + 64) * 2


def test_claim_on_prices_fails_with_other_changes():
    prices = dict(price_list())
    new = prices["gpt-4o-2024-08-06"]
    prices[new.model] = msgspec.structs.replace(new, output_usd_per_mtok=2 * new.output_usd_per_mtok)
    claims = check_claims(FACTS, prices)
    assert claims[7].verdict == "does not hold"
    without = {name: price for name, price in prices.items() if price.output_over_input != 1}
    assert check_claims(FACTS, without)[8].verdict == "does not hold"


def test_modelled_facts_of_llama_on_h100():
    facts = modelled_facts(LLAMA, deployment("h100"), context=1024)
    assert facts.provenance == "modelled"
    assert facts.balance_ops_per_byte == pytest.approx(989 / 3.35)
    assert facts.batch == 1
    assert facts.decode_ops_per_byte[1] == pytest.approx(1.0, rel=0.05)
    assert 0.5 < facts.bandwidth_share < 1
    assert facts.flop_share < 0.01
    assert 0.4 < facts.prefill_flop_share < 0.9
    gaps = list(facts.gaps.values())
    assert gaps == sorted(gaps, reverse=True)


@pytest.mark.parametrize(("gpu", "peak"), [("h100", 1979e12), ("a100", 312e12)])
def test_roof_is_that_of_the_dtype_in_which_the_gpu_multiplies(gpu, peak):
    on, model = deployment(gpu), LLAMA.with_formats(FORMATS["fp8"])
    facts = modelled_facts(model, on, context=1024)
    assert facts.where.startswith("llama-3.1-8b in fp8 on ")
    assert facts.balance_ops_per_byte == pytest.approx(peak / on.gpu.bandwidth_bytes_per_s)
    assert 0.3 < facts.prefill_flop_share < 1


def test_rejects_a_model_that_does_not_fit():
    with pytest.raises(UsageError, match=r"^--gpu: llama-3\.1-405b, .* does not fit H100"):
        modelled_facts(load_language_model("llama-3.1-405b"), deployment("h100"), context=1024)


def test_measured_facts_are_those_of_the_run():
    run = read_run(RUN)
    facts = measured_facts(run)
    assert facts.provenance == "measured"
    assert facts.context == min(gap.context for gap in run.gaps)
    assert facts.gaps == {gap.batch: gap.gap for gap in run.gaps if gap.context == facts.context}
    assert facts.balance_ops_per_byte == run.measured.balance_operations_per_byte
    layer = next(r for r in run.rows if r.case.id.startswith("decode/layer") and r.case.rows == 1)
    rate = layer.case.work().bytes_total / layer.time_s.median
    assert facts.bandwidth_share == rate / run.measured.bandwidth_bytes_per_s


@pytest.mark.parametrize("lost", ["gaps", "ceilings", "rows"])
def test_rejects_a_run_without_a_gap_ceiling_or_layer(lost):
    run = read_run(RUN)
    setattr(run, lost, [])
    with pytest.raises(UsageError, match=r"^run file: lacks a measured gap, ceiling or decoder layer"):
        measured_facts(run)


def test_a_gap_at_an_empty_cache_is_left_out():
    run = read_run(RUN)
    empty = [dataclasses.replace(gap, context=0) for gap in run.gaps]
    assert measured_facts(dataclasses.replace(run, gaps=[*run.gaps, *empty])).context == 1024
    with pytest.raises(UsageError, match="lacks a measured gap"):
        measured_facts(dataclasses.replace(run, gaps=empty))


def test_intervals_of_measured_gaps_and_a_roof_that_rows_exceed_are_told():
    run = read_run(RUN)
    run.gaps = [dataclasses.replace(gap, gap_interval=None) for gap in run.gaps]
    assert measured_facts(run).roof_doubt == ""
    assert "interval" not in check_claims(measured_facts(run), price_list())[6].condition
    run.gaps = [
        dataclasses.replace(gap, gap_interval=Interval(low=0.9 * gap.gap, high=1.1 * gap.gap))
        for gap in run.gaps
    ]
    run.rows[0] = dataclasses.replace(run.rows[0], samples_s=(1e-9,), rounds=())
    claims = check_claims(measured_facts(run), price_list())
    assert "95% intervals: batch 1: 29.3 to 35.8; batch 8: 3.92 to 4.8; batch 32: " in claims[6].condition
    for claim in claims[2:5]:
        told = " 1 row is above a ceiling, which was measured too low: the roof is not known."
        assert claim.condition.endswith(told)


def test_command_prints_each_claim_with_verdict_and_provenance():
    outcome = decodetax("claims", "--model", "qwen3-8b", "--gpu", "b200", "--context", "2000")
    assert outcome.code == 0, outcome.err
    assert "modelled for qwen3-8b in bf16 on B200" in outcome.out
    assert all(f"\n{number}. " in outcome.out for number in range(1, 10))
    assert "(measured)" not in outcome.out


def test_text_of_a_run_file_is_printed_without_control_characters(tmp_path):
    document = strict_json(RUN.read_text(encoding="utf-8"))
    document["environment"]["device"]["name"] = "\x1b[31mred\n"
    path = tmp_path / "run.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    heading = decodetax("claims", path).out.splitlines()[0]
    assert heading.endswith(" on [31mred:")


def test_json_holds_every_claim():
    document = strict_json(decodetax("claims", RUN, "--json").out)
    assert (document["schema_version"], document["provenance"]) == (1, "measured")
    assert [claim["number"] for claim in document["claims"]] == list(range(1, 10))
    for claim in document["claims"]:
        assert claim["verdict"] in {"holds", "holds in part", "does not hold"}
        assert {figure["provenance"] for figure in claim["figures"]} <= {"measured", "modelled", "published"}


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["nothing.json"], ["nothing.json"]),
        ([RUN, "--gpu", "h100"], ["--gpu", "RUN.json"]),
        ([RUN, "--context", "5"], ["--context", "RUN.json"]),
        (["--model", "llama-3.1-8"], ["--model", "llama-3.1-8b"]),
        (["--gpu", "h101"], ["--gpu", "H100"]),
        (["--gpu", ""], ["--gpu", "''"]),
        (["--model", ""], ["--model", "''"]),
        (["--context", "0"], ["--context", "'0'"]),
        (["--model", "llama-3.1-405b"], ["--gpu", "does not fit"]),
        ([ROOT / "README.md"], ["README.md"]),
    ],
    ids=str,
)
def test_rejects_wrong_input_in_one_line(arguments, fragments):
    assert_misuse(decodetax("claims", *arguments), *fragments)


def test_a_run_of_ranks_is_checked_with_the_whole_model_and_the_rates_of_a_rank():
    run = rank_run()
    facts = measured_facts(run)
    assert facts.where == "tiny on 2 ranks (TP 2) of Made-up CPU"
    assert facts.model.parameters == TINY.language_model().parameters
    # Every row takes 1 ms: a rank's layer at batch 1 moves its bytes in that time, of a roof of 1 TB/s.
    layer = next(row for row in run.rows if row.case.id.startswith("decode/layer"))
    assert facts.bandwidth_share == layer.case.work().bytes_total / 1e-3 / 1e12
    assert (facts.input_s_per_token, facts.output_s_per_token) == (3.2, {1: 25.0, 8: 25.0})
    assert set(facts.decode_ops_per_byte) == {1, 8}


def test_layers_of_replicas_stand_for_the_batch_of_all(tmp_path):
    run = rank_run()
    run.settings = {**run.settings, "parallelism": {"tensor_parallel": 2, "data_parallel": 8}}
    facts = measured_facts(run)
    assert set(facts.decode_ops_per_byte) == {1, 8}
    assert facts.decode_ops_per_byte[1] == facts.decode_ops_per_byte[8]
    path = tmp_path / "run.json"
    path.write_text(json.dumps(rank_run().to_json()), encoding="utf-8")
    outcome = decodetax("claims", path)
    assert (outcome.code, outcome.err) == (0, "")
    assert "measured for tiny on 2 ranks (TP 2) of Made-up CPU:" in outcome.out
    outcome = decodetax(
        "price", "--model", "gpt-4o-2024-08-06", "--input", "5", "--output", "7", "--run", path
    )
    assert "The measured gap of the run falls to this ratio at no measured batch." in outcome.out
