"""The cases that `inspect` compiles: shapes that make the host functions launch each of their variants."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...kernels.decode_plan import mean_query_tokens
from ...kernels.decode_tiling import DecodeTiling, choose_decode_tiling
from ...kernels.matmul_tiling import TMA_FROM_CAPABILITY, MatmulTiling, Variant
from ..core.gpus import Gpu
from .cache_model import MatmulOperands
from .default_tilings import kernel_limits, matmul_tiling
from .headroom import IterationWork

DTYPES = ("bf16", "fp16", "fp32")
NARROW_DTYPES = ("e4m3", "e5m2", "int8")
"""Of the KV cache with bf16 queries; of both matmul operands, but int8 only of the weight, with bf16 x."""

ELEMENT_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp8": 1, "e4m3": 1, "e5m2": 1, "int8": 1}
_DECODE = {"batch": 64, "q_heads": 32, "kv_heads": 8, "head_dim": 128, "capacity": 8192, "page_size": 0}
_DECODE_VARIANTS: Mapping[str, Mapping[str, int]] = {"contiguous": {}, "pages_16": {"page_size": 16}}
_LATENT = {**_DECODE, "kv_heads": 1, "head_dim": 576, "v_head_dim": 512, "latent": 1}
_LATENT_VARIANTS: Mapping[str, Mapping[str, int]] = {
    "latent_16_heads": {"q_heads": 16},
    "latent_128_heads": {"q_heads": 128},
}
_PACKED = {**_DECODE, "page_size": 16, "packed_tokens": 575}  # 63 decode steps and a chunk of 512 tokens
_MATMUL = {"rows": 8192, "out_features": 8192, "in_features": 4096, "bias": 0, "swiglu": 0}
_MATMUL_VARIANTS: Mapping[str, Mapping[str, int]] = {
    "rows_8192": {},
    "rows_8192_bias": {"bias": 1},
    "rows_1": {"rows": 1, "out_features": 4096},
    "rows_1_bias": {"rows": 1, "out_features": 4096, "bias": 1},
    "rows_64": {"rows": 64, "out_features": 4096},
}
_BLOCK_SCALED: Mapping[str, Mapping[str, int]] = {
    "rows_1024_blocks": {"rows": 1024},
    "rows_64_blocks": {"rows": 64, "out_features": 4096},
    "rows_1_blocks": {"rows": 1, "out_features": 4096},
}
_INT8_X: Mapping[str, Mapping[str, int]] = {
    "rows_1024_int8_x": {"rows": 1024},
    "rows_1_int8_x": {"rows": 1, "out_features": 4096},
}
# Rows for each branch of the matmul chooser, and columns that fill a GPU and that do not.
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


_PREFILL_ATTENTION = {"batch": 2, "tokens": 4096, "q_heads": 32, "kv_heads": 8}
_PREFILL_ATTENTION_VARIANTS: Mapping[str, Mapping[str, int]] = {
    "prompt_4096_d64": {"head_dim": 64},
    "prompt_4096_d128": {"head_dim": 128},
}
_PREFILL_ATTENTION_DTYPES = ("bf16", "fp16", "e4m3")
_PREFILL_ATTENTION_MORE: Mapping[str, Mapping[str, int]] = {
    "prompt_4096_d192_128": {"head_dim": 192, "v_head_dim": 128},
    "prompt_4096_d256": {"head_dim": 256},
    "prompt_64_d128": {"tokens": 64, "head_dim": 128},
    "prefix_d128": {"head_dim": 128, "capacity": 8192, "page_size": 16},
}


@dataclass(frozen=True, kw_only=True)
class CompileCase:
    """One call of a host function, which makes one or more launches.

    Attributes:
        kernel: "decode_attention", "prefill_attention" or "prefill_matmul".
        variant: name of the shape.
        dtype: "bf16", "fp16" or "fp32" of the operands; or one of `NARROW_DTYPES`.
        shape: sizes by name. page_size 0 is a contiguous cache; latent 1 makes the values, v_head_dim
            elements each, the first elements of the keys; bias 1 adds a bias; swiglu 1 makes
            out_features pairs of gate and up; blocks 1 adds scales per 1 x 128 of x and 128 x 128 of the
            weight; int8_x 1 makes x int8 as the weight; options 1 turns on every option of decode
            attention; packed_tokens are query tokens of all sequences, one each but for the first.
        matmul_variant: variant of the matmul kernel; None means its host function's choice.
    """

    kernel: str
    variant: str
    dtype: str
    shape: Mapping[str, int] = field(hash=False)
    matmul_variant: Variant | None = None

    def applies_to(self, sm: int) -> bool:
        """Whether GPUs of this compute capability support the case's matmul variant."""
        if self.matmul_variant == "warp_specialized":
            return sm // 10 == 10
        return self.matmul_variant != "descriptors" or sm >= TMA_FROM_CAPABILITY


