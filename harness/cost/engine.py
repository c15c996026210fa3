"""Serving engines: what a step costs beside its kernels, and where an engine's kernels are its own."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..core.data_table import data_table


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Constants of a serving engine; `docs/accuracy.md` has the reason for each.

    Attributes:
        name: such as "vllm".
        all_reduce: its all-reduce, as `all_reduce_time` names it.
        fuses_quantisation: whether activations are quantised by the kernel before a product of 8 or 4 bits,
            and not by a pass of their own.
        whole_experts: whether tensor parallelism divides experts among GPUs instead of splitting each.
        step_s: time between two steps in which the GPU waits: scheduling, input preparation, sampling.
        request_s: time of a request outside the steps: tokenising its prompt, queueing for the next step,
            sending the first token; with the host time of a prefill that no CUDA graph holds.
        sequence_s: further such time per sequence of a step: its sampling, detokenising and streaming.
        hopper_tile_rows: rows that its GEMMs multiply at least on Hopper, whose tensor cores take 64 (wgmma)
            unless the operands are exchanged; fewer rows are padded.
        hopper_fp8_gemm_share: share of the bandwidth that its fp8 GEMM of more than 16 rows reaches on
            Hopper; None as the measured kernel.
        hopper_fp8_cache_share: share of the bandwidth at which it reads an fp8 cache on Hopper; None as the
            measured kernel.
    """

    name: str
    all_reduce: str = "vllm_graph"
    fuses_quantisation: bool = True
    whole_experts: bool = False
    step_s: float = 0.0
    sequence_s: float = 0.0
    request_s: float = 0.0
    hopper_tile_rows: int = 64
    hopper_fp8_gemm_share: float | None = None
    hopper_fp8_cache_share: float | None = None


ONE_GRAPH = Engine(name="one CUDA graph")
"""All kernels of a step in one CUDA graph, launched without a pause."""


ENGINES = ("trtllm", "vllm", "sglang")
"""Names of the engines in `engines.csv`."""


@functools.cache
def engines() -> Mapping[str, Engine]:
    """The engines by name."""
    return MappingProxyType({row["engine"]: _engine(row) for row in data_table("engines.csv")})


def _engine(row: Mapping[str, str]) -> Engine:
    def share(column: str) -> float | None:
        return float(row[column]) if row[column] else None

    return Engine(
        name=row["engine"],
        all_reduce=row["all_reduce"],
        fuses_quantisation=row["quantisation"] == "fused",
        whole_experts=row["experts"] == "whole",
        step_s=float(row["step_us"]) * 1e-6,
        sequence_s=float(row["sequence_us"]) * 1e-6,
        request_s=float(row["request_ms"]) * 1e-3,
        hopper_tile_rows=int(row["hopper_tile_rows"]),
        hopper_fp8_gemm_share=share("hopper_fp8_gemm_share"),
        hopper_fp8_cache_share=share("hopper_fp8_cache_share"),
    )
