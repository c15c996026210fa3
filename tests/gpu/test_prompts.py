"""Compiled prefill attention against its oracle: prompts, ragged ones, and prompts after a cached prefix."""

import pytest
import torch
from decodetax.harness.core.gate import attention_products, row_errors, tolerance
from decodetax.kernels import (
    PrefillAttentionTiling,
    prefill_attention,
    prefill_attention_workspace_bytes,
    reference,
)

pytestmark = pytest.mark.gpu
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]
NAN = float("nan")
DEVICE = "cuda"


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def prompts(*leading, q_heads=8, kv_heads=2, head_dim=128, v_head_dim=None, dtype=torch.bfloat16):
    """q, k and v [*leading, heads, head_dim]."""
    sizes = {"q": (q_heads, head_dim), "k": (kv_heads, head_dim), "v": (kv_heads, v_head_dim or head_dim)}
    return {name: torch.randn(*leading, *size, device=DEVICE).to(dtype) for name, size in sizes.items()}


def prefix(context_lens, *, capacity=512, page_size=0, kv_heads=2, head_dim=128, dtype=torch.bfloat16):
    """Caches with a prefix for each sequence and NaN elsewhere; unused page ids are out of range."""
    batch = len(context_lens)
    found = {"context_lens": torch.tensor(context_lens, dtype=torch.int32, device=DEVICE)}
    for name in ("k_cache", "v_cache"):
        cache = torch.randn(batch, capacity, kv_heads, head_dim, device=DEVICE)
        for sequence, context in enumerate(context_lens):
            cache[sequence, context:] = NAN
        found[name] = cache.to(dtype)
    if page_size:
        pages = batch * capacity // page_size
        order = torch.randperm(pages, device=DEVICE)
        table = order.argsort().view(batch, -1).to(torch.int32)
        for sequence, context in enumerate(context_lens):
            table[sequence, -(-context // page_size) :] = 2**31 - 1
        found["block_table"] = table
        for name in ("k_cache", "v_cache"):
            found[name] = found[name].view(pages, page_size, kv_heads, head_dim)[order]
    return found


def assert_attends(inputs, *, tiling=None, roundings=2, **options):
    """Output and log-sum-exp equal those of the oracle within the tolerance, and are the same every time."""
    q = inputs["q"]
    dtype = torch.bfloat16 if q.dtype in FLOAT8 else q.dtype
    out = torch.full((*q.shape[:-1], inputs["v"].shape[-1]), NAN, dtype=dtype, device=DEVICE)
    lse = torch.full(q.shape[:-1], NAN, device=DEVICE)
    prefill_attention(**inputs, **options, tiling=tiling, return_lse=True, out=(out, lse))
    expected, expected_lse = reference.prefill_attention(**inputs, **options)
    keys = inputs["k"].shape[-3] + (inputs["k_cache"].shape[1] if "k_cache" in inputs else 0)
    reduction = attention_products(capacity=keys, head_dim=q.shape[-1], expected_lse=expected_lse)
    # Probabilities of float8 are rounded to e4m3.
    bound = tolerance(
        torch.float8_e4m3fn if q.dtype in FLOAT8 else dtype, reduction=reduction, roundings=roundings
    )
    assert float(row_errors(out, expected).max()) <= bound
    exact = tolerance(torch.float32, reduction=reduction)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=exact, atol=exact)
    again = prefill_attention(**inputs, **options, tiling=tiling)
    assert torch.equal(again, out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_prompts_agree_with_the_oracle(dtype, head_dim):
    assert_attends(prompts(2, 777, head_dim=head_dim, dtype=dtype))


@pytest.mark.parametrize("head_dim", [16, 40, 80, 96, 256])
def test_head_dims(head_dim):
    assert_attends(prompts(1, 300, head_dim=head_dim))


def test_values_of_another_size_than_keys():
    assert_attends(prompts(2, 500, q_heads=4, kv_heads=4, head_dim=192, v_head_dim=128))


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_float8(dtype):
    assert_attends(prompts(2, 400, dtype=dtype))


@pytest.mark.parametrize(
    "options",
    [
        {"window": 100},
        {"softcap": 20.0},
        {"causal": False},
        {"scale": 0.3},
        {"window": 64, "softcap": 30.0},
    ],
    ids=str,
)
def test_options(options):
    assert_attends(prompts(2, 333), **options)


def test_sinks():
    assert_attends(prompts(2, 333), sinks=torch.randn(8, device=DEVICE))


def test_ragged_prompts_with_an_empty_one():
    lengths = [1, 0, 127, 128, 129, 600]
    ends = torch.tensor([0, *lengths]).cumsum(0).to(device=DEVICE, dtype=torch.int32)
    assert_attends(prompts(sum(lengths)), cu_seqlens=ends)


def test_padded_prompts_do_not_read_dead_tokens():
    inputs = prompts(3, 200)
    lengths = torch.tensor([200, 1, 77], dtype=torch.int32, device=DEVICE)
    for name in ("k", "v"):
        inputs[name][1, 1:], inputs[name][2, 77:] = NAN, NAN
    assert_attends(inputs, lengths=lengths)


@pytest.mark.parametrize("page_size", [0, 16, 64])
def test_chunked_prefill_over_a_cached_prefix(page_size):
    assert_attends(prompts(4, 150) | prefix([0, 1, 300, 512], page_size=page_size))


@pytest.mark.parametrize("variant", ["pointers", "descriptors", "warp_specialized"])
def test_every_variant_agrees(variant):
    tiling = PrefillAttentionTiling(
        block_m=128, block_n=64, programs=7, num_warps=8, num_stages=2, variant=variant
    )
    assert_attends(prompts(2, 777), tiling=tiling)


def test_a_value_that_is_not_finite_reaches_only_later_tokens():
    inputs = prompts(1, 300)
    inputs["v"][0, 200] = NAN
    out = prefill_attention(**inputs)
    assert out[0, :200].isfinite().all()
    assert out[0, 200:].isnan().all()


def test_a_captured_graph_follows_lengths_that_change():
    inputs = prompts(2, 256)
    lengths = torch.tensor([256, 256], dtype=torch.int32, device=DEVICE)
    out = torch.empty_like(inputs["q"])
    size = prefill_attention_workspace_bytes(**inputs, lengths=lengths)
    workspace = torch.empty(size, dtype=torch.uint8, device=DEVICE)
    prefill_attention(**inputs, lengths=lengths, out=out, workspace=workspace)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        prefill_attention(**inputs, lengths=lengths, out=out, workspace=workspace)
    for changed in ([256, 100], [1, 0]):
        lengths.copy_(torch.tensor(changed, dtype=torch.int32))
        out.fill_(NAN)
        graph.replay()
        expected, _ = reference.prefill_attention(**inputs, lengths=lengths)
        bound = tolerance(torch.bfloat16, reduction=256 + 128, roundings=2)
        assert float(row_errors(out, expected).max()) <= bound
