"""Runs of models whose layers are timed part by part: every kind of layer, from the run to its texts."""

import json
import os
import statistics
import subprocess
import sys

import pytest
from decodetax.harness.bench import ceilings, rounds, session
from decodetax.harness.bench.comparison import compare_runs
from decodetax.harness.bench.report_command import run_text
from decodetax.harness.bench.run_settings import Settings, check_memory, settings_of
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.gap import PARTS
from decodetax.harness.core.run_file import run_of
from decodetax.harness.core.timed_model import load_timed_model
from decodetax.harness.cost.claims import measured_facts
from fakes import FakeDevice
from odd_config import CONFIG

EXPERTS = {"num_experts_per_tok": 3, "num_local_experts": 7}
KINDS = {
    "gemma-2": {"model_type": "gemma2", "sliding_window": 3},
    "gemma-3": {"model_type": "gemma3_text", "sliding_window": 3, "sliding_window_pattern": 2},
    "gpt-oss": {
        "model_type": "gpt_oss",
        "sliding_window": 3,
        "quantization_config": {"quant_method": "mxfp4"},
        **EXPERTS,
    },
    "mixtral": {"model_type": "mixtral", **EXPERTS},
    "deepseek-v3": {
        "model_type": "deepseek_v3",
        "num_key_value_heads": 6,
        "first_k_dense_replace": 1,
        "n_routed_experts": 7,
        "num_experts_per_tok": 3,
        "n_shared_experts": 1,
        "moe_intermediate_size": 40,
        "q_lora_rank": 56,
        "kv_lora_rank": 48,
        "qk_nope_head_dim": 24,
        "qk_rope_head_dim": 16,
        "v_head_dim": 24,
    },
}
KINDS_OF_PARTS = {
    "gemma-2": ["projections", "attention", "window_attention", "lm_head"],
    "gemma-3": ["projections", "attention", "window_attention", "lm_head"],
    "gpt-oss": ["projections", "experts", "attention", "window_attention", "lm_head"],
    "mixtral": ["projections", "experts", "attention", "lm_head"],
    "deepseek-v3": ["projections", "experts", "latent_attention", "lm_head"],
}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Ceilings of small matrices, few rounds, and no interpreter."""
    monkeypatch.setattr(ceilings, "SQUARE_SIZES", {"cpu": (8,), "cuda": (8,)})
    monkeypatch.setattr(session, "check_in_interpreter", lambda *_args, **_options: iter(()))
    for module in (session, rounds):
        monkeypatch.setattr(module, "ROUNDS", 3)


def settings(folder, kind, **changes):
    config = {**CONFIG, "vocab_size": 101, **KINDS[kind]}
    path = folder / f"{kind}.json"
    path.write_text(json.dumps(config))
    options = {
        "model": load_timed_model(str(path)),
        "batches": (1, 2),
        "contexts": (5,),
        "prompt": None,
        "prefill_tokens": 8,
        "dtype": "fp32",
        "usd_per_hour": None,
        "total_limit_s": 1e6,
        "whole_model": "measure",
        **changes,
    }
    return Settings(**options)


def run(asked):
    device = FakeDevice(free_bytes=2**23)
    result = session.begin(asked, device)
    session.measure(result, asked, device, lambda _done, _what: None)
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_run_has_a_gap_with_parts_by_kind_and_says_what_it_lacks(tmp_path, kind):
    asked = settings(tmp_path, kind)
    result = run(asked)
    assert not result.failures
    assert {row.status for row in result.rows} == {"ok", "unsupported"}
    assert not [row for row in result.rows if row.case.operation == "decoder_layer"]
    assert len(result.gaps) == 2
    for gap in result.gaps:
        assert list(gap.output_parts_s) == list(gap.input_parts_s) == KINDS_OF_PARTS[kind]
        assert set(gap.output_parts_s) < set(PARTS)
        assert (gap.prefill_layer_over_parts, gap.decode_layer_over_parts) == (None, None)
        assert gap.gap_interval is not None
    assert result.whole_model.forwards == ()
    assert asked.model.in_parts in result.whole_model.reason
    text = run_text(result, wide=False)
    assert "Where an output token's time goes" in text
    assert "no complete layer" in " ".join(text.split())
    assert ("(published in mxfp4)" in text) == (kind == "gpt-oss")
    written = json.loads(json.dumps(result.to_json(), allow_nan=False))
    again = run_of(written)
    assert json.loads(json.dumps(again.to_json())) == written
    assert settings_of(again).model == asked.model
    assert measured_facts(again).decode_ops_per_byte.keys() == {1, 2}
    assert compare_runs(result, again).worse is False


def test_gap_of_a_model_with_experts_recomputes_from_rows(tmp_path):
    """From the shapes in the JSON, without the product's code."""
    document = json.loads(json.dumps(run(settings(tmp_path, "gpt-oss")).to_json()))

    def seconds(phase, part, **shape):
        return min(
            statistics.median(row["samples_s"])
            for row in document["rows"]
            if row["status"] == "ok"
            and row["case"].startswith(f"{phase}/{part}/")
            and all(row["shape"].get(name) == value for name, value in shape.items())
        )

    def token_s(phase, tokens, rows, head_rows, head_tokens, attended, **attention):
        hit = 7 * (1 - (4 / 7) ** tokens)
        of_tokens = sum(seconds(phase, part, rows=tokens) for part in ("qkv", "o", "router"))
        experts = sum(seconds(phase, part, rows=rows) for part in ("expert_gate_up", "expert_down"))
        # Of 3 layers, the first and the last have a window.
        windows = seconds(phase, "attention", window=3, **attention)
        full = seconds(phase, "attention", window=None, **attention)
        return (
            3 * (of_tokens + hit * experts) / tokens
            + (2 * windows + full) / attended
            + seconds(phase, "lm_head", rows=head_rows) / head_tokens
        )

    [gap] = [g for g in document["gaps"] if (g["batch"], g["context"]) == (2, 5)]
    # 8 tokens hit 6.92 experts with 8 x 3 / 6.92 = 3.47 rows, 2 tokens 4.71 with 1.27.
    input_s = token_s("prefill", 8, 3, 1, 5, 5, prompt=5)
    output_s = token_s("decode", 2, 1, 2, 2, 2, contexts=[5, 5])
    assert gap["input_s_per_token"] == pytest.approx(input_s)
    assert gap["output_s_per_token"] == pytest.approx(output_s)


