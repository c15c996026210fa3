"""The memory sanitizer finds planted faults, and is silent on correct kernels."""

import math

import pytest
import torch
import triton
import triton.language as tl
from decodetax.harness.offline import SanitizerError, count_traffic, sanitizer
from decodetax.kernels import DecodeTiling, MatmulTiling, decode_attention, prefill_matmul
from triton.tools.tensor_descriptor import TensorDescriptor

needs_atomic_loads = pytest.mark.skipif(
    not hasattr(tl, "atomic_load"), reason="this Triton has no atomic loads and stores"
)


@triton.jit
def copy_kernel(x_ptr, out_ptr, shift, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = offsets < n
    tl.store(out_ptr + offsets, tl.load(x_ptr + offsets + shift, mask=live), mask=live)


@triton.jit
def shifted_store_kernel(x_ptr, out_ptr, shift, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = offsets < n
    tl.store(out_ptr + offsets + shift, tl.load(x_ptr + offsets, mask=live), mask=live)


@triton.jit
def row_kernel(x_ptr, out_ptr, stride, columns, BLOCK: tl.constexpr):
    row, offsets = tl.program_id(0), tl.arange(0, BLOCK)
    live = offsets < columns
    tl.store(out_ptr + row * BLOCK + offsets, tl.load(x_ptr + row * stride + offsets, mask=live), mask=live)


@triton.jit
def atomic_kernel(bins_ptr, at):
    tl.atomic_add(bins_ptr + at, 1)


@triton.jit
def address_kernel(addresses_ptr, out_ptr):
    x_ptr = tl.load(addresses_ptr).to(tl.pointer_type(tl.float32))
    tl.store(out_ptr, tl.load(x_ptr))


@triton.jit
def device_descriptor_kernel(x_ptr, out_ptr, rows, BLOCK: tl.constexpr):
    x = tl.make_tensor_descriptor(x_ptr, [rows, BLOCK], [BLOCK, 1], [BLOCK, BLOCK])
    tile = x.load([tl.program_id(0) * BLOCK, 0])
    offsets = tl.arange(0, BLOCK)
    tl.store(out_ptr + tl.program_id(0) * BLOCK + offsets, tl.sum(tile, 1))


@triton.jit
def same_value_kernel(out_ptr):
    tl.store(out_ptr, 1.0)


@triton.jit
def overlapping_kernel(out_ptr, STEP: tl.constexpr, BLOCK: tl.constexpr):
    tl.store(out_ptr + tl.program_id(0) * STEP + tl.arange(0, BLOCK), tl.zeros((BLOCK,), tl.float32))


@triton.jit
def word_and_byte_kernel(x_ptr, BYTE: tl.constexpr):
    """Program 0 writes bytes 4 to 7 of what it has read whole, program 1 a single byte."""
    if tl.program_id(0) == 0:
        tl.store(x_ptr + 1, tl.load(x_ptr + 1) + 1)
    else:
        tl.store(x_ptr.to(tl.pointer_type(tl.int8)) + BYTE, tl.full((), 1, tl.int8))


@triton.jit
def neighbour_kernel(x_ptr, BLOCK: tl.constexpr, BACK: tl.constexpr):
    """In place: each program reads one element more than it writes, before its block or after."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    at = tl.program_id(0) * BLOCK + (-1 if BACK else BLOCK)
    edge = tl.load(x_ptr + at, mask=at >= 0, other=0.0)
    tl.store(x_ptr + offsets, x + edge)


@triton.jit
def mixed_kernel(x_ptr, ATOMIC_FIRST: tl.constexpr, LOAD: tl.constexpr):
    if (tl.program_id(0) == 0) == ATOMIC_FIRST:
        tl.atomic_add(x_ptr, 1.0)
    elif LOAD:
        tl.device_assert(tl.load(x_ptr) >= 0)
    else:
        tl.store(x_ptr, 2.0)


@triton.jit
def split_k_kernel(
    x_ptr,
    partial_ptr,
    counter_ptr,
    out_ptr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    SEM: tl.constexpr,
    EARLY: tl.constexpr,
    SCOPE: tl.constexpr = "gpu",
):
    """Each program stores a partial sum; the last to arrive adds them, and clears the counter."""
    offsets = tl.arange(0, BLOCK)
    share = tl.load(x_ptr + tl.program_id(0) * BLOCK + offsets)
    arrived = 0
    if EARLY:
        arrived = tl.atomic_add(counter_ptr, 1, sem=SEM, scope=SCOPE)
    tl.store(partial_ptr + tl.program_id(0) * BLOCK + offsets, share)
    if not EARLY:
        arrived = tl.atomic_add(counter_ptr, 1, sem=SEM, scope=SCOPE)
    if arrived == SPLITS - 1:
        total = tl.zeros((BLOCK,), tl.float32)
        for split in range(SPLITS):
            total += tl.load(partial_ptr + split * BLOCK + offsets)
        tl.store(out_ptr + offsets, total)
        tl.store(counter_ptr, 0)


@triton.jit
def locked_kernel(lock_ptr, total_ptr, x_ptr, LOCKED: tl.constexpr):
    x = tl.load(x_ptr + tl.program_id(0))
    if LOCKED:
        while tl.atomic_cas(lock_ptr, 0, 1) == 1:
            pass
    tl.store(total_ptr, tl.load(total_ptr) + x)
    if LOCKED:
        tl.atomic_xchg(lock_ptr, 0)


@triton.jit
def passed_on_kernel(flags_ptr, data_ptr, out_ptr, SECOND: tl.constexpr):
    """Program 0 writes and raises flag 0; 1 sees it and raises flag 1; 2 sees that and reads."""
    if tl.program_id(0) == 0:
        tl.store(data_ptr, 3.0)
        tl.atomic_xchg(flags_ptr, 1, sem="release")
    elif tl.program_id(0) == 1:
        tl.atomic_add(flags_ptr, 0, sem="acquire")
        tl.atomic_xchg(flags_ptr + 1, 1, sem=SECOND)
    else:
        tl.atomic_add(flags_ptr + 1, 0, sem="acquire")
        tl.store(out_ptr, tl.load(data_ptr))


@triton.jit
def two_releases_kernel(counter_ptr, data_ptr, out_ptr):
    """Programs 0 and 1 only release; what 0 published must survive what 1 did to the counter."""
    if tl.program_id(0) < 2:
        tl.store(data_ptr + tl.program_id(0), 1.0)
        tl.atomic_add(counter_ptr, 1, sem="release")
    else:
        tl.atomic_add(counter_ptr, 0, sem="acquire")
        tl.store(out_ptr, tl.load(data_ptr) + tl.load(data_ptr + 1))


@triton.jit
def flag_kernel(flag_ptr, data_ptr, out_ptr, STORE: tl.constexpr, LOAD: tl.constexpr):
    if tl.program_id(0) == 0:
        tl.store(data_ptr, 3.0)
        tl.atomic_store(flag_ptr, 1, sem=STORE)
    else:
        ready = tl.atomic_load(flag_ptr, sem=LOAD)
        tl.store(out_ptr, tl.load(data_ptr) + ready)


@triton.jit
def softmax_kernel(x_ptr, out_ptr, stride, columns, BLOCK: tl.constexpr):
    row, offsets = tl.program_id(0), tl.arange(0, BLOCK)
    live = offsets < columns
    x = tl.load(x_ptr + row * stride + offsets, mask=live, other=-float("inf"))
    x = tl.exp(x - tl.max(x, 0))
    tl.store(out_ptr + row * stride + offsets, x / tl.sum(x, 0), mask=live)


@triton.jit
def matmul_kernel(a_desc, b_desc, out_desc, depth, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    row, column = tl.program_id(0) * M, tl.program_id(1) * N
    out = tl.zeros((M, N), tl.float32)
    for k in range(0, depth, K):
        out = tl.dot(a_desc.load([row, k]), b_desc.load([k, column]), out, input_precision="ieee")
    out_desc.store([row, column], out)


@triton.jit
def histogram_kernel(x_ptr, bins_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = offsets < n
    tl.atomic_add(bins_ptr + tl.load(x_ptr + offsets, mask=live, other=0), 1, mask=live)


def zeros(n=1, dtype=torch.int32):
    return torch.zeros(n, dtype=dtype)


def copied(x, out, shift, n):
    copy_kernel[(2,)](x, out, shift, n, BLOCK=64)


def next_argument(both):
    copied(both[:100], both[100:], 0, 101)


RACE = "a race, no atomic orders the two"
NOT_AN_ARGUMENT = torch.randn(4)

BOUNDS = {
    "a load past the end": lambda: copied(torch.randn(100), torch.randn(200), 0, 101),
    "a load before the start": lambda: copied(torch.randn(100), torch.randn(200), -1, 99),
    "a load from the next argument": lambda: next_argument(torch.randn(256)),
    "a load far away": lambda: copied(torch.randn(100), torch.randn(200), 1 << 30, 99),
    "a load into the same storage": lambda: copied(torch.randn(200)[:100], torch.randn(200), 0, 101),
    "a load before a view": lambda: copied(torch.randn(200)[50:150], torch.randn(200), -1, 99),
    "a store past the end": lambda: shifted_store_kernel[(2,)](
        torch.randn(100), torch.randn(100), 1, 100, BLOCK=64
    ),
    "a store into a view's neighbour": lambda: shifted_store_kernel[(2,)](
        torch.randn(100), torch.randn(300)[100:200], 1, 100, BLOCK=64
    ),
    "a load from a gap of a view": lambda: row_kernel[(4,)](
        torch.randn(4, 12)[:, :10], torch.randn(64), 12, 11, BLOCK=16
    ),
    "a load with another tensor's stride": lambda: row_kernel[(4,)](
        torch.randn(4, 12)[:, :10], torch.randn(64), 10, 10, BLOCK=16
    ),
    "an atomic past the end": lambda: atomic_kernel[(1,)](zeros(8), 8),
    "an empty tensor": lambda: copy_kernel[(1,)](torch.randn(0), torch.randn(64), 0, 1, BLOCK=64),
    "a descriptor larger than its tensor": lambda: device_descriptor_kernel[(2,)](
        torch.randn(31, 16), torch.randn(32), 32, BLOCK=16
    ),
    "an address of no tensor": lambda: address_kernel[(1,)](
        torch.tensor([NOT_AN_ARGUMENT.data_ptr()]), torch.randn(1)
    ),
}


def test_a_stray_store_writes_nothing():
    memory = torch.zeros(128)
    with count_traffic(), pytest.raises(SanitizerError):
        shifted_store_kernel[(1,)](torch.ones(64), memory[:64], 1, 64, BLOCK=64)
    assert not memory.any()


def two_names():
    x = torch.randn(129)
    copied(x[1:], x[:128], 0, 128)


def split_k(*, sem="acq_rel", early=False, scope="gpu", counter=None):
    x, out = torch.randn(4, 32), torch.empty(32)
    counter = zeros() if counter is None else counter
    partial = torch.empty(4, 32)
    split_k_kernel[(4,)](x, partial, counter, out, SPLITS=4, BLOCK=32, SEM=sem, EARLY=early, SCOPE=scope)
    assert torch.allclose(out, x.sum(0))
    assert counter.item() == 0


RACES = {
    "the same value twice": lambda: same_value_kernel[(2,)](torch.zeros(1)),
    "blocks that overlap": lambda: overlapping_kernel[(2,)](torch.zeros(128), STEP=63, BLOCK=64),
    "a read of what an earlier program wrote": lambda: neighbour_kernel[(3,)](
        torch.randn(192), BLOCK=64, BACK=True
    ),
    "a write to what an earlier program read": lambda: neighbour_kernel[(3,)](
        torch.randn(200), BLOCK=64, BACK=False
    ),
    "a store after an atomic": lambda: mixed_kernel[(2,)](torch.zeros(1), ATOMIC_FIRST=True, LOAD=False),
    "an atomic after a store": lambda: mixed_kernel[(2,)](torch.zeros(1), ATOMIC_FIRST=False, LOAD=False),
    "two names of one tensor": two_names,
    "a counter without order": lambda: split_k(sem="relaxed"),
    "a counter that only acquires": lambda: split_k(sem="acquire"),
    "a counter that only releases": lambda: split_k(sem="release"),
    "a counter before the stores": lambda: split_k(early=True),
    "a counter of block scope": lambda: split_k(scope="cta"),
    "a byte of another's word": lambda: word_and_byte_kernel[(2,)](zeros(4), BYTE=7),
    "no lock": lambda: locked_kernel[(4,)](zeros(), torch.zeros(1), torch.randn(4), LOCKED=False),
    "a flag passed on without release": lambda: passed_on_kernel[(3,)](
        zeros(2), torch.zeros(1), torch.zeros(1), SECOND="relaxed"
    ),
}


def test_finds_a_race_with_a_load_of_a_compacted_log(monkeypatch):
    monkeypatch.setattr(sanitizer, "_MAX_LOGGED_GRANULES", 64)  # the second load, which races, is over it
    with count_traffic(), pytest.raises(SanitizerError, match="a race"):
        neighbour_kernel[(2,)](torch.randn(200), BLOCK=64, BACK=False)


@needs_atomic_loads
@pytest.mark.parametrize(("store", "load"), [("relaxed", "acquire"), ("release", "relaxed")])
def test_finds_an_atomic_flag_without_order(store, load):
    with count_traffic(), pytest.raises(SanitizerError) as caught:
        flag_kernel[(2,)](zeros(), torch.zeros(1), torch.zeros(1), STORE=store, LOAD=load)
    assert (caught.value.kind, caught.value.tensor) == ("race", "data_ptr")


def read(x):
    copy_kernel[(1,)](x, torch.zeros(x.numel()), 0, x.numel(), BLOCK=triton.next_power_of_2(x.numel()))


def half_written_by_a_kernel():
    x = torch.empty(64)
    copy_kernel[(1,)](torch.randn(32), x, 0, 32, BLOCK=32)
    read(x)


def assigned(x, index):
    x[index] = 1.0
    return x


def unfilled_split():
    partial = torch.empty(4, 32)
    split_k_kernel[(3,)](
        torch.randn(4, 32), partial, zeros(), torch.empty(32), SPLITS=3, BLOCK=32, SEM="acq_rel", EARLY=False
    )
    read(partial.view(-1))


UNINITIALIZED = {
    "empty": lambda: read(torch.empty(64)),
    "empty_like": lambda: read(torch.empty_like(torch.zeros(64))),
    "empty_strided": lambda: read(torch.empty_strided((64,), (1,))),
    "new_empty": lambda: read(torch.zeros(1).new_empty(64)),
    "empty_permuted": lambda: read(torch.empty_permuted((64,), (0,))),
    "a view of empty": lambda: read(torch.empty(8, 8).view(64)[8:]),
    "half written by torch": lambda: read(assigned(torch.empty(64), slice(0, 63))),
    "written at some places": lambda: read(assigned(torch.empty(64), torch.arange(0, 64, 2))),
    "written where a mask says": lambda: read(assigned(torch.empty(64), torch.arange(64) > 0)),
    "half written by a kernel": half_written_by_a_kernel,
    "an atomic on empty": lambda: atomic_kernel[(1,)](torch.empty(8, dtype=torch.int32), 3),
    "a split-K partial sum that is missing": unfilled_split,
}


FAULTS = {
    (kind, name): launch
    for kind, launches in (("bounds", BOUNDS), ("race", RACES), ("uninitialized", UNINITIALIZED))
    for name, launch in launches.items()
}


@pytest.mark.parametrize("fault", FAULTS, ids=": ".join)
def test_finds_a_fault(fault):
    with count_traffic(), pytest.raises(SanitizerError) as caught:
        FAULTS[fault]()
    assert caught.value.kind == fault[0]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("launch", "byte_offset", "message"),
    [
        (
            lambda: copied(torch.randn(100), torch.randn(200), 0, 101),
            400,
            "reads byte offset 400 (element 100), outside the 400 bytes of the tensor",
        ),
        (
            lambda: neighbour_kernel[(3,)](torch.randn(200), BLOCK=64, BACK=False),
            256,
            f"writes byte offset 256 (element 64), which program (0, 0, 0) read: {RACE}",
        ),
        (
            lambda: copied(assigned(torch.empty(100), slice(0, 70)), torch.zeros(100), 0, 100),
            280,
            "reads byte offset 280 (element 70), which nothing has written",
        ),
    ],
    ids=["bounds", "race", "uninitialized"],
)
def test_names_tensor_program_and_offset(launch, byte_offset, message):
    with count_traffic(), pytest.raises(SanitizerError) as caught:
        launch()
    error = caught.value
    assert str(error) == f"x_ptr: program (1, 0, 0) {message}"
    assert (error.tensor, error.program, error.byte_offset) == ("x_ptr", (1, 0, 0), byte_offset)


def test_tensors_given_as_uninitialized_are_so_until_written():
    x = torch.randn(64)
    with count_traffic(uninitialized=[x[:32]]):
        read(x[32:])
        with pytest.raises(SanitizerError):
            read(x)
        x[:32].zero_()
        read(x)


def test_empty_tensors_made_outside_are_initialized():
    x = torch.empty(64)
    with count_traffic():
        read(x)


WRITTEN = {
    "fill_": lambda x: x.fill_(1.0),
    "copy_": lambda x: x.copy_(torch.randn(64)),
    "out=": lambda x: torch.add(torch.zeros(64), 1.0, out=x),
    "normal_": lambda x: x.normal_(),
    "by halves": lambda x: (assigned(x, slice(0, 32)), assigned(x, slice(32, 64))),
    "index put": lambda x: (assigned(x, torch.arange(0, 64, 2)), assigned(x, torch.arange(1, 64, 2))),
    "masked": lambda x: (assigned(x, torch.arange(64) < 9), x.masked_fill_(torch.arange(64) >= 9, 0.0)),
    "through a transposed view": lambda x: x.view(8, 8).t().copy_(torch.randn(8, 8)),
    "through another dtype": lambda x: x.view(torch.int32).zero_(),
    "through bytes": lambda x: x.view(torch.uint8).zero_(),
    "by a kernel": lambda x: copy_kernel[(2,)](torch.randn(64), x, 0, 64, BLOCK=32),
}


@pytest.mark.parametrize("write", WRITTEN.values(), ids=WRITTEN.keys())
def test_a_write_initializes(write):
    with count_traffic():
        x = torch.empty(64)
        write(x)
        read(x)


def test_a_freed_tensor_leaves_no_shadow_at_its_address():
    with count_traffic():
        for _ in range(20):
            torch.empty(1024)
            read(torch.randn(1024))


def add_in_place():
    x = torch.randn(100)
    copied(x, x, 0, 100)


def softmax_of_a_view():
    x, out = torch.randn(5, 20)[:, :13], torch.empty(5, 20)[:, :13]
    softmax_kernel[(5,)](x, out, 20, 13, BLOCK=16)
    assert torch.allclose(out, torch.softmax(x, 1))


def matmul_of_descriptors():
    a, b, out = torch.randn(40, 56), torch.randn(56, 36), torch.empty(40, 36)
    blocks = ((a, [16, 32]), (b, [32, 16]), (out, [16, 16]))
    matmul_kernel[(3, 3)](*(TensorDescriptor.from_tensor(*pair) for pair in blocks), 56, M=16, N=16, K=32)
    assert torch.allclose(out, a @ b, atol=1e-4)


def histogram():
    x, bins = torch.randint(0, 50, (1000,), dtype=torch.int32), zeros(50)
    histogram_kernel[(8,)](x, bins, 1000, BLOCK=128)
    assert torch.equal(bins, torch.bincount(x, minlength=50).int())


def split_k_twice():
    counter = zeros()
    split_k(counter=counter)
    split_k(counter=counter)


def locked_sum():
    x, total = torch.randn(4), torch.zeros(1)
    locked_kernel[(4,)](zeros(), total, x, LOCKED=True)
    assert torch.allclose(total, x.sum())


def views_side_by_side():
    both = torch.zeros(128)
    copy_kernel[(1,)](torch.ones(64), both[:64], 0, 64, BLOCK=64)
    copy_kernel[(2,)](both[:64], both[64:], 0, 64, BLOCK=32)
    assert both.all()


def matmul(*, splits, dtype, bias, rows=37):
    tiling = MatmulTiling(
        block_m=16, block_n=32, block_k=16, group_m=2, num_splits=splits, num_warps=4, num_stages=2
    )
    x, weight = torch.randn(rows, 50).to(dtype), torch.randn(70, 60).to(dtype)[:, :50]
    prefill_matmul(x, weight, bias=torch.randn(70) if bias else None, tiling=tiling)


def attention(*, splits, page_size=0):
    lengths = (0, 1, 33, 70)
    q = torch.randn(4, 6, 40).half()
    lens = torch.tensor(lengths, dtype=torch.int32)
    tiling = DecodeTiling(block_g=16, block_n=16, num_splits=splits, num_warps=4, num_stages=2)
    if not page_size:
        cache = torch.empty(4, 2, 75, 40).half().transpose(1, 2)
        for row, length in enumerate(lengths):
            cache[row, :length] = 1.0
        decode_attention(q, cache, cache, lens, tiling=tiling, return_lse=True)
        return
    table = torch.empty(4, math.ceil(75 / page_size), dtype=torch.int32)
    cache = torch.empty(20, page_size, 2, 40).half()
    pages = iter(torch.randperm(20).tolist())
    for row, length in enumerate(lengths):
        for at in range(math.ceil(length / page_size)):
            table[row, at] = next(pages)
            cache[table[row, at], : length - at * page_size] = 1.0
    decode_attention(q, cache, cache, lens, block_table=table, tiling=tiling)


CORRECT = {
    "a byte beside another's word": lambda: word_and_byte_kernel[(2,)](zeros(4), BYTE=8),
    "copy in place": add_in_place,
    "softmax of a view": softmax_of_a_view,
    "matmul by TMA descriptors": matmul_of_descriptors,
    "histogram": histogram,
    "split-K with a counter, twice": split_k_twice,
    "sum under a lock": locked_sum,
    "views side by side": views_side_by_side,
    "a flag passed on": lambda: passed_on_kernel[(3,)](
        zeros(2), torch.zeros(1), torch.zeros(1), SECOND="acq_rel"
    ),
    "an exchange on empty passes a flag on": lambda: passed_on_kernel[(3,)](
        torch.empty(2, dtype=torch.int32), torch.zeros(1), torch.zeros(1), SECOND="release"
    ),
    "two that only release": lambda: two_releases_kernel[(3,)](zeros(), torch.zeros(2), torch.zeros(1)),
    "a plain load beside atomics": lambda: mixed_kernel[(3,)](torch.zeros(1), ATOMIC_FIRST=True, LOAD=True),
    "the matmul": lambda: matmul(splits=1, dtype=torch.bfloat16, bias=True),
    "the matmul with split-K, some splits empty": lambda: matmul(splits=7, dtype=torch.float16, bias=True),
    "the matmul of one row": lambda: matmul(splits=2, dtype=torch.float32, bias=False, rows=1),
    "the attention": lambda: attention(splits=1),
    "the attention with split-KV": lambda: attention(splits=3),
    "the attention with a paged KV cache": lambda: attention(splits=2, page_size=16),
}


@pytest.mark.parametrize("launch", CORRECT.values(), ids=CORRECT.keys())
def test_is_silent_on_correct_kernels(launch):
    with count_traffic() as traffic:
        launch()
    assert traffic.bytes_requested > 0


@needs_atomic_loads
def test_is_silent_on_an_atomic_flag_with_order():
    with count_traffic() as traffic:
        flag_kernel[(2,)](zeros(), torch.zeros(1), torch.zeros(1), STORE="release", LOAD="acquire")
    assert len(traffic.launches) == 1
