"""Whether a case's inputs still hold what they held, by checksums that see changed and moved elements."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.inputs import DecoderLayerInputs, Inputs

WIDTH = 13
"""int64 words of a sum: 104 bytes, so that two rows of a matrix of over 52 bytes never lie in one sum. Sums
of fewer words take longer: these read 26 GB/s of 33."""

SAMPLE_STEP = 4093
"""Where memory is sampled, one int64 in so many is compared."""

SAMPLED_COPIES = 8
"""Copies of the inputs besides the first that are sampled."""


def input_tensors(inputs: Inputs) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of each input that a provider may only read: not `out`, nor a layer's new keys."""
    for field in dataclasses.fields(inputs):
        value = getattr(inputs, field.name)
        if isinstance(value, dict):
            yield from ((f"weight {name}", weight) for name, weight in value.items())
        elif isinstance(value, Tensor) and field.name != "out":
            if isinstance(inputs, DecoderLayerInputs) and field.name.endswith("_cache"):
                value = value[:, :, : inputs.case.tokens - inputs.case.query_tokens]
            yield field.name, value


def own_views(inputs: Inputs) -> Inputs:
    """The same memory as other tensor objects: a provider that resizes one changes its own."""
    views: dict[str, Any] = {}
    for field in dataclasses.fields(inputs):
        value = getattr(inputs, field.name)
        if isinstance(value, Tensor):
            views[field.name] = value.detach()
        elif isinstance(value, dict):
            views[field.name] = {name: weight.detach() for name, weight in value.items()}
    seen: Inputs = dataclasses.replace(inputs, **views)
    return seen


def checksum(tensor: Tensor) -> Tensor:
    """An int64 checksum of a tensor's bits, 1/13 of its size. Dense tensors are not copied."""
    words, rest = _words(tensor)
    end = len(words) // WIDTH * WIDTH
    return torch.cat([words[:end].view(-1, WIDTH).sum(1), words[end:], rest])


def sample(tensor: Tensor) -> Tensor:
    """A few of a tensor's int64 words, read without the rest of a dense tensor."""
    words, rest = _words(tensor)
    return torch.cat([words[::SAMPLE_STEP], rest])


def _words(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor's memory as int64 words, and up to 7 bytes that remain as further words."""
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    data = tensor.permute(order).reshape(-1).view(torch.uint8)
    if data.storage_offset() % 8:
        data = data.clone()
    whole = len(data) // 8 * 8
    return data[:whole].view(torch.int64), data[whole:].to(torch.int64)


class InputWatch:
    """What the copies of a case's inputs held when this object was made.

    Args:
        copies: the copies.
        fully: whether all of the first copy is compared; otherwise it is sampled as the others are.

    Attributes:
        found: what `altered` found last.
    """

    def __init__(self, copies: Sequence[Inputs], *, fully: bool) -> None:
        step = max(1, (len(copies) - 1) // SAMPLED_COPIES)
        self._watched = [
            (name, tensor, checksum if fully and inputs is copies[0] else sample)
            for inputs in (copies[0], *copies[1::step])
            for name, tensor in input_tensors(inputs)
            if tensor.numel()
        ]
        self._before = [read(tensor) for _, tensor, read in self._watched]
        self._sizes = [tensor.untyped_storage().nbytes() for _, tensor, _ in self._watched]
        self.found: list[str] = []

    def altered(self) -> list[str]:
        """Names of the inputs that hold other numbers now; a storage that was resized gets its size back."""
        names = []
        for (_, tensor, _), size_bytes in zip(self._watched, self._sizes, strict=True):
            if tensor.untyped_storage().nbytes() != size_bytes:
                tensor.untyped_storage().resize_(size_bytes)  # it may hold anything, also the old numbers
                names.append("storage")  # of all inputs, so it is not known by which
        names += [
            name
            for (name, tensor, read), before in zip(self._watched, self._before, strict=True)
            if not torch.equal(read(tensor), before)
        ]
        self.found = list(dict.fromkeys(names))
        return self.found
