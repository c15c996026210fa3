"""A Triton launch's arguments as the parameters of its PTX."""

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from triton.runtime.jit import TensorWrapper

from .global_memory import GlobalMemory
from .tensor_maps import ELEMENT_TYPES, TENSOR_MAP_BYTES, TensorMap
from .unsupported import UnsupportedPtxError

_FLOATS = {"fp16": "<e", "fp32": "<f", "fp64": "<d"}


class Arguments:
    """The parameters of one launch, in the order of Triton's signature.

    A tensor descriptor becomes a tensor map, sizes and strides; before sm_90 its pointer, sizes and strides.
    Triton appends pointers to scratch memory.

    Args:
        compiled: Triton's compiled kernel.
        values: arguments by name.
        sizes: bytes of each parameter by its PTX name, in order.
        grid: number of CTAs along each axis.

    Attributes:
        parameters: bytes by PTX name.
        memory: the tensors' memory.
        tensors: those of pointers and descriptors.
        tensor_maps: by the PTX name of the parameter that holds them.

    Raises:
        UnsupportedPtxError: an argument of a type that is not supported.
    """

    def __init__(
        self, compiled: Any, values: Mapping[str, Any], sizes: Mapping[str, int], grid: tuple[int, ...]
    ) -> None:
        self.memory = GlobalMemory()
        self.tensors: list[Any] = []
        self.parameters: dict[str, bytes] = {}
        self.tensor_maps: dict[str, TensorMap] = {}
        self._sizes = sizes
        self._left = list(sizes)
        metadata = compiled.metadata
        tensor_maps = list(getattr(metadata, "tensordesc_meta", None) or [])
        for name, kind in compiled.src.signature.items():
            self._add(name, kind, None if kind == "constexpr" else values[name], tensor_maps)
        if getattr(metadata, "profile_scratch_size", 0):
            raise UnsupportedPtxError("profile scratch memory")
        self._add_scratch((getattr(metadata, "global_scratch_size", 0) or 0) * math.prod(grid))

    def _add(self, name: str, kind: Any, value: Any, tensor_maps: list[Mapping[str, Any]]) -> None:
        """Appends the parameters of an argument; those of a tuple one after another."""
        if isinstance(kind, tuple):
            for n, (each_kind, each) in enumerate(zip(kind, value, strict=True)):
                self._add(f"{name}[{n}]", each_kind, each, tensor_maps)
        elif kind.startswith("tensordesc"):
            self._add_descriptor(name, value, tensor_maps.pop(0) if tensor_maps else None)
        elif kind.startswith("*"):
            self._add_tensor(name, value)
        elif kind in _FLOATS:
            self._append(struct.pack(_FLOATS[kind], value))
        elif kind[0] in "iu" and kind[1:].isdigit():
            self._append_integers(value)
        elif kind != "constexpr":
            raise UnsupportedPtxError(f"argument {name} of type {kind}")

    def _append(self, raw: bytes) -> None:
        self.parameters[self._left.pop(0)] = raw

    def _append_integers(self, *values: int) -> None:
        for value in values:
            bits = 8 * self._sizes[self._left[0]]
            self._append((int(value) % 2**bits).to_bytes(bits // 8, "little"))

    def _add_tensor(self, name: str, tensor: Any) -> None:
        elements = span(tensor.shape, tensor.stride()) if math.prod(tensor.shape) else 0
        # What triton.reinterpret returns has the tensor as its base.
        self.tensors.append(tensor.base if isinstance(tensor, TensorWrapper) else tensor)
        self.memory.add(name, tensor.data_ptr(), elements * tensor.element_size())
        self._append_integers(tensor.data_ptr())

    def _add_descriptor(self, name: str, value: Any, meta: Mapping[str, Any] | None) -> None:
        if meta is None:
            self._add_tensor(name, value.base)
            flags = [value.padding == "nan"]
            if hasattr(value, "round_f32_to_tf32"):
                flags.append(value.round_f32_to_tf32)
            self._append_integers(*value.shape, *value.strides, *flags)
        else:
            self.tensor_maps[self._left[0]] = self._tensor_map(name, value, meta)
            self._append(bytes(TENSOR_MAP_BYTES))
        self._append_integers(*value.shape, *value.strides)

    def _tensor_map(self, name: str, value: Any, meta: Mapping[str, Any]) -> TensorMap:
        size, start = meta["elem_size"], value.base.data_ptr()
        if meta["fp4_padded"] or meta.get("is_im2col"):
            raise UnsupportedPtxError(f"argument {name}: a descriptor of 4-bit floats or of im2col")
        strides = tuple(stride * size for stride in value.strides)
        if start % 16 or any(stride % 16 for stride in strides[:-1]):
            raise UnsupportedPtxError(
                f"argument {name}: the base or a stride of a descriptor is no multiple of 16 bytes"
            )
        self.tensors.append(value.base)
        self.memory.add(name, start, span(value.shape, value.strides) * size)
        return TensorMap(
            start=start,
            shape=tuple(value.shape),
            strides=strides,
            box=tuple(meta["block_size"]),
            element_type=ELEMENT_TYPES[meta["elem_type"]],
            swizzle=meta["swizzle"],
            nan_outside=value.padding == "nan",
        )

    def _add_scratch(self, size: int) -> None:
        """Fills the parameters that are left: global scratch memory, and pointers to nothing."""
        self.scratch = np.zeros(size + TENSOR_MAP_BYTES, np.uint8)
        start = -(-self.scratch.ctypes.data // TENSOR_MAP_BYTES) * TENSOR_MAP_BYTES
        if size:
            self.memory.add("global scratch", start, size)
            self.memory.track_unwritten(start, np.ones(size, np.bool_))
            self._append_integers(start)
        while self._left:
            self._append_integers(0)


def span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to the last of a tensor."""
    return sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1
