"""The price list, and what a request costs by it, as text."""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

from ..core.tables import plain_table
from .break_even import BreakEven
from .prices import CostTerm, PriceChange, TokenPrice, exact_text, price_changes, scaled_from_mtok, total_usd

_MTOK = 1_000_000
_LEAST_PERCENT = Decimal("0.01")


def prices_text(prices: Mapping[str, TokenPrice], against: BreakEven) -> str:
    """The list with the batch at which a gap equals each ratio, then each step within a family."""
    blocks = [plain_table([_price_row(price, against) for price in prices.values()])]
    if changes := price_changes(prices):
        title = "Changes from one model of a family to the next, $ per 1M tokens"
        blocks.append(f"{title}\n{plain_table([_change_row(change) for change in changes])}")
    note = f"modelled batch: the smallest at which the gap of {against.where} is at most output:input"
    if against.gaps:
        note += "; measured batch: where the run's gap equals it"
    return "\n\n".join([*blocks, f"{note}; - where none that fits, or was measured, comes to it"])


def _price_row(price: TokenPrice, against: BreakEven) -> dict[str, object]:
    batches = against.batches(price.output_over_input)
    measured = {"measured batch": batches["measured_batch"]} if against.gaps else {}
    return {
        "model": price.model,
        "effective": price.effective,
        "$ per 1M input": exact_text(price.input_usd_per_mtok),
        "cached input": _listed(price.cached_input_usd_per_mtok),
        "output": exact_text(price.output_usd_per_mtok),
        "output:input": _ratio(price),
        "modelled batch": batches["modelled_batch"],
        **measured,
        "source": price.source,
    }


def _change_row(change: PriceChange) -> dict[str, object]:
    earlier, later = change.earlier, change.later
    return {
        "family": change.family,
        "from": earlier.model,
        "to": later.model,
        "effective": " to ".join(dict.fromkeys((earlier.effective, later.effective))),
        "input": _step(earlier.input_usd_per_mtok, later.input_usd_per_mtok, change.input_change_percent),
        "output": _step(earlier.output_usd_per_mtok, later.output_usd_per_mtok, change.output_change_percent),
        "output:input": f"{_ratio(earlier)} to {_ratio(later)}",
    }


def _step(earlier: Decimal, later: Decimal, percent: Decimal | None) -> str:
    """Such as "5.00 to 2.50, fell 50%"."""
    if earlier == later:
        return f"{exact_text(earlier)}, unchanged"
    step = f"{exact_text(earlier)} to {exact_text(later)}"
    if percent is None:
        return step
    size = abs(percent)
    share = f"{size:.2f}".rstrip("0").rstrip(".") if size >= _LEAST_PERCENT else f"under {_LEAST_PERCENT}"
    return f"{step}, {'fell' if percent < 0 else 'rose'} {share}%"


def request_text(
    price: TokenPrice, terms: Sequence[CostTerm], against: BreakEven, *, per_tokens: int = _MTOK
) -> str:
    """What one request costs, term by term, all digits of it; prices are shown per so many tokens."""
    unit = {1: "token", 1000: "1K", _MTOK: "1M"}.get(per_tokens, str(per_tokens))
    rows: list[dict[str, object]] = [
        {
            "tokens": term.kind,
            "how many": term.tokens,
            f"$ per {unit}": exact_text(scaled_from_mtok(term.usd_per_mtok, per_tokens)),
            "$": exact_text(term.usd),
        }
        for term in terms
    ]
    return "\n".join([*_heading(price), plain_table(rows), "", *_sentences(price, terms, against)])


def _heading(price: TokenPrice) -> Iterable[str]:
    if price.effective:
        yield f"{price.model}, effective {price.effective} ({price.source})"
    else:
        yield price.model


def _sentences(price: TokenPrice, terms: Sequence[CostTerm], against: BreakEven) -> Iterable[str]:
    yield f"The request costs ${exact_text(total_usd(terms))}."
    ratio = price.output_over_input
    if ratio is not None:
        yield f"An output token is priced at {ratio:.2f} times an input token."
        batches = against.batches(ratio)
        modelled, measured = batches["modelled_batch"], batches["measured_batch"]
        at = "at no batch that fits" if modelled is None else f"from batch {modelled} on"
        yield f"The gap of {against.where}, is no more than that {at} (modelled)."
        if against.gaps:
            at = "at no batch that was measured" if measured is None else f"at batch {measured:.3g}"
            yield f"In the run it is as much {at} (measured)."


def _ratio(price: TokenPrice) -> str:
    return "-" if price.output_over_input is None else f"{price.output_over_input:.2f}"


def _listed(usd: Decimal | None) -> str:
    return "-" if usd is None else exact_text(usd)
