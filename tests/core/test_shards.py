"""One rank's share of a model, and what ranks exchange."""

import json

import pytest
from decodetax.harness.core.cases import DecodeAttention, PrefillMatmul
from decodetax.harness.core.collectives import Collective, CollectiveRow, collective
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.parallelism import ONE_GPU, Parallelism, reached_ranks
from decodetax.harness.core.records import Run
from decodetax.harness.core.run_file import run_of
from decodetax.harness.core.shards import shard_of
from decodetax.harness.core.sweep import Sweep, cases_of, collectives_of, expert_rows
from decodetax.harness.core.timed_model import load_timed_model
from msgspec import ValidationError, structs

LLAMA = load_timed_model("llama-3.2-1b")
DEEPSEEK = load_timed_model("deepseek-v3")
GPT_OSS = load_timed_model("gpt-oss-20b")
TP2 = Parallelism(tensor_parallel=2)


def sweep(parallelism, *, batches=(1, 8)):
    return Sweep(
        batches=batches,
        contexts=(256,),
        prompt=None,
        prefill_tokens=256,
        dtype="bf16",
        parallelism=parallelism,
    )


def uses(model, parallelism, *, batch=8):
    return sweep(parallelism).output_token(model, batch, 256).uses


def test_one_rank_has_the_whole_model_and_exchanges_nothing():
    assert shard_of(LLAMA, ONE_GPU) is LLAMA
    assert collectives_of(LLAMA, sweep(ONE_GPU)) == ()
    assert {use.part for use in uses(LLAMA, ONE_GPU)} == {"projections", "attention", "lm_head"}


