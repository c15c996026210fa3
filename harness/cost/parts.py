"""Projections, routed experts and elementwise kernels of a forward: the work of one occurrence on one GPU.

A part occurs `times` times in a forward, once in each layer that has it; its other figures are those of one
occurrence.
"""

from dataclasses import dataclass
from typing import ClassVar

from ..core.cases import MatmulShape
from ..core.formats import BF16, Format

ACTIVATION_BYTES = 2
"""Bytes of an activation: 16 bits, whatever the format of the weights."""


class Matmul(MatmulShape[float], frozen=True, kw_only=True):
    """A projection's GEMM; `rows` are tokens.

    Attributes:
        name: name of the projection.
        times: number of these GEMMs in one forward.
        weight_format: how the weights are stored.
    """

    kv_bytes: ClassVar[float] = 0.0
    name: str
    times: int
    weight_format: Format = BF16

    @property
    def weight_bytes(self) -> float:
        """Bytes of the weight."""
        return self.in_features * self.out_features * self.weight_format.bytes_per_element

    @property
    def activation_bytes(self) -> float:
        """Bytes of input and output."""
        return self.rows * (self.in_features + self.out_features) * ACTIVATION_BYTES


@dataclass(frozen=True, kw_only=True)
class RoutedExperts:
    """The routed experts of a layer on one GPU: grouped GEMMs, whose rows differ from expert to expert.

    Attributes:
        times: number of layers with them.
        tokens: tokens that are routed, those of all attention replicas.
        hidden_size: elements of an expert's input and output.
        intermediate_size: elements between an expert's projections, on all GPUs that share it.
        gated: whether a gate of the same size multiplies them.
        experts: routed experts, on all GPUs.
        experts_per_token: experts that a token is routed to.
        expert_parallel: GPUs that the experts are divided among; the busiest has one more where they do not
            divide.
        tensor_parallel: GPUs that share each expert.
        weight_format: how the weights are stored.
    """

    name: ClassVar[str] = "experts"
    kv_bytes: ClassVar[float] = 0.0
    times: int
    tokens: int
    hidden_size: int
    intermediate_size: int
    gated: bool
    experts: int
    experts_per_token: int
    expert_parallel: int = 1
    tensor_parallel: int = 1
    weight_format: Format = BF16

    @property
    def local_experts(self) -> int:
        """Experts of the busiest GPU."""
        return -(-self.experts // self.expert_parallel)

    @property
    def inner(self) -> int:
        """Intermediate elements on one GPU."""
        return -(-self.intermediate_size // self.tensor_parallel)

    @property
    def parameters(self) -> int:
        """One GPU's weights of one expert."""
        return (3 if self.gated else 2) * self.hidden_size * self.inner

    @property
    def distinct(self) -> float:
        """Expected number of its experts that the tokens use, if all are equally likely."""
        unused = (1.0 - self.experts_per_token / self.experts) ** self.tokens
        return self.local_experts * (1.0 - unused)

    @property
    def rows(self) -> float:
        """Expected pairs of a token and one of its experts on this GPU."""
        return self.tokens * self.experts_per_token * self.local_experts / self.experts

    @property
    def operations(self) -> float:
        """2 per weight and row."""
        return 2.0 * self.rows * self.parameters

    @property
    def weight_bytes(self) -> float:
        """Bytes of the experts in use, each read once."""
        return self.distinct * self.parameters * self.weight_format.bytes_per_element

    @property
    def activation_bytes(self) -> float:
        """Bytes that the projections read and write, and the activation function between them."""
        gates = 2 if self.gated else 1
        return self.rows * (2 * self.hidden_size + (2 * gates + 2) * self.inner) * ACTIVATION_BYTES


@dataclass(frozen=True, kw_only=True)
class Elementwise:
    """Norms, residuals, rotary embedding, activation function: bound by the activations' bytes.

    Attributes:
        times: number of layers.
        kernels: launches per layer.
        activation_bytes: bytes read and written per layer.
        quantised_bytes: bytes that the separate passes of an engine that does not fuse quantisation read and
            write; 0 without 8-bit or 4-bit products.
        quantise_kernels: launches of these passes per layer.
    """

    name: ClassVar[str] = "elementwise"
    operations: ClassVar[float] = 0.0
    weight_bytes: ClassVar[float] = 0.0
    kv_bytes: ClassVar[float] = 0.0
    times: int
    kernels: int
    activation_bytes: float
    quantised_bytes: float = 0.0
    quantise_kernels: int = 0
