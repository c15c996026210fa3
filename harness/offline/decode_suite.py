"""The decode schedule over many calls: time over bytes / bandwidth, and what small changes of a call cost.

Every call is simulated (see `schedule`): figures are modelled, and show how a rule of cutting the work ranks.
All calls have bf16 keys and values of 128 elements and 4 query heads to a key-value head. Calls of less than
64 MB (64e6 bytes) of live keys and values are left out, for fixed costs hide the schedule there.
"""

import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from ..core.gpu_limits import SmLimits, find_gpu
from .decode_launch import decode_launch
from .schedule import simulate_launch
from .subjects import DecodeTiling, choose_decode_tiling, kernel_limits

HEAD_DIM = 128
ELEMENT_BYTES = 2
GROUP = 4
LEAST_BYTES = 64 * 10**6

BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
CONTEXTS = tuple(512 << doubling for doubling in range(9))
KV_HEADS = (1, 4, 8)
RAGGED_KINDS = ("random", "one_long", "zipf")
NEIGHBOUR_BATCHES = range(1, 65)
LARGE_CAPACITY = 131072
SHORT_LENGTHS = (512, 8192)


@dataclass(frozen=True, kw_only=True)
class DecodeCall:
    """One decode step.

    Attributes:
        context_lens: live tokens of each sequence.
        capacity: tokens that a sequence's cache has room for.
        kv_heads: key-value heads.
    """

    context_lens: tuple[int, ...]
    capacity: int
    kv_heads: int

    @property
    def cache_bytes(self) -> int:
        """Live keys and values."""
        return sum(self.context_lens) * self.kv_heads * 2 * HEAD_DIM * ELEMENT_BYTES


Rule = Callable[[DecodeCall, SmLimits], DecodeTiling]
"""How a call is cut on a GPU."""


@dataclass(frozen=True, kw_only=True)
class CallFigures:
    """One simulated call.

    Attributes:
        time_over_ideal: time over live bytes / bandwidth.
        longest_sm_over_mean: when the last SM ends over when SMs end on average.
    """

    time_over_ideal: float
    longest_sm_over_mean: float


@dataclass(frozen=True, kw_only=True)
class SuiteRow:
    """The suite on one GPU under one rule. Times are over live bytes / bandwidth.

    Attributes:
        gpu: name in the table of limits.
        programs_per_sm: that an SM holds at one time.
        rule: which.
        calls: how many were simulated, those of `largest_jump` not among them.
        uniform: geometric mean where all sequences fill the cache.
        ragged: geometric mean where lengths differ (random, one long among short, Zipf).
        large_capacity: geometric mean where lengths are random from 512 to 8192 and the capacity is 131072.
        worst: of all these calls.
        longest_sm_over_mean: most, of the same.
        largest_jump: by how much one more sequence raises the time for a byte at most: time per byte at batch
            b + 1 over that at b, for all four kinds of lengths.
    """

    gpu: str
    programs_per_sm: int
    rule: str
    calls: int
    uniform: float
    ragged: float
    large_capacity: float
    worst: float
    longest_sm_over_mean: float
    largest_jump: float
    provenance: str = "modelled"