def test_continued_run_measures_only_what_it_lacks(tmp_path):
    asked = settings(tmp_path, "deepseek-v3")
    result = run(asked)
    complete = {(row.case, row.provider): row.samples_s for row in result.rows}
    result.rows = result.rows[: len(result.rows) // 2]
    again = run_of(json.loads(json.dumps(result.to_json())))
    session.measure(again, settings_of(again), FakeDevice(free_bytes=2**23), lambda _done, _what: None)
    assert {(row.case, row.provider) for row in again.rows} == set(complete)
    assert len(again.gaps) == 2


@pytest.mark.parametrize("kind", ["gemma-2", "deepseek-v3"])
def test_case_that_does_not_fit_in_memory_is_refused_by_its_option(tmp_path, kind):
    asked = settings(tmp_path, kind, contexts=(3, 10**6))
    with pytest.raises(UsageError, match="--context: 1000000 needs"):
        check_memory(asked, FakeDevice(free_bytes=2**23))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_quick_run_from_the_command_to_its_report(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **KINDS[kind]}))
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}

    def decodetax(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "decodetax.harness", *arguments],
            cwd=tmp_path,
            env={**environment, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    sizes = ("--batch", "3", "--context", "16,40", "--prefill-tokens", "32")
    done = decodetax("run", "--quick", "--device", "cpu", "--model", "config.json", *sizes, "-o", "out.json")
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert {check["status"] for check in document["interpreter_checks"]} == {"ok"}
    assert decodetax("report", "out.json", "--html", "out.html", "--csv", "csv").returncode == 0
    if document["late"] is None:  # beside other processes the time limit may leave no gap
        assert {tuple(gap["output_parts_s"]) for gap in document["gaps"]} == {tuple(KINDS_OF_PARTS[kind])}
        assert decodetax("claims", "out.json").returncode == 0
