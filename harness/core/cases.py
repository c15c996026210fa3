"""Benchmark cases, each with its id, operations and bytes.

One name, such as `decode_attention`, stands for an operation's case, kernel, oracle and tests. A projection
of a decode step is a `PrefillMatmul` too: the same GEMM with one row per sequence.

Cases are msgspec structs: the types of their fields check a case read from a run file, and the tag
`operation` selects its class.
"""

from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from msgspec import Meta, Struct

from .layers import Projection
from .record_fields import Dtype, Length, Size
from .timed_model import TimedModel
from .work import ELEMENT_BYTES, Work

Phase = Literal["prefill", "decode"]
Softcap = Annotated[float, Meta(gt=0, le=1e30)]


MAX_PREFILL_HEAD_DIM = 256
"""Most elements of a head that the Triton kernel of prefill attention takes."""

_Size = TypeVar("_Size", int, float)


class MatmulShape(Struct, Generic[_Size], frozen=True, kw_only=True):
    """x [rows, in_features] times weight [out_features, in_features] transposed.

    Attributes:
        rows: M; fractional where it is an average over experts.
        in_features: K.
        out_features: N.
    """

    rows: _Size
    in_features: Size
    out_features: _Size

    @property
    def operations(self) -> _Size:
        """2 M N K: a multiply-add counts as 2."""
        return 2 * self.rows * self.in_features * self.out_features


class PrefillMatmul(
    MatmulShape[Size],
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    tag_field="operation",
    tag="prefill_matmul",
):
    """A projection in one dtype; in a decode step it has one row per sequence.

    Attributes:
        batch: products of this shape in one call, each with rows and a weight of its own.
    """

    operation: ClassVar[str] = "prefill_matmul"
    phase: Phase
    part: str
    dtype: Dtype
    batch: Size = 1

    @property
    def id(self) -> str:
        """Readable and unique among a run's cases."""
        batch = "" if self.batch == 1 else f"b{self.batch}-"
        sizes = f"{batch}m{self.rows}-k{self.in_features}-n{self.out_features}"
        return f"{self.phase}/{self.part}/{sizes}/{self.dtype}"

    def work(self) -> Work:
        """2 M N K operations for each product; x and weight read once, out written once."""
        size = self.batch * ELEMENT_BYTES[self.dtype]
        return Work(
            operation_terms={"product": self.batch * self.operations},
            read_terms={
                "x": self.rows * self.in_features * size,
                "weight": self.out_features * self.in_features * size,
            },
            written_terms={"out": self.rows * self.out_features * size},
        )