def suite_rows(
    gpu_names: Sequence[str], *, full: bool = True, rules: Sequence[str] = ("balanced",)
) -> list[dict[str, Any]]:
    """Runs the suite.

    Args:
        gpu_names: names that `find_gpu` knows.
        full: every call, about 20 seconds a GPU, longer for other rules; else `SLICE`, some seconds.
        rules: names of `RULES`.

    Returns:
        The fields of a `SuiteRow` for each GPU and rule.

    Raises:
        UsageError: no GPU of that name.
    """
    calls = Suite() if full else SLICE
    return [
        asdict(suite_row(find_gpu(name), rule, RULES[rule], calls)) for name in gpu_names for rule in rules
    ]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Which calls.

    Attributes:
        batches: sequences.
        contexts: of the longest sequence, tokens; also the capacity.
        kv_heads: key-value heads.
        neighbours: batch sizes that are compared with one more.
    """

    batches: Sequence[int] = BATCHES
    contexts: Sequence[int] = CONTEXTS
    kv_heads: Sequence[int] = KV_HEADS
    neighbours: Sequence[int] = NEIGHBOUR_BATCHES

    def uniform(self) -> Iterator[DecodeCall]:
        """All sequences as long as the cache has room for."""
        return self._calls("uniform")

    def ragged(self) -> Iterator[DecodeCall]:
        """Sequences of unequal lengths."""
        return itertools.chain.from_iterable(map(self._calls, RAGGED_KINDS))

    def large_capacity(self) -> Iterator[DecodeCall]:
        """Short sequences in a cache with room for long ones."""
        for kv_heads, batch in itertools.product(self.kv_heads, self.batches):
            draw = random.Random(LARGE_CAPACITY)  # noqa: S311  (repeatable, not secret)
            lengths = tuple(draw.randint(*SHORT_LENGTHS) for _ in range(batch))
            yield from _in_bounds(lengths, LARGE_CAPACITY, kv_heads)

    def neighbouring(self) -> Iterator[tuple[DecodeCall, DecodeCall]]:
        """Pairs of calls, the second with one more sequence."""
        for kind, kv_heads, context, batch in itertools.product(
            ("uniform", *RAGGED_KINDS), self.kv_heads, self.contexts, self.neighbours
        ):
            for fewer in _in_bounds(context_lens(kind, batch, context), context, kv_heads):
                for more in _in_bounds(context_lens(kind, batch + 1, context), context, kv_heads):
                    yield fewer, more

    def _calls(self, kind: str) -> Iterator[DecodeCall]:
        for kv_heads, context, batch in itertools.product(self.kv_heads, self.contexts, self.batches):
            yield from _in_bounds(context_lens(kind, batch, context), context, kv_heads)


SLICE = Suite(
    batches=(1, 3, 8, 24, 64, 256),
    contexts=(512, 1024, 4096, 16384, 65536, 131072),
    kv_heads=(8,),
    neighbours=range(40, 65),
)
"""A tenth of the calls, the worst one and the largest jump among them."""


def context_lens(kind: str, batch: int, context: int) -> tuple[int, ...]:
    """Lengths of a batch whose longest sequence has up to `context` tokens.

    Args:
        kind: "uniform"; "random", uniformly from 1 to the context, by a seed; "one_long", one of the context
            and the others a sixteenth of it; "zipf", the context over the rank. One more sequence leaves the
            others as they are.
        batch: sequences.
        context: tokens.
    """
    if kind == "uniform":
        return (context,) * batch
    if kind == "one_long":
        return (context,) + (context // 16,) * (batch - 1)
    if kind == "zipf":
        return tuple(context // rank for rank in range(1, batch + 1))
    draw = random.Random(context)  # noqa: S311  (repeatable, not secret)
    return tuple(draw.randint(1, context) for _ in range(batch))


def _in_bounds(lengths: tuple[int, ...], capacity: int, kv_heads: int) -> Iterator[DecodeCall]:
    """The call, if it counts."""
    call = DecodeCall(context_lens=lengths, capacity=capacity, kv_heads=kv_heads)
    if call.cache_bytes >= LEAST_BYTES:
        yield call


def suite_row(gpu: SmLimits, name: str, rule: Rule, suite: Suite) -> SuiteRow:
    """Simulates every call of a suite on one GPU under one rule."""
    simulated = functools.cache(functools.partial(simulate_call, gpu=gpu, rule=rule))
    uniform, ragged, large = (
        [simulated(call) for call in calls]
        for calls in (suite.uniform(), suite.ragged(), suite.large_capacity())
    )
    every = [*uniform, *ragged, *large]
    return SuiteRow(
        gpu=gpu.gpu,
        programs_per_sm=programs_per_sm(gpu),
        rule=name,
        calls=len(every),
        uniform=_geometric_mean(uniform),
        ragged=_geometric_mean(ragged),
        large_capacity=_geometric_mean(large),
        worst=max(figures.time_over_ideal for figures in every),
        longest_sm_over_mean=max(figures.longest_sm_over_mean for figures in every),
        largest_jump=max(
            simulated(more).time_over_ideal / simulated(fewer).time_over_ideal
            for fewer, more in suite.neighbouring()
        ),
    )


def _geometric_mean(figures: Iterable[CallFigures]) -> float:
    logarithms = [math.log(one.time_over_ideal) for one in figures]
    return math.exp(math.fsum(logarithms) / len(logarithms))


def simulate_call(call: DecodeCall, *, gpu: SmLimits, rule: Rule) -> CallFigures:
    """Simulates one call on a GPU, cut by a rule."""
    launch = decode_launch(
        context_lens=call.context_lens,
        capacity=call.capacity,
        q_heads=GROUP * call.kv_heads,
        kv_heads=call.kv_heads,
        head_dim=HEAD_DIM,
        element_bytes=ELEMENT_BYTES,
        tiling=rule(call, gpu),
    )
    schedule = simulate_launch(launch, gpu, programs_per_sm(gpu))
    return CallFigures(
        time_over_ideal=schedule.time_s / schedule.ideal_s,
        longest_sm_over_mean=schedule.longest_sm_over_mean,
    )


@functools.cache
def programs_per_sm(gpu: SmLimits) -> int:
    """Programs of the suite's shape that an SM holds: what the chooser fills a GPU with at most."""
    return _tiling(gpu, batch=4096, kv_heads=8, capacity=LARGE_CAPACITY).programs // gpu.sm_count


