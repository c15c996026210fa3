"""Providers that do not do the work that is timed, or spoil that of others: each is found and named."""

import concurrent.futures
import dataclasses
import threading
import time

import pytest
import torch
from decodetax.harness.bench import honesty, runner
from decodetax.harness.bench.honesty import BoundCall, unseen_of
from decodetax.harness.bench.providers import PROVIDERS, Provider, gate_of
from decodetax.harness.bench.timer import Budget
from decodetax.harness.core.errors import ProviderError
from decodetax.harness.core.inputs import draw
from fakes import BRIEF, FakeDevice, SmallCpu, bench
from small_cases import decode_case, layer_case, matmul_case, prompt_case, source

CASE, DECODE = matmul_case(), decode_case()
CASES = [CASE, DECODE, prompt_case(), layer_case("prefill"), layer_case("decode")]


class Late(torch.Tensor):
    """The product, computed when it is looked at."""

    @staticmethod
    def __new__(cls, inputs):
        self = torch.Tensor._make_wrapper_subclass(cls, inputs.out.shape, dtype=inputs.out.dtype)
        self.inputs = inputs
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("fill_", "copy_"):
            return args[0]
        value = lambda t: right(t.inputs) if isinstance(t, Late) else t  # noqa: E731
        return func(*torch.utils._pytree.tree_map(value, args), **(kwargs or {}))


def right(inputs):
    return inputs.x @ inputs.weight.t()


def right_attention(inputs):
    return PROVIDERS[DECODE.operation][0].run(inputs)


def provider(run, name=None):
    return Provider(name=name or run.__name__, run=run)


def rows_of(monkeypatch, *runs, case=CASE, device=None, size_bytes=2**18, budget=BRIEF):
    """Rows of these providers, and of a right one after them."""
    last = {CASE.operation: right, DECODE.operation: right_attention}[case.operation]
    providers = [*map(provider, runs), provider(last, "innocent")]
    monkeypatch.setattr(runner, "PROVIDERS", {case.operation: providers})
    return list(runner.run_case(case, bench(device or FakeDevice(), size_bytes=size_bytes, budget=budget)))


def assert_failed(rows, reason):
    """All rows but the last failed for this reason, and have no figures."""
    *rows, innocent = rows
    for row in rows:
        assert reason in (row.reason or ""), row.reason
        assert (row.status, tuple(row.samples_s)) == ("failed", ())
    assert (innocent.status, innocent.reason) == ("ok", None)


@pytest.mark.parametrize("device", [FakeDevice, SmallCpu])
def test_tensor_that_is_computed_when_it_is_looked_at_is_named(monkeypatch, device):
    assert_failed(rows_of(monkeypatch, Late, device=device()), "returned a Late, a subclass of Tensor")


def as_late(inputs):
    torch.matmul(inputs.x, inputs.weight.t(), out=inputs.out)
    inputs.out.__class__ = Late
    return inputs.out


def lazy_method(inputs):
    out = torch.empty_like(inputs.out)
    out.detach = lambda: right(inputs)
    return out


@pytest.mark.parametrize("run", [as_late, lazy_method, lambda inputs: right(inputs).tolist()])
def test_output_that_is_not_plain_is_named_and_the_next_provider_gets_a_plain_one(monkeypatch, run):
    assert_failed(rows_of(monkeypatch, run), "returned a ")


def test_output_that_stops_being_plain_while_it_is_timed_is_named(monkeypatch):
    calls = []

    def later(inputs):
        calls.append(inputs)
        return right(inputs) if len(calls) < 3 else Late(inputs)

    assert_failed(rows_of(monkeypatch, later), "returned a Late, a subclass of Tensor")


def kept_by(key):
    """A provider that keeps its results by some key of the inputs."""
    results = {}

    def replays(inputs):
        if key(inputs) not in results:
            results[key(inputs)] = right(inputs)
        return results[key(inputs)].clone()

    return replays


KEYS = {
    "pointers": lambda inputs: (inputs.x.data_ptr(), inputs.weight.data_ptr()),
    "objects": lambda inputs: (id(inputs.x), id(inputs.weight)),
    "first number": lambda inputs: (inputs.x.data_ptr(), float(inputs.weight[0, 0])),
    "pointer and version": lambda inputs: (inputs.x.data_ptr(), inputs.x._version),
}


