"""How many tokens each expert of one GPU receives, by the distribution of the routing.

"balanced" and "power_law_<exponent>" are the routings that ai-dynamo/aiconfigurator measures MoE layers with
(its collector, Apache-2.0). There the loads of the power law are drawn; here they are its quantiles.
"""

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..core.errors import UsageError

ROW_TILES = (16, 32, 64, 128, 256)
"""Rows of an output tile of a grouped GEMM; an expert's rows are padded to whole tiles."""

_POWER_LAW = re.compile(r"power_law_(?P<exponent>\d+(\.\d+)?)")
_NAMES = "balanced, uniform, power_law_<exponent>, such as power_law_1.2"


@dataclass(frozen=True)
class ExpertLoads:
    """The experts of the busiest GPU and their tokens.

    Attributes:
        distinct: experts with tokens.
        rows: tokens of all its experts together; a token counts once for each expert.
        row_tiles: output tiles along the rows, by the rows of a tile: each expert's are rounded up.
    """

    distinct: float
    rows: float
    row_tiles: Mapping[int, float]


@functools.lru_cache(maxsize=4096)
def expert_loads(
    tokens: float, experts: int, experts_per_token: int, expert_parallel: int, routing: str
) -> ExpertLoads:
    """The loads of the busiest of `expert_parallel` GPUs, which divide the experts among them.

    Args:
        tokens: tokens that are routed together, of all GPUs.
        experts: routed experts of the layer.
        experts_per_token: experts that a token passes through.
        expert_parallel: GPUs that the experts are divided among.
        routing: "balanced", every expert equally loaded; "uniform", every expert equally likely; or
            "power_law_<exponent>", loads with density load^-exponent.

    Raises:
        UsageError: the routing is not one of these.
    """
    local = -(-experts // expert_parallel)  # of the GPU with most of them
    copies = tokens * experts_per_token
    if routing == "balanced":
        return _equal(min(float(local), max(1.0, copies / expert_parallel)), copies / expert_parallel)
    if routing == "uniform":
        distinct = local * (1 - (1 - min(1.0, experts_per_token / experts)) ** tokens)
        return _equal(max(distinct, min(1.0, copies)), copies / expert_parallel)
    match = _POWER_LAW.fullmatch(routing)
    if match is None:
        raise UsageError(f"routing: {routing[:40]!r} is not one of {_NAMES}")
    bounds = _bounds(tokens, experts, experts_per_token)
    share = _busiest_share(float(match["exponent"]), bounds, experts, expert_parallel)
    rows = _whole(_quantiles(float(match["exponent"]), bounds, local), max(1.0, share * copies))
    return ExpertLoads(
        distinct=float(sum(1 for each in rows if each)),
        rows=float(sum(rows)),
        row_tiles={tile: float(sum(-(-each // tile) for each in rows)) for tile in ROW_TILES},
    )


def _equal(distinct: float, rows: float) -> ExpertLoads:
    """Equal loads: no expert with tokens has less than one."""
    each = max(1.0, rows / distinct)
    return ExpertLoads(
        distinct, distinct * each, {tile: distinct * math.ceil(each / tile) for tile in ROW_TILES}
    )


def _bounds(tokens: float, experts: int, experts_per_token: int) -> tuple[float, float]:
    """The least and the greatest load, up to a factor, as aiconfigurator draws them.

    With more copies of tokens than experts the greatest is near all tokens, 0.8 of them; with fewer, loads
    from 0.01 to 2 are scaled, so that many round to none.
    """
    if tokens * experts_per_token > experts:
        return 1.0, max(1.01, 0.8 * tokens)
    return 0.01, 2.0


def _quantiles(exponent: float, bounds: tuple[float, float], count: int) -> list[float]:
    """Equally spaced quantiles of the density x^-exponent between the bounds."""
    least, greatest = bounds
    at = [(index + 0.5) / count for index in range(count)]
    if math.isclose(exponent, 1):
        return [least * (greatest / least) ** u for u in at]
    low, high = least ** (1 - exponent), greatest ** (1 - exponent)
    return [((high - low) * u + low) ** (1 / (1 - exponent)) for u in at]


def _busiest_share(exponent: float, bounds: tuple[float, float], experts: int, gpus: int) -> float:
    """The expected share of the busiest GPU in all loads; at most that of the most loaded experts.

    A GPU's load is a sum of `experts` / `gpus` loads. The expected maximum of `gpus` normal variables is
    about ln((gpus - 3/8) / (5/8)) / 1.702 standard deviations: Blom's plotting position, and the logistic
    approximation of the normal quantile.
    """
    if gpus == 1:
        return 1.0
    loads = _quantiles(exponent, bounds, experts)
    mean = math.fsum(loads) / experts
    variation = math.sqrt(math.fsum((load / mean - 1) ** 2 for load in loads) / experts)
    local = -(-experts // gpus)
    deviation = variation * math.sqrt((1 - 1 / gpus) / local)
    share = (1 + deviation * math.log((gpus - 0.375) / 0.625) / 1.702) / gpus
    return min(share, math.fsum(sorted(loads)[-local:]) / (mean * experts))


def _whole(loads: list[float], total: float) -> list[int]:
    """Scales loads to a total and rounds; the largest take what is missing, the least give what is over."""
    scale = total / math.fsum(loads)
    rows = sorted((round(load * scale) for load in loads), reverse=True)
    missing = round(total) - sum(rows)
    if missing > 0:
        each, more = divmod(missing, len(rows))
        return [row + each + (index < more) for index, row in enumerate(rows)]
    for index in reversed(range(len(rows))):
        if missing == 0:
            break
        if rows[index] > 0:
            rows[index] -= 1
            missing += 1
    return rows
