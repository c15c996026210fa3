"""The article's claims on why output tokens cost more, each checked with numbers.

The numbers come from a run, where one is given, and are modelled otherwise; prices come from the price list.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..core.cases import DecoderLayer
from ..core.errors import UsageError
from ..core.language_model import LanguageModel
from ..core.records import Row, Run
from .deployment import Deployment
from .forward import STORED_BYTES, Forward, decode_forward, prefill_forward
from .prediction import PREFILL_TOKENS, input_split_s, largest_batch, output_split_s
from .prices import TokenPrice, price_changes

Verdict = Literal["holds", "holds in part", "does not hold"]
VERDICTS: tuple[Verdict, ...] = ("holds", "holds in part", "does not hold")

ABOUT = 0.1
"""Two figures are "about" equal within a tenth: what attention adds to 2N operations at short contexts."""

HIGH_BANDWIDTH = 0.5
"""From here on an achieved share of the bandwidth is high: most of the time is moving bytes."""

FEW_PER_CENT = 0.1
"""Up to here an achieved share of the arithmetic is a few per cent."""

EXCELLENT_MFU = 0.5
"""Of a training run, 50 to 60% counts as excellent (PaLM, arXiv 2204.02311)."""

TOKENS = 1000
"""Input and output tokens that are set against each other."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number that a verdict rests on: what it is, its value and unit, and where it comes from."""

    what: str
    value: float
    unit: str
    provenance: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim, checked.

    Attributes:
        number: 1 to 9.
        claim: what the article says.
        verdict: whether it holds.
        condition: under which condition, or why not.
        figures: what the verdict rests on.
    """

    number: int
    claim: str
    verdict: Verdict
    condition: str
    figures: tuple[Figure, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields by their names."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the claims about kernels and tokens are checked on.

    Attributes:
        where: the device and the model, in words.
        provenance: "measured" or "modelled", of times.
        model: whose tokens they are.
        context: tokens in a sequence's cache, and of a prompt.
        balance: operations a byte at which arithmetic and memory take equally long.
        prefill_ops_per_byte: of a prefill.
        decode_ops_per_byte: of a decode step, by batch.
        bandwidth_share: achieved by a decode step at the smallest batch.
        flop_share: the same of arithmetic.
        prefill_flop_share: arithmetic achieved by a prefill.
        input_s: of an input token.
        output_s: of an output token, by batch.
    """

    where: str
    provenance: str
    model: LanguageModel
    context: int
    balance: float
    prefill_ops_per_byte: float
    decode_ops_per_byte: Mapping[int, float]
    bandwidth_share: float
    flop_share: float
    prefill_flop_share: float
    input_s: float
    output_s: Mapping[int, float]

    @property
    def batch(self) -> int:
        """The smallest batch."""
        return min(self.output_s)

    @property
    def gaps(self) -> dict[int, float]:
        """Output over input, by batch."""
        return {batch: seconds / self.input_s for batch, seconds in sorted(self.output_s.items())}

    def figure(self, what: str, value: float, unit: str) -> Figure:
        """A figure of times."""
        return Figure(what=what, value=value, unit=unit, provenance=self.provenance)


