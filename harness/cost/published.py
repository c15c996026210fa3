"""Published end-to-end figures beside modelled figures of the same deployment."""

from dataclasses import asdict, dataclass
from typing import Any

from ..core.data_table import data_table
from ..core.formats import CACHE_FORMATS, FORMATS
from ..core.language_model import load_language_model
from .deployment import Deployment, deployment
from .memory_fit import largest_batch
from .prediction import input_split_s, output_split_s
from .published_engines import WITHIN, engine_figures

BF16_WITHIN, GAP_WITHIN, EXACT_WITHIN = 0.15, 0.25, 0.005
"""Largest relative error allowed, by kind of figure; arithmetic on published figures is off by rounding."""

NODE_USD_PER_HOUR = 16.0
"""Price of a node of 8 H800 at the $2 per GPU-hour that DeepSeek assumes."""


@dataclass(frozen=True, kw_only=True)
class PublishedCheck:
    """One published figure, or one computed from several, and the modelled figure.

    Attributes:
        what: description of the figure.
        published: the published value.
        modelled: the modelled value, or the one computed from other published figures.
        unit: unit of both.
        provenance: "modelled", or "published" if it is computed from published figures only.
        within: largest relative error allowed; None if the figure is shown and not checked.
        source: who published it.
        remark: the setup, or the reason for a large error.
    """

    what: str
    published: float
    modelled: float
    unit: str
    provenance: str = "modelled"
    within: float | None
    source: str
    remark: str

    @property
    def relative_error(self) -> float:
        """Modelled over published, minus 1."""
        return self.modelled / self.published - 1

    @property
    def kept(self) -> bool | None:
        """Whether the error is within its limit; None without a limit."""
        return None if self.within is None else abs(self.relative_error) <= self.within

    def to_json(self) -> dict[str, Any]:
        """The fields by their names."""
        return {**asdict(self), "relative_error": self.relative_error, "kept": self.kept}


def published_checks() -> tuple[PublishedCheck, ...]:
    """All figures that the model is checked against, including those beyond their limit."""
    return (*_gpt_fast(), _rtx_4090(), *_tensorrt_llm(), *_engines(), *_deepseek_day())


def _engines() -> tuple[PublishedCheck, ...]:
    """Throughputs and prefill times of engines; those that cannot be modelled are left to `accuracy`."""
    return tuple(
        PublishedCheck(
            what=each.figure,
            published=each.published,
            modelled=each.modelled,
            unit={"tok/s": "tokens/s"}.get(each.unit, each.unit),
            within=WITHIN,
            source=each.source,
            remark=each.reason,
        )
        for each in engine_figures(data_table("published_engines.csv"))
        if each.modelled is not None
    )


def _published(name: str) -> float:
    return float(_row(name)["value"])


def _row(name: str) -> Any:
    return next(row for row in data_table("published.csv") if row["id"] == name)


def _output_s(name: str, on: Deployment, *, batch: int, context: int, dtype: str = "bf16") -> float:
    model = load_language_model(name).with_formats(FORMATS[dtype])
    return sum(output_split_s(model, on, batch=batch, context=context).values())


def _input_s(name: str, on: Deployment, *, prompt: int, dtype: str = "bf16") -> float:
    model = load_language_model(name).with_formats(FORMATS[dtype])
    return sum(input_split_s(model, on, prompt=prompt).values())


def _gpt_fast() -> tuple[PublishedCheck, ...]:
    """Decoding at batch 1 after a prompt of 5 tokens; 200 tokens are generated, so about 100 are cached."""
    cached = "batch 1, about 100 cached tokens"
    return tuple(
        PublishedCheck(
            what=f"gpt-fast, {row['model']} in {dtype} on A100, decode",
            published=float(row["value"]),
            modelled=1 / _output_s(row["model"], deployment("a100"), dtype=dtype, batch=1, context=100),
            unit="tokens/s",
            within=within,
            source=row["source"],
            remark=remark,
        )
        for row, dtype, within, remark in (
            (_row("gptfast-7b"), "bf16", BF16_WITHIN, cached),
            (_row("gptfast-8b"), "bf16", BF16_WITHIN, cached),
            (
                _row("gptfast-7b-int8"),
                "int8",
                None,
                "batch 1; int8 weights are not among what was calibrated",
            ),
        )
    )


def _rtx_4090() -> PublishedCheck:
    """A prompt of 1024 tokens, and 1024 tokens generated from nothing: 512 cached on average."""
    on = deployment("RTX-4090")
    output_s = _output_s("llama-3.1-8b", on, batch=1, context=512)
    return PublishedCheck(
        what="llama.cpp, llama-3.1-8b in fp16 on RTX 4090, gap at batch 1",
        published=_published("rtx4090-in") / _published("rtx4090-out"),
        modelled=output_s / _input_s("llama-3.1-8b", on, prompt=1024),
        unit="ratio",
        within=GAP_WITHIN,
        source=_row("rtx4090-in")["source"],
        remark="prompt 1024; 1024 generated",
    )