def default_cases() -> tuple[CompileCase, ...]:
    """Every variant in every dtype at one common shape: 32 query and 8 KV heads (GQA) of 128 elements."""
    dtypes = (*DTYPES, *NARROW_DTYPES)
    latent = (_latent(variant, "bf16") for variant in _LATENT_VARIANTS)
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
    narrow = (
        CompileCase(
            kernel="prefill_matmul", variant=variant, dtype=dtype, shape={**_MATMUL, **shape, form: 1}
        )
        for form, dtype, variants in (("blocks", "e4m3", _BLOCK_SCALED), ("int8_x", "int8", _INT8_X))
        for variant, shape in variants.items()
    )
    forced = _forced("pointers", "bf16"), _forced("warp_specialized", "bf16")
    prompts = _prefill_attention(_PREFILL_ATTENTION_VARIANTS, _PREFILL_ATTENTION_DTYPES)
    packed = CompileCase(kernel="decode_attention", variant="packed_pages_16", dtype="bf16", shape=_PACKED)
    return (*decode, packed, *latent, *prompts, *chosen, *narrow, *forced)


def _prefill_attention(variants: Mapping[str, Mapping[str, int]], dtypes: Sequence[str]) -> list[CompileCase]:
    return [
        CompileCase(
            kernel="prefill_attention", variant=variant, dtype=dtype, shape={**_PREFILL_ATTENTION, **shape}
        )
        for variant, shape in variants.items()
        for dtype in dtypes
    ]


def _latent(variant: str, dtype: str, page_size: int = 0) -> CompileCase:
    """Decode attention over a latent cache (MLA) of 576 elements, 512 of them the values."""
    name = f"{variant}_pages_{page_size}" if page_size else variant
    shape = {**_LATENT, **_LATENT_VARIANTS[variant], "page_size": page_size}
    return CompileCase(kernel="decode_attention", variant=name, dtype=dtype, shape=shape)


def _forced(variant: Variant, dtype: str) -> CompileCase:
    """The matmul of many rows in a variant that may not be the default."""
    name = f"rows_8192_{variant}"
    return CompileCase(
        kernel="prefill_matmul", variant=name, dtype=dtype, shape=_MATMUL, matmul_variant=variant
    )


def full_cases() -> tuple[CompileCase, ...]:
    """The default cases; decode attention with other heads, groups and page sizes; matmuls of other rows."""
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
    more += _prefill_attention(_PREFILL_ATTENTION_MORE, ("bf16",))
    more += _prefill_attention(_PREFILL_ATTENTION_VARIANTS, ("fp32",))
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
    more += [
        _latent(variant, dtype, page_size)
        for variant in _LATENT_VARIANTS
        for dtype, page_size in (("bf16", 64), ("e4m3", 0), ("e4m3", 64))
    ]
    more += [
        CompileCase(
            kernel="decode_attention", variant=f"packed_{name}", dtype=dtype, shape={**_PACKED, **shape}
        )
        for name, shape in {
            "contiguous": {"page_size": 0},
            "d64": {"head_dim": 64},
            "d256": {"head_dim": 256},
        }.items()
        for dtype in ("bf16", "e4m3")
    ]
    return (*default_cases(), *more, _forced("pointers", "e4m3"), _forced("warp_specialized", "e4m3"))


