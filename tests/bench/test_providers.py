"""Providers pass their gates, and gates reject planted faults."""

import dataclasses
import itertools
import math
import sys

import pytest
import torch
from decodetax.harness.bench import providers as module
from decodetax.harness.bench import torch_providers
from decodetax.harness.bench.decoder_layer import decoder_layer, oracle
from decodetax.harness.bench.providers import PROVIDERS, gate_of, user_providers
from decodetax.harness.core import gate as gate_module
from decodetax.harness.core.gate import COLUMN_STEP, SAMPLED_TOKENS
from decodetax.harness.core.inputs import draw, in_layout, poison
from fakes import FakeDevice
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from small_cases import decode_case, layer_case, matmul_case, prompt_case, source, tiny_model

MODELS = {
    "group 1": tiny_model(q_heads=3, kv_heads=3, head_dim=16),
    "group 3": tiny_model(q_heads=3, kv_heads=1, head_dim=16),
    "group 4": tiny_model(q_heads=8, kv_heads=2, head_dim=64, hidden_size=50),
}
CASES = [
    *(
        matmul_case(*sizes)
        for sizes in [
            *((1, 1, 1), (1, 65, 33), (3, 1000, 130), (64, 7, 300), (65, 128, 129)),
            *((1, 40, 64), (64, 33, 136)),
        ]
    ),
    *(
        decode_case(context=context, batch=batch, group=group, head_dim=head_dim)
        for context, batch in [(1, 1), (1, 3), (17, 2), (300, 1)]
        for group, head_dim in [(1, 16), (3, 64), (4, 64)]
    ),
    *(decode_case(context=context, batch=2, group=3, head_dim=24) for context in (192, 257, 320)),
    *(
        prompt_case(sequences=sequences, prompt=prompt, group=group, head_dim=head_dim)
        for sequences, prompt in [(1, 1), (2, 37), (1, 130)]
        for group, head_dim in [(1, 64), (3, 16), (4, 64)]
    ),
    *(layer_case(phase, model=model) for phase in ("prefill", "decode") for model in MODELS.values()),
    *(layer_case("prefill", sequences=2, tokens=tokens, rows=16) for tokens in (8, 21, 70)),
    layer_case("decode", sequences=1, tokens=1),
    layer_case("decode", sequences=1, tokens=300),
]
each_dtype = pytest.mark.parametrize("dtype", ["fp32", "bf16"])


def cpu_providers(case):
    device = FakeDevice()
    return [p for p in PROVIDERS[case.operation] if p.refuses(case, device) is None]


def gated(case):
    """Inputs of a case, and its gate."""
    inputs = draw(case, source())
    return inputs, gate_of(case, inputs)


@each_dtype
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_torch_provider_passes_the_gate(case, dtype):
    case = structs.replace(case, dtype=dtype)
    drawn = draw(case, source())
    providers = cpu_providers(case)
    assert "torch" in {provider.name for provider in providers}
    for provider in providers:
        inputs = in_layout(drawn, provider.layout)
        poison(inputs)
        verdict = gate_of(case, inputs).judge(provider.run(inputs))
        assert verdict.passed, f"{provider.name}: {verdict.reason}"


@each_dtype
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 33, 130), (65, 7, 16)])
def test_a_batch_of_products_passes_the_gate_and_its_last_one_counts(sizes, dtype):
    case = structs.replace(matmul_case(*sizes), dtype=dtype, batch=3)
    inputs, gate = gated(case)
    providers = cpu_providers(case)
    assert {provider.name for provider in providers} <= {"torch", "torch-weight-first"}
    for provider in providers:
        out = provider.run(inputs)
        assert gate.judge(out).passed
        assert out.shape == (3, case.rows, case.out_features)
        assert not gate.judge(torch.cat((out[:2], out[:1]))).passed


@pytest.mark.parametrize("case", CASES[:7], ids=lambda case: case.id)
def test_output_of_each_provider_has_the_shape_of_the_case(case):
    inputs = draw(case, source())
    for provider in cpu_providers(case):
        assert provider.run(inputs).shape == (case.rows, case.out_features)


def decode_provider(name):
    [provider] = [p for p in PROVIDERS["decode_attention"] if p.name == name]
    return provider


