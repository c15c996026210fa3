"""Argument checks that host functions share: each raises a ValueError that names the argument.

The checks of one function are in a module of its own: `decode_checks`, `matmul_checks`, `merge_checks` and
`prefill_attention_checks`. Messages say what the argument was and what it may be.
"""

from __future__ import annotations

import torch

from .interpreter import interpreting

FLOAT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FLOAT8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
CACHE_DTYPES = (*FLOAT8_DTYPES, torch.int8)
# Token positions are 32-bit, and the range of a split is rounded up past the last token.
MAX_CAPACITY = 1 << 30
_LARGEST_FLOAT32 = torch.finfo(torch.float32).max
_WORKSPACE_ALIGNMENT = 16


def default_out_dtype(x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.dtype:
    """The dtype of an output without `out_dtype` and `out`: that of the wider operand, bfloat16 of 8 bits."""
    wider = x if weight is None or x.element_size() >= weight.element_size() else weight
    return torch.bfloat16 if wider.element_size() == 1 else wider.dtype


def check_one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """The argument is one of these values."""
    if not any(value is each or (isinstance(value, str) and value == each) for each in allowed):
        words = ", ".join(map(str, allowed))
        raise ValueError(f"{name} is {shown(value)}; it must be one of {words}")


def shown(value: object) -> str:
    """A value on one line of a message: itself if it is of a plain type, else its type."""
    plain = value is None or isinstance(value, str | int | float | torch.dtype)
    return repr(value) if plain else f"a {type(value).__name__}"


def check_flag(name: str, value: object) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {shown(value)}; it must be True or False")  # noqa: TRY004  (every misuse is a ValueError)


def check_workspace(
    workspace: torch.Tensor, *, at_least_bytes: int, same_device_as: tuple[str, torch.Tensor]
) -> None:
    """Raise ValueError unless a workspace is as the kernels document it, on the device of that argument."""
    check_tensor("workspace", workspace)
    check_device("workspace", workspace, *same_device_as)
    check_contiguous("workspace", workspace)
    if workspace.nbytes < at_least_bytes:
        raise ValueError(f"workspace has {workspace.nbytes} bytes; it must have at least {at_least_bytes}")
    if workspace.data_ptr() % _WORKSPACE_ALIGNMENT:
        raise ValueError(
            f"workspace starts at address {workspace.data_ptr():#x}; it must be aligned to 16 bytes"
        )


def check_lse_base(lse_base: object) -> None:
    """The base of log-sum-exps is "e" or 2."""
    plain = isinstance(lse_base, str | int | float) and not isinstance(lse_base, bool)
    if not plain or lse_base not in ("e", 2):
        raise ValueError(f"lse_base is {shown(lse_base)}; it must be 'e' or 2")


def check_head_dim(name: str, tensor: torch.Tensor, most: int) -> None:
    """The last dimension is from 1 to `most`."""
    head_dim = tensor.shape[-1]
    if not 1 <= head_dim <= most:
        raise ValueError(f"{name} has head_dim {head_dim}; it must be from 1 to {most}")


def check_scale(
    name: str,
    scale: torch.Tensor | float | None,
    shapes: set[tuple[int, ...]],
    meaning: str,
    like: tuple[str, torch.Tensor],
) -> None:
    """A number, one float32 element, or a float32 tensor of one of the shapes, on the device of `like`."""
    if not isinstance(scale, torch.Tensor):
        check_number(name, scale)
        return
    check_tensor(name, scale)
    check_dtype(name, scale, torch.float32)
    if tuple(scale.shape) not in {(), (1,), *shapes}:
        raise ValueError(f"{name} has shape {list(scale.shape)}; it must be [], [1]{meaning}")
    check_device(name, scale, *like)


def check_number(name: str, value: float | None) -> None:
    """None, or a number that is finite in float32."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is a {type(value).__name__}; it must be a number")  # noqa: TRY004  (every misuse is a ValueError)
    if not abs(value) <= _LARGEST_FLOAT32:
        raise ValueError(f"{name} is {value}; it must be finite in float32")


def check_count(name: str, value: int | None, at_most: int | None = None) -> None:
    """None, or an int of at least 1 and at most `at_most`."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is a {type(value).__name__}; it must be an int")  # noqa: TRY004  (the same)
    if value < 1 or (at_most is not None and value > at_most):
        raise ValueError(
            f"{name} is {value}; it must be at least 1{f' and at most {at_most}' if at_most else ''}"
        )


