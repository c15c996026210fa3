"""Ceilings, measured on small buffers and on a device of the tests."""

import itertools

import pytest
import torch
from decodetax.harness.bench import ceilings as module
from decodetax.harness.bench.ceilings import CACHE_MULTIPLE, measure_ceilings, time_again
from decodetax.harness.bench.timer import Budget
from decodetax.harness.core.records import Ceiling
from fakes import FakeDevice, SmallCpu
from small_cases import source

MIB = 2**20


@pytest.fixture
def _small(monkeypatch):
    monkeypatch.setattr(module, "SQUARE_SIZES", {"cpu": (8, 16, 32), "cuda": (8, 16, 32)})


def by_name(device, **options):
    return dict(measure_ceilings(device, source(), **{"time_limit_s": 1e-3, **options}))


@pytest.mark.usefixtures("_small")
def test_ceilings_of_a_cpu_recompute_from_their_samples_and_work(monkeypatch):
    device = SmallCpu()
    monkeypatch.setattr(device, "free_bytes", lambda: 2**20)
    found = by_name(device)
    assert list(found) == ["read bandwidth", "copy bandwidth", "bf16 matmul", "fp16 matmul", "fp32 matmul"]
    for name, ceiling in found.items():
        assert ceiling.provenance == "measured"
        assert ceiling.reason is None
        assert len(ceiling.samples_s) >= 3
        best_s = min(ceiling.samples_s)
        if "matmul" in name:
            assert ceiling.dtype == name.removesuffix(" matmul")
            assert ceiling.flop_per_s == pytest.approx(ceiling.work["operations"] / best_s)
            assert ceiling.bandwidth_bytes_per_s is None
        else:
            total = ceiling.work["bytes_read"] + ceiling.work["bytes_written"]
            assert ceiling.bandwidth_bytes_per_s == pytest.approx(total / best_s)
            assert ceiling.flop_per_s is None
    assert found["read bandwidth"].work == {"bytes_read": 2**17, "bytes_written": 0}
    assert found["copy bandwidth"].work == {"bytes_read": 2**17, "bytes_written": 2**17}


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(
    ("cache_bytes", "free_bytes", "expected"),
    [
        pytest.param(4096, 2**40, 256 * MIB, id="small cache"),
        pytest.param(50 * MIB, 2**40, 400 * MIB, id="large cache"),
        pytest.param(50 * MIB, 1600 * MIB, 200 * MIB, id="little memory"),
    ],
)
def test_buffer_is_far_larger_than_the_cache(cache_bytes, free_bytes, expected):
    class Drawn(Exception):  # noqa: N818
        pass

    asked = []

    class Numbers:
        def normal(self, *shape, dtype):
            asked.append(shape[0] * dtype.itemsize)
            raise Drawn

    device = FakeDevice(cache_bytes=cache_bytes, free_bytes=free_bytes)
    with pytest.raises(Drawn):
        list(measure_ceilings(device, Numbers(), time_limit_s=1.0))
    assert asked == [expected]
    assert CACHE_MULTIPLE >= 8


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("free_bytes", [8 * 4 * 101, 8 * 4 * 102])
def test_buffer_of_an_odd_number_of_elements_is_read(free_bytes):
    assert by_name(FakeDevice(free_bytes=free_bytes))["read bandwidth"].bandwidth_bytes_per_s > 0


@pytest.mark.parametrize("name", sorted(module.READERS))
def test_readers_read_all_of_a_buffer(name):
    # Whatever the position of a change, the result shows it.
    buffer = torch.linspace(1, 2, 64)
    before = module.READERS[name](buffer)
    for at in range(64):
        changed = buffer.clone()
        changed[at] = 100
        assert module.READERS[name](changed) != before


def device_of_rates(rate_of_size, **options):
    """A device on which the product of n x n matrices runs at `rate_of_size(n)` FLOP/s."""
    made = []

    class Numbers:
        def normal(self, *shape, dtype):
            made.append(shape[0])
            return torch.ones(shape, dtype=dtype)

    def seconds_of(_call):
        return 2 * made[-1] ** 3 / rate_of_size(made[-1])

    return FakeDevice(seconds_of=seconds_of, **options), Numbers(), made


BUDGET = Budget(time_limit_s=1.0, warm_up_s=0.0, enough_samples=3)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("best", [8, 16, 32])
def test_ceiling_is_that_of_the_fastest_size(best):
    device, numbers, _ = device_of_rates(lambda size: 2e9 if size == best else 1e9)
    ceiling = module._matmul(device, numbers, "fp32", BUDGET)
    assert ceiling.flop_per_s == pytest.approx(2e9)
    assert ceiling.work == {"operations": 2 * best**3}
    assert f"{best} x {best}" in ceiling.detail


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(
    ("rate", "sizes"),
    [(2 * 8**3, {8}), (2 * 16**3 * 1.01, {8, 16}), (2 * 32**3 * 1.01, {8, 16, 32})],
    ids=["slow", "middling", "fast"],
)
def test_sizes_grow_until_one_would_exceed_the_time_limit(rate, sizes):
    device, numbers, made = device_of_rates(lambda _size: rate)
    ceiling = module._matmul(device, numbers, "fp32", BUDGET)
    assert set(made) == sizes
    assert ceiling.flop_per_s == pytest.approx(rate)


