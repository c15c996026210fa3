"""Which forwards of the whole model a run measures, and how many layers memory and time hold."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.cases import Phase
from ..core.gap import Gap
from ..core.sweep import Sweep, TokenCases
from ..core.timed_model import TimedModel
from ..core.whole_model import composed_parts_s
from ..core.work import ELEMENT_BYTES
from . import cpu_facts
from .device import Device

CPU_LIMIT_BYTES = 2.9e9
"""Most memory of the forwards and of PyTorch on a CPU: a run takes at most 3 GB."""

FREE_SHARE = 0.9
"""Share of the free memory that a forward may take."""

EMBEDDING_ROWS = 4096
"""Rows of an embedding that is not the LM head too: a lookup reads one row per token, of however many."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A forward to measure.

    Attributes:
        model: the whole model.
        sequences: prompts, or the batch.
        tokens: tokens of a prompt, or the context with the new token.
        rows: most rows of a product.
        cases: the cases that a token passes through.
        gap: the run's gap that composes the forward.
    """

    phase: Phase
    model: TimedModel
    sequences: int
    tokens: int
    rows: int
    dtype: str
    cases: TokenCases
    gap: Gap

    @property
    def query_tokens(self) -> int:
        """New tokens of a sequence."""
        return self.tokens if self.phase == "prefill" else 1

    def composed_parts_s(self, layers: int) -> dict[str, float]:
        """Seconds of the forward composed for some layers, by part."""
        return composed_parts_s(
            self.gap,
            self.phase,
            tokens=self.sequences * self.query_tokens,
            layers=layers,
            of_layers=self.model.layers,
        )

    def layers_in_s(self, limit_s: float, *, forwards: float) -> int:
        """Layers of which so many forwards take at most `limit_s`, by the composed time."""
        parts_s = self.composed_parts_s(1)
        head_s = parts_s.pop("lm_head")
        return int((limit_s / forwards - head_s) / max(sum(parts_s.values()), 1e-12))

    @property
    def layer_bytes(self) -> int:
        """Bytes of a layer's weights."""
        return ELEMENT_BYTES[self.dtype] * sum(p.parameters for p in self.model.projections)

    @property
    def cache_bytes(self) -> int:
        """Bytes of a layer's KV cache."""
        elements = self.model.kv_elements_per_token_and_layer
        return ELEMENT_BYTES[self.dtype] * self.sequences * self.tokens * elements

    def layers_in_bytes(self, limit_bytes: float, *, peer: bool) -> int:
        """Layers that fit into memory; a peer copies the caches."""
        model, size = self.model, ELEMENT_BYTES[self.dtype]
        new_tokens = self.sequences * self.query_tokens
        rows = min(self.rows, new_tokens)
        heads = (model.q_heads + 2 * model.kv_heads) * model.head_dim
        working = size * (
            new_tokens * (6 * model.hidden_size + 4 * heads)
            + rows * 5 * (model.intermediate_size or 0)
            + 4 * self.sequences * model.vocab_size
        )
        embedding = model.vocab_size if model.tied_embeddings else model.vocab_size + EMBEDDING_ROWS
        fixed = working + size * embedding * model.hidden_size
        per_layer = self.layer_bytes + self.cache_bytes
        if peer:
            fixed += working + 3 * self.cache_bytes
        return max(0, int((limit_bytes - fixed) // per_layer))


def plans_of(model: TimedModel, sweep: Sweep, gaps: Sequence[Gap]) -> list[Plan]:
    """The forwards to measure, in order: a step of the smallest batch, a prefill, a step of the largest.

    All are at the shortest context. There is none for a batch without a gap.
    """
    context = min(sweep.contexts)
    found = {gap.batch: gap for gap in gaps if gap.context == context}
    batches = dict.fromkeys(batch for batch in (min(sweep.batches), max(sweep.batches)) if batch in found)

    def decode(batch: int) -> Plan:
        return Plan(
            phase="decode",
            model=model,
            sequences=batch,
            tokens=context,
            rows=batch,
            dtype=sweep.dtype,
            cases=sweep.output_token(model, batch, context),
            gap=found[batch],
        )

    plans = [decode(batch) for batch in batches]
    if plans:
        prompt = sweep.prompt_of(context)
        cases = sweep.input_token(model, prompt)
        prefill = Plan(
            phase="prefill",
            model=model,
            sequences=max(1, sweep.prefill_tokens // prompt),
            tokens=prompt,
            rows=sweep.prefill_tokens,
            dtype=sweep.dtype,
            cases=cases,
            gap=plans[0].gap,
        )
        plans.insert(1, prefill)
    return plans


def memory_limit_bytes(device: Device) -> float:
    """Bytes that the forwards may take: of the free memory, and on a CPU below the limit of a run."""
    free = FREE_SHARE * device.free_bytes()
    if device.kind != "cpu":
        return free
    return min(free, CPU_LIMIT_BYTES - cpu_facts.resident_bytes())
