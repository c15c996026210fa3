"""Parts of some language models: a mixture of experts (MoE), and multi-head latent attention (MLA)."""

from dataclasses import dataclass, fields

from .errors import UsageError, short_repr

SIZE_AT_MOST = 2**31 - 1


def require_size(field: str, value: object, *, least: int = 1) -> None:
    """Checks a size.

    Raises:
        UsageError: it is not an integer from `least` to 2^31 - 1; one line that starts with the field.
    """
    if type(value) is not int or not least <= value <= SIZE_AT_MOST:
        raise UsageError(
            f"{field}: must be an integer from {least} to {SIZE_AT_MOST}, was {short_repr(value)}"
        )


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture of experts in place of a layer's MLP; each expert is a gated MLP.

    Attributes:
        count: routed experts of a layer.
        per_token: routed experts that the router picks for a token.
        intermediate_size: elements between an expert's gated and last projections.
        shared: experts that every token passes through as well.
        dense_layers: layers with a dense MLP instead.

    Raises:
        UsageError: a field is not a size, or `per_token` exceeds `count`.
    """

    count: int
    per_token: int
    intermediate_size: int
    shared: int = 0
    dense_layers: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            least = 0 if field.name in {"shared", "dense_layers"} else 1
            require_size(f"experts.{field.name}", getattr(self, field.name), least=least)
        if self.per_token > self.count:
            raise UsageError(f"experts.per_token: must be at most count, {self.count}, was {self.per_token}")

    def expected_distinct(self, tokens: int) -> float:
        """Expected number of routed experts that a batch of tokens uses, if all are equally likely.

        count (1 - (1 - per_token / count)^tokens).
        """
        return float(self.count * (1.0 - (1.0 - self.per_token / self.count) ** tokens))


@dataclass(frozen=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention: all heads share one latent vector a token (DeepSeek-V2, arXiv 2405.04434).

    Attributes:
        q_rank: elements of the latent query; None if queries are projected in one step.
        kv_rank: elements of the latent that keys and values are computed from.
        nope_head_dim: elements of a head's key that come from the latent.
        rope_head_dim: elements of the one rotary key that all heads share.
        v_head_dim: elements of a head's value.

    Raises:
        UsageError: a field is not a size.
    """

    q_rank: int | None
    kv_rank: int
    nope_head_dim: int
    rope_head_dim: int
    v_head_dim: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (field.name == "q_rank" and value is None):
                require_size(f"latent.{field.name}", value)

    @property
    def cached_elements(self) -> int:
        """Elements that a token adds to a layer's cache: the latent and the rotary key."""
        return self.kv_rank + self.rope_head_dim
