"""Time of the communication in a forward, within a node and between nodes."""

from .all_reduce_time import all_reduce_time, all_to_all_time
from .deployment import Deployment
from .forward import Transfer


def transfer_s(transfer: Transfer, on: Deployment) -> float:
    """Seconds of one transfer, which overlaps with nothing."""
    if transfer.kind != "all-reduce":
        return float(all_to_all_time(on.gpu, gpus=transfer.gpus, sent_bytes=transfer.moved_bytes).time_s)
    kernel = all_reduce_time(
        on.gpu, gpus=transfer.gpus, reduced_bytes=transfer.moved_bytes, how=on.engine.all_reduce
    )
    if on.all_reduce_latency_s is None:
        return float(kernel.time_s)
    return on.all_reduce_latency_s + float(kernel.memory_s)
