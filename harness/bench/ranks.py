"""The ranks of a run over torch.distributed: their group, messages between them, and which one was lost.

Messages go over gloo, also beside NCCL. They are polled, so that a signal interrupts each wait.
"""

import contextlib
import json
import math
import os
import pickle
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Work

from ..core.errors import FailureError, UsageError
from ..core.rank_process import rank_and_size
from .device import Device, open_device
from .environment import describe_rank
from .rank_watch import ALONE_S, Report, Watch, open_store

GLOO_LIMIT = timedelta(days=7)
"""Timeout of gloo for messages, which `Ranks` polls with limits of its own."""

LONGEST_PAUSE_S, LONGEST_BARRIER_PAUSE_S = 0.01, 50e-6
"""Most seconds between two looks at a message or a barrier; short ones are looked at more often."""

ENDED = ("", "Z", "X")
"""States of a process that has ended, as `_process_state` has them."""

SAME_FACTS = ("kind", "device", "compute_capability", "decodetax", "torch", "triton", "cuda")
"""Facts of the environment that all ranks share."""

_Value = TypeVar("_Value")


class RankLostError(FailureError):
    """A rank that died, failed or no longer answers; one line that names it, its host and why."""

    def __init__(self, rank: int, host: str, reason: str) -> None:
        super().__init__(f"rank {rank} on {host} {reason}")
        self.rank, self.host, self.reason = rank, host, reason


@dataclass(frozen=True)
class Peer:
    """A rank: its host, its process there, and the facts of its environment."""

    host: str
    pid: int
    facts: dict[str, Any]