LAID_OUT = ["torch-v-transposed", "torch-k-pages", "torch-k-pages-v-rows"]


@pytest.mark.parametrize("name", LAID_OUT)
def test_gate_rejects_a_provider_on_a_cache_of_another_layout(name):
    case, provider = decode_case(context=128, head_dim=64, dtype="bf16"), decode_provider(name)
    right = in_layout(draw(case, source()), provider.layout)
    assert gate_of(case, right).judge(provider.run(right)).passed
    of_others = gate_of(case, draw(case, source()))
    assert not of_others.judge(provider.run(right)).passed


@pytest.mark.parametrize("name", LAID_OUT)
def test_each_call_of_a_provider_reads_the_keys_and_values_anew(name):
    case, provider = decode_case(context=64, head_dim=16), decode_provider(name)
    inputs = in_layout(draw(case, source()), provider.layout)
    call = provider.bind(inputs) if provider.bind else lambda: provider.run(inputs)
    call()
    for tensor in (inputs.q, inputs.k_cache, inputs.v_cache):
        tensor.neg_()
        assert gate_of(case, inputs).judge(call()).passed


@pytest.mark.parametrize("name", ["torch-matmul", *LAID_OUT])
@pytest.mark.parametrize(
    ("contexts", "kind", "reason"),
    [
        ((64, 64), "cpu", None),
        ((7, 64), "cpu", "takes contexts of one length"),
        ((64,), "cuda", "a formulation for CPUs"),
    ],
)
def test_cpu_attention_takes_contexts_of_one_length_on_a_cpu(name, contexts, kind, reason):
    case = structs.replace(decode_case(), contexts=contexts)
    assert decode_provider(name).refuses(case, FakeDevice(kind=kind)) == reason


@pytest.mark.parametrize(
    ("context", "runs"), [(1, True), (63, True), (256, True), (257, False), (288, False), (320, True)]
)
@pytest.mark.parametrize("name", ["torch-k-pages", "torch-k-pages-v-rows"])
def test_key_pages_need_contexts_of_whole_pages(name, context, runs):
    refusal = decode_provider(name).refuses(decode_case(context=context), FakeDevice())
    assert refusal == (None if runs else "a formulation for contexts of a multiple of 64 tokens")


def test_key_pages_need_the_embedding_kernels_of_fbgemm(monkeypatch):
    monkeypatch.setattr(torch_providers, "embeds_with_fbgemm", lambda: False)
    refusal = decode_provider("torch-k-pages").refuses(decode_case(), FakeDevice())
    assert refusal == "PyTorch is built without FBGEMM"


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ("7.5", False),
        ("8.0", True),
        ("8.9", True),
        ("9.0", True),
        ("10.0", True),
        ("10.3", True),
        ("12.0", True),
    ],
)
@pytest.mark.parametrize("operation", ["prefill_matmul", "decode_attention"])
def test_compiled_kernels_need_compute_capability_8(operation, capability, runs, monkeypatch):
    monkeypatch.setattr(module, "interpreting", lambda: False)
    monkeypatch.setattr(module, "launcher_problem", lambda: None)
    device = FakeDevice(kind="cuda")
    device.compute_capability = capability
    [triton] = [p for p in PROVIDERS[operation] if p.name == "triton"]
    refusal = triton.refuses(matmul_case(), device)
    assert refusal is None if runs else "8.0 or newer" in refusal


@pytest.mark.parametrize(
    ("kind", "interpreting", "reason"),
    [("cpu", False, "need a CUDA GPU"), ("cpu", True, "need a CUDA GPU"), ("cuda", True, "TRITON_INTERPRET")],
)
def test_triton_is_never_timed_uncompiled(kind, interpreting, reason, monkeypatch):
    monkeypatch.setattr(module, "interpreting", lambda: interpreting)
    device = FakeDevice(kind=kind)
    device.compute_capability = "9.0"
    for operation in ("prefill_matmul", "decode_attention"):
        [triton] = [p for p in PROVIDERS[operation] if p.name == "triton"]
        assert reason in triton.refuses(matmul_case(), device)


