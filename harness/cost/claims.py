"""Checks the article's claims on why output tokens cost more, each with numbers.

The numbers come from a run if one is given, and are modelled otherwise; prices come from the price list. The
module is long as every claim has its sentences beside its numbers.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..core.errors import UsageError
from ..core.formats import BF16
from ..core.gap import Interval
from ..core.language_model import LanguageModel
from ..core.layers import Attention, GroupedQueryAttention, LatentAttention, LinearAttention
from ..core.records import Run
from ..core.units import number
from .deployment import Deployment
from .forward import Forward, decode_forward, prefill_forward
from .layer_rates import measured_layers
from .memory import cache_bytes_per_sequence, weight_formats
from .memory_fit import largest_batch, memory_fit
from .part_time import product_dtype
from .parts import Matmul, RoutedExperts
from .prediction import PREFILL_TOKENS, input_split_s, output_split_s
from .prices import TokenPrice, price_changes

Verdict = Literal["holds", "holds in part", "does not hold"]

ABOUT = 0.1
"""Two figures are "about" equal within a tenth: what attention adds to 2N operations at short contexts."""

HIGH_BANDWIDTH = 0.5
"""Least share of the bandwidth that counts as high: most of the time is moving bytes."""

FEW_PER_CENT = 0.1
"""Largest share of the FLOP/s that counts as a few per cent."""

EXCELLENT_MFU = 0.5
"""Model FLOP/s utilisation of a training run that counts as excellent: 50 to 60% (PaLM, arXiv 2204.02311)."""

TOKENS = 1000
"""Number of input and of output tokens that claim 6 compares."""


@dataclass(frozen=True)
class Figure:
    """A number that a verdict is based on: its description, value, unit and provenance."""

    what: str
    value: float
    unit: str
    provenance: str = "modelled"


@dataclass(frozen=True)
class Claim:
    """A claim of the article, its verdict, the conditions of the verdict, and its figures."""

    number: int
    claim: str
    verdict: Verdict
    condition: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The figures on which the claims about kernels and tokens are checked.

    Attributes:
        where: the model and the device, in words.
        provenance: "measured" or "modelled", for times and rates.
        model: the language model.
        context: tokens in a sequence's cache, and tokens of a prompt.
        balance_ops_per_byte: operations per byte at which compute and memory take equally long.
        prefill_ops_per_byte: operations per byte of a prefill.
        decode_ops_per_byte: operations per byte of a decode step, by batch.
        bandwidth_share: share of the bandwidth that a decode step at the smallest batch reaches.
        flop_share: share of the FLOP/s that the same step reaches.
        prefill_flop_share: share of the FLOP/s that a prefill reaches.
        input_s_per_token: seconds of an input token.
        output_s_per_token: seconds of an output token, by batch.
        gap_intervals: 95% interval of the gap by batch, where it is known.
        roof_doubt: why the roof, and so the balance point and shares of it, is not known; empty if it is.
    """

    where: str
    provenance: str
    model: LanguageModel
    context: int
    balance_ops_per_byte: float
    prefill_ops_per_byte: float
    decode_ops_per_byte: Mapping[int, float]
    bandwidth_share: float
    flop_share: float
    prefill_flop_share: float
    input_s_per_token: float
    output_s_per_token: Mapping[int, float]
    gap_intervals: Mapping[int, Interval] = field(default_factory=dict)
    roof_doubt: str = ""

    @property
    def batch(self) -> int:
        """The smallest batch."""
        return min(self.output_s_per_token)

    @property
    def gaps(self) -> dict[int, float]:
        """Time of an output token over that of an input token, by batch."""
        times = sorted(self.output_s_per_token.items())
        return {batch: seconds / self.input_s_per_token for batch, seconds in times}

    def figure(self, what: str, value: float, unit: str) -> Figure:
        """A figure of the facts' own provenance."""
        return Figure(what, value, unit, self.provenance)