@pytest.mark.usefixtures("_small")
def test_sizes_grow_until_one_no_longer_fits():
    device, numbers, made = device_of_rates(lambda _size: 1e9, free_bytes=2 * 3 * 16**2 * 4)
    assert module._matmul(device, numbers, "fp32", BUDGET).flop_per_s == pytest.approx(1e9)
    assert set(made) == {8, 16}


@pytest.mark.usefixtures("_small")
def test_no_memory_for_any_size_is_a_reason():
    device, numbers, _ = device_of_rates(lambda _size: 1e9, free_bytes=8)
    ceiling = module._matmul(device, numbers, "fp32", BUDGET)
    assert (ceiling.flop_per_s, ceiling.reason, tuple(ceiling.samples_s)) == (None, "out of memory", ())


@pytest.mark.usefixtures("_small")
def test_unsupported_dtype_is_a_ceiling_with_a_reason_and_no_rate(monkeypatch):
    device = FakeDevice(free_bytes=2**20)
    plain = device.time_each

    def without_half(calls):
        operands = calls[0].__defaults__ or ()
        if any(getattr(operand, "dtype", None) == torch.float16 for operand in operands):
            raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'\nC++ stack")
        return plain(calls)

    monkeypatch.setattr(device, "time_each", without_half)
    found = by_name(device)
    assert found["fp16 matmul"].flop_per_s is None
    assert found["fp16 matmul"].reason == "\"addmm_impl_cpu_\" not implemented for 'Half'"
    assert found["fp16 matmul"].work is None
    assert found["bf16 matmul"].flop_per_s
    assert found["fp32 matmul"].flop_per_s


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()], ids=repr)
def test_size_that_runs_out_of_memory_leaves_the_rates_of_smaller_ones(error):
    device, numbers, _ = device_of_rates(lambda _size: 1e9)
    draws = itertools.count(1)
    plain = numbers.normal

    def normal(*shape, dtype):
        if next(draws) > 4:  # two matrices of each of the first two sizes
            raise error
        return plain(*shape, dtype=dtype)

    numbers.normal = normal
    ceiling = module._matmul(device, numbers, "fp32", BUDGET)
    assert ceiling.flop_per_s == pytest.approx(1e9)
    assert ceiling.reason is None


@pytest.mark.usefixtures("_small")
def test_later_round_times_the_same_call_on_the_same_size(monkeypatch):
    device = SmallCpu()
    monkeypatch.setattr(device, "free_bytes", lambda: 2**20)
    for ceiling in by_name(device).values():
        again = time_again(ceiling, device, source(), BUDGET, number=1)
        assert (again.kind, again.dtype, again.work, again.call) == (
            *(ceiling.kind, ceiling.dtype, ceiling.work, ceiling.call),
        )
        assert again.samples_s[: len(ceiling.samples_s)] == ceiling.samples_s
        assert again.rounds[: len(ceiling.samples_s)] == (0,) * len(ceiling.samples_s)
        assert set(again.rounds[len(ceiling.samples_s) :]) == {1}
        assert again.rate == pytest.approx(ceiling.rate * min(ceiling.samples_s) / min(again.samples_s))


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("name", sorted(module.READERS))
def test_later_round_uses_the_fastest_reader(monkeypatch, name):
    read = []
    monkeypatch.setattr(module, "MIN_BUFFER_BYTES", {"cpu": 2**12})
    monkeypatch.setattr(module, "READERS", {name: lambda buffer: read.append(buffer.nbytes)})
    device = FakeDevice(cache_bytes=8)
    ceiling = by_name(device)["read bandwidth"]
    monkeypatch.setitem(module.READERS, "another", lambda _buffer: read.append(None))
    read.clear()
    time_again(ceiling, device, source(), BUDGET, number=2)
    assert set(read) == {2**12}


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("x"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
    ids=lambda error: type(error).__name__,
)
def test_ceiling_that_no_longer_fits_is_unchanged(monkeypatch, error):
    monkeypatch.setattr(module, "MIN_BUFFER_BYTES", {"cpu": 2**12})
    ceiling = by_name(FakeDevice())["copy bandwidth"]

    class Full:
        def normal(self, *_shape, dtype):
            assert dtype
            raise error

    assert time_again(ceiling, FakeDevice(), Full(), BUDGET, number=1) is ceiling


def test_ceiling_of_an_unknown_reader_is_unchanged():
    ceiling = Ceiling(kind="read_bandwidth", provenance="measured", bandwidth_bytes_per_s=1.0,
                      samples_s=(1.0,), work={"bytes_read": 8, "bytes_written": 0})  # fmt: skip
    assert time_again(ceiling, FakeDevice(), source(), BUDGET, number=1) is ceiling


def test_other_errors_of_a_ceiling_are_raised():
    class Broken:
        def normal(self, *_shape, dtype):
            raise RuntimeError(f"CUDA error in {dtype}")

    ceiling = Ceiling(kind="matmul", provenance="measured", dtype="fp32", flop_per_s=1.0, samples_s=(1.0,),
                      work={"operations": 16})  # fmt: skip
    with pytest.raises(RuntimeError, match="CUDA error"):
        time_again(ceiling, FakeDevice(), Broken(), BUDGET, number=1)
