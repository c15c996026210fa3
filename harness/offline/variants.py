"""What is compiled: shapes of each operation that lead its host function to each of its variants."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .cache_model import MatmulShape
from .headroom import Workload
from .subjects import TMA_FROM_CAPABILITY, GpuLimits, MatmulTiling, Variant, matmul_tiling

DTYPES = ("bf16", "fp16", "fp32")
NARROW_DTYPES = ("e4m3", "e5m2", "int8")
"""Of a cache under bf16 queries; of a product's operands, int8 of the weight alone, under bf16."""

ELEMENT_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp8": 1, "e4m3": 1, "e5m2": 1, "int8": 1}
_DECODE = {"batch": 64, "q_heads": 32, "kv_heads": 8, "head_dim": 128, "capacity": 8192, "page_size": 0}
_DECODE_VARIANTS: Mapping[str, Mapping[str, int]] = {"contiguous": {}, "pages_16": {"page_size": 16}}
_MATMUL = {"rows": 8192, "out_features": 8192, "in_features": 4096, "bias": 0, "swiglu": 0}
_MATMUL_VARIANTS: Mapping[str, Mapping[str, int]] = {
    "rows_8192": {},
    "rows_8192_bias": {"bias": 1},
    "rows_1": {"rows": 1, "out_features": 4096},
    "rows_1_bias": {"rows": 1, "out_features": 4096, "bias": 1},
    "rows_64": {"rows": 64, "out_features": 4096},
}
# Every default tiling of a product: rows by the chooser's branches, columns that fill a GPU and that do not.
_MATMUL_MORE: Mapping[str, Mapping[str, int]] = {
    "rows_16": {"rows": 16, "out_features": 4096},
    "rows_24": {"rows": 24, "out_features": 4096},
    "rows_64_wide": {"rows": 64, "out_features": 57344},
    "rows_1_wide": {"rows": 1, "out_features": 57344},
    "rows_300_bias": {"rows": 300, "out_features": 4096, "bias": 1},
    "rows_1024_bias": {"rows": 1024, "out_features": 4096, "bias": 1},
    "rows_1000_bias": {"rows": 1000, "out_features": 6144, "bias": 1},
    "rows_2048_swiglu": {"rows": 2048, "out_features": 14336, "swiglu": 1},
    "rows_1_swiglu": {"rows": 1, "out_features": 14336, "swiglu": 1},
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
            "int8", the queries then being bf16; of a product's operands also "e4m3" or "e5m2", and "int8" of
            its weight under x of bf16.
        shape: sizes by name; page_size 0 is a contiguous cache, bias 1 adds one, swiglu 1 makes out_features
            pairs of gate and up, options 1 turns on all that decode attention has.
        loads: the variant of a product; the one that its host function chooses when none.
    """

    kernel: str
    variant: str
    dtype: str
    shape: Mapping[str, int] = field(hash=False)
    loads: Variant | None = None

    def applies_to(self, sm: int) -> bool:
        """Whether a GPU of this compiler target has what the case's variant loads with."""
        if self.loads == "warp_specialized":
            return sm // 10 == 10
        return self.loads != "descriptors" or sm >= TMA_FROM_CAPABILITY


def default_cases() -> tuple[CompileCase, ...]:
    """Every variant in every dtype at one common shape: 32 query and 8 key-value heads of 128 elements."""
    dtypes = (*DTYPES, *NARROW_DTYPES)
    decode = (
        CompileCase(kernel="decode_attention", variant=variant, dtype=dtype, shape={**_DECODE, **shape})
        for variant, shape in _DECODE_VARIANTS.items()
        for dtype in dtypes
    )
    chosen = (
        CompileCase(kernel="prefill_matmul", variant=variant, dtype=dtype, shape={**_MATMUL, **shape})
        for variant, shape in _MATMUL_VARIANTS.items()
        for dtype in dtypes
    )
    return (*decode, *chosen, *_loading("pointers", "bf16"), *_loading("warp_specialized", "bf16"))


def _loading(loads: Variant, *dtypes: str) -> tuple[CompileCase, ...]:
    """The product of many rows by one variant."""
    return tuple(
        CompileCase(
            kernel="prefill_matmul", variant=f"rows_8192_{loads}", dtype=dtype, shape=_MATMUL, loads=loads
        )
        for dtype in dtypes
    )


def full_cases() -> tuple[CompileCase, ...]:
    """The default cases; decode attention of other heads, groups and pages; products of other rows."""
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
                    for dtype in (("bf16",) if head_dim in _BF16_HEAD_DIMS else (*DTYPES, *NARROW_DTYPES))
                ]
    for page_size in (1, 64):
        shape = {**_DECODE, "page_size": page_size}
        more.append(
            CompileCase(kernel="decode_attention", variant=f"pages_{page_size}", dtype="bf16", shape=shape)
        )
    more += [
        CompileCase(kernel="prefill_matmul", variant=variant, dtype=dtype, shape={**_MATMUL, **shape})
        for variant, shape in _MATMUL_MORE.items()
        for dtype in (*DTYPES, *NARROW_DTYPES)
    ]
    return (*default_cases(), *more, *_loading("pointers", "e4m3"), *_loading("warp_specialized", "e4m3"))