@pytest.mark.parametrize("operation", ["prefill_matmul", "decode_attention"])
def test_compiled_kernels_need_a_c_compiler(operation, monkeypatch):
    monkeypatch.setattr(module, "interpreting", lambda: False)
    monkeypatch.setattr(module, "launcher_problem", lambda: "Triton cannot compile its C launcher: no gcc")
    device = FakeDevice(kind="cuda")
    device.compute_capability = "10.0"
    reasons = {p.refuses(matmul_case(), device) for p in PROVIDERS[operation] if p.name.startswith("triton")}
    assert reasons == {"Triton cannot compile its C launcher: no gcc"}


@pytest.mark.parametrize("name", ["torch-weight-first", "torch-batched"])
@pytest.mark.parametrize(
    ("rows", "kind", "runs"), [(1, "cpu", True), (64, "cpu", True), (65, "cpu", False), (1, "cuda", False)]
)
def test_transposed_and_batched_matmul_run_few_rows_on_a_cpu(name, rows, kind, runs):
    [provider] = [p for p in PROVIDERS["prefill_matmul"] if p.name == name]
    assert (provider.refuses(matmul_case(rows, 32, 64), FakeDevice(kind=kind)) is None) == runs


def test_batched_matmul_rejects_indivisible_weights():
    [provider] = [p for p in PROVIDERS["prefill_matmul"] if p.name == "torch-batched"]
    assert (
        provider.refuses(matmul_case(1, 32, 60), FakeDevice()) == "a formulation for a multiple of 8 columns"
    )


@pytest.mark.parametrize(
    ("capability", "in_features", "dtype", "descriptors", "warp_specialized"),
    [
        ("8.0", 4096, "bf16", "9.0 or newer", "9.0 or newer"),
        ("8.9", 4096, "bf16", "9.0 or newer", "9.0 or newer"),
        ("9.0", 4096, "bf16", None, "capability 10 alone"),
        ("10.0", 4096, "bf16", None, None),
        ("10.3", 4096, "bf16", None, None),
        ("12.0", 4096, "bf16", None, "capability 10 alone"),
        ("10.0", 4100, "bf16", "multiple of 16 bytes, not 4100", "multiple of 16 bytes, not 4100"),
        ("10.0", 4100, "fp32", None, None),
    ],
)
def test_variants_run_if_gpu_and_rows_allow(
    capability, in_features, dtype, descriptors, warp_specialized, monkeypatch
):
    monkeypatch.setattr(module, "interpreting", lambda: False)
    monkeypatch.setattr(module, "launcher_problem", lambda: None)
    device = FakeDevice(kind="cuda")
    device.compute_capability = capability
    case = matmul_case(in_features=in_features, dtype=dtype)
    reasons = {p.variant: p.refuses(case, device) for p in PROVIDERS["prefill_matmul"] if p.variant}
    assert reasons.pop("pointers") is None
    for reason, expected in zip(reasons.values(), (descriptors, warp_specialized), strict=True):
        assert reason is None if expected is None else expected in reason
    assert list(reasons) == ["descriptors", "warp_specialized"]


@pytest.mark.parametrize("variant", ["pointers", "descriptors", "warp_specialized"])
def test_variant_runs_the_kernel_that_it_names(variant, monkeypatch):
    seen = []
    monkeypatch.setattr(module.kernels, "prefill_matmul", lambda *_args, tiling, **_: seen.append(tiling))
    [provider] = [p for p in PROVIDERS["prefill_matmul"] if p.variant == variant]
    provider.run(draw(matmul_case(rows=200, in_features=64, out_features=300, dtype="bf16"), source()))
    assert provider.name == f"triton-{variant.replace('_', '-')}"
    assert [tiling.variant for tiling in seen] == [variant]


def test_rejects_inputs_of_another_case():
    with pytest.raises(TypeError, match="MatmulInputs are not those of a DecodeAttention"):
        gate_of(decode_case(), draw(matmul_case(), source()))


# The user's own functions


