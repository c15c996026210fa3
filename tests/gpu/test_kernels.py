"""Compiled kernels against their oracles, at the sizes of language models."""

import dataclasses
import importlib
import itertools
import math
import sys
import warnings

import pytest
import torch
import triton
from decodetax.harness.core.gate import row_errors, tolerance
from decodetax.kernels import (
    decode_attention,
    decode_attention_workspace_bytes,
    interpreting,
    merge_states,
    prefill_matmul,
    reference,
)

pytestmark = pytest.mark.gpu
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
NARROW_DTYPES = [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8]
NAN = float("nan")
INT8_UNIT = 1 / 40
DEVICE = "cuda"


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def normal(*shape, dtype):
    return torch.randn(shape, device=DEVICE).to(dtype)


def assert_close(actual, expected, *, reduction, roundings):
    bound = tolerance(actual.dtype, reduction=reduction, roundings=roundings)
    assert float(row_errors(actual, expected).max()) <= bound


def test_kernels_are_compiled_not_interpreted():
    assert not interpreting()
    for module, names in {
        "decode_attention": ("_split_kv_kernel", "_combine_kernel"),
        "merge_states": ("_merge_states_kernel",),
        "prefill_matmul": ("_matmul_kernel", "_tma_kernel", "_split_k_reduce_kernel"),
    }.items():
        for name in names:
            kernel = getattr(sys.modules[f"decodetax.kernels.{module}"], name)
            assert isinstance(kernel, triton.JITFunction)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "out_features", "in_features"),
    [(1, 4096, 4096), (33, 6144, 4096), (64, 4096, 14336), (4096, 4096, 4096), (333, 4097, 4099)],
)
def test_prefill_matmul_agrees_with_the_oracle(rows, out_features, in_features, dtype):
    x, weight = normal(rows, in_features, dtype=dtype), normal(out_features, in_features, dtype=dtype)
    bias = normal(out_features, dtype=dtype)
    out = torch.full((rows, out_features), NAN, dtype=dtype, device=DEVICE)
    prefill_matmul(x, weight, bias=bias, out=out)
    expected = reference.prefill_matmul(x, weight, bias=bias)
    assert_close(out, expected, reduction=in_features, roundings=1)


FORMS = {
    "two_weights": {"activation": "geglu_tanh"},
    "interleaved_clamped": {
        "activation": "swiglu",
        "gate_up": "interleaved",
        "swiglu_alpha": 1.702,
        "swiglu_beta": 1.0,
        "swiglu_limit": 7.0,
    },
    "residual": {"activation": "relu_squared", "residual_scale": 0.5},
    "fp8_weight": {},
}


@pytest.mark.parametrize("rows", [5, 1024])
@pytest.mark.parametrize("form", FORMS)
def test_prefill_matmul_forms_agree_with_the_oracle(form, rows):
    x, weight = normal(rows, 1024, dtype=torch.bfloat16), normal(2048, 1024, dtype=torch.bfloat16)
    options = FORMS[form] | {"bias": normal(1, 2048, dtype=torch.bfloat16)}
    if form == "two_weights":
        weight = tuple(each.clone() for each in weight.chunk(2))
        options["bias"] = tuple(each.contiguous() for each in options["bias"].chunk(2, dim=-1))
    if form == "residual":
        options["residual"] = normal(rows, 2048, dtype=torch.float32)
    if form == "fp8_weight":
        weight = weight.to(torch.float8_e4m3fn)
        options["weight_scale"] = normal(1, 2048, dtype=torch.bfloat16).abs()
    result = prefill_matmul(x, weight, **options)
    assert_close(result, reference.prefill_matmul(x, weight, **options), reduction=4 * 1024, roundings=1)


