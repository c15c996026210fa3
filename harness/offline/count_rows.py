"""What `decodetax count` tells of a case: counted in the interpreter, beside what its shapes say."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..core.cases import DecodeAttention, PrefillMatmul
from ..core.gpu_limits import SmLimits
from ..core.work import ELEMENT_BYTES
from .cache_model import MatmulShape, matmul_traffic
from .counted import Counted, count_case, default_tiling, tiling_operations, tiling_traffic
from .subjects import kernel_limits

MOST_OPERATIONS = 3_000_000_000
"""That the interpreter is asked for: about half a minute. Larger cases are modelled alone."""

MOST_MODELLED_STEPS = 4_000_000
"""Of all tiles along K, for the cache model: about a minute of it."""


def count_row(
    case: PrefillMatmul | DecodeAttention, gpu: SmLimits, *, programs_per_sm: int, seed: int
) -> dict[str, Any]:
    """One case as a JSON object.

    Args:
        case: what to count; the tiling is the one that the host function chooses on `gpu`.
        gpu: for the tiling and the cache model.
        programs_per_sm: that an SM holds at one time, for the cache model.
        seed: of the inputs.

    Returns:
        Fields without `modelled_` before their name are counted; status "modelled" says that nothing was.

    Raises:
        SanitizerError: the kernel touched memory as it must not.
    """
    tiling = default_tiling(case, kernel_limits(gpu))
    modelled_operations, traffic = tiling_operations(case, tiling), tiling_traffic(case, tiling)
    row: dict[str, Any] = {
        "kernel": case.operation,
        "case": case.id,
        "gpu": gpu.gpu,
        "tiling": asdict(tiling),
        "status": "counted",
        "reason": None,
        "provenance": "counted",
        "modelled_operations": modelled_operations,
        "modelled_bytes_requested": sum(traffic.read.values()),
        "modelled_bytes_written": sum(traffic.written.values()),
        "modelled_cache": _cache(case, tiling, gpu, programs_per_sm),
    }
    if modelled_operations > MOST_OPERATIONS:
        reason = f"{modelled_operations:.3g} operations are over {MOST_OPERATIONS:.3g}, too many to interpret"
        return {**row, "status": "modelled", "reason": reason, "provenance": "modelled"}
    return {**row, **_counted(count_case(case, tiling=tiling, seed=seed))}


def _counted(counted: Counted) -> dict[str, Any]:
    return {
        "tensors": {
            name: {
                "bytes_requested": tensor.requested,
                "bytes_distinct": tensor.distinct,
                "bytes_written": tensor.written,
                "sectors": tensor.sectors,
                "modelled_bytes_requested": tensor.modelled_requested,
                "modelled_bytes_written": tensor.modelled_written,
                "counted_over_modelled": _ratio(
                    tensor.requested + tensor.written, tensor.modelled_requested + tensor.modelled_written
                ),
                "modelled_work_bytes": tensor.work,
            }
            for name, tensor in counted.tensors.items()
        },
        "bytes_requested": counted.bytes_requested,
        "bytes_distinct": counted.bytes_distinct,
        "bytes_written": counted.bytes_written,
        "bytes_counted_over_modelled": counted.bytes_ratio,
        "operations": dict(counted.operations),
        "operations_counted_over_modelled": counted.operations_ratio,
        "useful_share_of_operations": counted.useful_share,
        "operations_per_requested_byte": counted.operations_per_requested_byte,
        "operations_per_distinct_byte": counted.operations_per_distinct_byte,
        "launches": [{**asdict(launch), "programs": launch.programs} for launch in counted.launches],
    }


def _ratio(counted: int, modelled: int) -> float | None:
    return counted / modelled if modelled else None


def _cache(
    case: PrefillMatmul | DecodeAttention, tiling: Any, gpu: SmLimits, programs_per_sm: int
) -> Mapping[str, Any] | None:
    """A product's traffic through the GPU's L2; None of attention, whose cache is read once in any order.

    None too of a product of so many tile steps that the model would take minutes.
    """
    if isinstance(case, DecodeAttention):
        return None
    steps = tiling_operations(case, tiling) // (2 * tiling.block_m * tiling.block_n * tiling.block_k)
    if steps > MOST_MODELLED_STEPS:
        return None
    size = ELEMENT_BYTES[case.dtype]
    shape = MatmulShape(
        rows=case.rows,
        out_features=case.out_features,
        in_features=case.in_features,
        x_bytes=size,
        weight_bytes=size,
        out_bytes=size,
    )
    traffic = matmul_traffic(shape, tiling, gpu=gpu, programs_per_sm=programs_per_sm)
    return {
        "programs_per_sm": programs_per_sm,
        "l2_capacity_bytes": gpu.l2_bytes,
        "requested_bytes": traffic.requested_bytes,
        "l2_bytes": traffic.l2_bytes,
        "dram_read_bytes": traffic.dram_read_bytes,
        "dram_written_bytes": traffic.dram_written_bytes,
        "dram_bytes": traffic.dram_bytes,
        "distinct_bytes": traffic.distinct_bytes,
        "requested_operations_per_byte": traffic.requested_ops_per_byte,
        "l2_operations_per_byte": traffic.l2_ops_per_byte,
        "dram_operations_per_byte": traffic.dram_ops_per_byte,
    }