@pytest.fixture
def _user_module(tmp_path, monkeypatch):
    """A module of plain functions in the current folder."""
    plain = "def product(x, weight):\n    return x @ weight.t()\n\nplain = product\n"
    attention = "def attention(q, k_cache, v_cache, context_lens):\n    return q\n"
    (tmp_path / "user_providers_under_test.py").write_text(plain + attention, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("user_providers_under_test", None)


@pytest.mark.usefixtures("_user_module")
def test_user_functions_are_grouped_by_operation_each_once():
    names = [f"user_providers_under_test:{name}" for name in ("attention", "plain", "plain", "product")]
    found = {operation: [p.name for p in group] for operation, group in user_providers(names).items()}
    assert found == {"decode_attention": names[:1], "prefill_matmul": [names[1], names[3]]}


@pytest.mark.usefixtures("_user_module")
@pytest.mark.parametrize(("interpreting", "uses_triton"), [*itertools.product([True, False], repeat=2)])
def test_user_function_with_triton_kernels_is_never_timed_interpreted(monkeypatch, interpreting, uses_triton):
    monkeypatch.setattr(module, "interpreting", lambda: interpreting)
    monkeypatch.setattr(module.UserFunction, "uses_triton", uses_triton)
    [[provider]] = user_providers(["user_providers_under_test:plain"]).values()
    refused = provider.refuses(matmul_case(), FakeDevice())
    assert refused == (
        "the interpreter is not timed; see the interpreter checks" if interpreting and uses_triton else None
    )


# Sampling


def columns_seen(size):
    """The columns that the gate of a product of this width looks at."""
    _, gate = gated(matmul_case(1, 1, size))
    return gate.select(torch.arange(size)[None]).flatten().tolist()


def tokens_seen(case):
    """The tokens that the gate of a prompt or a layer looks at."""
    _, gate = gated(case)
    if case.operation == "prefill_attention":
        return gate.select(torch.arange(case.prompt)[None, None, :, None]).flatten().tolist()
    return gate.select(torch.arange(case.query_tokens)[None, :, None]).flatten().tolist()


@given(size=st.integers(1, 40_000) | st.sampled_from([50_257, 128_256, 151_936]))
def test_sampled_columns_ascend_with_both_ends_and_one_of_each_tile(size):
    seen = columns_seen(size)
    assert seen == sorted(set(seen))
    assert seen[0] == 0
    assert seen[-16:] == list(range(max(0, size - 16), size))
    assert {column // COLUMN_STEP for column in seen} == set(range(-(-size // COLUMN_STEP)))
    assert len(seen) <= max(64, 2 * size / COLUMN_STEP + 18)
    # A fault with a regular stride cannot fall between them.
    assert len({column % COLUMN_STEP for column in seen[:-16]}) > 2 or size < 16 * COLUMN_STEP


@pytest.mark.parametrize("tokens", [1, 2, 33, 64, 65, 200, 999])
@pytest.mark.parametrize(
    "case_of",
    [
        pytest.param(lambda tokens: prompt_case(sequences=1, prompt=tokens), id="attention"),
        pytest.param(lambda tokens: layer_case("prefill", sequences=1, tokens=tokens), id="layer"),
    ],
)
def test_sampled_tokens_ascend_with_both_ends_and_no_long_gap(case_of, tokens):
    seen = tokens_seen(case_of(tokens))
    assert seen == sorted(set(seen))
    assert seen[0] == 0
    assert seen[-16:] == list(range(max(0, tokens - 16), tokens))
    gaps = [b - a for a, b in itertools.pairwise(seen)]
    assert max(gaps, default=1) <= max(1, 2 * -(-tokens // SAMPLED_TOKENS))


def test_decode_layer_is_checked_at_every_sequence():
    _, gate = gated(layer_case("decode", sequences=3))
    assert gate.expected.shape == (3, 1, 32)


# Planted faults


@pytest.fixture(scope="module")
def product():
    """A product of 300 rows and 700 columns in bf16: its gate and the right output."""
    inputs, gate = gated(matmul_case(300, 64, 700, dtype="bf16"))
    return gate, PROVIDERS["prefill_matmul"][0].run(inputs)


@settings(max_examples=50)
@given(row=st.integers(0, 299), factor=st.sampled_from([0.0, 0.95, 1.05, -1.0, math.nan]))
def test_gate_rejects_one_wrong_row_of_a_matmul(product, row, factor):
    gate, right = product
    wrong = right.clone()
    wrong[row] *= factor
    verdict = gate.judge(wrong)
    assert not verdict.passed
    assert verdict.worst_row == row


@given(tile=st.integers(0, 5), row=st.integers(0, 299))
@settings(max_examples=30)
def test_gate_rejects_one_wrong_tile_of_columns(product, tile, row):
    gate, right = product
    wrong = right.clone()
    wrong[row, 128 * tile : 128 * (tile + 1)] = 0
    assert not gate.judge(wrong).passed


@given(start=st.integers(0, 700 - 255))
@settings(max_examples=30)
def test_gate_rejects_a_wrong_block_anywhere(product, start):
    gate, right = product
    wrong = right.clone()
    wrong[:, start : start + 255] = 0
    assert not gate.judge(wrong).passed


@pytest.mark.parametrize("columns", [slice(0, 1), slice(-1, None), slice(-16, None)], ids=str)
def test_gate_rejects_wrong_edge_columns(product, columns):
    gate, right = product
    wrong = right.clone()
    wrong[:, columns] += 1
    assert not gate.judge(wrong).passed


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda out: out * 1.02, id="scale"),
        pytest.param(lambda out: out.roll(1, 0), id="rows shifted"),
        pytest.param(lambda out: out.roll(1, 1), id="columns shifted"),
        pytest.param(torch.zeros_like, id="nothing computed"),
        pytest.param(lambda out: torch.full_like(out, math.nan), id="poison left"),
    ],
)
def test_gate_rejects_wrong_matmuls(wrong, dtype):
    inputs, gate = gated(matmul_case(30, 500, 300, dtype=dtype))
    right = PROVIDERS["prefill_matmul"][0].run(inputs)
    assert gate.judge(right).passed
    assert not gate.judge(wrong(right)).passed


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("skipped", [slice(0, 48), slice(-48, None), slice(100, 101)], ids=str)
def test_gate_rejects_a_skipped_part_of_the_reduction(dtype, skipped):
    inputs, gate = gated(matmul_case(30, 192, 300, dtype=dtype))
    inputs.x[:, skipped] = 0
    assert not gate.judge(PROVIDERS["prefill_matmul"][0].run(inputs)).passed


def run_attention(inputs, **changes):
    return torch_providers.decode_attention(dataclasses.replace(inputs, **changes))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda i: run_attention(i, q=i.q * 1.25), id="scale of the scores"),
        pytest.param(lambda i: run_attention(i, q=i.q * 0), id="scores unused"),
        pytest.param(lambda i: run_attention(i) * 1.05, id="scale of the output"),
        pytest.param(lambda i: run_attention(i, q=i.q.roll(1, 1)), id="heads of another group"),
        pytest.param(lambda i: run_attention(i, k_cache=i.k_cache.roll(1, 0)), id="another sequence's keys"),
        pytest.param(
            lambda i: run_attention(i, k_cache=i.k_cache[:, :-64], v_cache=i.v_cache[:, :-64]),
            id="last split skipped",
        ),
        pytest.param(
            lambda i: run_attention(i, k_cache=i.k_cache[:, 64:], v_cache=i.v_cache[:, 64:]),
            id="first split skipped",
        ),
        pytest.param(
            lambda i: run_attention(i, k_cache=i.k_cache[:, :-1], v_cache=i.v_cache[:, :-1]),
            id="last token skipped",
        ),
    ],
)
def test_gate_rejects_wrong_decode_attention(wrong, dtype):
    inputs, gate = gated(decode_case(context=512, batch=2, head_dim=64, dtype=dtype))
    assert gate.judge(run_attention(inputs)).passed
    assert not gate.judge(wrong(inputs)).passed