def product_shape(case: CompileCase) -> MatmulShape:
    """The product of a case, its weight's rows being the columns."""
    pairs = 2 if case.shape.get("swiglu") else 1
    x_bytes, weight_bytes = _operand_bytes(case)
    return MatmulShape(
        rows=case.shape["rows"],
        out_features=case.shape["out_features"] * pairs,
        in_features=case.shape["in_features"],
        x_bytes=x_bytes,
        weight_bytes=weight_bytes,
        out_bytes=max(2, x_bytes) // pairs,
    )


def product_tiling(case: CompileCase, limits: GpuLimits) -> MatmulTiling:
    """How the product of a case is cut on a GPU."""
    shape = product_shape(case)
    return matmul_tiling(
        limits,
        rows=shape.rows,
        out_features=shape.out_features,
        in_features=shape.in_features,
        x_bytes=shape.x_bytes,
        weight_bytes=shape.weight_bytes,
        variant=case.loads,
    )


def multiplied_dtype(case: CompileCase, sm: int) -> str:
    """What a product's operands are multiplied as: GPUs before sm_89 have no products of 8-bit floats."""
    if case.dtype in {"e4m3", "e5m2"}:
        return "fp8" if sm >= 89 else "fp16"
    return "bf16" if case.dtype == "int8" else case.dtype


def _operand_bytes(case: CompileCase) -> tuple[int, int]:
    """Of an element of x, and of the weight."""
    size = ELEMENT_BYTES[case.dtype]
    return (2 if case.dtype == "int8" else size), size


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


def workload(case: CompileCase, launch: str, constants: Mapping[str, Any], sm: int = 90) -> Workload | None:
    """What one iteration of a launch's hot loop is for.

    Args:
        case: the call.
        launch: which of its launches: "split_kv", "combine", "matmul", "tma", ...
        constants: its compile-time sizes.
        sm: the compiler target.

    Returns:
        The workload; None for a launch that this module does not know, or without the sizes that it needs.
    """
    try:
        if launch in {"matmul", "tma"}:
            return _tile(case, constants, sm)
        known = {"split_kv": _split, "combine": _merge}.get(launch)
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
        dtype="fp16" if case.dtype in NARROW_DTYPES else case.dtype,  # what 8 bits are multiplied as
    )


def _merge(_case: CompileCase, constants: Mapping[str, Any]) -> Workload:
    """The partial results of some parts: a row and its log-sum-exp each, in float32."""
    parts, head_dim = constants["block_s"], constants["v_head_dim"]
    tile = 4.0 * parts * (head_dim + 1)
    return Workload(
        useful_bytes=tile, streamed_bytes=tile, flop=2.0 * parts * head_dim, tile_bytes=tile, dtype="fp32"
    )


def _tile(case: CompileCase, constants: Mapping[str, Any], sm: int) -> Workload:
    """A step of K. One block of rows reads the weights alone: all its programs share x, which stays in L2."""
    shape = product_shape(case)
    block_m, block_n, block_k = (constants[name] for name in ("block_m", "block_n", "block_k"))
    columns = constants.get("columns", block_n)
    steps = math.ceil(shape.rows / block_m) * math.ceil(shape.out_features / columns)
    steps *= math.ceil(shape.in_features / block_k)
    one_block = shape.rows <= block_m
    x_rows = 0 if one_block else shape.rows
    distinct = shape.in_features * (shape.out_features * shape.weight_bytes + x_rows * shape.x_bytes)
    streamed = columns * shape.weight_bytes + (0 if one_block else block_m * shape.x_bytes)
    return Workload(
        useful_bytes=distinct / steps,
        streamed_bytes=float(streamed * block_k),
        flop=shape.operations / steps,
        tile_bytes=float((block_m * shape.x_bytes + block_n * shape.weight_bytes) * block_k),
        dtype=multiplied_dtype(case, sm),
    )