def check_tensor(name: str, value: object) -> None:
    """A tensor whose elements lie in memory as its shape and strides say."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} is a {type(value).__name__}; it must be a torch.Tensor")  # noqa: TRY004  (the same)
    if value.is_nested:
        raise ValueError(f"{name} is a nested tensor; it must be one of equal sizes")
    if value.layout != torch.strided:
        raise ValueError(f"{name} has layout {value.layout}; it must be torch.strided")
    if value.is_neg():  # its memory holds the other sign
        raise ValueError(f"{name} is a view with a lazy negation; it must be {name}.resolve_neg()")
    if not _has_memory(value):
        raise ValueError(f"{name} is a {type(value).__name__} without memory; it must have its own")


def _has_memory(tensor: torch.Tensor) -> bool:
    """Whether its elements are in memory: not in torch.vmap, or of a fake tensor or freed storage."""
    try:
        storage = tensor.untyped_storage()
        located = storage.device.type == tensor.device.type
        return located and (tensor.device.type == "meta" or not tensor.numel() or storage.data_ptr() != 0)
    except RuntimeError:  # inside torch.vmap, torch.func.grad and torch.func.functionalize
        return False


def check_floating(name: str, tensor: torch.Tensor) -> None:
    """A tensor of bfloat16, float16 or float32."""
    check_tensor(name, tensor)
    if tensor.dtype not in FLOAT_DTYPES:
        raise ValueError(
            f"{name} is {tensor.dtype}; it must be torch.bfloat16, torch.float16 or torch.float32"
        )


def check_dtype(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    """A tensor of this dtype."""
    if tensor.dtype != dtype:
        raise ValueError(f"{name} is {tensor.dtype}; it must be {dtype}")


def check_integers(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """A tensor of int32 or int64, on the device of another."""
    check_tensor(name, tensor)
    if tensor.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} is {tensor.dtype}; it must be torch.int32 or torch.int64")
    check_device(name, tensor, other_name, other)


def check_runnable(name: str, tensor: torch.Tensor) -> None:
    """A tensor on a device that kernels run on."""
    if tensor.device.type == "cuda" or (tensor.device.type == "cpu" and interpreting()):
        return
    if tensor.device.type == "cpu":
        raise ValueError(
            f"{name} is on the CPU, where Triton kernels run only interpreted; it must be on a CUDA device, "
            "or set TRITON_INTERPRET=1 before triton is imported (decodetax.kernels.use_interpreter does)"
        )
    raise ValueError(
        f"{name} is on {tensor.device}; it must be on a CUDA device, or on the CPU when interpreted"
    )


def check_device(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """A tensor on the device of another."""
    if tensor.device != other.device:
        raise ValueError(
            f"{name} is on {tensor.device}; it must be on {other.device}, the device of {other_name}"
        )


def check_same(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """A tensor of the dtype, and on the device, of another."""
    if tensor.dtype != other.dtype:
        raise ValueError(f"{name} is {tensor.dtype}; it must be {other.dtype}, the dtype of {other_name}")
    check_device(name, tensor, other_name, other)


def check_shape(name: str, tensor: torch.Tensor, wanted: tuple[int | None, ...], meaning: str) -> None:
    """`wanted` holds None for a free size."""
    check_tensor(name, tensor)
    fits = tensor.dim() == len(wanted) and all(
        want in (None, size) for want, size in zip(wanted, tensor.shape, strict=True)
    )
    if not fits:
        sizes = ", ".join("any" if want is None else str(want) for want in wanted)
        raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {meaning}: [{sizes}]")


def check_nonempty(name: str, tensor: torch.Tensor, *, but_batch: int | None = None) -> None:
    """A tensor of at least one element; none where its first dimension is a batch of 0."""
    if 0 in (tensor.shape[1:] if but_batch == 0 and tensor.shape[0] == 0 else tensor.shape):
        raise ValueError(f"{name} has shape {list(tensor.shape)}; every size must be at least 1")


def check_sinks(sinks: torch.Tensor, q: torch.Tensor) -> None:
    """Attention sinks: one per query head, of any float dtype, on the device of `q`."""
    check_floating("sinks", sinks)
    check_shape("sinks", sinks, (q.shape[-2],), "[q_heads]")
    check_device("sinks", sinks, "q", q)
    check_last_contiguous("sinks", sinks)


def check_contiguous(name: str, tensor: torch.Tensor) -> None:
    """A contiguous tensor."""
    if not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {tuple(tensor.stride())}; it must be contiguous")


def check_last_contiguous(name: str, tensor: torch.Tensor) -> None:
    """A tensor of stride 1 in its last dimension."""
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise ValueError(f"{name} has strides {tuple(tensor.stride())}; the last must be 1")


def check_writable(name: str, tensor: torch.Tensor) -> None:
    """A tensor of which no two elements share memory by a stride of 0."""
    if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
        raise ValueError(f"{name} has strides {tuple(tensor.stride())}; its elements must not share memory")
