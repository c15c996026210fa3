"""Groups of ranks that exchange, and steps that all ranks take together or not at all."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed

from ..core.record_fields import Status
from .ranks import Ranks
from .runner import Blocked, explain

LEAVE_AFTER_S = 0.25
"""Seconds from a rank's error until it leaves gloo's groups. Others then run into the same error before they
get the one of a rank that has left."""

NCCL_LATER = 3
"""Times as long as the limit until NCCL ends the process. The device's wait ends with an error before."""

_Value = TypeVar("_Value")


@dataclass(frozen=True, kw_only=True)
class Group:
    """The ranks that exchange with this one.

    Attributes:
        made: torch's groups by size. Nothing else may hold them: gloo closes the connections of a group
            when it is freed.
        rank: this one's number among them.
        size: number of them.
        device: device of this rank's tensors.
        hosts, gpus: host of each, and torch's index of its GPU there; None on CPUs.
    """

    made: Mapping[int, Any]
    rank: int
    size: int
    device: torch.device
    hosts: Sequence[str]
    gpus: Sequence[int | None]

    @property
    def process_group(self) -> Any:
        """Torch's group."""
        return self.made[self.size]


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """Why a rank could not take a step.

    Attributes:
        in_exchange: whether it may have left others waiting.
        after_s: seconds that the step took.
        time_of_day_s: when it ended. Errors that follow from another rank's are later than it; the clocks of
            hosts are almost the same.
    """

    status: Status
    reason: str
    in_exchange: bool = False
    after_s: float = 0.0
    time_of_day_s: float = 0.0


class Groups:
    """The groups of contiguous ranks that exchange; made when they are first asked for.

    All ranks must create it and call each method together.

    Args:
        ranks: this rank, and messages to the others.
        dist: replaces `torch.distributed` in tests.
    """

    def __init__(self, ranks: Ranks, *, dist: Any = torch.distributed) -> None:
        self.ranks, self._dist = ranks, dist
        self._hosts = [peer.host for peer in ranks.peers]
        self._gpus = ranks.gather_everywhere(ranks.device.torch_device.index)
        self._made: dict[int, Any] = {}
        self._one = torch.zeros(1, device=ranks.device.torch_device)

    @property
    def local_ranks(self) -> int:
        """Ranks on this one's host."""
        return self._hosts.count(self._hosts[self.ranks.rank])

    def of(self, size: int) -> Group:
        """This rank's group of a size that divides the number of ranks."""
        first = self.ranks.rank // size * size
        self._torch_group(size)
        return Group(
            made=self._made,
            rank=self.ranks.rank - first,
            size=size,
            device=self.ranks.device.torch_device,
            hosts=self._hosts[first : first + size],
            gpus=self._gpus[first : first + size],
        )

    def align(self) -> None:
        """Let all ranks go on together: a CPU waits for the others, a GPU's stream does."""
        everyone = self._torch_group(self.ranks.size)
        if self.ranks.device.kind == "cpu":
            self._dist.barrier(group=everyone)
        else:
            self._dist.all_reduce(self._one, group=everyone)

    def together(self, step: Callable[[], _Value], *, first: bool = False) -> list[_Value]:
        """Take a step on all ranks; what it returned on each.

        Where a rank fails, others may wait for it in the step: over gloo they soon get an error.

        Args:
            step: what to do; may exchange data.
            first: whether it shows if a collective is supported: an error that all ranks share means not.

        Raises:
            Blocked: a rank failed.
        """
        start_s, value, failure = time.perf_counter(), None, None
        limit_s = self.ranks.timeout_s
        late_s = 1 + 0.1 * limit_s  # behind this rank
        try:
            value = step()
        except Blocked as blocked:
            failure = _Failure(status=blocked.status, reason=blocked.reason)
        except Exception as error:  # noqa: BLE001  (a provider may raise anything; the run goes on)
            status, reason = explain(error)
            failure = _Failure(
                status=status,
                reason=reason,
                in_exchange=True,
                after_s=time.perf_counter() - start_s,
                time_of_day_s=time.time(),
            )
        if failure is not None and failure.in_exchange:
            self._leave(after_s=LEAVE_AFTER_S)
            if failure.after_s >= limit_s:
                limit_s = 0.0  # the others have waited as long
        outcomes = self.ranks.gather_everywhere((value, failure), limit_s=limit_s + late_s)
        failures = {rank: found for rank, (_, found) in enumerate(outcomes) if found is not None}
        if failures:
            if any(found.in_exchange for found in failures.values()):
                self._leave(after_s=0)
            raise self._blocked(failures, first=first)
        return [found for found, _ in outcomes]  # type: ignore[misc]

    def _blocked(self, failures: dict[int, _Failure], *, first: bool) -> Exception:
        """What a step's failures mean: that of the rank which failed first is the cause of the others."""
        rank, cause = min(failures.items(), key=lambda item: item[1].time_of_day_s)
        hung = cause.after_s >= self.ranks.timeout_s
        if hung and self.ranks.device.kind != "cpu":
            # Its stream will never be idle again.
            return self.ranks.lost_error(f"hung in a collective: {cause.reason}")
        shared = len({failure.reason for failure in failures.values()}) == 1
        if shared and len(failures) == self.ranks.size and not hung:
            lacks_it = first and cause.status == "failed"
            return Blocked("unsupported" if lacks_it else cause.status, cause.reason)
        return Blocked(cause.status, f"rank {rank}: {cause.reason}")

    def _leave(self, *, after_s: float) -> None:
        """Leave gloo's groups, which no longer work; later steps make new ones.

        Ranks that wait in one get an error.
        """
        if self._made and self.ranks.device.kind == "cpu":
            time.sleep(after_s)
            while self._made:
                self._dist.destroy_process_group(self._made.popitem()[1])

    def _torch_group(self, size: int) -> Any:
        if size not in self._made:
            gloo = self.ranks.device.kind == "cpu"
            limit = timedelta(seconds=self.ranks.timeout_s * (1 if gloo else NCCL_LATER))
            for first in range(0, self.ranks.size, size):
                members = range(first, first + size)
                group = self._dist.new_group([*members], timeout=limit)
                if self.ranks.rank in members:
                    self._made[size] = group
        return self._made[size]