LARGE = decode_case(context=65, batch=9, group=2, head_dim=64)
"""18 pairs of a sequence and one of 2 KV heads; large where the limit is 4,096 elements."""


def test_pairs_checked_in_a_large_decode_attention_reach_every_sequence_and_head(monkeypatch):
    monkeypatch.setattr(gate_module, "ALL_PAIRS_ELEMENTS", 2**12)
    for batch, kv_heads in itertools.product((1, 2, 5, 8, 33), (1, 3, 8)):
        case = structs.replace(decode_case(context=64, batch=batch), kv_heads=kv_heads, q_heads=kv_heads)
        sequences, heads = gate_module.sampled_pairs(case, torch.device("cpu"))
        pairs = list(zip(sequences.tolist(), heads.tolist(), strict=True))
        assert pairs == sorted(set(pairs))
        assert {*pairs} >= {*itertools.product((0, batch - 1), (0, kv_heads - 1))}
        assert ({*sequences.tolist()}, {*heads.tolist()}) == ({*range(batch)}, {*range(kv_heads)})
        assert len(pairs) <= max(batch, kv_heads) + 4
        checked = {sequence * kv_heads + head for sequence, head in pairs}
        runs = [set(range(at, at + 2 * kv_heads - 1)) for at in range(batch * kv_heads - 2 * kv_heads + 2)]
        assert all(run & checked for run in runs)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda out: out[3].mul_(1.05), id="sequence"),
        pytest.param(lambda out: out[:, 1].mul_(1.05), id="query head"),
        pytest.param(lambda out: out[:, 2:].mul_(1.05), id="KV head"),
        pytest.param(lambda out: out.view(18, -1)[4:7].mul_(1.05), id="neighbouring pairs"),
        pytest.param(lambda out: out[-1, -1].mul_(1.05), id="last query head"),
        pytest.param(lambda out: out[0, 0].fill_(math.nan), id="first query head"),
    ],
)
def test_gate_rejects_wrong_parts_of_a_large_decode_attention(wrong, monkeypatch):
    monkeypatch.setattr(gate_module, "ALL_PAIRS_ELEMENTS", 2**12)
    inputs, gate = gated(LARGE)
    out = run_attention(inputs)
    assert gate.judge(out).passed
    assert len(gate.expected) < len(gate_of(LARGE, inputs, all_columns=True).expected) == 18
    wrong(out)
    assert not gate.judge(out).passed


