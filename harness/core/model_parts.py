"""What some language models have beside dense layers of full attention: experts, and a latent KV cache."""

from dataclasses import dataclass, fields

from .errors import UsageError, shown

SIZE_AT_MOST = 2**31 - 1


def require_size(field: str, value: object, *, least: int = 1) -> None:
    """Make sure of a size.

    Raises:
        UsageError: it is no whole number from `least` to 2^31 - 1; one line that begins with the field.
    """
    if type(value) is not int or not least <= value <= SIZE_AT_MOST:
        raise UsageError(f"{field}: must be an integer from {least} to {SIZE_AT_MOST}, was {shown(value)}")


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture of experts in place of a layer's MLP; each expert is a gated MLP.

    Attributes:
        count: experts that a router chooses from.
        per_token: of these, how many a token passes through.
        intermediate_size: elements between an expert's gated and its last projection.
        shared: experts that every token passes through besides.
        dense_layers: so many layers have a dense MLP instead.

    Raises:
        UsageError: a field is no size, or a token passes through more experts than there are.
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

    def distinct(self, tokens: int) -> float:
        """Experts that at least one of so many tokens passes through, where each is equally likely.

        count (1 - (1 - per_token / count)^tokens).
        """
        return float(self.count * (1.0 - (1.0 - self.per_token / self.count) ** tokens))


@dataclass(frozen=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention: all heads share one latent vector a token (DeepSeek-V2, arXiv 2405.04434).

    Attributes:
        q_rank: elements of the latent query; None where queries are projected at once.
        kv_rank: elements of the latent that keys and values are made of.
        nope_head_dim: elements of a head's key that come from the latent.
        rope_head_dim: elements of the one rotary key that all heads share.
        v_head_dim: elements of a head's value.

    Raises:
        UsageError: a field is no size.
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
        """Elements that a token leaves in a layer's cache: the latent and the rotary key."""
        return self.kv_rank + self.rope_head_dim