class Ranks:
    """This process as one of several ranks of a run.

    Attributes:
        rank, size: number of this rank and of all.
        local_rank: number of this rank on its host.
        device: what it times.
        backend: of the collectives that are timed: "gloo" on CPUs, "nccl" on GPUs.
        timeout_s: seconds after which a rank that does not answer is lost.
        peers: host and process of each rank.
        watch: ends this rank with the others.
    """

    def __init__(self, device: Device, *, rank: int, size: int, local_rank: int, timeout_s: float) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.device, self.timeout_s = device, timeout_s
        self.backend = "nccl" if device.kind == "cuda" else "gloo"
        self.peers: list[Peer] = []
        self._messages, self._group = 0, None
        self._reports: dict[int, Report] | None = None
        self._loss: FailureError | None = None
        self.watch = Watch(open_store("run", timeout_s), rank, lambda: self._messages)

    @classmethod
    def open(cls, device: Device, *, timeout_s: float) -> Self:
        """Join the group that torchrun's environment describes.

        Args:
            device: what this rank times.
            timeout_s: seconds after which a rank that does not answer, also here, is lost.

        Raises:
            RankLostError: not all ranks joined.
            UsageError: a rank has another device or other versions than rank 0.
        """
        found = rank_and_size()
        if found is None:
            raise RuntimeError("RANK and WORLD_SIZE do not describe one of several ranks")
        rank, size = found
        ranks = cls(device, rank=rank, size=size, local_rank=local_rank(), timeout_s=timeout_s)
        try:
            ranks._meet()
            ranks._connect()
        except KeyboardInterrupt:
            if (lost := ranks.loss()) is not None:
                raise lost from None
            if ranks.watch.terminated_s is not None:
                raise FailureError("a signal ended the run before all ranks had joined") from None
            raise
        return ranks

    def _connect(self) -> None:
        """Make torch's groups.

        Raises:
            RankLostError: not all ranks joined.
        """
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if self.backend == "nccl" else "gloo",
                store=open_store("group", self.timeout_s),
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(seconds=self.timeout_s),
            )
            self._group = dist.new_group(backend="gloo", timeout=GLOO_LIMIT)
        except RuntimeError as error:
            raise self.lost_error(f"did not join within {self.timeout_s:g} s") from error

    def _meet(self) -> None:
        """Exchange who the ranks are, over the store: there is no group of unequal devices.

        Raises:
            RankLostError: a rank did not come.
            UsageError: a rank has another device or other versions than rank 0.
        """
        own = Peer(socket.gethostname(), os.getpid(), describe_rank(self.device))
        self.watch.store.set(f"peer/{self.rank}", json.dumps(asdict(own)))
        if self.rank == 0:
            words = [self._word(f"peer/{rank}", rank) for rank in range(1, self.size)]
            peers = [own, *(msgspec.json.decode(word, type=Peer) for word in words)]
            require_same_facts(peers)
            self.watch.store.set("peers", json.dumps(list(map(asdict, peers))))
        self.peers = msgspec.json.decode(self._word("peers", 0), type=list[Peer])

    def _word(self, key: str, rank: int) -> bytes:
        """What a rank leaves in the store.

        Raises:
            RankLostError: it ended before, or the time is over.
        """
        store, end_s = self.watch.store, time.monotonic() + self.timeout_s
        while not store.check([key]):
            if self.rank == 0 and store.check([f"report/{rank}"]):
                raise self.lost_error("ended")
            if time.monotonic() > end_s:
                raise RankLostError(rank, "an unknown host", f"did not join within {self.timeout_s:g} s")
            time.sleep(0.02)
        return store.get(key)

    def close(self) -> None:
        """Leave the group, once all ranks do."""
        dist.destroy_process_group()

    def broadcast(self, value: _Value | None = None, *, limit_s: float | None = None) -> Any:
        """The value of rank 0, on every rank; it can be pickled.

        Args:
            value: on rank 0, what all get; ignored elsewhere.
            limit_s: seconds to wait for it; None means `timeout_s`.

        Raises:
            RankLostError: a rank was lost.
        """
        size, payload = torch.zeros(1, dtype=torch.int64), torch.empty(0, dtype=torch.uint8)
        if self.rank == 0:
            payload = _packed(value)
            size[0] = payload.numel()
        self._finish(dist.broadcast(size, 0, group=self._group, async_op=True), limit_s)
        if self.rank > 0:
            payload = torch.empty(int(size), dtype=torch.uint8)
        self._finish(dist.broadcast(payload, 0, group=self._group, async_op=True), limit_s)
        return value if self.rank == 0 else _unpacked(payload)

    def receive(self) -> Any:
        """What rank 0 broadcasts next, however long it takes until then."""
        return self.broadcast(limit_s=math.inf)

    def gather(self, value: _Value) -> list[_Value] | None:
        """The values of all ranks in their order, on rank 0; None elsewhere. They can be pickled.

        Raises:
            RankLostError: a rank was lost.
        """
        values = self.gather_everywhere(value)
        return values if self.rank == 0 else None

    def gather_everywhere(self, value: _Value, *, limit_s: float | None = None) -> list[_Value]:
        """The values of all ranks in their order, on every rank.

        Args:
            value: of this rank; can be pickled.
            limit_s: seconds to wait for the others; None means `timeout_s`.

        Raises:
            RankLostError: a rank was lost.
        """
        payload = _packed(value)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        own = torch.tensor([payload.numel()])
        self._finish(dist.all_gather(sizes, own, group=self._group, async_op=True), limit_s)
        padded = torch.zeros(max(map(int, sizes)), dtype=torch.uint8)
        padded[: payload.numel()] = payload
        found = [torch.empty_like(padded) for _ in range(self.size)]
        self._finish(dist.all_gather(found, padded, group=self._group, async_op=True), limit_s)
        return [_unpacked(each[: int(size)]) for each, size in zip(found, sizes, strict=True)]

    def barrier(self) -> None:
        """Wait until all ranks are here.

        Raises:
            RankLostError: a rank was lost.
        """
        here = torch.zeros(1)
        self._finish(
            dist.all_reduce(here, group=self._group, async_op=True), most_pause_s=LONGEST_BARRIER_PAUSE_S
        )

    def lost_error(self, reason: str) -> FailureError:
        """The error of the rank that is to blame for a message that failed; on others than rank 0, of any.

        Args:
            reason: what a rank did that still runs, but is behind the others.
        """
        if self.rank > 0:
            return FailureError(f"another rank {reason}")
        return self._ended_first() or self._behind(reason)

    def loss(self) -> FailureError | None:
        """Ends the other ranks; the error of one that had ended before or was stopped, if there is one.

        It is called on rank 0 once no more is measured. A process on this host that does not answer is
        killed.
        """
        return self._ended_first() or self._of_kind("left", lambda text: f"left, as {text.partition(' ')[2]}")

    def leave(self, error: Exception) -> None:
        """Say, on another rank than 0, that this one ends because of a message that failed."""
        kind = "ended" if self.watch.over() else "left"  # once the run is over, connections close
        self.watch.report(kind, f"{self._messages} {error}")

    def _ended_first(self) -> FailureError | None:
        """The error of the rank that ended first, as far as its report, or the lack of one, tells."""
        self.watch.disarm()
        if self._reports is None:
            self._reports = self.watch.reports(self.size, self._gone)
            self._loss = self._blamed(self._reports)
        return self._loss

    def _blamed(self, reports: Mapping[int, Report]) -> FailureError | None:
        if self.watch.orphaned:
            return FailureError("the process that started the ranks ended")
        if (failed := self._of_kind("failed", "failed: {}".format)) is not None:
            return failed
        for rank in range(1, len(self.peers)):  # of those that joined
            if rank not in reports:
                return RankLostError(rank, self._host(rank), self._end_of(rank))
        for rank, report in sorted(reports.items()):
            if report.kind == "terminated":
                when_s, name = report.text.split()
                if not self._terminated_with(float(when_s), rank):
                    return RankLostError(rank, self._host(rank), f"was ended by {name}")
        return None

    def _of_kind(self, kind: str, words: Callable[[str], str]) -> RankLostError | None:
        """The error of the first rank whose report is of a kind, if there is one, with words for its text."""
        for rank, report in sorted((self._reports or {}).items()):
            if report.kind == kind:
                return RankLostError(rank, self._host(rank), words(report.text))
        return None

    def _behind(self, reason: str) -> RankLostError:
        """The error of the rank that has taken part in the fewest messages."""
        found = (self._reports or {}).items()
        counts = {rank: int(r.text.split()[0]) for rank, r in found if r.kind in ("ended", "left")}
        rank = min(counts, key=lambda each: counts[each], default=0)
        return RankLostError(rank, self._host(rank), reason)

    def _terminated_with(self, when_s: float, rank: int) -> bool:
        """Whether rank 0 got such a signal together with another rank."""
        own_s = self.watch.terminated_s
        same_host = self._host(rank) == self._host(0)
        return own_s is not None and (not same_host or abs(own_s - when_s) < ALONE_S)

    def _gone(self, rank: int) -> bool:
        """Whether the process of a rank is known to have ended."""
        here = bool(self.peers) and self._host(rank) == self._host(0)
        return here and _process_state(self.peers[rank].pid) in ENDED

    def _end_of(self, rank: int) -> str:
        """What became of a rank that does not say anything; on this host, its process is killed."""
        if not self.peers or self._host(rank) != self._host(0):
            return "no longer answers"
        pid = self.peers[rank].pid
        state = _process_state(pid)
        if state in ENDED:
            return f"died (process {pid} was killed or crashed)"
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return f"was stopped (process {pid})" if state == "T" else f"no longer answers (process {pid})"

    def _host(self, rank: int) -> str:
        return self.peers[rank].host if self.peers else "an unknown host"

    def _finish(
        self, work: Work, limit_s: float | None = None, *, most_pause_s: float = LONGEST_PAUSE_S
    ) -> None:
        """Wait for a message.

        Raises:
            RankLostError: it failed, or took longer than the limit.
        """
        limit_s = self.timeout_s if limit_s is None else limit_s
        start_s = time.monotonic()
        while not work.is_completed():
            waited_s = time.monotonic() - start_s
            if waited_s > limit_s:
                raise self.lost_error(f"did not answer within {limit_s:g} s")
            time.sleep(min(waited_s / 100, most_pause_s))
        try:
            work.wait()
        except RuntimeError as error:
            raise self.lost_error("closed its connection") from error
        self._messages += 1