@pytest.mark.parametrize("key", KEYS)
def test_kept_result_is_found_on_inputs_that_change_in_place(monkeypatch, key):
    rows = rows_of(monkeypatch, kept_by(KEYS[key]), device=FakeDevice(cache_bytes=30_000))
    assert_failed(rows, "returned an earlier result after its inputs had changed in place")


def test_result_kept_by_shape_is_found(monkeypatch):
    rows = rows_of(monkeypatch, kept_by(lambda inputs: inputs.x.shape), device=FakeDevice(cache_bytes=1))
    assert rows[0].input_copies == 1 or rows[0].status == "failed"
    assert_failed(rows, "returned an earlier result")


def test_result_kept_by_the_numbers_themselves_is_found_by_its_time(monkeypatch):
    """Without the seconds of a fake: the product takes much longer than its sum."""
    case, results = matmul_case(rows=64, in_features=1024, out_features=1024), {}

    def by_sum(inputs):
        key = float(inputs.x.sum()), inputs.weight.data_ptr()
        if key not in results:
            results[key] = right(inputs)
        return results[key].clone()

    rows = rows_of(monkeypatch, by_sum, case=case, device=SmallCpu(), size_bytes=2**24)
    assert_failed(rows, "keeps results: a call on new numbers took")


def test_call_that_is_late_once_is_not_taken_for_new_work():
    inputs = draw(CASE, source())
    call, before = BoundCall(provider(right), inputs), inputs.x.clone()
    seconds = iter([9e-3, 1e-3, 9e-3, 9e-3, 1.9e-3])
    device = FakeDevice(seconds_of=lambda _call: next(seconds))
    honesty.check_time_on_new(call, device, call_s=1e-3)
    assert next(seconds, None) is None
    device = FakeDevice(seconds_of=lambda _call: 1e-3 if torch.equal(inputs.x, before) else 2.1e-3)
    with pytest.raises(ProviderError, match=r"took 2\.1 times as long as on known ones"):
        honesty.check_time_on_new(call, device, call_s=1e-3)
    assert torch.equal(inputs.x, before)


def kept_cache(name):
    """Attention that keeps a converted copy of one cache by its pointer."""
    copies = {}

    def run(inputs):
        cache = getattr(inputs, name)
        kept = copies.setdefault(cache.data_ptr(), cache.clone())
        return right_attention(dataclasses.replace(inputs, **{name: kept}))

    return run


@pytest.mark.parametrize("name", ["k_cache", "v_cache"])
@pytest.mark.parametrize("batch", [1, 3])
def test_copy_of_the_kv_cache_that_is_kept_is_found(monkeypatch, name, batch):
    rows = rows_of(monkeypatch, kept_cache(name), case=decode_case(batch=batch))
    assert_failed(rows, "inputs that had changed in place gave a wrong result")


def test_weight_that_is_packed_once_is_allowed(monkeypatch):
    packed = {}

    def packing(inputs):
        key = inputs.weight.data_ptr()
        return inputs.x @ packed.setdefault(key, inputs.weight.t().contiguous())

    rows = rows_of(monkeypatch, packing)
    assert [row.status for row in rows] == ["ok", "ok"]


def test_one_output_that_all_calls_share_is_allowed(monkeypatch):
    shared = torch.empty(CASE.rows, CASE.out_features)
    even = Budget(time_limit_s=60, warm_up_s=0.0, enough_samples=4, max_samples=4)  # the second copy is last
    run = lambda inputs: torch.matmul(inputs.x, inputs.weight.t(), out=shared)  # noqa: E731
    rows = rows_of(monkeypatch, run, budget=even)
    assert rows[0].input_copies > 1
    assert [row.status for row in rows] == ["ok", "ok"]


def test_shared_output_that_no_sample_writes_is_found(monkeypatch):
    shared = torch.empty(CASE.rows, CASE.out_features)
    calls = []

    def idle(inputs):
        calls.append(inputs)
        return torch.matmul(inputs.x, inputs.weight.t(), out=shared) if len(calls) == 1 else shared

    assert_failed(rows_of(monkeypatch, idle), "wrong result: relative error inf")


