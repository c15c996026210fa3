"""Simulated decode schedules over 968 calls: time over live bytes / bandwidth. All figures are modelled.

    python tests/offline/decode_suite.py --gpu a100 h100 b200 [--rule flash_attention_2]

prints the table of docs/evidence.md and docs/kernels/decode_attention.md, about 20 seconds a GPU. All calls
have bf16 keys and values of 128 elements and 4 query heads per KV head. Calls of less than 64 MB (64e6 bytes)
of live keys and values are left out: fixed costs hide the schedule there.
"""

import argparse
import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

from decodetax.harness.core.gpus import find_gpu
from decodetax.harness.offline.default_tilings import kernel_limits
from decodetax.harness.offline.kernel_grids import decode_grid
from decodetax.harness.offline.schedule import simulate_grid
from decodetax.kernels import choose_decode_tiling

HEAD_DIM, ELEMENT_BYTES, GROUP = 128, 2, 4
MIN_BYTES = 64 * 10**6
CONTEXTS = tuple(512 << doubling for doubling in range(9))
RAGGED_KINDS = ("random", "one_long", "zipf")
LARGE_CAPACITY, SHORT_LENGTHS = 131072, (512, 8192)
COLUMNS = {
    "gpu": "gpu",
    "programs/SM": "programs_per_sm",
    "uniform": "uniform",
    "ragged": "ragged",
    "large capacity": "large_capacity",
    "worst": "worst",
    "longest SM/mean": "longest_sm_over_mean",
    "largest jump": "largest_jump",
}


@dataclass(frozen=True, kw_only=True)
class DecodeCall:
    context_lens: tuple[int, ...]
    capacity: int
    kv_heads: int

    @property
    def cache_bytes(self):
        """Live keys and values."""
        return sum(self.context_lens) * self.kv_heads * 2 * HEAD_DIM * ELEMENT_BYTES


@dataclass(frozen=True, kw_only=True)
class Suite:
    """`neighbours`: batch sizes compared with one sequence more; the capacity is the context."""

    batches: Sequence[int] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
    contexts: Sequence[int] = CONTEXTS
    kv_heads: Sequence[int] = (1, 4, 8)
    neighbours: Sequence[int] = range(1, 65)

    def calls(self, *kinds):
        for kind, kv_heads, context, batch in itertools.product(
            kinds, self.kv_heads, self.contexts, self.batches
        ):
            yield from large_enough(context_lens(kind, batch, context), context, kv_heads)

    def large_capacity(self):
        """Short sequences in a cache with room for long ones."""
        for kv_heads, batch in itertools.product(self.kv_heads, self.batches):
            draw = random.Random(LARGE_CAPACITY)  # noqa: S311  (repeatable, not secret)
            lengths = tuple(draw.randint(*SHORT_LENGTHS) for _ in range(batch))
            yield from large_enough(lengths, LARGE_CAPACITY, kv_heads)

    def neighbouring(self):
        """Pairs of calls, the second with one more sequence."""
        for kind, kv_heads, context, batch in itertools.product(
            ("uniform", *RAGGED_KINDS), self.kv_heads, self.contexts, self.neighbours
        ):
            for fewer in large_enough(context_lens(kind, batch, context), context, kv_heads):
                for more in large_enough(context_lens(kind, batch + 1, context), context, kv_heads):
                    yield fewer, more


# A tenth of the calls, the worst one and the largest jump among them.
SLICE = Suite(
    batches=(1, 3, 8, 24, 64, 256),
    contexts=(512, 1024, 4096, 16384, 65536, 131072),
    kv_heads=(8,),
    neighbours=range(40, 65),
)


