"""Arithmetic of atomics and reductions in memory, on the bits of their elements."""

from typing import Any

import numpy as np

from .formats import bf16_codes, bf16_values
from .lanes import SIGNED, UNSIGNED, Array
from .unsupported import UnsupportedPtxError

_FLOATS: dict[str, type[np.generic]] = {
    "f16": np.float16,
    "f16x2": np.float16,
    "f32": np.float32,
    "f64": np.float64,
}
_FUNCTIONS: dict[str, Any] = {
    "add": np.add,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "min": np.fmin,
    "max": np.fmax,
}
ATOMICS = {*_FUNCTIONS, "exch", "cas", "inc", "dec"}


def atomic_result(operation: str, kind: str, old: Array, operands: list[Array]) -> Array:
    """What an atomic leaves in memory.

    Args:
        operation: such as "add".
        kind: PTX type of an element, such as "f32" or "bf16x2".
        old: bits in memory, unsigned.
        operands: bits of the operands, unsigned; "cas" has two.

    Raises:
        UnsupportedPtxError: an operation on that type is not known.
    """
    value = operands[0]
    if operation == "exch":
        return value
    if operation == "cas":
        return np.where(old == value, operands[1], old)
    if operation == "inc":
        return np.where(old >= value, np.zeros_like(old), old + old.dtype.type(1))
    if operation == "dec":
        return np.where((old == 0) | (old > value), value, old - old.dtype.type(1))
    function = _FUNCTIONS[operation]
    if kind in {"bf16", "bf16x2"}:
        x, y = (bf16_values(np.ascontiguousarray(each).view(np.uint16)) for each in (old, value))
        return bf16_codes(function(x, y)).view(old.dtype)
    bits = 8 * old.dtype.itemsize
    numbers = _FLOATS.get(kind) or (SIGNED if kind[0] == "s" else UNSIGNED).get(bits)
    if numbers is None:
        raise UnsupportedPtxError(f"an atomic on {kind}")
    x, y = (np.ascontiguousarray(each).view(numbers) for each in (old, value))
    return np.asarray(function(x, y)).astype(numbers).view(old.dtype)


def apply_atomics(
    view: Array, places: Array, lanes: Array, what: tuple[str, str], operands: list[Array], old: Array
) -> None:
    """Applies atomics of lanes as if one after another: lanes with distinct places at once.

    Args:
        view: the elements in memory.
        places: the element of each atomic.
        lanes: the lane of each atomic.
        what: operation and kind, as `atomic_result` takes them.
        operands: by lane of the CTA.
        old: by lane of the CTA; gets what was in memory.
    """
    left = np.arange(len(places))
    while len(left):
        _, first = np.unique(places[left], return_index=True)
        at, own = places[left[first]], lanes[left[first]]
        old[own] = view[at]
        view[at] = atomic_result(*what, view[at], [each[own] for each in operands])
        left = np.delete(left, first)
