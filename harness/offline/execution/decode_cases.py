"""Calls of `decode_attention` and `merge_states` that `execute` runs, sizes small and odd."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

from .layouts import Layout, Scale


@dataclass(frozen=True)
class DecodeCase:
    """One call of `decode_attention`.

    Attributes:
        name: readable and unique among the cases of its kernel and dtype.
        dtype: of the KV cache: "bf16", "fp16", "fp32", "e4m3", "e5m2" or "int8".
        query_dtype: of the queries; None means `dtype`, or "bf16" with an 8-bit cache.
        lengths: live tokens of each sequence; out of range where the call clamps them.
        group: query heads of a KV head.
        v_head_dim: of the values; None means head_dim.
        latent: whether the values are the first elements of the keys.
        capacity: tokens that a sequence has room for; None leaves some unused.
        page_size: 0 is a contiguous cache.
        table_stride: entries from one row of the block table to the next; None means contiguous.
        query_tokens: None means a `q` without that dimension.
        q_lens: query tokens of each sequence, padded to `query_tokens`, or packed where that is None.
        unused_tokens: packed tokens after those of the last sequence.
        index_dtype: of lengths and block table.
        num_splits: chunks of each sequence; None leaves the work to on-device scheduling.
        query_size: standard deviation of the queries.
        infinite_keys: leading tokens of each sequence whose scores are -inf.
        special_values: (sequence, token, "inf", "-inf" or "nan"), written to a few values of KV head 0.
        out_dtype: of the output; None means that of the queries.
        sm_count: SMs that the tiling is chosen for.
    """

    kernel: ClassVar[str] = "decode_attention"
    name: str
    _: KW_ONLY
    dtype: str = "bf16"
    query_dtype: str | None = None
    lengths: tuple[int, ...] = (300, 131)
    kv_heads: int = 2
    group: int = 4
    head_dim: int = 128
    v_head_dim: int | None = None
    latent: bool = False
    capacity: int | None = None
    page_size: int = 0
    table_stride: int | None = None
    query_tokens: int | None = None
    q_lens: tuple[int, ...] | None = None
    unused_tokens: int = 0
    index_dtype: Literal["int32", "int64"] = "int32"
    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: str | None = None
    k_scale: Scale | None = None
    v_scale: Scale | None = None
    q_scale: Scale | None = None
    out_scale: Scale | None = None
    out_dtype: str | None = None
    num_splits: int | None = None
    return_lse: bool = True
    lse_layout: str = "tokens-first"
    lse_base: str | int = "e"
    cache_layout: Layout = ""
    query_layout: Layout = ""
    query_size: float = 1.0
    infinite_keys: int = 0
    special_values: tuple[tuple[int, int, str], ...] = ()
    sm_count: int = 3


@dataclass(frozen=True)
class MergeCase:
    """One call of `merge_states`.

    Attributes:
        name: readable and unique among the cases of its kernel and dtype.
        dtype: of the outputs.
        shape: of the outputs, head_dim last.
        empty: whether parts, and all parts of a row, may be empty.
        parts: two are given as two pairs of tensors, more of them stacked.
        mask: whether some rows of some parts are left out.
        out_dtype: of the result, if it is another; float8 with a scale.
        heads_first: whether log-sum-exps are [heads, tokens].
    """

    kernel: ClassVar[str] = "merge_states"
    name: str
    _: KW_ONLY
    dtype: str = "bf16"
    shape: tuple[int, ...] = (3, 5, 128)
    empty: bool = True
    parts: int = 2
    mask: bool = False
    out_dtype: str | None = None
    heads_first: bool = False
    sm_count: ClassVar[None] = None  # the grid does not depend on it


DECODE = (
    DecodeCase("contiguous"),
    DecodeCase("contiguous", dtype="fp16"),
    DecodeCase("contiguous", dtype="fp32", lengths=(150, 67)),
    DecodeCase("contiguous", dtype="e4m3"),
    DecodeCase("ragged", lengths=(0, 1, 64, 65, 300, 16, 15, 127, 129), kv_heads=1),
    DecodeCase("heads_first", cache_layout="heads_first"),
    DecodeCase("lengths_out_of_range", lengths=(5000, -3, 100), capacity=200),
    DecodeCase("pages_16", page_size=16, lengths=(300, 131, 0, 16, 17)),
    DecodeCase("pages_48", dtype="int8", page_size=48, k_scale="each", v_scale="each", lengths=(300, 47)),
    DecodeCase("pages_1", dtype="e5m2", page_size=1, lengths=(130, 47)),
    DecodeCase("window_100", window=100, lengths=(300, 131, 99, 100, 101, 0)),
    DecodeCase("window_33_pages_16", window=33, page_size=16, lengths=(300, 131, 20)),
    DecodeCase("softcap_window", dtype="fp16", softcap=20.0, window=77, query_size=2.0),
    DecodeCase("sinks", sinks="fp32", lengths=(300, 0, 5)),
    DecodeCase("group_7_d72", group=7, head_dim=72, kv_heads=1),
    DecodeCase("group_64_pages_16", dtype="e4m3", group=64, kv_heads=1, page_size=16, lengths=(130, 20)),
    DecodeCase("row_blocks", group=32, query_tokens=8, kv_heads=1, lengths=(140, 5)),
    DecodeCase("d192_v128", head_dim=192, v_head_dim=128, lengths=(150, 40)),
    DecodeCase(
        "latent_576", head_dim=576, v_head_dim=512, latent=True, group=16, kv_heads=1, lengths=(150, 40)
    ),
    DecodeCase(
        "latent_576_group_70_pages_64",
        head_dim=576,
        v_head_dim=512,
        latent=True,
        group=70,
        kv_heads=1,
        page_size=64,
        lengths=(130, 20),
    ),
    DecodeCase("query_tokens_3", query_tokens=3, lengths=(300, 131, 2, 0, 3)),
    DecodeCase(
        "splits_3_all_options",
        num_splits=3,
        window=150,
        softcap=10.0,
        sinks="fp32",
        k_scale="each",
        v_scale="one",
        lengths=(300, 40),
        page_size=16,
    ),
    DecodeCase(
        "caches_offset_pages_16",
        dtype="int8",
        cache_layout="offset",
        page_size=16,
        k_scale="one",
        v_scale="one",
    ),
    DecodeCase("caches_odd_rows", cache_layout="odd_rows"),
    DecodeCase("huge_page_stride", cache_layout="huge", page_size=16, lengths=(200, 100)),
    DecodeCase(
        "special_values_query_tokens_3",
        query_tokens=3,
        special_values=((0, 299, "nan"), (0, 298, "inf"), (1, 130, "-inf")),
    ),
    DecodeCase("infinite_keys", lengths=(200, 131), infinite_keys=100),
    DecodeCase(
        "float8_pages_16_token_scales",
        dtype="e4m3",
        query_dtype="e4m3",
        out_dtype="e4m3",
        page_size=16,
        q_scale="one",
        k_scale="token",
        v_scale="token",
        out_scale="one",
    ),
    DecodeCase("packed_chunks_and_decodes", q_lens=(1, 37, 0, 20), lengths=(130, 150, 40, 20), sm_count=2),
    DecodeCase(
        "padded_pages_16_int64",
        q_lens=(4, 0, 9),
        query_tokens=9,
        page_size=16,
        lengths=(100, 30, 9),
        index_dtype="int64",
        lse_layout="heads-first",
        lse_base=2,
    ),
)
MORE_DECODE = (
    DecodeCase("query_tokens_40_group_1", query_tokens=40, group=1, kv_heads=1, lengths=(140, 33)),
    DecodeCase(
        "packed_group_7_d72", q_lens=(9, 1, 30), group=7, head_dim=72, kv_heads=1, lengths=(90, 70, 30)
    ),
    DecodeCase(
        "packed_splits_3_all_options",
        q_lens=(20, 1),
        unused_tokens=5,
        num_splits=3,
        window=50,
        softcap=10.0,
        sinks="fp32",
        page_size=16,
        lengths=(150, 90),
        kv_heads=1,
    ),
    DecodeCase("packed", dtype="e4m3", q_lens=(20, 1), lengths=(150, 90), page_size=48),
    DecodeCase("packed", dtype="fp32", q_lens=(20, 1), lengths=(70, 90), kv_heads=1),
    DecodeCase(
        "packed_special_values",
        q_lens=(5, 20),
        lengths=(130, 131),
        special_values=((0, 129, "nan"), (0, 127, "inf"), (1, 120, "-inf")),
    ),
    DecodeCase("one_cta", lengths=(460,), kv_heads=1, sm_count=1),
    DecodeCase("no_lse", return_lse=False),
    DecodeCase("ragged_many_ctas", lengths=(0, 33, 0, 511, 7, 0), sm_count=8),
    DecodeCase("all_empty", lengths=(0, 0, 0)),
    DecodeCase("pages_1", page_size=1, lengths=(200, 77, 1)),
    DecodeCase("pages_48", page_size=48, lengths=(300, 131, 0, 48)),
    DecodeCase("pages_256", page_size=256, lengths=(300, 257, 0, 256)),
    DecodeCase("pages_64", page_size=64, lengths=(300, 64, 65)),
    DecodeCase("pages_16_splits_3", dtype="fp16", page_size=16, num_splits=3, lengths=(300, 20, 0)),
    DecodeCase("pages_16", dtype="e4m3", page_size=16, lengths=(200, 47)),
    DecodeCase("window_1", window=1, lengths=(300, 65, 1)),
    DecodeCase("window_200_pages_48", window=200, page_size=48, lengths=(420, 131)),
    DecodeCase("softcap", softcap=5.0, query_size=3.0),
    DecodeCase("group_1", group=1, kv_heads=3),
    DecodeCase("group_7", group=7),
    DecodeCase("group_20", group=20, kv_heads=1),
    DecodeCase("group_64", group=64, kv_heads=1),
    DecodeCase("group_16_query_tokens_4", group=16, query_tokens=4, kv_heads=1, lengths=(200, 3)),
    DecodeCase(
        "group_64_splits_2",
        dtype="int8",
        group=64,
        kv_heads=1,
        num_splits=2,
        k_scale="one",
        v_scale="one",
        lengths=(200, 0),
    ),
    DecodeCase("d64", head_dim=64),
    DecodeCase("d576_v512", head_dim=576, v_head_dim=512, group=16, kv_heads=1, lengths=(70, 20)),
    DecodeCase("d33_v7", head_dim=33, v_head_dim=7, lengths=(70, 20)),
    DecodeCase(
        "latent_576_split_scales",
        dtype="e4m3",
        head_dim=576,
        v_head_dim=512,
        latent=True,
        group=16,
        kv_heads=1,
        k_scale="split",
        page_size=16,
        lengths=(150, 40),
    ),
    DecodeCase(
        "latent_576_group_70",
        dtype="e4m3",
        head_dim=576,
        v_head_dim=512,
        latent=True,
        group=70,
        kv_heads=1,
        scale=-0.05,
        lengths=(100, 40),
    ),
    DecodeCase(
        "latent_192_query_tokens_3",
        head_dim=192,
        v_head_dim=128,
        latent=True,
        query_tokens=3,
        window=70,
        softcap=9.0,
        lengths=(150, 40, 2),
    ),
    DecodeCase("d72", head_dim=72),
    DecodeCase("d128_v64", v_head_dim=64),
    DecodeCase("d40_v24_group_1", head_dim=40, v_head_dim=24, group=1),
    DecodeCase("d256", head_dim=256, lengths=(150, 40)),
    DecodeCase("d64_v128", head_dim=64, v_head_dim=128),
    DecodeCase("contiguous", dtype="int8", k_scale="each", v_scale="each"),
    DecodeCase("fp16_queries", dtype="int8", query_dtype="fp16", k_scale="one", v_scale="number"),
    DecodeCase("contiguous", dtype="e5m2"),
    DecodeCase("scales", dtype="e4m3", k_scale="one", v_scale="each"),
    DecodeCase("fp16_queries", dtype="e4m3", query_dtype="fp16", k_scale="number"),
    DecodeCase("d72", dtype="e4m3", head_dim=72),
    DecodeCase("fp32_queries", dtype="e4m3", query_dtype="fp32", lengths=(120, 30), head_dim=64),
    DecodeCase("query_tokens_3_window_40", query_tokens=3, window=40, lengths=(300, 131, 2, 0)),
    DecodeCase("query_tokens_8_pages_16", query_tokens=8, page_size=16, lengths=(200, 9, 7)),
    DecodeCase(
        "query_tokens_3_window_50_softcap_sinks",
        dtype="e4m3",
        query_tokens=3,
        window=50,
        softcap=9.0,
        sinks="fp32",
        lengths=(200, 2),
    ),
    DecodeCase("splits_1", num_splits=1),
    DecodeCase("splits_2", num_splits=2),
    DecodeCase("splits_5", num_splits=5, lengths=(300, 131, 0, 64, 65)),
    DecodeCase("splits_20", num_splits=20, lengths=(300, 10), kv_heads=1),
    DecodeCase("splits_4_query_tokens_3_group_7", num_splits=4, query_tokens=3, group=7, kv_heads=1),
    DecodeCase("caches_offset", cache_layout="offset"),
    DecodeCase("caches_odd_rows_pages_16", dtype="e4m3", cache_layout="odd_rows", page_size=16),
    DecodeCase("caches_padded_rows", cache_layout="padded_rows"),
    DecodeCase("caches_padded_rows", dtype="int8", cache_layout="padded_rows", k_scale="one", v_scale="one"),
    DecodeCase("caches_padded_rows_pages_16_d72", cache_layout="padded_rows", head_dim=72, page_size=16),
    DecodeCase("queries_odd_rows", query_layout="odd_rows", query_tokens=2),
    DecodeCase("queries_offset", query_layout="offset"),
    DecodeCase("huge_batch_stride", cache_layout="huge", lengths=(200, 40, 100)),
    DecodeCase("huge_batch_stride", dtype="int8", cache_layout="huge", k_scale="one", v_scale="one"),
    DecodeCase("huge_token_stride", cache_layout="huge_tokens", lengths=(200, 100)),
    DecodeCase("huge_page_stride", dtype="e4m3", cache_layout="huge", page_size=48, lengths=(200, 100)),
    DecodeCase("special_values", special_values=((0, 5, "inf"), (1, 130, "nan"))),
    DecodeCase("special_values", dtype="e4m3", special_values=((0, 70, "nan"), (1, 130, "nan"))),
    DecodeCase(
        "special_values_pages_16_query_tokens_2",
        dtype="e5m2",
        page_size=16,
        query_tokens=2,
        special_values=((0, 70, "inf"), (1, 130, "nan")),
    ),
    DecodeCase(
        "batch_300",
        lengths=tuple((7 * i) % 41 for i in range(300)),
        kv_heads=1,
        group=1,
        head_dim=16,
        sm_count=6,
    ),
    DecodeCase(
        "batch_130_window_30_splits_2",
        lengths=tuple((5 * i) % 97 for i in range(130)),
        kv_heads=1,
        group=2,
        head_dim=16,
        window=30,
        num_splits=2,
    ),
    DecodeCase("splits_20_long", lengths=(1290, 700), kv_heads=1, group=2, num_splits=20),
    DecodeCase("20_partials", lengths=(6500, 30), kv_heads=1, group=2, head_dim=64, sm_count=12),
    DecodeCase("table_stride_37", page_size=16, lengths=(150, 40), table_stride=37),
    DecodeCase("sinks_bf16_query_tokens_4", sinks="bf16", query_tokens=4, lengths=(2, 0, 3, 50)),
    DecodeCase("token_scales_splits_3", dtype="int8", k_scale="token", v_scale="token", num_splits=3),
    DecodeCase("token_scales_pages_48", k_scale="token", v_scale="token", page_size=48, query_tokens=3),
    DecodeCase(
        "sequence_scales_e5m2_output", dtype="e4m3", k_scale="sequence", v_scale="sequence", out_dtype="e5m2"
    ),
    DecodeCase(
        "e5m2_queries", dtype="bf16", query_dtype="e5m2", q_scale="each", out_dtype="e4m3", out_scale="one"
    ),
    DecodeCase(
        "int8_queries", dtype="int8", query_dtype="int8", q_scale="number", k_scale="number", out_dtype="fp32"
    ),
    DecodeCase("scale_0", scale=0.0),
    DecodeCase("window_above_capacity", window=100_000),
    DecodeCase("window_1_query_tokens_3", window=1, query_tokens=3, lengths=(70, 2)),
    DecodeCase("row_blocks_splits_3", group=32, query_tokens=8, kv_heads=1, lengths=(300, 5), num_splits=3),
    DecodeCase("infinite_keys_query_tokens_2", query_tokens=2, lengths=(200, 131), infinite_keys=100),
    DecodeCase(
        "fp32_queries_pages_48",
        dtype="int8",
        query_dtype="fp32",
        page_size=48,
        lengths=(100, 20),
        k_scale="one",
        v_scale="one",
    ),
    DecodeCase("scale_negative", scale=-0.2),
    DecodeCase("scale_large", scale=3.0, query_size=2.0),
)


MERGE = (
    MergeCase("rows_15"),
    MergeCase("rows_7_d72", dtype="fp16", shape=(7, 72)),
    MergeCase("parts_5_mask_heads_first_out_e4m3", parts=5, mask=True, heads_first=True, out_dtype="e4m3"),
)
MORE_MERGE = (
    MergeCase("parts_3_mask", parts=3, mask=True, shape=(37, 2, 40)),
    MergeCase("parts_1_out_e5m2", dtype="fp32", parts=1, out_dtype="e5m2", shape=(7, 24)),
    MergeCase("rows_40_d16", dtype="fp32", shape=(40, 16)),
    MergeCase("rows_1_d256", shape=(1, 256), empty=False),
)
