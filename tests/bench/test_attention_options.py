"""Windows, softcaps, sinks and latent caches: every PyTorch provider passes the gate, and faults do not."""

import dataclasses

import pytest
import torch
from decodetax.harness.bench import providers
from decodetax.harness.bench.providers import PROVIDERS, gate_of
from decodetax.harness.bench.torch_providers import decode_attention, prefill_attention
from decodetax.harness.bench.unfused_attention import QUERY_TOKENS
from decodetax.harness.core.cases import DecodeAttention, PrefillAttention
from decodetax.harness.core.inputs import draw, in_layout, poison
from decodetax.kernels.gpu_limits import H100_LIMITS
from fakes import FakeDevice
from small_cases import source

OPTIONS = {
    "window": {"window": 13},
    "window beyond all tokens": {"window": 5000},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": True},
    "values": {"v_head_dim": 8},
    "all": {"window": 7, "softcap": 2.0, "sinks": True, "v_head_dim": 40},
}
LATENT = {"latent": True, "kv_heads": 1, "q_heads": 6, "v_head_dim": 16}
HEADS = {"q_heads": 6, "kv_heads": 2, "head_dim": 24}


def decode(context=37, dtype="fp32", **options):
    return DecodeAttention(**{"contexts": (context,) * 3, **HEADS, "dtype": dtype, **options})


def prefill(prompt=37, dtype="fp32", **options):
    return PrefillAttention(**{"sequences": 2, "prompt": prompt, **HEADS, "dtype": dtype, **options})


CASES = [
    *(decode(context, **options) for options in (*OPTIONS.values(), LATENT) for context in (1, 13, 37)),
    *(
        prefill(prompt, **options)
        for options in OPTIONS.values()
        for prompt in (1, 13, QUERY_TOKENS - 1, QUERY_TOKENS, QUERY_TOKENS + 1)
    ),
]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_torch_provider_passes_the_gate(case, dtype):
    case = type(case)(**{name: getattr(case, name) for name in case.__struct_fields__} | {"dtype": dtype})
    drawn = draw(case, source())
    providers = [p for p in PROVIDERS[case.operation] if p.refuses(case, FakeDevice()) is None]
    assert "torch" in {provider.name for provider in providers}
    for provider in providers:
        inputs = in_layout(drawn, provider.layout)
        poison(inputs)
        verdict = gate_of(case, inputs).judge(provider.run(inputs))
        assert verdict.passed, f"{provider.name}: {verdict.reason}"


@pytest.mark.parametrize("name", ["torch-k-pages", "torch-k-pages-v-rows"])
@pytest.mark.parametrize("options", [*OPTIONS.values(), LATENT], ids=str)
def test_provider_without_an_option_says_so(name, options):
    [provider] = [p for p in PROVIDERS["decode_attention"] if p.name == name]
    reason = provider.refuses(decode(**options), FakeDevice(kind="cuda"))
    assert reason.startswith("does not take ")


def test_latent_is_one_memory_of_keys_and_values():
    inputs = draw(decode(**LATENT), source())
    assert inputs.v_cache.data_ptr() == inputs.k_cache.data_ptr()
    assert inputs.v_cache.stride() == inputs.k_cache.stride()
    assert inputs.v_cache.shape == (3, 37, 1, 16)
    assert inputs.out.shape == (3, 6, 16)


@pytest.mark.parametrize("layout", ["v-transposed", "k-pages"])
def test_latent_has_no_other_layout(layout):
    with pytest.raises(ValueError, match="v_cache: must not be a view of k_cache"):
        in_layout(draw(decode(**LATENT), source()), layout)


FAULTS = {
    "no window": ({"window": 13}, {"window": None}),
    "window of one more": ({"window": 13}, {"window": 14}),
    "no softcap": ({"softcap": 1.0}, {"softcap": None}),
    "no sinks": ({"sinks": True}, {"sinks": None}),
}


@pytest.mark.parametrize("case_of", [decode, prefill])
@pytest.mark.parametrize("fault", FAULTS)
def test_gate_rejects_attention_without_its_option(case_of, fault):
    options, changes = FAULTS[fault]
    case = case_of(300, "bf16", **options)
    inputs = draw(case, source())
    gate = gate_of(case, inputs)
    run = decode_attention if case_of is decode else prefill_attention
    assert gate.judge(run(inputs)).passed
    assert not gate.judge(run(dataclasses.replace(inputs, **changes))).passed


def test_gate_rejects_sinks_of_other_heads():
    case = decode(300, "bf16", sinks=True)
    inputs = draw(case, source())
    gate = gate_of(case, inputs)
    moved = dataclasses.replace(inputs, sinks=inputs.sinks.roll(3))
    assert not gate.judge(decode_attention(moved)).passed


def test_gate_rejects_values_from_another_part_of_the_latent():
    case = decode(300, "bf16", **LATENT)
    inputs = draw(case, source())
    moved = dataclasses.replace(inputs, v_cache=inputs.k_cache[..., 8:])
    gate = gate_of(case, inputs)
    assert gate.judge(decode_attention(inputs)).passed
    assert not gate.judge(decode_attention(moved)).passed


def test_tokens_before_the_window_are_not_read():
    inputs = draw(decode(37, window=13), source())
    expected = decode_attention(inputs).clone()
    inputs.k_cache[:, : 37 - 13] = torch.nan
    inputs.v_cache[:, : 37 - 13] = torch.nan
    assert torch.equal(decode_attention(inputs), expected)


def test_triton_says_that_no_tile_fits_the_gpu(monkeypatch):
    small = dataclasses.replace(H100_LIMITS, shared_bytes_per_block=99 * 1024, shared_bytes_per_sm=100 * 1024)
    monkeypatch.setattr(providers, "_needs_compiled_triton", lambda *_: None)
    monkeypatch.setattr(providers, "gpu_limits", lambda _device: small)
    [triton] = [p for p in PROVIDERS["decode_attention"] if p.name == "triton"]
    device = FakeDevice(kind="cuda")
    wide = decode(head_dim=512, q_heads=16)
    assert "head_dim" in triton.refuses(wide, device)
    assert triton.refuses(decode(head_dim=512, q_heads=16, dtype="bf16"), device) is None
