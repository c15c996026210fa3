"""Counted traffic of textbook kernels against counts by hand; the patch of the interpreter."""

import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
import triton
import triton.language as tl
from decodetax.harness.offline import SanitizerError, count_traffic
from decodetax.harness.offline.traffic import TensorTraffic
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, interpreter_builder
from triton.tools.tensor_descriptor import TensorDescriptor

needs_block_pointers = pytest.mark.skipif(
    not hasattr(InterpreterBuilder, "create_make_block_ptr"),
    reason="this Triton's interpreter has no block pointers",
)

needs_scaled_products = pytest.mark.skipif(
    not hasattr(InterpreterBuilder, "create_dot_scaled"),
    reason="this Triton's interpreter has no scaled products",
)


@triton.jit
def add_kernel(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = offsets < n
    total = tl.load(x_ptr + offsets, mask=live) + tl.load(y_ptr + offsets, mask=live)
    tl.store(out_ptr + offsets, total, mask=live)


@triton.jit
def copy_kernel(x_ptr, out_ptr, stride, N: tl.constexpr):
    offsets = tl.arange(0, N)
    tl.store(out_ptr + offsets, tl.load(x_ptr + offsets * stride))


@triton.jit
def scalar_kernel(x_ptr, out_ptr):
    tl.store(out_ptr + tl.program_id(0), tl.load(x_ptr) + tl.load(x_ptr + 1))


@triton.jit
def dot_kernel(a_ptr, b_ptr, out_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(a_ptr + m[:, None] * K + k[None, :])
    b = tl.load(b_ptr + k[:, None] * N + n[None, :])
    out = tl.dot(a, b)
    tl.store(out_ptr + m[:, None] * N + n[None, :], out)


@triton.jit
def batched_dot_kernel(a_ptr, out_ptr, B: tl.constexpr, N: tl.constexpr):
    b, m, n = tl.arange(0, B), tl.arange(0, N), tl.arange(0, N)
    at = b[:, None, None] * N * N + m[None, :, None] * N + n[None, None, :]
    a = tl.load(a_ptr + at)
    tl.store(out_ptr + at, tl.dot(a, a))


@triton.jit
def scaled_dot_kernel(a_ptr, b_ptr, scale_ptr, out_ptr, M: tl.constexpr, K: tl.constexpr):
    """[M, K] e2m1, two to a byte, times [K, M] e4m3."""
    m, k = tl.arange(0, M), tl.arange(0, K)
    a = tl.load(a_ptr + m[:, None] * (K // 2) + tl.arange(0, K // 2)[None, :])
    b = tl.load(b_ptr + k[:, None] * M + m[None, :])
    scale = tl.load(scale_ptr + m[:, None] * (K // 32) + tl.arange(0, K // 32)[None, :])
    tl.store(out_ptr + m[:, None] * M + m[None, :], tl.dot_scaled(a, scale, "e2m1", b, scale, "e4m3"))


@triton.jit
def histogram_kernel(x_ptr, bins_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = offsets < n
    values = tl.load(x_ptr + offsets, mask=live, other=0)
    tl.atomic_add(bins_ptr + values, tl.full((BLOCK,), 1, tl.int32), mask=live)


@triton.jit
def once_kernel(flag_ptr, winners_ptr):
    if tl.atomic_cas(flag_ptr, 0, 1) == 0:
        tl.store(winners_ptr, tl.program_id(0))


@triton.jit
def descriptor_kernel(x_desc, out_desc, BLOCK: tl.constexpr):
    row, column = tl.program_id(0) * BLOCK, tl.program_id(1) * BLOCK
    out_desc.store([row, column], x_desc.load([row, column]))


@triton.jit
def device_descriptor_kernel(x_ptr, out_ptr, rows, columns, stride, BLOCK: tl.constexpr):
    x = tl.make_tensor_descriptor(x_ptr, [rows, columns], [stride, 1], [BLOCK, BLOCK])
    out = tl.make_tensor_descriptor(out_ptr, [rows, columns], [stride, 1], [BLOCK, BLOCK])
    row, column = tl.program_id(0) * BLOCK, tl.program_id(1) * BLOCK
    out.store([row, column], x.load([row, column]))


@triton.jit
def block_pointer_kernel(x_ptr, out_ptr, rows, columns, BLOCK: tl.constexpr):
    x = tl.make_block_ptr(x_ptr, (rows, columns), (columns, 1), (0, 0), (BLOCK, BLOCK), (1, 0))
    out = tl.make_block_ptr(out_ptr, (rows, columns), (columns, 1), (0, 0), (BLOCK, BLOCK), (1, 0))
    tl.store(out, tl.load(x, boundary_check=(0, 1)), boundary_check=(0, 1))


@triton.jit
def either_kernel(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    offsets = tl.arange(0, N)
    pointers = tl.where(offsets % 4 == 0, a_ptr + offsets, b_ptr + offsets)
    tl.store(out_ptr + offsets, tl.load(pointers))


@triton.jit
def grouped_kernel(addresses_ptr, out_ptr, N: tl.constexpr):
    group = tl.program_id(0)
    x_ptr = tl.load(addresses_ptr + group).to(tl.pointer_type(tl.float32))
    offsets = tl.arange(0, N)
    tl.store(out_ptr + group * N + offsets, tl.load(x_ptr + offsets))


@triton.jit
def gather_kernel(addresses_ptr, out_ptr, N: tl.constexpr):
    offsets = tl.arange(0, N)
    tl.store(out_ptr + offsets, tl.load(tl.load(addresses_ptr + offsets).to(tl.pointer_type(tl.float32))))


@triton.jit
def bytes_kernel(x_ptr, out_ptr, N: tl.constexpr):
    offsets = tl.arange(0, N)
    words = tl.load(x_ptr + offsets)
    low = tl.load(x_ptr.to(tl.pointer_type(tl.int8)) + offsets)
    tl.store(out_ptr + offsets, words + low)


@triton.jit
def misaligned_kernel(x_ptr, out_ptr, AT: tl.constexpr):
    tl.store(out_ptr, tl.load((x_ptr + AT).to(tl.pointer_type(tl.int32))))


@triton.jit
def tuple_kernel(pair, out_ptr, N: tl.constexpr):
    offsets = tl.arange(0, N)
    tl.store(out_ptr + offsets, tl.load(pair[0] + offsets) + tl.load(pair[1] + offsets))


def count(run):
    """The only launch of a call."""
    with count_traffic() as traffic:
        run()
    (launch,) = traffic.launches
    return launch


def test_masked_vector_add_by_hand():
    x, y, out = torch.randn(3, 1000)
    with count_traffic() as traffic:
        add_kernel[(4,)](x, y, out, 1000, BLOCK=256)
    (launch,) = traffic.launches
    assert (launch.kernel, launch.grid, launch.programs) == ("add_kernel", (4, 1, 1), 4)
    loaded = TensorTraffic(
        bytes_requested=4000,
        bytes_distinct=4000,
        bytes_read_distinct=4000,
        sectors=125,
        sectors_requested=125,
    )
    stored = TensorTraffic(
        bytes_written=4000, bytes_distinct=4000, bytes_written_distinct=4000, sectors=125, sectors_written=125
    )
    assert list(launch.tensors) == ["x_ptr", "y_ptr", "out_ptr"]
    assert list(launch.tensors.values())[::2] == [loaded, stored]
    assert launch.tensors["y_ptr"].bytes_requested == 4000
    assert launch.bytes_requested_per_program == (2 * (1000 - 3 * 256) * 4, 2 * 256 * 4)
    assert launch.bytes_written_per_program == ((1000 - 3 * 256) * 4, 256 * 4)
    assert (launch.operations, launch.operations_per_program) == ({}, (0, 0))
    assert (traffic.bytes_requested, traffic.bytes_written) == (8000, 4000)
    assert torch.equal(out, x + y)


@pytest.mark.parametrize(("stride", "sectors"), [(1, 8), (2, 16), (8, 64), (100, 64)], ids=str)
def test_strided_loads_touch_more_sectors_for_the_same_bytes(stride, sectors):
    x, out = torch.randn(64 * stride), torch.empty(64)
    loaded = count(lambda: copy_kernel[(1,)](x, out, stride, N=64)).tensors["x_ptr"]
    assert (loaded.bytes_requested, loaded.bytes_distinct) == (256, 256)
    assert (loaded.sectors, loaded.sectors_requested) == (sectors, sectors)
    assert torch.equal(out, x[::stride])


def test_sectors_start_at_the_start_of_the_storage():
    x, out = torch.randn(100)[7:71], torch.empty(8, 72).view(-1)[4:]  # bytes 28 to 284, and 16 to 272
    tensors = count(lambda: copy_kernel[(1,)](x, out, 1, N=64)).tensors
    loaded, stored = tensors["x_ptr"], tensors["out_ptr"]
    assert (loaded.bytes_distinct, loaded.sectors, loaded.sectors_requested) == (256, 9, 9)
    assert (stored.sectors, stored.sectors_written, stored.sectors_requested) == (9, 9, 0)


def test_a_word_across_two_sectors_touches_both():
    x, out = torch.zeros(80, dtype=torch.uint8), torch.empty(1, dtype=torch.int32)
    loaded = count(lambda: misaligned_kernel[(1,)](x, out, AT=30)).tensors["x_ptr"]
    assert (loaded.bytes_requested, loaded.bytes_distinct, loaded.sectors) == (4, 4, 2)


def test_scalars_that_every_program_loads_are_distinct_once():
    tensors = count(lambda: scalar_kernel[(5,)](torch.randn(2), torch.empty(5))).tensors
    assert (tensors["x_ptr"].bytes_requested, tensors["x_ptr"].bytes_distinct) == (5 * 8, 8)
    assert (tensors["x_ptr"].sectors, tensors["x_ptr"].sectors_requested) == (1, 10)
    assert (tensors["out_ptr"].bytes_written, tensors["out_ptr"].sectors) == (20, 1)


@pytest.mark.parametrize(
    ("dtype", "out_dtype", "key"),
    [
        (torch.bfloat16, torch.float32, "bf16 x bf16"),
        (torch.float16, torch.float32, "fp16 x fp16"),
        (torch.float32, torch.float32, "fp32 x fp32"),
        (torch.int8, torch.int32, "int8 x int8"),
        (torch.float8_e4m3fn, torch.float32, "fp8e4nv x fp8e4nv"),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_dot_counts_by_operand_types(dtype, out_dtype, key):
    a, b = torch.ones(16, 64).to(dtype), torch.ones(64, 32).to(dtype)
    launch = count(lambda: dot_kernel[(1,)](a, b, torch.empty(16, 32, dtype=out_dtype), M=16, N=32, K=64))
    assert launch.operations == {key: 2 * 16 * 32 * 64}
    assert launch.operations_per_program == (2 * 16 * 32 * 64,) * 2
    assert launch.tensors["a_ptr"].bytes_requested == a.nbytes


def test_batched_dot_counts_each_product():
    with count_traffic() as traffic:
        batched_dot_kernel[(1,)](torch.ones(4, 16, 16), torch.empty(4, 16, 16), B=4, N=16)
    assert traffic.operations == {"fp32 x fp32": 4 * 2 * 16**3}


@needs_scaled_products
def test_scaled_dot_counts_by_operand_formats():
    a, b = torch.zeros(32, 32, dtype=torch.uint8), torch.zeros(64, 32).to(torch.float8_e4m3fn)
    scale = torch.full((32, 2), 127, dtype=torch.uint8)
    launch = count(lambda: scaled_dot_kernel[(1,)](a, b, scale, torch.empty(32, 32), M=32, K=64))
    assert launch.operations == {"e2m1 x e4m3": 2 * 32 * 32 * 64}


def test_atomic_counts_as_a_load_and_a_store():
    x = torch.arange(100, dtype=torch.int32) % 10
    bins = torch.zeros(32, dtype=torch.int32)
    counted = count(lambda: histogram_kernel[(2,)](x, bins, 100, BLOCK=64)).tensors["bins_ptr"]
    assert counted == TensorTraffic(
        bytes_requested=400,
        bytes_written=400,
        bytes_distinct=40,
        bytes_read_distinct=40,
        bytes_written_distinct=40,
        sectors=2,
        sectors_requested=4,
        sectors_written=4,
    )
    assert bins.tolist() == [10] * 10 + [0] * 22


def test_compare_and_swap_counts_as_a_load_and_a_store():
    flag, winner = torch.zeros(1, dtype=torch.int32), torch.full((1,), -1, dtype=torch.int32)
    tensors = count(lambda: once_kernel[(3,)](flag, winner)).tensors
    assert (tensors["flag_ptr"].bytes_requested, tensors["flag_ptr"].bytes_written) == (12, 12)
    assert (tensors["winners_ptr"].bytes_written, winner.item()) == (4, 0)


def test_tensor_descriptors_count_no_lane_out_of_bounds():
    x, out = torch.randn(20, 24), torch.empty(20, 24)
    blocks = [TensorDescriptor.from_tensor(tensor, [16, 16]) for tensor in (x, out)]
    with count_traffic() as traffic:
        descriptor_kernel[(2, 2)](*blocks, BLOCK=16)
        device_descriptor_kernel[(2, 2)](x, out, 20, 24, 24, BLOCK=16)
    for launch, names in zip(traffic.launches, (("x_desc", "out_desc"), ("x_ptr", "out_ptr")), strict=True):
        loaded, stored = (launch.tensors[name] for name in names)
        assert (loaded.bytes_requested, loaded.bytes_distinct, loaded.sectors) == (1920, 1920, 60)
        assert (stored.bytes_written, stored.bytes_distinct) == (1920, 1920)
        assert launch.bytes_requested_per_program == (4 * 8 * 4, 16 * 16 * 4)
        assert launch.grid == (2, 2, 1)
    assert torch.equal(out, x)


@needs_block_pointers
def test_block_pointers_count_no_lane_out_of_bounds():
    x, out = torch.randn(10, 12), torch.empty(10, 12)
    tensors = count(lambda: block_pointer_kernel[(1,)](x, out, 10, 12, BLOCK=16)).tensors
    assert (tensors["x_ptr"].bytes_requested, tensors["out_ptr"].bytes_written) == (480, 480)
    assert torch.equal(out, x)


def test_one_load_through_two_pointers_counts_for_each():
    a, b, out = torch.randn(3, 32)
    tensors = count(lambda: either_kernel[(1,)](a, b, out, N=32)).tensors
    assert (tensors["a_ptr"].bytes_requested, tensors["b_ptr"].bytes_requested) == (8 * 4, 24 * 4)
    assert torch.equal(out, torch.where(torch.arange(32) % 4 == 0, a, b))


def test_addresses_in_memory_lead_to_known_tensors():
    groups = [torch.randn(16), torch.randn(16)]
    addresses, out = torch.tensor([group.data_ptr() for group in groups]), torch.empty(2, 16)
    with count_traffic(known=groups) as traffic:
        grouped_kernel[(2,)](addresses, out, N=16)
        gather_kernel[(1,)](addresses, torch.empty(2), N=2)  # one load, two tensors
    for launch, size_bytes in zip(traffic.launches, (64, 4), strict=True):
        tensors = launch.tensors
        assert [tensors[f"known[{at}]"].bytes_requested for at in (0, 1)] == [size_bytes] * 2
    assert torch.equal(out, torch.stack(groups))


def test_bytes_and_words_of_one_tensor_are_distinct_once():
    x, out = torch.arange(32, dtype=torch.int32), torch.empty(32, dtype=torch.int32)
    loaded = count(lambda: bytes_kernel[(1,)](x, out, N=32)).tensors["x_ptr"]
    assert (loaded.bytes_requested, loaded.bytes_distinct, loaded.sectors) == (160, 128, 4)
    assert loaded.sectors_requested == 4 + 1
    assert torch.equal(out, x + x.view(torch.int8)[:32])


def test_tensors_of_a_tuple_have_names():
    a, b, out = torch.randn(3, 16)
    tensors = count(lambda: tuple_kernel[(1,)]((a, b), out, N=16)).tensors
    assert [tensors[name].bytes_requested for name in ("pair[0]", "pair[1]", "out_ptr")] == [64, 64, 0]
    assert torch.equal(out, a + b)


def test_one_tensor_under_two_names_counts_for_each():
    x, y = torch.randn(100), torch.randn(100)
    expected = x + y
    tensors = count(lambda: add_kernel[(1,)](x, y, x, 100, BLOCK=128)).tensors
    assert (tensors["x_ptr"].bytes_requested, tensors["x_ptr"].bytes_written) == (400, 0)
    assert (tensors["out_ptr"].bytes_requested, tensors["out_ptr"].bytes_written) == (0, 400)
    assert torch.equal(x, expected)


def test_nested_blocks_record_each_launch_in_order():
    x, y, out = torch.randn(3, 64)
    with count_traffic() as outer:
        add_kernel[(1,)](x, y, out, 64, BLOCK=64)
        with count_traffic() as inner:
            copy_kernel[(1,)](out, x, 1, N=64)
        add_kernel[(0,)](x, y, out, 64, BLOCK=64)
    assert [launch.kernel for launch in inner.launches] == ["copy_kernel"]
    assert [launch.kernel for launch in outer.launches] == ["add_kernel", "copy_kernel", "add_kernel"]
    assert [launch.bytes_requested for launch in outer.launches] == [512, 256, 0]
    assert outer.launches[2].tensors["x_ptr"] == TensorTraffic()
    assert outer.launches[2].bytes_requested_per_program == (0, 0)


@pytest.mark.parametrize("fault", [None, ValueError, SanitizerError], ids=["none", "error", "bad launch"])
def test_leaves_triton_as_it_was(fault):
    x, y, out = torch.randn(3, 64)
    add_kernel[(1,)](x, y, out, 64, BLOCK=64)
    before, call = dict(vars(interpreter_builder)), GridExecutor.__call__
    with pytest.raises(fault) if fault else nullcontext(), count_traffic():
        add_kernel[(1,)](x, y, out, 64, BLOCK=64)
        if fault is ValueError:
            raise ValueError
        if fault is SanitizerError:
            add_kernel[(1,)](x, y, out[:63], 64, BLOCK=64)
    program = {"grid_idx": 0, "grid_dim": 0}
    assert vars(interpreter_builder) | program == before | program
    assert GridExecutor.__call__ is call
    add_kernel[(1,)](x, y, out, 64, BLOCK=64)
    assert torch.equal(out, x + y)


def test_a_failed_launch_is_not_recorded_and_the_next_one_is():
    x, y, out = torch.randn(3, 64)
    with count_traffic() as traffic:
        with pytest.raises(SanitizerError):
            add_kernel[(1,)](x, y, out[:63], 64, BLOCK=64)
        add_kernel[(1,)](x, y, out, 64, BLOCK=64)
    assert [launch.bytes_requested for launch in traffic.launches] == [512]
    assert traffic.fault.kind == "bounds"


def test_methods_that_another_tool_patched_are_called_and_restored(monkeypatch):
    seen = []
    original = interpreter_builder.create_masked_load

    def patched(*args, **kwargs):
        seen.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(interpreter_builder, "create_masked_load", patched)
    x, y, out = torch.randn(3, 64)
    count(lambda: add_kernel[(1,)](x, y, out, 64, BLOCK=64))
    assert len(seen) == 2
    assert interpreter_builder.create_masked_load is patched


def test_a_launch_function_patched_inside_stays_and_works_after(monkeypatch):
    x, y, out = torch.randn(3, 64)
    monkeypatch.setattr(GridExecutor, "__call__", GridExecutor.__call__)
    with count_traffic():
        inner = GridExecutor.__call__

        def outer(*args, **kwargs):
            return inner(*args, **kwargs)

        GridExecutor.__call__ = outer
    add_kernel[(1,)](x, y, out, 64, BLOCK=64)
    assert torch.equal(out, x + y)


@pytest.mark.slow
def test_rejects_a_process_that_compiles_its_kernels():
    code = (
        "from decodetax.harness.offline import count_traffic\n"
        "try:\n"
        "    with count_traffic(): pass\n"
        "except RuntimeError as error: assert 'TRITON_INTERPRET=1' in str(error)\n"
        "else: raise SystemExit('no error')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
