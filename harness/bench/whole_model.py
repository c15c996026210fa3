"""The whole model, measured: forwards of all layers, each layer with weights of its own.

The run's gap composes a token's time from parts that were timed alone. Here the same parts, by the same
providers, run one after another as a model runs them.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.cases import Case
from ..core.errors import one_line
from ..core.gate import Verdict, judge, sampled
from ..core.inputs import DTYPES, Source
from ..core.records import Run
from ..core.sweep import Sweep
from ..core.timed_model import TimedModel
from ..core.whole_model import WholeForward, WholeModel
from . import transformers_peer
from .decoder import (
    Cache,
    DecoderWeights,
    Forward,
    LayerWeights,
    Matmul,
    agreement,
    completed,
    decoder,
    plain_matmul,
    rotary_tables,
)
from .decoder_parts import DecodeCache, PlainCache, PrefillCache, matmul_by
from .device import Device, out_of_memory
from .providers import PROVIDERS, Provider
from .runner import TilingOf, resolved
from .timed_forward import TimedForward
from .whole_plan import EMBEDDING_ROWS, Plan, memory_limit_bytes, plans_of

MIN_SAMPLES, MAX_SAMPLES = 3, 5
"""Decode steps that are timed: at least the first number where the time allows, at most the second."""

TURNS = 2
"""Times that the forward takes turns with one of a single layer's weights."""

DRAWING_SHARE = 0.25
"""Share of the time limit for drawing weights; under load fewer layers are drawn."""

PLAN_SHARES = {"decode": 0.25, "prefill": 0.65}
"""Share of the time left that each forward may take; the last one may take all of it."""

FORWARDS = {"decode": 8.0, "prefill": 1.3}
"""Forwards that fit into that time: warm-up, check, samples. A prefill is warmed up with one layer."""

COLUMN_STEP = 8
"""One logit in every 8 is checked."""

TIME_OVER = "its time was over"


@dataclass(frozen=True, kw_only=True)
class WholeBench:
    """What the whole model is measured with.

    Attributes:
        run: its rows and gaps choose the providers and compose the times.
        device: runs and times the forwards.
        limit_s: seconds for the step; a forward that has begun is finished.
        peer: whether transformers runs the same model too; it may take as long again.
        user_providers: providers of the user's own functions, by operation.
        tiling_of: the tuned tiling of a case.
        seed: seed of weights, caches and tokens.
        progress: takes what comes next.
        now_s: the wall clock in seconds.
    """

    run: Run
    device: Device
    limit_s: float
    peer: bool = False
    user_providers: Mapping[str, Sequence[Provider]]
    tiling_of: TilingOf
    seed: int = 0
    progress: Callable[[str], None] = lambda _what: None
    now_s: Callable[[], float] = time.perf_counter

    def provider(self, case: Case, plan: Plan) -> Provider:
        """The provider that the gap chose for a case, with the variant and the tiling of its row."""
        name = plan.gap.providers[case.id]
        known = (*PROVIDERS[case.operation], *self.user_providers.get(case.operation, ()))
        provider = next(provider for provider in known if provider.name == name)
        row = next(row for row in self.run.rows if row.case == case and row.provider == name)
        return resolved(provider, case, self.tiling_of, row)


def measure_whole_model(bench: WholeBench, model: TimedModel, sweep: Sweep) -> WholeModel:
    """Measure each forward of `plans_of`; an error ends the step, and the result says why."""
    start_s = bench.now_s()
    plans = plans_of(model, sweep, bench.run.gaps) if model.in_parts is None else []
    forwards: list[WholeForward] = []
    reason = None if plans else "no gap composes a token's time to compare with"
    if model.in_parts is not None:
        reason = f"no forward of a model with {model.in_parts} is implemented"
    try:
        with torch.no_grad():
            for forward in _measured(bench, plans):
                forwards.append(forward)  # noqa: PERF402  (they are kept when the next one raises)
    except Exception as error:  # noqa: BLE001  (a kernel may raise anything; the rest of the run stays valid)
        reason = one_line(error)
        if out_of_memory(error):
            reason = f"out of memory: {reason}"
    bench.device.release()
    forwards.sort(
        key=lambda forward: (forward.by != "decodetax", forward.phase == "decode", forward.sequences)
    )
    return WholeModel(
        layers=model.layers, forwards=tuple(forwards), reason=reason, elapsed_s=bench.now_s() - start_s
    )


