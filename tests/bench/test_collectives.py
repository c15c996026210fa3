"""Collectives on fake ranks in threads, and on processes over gloo."""

import functools
import itertools
import math
import time

import pytest
import torch
from decodetax.harness.bench import collective_gate, collective_groups, collectives
from decodetax.harness.bench.collective_gate import drawn, verdict_of
from decodetax.harness.bench.collective_groups import Groups
from decodetax.harness.bench.collective_providers import Backend, SymmetricMemory
from decodetax.harness.bench.collectives import (
    LINK_BYTES,
    QUICK_LINK_BYTES,
    calls_a_sample,
    link_collectives,
    needed_bytes,
    run_collective,
)
from decodetax.harness.bench.timer import Budget
from decodetax.harness.core.collectives import COLLECTIVES, LATENCY_BYTES, Collective, CollectiveRow
from fake_ranks import FakeDist, on_threads
from fakes import FakeDevice
from rank_processes import on_ranks
from small_cases import CPU

BUDGET = Budget(time_limit_s=0.05, warm_up_s=0.01, enough_samples=3, max_samples=6)
DTYPES = ["bf16", "fp16", "fp32"]
DRAWN = 1024


@pytest.fixture(autouse=True)
def short_waits_and_blocks(monkeypatch):
    monkeypatch.setattr(collective_groups, "LEAVE_AFTER_S", 0.05)
    monkeypatch.setattr(collective_gate, "DRAWN", DRAWN)


def case_of(kind="all_reduce", *, ranks=2, elements=None, dtype="fp32", phase="decode"):
    return Collective(kind=kind, phase=phase, elements=elements or 150 * ranks, ranks=ranks, dtype=dtype)


def rows_of(case, *, size=None, dist=FakeDist, device=lambda _rank: FakeDevice(), **options):
    """The rows of each rank."""

    def work(ranks, dist):
        groups = Groups(ranks, dist=dist)
        return run_collective(
            case, groups, BUDGET, providers=[Backend("gloo", dist)], now_s=ranks.device.clock, **options
        )

    return on_threads(size or case.ranks, work, dist=dist, device=device)


def row_of(case, **options):
    """The row of rank 0, which is that of all."""
    by_rank = rows_of(case, **options)
    assert all(rows == by_rank[0] for rows in by_rank)
    [row] = by_rank[0]
    return row


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", COLLECTIVES)
def test_all_kinds_pass_the_gate_and_are_timed(kind, dtype, ranks):
    row = row_of(case_of(kind, ranks=ranks, dtype=dtype))
    assert (row.status, row.reason, row.provider) == ("ok", None, "gloo")
    assert (row.tolerance == 0) == (kind in {"all_gather", "all_to_all"})
    assert (row.relative_error == 0) == (row.tolerance == 0)
    assert 3 <= len(row.samples_s) <= 6
    assert row.method == "cpu: each call, of its slowest rank"
    assert row.rounds == (0,) * len(row.samples_s)


@pytest.mark.parametrize("elements", [2, 4, 254, 256, 258, 2 * DRAWN, 20_000])
def test_messages_of_any_size_pass_the_gate(elements):
    assert row_of(case_of("reduce_scatter", elements=elements)).status == "ok"


class Drops(FakeDist):
    """The last rank adds nothing."""

    def all_reduce(self, x, *, group):
        last = self._rank == self._world.size - 1
        x.copy_(sum(self.swap(x * (not last), group)))


class DoesNothing(FakeDist):
    def all_reduce(self, x, *, group):
        pass

    def all_gather_into_tensor(self, out, x, *, group):
        pass

    all_to_all_single = reduce_scatter_tensor = all_gather_into_tensor


class OnlyFirst(FakeDist):
    """Its second call and all later ones do nothing, so that the first output stays."""

    called = False

    def all_gather_into_tensor(self, out, x, *, group):
        if not self.called:
            super().all_gather_into_tensor(out, x, group=group)
        self.called = True


class FirstWrong(FakeDist):
    """Its first call does nothing."""

    called = False

    def all_gather_into_tensor(self, out, x, *, group):
        if self.called:
            super().all_gather_into_tensor(out, x, group=group)
        self.called = True


class Adds(FakeDist):
    """Adds to what was there."""

    def all_reduce(self, x, *, group):
        self.seen = getattr(self, "seen", 0) + 1
        super().all_reduce(x, group=group)
        if self.seen > 3:
            x.mul_(2)


