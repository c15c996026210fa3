"""Serving engines: what a step costs beside its kernels, and what an engine fuses."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Constants of a serving engine.

    Attributes:
        name: such as "vllm".
        all_reduce: its all-reduce, as `all_reduce_time` names it.
        fuses_quantisation: whether activations are quantised by the kernel before a product of 8 or 4 bits,
            and not by a pass of their own.
        step_s: time between two steps in which the GPU waits: scheduling, sampling, detokenising.
        sequence_s: further such time per sequence of the step.
    """

    name: str
    all_reduce: str
    fuses_quantisation: bool
    step_s: float
    sequence_s: float


ONE_GRAPH = Engine(
    name="one CUDA graph", all_reduce="vllm_graph", fuses_quantisation=True, step_s=0.0, sequence_s=0.0
)
"""All kernels of a step in one CUDA graph, launched without a pause."""
