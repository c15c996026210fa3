"""Measured serving runs beside the modelled steady state: the error of the end-to-end model.

A row is a benchmark of an engine at a concurrency: time to first token (TTFT), time per output token (TPOT).
"""

import functools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.data_table import data_table
from ..core.errors import UsageError
from ..core.formats import BF16, CACHE_FORMATS, FORMATS, FP8_BLOCKS, Format
from ..core.gpus import find_gpu
from ..core.language_model import LanguageModel, load_language_model
from ..core.layers import LatentAttention
from ..core.parallelism import Parallelism
from .deployment import Deployment
from .engine import ONE_GRAPH, Engine, engines
from .steady_state import SteadyState, steady_state

COLUMNS = frozenset(
    {"model", "gpu", "engine", "precision", "input_tokens", "output_tokens", "concurrency", "tpot_ms"}
)
"""Columns by which a table of serving runs is recognised; further ones are optional."""

_SIZES = ("data_parallel", "pipeline_parallel", "expert_parallel")


@dataclass(frozen=True, kw_only=True)
class ServingCheck:
    """A measured run and its modelled steady state.

    Attributes:
        row: the cells of the measured run.
        modelled: the modelled steady state; None if it cannot be modelled.
        reason: why not; empty if it is modelled.
    """

    row: Mapping[str, str]
    modelled: SteadyState | None
    reason: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Engine, GPU and model."""
        return self.row["engine"], self.row["gpu"], self.row["model"]

    @property
    def concurrency(self) -> int:
        """Requests in the system."""
        return int(self.row["concurrency"])

    @property
    def tpot_ratio(self) -> float | None:
        """Modelled over measured time per output token; None if it is not modelled."""
        if self.modelled is None:
            return None
        return self.modelled.tpot_s * 1e3 / float(self.row["tpot_ms"])

    @property
    def ttft_ratio(self) -> float | None:
        """Modelled over measured time to first token; None if one of them is missing."""
        if self.modelled is None or not self.row.get("ttft_ms"):
            return None
        return self.modelled.ttft_s * 1e3 / float(self.row["ttft_ms"])

    @property
    def fitted(self) -> bool:
        """Whether constants of the engine were fitted to this row."""
        return is_fitted(self.row)

    def to_json(self) -> dict[str, Any]:
        """The run's cells, the modelled figures in milliseconds, and their ratios."""
        state = self.modelled
        return {
            **self.row,
            "fitted": self.fitted,
            "modelled_ttft_ms": None if state is None else state.ttft_s * 1e3,
            "modelled_tpot_ms": None if state is None else state.tpot_s * 1e3,
            "ttft_ratio": self.ttft_ratio,
            "tpot_ratio": self.tpot_ratio,
            "reason": self.reason,
        }


def is_fitted(row: Mapping[str, str]) -> bool:
    """Whether a row is one of those that the engines' constants were fitted to.

    These are the committed runs on H200 of every engine's own model with 1 and 4 GPUs, and of SGLang, whose
    runs are all on 8, those with outputs as long as prompts.
    """
    if tuple(row.get(column, "") for column in _ROW) not in _committed():
        return False
    engine = row["engine"], row["gpu"], row["model"]
    if engine == ("sglang", "H200-SXM-141GB", "deepseek-v3"):
        return row["input_tokens"] == row["output_tokens"]
    on_h200 = engine[1:] == ("H200-SXM-141GB", "llama-3.1-70b")
    return on_h200 and row["tensor_parallel"] in ("1", "4")


_ROW = (*sorted(COLUMNS), "tensor_parallel")


@functools.cache
def _committed() -> frozenset[tuple[str, ...]]:
    return frozenset(tuple(row[column] for column in _ROW) for row in data_table("serving.csv"))


def serving_checks(rows: Iterable[Mapping[str, str]], engine: Engine | None = None) -> list[ServingCheck]:
    """Models each row, on an engine in place of its own if one is given.

    A row that cannot be modelled is listed with the reason.

    Raises:
        UsageError: a cell that must be a number is none, or a time is not positive; names the line of a file
            whose first is the header.
    """
    found = []
    for line, row in enumerate(rows, start=2):
        try:
            sizes = _numbers(row)
        except UsageError as error:
            raise UsageError(f"line {line}: {error}") from None
        try:
            model, on = _deployment(row, sizes, engine or engine_of(row["engine"]))
            state = steady_state(
                model,
                on,
                input_tokens=sizes["input_tokens"],
                output_tokens=sizes["output_tokens"],
                concurrency=sizes["concurrency"],
            )
        except UsageError as error:
            found.append(ServingCheck(row=row, modelled=None, reason=str(error)))
        else:
            found.append(ServingCheck(row=row, modelled=state, reason=""))
    return found


