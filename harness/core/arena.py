"""One block of memory that the inputs of all cases of a run share: drawing inputs then copies nothing."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .cases import AttentionCase, Case, DecodeAttention, DecoderLayer, PrefillAttention, PrefillMatmul
from .inputs import DTYPES, Inputs, Source, draw
from .records import Roof
from .work import ELEMENT_BYTES

ALIGNMENT_BYTES = 512
"""Offsets of tensors are multiples of this, as in torch's CUDA allocator; its CPU allocator aligns to 64."""

CACHES_IN_FLIGHT = 5
"""The arena, and the copies of a case's inputs together, are at least this many times as large as the
last-level cache. Of inputs of r times its size, a cache that evicts at random still holds the share
h = exp(-r (1 - h)) when they are read again: 16% at r = 2.2, and 0.7% at 5."""

MAX_COPIES = 1000
"""Most copies of the inputs of a case too small to fill the caches; the row records their number."""

WARM_COPIES = 2
"""Copies of the inputs of a compute-bound case, whose time does not depend on what the caches hold."""

COMPUTE_OVER_MEMORY = 10
"""A case is compute-bound if, by the measured roof, its operations take this many times as long as its bytes:
even inputs that lie in the cache then shorten a call by at most a tenth."""

FREE_SHARE = 1 / 8
"""The arena grows beyond the largest case only within this share of the free memory."""


