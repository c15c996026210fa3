"""Ceilings, measured on small buffers and on a device of the tests."""

import itertools

import pytest
import torch
from decodetax.harness.bench import ceilings as module
from decodetax.harness.bench.ceilings import measure_ceilings, time_again
from decodetax.harness.bench.timer import Budget
from decodetax.harness.core.records import Ceiling
from fakes import FakeDevice, SmallCpu, arena


@pytest.fixture
def _small(monkeypatch):
    monkeypatch.setattr(module, "SQUARE_SIZES", {"cpu": (8, 16, 32), "cuda": (8, 16, 32)})


def by_name(device, **options):
    return dict(measure_ceilings(device, arena(2**17), **{"time_limit_s": 1e-3, **options}))


@pytest.mark.usefixtures("_small")
def test_ceilings_of_a_cpu_recompute_from_their_samples_and_work():
    found = by_name(SmallCpu())
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
    assert found["copy bandwidth"].work == {"bytes_read": 2**16, "bytes_written": 2**16}


@pytest.mark.usefixtures("_small")
def test_ceilings_leave_the_arena_as_it_was():
    block = arena(2**17)
    for _ in measure_ceilings(SmallCpu(), block, time_limit_s=1e-3):
        assert block.intact()


@pytest.mark.parametrize("name", sorted(module.READERS))
def test_readers_read_all_of_a_buffer(name):
    # Whatever the position of a change, the result shows it.
    buffer = torch.linspace(1, 2, 64)
    before = module.READERS[name](buffer)
    for at in range(64):
        changed = buffer.clone()
        changed[at] = 100
        assert module.READERS[name](changed) != before


def device_of_rates(rate_of_size, arena_bytes=2**20):
    """A device on which the product of n x n matrices runs at `rate_of_size(n)` FLOP/s."""
    made = []

    class Numbers:
        size_bytes = arena_bytes

        def normal(self, *shape, dtype):
            made.append(shape[0])
            return torch.ones(shape, dtype=dtype)

    def seconds_of(_call):
        return 2 * made[-1] ** 3 / rate_of_size(made[-1])

    return FakeDevice(seconds_of=seconds_of), Numbers(), made


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
    device, numbers, made = device_of_rates(lambda _size: 1e9, arena_bytes=2 * 16**2 * 4)
    assert module._matmul(device, numbers, "fp32", BUDGET).flop_per_s == pytest.approx(1e9)
    assert set(made) == {8, 16}


@pytest.mark.usefixtures("_small")
def test_no_memory_for_any_size_is_a_reason():
    device, numbers, _ = device_of_rates(lambda _size: 1e9, arena_bytes=8)
    ceiling = module._matmul(device, numbers, "fp32", BUDGET)
    assert (ceiling.flop_per_s, ceiling.reason, tuple(ceiling.samples_s)) == (None, "out of memory", ())


@pytest.mark.usefixtures("_small")
def test_unsupported_dtype_is_a_ceiling_with_a_reason_and_no_rate(monkeypatch):
    device = FakeDevice()
    plain = device.time_each

    def without_half(calls):
        operands = [cell.cell_contents for cell in calls[0].__closure__ or ()]
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
def test_later_round_times_the_same_call_on_the_same_size():
    device = SmallCpu()
    for ceiling in by_name(device).values():
        block = arena(2**18)
        block.block(torch.bfloat16)
        again = time_again(ceiling, device, block, BUDGET, number=1)
        assert block.intact()
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
    monkeypatch.setattr(module, "READERS", {name: lambda buffer: read.append(buffer.nbytes)})
    device = FakeDevice(cache_bytes=8)
    ceiling = by_name(device)["read bandwidth"]
    monkeypatch.setitem(module.READERS, "another", lambda _buffer: read.append(None))
    read.clear()
    time_again(ceiling, device, arena(), BUDGET, number=2)
    assert set(read) == {2**17}


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("x"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
    ids=lambda error: type(error).__name__,
)
def test_ceiling_that_no_longer_fits_is_unchanged(error):
    def full(_calls):
        raise error

    ceiling, device = by_name(FakeDevice())["copy bandwidth"], FakeDevice()
    device.time_each = full
    assert time_again(ceiling, device, arena(), BUDGET, number=1) is ceiling


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("name", ["read bandwidth", "copy bandwidth"])
def test_bandwidth_of_a_larger_arena_is_unchanged(name):
    ceiling = by_name(FakeDevice())[name]
    assert time_again(ceiling, FakeDevice(), arena(2**17 - 2**9), BUDGET, number=1) is ceiling


def test_ceiling_of_an_unknown_reader_is_unchanged():
    ceiling = Ceiling(kind="read_bandwidth", provenance="measured", bandwidth_bytes_per_s=1.0,
                      samples_s=(1.0,), work={"bytes_read": 8, "bytes_written": 0})  # fmt: skip
    assert time_again(ceiling, FakeDevice(), arena(), BUDGET, number=1) is ceiling


def test_other_errors_of_a_ceiling_are_raised():
    def broken(_calls):
        raise RuntimeError("CUDA error")

    device = FakeDevice()
    device.time_each = broken
    ceiling = Ceiling(kind="matmul", provenance="measured", dtype="fp32", flop_per_s=1.0, samples_s=(1.0,),
                      work={"operations": 16})  # fmt: skip
    with pytest.raises(RuntimeError, match="CUDA error"):
        time_again(ceiling, device, arena(), BUDGET, number=1)