class Swaps(FakeDist):
    """Parts in the wrong order."""

    def all_gather_into_tensor(self, out, x, *, group):
        super().all_gather_into_tensor(out, x, group=group)
        out.copy_(out.flip(0).view(-1, len(x)).flip(1).flatten())

    def all_to_all_single(self, out, x, *, group):
        self.all_gather_into_tensor(out, x.chunk(len(group.members))[0], group=group)


class OneWrong(FakeDist):
    """One rank's last element is another."""

    def reduce_scatter_tensor(self, out, x, *, group):
        super().reduce_scatter_tensor(out, x, group=group)
        if self._rank == 1:
            out[-1] += 1

    def all_to_all_single(self, out, x, *, group):
        super().all_to_all_single(out, x, group=group)
        if self._rank == 1:
            out[-1] *= 1.01


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Drops, "all_reduce"),
        *((DoesNothing, kind) for kind in COLLECTIVES),
        (OnlyFirst, "all_gather"),
        (FirstWrong, "all_gather"),
        (Adds, "all_reduce"),
        (Swaps, "all_gather"),
        (Swaps, "all_to_all"),
        (OneWrong, "reduce_scatter"),
        (OneWrong, "all_to_all"),
    ],
)
def test_wrong_results_are_found(fault, kind, dtype):
    row = row_of(case_of(kind, dtype=dtype), dist=fault)
    assert row.status == "failed"
    assert "wrong result: relative error" in row.reason
    assert row.relative_error > row.tolerance
    assert row.samples_s == ()


def test_wrong_result_names_its_rank():
    assert row_of(case_of("all_to_all"), dist=OneWrong).reason.startswith("rank 1: wrong result")


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_few_elements_pass_the_gate_and_wrong_ones_do_not(dtype):
    for ranks, each in itertools.product([3, 72], [1, 2, 3, 5, 8, 15, 16, 17, 127, 129]):
        case = case_of("reduce_scatter", ranks=ranks, elements=each * ranks, dtype=dtype)
        for rank in (0, ranks - 1):
            span = (rank * each, (rank + 1) * each)
            total = functools.reduce(torch.add, (drawn(case, sender, CPU, *span) for sender in range(ranks)))
            assert verdict_of(case, rank, [total]).passed
            assert not verdict_of(case, rank, [total + 2 * ranks**0.5]).passed


@pytest.mark.parametrize("ranks", [8, 72])
def test_addend_that_is_missing_is_found_among_many_ranks(ranks):
    assert row_of(case_of(ranks=ranks, elements=2 * ranks, dtype="bf16"), dist=Drops).status == "failed"


def raising(error, *, ranks, call=1):
    """A fake whose so-manieth all-reduce raises on these ranks."""

    class Raises(FakeDist):
        calls = 0

        def all_reduce(self, x, *, group):
            self.calls += 1
            if self._rank in ranks and self.calls == call:
                raise error
            super().all_reduce(x, group=group)

    return Raises


@pytest.mark.parametrize("call", [1, 2, 4], ids=["the first call", "warm-up", "samples"])
def test_rank_that_raises_fails_the_row_on_all_ranks_without_a_wait(call):
    start_s = time.monotonic()
    row = row_of(case_of(ranks=3), dist=raising(RuntimeError("boom"), ranks=[1], call=call))
    assert (row.status, row.reason) == ("failed", "rank 1: RuntimeError: boom")
    assert time.monotonic() - start_s < 5


@pytest.mark.parametrize("error", [RuntimeError("Invalid scalar type"), NotImplementedError("no bf16")])
def test_collective_that_a_backend_lacks_is_unsupported(error):
    row = row_of(case_of(), dist=raising(error, ranks=[0, 1]))
    assert row.status == "unsupported"
    assert row.reason.endswith(str(error))


def test_error_of_all_ranks_in_a_later_call_is_a_failure():
    row = row_of(case_of(), dist=raising(RuntimeError("boom"), ranks=[0, 1], call=3))
    assert row.status == "failed"


def test_memory_that_runs_out_on_one_rank_skips_the_row():
    row = row_of(case_of(), dist=raising(MemoryError("no room"), ranks=[1]))
    assert (row.status, row.reason) == ("skipped", "rank 1: out of memory: no room")


class RaisesAfterwards(FakeDist):
    """The first all-reduce of rank 1 raises when the others have their sum."""

    called = False

    def all_reduce(self, x, *, group):
        super().all_reduce(x, group=group)
        if self._rank == 1 and not self.called:
            self.called = True
            raise RuntimeError("boom")


