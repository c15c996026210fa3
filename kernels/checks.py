"""Argument validation: every misuse raises a ValueError that names the argument and what it may be."""

from __future__ import annotations

import math

import torch

from .interpreter import interpreting

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Token positions are 32-bit; a split's range is rounded up past the last token.
_MAX_CAPACITY = 1 << 30


def check_prefill_matmul(
    *, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor | None
) -> None:
    """Raise ValueError unless the arguments are those that `prefill_matmul` documents."""
    _check_floating("x", x)
    if x.dim() == 0:
        raise ValueError("x has no dimensions; it must be [..., in_features]")
    _check_nonempty("x", x)
    _check_runnable("x", x)
    _check_shape("weight", weight, (None, x.shape[-1]), "[out_features, in_features of x]")
    _check_nonempty("weight", weight)
    _check_same("weight", weight, "x", x)
    features = weight.shape[0]
    if bias is not None:
        _check_shape("bias", bias, (features,), "[out_features]")
        _check_device("bias", bias, "x", x)
        if bias.dtype not in (x.dtype, torch.float32):
            raise ValueError(f"bias is {bias.dtype}; it must be {x.dtype}, the dtype of x, or torch.float32")
    if out is not None:
        _check_shape(
            "out", out, (*x.shape[:-1], features), "[..., out_features] with the leading dimensions of x"
        )
        _check_same("out", out, "x", x)
        _check_writable("out", out)
        try:
            out.view(-1, features)
        except RuntimeError as error:
            raise ValueError(
                f"out has strides {tuple(out.stride())}; all dimensions but the last must view as one"
            ) from error


def check_decode_attention(
    *,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    context_lens: torch.Tensor,
    block_table: torch.Tensor | None,
    scale: float | None,
    out: torch.Tensor | None,
) -> None:
    """Raise ValueError unless the arguments are those that `decode_attention` documents."""
    _check_floating("q", q)
    _check_shape("q", q, (None, None, None), "[batch, q_heads, head_dim]")
    _check_nonempty("q", q)
    _check_runnable("q", q)
    _check_last_contiguous("q", q)
    batch, q_heads, head_dim = q.shape
    if head_dim % 8 or not 16 <= head_dim <= 256:
        raise ValueError(f"q has head_dim {head_dim}; it must be a multiple of 8 from 16 to 256")
    if block_table is None:
        layout, first = "[batch, capacity, kv_heads, head_dim] with batch and head_dim of q", batch
    else:
        layout, first = "[pages, page_size, kv_heads, head_dim] with head_dim of q", None
    _check_shape("k_cache", k_cache, (first, None, None, head_dim), layout)
    _check_shape("v_cache", v_cache, tuple(k_cache.shape), "the shape of k_cache")
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        _check_nonempty(name, cache)
        _check_same(name, cache, "q", q)
        _check_last_contiguous(name, cache)
    kv_heads = k_cache.shape[2]
    if q_heads % kv_heads or q_heads // kv_heads > 64:
        raise ValueError(f"q has {q_heads} heads; it must have 1 to 64 for each of the {kv_heads} in k_cache")
    _check_int32("context_lens", context_lens, "q", q)
    _check_shape("context_lens", context_lens, (batch,), "[batch]")
    capacity = k_cache.shape[1]
    if block_table is not None:
        _check_int32("block_table", block_table, "q", q)
        _check_shape("block_table", block_table, (batch, None), "[batch, max_pages]")
        _check_nonempty("block_table", block_table)
        _check_last_contiguous("block_table", block_table)
        capacity *= block_table.shape[1]
    if capacity > _MAX_CAPACITY:
        name = "k_cache" if block_table is None else "block_table"
        raise ValueError(f"{name} gives a sequence {capacity} tokens; it may give at most {_MAX_CAPACITY}")
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale is {scale}; it must be finite")
    if out is not None:
        _check_shape("out", out, tuple(q.shape), "the shape of q")
        _check_same("out", out, "q", q)
        _check_last_contiguous("out", out)
        _check_writable("out", out)


def _check_floating(name: str, tensor: torch.Tensor) -> None:
    if tensor.dtype not in _DTYPES:
        raise ValueError(
            f"{name} is {tensor.dtype}; it must be torch.bfloat16, torch.float16 or torch.float32"
        )


def _check_int32(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    if tensor.dtype != torch.int32:
        raise ValueError(f"{name} is {tensor.dtype}; it must be torch.int32")
    _check_device(name, tensor, other_name, other)


def _check_runnable(name: str, tensor: torch.Tensor) -> None:
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


def _check_device(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(
            f"{name} is on {tensor.device}; it must be on {other.device}, the device of {other_name}"
        )


def _check_same(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    if tensor.dtype != other.dtype:
        raise ValueError(f"{name} is {tensor.dtype}; it must be {other.dtype}, the dtype of {other_name}")
    _check_device(name, tensor, other_name, other)


def _check_shape(name: str, tensor: torch.Tensor, wanted: tuple[int | None, ...], meaning: str) -> None:
    """`wanted` holds None where a size is free."""
    fits = tensor.dim() == len(wanted) and all(
        want in (None, size) for want, size in zip(wanted, tensor.shape, strict=True)
    )
    if not fits:
        sizes = ", ".join("any" if want is None else str(want) for want in wanted)
        raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {meaning}: [{sizes}]")


def _check_nonempty(name: str, tensor: torch.Tensor) -> None:
    if tensor.numel() == 0:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; every size must be at least 1")


def _check_last_contiguous(name: str, tensor: torch.Tensor) -> None:
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise ValueError(f"{name} has strides {tuple(tensor.stride())}; the last must be 1")


def _check_writable(name: str, tensor: torch.Tensor) -> None:
    if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
        raise ValueError(f"{name} has strides {tuple(tensor.stride())}; its elements must not share memory")
