"""The rule for a provider's output: a plain tensor, whose numbers are in memory when the provider returns."""

import torch
from torch import Tensor

_LAZY_KEYS = (
    ("Negative", "negated when it is read"),
    ("Conjugate", "conjugated when it is read"),
    ("ZeroTensor", "zeros without memory"),
    ("Functionalize", "a functional tensor"),
    ("FuncTorch", "a tensor of a function transform"),
    ("Nested", "a nested tensor"),
    ("Quantized", "a quantised tensor"),
)
"""Dispatch keys of tensors that are not plain, or how they begin, and what such a tensor is."""


def output_fault(output: object, like: Tensor) -> str | None:
    """Why `output` is not a plain tensor of the dtype, shape and device of `like`; None if it is.

    A plain tensor is a strided `torch.Tensor`, of no subclass, whose numbers are in its storage: nothing is
    computed when it is looked at.

    Args:
        output: what a provider returned.
        like: a plain tensor.
    """
    if not (
        type(output) is Tensor
        and output.layout == torch.strided
        and output.shape == like.shape
        and output.dtype == like.dtype
        and output.device == like.device
    ):
        return f"returned {kind(output)}, not {kind(like)}"
    plain = torch.empty(0, dtype=like.dtype, device=like.device)
    extra = str(torch._C._dispatch_keys(output) - torch._C._dispatch_keys(plain))  # noqa: SLF001
    if extra != "DispatchKeySet()":
        what = next((text for key, text in _LAZY_KEYS if key in extra), extra)
        return f"returned a tensor that is not plain: {what}"
    shadowed = sorted(name for name in vars(output) if hasattr(Tensor, name))
    if shadowed:
        return f"returned a tensor that is not plain: its {shadowed[0]} is replaced"
    if _bytes_needed(output) > output.untyped_storage().nbytes():
        return "returned a tensor that is not plain: its storage is smaller than its shape"
    return None


def kind(value: object) -> str:
    """The dtype, shape and device of a tensor, else the type, in words."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if type(value) is not Tensor:
        return f"a {type(value).__name__}, a subclass of Tensor"
    layout = "" if value.layout == torch.strided else f" in the layout {value.layout}".replace("torch.", "")
    dtype = str(value.dtype).removeprefix("torch.")
    return f"{dtype} of shape {tuple(value.shape)} on {value.device.type}{layout}"


def _bytes_needed(tensor: Tensor) -> int:
    """Bytes of storage from its start to the last element of a strided tensor."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(tensor.storage_offset() + last + 1) * tensor.element_size()