def case_shape(case: CompileCase) -> MatmulOperands:
    """M, N and K of a matmul case; with swiglu each output takes two rows of the weight."""
    pairs = 2 if case.shape.get("swiglu") else 1
    weight_bytes = ELEMENT_BYTES[case.dtype]
    x_bytes = 2 if case.dtype == "int8" and not case.shape.get("int8_x") else weight_bytes
    return MatmulOperands(
        rows=case.shape["rows"],
        out_features=case.shape["out_features"] * pairs,
        in_features=case.shape["in_features"],
        x_bytes=x_bytes,
        weight_bytes=weight_bytes,
        out_bytes=max(2, x_bytes) // pairs,
    )


def case_matmul_tiling(case: CompileCase, gpu: Gpu) -> MatmulTiling:
    """The tiling of a matmul case on a GPU."""
    return matmul_tiling(case_shape(case), gpu, case.matmul_variant)


def case_decode_tiling(case: CompileCase, gpu: Gpu) -> DecodeTiling:
    """The tiling that `decode_attention` chooses for a case on a GPU."""
    shape, packed_tokens = case.shape, case.shape.get("packed_tokens")
    query_tokens = shape.get("query_tokens", 1)
    if packed_tokens:
        group = shape["q_heads"] // shape["kv_heads"]
        query_tokens = mean_query_tokens(packed_tokens, shape["batch"], group, None)
    return choose_decode_tiling(
        batch=shape["batch"],
        q_heads=shape["q_heads"],
        kv_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        v_head_dim=shape.get("v_head_dim"),
        latent=bool(shape.get("latent")),
        capacity=shape["capacity"],
        page_size=shape["page_size"],
        element_bytes=ELEMENT_BYTES[case.dtype],
        query_tokens=query_tokens,
        ragged=packed_tokens is not None,
        packed_tokens=packed_tokens,
        limits=kernel_limits(gpu),
    )


def multiplied_dtype(case: CompileCase, sm: int) -> str:
    """The dtype of the tensor-core instructions of a matmul; fp8 needs sm_89."""
    if case.dtype in {"e4m3", "e5m2"}:
        return "fp8" if sm >= 89 else "fp16"
    return "bf16" if case.dtype == "int8" and not case.shape.get("int8_x") else case.dtype


def feature_cases() -> tuple[CompileCase, ...]:
    """Decode attention with every option at once: contiguous, in odd pages, packed; with scales per token."""
    shape = {**_DECODE, "query_tokens": 3, "options": 1}
    packed = CompileCase(
        kernel="decode_attention", variant="options_packed", dtype="bf16", shape={**_PACKED, "options": 1}
    )
    options = tuple(
        CompileCase(
            kernel="decode_attention",
            variant=f"options_pages_{page_size}",
            dtype=dtype,
            shape={**shape, "page_size": page_size},
        )
        for page_size, dtype in ((0, "bf16"), (24, "e4m3"))
    )
    return (*options, packed, scale_case("e4m3", page_size=16, float8=1))


def scale_case(dtype: str, *, page_size: int, float8: int = 0) -> CompileCase:
    """Decode attention with scales per token and head; with `float8` also queries and output in the dtype."""
    return CompileCase(
        kernel="decode_attention",
        variant=f"token_scales_pages_{page_size}",
        dtype=dtype,
        shape={**_DECODE, "page_size": page_size, "token_scales": 1, "float8": float8},
    )


def iteration_work(
    case: CompileCase, launch: str, constants: Mapping[str, Any], sm: int
) -> IterationWork | None:
    """What one iteration of a launch's hot loop needs.

    Args:
        case: the call.
        launch: which of its launches: "split_kv", "combine", "matmul", "tma", ...
        constants: the launch's compile-time sizes, in lower case.
        sm: compute capability.

    Returns:
        The work; None for a launch without a formula, such as the split-K reduction.
    """
    if launch == "split_kv":
        return _split_kv_work(case, constants)
    if launch == "combine":
        return _combine_work(constants)
    if launch == "prefill_attention":
        return _prefill_attention_work(case, constants, sm)
    return _matmul_work(case, constants, sm) if launch in {"matmul", "tma"} else None


