"""Providers of collectives: the backend of torch.distributed, and PyTorch's symmetric memory between GPUs.

Tests pass fakes of torch's modules to what needs several GPUs here.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed
import torch.distributed._symmetric_memory
from torch import Tensor

from ..core.collectives import Collective
from ..core.inputs import DTYPES
from .collective_groups import Group
from .device import Call

SLOT_BYTES = 128
"""Messages in symmetric memory begin at multiples of it, so that kernels load 16 bytes at once."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A collective, ready to be called on buffers of its own.

    Attributes:
        calls: each exchanges one message, every one in other buffers.
        outputs: what each call writes, of `output_elements` each.
        restore: puts the input back where a call overwrites it.
    """

    calls: Sequence[Call]
    outputs: Sequence[Tensor]
    restore: Call = lambda: None


class CollectiveProvider(Protocol):
    """One way to run collectives.

    Attributes:
        name: the provider's name in a row.
    """

    @property
    def name(self) -> str: ...  # noqa: D102  (see above)

    def refuses(self, case: Collective, group: Group) -> str | None:
        """Why it cannot run a case among a group; None if it may."""

    def buffers(self, case: Collective, group: Group, calls: int) -> Tensor:
        """Its memory for the messages of so many calls, [calls, elements]."""

    def bind(self, case: Collective, group: Group, x: Tensor, memory: Tensor) -> Exchange:
        """The exchange of a rank's input x [input_elements] in that memory; all of the group call it."""


def providers_of(backend: str) -> tuple[CollectiveProvider, ...]:
    """The backend under its own name, and the algorithms of symmetric memory."""
    return (Backend(backend), *map(SymmetricMemory, SYMMETRIC_OPERATIONS))


@dataclass(frozen=True)
class Backend:
    """NCCL or gloo by torch.distributed; an all-reduce is in place.

    Args:
        name: of the backend.
        dist: replaces `torch.distributed` in tests.
    """

    name: str
    dist: Any = torch.distributed

    def refuses(self, case: Collective, group: Group) -> str | None:
        """None: what it lacks shows in the first call."""
        del case, group
        return None

    def buffers(self, case: Collective, group: Group, calls: int) -> Tensor:
        """Outputs of so many calls."""
        return torch.empty(calls, case.output_elements, dtype=DTYPES[case.dtype], device=group.device)

    def bind(self, case: Collective, group: Group, x: Tensor, memory: Tensor) -> Exchange:
        """The calls of torch.distributed; an all-reduce finds the input in its output."""
        outputs = memory.unbind()
        if case.kind == "all_reduce":

            def reduce(out: Tensor) -> None:
                self.dist.all_reduce(out, group=group.process_group)

            calls = [functools.partial(reduce, out) for out in outputs]
            return Exchange(calls=calls, outputs=outputs, restore=lambda: memory.copy_(x))
        function = getattr(self.dist, self._function(case.kind))

        def run(out: Tensor) -> None:
            function(out, x, group=group.process_group)

        return Exchange(calls=[functools.partial(run, out) for out in outputs], outputs=outputs)

    def _function(self, kind: str) -> str:
        """Name of the function for tensors; PyTorch 2.13 has renamed two of three."""
        old = {
            "all_gather": "all_gather_into_tensor",
            "reduce_scatter": "reduce_scatter_tensor",
            "all_to_all": "all_to_all_single",
        }
        new = f"{kind}_single"
        return new if hasattr(self.dist, new) else old[kind]


@dataclass(frozen=True, kw_only=True)
class SymmetricOperation:
    """An operation of `torch.ops.symm_mem`.

    Attributes:
        name: its name.
        run: calls it with the message in symmetric memory, the group's name, and the tensor that lies in
            memory of this rank alone: the input of a gather, the output of the others.
        in_place: whether the message is both input and output.
    """

    name: str
    run: Callable[[Any, Tensor, str, Tensor], object]
    in_place: bool = False


