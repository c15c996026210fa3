"""Host side of decode attention: launches, allocations, workspace, bitwise reproducibility."""

import pytest
import torch
from decode_checks import TILINGS, assert_right, attend, balanced, split
from decodetax.kernels import decode_attention, decode_attention_workspace_bytes
from kernel_inputs import NAN, by_default, decode_inputs, poisoned
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import GridExecutor

any_tiling = pytest.mark.parametrize("tiling", [*TILINGS.values(), None], ids=[*TILINGS.keys(), "default"])


@pytest.fixture
def launches(monkeypatch):
    """Names and grids of launched kernels; none of them runs."""
    seen = []

    def launch(executor, *_args, **_named):
        seen.append((executor.fn.__name__, executor.grid))

    monkeypatch.setattr(GridExecutor, "__call__", launch)
    return seen


class NoNewMemory(TorchDispatchMode):
    """Fails if an operation returns memory that was not passed in."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given, returned = (
            {
                leaf.untyped_storage().data_ptr()
                for leaf in tree_leaves(tree)
                if isinstance(leaf, torch.Tensor)
            }
            for tree in ((args, kwargs), result)
        )
        assert returned <= given, f"{func} allocates"
        return result


READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__")
"""Tensor methods that read a CPU tensor without a dispatched operation."""


class NothingRead(TorchDispatchMode):
    """Fails if the host computes with, copies or reads tensor contents."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.is_view or func.__name__.startswith("empty"), f"{func} reads"
        return func(*args, **(kwargs or {}))


FEATURES = {
    "plain": ({}, {}),
    "paged": ({"page_size": 16}, {"window": 9, "softcap": 2.0}),
    "float8": (
        {"cache_dtype": torch.float8_e4m3fn, "query_tokens": 2},
        {"k_scale": torch.ones(2), "v_scale": torch.ones(2), "sinks": torch.zeros(8)},
    ),
}
any_features = pytest.mark.parametrize(("shape", "options"), FEATURES.values(), ids=FEATURES.keys())


@any_tiling
@any_features
def test_no_allocation_with_out_and_workspace(launches, tiling, shape, options):
    inputs = decode_inputs([90, 0], capacity=96, **shape)
    size = decode_attention_workspace_bytes(**inputs, **options, tiling=tiling)
    workspace = torch.empty(size, dtype=torch.uint8)
    out, lse = torch.empty_like(inputs["q"]), poisoned(*inputs["q"].shape[:-1], dtype=torch.float32)
    with NoNewMemory():
        decode_attention(**inputs, **options, tiling=tiling, out=out, workspace=workspace)
        both = {"out": (out, lse), "return_lse": True}
        decode_attention(**inputs, **options, tiling=tiling, **both, workspace=workspace)
    assert launches[: len(launches) // 2] == launches[len(launches) // 2 :] != []


def test_fault_of_an_allocation_is_found(launches):
    with NoNewMemory(), pytest.raises(AssertionError, match="allocates"):
        decode_attention(**decode_inputs([90], capacity=96))
    assert launches == []


@any_tiling
@any_features
def test_host_reads_no_tensor(monkeypatch, launches, tiling, shape, options):
    inputs = decode_inputs([90, 0], capacity=96, **shape)
    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, None, raising=False)
    with NothingRead():
        decode_attention(**inputs, **options, tiling=tiling, return_lse=True)
    assert launches != []


def test_fault_of_a_host_read_is_found():
    lengths = torch.ones(3, dtype=torch.int32)
    for read in (lengths.max, lengths[0].item, lengths.long):
        with NothingRead(), pytest.raises(AssertionError, match="reads"):
            read()