def balanced(call: DecodeCall, gpu: SmLimits) -> DecodeTiling:
    """The kernel's own: equal shares of all tiles."""
    return _tiling(gpu, batch=len(call.context_lens), kv_heads=call.kv_heads, capacity=call.capacity)


def flash_attention_2(call: DecodeCall, gpu: SmLimits) -> DecodeTiling:
    """FlashAttention 2: one split from 80% of 2 SM count up, else the least with 85% of the best wave."""
    pairs, slots = len(call.context_lens) * call.kv_heads, 2 * gpu.sm_count
    tiles = math.ceil(max(call.context_lens) / balanced(call, gpu).block_n)
    if pairs >= 0.8 * slots:
        return _split(call, gpu, 1)
    most = min(128, gpu.sm_count, tiles)
    # A number of splits that leaves the longest as long as one fewer does is none of the candidates.
    lengths = [math.ceil(tiles / splits) for splits in range(1, most + 1)]
    candidates = [
        splits for splits in range(1, most + 1) if splits == 1 or lengths[splits - 1] != lengths[splits - 2]
    ]
    waves = [pairs * splits / slots for splits in candidates]
    efficiencies = [count / math.ceil(count) for count in waves]
    good = (efficiency >= 0.85 * max(efficiencies) for efficiency in efficiencies)
    return _split(call, gpu, next(itertools.compress(candidates, good)))


def vllm(call: DecodeCall, gpu: SmLimits) -> DecodeTiling:
    """vLLM: 16 segments up to a batch of 128 // kv_heads, else none."""
    return _split(call, gpu, 16 if len(call.context_lens) <= 128 // call.kv_heads else 1)


def at_most_8(call: DecodeCall, gpu: SmLimits) -> DecodeTiling:
    """SGLang's cap: as many splits as fill the GPU once, but no more than 8."""
    pairs = len(call.context_lens) * call.kv_heads
    return _split(call, gpu, max(1, min(8, gpu.sm_count * programs_per_sm(gpu) // pairs)))


def _split(call: DecodeCall, gpu: SmLimits, num_splits: int) -> DecodeTiling:
    """Each sequence cut into so many shares by its own length."""
    return dataclasses.replace(balanced(call, gpu), num_splits=num_splits)


RULES: Mapping[str, Rule] = MappingProxyType(
    {"balanced": balanced, "flash_attention_2": flash_attention_2, "vllm": vllm, "at_most_8": at_most_8}
)
"""The kernel's rule, and for comparison those of other libraries as far as they are documented, all simulated
with this kernel's tiles and programs; SGLang's is its cap alone."""


def _tiling(gpu: SmLimits, *, batch: int, kv_heads: int, capacity: int) -> DecodeTiling:
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