def test_output_of_inference_mode_is_allowed(monkeypatch):
    rows = rows_of(monkeypatch, torch.inference_mode()(right))
    assert [row.status for row in rows] == ["ok", "ok"]


def late_thread(inputs):
    out = torch.empty_like(inputs.out)

    def work():
        time.sleep(0.005)
        out.copy_(right(inputs))

    threading.Thread(target=work).start()
    return out


def test_output_that_a_thread_still_writes_is_found(monkeypatch):
    monkeypatch.setattr(honesty, "WAITS", 500)
    assert_failed(rows_of(monkeypatch, late_thread), honesty.LEFT_WORK)


def test_output_that_a_thread_still_writes_is_found_on_unseen_inputs(monkeypatch):
    monkeypatch.setattr(honesty, "WAITS", 500)
    inputs = draw(CASE, source())
    gate, unseen = gate_of(CASE, inputs), unseen_of(CASE, inputs)
    with pytest.raises(ProviderError, match=honesty.LEFT_WORK):
        honesty.check_on_unseen(BoundCall(provider(late_thread), inputs), unseen, gate, FakeDevice())


def test_thread_that_goes_on_computing_is_named(monkeypatch):
    end = threading.Event()

    def spin():
        while not end.is_set():
            pass

    def leaves(inputs):
        if not end.is_set() and not any(t.name == "spinner" for t in threading.enumerate()):
            threading.Thread(target=spin, name="spinner").start()
        return right(inputs)

    monkeypatch.setattr(honesty, "WAIT_S", 0.1)
    try:
        [row, *_] = rows_of(monkeypatch, leaves)
    finally:
        end.set()
    assert row.reason == "left a thread running: spinner"


def test_idle_threads_of_a_pool_are_allowed(monkeypatch):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        rows = rows_of(monkeypatch, lambda inputs: pool.submit(right, inputs).result())
    assert [row.status for row in rows] == ["ok", "ok"]


def test_device_that_computes_after_a_call_is_named(monkeypatch):
    device = FakeDevice(kind="cuda")
    device.left_s = 700e-6
    [row, _] = rows_of(monkeypatch, right, device=device)
    assert row.reason == "left work behind: the device computed 700 us longer than the call"
    device.left_s = 400e-6  # of calls of 1 ms
    assert [row.status for row in rows_of(monkeypatch, right, device=device)] == ["ok", "ok"]


def one_thread_more(inputs):
    torch.set_num_threads(torch.get_num_threads() + 1)
    return right(inputs)


def no_gradients(inputs):
    torch.set_grad_enabled(False)
    return right(inputs)


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (one_thread_more, "changed the number of threads from 1 to "),
        (no_gradients, "changed the grad mode from True to False"),
    ],
)
def test_changed_setting_is_named_and_put_back(monkeypatch, run, reason):
    before = torch.get_num_threads(), torch.is_grad_enabled()
    assert_failed(rows_of(monkeypatch, run), reason)
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == before


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_threads_are_put_back_where_the_provider_raises(monkeypatch, error):
    def broken(inputs):
        one_thread_more(inputs)
        raise error

    if isinstance(error, ValueError):
        assert_failed(rows_of(monkeypatch, broken), "ValueError: no; changed the number of threads from 1")
    else:
        with pytest.raises(KeyboardInterrupt):
            rows_of(monkeypatch, broken)
    assert torch.get_num_threads() == 1


def wrecks(inputs):
    out = right(inputs)
    inputs.weight.zero_()
    return out


def swaps_once():
    calls = []

    def swaps(inputs):
        out = right(inputs)
        if not calls:
            inputs.weight[[3, 17]] = inputs.weight[[17, 3]]
        calls.append(inputs)
        return out

    return swaps


def nudges(inputs):
    out = right(inputs)
    inputs.x[-1, -1] += 1e-3
    return out


@pytest.mark.parametrize(("run", "name"), [(wrecks, "weight"), (swaps_once(), "weight"), (nudges, "x")])
def test_altered_input_is_named_and_the_next_provider_gets_a_whole_one(monkeypatch, run, name):
    assert_failed(rows_of(monkeypatch, run), f"altered its {name}")


