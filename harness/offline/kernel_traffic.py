"""Traffic of this package's kernels on a case: counted, beside the tiling's model and the case's minimum."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ... import kernels
from ..core.cases import DecodeAttention, PrefillAttention, PrefillMatmul
from ..core.inputs import Source, draw
from ..core.work import ELEMENT_BYTES
from .cache_model import MatmulOperands, matmul_traffic
from .default_tilings import kernel_limits
from .tiling_traffic import TilingTraffic, chosen_tiling, tiling_traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..core.gpus import Gpu
    from .tiling_traffic import CountedCase, Tiling
    from .traffic import LaunchTraffic

MAX_INTERPRETED_OPERATIONS = 3_000_000_000
"""So many take the interpreter about half a minute. A larger case is only modelled."""

MAX_CACHE_MODEL_STEPS = 4_000_000
"""Tiles times K steps; so many take the L2 model about a minute."""

_TENSORS = {
    "x_ptr": "x",
    "x_desc": "x",
    "weight_ptr": "weight",
    "weight_desc": "weight",
    "q_ptr": "q",
    "k_ptr": "k_cache",
    "v_ptr": "v_cache",
    "context_lens_ptr": "context_lens",
    "partial_ptr": "partial",
    "partial_lse_ptr": "partial_lse",
    "partial_counts_ptr": "partial_counts",
    "out_ptr": "out",
}
"""Tensor names in a case's work, by parameter of the kernels."""

_PROMPT_TENSORS = {
    **_TENSORS,
    "q_desc": "q",
    "q_rest_desc": "q",
    "k_ptr": "k",
    "k_desc": "k",
    "k_rest_desc": "k",
    "v_ptr": "v",
    "v_desc": "v",
    "sinks_ptr": "sinks",
}
"""The same of prefill attention, whose keys and values are no cache."""


@dataclass(frozen=True, kw_only=True)
class KernelTensor:
    """One tensor of a counted case, over all launches.

    Attributes:
        bytes_requested: bytes that all loads request; counted.
        bytes_distinct: bytes touched, each counted once; counted.
        bytes_written: bytes that all stores write; counted.
        sectors: 32-byte sectors touched, each counted once; counted.
        modelled_bytes_requested: by the tiling's formula.
        modelled_bytes_written: by the tiling's formula.
        counted_over_modelled: ratio of all bytes requested and written; None if none are modelled.
        modelled_work_bytes: minimum that the case reads and writes; 0 for partial results.
    """

    bytes_requested: int
    bytes_distinct: int
    bytes_written: int
    sectors: int
    modelled_bytes_requested: int
    modelled_bytes_written: int
    counted_over_modelled: float | None
    modelled_work_bytes: int


@dataclass(frozen=True, kw_only=True)
class KernelTraffic:
    """The counted launches of a case's kernel.

    Attributes:
        case: what was run.
        modelled: traffic by the tiling's formulas.
        tensors: by the names of the case's work, and partial results.
        operations: of all dots, padding included, by operand types; counted.
        launches: in order.
    """

    case: CountedCase
    modelled: TilingTraffic
    tensors: Mapping[str, KernelTensor]
    operations: Mapping[str, int]
    launches: Sequence[LaunchTraffic]

    def figures(self) -> dict[str, int | float]:
        """Totals over all tensors, and ratios, by their JSON names."""
        work, operations = self.case.work(), sum(self.operations.values())
        requested, distinct, written = (
            sum(getattr(tensor, f"bytes_{kind}") for tensor in self.tensors.values())
            for kind in ("requested", "distinct", "written")
        )
        modelled_bytes = sum(self.modelled.read.values()) + sum(self.modelled.written.values())
        modelled = self.modelled.operations
        return {
            "bytes_requested": requested,
            "bytes_distinct": distinct,
            "bytes_written": written,
            "bytes_counted_over_modelled": (requested + written) / modelled_bytes,
            # Contexts of length 0 have no operations.
            "operations_counted_over_modelled": operations / modelled if modelled else 1.0,
            "useful_share_of_operations": work.operations / operations if operations else 1.0,
            "operations_per_requested_byte": work.operations / (requested + written),
            "operations_per_distinct_byte": work.operations / distinct,
        }


def count_case(case: CountedCase, tiling: Tiling, source: Source) -> KernelTraffic:
    """Run a case's kernel in the interpreter and count its traffic.

    Args:
        case: small enough for the interpreter, which takes about ten seconds for 10^9 operations.
        tiling: tiling of the kernel.
        source: draws the inputs, on the CPU.

    Raises:
        ValueError: the tiling is for the other operation, or the kernel does not support the case.
        RuntimeError: Triton compiles kernels in this process.
        SanitizerError: the kernel made a faulty memory access.
    """
    kernels.use_interpreter()
    from .interpreter_patch import count_traffic  # noqa: PLC0415  (imports Triton, prepared by the line above)

    modelled = tiling_traffic(case, tiling)
    run = _prepared(case, tiling, source)
    with count_traffic() as traffic:
        run()
    return KernelTraffic(
        case=case,
        modelled=modelled,
        tensors=_tensors(case, modelled, traffic.launches),
        operations=traffic.operations,
        launches=tuple(traffic.launches),
    )


