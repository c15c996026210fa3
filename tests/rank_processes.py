"""Starts processes that are the ranks of a run on this machine."""

import contextlib
import multiprocessing
import os
import pickle
import traceback

import torch
from torch.distributed import TCPStore


def on_ranks(size, work, *arguments, timeout_s=10.0, kind="cpu"):
    """What `work(ranks, *arguments)` returns on each of so many ranks, in their order.

    Args:
        size: number of ranks.
        work: a function of a module; gets the `Ranks` of its process.
        arguments: can be pickled.
        timeout_s: of a collective and of a message.
        kind: "cpu" for gloo; "cuda" for NCCL, a GPU for each rank.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for rank in range(size):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(
            target=_rank, args=(rank, size, store.port, timeout_s, kind, sender, work, arguments), daemon=True
        )
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    try:
        results = [_received(pipe, 60 + 3 * timeout_s) for pipe in pipes]
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    failures = [text for kind, text in results if kind == "failed"]
    assert not failures, "\n".join(failures)
    return [value for _, value in results]


def _received(pipe, limit_s):
    if not pipe.poll(limit_s):
        return "failed", "no answer"
    return pickle.loads(pipe.recv_bytes())  # noqa: S301  (of a process of this test)


def _rank(rank, size, port, timeout_s, kind, sender, work, arguments):
    """The process of a rank."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    torch.set_num_threads(1)
    from decodetax.harness.bench.device import open_device  # noqa: PLC0415
    from decodetax.harness.bench.ranks import Ranks  # noqa: PLC0415

    try:
        device = open_device("cpu" if kind == "cpu" else f"{kind}:{rank}")
        with contextlib.closing(Ranks.open(device, timeout_s=timeout_s)) as ranks:
            sender.send_bytes(pickle.dumps(("ok", work(ranks, *arguments))))
    except BaseException:  # noqa: BLE001  (the parent reports it)
        sender.send_bytes(pickle.dumps(("failed", traceback.format_exc())))
