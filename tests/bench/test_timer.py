"""The timer, on a device and a clock of the tests."""

import itertools

import pytest
from decodetax.harness.bench.timer import Budget, measure
from decodetax.harness.core.statistics import summarise
from fakes import FakeDevice


def named_calls(count, log):
    return [lambda name=name: log.append(name) for name in range(count)]


def noisy(seconds=1e-3):
    """Seconds that never settle."""
    turns = itertools.cycle([0.5 * seconds, 1.5 * seconds, 0.8 * seconds, 1.2 * seconds])
    return lambda _call: next(turns)


def timed(device, calls, budget, **options):
    return measure(device, calls, budget, now_s=device.clock, **options)


@pytest.mark.parametrize("copies", [1, 2, 3, 7])
def test_calls_take_turns_over_all_copies(copies):
    log, device = [], FakeDevice(seconds_of=noisy())
    timing = timed(device, named_calls(copies, log), Budget(time_limit_s=0.1, warm_up_s=0), first_s=1.0)
    assert len(log) == len(timing.samples_s) > copies
    assert log == [i % copies for i in range(len(log))]


def test_every_sample_is_kept_in_order():
    seconds = [0.003 + 0.001 * ((i * 7) % 10) for i in range(2000)]
    turns = iter(seconds)
    device = FakeDevice(seconds_of=lambda _call: next(turns))
    budget = Budget(time_limit_s=1e6, warm_up_s=0, max_samples=150)
    samples_s = timed(device, [lambda: None], budget, first_s=1.0).samples_s
    assert len(samples_s) == 150
    assert list(samples_s) == seconds[:150]


def test_samples_stop_at_the_maximum():
    device = FakeDevice(seconds_of=noisy())
    budget = Budget(time_limit_s=0.07, warm_up_s=0, max_samples=10)  # a block is 7 calls
    assert len(timed(device, [lambda: None], budget, first_s=1e-3).samples_s) == 10


def test_quiet_samples_stop_once_they_are_enough():
    device = FakeDevice()
    budget = Budget(time_limit_s=0.04, warm_up_s=0, enough_samples=10)  # a block is 4 calls
    assert len(timed(device, [lambda: None], budget, first_s=1e-3).samples_s) == 12


def test_samples_stop_when_they_are_quiet_at_twice_as_many_each_time():
    turns = itertools.chain([0.9e-3, 1.1e-3] * 6, itertools.repeat(1e-3))
    device = FakeDevice(seconds_of=lambda _call: next(turns))
    budget = Budget(time_limit_s=0.01, warm_up_s=0, max_samples=1000, noise=0.005)  # a block is 1 call
    device.clock.time_s = -1e6  # time is no limit here
    samples = measure(device, [lambda: None], budget, first_s=1e-3, now_s=lambda: 0.0).samples_s

    def settled(taken):
        summary = summarise(samples[:taken])
        return summary.high - summary.low < 2 * 0.005 * summary.median

    looks = [10 * 2**n for n in range(10)]
    assert len(samples) == next(look for look in looks if settled(look)) > 10


def test_warm_up_uses_the_last_copies_so_that_the_first_samples_are_cold():
    log, device = [], FakeDevice(seconds_of=noisy())
    budget = Budget(time_limit_s=0.005, warm_up_s=0.005, enough_samples=3)
    timing = timed(device, named_calls(50, log), budget)
    warm_up, samples = log[: -len(timing.samples_s)], log[-len(timing.samples_s) :]
    assert warm_up == [49 - place for place in range(len(warm_up))]
    assert samples == list(range(len(samples)))
    assert len(warm_up) > 3


@pytest.mark.parametrize("first_s", [1.6, 1.4], ids=["longer than the budget", "shorter"])
def test_long_first_call_on_the_first_copy_is_the_sample(first_s):
    device = FakeDevice(seconds_of=lambda _call: 1.0)
    budget = Budget(time_limit_s=1.0, warm_up_s=0.5, min_samples=1, enough_samples=9, noise=0.0)
    timing = timed(device, [lambda: None], budget, first_s=first_s, first_counts=True)
    assert timing.samples_s == ((1.6,) if first_s == 1.6 else (1.0,))
    assert device.timed_s == pytest.approx(sum(timing.samples_s))


@pytest.mark.parametrize(("width", "taken"), [(0.009, 10), (0.011, 60)], ids=["within", "beyond"])
def test_noise_is_half_the_interval_over_the_median(width, taken):
    turns = itertools.cycle([1 - width / 2, 1 + width / 2])
    device = FakeDevice(seconds_of=lambda _call: next(turns))
    budget = Budget(time_limit_s=1e9, warm_up_s=0, enough_samples=10, max_samples=60, noise=0.005)
    assert len(timed(device, [lambda: None], budget, first_s=1e8).samples_s) == taken


@pytest.mark.parametrize("call_s", [0.004, 0.03], ids=["short calls", "long calls"])
def test_noisy_samples_stop_at_the_time_limit(call_s):
    device = FakeDevice(seconds_of=noisy(call_s))
    budget = Budget(time_limit_s=1.0, warm_up_s=0)
    samples = timed(device, [lambda: None], budget, first_s=call_s).samples_s
    assert 1.0 <= sum(samples) <= 1.15


@pytest.mark.parametrize("call_s", [0.6, 5.0, 100.0])
def test_calls_longer_than_the_time_limit_are_sampled_three_times(call_s):
    device = FakeDevice(seconds_of=lambda _call: call_s)
    samples = timed(device, [lambda: None], Budget(time_limit_s=1.0, warm_up_s=0.5), first_s=call_s).samples_s
    assert samples == (call_s,) * 3


