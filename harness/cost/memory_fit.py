"""Whether a batch of sequences fits the memory of a deployment, and the largest batch and context that do."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..core.errors import UsageError
from ..core.language_model import LanguageModel
from ..core.suggestions import option_of_command
from .deployment import Deployment
from .memory import cache_bytes_per_sequence, resident_weight_bytes, weight_formats
from .model_facts import in_billions

USABLE_MEMORY = 0.9
"""Share of a GPU's memory for weights and cache; the rest is for the driver, activations and workspaces."""

_MOST_TENSOR_PARALLEL = 64

MAX_CONTEXT = 2**31 - 1
"""Longest context in the search for the largest that fits."""


@dataclass(frozen=True, kw_only=True)
class MemoryFit:
    """Weights and KV caches of a batch on one GPU of a deployment, and what would fit; all modelled.

    Attributes:
        batch: sequences decoded together.
        context: tokens in each sequence's cache.
        weight_bytes: bytes of weights.
        kv_bytes: bytes of caches.
        usable_bytes: the GPU's memory times `USABLE_MEMORY`.
        largest_batch: most sequences of this context; 0 if none fits.
        largest_context: longest context of this batch; 0 if none fits, None if any does.
        fitting_tensor_parallel: the smallest power of two with which the batch fits; None if none does.
    """

    batch: int
    context: int
    weight_bytes: float
    kv_bytes: float
    usable_bytes: float
    largest_batch: int
    largest_context: int | None
    fitting_tensor_parallel: int | None

    @property
    def fits(self) -> bool:
        """Whether the batch fits."""
        return self.batch <= self.largest_batch

    def to_json(self) -> dict[str, Any]:
        """The fields by their names, and their provenance."""
        return {"provenance": "modelled", **asdict(self)}

    def refusal(self, model: LanguageModel, on: Deployment, context_option: str = "--context") -> str:
        """Why the batch does not fit, and what would, in one line that names an option."""
        weights, caches = f"weights of {_gib(self.weight_bytes)}", f"a cache of {_gib(self.kv_bytes)}"
        usable = f"{_gib(self.usable_bytes)} usable, {USABLE_MEMORY:.0%} of {_gib(on.gpu.memory_bytes)}"
        if self.weight_bytes >= self.usable_bytes:
            size = f"{in_billions(model.parameters)} parameters"
            option, what = "--gpu", f"{model.name}, {size} in {weight_formats(model)}, does"
            held, most = f"{weights} a GPU, beside {caches}", "no batch and no context fits"
        else:
            option = "--batch" if self.largest_batch else context_option
            one = self.batch == 1
            what = f"{'a sequence' if one else f'{self.batch} sequences'} of {self.context} tokens"
            what += " does" if one else " do"
            held = f"{caches} a GPU, beside {weights}"
            batch = f"the largest batch of this context is {self.largest_batch}"
            most = (
                f"{batch if self.largest_batch else 'no batch of this context fits'}, the largest context of "
                f"this batch is {self.largest_context}"
            )
        enough = ""
        if self.fitting_tensor_parallel is not None:
            is_option = option_of_command("--tensor-parallel")
            enough = "--tensor-parallel" if is_option else "tensor parallelism of"
            enough = f"; {enough} {self.fitting_tensor_parallel} is enough"
        return f"{option}: {what} not fit {on.text}: {held}; {usable}; {most}{enough}"


def memory_fit(model: LanguageModel, on: Deployment, *, batch: int, context: int) -> MemoryFit:
    """Whether a batch fits, and what would.

    Raises:
        UsageError: the GPUs cannot share the model.
    """
    most = largest_batch(model, on, context=context)
    return MemoryFit(
        batch=batch,
        context=context,
        weight_bytes=resident_weight_bytes(model, parallelism=on.parallelism),
        kv_bytes=sequences_per_gpu(on, batch) * sequence_bytes(model, on, context),
        usable_bytes=USABLE_MEMORY * on.gpu.memory_bytes,
        largest_batch=most,
        largest_context=largest_context(model, on, batch=batch),
        fitting_tensor_parallel=None if batch <= most else _enough_gpus(model, on, batch, context),
    )


def largest_batch(model: LanguageModel, on: Deployment, *, context: int) -> int:
    """The largest number of sequences whose caches fit beside the weights; 0 if the weights do not fit."""
    free, each = _free_bytes(model, on), sequence_bytes(model, on, context)
    if not each:  # no layer keeps anything
        return MAX_CONTEXT if free > 0 else 0
    return max(0, math.floor(free / each)) * on.parallelism.data_parallel


def largest_context(model: LanguageModel, on: Deployment, *, batch: int) -> int | None:
    """The longest context at which a batch fits; 0 if none does, None if any does, as with windows alone."""
    most_bytes = _free_bytes(model, on) / sequences_per_gpu(on, batch)

    def fits(context: int) -> bool:
        return sequence_bytes(model, on, context) <= most_bytes

    return None if fits(MAX_CONTEXT) else last_that_holds(fits, MAX_CONTEXT)


def sequence_bytes(model: LanguageModel, on: Deployment, context: int) -> float:
    """Bytes that one sequence's caches and states take on a GPU of its attention replica."""
    return cache_bytes_per_sequence(
        model, context=context, cache_format=on.cache_format, parallelism=on.parallelism
    )


def sequences_per_gpu(on: Deployment, batch: int) -> int:
    """Sequences whose caches lie on a GPU of one attention replica."""
    return math.ceil(batch / on.parallelism.data_parallel)


def _free_bytes(model: LanguageModel, on: Deployment) -> float:
    return USABLE_MEMORY * on.gpu.memory_bytes - resident_weight_bytes(model, parallelism=on.parallelism)


def last_that_holds(holds: Callable[[int], bool], most: int) -> int:
    """The last of 1 to `most` for which a condition holds that, once broken, stays so; 0 if none."""
    below, above = 0, most + 1
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if holds(middle) else (below, middle)
    return below


def _enough_gpus(model: LanguageModel, on: Deployment, batch: int, context: int) -> int | None:
    """The smallest power of two of tensor parallelism, above the present one, with which a batch fits."""
    size = 2
    while size <= _MOST_TENSOR_PARALLEL:
        if size > on.parallelism.tensor_parallel:
            try:
                more = replace(on, parallelism=replace(on.parallelism, tensor_parallel=size))
                if largest_batch(model, more, context=context) >= batch:
                    return size
            except UsageError:  # the GPUs cannot share the model so
                return None
        size *= 2
    return None


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