SYMMETRIC_OPERATIONS: Mapping[str, Mapping[str, SymmetricOperation]] = {
    "one-shot": {
        "all_reduce": SymmetricOperation(
            name="one_shot_all_reduce_out",
            run=lambda operation, message, group, out: operation(message, "sum", group, out),
        )
    },
    "two-shot": {
        "all_reduce": SymmetricOperation(
            name="two_shot_all_reduce_",
            run=lambda operation, message, group, _: operation(message, "sum", group),
            in_place=True,
        ),
        "reduce_scatter": SymmetricOperation(
            name="reduce_scatter_out",
            run=lambda operation, message, group, out: operation(message, group, False, out),
        ),
    },
    "multimem": {
        "all_reduce": SymmetricOperation(
            name="multimem_all_reduce_",
            run=lambda operation, message, group, _: operation(message, "sum", group),
            in_place=True,
        ),
        "all_gather": SymmetricOperation(
            name="multimem_all_gather_out",
            run=lambda operation, message, group, x: operation(x, group, message),
        ),
    },
}
"""By algorithm and kind. One-shot: every GPU reads all messages and adds them up. Two-shot: each adds up a
part and writes the sum to all; the first shot alone is a reduce-scatter. Multimem: NVSwitch adds up and
writes to all GPUs at once (NVLink SHARP)."""


@dataclass(frozen=True)
class SymmetricMemory:
    """Kernels of PyTorch in which the GPUs of a host read and write each other's memory.

    Args:
        algorithm: a key of `SYMMETRIC_OPERATIONS`.
        module: replaces `torch.distributed._symmetric_memory` in tests.
        ops: replaces `torch.ops.symm_mem` in tests.
        cuda: replaces `torch.cuda` in tests.
    """

    algorithm: str
    module: Any = torch.distributed._symmetric_memory  # noqa: SLF001  (PyTorch has no public one)
    ops: Any = torch.ops.symm_mem
    cuda: Any = torch.cuda

    @property
    def name(self) -> str:
        """Such as "symm-one-shot"."""
        return f"symm-{self.algorithm}"

    def refuses(self, case: Collective, group: Group) -> str | None:
        """What PyTorch, the GPUs or their link lack."""
        operation = SYMMETRIC_OPERATIONS[self.algorithm].get(case.kind)
        if operation is None:
            return f"PyTorch's symmetric memory has no {self.algorithm} {case.kind.replace('_', '-')}"
        if group.device.type != "cuda":
            return "symmetric memory needs CUDA GPUs"
        if not hasattr(self.ops, operation.name):
            return f"this PyTorch has no symm_mem.{operation.name}"
        return self._link_lacks(group)

    def _link_lacks(self, group: Group) -> str | None:
        """What the GPUs or their link lack."""
        if len(hosts := set(group.hosts)) > 1:
            return f"its ranks are on {len(hosts)} hosts; symmetric memory is used within one"
        own = group.device.index
        for gpu in sorted({gpu for gpu in group.gpus if gpu is not None} - {own}):
            if gpu < self.cuda.device_count() and not self.cuda.can_device_access_peer(own, gpu):
                return f"GPU {own} cannot read the memory of GPU {gpu}"
        kind = torch._C._autograd.DeviceType.CUDA  # noqa: SLF001  (PyTorch's tests take it from there too)
        memory = self.module._SymmetricMemory  # noqa: SLF001  (it has no public name)
        if self.algorithm == "multimem" and not memory.has_multicast_support(kind, own):
            return "the link of these GPUs has no multicast (NVLink SHARP)"
        return None

    def buffers(self, case: Collective, group: Group, calls: int) -> Tensor:
        """Messages of so many calls in symmetric memory."""
        dtype = DTYPES[case.dtype]
        slot = SLOT_BYTES // dtype.itemsize
        pitch = -(-case.elements // slot) * slot
        memory: Tensor = self.module.empty(calls * pitch, dtype=dtype, device=group.device)
        return memory.view(calls, pitch)[:, : case.elements]

    def bind(self, case: Collective, group: Group, x: Tensor, memory: Tensor) -> Exchange:
        """Exchange the memory's addresses; the input is put into the memory, but for a gather."""
        operation, name = SYMMETRIC_OPERATIONS[self.algorithm][case.kind], group.process_group.group_name
        self.module.rendezvous(memory, name)
        messages = memory.unbind()
        outputs: Sequence[Tensor] = messages
        alone: Sequence[Tensor] = [x] * len(messages)
        restore: Call = lambda: None  # noqa: E731
        if operation.in_place:
            restore = functools.partial(memory.copy_, x)
        elif case.kind != "all_gather":
            memory.copy_(x)
            outputs = alone = [x.new_empty(case.output_elements) for _ in messages]
        run = functools.partial(operation.run, getattr(self.ops, operation.name))
        calls = [
            functools.partial(run, message, name, own) for message, own in zip(messages, alone, strict=True)
        ]
        return Exchange(calls=calls, outputs=outputs, restore=restore)