def decode_inputs(
    lengths,
    *,
    q_heads=32,
    kv_heads=8,
    head_dim=128,
    v_head_dim=None,
    capacity=8192,
    dtype=torch.bfloat16,
    cache_dtype=None,
    page_size=0,
    query_tokens=None,
    window=None,
):
    """Arguments of `decode_attention`: unused cache is NaN, and unused page ids are out of range."""
    batch = len(lengths)
    tokens = () if query_tokens is None else (query_tokens,)
    ranges = [
        (0 if window is None else max(length - window - (query_tokens or 1) + 1, 0), length)
        for length in lengths
    ]
    inputs = {
        "q": normal(batch, *tokens, q_heads, head_dim, dtype=dtype),
        "context_lens": torch.tensor(lengths, dtype=torch.int32, device=DEVICE),
    }
    for name, width in {"k_cache": head_dim, "v_cache": v_head_dim or head_dim}.items():
        cache = normal(batch, capacity, kv_heads, width, dtype=torch.float32)
        for sequence, (begin, end) in enumerate(ranges):
            cache[sequence, :begin] = NAN
            cache[sequence, end:] = NAN
        if cache_dtype == torch.int8:
            cache = (cache / INT8_UNIT).round().clamp(-128, 127).nan_to_num(-128)
        inputs[name] = cache.to(cache_dtype or dtype)
    if page_size:
        pages = batch * capacity // page_size
        order = torch.randperm(pages, device=DEVICE)
        table = order.argsort().view(batch, -1).to(torch.int32)
        for sequence, (begin, end) in enumerate(ranges):
            table[sequence, : begin // page_size] = 2**31 - 1
            table[sequence, -(-end // page_size) :] = 2**31 - 1
        inputs["block_table"] = table
        for name in ("k_cache", "v_cache"):
            paged = inputs[name].view(torch.uint8).view(pages, page_size, kv_heads, -1)
            inputs[name] = paged[order].view(inputs[name].dtype)
    return inputs


def scales(cache_dtype):
    """Scales that give values of an 8-bit cache a size of 1."""
    return dict.fromkeys(("k_scale", "v_scale"), INT8_UNIT if cache_dtype == torch.int8 else 1.0)


def assert_decodes(inputs, **options):
    """Output and log-sum-exp equal those of the oracle within the tolerance."""
    width = inputs["v_cache"].shape[-1]
    out = torch.full((*inputs["q"].shape[:-1], width), NAN, dtype=inputs["q"].dtype, device=DEVICE)
    output, lse = decode_attention(**inputs, out=out, return_lse=True, **options)
    assert output is out
    expected, expected_lse = reference.decode_attention(**inputs, **options)
    assert_decoded(output, lse, expected, expected_lse, inputs)
    return output


def assert_decoded(output, lse, expected, expected_lse, inputs, *, roundings=2):
    capacity = inputs["k_cache"].shape[1] * (inputs["block_table"].shape[1] if "block_table" in inputs else 1)
    # The error of a score of size s, a sum of head_dim products, is sqrt(head_dim) s roundoffs, and is the
    # relative error of its exponential. `assert_close` takes the square root of the products as roundoffs.
    largest = float(torch.where(expected_lse.isfinite(), expected_lse.abs(), 0.0).max())
    head_dim = inputs["q"].shape[-1]
    reduction = (math.sqrt(capacity) + math.sqrt(head_dim) * largest) ** 2
    assert_close(output, expected, reduction=reduction, roundings=roundings)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)


SHAPES = {
    "one_long": {"lengths": (8192,)},
    "unequal": {"lengths": (0, 1, 63, 64, 65, 4095, 8192)},
    "many": {"lengths": (1000,) * 64, "q_heads": 28, "kv_heads": 4, "capacity": 1024},
    "large_group": {"lengths": (5000, 7), "q_heads": 64, "kv_heads": 1, "head_dim": 256},
    "odd_sizes": {"lengths": (300, 4096), "q_heads": 15, "kv_heads": 3, "head_dim": 72},
    "unlike_head_dims": {
        "lengths": (300, 4096),
        "q_heads": 12,
        "kv_heads": 1,
        "head_dim": 192,
        "v_head_dim": 128,
    },
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("page_size", [0, 16, 64], ids=["contiguous", "pages_of_16", "pages_of_64"])
def test_decode_attention_agrees_with_the_oracle(shape, page_size, dtype):
    inputs = decode_inputs(**shape, page_size=page_size, dtype=dtype)
    output = assert_decodes(inputs)
    assert torch.equal(decode_attention(**inputs), output)


@pytest.fixture(params=["float8_e4m3fn", "float8_e4m3fn_from_bits", "float8_e5m2", "int8"])
def cache_dtype(request, monkeypatch):
    """Each 8-bit dtype; e4m3 also as on GPUs without instructions for it."""
    name = request.param.removesuffix("_from_bits")
    if name != request.param:
        module = importlib.import_module("decodetax.kernels.decode_attention")
        limits = dataclasses.replace(module.gpu_limits(torch.device(DEVICE)), compute_capability=80)
        monkeypatch.setattr(module, "gpu_limits", lambda _device: limits)
    elif name == "float8_e4m3fn" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no instruction for float8 e4m3")
    return getattr(torch, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("page_size", [0, 64], ids=["contiguous", "paged"])
def test_8_bit_caches(cache_dtype, dtype, page_size):
    inputs = decode_inputs(
        (0, 1, 65, 4095, 4096), capacity=4096, page_size=page_size, dtype=dtype, cache_dtype=cache_dtype
    )
    assert_decodes(inputs, **scales(cache_dtype))


def test_every_8_bit_code_is_exact(cache_dtype):
    codes = torch.arange(256, dtype=torch.uint8, device=DEVICE).view(cache_dtype)
    output = decode_attention(
        normal(1, 1, 16, dtype=torch.float32),
        torch.ones(1, 1, 1, 16, device=DEVICE).to(cache_dtype),
        codes.view(1, 1, 1, 256),
        torch.ones(1, dtype=torch.int32, device=DEVICE),
    )
    values = codes if cache_dtype == torch.int8 else codes.float()
    torch.testing.assert_close(output[0, 0].double(), values.double(), rtol=0, atol=0, equal_nan=True)


def test_8_bit_caches_with_large_and_small_bfloat16_queries(cache_dtype):
    inputs = decode_inputs((500,), capacity=512, cache_dtype=cache_dtype)
    inputs["q"] *= 1e30
    assert_decodes(inputs, scale=1e-31, **scales(cache_dtype))


OPTIONS = {
    "window": {"window": 1000},
    "window_of_1": {"window": 1},
    "softcap": {"softcap": 5.0},
    "sinks": {"sinks": torch.linspace(-3, 9, 32)},
    "scales": {"k_scale": torch.linspace(0.5, 2, 8), "v_scale": torch.linspace(-1, 1, 8)},
    "all": {"window": 300, "softcap": 30.0, "sinks": torch.linspace(-3, 9, 32), "scale": 0.2},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("query_tokens", [None, 1, 4, 8])
@pytest.mark.parametrize("page_size", [0, 64, 100], ids=["contiguous", "pages_of_64", "pages_of_100"])
def test_options(options, query_tokens, page_size):
    on_device = {
        name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value
        for name, value in options.items()
    }
    inputs = decode_inputs(
        (0, 3, 129, 3199, 3200), capacity=3200, page_size=page_size, query_tokens=query_tokens,
        window=options.get("window"),
    )  # fmt: skip
    assert_decodes(inputs, **on_device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", [16, 64])
@pytest.mark.parametrize("head_dim", [64, 72, 128, 256])
def test_many_query_rows(group, head_dim, dtype):
    inputs = decode_inputs(
        (700, 5), q_heads=group, kv_heads=1, head_dim=head_dim, capacity=1024, query_tokens=8, dtype=dtype
    )
    assert_decodes(inputs)


@pytest.mark.parametrize("num_splits", [None, 3])
@pytest.mark.parametrize("page_size", [0, 64], ids=["contiguous", "pages_of_64"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_packed_prompt_chunks_and_decode_steps(head_dim, page_size, num_splits):
    q_lens, lengths = [1, 0, 700, 1, 333], (4000, 100, 700, 17, 3000)
    inputs = decode_inputs(lengths, head_dim=head_dim, capacity=4096, page_size=page_size)
    inputs["q"] = normal(sum(q_lens), 32, head_dim, dtype=torch.bfloat16)
    inputs["cu_seqlens"] = torch.tensor([0, *itertools.accumulate(q_lens)], device=DEVICE)
    output = decode_attention(**inputs, num_splits=num_splits)
    expected, _ = reference.decode_attention(**inputs)
    assert_close(output, expected, reduction=4096, roundings=2)


@pytest.mark.parametrize("token", [100, 699], ids=["whole_tile", "last_token"])
@pytest.mark.parametrize("num_splits", [None, 3])
def test_nan_in_live_cache_reaches_only_later_query_tokens(token, num_splits):
    inputs = decode_inputs((700,), capacity=1024, query_tokens=2)
    inputs["k_cache"][0, token, 1, 3] = NAN
    inputs["v_cache"][0, token, 0, 3] = NAN
    output = decode_attention(**inputs, num_splits=num_splits)
    first = 1 if token == 699 else 0
    assert output[0, first:, :4, 3].isnan().all()
    assert output[0, first:, 4:8].isnan().all()
    assert output.isnan().sum() == (2 - first) * (4 + 4 * 128)


def test_sequence_is_independent_of_the_batch_with_num_splits():
    inputs = decode_inputs((4000, 17, 0, 8192))
    expected = decode_attention(**inputs, num_splits=5)
    for rows in ([0], [3, 0], [1, 0, 2, 1, 0]):
        output = decode_attention(**{name: value[rows] for name, value in inputs.items()}, num_splits=5)
        assert torch.equal(output, expected[rows])


def test_random_lengths_are_bitwise_reproducible():
    lengths = torch.randint(0, 2049, (300,)).tolist()
    inputs = decode_inputs(tuple(lengths), capacity=2048, kv_heads=2, q_heads=8, head_dim=64)
    output = assert_decodes(inputs)
    assert all(torch.equal(decode_attention(**inputs), output) for _ in range(10))


def test_no_allocation_or_sync_with_out_and_workspace():
    inputs = decode_inputs((8192, 17))
    size = decode_attention_workspace_bytes(**inputs)
    given = {
        "out": (torch.empty_like(inputs["q"]), torch.empty(2, 32, device=DEVICE)),
        "workspace": torch.empty(size, dtype=torch.uint8, device=DEVICE),
        "return_lse": True,
    }
    decode_attention(**inputs, **given)  # compiles
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(action="ignore"):  # it says that it does not see every wait
        torch.cuda.set_sync_debug_mode("error")
    try:
        decode_attention(**inputs, **given)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.mark.parametrize("num_splits", [None, 4])
def test_cuda_graph_replay_with_other_lengths(num_splits):
    inputs = decode_inputs((2048,) * 4, capacity=2048)
    size = decode_attention_workspace_bytes(**inputs, num_splits=num_splits)
    workspace = torch.full((size // 4,), NAN, device=DEVICE)
    out, lse = torch.empty_like(inputs["q"]), torch.empty(4, 32, device=DEVICE)
    call = {"num_splits": num_splits, "workspace": workspace, "out": (out, lse), "return_lse": True}
    decode_attention(**inputs, **call)  # compiles outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decode_attention(**inputs, **call)
    for lengths in ((0, 1, 700, 2048), (2048, 2048, 0, 0), (33, 2047, 64, 1)):
        inputs["context_lens"].copy_(torch.tensor(lengths, dtype=torch.int32))
        for tensor in (out, lse, workspace):
            tensor.fill_(NAN)
        graph.replay()
        assert_decoded(out, lse, *reference.decode_attention(**inputs), inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shared_prefix_and_own_tokens_equal_full_context(dtype):
    prefix = decode_inputs((3000,), capacity=3000, dtype=dtype)
    own = decode_inputs((500, 0, 77), capacity=500, dtype=dtype)
    shared = {"q": own["q"], "context_lens": torch.full_like(own["context_lens"], 3000)}
    whole = own | {"context_lens": own["context_lens"] + 3000}
    for name in ("k_cache", "v_cache"):
        shared[name] = prefix[name].expand(3, -1, -1, -1)
        whole[name] = torch.cat([shared[name], own[name]], 1)
    output, lse = merge_states(
        *decode_attention(**shared, return_lse=True), *decode_attention(**own, return_lse=True)
    )
    # The merge rounds once more than attention over the full context.
    assert_decoded(output, lse, *reference.decode_attention(**whole), whole, roundings=3)


def test_merge_of_many_parts():
    o, lse = normal(5, 70, 8, 128, dtype=torch.bfloat16), normal(5, 70, 8, dtype=torch.float32)
    lse[0, ::3], lse[1, ::5] = math.inf, -math.inf
    mask = torch.ones(5, 70, 1, dtype=torch.bool, device=DEVICE)
    mask[2, ::2] = False
    expected, expected_lse = reference.merge_states(o, lse, mask=mask)
    o[lse.isinf()] = NAN
    first, second = (merge_states(o, lse, mask=mask) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert_close(first[0], expected, reduction=64, roundings=1)
    torch.testing.assert_close(first[1].double(), expected_lse, rtol=1e-5, atol=1e-5)


def test_merge_of_empty_parts():
    nothing = torch.full((5, 128), NAN, device=DEVICE), torch.full((5,), -math.inf, device=DEVICE)
    o, lse = normal(5, 128, dtype=torch.float32), normal(5, dtype=torch.float32)
    assert torch.equal(merge_states(*nothing, o, lse)[0], o)
    output, merged = merge_states(*nothing, *nothing)
    assert (output == 0).all()
    assert (merged == -math.inf).all()