def context_lens(kind, batch, context):
    """Lengths of a batch; one more sequence leaves the others as they are."""
    if kind == "uniform":
        return (context,) * batch
    if kind == "one_long":
        return (context,) + (context // 16,) * (batch - 1)
    if kind == "zipf":
        return tuple(context // rank for rank in range(1, batch + 1))
    draw = random.Random(context)  # noqa: S311  (repeatable, not secret)
    return tuple(draw.randint(1, context) for _ in range(batch))


def large_enough(lengths, capacity, kv_heads):
    call = DecodeCall(context_lens=lengths, capacity=capacity, kv_heads=kv_heads)
    if call.cache_bytes >= MIN_BYTES:
        yield call


def suite_row(gpu, rule, suite):
    """Geometric means of time over live bytes / bandwidth, and the extremes, of one rule on one GPU."""
    simulated = functools.cache(functools.partial(simulate_call, gpu=gpu, rule=rule))
    kinds = {
        "uniform": suite.calls("uniform"),
        "ragged": suite.calls(*RAGGED_KINDS),
        "large_capacity": suite.large_capacity(),
    }
    kinds = {kind: [simulated(call) for call in calls] for kind, calls in kinds.items()}
    every = list(itertools.chain.from_iterable(kinds.values()))
    return {
        "gpu": gpu.name,
        "programs_per_sm": programs_per_sm(gpu),
        "calls": len(every),
        **{kind: geometric_mean(call.time_over_ideal for call in calls) for kind, calls in kinds.items()},
        "worst": max(call.time_over_ideal for call in every),
        "longest_sm_over_mean": max(call.longest_sm_over_mean for call in every),
        "largest_jump": max(
            simulated(more).time_over_ideal / simulated(fewer).time_over_ideal
            for fewer, more in suite.neighbouring()
        ),
    }


def geometric_mean(figures):
    logarithms = [math.log(figure) for figure in figures]
    return math.exp(math.fsum(logarithms) / len(logarithms))


def cells(row):
    """A row as the documented tables show it."""
    return [
        f"{row[name]:.3f}" if isinstance(row[name], float) else str(row[name]) for name in COLUMNS.values()
    ]


def simulate_call(call, *, gpu, rule):
    grid = decode_grid(
        context_lens=call.context_lens,
        capacity=call.capacity,
        q_heads=GROUP * call.kv_heads,
        kv_heads=call.kv_heads,
        head_dim=HEAD_DIM,
        element_bytes=ELEMENT_BYTES,
        tiling=rule(call, gpu),
    )
    schedule = simulate_grid(grid, gpu, programs_per_sm(gpu))
    return SimpleNamespace(
        time_over_ideal=schedule.time_s / schedule.ideal_s,
        longest_sm_over_mean=schedule.longest_sm_over_mean,
    )


@functools.cache
def programs_per_sm(gpu):
    """CTAs of the suite's shape on an SM: as many as the chooser launches at most."""
    return default_tiling(gpu, batch=4096, kv_heads=8, capacity=LARGE_CAPACITY).programs // gpu.sm_count


def balanced(call, gpu):
    """The kernel's own: equal-sized chunks of all KV tiles."""
    return default_tiling(gpu, batch=len(call.context_lens), kv_heads=call.kv_heads, capacity=call.capacity)


def flash_attention_2(call, gpu):
    """FlashAttention 2: 1 split from 80% of 2 x SM count up, else the least with 85% of the best wave."""
    pairs, slots = len(call.context_lens) * call.kv_heads, 2 * gpu.sm_count
    tiles = math.ceil(max(call.context_lens) / balanced(call, gpu).block_n)
    if pairs >= 0.8 * slots:
        return split(call, gpu, 1)
    most = min(128, gpu.sm_count, tiles)
    # A number of splits that leaves the longest as long as one fewer does is not a candidate.
    lengths = [math.ceil(tiles / splits) for splits in range(1, most + 1)]
    candidates = [
        splits for splits in range(1, most + 1) if splits == 1 or lengths[splits - 1] != lengths[splits - 2]
    ]
    waves = [pairs * splits / slots for splits in candidates]
    efficiencies = [count / math.ceil(count) for count in waves]
    good = (efficiency >= 0.85 * max(efficiencies) for efficiency in efficiencies)
    return split(call, gpu, next(itertools.compress(candidates, good)))


def vllm(call, gpu):
    """vLLM: 16 segments up to a batch of 128 // kv_heads, else none."""
    return split(call, gpu, 16 if len(call.context_lens) <= 128 // call.kv_heads else 1)


def at_most_8(call, gpu):
    """SGLang's cap alone: as many splits as fill the GPU once, but no more than 8."""
    pairs = len(call.context_lens) * call.kv_heads
    return split(call, gpu, max(1, min(8, gpu.sm_count * programs_per_sm(gpu) // pairs)))


def split(call, gpu, num_splits):
    """Each sequence split by its own length."""
    return dataclasses.replace(balanced(call, gpu), num_splits=num_splits)


# The kernel's rule, and those of other libraries as far as they are documented, with this kernel's tiles.
RULES = {
    "balanced": balanced,
    "flash_attention_2": flash_attention_2,
    "vllm": vllm,
    "at_most_8": at_most_8,
}


def default_tiling(gpu, *, batch, kv_heads, capacity):
    return choose_decode_tiling(
        batch=batch,
        q_heads=GROUP * kv_heads,
        kv_heads=kv_heads,
        head_dim=HEAD_DIM,
        capacity=capacity,
        page_size=0,
        element_bytes=ELEMENT_BYTES,
        limits=kernel_limits(gpu),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", nargs="+", default=["a100", "h100", "b200"])
    parser.add_argument("--rule", choices=RULES, default="balanced")
    arguments = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")  # noqa: T201  (its result)
    for gpu in (find_gpu(name, with_limits=True) for name in arguments.gpu):
        print(f"| {' | '.join(cells(suite_row(gpu, RULES[arguments.rule], Suite())))} |")  # noqa: T201


if __name__ == "__main__":
    main()
