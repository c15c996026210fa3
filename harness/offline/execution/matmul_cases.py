"""Calls of `prefill_matmul` that `execute` runs, sizes small and odd."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from ....kernels.matmul_tiling import TMA_FROM_CAPABILITY, MatmulTiling
from .layouts import Layout, Scale


@dataclass(frozen=True)
class MatmulCase:
    """One call of `prefill_matmul`.

    Attributes:
        name: readable and unique among the cases of its kernel and dtype.
        shape: M (rows), N (out_features) and K (in_features).
        dtype: of the weight: "bf16", "fp16", "fp32", "e4m3", "e5m2" or "int8".
        x_dtype: of x; None means `dtype`, or "bf16" with an int8 weight.
        blocks: elements of K, and rows of the weight, per block of both operands' scales; 0 means no blocks.
        batch: products of a weight each; 0 means one, without that dimension.
        bias: its dtype; None means no bias.
        transposed_weight: the weight is a view of its transpose.
        gate_up: order of gate and up rows, or "pair": a weight, a bias and scales each.
        clamped: clamped swiglu with the numbers of gpt-oss.
        residual: its dtype; None means no residual.
        scale_dtype: of scales that are tensors.
        tiling: None means the host function's choice.
        sm_count: SMs that the tiling is chosen for.
    """

    kernel: ClassVar[str] = "prefill_matmul"
    name: str
    shape: tuple[int, int, int] = (33, 72, 136)
    _: KW_ONLY
    dtype: str = "bf16"
    x_dtype: str | None = None
    blocks: int = 0
    batch: int = 0
    activation: str | None = None
    bias: str | None = None
    x_scale: Scale | None = None
    weight_scale: Scale | None = None
    out_dtype: str | None = None
    precision: str = "ieee"
    transposed_weight: bool = False
    x_layout: Layout = ""
    weight_layout: Layout = ""
    out_layout: Layout = ""
    gate_up: str = "halves"
    clamped: bool = False
    residual: str | None = None
    scale_dtype: str = "fp32"
    tiling: MatmulTiling | None = None
    sm_count: int = 4

    def skip_reason(self, sm: int) -> str | None:
        """Why GPUs of a compute capability do not run it; None where they do."""
        variant = self.tiling.variant if self.tiling is not None else None
        if variant == "descriptors" and sm < TMA_FROM_CAPABILITY:
            return f"TMA descriptors need compute capability {TMA_FROM_CAPABILITY / 10}"
        if variant == "warp_specialized" and sm // 10 != 10:
            return "warp specialization needs compute capability 10.x"
        return None


def _tiles(block_m: int = 32, block_n: int = 32, block_k: int = 32, **changes: Any) -> MatmulTiling:
    """Small tiles, so that a small product has several of them and several steps."""
    fields = {"group_m": 2, "num_splits": 1, "num_warps": 4, "num_stages": 3, **changes}
    return MatmulTiling(block_m=block_m, block_n=block_n, block_k=block_k, **fields)


def _tma_tiles(block_m: int = 64, block_n: int = 64, block_k: int = 64, **changes: Any) -> MatmulTiling:
    return _tiles(block_m, block_n, block_k, **{"variant": "descriptors", "programs": 2, **changes})


MATMUL = (
    MatmulCase("rows_1", (1, 96, 256)),
    MatmulCase("rows_5", (5, 200, 200), dtype="fp16"),
    MatmulCase("rows_16", (16, 96, 264), dtype="int8", weight_scale="each"),
    MatmulCase("rows_33_swiglu_bias", (33, 120, 136), activation="swiglu", bias="fp32"),
    MatmulCase(
        "rows_33_pair_clamped",
        (33, 120, 136),
        activation="swiglu",
        gate_up="pair",
        clamped=True,
        bias="bf16",
        residual="fp32",
    ),
    MatmulCase(
        "rows_5_fp8_weight",
        (5, 72, 144),
        dtype="e4m3",
        x_dtype="bf16",
        weight_scale="each",
        scale_dtype="bf16",
    ),
    MatmulCase("rows_64_gelu_bias", (64, 64, 192), activation="gelu", bias="bf16"),
    MatmulCase("rows_65", (65, 130, 96)),
    MatmulCase("rows_130_odd_k", (130, 66, 101), dtype="fp16"),
    MatmulCase("rows_130_swiglu_bias", (130, 144, 128), activation="swiglu", bias="bf16"),
    MatmulCase("rows_100_split_k", (100, 128, 1024), sm_count=12),
    MatmulCase("rows_70_ieee", (70, 40, 70), dtype="fp32"),
    MatmulCase("rows_70_tf32", (70, 64, 96), dtype="fp32", precision="tf32"),
    MatmulCase("rows_20", (20, 64, 160), dtype="e4m3", x_scale="each", weight_scale="each"),
    MatmulCase("rows_100", (100, 64, 160), dtype="e5m2"),
    MatmulCase("batch_3", (20, 40, 72), batch=3, bias="fp32", weight_scale="each", x_scale="each"),
    MatmulCase("odd_sizes_transposed_weight", (41, 53, 104), transposed_weight=True, tiling=_tiles()),
    MatmulCase(
        "splits_3_whole_tiles_2",
        (70, 72, 400),
        bias="fp32",
        activation="silu",
        tiling=_tiles(num_splits=3, whole_tiles=2),
    ),
    MatmulCase("columns_22_swiglu", (41, 104, 104), activation="swiglu", tiling=_tiles(columns=22)),
    MatmulCase(
        "weight_first",
        (9, 104, 200),
        dtype="int8",
        weight_scale="each",
        tiling=_tiles(16, 64, 64, weight_first=True),
    ),
    MatmulCase("int8_x", (9, 72, 144), dtype="int8", x_dtype="int8", x_scale="each", weight_scale="each"),
    MatmulCase(
        "int8_x_splits_3",
        (70, 72, 400),
        dtype="int8",
        x_dtype="int8",
        out_dtype="fp32",
        tiling=_tiles(64, 64, num_splits=3, whole_tiles=1),
    ),
    MatmulCase("blocks_rows_9", (9, 136, 272), dtype="e4m3", blocks=128),
    MatmulCase(
        "blocks_splits_2", (70, 160, 400), dtype="e4m3", blocks=128, tiling=_tiles(64, 128, 128, num_splits=2)
    ),
    MatmulCase("out_fp32", (41, 48, 104), out_dtype="fp32", tiling=_tiles(block_k=64)),
    MatmulCase(
        "weight_odd_rows",
        (41, 48, 104),
        dtype="int8",
        weight_scale="each",
        weight_layout="odd_rows",
        tiling=_tiles(),
    ),
    MatmulCase(
        "huge_strides",
        (20, 40, 72),
        batch=3,
        x_layout="huge",
        weight_layout="huge",
        out_layout="huge",
        tiling=_tiles(),
        bias="fp32",
    ),
)
MORE_MATMUL = (
    MatmulCase("int8_weight_under_fp32", (33, 72, 144), dtype="int8", x_dtype="fp32", weight_scale="each"),
    MatmulCase("tf32x3", (33, 72, 136), dtype="fp32", precision="tf32x3"),
    MatmulCase("gelu_tanh_residual", (33, 72, 136), activation="gelu_tanh", residual="fp16", tiling=_tiles()),
    MatmulCase("relu_squared_splits_2", activation="relu_squared", tiling=_tiles(num_splits=2)),
    MatmulCase(
        "interleaved", (41, 104, 104), activation="geglu_tanh", gate_up="interleaved", tiling=_tiles()
    ),
    MatmulCase("x_fp8_under_fp16", (33, 72, 144), dtype="fp16", x_dtype="e4m3", x_scale="each"),
    MatmulCase("rows_1_odd", (1, 77, 131)),
    MatmulCase("rows_8_split_k", (8, 64, 2048), sm_count=12),
    MatmulCase(
        "rows_128_silu", (128, 96, 160), dtype="int8", x_dtype="fp16", weight_scale="each", activation="silu"
    ),
    MatmulCase("rows_100", (100, 64, 160), dtype="e4m3", x_scale="one", weight_scale="number"),
    MatmulCase("rows_40_x_e4m3", (40, 64, 160), dtype="e5m2", x_dtype="e4m3"),
    MatmulCase("even", (64, 64, 128), tiling=_tiles()),
    MatmulCase("odd_sizes", (41, 53, 101), tiling=_tiles()),
    MatmulCase("k_below_a_tile", (41, 53, 24), tiling=_tiles()),
    MatmulCase("many_k_steps", (33, 40, 520), tiling=_tiles(num_stages=4)),
    MatmulCase("padded_rows", (41, 53, 104), x_layout="padded_rows", tiling=_tiles()),
    MatmulCase("swiglu", (41, 104, 104), activation="swiglu", bias="fp32", tiling=_tiles()),
    MatmulCase(
        "swiglu_odd_half", (41, 106, 104), activation="swiglu", bias="bf16", tiling=_tiles(block_n=64)
    ),
    MatmulCase("columns_24", (41, 104, 104), tiling=_tiles(columns=24)),
    MatmulCase("splits_3", (41, 72, 400), bias="fp32", tiling=_tiles(num_splits=3)),
    MatmulCase("splits_8_above_k_steps", (20, 40, 96), tiling=_tiles(num_splits=8)),
    MatmulCase(
        "splits_4_columns_26_swiglu",
        (20, 104, 300),
        activation="swiglu",
        tiling=_tiles(num_splits=4, columns=26),
    ),
    MatmulCase(
        "splits_2_batch_2", (20, 40, 200), batch=2, tiling=_tiles(num_splits=2, whole_tiles=1), bias="bf16"
    ),
    MatmulCase("weight_first", (9, 104, 200), tiling=_tiles(16, 64, weight_first=True)),
    MatmulCase("epilogue_slices", (41, 200, 104), bias="fp32", tiling=_tiles(block_n=128)),
    MatmulCase("odd_sizes", (41, 53, 101), dtype="int8", weight_scale="each", tiling=_tiles()),
    MatmulCase(
        "aligned", (41, 48, 160), dtype="int8", x_dtype="fp16", weight_scale="one", tiling=_tiles(block_k=64)
    ),
    MatmulCase("aligned", (41, 48, 160), dtype="e4m3", tiling=_tiles(block_k=64)),
    MatmulCase("odd_sizes", (41, 47, 101), dtype="e4m3", tiling=_tiles(block_k=64)),
    MatmulCase("x_e5m2", (41, 48, 160), dtype="e4m3", x_dtype="e5m2", tiling=_tiles(block_k=64)),
    MatmulCase("8_warps", (130, 130, 130), tiling=_tiles(64, 64, num_warps=8, group_m=3)),
    MatmulCase("x_offset", (41, 48, 104), x_layout="offset", tiling=_tiles()),
    MatmulCase("x_odd_rows", (41, 48, 104), x_layout="odd_rows", tiling=_tiles()),
    MatmulCase("x_padded_rows", (41, 48, 104), x_layout="padded_rows", tiling=_tiles()),
    MatmulCase("weight_offset", (41, 48, 104), weight_layout="offset", tiling=_tiles()),
    MatmulCase(
        "both_padded_rows",
        (41, 48, 96),
        dtype="e4m3",
        x_layout="padded_rows",
        weight_layout="padded_rows",
        tiling=_tiles(),
    ),
    MatmulCase("x_huge_row_stride", (41, 48, 104), x_layout="huge", tiling=_tiles()),
    MatmulCase("weight_huge_row_stride", (41, 48, 104), weight_layout="huge", tiling=_tiles()),
    MatmulCase(
        "weight_huge_row_stride_swiglu",
        (41, 96, 104),
        activation="swiglu",
        weight_layout="huge",
        tiling=_tiles(),
    ),
    MatmulCase(
        "both_huge_row_stride",
        (32, 32, 96),
        x_layout="huge",
        weight_layout="huge",
        tiling=_tiles(),
        bias="fp32",
    ),
    MatmulCase("out_huge_row_stride", (41, 48, 104), out_layout="huge", tiling=_tiles()),
    MatmulCase("out_odd_rows", (41, 48, 104), out_layout="odd_rows", tiling=_tiles()),
    MatmulCase("rows_100_transposed_weight", (100, 96, 128), transposed_weight=True),
    MatmulCase(
        "int8_x_rows_130", (130, 136, 272), dtype="int8", x_dtype="int8", x_scale="each", weight_scale="each"
    ),
    MatmulCase("int8_x_odd_k", (70, 66, 101), dtype="int8", x_dtype="int8", out_dtype="fp32"),
    MatmulCase("int8_x_blocks", (70, 160, 400), dtype="int8", x_dtype="int8", blocks=128),
    MatmulCase("int8_blocks", (70, 160, 400), dtype="int8", blocks=64),
    MatmulCase("blocks_rows_130", (130, 160, 400), dtype="e4m3", blocks=128),
    MatmulCase("blocks_64_odd_k", (20, 70, 301), dtype="e4m3", blocks=64),
    MatmulCase("blocks_swiglu", (20, 304, 272), dtype="e4m3", blocks=128, activation="swiglu"),
    MatmulCase("blocks_batch_2", (20, 72, 144), dtype="e5m2", blocks=32, batch=2),
)
TMA = (
    MatmulCase("tma_several_items", (130, 136, 200), tiling=_tma_tiles()),
    MatmulCase(
        "tma_splits_3_whole_tiles_2",
        (130, 136, 520),
        bias="fp32",
        tiling=_tma_tiles(num_splits=3, whole_tiles=2),
    ),
    MatmulCase("tma_swiglu_odd_half", (70, 106, 200), activation="swiglu", tiling=_tma_tiles()),
    MatmulCase(
        "tma_weight_first",
        (70, 136, 208),
        dtype="int8",
        weight_scale="each",
        tiling=_tma_tiles(weight_first=True, num_stages=4),
    ),
    MatmulCase(
        "tma_block_k_128",
        (70, 136, 208),
        dtype="e4m3",
        x_scale="each",
        weight_scale="each",
        tiling=_tma_tiles(block_k=128),
    ),
    MatmulCase(
        "tma_blocks",
        (70, 264, 400),
        dtype="e4m3",
        blocks=128,
        tiling=_tma_tiles(64, 128, 256, num_stages=2),
    ),
    MatmulCase(
        "tma_8_warps_gelu_bias",
        (200, 264, 200),
        dtype="fp16",
        bias="fp32",
        activation="gelu",
        tiling=_tma_tiles(128, 128, num_warps=8),
    ),
)
MORE_TMA = (
    MatmulCase(
        "blocks_warp_specialized",
        (130, 264, 400),
        dtype="e4m3",
        blocks=128,
        tiling=_tma_tiles(128, 128, 128, num_warps=8, variant="warp_specialized"),
    ),
    MatmulCase(
        "tma_blocks_swiglu",
        (70, 264, 400),
        dtype="e4m3",
        blocks=64,
        activation="swiglu",
        tiling=_tma_tiles(64, 128, 128),
    ),
    MatmulCase(
        "tma_int8_x_blocks",
        (70, 264, 400),
        dtype="int8",
        x_dtype="int8",
        blocks=128,
        tiling=_tma_tiles(64, 128, 256, num_stages=2),
    ),
    MatmulCase(
        "blocks_swiglu_warp_specialized",
        (130, 264, 400),
        dtype="e4m3",
        blocks=128,
        activation="swiglu",
        tiling=_tma_tiles(128, 128, 128, num_warps=8, variant="warp_specialized"),
    ),
    MatmulCase(
        "tma_pair", (70, 136, 200), activation="geglu", gate_up="pair", bias="bf16", tiling=_tma_tiles()
    ),
    MatmulCase(
        "tma_interleaved_splits_2",
        (70, 272, 200),
        activation="swiglu",
        gate_up="interleaved",
        clamped=True,
        bias="fp32",
        residual="bf16",
        tiling=_tma_tiles(num_splits=2),
    ),
    MatmulCase(
        "tma_fp8_x", (70, 136, 208), dtype="fp16", x_dtype="e5m2", x_scale="each", tiling=_tma_tiles()
    ),
    MatmulCase("tma_x_huge_row_stride", (70, 72, 128), x_layout="huge", tiling=_tma_tiles(programs=1)),
    MatmulCase("tma_k_below_a_tile", (70, 72, 40), tiling=_tma_tiles()),
    MatmulCase("tma_one_k_step", (130, 136, 64), tiling=_tma_tiles()),
    MatmulCase("tma_splits_5_above_k_steps", (70, 72, 136), tiling=_tma_tiles(num_splits=5)),
    MatmulCase("tma_swiglu_bias", (130, 272, 200), activation="swiglu", bias="bf16", tiling=_tma_tiles()),
    MatmulCase("tma_swiglu_splits_2", (70, 272, 200), activation="swiglu", tiling=_tma_tiles(num_splits=2)),
    MatmulCase("tma_weight_first", (70, 136, 200), tiling=_tma_tiles(weight_first=True)),
    MatmulCase("tma_weight_first_rows_9", (9, 136, 200), tiling=_tma_tiles(16, 128, weight_first=True)),
    MatmulCase("tma", (70, 136, 208), dtype="int8", weight_scale="each", tiling=_tma_tiles()),
    MatmulCase("tma_block_k_128", (70, 136, 200), tiling=_tma_tiles(block_k=128)),
    MatmulCase("tma_block_k_32", (70, 136, 200), tiling=_tma_tiles(block_k=32, num_stages=4)),
    MatmulCase("tma_block_k_16", (70, 136, 200), tiling=_tma_tiles(block_k=16, num_stages=4)),
    MatmulCase("tma_x_e4m3", (70, 136, 208), dtype="e5m2", x_dtype="e4m3", tiling=_tma_tiles()),
    MatmulCase("tma_tf32", (70, 136, 100), dtype="fp32", precision="tf32", tiling=_tma_tiles(block_k=32)),
    MatmulCase("tma_4_stages_1_cta", (130, 136, 328), tiling=_tma_tiles(num_stages=4, programs=1, group_m=3)),
    MatmulCase("tma_2_stages", (130, 136, 328), tiling=_tma_tiles(num_stages=2)),
    MatmulCase("tma_padded_rows", (70, 136, 200), x_layout="padded_rows", tiling=_tma_tiles()),
    MatmulCase("warp_specialized", (130, 264, 200), tiling=_tma_tiles(128, 128, variant="warp_specialized")),
)