class DecodeAttention(
    Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="operation", tag="decode_attention"
):
    """Grouped-query attention (GQA) of one new token per sequence over its KV cache.

    Attributes:
        contexts: cached tokens of each sequence.
        head_dim: elements of a query and a key.
        v_head_dim: elements of a value and of an output; None means head_dim.
        latent: whether the values are the first v_head_dim elements of each cached key, so that one latent
            per token and KV head is cached: multi-head latent attention (MLA).
        window: sliding window: tokens that a query attends to, itself the last; None means all.
        softcap: c: scores s become c tanh(s / c); None leaves them.
        sinks: whether each query head has one more logit, an attention sink, whose value is 0.

    Raises:
        ValueError: a latent is narrower than the values in it.
    """

    operation: ClassVar[str] = "decode_attention"
    phase: ClassVar[Phase] = "decode"
    part: ClassVar[str] = "attention"
    contexts: Annotated[tuple[Length, ...], Meta(min_length=1)]
    q_heads: Size
    kv_heads: Size
    head_dim: Size
    dtype: Dtype
    v_head_dim: Size | None = None
    latent: bool = False
    window: Size | None = None
    softcap: Softcap | None = None
    sinks: bool = False

    def __post_init__(self) -> None:
        if self.latent and self.value_dim > self.head_dim:
            raise ValueError(f"v_head_dim: {self.value_dim} of a latent of {self.head_dim} elements")

    @property
    def value_dim(self) -> int:
        """Elements of a value."""
        return self.head_dim if self.v_head_dim is None else self.v_head_dim

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return len(self.contexts)

    @property
    def capacity(self) -> int:
        """Tokens that each sequence's cache has room for: the longest context, at least one."""
        return max(1, *self.contexts)

    @property
    def id(self) -> str:
        """Readable and unique among a run's cases."""
        uniform = len(set(self.contexts)) == 1
        contexts = str(self.contexts[0]) if uniform else "+".join(map(str, self.contexts))
        heads = _heads_text(self) + ("-latent" if self.latent else "")
        return f"decode/attention/b{self.batch}-c{contexts}-{heads}/{self.dtype}"

    def work(self) -> Work:
        """Two products, each 2 operations per query head, token attended to and element.

        K and V of the tokens in the window are read once, or one latent in place of both.
        """
        size = ELEMENT_BYTES[self.dtype]
        tokens = sum(min(context, self.window or context) for context in self.contexts)
        entries = tokens * self.kv_heads * size
        rows = self.batch * self.q_heads * size
        cache = {"k_cache": entries * self.head_dim, "v_cache": entries * self.value_dim}
        if self.latent:
            cache = {"latent_cache": entries * self.head_dim}
        return Work(
            operation_terms={
                "scores": 2 * tokens * self.q_heads * self.head_dim,
                "values": 2 * tokens * self.q_heads * self.value_dim,
            },
            read_terms={
                "q": rows * self.head_dim,
                **cache,
                "context_lens": 4 * self.batch,
                **({"sinks": self.q_heads * size} if self.sinks else {}),
            },
            written_terms={"out": rows * self.value_dim},
        )


