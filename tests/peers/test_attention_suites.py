"""Cases of peers' attention suites agree with a plain reference: some of each suite, and some unlisted."""

import json
from pathlib import Path

import pytest
import torch

from . import attention_case, attention_suites
from .attention_case import E4M3, E5M2, Attention, check

FP16, FP32 = torch.float16, torch.float32
FILE = Path(__file__).parent / "attention_cases.jsonl"
ROWS = [json.loads(line) for line in FILE.read_text().splitlines()]
BY_DEFAULT = 20
"""Leading rows of the file, each of another suite: the fastest."""


def named(row):
    return f"{row['peer']}-{'-'.join(map(str, row['params'].values()))}"


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=named(row), marks=[] if position < BY_DEFAULT else pytest.mark.slow)
        for position, row in enumerate(ROWS)
    ],
)
def test_case_of_a_peer_agrees(row):
    assert attention_suites.run(row) == ""


def small(**options):
    return Attention(
        **{"queries": (1, 1), "contexts": (20, 3), "heads": (4, 2), "head_dim": 32, "page_size": 16} | options
    )


UNLISTED = {
    "FlashAttention 3, fp8 with descales of sequences and heads": small(
        dtype=E4M3, q_scale="scalar", k_scale="sequences", v_scale="sequences", out_dtype=torch.bfloat16
    ),
    "JAX ragged paged attention, mixed batch, window and softcap": small(
        queries=(9, 1), contexts=(20, 7), left=4, softcap=30.0
    ),
    "lmdeploy, int8 cache with scales per token and head": small(
        dtype=FP16, cache_dtype=torch.int8, k_scale="tokens", v_scale="tokens"
    ),
    "vLLM, fp8 queries over scales per token and head, fp8 output": small(
        dtype=E4M3, k_scale="tokens", v_scale="tokens", out_dtype=E4M3, out_scale="scalar"
    ),
    "TensorRT-LLM XQA, fp8 output, sinks": small(
        dtype=FP16, cache_dtype=E4M3, k_scale="one", v_scale="one", out_dtype=E4M3, out_scale=0.1, sinks=FP32
    ),
    "FlashInfer MLA, base-2 log-sum-exp": small(
        heads=(4, 1), head_dim=72, v_head_dim=64, latent=True, lse_base=2
    ),
    "cuDNN, left and right bounds of a band": small(
        queries=(3, 3), contexts=(20, 9), causal=False, left=5, right=1
    ),
    "Llama 4, chunks of the context": small(queries=(4, 2), contexts=(20, 9), chunk=8),
    "bidirectional prefix, e5m2 cache": small(
        queries=(3, 3), causal=False, cache_dtype=E5M2, k_scale="heads", v_scale="heads"
    ),
    "StreamingLLM, tokens left out at the start": small(queries=(2, 2), contexts=(20, 9), leftpad=4),
}


@pytest.mark.parametrize("case", UNLISTED.values(), ids=UNLISTED.keys())
def test_form_that_no_list_has_agrees(case):
    assert check(case) == ""


def test_fault_of_a_window_one_too_wide_is_found(monkeypatch):
    def direct(case, inputs, **named):
        wide = Attention(
            **{name: getattr(case, name) for name in case.__dataclass_fields__} | {"left": case.left + 1}
        )
        return called(wide, inputs, **named)

    called = attention_case._direct
    monkeypatch.setattr(attention_case, "_direct", direct)
    assert "at most" in check(small(left=2))
