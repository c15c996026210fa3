"""What several ranks' ceilings and rows are together, and what one rank alone can time."""

from collections.abc import Sequence
from dataclasses import replace

from ..core.arena import memory_bytes
from ..core.parallelism import ONE_GPU
from ..core.record_fields import Status
from ..core.records import Ceiling, Row
from ..core.sweep import Sweep
from ..core.timed_model import TimedModel
from ..core.work import ELEMENT_BYTES

WORST_FIRST: Sequence[Status] = ("failed", "skipped", "unsupported")


def one_rank_sweep(model: TimedModel, sweep: Sweep, free_bytes: int) -> Sweep | None:
    """The batches that one device can decode: it holds all weights, all caches and the largest case.

    None if there is no such batch.
    """
    weights = model.parameters * ELEMENT_BYTES[sweep.dtype]

    def needed(batch: int) -> float:
        tokens = [alone.output_token(model, batch, context) for context in alone.contexts]
        caches = [
            sum(use.times * use.case.work().bytes_read for use in token.uses if use.case in token.attentions)
            for token in tokens
        ]
        return weights + max(caches) + max(map(memory_bytes, (*tokens[0].matmuls, *tokens[-1].attentions)))

    alone = replace(sweep, parallelism=ONE_GPU)
    batches = tuple(batch for batch in sweep.batches if needed(batch) <= free_bytes)
    return replace(alone, batches=batches) if batches else None


def slowest_ceiling(ceilings: Sequence[Ceiling]) -> Ceiling:
    """The ceiling of the rank with the lowest rate; one without a rate, with its rank in the reason."""
    for rank, ceiling in enumerate(ceilings):
        if ceiling.rate is None:
            shared = all(other.reason == ceiling.reason for other in ceilings)
            return ceiling if shared else replace(ceiling, reason=f"rank {rank}: {ceiling.reason}")
    return min(ceilings, key=lambda ceiling: ceiling.rate or 0.0)


def merged_row(rows: Sequence[Row]) -> Row:
    """The row of all ranks, of one round.

    If all are ok, it is that of the slowest rank, with the median seconds of each and the largest error. A
    rank that was not ok decides otherwise.
    """
    for status in WORST_FIRST:
        for rank, row in enumerate(rows):
            if row.status == status:
                shared = all(other.reason == row.reason for other in rows)
                return row if shared else replace(row, reason=f"rank {rank}: {row.reason}")
    medians_s = tuple(row.time_s.median for row in rows)
    slowest = rows[medians_s.index(max(medians_s))]
    return replace(
        slowest,
        relative_error=max(row.relative_error or 0.0 for row in rows),
        throttle_reasons=tuple(dict.fromkeys(reason for row in rows for reason in row.throttle_reasons)),
        ranks_s=(medians_s,),
    )
