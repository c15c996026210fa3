"""Ranks that are threads of this process, with fakes of `Ranks` and of `torch.distributed`."""

import itertools
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import torch
from fakes import FakeDevice


class Meeting:
    """Threads that all give a value and get those of all."""

    def __init__(self, size):
        self._barrier, self._values = threading.Barrier(size, timeout=10), [None] * size

    def swap(self, place, value):
        self._values[place] = value
        self._barrier.wait()
        found = list(self._values)
        self._barrier.wait()
        return found

    def abort(self):
        self._barrier.abort()


class FakeGroup:
    def __init__(self, members, number):
        self.members, self.group_name, self.meeting = members, f"group {number}", Meeting(len(members))


class World:
    """What the threads share: meetings for messages, and the groups that were made."""

    def __init__(self, size):
        self.size, self.messages, self.groups, self._lock = size, Meeting(size), {}, threading.Lock()

    def group(self, number, members):
        with self._lock:
            return self.groups.setdefault((number, tuple(members)), FakeGroup(tuple(members), number))


class FakeDist:
    """The collectives of `torch.distributed` in PyTorch 2.12, of one rank; records the calls to it."""

    def __init__(self, world, rank):
        self._world, self._rank, self._numbers, self.log = world, rank, itertools.count(), []

    def new_group(self, members, *, timeout):
        self.log.append(f"new group {members}, {timeout.total_seconds():g} s")
        return self._world.group(next(self._numbers), members)

    def destroy_process_group(self, group):
        self.log.append("leave")
        group.meeting.abort()

    def swap(self, x, group):
        return group.meeting.swap(group.members.index(self._rank), x.clone())

    def barrier(self, *, group):
        self.log.append("barrier")
        group.meeting.swap(group.members.index(self._rank), None)

    def all_reduce(self, x, *, group):
        self.log.append("all_reduce")
        x.copy_(sum(self.swap(x, group)))

    def all_gather_into_tensor(self, out, x, *, group):
        out.copy_(torch.cat(self.swap(x, group)))

    def reduce_scatter_tensor(self, out, x, *, group):
        place = group.members.index(self._rank)
        out.copy_(sum(self.swap(x, group)).chunk(len(group.members))[place])

    def all_to_all_single(self, out, x, *, group):
        place, parts = group.members.index(self._rank), len(group.members)
        out.copy_(torch.cat([sent.chunk(parts)[place] for sent in self.swap(x, group)]))


class FakeRanks:
    """`Ranks` of a thread."""

    timeout_s = 60.0

    def __init__(self, world, rank, device, *, host="here"):
        self.rank, self.size, self.device = rank, world.size, device
        self.backend = "gloo" if device.kind == "cpu" else "nccl"
        self.peers = [types.SimpleNamespace(host=host)] * world.size
        self._messages = world.messages

    def gather_everywhere(self, value, *, limit_s=None):
        self.limit_s = limit_s
        return self._messages.swap(self.rank, value)

    def broadcast(self, value=None):
        return self._messages.swap(self.rank, value)[0]

    def lost_error(self, reason):
        return RuntimeError(f"lost: {reason}")


def on_threads(size, work, *, device=lambda _rank: FakeDevice(), dist=FakeDist):
    """What `work(ranks, dist)` returns on each of so many ranks, in their order."""
    world = World(size)

    def of_rank(rank):
        try:
            return work(FakeRanks(world, rank, device(rank)), dist(world, rank))
        except BaseException:
            world.messages.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return [future.result() for future in [pool.submit(of_rank, rank) for rank in range(size)]]