def _split_kv_work(case: CompileCase, constants: Mapping[str, Any]) -> IterationWork:
    """A tile of keys and values, or of latents; CTAs of other query rows of the same head share its bytes.

    How many CTAs share the tiles of ragged queries depends on the sequence: here none do.
    """
    rows, tokens = constants["group"] * constants["query_tokens"], constants["block_n"]
    rows = rows or constants["block_g"]
    head_dims = constants["head_dim"] + constants["v_head_dim"]
    cached = constants["head_dim"] if constants.get("latent") else head_dims
    tile = float(tokens * cached * ELEMENT_BYTES[case.dtype])
    return IterationWork(
        useful_bytes=tile / math.ceil(rows / constants["block_g"]),
        streamed_bytes=tile,
        flop=2.0 * min(rows, constants["block_g"]) * tokens * head_dims,
        tile_bytes=tile,
        dtype="fp16" if case.dtype in NARROW_DTYPES else case.dtype,  # 8 bits are multiplied as 16
    )


def _prefill_attention_work(case: CompileCase, constants: Mapping[str, Any], sm: int) -> IterationWork:
    """A tile of keys and values of one row block and query head.

    Queries, keys, values and output come from memory once and are shared by the iterations of all items; the
    other loads of a tile hit L2.
    """
    shape, size = case.shape, ELEMENT_BYTES[case.dtype]
    block_m, block_n = constants["block_m"], constants["block_n"]
    head_dim, v_head_dim = constants["head_dim"], constants["v_head_dim"]
    tokens, cached = shape["tokens"], shape.get("capacity", 0)
    row_blocks = math.ceil(tokens / block_m)
    tiles = sum(math.ceil(min((block + 1) * block_m, tokens) / block_n) for block in range(row_blocks))
    tiles += row_blocks * math.ceil(cached / block_n)
    distinct = shape["kv_heads"] * (tokens + cached) * (head_dim + v_head_dim) * size
    distinct += shape["q_heads"] * tokens * (head_dim * size + v_head_dim * max(2, size))
    useful = distinct / (shape["q_heads"] * tiles)
    return IterationWork(
        useful_bytes=useful,
        streamed_bytes=useful,
        flop=2.0 * min(block_m, tokens) * block_n * (head_dim + v_head_dim),
        tile_bytes=float(block_n * (head_dim + v_head_dim) * size),
        dtype=multiplied_dtype(case, sm),
    )


def _combine_work(constants: Mapping[str, Any]) -> IterationWork:
    """Split-KV partials: a row and its log-sum-exp each, in float32."""
    partials, head_dim = constants["block_s"], constants["v_head_dim"]
    tile = 4.0 * partials * (head_dim + 1)
    return IterationWork(
        useful_bytes=tile, streamed_bytes=tile, flop=2.0 * partials * head_dim, tile_bytes=tile, dtype="fp32"
    )


def _matmul_work(case: CompileCase, constants: Mapping[str, Any], sm: int) -> IterationWork:
    """A step along K. With one block of rows only the weight comes from memory: x stays in L2."""
    shape = case_shape(case)
    block_m, block_n, block_k = (constants[name] for name in ("block_m", "block_n", "block_k"))
    columns = constants.get("columns", block_n)
    steps = math.ceil(shape.rows / block_m) * math.ceil(shape.out_features / columns)
    steps *= math.ceil(shape.in_features / block_k)
    one_block = shape.rows <= block_m
    x_rows = 0 if one_block else shape.rows
    distinct = shape.in_features * (shape.out_features * shape.weight_bytes + x_rows * shape.x_bytes)
    streamed = columns * shape.weight_bytes + (0 if one_block else block_m * shape.x_bytes)
    return IterationWork(
        useful_bytes=distinct / steps,
        streamed_bytes=float(streamed * block_k),
        flop=shape.operations / steps,
        tile_bytes=float((block_m * shape.x_bytes + block_n * shape.weight_bytes) * block_k),
        dtype=multiplied_dtype(case, sm),
    )