class PrefillAttention(
    Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="operation", tag="prefill_attention"
):
    """Causal attention of `sequences` prompts of `prompt` tokens each, over themselves.

    Heads, window, softcap and sinks are as in `DecodeAttention`.
    """

    operation: ClassVar[str] = "prefill_attention"
    phase: ClassVar[Phase] = "prefill"
    part: ClassVar[str] = "attention"
    sequences: Size
    prompt: Size
    q_heads: Size
    kv_heads: Size
    head_dim: Size
    dtype: Dtype
    v_head_dim: Size | None = None
    window: Size | None = None
    softcap: Softcap | None = None
    sinks: bool = False

    @property
    def value_dim(self) -> int:
        """Elements of a value."""
        return self.head_dim if self.v_head_dim is None else self.v_head_dim

    @property
    def id(self) -> str:
        """Readable and unique among a run's cases."""
        return f"prefill/attention/s{self.sequences}-p{self.prompt}-{_heads_text(self)}/{self.dtype}"

    def work(self) -> Work:
        """Two products, each 2 operations per query head, visible (query, key) pair and element.

        The first `window` tokens of a prompt see themselves and all before, the others `window` tokens each.
        """
        size = ELEMENT_BYTES[self.dtype]
        window = min(self.window or self.prompt, self.prompt)
        pairs = self.sequences * (window * (window + 1) // 2 + (self.prompt - window) * window)
        tokens = self.sequences * self.prompt * size
        return Work(
            operation_terms={
                "scores": 2 * pairs * self.q_heads * self.head_dim,
                "values": 2 * pairs * self.q_heads * self.value_dim,
            },
            read_terms={
                "q": tokens * self.q_heads * self.head_dim,
                "k": tokens * self.kv_heads * self.head_dim,
                "v": tokens * self.kv_heads * self.value_dim,
                **({"sinks": self.q_heads * size} if self.sinks else {}),
            },
            written_terms={"out": tokens * self.q_heads * self.value_dim},
        )


AttentionCase = DecodeAttention | PrefillAttention


def attention_options(case: "Case") -> tuple[str, ...]:
    """What an attention has beyond keys and values of one size, in words; empty for other cases."""
    if not isinstance(case, DecodeAttention | PrefillAttention):
        return ()
    found = {
        "a latent cache (MLA)": isinstance(case, DecodeAttention) and case.latent,
        "values of another size than keys": case.value_dim != case.head_dim,
        "a sliding window": case.window is not None,
        "a softcap": case.softcap is not None,
        "attention sinks": case.sinks,
    }
    return tuple(option for option, present in found.items() if present)


def _heads_text(case: AttentionCase) -> str:
    """Heads and options of an attention, a part of its id."""
    values = "" if case.v_head_dim is None else f"v{case.v_head_dim}"
    text = f"q{case.q_heads}-kv{case.kv_heads}-d{case.head_dim}{values}"
    if case.window is not None:
        text += f"-w{case.window}"
    if case.softcap is not None:
        text += "-softcap" + repr(case.softcap).removesuffix(".0")
    return text + ("-sinks" if case.sinks else "")


class DecoderLayer(Struct, frozen=True, kw_only=True, tag_field="operation", tag="decoder_layer"):
    """One complete decoder layer: norms, rotary embedding, projections, attention, activation, residuals.

    Attributes:
        tokens: prompt length in prefill; cached tokens per sequence after the step in decode.
        rows: most input rows of a projection in one forward; in decode, the number of sequences.
    """

    operation: ClassVar[str] = "decoder_layer"
    part: ClassVar[str] = "layer"
    phase: Phase
    model: TimedModel
    sequences: Size
    tokens: Size
    rows: Size
    dtype: Dtype

    @property
    def query_tokens(self) -> int:
        """New tokens of a sequence, which pass through the layer."""
        return self.tokens if self.phase == "prefill" else 1

    @property
    def id(self) -> str:
        """Readable and unique among a run's cases."""
        sizes = f"s{self.sequences}-t{self.tokens}-m{self.rows}"
        return f"{self.phase}/layer/{self.model.name}/{sizes}/{self.dtype}"

    @property
    def projections(self) -> tuple[PrefillMatmul, ...]:
        """The layer's projections, one forward of `rows` rows each, as cases of their own."""
        return tuple(
            projection_case(p, phase=self.phase, rows=self.rows, dtype=self.dtype)
            for p in self.model.projections
        )

    @property
    def attention(self) -> AttentionCase:
        """The layer's attention as a case of its own."""
        heads = attention_heads(self.model)
        if self.phase == "decode":
            return DecodeAttention(contexts=(self.tokens,) * self.sequences, dtype=self.dtype, **heads)
        return PrefillAttention(sequences=self.sequences, prompt=self.tokens, dtype=self.dtype, **heads)

    def work(self) -> Work:
        """Operations of projections and attention; elementwise operations, less than 1%, are not counted.

        Bytes are the layer's own inputs and outputs: hidden states, weights, the cache that decode reads and
        the keys and values that both phases write to it.
        """
        size = ELEMENT_BYTES[self.dtype]
        tokens = self.sequences * self.query_tokens
        hidden = tokens * self.model.hidden_size * size
        entry = self.model.kv_heads * self.model.head_dim * size
        cached = self.sequences * (self.tokens - 1) * entry if self.phase == "decode" else 0
        projections = self.model.projections
        return Work(
            operation_terms={
                **{p.name: 2 * tokens * p.parameters for p in projections},
                "attention": self.attention.work().operations,
            },
            read_terms={
                "hidden": hidden,
                **{p.name: p.parameters * size for p in projections},
                "norms": 2 * self.model.hidden_size * size,
                "k_cache": cached,
                "v_cache": cached,
            },
            written_terms={"hidden": hidden, "k_cache": tokens * entry, "v_cache": tokens * entry},
        )


Case = PrefillMatmul | DecodeAttention | PrefillAttention | DecoderLayer


def attention_heads(model: TimedModel) -> dict[str, Any]:
    """A model's head counts and head dimension, under the field names of an attention case."""
    return {"q_heads": model.q_heads, "kv_heads": model.kv_heads, "head_dim": model.head_dim}


def projection_case(
    projection: Projection, *, phase: Phase, rows: int, dtype: str, batch: int = 1
) -> PrefillMatmul:
    """A projection of a language model on `rows` rows, or a batch of them."""
    return PrefillMatmul(
        phase=phase,
        part=projection.name,
        rows=rows,
        in_features=projection.in_features,
        out_features=projection.out_features,
        dtype=dtype,
        batch=batch,
    )
