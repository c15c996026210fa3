"""Modelled time of collectives: the all-reduce of tensor parallelism, the all-to-all of expert parallelism.

`docs/accuracy.md` has the formulas, their constants and their error. What crosses nodes or PCIe has no
measured basis.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.data_table import data_table
from ..core.errors import UsageError
from ..core.gpus import Gpu
from .kernel_time import KernelTime, Quantity, positive
from .layer_constants import constants_of

RING, DIRECT, EAGER = "nccl", "direct_all_reduce", "eager_all_reduce"

HOW: Mapping[str, str] = {
    "vllm_graph": "vllm",
    "trtllm": "trtllm",
    "vllm_eager": "vllm",
    "nccl": "",
}
"""Implementations, and whose kernels they try before NCCL; "vllm_graph" is inside a CUDA graph."""

_PCIE_BYTES_PER_S = 64e9  # PCIe 5.0 x16, the fastest link of the table that is not NVLink
_PCIE_DIRECT_GPUS = 2  # vLLM uses its own all-reduce between at most two GPUs without NVLink
_NODE_GPUS, _NETWORK_BYTES_PER_S = 8, 50e9  # assumed where no source states them: 400 Gb/s a GPU
_NETWORK_HOP_S = 5e-6  # assumed: a message between two nodes; not measured
_SWITCH_REDUCES_FROM = 8  # NCCL lets the switch reduce (NVLS) from so many GPUs on


@dataclass(frozen=True, kw_only=True)
class RingConstants:
    """Constants of NCCL's all-reduce; shares are of the link's bandwidth in one direction.

    Attributes:
        launch_s: time of a call without steps.
        hop_s: time of one of the 2 (n - 1) steps of a ring.
        small_share: share reached by the protocol of small messages (LL), whose data carry flags.
        large_s: time that the protocol of large messages adds, to fill its pipeline.
        large_share: share that it reaches.
        switch_s: time added where the NVSwitch reduces (NVLS); None where it does not, or gains nothing.
        switch_share: share that it reaches; each GPU sends its data once.
    """

    launch_s: float
    hop_s: float
    small_share: float
    large_s: float
    large_share: float
    switch_s: float | None = None
    switch_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class DirectConstants:
    """Constants of engines' own all-reduce, in which GPUs read each other's memory.

    Attributes:
        launch_s: time of a call between two GPUs, with its barrier.
        peer_s: time added by each further GPU.
        two_shot_s: time of the second barrier of two shots: reduce-scatter, then all-gather.
        one_shot_share: share of the link's bandwidth reached where each GPU reads all of every other's data.
        two_shot_share: share reached where each reads its part of the data, then every other's sum.
    """

    launch_s: float
    peer_s: float
    two_shot_s: float
    one_shot_share: float
    two_shot_share: float


@dataclass(frozen=True, kw_only=True)
class EagerConstants:
    """Constants of a call outside a CUDA graph.

    Attributes:
        host_s: time of the host's part, which hides the GPU's of small messages.
        copy_share: share of the memory bandwidth at which the message is copied to a registered buffer.
    """

    host_s: float
    copy_share: float


@dataclass(frozen=True)
class Node:
    """The GPUs that one NVLink or PCIe fabric joins, and the network beyond.

    Attributes:
        gpus: GPUs of a node, or of an NVLink domain that spans nodes.
        network_bytes_per_s: bandwidth of a GPU's network port in one direction.
        source: where both are stated; empty if they are assumed.
    """

    gpus: int
    network_bytes_per_s: float
    source: str


def node_of(gpu: Gpu) -> Node:
    """The node of a GPU; 8 GPUs with 400 Gb/s each where no source states it."""
    for row in data_table("nodes.csv"):
        if row["gpu"] == gpu.name:
            return Node(int(row["gpus_per_node"]), float(row["network_gb_per_s"]) * 1e9, row["source"])
    return Node(_NODE_GPUS, _NETWORK_BYTES_PER_S, "")


def all_reduce_time(gpu: Gpu, *, gpus: int, reduced_bytes: float, how: str = "vllm_graph") -> KernelTime:
    """Models the sum of a message over several GPUs, which all of them get.

    Within a node the fastest of one shot, two shots, ring and switch counts. Across nodes: a reduce-scatter
    and an all-gather inside, together as long as an all-reduce, and a ring of the parts between nodes.

    Args:
        gpu: each of the GPUs.
        gpus: number of GPUs; 1 takes no time.
        reduced_bytes: bytes of the message on each GPU.
        how: one of `HOW`.

    Raises:
        UsageError: a size is not positive and finite, or `how` is unknown.
    """
    sizes = positive(gpus=gpus, reduced_bytes=reduced_bytes)
    if how not in HOW:
        raise UsageError(f"how: {how!r} is not one of {', '.join(HOW)}")
    if gpus == 1:
        return KernelTime(0.0, 0.0, 0.0, 0.0)
    node, message = node_of(gpu), sizes["reduced_bytes"]
    inside = min(float(gpus), float(node.gpus))
    ring: RingConstants = constants_of(RingConstants, gpu, RING, RING)
    direct = None
    if HOW[how] and (gpu.link_bytes_per_s > _PCIE_BYTES_PER_S or gpus <= _PCIE_DIRECT_GPUS):
        direct = constants_of(DirectConstants, gpu, DIRECT, HOW[how])
    eager = constants_of(EagerConstants, gpu, EAGER, HOW[how]) if how == "vllm_eager" else None
    time = all_reduce_terms(gpu, ring, direct, eager, gpus=inside, reduced_bytes=message)
    nodes = -(-gpus // node.gpus)
    if nodes == 1:
        return time
    between_s = 2 * (nodes - 1) / nodes * message / inside / (node.network_bytes_per_s * ring.large_share)
    hops_s = 2 * (nodes - 1) * _NETWORK_HOP_S
    return KernelTime(
        time_s=time.time_s + between_s + hops_s,
        memory_s=time.memory_s + between_s,
        compute_s=0.0,
        fixed_s=time.fixed_s + hops_s,
    )


def all_to_all_time(gpu: Gpu, *, gpus: int, sent_bytes: float) -> KernelTime:
    """Models an exchange in which each GPU sends other data to every other (MoE dispatch and combine).

    Derived, not calibrated: the bandwidth and latency of vLLM's all-reduce. Within a node all goes over the
    link; beyond it, the share for other nodes goes over the network at the same time.

    Args:
        gpu: each of the GPUs.
        gpus: number of GPUs; 1 takes no time.
        sent_bytes: bytes that one GPU sends to all others together.

    Raises:
        UsageError: a size is not positive and finite.
    """
    sizes = positive(gpus=gpus, sent_bytes=sent_bytes)
    if gpus == 1:
        return KernelTime(0.0, 0.0, 0.0, 0.0)
    node = node_of(gpu)
    direct: DirectConstants = constants_of(DirectConstants, gpu, DIRECT, "vllm")
    inside = min(gpus, node.gpus)
    to_others = (gpus - inside) / (gpus - 1)
    link_s = sizes["sent_bytes"] * (1 - to_others) / (gpu.link_bytes_per_s * direct.two_shot_share)
    network_s = sizes["sent_bytes"] * to_others / (node.network_bytes_per_s * direct.two_shot_share)
    fixed_s = direct.launch_s + (inside - 2) * direct.peer_s
    if gpus > inside:
        fixed_s += _NETWORK_HOP_S
    moved_s = max(link_s, network_s)
    return KernelTime(time_s=moved_s + fixed_s, memory_s=moved_s, compute_s=0.0, fixed_s=fixed_s)


def all_reduce_terms(
    gpu: Gpu,
    ring: RingConstants,
    direct: DirectConstants | None,
    eager: EagerConstants | None,
    *,
    gpus: Quantity,
    reduced_bytes: Quantity,
    least: Callable[[Sequence[Quantity]], Quantity] = min,
    where: Callable[[Any, Quantity, float], Quantity] = lambda holds, value, other: value if holds else other,
) -> KernelTime:
    """The formula within a node, for floats or arrays.

    `least` is the minimum of several and `where` the choice by a condition, elementwise for arrays.
    """
    link = gpu.link_bytes_per_s
    ways = ring_ways(link, ring, gpus=gpus, reduced_bytes=reduced_bytes, where=where)
    if direct is not None:
        further_s = (gpus - 2) * direct.peer_s
        ways += [
            (direct.launch_s + further_s, (gpus - 1) * reduced_bytes / (link * direct.one_shot_share)),
            (
                direct.launch_s + direct.two_shot_s + 2 * further_s,
                2 * (gpus - 1) / gpus * reduced_bytes / (link * direct.two_shot_share),
            ),
        ]
    time_s = least([fixed_s + moved_s for fixed_s, moved_s in ways])
    # The least a message takes on the link: a way of smaller latency has the larger of these.
    moved_s = least([moved_s for _, moved_s in ways])
    if eager is not None:
        copied_s = 2 * reduced_bytes / (gpu.bandwidth_bytes_per_s * eager.copy_share)
        time_s, moved_s = -least([-eager.host_s, -(time_s + copied_s)]), moved_s + copied_s
    return KernelTime(time_s=time_s, memory_s=moved_s, compute_s=0.0, fixed_s=time_s - moved_s)


def ring_ways(
    link_bytes_per_s: float,
    ring: RingConstants,
    *,
    gpus: Quantity,
    reduced_bytes: Quantity,
    where: Callable[[Any, Quantity, float], Quantity],
) -> list[tuple[Quantity, Quantity]]:
    """NCCL's ways, each as its latency and the time of its bytes."""
    steps_s = ring.launch_s + 2 * (gpus - 1) * ring.hop_s
    sent = 2 * (gpus - 1) / gpus * reduced_bytes
    ways = [
        (steps_s, sent / (link_bytes_per_s * ring.small_share)),
        (steps_s + ring.large_s, sent / (link_bytes_per_s * ring.large_share)),
    ]
    if ring.switch_s is not None and ring.switch_share is not None:
        switch_s = where(gpus >= _SWITCH_REDUCES_FROM, ring.launch_s + ring.switch_s, float("inf"))
        ways.append((switch_s, reduced_bytes / (link_bytes_per_s * ring.switch_share)))
    return ways
