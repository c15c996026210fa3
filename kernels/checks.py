"""Argument checks: every misuse raises a ValueError that names the argument, its value and what it may be.

This file is over 400 lines because every argument of three functions is checked here, and nothing else done.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from .block_scales import LEAST_BLOCK_K, block_size, weight_has_blocks, x_has_blocks
from .decode_plan import takes_split_scale
from .decode_tiling import MAX_SPLITS, DecodeTiling
from .interpreter import interpreting
from .matmul_operands import ACTIVATIONS, GATED_ACTIVATIONS, Pair, feature_dims, gate_of, row_shape
from .matmul_tiling import MatmulTiling

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Token positions are 32-bit, and the range of a split is rounded up past the last token.
_MAX_CAPACITY = 1 << 30
_MAX_GROUP = 128
_MAX_HEAD_DIM = 576
_MAX_V_HEAD_DIM = 512
_MAX_ROWS = 1 << 30
_LARGEST_FLOAT32 = torch.finfo(torch.float32).max
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_CACHE_DTYPES = (*_FLOAT8, torch.int8)
_OPERAND_DTYPES = (*_DTYPES, *_FLOAT8, torch.int8)
_VECTOR_DTYPES = (*_DTYPES, torch.float64)
_WORKSPACE_ALIGNMENT = 16
_MAX_INT8_K = 2**17 - 1
"""Products of two int8 elements are at most 2^14: so many of them stay below 2^31."""


def check_prefill_matmul(
    *,
    x: torch.Tensor,
    weight: torch.Tensor | Pair,
    bias: torch.Tensor | Pair | None = None,
    activation: str | None = None,
    x_scale: torch.Tensor | float | None = None,
    weight_scale: torch.Tensor | Pair | float | None = None,
    out_dtype: torch.dtype | None = None,
    precision: str = "ieee",
    out: torch.Tensor | None = None,
    tiling: MatmulTiling | None = None,
    gate_up: str = "halves",
    swiglu_alpha: float = 1.0,
    swiglu_beta: float = 0.0,
    swiglu_limit: float | None = None,
    residual: torch.Tensor | None = None,
    residual_scale: float = 1.0,
) -> None:
    """Raise ValueError unless the arguments are as `prefill_matmul` documents them."""
    _check_one_of("activation", activation, (*ACTIVATIONS, *GATED_ACTIVATIONS))
    _check_one_of("precision", precision, ("ieee", "tf32", "tf32x3"))
    _check_one_of("out_dtype", out_dtype, (None, *_DTYPES, torch.int32))
    _check_one_of("gate_up", gate_up, ("halves", "interleaved"))
    if tiling is not None and not isinstance(tiling, MatmulTiling):
        raise ValueError(f"tiling is a {type(tiling).__name__}; it must be a MatmulTiling")
    _check_operands(x, weight)
    gated = activation in GATED_ACTIVATIONS
    _check_gate(weight, activation, gate_up, gated=gated)
    _check_swiglu(activation, swiglu_alpha, swiglu_beta, swiglu_limit)
    _check_features("bias", bias, x, weight)
    _check_matmul_scales(x, weight, x_scale, weight_scale)
    if (out_dtype or getattr(out, "dtype", None)) == torch.int32:
        _check_integer_out(
            *(x, weight),
            bias=bias,
            activation=activation,
            x_scale=x_scale,
            weight_scale=weight_scale,
            residual=residual,
        )
    shape = (*x.shape[:-1], result_features(weight, activation))
    if residual is not None:
        _check_vector("residual", residual, x)
        if not _broadcasts(tuple(residual.shape), shape):
            raise ValueError(
                f"residual has shape {list(residual.shape)}; it must broadcast to that of the result: "
                f"{list(shape)}"
            )
    _check_number("residual_scale", residual_scale)
    if residual_scale is None:
        raise ValueError("residual_scale is None; it must be a number")
    if out is not None:
        _check_shape("out", out, shape, "[..., out_features] with the leading dimensions of x")
        if out.dtype not in ((out_dtype,) if out_dtype else (*_DTYPES, torch.int32)):
            wanted = (
                f"{out_dtype}, as out_dtype says" if out_dtype else f"one of {', '.join(map(str, _DTYPES))}"
            )
            raise ValueError(f"out is {out.dtype}; it must be {wanted}")
        _check_device("out", out, "x", x)
        _check_writable("out", out)
        _check_rows_view(out, gate_of(weight))


def _check_matmul_scales(
    x: torch.Tensor,
    weight: torch.Tensor | Pair,
    x_scale: torch.Tensor | float | None,
    weight_scale: torch.Tensor | Pair | float | None,
) -> None:
    """Scales of one element, per row or feature, or per block of K."""
    if isinstance(x_scale, torch.Tensor) and x_has_blocks(x_scale, x):
        _check_block_scale("x_scale", x_scale, ("x", x), gate_of(weight))
    else:
        _check_row_scale(x_scale, x)
    one_weight = isinstance(weight, torch.Tensor) and isinstance(weight_scale, torch.Tensor)
    if one_weight and weight_has_blocks(weight_scale, weight):  # type: ignore[arg-type]  # tensors both
        _check_block_scale("weight_scale", weight_scale, ("weight", weight), weight)  # type: ignore[arg-type]
    else:
        _check_features("weight_scale", weight_scale, x, weight)
        if one_weight and isinstance(x_scale, torch.Tensor) and x_has_blocks(x_scale, x):
            _check_not_blocks(weight_scale, weight)  # type: ignore[arg-type]  # tensors both


def _check_not_blocks(scale: torch.Tensor, weight: torch.Tensor) -> None:
    """Under scales of x per block of K, refuse [1, features] that could as well be [1, blocks of K]."""
    features, in_features = weight.shape[-2:]
    if scale.dim() != weight.dim() or scale.shape[-2] != 1 or not 1 < features == scale.shape[-1]:
        return
    block_k = block_size(in_features, features)
    if block_k is not None and block_k >= LEAST_BLOCK_K:
        raise ValueError(
            f"weight_scale has shape {list(scale.shape)}, one per feature or block of in_features; it "
            f"must be [{features}] for features, or expanded to [{features}, {features}] for blocks"
        )


def default_out_dtype(x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.dtype:
    """The dtype of an output without `out_dtype` and `out`: that of the wider operand, bfloat16 of 8 bits."""
    wider = x if weight is None or x.element_size() >= weight.element_size() else weight
    return torch.bfloat16 if wider.element_size() == 1 else wider.dtype


def result_features(weight: torch.Tensor | Pair, activation: str | None) -> int:
    """Columns of the result."""
    features = gate_of(weight).shape[-2]
    halved = activation in GATED_ACTIVATIONS and not isinstance(weight, tuple)
    return features // 2 if halved else features


def _check_operands(x: torch.Tensor, weight: torch.Tensor | Pair) -> None:
    _check_tensor("x", x)
    if x.dtype not in _OPERAND_DTYPES:
        raise ValueError(f"x is {x.dtype}; it must be one of {', '.join(map(str, _OPERAND_DTYPES))}")
    if x.dim() == 0:
        raise ValueError("x has no dimensions; it must be [..., in_features]")
    _check_runnable("x", x)
    if not isinstance(weight, tuple):
        _check_weight("weight", weight, x)
        return
    if len(weight) != 2:
        raise ValueError(f"weight is a tuple of {len(weight)}; it must be a tensor or a pair: gate and up")
    for position, each in enumerate(weight):
        _check_weight(f"weight[{position}]", each, x)
    gate, up = weight
    _check_shape("weight[1]", up, tuple(gate.shape), "the shape of weight[0]")
    _check_same("weight[1]", up, "weight[0]", gate)
    if up.stride() != gate.stride():
        raise ValueError(
            f"weight[1] has strides {tuple(up.stride())}; it must have those of weight[0]: "
            f"{tuple(gate.stride())}"
        )
    _check_distance("weight[1]", gate, up)


def _check_weight(name: str, weight: torch.Tensor, x: torch.Tensor) -> None:
    _check_tensor(name, weight)
    if weight.dim() == 3:
        if x.dim() != 3:
            raise ValueError(
                f"x has shape {list(x.shape)}; under a weight of 3 dimensions it must be "
                "[batch, tokens, in_features]"
            )
        wanted: tuple[int | None, ...] = (x.shape[0], None, x.shape[-1])
        _check_shape(name, weight, wanted, "[batch of x, out_features, in_features of x]")
    else:
        _check_shape(name, weight, (None, x.shape[-1]), "[out_features, in_features of x]")
    allowed = _weight_dtypes(x.dtype)
    if weight.dtype not in allowed:
        kinds = " or ".join(map(str, allowed))
        raise ValueError(f"{name} is {weight.dtype}; under x of {x.dtype} it must be {kinds}")
    _check_device(name, weight, "x", x)
    if x.dtype == weight.dtype == torch.int8 and x.shape[-1] > _MAX_INT8_K:
        raise ValueError(
            f"x has {x.shape[-1]} in_features; in int8 it must have at most {_MAX_INT8_K}, for sums in int32"
        )


def _weight_dtypes(x_dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """Dtypes of a weight beside x: its own, or one of which the wider holds all values of the narrower."""
    if x_dtype in _FLOAT8:
        return (*_FLOAT8, *_DTYPES)
    if x_dtype == torch.int8:
        return (torch.int8, *_DTYPES)
    if x_dtype == torch.float32:
        return (*_DTYPES, *_FLOAT8, torch.int8)
    return (x_dtype, torch.float32, *_FLOAT8, torch.int8)


def _check_distance(name: str, gate: torch.Tensor, up: torch.Tensor) -> None:
    """The kernel finds `up` as so many elements past `gate`."""
    if (up.data_ptr() - gate.data_ptr()) % gate.element_size():
        raise ValueError(f"{name} starts at address {up.data_ptr():#x}; it must be aligned to its elements")


def _check_gate(weight: torch.Tensor | Pair, activation: str | None, gate_up: str, *, gated: bool) -> None:
    if isinstance(weight, tuple):
        if not gated:
            raise ValueError(f"weight is a pair; under activation {activation!r} it must be one tensor")
        if gate_up != "halves":
            raise ValueError(f"gate_up is {gate_up!r}; with a pair of weights it must be 'halves'")
    elif gated and weight.shape[-2] % 2:
        raise ValueError(
            f"weight has {weight.shape[-2]} rows; for {activation} it must have as many up as gate rows"
        )
    elif not gated and gate_up != "halves":
        raise ValueError(f"gate_up is {gate_up!r}; without a gated activation it must be 'halves'")


def _check_swiglu(activation: str | None, alpha: float, beta: float, limit: float | None) -> None:
    for name, value, default in (
        ("swiglu_alpha", alpha, 1.0),
        ("swiglu_beta", beta, 0.0),
        ("swiglu_limit", limit, None),
    ):
        _check_number(name, value)
        if value is None and default is not None:
            raise ValueError(f"{name} is None; it must be a number")
        if activation != "swiglu" and value != default:
            raise ValueError(f"{name} is {value}; with activation {activation!r} it must be {default}")
    if limit is not None and limit <= 0:
        raise ValueError(f"swiglu_limit is {limit}; it must be positive")


def _check_features(
    name: str, value: torch.Tensor | Pair | float | None, x: torch.Tensor, weight: torch.Tensor | Pair
) -> None:
    """A bias or scales of the weight; a number only as a scale."""
    if value is None:
        return
    if name == "weight_scale" and not isinstance(value, torch.Tensor | tuple):
        _check_number(name, value)
        return
    features = gate_of(weight).shape[-2]
    named: list[tuple[str, Any]]
    if isinstance(value, tuple):
        if not isinstance(weight, tuple) or len(value) != 2:
            raise ValueError(f"{name} is a tuple of {len(value)}; it may be a pair beside a pair of weights")
        named = [(f"{name}[{position}]", each) for position, each in enumerate(value)]
    else:
        named = [(name, value)]
        features *= 2 if isinstance(weight, tuple) else 1
    batch = x.shape[0] if x.dim() == 3 else None
    for each_name, each in named:
        _check_vector(each_name, each, x)
        whole = name == "bias" and (each.shape[-1:] != (features,))
        if whole or feature_dims(tuple(each.shape), batch, features) is None:
            forms = "[features], [1, features], [batch, features] or [batch, 1, features]"
            more = " or one element, or [features, 1], [batch, features, 1]" if name == "weight_scale" else ""
            sizes = f"with {features} rows of weight" + ("" if batch is None else f" and batch {batch}")
            raise ValueError(f"{each_name} has shape {list(each.shape)}; it must be {forms}{more}, {sizes}")
    if isinstance(value, tuple):
        (_, first), (second_name, second) = named
        _check_shape(second_name, second, tuple(first.shape), f"the shape of {name}[0]")
        if second.dtype != first.dtype or second.stride() != first.stride():
            raise ValueError(
                f"{second_name} is {second.dtype} of strides {tuple(second.stride())}; it must be as "
                f"{name}[0]: {first.dtype} of strides {tuple(first.stride())}"
            )
        _check_distance(second_name, first, second)


def _check_row_scale(scale: torch.Tensor | float | None, x: torch.Tensor) -> None:
    if not isinstance(scale, torch.Tensor):
        _check_number("x_scale", scale)
        return
    _check_vector("x_scale", scale, x)
    if row_shape(tuple(scale.shape), tuple(x.shape)) is None:
        raise ValueError(
            f"x_scale has shape {list(scale.shape)}; it must have one element, or be that of x without its "
            f"last dimension: {list(x.shape[:-1])}, or with 1 in its place"
        )


def _check_vector(name: str, value: torch.Tensor, x: torch.Tensor) -> None:
    _check_tensor(name, value)
    if value.dtype not in _VECTOR_DTYPES:
        raise ValueError(f"{name} is {value.dtype}; it must be one of {', '.join(map(str, _VECTOR_DTYPES))}")
    _check_device(name, value, "x", x)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    trailing = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(size in (1, whole) for size, whole in trailing)


def _check_block_scale(
    name: str, scale: torch.Tensor, of: tuple[str, torch.Tensor], weight: torch.Tensor
) -> None:
    """Scales per block of K: any strides, blocks of a power of two."""
    operand = of[1]
    _check_tensor(name, scale)
    if scale.dtype not in _DTYPES:
        kinds = ", ".join(map(str, _DTYPES))
        raise ValueError(f"{name} is {scale.dtype}; it must be one of {kinds}")
    if weight.element_size() > 1:
        raise ValueError(f"{name} has shape {list(scale.shape)}; blocks need a weight of 8 bits")
    _check_nonempty(name, scale)
    in_features = operand.shape[-1]
    block_k = block_size(in_features, scale.shape[-1])
    if block_k is None or block_k < LEAST_BLOCK_K:
        raise ValueError(
            f"{name} has shape {list(scale.shape)}; its last dimension must divide {in_features} in_features "
            f"into blocks of a power of two of at least {LEAST_BLOCK_K}"
        )
    rows = operand.shape[-2] if name == "weight_scale" else 1
    if name == "weight_scale" and block_size(rows, scale.shape[-2]) is None:
        raise ValueError(
            f"{name} has shape {list(scale.shape)}; it must divide {rows} rows of weight into blocks of a "
            "power of two"
        )
    _check_device(name, scale, *of)


def _check_integer_out(x: torch.Tensor, weight: torch.Tensor | Pair, **epilogue: object) -> None:
    """int32 sums of int8 products, without an epilogue."""
    for name, operand in (("x", x), ("weight", gate_of(weight))):
        if operand.dtype != torch.int8:
            raise ValueError(
                f"out_dtype is torch.int32; under {name} of {operand.dtype} it must be a float dtype"
            )
    for name, value in epilogue.items():
        if value is not None:
            raise ValueError(f"{name} is given; it must be None where out_dtype is torch.int32")


def _check_rows_view(out: torch.Tensor, weight: torch.Tensor) -> None:
    """The rows of `out` must have one stride, unless the weight is batched."""
    if weight.dim() == 3:
        return
    try:
        out.view(-1, out.shape[-1])
    except RuntimeError as error:
        raise ValueError(
            f"out has strides {tuple(out.stride())}; all dimensions but the last must view as one"
        ) from error


def _check_one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if not any(value is each or (isinstance(value, str) and value == each) for each in allowed):
        words = ", ".join(map(str, allowed))
        raise ValueError(f"{name} is {value!r}; it must be one of {words}")


def check_decode_attention(
    *,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    context_lens: torch.Tensor,
    cu_seqlens: torch.Tensor | None = None,
    q_lens: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    scale: torch.Tensor | float | None = None,
    window: int | None = None,
    softcap: torch.Tensor | float | None = None,
    sinks: torch.Tensor | None = None,
    q_scale: torch.Tensor | float | None = None,
    k_scale: torch.Tensor | float | None = None,
    v_scale: torch.Tensor | float | None = None,
    out_scale: torch.Tensor | float | None = None,
    out_dtype: torch.dtype | None = None,
    num_splits: int | None = None,
    return_lse: bool = False,
    lse_layout: str = "tokens-first",
    lse_base: str | int = "e",
    out: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
    tiling: DecodeTiling | None = None,
) -> None:
    """Raise ValueError unless the arguments are as `decode_attention` documents them."""
    _check_one_of("lse_layout", lse_layout, ("tokens-first", "heads-first"))
    _check_lse_base(lse_base)
    if tiling is not None and not isinstance(tiling, DecodeTiling):
        raise ValueError(f"tiling is a {type(tiling).__name__}; it must be a DecodeTiling")
    _check_queries(q, packed=cu_seqlens is not None)
    batch = _check_query_lengths(q, cu_seqlens, q_lens)
    _check_caches(q, k_cache, v_cache, batch, paged=block_table is not None)
    q_heads, kv_heads = q.shape[-2], k_cache.shape[2]
    if q_heads % kv_heads or q_heads // kv_heads > _MAX_GROUP:
        raise ValueError(
            f"q has {q_heads} heads; it must have 1 to {_MAX_GROUP} for each of the {kv_heads} in k_cache"
        )
    _check_row_count(q, q_heads // kv_heads)
    _check_integers("context_lens", context_lens, "q", q)
    _check_shape("context_lens", context_lens, (batch,), "[batch]")
    _check_last_contiguous("context_lens", context_lens)
    capacity = k_cache.shape[1]
    if block_table is not None:
        _check_integers("block_table", block_table, "q", q)
        _check_shape("block_table", block_table, (batch, None), "[batch, max_pages]")
        _check_nonempty("block_table", block_table)
        _check_last_contiguous("block_table", block_table)
        capacity *= block_table.shape[1]
    if capacity > _MAX_CAPACITY:
        name = "k_cache" if block_table is None else "block_table"
        raise ValueError(f"{name} gives a sequence {capacity} tokens; it may give at most {_MAX_CAPACITY}")
    for name, number in (("scale", scale), ("softcap", softcap), ("out_scale", out_scale)):
        _check_decode_scale(name, number, {}, q)
    for name, number in (("softcap", softcap), ("out_scale", out_scale)):
        if isinstance(number, int | float) and number <= 0:
            raise ValueError(f"{name} is {number}; it must be positive")
    _check_count("window", window)
    _check_count("num_splits", num_splits, at_most=MAX_SPLITS)
    if sinks is not None:
        _check_floating("sinks", sinks)
        _check_shape("sinks", sinks, (q_heads,), "[q_heads]")
        _check_device("sinks", sinks, "q", q)
        _check_last_contiguous("sinks", sinks)
    per_head = {"[kv_heads]": (kv_heads,), "[batch, kv_heads]": (batch, kv_heads)}
    of_q = {"[q_heads]": (q_heads,), **per_head, "that of q without head_dim": tuple(q.shape[:-1])}
    of_v = {**per_head, "that of the cache without head_dim": tuple(k_cache.shape[:3])}
    split = {"[2] of the elements of v_cache and of the rest": (2,)}
    of_k = {**of_v, **(split if takes_split_scale(k_cache, v_cache) else {})}
    for name, each, shapes in (
        ("q_scale", q_scale, of_q),
        ("k_scale", k_scale, of_k),
        ("v_scale", v_scale, of_v),
    ):
        _check_decode_scale(name, each, shapes, q)
    _check_one_of("out_dtype", out_dtype, (None, *_DTYPES, *_FLOAT8))
    _check_decode_out(
        out, q, v_cache.shape[-1], return_lse=return_lse, lse_layout=lse_layout, out_dtype=out_dtype
    )


def default_decode_dtype(q: torch.Tensor, v_cache: torch.Tensor) -> torch.dtype:
    """The dtype of the output of `decode_attention` without `out_dtype` and `out`."""
    floats = [tensor.dtype for tensor in (q, v_cache) if tensor.dtype in _DTYPES]
    return floats[0] if floats else torch.bfloat16


def check_workspace(
    workspace: torch.Tensor, *, at_least_bytes: int, same_device_as: tuple[str, torch.Tensor]
) -> None:
    """Raise ValueError unless a workspace is as the kernels document it, on the device of that argument."""
    _check_tensor("workspace", workspace)
    _check_device("workspace", workspace, *same_device_as)
    _check_contiguous("workspace", workspace)
    if workspace.nbytes < at_least_bytes:
        raise ValueError(f"workspace has {workspace.nbytes} bytes; it must have at least {at_least_bytes}")
    if workspace.data_ptr() % _WORKSPACE_ALIGNMENT:
        raise ValueError(
            f"workspace starts at address {workspace.data_ptr():#x}; it must be aligned to 16 bytes"
        )


def _check_queries(q: torch.Tensor, *, packed: bool) -> None:
    _check_tensor("q", q)
    if q.dtype not in (*_DTYPES, *_CACHE_DTYPES):
        kinds = ", ".join(map(str, (*_DTYPES, *_CACHE_DTYPES)))
        raise ValueError(f"q is {q.dtype}; it must be one of {kinds}")
    if packed and q.dim() != 3:
        raise ValueError(
            f"q has shape {list(q.shape)}; with cu_seqlens it must be [tokens, q_heads, head_dim]"
        )
    if q.dim() not in (3, 4):
        raise ValueError(
            f"q has shape {list(q.shape)}; it must be [batch, q_heads, head_dim] or "
            "[batch, query_tokens, q_heads, head_dim]"
        )
    if 0 in (q.shape[1:] if packed else q.shape):
        raise ValueError(f"q has shape {list(q.shape)}; every size must be at least 1")
    _check_runnable("q", q)
    _check_last_contiguous("q", q)
    _check_head_dim("q", q, _MAX_HEAD_DIM)


def _check_query_lengths(
    q: torch.Tensor, cu_seqlens: torch.Tensor | None, q_lens: torch.Tensor | None
) -> int:
    """Checks how many query tokens each sequence has; returns the number of sequences."""
    if cu_seqlens is not None:
        if q_lens is not None:
            raise ValueError("q_lens is given with cu_seqlens; only one of them may be")
        _check_integers("cu_seqlens", cu_seqlens, "q", q)
        _check_shape("cu_seqlens", cu_seqlens, (None,), "[batch + 1]")
        if cu_seqlens.shape[0] < 2:
            raise ValueError(
                f"cu_seqlens has shape {list(cu_seqlens.shape)}; it must be [batch + 1] with a batch of at "
                "least 1"
            )
        _check_last_contiguous("cu_seqlens", cu_seqlens)
        return cu_seqlens.shape[0] - 1
    if q_lens is not None:
        if q.dim() != 4:
            raise ValueError(
                f"q has shape {list(q.shape)}; with q_lens it must be [batch, max_tokens, q_heads, head_dim]"
            )
        _check_integers("q_lens", q_lens, "q", q)
        _check_shape("q_lens", q_lens, (q.shape[0],), "[batch]")
        _check_last_contiguous("q_lens", q_lens)
    return q.shape[0]


def _check_row_count(q: torch.Tensor, group: int) -> None:
    """Query rows of a key-value head are counted in 32 bits."""
    tokens = math.prod(q.shape[:-2])
    if tokens * group > _MAX_ROWS:
        raise ValueError(
            f"q has {tokens} query tokens; with groups of {group} it may have {_MAX_ROWS // group}"
        )


def _check_lse_base(lse_base: object) -> None:
    if isinstance(lse_base, bool) or lse_base not in ("e", 2):
        raise ValueError(f"lse_base is {lse_base!r}; it must be 'e' or 2")


def _check_caches(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, batch: int, *, paged: bool
) -> None:
    head_dim = q.shape[-1]
    if paged:
        layout, first = "[pages, page_size, kv_heads, head_dim] with head_dim of q", None
    else:
        layout, first = "[batch, capacity, kv_heads, head_dim] with batch and head_dim of q", batch
    _check_tensor("k_cache", k_cache)
    _check_tensor("v_cache", v_cache)
    _check_shape("k_cache", k_cache, (first, None, None, head_dim), layout)
    _check_shape("v_cache", v_cache, (*k_cache.shape[:3], None), "the shape of k_cache but for head_dim")
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        _check_nonempty(name, cache)
        _check_device(name, cache, "q", q)
        _check_last_contiguous(name, cache)
    _check_head_dim("v_cache", v_cache, _MAX_V_HEAD_DIM)
    floats = (q.dtype,) if q.dtype in _DTYPES else _DTYPES
    if k_cache.dtype not in (*floats, *_CACHE_DTYPES):
        kinds = ", ".join(map(str, (*floats, *_CACHE_DTYPES)))
        raise ValueError(f"k_cache is {k_cache.dtype}; under q of {q.dtype} it must be one of {kinds}")
    _check_same("v_cache", v_cache, "k_cache", k_cache)


def _check_decode_out(
    out: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None,
    q: torch.Tensor,
    v_head_dim: int,
    *,
    return_lse: bool,
    lse_layout: str,
    out_dtype: torch.dtype | None,
) -> None:
    if isinstance(out, tuple):
        if not return_lse or len(out) != 2:
            raise ValueError("out is a tuple; it may be the pair of output and log-sum-exp with return_lse")
        out, lse = out
        _check_tensor("out[1]", lse)
        meaning = "the shape of q without head_dim"
        if lse_layout == "heads-first":
            meaning += ", heads before tokens"
        _check_shape("out[1]", lse, lse_shape(q, lse_layout), meaning)
        _check_dtype("out[1]", lse, torch.float32)
        _check_device("out[1]", lse, "q", q)
        _check_contiguous("out[1]", lse)
    if out is not None:
        _check_tensor("out", out)
        _check_shape("out", out, (*q.shape[:-1], v_head_dim), "the shape of q with the head_dim of v_cache")
        allowed = (*_DTYPES, *_FLOAT8) if out_dtype is None else (out_dtype,)
        if out.dtype not in allowed:
            raise ValueError(f"out is {out.dtype}; it must be {' or '.join(map(str, allowed))}")
        _check_device("out", out, "q", q)
        _check_last_contiguous("out", out)
        _check_writable("out", out)


def lse_shape(q: torch.Tensor, lse_layout: str) -> tuple[int, ...]:
    """Shape of the log-sum-exp of `decode_attention`."""
    *lead, tokens, heads = q.shape[:-1]
    return (*lead, heads, tokens) if lse_layout == "heads-first" else (*lead, tokens, heads)


def _check_head_dim(name: str, tensor: torch.Tensor, most: int) -> None:
    head_dim = tensor.shape[-1]
    if not 1 <= head_dim <= most:
        raise ValueError(f"{name} has head_dim {head_dim}; it must be from 1 to {most}")


def _check_scale(
    name: str,
    scale: torch.Tensor | float | None,
    shapes: set[tuple[int, ...]],
    meaning: str,
    like: tuple[str, torch.Tensor],
) -> None:
    """A number, one float32 element, or a float32 tensor of one of the shapes, on the device of `like`."""
    if not isinstance(scale, torch.Tensor):
        _check_number(name, scale)
        return
    _check_tensor(name, scale)
    _check_dtype(name, scale, torch.float32)
    if tuple(scale.shape) not in {(), (1,), *shapes}:
        raise ValueError(f"{name} has shape {list(scale.shape)}; it must be [], [1]{meaning}")
    _check_device(name, scale, *like)


def _check_decode_scale(
    name: str,
    scale: torch.Tensor | float | None,
    shapes: dict[str, tuple[int, ...]],
    q: torch.Tensor,
) -> None:
    """A number, or a tensor of one element or of one of the named shapes, on the device of `q`."""
    if not isinstance(scale, torch.Tensor):
        _check_number(name, scale)
        return
    _check_floating(name, scale)
    if tuple(scale.shape) not in {(), (1,), *shapes.values()}:
        *meanings, last = ("[]", "[1]", *shapes)
        sizes = ", ".join(str(list(shape)) for shape in shapes.values())
        raise ValueError(
            f"{name} has shape {list(scale.shape)}; it must be {', '.join(meanings)}{',' if shapes else ''} "
            f"or {last}{': ' + sizes if sizes else ''}"
        )
    _check_device(name, scale, "q", q)


def _check_number(name: str, value: float | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is a {type(value).__name__}; it must be a number")  # noqa: TRY004  (every misuse is a ValueError)
    if not abs(value) <= _LARGEST_FLOAT32:
        raise ValueError(f"{name} is {value}; it must be finite in float32")


def _check_count(name: str, value: int | None, at_most: int | None = None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is a {type(value).__name__}; it must be an int")  # noqa: TRY004  (the same)
    if value < 1 or (at_most is not None and value > at_most):
        raise ValueError(
            f"{name} is {value}; it must be at least 1{f' and at most {at_most}' if at_most else ''}"
        )


def _check_tensor(name: str, value: object) -> None:
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
    """Whether the elements are in memory: not in torch.vmap, in a fake tensor, or after a storage was freed."""
    try:
        storage = tensor.untyped_storage()
        located = storage.device.type == tensor.device.type
        return located and (tensor.device.type == "meta" or not tensor.numel() or storage.data_ptr() != 0)
    except RuntimeError:  # inside torch.vmap, torch.func.grad and torch.func.functionalize
        return False


def _check_floating(name: str, tensor: torch.Tensor) -> None:
    _check_tensor(name, tensor)
    if tensor.dtype not in _DTYPES:
        raise ValueError(
            f"{name} is {tensor.dtype}; it must be torch.bfloat16, torch.float16 or torch.float32"
        )


def _check_dtype(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise ValueError(f"{name} is {tensor.dtype}; it must be {dtype}")


def _check_integers(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    _check_tensor(name, tensor)
    if tensor.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} is {tensor.dtype}; it must be torch.int32 or torch.int64")
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
    """`wanted` holds None for a free size."""
    _check_tensor(name, tensor)
    fits = tensor.dim() == len(wanted) and all(
        want in (None, size) for want, size in zip(wanted, tensor.shape, strict=True)
    )
    if not fits:
        sizes = ", ".join("any" if want is None else str(want) for want in wanted)
        raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {meaning}: [{sizes}]")


def _check_nonempty(name: str, tensor: torch.Tensor) -> None:
    if tensor.numel() == 0:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; every size must be at least 1")


def _check_contiguous(name: str, tensor: torch.Tensor) -> None:
    if not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {tuple(tensor.stride())}; it must be contiguous")


def _check_last_contiguous(name: str, tensor: torch.Tensor) -> None:
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise ValueError(f"{name} has strides {tuple(tensor.stride())}; the last must be 1")


def _check_writable(name: str, tensor: torch.Tensor) -> None:
    if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
        raise ValueError(f"{name} has strides {tuple(tensor.stride())}; its elements must not share memory")
