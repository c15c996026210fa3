"""Calls of `prefill_attention` that `execute` runs, sizes small and odd."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from .layouts import Scale


@dataclass(frozen=True)
class PrefillCase:
    """One call of `prefill_attention`.

    Attributes:
        name: readable and unique among the cases of its kernel and dtype.
        dtype: of q, k and v: "bf16", "fp16", "fp32", "e4m3" or "e5m2".
        cache_dtype: of the cached prefix; None means `dtype`.
        lengths: tokens of each sequence.
        padded: whether sequences are padded to the longest, with NaN; else packed.
        heads_first: whether heads come before tokens in memory.
        prefix: tokens of each cached prefix; empty for none.
        page_size: 0 is a contiguous cache.
        group: query heads of a KV head.
        v_head_dim: of the values; None means head_dim.
        special_values: (sequence, token, "inf", "-inf" or "nan"), written to a few values of KV head 0.
        sm_count: SMs that the tiling is chosen for.
    """

    kernel: ClassVar[str] = "prefill_attention"
    name: str
    _: KW_ONLY
    dtype: str = "bf16"
    cache_dtype: str | None = None
    lengths: tuple[int, ...] = (200, 200)
    padded: bool = True
    heads_first: bool = False
    prefix: tuple[int, ...] = ()
    page_size: int = 0
    kv_heads: int = 1
    group: int = 2
    head_dim: int = 64
    v_head_dim: int | None = None
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    sinks: str | None = None
    q_scale: Scale | None = None
    k_scale: Scale | None = None
    v_scale: Scale | None = None
    special_values: tuple[tuple[int, int, str], ...] = ()
    sm_count: int = 3


PREFILL = (
    PrefillCase("prompts", heads_first=True),
    PrefillCase("prompts_d128", dtype="fp16", head_dim=128, lengths=(130,)),
    PrefillCase("prompts", dtype="e4m3", q_scale="one", k_scale="each", v_scale="each", lengths=(150,)),
    PrefillCase("packed_prefix_pages_16", padded=False, lengths=(70, 0, 1), prefix=(33, 20, 0), page_size=16),
    PrefillCase("padded_window_softcap_sinks", lengths=(150, 17), window=40, softcap=9.0, sinks="fp32"),
    PrefillCase(
        "special_values", lengths=(90,), special_values=((0, 40, "inf"), (0, 60, "-inf"), (0, 89, "nan"))
    ),
)
MORE_PREFILL = (
    PrefillCase("prompts", dtype="fp32", head_dim=32, lengths=(70,)),
    PrefillCase("d192_v128", head_dim=192, v_head_dim=128, lengths=(130,), heads_first=True),
    PrefillCase("d256", head_dim=256, lengths=(70,)),
    PrefillCase("d80", head_dim=80, lengths=(70,)),
    PrefillCase("prompt_1", lengths=(1,)),
    PrefillCase("not_causal_window", causal=False, window=30, lengths=(150, 20)),
    PrefillCase("prefix_e4m3", cache_dtype="e4m3", prefix=(150, 5), k_scale="each", v_scale="one"),
    PrefillCase(
        "prefix_int8_pages_1",
        cache_dtype="int8",
        prefix=(50,),
        page_size=1,
        lengths=(40,),
        k_scale="one",
        v_scale="one",
    ),
    PrefillCase("prompts", dtype="e5m2", lengths=(150,)),
    PrefillCase("packed", padded=False, lengths=(1, 127, 128, 129)),
)