def test_warm_up_goes_on_until_calls_settle():
    times = iter([8.0, *[4.0] * 5, *[2.0] * 5, *[1.0] * 5, *itertools.repeat(1.005, 5)])
    device = FakeDevice(seconds_of=lambda _call: next(times, 1.0))
    log = []
    budget = Budget(time_limit_s=1e9, warm_up_s=1e9)
    timing = timed(device, named_calls(3, log), budget, before_sampling=lambda: log.append("sampling"))
    assert log.index("sampling") == 21
    assert timing.samples_s[0] == 1.0
    assert set(log[:3]) == {0, 1, 2}


def test_warm_up_that_never_settles_ends_with_its_time():
    log, device = [], FakeDevice(seconds_of=noisy(0.1))
    ended_s = []
    timed(
        device,
        named_calls(1, log),
        Budget(time_limit_s=1.0, warm_up_s=3.0),
        before_sampling=lambda: ended_s.append(device.clock()),
    )
    assert len(ended_s) == 1
    assert 1.0 < ended_s[0] <= 3.0 + 0.1 * 5 * 1.1


def test_no_call_of_the_warm_up_begins_after_its_time():
    starts_s, sampling = [], []
    turns = itertools.cycle([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    device = FakeDevice(seconds_of=lambda _call: next(turns))
    timed(
        device,
        [lambda: sampling or starts_s.append(device.clock())],
        Budget(time_limit_s=1.0, warm_up_s=6.0),
        before_sampling=lambda: sampling.append(True),
    )
    assert max(starts_s) < 6.0


def test_long_first_call_replaces_the_warm_up():
    log, device = [], FakeDevice()
    timed(
        device,
        named_calls(1, log),
        Budget(time_limit_s=0.01, warm_up_s=0.5),
        first_s=0.51,
        before_sampling=lambda: log.append("sampling"),
    )
    assert log[0] == "sampling"


def test_short_first_call_does_not_replace_the_warm_up():
    log, device = [], FakeDevice()
    timed(
        device,
        named_calls(1, log),
        Budget(time_limit_s=0.01, warm_up_s=0.5),
        first_s=0.49,
        before_sampling=lambda: log.append("sampling"),
    )
    assert log.index("sampling") >= 6


@pytest.mark.parametrize(
    ("copies", "calls_a_graph"),
    [(1, 20), (3, 21), (7, 21), (20, 20), (21, 21), (50, 50)],
)
def test_short_calls_are_replayed_from_a_graph_of_all_copies(copies, calls_a_graph):
    log, device = [], FakeDevice(kind="cuda", graphs=True, seconds_of=lambda _call: 10e-6)
    calls = named_calls(copies, log)
    timing = timed(device, calls, Budget(time_limit_s=0.01, warm_up_s=0.001))
    assert device.captured == calls * (calls_a_graph // copies)
    assert timing.samples_s == pytest.approx([10e-6] * len(timing.samples_s))
    assert timing.method == f"cuda: mean of {calls_a_graph} calls a graph replay"
    assert log[-calls_a_graph:] == [i % copies for i in range(calls_a_graph)]


@pytest.mark.parametrize(
    ("seconds", "graphs", "method"),
    [
        pytest.param(49e-6, True, "cuda: mean of 20 calls a graph replay", id="shorter"),
        pytest.param(51e-6, True, "cuda: each call", id="longer"),
        pytest.param(10e-6, False, "cuda: each call", id="no graphs"),
    ],
)
def test_graphs_are_for_calls_below_50_us(seconds, graphs, method):
    device = FakeDevice(kind="cuda", graphs=graphs, seconds_of=lambda _call: seconds)
    timing = timed(device, [lambda: None], Budget(time_limit_s=0.01, warm_up_s=0.001))
    assert timing.method == method
    assert timing.samples_s == pytest.approx([seconds] * len(timing.samples_s))


def test_first_replay_of_a_graph_uploads_it_and_is_no_sample():
    device = FakeDevice(kind="cuda", graphs=True)
    replays = []

    def seconds_of(_call):
        if device.captured is None:
            return 10e-6
        replays.append(None)
        return 90e-6 if len(replays) <= 20 else 10e-6

    device._seconds_of = seconds_of
    samples_s = timed(device, [lambda: None], Budget(time_limit_s=0.01, warm_up_s=0.001)).samples_s
    assert samples_s == pytest.approx([10e-6] * len(samples_s))


@pytest.mark.parametrize("seconds", [40e-6, 60e-6])
@pytest.mark.parametrize("graph", [True, False])
def test_later_rounds_use_a_graph_as_the_first_did(graph, seconds):
    device = FakeDevice(kind="cuda", graphs=True, seconds_of=lambda _call: seconds)
    timing = timed(device, [lambda: None], Budget(time_limit_s=0.01, warm_up_s=0.001), graph=graph)
    assert ("graph" in timing.method) == graph


@pytest.mark.parametrize("seconds", [10e-6, 1e-3], ids=["graph", "calls"])
def test_outputs_are_poisoned_once_between_capture_and_the_first_sample(seconds):
    device = FakeDevice(kind="cuda", graphs=True, seconds_of=lambda _call: seconds)
    seen = []
    timed(
        device,
        [lambda: None],
        Budget(time_limit_s=0.01, warm_up_s=0.001),
        before_sampling=lambda: seen.append((device.captured is not None, len(device.blocks))),
    )
    assert len(seen) == 1
    captured, blocks = seen[0]
    assert captured == (seconds < 50e-6)
    assert 1 <= blocks < len(device.blocks)