@pytest.mark.parametrize("dist", [raising(RuntimeError("boom"), ranks=[1]), RaisesAfterwards])
def test_groups_are_made_anew_after_an_error(dist):
    def work(ranks, dist):
        groups = Groups(ranks, dist=dist)
        rows = [
            run_collective(
                case_of(), groups, BUDGET, providers=[Backend("gloo", dist)], now_s=ranks.device.clock
            )
            for _ in range(2)
        ]
        return [row.status for [row] in rows], dist.log

    for statuses, log in on_threads(2, work, dist=dist):
        assert statuses == ["failed", "ok"]
        assert [line for line in log if line.startswith(("new", "leave"))] == [
            "new group [0, 1], 60 s",
            "leave",
            "new group [0, 1], 60 s",
        ]


def test_group_that_cannot_be_made_fails_the_row():
    class Unconnected(FakeDist):
        def new_group(self, *_arguments, **_options):
            raise RuntimeError("Connection refused")

    row = row_of(case_of(), dist=Unconnected)
    assert (row.status, row.reason) == ("failed", "RuntimeError: Connection refused")


def test_memory_of_large_messages_is_returned(monkeypatch):
    devices = [FakeDevice(), FakeDevice()]
    row_of(case_of(), device=devices.__getitem__)
    assert [device.released for device in devices] == [0, 0]
    monkeypatch.setattr(collectives, "RELEASED_BYTES", 0)
    row_of(case_of(), device=devices.__getitem__)
    assert [device.released for device in devices] == [1, 1]


