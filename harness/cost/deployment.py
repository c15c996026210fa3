"""A deployment: GPUs, how they share a model, the engine, and the price."""

from dataclasses import dataclass

from ..core.formats import BF16, Format
from ..core.gpus import Gpu, find_gpu
from ..core.parallelism import ONE_GPU, Parallelism
from .engine import ONE_GRAPH, Engine


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """GPUs of one kind and what runs on them.

    Attributes:
        gpu: the GPU, with its link to the others.
        parallelism: how many GPUs there are, and what each has.
        cache_format: how the KV cache is stored.
        usd_per_hour: price of one GPU, US dollars per hour; None if unknown.
        engine: what serves the model.
        all_reduce_latency_s: time of an all-reduce of 0 bytes in place of the calibrated one.
    """

    gpu: Gpu
    parallelism: Parallelism = ONE_GPU
    cache_format: Format = BF16
    usd_per_hour: float | None = None
    engine: Engine = ONE_GRAPH
    all_reduce_latency_s: float | None = None

    @property
    def gpus(self) -> int:
        """All GPUs."""
        return self.parallelism.gpus

    @property
    def text(self) -> str:
        """Such as "8 x H100-SXM5-80GB (TP 8)", or the GPU's name alone."""
        if self.gpus == 1:
            return self.gpu.name
        return f"{self.gpus} x {self.gpu.name} ({self.parallelism.text})"

    def usd_per_mtok(self, s_per_token: float) -> float | None:
        """US dollars of 1M tokens that each occupy all GPUs for `s_per_token`; None without a price."""
        if self.usd_per_hour is None:
            return None
        return s_per_token * 1e6 / 3600 * self.usd_per_hour * self.gpus


def deployment(gpu: str, *, cache_format: Format = BF16) -> Deployment:
    """One GPU without a price."""
    return Deployment(gpu=find_gpu(gpu), cache_format=cache_format)
