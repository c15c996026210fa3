"""The grid of prefill attention, as input of the schedule simulation (`schedule`): bound by tensor cores."""

import math
from collections.abc import Sequence

from ...kernels.prefill_attention_tiling import PrefillAttentionTiling
from ..core.gpus import Gpu
from .schedule import CtaWork, Grid, Schedule, SharedResource, fixed_time_s, simulate_grid


def item_order(
    *, lengths: Sequence[int], q_heads: int, tiling: PrefillAttentionTiling
) -> list[tuple[int, int, int]]:
    """(sequence, query head, row block) of each item of a causal call, in the kernel's order.

    Row blocks come in descending order of the keys that they read, then of sequences and heads.
    """
    blocks = [
        (min((block + 1) * tiling.block_m, length), sequence, block)
        for sequence, length in enumerate(lengths)
        for block in range(math.ceil(length / tiling.block_m))
    ]
    blocks.sort(key=lambda entry: (-entry[0], entry[1]))
    return [(sequence, head, block) for _, sequence, block in blocks for head in range(q_heads)]


def item_of_round(index: int, program: int, programs: int) -> int:
    """The item that a CTA takes in a round; rounds go back and forth over the CTAs."""
    return index * programs + (program if index % 2 == 0 else programs - 1 - program)


def tile_count(row_block: int, length: int, tiling: PrefillAttentionTiling) -> int:
    """KV tiles of a row block of a causal prompt: those with a token that a row attends to."""
    return math.ceil(min((row_block + 1) * tiling.block_m, length) / tiling.block_n)


def prefill_attention_grid(
    *, lengths: Sequence[int], q_heads: int, head_dims: int, tiling: PrefillAttentionTiling
) -> Grid:
    """The grid of `prefill_attention` on causal prompts of these lengths, bound by the tensor cores.

    Args:
        lengths: tokens of each prompt.
        q_heads: query heads.
        head_dims: elements of a key and of a value together.
        tiling: tile sizes and CTA count.

    Returns:
        The grid; its work is the operations of the tiles, masked ones counted in full.
    """
    items = item_order(lengths=lengths, q_heads=q_heads, tiling=tiling)
    programs = min(tiling.programs, len(items))
    tile_operations = 2 * tiling.block_m * tiling.block_n * head_dims
    work = [
        float(tile_operations * tile_count(block, lengths[sequence], tiling)) for sequence, _, block in items
    ]
    ctas = []
    for index in range(math.ceil(len(items) / programs)):
        for program in range(programs):
            item = item_of_round(index, program, programs)
            live = item < len(items)
            ctas.append(CtaWork(work=work[item] if live else 0.0, fixed_s=fixed_time_s() if live else 0.0))
    return Grid(ctas=tuple(ctas), useful_work=sum(work), second_kernel_bytes=None, persistent=True)


def simulate_prefill_attention(grid: Grid, gpu: Gpu, programs_per_sm: int, dtype: str) -> Schedule:
    """Simulates a grid on the GPU's tensor cores, at the datasheet's dense rate of the dtype.

    Raises:
        ValueError: the datasheet has no rate of the dtype.
    """
    rate = gpu.flop_per_s.get(dtype)
    if rate is None:
        raise ValueError(f"dtype is {dtype}; {gpu.name} has no tensor-core rate of it")
    tensor_cores = SharedResource(unit="operations", rate_per_s=rate, sm_share=1.0)
    return simulate_grid(grid, gpu, programs_per_sm, resource=tensor_cores)
