"""The parts of a decoder run by providers: its projections, and attention over KV caches of its own."""

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..core.inputs import DecodeAttentionInputs, MatmulInputs, PrefillAttentionInputs, in_layout
from .decoder import Matmul
from .providers import Provider


def matmul_by(providers: Mapping[str, Provider]) -> Matmul:
    """The projections of a decoder, each by the provider under its name."""

    def matmul(name: str, x: Tensor, weight: Tensor) -> Tensor:
        out = x.new_empty(len(x), len(weight))
        return providers[name].run(MatmulInputs(x=x.contiguous(), weight=weight, out=out))

    return matmul


class PrefillCache:
    """The KV cache of a layer while the prompts that begin in it pass through.

    Args:
        k, v: [sequences, kv_heads, capacity, head_dim]; the first tokens are written.
        provider: of prefill attention.
    """

    def __init__(self, k: Tensor, v: Tensor, provider: Provider) -> None:
        self._k, self._v, self._provider = k, v, provider

    def store(self, k: Tensor, v: Tensor) -> None:
        """Write the keys and values of the prompts."""
        self._k[:, :, : k.shape[2]] = k
        self._v[:, :, : v.shape[2]] = v

    def write(self, position: int, k: Tensor, v: Tensor) -> None:
        """Write the key and the value of one token of each sequence, [sequences, kv_heads, head_dim]."""
        self._k[:, :, position], self._v[:, :, position] = k, v

    def tokens(self) -> tuple[Tensor, Tensor]:
        """Keys and values [sequences, kv_heads, tokens, head_dim]."""
        return self._k, self._v

    def attend(self, q: Tensor) -> Tensor:
        """Causal attention of the prompts over themselves."""
        k, v = (cache[:, :, : q.shape[2]] for cache in (self._k, self._v))
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        return self._provider.run(PrefillAttentionInputs(q=q, k=k, v=v, out=out)).transpose(1, 2)


class DecodeCache:
    """The KV cache of a layer in a decode step at one position, in the layout of its provider.

    Args:
        k, v: contiguous memory [sequences, kv_heads, tokens, head_dim] for the cache. Layouts other than
            heads-first take the same memory as other keys and values, and need all of its tokens.
        position: cached tokens before the step.
        q_heads: query heads.
        provider: of decode attention; it may plan once, on the inputs of this step.
    """

    def __init__(self, k: Tensor, v: Tensor, *, position: int, q_heads: int, provider: Provider) -> None:
        sequences, context = len(k), position + 1
        q = k.new_zeros(sequences, q_heads, k.shape[-1])
        inputs = DecodeAttentionInputs(
            q=q,
            k_cache=k[:, :, :context].transpose(1, 2),
            v_cache=v[:, :, :context].transpose(1, 2),
            context_lens=torch.full((sequences,), context, dtype=torch.int32, device=k.device),
            contexts=(context,) * sequences,
            out=torch.empty_like(q),
        )
        laid_out = in_layout(inputs, provider.layout)
        if not isinstance(laid_out, DecodeAttentionInputs):
            raise TypeError(f"inputs: {type(laid_out).__name__} are not those of decode attention")
        self._inputs, self._position = laid_out, position
        self._attention: Callable[[], Tensor] = functools.partial(provider.run, laid_out)
        if provider.bind is not None:
            self._attention = provider.bind(laid_out)

    def write(self, position: int, k: Tensor, v: Tensor) -> None:
        """Write the key and the value of one token of each sequence, [sequences, kv_heads, head_dim]."""
        keys = self._inputs.k_cache
        if keys.ndim == 5:  # in pages
            page = keys.shape[2]
            keys[:, position // page, position % page] = k
        else:
            keys[:, position] = k
        self._inputs.v_cache[:, position] = v

    def store(self, k: Tensor, v: Tensor) -> None:
        """Write the key and the value of the new token of each sequence."""
        self.write(self._position, k[:, :, 0], v[:, :, 0])

    def attend(self, q: Tensor) -> Tensor:
        """Attention of one query per sequence over its cache, the new token included."""
        self._inputs.q.copy_(q[:, :, 0])
        return self._attention()[:, None]

    def tokens(self) -> tuple[Tensor, Tensor]:
        """Keys and values [sequences, kv_heads, tokens, head_dim] in the order of tokens; maybe copies."""
        keys = self._inputs.k_cache
        if keys.ndim == 5:
            keys = keys.flatten(1, 2)
        return keys.transpose(1, 2), self._inputs.v_cache.transpose(1, 2)


class PlainCache:
    """A full cache, read by PyTorch's fused attention in a decode step at its last token."""

    def __init__(self, cache: PrefillCache | DecodeCache) -> None:
        self._cache = cache

    def store(self, k: Tensor, v: Tensor) -> None:
        """Write the key and the value of the new token of each sequence."""
        tokens = self._cache.tokens()[0].shape[2]
        self._cache.write(tokens - 1, k[:, :, 0], v[:, :, 0])

    def attend(self, q: Tensor) -> Tensor:
        """Attention of one query per sequence over its cache, the new token included."""
        k, v = self._cache.tokens()
        grouped = q.reshape(len(q), k.shape[1], -1, q.shape[-1])
        return scaled_dot_product_attention(grouped, k, v).view_as(q).transpose(1, 2)
