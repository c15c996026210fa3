"""Triton kernels as users write them: atomics, sorts, descriptors, random numbers, all dtypes of `tl.dot`.

Run as a program, without TRITON_INTERPRET: its arguments are a compute capability and names of checks, all
without any. It prints a JSON object: what is wrong with each check, "" for nothing.
"""

import json
import sys

import torch
import triton
import triton.language as tl
from decodetax.harness.core.errors import one_line
from decodetax.harness.offline.ptx.launch import executed
from triton.language.extra import libdevice
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def atomics_kernel(x, sums, maxima, counter, halves, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < n, other=0)
    tl.atomic_add(sums + i % 7, value, mask=i < n)
    tl.atomic_max(maxima + i % 5, value.to(tl.int32), mask=i < n)
    tl.atomic_add(halves + i % 4, value.to(tl.float16), mask=i < n)
    old = tl.atomic_add(counter, 1)
    tl.atomic_cas(counter + 1, 0, 5)
    tl.atomic_xchg(counter + 2, old)


@triton.jit
def last_cta_kernel(x, partial, counter, total, n, BLOCK: tl.constexpr, CTAS: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(partial + tl.program_id(0), tl.sum(tl.load(x + i, mask=i < n, other=0.0)))
    tl.debug_barrier()
    if tl.atomic_add(counter, 1) == CTAS - 1:
        tl.store(total, tl.sum(tl.load(partial + tl.arange(0, CTAS))))


@triton.jit
def spin_kernel(flags, values, CTAS: tl.constexpr):
    """Each CTA waits for the next one's value."""
    p = tl.program_id(0)
    if p < CTAS - 1:
        while tl.atomic_add(flags + p + 1, 0) == 0:
            pass
    tl.store(values + p, tl.load(values + p + 1) + 1)
    tl.debug_barrier()
    tl.atomic_xchg(flags + p, 1)


@triton.jit
def order_kernel(x, index, ordered, counts, gathered, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    value = tl.load(x + i)
    tl.store(ordered + i, tl.sort(value))
    tl.store(counts + tl.arange(0, 32), tl.histogram(value, 32))
    tl.store(gathered + i, tl.gather(value, tl.load(index + i), 0))


@triton.jit
def reduce_kernel(x, sums, maxima, places, scans, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    i = row[:, None] * COLUMNS + column[None, :]
    value = tl.load(x + i)
    tl.store(sums + row, tl.sum(value, 1))
    tl.store(maxima + column, tl.max(value, 0))
    tl.store(places + row, tl.argmax(value, 1))
    tl.store(scans + i, tl.cumsum(value, 0) + tl.cumsum(value, 1, reverse=True))


@triton.jit
def random_kernel(uniform, normal, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(uniform + i, tl.rand(7, i))
    tl.store(normal + i, tl.randn(9, i))


@triton.jit
def functions_kernel(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a = tl.load(x + i)
    result = (
        tl.exp(a) + tl.log2(tl.abs(a) + 1) + tl.sin(a) + tl.rsqrt(tl.abs(a) + 1) + tl.erf(a) + tl.floor(a)
    )
    result += libdevice.tanh(a) + libdevice.pow(tl.abs(a), a * 0 + 1.7) + libdevice.round(a)
    tl.store(y + i, result + libdevice.sin(a * 1000) + libdevice.fmod(a, a * 0 + 0.3) + tl.div_rn(a, 3.0))


@triton.jit
def wide_kernel(x, y, products, roots, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a, b = tl.load(x + i), tl.load(y + i)
    high = tl.umulhi(a.to(tl.uint64), b.to(tl.uint64)).to(tl.int64)
    tl.store(products + i, a * b + a // b - a % b + (a >> 5) + high)
    tl.store(roots + i, tl.sqrt(tl.abs(a.to(tl.float64))) + tl.exp(a.to(tl.float64) * 1e-18))


@triton.jit
def assembly_kernel(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    code: tl.constexpr = "{ .reg .b32 t<2>; shl.b32 t0, $1, 3; add.s32 $0, t0, $1; }"
    tl.store(y + i, tl.inline_asm_elementwise(code, "=r,r", [tl.load(x + i)], tl.int32, True, 1))


@triton.jit
def dot_kernel(
    a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, SUMS: tl.constexpr, PRECISION: tl.constexpr
):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    x, y = tl.load(a + m[:, None] * K + k[None, :]), tl.load(b + k[:, None] * N + n[None, :])
    sums = tl.dot(x, y, input_precision=PRECISION, out_dtype=SUMS)
    tl.store(c + m[:, None] * N + n[None, :], sums)


@triton.jit
def device_descriptor_kernel(x, y, ROWS, COLUMNS, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    source = tl.make_tensor_descriptor(x, [ROWS, COLUMNS], [COLUMNS, 1], [BLOCK_M, BLOCK_N])
    target = tl.make_tensor_descriptor(y, [ROWS, COLUMNS], [COLUMNS, 1], [BLOCK_M, BLOCK_N])
    at = [tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N]
    target.store(at, source.load(at) * 2)


@triton.jit
def host_descriptor_kernel(
    source, target, total, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ADD: tl.constexpr
):
    m, n = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    value = source.load([m, n])
    target.store([m, n], value * 2)
    if ADD:
        total.atomic_add([0, n], value)


@triton.jit
def pair_kernel(pointers, numbers, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    value = tl.load(pointers[0] + i)
    tl.device_assert(value >= 0, "negative")
    tl.device_print("value", value)
    tl.store(pointers[1] + i, value * numbers[1])


@triton.jit
def convert_kernel(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i).to(tl.bfloat16))


def near(got, wanted, tolerance):
    got, wanted = got.double(), wanted.double()
    return bool(((got - wanted).abs() <= tolerance * (1 + wanted.abs().max())).all())


def check_atomics(_capability):
    n = 500
    x, i = torch.randn(n).round(decimals=1), torch.arange(n)
    sums, halves = torch.zeros(7), torch.zeros(4, dtype=torch.float16)
    maxima, counter = torch.full((5,), -99, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    atomics_kernel[(4,)](x, sums, maxima, counter, halves, n, BLOCK=128)
    wanted = torch.stack([x[i % 5 == j].int().max() for j in range(5)])
    assert near(sums, torch.zeros(7).index_add(0, i % 7, x), 1e-6)
    assert near(halves, torch.zeros(4).index_add(0, i % 4, x), 1e-2)
    assert torch.equal(maxima, wanted)
    assert counter[:2].tolist() == [4, 5]


def check_ctas_that_rely_on_one_another(_capability):
    x, partial, total = torch.randn(1000), torch.empty(4), torch.empty(1)
    last_cta_kernel[(4,)](x, partial, torch.zeros(1, dtype=torch.int32), total, 1000, BLOCK=256, CTAS=4)
    assert near(total, x.sum(), 1e-6)
    values = torch.zeros(5)
    spin_kernel[(4,)](torch.zeros(5, dtype=torch.int32), values, CTAS=4)
    assert values.tolist() == [4, 3, 2, 1, 0]


def check_sort_histogram_gather(_capability):
    x, index = (torch.randint(0, 32, (256,), dtype=torch.int32) for _ in range(2))
    ordered, gathered, counts = torch.empty_like(x), torch.empty_like(x), torch.empty(32, dtype=torch.int32)
    order_kernel[(1,)](x, index, ordered, counts, gathered, BLOCK=256)
    assert torch.equal(ordered, x.sort().values)
    assert torch.equal(counts.long(), torch.bincount(x, minlength=32))
    assert torch.equal(gathered, x[index.long()])


def check_reductions_and_scans(_capability):
    for dtype in (torch.float32, torch.float16, torch.int64, torch.float64):
        x = (torch.randn(16, 64) * 20).to(dtype)
        sums, maxima = torch.empty(16, dtype=dtype), torch.empty(64, dtype=dtype)
        places, scans = torch.empty(16, dtype=torch.int32), torch.empty_like(x)
        reduce_kernel[(1,)](x, sums, maxima, places, scans, ROWS=16, COLUMNS=64)
        assert near(sums, x.double().sum(1), 1e-3)
        assert torch.equal(maxima, x.max(0).values)
        assert torch.equal(x.gather(1, places.long()[:, None])[:, 0], x.max(1).values)
        assert near(scans, x.double().cumsum(0) + x.double().flip(1).cumsum(1).flip(1), 1e-2)


def check_random_numbers(_capability):
    uniform, normal = torch.empty(512), torch.empty(512)
    random_kernel[(1,)](uniform, normal, BLOCK=512)
    assert 0 <= uniform.min() <= uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.1
    assert abs(normal.std() - 1) < 0.2


def check_functions(_capability):
    x, y = torch.randn(128), torch.empty(128)
    functions_kernel[(1,)](x, y, BLOCK=128)
    a = x.double()
    wanted = a.exp() + (a.abs() + 1).log2() + a.sin() + (a.abs() + 1).rsqrt() + a.erf() + a.floor() + a.tanh()
    wanted += a.abs() ** 1.7 + (a + 0.5 * a.sign()).trunc() + (x * 1000).double().sin() + a / 3
    assert near(y, wanted + torch.fmod(x, torch.tensor(0.3)).double(), 1e-6)


def check_64_bits(_capability):
    x, y = torch.randint(-(2**62), 2**62, (64,)), torch.randint(1, 2**40, (64,))
    products, roots = torch.empty_like(x), torch.empty(64, dtype=torch.float64)
    wide_kernel[(1,)](x, y, products, roots, BLOCK=64)
    for a, b, got in zip(x.tolist(), y.tolist(), products.tolist(), strict=True):
        quotient = abs(a) // b * (1 if a >= 0 else -1)
        high = (a % 2**64) * b >> 64
        assert (got - (a * b + quotient - (a - quotient * b) + (a >> 5) + high)) % 2**64 == 0
    assert near(roots, x.double().abs().sqrt() + (x.double() * 1e-18).exp(), 1e-12)


def check_inline_assembly(_capability):
    x, y = torch.arange(128, dtype=torch.int32), torch.empty(128, dtype=torch.int32)
    assembly_kernel[(1,)](x, y, BLOCK=128)
    assert torch.equal(y, 9 * x)


def check_dot(capability):
    kinds = [
        *((dtype, tl.float32, "ieee", 1e-6) for dtype in (torch.float16, torch.bfloat16, torch.float32)),
        *((torch.float32, tl.float32, precision, 1e-2) for precision in ("tf32", "tf32x3")),
        (torch.float16, tl.float16, "ieee", 1e-2),
        (torch.float64, tl.float64, "ieee", 1e-14),
        (torch.int8, tl.int32, "ieee", 0),
        (torch.float8_e5m2, tl.float32, "ieee", 1e-6),
    ]
    if capability >= 89:
        kinds.append((torch.float8_e4m3fn, tl.float32, "ieee", 1e-6))
    outputs = {
        tl.float32: torch.float32,
        tl.float16: torch.float16,
        tl.float64: torch.float64,
        tl.int32: torch.int32,
    }
    for dtype, sums, precision, tolerance in kinds:
        for m, n in ((16, 16), (64, 32)):
            a, b = ((torch.randn(*shape) * 4).to(dtype) for shape in ((m, 64), (64, n)))
            c = torch.empty(m, n, dtype=outputs[sums])
            dot_kernel[(1,)](a, b, c, M=m, N=n, K=64, SUMS=sums, PRECISION=precision)
            a, b = (each.float().double() if each.itemsize == 1 else each.double() for each in (a, b))
            assert near(c, a @ b, tolerance), (dtype, sums, precision, m)


def check_printing_assertions_and_tuples(_capability):
    x, y = torch.arange(128, dtype=torch.float32), torch.empty(128)
    pair_kernel[(1,)]((x, y), (1, 3.5), BLOCK=128, debug=True)
    assert torch.equal(y, 3.5 * x)


def check_numpys_writes(_capability):
    x, y = torch.empty(128), torch.empty(128)
    x.numpy()[:] = 2.0
    pair_kernel[(1,)]((x, y), (1, 3.5), BLOCK=128)
    assert torch.equal(y, 3.5 * x)


def check_float16_and_float8_to_bfloat16(capability):
    for dtype in (torch.float16, torch.float8_e5m2, *([torch.float8_e4m3fn] if capability >= 89 else [])):
        x, y = torch.randn(128).to(dtype), torch.empty(128, dtype=torch.bfloat16)
        convert_kernel[(1,)](x, y, BLOCK=128)
        assert torch.equal(y, x.bfloat16())


def check_device_descriptors(_capability):
    triton.set_allocator(lambda size, _alignment, _stream: torch.empty(size, dtype=torch.int8))
    x, y = torch.randn(50, 96), torch.empty(50, 96)
    device_descriptor_kernel[(2, 2)](x, y, 50, 96, BLOCK_M=32, BLOCK_N=64)
    assert torch.equal(y, 2 * x)


def check_host_descriptors(capability):
    for dtype in (torch.float32, torch.float16):
        x, y = torch.randn(50, 96).to(dtype), torch.empty(50, 96, dtype=dtype)
        total = torch.zeros(32, 96, dtype=dtype)
        host_descriptor_kernel[(2, 2)](
            *(TensorDescriptor.from_tensor(each, [32, 64]) for each in (x, y, total)),
            BLOCK_M=32,
            BLOCK_N=64,
            ADD=capability >= 90,
        )
        assert torch.equal(y, 2 * x)
        wanted = x[:32].double()
        wanted[:18] += x[32:]
        assert capability < 90 or near(total, wanted, 1e-2)


CHECKS = {
    name.removeprefix("check_"): function
    for name, function in list(globals().items())
    if name.startswith("check_")
}


def main() -> None:
    capability, names = int(sys.argv[1]), sys.argv[2:] or list(CHECKS)
    verdicts = {}
    for name in names:
        torch.manual_seed(0)
        try:
            with executed(capability) as execution:
                CHECKS[name](capability)
            verdicts[name] = "; ".join(map(str, execution.violations))
        except Exception as error:  # noqa: BLE001  (the test shows it)
            verdicts[name] = f"{type(error).__name__}: {one_line(error)}"
    json.dump(verdicts, sys.stdout)


if __name__ == "__main__":
    main()