@any_tiling
@pytest.mark.parametrize("page_size", [0, 16], ids=["contiguous", "paged"])
def test_launch_depends_only_on_shapes_and_capacity(launches, tiling, page_size):
    inputs = decode_inputs([500, 3, 0], capacity=512, page_size=page_size)
    for lengths in ([500, 3, 0], [0, 0, 0], [512, 512, 512], [2**31 - 1, -1, 17]):
        inputs["context_lens"] = torch.tensor(lengths, dtype=torch.int32)
        decode_attention(**inputs, tiling=tiling)
    calls = [launches[at : at + len(launches) // 4] for at in range(0, len(launches), len(launches) // 4)]
    assert len(calls) == 4
    assert all(call == calls[0] for call in calls)


@pytest.mark.parametrize("tiling", [split(3), balanced(3)], ids=["split", "balanced"])
@pytest.mark.parametrize("garbage", by_default({0xFF}, [0x00, 0x7F, 0xFF]))
def test_workspace_contents_do_not_matter(tiling, garbage):
    inputs = decode_inputs([60, 0, 17], q_heads=2, kv_heads=1, head_dim=16, capacity=60)
    expected = attend(inputs, tiling=tiling)
    size = decode_attention_workspace_bytes(**inputs, tiling=tiling)
    workspace = torch.full((size + 100,), garbage, dtype=torch.uint8)
    output, lse = decode_attention(**inputs, tiling=tiling, workspace=workspace, return_lse=True)
    assert torch.equal(output, expected[0])
    assert torch.equal(lse, expected[1])
    assert (workspace[size:] == garbage).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.int64], ids=str)
def test_workspace_of_any_dtype_and_shape(dtype):
    inputs = decode_inputs([60], q_heads=2, kv_heads=1, head_dim=16, capacity=60)
    size = decode_attention_workspace_bytes(**inputs, tiling=split(2))
    workspace = torch.empty(2, -(-size // dtype.itemsize), dtype=dtype)
    output = decode_attention(**inputs, tiling=split(2), workspace=workspace)
    assert torch.equal(output, decode_attention(**inputs, tiling=split(2)))


def test_rejects_workspace_one_byte_too_small():
    inputs = decode_inputs([60], capacity=60)
    size = decode_attention_workspace_bytes(**inputs, num_splits=2)
    workspace = torch.empty(size - 1, dtype=torch.uint8)
    message = f"workspace has {size - 1} bytes; it must have at least {size}"
    with pytest.raises(ValueError, match=message):
        decode_attention(**inputs, num_splits=2, workspace=workspace)


def test_workspace_bytes_depend_only_on_shapes():
    inputs = decode_inputs([60, 3], capacity=60)
    others = inputs | {"context_lens": torch.zeros(2, dtype=torch.int32)}
    sizes = [decode_attention_workspace_bytes(**each, num_splits=3) for each in (inputs, others)]
    # 12 partials of 4 rows of 64 numbers and a log-sum-exp each, and two numbers per CTA.
    assert sizes == [12 * (4 * 65 * 4 + 8)] * 2
    assert decode_attention_workspace_bytes(**inputs, num_splits=1) == 0


@any_tiling
def test_results_are_bitwise_reproducible(tiling):
    inputs = decode_inputs([50, 37], q_heads=3, kv_heads=1, head_dim=16, capacity=50)
    first, second = (attend(inputs, tiling=tiling) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("num_splits", by_default({3}, [1, 3]))
@pytest.mark.parametrize("page_size", by_default({"paged"}, [0, 3], ["contiguous", "paged"]))
def test_sequence_is_independent_of_the_batch_with_num_splits(page_size, num_splits):
    inputs = decode_inputs([0, 37, 50, 9], q_heads=2, kv_heads=1, capacity=51, page_size=page_size)
    expected = attend(inputs, num_splits=num_splits)
    changed = inputs | {"q": inputs["q"].clone(), "context_lens": inputs["context_lens"].clone()}
    changed["q"][[0, 2]] = NAN
    changed["context_lens"][2] = 11
    batches = {(1,): inputs, (0, 1, 2, 3): changed, (3, 1): inputs, (1, 2, 1, 1, 0, 2): changed}
    for rows, source in batches.items():
        per_sequence = ["q", "context_lens", *(["block_table"] if page_size else ["k_cache", "v_cache"])]
        batch = source | {name: source[name][list(rows)] for name in per_sequence}
        output, lse = attend(batch, num_splits=num_splits)
        at = rows.index(1)
        assert torch.equal(output[at], expected[0][1])
        assert torch.equal(lse[at], expected[1][1])


def test_most_num_splits_reach_the_grid(launches):
    decode_attention(**decode_inputs([9], q_heads=1, kv_heads=1, capacity=9), num_splits=65536)
    assert [grid[0] for _, grid in launches] == [65536] * 2


def test_default_tiling_in_a_longer_context():
    assert_right(decode_inputs([400, 129, 0, 3], q_heads=2, kv_heads=1, capacity=400))
    assert_right(decode_inputs([90], q_heads=2, kv_heads=1, capacity=100), tiling=balanced(2, block_n=32))
