"""Operations per byte and rates of all layers of a measured run, in prefill and by batch in decode.

On several ranks they are those of one rank's share of the layers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from msgspec import ValidationError, convert

from ..core.cases import DecoderLayer
from ..core.collectives import Collective
from ..core.errors import UsageError
from ..core.records import Row, Run
from ..core.run_file import fault_of
from ..core.sweep import Sweep, TokenCases
from ..core.timed_model import TimedModel


@dataclass(frozen=True, kw_only=True)
class LayerRates:
    """What layers reach: their work over the time that it took.

    Attributes:
        operations_per_byte: operations over bytes read and written.
        flop_per_s: operations per second.
        bandwidth_bytes_per_s: bytes per second.
    """

    operations_per_byte: float
    flop_per_s: float
    bandwidth_bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class MeasuredLayers:
    """The layers of a run's model.

    Attributes:
        model: the model.
        prefill: in a prefill.
        decode: in a decode step, by batch.
    """

    model: TimedModel
    prefill: LayerRates
    decode: Mapping[int, LayerRates]


def measured_layers(run: Run) -> MeasuredLayers | None:
    """The layers of a run: of its rows of complete layers, or of all parts where layers are timed in parts.

    Returns:
        None if the run lacks a row, or a gap at its shortest context.

    Raises:
        UsageError: the run's settings describe no model.
    """
    if run.settings["model"].get("layer_groups"):
        return _in_parts(run)
    rows = [(row.case, row) for row in run.rows if row.status == "ok" and isinstance(row.case, DecoderLayer)]
    prefill = [_of_row(row) for case, row in rows if case.phase == "prefill"]
    decode = {case.rows: _of_row(row) for case, row in rows if case.phase == "decode"}
    if not (prefill and decode):
        return None
    model, split = rows[0][0].model, run.parallelism
    if split.gpus > 1:  # these are the layers of one rank, with its share of the sequences
        model = _whole_model(run)
        decode = {
            gap.batch: decode[sequences]
            for gap in run.gaps
            if (sequences := math.ceil(gap.batch / split.data_parallel)) in decode
        }
    return MeasuredLayers(model=model, prefill=prefill[0], decode=dict(sorted(decode.items())))


def _of_row(row: Row) -> LayerRates:
    return LayerRates(
        operations_per_byte=row.case.work().operations_per_byte,
        flop_per_s=row.flop_per_s,
        bandwidth_bytes_per_s=row.bandwidth_bytes_per_s,
    )


def _in_parts(run: Run) -> MeasuredLayers | None:
    context = min((gap.context for gap in run.gaps), default=None)
    gaps = {gap.batch: gap for gap in run.gaps if gap.context == context}
    if context is None:
        return None
    model = _whole_model(run)
    try:
        sweep = convert({**run.settings, "dtype": run.dtype}, Sweep)
    except ValidationError as error:
        raise UsageError(f"run file: {fault_of(error, 'settings')}") from error
    first = next(iter(gaps.values()))
    return MeasuredLayers(
        model=model,
        prefill=_of_token(sweep.input_token(model, first.prompt), first.input_parts_s),
        decode={
            batch: _of_token(sweep.output_token(model, batch, context), gap.output_parts_s)
            for batch, gap in sorted(gaps.items())
        },
    )


def _whole_model(run: Run) -> TimedModel:
    try:
        return convert(run.settings["model"], TimedModel)
    except ValidationError as error:
        raise UsageError(f"run file: {fault_of(error, 'settings')}") from error


def _of_token(token: TokenCases, parts_s: Mapping[str, float]) -> LayerRates:
    """The layers that a token passes through; a part's weights are shared by the tokens of a call."""
    kernels = [
        (use.times / use.tokens, use.case.work())
        for use in token.uses
        if use.part != "lm_head" and not isinstance(use.case, Collective)
    ]
    operations = sum(share * work.operations for share, work in kernels)
    moved = sum(share * work.bytes_total for share, work in kernels)
    layers_s = sum(part_s for part, part_s in parts_s.items() if part not in ("lm_head", "communication"))
    return LayerRates(
        operations_per_byte=operations / moved,
        flop_per_s=operations / layers_s,
        bandwidth_bytes_per_s=moved / layers_s,
    )