def test_gate_rejects_one_wrong_head():
    inputs, gate = gated(decode_case())
    for row in range(24):
        wrong = run_attention(inputs)
        wrong.view(24, -1)[row] *= 1.01
        verdict = gate.judge(wrong)
        assert (verdict.passed, verdict.worst_row) == (False, row)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"is_causal": False}, id="not causal"),
        pytest.param({"is_causal": True, "scale": 0.2}, id="scale"),
    ],
)
def test_gate_rejects_wrong_prefill_attention(wrong, dtype):
    inputs, gate = gated(prompt_case(prompt=100, dtype=dtype))
    attend = torch.nn.functional.scaled_dot_product_attention
    assert gate.judge(attend(inputs.q, inputs.k, inputs.v, is_causal=True, enable_gqa=True)).passed
    assert not gate.judge(attend(inputs.q, inputs.k, inputs.v, enable_gqa=True, **wrong)).passed


@pytest.mark.parametrize("at", [0, 7, 20, -1])
def test_gate_rejects_one_wrong_token_of_prefill_attention(at):
    case = prompt_case(prompt=100)
    inputs, gate = gated(case)
    wrong = torch_providers.prefill_attention(inputs)
    wrong[1, 3, tokens_seen(case)[at]] *= 1.01
    assert not gate.judge(wrong).passed


# The decoder layer


