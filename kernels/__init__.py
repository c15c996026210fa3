"""Triton kernels (decode and prefill attention, prefill matmul, merge of attention states) and their oracles.

Importing this package, or `decodetax.kernels.reference`, does not import Triton, so that `use_interpreter`
can still choose how Triton runs. The kernels are imported on first use.

Why the package has its own module class: after importing a submodule, Python binds it as an attribute of its
package. `decode_attention`, `prefill_attention`, `prefill_matmul`, `merge_states` and `gpu_limits` each name
a submodule and a function in it, so `import decodetax.kernels.decode_attention` would turn the attribute
`decodetax.kernels.decode_attention` into the module. Importing the functions here, before anyone imports the
submodules, would prevent that, but it would import Triton; and a module-level `__getattr__` is not asked for
an attribute that exists. Only `__setattr__` on the class sees the binding.
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
    from .prefill_attention import prefill_attention, prefill_attention_workspace_bytes
    from .prefill_attention_tiling import PrefillAttentionTiling, choose_prefill_attention_tiling
    from .prefill_matmul import prefill_matmul, prefill_matmul_workspace_bytes

__all__ = [
    "DecodeTiling",
    "GpuLimits",
    "MatmulProblem",
    "MatmulTiling",
    "PrefillAttentionTiling",
    "choose_decode_tiling",
    "choose_matmul_tiling",
    "choose_prefill_attention_tiling",
    "decode_attention",
    "decode_attention_workspace_bytes",
    "gpu_limits",
    "interpreting",
    "merge_states",
    "prefill_attention",
    "prefill_attention_workspace_bytes",
    "prefill_matmul",
    "prefill_matmul_workspace_bytes",
    "use_interpreter",
]

_EXPORTS = {
    "decode_attention": ("decode_attention", "decode_attention_workspace_bytes"),
    "decode_tiling": ("DecodeTiling", "choose_decode_tiling"),
    "gpu_limits": ("GpuLimits", "gpu_limits"),
    "matmul_tile_tables": ("MatmulProblem",),
    "matmul_tiling": ("MatmulTiling", "choose_matmul_tiling"),
    "merge_states": ("merge_states",),
    "prefill_attention": ("prefill_attention", "prefill_attention_workspace_bytes"),
    "prefill_attention_tiling": ("PrefillAttentionTiling", "choose_prefill_attention_tiling"),
    "prefill_matmul": ("prefill_matmul", "prefill_matmul_workspace_bytes"),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}


class _Kernels(ModuleType):
    """This package: binding a submodule that shares its name with a function binds the function instead."""

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and _MODULE_OF.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Kernels


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
