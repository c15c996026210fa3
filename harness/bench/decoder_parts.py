"""The parts of a decoder run by providers: its projections, and attention over KV caches of its own."""

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..core.inputs import DecodeAttentionInputs, MatmulInputs, PrefillAttentionInputs
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

    def attend(self, q: Tensor) -> Tensor:
        """Causal attention of the prompts over themselves."""
        k, v = (cache[:, :, : q.shape[2]] for cache in (self._k, self._v))
        return self._provider.run(PrefillAttentionInputs(q=q, k=k, v=v)).transpose(1, 2)


class DecodeCache:
    """The KV cache of a layer in a decode step at one position.

    Args:
        k, v: [sequences, kv_heads, capacity, head_dim]; the token at `position` is written.
        position: cached tokens before the step.
        q_heads: query heads.
        provider: of decode attention; it may plan once, on the inputs of this step.
    """

    def __init__(self, k: Tensor, v: Tensor, *, position: int, q_heads: int, provider: Provider) -> None:
        self._new = [cache[:, :, position : position + 1] for cache in (k, v)]
        sequences, context = len(k), position + 1
        self._q = k.new_zeros(sequences, q_heads, k.shape[-1])
        inputs = DecodeAttentionInputs(
            q=self._q,
            k_cache=k[:, :, :context].transpose(1, 2),
            v_cache=v[:, :, :context].transpose(1, 2),
            context_lens=torch.full((sequences,), context, dtype=torch.int32, device=k.device),
            contexts=(context,) * sequences,
            out=torch.empty_like(self._q),
        )
        self._attention: Callable[[], Tensor] = functools.partial(provider.run, inputs)
        if provider.bind is not None:
            self._attention = provider.bind(inputs)

    def store(self, k: Tensor, v: Tensor) -> None:
        """Write the key and the value of the new token of each sequence."""
        for cached, new in zip(self._new, (k, v), strict=True):
            cached.copy_(new)

    def attend(self, q: Tensor) -> Tensor:
        """Attention of one query per sequence over its cache, the new token included."""
        self._q.copy_(q[:, :, 0])
        return self._attention()[:, None]
