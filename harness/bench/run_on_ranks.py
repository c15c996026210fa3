"""A run of several ranks: what rank 0 and the others do beside measuring."""

import contextlib
import os
from collections.abc import Iterator

from ..core import options
from ..core.errors import FAILED, INTERRUPTED, MISUSE, FailureError, UsageError, one_line
from ..core.rank_process import end_process, leave_note
from ..core.records import Run
from .device import Device
from .rank_executor import AllRanks, follow
from .rank_watch import report_failure
from .ranks import Ranks, device_of_rank
from .run_writer import RunWriter

STUCK = "it was interrupted in a call that did not return"


@contextlib.contextmanager
def joined(device: Device, result: Run, writer: RunWriter, *, timeout_s: float) -> Iterator[AllRanks]:
    """Join the other ranks as rank 0, and end them afterwards; each rank's environment goes into the run.

    Afterwards signals no longer interrupt this process, so that it writes and prints what was measured.

    Args:
        device: rank 0's.
        result: the run, which is kept whatever happens.
        writer: writes it.
        timeout_s: seconds after which a rank that does not answer is lost.

    Raises:
        RankLostError: not all ranks joined.
        UsageError: a rank has another device or other versions than rank 0.
    """
    leave_note("run_file", os.fsdecode(writer.so_far))
    ranks = Ranks.open(device, timeout_s=timeout_s)
    result.environment = {
        **result.environment,
        "ranks": {str(rank): {"host": peer.host, **peer.facts} for rank, peer in enumerate(ranks.peers)},
    }

    def end_at_once() -> None:
        lost = ranks.loss()
        result.broken, result.interrupted = None if lost is None else str(lost), lost is None
        place, problem = writer.finish(result)
        options.complain(problem or f"the run ended early: {lost or STUCK}; what was measured is in {place}")
        end_process(FAILED if lost is not None else INTERRUPTED)

    ranks.watch.at_forced_end = end_at_once
    executor = AllRanks(ranks)
    try:
        yield executor
    except BaseException:
        if (lost := ranks.loss()) is not None:
            raise lost from None
        raise
    if result.interrupted or result.broken is not None:
        ranks.loss()
    else:
        executor.close()


def follow_rank_0(device: str, timeout_s: float) -> int:
    """Execute what rank 0 asks for, as one of the other ranks; the exit code."""
    try:
        ranks = Ranks.open(device_of_rank(device), timeout_s=timeout_s)
    except (UsageError, FailureError) as error:
        report_failure(str(error))
        return MISUSE if isinstance(error, UsageError) else FAILED
    try:
        with options.user_code():
            follow(ranks)
    except FailureError as error:
        ranks.leave(error)
        return FAILED
    except Exception as error:  # noqa: BLE001  (rank 0 says it, whatever it is)
        ranks.watch.report("failed", one_line(error))
        return FAILED
    ranks.close()
    return 0
