"""The cases of a run: those that an input or an output token of a language model passes through."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .cases import (
    AttentionCase,
    Case,
    DecodeAttention,
    DecoderLayer,
    Phase,
    PrefillAttention,
    PrefillMatmul,
    projection_case,
)
from .collectives import Collective
from .layers import Experts, GroupedQueryAttention, LatentAttention, Projection
from .parallelism import ONE_GPU, Parallelism
from .shards import collective_uses, compared_collectives, local_share, shard_of
from .timed_model import TimedLayers, TimedModel


@dataclass(frozen=True, kw_only=True)
class CaseUse:
    """A case that a token passes through.

    Attributes:
        part: the part of a token's time that it belongs to, of `core.gap.PARTS`.
        times: calls in a forward of all layers; an average where experts differ.
        tokens: tokens that share these calls, of all ranks.
    """

    case: PrefillMatmul | AttentionCase | Collective
    part: str
    times: float
    tokens: int


@dataclass(frozen=True, kw_only=True)
class TokenCases:
    """The cases that a token passes through.

    Attributes:
        uses: projections, experts, attention by kind, what ranks exchange, and the projection to logits.
        layer: one complete layer, at the sweep's shortest prompt or context; None where layers are timed part
            by part alone.
        layer_share: seconds of this token per second of the layer's tokens: below 1 where replicas of
            attention pass tokens of their own through a layer at the same time.
    """

    uses: tuple[CaseUse, ...]
    layer: DecoderLayer | None
    layer_share: float = 1.0

    @property
    def matmuls(self) -> tuple[PrefillMatmul, ...]:
        """The projections of layers, those of experts among them."""
        return tuple(
            use.case for use in self.uses if isinstance(use.case, PrefillMatmul) and use.part != "lm_head"
        )

    @property
    def attentions(self) -> tuple[AttentionCase, ...]:
        """The attention of each kind of layer."""
        return tuple(
            use.case for use in self.uses if isinstance(use.case, DecodeAttention | PrefillAttention)
        )

    @property
    def collectives(self) -> tuple[Collective, ...]:
        """What the ranks exchange; empty on one."""
        return tuple(use.case for use in self.uses if isinstance(use.case, Collective))

    @property
    def lm_head(self) -> PrefillMatmul:
        """The projection to logits."""
        return next(
            use.case for use in self.uses if isinstance(use.case, PrefillMatmul) and use.part == "lm_head"
        )


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Batches and contexts (in tokens) to run.

    Attributes:
        batches: sequences decoded together, on all ranks.
        contexts: tokens in each sequence's KV cache.
        prompt: tokens of a prompt; None means the context.
        prefill_tokens: tokens of one prefill forward, on each replica of the attention.
        dtype: dtype of weights, activations and cache.
        parallelism: how ranks share the model; the cases are those of one rank.
    """

    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    prompt: int | None
    prefill_tokens: int
    dtype: str
    parallelism: Parallelism = ONE_GPU

    def prompt_of(self, context: int) -> int:
        """Tokens of the prompt that is compared with an output token at this context."""
        return self.prompt or context

    @property
    def prompts(self) -> tuple[int, ...]:
        """The distinct prompt lengths, ascending."""
        return tuple(sorted({self.prompt_of(context) for context in self.contexts}))

    def input_token(self, model: TimedModel, prompt: int) -> TokenCases:
        """The cases of an input token: attention of as many prompts as fit into one forward, at least one.

        Engines compute the logits of a prompt's last position alone.
        """
        sequences, shortest = max(1, self.prefill_tokens // prompt), self.prompts[0]
        shard, replicas = shard_of(model, self.parallelism), self.parallelism.data_parallel
        rows, tokens = self.prefill_tokens, self.prefill_tokens * replicas
        attended = sequences * prompt * replicas
        uses = [
            use
            for group in shard.groups
            for use in (
                *self._matmuls(shard, group, "prefill", rows=rows, tokens=tokens),
                *self._attention(group, (prompt,) * sequences, phase="prefill", tokens=attended),
            )
        ]
        uses += self._collectives(
            model, "prefill", rows=rows, tokens=tokens, head_rows=1, head_tokens=prompt * replicas
        )
        layer = DecoderLayer(
            phase="prefill",
            model=shard,
            sequences=max(1, self.prefill_tokens // shortest),
            tokens=shortest,
            rows=self.prefill_tokens,
            dtype=self.dtype,
        )
        found = self._token_cases(shard, uses, layer, rows=1, tokens=prompt * replicas)
        return replace(found, layer_share=1 / replicas)

    def output_token(self, model: TimedModel, batch: int, context: int) -> TokenCases:
        """The cases of an output token: those of a decode step, shared by its sequences."""
        shard = shard_of(model, self.parallelism)
        sequences = -(-batch // self.parallelism.data_parallel)  # of the replica with the most
        uses = [
            use
            for group in shard.groups
            for use in (
                *self._matmuls(shard, group, "decode", rows=sequences, tokens=batch),
                *self._attention(group, (context,) * sequences, phase="decode", tokens=batch),
            )
        ]
        uses += self._collectives(
            model, "decode", rows=sequences, tokens=batch, head_rows=sequences, head_tokens=batch
        )
        layer = DecoderLayer(
            phase="decode",
            model=shard,
            sequences=sequences,
            tokens=min(self.contexts),
            rows=sequences,
            dtype=self.dtype,
        )
        found = self._token_cases(shard, uses, layer, rows=sequences, tokens=batch)
        return replace(found, layer_share=sequences / batch)

    def _token_cases(
        self, model: TimedModel, uses: Sequence[CaseUse], layer: DecoderLayer, *, rows: int, tokens: int
    ) -> TokenCases:
        """The uses, equal ones merged, and logits of `rows` rows that `tokens` tokens share."""
        merged: dict[CaseUse, float] = {}
        for use in uses:
            key = replace(use, times=0.0)
            merged[key] = merged.get(key, 0.0) + use.times
        head = projection_case(model.lm_head, phase=layer.phase, rows=rows, dtype=self.dtype)
        return TokenCases(
            uses=(
                *(replace(use, times=times) for use, times in merged.items()),
                CaseUse(case=head, part="lm_head", times=1.0, tokens=tokens),
            ),
            layer=layer if model.in_parts is None else None,
        )

    def _collectives(
        self, model: TimedModel, phase: Phase, *, rows: int, tokens: int, head_rows: int, head_tokens: int
    ) -> list[CaseUse]:
        """What the ranks exchange in a forward of `rows` tokens of each replica, `tokens` in all.

        `head_rows` of them have logits, which `head_tokens` tokens share.
        """
        found = collective_uses(
            model, self.parallelism, phase=phase, rows=rows, head_rows=head_rows, dtype=self.dtype
        )
        return [
            CaseUse(
                case=use.case,
                part=use.case.part,
                times=use.times,
                tokens=head_tokens if use.of_logits else tokens,
            )
            for use in found
        ]

    def _matmuls(
        self, model: TimedModel, group: TimedLayers, phase: Phase, *, rows: int, tokens: int
    ) -> Iterator[CaseUse]:
        """The projections of a group of layers in a forward of `rows` tokens of each replica.

        The experts get the `tokens` tokens of all replicas.
        """
        for projection, batch in _projections(group, model.hidden_size, phase):
            case = projection_case(projection, phase=phase, rows=rows, dtype=self.dtype, batch=batch)
            yield CaseUse(case=case, part="projections", times=group.count, tokens=tokens)
        if group.experts is not None:
            hit, each = expert_rows(group.experts, tokens)
            hit *= local_share(group.experts, self.parallelism)
            for projection in group.experts.expert.projections(model.hidden_size):
                named = replace(projection, name=f"expert_{projection.name}")
                case = projection_case(named, phase=phase, rows=each, dtype=self.dtype)
                yield CaseUse(case=case, part="experts", times=group.count * hit, tokens=tokens)

    def _attention(
        self, group: TimedLayers, lengths: tuple[int, ...], *, phase: Phase, tokens: int
    ) -> Iterator[CaseUse]:
        """The attention of a group of layers over sequences of these lengths."""
        if group.attention is None:
            return
        case: AttentionCase
        if phase == "decode":
            case = decode_attention(group.attention, lengths, self.dtype)
        else:
            case = prefill_attention(group.attention, lengths, self.dtype)
        yield CaseUse(case=case, part=attention_part(group.attention), times=group.count, tokens=tokens)


def attention_part(attention: GroupedQueryAttention | LatentAttention) -> str:
    """The part of a token's time that an attention belongs to."""
    if isinstance(attention, LatentAttention):
        return "latent_attention"
    return "attention" if attention.window is None else "window_attention"


def decode_attention(
    attention: GroupedQueryAttention | LatentAttention, contexts: tuple[int, ...], dtype: str
) -> DecodeAttention:
    """A layer's attention in a decode step; a latent one over latents, with kv_b absorbed into its heads."""
    if isinstance(attention, LatentAttention):
        return DecodeAttention(
            contexts=contexts,
            q_heads=attention.q_heads,
            kv_heads=1,
            head_dim=attention.latent_elements,
            v_head_dim=attention.kv_rank,
            latent=True,
            dtype=dtype,
        )
    return DecodeAttention(
        contexts=contexts,
        q_heads=attention.q_heads,
        kv_heads=attention.kv_heads,
        head_dim=attention.head_dim,
        v_head_dim=attention.v_head_dim,
        window=attention.window,
        softcap=attention.softcap,
        sinks=attention.sinks,
        dtype=dtype,
    )


def prefill_attention(
    attention: GroupedQueryAttention | LatentAttention, prompts: tuple[int, ...], dtype: str
) -> PrefillAttention:
    """A layer's attention of prompts of one length; a latent one over keys and values of each head."""
    if isinstance(attention, LatentAttention):
        return PrefillAttention(
            sequences=len(prompts),
            prompt=prompts[0],
            q_heads=attention.q_heads,
            kv_heads=attention.q_heads,
            head_dim=attention.nope_head_dim + attention.rope_head_dim,
            v_head_dim=attention.v_head_dim,
            dtype=dtype,
        )
    return PrefillAttention(
        sequences=len(prompts),
        prompt=prompts[0],
        q_heads=attention.q_heads,
        kv_heads=attention.kv_heads,
        head_dim=attention.head_dim,
        v_head_dim=attention.v_head_dim,
        window=attention.window,
        softcap=attention.softcap,
        sinks=attention.sinks,
        dtype=dtype,
    )


def _projections(group: TimedLayers, hidden_size: int, phase: Phase) -> Iterator[tuple[Projection, int]]:
    """The projections of a layer that every token passes through, in the order they run, each as a batch.

    In decode each head of MLA has products of its own with its part of kv_b: of its query, and of its
    attended latent.
    """
    if group.attention is not None:
        for projection in group.attention.projections(hidden_size):
            if phase == "decode" and group.latent is not None and projection.name == "kv_b":
                heads, rank = group.latent.q_heads, group.latent.kv_rank
                yield Projection("absorbed_k", group.latent.nope_head_dim, rank, "attention"), heads
                yield Projection("absorbed_v", rank, group.latent.v_head_dim, "attention"), heads
            else:
                yield projection, 1
    if group.dense is not None:
        yield from ((projection, 1) for projection in group.dense.projections(hidden_size))
    if group.experts is not None:
        yield Projection("router", hidden_size, group.experts.count, "router"), 1
        if group.experts.shared is not None:
            for projection in group.experts.shared.projections(hidden_size, role="shared"):
                yield replace(projection, name=f"shared_{projection.name}"), 1


def expert_rows(experts: Experts, tokens: int) -> tuple[float, int]:
    """Experts that `tokens` tokens hit in expectation, each equally likely, and the average rows of one hit.

    A token picks `per_token` different experts, so that it misses one with probability
    1 - per_token / count; tokens are independent.
    """
    hit = experts.count * (1 - (1 - experts.per_token / experts.count) ** tokens)
    return hit, max(1, round(tokens * experts.per_token / hit))


def collectives_of(model: TimedModel, sweep: Sweep) -> tuple[Collective, ...]:
    """All collectives of a run at the message sizes of prefill and decode, each once; none on one rank.

    Beside those of its tokens, every kind with a forward's hidden states: what other ways to share a model
    would exchange (a reduce-scatter and an all-gather in place of an all-reduce).
    """
    split = sweep.parallelism
    if split.gpus == 1:
        return ()
    tokens = [
        *(sweep.input_token(model, prompt) for prompt in sweep.prompts),
        *(sweep.output_token(model, batch, min(sweep.contexts)) for batch in sweep.batches),
    ]
    found = [case for token in tokens for case in token.collectives]
    forwards: list[tuple[Phase, int]] = [("prefill", sweep.prefill_tokens)]
    forwards += [("decode", -(-batch // split.data_parallel)) for batch in sweep.batches]
    for phase, rows in forwards:
        found += compared_collectives(model, split, phase=phase, rows=rows, dtype=sweep.dtype)
    return tuple(dict.fromkeys(found))


def cases_of(model: TimedModel, sweep: Sweep) -> Sequence[Case]:
    """All kernels of a run, each once: prefill, decode, then the LM heads, whose weight is the largest.

    On several ranks they are those of one rank; `collectives_of` has what the ranks exchange.
    """
    prefill = [sweep.input_token(model, prompt) for prompt in sweep.prompts]
    decode = [
        [sweep.output_token(model, batch, context) for context in sweep.contexts] for batch in sweep.batches
    ]
    cases: list[Case] = []
    for tokens in (prefill, *decode):
        cases += [*tokens[0].matmuls, *(case for token in tokens for case in token.attentions)]
        cases += [] if tokens[0].layer is None else [tokens[0].layer]
    return tuple(dict.fromkeys((*cases, *(tokens[0].lm_head for tokens in (prefill, *decode)))))