class Arena(Source):
    """Standard normal tensors as views into one block of memory, at moving offsets.

    The block holds one repeated pattern of random numbers in one dtype. Asking for another dtype fills it
    anew, and tensors of the old one must no longer be used. The copies of a case never overlap.

    Args:
        device: device of the block.
        seed: seed of the pattern.
        size_bytes: size of the block.
    """

    def __init__(self, device: torch.device, seed: int, *, size_bytes: int) -> None:
        super().__init__(device, seed)
        size_bytes = -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        self._memory = torch.empty(size_bytes, dtype=torch.uint8, device=device)
        self._dtype: torch.dtype | None = None
        self._filled, self._cursor = 0, 0
        self._starts: dict[Case, int] = {}
        self._written: list[tuple[int, int]] = []

    @property
    def size_bytes(self) -> int:
        """Size of the block."""
        return self._memory.nbytes

    @property
    def offset_bytes(self) -> int:
        """Offset of the next tensor."""
        return self._cursor

    def block(self, dtype: torch.dtype) -> Tensor:
        """The block, filled in `dtype`, as a flat tensor."""
        self._use(dtype, self.size_bytes)
        return self._memory.view(dtype)

    def words(self) -> Tensor:
        """The block as it is, as a flat float32 tensor: pairs of 16-bit numbers make finite ones too."""
        return self._memory.view(torch.float32)

    def normal(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A contiguous view of standard normal numbers; the next one follows it.

        Raises:
            MemoryError: it is larger than the arena.
        """
        size_bytes = math.prod(shape) * dtype.itemsize
        if size_bytes > self.size_bytes:
            raise MemoryError(f"inputs of {size_bytes} bytes in an arena of {self.size_bytes}")
        self._use(dtype, 0)
        start = self._cursor if self._cursor + size_bytes <= self.size_bytes else 0
        self._use(dtype, start + size_bytes)
        self._cursor = min(self.size_bytes, -(-(start + size_bytes) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)
        return self._memory[start : start + size_bytes].view(dtype).view(shape)

    def writable(self, tensor: Tensor) -> Tensor:
        """The tensor, a dense view of the arena, which may be written to until `restore`."""
        if tensor.numel():
            start = int(tensor.storage_offset()) * tensor.itemsize
            self._written.append((start, start + tensor.nbytes))
        return tensor

    def restore(self) -> None:
        """Put back the numbers wherever tensors were writable."""
        for start, end in self._written:
            self._fill(start, end)
        self._written.clear()

    def intact(self) -> bool:
        """Whether the block holds its pattern everywhere; written tensors count until `restore`."""
        if self._dtype is None:
            return True
        pattern = self._pattern(self._dtype).view(torch.uint8).repeat(8)  # whole words, compared faster
        whole = self._memory[: self._filled]
        parts = [whole[start : start + len(pattern)] for start in range(0, len(whole), len(pattern))]
        return all(
            torch.equal(part[:end].view(torch.int64), pattern[:end].view(torch.int64))
            and torch.equal(part[end:], pattern[end : len(part)])
            for part, end in ((part, len(part) // 8 * 8) for part in parts)
        )

    def refill(self) -> None:
        """Put back the numbers of the whole block."""
        self._written.clear()
        self._fill(0, self._filled)

    def copies_of(self, case: Case, count: int) -> list[Inputs]:
        """Up to `count` copies of a case's inputs, at least one: as many as fit side by side.

        The first call for a case fixes where its inputs lie, so that they hold the same numbers each time.
        """
        self._use(DTYPES[case.dtype], 0)
        size_bytes = input_bytes(case)
        count = max(1, min(count, self.size_bytes // max(1, size_bytes)))
        after = self._cursor
        if case not in self._starts:
            fits = self._cursor + count * size_bytes <= self.size_bytes
            self._starts[case] = self._cursor if fits else 0
            after = self._starts[case] + count * size_bytes
        self._cursor = self._starts[case]
        copies = [draw(case, self) for _ in range(count)]
        self._cursor = after
        return copies

    def _use(self, dtype: torch.dtype, end: int) -> None:
        """Fill the block in `dtype`, up to the byte `end` at least."""
        if dtype != self._dtype:
            self._dtype, self._filled, self._cursor = dtype, 0, 0
        if end > self._filled:
            self._fill(self._filled, end)
            self._filled = end

    def _fill(self, start: int, end: int) -> None:
        """Copy the pattern to the bytes from start to end."""
        if self._dtype is None:
            return
        pattern = self._pattern(self._dtype).view(torch.uint8)
        while start < end:
            at = start % len(pattern)
            piece = pattern[at : at + end - start]
            self._memory[start : start + len(piece)] = piece
            start += len(piece)


def input_bytes(case: Case) -> int:
    """Bytes that one copy of a case's inputs takes in an arena, without its outputs."""
    return sum(
        -(-n * ELEMENT_BYTES[case.dtype] // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for n in _elements(case)
    )


def _elements(case: Case) -> list[int]:
    """Elements of each tensor that a case's inputs draw."""
    match case:
        case PrefillMatmul():
            in_features = case.batch * case.in_features
            return [case.rows * in_features, case.out_features * in_features]
        case DecodeAttention():
            entries = case.batch * case.kv_heads * case.capacity
            q = case.batch * case.q_heads * case.head_dim
            of_values = [] if case.latent else [entries * case.value_dim]
            return [q, entries * case.head_dim, *of_values, *_sinks(case)]
        case PrefillAttention():
            tokens = case.sequences * case.prompt
            keys, values = (tokens * case.kv_heads * width for width in (case.head_dim, case.value_dim))
            return [tokens * case.q_heads * case.head_dim, keys, values, *_sinks(case)]
        case DecoderLayer():
            model = case.model
            cache = case.sequences * model.kv_heads * case.tokens * model.head_dim
            hidden = case.sequences * case.query_tokens * model.hidden_size
            weights = [projection.parameters for projection in model.projections]
            return [hidden, cache, cache, *weights, 2 * model.hidden_size]


def _sinks(case: AttentionCase) -> list[int]:
    return [case.q_heads] if case.sinks else []


def memory_bytes(case: Case) -> int:
    """Approximate bytes for timing a case: one copy of its inputs, two outputs, and the oracle's float64."""
    match case:
        case PrefillMatmul():
            oracle = 8 * case.batch * case.rows * case.in_features
        case DecoderLayer():
            largest = max(p.parameters for p in case.model.projections)
            oracle = 8 * (largest + 4 * case.tokens * case.model.hidden_size)
        case _:
            oracle = 0
    return input_bytes(case) + 2 * case.work().bytes_written + oracle


def arena_bytes(cases: Sequence[Case], *, cache_bytes: int, free_bytes: int, least_bytes: int) -> int:
    """Size of the arena for a run of these cases.

    It holds the largest case that fits in the free memory. Where FREE_SHARE of the free memory allows, it
    also fills the last-level cache CACHES_IN_FLIGHT times and has at least `least_bytes`.
    """
    fitting = [input_bytes(case) for case in cases if memory_bytes(case) <= free_bytes]
    largest = max(fitting, default=0)
    cold = max(CACHES_IN_FLIGHT * cache_bytes, least_bytes)
    return max(largest, min(cold, int(FREE_SHARE * free_bytes)), 2 * ALIGNMENT_BYTES)


def copies_needed(case: Case, roof: Roof, *, cache_bytes: int) -> int:
    """Copies of a case's inputs with which the caches are cold, or WARM_COPIES where that does not matter."""
    work = case.work()
    if roof.flop_per_s is not None and roof.bandwidth_bytes_per_s is not None:
        compute_s = work.operations / roof.flop_per_s
        if compute_s > COMPUTE_OVER_MEMORY * work.bytes_total / roof.bandwidth_bytes_per_s:
            return WARM_COPIES
    return min(MAX_COPIES, max(1, math.ceil(CACHES_IN_FLIGHT * cache_bytes / work.bytes_total)))
