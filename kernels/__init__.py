"""The two kernels, their tilings and their oracles.

Importing this package, or `decodetax.kernels.reference` alone, imports no Triton, so that
`use_interpreter` can still choose how Triton runs. The kernels load on first use.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .interpreter import interpreting, use_interpreter

if TYPE_CHECKING:
    from .decode_attention import decode_attention, decode_attention_workspace_bytes
    from .decode_tiling import DecodeTiling, choose_decode_tiling
    from .gpu_limits import GpuLimits, gpu_limits
    from .matmul_tile_tables import MatmulProblem
    from .matmul_tiling import MatmulTiling, choose_matmul_tiling
    from .merge_states import merge_states
    from .prefill_matmul import prefill_matmul, prefill_matmul_workspace_bytes

__all__ = [
    "DecodeTiling",
    "GpuLimits",
    "MatmulProblem",
    "MatmulTiling",
    "choose_decode_tiling",
    "choose_matmul_tiling",
    "decode_attention",
    "decode_attention_workspace_bytes",
    "gpu_limits",
    "interpreting",
    "merge_states",
    "prefill_matmul",
    "prefill_matmul_workspace_bytes",
    "use_interpreter",
]

_HOME = {
    "DecodeTiling": "decode_tiling",
    "GpuLimits": "gpu_limits",
    "MatmulProblem": "matmul_tile_tables",
    "MatmulTiling": "matmul_tiling",
    "choose_decode_tiling": "decode_tiling",
    "choose_matmul_tiling": "matmul_tiling",
    "decode_attention": "decode_attention",
    "decode_attention_workspace_bytes": "decode_attention",
    "gpu_limits": "gpu_limits",
    "merge_states": "merge_states",
    "prefill_matmul": "prefill_matmul",
    "prefill_matmul_workspace_bytes": "prefill_matmul",
}


class _Kernels(ModuleType):
    """This package: a submodule named after its host function never hides the function.

    Python binds a submodule as an attribute of its package once the submodule has run, which
    would turn `from decodetax.kernels import decode_attention` into the module.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and _HOME.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Kernels


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
