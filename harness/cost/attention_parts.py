"""Attention kernels of a forward: softmax attention, its indexer, and recurrent states, on one GPU."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from ..core import layers
from ..core.formats import BF16, Format
from ..core.layers import GroupedQueryAttention, LatentAttention, LinearAttention
from .parts import ACTIVATION_BYTES


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Causal softmax attention of sequences of equal length.

    Attributes:
        name: "attention", with the window, chunk or selection in brackets where there is one.
        times: number of layers with it.
        sequences: number of prompts, or of sequences with one query token each.
        tokens: tokens of a prompt; in a decode step, tokens in each sequence's cache.
        q_heads: query heads.
        kv_heads: key-value heads.
        head_dim: elements of a key.
        v_head_dim: elements of a value.
        window: most tokens that a query attends to, of a window or by an indexer; None if all.
        chunked: whether the window is a chunk that starts anew.
        latent: whether keys and values are one latent (MLA in decoding).
        decode: whether each sequence has one query token, at its end.
        cached_elements: cached elements per token.
        cache_format: how the cache is stored.
    """

    weight_bytes: ClassVar[float] = 0.0
    name: str
    times: int
    sequences: int
    tokens: int
    q_heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int | None
    chunked: bool = False
    latent: bool = False
    decode: bool
    cached_elements: int
    cache_format: Format = BF16

    @property
    def pairs(self) -> float:
        """Pairs of a query and a key it attends to, in all sequences.

        A decode step beyond the first chunk attends to the mean of a chunk's positions.
        """
        if self.decode:
            return self.sequences * live_tokens(self.tokens, self.window, chunked=self.chunked)
        live = self.tokens if self.window is None else min(self.tokens, self.window)
        if self.chunked:
            full, rest = divmod(self.tokens, live)
            return self.sequences * (full * _triangle(live) + _triangle(rest))
        return self.sequences * (_triangle(live) + (self.tokens - live) * live)

    @property
    def operations(self) -> float:
        """Operations of the products with keys and with values, 2 per element."""
        return 2.0 * self.pairs * self.q_heads * (self.head_dim + self.v_head_dim)

    @property
    def kv_bytes(self) -> float:
        """Bytes of the KV cache that are read (a decode step) or written (a prefill)."""
        tokens = self.pairs if self.decode else self.sequences * self.tokens
        return tokens * self.cached_elements * self.cache_format.bytes_per_element

    @property
    def activation_bytes(self) -> float:
        """Bytes of queries and output."""
        rows = self.sequences * (1 if self.decode else self.tokens)
        return float(rows * self.q_heads * (self.head_dim + self.v_head_dim) * ACTIVATION_BYTES)


@dataclass(frozen=True, kw_only=True)
class IndexScores:
    """Scores of an indexer, for each pair of a query and an earlier token, by which tokens are selected.

    Attributes:
        times: number of layers with it.
        sequences: number of prompts, or of sequences with one query token each.
        tokens: tokens of a prompt; in a decode step, tokens in each sequence's cache.
        heads: the indexer's query heads; they are not split among GPUs.
        head_dim: elements of the one key per token.
        decode: whether each sequence has one query token, at its end.
        cache_format: how the keys are stored.
    """

    name: ClassVar[str] = "indexer"
    weight_bytes: ClassVar[float] = 0.0
    times: int
    sequences: int
    tokens: int
    heads: int
    head_dim: int
    decode: bool
    cache_format: Format = BF16

    @property
    def pairs(self) -> float:
        """Pairs of a query and a token up to it."""
        return float(self.sequences * (self.tokens if self.decode else _triangle(self.tokens)))

    @property
    def operations(self) -> float:
        """Operations of the products with keys, 2 per element."""
        return 2.0 * self.pairs * self.heads * self.head_dim

    @property
    def kv_bytes(self) -> float:
        """Bytes of the keys, which are read (a decode step) or written (a prefill)."""
        return self.sequences * self.tokens * self.head_dim * self.cache_format.bytes_per_element

    @property
    def activation_bytes(self) -> float:
        """Bytes of queries, and of a 32-bit score a pair."""
        rows = self.sequences * (1 if self.decode else self.tokens)
        return rows * self.heads * self.head_dim * ACTIVATION_BYTES + 4 * self.pairs


