"""Which share of the work each program of a launch takes: the kernels' own arithmetic in plain Python.

The kernels work it out from their program id, on the device. Tests hold both to the same shares, against
launches recorded in the interpreter.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol


class MatmulCut(Protocol):
    """How a matmul is cut: what the model needs of a `MatmulTiling`."""

    @property
    def block_m(self) -> int:
        """Rows of a tile."""

    @property
    def block_n(self) -> int:
        """Columns of a tile."""

    @property
    def block_k(self) -> int:
        """Elements of K in a step."""

    @property
    def group_m(self) -> int:
        """Row blocks of a group of tiles."""

    @property
    def num_splits(self) -> int:
        """Shares of K."""


class DecodeCut(Protocol):
    """How decode attention is cut: what the model needs of a `DecodeTiling`."""

    @property
    def block_g(self) -> int:
        """Query heads of a program."""

    @property
    def block_n(self) -> int:
        """Tokens of a step."""

    @property
    def num_splits(self) -> int:
        """Shares of a context."""


class TileShare(NamedTuple):
    """What one program of a matmul computes: an output tile over K tiles [first_k, last_k).

    Attributes:
        block_m: row block of x, in units of `MatmulTiling.block_m` rows.
        block_n: row block of the weight, in units of `MatmulTiling.block_n`.
        split: which share of K.
        first_k: first step over K, in units of `MatmulTiling.block_k`.
        last_k: the step after the last; `first_k` where the share is empty.
    """

    block_m: int
    block_n: int
    split: int
    first_k: int
    last_k: int


class ContextShare(NamedTuple):
    """What one program of a decode attention reads: tokens [begin, end) of one key-value head.

    Attributes:
        sequence: index in the batch.
        kv_head: key-value head.
        group_block: block of the query heads of the group, in units of `DecodeTiling.block_g`.
        split: which share of the context.
        begin: first token.
        end: the token after the last; `begin` where the share is empty.
    """

    sequence: int
    kv_head: int
    group_block: int
    split: int
    begin: int
    end: int


def matmul_tile_order(
    *, rows: int, out_features: int, in_features: int, tiling: MatmulCut, group_m: int | None = None
) -> tuple[TileShare, ...]:
    """The shares of `prefill_matmul`'s programs in launch order.

    Tiles go in groups of `group_m` row blocks: inside a group down the rows first, then to the next columns.
    The shares of K of one tile are neighbours.

    Args:
        rows: M.
        out_features: N.
        in_features: K.
        tiling: how the kernel cuts them.
        group_m: another number of row blocks in a group than the tiling's.

    Returns:
        One share a program: ceil(M / block_m) x ceil(N / block_n) x num_splits of them.

    Raises:
        ValueError: `group_m` below 1.
    """
    group_m = tiling.group_m if group_m is None else group_m
    if group_m < 1:
        raise ValueError(f"group_m is {group_m}; it must be at least 1")
    blocks_m = math.ceil(rows / tiling.block_m)
    blocks_n = math.ceil(out_features / tiling.block_n)
    k_tiles = math.ceil(in_features / tiling.block_k)
    tiles_per_split = math.ceil(k_tiles / tiling.num_splits)
    edges = [min(split * tiles_per_split, k_tiles) for split in range(tiling.num_splits + 1)]
    shares = []
    for first_m in range(0, blocks_m, group_m):
        group = range(first_m, min(first_m + group_m, blocks_m))
        shares += [
            TileShare(block_m, block_n, split, edges[split], edges[split + 1])
            for block_n in range(blocks_n)
            for block_m in group
            for split in range(tiling.num_splits)
        ]
    return tuple(shares)


def decode_share_order(
    *,
    context_lens: Sequence[int],
    capacity: int,
    q_heads: int,
    kv_heads: int,
    tiling: DecodeCut,
) -> tuple[ContextShare, ...]:
    """The shares of `decode_attention`'s programs in launch order.

    Each sequence is cut by its own length, in whole tiles of `block_n` tokens, so the last shares of a short
    one are empty.

    Args:
        context_lens: live tokens of each sequence; clamped to 0..capacity as the kernel does.
        capacity: tokens that a sequence's cache has room for.
        q_heads: query heads.
        kv_heads: key-value heads.
        tiling: how the kernel cuts each sequence and group.

    Returns:
        One share a program: batch x num_splits x kv_heads x ceil(group / block_g) of them.
    """
    group_blocks = math.ceil(q_heads // kv_heads / tiling.block_g)
    shares = []
    for sequence, context in enumerate(context_lens):
        length = min(max(context, 0), capacity)
        tiles = math.ceil(length / tiling.block_n)
        split_tokens = max(1, math.ceil(tiles / tiling.num_splits)) * tiling.block_n
        for split in range(tiling.num_splits):
            begin = min(split * split_tokens, length)
            end = min(begin + split_tokens, length)
            shares += [
                ContextShare(sequence, kv_head, group_block, split, begin, end)
                for kv_head in range(kv_heads)
                for group_block in range(group_blocks)
            ]
    return tuple(shares)