def _measured(bench: WholeBench, plans: Sequence[Plan]) -> Iterator[WholeForward]:
    if not plans:
        return
    if bench.peer:
        transformers_peer.load()  # it takes memory, which is then no longer free
    limit_s = bench.limit_s * (2 if bench.peer else 1)
    end_s = bench.now_s() + limit_s
    device, model = bench.device, plans[0].model
    source = Source(device.torch_device, bench.seed)
    held = [plan.layers_in_bytes(memory_limit_bytes(device), peer=bench.peer) for plan in plans]
    fitting = min(max(held), model.layers)
    if fitting < 1:
        free = memory_limit_bytes(device) / 1e9
        raise MemoryError(f"the weights of one layer and of the LM head take more than {free:.1f} GB")
    bench.progress("weights of the whole model")
    drawn = draw_weights(
        plans[0], fitting, source, enough=lambda: bench.now_s() > end_s - (1 - DRAWING_SHARE) * limit_s
    )
    for place, plan in enumerate(plans):
        left_s = end_s - bench.now_s()
        share_s = left_s * (PLAN_SHARES[plan.phase] if place < len(plans) - 1 else 1.0)
        own_s = share_s / (2 if bench.peer else 1)
        timed = plan.layers_in_s(own_s, forwards=FORWARDS[plan.phase])
        layers = min(len(drawn.layers), held[place])
        limited_by: Literal["memory", "time"] | None = "memory" if layers < model.layers else None
        if max(timed, 1) < layers or len(drawn.layers) < min(held[place], fitting):
            layers, limited_by = min(layers, max(timed, 1)), "time"
        later = max((min(held[after], model.layers) for after in range(place + 1, len(plans))), default=0)
        record = WholeForward(
            phase=plan.phase,
            by="decodetax",
            sequences=plan.sequences,
            tokens=plan.tokens,
            layers=max(layers, 1),
            limited_by=limited_by,
            composed_parts_s=plan.composed_parts_s(max(layers, 1)),
            status="skipped",
            reason=TIME_OVER if left_s <= 0 else "memory holds no layer with its KV cache",
        )
        if left_s <= 0 or layers < 1:
            yield record
            continue
        bench.progress(f"the whole model, {plan.phase} of {plan.sequences} sequences")
        kept = max(layers, min(later, len(drawn.layers)))
        drawn = replace(drawn, layers=drawn.layers[:kept])
        weights = replace(drawn, layers=drawn.layers[:layers])
        measured = _Measurement(bench, plan, weights, source)
        yield measured.ours(record, bench.now_s() + own_s, end_s)
        if bench.peer:
            yield measured.peer(record, bench.now_s() + own_s, end_s)
        del measured, weights


def draw_weights(
    plan: Plan, layers: int, source: Source, *, enough: Callable[[], bool] = lambda: False
) -> DecoderWeights:
    """Random weights of up to `layers` layers, at least one; no more once `enough` says so.

    They keep the activations of all layers of order one. The outputs of attention, averages over the context,
    are small; its projection makes up for that, so that a wrong attention shows in the logits.
    """
    model, dtype = plan.model, DTYPES[plan.dtype]

    def norms(*shape: int) -> Tensor:
        return 1 + 0.1 * source.normal(*shape, dtype=dtype)

    def layer() -> LayerWeights:
        scales = {p.name: p.in_features**-0.5 for p in model.projections}
        scales["o"] *= plan.tokens**0.5
        return LayerWeights(
            projections={
                p.name: source.normal(p.out_features, p.in_features, dtype=dtype).mul_(scales[p.name])
                for p in model.projections
            },
            norms=norms(2, model.hidden_size),
            head_norms=norms(2, model.head_dim) if model.qk_norm else None,
        )

    head = source.normal(model.vocab_size, model.hidden_size, dtype=dtype)
    embedding = head
    if not model.tied_embeddings:
        rows = min(EMBEDDING_ROWS, model.vocab_size)
        embedding = source.normal(rows, model.hidden_size, dtype=dtype)
    drawn = [layer()]
    while len(drawn) < layers and not enough():
        drawn.append(layer())
    return DecoderWeights(embedding=embedding, layers=drawn, norm=norms(model.hidden_size), lm_head=head)