def modelled_facts(model: LanguageModel, on: Deployment, *, context: int) -> Facts:
    """Facts of a model on a GPU that need not be there, at batches 1, 8, 32 and on to what fits.

    Raises:
        UsageError: the model does not fit.
    """
    fits = largest_batch(model, on, context=context)
    if not fits:
        raise UsageError(f"--gpu: {model.name} with {context} cached tokens does not fit {on.peaks.gpu}")
    batches = sorted({*(b for b in (1, 8, 32, 128, 512) if b < fits), fits})
    input_s = sum(input_split_s(model, on, prompt=context).values())
    output_s = {b: sum(output_split_s(model, on, batch=b, context=context).values()) for b in batches}
    sequences = max(1, PREFILL_TOKENS // context)
    rows = sequences * context
    prefill = prefill_forward(model, sequences=sequences, prompt=context, rows=rows)
    decode = {b: decode_forward(model, batch=b, context=context) for b in batches}
    peak = on.peaks.flop_per_s["bf16"] or on.peaks.flop_per_s["fp16"] or 0.0
    first, step_s = decode[batches[0]], output_s[batches[0]] * batches[0]
    return Facts(
        where=f"{model.name} on {on.peaks.gpu}",
        provenance="modelled",
        model=model,
        context=context,
        balance=peak / on.peaks.bandwidth_bytes_per_s,
        prefill_ops_per_byte=prefill.operations / _moved(prefill, on),
        decode_ops_per_byte={b: each.operations / _moved(each, on) for b, each in decode.items()},
        bandwidth_share=_moved(first, on) / step_s / on.peaks.bandwidth_bytes_per_s,
        flop_share=first.operations / step_s / peak,
        prefill_flop_share=prefill.operations / (input_s * rows) / peak,
        input_s=input_s,
        output_s=output_s,
    )


def _moved(forward: Forward, on: Deployment) -> float:
    return forward.weight_bytes(on.dtype) + forward.kv_bytes(on.cache_dtype) + forward.activation_bytes


def measured_facts(run: Run) -> Facts:
    """Facts of a run, at its shortest context.

    Raises:
        UsageError: the run lacks a gap, a ceiling or a whole layer.
    """
    layers = [
        (row.case, row) for row in run.rows if row.status == "ok" and isinstance(row.case, DecoderLayer)
    ]
    prefill = [(case, row) for case, row in layers if case.phase == "prefill"]
    decode = {case.rows: row for case, row in layers if case.phase == "decode"}
    roof, context = run.measured, min((gap.context for gap in run.gaps), default=0)
    gaps = {gap.batch: gap for gap in run.gaps if gap.context == context}
    balance = roof.balance_operations_per_byte
    if not (prefill and decode and gaps and balance and roof.flop_per_s and roof.bandwidth_bytes_per_s):
        raise UsageError("run file: lacks a measured gap, ceiling or whole layer, which the claims are about")
    first, (case, whole) = decode[min(decode)], prefill[0]
    work, time_s = first.case.work(), first.time_s.median
    device = run.environment["device"]
    return Facts(
        where=f"{case.model.name} on {device['name']}",
        provenance="measured",
        model=case.model,
        context=context,
        balance=balance,
        prefill_ops_per_byte=case.work().operations_per_byte,
        decode_ops_per_byte={b: row.case.work().operations_per_byte for b, row in sorted(decode.items())},
        bandwidth_share=work.bytes_total / time_s / roof.bandwidth_bytes_per_s,
        flop_share=work.operations / time_s / roof.flop_per_s,
        prefill_flop_share=_flop_per_s(whole) / roof.flop_per_s,
        input_s=next(iter(gaps.values())).input_s_per_token,
        output_s={batch: gap.output_s_per_token for batch, gap in gaps.items()},
    )


def _flop_per_s(row: Row) -> float:
    return row.case.work().operations / row.time_s.median


def check_claims(facts: Facts, prices: Mapping[str, TokenPrice]) -> tuple[Claim, ...]:
    """The nine claims, checked on these facts and prices."""
    return (
        _equal_operations(facts),
        _equal_vectors(facts),
        _balance_point(facts),
        _data_movement(facts),
        _prefill_utilisation(facts),
        _parallel_inputs(facts),
        _cost_a_token(facts),
        _prices_moved(prices),
        _price_is_not_cost(facts, prices),
    )


def _first(verdicts: Iterable[tuple[bool, Verdict]]) -> Verdict:
    """The first verdict whose condition is true."""
    return next(verdict for true, verdict in verdicts if true)


def _equal_operations(facts: Facts) -> Claim:
    model, context = facts.model, facts.context
    embedding = 0 if model.tied_embeddings else model.lm_head.parameters
    two_n = 2.0 * (model.active_parameters - embedding)
    prefill = prefill_forward(model, sequences=1, prompt=context, rows=context)
    per_input = prefill.operations / context / two_n
    per_output = decode_forward(model, batch=1, context=context).operations / two_n
    worst = max(abs(per_input - 1), abs(per_output - 1))
    return Claim(
        number=1,
        claim="Input and output tokens cost about 2N operations each.",
        verdict=_first([(worst <= ABOUT, "holds"), (True, "holds in part")]),
        condition="N are the weights that a token passes through, the embedding's lookup left out; attention "
        f"to {context} tokens is the rest. Engines compute logits for a prompt's last position alone, so "
        f"that an input token takes fewer.",
        figures=(
            Figure(what="operations of an input token", value=per_input, unit="x 2N", provenance="modelled"),
            Figure(
                what="operations of an output token", value=per_output, unit="x 2N", provenance="modelled"
            ),
        ),
    )


def _equal_vectors(facts: Facts) -> Claim:
    model = facts.model
    size = STORED_BYTES["bf16"]
    latent = model.latent is not None
    vectors = (
        ("query of a token and layer", model.q_heads * model.head_dim),
        ("keys and values of a token and layer", model.kv_elements_per_token_and_layer),
    )
    cache = model.kv_elements_per_token * size * facts.context
    weights = model.parameters * size
    return Claim(
        number=2,
        claim="Q, K and V are the same size for both; the cache adds memory to outputs.",
        verdict="holds in part" if latent else "holds",
        condition="Every token has the same vectors, whichever phase it passes in; an output token also "
        "reads those of all tokens before it"
        + (", here as one latent that keys and values are made of." if latent else ".")
        + f" In 16 bits, at {facts.context} cached tokens.",
        figures=(
            *(Figure(what=what, value=n * size, unit="bytes", provenance="modelled") for what, n in vectors),
            Figure(what="cache of one sequence", value=cache, unit="bytes", provenance="modelled"),
            Figure(
                what="the cache over the weights", value=cache / weights, unit="ratio", provenance="modelled"
            ),
        ),
    )


def _balance_point(facts: Facts) -> Claim:
    decode = facts.decode_ops_per_byte
    below = [batch for batch, ratio in decode.items() if ratio < facts.balance]
    above = [batch for batch in decode if batch not in below]
    prefill_above = facts.prefill_ops_per_byte > facts.balance
    return Claim(
        number=3,
        claim="There is a balance point of operations per byte; prefill lies above it, decode below.",
        verdict=_first(
            [
                (prefill_above and not above, "holds"),
                (prefill_above and bool(below), "holds in part"),
                (True, "does not hold"),
            ]
        ),
        condition=f"decode lies below it at batch {_listed(below)}"
        + (f" and above it at batch {_listed(above)}: batching lifts it" if above else "")
        + ".",
        figures=(
            facts.figure("balance point", facts.balance, "ops/byte"),
            Figure(what="prefill", value=facts.prefill_ops_per_byte, unit="ops/byte", provenance="modelled"),
            *(
                Figure(what=f"decode, batch {batch}", value=ratio, unit="ops/byte", provenance="modelled")
                for batch, ratio in decode.items()
            ),
        ),
    )


def _data_movement(facts: Facts) -> Claim:
    high, few = facts.bandwidth_share >= HIGH_BANDWIDTH, facts.flop_share <= FEW_PER_CENT
    return Claim(
        number=4,
        claim="Data movement is the limit of decode: bandwidth is high while FLOP/s is a few per cent.",
        verdict=_first(
            [
                (high and few, "holds"),
                (facts.bandwidth_share > facts.flop_share, "holds in part"),
                (True, "does not hold"),
            ]
        ),
        condition=f"At batch {facts.batch}. High is from {HIGH_BANDWIDTH:.0%} of the bandwidth on, a few per "
        f"cent up to {FEW_PER_CENT:.0%} of the arithmetic.",
        figures=(
            facts.figure("achieved bandwidth", facts.bandwidth_share, "of the roof"),
            facts.figure("achieved FLOP/s", facts.flop_share, "of the roof"),
        ),
    )


def _prefill_utilisation(facts: Facts) -> Claim:
    share = facts.prefill_flop_share
    return Claim(
        number=5,
        claim="Prefill's utilisation comes near that of training, where an MFU of 50 to 60% is excellent.",
        verdict=_first(
            [
                (share >= EXCELLENT_MFU, "holds"),
                (share >= EXCELLENT_MFU / 2, "holds in part"),
                (True, "does not hold"),
            ]
        ),
        condition=f"Prompts of {facts.context} tokens that fill a forward; the roof is "
        + ("the measured one." if facts.provenance == "measured" else "the datasheet's."),
        figures=(facts.figure("MFU of prefill", share, "of the roof"),),
    )


def _parallel_inputs(facts: Facts) -> Claim:
    one = facts.output_s[facts.batch] * facts.batch
    inputs_s, outputs_s = TOKENS * facts.input_s, TOKENS * one
    return Claim(
        number=6,
        claim="Input tokens run in parallel in one forward, output tokens one after another.",
        verdict=_first(
            [
                (outputs_s > inputs_s * 2, "holds"),
                (outputs_s > inputs_s, "holds in part"),
                (True, "does not hold"),
            ]
        ),
        condition=f"{TOKENS} tokens of each, the outputs in {TOKENS} steps at batch {facts.batch}.",
        figures=(
            facts.figure(f"{TOKENS} input tokens", inputs_s, "s"),
            facts.figure(f"{TOKENS} output tokens", outputs_s, "s"),
            facts.figure("outputs over inputs", outputs_s / inputs_s, "ratio"),
        ),
    )


def _cost_a_token(facts: Facts) -> Claim:
    gaps = facts.gaps
    smallest, largest = gaps[min(gaps)], gaps[max(gaps)]
    closed = [batch for batch, gap in gaps.items() if gap <= 1]
    if closed:
        end = f"from batch {closed[0]} on it is closed"
    elif len(gaps) == 1:
        end = "one batch alone"
    else:
        end = f"batch {max(gaps)} divides the gap by {smallest / largest:.1f} and does not close it"
    return Claim(
        number=7,
        claim="So an output token costs more than an input token; batching closes the gap.",
        verdict=_first(
            [
                (smallest > 1 and largest < smallest, "holds"),
                (smallest > 1, "holds in part"),
                (True, "does not hold"),
            ]
        ),
        condition=f"At {facts.context} cached tokens; {end}.",
        figures=tuple(facts.figure(f"gap, batch {batch}", gap, "ratio") for batch, gap in gaps.items()),
    )


def _prices_moved(prices: Mapping[str, TokenPrice]) -> Claim:
    old, new = prices["gpt-4o-2024-05-13"], prices["gpt-4o-2024-08-06"]
    change = next(c for c in price_changes(prices) if (c.earlier, c.later) == (old.model, new.model))
    ratios = [float(price.output_over_input or 0) for price in (old, new)]
    fell = [change.input_change_percent or 0.0, change.output_change_percent or 0.0]
    stated = [round(each, 2) for each in (*ratios, *fell)] == [3.0, 4.0, -50.0, -33.33]
    return Claim(
        number=8,
        claim="Prices moved: gpt-4o from $5 and $15 to $2.50 and $10, so the ratio rose from 3 to 4.",
        verdict="holds" if stated else "does not hold",
        condition=f"{old.effective} to {new.effective}; per 1M tokens.",
        figures=(
            Figure(what="ratio before", value=ratios[0], unit="ratio", provenance="published"),
            Figure(what="ratio after", value=ratios[1], unit="ratio", provenance="published"),
            Figure(what="input price", value=fell[0], unit="%", provenance="published"),
            Figure(what="output price", value=fell[1], unit="%", provenance="published"),
        ),
    )


def _price_is_not_cost(facts: Facts, prices: Mapping[str, TokenPrice]) -> Claim:
    ratios = {name: float(p.output_over_input) for name, p in prices.items() if p.output_over_input}
    equal = sorted(name for name, ratio in ratios.items() if ratio == 1)
    gaps = facts.gaps
    apart = all(gap > 1 + ABOUT for gap in gaps.values())
    return Claim(
        number=9,
        claim="Price is not cost: hosted models are sold at 1:1, though an output token costs more.",
        verdict=_first(
            [(bool(equal) and apart, "holds"), (bool(equal), "holds in part"), (True, "does not hold")]
        ),
        condition=f"Sold at 1:1: {', '.join(equal) or 'none'}. Utilisation, margins and competition are in "
        "prices, and in no gap.",
        figures=(
            Figure(what="models at 1:1", value=len(equal), unit="models", provenance="published"),
            Figure(what="lowest ratio", value=min(ratios.values()), unit="ratio", provenance="published"),
            Figure(what="highest ratio", value=max(ratios.values()), unit="ratio", provenance="published"),
            *(
                facts.figure(f"gap, batch {batch}", gaps[batch], "ratio")
                for batch in dict.fromkeys((min(gaps), max(gaps)))
            ),
        ),
    )


def _listed(batches: Iterable[int]) -> str:
    found = list(map(str, batches))
    return ", ".join(found) if found else "none"
