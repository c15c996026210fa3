"""Collectives in symmetric memory, on fakes of the modules of PyTorch; tests/gpu has them on GPUs."""

import types

import pytest
import torch
from decodetax.harness.bench.collective_groups import Group
from decodetax.harness.bench.collective_providers import (
    SYMMETRIC_OPERATIONS,
    SymmetricMemory,
    providers_of,
)
from decodetax.harness.core.collectives import COLLECTIVES, Collective

SCHEMAS = {
    "one_shot_all_reduce_out": "(Tensor input, str reduce_op, str group_name, Tensor(a!) out) -> Tensor(a!)",
    "two_shot_all_reduce_": "(Tensor(a!) input, str reduce_op, str group_name) -> Tensor(a!)",
    "reduce_scatter_out": "(Tensor(a!) input, str group_name, bool split_last_dim, Tensor(b!) output)",
    "multimem_all_reduce_": "(Tensor(a!) input, str reduce_op, str group_name) -> Tensor(a!)",
    "multimem_all_gather_out": "(Tensor input, str group_name, Tensor(a!) out) -> Tensor(a!)",
}


class FakeModule:
    """`torch.distributed._symmetric_memory`; records the calls to it."""

    def __init__(self, *, multicast=True):
        self.log, self.memory = [], None
        self._SymmetricMemory = types.SimpleNamespace(has_multicast_support=lambda _kind, _gpu: multicast)

    def empty(self, size, *, dtype, device):
        self.log.append(f"empty {size} {dtype} {device}")
        self.memory = torch.full((size,), torch.nan, dtype=dtype)
        return self.memory

    def rendezvous(self, memory, name):
        assert memory.untyped_storage().data_ptr() == self.memory.untyped_storage().data_ptr()
        self.log.append(f"rendezvous {name}")


def fake_ops(log, *missing):
    """`torch.ops.symm_mem`, whose operations record their arguments: tensors by size, others by value."""

    def operation(name):
        def run(*arguments):
            log.append((name, *(len(a) if isinstance(a, torch.Tensor) else a for a in arguments)))

        return run

    return types.SimpleNamespace(**{name: operation(name) for name in SCHEMAS if name not in missing})


def fake_cuda(*, peers=True, count=2):
    return types.SimpleNamespace(
        device_count=lambda: count, can_device_access_peer=lambda own, other: peers and own != other
    )


def provider(algorithm, *, multicast=True, missing=(), **cuda):
    module = FakeModule(multicast=multicast)
    ops = fake_ops(module.log, *missing)
    return SymmetricMemory(algorithm, module=module, ops=ops, cuda=fake_cuda(**cuda)), module


def group(*, device="cuda:0", hosts=("a", "a"), gpus=(0, 1)):
    made = {len(hosts): types.SimpleNamespace(group_name="7")}
    return Group(made=made, rank=0, size=len(hosts), device=torch.device(device), hosts=hosts, gpus=gpus)


def case_of(kind, *, elements=10, ranks=2, dtype="bf16"):
    return Collective(kind=kind, phase="decode", elements=elements, ranks=ranks, dtype=dtype)


def test_this_pytorch_has_the_operations_with_these_arguments():
    names = {operation.name for kinds in SYMMETRIC_OPERATIONS.values() for operation in kinds.values()}
    assert names == set(SCHEMAS)
    for name, schema in SCHEMAS.items():
        assert schema in str(getattr(torch.ops.symm_mem, name).default._schema)


def test_this_pytorch_has_what_the_fakes_offer():
    module = SymmetricMemory("one-shot").module
    for name in ("empty", "rendezvous"):
        assert callable(getattr(module, name))
    assert callable(module._SymmetricMemory.has_multicast_support)
    assert {name for name in vars(fake_cuda()) if not hasattr(torch.cuda, name)} == set()


@pytest.mark.parametrize(
    ("algorithm", "options", "where", "reason"),
    [
        ("one-shot", {}, {"device": "cpu", "gpus": (None, None)}, "symmetric memory needs CUDA GPUs"),
        (
            "one-shot",
            {},
            {"hosts": ("a", "b")},
            "its ranks are on 2 hosts; symmetric memory is used within one",
        ),
        ("two-shot", {"peers": False}, {}, "GPU 0 cannot read the memory of GPU 1"),
        (
            "multimem",
            {"multicast": False},
            {},
            "the link of these GPUs has no multicast (NVLink SHARP)",
        ),
        (
            "one-shot",
            {"missing": ["one_shot_all_reduce_out"]},
            {},
            "this PyTorch has no symm_mem.one_shot_all_reduce_out",
        ),
        ("one-shot", {"multicast": False}, {}, None),
        ("multimem", {}, {}, None),
        ("two-shot", {"peers": False, "count": 1}, {}, None),  # each rank sees its own GPU alone
    ],
)
def test_all_reduce_is_refused_with_what_is_lacking(algorithm, options, where, reason):
    found, _ = provider(algorithm, **options)
    assert found.refuses(case_of("all_reduce"), group(**where)) == reason


@pytest.mark.parametrize("kind", COLLECTIVES)
@pytest.mark.parametrize("algorithm", SYMMETRIC_OPERATIONS)
def test_kind_that_an_algorithm_lacks_is_refused(algorithm, kind):
    reason = provider(algorithm)[0].refuses(case_of(kind), group())
    if kind in SYMMETRIC_OPERATIONS[algorithm]:
        assert reason is None
    else:
        assert reason == f"PyTorch's symmetric memory has no {algorithm} {kind.replace('_', '-')}"


@pytest.mark.parametrize(
    ("algorithm", "kind", "arguments"),
    [
        ("one-shot", "all_reduce", (10, "sum", "7", 10)),
        ("two-shot", "all_reduce", (10, "sum", "7")),
        ("two-shot", "reduce_scatter", (10, "7", False, 5)),
        ("multimem", "all_reduce", (10, "sum", "7")),
        ("multimem", "all_gather", (5, "7", 10)),
    ],
)
def test_operations_get_their_messages_in_symmetric_memory(algorithm, kind, arguments):
    found, module = provider(algorithm)
    case, among = case_of(kind), group()
    operation = SYMMETRIC_OPERATIONS[algorithm][kind]
    x = torch.arange(case.input_elements).bfloat16()
    memory = found.buffers(case, among, 3)
    exchange = found.bind(case, among, x, memory)
    exchange.restore()
    for call in exchange.calls:
        call()
    assert module.log == [
        "empty 192 torch.bfloat16 cuda:0",
        "rendezvous 7",
        *[(operation.name, *arguments)] * 3,
    ]
    assert {len(output) for output in exchange.outputs} == {case.output_elements}
    starts = [message.storage_offset() * 2 for message in memory]
    assert starts == [0, 128, 256]
    if kind != "all_gather":
        assert all(torch.equal(message, x) for message in memory)


@pytest.mark.parametrize("algorithm", ["two-shot", "multimem"])
def test_sum_in_place_gets_its_addend_back(algorithm):
    found, _ = provider(algorithm)
    case, among = case_of("all_reduce"), group()
    x, memory = torch.ones(10).bfloat16(), found.buffers(case_of("all_reduce"), among, 2)
    exchange = found.bind(case, among, x, memory)
    for output in exchange.outputs:
        output.fill_(torch.nan)
    exchange.restore()
    assert (memory == 1).all()


def test_backend_comes_before_symmetric_memory():
    names = [provider.name for provider in providers_of("nccl")]
    assert names == ["nccl", "symm-one-shot", "symm-two-shot", "symm-multimem"]
