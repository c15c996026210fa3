"""Evidence that needs no GPU: counted traffic, compiled code, models of the cache and the schedule.

`count_traffic`, `TrafficError` and `inspect_launch` work on any Triton kernel. Each loads on first use,
because Triton either interprets or compiles from its import on.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compiler import inspect_launch
    from .sanitizer import TrafficError
    from .traffic import count_traffic

__all__ = ["TrafficError", "count_traffic", "inspect_launch"]

_HOME = {"TrafficError": "sanitizer", "count_traffic": "traffic", "inspect_launch": "compiler"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