def count_row(case: CountedCase, gpu: Gpu, *, programs_per_sm: int, seed: int) -> dict[str, Any]:
    """A counted case as a JSON object.

    Args:
        case: what to count.
        gpu: GPU whose tiling is counted and whose L2 is modelled.
        programs_per_sm: programs that an SM holds at one time, for the L2 model.
        seed: seed of the inputs.

    Returns:
        Fields that begin with `modelled_` are modelled, all others counted; with status "modelled" nothing
        was counted.

    Raises:
        SanitizerError: the kernel made a faulty memory access.
    """
    tiling = chosen_tiling(case, kernel_limits(gpu))
    modelled = tiling_traffic(case, tiling)
    row: dict[str, Any] = {
        "kernel": case.operation,
        "case": case.id,
        "gpu": gpu.name,
        "tiling": asdict(tiling),
        "status": "counted",
        "reason": None,
        "provenance": "counted",
        "modelled_operations": modelled.operations,
        "modelled_bytes_requested": sum(modelled.read.values()),
        "modelled_bytes_written": sum(modelled.written.values()),
        "modelled_cache": _cache_row(case, tiling, modelled, gpu, programs_per_sm),
    }
    if modelled.operations > MAX_INTERPRETED_OPERATIONS:
        most = f"{MAX_INTERPRETED_OPERATIONS:.3g}"
        reason = f"{modelled.operations:.3g} operations are over {most}, too many to interpret"
        return {**row, "status": "modelled", "reason": reason, "provenance": "modelled"}
    counted = count_case(case, tiling, Source(torch.device("cpu"), seed))
    return {
        **row,
        "tensors": {name: asdict(tensor) for name, tensor in counted.tensors.items()},
        **counted.figures(),
        "operations": dict(counted.operations),
        "launches": launch_rows(counted.launches),
    }


def launch_rows(launches: Sequence[LaunchTraffic]) -> list[dict[str, Any]]:
    """Counted launches as JSON objects."""
    return [{**asdict(launch), "programs": launch.programs} for launch in launches]


def _prepared(case: CountedCase, tiling: Any, source: Source) -> Callable[[], object]:
    """A call of the case's kernel. The call allocates the output, so that it starts uninitialised."""
    inputs: Any = draw(case, source)
    if isinstance(case, PrefillMatmul):
        return partial(kernels.prefill_matmul, inputs.x, inputs.weight, tiling=tiling)
    if isinstance(case, PrefillAttention):
        prompts = (each.transpose(1, 2) for each in (inputs.q, inputs.k, inputs.v))
        options = {"window": inputs.window, "softcap": inputs.softcap, "sinks": inputs.sinks}
        return partial(kernels.prefill_attention, *prompts, **options, tiling=tiling)
    tensors = (inputs.q, inputs.k_cache, inputs.v_cache, inputs.context_lens)
    return partial(kernels.decode_attention, *tensors, tiling=tiling)


def _tensors(
    case: CountedCase, modelled: TilingTraffic, launches: Sequence[LaunchTraffic]
) -> dict[str, KernelTensor]:
    """The tensors of all launches; a tensor that one launch writes and the next reads counts as one."""
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    names = _PROMPT_TENSORS if isinstance(case, PrefillAttention) else _TENSORS
    for launch in launches:
        for parameter, tensor in launch.tensors.items():
            name = names[parameter]
            if name in {"k_cache", "v_cache"} and isinstance(case, DecodeAttention) and case.latent:
                name = "latent_cache"
            sums[name]["bytes_requested"] += tensor.bytes_requested
            sums[name]["bytes_written"] += tensor.bytes_written
            # Launches touch the same bytes of a tensor; of the output each launch writes other rows.
            both = sum if name == "out" else max
            sums[name]["bytes_distinct"] = both((sums[name]["bytes_distinct"], tensor.bytes_distinct))
            sums[name]["sectors"] = both((sums[name]["sectors"], tensor.sectors))
    work = case.work()
    tensors = {}
    for name, counted in sums.items():
        read, written = modelled.read.get(name, 0), modelled.written.get(name, 0)
        counted_bytes = counted["bytes_requested"] + counted["bytes_written"]
        tensors[name] = KernelTensor(
            **counted,
            modelled_bytes_requested=read,
            modelled_bytes_written=written,
            counted_over_modelled=counted_bytes / (read + written) if read + written else None,
            modelled_work_bytes=work.read_terms.get(name, 0) + work.written_terms.get(name, 0),
        )
    return tensors


def _cache_row(
    case: CountedCase, tiling: Any, modelled: TilingTraffic, gpu: Gpu, programs_per_sm: int
) -> dict[str, Any] | None:
    """A matmul's modelled traffic through the GPU's L2.

    None for decode attention, which reads its KV cache once in any order, and for a matmul of so many K steps
    that the model would take minutes.
    """
    if not isinstance(case, PrefillMatmul):
        return None
    if modelled.operations > MAX_CACHE_MODEL_STEPS * 2 * tiling.block_m * tiling.block_n * tiling.block_k:
        return None
    element_bytes = ELEMENT_BYTES[case.dtype]
    shape = MatmulOperands(
        rows=case.rows,
        out_features=case.out_features,
        in_features=case.in_features,
        x_bytes=element_bytes,
        weight_bytes=element_bytes,
        out_bytes=element_bytes,
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
