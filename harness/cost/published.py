"""Published end-to-end figures, and what the model makes of the same deployment."""

from dataclasses import dataclass
from typing import Any

from ..core.data_table import data_table
from ..core.language_model import load_language_model
from .deployment import Deployment, deployment
from .prediction import input_split_s, largest_batch, output_split_s

BF16_WITHIN, GAP_WITHIN, EXACT_WITHIN = 0.15, 0.25, 0.005
"""What each kind of figure is held to; arithmetic on published figures agrees but for their rounding."""

NODE_USD_PER_HOUR = 16.0
"""Of 8 H800 at the $2 a GPU-hour that DeepSeek assumes."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One published figure, or one that follows from several by arithmetic.

    Attributes:
        what: the figure.
        published: its value.
        modelled: the model's, or the arithmetic's.
        unit: of both.
        provenance: "modelled", or "published" where it is arithmetic on published figures alone.
        within: what the relative error is held to; None where the figure only stands beside the model's.
        source: whose figure it is.
        remark: the setup, and why a figure is missed.
    """

    what: str
    published: float
    modelled: float
    unit: str
    provenance: str
    within: float | None
    source: str
    remark: str

    @property
    def relative_error(self) -> float:
        """Modelled over published, less 1."""
        return self.modelled / self.published - 1

    @property
    def kept(self) -> bool | None:
        """Whether the error is within what it is held to; None where it is held to nothing."""
        return None if self.within is None else abs(self.relative_error) <= self.within

    def to_json(self) -> dict[str, Any]:
        """The fields by their names."""
        return {
            "what": self.what,
            "published": self.published,
            "modelled": self.modelled,
            "unit": self.unit,
            "provenance": self.provenance,
            "relative_error": self.relative_error,
            "within": self.within,
            "kept": self.kept,
            "source": self.source,
            "remark": self.remark,
        }


def published_comparisons() -> tuple[Comparison, ...]:
    """Every figure that the model is checked against, those that it misses included."""
    return (*_gpt_fast(), *_rtx_4090(), *_tensorrt_llm(), *_deepseek_day())


def _published(name: str) -> float:
    return float(_row(name)["value"])


def _row(name: str) -> Any:
    return next(row for row in data_table("published.csv") if row["id"] == name)


def _output_s(model: str, on: Deployment, *, batch: int, context: int) -> float:
    return sum(output_split_s(load_language_model(model), on, batch=batch, context=context).values())


def _input_s(model: str, on: Deployment, *, prompt: int) -> float:
    return sum(input_split_s(load_language_model(model), on, prompt=prompt).values())


def _gpt_fast() -> tuple[Comparison, ...]:
    """Decoding at batch 1 after a prompt of 5 tokens; 200 tokens are generated, so about 100 are cached."""
    found = []
    for name, dtype, within, remark in (
        ("gptfast-7b", "bf16", BF16_WITHIN, "batch 1, about 100 cached tokens"),
        ("gptfast-8b", "bf16", BF16_WITHIN, "batch 1, about 100 cached tokens"),
        (
            "gptfast-7b-int8",
            "int8",
            None,
            "batch 1; int8 weights are not among what was calibrated",
        ),
    ):
        row = _row(name)
        on = deployment("A100-SXM4-80GB", dtype=dtype)
        modelled = 1 / _output_s(row["model"], on, batch=1, context=100)
        found.append(
            Comparison(
                what=f"gpt-fast, {row['model']} in {dtype} on A100, decode",
                published=_published(name),
                modelled=modelled,
                unit="tokens/s",
                provenance="modelled",
                within=within,
                source=row["source"],
                remark=remark,
            )
        )
    return tuple(found)


def _rtx_4090() -> tuple[Comparison, ...]:
    """A prompt of 1024 tokens, and 1024 tokens generated from nothing: 512 cached on average."""
    on = deployment("RTX-4090")
    input_s = _input_s("llama-3.1-8b", on, prompt=1024)
    output_s = _output_s("llama-3.1-8b", on, batch=1, context=512)
    facts = {"provenance": "modelled", "source": _row("rtx4090-in")["source"]}
    return (
        Comparison(
            what="llama.cpp, llama-3.1-8b in fp16 on RTX 4090, gap at batch 1",
            published=_published("rtx4090-in") / _published("rtx4090-out"),
            modelled=output_s / input_s,
            unit="ratio",
            within=GAP_WITHIN,
            remark="prompt 1024; 1024 generated",
            **facts,
        ),
    )


def _tensorrt_llm() -> tuple[Comparison, ...]:
    """Saturated throughputs of two mixes, taken apart by one additive cost an input and an output token.

    With i and o seconds a token, the mix of 128 in and 2048 out gives 2048 / (128 i + 2048 o) output tokens a
    second, the other 128 / (2048 i + 128 o). Modelled at the largest batch that fits the long outputs.
    """
    many, few = _published("trt-8b-128-2048"), _published("trt-8b-2048-128")
    # 128 / 2048 i + o = 1 / many; 2048 / 128 i + o = 1 / few.
    input_s = (1 / few - 1 / many) / (2048 / 128 - 128 / 2048)
    output_s = 1 / many - 128 / 2048 * input_s
    on = deployment("H100-SXM5-80GB", dtype="fp8", cache_dtype="fp8")
    context = 128 + 2048 // 2
    batch = largest_batch(load_language_model("llama-3.1-8b"), on, context=context)
    modelled_input_s = _input_s("llama-3.1-8b", on, prompt=2048)
    modelled_output_s = _output_s("llama-3.1-8b", on, batch=batch, context=context)
    facts: dict[str, Any] = {
        "provenance": "modelled",
        "within": GAP_WITHIN,
        "source": _row("trt-8b-128-2048")["source"],
    }
    remark = f"batch {batch}, the largest that fits at context {context}"
    what = "TensorRT-LLM, llama-3.1-8b in fp8 on H100, saturated"
    return (
        Comparison(
            what=f"{what}, input",
            published=1 / input_s,
            modelled=1 / modelled_input_s,
            unit="tokens/s",
            remark="taken apart from two mixes",
            **facts,
        ),
        Comparison(
            what=f"{what}, output",
            published=1 / output_s,
            modelled=1 / modelled_output_s,
            unit="tokens/s",
            remark=remark,
            **facts,
        ),
        Comparison(
            what=f"{what}, gap",
            published=output_s / input_s,
            modelled=modelled_output_s / modelled_input_s,
            unit="ratio",
            remark=remark,
            **facts,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class DeepSeekDay:
    """A day of DeepSeek-V3/R1 by arithmetic on what its operator published.

    Attributes:
        node_hours: of nodes of 8 H800.
        usd: of all of them.
        input_usd_per_mtok: at a node's input throughput, cache hits included.
        output_usd_per_mtok: at a node's output throughput.
        gap: the two's ratio.
        gap_without_hits: the same where only input tokens that were computed count.
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


def _deepseek_day() -> tuple[Comparison, ...]:
    """What is known of the day, each from the other published figures."""
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
        Comparison(
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