class _Measurement:
    """The forwards of one plan: ours, and then the peer's on the same weights and caches."""

    def __init__(self, bench: WholeBench, plan: Plan, weights: DecoderWeights, source: Source) -> None:
        self._bench, self._plan, self._weights = bench, plan, weights
        model, device = plan.model, bench.device.torch_device
        dtype = DTYPES[plan.dtype]
        shape = (plan.sequences, model.kv_heads, plan.tokens, model.head_dim)
        attention = bench.provider(plan.cases.attentions[0], plan)
        self._caches = [
            _cache_of(plan, source.normal(*shape, dtype=dtype), source.normal(*shape, dtype=dtype), attention)
            for _ in weights.layers
        ]
        tokens = torch.Generator().manual_seed(bench.seed)
        ids = torch.randint(len(weights.embedding), (plan.sequences, plan.query_tokens), generator=tokens)
        self._token_ids = ids.to(device)
        self._rotary = rotary_tables(model, torch.arange(plan.tokens, device=device), dtype)
        self._logits = torch.empty(0)

    def ours(self, record: WholeForward, end_s: float, last_s: float) -> WholeForward:
        """Warm up, time and check.

        Args:
            record: the forward without its results.
            end_s: when its share of the time ends.
            last_s: when the whole step ends.
        """
        bench, plan, caches = self._bench, self._plan, self._caches
        matmul = matmul_by({case.part: bench.provider(case, plan) for case in self._products()})
        run = TimedForward(bench.device, lambda: self._forward(self._weights, caches, matmul))
        if plan.phase == "prefill":  # one layer allocates what all need
            short = replace(self._weights, layers=self._weights.layers[:1])
            completed(self._forward(short, caches[:1], matmul))
        else:
            completed(run.make())
        if bench.now_s() > last_s:
            return replace(record, reason=TIME_OVER)
        samples: list[float] = []
        run.sample(samples, lambda: self._enough(samples, end_s, last_s))
        verdict = self._verdict(run.output, completed(self._plain()))
        record = self._judged(record, verdict, run.method)
        if record.status == "failed":
            return record
        self._logits = run.output
        record = replace(record, status="ok", reason=None, samples_s=tuple(samples), parts_s=run.parts_s())
        if record.close:
            return record
        return replace(record, one_layer_s=self._one_layer_s(run, samples, matmul, end_s))

    def _one_layer_s(
        self, run: TimedForward, samples: list[float], matmul: Matmul, end_s: float
    ) -> float | None:
        """Seconds of the forward with one layer's weights and cache for all; None if the time is too short.

        It takes turns with the forward itself, whose time of these turns it is related to: machines drift.
        """
        bench, layers, median_s = self._bench, len(self._caches), statistics.median(samples)
        if bench.now_s() + (2 * TURNS + 1) * median_s > end_s:
            return None
        weights = replace(self._weights, layers=[self._weights.layers[0]] * layers)
        again = TimedForward(bench.device, lambda: self._forward(weights, self._caches[:1] * layers, matmul))
        completed(again.make())
        turns: tuple[list[float], list[float]] = [], []
        for turn in range(1, TURNS + 1):
            for timed, found in zip((run, again), turns, strict=True):
                timed.sample(found, lambda found=found, turn=turn: len(found) == turn)  # type: ignore[misc]
        own_s, one_s = map(statistics.median, turns)
        return median_s * one_s / own_s

    def peer(self, record: WholeForward, end_s: float, last_s: float) -> WholeForward:
        """Time transformers on the same weights, if its logits equal ours."""
        bench, plan = self._bench, self._plan
        record = replace(record, by=transformers_peer.peer_name())
        if not self._logits.numel():
            return replace(record, reason="there are no logits to compare with")
        call = _PeerCall(transformers_peer.peer_of(plan.model, self._weights), self._token_ids)
        if plan.phase == "decode":
            for number in range(len(self._weights.layers)):
                k, v = self._caches.pop(0).tokens()  # the peer copies them: all twice might not fit
                call.cache.update(k[:, :, :-1], v[:, :, :-1], number)
            del k, v
        call.grows = plan.phase == "decode"
        samples = bench.device.time_each([call])
        record = self._judged(
            record, self._verdict(call.logits, self._logits), f"{bench.device.kind}: each forward"
        )
        if record.status == "failed":
            return record
        if call.grows:
            samples.clear()  # the first step also allocates
        while not self._enough(samples, end_s, last_s):
            samples += bench.device.time_each([call])
        return replace(record, status="ok", reason=None, samples_s=tuple(samples))

    def _judged(self, record: WholeForward, verdict: Verdict, method: str) -> WholeForward:
        """The record with its error, and failed if the verdict says so."""
        record = replace(
            record,
            relative_error=verdict.relative_error if math.isfinite(verdict.relative_error) else None,
            tolerance=verdict.tolerance,
            method=method,
        )
        return record if verdict.passed else replace(record, status="failed", reason=verdict.reason)

    def _enough(self, samples: Sequence[float], end_s: float, last_s: float) -> bool:
        """Whether the samples suffice: one prefill or MIN_SAMPLES steps, and more until `end_s`."""
        if not samples:
            return False
        few = self._plan.phase == "decode" and len(samples) < MIN_SAMPLES
        ends_s = self._bench.now_s() + samples[-1]
        return len(samples) >= MAX_SAMPLES or ends_s > (last_s if few else end_s)

    def _products(self) -> Iterator[Any]:
        yield from self._plan.cases.matmuls
        yield self._plan.cases.lm_head

    def _forward(
        self, weights: DecoderWeights, caches: Sequence[Cache], matmul: Matmul, *, last_only: bool = False
    ) -> Forward:
        plan = self._plan
        new = 1 if last_only else plan.query_tokens
        cos, sin = self._rotary
        return decoder(
            self._token_ids[:, -new:],
            weights,
            caches,
            model=plan.model,
            rotary=(cos[-new:], sin[-new:]),
            rows=plan.rows,
            matmul=matmul,
        )

    def _plain(self) -> Forward:
        """The same logits by PyTorch's own product and attention.

        Of a prefill, they are those of its last token, from the cache that it wrote.
        """
        caches = [PlainCache(cache) for cache in self._caches]
        return self._forward(self._weights, caches, plain_matmul, last_only=True)

    def _verdict(self, logits: Tensor, expected: Tensor) -> Verdict:
        plan = self._plan
        columns = sampled(plan.model.vocab_size, COLUMN_STEP, logits.device)
        bound = agreement(
            plan.model, layers=len(self._weights.layers), tokens=plan.tokens, dtype=DTYPES[plan.dtype]
        )
        return judge(logits[:, columns], expected[:, columns], bound=bound)


class _PeerCall:
    """A forward of a peer; keeps its logits and, where it grows, its cache."""

    def __init__(self, peer: transformers_peer.Peer, token_ids: Tensor) -> None:
        self._peer, self._token_ids = peer, token_ids
        self.cache, self.grows = transformers_peer.empty_cache(), True
        self.logits = torch.empty(0)

    def __call__(self) -> None:
        if not self.grows:
            self.cache = transformers_peer.empty_cache()
        self.logits = self._peer(self._token_ids, self.cache)


def _cache_of(plan: Plan, k: Tensor, v: Tensor, attention: Provider) -> PrefillCache | DecodeCache:
    """The cache of a layer in the plan's forward."""
    if plan.phase == "prefill":
        return PrefillCache(k, v, attention)
    return DecodeCache(k, v, position=plan.tokens - 1, q_heads=plan.model.q_heads, provider=attention)