def _tensorrt_llm() -> tuple[PublishedCheck, ...]:
    """Saturated throughputs of two mixes, separated by one additive cost of an input and an output token.

    With i and o seconds a token, the mix of 128 in and 2048 out gives 2048 / (128 i + 2048 o) output tokens a
    second, the other 128 / (2048 i + 128 o). Modelled at the largest batch that fits the long outputs.
    """
    many, few = _published("trt-8b-128-2048"), _published("trt-8b-2048-128")
    # 128 / 2048 i + o = 1 / many; 2048 / 128 i + o = 1 / few.
    input_s = (1 / few - 1 / many) / (2048 / 128 - 128 / 2048)
    output_s = 1 / many - 128 / 2048 * input_s
    on = deployment("H100-SXM5-80GB", cache_format=CACHE_FORMATS["fp8"])
    context = 128 + 2048 // 2
    model = load_language_model("llama-3.1-8b").with_formats(FORMATS["fp8"])
    batch = largest_batch(model, on, context=context)
    modelled_input_s = _input_s("llama-3.1-8b", on, prompt=2048, dtype="fp8")
    modelled_output_s = _output_s("llama-3.1-8b", on, batch=batch, context=context, dtype="fp8")
    at_batch = f"batch {batch}, the largest that fits at context {context}"
    return tuple(
        PublishedCheck(
            what=f"TensorRT-LLM, llama-3.1-8b in fp8 on H100, saturated, {what}",
            published=published,
            modelled=modelled,
            unit=unit,
            within=GAP_WITHIN,
            source=_row("trt-8b-128-2048")["source"],
            remark=remark,
        )
        for what, published, modelled, unit, remark in (
            ("input", 1 / input_s, 1 / modelled_input_s, "tokens/s", "taken apart from two mixes"),
            ("output", 1 / output_s, 1 / modelled_output_s, "tokens/s", at_batch),
            ("gap", output_s / input_s, modelled_output_s / modelled_input_s, "ratio", at_batch),
        )
    )


@dataclass(frozen=True, kw_only=True)
class DeepSeekDay:
    """A day of serving DeepSeek-V3/R1, by arithmetic on its operator's figures.

    Attributes:
        node_hours: hours of nodes of 8 H800.
        usd: cost of all of them.
        input_usd_per_mtok: at a node's input throughput, cache hits included.
        output_usd_per_mtok: at a node's output throughput.
        gap: output over input cost.
        gap_without_hits: the gap if only computed input tokens count.
    """

    node_hours: float
    usd: float
    input_usd_per_mtok: float
    output_usd_per_mtok: float
    gap: float
    gap_without_hits: float


def deepseek_day() -> DeepSeekDay:
    """The day that the operator published: 226.75 nodes at $16 an hour."""
    tokens_in, tokens_out = _published("deepseek-in"), _published("deepseek-out")
    computed = 1 - _published("deepseek-day-hits") / _published("deepseek-day-input")
    hours = 24 * _published("deepseek-day-hours")
    return DeepSeekDay(
        node_hours=hours,
        usd=hours * NODE_USD_PER_HOUR,
        input_usd_per_mtok=NODE_USD_PER_HOUR / (3600 * tokens_in) * 1e6,
        output_usd_per_mtok=NODE_USD_PER_HOUR / (3600 * tokens_out) * 1e6,
        gap=tokens_in / tokens_out,
        gap_without_hits=computed * tokens_in / tokens_out,
    )


def _deepseek_day() -> tuple[PublishedCheck, ...]:
    """Each published figure of the day, computed from the others."""
    day = deepseek_day()
    figures = (
        ("node-hours", 5442.0, day.node_hours, "h"),
        ("cost", _published("deepseek-day"), day.usd, "$"),
        ("1M input tokens", 0.06, round(day.input_usd_per_mtok, 2), "$"),
        ("1M output tokens", 0.30, round(day.output_usd_per_mtok, 2), "$"),
        ("gap", 4.98, round(day.gap, 2), "ratio"),
        ("gap without cache hits", 2.18, round(day.gap_without_hits, 2), "ratio"),
    )
    return tuple(
        PublishedCheck(
            what=f"DeepSeek's day, {what}",
            published=published,
            modelled=computed,
            unit=unit,
            provenance="published",
            within=EXACT_WITHIN,
            source=_row("deepseek-in")["source"],
            remark="arithmetic on published figures",
        )
        for what, published, computed, unit in figures
    )
