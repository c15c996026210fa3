"""A decoder layer shared by ranks, each with the heads, columns and rows that `shard_of` gives it."""

import dataclasses
import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist
from decodetax.harness.bench.decoder_layer import decoder_layer
from decodetax.harness.core.parallelism import Parallelism
from decodetax.harness.core.shards import shard_of
from msgspec import structs

PAD = -1


def padded(indices, size):
    """The indices, and PAD until there are `size`."""
    return [*indices, *[PAD] * (size - len(indices))]


def taken(x, dim, indices):
    """The slices of x at these indices; zeros at PAD."""
    found = x.index_select(dim, torch.tensor(indices).clamp(min=0))
    shape = [-1 if d == dim else 1 for d in range(x.ndim)]
    return found.masked_fill((torch.tensor(indices) == PAD).view(shape), 0)


def heads_of(rank, ranks, model, shard):
    """Query heads and KV heads of a rank; ranks with copies of a KV head split its query heads."""
    if ranks <= model.kv_heads:
        kv = range(rank * shard.kv_heads, min((rank + 1) * shard.kv_heads, model.kv_heads))
        return [h * model.group + i for h in kv for i in range(model.group)], [*kv]
    of_rank = [r * model.kv_heads // ranks for r in range(ranks)]
    kv = of_rank[rank]
    sharers = [r for r in range(ranks) if of_rank[r] == kv]
    share = -(-model.group // len(sharers))
    first = sharers.index(rank) * share
    return [kv * model.group + i for i in range(first, min(first + share, model.group))], [kv]


def shard_inputs(inputs, rank, ranks):
    """The inputs of one rank: its heads with their caches, its columns of gate_up, its rows of O and down."""
    case, model, weights = inputs.case, inputs.case.model, inputs.weights
    shard = shard_of(model, Parallelism(tensor_parallel=ranks))
    q, kv = heads_of(rank, ranks, model, shard)
    q, kv = padded(q, shard.q_heads), padded(kv, shard.kv_heads)
    size = shard.intermediate_size
    inner = padded(range(rank * size, min((rank + 1) * size, model.intermediate_size)), size)
    heads = weights["qkv"].unflatten(0, (-1, model.head_dim))
    q_rows, k_rows, v_rows = heads.split([model.q_heads, model.kv_heads, model.kv_heads])
    of_o = weights["o"].unflatten(1, (model.q_heads, model.head_dim))
    gate, up = weights["gate_up"].chunk(2)
    return dataclasses.replace(
        inputs,
        case=structs.replace(case, model=shard),
        k_cache=taken(inputs.k_cache, 1, kv),
        v_cache=taken(inputs.v_cache, 1, kv),
        weights={
            "qkv": torch.cat([taken(q_rows, 0, q), taken(k_rows, 0, kv), taken(v_rows, 0, kv)]).flatten(0, 1),
            "o": taken(of_o, 1, q).flatten(1),
            "gate_up": torch.cat([taken(gate, 0, inner), taken(up, 0, inner)]),
            "down": taken(weights["down"], 1, inner),
        },
    )


class Adder:
    """Adds up what the threads of several ranks give it, one rank after another."""

    def __init__(self, ranks):
        self._barrier, self._parts = threading.Barrier(ranks, timeout=30), [None] * ranks

    def __call__(self, rank, part):
        self._parts[rank] = part
        self._barrier.wait()
        total = functools.reduce(torch.add, self._parts)
        self._barrier.wait()
        return total


def layer_in_threads(inputs, ranks, *, shard=shard_inputs, reduce=None):
    """The output of each rank, all of them in this process."""
    reduce = reduce or Adder(ranks)

    def output(rank):
        return decoder_layer(shard(inputs, rank, ranks), reduce=functools.partial(reduce, rank))

    with ThreadPoolExecutor(ranks) as pool:
        return [*pool.map(output, range(ranks))]


def layer_over_ranks(inputs):
    """The output of this process, which is one of several ranks."""

    def reduce(part):
        dist.all_reduce(part)
        return part

    return decoder_layer(shard_inputs(inputs, dist.get_rank(), dist.get_world_size()), reduce=reduce)
