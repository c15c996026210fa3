"""Layers with a recurrent state in place of a cache: their shapes from a config, by kind.

Recurrent states are counted in float32, and the inputs that a short convolution keeps in 16 bits. Operations
of a token are those on the state: decay, outer product, and products with key and query.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .layers import LinearAttention
from .model_families import Fields


@dataclass(frozen=True, kw_only=True)
class LinearLayer:
    """A layer's recurrent attention, and its parameters outside of projections."""

    attention: LinearAttention
    other_parameters: int


def _state(
    fields: Fields,
    *,
    heads: int,
    recurrent: int,
    channels: int,
    operations_per_element: int,
    shapes: tuple[int, int, int],
    other_parameters: int,
) -> LinearLayer:
    """A layer with a state of `recurrent` elements and a convolution over `channels` inputs.

    `shapes` are elements of all inputs' projections, of the output projection's input, and weights of
    further small projections.
    """
    kernel = fields.required_size("conv_kernel") if channels else 1
    inputs, output, low_rank = shapes
    attention = LinearAttention(
        kind=fields.text("linear"),
        heads=heads,
        state_elements=recurrent + (kernel - 1) * channels // 2,
        state_bytes=4,
        operations_per_token=operations_per_element * recurrent + 2 * kernel * channels,
        in_features_out=inputs,
        out_features_in=output,
        low_rank_parameters=low_rank,
    )
    return LinearLayer(attention=attention, other_parameters=other_parameters + kernel * channels)


def _gated_delta_net(fields: Fields, _hidden_size: int) -> LinearLayer:
    """Gated DeltaNet (arXiv 2412.06464) as in Qwen3-Next."""
    heads, dim = fields.required_size("value_heads"), fields.required_size("value_dim")
    key_dim = fields.required_size("key_dim")
    keys, values = fields.required_size("key_heads") * key_dim, heads * dim
    return _state(
        fields,
        heads=heads,
        recurrent=values * key_dim,
        channels=2 * keys + values,
        operations_per_element=7,
        shapes=(2 * keys + 2 * values + 2 * heads, values, 0),
        other_parameters=2 * heads + dim,
    )


def _kimi_delta_attention(fields: Fields, hidden_size: int) -> LinearLayer:
    """KDA (arXiv 2510.26692): a delta rule with a decay for each channel of a key."""
    heads, dim = fields.required_size("value_heads"), fields.required_size("value_dim")
    values, full_rank = heads * dim, fields.flag("full_rank_gate")
    low_rank = (hidden_size + values) * dim
    return _state(
        fields,
        heads=heads,
        recurrent=values * dim,
        channels=3 * values,
        operations_per_element=7,
        shapes=(3 * values + heads + full_rank * values, values, (1 if full_rank else 2) * low_rank),
        other_parameters=values + heads + dim,
    )


def _lightning_attention(fields: Fields, hidden_size: int) -> LinearLayer:
    """Lightning attention (arXiv 2401.04658) as in MiniMax-01: no delta rule, a gated output."""
    heads = fields.required_size("q_heads")
    dim = fields.size("head_dim") or hidden_size // heads
    return _state(
        fields,
        heads=heads,
        recurrent=heads * dim * dim,
        channels=0,
        operations_per_element=5,
        shapes=(4 * heads * dim, heads * dim, 0),
        other_parameters=heads * dim,
    )


def _mamba(fields: Fields, hidden_size: int) -> LinearLayer:
    """Mamba (arXiv 2312.00752) as in Jamba, with norms of its steps, inputs and outputs."""
    inner = fields.required_size("expand") * hidden_size
    state = fields.required_size("key_dim")
    rank = fields.size("dt_rank") or -(-hidden_size // 16)
    bias = fields.flag("conv_bias")
    return _state(
        fields,
        heads=inner,
        recurrent=inner * state,
        channels=inner,
        operations_per_element=6,
        shapes=(2 * inner, inner, inner * (rank + 2 * state) + rank * inner),
        other_parameters=inner * (state + 2 + bias) + rank + 2 * state,
    )


def _mamba_2(fields: Fields, hidden_size: int) -> LinearLayer:
    """Mamba-2 (arXiv 2405.21060)."""
    heads, dim = fields.required_size("value_heads"), fields.required_size("value_dim")
    state = fields.required_size("key_dim")
    inner = heads * dim
    channels = inner + 2 * fields.required_size("key_heads") * state
    inputs, bias = inner + channels + heads, fields.flag("conv_bias")
    return _state(
        fields,
        heads=heads,
        recurrent=inner * state,
        channels=channels,
        operations_per_element=5,
        shapes=(inputs, inner, 0),
        other_parameters=3 * heads
        + inner
        + bias * channels
        + fields.flag("linear_bias") * (inputs + hidden_size),
    )


LINEAR_LAYERS: Mapping[str, Callable[[Fields, int], LinearLayer]] = MappingProxyType(
    {
        "gated DeltaNet": _gated_delta_net,
        "KDA": _kimi_delta_attention,
        "lightning attention": _lightning_attention,
        "Mamba": _mamba,
        "Mamba-2": _mamba_2,
    }
)
"""A layer by the kind that its family names, from the config and the hidden size."""