def test_storage_that_is_resized_fails_its_provider_and_the_next_one_gets_a_whole_one(monkeypatch):
    def resizes(inputs):
        out = right(inputs)
        inputs.weight.untyped_storage().resize_(0)
        return out

    assert_failed(rows_of(monkeypatch, resizes), "altered its storage")


def test_altered_cache_is_named(monkeypatch):
    def forgets(inputs):
        out = right_attention(inputs)
        inputs.v_cache[1, 3:5] = 0
        return out

    assert_failed(rows_of(monkeypatch, forgets, case=DECODE), "altered its v_cache")


def test_weight_of_a_later_copy_that_is_altered_is_named(monkeypatch):
    calls = []

    def careful(inputs):
        calls.append(inputs)
        return right(inputs) if inputs is calls[0] else wrecks(inputs)

    assert_failed(rows_of(monkeypatch, careful), "altered its weight")


def test_shapes_of_inputs_that_change_in_place_do_not_reach_the_next_provider(monkeypatch):
    def flat(inputs):
        out = right(inputs)
        inputs.x.unsqueeze_(0)
        inputs.weight.requires_grad_()
        return out

    [row, innocent] = rows_of(monkeypatch, flat)
    assert innocent.status == "ok"
    assert row.status == "failed"


@pytest.mark.parametrize("name", ["q", "k_cache"])
def test_input_as_output_is_named_and_not_poisoned(monkeypatch, name):
    calls = []

    def returns_input(inputs):
        calls.append(inputs)
        if len(calls) == 1:
            return right_attention(inputs)
        return inputs.q if name == "q" else inputs.k_cache.flatten()[: inputs.q.numel()].view_as(inputs.q)

    case = decode_case(batch=1)
    if name == "q":
        assert_failed(rows_of(monkeypatch, returns_input, case=case), "returned memory of its q")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_unseen_numbers_give_another_result_and_are_taken_back(case):
    inputs = draw(case, source())
    held = [t.clone() for t in vars(inputs).values() if isinstance(t, torch.Tensor)]
    run = PROVIDERS[case.operation][0].run
    gate, unseen = gate_of(case, inputs), unseen_of(case, inputs)
    assert not unseen.gate.judge(run(inputs)).passed
    with unseen.written(inputs) as write:
        assert gate.judge(run(inputs)).passed
        write()
        assert unseen.gate.judge(run(inputs)).passed
        assert not gate.judge(run(inputs)).passed
    assert gate.judge(run(inputs)).passed
    names = [name for name, t in vars(inputs).items() if isinstance(t, torch.Tensor)]
    for name, before in zip(names, held, strict=True):
        if name != "out" and not (case.operation == "decoder_layer" and "cache" in name):
            torch.testing.assert_close(getattr(inputs, name), before, rtol=0, atol=0, equal_nan=True)


def test_later_rounds_check_again_in_the_last_one(monkeypatch):
    checked = []
    monkeypatch.setattr(runner, "_check_unseen", lambda *_args, **_options: checked.append(True))
    rows = {row.provider: row for row in rows_of(monkeypatch)}
    for number, last in ((1, False), (2, True)):
        at = dataclasses.replace(bench(FakeDevice()), round=number, last_round=last)
        list(runner.run_case(CASE, at, rows))
    assert len(checked) == 2


def test_provider_that_cheats_from_the_second_round_on_is_found_in_the_last(monkeypatch):
    cheats, results = [], {}

    def tires(inputs):
        if cheats and inputs.x.data_ptr() in results:
            return results[inputs.x.data_ptr()].clone()
        results[inputs.x.data_ptr()] = right(inputs)
        return results[inputs.x.data_ptr()]

    first = rows_of(monkeypatch, tires)
    assert [row.status for row in first] == ["ok", "ok"]
    cheats.append(True)
    at = dataclasses.replace(bench(FakeDevice()), round=4, last_round=True)
    rows = list(runner.run_case(CASE, at, {row.provider: row for row in first}))
    assert_failed(rows, "returned an earlier result")
