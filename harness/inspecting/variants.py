"""What is compiled: shapes of each operation that lead its host function to each of its variants."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .headroom import Workload

DTYPES = ("bf16", "fp16", "fp32")
CACHE_DTYPES = ("e4m3", "e5m2", "int8")
"""Of a cache under bf16 queries."""

ELEMENT_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp8": 1, "e4m3": 1, "e5m2": 1, "int8": 1}
_DECODE = {"batch": 64, "q_heads": 32, "kv_heads": 8, "head_dim": 128, "capacity": 8192, "page_size": 0}
_DECODE_VARIANTS: Mapping[str, Mapping[str, int]] = {"contiguous": {}, "pages_16": {"page_size": 16}}
_MATMUL = {"rows": 8192, "out_features": 8192, "in_features": 4096, "bias": 0}
_MATMUL_VARIANTS: Mapping[str, Mapping[str, int]] = {
    "rows_8192": {},
    "rows_8192_bias": {"bias": 1},
    "rows_1": {"rows": 1, "out_features": 4096},
    "rows_1_bias": {"rows": 1, "out_features": 4096, "bias": 1},
    "rows_64": {"rows": 64, "out_features": 4096},
}
_GROUPS = ((32, 32), (32, 8), (64, 8))
_HEAD_DIMS = (64, 128, 256)
_BF16_HEAD_DIMS = (40, 72, 80, 96)  # no powers of two, and no multiples of 16


@dataclass(frozen=True, kw_only=True)
class CompileCase:
    """One call of a host function, and so all of its launches.

    Attributes:
        kernel: "decode_attention" or "prefill_matmul".
        variant: name of the shape.
        dtype: of the operands: "bf16", "fp16" or "fp32"; of decode attention's cache also "e4m3", "e5m2" or
            "int8", the queries then being bf16.
        shape: sizes by name; page_size 0 is a contiguous cache, bias 1 adds one, options 1 turns on all that
            decode attention has.
    """

    kernel: str
    variant: str
    dtype: str
    shape: Mapping[str, int] = field(hash=False)


def default_cases() -> tuple[CompileCase, ...]:
    """Every variant in every dtype at one common shape: 32 query and 8 key-value heads of 128 elements."""
    return tuple(
        CompileCase(kernel=kernel, variant=variant, dtype=dtype, shape={**base, **shape})
        for kernel, base, variants, dtypes in (
            ("decode_attention", _DECODE, _DECODE_VARIANTS, (*DTYPES, *CACHE_DTYPES)),
            ("prefill_matmul", _MATMUL, _MATMUL_VARIANTS, DTYPES),
        )
        for variant, shape in variants.items()
        for dtype in dtypes
    )


def full_cases() -> tuple[CompileCase, ...]:
    """The default cases, and decode attention at other head sizes, groups and page sizes."""
    more = []
    for q_heads, kv_heads in _GROUPS:
        for head_dim in (*_HEAD_DIMS, *_BF16_HEAD_DIMS):
            heads = {"q_heads": q_heads, "kv_heads": kv_heads, "head_dim": head_dim}
            for variant in ("contiguous", "pages_16"):
                shape = {**_DECODE, **_DECODE_VARIANTS[variant], **heads}
                if shape == {**_DECODE, **_DECODE_VARIANTS[variant]}:
                    continue
                name = f"{variant}_d{head_dim}_g{q_heads // kv_heads}"
                more += [
                    CompileCase(kernel="decode_attention", variant=name, dtype=dtype, shape=shape)
                    for dtype in (("bf16",) if head_dim in _BF16_HEAD_DIMS else (*DTYPES, *CACHE_DTYPES))
                ]
    for page_size in (1, 64):
        shape = {**_DECODE, "page_size": page_size}
        more.append(
            CompileCase(kernel="decode_attention", variant=f"pages_{page_size}", dtype="bf16", shape=shape)
        )
    return (*default_cases(), *more)


def feature_cases() -> tuple[CompileCase, ...]:
    """Decode attention with all its options at once, contiguous and in pages of an awkward size."""
    shape = {**_DECODE, "query_tokens": 3, "options": 1}
    return tuple(
        CompileCase(
            kernel="decode_attention",
            variant=f"options_pages_{page_size}",
            dtype=dtype,
            shape={**shape, "page_size": page_size},
        )
        for page_size, dtype in ((0, "bf16"), (24, "e4m3"))
    )


def workload(case: CompileCase, launch: str, constants: Mapping[str, Any]) -> Workload | None:
    """What one iteration of a launch's hot loop is for.

    Args:
        case: the call.
        launch: which of its launches: "split", "merge", "tile", ...
        constants: its compile-time sizes.

    Returns:
        The workload; None for a launch that this module does not know, or without the sizes that it needs.
    """
    known = {"split": _split, "merge": _merge, "tile": _tile}.get(launch)
    try:
        return known(case, constants) if known else None
    except KeyError:  # a kernel whose sizes have other names is judged by its code alone
        return None


def _split(case: CompileCase, constants: Mapping[str, Any]) -> Workload:
    """A tile of keys and values; programs that share a key-value head's rows share its bytes."""
    rows, tokens = constants["group"] * constants["query_tokens"], constants["block_n"]
    head_dims = constants["head_dim"] + constants["v_head_dim"]
    tile = float(tokens * head_dims * ELEMENT_BYTES[case.dtype])
    return Workload(
        useful_bytes=tile / math.ceil(rows / constants["block_g"]),
        streamed_bytes=tile,
        flop=2.0 * min(rows, constants["block_g"]) * tokens * head_dims,
        tile_bytes=tile,
        dtype="fp16" if case.dtype in CACHE_DTYPES else case.dtype,  # what 8 bits are multiplied as
    )


def _merge(_case: CompileCase, constants: Mapping[str, Any]) -> Workload:
    """The partial results of some parts: a row and its log-sum-exp each, in float32."""
    parts, head_dim = constants["block_s"], constants["v_head_dim"]
    tile = 4.0 * parts * (head_dim + 1)
    return Workload(
        useful_bytes=tile, streamed_bytes=tile, flop=2.0 * parts * head_dim, tile_bytes=tile, dtype="fp32"
    )


def _tile(case: CompileCase, constants: Mapping[str, Any]) -> Workload:
    """A step of K. One block of rows reads the weights alone: all its programs share x, which stays in L2."""
    rows, columns, depth = (case.shape[name] for name in ("rows", "out_features", "in_features"))
    block_m, block_n, block_k = (constants[name] for name in ("block_m", "block_n", "block_k"))
    element_bytes = ELEMENT_BYTES[case.dtype]
    steps = math.ceil(rows / block_m) * math.ceil(columns / block_n) * math.ceil(depth / block_k)
    one_block = rows <= block_m
    distinct = columns * depth + (0 if one_block else rows * depth)
    return Workload(
        useful_bytes=distinct * element_bytes / steps,
        streamed_bytes=float((block_n if one_block else block_m + block_n) * block_k * element_bytes),
        flop=2.0 * rows * columns * depth / steps,
        tile_bytes=float((block_m + block_n) * block_k * element_bytes),
        dtype=case.dtype,
    )
