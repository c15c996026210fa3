"""The kernels of this package counted in the interpreter, beside what their tiling says that they move.

Three figures of one tensor stand side by side: what the kernel asked for (counted), what the tiling's formula
says that it asks for (modelled), and what the case cannot do without (its work).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from ..core.cases import DecodeAttention, PrefillMatmul
from ..core.inputs import DecodeAttentionInputs, MatmulInputs, Source, draw
from ..core.work import ELEMENT_BYTES
from .subjects import (
    EDGE_TOKENS,
    H100_LIMITS,
    MERGE_PROGRAMS,
    DecodeTiling,
    GpuLimits,
    MatmulTiling,
    choose_decode_tiling,
    kernels,
    matmul_tiling,
)
from .tile_order import PART_RECORD_BYTES, PARTIAL_BYTES, decode_part_order, matmul_tile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .tile_order import DecodePart
    from .traffic import LaunchTraffic

    CountedCase = PrefillMatmul | DecodeAttention
    Tiling = MatmulTiling | DecodeTiling

_LENGTH_BYTES = 4

_TERMS = {
    "x_ptr": "x",
    "x_desc": "x",
    "weight_ptr": "weight",
    "weight_desc": "weight",
    "q_ptr": "q",
    "k_ptr": "k_cache",
    "v_ptr": "v_cache",
    "context_lens_ptr": "context_lens",
    "partial_ptr": "partial",
    "partial_lse_ptr": "partial_lse",
    "parts_ptr": "parts",
    "out_ptr": "out",
}


@dataclass(frozen=True, kw_only=True)
class TilingTraffic:
    """What a tiling asks of memory, by tensor, in bytes of live elements.

    Attributes:
        read: every time that it is loaded.
        written: every time that it is stored.
    """

    read: Mapping[str, int]
    written: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class CountedTensor:
    """One tensor of a case, in bytes.

    Attributes:
        requested: loaded by live lanes, each time; counted.
        written: stored by live lanes, each time; counted.
        distinct: touched, each byte once; counted.
        sectors: 32-byte sectors touched, each once; counted. A number, not bytes.
        modelled_requested: what the tiling's formula says of `requested`.
        modelled_written: what it says of `written`.
        work: what the case reads and writes of it at least; 0 for partial results.
    """

    requested: int
    written: int
    distinct: int
    sectors: int
    modelled_requested: int
    modelled_written: int
    work: int


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A case's kernel counted while the interpreter ran it, beside the tiling's formulas.

    Attributes:
        case: what ran.
        tiling: how it was cut.
        tensors: by the names of the case's work, and partial results.
        operations: of products, padding included, by operand types; counted.
        modelled_operations: what the tiling's formula says of their sum.
        launches: the launches in order, program counts and extremes among them.
    """

    case: CountedCase
    tiling: Tiling
    tensors: Mapping[str, CountedTensor]
    operations: Mapping[str, int]
    modelled_operations: int
    launches: Sequence[LaunchTraffic]

    @property
    def bytes_requested(self) -> int:
        """Bytes loaded; counted."""
        return sum(tensor.requested for tensor in self.tensors.values())

    @property
    def bytes_written(self) -> int:
        """Bytes stored; counted."""
        return sum(tensor.written for tensor in self.tensors.values())

    @property
    def bytes_distinct(self) -> int:
        """Bytes touched, each once; counted."""
        return sum(tensor.distinct for tensor in self.tensors.values())

    @property
    def modelled_bytes(self) -> int:
        """Bytes loaded and stored, as the tiling's formula says."""
        return sum(t.modelled_requested + t.modelled_written for t in self.tensors.values())

    @property
    def bytes_ratio(self) -> float:
        """Bytes loaded and stored, counted over modelled."""
        return (self.bytes_requested + self.bytes_written) / self.modelled_bytes

    @property
    def operations_ratio(self) -> float:
        """Operations counted over modelled; 1 where there are none."""
        counted = sum(self.operations.values())
        return counted / self.modelled_operations if self.modelled_operations else 1.0

    @property
    def useful_share(self) -> float:
        """Operations that the case needs over those counted; 1 where there are none."""
        counted = sum(self.operations.values())
        return self.case.work().operations / counted if counted else 1.0

    @property
    def operations_per_requested_byte(self) -> float:
        """Useful operations over bytes loaded and stored: ops:bytes as if no load found a cache."""
        return self.case.work().operations / (self.bytes_requested + self.bytes_written)

    @property
    def operations_per_distinct_byte(self) -> float:
        """Useful operations over bytes touched: ops:bytes as if every byte came from memory once."""
        return self.case.work().operations / self.bytes_distinct


def default_tiling(case: CountedCase, limits: GpuLimits = H100_LIMITS) -> Tiling:
    """The tiling that the kernel's host function chooses for a case's inputs on a GPU; H100 when none."""
    element_bytes = ELEMENT_BYTES[case.dtype]
    if isinstance(case, PrefillMatmul):
        return matmul_tiling(
            limits,
            rows=case.rows,
            out_features=case.out_features,
            in_features=case.in_features,
            x_bytes=element_bytes,
            weight_bytes=element_bytes,
        )
    return choose_decode_tiling(
        batch=case.batch,
        q_heads=case.q_heads,
        kv_heads=case.kv_heads,
        head_dim=case.head_dim,
        capacity=case.capacity,
        page_size=0,
        element_bytes=element_bytes,
        limits=limits,
    )


