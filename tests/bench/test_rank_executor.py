"""A run of rank 0 with a second rank that is a function of the test."""

import dataclasses
import json

import pytest
from decodetax.harness.bench import ceilings, rank_executor, rounds, session
from decodetax.harness.bench.rank_executor import AllRanks, End, TimeKernel
from decodetax.harness.bench.ranks import Peer, RankLostError
from decodetax.harness.bench.run_settings import settings_of
from decodetax.harness.core.collectives import CollectiveRow
from decodetax.harness.core.parallelism import Parallelism
from decodetax.harness.core.records import Row
from decodetax.harness.core.run_file import run_of
from fakes import FakeDevice
from small_cases import tiny_model
from test_session import settings

MODEL = tiny_model(vocab_size=40)


class OneOfTwo:
    """Rank 0. Rank 1 answers each command as `answer(command, answer of rank 0)`."""

    rank, size, backend = 0, 2, "gloo"
    peers = (Peer("here", 1, {}), Peer("here", 2, {}))

    def __init__(self, device, answer):
        self.device, self._answer = device, answer
        self.commands, self.barriers, self.lost, self.closed = [], 0, None, False
        self.watch = self

    def broadcast(self, command):
        self.commands.append(command)

    def gather(self, own):
        return [own, self._answer(self.commands[-1], own)]

    def barrier(self):
        self.barriers += 1

    def loss(self):
        return self.lost

    def disarm(self):
        """Nothing: no signal arrives here."""

    def close(self):
        self.closed = True


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(ceilings, "SQUARE_SIZES", {"cpu": (8,), "cuda": (8,)})
    monkeypatch.setattr(session, "check_in_interpreter", lambda *_args, **_options: iter(()))
    for module in (session, rounds):
        monkeypatch.setattr(module, "ROUNDS", 2)

    def run_collective(case, _groups, _budget, *, number, earlier):
        del earlier
        row = CollectiveRow(
            case=case, provider="gloo", status="ok", samples_s=(1e-3,), rounds=(number,), skew_s=0.0
        )
        return [row]

    monkeypatch.setattr(rank_executor, "run_collective", run_collective)
    monkeypatch.setattr(rank_executor, "Groups", lambda ranks: ranks)


def same(_command, own):
    return own


def run(answer=same, device=None, result=None, **changes):
    asked = settings(
        parallelism=Parallelism(tensor_parallel=2),
        link_bytes=(64,),
        **{"batches": (1,), "contexts": (3,), **changes},
    )
    ranks = OneOfTwo(device or FakeDevice(free_bytes=2**22), answer)
    result = result or session.begin(asked, ranks.device)
    executor = AllRanks(ranks)
    session.measure(result, asked, ranks.device, lambda *_: None, executor=executor)
    return result, ranks, executor


def slower(factor):
    """Rank 1 is slower by a factor in every kernel."""

    def answer(command, own):
        if not isinstance(command, TimeKernel):
            return own
        return [dataclasses.replace(row, samples_s=tuple(factor * s for s in row.samples_s)) for row in own]

    return answer


def test_run_has_the_kernels_of_a_rank_the_collectives_and_one_rank_alone():
    result, ranks, executor = run(slower(3.0))
    assert result.broken is None
    assert {row.case.id for row in result.collectives} >= {"link/all_reduce/n2-e32/bf16"}
    kernels = [row for row in result.rows if row.status == "ok"]
    assert {len(set(row.rounds)) for row in kernels} == {2}
    assert {row.ranks_s for row in kernels} == {((1e-3, 3e-3),) * 2}
    assert {row.time_s.median for row in result.one_rank_rows if row.status == "ok"} == {1e-3}
    [several], [alone] = result.gaps, result.one_rank_gaps
    assert (several.ranks, alone.ranks) == (2, 1)
    assert several.output_parts_s["communication"] > 0
    stored = run_of(json.loads(json.dumps(result.to_json(), allow_nan=False)))
    assert [row.key for row in stored.one_rank_rows] == [row.key for row in result.one_rank_rows]
    assert settings_of(stored).link_bytes == (64,)
    executor.close()
    assert isinstance(ranks.commands[-1], End)
    assert ranks.closed


def test_ranks_start_each_provider_together_also_where_one_is_refused():
    result, ranks, _ = run()
    timed = [command for command in ranks.commands if isinstance(command, TimeKernel)]
    first = [command for command in timed if command.bench["round"] == 0]
    later = len([row for row in result.rows if row.status == "ok"])
    ceilings_together = 1 + 5 + 3  # measured, and those of the dtype again in the second round
    assert len(first) * 2 == len(timed)
    assert ranks.barriers == len(result.rows) + later + ceilings_together


def test_kernel_that_fails_on_one_rank_fails_and_the_run_goes_on():
    def answer(command, own):
        if isinstance(command, TimeKernel) and command.case.operation == "decode_attention":
            return [
                Row(case=row.case, provider=row.provider, status="skipped", reason="out of memory: 5 GB")
                if row.status == "ok"
                else row
                for row in own
            ]
        return own

    result, _, _ = run(answer)
    found = {row.reason for row in result.rows if row.case.operation == "decode_attention"}
    assert "rank 1: out of memory: 5 GB" in found
    assert result.broken is None
    assert result.gaps == []
    assert {row.status for row in result.rows if row.case.operation == "prefill_matmul"} >= {"ok"}


def test_lost_rank_breaks_the_run_and_keeps_what_was_measured():
    def answer(command, own):
        if isinstance(command, TimeKernel) and command.bench["round"] == 1:
            raise RankLostError(1, "here", "died")
        return own

    result, _, _ = run(answer)
    assert result.broken == "rank 1 on here died"
    assert not result.interrupted
    assert {set(row.rounds) == {0} for row in result.rows if row.status == "ok"} == {True}
    again, _, _ = run(result=result)
    assert again.broken is None
    assert {len(set(row.rounds)) for row in again.rows if row.status == "ok"} == {2}
    assert {len(row.ranks_s) for row in again.rows if row.status == "ok"} == {2}


def test_signal_to_all_ranks_is_an_interrupt_and_one_that_follows_a_loss_is_not():
    def interrupted(ranks, lost):
        def answer(command, own):
            if isinstance(command, TimeKernel):
                ranks[0].lost = lost
                raise KeyboardInterrupt
            return own

        return answer

    for lost in (None, RankLostError(1, "here", "died")):
        holder = []
        ranks = OneOfTwo(FakeDevice(free_bytes=2**22), interrupted(holder, lost))
        holder.append(ranks)
        asked = settings(parallelism=Parallelism(tensor_parallel=2), batches=(1,), contexts=(3,))
        result = session.begin(asked, ranks.device)
        session.measure(result, asked, ranks.device, lambda *_: None, executor=AllRanks(ranks))
        assert result.broken == (lost and str(lost))
        assert result.interrupted == (lost is None)


def test_one_rank_alone_is_left_out_where_it_cannot_hold_the_model():
    result, _, _ = run(device=FakeDevice(free_bytes=MODEL.parameters))
    assert result.one_rank_rows == []
    assert result.one_rank_gaps == []
