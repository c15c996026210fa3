"""Published throughputs of engines beside the modelled ones.

A row's figure names engine, model, precision and GPUs in words; its shape is "batch 1 ctx 1152 {'tp': 4}" (a
decode step), "batch 64 128/2048 {...}" (requests of 128 input and 2048 output tokens), "prefill 2048 {...}".
"""

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..core.errors import UsageError
from ..core.formats import BF16, CACHE_FORMATS, FORMATS, Format
from ..core.gpus import find_gpu
from ..core.language_model import LanguageModel, load_language_model
from ..core.parallelism import Parallelism
from .deployment import Deployment
from .engine import ONE_GRAPH, Engine
from .memory_fit import largest_batch
from .serving_accuracy import engine_of, weight_format
from .steady_state import steady_state
from .step_time import decode_step_s

COLUMNS = frozenset({"figure", "published", "unit", "shape"})
"""Columns by which a table of published figures is recognised."""

WITHIN = 0.3
"""Relative error beyond which a figure has a remark that says why."""

_SHAPE = re.compile(
    r"(?:batch (?P<batch>\d+) (?:ctx (?P<context>\d+)|(?P<input>\d+)/(?P<output>\d+))"
    r"|prefill (?P<prompt>\d+))"
    r" (?P<options>\{.*\})"
)
_GPUS = re.compile(r"(?P<gpu>.+?)x(?P<count>\d+)")
_ALIASES = {"mixtral": "mixtral-8x7b", "qwen3-235b": "qwen3-235b-a22b"}


@dataclass(frozen=True, kw_only=True)
class EngineFigure:
    """A published figure of an engine and the modelled one.

    Attributes:
        figure: its description.
        published: the published value.
        unit: "tok/s" or "s".
        modelled: the modelled value; None if it cannot be modelled.
        reason: why not, or where the error is large why it may be; empty otherwise.
        source: who published it.
    """

    figure: str
    published: float
    unit: str
    modelled: float | None
    reason: str
    source: str

    @property
    def relative_error(self) -> float | None:
        """Modelled over published, minus 1."""
        return None if self.modelled is None else self.modelled / self.published - 1

    @property
    def within(self) -> bool | None:
        """Whether the error is within `WITHIN`; None if it is not modelled."""
        return None if self.relative_error is None else abs(self.relative_error) <= WITHIN

    def to_json(self) -> dict[str, Any]:
        """The fields by their names, the error, and whether it is within the limit."""
        return {**asdict(self), "relative_error": self.relative_error, "within": self.within}


def engine_figures(rows: Iterable[Mapping[str, str]]) -> list[EngineFigure]:
    """Models each row; one that cannot be modelled is listed with the reason.

    Raises:
        UsageError: a published value is not a positive number.
    """
    return [_figure(row) for row in rows]


def _figure(row: Mapping[str, str]) -> EngineFigure:
    try:
        published = float(row["published"])
    except ValueError:
        published = -1.0
    if not 0 < published < float("inf"):
        raise UsageError(f"published: {row['published']!r} is not a positive number")
    try:
        modelled, reason = _modelled(row), row.get("remark") or ""
    except UsageError as error:
        modelled, reason = None, str(error)
    return EngineFigure(
        figure=row["figure"],
        published=published,
        unit=row["unit"],
        modelled=modelled,
        reason=reason,
        source=row.get("source") or "",
    )


def _modelled(row: Mapping[str, str]) -> float:
    """The figure as modelled.

    Raises:
        UsageError: model, GPU or shape cannot be read.
    """
    shape = _SHAPE.fullmatch(row["shape"].strip())
    if shape is None:
        raise UsageError(f"shape: {row['shape']!r} is not such as 'batch 64 128/2048 {{}}'")
    options = _options(shape["options"])
    model, on = _read_figure(row["figure"], options)
    if shape["prompt"]:
        size = {"input_tokens": int(shape["prompt"]), "output_tokens": 1}
        return steady_state(model, on, concurrency=1, **size).ttft_alone_s
    batch = int(shape["batch"])
    if shape["context"]:
        return batch / decode_step_s(model, on, batch=batch, context=int(shape["context"]))
    size = {"input_tokens": int(shape["input"]), "output_tokens": int(shape["output"])}
    context = sum(size.values())
    fits = largest_batch(model, on, context=context)
    state = steady_state(model, on, concurrency=max(1, min(batch, fits)), **size)
    both = "prompt+gen" in row["figure"]
    return state.requests_per_s * (context if both else size["output_tokens"])


def _options(text: str) -> Mapping[str, Any]:
    """The sizes and dtypes of a shape: {'tp': 4, 'dtype': 'fp8'}."""
    try:
        options = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        options = None
    if not isinstance(options, dict):
        raise UsageError(f"shape: {text!r} is not such as {{'tp': 4}}")
    return options


def _read_figure(figure: str, options: Mapping[str, Any]) -> tuple[LanguageModel, Deployment]:
    """The model and the deployment that a figure names; `options` have sizes and dtypes."""
    words = figure.split()
    model = _first(words, _model, "a model that is known")
    gpu = _first(words, lambda word: find_gpu(_gpu_name(word)), "a GPU of `decodetax devices`")
    weights = _weights(words, options, model)
    cache = options.get("cache", "bf16")
    if cache not in CACHE_FORMATS:
        raise UsageError(f"shape: cache {cache!r} is not one of {', '.join(CACHE_FORMATS)}")
    engine = next((each for each in map(engine_of, words) if each is not ONE_GRAPH), ONE_GRAPH)
    split = _parallelism(options, engine)
    on = Deployment(gpu=gpu, parallelism=split, cache_format=CACHE_FORMATS[cache], engine=engine)
    return (model if weights is None else model.with_formats(weights)), on


def _parallelism(options: Mapping[str, Any], engine: Engine) -> Parallelism:
    tensor, data = options.get("tp", 1), options.get("dp", 1)
    replicas = Parallelism(tensor_parallel=tensor, data_parallel=data)
    whole = replicas.gpus if engine.whole_experts else 1
    return Parallelism(
        tensor_parallel=tensor,
        data_parallel=data,
        pipeline_parallel=options.get("pp", 1),
        expert_parallel=options.get("ep", whole),
    )


def _weights(words: list[str], options: Mapping[str, Any], model: LanguageModel) -> Format | None:
    """The format of the weights; None for a model that is stored in 4 bits as it is published."""
    stored = {group.formats.experts.name for group in model.layer_groups}
    if stored != {BF16.name}:
        return None
    named = next((word.lower() for word in words if word.lower() in FORMATS), "bf16")
    precision = named if named in ("fp4", "mxfp4") else options.get("dtype", named)
    return weight_format(precision, model)


def _first(words: list[str], read: Any, wanted: str) -> Any:
    """The first word that can be read as something."""
    for word in words:
        try:
            return read(word)
        except UsageError:
            continue
    raise UsageError(f"figure: {' '.join(words)!r} does not name {wanted}")


def _model(word: str) -> LanguageModel:
    return load_language_model(_ALIASES.get(word.lower(), word))


def _gpu_name(word: str) -> str:
    found = _GPUS.fullmatch(word)
    return word if found is None else found["gpu"]