def test_ranks_split_heads_columns_of_qkv_and_gate_up_rows_of_o_and_down_and_the_vocabulary():
    features = {
        case.part: (case.in_features, case.out_features)
        for case in cases_of(LLAMA, sweep(TP2))
        if isinstance(case, PrefillMatmul) and case.phase == "decode"
    }
    assert features == {
        "qkv": (2048, (16 + 2 * 4) * 64),
        "o": (16 * 64, 2048),
        "gate_up": (2048, 2 * 4096),
        "down": (4096, 2048),
        "lm_head": (2048, 128256 // 2),
    }
    (attention,) = {use.case for use in uses(LLAMA, TP2) if isinstance(use.case, DecodeAttention)}
    assert (attention.q_heads, attention.kv_heads) == (16, 4)


@pytest.mark.parametrize("model", [LLAMA, DEEPSEEK, GPT_OSS], ids=lambda model: model.name)
def test_weights_that_the_ranks_read_in_a_prefill_are_those_of_the_whole_model(model):
    def read(parallelism):
        return sum(
            use.times * use.case.batch * use.case.in_features * use.case.out_features
            for use in sweep(parallelism).input_token(model, 256).uses
            if isinstance(use.case, PrefillMatmul) and use.case.part not in REPLICATED
        )

    split = Parallelism(
        tensor_parallel=4, expert_parallel=2 if model.in_parts and "experts" in model.in_parts else 1
    )
    assert 4 * read(split) == pytest.approx(read(ONE_GPU), rel=1e-3)


REPLICATED = ("router", "q_a", "kv_a")


def test_a_rank_has_a_part_of_the_experts_that_a_step_hits():
    hit, rows = expert_rows(GPT_OSS.groups[0].experts, 8)
    (expert,) = (use for use in uses(GPT_OSS, Parallelism(data_parallel=2, expert_parallel=2))
                 if getattr(use.case, "part", "") == "expert_down")  # fmt: skip
    assert expert.times == pytest.approx(GPT_OSS.layers * hit / 2)
    assert (expert.case.rows, expert.case.out_features) == (rows, 2880)
    (expert,) = (use for use in uses(GPT_OSS, TP2) if getattr(use.case, "part", "") == "expert_down")
    assert (expert.times, expert.case.in_features) == (pytest.approx(GPT_OSS.layers * hit), 1440)


def test_a_step_adds_up_twice_a_layer_and_once_for_the_embedding_and_gathers_the_logits():
    exchanged = {use.case.kind: use for use in uses(LLAMA, TP2) if isinstance(use.case, Collective)}
    assert exchanged["all_reduce"].times == 2 * 16 + 1
    assert exchanged["all_reduce"].case.message_bytes == 8 * 2048 * 2
    assert exchanged["all_gather"].times == 1
    assert exchanged["all_gather"].case.message_bytes == 8 * 128256 * 2
    assert {use.part for use in exchanged.values()} == {"communication"}


def test_an_input_token_has_the_logits_of_its_prompts_last_token_alone():
    (gathered,) = (
        use
        for use in sweep(TP2).input_token(LLAMA, 128).uses
        if getattr(use.case, "kind", "") == "all_gather"
    )
    assert (gathered.case.elements, gathered.tokens) == (128256, 128)


def test_with_replicas_of_the_attention_rows_travel_to_their_experts_and_back():
    split = Parallelism(tensor_parallel=2, data_parallel=4, expert_parallel=8)
    exchanged = {use.case.kind: use for use in uses(DEEPSEEK, split) if isinstance(use.case, Collective)}
    dense, routed = 3, 58
    assert exchanged["all_to_all"].times == 2 * routed
    assert exchanged["all_to_all"].case.ranks == 8
    assert exchanged["all_reduce"].times == dense + routed + dense + 1
    assert exchanged["all_reduce"].case.ranks == 2
    assert {use.tokens for use in exchanged.values()} == {8}


def test_a_batch_smaller_than_the_replicas_leaves_some_without_work():
    token = sweep(Parallelism(data_parallel=4, expert_parallel=4)).output_token(GPT_OSS, 2, 256)
    assert {case.batch for case in token.attentions} == {1}
    assert {use.tokens for use in token.uses} == {2}


def test_a_layer_of_replicas_counts_once_for_all_their_tokens():
    split = Parallelism(data_parallel=2)
    assert sweep(split).input_token(LLAMA, 256).layer_share == 0.5
    assert sweep(split).output_token(LLAMA, 8, 256).layer_share == 0.5
    assert sweep(split).output_token(LLAMA, 1, 256).layer_share == 1.0


def test_every_kind_of_collective_is_compared_at_each_message_of_a_forward():
    found = collectives_of(LLAMA, sweep(TP2))
    kinds = {(case.phase, case.elements): set() for case in found if case.kind == "reduce_scatter"}
    assert [*kinds] == [("prefill", 256 * 2048), ("decode", 2048), ("decode", 8 * 2048)]
    for case in found:
        if (case.phase, case.elements) in kinds:
            kinds[case.phase, case.elements].add(case.kind)
    assert all(len(each) == 4 for each in kinds.values())


def test_more_ranks_than_heads_are_refused_by_name():
    with pytest.raises(UsageError, match=r"--tensor-parallel: 64 .* 32 heads"):
        shard_of(LLAMA, Parallelism(tensor_parallel=64))


def test_a_token_reaches_each_of_few_ranks_and_one_for_each_expert_of_many():
    assert reached_ranks(1, 8) == 1
    assert reached_ranks(2, 8) == pytest.approx(2, abs=0.01)
    assert reached_ranks(10_000, 8) == pytest.approx(8, rel=1e-3)


def test_elements_are_padded_to_divide_among_the_ranks():
    case = collective("all_gather", "decode", 10, 4, "fp32")
    assert (case.elements, case.message_bytes) == (12, 48)
    with pytest.raises(ValueError, match="elements: 10 do not divide among 4 ranks"):
        structs.replace(case, elements=10).__post_init__()


@pytest.mark.parametrize(
    ("kind", "factor"),
    [("all_reduce", 1.5), ("all_gather", 0.75), ("reduce_scatter", 0.75), ("all_to_all", 0.75)],
)
def test_bus_bandwidth_is_what_a_link_carries_in_one_direction(kind, factor):
    case = collective(kind, "link", 1024, 4, "bf16")
    row = CollectiveRow(case=case, provider="gloo", status="ok", samples_s=(1e-3,), rounds=(0,), skew_s=0.0)
    assert row.algorithm_bytes_per_s == pytest.approx(2048e3)
    assert row.bus_bytes_per_s == pytest.approx(2048e3 * factor)


def _run(**changed):
    case = collective("all_reduce", "decode", 2048, 2, "bf16")
    row = CollectiveRow(
        case=case, provider="gloo", status="ok", samples_s=(1e-3, 2e-3), rounds=(0, 1), skew_s=1e-5
    )
    environment = {
        "device": {"kind": "cpu", "name": "x", "memory_bytes": 1e9, "last_level_cache_bytes": 1e6, "cores": 2,
                   "capability": "AVX2"},
        "versions": {}, "commit": None,
    }  # fmt: skip
    settings = {"model": {"name": "m"}, "parameters": 1, "dtype": "bf16", "prefill_tokens": 8,
                "usd_per_hour": None, "usd_per_hour_source": None,
                "parallelism": {"tensor_parallel": 2}}  # fmt: skip
    return Run(environment=environment, settings=settings, collectives=[row], **changed)


def test_a_run_of_several_ranks_is_read_as_it_was_written():
    run = _run()
    read = run_of(json.loads(json.dumps(run.to_json())))
    assert json.dumps(read.to_json()) == json.dumps(run.to_json())
    assert [row.case for row in read.collectives] == [row.case for row in run.collectives]
    assert read.parallelism == TP2


def test_a_run_of_one_rank_has_no_field_of_several():
    run = _run()
    run.collectives = []
    assert not {"collectives", "one_rank_gaps"} & {*run.to_json()}


def test_a_collective_that_occurs_twice_in_a_file_is_refused():
    document = _run().to_json()
    document["collectives"] *= 2
    with pytest.raises(ValidationError, match="duplicate"):
        run_of(document)


def test_rounds_of_a_collective_are_joined_and_the_larger_skew_is_kept():
    (row,) = _run().collectives
    later = CollectiveRow(
        case=row.case, provider="gloo", status="ok", samples_s=(3e-3,), rounds=(2,), skew_s=3e-5
    )
    joined = row.with_round(later)
    assert (joined.samples_s, joined.rounds, joined.skew_s) == ((1e-3, 2e-3, 3e-3), (0, 1, 2), 3e-5)
