"""Evidence without a GPU: traffic counted in the interpreter, compiled code, L2 and schedule models.

`count_traffic` and `inspect_launch` work on any Triton kernel. They load on first use, because Triton
decides at its import whether kernels are interpreted or compiled.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compiler import inspect_launch
    from .interpreter_patch import count_traffic
    from .sanitizer import SanitizerError

__all__ = ["SanitizerError", "count_traffic", "inspect_launch"]

_MODULES = {
    "SanitizerError": "sanitizer",
    "count_traffic": "interpreter_patch",
    "inspect_launch": "compiler",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
