"""Which share of the work each program of a launch takes: the kernels' own arithmetic in plain Python.

The kernels work it out from their program id, on the device. Tests hold both to the same shares, against
launches recorded in the interpreter.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from .subjects import ITEM_COST_TILES


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
    def block_columns(self) -> int:
        """Columns from one tile to the next; no more than `block_n`."""

    @property
    def variant(self) -> str:
        """How operands are loaded; programs stay where it is not "pointers"."""

    @property
    def num_splits(self) -> int:
        """Shares of K that a tile is cut into."""

    @property
    def whole_tiles(self) -> int:
        """So many tiles, the first ones, are not cut."""


class DecodeCut(Protocol):
    """How decode attention is cut: what the model needs of a `DecodeTiling`."""

    @property
    def block_g(self) -> int:
        """Rows of a program."""

    @property
    def block_n(self) -> int:
        """Tokens of a tile."""

    @property
    def num_splits(self) -> int:
        """Shares of each item; 0 for equal shares of all tiles of the batch."""

    @property
    def programs(self) -> int:
        """How many such equal shares."""

    @property
    def min_tiles(self) -> int:
        """No equal share is smaller."""


class TileShare(NamedTuple):
    """One item of a matmul: an output tile over K tiles [first_k, last_k).

    Attributes:
        block_m: row block of x, in units of `MatmulTiling.block_m` rows.
        block_n: row block of the weight, in units of `MatmulTiling.block_columns`.
        split: which share of K.
        first_k: first step over K, in units of `MatmulTiling.block_k`.
        last_k: the step after the last; `first_k` where the share is empty.
        whole: whether these are all steps of a tile that is not cut.
    """

    block_m: int
    block_n: int
    split: int
    first_k: int
    last_k: int
    whole: bool


PARTIAL_BYTES = 4
"""Of an element of a partial result, which is float32."""

PART_RECORD_BYTES = 8
"""What a program of decode attention tells the merge: the last item that it began, and its parts."""


class DecodePart(NamedTuple):
    """What one program of a decode attention does for one item: tokens [begin, end) of a key-value head.

    Attributes:
        sequence: index in the batch.
        kv_head: key-value head.
        row_block: block of the query rows that share the head, in units of `DecodeTiling.block_g`.
        begin: first token.
        end: the token after the last; `begin` where the sequence has no live token.
        whole: whether these are all live tokens, so that the program writes the result itself.
    """

    sequence: int
    kv_head: int
    row_block: int
    begin: int
    end: int
    whole: bool


def matmul_tile_order(
    *, rows: int, out_features: int, in_features: int, tiling: MatmulCut
) -> tuple[TileShare, ...]:
    """The items of `prefill_matmul` in their order: whole tiles, then the shares of K of those that are cut.

    Tiles go in groups of `group_m` row blocks: inside a group down the rows first, then to the next columns.
    The shares of K of one tile are neighbours.

    Args:
        rows: M.
        out_features: N.
        in_features: K.
        tiling: how the kernel cuts them.

    Returns:
        `whole_tiles` of the ceil(M / block_m) x ceil(N / block_columns) tiles, and num_splits shares of each
        other one. With pointers a program takes one; with descriptors program p takes items p, p + programs
        and so on.
    """
    blocks_m = math.ceil(rows / tiling.block_m)
    blocks_n = math.ceil(out_features / tiling.block_columns)
    k_tiles = math.ceil(in_features / tiling.block_k)
    steps = math.ceil(k_tiles / tiling.num_splits)
    edges = [min(split * steps, k_tiles) for split in range(tiling.num_splits + 1)]
    tiles = [matmul_tile(tile, blocks_m, blocks_n, tiling.group_m) for tile in range(blocks_m * blocks_n)]
    whole = len(tiles) if tiling.num_splits == 1 else min(tiling.whole_tiles, len(tiles))
    items = [TileShare(*tile, 0, 0, k_tiles, True) for tile in tiles[:whole]]
    items += [
        TileShare(*tile, split, edges[split], edges[split + 1], False)
        for tile in tiles[whole:]
        for split in range(tiling.num_splits)
    ]
    return tuple(items)


def matmul_tile(tile: int, blocks_m: int, blocks_n: int, group_m: int) -> tuple[int, int]:
    """Row block and column block of a tile, in the order of `matmul_tile_order`."""
    group, place = divmod(tile, group_m * blocks_n)
    group_rows = min(blocks_m - group * group_m, group_m)
    return group * group_m + place % group_rows, place // group_rows


def decode_part_order(
    *,
    context_lens: Sequence[int],
    capacity: int,
    q_heads: int,
    kv_heads: int,
    tiling: DecodeCut,
    query_tokens: int = 1,
    window: int | None = None,
    item_cost_tiles: int = ITEM_COST_TILES,
) -> tuple[tuple[DecodePart, ...], ...]:
    """The parts of items that each program of `decode_attention`'s split kernel does, in launch order.

    An item is a sequence, a key-value head and a block of query rows, in that order. See
    `kernels/decode_shares.py` for the two ways to cut them.

    Args:
        context_lens: live tokens of each sequence; clamped to 0..capacity as the kernel does.
        capacity: tokens that a sequence's cache has room for.
        q_heads: query heads.
        kv_heads: key-value heads.
        tiling: how the kernel cuts the work.
        query_tokens: of a sequence.
        window: tokens that a query token sees; all when none.
        item_cost_tiles: what beginning an item counts, in tiles.

    Returns:
        The parts of each program, none for one without a share. With `num_splits` above 0 there are
        items x num_splits programs, else `programs`.
    """
    row_blocks = math.ceil(q_heads // kv_heads * query_tokens / tiling.block_g)
    heads = [(kv_head, row_block) for kv_head in range(kv_heads) for row_block in range(row_blocks)]
    items = []
    for sequence, context in enumerate(context_lens):
        stop = min(max(context, 0), capacity)
        start = 0 if window is None else max(stop - min(window, capacity) - (query_tokens - 1), 0)
        items += [_Item(sequence, *head, start, stop, tiling.block_n) for head in heads]
    if tiling.num_splits:
        return tuple(parts for item in items for parts in _split_parts(item, tiling.num_splits))
    return _balanced_parts(items, tiling.programs, tiling.min_tiles, item_cost_tiles)


class _Item(NamedTuple):
    """Live tokens [start, stop) of a sequence, for one key-value head and block of rows."""

    sequence: int
    kv_head: int
    row_block: int
    start: int
    stop: int
    block_n: int

    @property
    def tiles(self) -> int:
        """Tiles that hold live tokens; they start at multiples of `block_n`."""
        return math.ceil(self.stop / self.block_n) - self.start // self.block_n

    def part(self, first: int, last: int) -> DecodePart:
        """Tiles [first, last), counted from the first that is live."""
        first_tile = self.start // self.block_n
        begin = max((first_tile + first) * self.block_n, self.start)
        end = min((first_tile + last) * self.block_n, self.stop)
        whole = first == 0 and last == self.tiles
        return DecodePart(self.sequence, self.kv_head, self.row_block, begin, max(begin, end), whole)


def _split_parts(item: _Item, num_splits: int) -> Iterator[tuple[DecodePart, ...]]:
    """Of each split; the first of an empty item has it, with no tokens."""
    tiles = item.tiles
    per_split = max(math.ceil(tiles / num_splits), 1)
    for split in range(num_splits):
        first = split * per_split
        held = first < tiles or split == 0
        yield (item.part(first, min(first + per_split, tiles)),) if held else ()


def _balanced_parts(
    items: Sequence[_Item], programs: int, min_tiles: int, item_cost_tiles: int
) -> tuple[tuple[DecodePart, ...], ...]:
    """Walks along the units of all items: `item_cost_tiles` and then the tiles of each."""
    total = sum(item.tiles + item_cost_tiles for item in items)
    share = max(-(-total // programs), min_tiles)
    parts: list[list[DecodePart]] = [[] for _ in range(programs)]
    before = 0
    for item in items:
        tiles = item.tiles
        units = tiles + item_cost_tiles
        for program in range(before // share, -(-(before + units) // share)):
            first = max(program * share - before - item_cost_tiles, 0)
            last = min((program + 1) * share - before, units) - item_cost_tiles
            # A share that ends among what an item's beginning counts leaves the item to the next program.
            if last > first or last == tiles == 0:
                parts[program].append(item.part(first, last))
        before += units
    return tuple(map(tuple, parts))