@dataclass(frozen=True, kw_only=True)
class StateUpdate:
    """The recurrence of a linear attention or a Mamba layer.

    Attributes:
        name: its kind.
        times: number of layers with it.
        sequences: number of prompts, or of sequences with one token each.
        tokens: tokens of each in this forward.
        state_bytes: bytes of one sequence's state, which is read and written once.
        operations_per_token: operations of the recurrence for a token.
        elements_per_token: elements of its inputs and outputs for a token.
    """

    weight_bytes: ClassVar[float] = 0.0
    name: str
    times: int
    sequences: int
    tokens: int
    state_bytes: int
    operations_per_token: int
    elements_per_token: int

    @property
    def operations(self) -> float:
        """Operations for all tokens."""
        return float(self.sequences * self.tokens * self.operations_per_token)

    @property
    def kv_bytes(self) -> float:
        """Bytes of the states, read and written."""
        return 2.0 * self.sequences * self.state_bytes

    @property
    def activation_bytes(self) -> float:
        """Bytes of inputs and outputs."""
        return float(self.sequences * self.tokens * self.elements_per_token * ACTIVATION_BYTES)


AttentionPart: TypeAlias = Attention | IndexScores | StateUpdate


def attention_parts(
    attention: layers.Attention,
    times: int,
    sequences: int,
    tokens: int,
    *,
    decode: bool,
    cache_format: Format = BF16,
) -> Iterator[AttentionPart]:
    """The kernels of one GPU's share of an attention, beside its projections.

    MLA decodes with the latent as one key and value of all heads (absorbed projections), and prefills with a
    key and a value per head.
    """
    if isinstance(attention, LinearAttention):
        yield StateUpdate(
            name=attention.kind,
            times=times,
            sequences=sequences,
            tokens=1 if decode else tokens,
            state_bytes=attention.state_elements * attention.state_bytes,
            operations_per_token=attention.operations_per_token,
            elements_per_token=attention.in_features_out + attention.out_features_in,
        )
        return
    indexer = attention.indexer
    if indexer is not None:
        yield IndexScores(
            times=times,
            sequences=sequences,
            tokens=tokens,
            heads=indexer.heads,
            head_dim=indexer.head_dim,
            decode=decode,
            cache_format=cache_format,
        )
    kv_heads, head_dim, v_head_dim = _heads(attention, decode=decode)
    window, name = _window(attention)
    yield Attention(
        name=name,
        times=times,
        sequences=sequences,
        tokens=tokens,
        q_heads=attention.q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=v_head_dim,
        window=window,
        chunked=isinstance(attention, GroupedQueryAttention) and attention.chunked,
        latent=decode and isinstance(attention, LatentAttention),
        decode=decode,
        cached_elements=attention.cached_elements - (0 if indexer is None else indexer.head_dim),
        cache_format=cache_format,
    )


def _heads(attention: GroupedQueryAttention | LatentAttention, *, decode: bool) -> tuple[int, int, int]:
    """KV heads, elements of a key and of a value, as the kernel sees them."""
    if isinstance(attention, GroupedQueryAttention):
        return attention.kv_heads, attention.head_dim, attention.value_dim
    if decode:
        return 1, attention.latent_elements, attention.kv_rank
    return attention.q_heads, attention.nope_head_dim + attention.rope_head_dim, attention.v_head_dim


def _window(attention: GroupedQueryAttention | LatentAttention) -> tuple[int | None, str]:
    """The most tokens that a query attends to, and the part's name."""
    limits = {"selected": None if attention.indexer is None else attention.indexer.top_k}
    if isinstance(attention, GroupedQueryAttention):
        limits["chunk" if attention.chunked else "window"] = attention.window
    known = {kind: size for kind, size in limits.items() if size is not None}
    if not known:
        return None, "attention"
    kind = min(known, key=lambda each: known[each])
    return known[kind], f"attention ({kind})"


def live_tokens(tokens: int, window: int | None, *, chunked: bool = False) -> float:
    """Tokens that the last of `tokens` attends to; beyond the first chunk, the mean over a chunk."""
    if window is None or tokens <= window:
        return float(tokens)
    return (window + 1) / 2 if chunked else float(window)


def _triangle(tokens: int) -> int:
    return tokens * (tokens + 1) // 2
