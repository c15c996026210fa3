"""Fits the constants of engines to the committed serving runs that are marked as fitted.

python -m decodetax.harness.cost.calibrate.engines

prints, for each engine, the constants of a grid with the least mean squared logarithm of modelled over
measured time per output token. The grid is as fine as the runs can tell apart. The time of a request does not
change it, and is kept.
"""

import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ...core.data_table import data_table
from .. import serving_accuracy
from ..engine import Engine, engines

_STEP_S: Mapping[str, Sequence[float]] = {
    "trtllm": (0.0, 0.2e-3, 0.4e-3, 0.6e-3),
    "vllm": (0.6e-3, 0.9e-3, 1.2e-3),
    "sglang": (0.3e-3, 0.5e-3, 0.7e-3),
}
_SEQUENCE_S = (0.0, 5e-6, 10e-6)
_SHARES: Mapping[str, Sequence[float | None]] = {"vllm": (0.55, 0.6, 0.65)}


def main() -> int:
    """Prints the best constants of each engine beside those that the project keeps."""
    rows = [row for row in data_table("serving.csv") if serving_accuracy.is_fitted(row)]
    for name, kept in engines().items():
        own = [row for row in rows if row["engine"] == name]
        best = min(_grid(kept), key=lambda engine: loss(own, engine))
        for what, engine in (("best", best), ("kept", kept)):
            sys.stdout.write(f"{name}: {what}, loss {loss(own, engine):.5f}: {engine}\n")
    return 0


def _grid(kept: Engine) -> Iterator[Engine]:
    shares = _SHARES.get(kept.name, (None,))
    for step_s, sequence_s, gemm, cache in itertools.product(_STEP_S[kept.name], _SEQUENCE_S, shares, shares):
        yield replace(
            kept,
            step_s=step_s,
            sequence_s=sequence_s,
            hopper_fp8_gemm_share=gemm,
            hopper_fp8_cache_share=cache,
        )


def loss(rows: Sequence[Mapping[str, str]], engine: Engine) -> float:
    """Mean squared logarithm of modelled over measured time per output token."""
    checks = serving_accuracy.serving_checks(rows, engine=engine)
    ratios = [check.tpot_ratio for check in checks if check.tpot_ratio is not None]
    return math.fsum(math.log(ratio) ** 2 for ratio in ratios) / len(ratios)


if __name__ == "__main__":
    raise SystemExit(main())