@pytest.mark.parametrize(("size", "ranks"), [(4, 2), (6, 2), (6, 3)])
def test_smaller_groups_exchange_at_the_same_time(size, ranks):
    seen = []

    class Watched(FakeDist):
        def all_reduce(self, x, *, group):
            seen.append((self._rank, group.members))
            super().all_reduce(x, group=group)

    assert row_of(case_of(ranks=ranks), size=size, dist=Watched).status == "ok"
    assert dict(seen) == {
        rank: tuple(range(rank // ranks * ranks, rank // ranks * ranks + ranks)) for rank in range(size)
    }


def test_all_ranks_make_the_same_groups_in_the_same_order():
    def work(ranks, dist):
        groups = Groups(ranks, dist=dist)
        for size in (2, 4, 2):
            groups.of(size)
        return dist.log

    logs = on_threads(4, work)
    assert logs == [["new group [0, 1], 60 s", "new group [2, 3], 60 s", "new group [0, 1, 2, 3], 60 s"]] * 4


def test_sample_is_the_time_of_the_slowest_rank_and_skew_that_to_the_fastest():
    times = {0: itertools.cycle([1.0, 3.0]), 1: itertools.cycle([2.0, 1.0]), 2: itertools.cycle([1.5, 1.5])}

    def device(rank):
        return FakeDevice(seconds_of=lambda _call: 1e-3 * next(times[rank]))

    row = row_of(case_of(ranks=3), device=device)
    assert set(row.samples_s) == {2e-3, 3e-3}
    assert 1e-3 <= row.skew_s <= 2e-3


def test_addends_are_put_back_and_ranks_aligned_before_each_sample():
    log = []

    class Logged(FakeDist):
        def barrier(self, *, group):
            super().barrier(group=group)
            if self._rank == 0:
                log.append("barrier")

        def all_reduce(self, x, *, group):
            if self._rank == 0:
                log.append(x.clone())
            super().all_reduce(x, group=group)

    row_of(case_of(), dist=Logged)
    assert [entry for entry in log if isinstance(entry, str)] == ["barrier"] * (len(log) // 2)
    assert [isinstance(entry, str) for entry in log] == [True, False] * (len(log) // 2)
    assert all(torch.equal(entry, log[1]) for entry in log[1::2])


def cuda(**options):
    return lambda _rank: FakeDevice(kind="cuda", **options)


def test_small_messages_on_gpus_are_sent_several_times_in_a_sample():
    row = row_of(case_of(), device=cuda(seconds_of=lambda _call: 1e-3))
    assert row.method == "cuda: mean of 20 calls one after another, of its slowest rank"
    assert row.samples_s == pytest.approx([50e-6] * len(row.samples_s))


class OneOfTwenty(FakeDist):
    """The 7th message of a sample is not summed."""

    calls = 0

    def all_reduce(self, x, *, group):
        if len(x) > 1:
            self.calls += 1
        if self.calls % 20 == 7:
            self.swap(x, group)
        else:
            super().all_reduce(x, group=group)


def test_every_call_of_a_sample_is_judged():
    assert row_of(case_of(), device=cuda(), dist=OneOfTwenty).status == "failed"


def test_gpus_are_aligned_by_an_all_reduce_of_one_element():
    sizes = []

    class Sizes(FakeDist):
        def all_reduce(self, x, *, group):
            if self._rank == 0:
                sizes.append(len(x))
            super().all_reduce(x, group=group)

    row_of(case_of(elements=300), device=cuda(), dist=Sizes)
    assert sizes[:42] == [1, *[300] * 20] * 2


@pytest.mark.parametrize(
    ("elements", "kind", "calls"),
    [
        (2, "cuda", 20),
        (2**19, "cuda", 20),
        (2**20, "cuda", 16),
        (2**22, "cuda", 4),
        (2**24, "cuda", 1),
        (2**28, "cuda", 1),
    ],
)
def test_calls_of_a_sample_fit_into_its_bytes(elements, kind, calls):
    case = case_of(elements=elements)
    assert calls_a_sample(case, kind) == calls
    assert calls_a_sample(case, "cpu") == 1


def test_collective_that_hangs_on_a_gpu_ends_the_run():
    class Hangs(FakeDevice):
        def time_each(self, _calls, *, limit_s, **_options):
            time.sleep(0.02)
            raise TimeoutError(f"the GPU was not done after {limit_s:g} s")

    def work(ranks, dist):
        ranks.timeout_s = 0.01
        with pytest.raises(
            RuntimeError,
            match=r"lost: hung in a collective: TimeoutError: the GPU was not done after 0\.01 s",
        ):
            run_collective(case_of(), Groups(ranks, dist=dist), BUDGET, providers=[Backend("nccl", dist)])
        assert "new group [0, 1], 0.03 s" in dist.log  # NCCL's own timeout is later
        assert "leave" not in dist.log

    on_threads(2, work, device=lambda _rank: Hangs(kind="cuda"))


def test_message_beyond_the_memory_of_a_host_is_skipped():
    case = case_of(elements=2**16)
    free = 2 * needed_bytes(case, 1)  # two ranks share this host
    assert row_of(case, device=lambda _rank: FakeDevice(free_bytes=free)).status == "ok"
    row = row_of(case, device=lambda _rank: FakeDevice(free_bytes=free - 1))
    assert (row.status, row.reason) == ("skipped", "needs 0.0 GB of memory, 0.0 GB are free")


def test_provider_that_refuses_costs_no_group(monkeypatch):
    monkeypatch.setattr(collective_groups, "LEAVE_AFTER_S", 1e6)

    def work(ranks, dist):
        groups = Groups(ranks, dist=dist)
        providers = [SymmetricMemory("one-shot"), Backend("gloo", dist), SymmetricMemory("multimem")]
        rows = run_collective(case_of(), groups, BUDGET, providers=providers, now_s=ranks.device.clock)
        return [row.status for row in rows], dist.log

    for statuses, log in on_threads(2, work):
        assert statuses == ["unsupported", "ok", "unsupported"]
        assert [line for line in log if line.startswith(("new", "leave"))] == ["new group [0, 1], 60 s"]


def test_memory_that_one_rank_lacks_names_it():
    row = row_of(case_of(), device=lambda rank: FakeDevice(free_bytes=0 if rank else 2**30))
    assert (row.status, row.reason[:14]) == ("skipped", "rank 1: needs ")


def ok_row(case, *rounds):
    return CollectiveRow(
        case=case,
        provider="gloo",
        status="ok",
        relative_error=0.5,
        tolerance=1.0,
        samples_s=[1.0] * len(rounds),
        rounds=rounds,
        skew_s=9.0,
    )


def test_later_round_adds_its_samples():
    case = case_of()
    row = row_of(case, number=3, earlier={"gloo": ok_row(case, 0, 1)})
    assert set(row.rounds) == {3}
    merged = ok_row(case, 0, 1).with_round(row)
    assert (set(merged.rounds), merged.skew_s, merged.relative_error) == ({0, 1, 3}, 9.0, 0.5)


@pytest.mark.parametrize(
    "earlier",
    [
        ok_row(case_of(), 0, 3),
        CollectiveRow(case=case_of(), provider="gloo", status="unsupported", reason="no"),
    ],
    ids=["has samples of this round", "is unsupported"],
)
def test_providers_that_are_not_due_are_left_out(earlier):
    assert rows_of(case_of(), number=3, earlier={"gloo": earlier}) == [[], []]


def test_earlier_rows_and_rounds_of_rank_0_count():
    def work(ranks, dist):
        earlier = {"gloo": ok_row(case_of(), 0)} if ranks.rank else {}
        return run_collective(
            case_of(),
            Groups(ranks, dist=dist),
            BUDGET,
            number=0 if ranks.rank else 5,
            earlier=earlier,
            providers=[Backend("gloo", dist)],
            now_s=ranks.device.clock,
        )

    first, second = on_threads(2, work)
    assert first == second
    assert set(first[0].rounds) == {5}


@pytest.mark.parametrize(
    ("budget", "call_s", "samples"),
    [
        (Budget(time_limit_s=1e9, warm_up_s=0, enough_samples=5, max_samples=7, noise=0), 1e-3, 7),
        (Budget(time_limit_s=1e9, warm_up_s=0, enough_samples=5, max_samples=99), 1e-3, 5),
        (Budget(time_limit_s=0.0305, warm_up_s=0, enough_samples=50, max_samples=99, noise=0), 1e-3, 31),
        (Budget(time_limit_s=0, warm_up_s=0, enough_samples=50, max_samples=99), 1.01e-3, 20),
        (Budget(time_limit_s=0, warm_up_s=0, min_samples=3, enough_samples=50), 1.0, 3),
        (Budget(time_limit_s=0, warm_up_s=0, min_samples=1, enough_samples=50), 1.0, 1),
        (Budget(time_limit_s=0, warm_up_s=9, min_samples=1, enough_samples=50), 1.0, 1),
    ],
    ids=["most", "quiet", "time", "least time", "least", "one", "warm-up"],
)
def test_samples_end_with_the_budget(budget, call_s, samples):
    def work(ranks, dist):
        [row] = run_collective(
            case_of(),
            Groups(ranks, dist=dist),
            budget if ranks.rank == 0 else BUDGET,
            providers=[Backend("gloo", dist)],
            now_s=ranks.device.clock,
        )
        return len(row.samples_s)

    assert (
        on_threads(2, work, device=lambda _rank: FakeDevice(seconds_of=lambda _call: call_s)) == [samples] * 2
    )


def test_warm_up_goes_on_until_calls_settle():
    times = [9.0, 4.0, 4.0, 4.0, 4.0, 4.0, 2.0, 2.0, 2.0, 2.0, 2.0]

    def device(_rank):
        turns = itertools.chain(times, itertools.repeat(2.0))
        return FakeDevice(seconds_of=lambda _call: next(turns))

    def work(ranks, dist):
        [row] = run_collective(
            case_of(),
            Groups(ranks, dist=dist),
            Budget(time_limit_s=10, warm_up_s=1e3, enough_samples=3),
            providers=[Backend("gloo", dist)],
            now_s=ranks.device.clock,
        )
        return row.samples_s, ranks.device.blocks

    samples, blocks = on_threads(2, work, device=device)[0]
    assert samples == (2.0,) * 3
    assert blocks == [1, 5, 5, 5, 3]


@pytest.mark.parametrize("sizes", [LINK_BYTES, QUICK_LINK_BYTES])
@pytest.mark.parametrize(("kind", "most"), [("cpu", 2**24), ("cuda", 2**30)])
def test_messages_of_the_link_begin_at_that_of_its_latency(kind, most, sizes):
    cases = link_collectives(2, sizes[kind])
    found = [case.message_bytes for case in cases]
    assert found == list(sizes[kind]) == sorted(set(found))
    assert (found[0], found[-1]) == (LATENCY_BYTES, most if kind == "cuda" or sizes is LINK_BYTES else 2**22)
    assert {(case.kind, case.phase) for case in cases} == {("all_reduce", "link")}


def test_one_rank_has_no_link():
    assert link_collectives(1, LINK_BYTES["cuda"]) == ()


def test_messages_of_the_link_divide_among_any_ranks():
    for ranks in (3, 7, 72):
        assert all(case.elements % ranks == 0 for case in link_collectives(ranks, LINK_BYTES["cpu"]))


@pytest.mark.parametrize("elements", [6, 600, 2 * DRAWN + 6])
def test_ranks_draw_different_normal_numbers(elements):
    case = case_of(elements=elements)
    first, second = (drawn(case, rank, CPU, 0, case.input_elements) for rank in range(2))
    assert not torch.isclose(first, second).all()
    assert (first.view(2, -1)[0] != first.view(2, -1)[1]).any()
    if elements >= 600:
        assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 4 / math.sqrt(elements)
        assert float(first.std()) == pytest.approx(1, abs=4 / math.sqrt(elements))


@pytest.mark.parametrize(("first", "last"), [(0, 7), (5, 9), (DRAWN - 3, DRAWN + 2), (DRAWN, DRAWN + 8)])
def test_parts_of_what_a_rank_draws_are_the_same_numbers(first, last):
    case = case_of(elements=DRAWN + 8)
    assert torch.equal(
        drawn(case, 1, CPU, first, last), drawn(case, 1, CPU, 0, case.input_elements)[first:last]
    )


def test_elements_beyond_a_block_are_judged():
    class LastWrong(FakeDist):
        def all_reduce(self, x, *, group):
            super().all_reduce(x, group=group)
            x[-1] += 30

    case = case_of(elements=DRAWN + 300)
    assert row_of(case).status == "ok"
    row = row_of(case, dist=LastWrong)
    assert f"in row {DRAWN // 128 + 2}, at most" in row.reason


def gloo_rows(ranks, cases):
    groups = Groups(ranks)
    return [row for case in cases for row in run_collective(case, groups, BUDGET)]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "ranks"), [(2, 2), (3, 3), (4, 2)])
def test_gloo_runs_all_collectives(size, ranks):
    cases = [case_of(kind, ranks=ranks, dtype=dtype) for kind in COLLECTIVES for dtype in DTYPES]
    by_rank = on_ranks(size, gloo_rows, cases)
    assert all(rows == by_rank[0] for rows in by_rank)
    rows = by_rank[0]
    assert [row.status for row in rows if row.provider == "gloo"] == ["ok"] * len(cases)
    others = [row for row in rows if row.provider != "gloo"]
    assert {row.provider for row in others} == {"symm-one-shot", "symm-two-shot", "symm-multimem"}
    assert {row.status for row in others} == {"unsupported"}
    assert "symmetric memory needs CUDA GPUs" in {row.reason for row in others}
    assert "PyTorch's symmetric memory has no one-shot all-to-all" in {row.reason for row in others}


class GlooFault:
    """torch.distributed, with a fault in the first all-reduce of rank 1, or of all."""

    def __init__(self, fault):
        self._fault, self._left = fault, 1

    def __getattr__(self, name):
        return getattr(torch.distributed, name)

    def all_reduce(self, x, *, group):
        if self._left and (torch.distributed.get_rank() == 1 or self._fault == "all raise"):
            self._left -= 1
            if "raise" in self._fault:
                raise RuntimeError("boom")
            if self._fault == "is late":
                time.sleep(4)
            return
        torch.distributed.all_reduce(x, group=group)


def rows_with_fault(ranks, fault):
    groups, providers = Groups(ranks), [Backend("gloo", GlooFault(fault))]
    start_s = time.monotonic()
    first = run_collective(case_of(ranks=ranks.size), groups, BUDGET, providers=providers)
    after_s = time.monotonic() - start_s
    return first + run_collective(case_of(ranks=ranks.size), groups, BUDGET, providers=providers), after_s


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "fault", "row"),
    [
        (2, "raises", ("failed", "rank 1: RuntimeError: boom")),
        (3, "raises", ("failed", "rank 1: RuntimeError: boom")),
        (2, "all raise", ("unsupported", "RuntimeError: boom")),
    ],
)
def test_gloo_goes_on_after_ranks_that_raise(size, fault, row):
    for (first, second), after_s in on_ranks(size, rows_with_fault, fault, timeout_s=5.0):
        assert (first.status, first.reason) == row
        assert second.status == "ok"
        assert after_s < 4  # no rank waits until the timeout


@pytest.mark.slow
def test_gloo_goes_on_after_a_rank_that_is_late():
    for (first, second), after_s in on_ranks(2, rows_with_fault, "is late", timeout_s=3.0):
        assert first.status == "failed"
        assert first.reason.startswith("rank 0: RuntimeError: ")
        assert second.status == "ok"
        assert 3 < after_s < 6
