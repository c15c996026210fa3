"""Cases of peers' matmul suites agree with a plain reference: some of each suite, and some listed nowhere."""

import json
from pathlib import Path

import pytest
import torch

from . import matmul_suites
from .matmul_case import Matmul, check

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
FILE = Path(__file__).parent / "matmul_cases.jsonl"
ROWS = [json.loads(line) for line in FILE.read_text().splitlines()]
BY_DEFAULT = 24
"""Leading rows of the file, one of each suite and form: the fastest."""


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
    assert matmul_suites.run(row) == ""


UNLISTED = {
    "torch _scaled_mm, rowwise, e5m2 x e4m3": Matmul(
        mnk=(17, 48, 64),
        x_dtype=E5M2,
        weight_dtype=E4M3,
        x_scale="M1",
        weight_scale="1N",
        bias="N",
        out_dtype=BF16,
    ),
    "torch _addmm_activation, gelu": Matmul(mnk=(17, 33, 40), x_dtype=FP16, activation="gelu_tanh", bias="N"),
    "cuBLASLt, relu and bias, beta C": Matmul(mnk=(9, 40, 32), residual="MN", beta=0.5, out_dtype=FP32),
    "TransformerEngine, weight gradient": Matmul(
        mnk=(33, 40, 48), x_dtype=E5M2, weight_dtype=E4M3, residual="MN", alias=True, out_dtype=FP32
    ),
    "TensorRT-LLM, int8 weights with fp16 scales": Matmul(
        mnk=(5, 64, 96), x_dtype=FP16, weight_dtype=torch.int8, weight_scale="row", scale_dtype=FP16
    ),
    "bitsandbytes, LLM.int8": Matmul(
        mnk=(9, 40, 64), x_dtype=torch.int8, x_scale="row", weight_scale="row", out_dtype=FP16
    ),
    "Gemma, gate and up apart": Matmul(mnk=(9, 40, 64), activation="gelu_tanh", gate="pair"),
    "Nemotron, squared relu": Matmul(mnk=(9, 40, 64), activation="relu_squared"),
    "QuACK, interleaved reglu": Matmul(mnk=(9, 40, 64), activation="relu", gate="interleaved", x_dtype=FP16),
    "xFormers, swiglu with bias": Matmul(
        mnk=(9, 40, 64), lead=(2,), activation="silu", gate="halves", bias="N", x_dtype=FP16
    ),
    "LoRA, product added to a row": Matmul(mnk=(9, 40, 8), residual="MN", alpha=2.0, alias=True),
    "per-token bias": Matmul(mnk=(9, 40, 64), residual="M1"),
}


@pytest.mark.parametrize("case", UNLISTED.values(), ids=UNLISTED.keys())
def test_form_that_no_list_has_agrees(case):
    assert check(case) == ""


def test_fault_of_a_swapped_gate_is_found():
    case = Matmul(mnk=(9, 40, 64), activation="silu", gate="halves")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(matmul_suites.check.__globals__["GATED"], "silu", "geglu")
        assert "times its bound" in check(case)
