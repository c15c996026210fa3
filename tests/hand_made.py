"""A run made by hand, of round numbers, and the command line called in this process."""

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from unittest import mock

from decodetax.harness import cli
from decodetax.harness.core.cases import PrefillMatmul
from decodetax.harness.core.gap import Gap
from decodetax.harness.core.language_model import language_model
from decodetax.harness.core.model_config import model_config
from decodetax.harness.core.records import Ceiling, InterpreterCheck, Row, Run
from decodetax.harness.core.sweep import Sweep
from decodetax.harness.core.timed_model import TimedModel
from decodetax.harness.core.whole_model import WholeForward, WholeModel

# Projections: qkv 64 -> 128, o 64 -> 64, gate_up 64 -> 256, down 128 -> 64; lm_head 64 -> 256.
TINY = TimedModel(
    name="tiny",
    source="made by hand",
    hidden_size=64,
    layers=2,
    q_heads=4,
    kv_heads=2,
    head_dim=16,
    intermediate_size=128,
    vocab_size=256,
    tied_embeddings=True,
)

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": 256,
}


def decoder(**changes):
    """The language model of CONFIG with tied embeddings and changed fields; None takes a field away."""
    config = {**CONFIG, "tie_word_embeddings": True, **changes}
    fields = {name: value for name, value in config.items() if value is not None}
    return language_model(model_config(fields), name="tiny")


# 2 x 3 x 5 x 7 = 210 operations; (3 x 5 + 7 x 5) x 2 = 100 bytes read, 3 x 7 x 2 = 42 written.
SMALL_MATMUL = PrefillMatmul(phase="prefill", part="qkv", rows=3, in_features=5, out_features=7, dtype="bf16")


def sweep(**changes):
    return Sweep(
        **{
            "batches": (2,),
            "contexts": (16,),
            "prompt": None,
            "prefill_tokens": 32,
            "dtype": "bf16",
            **changes,
        }
    )


def ok_row(case, provider="torch", *, samples_s=(1.0,), **changes):
    return Row(case=case, provider=provider, status="ok", samples_s=samples_s, **changes)


def failed_row(case, provider="torch", **changes):
    return Row(
        **{"case": case, "provider": provider, "status": "failed", "reason": "wrong result: row 3", **changes}
    )


def ceilings(*, bandwidth_bytes_per_s=1e8, flop_per_s=1e9, provenance="measured", dtype="bf16"):
    return [
        Ceiling(
            kind="read_bandwidth",
            provenance=provenance,
            bandwidth_bytes_per_s=bandwidth_bytes_per_s,
            detail=f"read of a {provenance} buffer",
        ),
        Ceiling(
            kind="matmul",
            provenance=provenance,
            dtype=dtype,
            flop_per_s=flop_per_s,
            detail=f"{provenance} matmul",
        ),
    ]


def gap(**changes):
    """4 s per input token; 40 s per output token: 25% weights, 50% KV cache, 25% the rest."""
    return Gap(
        **{
            "batch": 1,
            "context": 16,
            "prompt": 16,
            "input_parts_s": {"projections": 2.0, "attention": 1.0, "rest": 0.5, "lm_head": 0.5},
            "output_parts_s": {"projections": 6.0, "attention": 20.0, "rest": 10.0, "lm_head": 4.0},
            "providers": {
                "prefill/qkv/m3-k5-n7/bf16": "torch",
                "decode/attention/b1-c16/bf16": "torch-matmul",
            },
            "prefill_layer_over_parts": 1.25,
            "decode_layer_over_parts": 1.5,
            **changes,
        }
    )


def forward(**changes):
    """A decode step of 3 of 4 layers: 20 s composed, 40 s measured, of which attention takes 30 s."""
    return WholeForward(
        **{
            "phase": "decode",
            "by": "decodetax",
            "sequences": 8,
            "tokens": 16,
            "layers": 3,
            "limited_by": "memory",
            "status": "ok",
            "samples_s": (39.0, 40.0, 42.0),
            "composed_parts_s": {"projections": 5.0, "attention": 10.0, "rest": 1.0, "lm_head": 4.0},
            "parts_s": {"projections": 5.5, "attention": 30.0, "rest": 1.0, "lm_head": 3.5},
            "one_layer_s": 30.0,
            "relative_error": 0.02,
            "tolerance": 0.1,
            "method": "cpu: the sections of each forward",
            **changes,
        }
    )


def whole_model(**changes):
    """A prefill and a step of 4 layers that agree with the composed rates, one that does not, and a peer."""
    close = {"layers": 4, "limited_by": None, "one_layer_s": None}
    forwards = (
        forward(phase="prefill", sequences=2, samples_s=(21.0,), **close),
        forward(sequences=1, samples_s=(20.0, 20.0, 20.0), **close),
        forward(),
        forward(by="transformers 5.1", samples_s=(80.0,), parts_s=None, one_layer_s=None),
    )
    return WholeModel(**{"layers": 4, "forwards": forwards, "elapsed_s": 99.0, **changes})


def check(**changes):
    return InterpreterCheck(
        **{
            "case": SMALL_MATMUL,
            "provider": "triton",
            "status": "ok",
            "reason": None,
            "relative_error": 1e-3,
            "tolerance": 8e-3,
            **changes,
        }
    )


CPU = {
    "kind": "cpu",
    "name": "Made-up CPU",
    "memory_bytes": 8 * 2**30,
    "last_level_cache_bytes": 32 * 2**20,
    "cores": 2,
    "threads": 2,
    "capability": "AVX2",
}
GPU = {
    "kind": "cuda",
    "name": "Made-up GPU",
    "memory_bytes": 80 * 2**30,
    "last_level_cache_bytes": 50 * 2**20,
    "compute_capability": "9.0",
    "sm_count": 132,
    "driver": "570.1",
    "sm_clock_hz": 1.98e9,
    "power_limit_w": 700.0,
}


def run_record(*, device=None, usd_per_hour=None, **changes):
    """An empty run; fill it by keyword."""
    return Run(
        environment={
            "device": device or CPU,
            "versions": {"python": "3.11", "cuda": None},
            "commit": None,
        },
        settings={
            "model": {"name": "tiny"},
            "parameters": 1_500_000_000,
            "dtype": "bf16",
            "prefill_tokens": 32,
            "usd_per_hour": usd_per_hour,
            "usd_per_hour_source": None if usd_per_hour is None else "on demand, a list of prices",
        },
        **changes,
    )


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


def decodetax(*arguments):
    """Call the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    code = None
    with (
        mock.patch.object(sys, "argv", ["decodetax", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
    return Outcome(code, out.getvalue(), err.getvalue())


def assert_misuse(outcome, *fragments):
    """One line on stderr that holds all fragments, exit code 2, nothing on stdout."""
    assert (outcome.code, outcome.out) == (2, "")
    assert len(outcome.err.splitlines()) == 1, outcome.err
    assert len(outcome.err) < 700
    for fragment in fragments:
        assert fragment in outcome.err


def write_config(folder, **changes):
    """A Hugging Face config.json in a folder; a field of None is left out."""
    path = folder / "config.json"
    fields = {name: value for name, value in {**CONFIG, **changes}.items() if value is not None}
    path.write_text(json.dumps(fields), encoding="utf-8")
    return path


def strict_json(text):
    """Parse strict JSON, without NaN and infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)