def _numbers(row: Mapping[str, str]) -> dict[str, int]:
    """The sizes of a row.

    Raises:
        UsageError: a size is not a positive integer, or a time not a positive number; names the column.
    """
    sizes = {}
    for column in ("input_tokens", "output_tokens", "concurrency", "tensor_parallel", *_SIZES):
        text = row.get(column) or _if_empty(column)
        if not text.isdecimal() or not int(text):
            raise UsageError(f"{column}: {text!r} is not a positive integer")
        sizes[column] = int(text)
    for column in ("ttft_ms", "tpot_ms"):
        text = row.get(column) or _if_empty(column)
        try:
            valid = 0 < float(text) < float("inf")
        except ValueError:
            valid = False
        if not valid:
            raise UsageError(f"{column}: {text!r} is not a positive number")
    return sizes


def _if_empty(column: str) -> str:
    return "" if column in COLUMNS else "1"


def _deployment(
    row: Mapping[str, str], sizes: Mapping[str, int], engine: Engine
) -> tuple[LanguageModel, Deployment]:
    """The model as its precision stores it, and the engine on its GPUs."""
    model = load_language_model(row["model"])
    weights = weight_format(row["precision"], model)
    split = {name: sizes[name] for name in ("tensor_parallel", *_SIZES)}
    if not row.get("expert_parallel") and engine.whole_experts:
        split["expert_parallel"] = sizes["tensor_parallel"] * sizes["data_parallel"]
    on = Deployment(
        gpu=find_gpu(row["gpu"]),
        parallelism=Parallelism(**split),
        cache_format=_cache_format(row, model, weights),
        engine=engine,
    )
    return model.with_formats(weights), on


def engine_of(name: str) -> Engine:
    """The engine of a name; one that is not known has no constants of its own."""
    plain = name.lower().replace("-", "").replace("_", "").replace(" ", "")
    aliases = {"tensorrtllm": "trtllm"}
    return engines().get(aliases.get(plain, plain), ONE_GRAPH)


def weight_format(precision: str, model: LanguageModel) -> Format:
    """The format of a precision; 8-bit DeepSeek is stored in blocks with a scale each.

    Raises:
        UsageError: the precision is unknown; names the column and what it may be.
    """
    plain = {"bfloat16": "bf16", "float16": "fp16"}.get(precision.lower(), precision.lower())
    if plain in ("fp8_block", "fp8 blocks") or (plain == "fp8" and _is_latent(model)):
        return FP8_BLOCKS
    if plain not in FORMATS:
        raise UsageError(f"precision: {precision!r} is not one of {', '.join(FORMATS)}")
    return FORMATS[plain]


def _is_latent(model: LanguageModel) -> bool:
    return any(isinstance(group.attention, LatentAttention) for group in model.layer_groups)


def _cache_format(row: Mapping[str, str], model: LanguageModel, weights: Format) -> Format:
    """The stated format of the KV cache; else 8 bits beside narrow products, except for latents."""
    stated = row.get("kv_precision")
    if stated:
        if stated not in CACHE_FORMATS:
            raise UsageError(f"kv_precision: {stated!r} is not one of {', '.join(CACHE_FORMATS)}")
        return CACHE_FORMATS[stated]
    narrow = weights.multiplied_in != "bf16"
    return CACHE_FORMATS["fp8"] if narrow and not _is_latent(model) else BF16


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Errors of several rows.

    Attributes:
        rows: number of rows.
        median: median of |modelled / measured - 1|.
        p90: its 90th percentile.
        bias: median of modelled / measured.
    """

    rows: int
    median: float
    p90: float
    bias: float


def errors_of(ratios: Sequence[float]) -> Errors | None:
    """The errors of ratios of modelled to measured; None without any."""
    if not ratios:
        return None
    off = sorted(abs(ratio - 1) for ratio in ratios)
    position = 0.9 * (len(off) - 1)
    below = int(position)
    above = min(below + 1, len(off) - 1)
    p90 = off[below] + (position - below) * (off[above] - off[below])
    return Errors(rows=len(off), median=statistics.median(off), p90=p90, bias=statistics.median(ratios))