def require_same_facts(peers: Sequence[Peer]) -> None:
    """Require that all ranks have the device and the versions of rank 0.

    Raises:
        UsageError: one has not.
    """
    first = peers[0].facts
    for rank, peer in enumerate(peers):
        for name in SAME_FACTS:
            if peer.facts.get(name) != first.get(name):
                raise UsageError(
                    f"rank {rank} on {peer.host} has {name} {peer.facts.get(name)!r}, rank 0 on "
                    f"{peers[0].host} has {first.get(name)!r}; all ranks need the same"
                )


def device_of_rank(argument: str, *, cuda: Any = torch.cuda) -> Device:
    """The device of this rank, as `--device` names it for all: auto, cpu or cuda, each with its own GPU.

    Raises:
        UsageError: another word, or more ranks on this machine than GPUs.
    """
    count, ranks = cuda.device_count() if cuda.is_available() else 0, local_size()
    if argument == "cpu" or (argument == "auto" and count == 0):
        return open_device("cpu", sharers=ranks)
    if argument in ("auto", "cuda") and 0 < count < ranks:
        raise UsageError(
            f"--device: {ranks} ranks on this machine need as many GPUs, torch finds {count} here; cpu works"
        )
    own_gpu = count > 0 and argument in ("auto", "cuda")
    return open_device(f"cuda:{local_rank()}" if own_gpu else argument, cuda=cuda)


def local_size() -> int:
    """Number of ranks on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def local_rank() -> int:
    """The number of this rank on its host."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _packed(value: object) -> torch.Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)


def _unpacked(payload: torch.Tensor) -> Any:
    return pickle.loads(payload.numpy().tobytes())  # noqa: S301  (of a rank of the same run)


def _process_state(pid: int) -> str:
    """The state of a process in one letter, as proc_pid_stat(5) has it; empty if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[0]