def tiling_traffic(case: CountedCase, tiling: Tiling) -> TilingTraffic:
    """Bytes that a tiling loads and stores, by tensor: arithmetic alone.

    Product: each panel of x once a column of tiles, each panel of weight once a row of tiles. Attention: a
    query once a part of its context (see `decode_part_order`), a live key or value once a block of the query
    heads that share it, all lengths twice a program. Partial results are stored once a part of an item that
    is cut, and loaded once; out is stored once.

    Raises:
        ValueError: a tiling of another operation.
    """
    if isinstance(case, PrefillMatmul) and isinstance(tiling, MatmulTiling):
        return _matmul_traffic(case, tiling)
    if isinstance(case, DecodeAttention) and isinstance(tiling, DecodeTiling):
        return _decode_traffic(case, tiling)
    raise _mismatch(case, tiling)


def tiling_operations(case: CountedCase, tiling: Tiling) -> int:
    """Operations of a tiling's products, padding included: arithmetic alone.

    Product: 2 BLOCK_M BLOCK_N BLOCK_K a tile and step of K. Attention: 2 products of 2 BLOCK_G BLOCK_D,
    head_dim rounded up to a power of two, a block of query heads and token; what is left of a context by
    tiles of BLOCK_N is rounded up to 16 tokens.

    Raises:
        ValueError: a tiling of another operation.
    """
    if isinstance(case, PrefillMatmul) and isinstance(tiling, MatmulTiling):
        tiles = math.ceil(case.rows / tiling.block_m) * math.ceil(case.out_features / tiling.block_columns)
        steps = tiles * math.ceil(case.in_features / tiling.block_k)
        return 2 * steps * tiling.block_m * tiling.block_n * tiling.block_k
    if isinstance(case, DecodeAttention) and isinstance(tiling, DecodeTiling):
        block_d = 1 << (case.head_dim - 1).bit_length()
        row_blocks = math.ceil(case.q_heads // case.kv_heads / tiling.block_g)
        whole = [context // tiling.block_n * tiling.block_n for context in case.contexts]
        left = [context % tiling.block_n for context in case.contexts]
        tokens = sum(whole) + sum(math.ceil(each / EDGE_TOKENS) * EDGE_TOKENS for each in left)
        return 4 * tokens * case.kv_heads * row_blocks * tiling.block_g * block_d
    raise _mismatch(case, tiling)


def count_case(
    case: CountedCase, *, tiling: Tiling | None = None, source: Source | None = None, seed: int = 0
) -> Counted:
    """Run a case's kernel in the interpreter and count it.

    Args:
        case: of a size for the interpreter, which takes about ten seconds for 10^9 operations.
        tiling: how to cut it; what the host function would choose on an H100 when none.
        source: of the inputs, on the CPU; a new one when none.
        seed: of the new one.

    Raises:
        ValueError: a tiling of another operation, or a case that the kernel does not take.
        RuntimeError: Triton was imported before, and compiles its kernels.
        SanitizerError: the kernel touched memory as it must not.
    """
    kernels.use_interpreter()
    from .interpreter_patch import count_traffic  # noqa: PLC0415  (imports Triton, which the line above prepares)

    tiling = tiling or default_tiling(case)
    modelled, operations = tiling_traffic(case, tiling), tiling_operations(case, tiling)
    run = _prepared(case, tiling, source or Source(torch.device("cpu"), seed))
    with count_traffic() as traffic:
        run()
    return Counted(
        case=case,
        tiling=tiling,
        tensors=_tensors(case, modelled, traffic.launches),
        operations=traffic.operations,
        modelled_operations=operations,
        launches=tuple(traffic.launches),
    )


def _prepared(case: CountedCase, tiling: Tiling, source: Source) -> Callable[[], object]:
    """A call of the case's kernel; the output is made inside it, so that it starts unwritten."""
    inputs = draw(case, source)
    if isinstance(inputs, MatmulInputs) and isinstance(tiling, MatmulTiling):
        return partial(kernels.prefill_matmul, inputs.x, inputs.weight, tiling=tiling)
    if isinstance(inputs, DecodeAttentionInputs) and isinstance(tiling, DecodeTiling):
        tensors = (inputs.q, inputs.k_cache, inputs.v_cache, inputs.context_lens)
        return partial(kernels.decode_attention, *tensors, tiling=tiling)
    raise _mismatch(case, tiling)


def _tensors(
    case: CountedCase, modelled: TilingTraffic, launches: Sequence[LaunchTraffic]
) -> dict[str, CountedTensor]:
    """The tensors of all launches together; those that a launch hands to the next are one."""
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    for launch in launches:
        for name, tensor in launch.tensors.items():
            term = _TERMS[name]
            sums[term]["requested"] += tensor.bytes_requested
            sums[term]["written"] += tensor.bytes_written
            # Launches that share a tensor touch the same of it, but of the result an item each.
            both = sum if term == "out" else max
            sums[term]["distinct"] = both((sums[term]["distinct"], tensor.bytes_distinct))
            sums[term]["sectors"] = both((sums[term]["sectors"], tensor.sectors))
    work = case.work()
    return {
        term: CountedTensor(
            requested=counts["requested"],
            written=counts["written"],
            distinct=counts["distinct"],
            sectors=counts["sectors"],
            modelled_requested=modelled.read.get(term, 0),
            modelled_written=modelled.written.get(term, 0),
            work=work.read_terms.get(term, 0) + work.written_terms.get(term, 0),
        )
        for term, counts in sums.items()
    }


def _matmul_traffic(case: PrefillMatmul, tiling: MatmulTiling) -> TilingTraffic:
    size = ELEMENT_BYTES[case.dtype]
    columns = math.ceil(case.out_features / tiling.block_columns)
    rows = math.ceil(case.rows / tiling.block_m)
    read = {
        "x": case.rows * case.in_features * size * columns,
        "weight": case.out_features * case.in_features * size * rows,
    }
    written = {"out": case.rows * case.out_features * size}
    cut = _cut_elements(case, tiling) if tiling.num_splits > 1 else 0
    if cut:
        read["partial"] = written["partial"] = cut * tiling.num_splits * PARTIAL_BYTES
    return TilingTraffic(read=read, written=written)


def _cut_elements(case: PrefillMatmul, tiling: MatmulTiling) -> int:
    """Elements of the result in tiles that are cut along K; there are few of them, however many tiles."""
    blocks_m = math.ceil(case.rows / tiling.block_m)
    blocks_n = math.ceil(case.out_features / tiling.block_columns)
    elements = 0
    for tile in range(min(tiling.whole_tiles, blocks_m * blocks_n), blocks_m * blocks_n):
        block_m, block_n = matmul_tile(tile, blocks_m, blocks_n, tiling.group_m)
        rows = min(tiling.block_m, case.rows - block_m * tiling.block_m)
        elements += rows * min(tiling.block_columns, case.out_features - block_n * tiling.block_columns)
    return elements


def _decode_traffic(case: DecodeAttention, tiling: DecodeTiling) -> TilingTraffic:
    size, lengths = ELEMENT_BYTES[case.dtype], case.batch * _LENGTH_BYTES
    rows = case.q_heads // case.kv_heads
    programs = _decode_parts(case, tiling)
    parts = [part for parts in programs for part in parts]
    queries = sum(_rows_of(part, rows, tiling) for part in parts)
    cut_parts = [part for part in parts if not part.whole]
    cut_rows = sum(_rows_of(part, rows, tiling) for part in cut_parts)
    cut_items = {(part.sequence, part.kv_head, part.row_block): part for part in cut_parts}
    merged_rows = sum(_rows_of(part, rows, tiling) for part in cut_items.values())
    cache = sum(part.end - part.begin for part in parts) * case.head_dim * size
    # A balanced program adds up all lengths, then finds its place among them, and looks at two of them again.
    searched = len(programs) * (_LENGTH_BYTES if tiling.num_splits else 2 * lengths + 2 * _LENGTH_BYTES)
    read = {
        "q": queries * case.head_dim * size,
        "k_cache": cache,
        "v_cache": cache,
        "context_lens": searched + (len(parts) + merged_rows) * _LENGTH_BYTES,
    }
    written = {"out": case.batch * case.q_heads * case.head_dim * size}
    if len(programs) > 1 and tiling.num_splits != 1:
        slot_rows = min(rows, tiling.block_g)
        merging = math.ceil(slot_rows / math.ceil(slot_rows / MERGE_PROGRAMS))
        written["parts"] = len(programs) * PART_RECORD_BYTES
        read["parts"] = written["parts"] * merging
        read["partial"] = written["partial"] = cut_rows * case.head_dim * PARTIAL_BYTES
        read["partial_lse"] = written["partial_lse"] = cut_rows * PARTIAL_BYTES
    return TilingTraffic(read=read, written=written)


def _decode_parts(case: DecodeAttention, tiling: DecodeTiling) -> tuple[tuple[DecodePart, ...], ...]:
    return decode_part_order(
        context_lens=case.contexts,
        capacity=case.capacity,
        q_heads=case.q_heads,
        kv_heads=case.kv_heads,
        tiling=tiling,
    )


def _rows_of(part: DecodePart, rows: int, tiling: DecodeTiling) -> int:
    """Query rows of a part's block."""
    return min(tiling.block_g, rows - part.row_block * tiling.block_g)


def _mismatch(case: object, tiling: object) -> ValueError:
    return ValueError(
        f"tiling is a {type(tiling).__name__}, which does not go with a {type(case).__name__}; it must be a "
        "MatmulTiling for a PrefillMatmul or a DecodeTiling for a DecodeAttention"
    )