def modelled_facts(model: LanguageModel, on: Deployment, *, context: int) -> Facts:
    """Modelled facts of a model on a GPU, at batches up to 512 and at the largest that fits.

    Raises:
        UsageError: the model does not fit.
    """
    fits = largest_batch(model, on, context=context)
    if not fits:
        raise UsageError(memory_fit(model, on, batch=1, context=context).refusal(model, on))
    batches = sorted({*(b for b in (1, 8, 32, 128, 512) if b < fits), fits})
    input_s = sum(input_split_s(model, on, prompt=context).values())
    output_s = {b: sum(output_split_s(model, on, batch=b, context=context).values()) for b in batches}
    sequences = max(1, PREFILL_TOKENS // context)
    rows = sequences * context
    prefill = prefill_forward(model, sequences=sequences, prompt=context, rows=rows)
    decode = {b: decode_forward(model, batch=b, context=context) for b in batches}
    peak = _peak_flop_per_s(prefill, on)
    first, step_s = decode[batches[0]], output_s[batches[0]] * batches[0]
    return Facts(
        where=f"{model.name} in {weight_formats(model)} on {on.gpu.name}",
        provenance="modelled",
        model=model,
        context=context,
        balance_ops_per_byte=peak / on.gpu.bandwidth_bytes_per_s,
        prefill_ops_per_byte=prefill.operations / _bytes_moved(prefill),
        decode_ops_per_byte={b: step.operations / _bytes_moved(step) for b, step in decode.items()},
        bandwidth_share=_bytes_moved(first) / step_s / on.gpu.bandwidth_bytes_per_s,
        flop_share=first.operations / step_s / peak,
        prefill_flop_share=prefill.operations / (input_s * rows) / peak,
        input_s_per_token=input_s,
        output_s_per_token=output_s,
    )


def _peak_flop_per_s(prefill: Forward, on: Deployment) -> float:
    """The datasheet's FLOP/s in the dtype of most products of weights."""
    operations: Counter[str] = Counter()
    for part in prefill.parts:
        if isinstance(part, Matmul | RoutedExperts):
            operations[product_dtype(on.gpu, part.weight_format)] += int(part.times * part.operations)
    [(dtype, _)] = operations.most_common(1)
    return on.gpu.flop_per_s[dtype] or on.gpu.flop_per_s["fp16"] or 0.0


def _bytes_moved(forward: Forward) -> float:
    return forward.weight_bytes + forward.kv_bytes + forward.activation_bytes


def measured_facts(run: Run) -> Facts:
    """Measured facts of a run, at its shortest context.

    Raises:
        UsageError: the run lacks a gap, a ceiling or a decoder layer.
    """
    layers = measured_layers(run)
    roof, cached = run.measured, [gap for gap in run.gaps if gap.context]
    context = min((gap.context for gap in cached), default=0)
    gaps = {gap.batch: gap for gap in cached if gap.context == context}
    balance = roof.balance_operations_per_byte
    if not (layers and gaps and balance and roof.flop_per_s and roof.bandwidth_bytes_per_s):
        raise UsageError("run file: lacks a measured gap, ceiling or decoder layer, which the claims need")
    first = layers.decode[min(layers.decode)]
    return Facts(
        where=f"{layers.model.name} on {_devices(run)}",
        provenance="measured",
        model=layers.model.language_model(),
        context=context,
        balance_ops_per_byte=balance,
        prefill_ops_per_byte=layers.prefill.operations_per_byte,
        decode_ops_per_byte={b: step.operations_per_byte for b, step in layers.decode.items()},
        bandwidth_share=first.bandwidth_bytes_per_s / roof.bandwidth_bytes_per_s,
        flop_share=first.flop_per_s / roof.flop_per_s,
        prefill_flop_share=layers.prefill.flop_per_s / roof.flop_per_s,
        input_s_per_token=next(iter(gaps.values())).input_s_per_token,
        output_s_per_token={batch: gap.output_s_per_token for batch, gap in gaps.items()},
        gap_intervals={batch: gap.gap_interval for batch, gap in sorted(gaps.items()) if gap.gap_interval},
        roof_doubt=_roof_doubt(run),
    )


def _devices(run: Run) -> str:
    name, ranks = run.environment["device"]["name"], run.parallelism.gpus
    return f"{ranks} ranks ({run.parallelism.text}) of {name}" if ranks > 1 else str(name)


def _roof_doubt(run: Run) -> str:
    above = len(run.rows_above_ceilings)
    if not above:
        return ""
    rows = "1 row is" if above == 1 else f"{above} rows are"
    return f" {rows} above a ceiling, which was measured too low: the roof is not known."


def check_claims(facts: Facts, prices: Mapping[str, TokenPrice]) -> tuple[Claim, ...]:
    """The nine claims, checked on these facts and prices."""
    return (
        _equal_operations(facts),
        _equal_vectors(facts),
        _balance_point(facts),
        _data_movement(facts),
        _prefill_utilisation(facts),
        _parallel_inputs(facts),
        _cost_per_token(facts),
        _prices_moved(prices),
        _price_is_not_cost(facts, prices),
    )


def _verdict(*, holds: bool, in_part: bool) -> Verdict:
    return "holds" if holds else "holds in part" if in_part else "does not hold"


def _equal_operations(facts: Facts) -> Claim:
    model, context = facts.model, facts.context
    embedding = 0 if model.tied_embeddings else model.vocab_size * model.hidden_size
    two_n = 2.0 * (model.active_parameters - embedding)
    prefill = prefill_forward(model, sequences=1, prompt=context, rows=context)
    per_input = prefill.operations / context / two_n
    per_output = decode_forward(model, batch=1, context=context).operations / two_n
    return Claim(
        1,
        "Input and output tokens cost about 2N operations each.",
        _verdict(holds=max(abs(per_input - 1), abs(per_output - 1)) <= ABOUT, in_part=True),
        "N is the number of weights that a token is multiplied with, so without the embedding; attention to "
        f"{context} tokens is the rest. Engines compute logits only for a prompt's last position, so an "
        "input token needs fewer operations.",
        (
            Figure("operations of an input token", per_input, "x 2N"),
            Figure("operations of an output token", per_output, "x 2N"),
        ),
    )


def _equal_vectors(facts: Facts) -> Claim:
    model, size = facts.model, BF16.bytes_per_element
    vectors: Counter[tuple[float, float]] = Counter()
    for group in model.layer_groups:
        if isinstance(group.attention, GroupedQueryAttention | LatentAttention):
            vectors[_query_elements(group.attention), group.attention.cached_elements] += group.count
    figures = []
    for (query, cached), layers in vectors.items():
        layer = "layer" if len(vectors) == 1 else f"layer of {layers}"
        figures += [
            Figure(f"query of a token and {layer}", query * size, "bytes"),
            Figure(f"keys and values of a token and {layer}", cached * size, "bytes"),
        ]
    others = {_other_than_keys(group.attention) for group in model.layer_groups} - {""}
    cache = cache_bytes_per_sequence(model, context=facts.context)
    return Claim(
        2,
        "Q, K and V are the same size for both; the cache adds memory to outputs.",
        _verdict(holds=not others, in_part=True),
        "Every token has the same vectors in both phases; an output token also reads those of all tokens "
        f"before it{''.join(sorted(others))}. In 16 bits, at {facts.context} cached tokens.",
        (
            *figures,
            Figure("cache of one sequence", cache, "bytes"),
            Figure("the cache over the weights", cache / (model.parameters * size), "ratio"),
        ),
    )


def _query_elements(attention: GroupedQueryAttention | LatentAttention) -> int:
    """Elements of a token's query, all heads."""
    if isinstance(attention, LatentAttention):
        return attention.q_heads * (attention.nope_head_dim + attention.rope_head_dim)
    return attention.q_heads * attention.head_dim


def _other_than_keys(attention: Attention | None) -> str:
    """What a layer keeps in place of all tokens' keys and values, in words; empty if it keeps those."""
    if isinstance(attention, LatentAttention):
        return ", here as one latent that keys and values are made of"
    if isinstance(attention, LinearAttention):
        return f", in layers of {attention.kind} as one state of constant size"
    return ""


def _balance_point(facts: Facts) -> Claim:
    decode, balance = facts.decode_ops_per_byte, facts.balance_ops_per_byte
    below = [batch for batch, ratio in decode.items() if ratio < balance]
    above = [batch for batch in decode if batch not in below]
    prefill_above = facts.prefill_ops_per_byte > balance
    lifted = f" and above it at batch {_listed(above)}: batching lifts it" if above else ""
    return Claim(
        3,
        "There is a balance point of operations per byte; prefill lies above it, decode below.",
        _verdict(holds=prefill_above and not above, in_part=prefill_above and bool(below)),
        f"Decode lies below it at batch {_listed(below)}{lifted}.{facts.roof_doubt}",
        (
            facts.figure("balance point", balance, "ops/byte"),
            Figure("prefill", facts.prefill_ops_per_byte, "ops/byte"),
            *(Figure(f"decode, batch {batch}", ratio, "ops/byte") for batch, ratio in decode.items()),
        ),
    )


def _data_movement(facts: Facts) -> Claim:
    bandwidth, flop = facts.bandwidth_share, facts.flop_share
    return Claim(
        4,
        "Data movement is the limit of decode: bandwidth is high while FLOP/s is a few per cent.",
        _verdict(holds=bandwidth >= HIGH_BANDWIDTH and flop <= FEW_PER_CENT, in_part=bandwidth > flop),
        f"At batch {facts.batch}. High is at least {HIGH_BANDWIDTH:.0%} of the bandwidth, a few per cent at "
        f"most {FEW_PER_CENT:.0%} of the FLOP/s.{facts.roof_doubt}",
        (
            facts.figure("achieved bandwidth", bandwidth, "of the roof"),
            facts.figure("achieved FLOP/s", flop, "of the roof"),
        ),
    )


def _prefill_utilisation(facts: Facts) -> Claim:
    share = facts.prefill_flop_share
    roof = "the measured one" if facts.provenance == "measured" else "the datasheet's"
    return Claim(
        5,
        "Prefill's utilisation comes near that of training, where an MFU of 50 to 60% is excellent.",
        _verdict(holds=share >= EXCELLENT_MFU, in_part=share >= EXCELLENT_MFU / 2),
        f"Prompts of {facts.context} tokens that fill a forward; the roof is {roof}.{facts.roof_doubt}",
        (facts.figure("MFU of prefill", share, "of the roof"),),
    )


def _parallel_inputs(facts: Facts) -> Claim:
    inputs_s = TOKENS * facts.input_s_per_token
    outputs_s = TOKENS * facts.output_s_per_token[facts.batch] * facts.batch
    return Claim(
        6,
        "Input tokens run in parallel in one forward, output tokens one after another.",
        _verdict(holds=outputs_s > 2 * inputs_s, in_part=outputs_s > inputs_s),
        f"{TOKENS} tokens of each, the outputs in {TOKENS} steps at batch {facts.batch}.",
        (
            facts.figure(f"{TOKENS} input tokens", inputs_s, "s"),
            facts.figure(f"{TOKENS} output tokens", outputs_s, "s"),
            facts.figure("outputs over inputs", outputs_s / inputs_s, "ratio"),
        ),
    )


def _cost_per_token(facts: Facts) -> Claim:
    gaps = facts.gaps
    smallest, largest = gaps[min(gaps)], gaps[max(gaps)]
    closed = [batch for batch, gap in gaps.items() if gap <= 1]
    if closed:
        end = f"from batch {closed[0]} on the gap is closed"
    elif len(gaps) == 1:
        end = "only one batch"
    else:
        end = f"batch {max(gaps)} divides the gap by {smallest / largest:.1f} but does not close it"
    return Claim(
        7,
        "So an output token costs more than an input token; batching closes the gap.",
        _verdict(holds=smallest > 1 and largest < smallest, in_part=smallest > 1),
        f"At {facts.context} cached tokens; {end}.{_intervals_text(facts)}",
        tuple(facts.figure(f"gap, batch {batch}", gap, "ratio") for batch, gap in gaps.items()),
    )


def _intervals_text(facts: Facts) -> str:
    """The 95% intervals of the measured gaps; empty where none is known."""
    listed = "; ".join(
        f"batch {batch}: {' to '.join(number(bound, 3) for bound in interval.bounds)}"
        for batch, interval in facts.gap_intervals.items()
    )
    return f" 95% intervals: {listed}." if listed else ""


def _prices_moved(prices: Mapping[str, TokenPrice]) -> Claim:
    old, new = prices["gpt-4o-2024-05-13"], prices["gpt-4o-2024-08-06"]
    change = next(c for c in price_changes(prices) if (c.earlier, c.later) == (old.model, new.model))
    figures = (
        Figure("ratio before", float(old.output_over_input or 0), "ratio", "published"),
        Figure("ratio after", float(new.output_over_input or 0), "ratio", "published"),
        Figure("input price", change.input_change_percent or 0.0, "%", "published"),
        Figure("output price", change.output_change_percent or 0.0, "%", "published"),
    )
    as_stated = [round(figure.value, 2) for figure in figures] == [3.0, 4.0, -50.0, -33.33]
    return Claim(
        8,
        "Prices moved: gpt-4o from $5 and $15 to $2.50 and $10, so the ratio rose from 3 to 4.",
        _verdict(holds=as_stated, in_part=False),
        f"{old.effective} to {new.effective}; per 1M tokens.",
        figures,
    )


def _price_is_not_cost(facts: Facts, prices: Mapping[str, TokenPrice]) -> Claim:
    ratios = {name: float(p.output_over_input) for name, p in prices.items() if p.output_over_input}
    equal = sorted(name for name, ratio in ratios.items() if ratio == 1)
    gaps = facts.gaps
    dearer = all(gap > 1 + ABOUT for gap in gaps.values())
    return Claim(
        9,
        "Price is not cost: hosted models are sold at 1:1, though an output token costs more.",
        _verdict(holds=bool(equal) and dearer, in_part=bool(equal)),
        f"Sold at 1:1: {_listed(equal)}. Prices also hold utilisation, margins and competition; gaps do not.",
        (
            Figure("models at 1:1", len(equal), "models", "published"),
            Figure("lowest ratio", min(ratios.values()), "ratio", "published"),
            Figure("highest ratio", max(ratios.values()), "ratio", "published"),
            *(
                facts.figure(f"gap, batch {batch}", gaps[batch], "ratio")
                for batch in dict.fromkeys((min(gaps), max(gaps)))
            ),
        ),
    )


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values)) or "none"
