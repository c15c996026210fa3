"""The cases of a sweep, and their ids."""

import msgspec
import pytest
from decodetax.harness.core.cases import (
    Case,
    DecodeAttention,
    PrefillAttention,
)
from decodetax.harness.core.sweep import cases_of
from decodetax.harness.core.timed_model import load_timed_model
from hand_made import TINY, sweep
from hypothesis import given
from hypothesis import strategies as st

HEADS = "q4-kv2-d16"
PREFILL_MATMULS = [
    "prefill/qkv/m32-k64-n128/bf16",
    "prefill/o/m32-k64-n64/bf16",
    "prefill/gate_up/m32-k64-n256/bf16",
    "prefill/down/m32-k128-n64/bf16",
]


def ids(model=TINY, **changes):
    return [case.id for case in cases_of(model, sweep(**changes))]


def decode_matmuls(batch):
    return [
        f"decode/qkv/m{batch}-k64-n128/bf16",
        f"decode/o/m{batch}-k64-n64/bf16",
        f"decode/gate_up/m{batch}-k64-n256/bf16",
        f"decode/down/m{batch}-k128-n64/bf16",
    ]


def test_sweep_of_two_batches_and_two_contexts_in_full():
    assert ids(batches=(1, 3), contexts=(16, 40)) == [
        *PREFILL_MATMULS,
        f"prefill/attention/s2-p16-{HEADS}/bf16",
        f"prefill/attention/s1-p40-{HEADS}/bf16",
        "prefill/layer/tiny/s2-t16-m32/bf16",
        *decode_matmuls(1),
        f"decode/attention/b1-c16-{HEADS}/bf16",
        f"decode/attention/b1-c40-{HEADS}/bf16",
        "decode/layer/tiny/s1-t16-m1/bf16",
        *decode_matmuls(3),
        f"decode/attention/b3-c16-{HEADS}/bf16",
        f"decode/attention/b3-c40-{HEADS}/bf16",
        "decode/layer/tiny/s3-t16-m3/bf16",
        "prefill/lm_head/m1-k64-n256/bf16",
        "decode/lm_head/m1-k64-n256/bf16",
        "decode/lm_head/m3-k64-n256/bf16",
    ]


@pytest.mark.parametrize(
    ("prompt", "attention", "layer"),
    [
        pytest.param(None, ["s2-p16", "s1-p40"], "s2-t16-m32", id="as the context"),
        pytest.param(8, ["s4-p8"], "s4-t8-m32", id="shorter than both contexts"),
        pytest.param(24, ["s1-p24"], "s1-t24-m32", id="not a divisor of the forward"),
        pytest.param(32, ["s1-p32"], "s1-t32-m32", id="fills the forward"),
        pytest.param(100, ["s1-p100"], "s1-t100-m32", id="longer than a forward"),
        pytest.param(40, ["s1-p40"], "s1-t40-m32", id="as one of the contexts"),
    ],
)
def test_prompt_decides_prefill_attention_and_layer(prompt, attention, layer):
    found = ids(contexts=(16, 40), prompt=prompt)
    assert [i for i in found if i.startswith("prefill/attention")] == [
        f"prefill/attention/{size}-{HEADS}/bf16" for size in attention
    ]
    assert [i for i in found if i.startswith("prefill/layer")] == [f"prefill/layer/tiny/{layer}/bf16"]


def test_prompt_does_not_change_decode_or_projections():
    def rest(prompt):
        found = ids(contexts=(16, 40), prompt=prompt)
        return [i for i in found if not i.startswith(("prefill/attention", "prefill/layer"))]

    assert rest(24) == rest(None)


def test_prompt_has_one_row_of_logits():
    heads = {i for tokens in (1, 32, 4096) for i in ids(prefill_tokens=tokens) if "prefill/lm_head" in i}
    assert heads == {"prefill/lm_head/m1-k64-n256/bf16"}


def test_repeated_batches_and_contexts_give_each_case_once():
    assert ids(batches=(2, 2), contexts=(16, 16)) == ids(batches=(2,), contexts=(16,))


def test_layers_have_the_shortest_context_and_prompt_in_any_order():
    layers = [i for i in ids(contexts=(40, 16)) if "/layer/" in i]
    assert layers == ["prefill/layer/tiny/s2-t16-m32/bf16", "decode/layer/tiny/s2-t16-m2/bf16"]


SIZES = st.lists(st.integers(1, 5000), min_size=1, max_size=3).map(tuple)


@given(
    model=st.sampled_from(["llama-3.2-1b", "llama-2-7b", "qwen3-8b"]),
    batches=SIZES,
    contexts=SIZES,
    prompt=st.none() | st.integers(1, 5000),
    prefill_tokens=st.integers(1, 5000),
    dtype=st.sampled_from(["bf16", "fp16", "fp32"]),
)
def test_ids_are_unique_and_contain_phase_part_and_dtype(model, dtype, **sizes):
    cases = cases_of(load_timed_model(model), sweep(dtype=dtype, **sizes))
    assert len({case.id for case in cases}) == len(set(cases)) == len(cases)
    for case in cases:
        assert case.id.startswith(f"{case.phase}/{case.part}/")
        assert case.id.endswith(f"/{dtype}")
        assert case.dtype == dtype
        assert case.id.split() == [case.id]


def test_id_lists_ragged_contexts():
    def case(*contexts):
        return DecodeAttention(contexts=contexts, q_heads=4, kv_heads=2, head_dim=16, dtype="bf16")

    assert case(0, 1, 70).id == f"decode/attention/b3-c0+1+70-{HEADS}/bf16"
    assert case(7, 7).id == f"decode/attention/b2-c7-{HEADS}/bf16"
    assert case(1, 70, 0).id != case(0, 1, 70).id


SMALL = {"q_heads": 4, "kv_heads": 2, "head_dim": 16, "dtype": "bf16"}


@pytest.mark.parametrize(
    ("options", "heads"),
    [
        ({"v_head_dim": 8}, "q4-kv2-d16v8"),
        ({"v_head_dim": 8, "latent": True}, "q4-kv2-d16v8-latent"),
        ({"window": 4}, "q4-kv2-d16-w4"),
        ({"softcap": 50.0}, "q4-kv2-d16-softcap50"),
        ({"softcap": 0.5, "sinks": True, "window": 9}, "q4-kv2-d16-w9-softcap0.5-sinks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_id_names_the_options_of_an_attention(options, heads):
    assert DecodeAttention(contexts=(7,), **SMALL, **options).id == f"decode/attention/b1-c7-{heads}/bf16"
    if "latent" not in options:
        prefill = PrefillAttention(sequences=2, prompt=7, **SMALL, **options)
        assert prefill.id == f"prefill/attention/s2-p7-{heads}/bf16"


def test_attention_without_options_is_written_as_before_them_and_read_back():
    case = DecodeAttention(contexts=(7,), **SMALL)
    written = msgspec.json.decode(msgspec.json.encode(case))
    assert written == {"operation": "decode_attention", "contexts": [7], **SMALL}
    assert list(written)[1:] == ["contexts", *SMALL]
    assert msgspec.convert(written, Case) == case
    capped = DecodeAttention(contexts=(7,), **SMALL, softcap=50.0, window=3)
    assert msgspec.convert(msgspec.to_builtins(capped), Case) == capped


def test_values_of_a_latent_are_a_part_of_it():
    with pytest.raises(ValueError, match="v_head_dim: 17 of a latent of 16 elements"):
        DecodeAttention(contexts=(7,), **SMALL, latent=True, v_head_dim=17)