def layer_by_hand(inputs):
    """The layer in Python's own arithmetic, one number at a time."""
    case, model = inputs.case, inputs.case.model
    lists = {name: weight.tolist() for name, weight in inputs.weights.items()}
    size, old = model.head_dim, case.tokens - case.query_tokens
    norms = inputs.norms.tolist()

    def times(rows, x):
        return [math.fsum(w * e for w, e in zip(row, x, strict=True)) for row in rows]

    def normed(x, weight):
        root = math.sqrt(math.fsum(e * e for e in x) / len(x) + model.rms_norm_eps)
        return [e / root * w for e, w in zip(x, weight, strict=True)]

    def turned(head, position):
        out = [0.0] * size
        for i in range(size // 2):
            angle = position / 10000 ** (2 * i / size)
            a, b = head[i], head[i + size // 2]
            out[i] = a * math.cos(angle) - b * math.sin(angle)
            out[i + size // 2] = b * math.cos(angle) + a * math.sin(angle)
        return out

    outs = []
    for sequence, rows in enumerate(inputs.hidden.tolist()):
        keys = [inputs.k_cache[sequence, g, :old].tolist() for g in range(model.kv_heads)]
        values = [inputs.v_cache[sequence, g, :old].tolist() for g in range(model.kv_heads)]
        for at, x in enumerate(rows):
            flat = times(lists["qkv"], normed(x, norms[0]))
            heads = [flat[i : i + size] for i in range(0, len(flat), size)]
            for g in range(model.kv_heads):
                keys[g].append(turned(heads[model.q_heads + g], old + at))
                values[g].append(heads[model.q_heads + model.kv_heads + g])
            mixed = []
            for h in range(model.q_heads):
                g, q = h // model.group, turned(heads[h], old + at)
                weights = [math.exp(s / math.sqrt(size)) for s in times(keys[g], q)]
                for i in range(size):
                    total = math.fsum(w * v[i] for w, v in zip(weights, values[g], strict=True))
                    mixed.append(total / math.fsum(weights))
            residual = [a + b for a, b in zip(x, times(lists["o"], mixed), strict=True)]
            both = times(lists["gate_up"], normed(residual, norms[1]))
            gates, ups = both[: model.intermediate_size], both[model.intermediate_size :]
            inner = [g / (1 + math.exp(-g)) * u for g, u in zip(gates, ups, strict=True)]
            outs.append([a + b for a, b in zip(residual, times(lists["down"], inner), strict=True)])
    return torch.tensor(outs, dtype=torch.float64).view(case.sequences, case.query_tokens, -1)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_layer_and_its_oracle_agree_with_scalar_python(model, phase):
    inputs = draw(layer_case(phase, model=model, sequences=2, tokens=5), source())
    by_hand = layer_by_hand(inputs)
    tokens = torch.arange(inputs.case.query_tokens)
    torch.testing.assert_close(oracle(inputs, tokens), by_hand, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decoder_layer(inputs).double(), by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_oracle_is_the_same_after_the_layer_ran(phase):
    inputs = draw(layer_case(phase), source())
    tokens = torch.tensor([0])
    before = oracle(inputs, tokens)
    first, second = decoder_layer(inputs), decoder_layer(inputs)
    assert torch.equal(first, second)
    assert torch.equal(oracle(inputs, tokens), before)


@pytest.mark.parametrize("rows", [1, 7, 16, 42, 1000])
def test_rows_of_a_forward_do_not_change_the_layer(rows):
    whole, split = (
        decoder_layer(draw(layer_case("prefill", sequences=2, tokens=21, rows=r), source()))
        for r in (42, rows)
    )
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-5)


def _without_rotary(inputs):
    turnless = {"cos": torch.ones_like(inputs.cos), "sin": torch.zeros_like(inputs.sin)}
    return decoder_layer(dataclasses.replace(inputs, **turnless))


def _turned_backwards(inputs):
    return decoder_layer(dataclasses.replace(inputs, sin=-inputs.sin))


def _without_residual(inputs):
    return decoder_layer(inputs) - inputs.hidden


def _norm_weights_unused(inputs):
    return decoder_layer(dataclasses.replace(inputs, norms=torch.ones_like(inputs.norms)))


def _without_part(part):
    def run(inputs):
        weights = {**inputs.weights, part: torch.zeros_like(inputs.weights[part])}
        return decoder_layer(dataclasses.replace(inputs, weights=weights))

    run.__name__ = f"_without_{part}"
    return run


LAYER_FAULTS = [
    _without_rotary,
    _turned_backwards,
    _without_residual,
    _norm_weights_unused,
    _without_part("o"),
    _without_part("down"),
]


@pytest.mark.parametrize("fault", LAYER_FAULTS, ids=lambda fault: fault.__name__.strip("_"))
@pytest.mark.parametrize(
    ("phase", "tokens", "dtype"),
    [
        *itertools.product(["prefill", "decode"], [21], ["fp32", "bf16"]),
        ("decode", 1024, "fp32"),
        ("decode", 1024, "bf16"),
        ("prefill", 200, "bf16"),
    ],
)
def test_gate_rejects_wrong_decoder_layers(phase, tokens, dtype, fault):
    inputs, gate = gated(layer_case(phase, tokens=tokens, model=MODELS["group 4"], dtype=dtype))
    assert gate.judge(decoder_layer(inputs)).passed
    assert not gate.judge(fault(inputs)).passed
