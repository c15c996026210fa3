"""Both kernels, compiled, against their oracles at the sizes they are made for."""

import sys

import pytest
import torch
import triton
from decodetax.harness.measuring.gate import row_errors, tolerance
from decodetax.kernels import decode_attention, interpreting, prefill_matmul, reference

pytestmark = pytest.mark.gpu
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
NAN = float("nan")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def normal(*shape, dtype):
    return torch.randn(shape, device="cuda").to(dtype)


def assert_close(actual, expected, *, reduction, roundings):
    bound = tolerance(actual.dtype, reduction=reduction, roundings=roundings)
    assert float(row_errors(actual, expected).max()) <= bound


def test_kernels_are_compiled_not_interpreted():
    assert not interpreting()
    for module, names in {
        "decode_attention": ("_split_kernel", "_merge_kernel"),
        "prefill_matmul": ("_tile_kernel", "_reduce_kernel"),
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
    out = torch.full((rows, out_features), NAN, dtype=dtype, device="cuda")
    prefill_matmul(x, weight, bias=bias, out=out)
    expected = reference.prefill_matmul(x, weight, bias=bias)
    assert_close(out, expected, reduction=in_features, roundings=1)


def cache_of(lengths, capacity, kv_heads, head_dim, dtype):
    cache = normal(len(lengths), capacity, kv_heads, head_dim, dtype=dtype)
    for sequence, length in enumerate(lengths):
        cache[sequence, length:] = NAN
    return cache


SHAPES = {
    "one_long": {"lengths": (8192,), "q_heads": 32, "kv_heads": 8, "head_dim": 128},
    "unequal": {"lengths": (0, 1, 63, 64, 65, 4095, 8192), "q_heads": 32, "kv_heads": 8, "head_dim": 128},
    "many": {"lengths": (1000,) * 64, "q_heads": 28, "kv_heads": 4, "head_dim": 128},
    "large_group": {"lengths": (5000, 7), "q_heads": 64, "kv_heads": 1, "head_dim": 256},
    "odd_sizes": {"lengths": (300, 4096), "q_heads": 15, "kv_heads": 3, "head_dim": 72},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("page_size", [0, 16], ids=["contiguous", "paged"])
def test_decode_attention_agrees_with_the_oracle(shape, page_size, dtype):
    lengths, q_heads, kv_heads, head_dim = shape.values()
    batch, capacity = len(lengths), 8192
    q = normal(batch, q_heads, head_dim, dtype=dtype)
    k_cache, v_cache = (cache_of(lengths, capacity, kv_heads, head_dim, dtype) for _ in range(2))
    table = None
    if page_size:
        pages = batch * capacity // page_size
        order = torch.randperm(pages, device="cuda")
        paged = (pages, page_size, kv_heads, head_dim)
        k_cache, v_cache = (cache.view(paged)[order] for cache in (k_cache, v_cache))
        table = order.argsort().view(batch, -1).to(torch.int32)
        for sequence, length in enumerate(lengths):
            table[sequence, -(-length // page_size) :] = 2**31 - 1
    context_lens = torch.tensor(lengths, dtype=torch.int32, device="cuda")
    out = torch.full_like(q, NAN)
    output, lse = decode_attention(
        q, k_cache, v_cache, context_lens, block_table=table, out=out, return_lse=True
    )
    expected, expected_lse = reference.decode_attention(q, k_cache, v_cache, context_lens, block_table=table)
    assert_close(output, expected, reduction=capacity, roundings=2)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)
    again = decode_attention(q, k_cache, v_cache, context_lens, block_table=table)
    assert torch.equal(again, output)


def test_decode_attention_replays_in_a_cuda_graph_with_other_lengths():
    q = normal(4, 32, 128, dtype=torch.bfloat16)
    k_cache, v_cache = (normal(4, 2048, 8, 128, dtype=torch.bfloat16) for _ in range(2))
    context_lens = torch.full((4,), 2048, dtype=torch.int32, device="cuda")
    decode_attention(q, k_cache, v_cache, context_lens)  # compiles outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = decode_attention(q, k_cache, v_cache, context_lens)
    context_lens.copy_(torch.tensor([0, 1, 700, 2048], dtype=torch.int32))
    graph.replay()
    expected, _ = reference.decode_attention(q, k_cache, v_cache, context_lens)
    assert_close(output, expected, reduction=2048, roundings=2)
