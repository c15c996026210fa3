"""Parameters of peers' attention suites as calls of ours: one function a suite.

What a suite's parameters leave open (heads, batch, sequence lengths) is as in its public test, or small. This
file is over 400 lines because one function a suite, in one table, is the easiest to compare with the suites.
"""

import ast
import math
from collections.abc import Callable
from typing import Any

import torch
from decodetax.kernels import merge_states

from .attention_case import E4M3, INT8_UNIT, Attention, check

_DTYPES = {
    "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp8": E4M3, "kv8": E4M3,
    "kvi8": torch.int8,
    "float16": torch.float16,
}  # fmt: skip
_VARLEN = ((1, 1328), (5, 18), (129, 463))
_DECODE = ((1, 1328), (1, 18), (1, 463))


class Aside(Exception):  # noqa: N818  (no error: the case is not counted)
    """The case asks for what this project leaves aside: 4-bit caches, alibi, masks, K/V append."""


def value(text: str) -> Any:
    """A parameter's value: a dtype, a number, a tuple, or the text itself."""
    if text.startswith("torch."):
        return getattr(torch, text.removeprefix("torch."))
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def run(row: dict[str, Any]) -> str:
    """ "" if a case agrees, else why not.

    Raises:
        Aside: the case is left aside.
        ValueError: the call is refused.
        KeyError: no adapter of this suite.
    """
    p = {name: value(text) for name, text in row["params"].items()}
    adapter = SUITES[row["peer"], row["suite"]]
    made = adapter(p)
    return check(made) if isinstance(made, Attention) else made


def _aside(p: dict[str, Any], *names: str) -> None:
    for name in names:
        if p.get(name) not in (None, False, 0):
            raise Aside(name)


def _refused(what: str) -> None:
    raise ValueError(what)


def _none(x: Any) -> Any:
    return None if x in (0, 0.0, -1, "None") else x


def fbgemm_gqa(p: dict[str, Any]) -> Any:
    if p.get("splitk"):
        return _split_and_merged(heads=(p["H"], p["HK"]), context=p["L"])
    if p["ty"] == "int4":
        raise Aside("4-bit cache")
    kv_heads = 1 if p["mqa"] else p["N"]
    contexts = tuple(1 + (7 * i) % p["L"] for i in range(p["B"]))
    return Attention(
        queries=(1,) * p["B"], contexts=contexts, heads=(p["N"], kv_heads), head_dim=128,
        cache_dtype=E4M3 if p["ty"] == "fp8" else None, splits=p["splits"],
        query_size=30.0 if p["inf"] else 1.0,
        k_scale="tokens" if p["ty"] == "fp8" else None, v_scale="tokens" if p["ty"] == "fp8" else None,
    )  # fmt: skip


def _split_and_merged(*, heads: tuple[int, int], context: int) -> str:
    from decodetax.kernels import decode_attention  # noqa: PLC0415

    numbers = torch.Generator().manual_seed(1)
    q = torch.randn(2, heads[0], 128, generator=numbers).bfloat16()
    k, v = (torch.randn(2, context, heads[1], 128, generator=numbers).bfloat16() for _ in range(2))
    lens = torch.full((2,), context)
    whole, whole_lse = decode_attention(q, k, v, lens, return_lse=True)
    half = context // 2
    o, lse = decode_attention(q, k[:, :half], v[:, :half], torch.full((2,), half), return_lse=True)
    o2, lse2 = decode_attention(
        q, k[:, half:], v[:, half:], torch.full((2,), context - half), return_lse=True
    )
    merged, merged_lse = merge_states(o, lse, o2, lse2)
    torch.testing.assert_close(merged, whole, rtol=2e-2, atol=2e-3)
    torch.testing.assert_close(merged_lse, whole_lse, rtol=1e-5, atol=1e-5)
    return ""


def flag_gems(p: dict[str, Any]) -> Any:
    _aside(p, "alibi")
    return _varlen(_VARLEN, p["H"], p["D"], dtype=p["dt"], softcap=p["cap"], page_size=32)


def _varlen(
    seqs: tuple[tuple[int, int], ...], heads: tuple[int, int], head_dim: int, **options: Any
) -> Attention:
    return Attention(
        queries=tuple(q for q, _ in seqs),
        contexts=tuple(k for _, k in seqs),
        heads=heads,
        head_dim=head_dim,
        **options,
    )


def flash_mla(p: dict[str, Any]) -> Any:
    contexts = tuple(max(p["T"], p["L"] - 9 * i) for i in range(p["B"]))
    return Attention(
        queries=(p["T"],) * p["B"], contexts=contexts, heads=(p["H"], 1), head_dim=576, v_head_dim=512,
        latent=True,
        page_size=64,
    )  # fmt: skip


def light_llm(p: dict[str, Any]) -> Any:
    if "mla" in p:
        return flash_mla({"T": 1, "B": 2, "H": p["mla"][0], "L": p["mla"][1]})
    if p["sc"] == "groups of 8":
        _refused("k_scale per token, head and group of 8 elements")
    return Attention(
        queries=(1,) * p["B"], contexts=tuple(p["L"] + i for i in range(p["B"])), heads=(8, 2), head_dim=128,
        cache_dtype=torch.int8, k_scale=0.01, v_scale=0.01, page_size=1,
    )  # fmt: skip


def aiter_attention(p: dict[str, Any]) -> Any:
    kind = p.get("ty", "bf16")
    if kind == "nvfp4":
        raise Aside("4-bit cache")
    if kind == "fnuz":
        _refused("float8 fnuz")
    if p.get("unified"):
        seqs = _VARLEN if p["seqs"] == "mixed" else _DECODE
        cache = {"kv8": E4M3, "q8kv8": E4M3}.get(kind)
        return _varlen(
            seqs, p["H"], p["D"], page_size=p["bs"], softcap=p["cap"],
            left=None if p["w"] is None else p["w"] - 1,
            dtype=E4M3 if kind == "q8kv8" else _DTYPES.get(kind, torch.bfloat16), cache_dtype=cache,
            q_scale="scalar" if kind == "q8kv8" else None, k_scale="scalar" if cache else None,
            v_scale="scalar" if cache else None,
            out_dtype=E4M3 if kind == "out8" else torch.bfloat16 if kind == "q8kv8" else None,
            out_scale="scalar" if kind == "out8" else None,
        )  # fmt: skip
    if p.get("pa_mtp"):
        return _varlen(((p["T"], p["L"]), (p["T"], p["L"] // 2 + p["T"])), p["H"], p["D"], page_size=p["bs"])
    cache = {"kv8": E4M3, "q8": E4M3, "qi8": torch.int8, "kvi8": torch.int8, "pertoken": torch.int8}.get(kind)
    unit = INT8_UNIT if cache == torch.int8 else "scalar"
    tokens = "tokens" if kind == "pertoken" else unit if cache else None
    dtype = {"q8": E4M3, "qi8": torch.int8}.get(kind, _DTYPES.get(kind, torch.bfloat16))
    dtype = torch.bfloat16 if kind in ("kv8", "kvi8") else dtype
    return Attention(
        queries=(1,) * p["B"], contexts=tuple(max(1, p["L"] - i) for i in range(p["B"])), heads=p["H"],
        head_dim=p["D"], page_size=p["bs"], dtype=dtype, cache_dtype=cache, k_scale=tokens, v_scale=tokens,
        q_scale=INT8_UNIT if dtype == torch.int8 else "scalar" if dtype == E4M3 else None,
        out_dtype=torch.bfloat16 if dtype.itemsize == 1 else None,
    )  # fmt: skip


def all_options(p: dict[str, Any]) -> Any:
    kv_heads, batch = p["HK"], len(p["lens"])
    kinds = {"none": None, "num": 0.7, "0d": "scalar", "1": "one", 1: "one", "kv": "heads", "neg": -0.5}
    kind: Any = kinds[p["ks"]]
    if p["cd"] == torch.int8 and not isinstance(kind, str):
        kind = INT8_UNIT if kind is None else kind * INT8_UNIT
    if p["cd"].itemsize > 1 and p["cd"] != p["dt"]:
        _refused(f"k_cache is {p['cd']} under q of {p['dt']}")
    return Attention(
        queries=(p["T"],) * batch, contexts=tuple(p["lens"]), heads=(kv_heads * p["g"], kv_heads),
        head_dim=p["D"],
        v_head_dim=p["DV"], dtype=p["dt"], cache_dtype=p["cd"], page_size=p["ps"], splits=p["ns"],
        softcap=p["cap"],
        layout={"HND": "HND", "padded": "padded"}.get(p["lay"], "NHD"),
        left=None if p["w"] is None else p["w"] - 1,
        scale=p["sc"], k_scale=kind, v_scale=kind, sinks=None if p["sink"] is None else torch.float32,
        sink_size={"big": 3.0, "-inf": -math.inf}.get(p["sink"], 1.0),
    )  # fmt: skip


def conch(p: dict[str, Any]) -> Any:
    contexts = tuple(max(1, p["L"] - 5 * i) for i in range(p["B"]))
    return Attention(
        queries=(1,) * p["B"], contexts=contexts, heads=p["H"], head_dim=p["D"], dtype=p["dt"],
        page_size=p["bs"],
        softcap=_none(p["cap"]),
    )  # fmt: skip


def fla(p: dict[str, Any]) -> Any:
    if p.get("gate"):
        raise Aside("gate: a score bias")
    return Attention(
        queries=(1,) * len(p["lens"]), contexts=p["lens"], heads=p["H"], head_dim=p["D"], v_head_dim=p["DV"],
        dtype=p["dt"], page_size=1, sinks=torch.float32 if p["sink"] else None,
    )  # fmt: skip


def fa3_attn_kvcache(p: dict[str, Any]) -> Any:
    kv_heads, group = p["kg"]
    contexts = tuple(max(p["T"], p["L"] - 7 * i) for i in range(p["B"]))
    return Attention(
        queries=(p["T"],) * p["B"], contexts=contexts, heads=(kv_heads * group, kv_heads), head_dim=p["D"],
        causal=p["causal"], dtype=torch.float16,
    )  # fmt: skip


def fa_kvcache(p: dict[str, Any]) -> Any:
    if "paged_block_table_bounds" in p:
        return _clamped_lengths()
    if p.get("softcap") == 0.0 and len(p) == 1:
        return Attention(queries=(1,), contexts=(9,), heads=(2, 1), head_dim=64)
    if "qk" not in p:
        return _fa3_qv(p)
    _aside(p, "alibi")
    if p["new_kv"] == "native":
        raise Aside("K/V append")
    if p["dt"] == E4M3 and p["new_kv"] == "outside":
        p["new_kv"] = False
    queries, context = p["qk"]
    causal, local = p["mask"]
    kv_heads = {"mha": 6, "mqa": 1, "gqa": 3}[p["mha"]]
    contexts = tuple(max(context - 11 * i, 1) for i in range(2))
    varlen = (queries, max(1, queries // 2)) if p.get("varlen_q") else (queries,) * 2
    # FA's local masks are random windows on both sides; with causal the right one is 0.
    left, right = (context // 5, None if causal else context // 7) if local else (None, None)
    return Attention(
        queries=varlen, contexts=contexts, heads=(6, kv_heads), head_dim=p["d"], dtype=p["dt"],
        page_size=p["page"], causal=causal, left=left, right=right, softcap=_none(p.get("softcap", 0.0)),
        splits=_none(p["splits"]), chunk=100 if p.get("chunk") else None, leftpad=3 if p["leftpad"] else 0,
        q_scale="scalar" if p["dt"] == E4M3 else None, k_scale="scalar" if p["dt"] == E4M3 else None,
        v_scale="scalar" if p["dt"] == E4M3 else None, out_dtype=torch.bfloat16 if p["dt"] == E4M3 else None,
    )  # fmt: skip


def _clamped_lengths() -> str:
    from decodetax.kernels import decode_attention  # noqa: PLC0415

    k = torch.randn(4, 16, 1, 64, dtype=torch.float16)
    q, table = torch.randn(1, 1, 64, dtype=torch.float16), torch.arange(4)[None]
    long, full = (decode_attention(q, k, k, torch.tensor([n]), block_table=table) for n in (99, 64))
    return "" if torch.equal(long, full) else "lengths beyond the table are not clamped"


def _fa3_qv(p: dict[str, Any]) -> Any:
    """FA3's qv: scores q k + qv v, keys and values apart: MLA as one latent whose first elements are V."""
    width = p.get("dv", 512)
    return Attention(
        queries=(1, 1), contexts=(130, 77), heads=(16, 1), head_dim=p["d"] + width, v_head_dim=width,
        latent=True,
    )  # fmt: skip


def fa3_combine(p: dict[str, Any]) -> str:
    return _merged(
        parts=p["S"], rows=(p["n"], 5), head_dim=p["d"], dtype=torch.float32, out_dtype=p["dt"], empty="-inf"
    )


def sglang_merge(p: dict[str, Any]) -> str:
    return _merged(parts=2, rows=(p["n"], p["H"]), head_dim=p["D"], dtype=p["dt"], empty=p["empty"])


def vllm_merge(p: dict[str, Any]) -> str:
    if p["fp8"]:
        return _merged(
            parts=2, rows=(p["n"], p["H"]), head_dim=p["D"], dtype=p["dt"], empty=p["empty"], out_dtype=E4M3,
        )  # fmt: skip
    return _merged(
        parts=2, rows=(p["n"], p["H"]), head_dim=p["D"], dtype=p["dt"], empty=p["empty"], prefix=p["ctx"]
    )


def _merged(
    *,
    parts: int,
    rows: tuple[int, int],
    head_dim: int,
    dtype: torch.dtype,
    empty: str,
    out_dtype: torch.dtype | None = None,
    prefix: int | None = None,
) -> str:
    numbers = torch.Generator().manual_seed(3)
    outputs = torch.randn(parts, *rows, head_dim, generator=numbers).to(dtype)
    lses = torch.randn(parts, *rows, generator=numbers) * 3
    if empty != "none":
        dead = torch.rand(parts, *rows, generator=numbers) < 0.2
        lses[dead] = math.inf if empty == "+inf" else -math.inf
    if prefix is not None:
        lses[0, prefix:] = -math.inf  # tokens without a prefix
    o, lse = outputs[0], lses[0]
    for other, other_lse in zip(outputs[1:], lses[1:], strict=True):
        o, lse = merge_states(o, lse, other, other_lse)
    clean = torch.where(lses == math.inf, -math.inf, lses).double()
    total = clean.logsumexp(0)
    weights = torch.exp(clean - torch.where(total.isfinite(), total, 0.0))
    expected = (weights[..., None] * outputs.double()).sum(0)
    o = o if out_dtype is None else o.clamp(-448, 448).to(out_dtype)
    roundoff = torch.finfo(dtype).eps * max(1, parts - 1) + torch.finfo(o.dtype).eps
    error = (o.float() - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-9)
    if parts == 1:
        return "" if torch.equal(o, outputs[0].to(o.dtype)) else "one part changed"
    if not bool((error <= roundoff + 1e-5).all()):
        return f"error {float(error.max()):.3g}, at most {roundoff:.3g} allowed"
    right = torch.where(total.isfinite(), (lse - total).abs() <= 1e-4, lse == -math.inf)
    return "" if bool(right.all()) else "wrong log-sum-exp"


def flashinfer_misc(p: dict[str, Any]) -> Any:  # noqa: PLR0911  (one form a line)
    _aside(p, "alibi", "merge_state_in_place")
    if p.get("fp8_single"):
        return Attention(
            queries=(1,), contexts=(p["L"],), heads=(p["H"], p["H"]), head_dim=128, dtype=torch.float16,
            cache_dtype=E4M3, k_scale=0.02, v_scale=0.02,
        )  # fmt: skip
    if p.get("fp8_batch"):
        return _batch(
            p, heads=(p["H"], p["H"]), dtype=torch.float16, cache_dtype=p["dt"], k_scale=0.02, v_scale=0.02
        )
    if p.get("non_contiguous_q"):
        return _batch(p | {"L": 40}, heads=(p["H"], p["HK"]), layout="padded")
    if p.get("cudnn_decode"):
        return _batch(p | {"D": 128, "ps": 16}, heads=(8, 2))
    if p.get("shared_prefix"):
        width, heads = p.get("D", 128), p.get("H", 8)
        return Attention(
            queries=(min(p["B"], 128),), contexts=(p.get("S", 128),), heads=(heads, heads), head_dim=width,
            causal=False, page_size=16, dtype=torch.float16,
        )  # fmt: skip
    if "merge_states" in p:
        return _merged(parts=5, rows=(7, 4), head_dim=64, dtype=torch.float16, empty="none")
    return _merged(parts=2, rows=(7, 4), head_dim=64, dtype=torch.float16, empty="none")


def _batch(p: dict[str, Any], *, heads: tuple[int, int], **options: Any) -> Attention:
    contexts = tuple(max(1, p["L"] - 13 * i) for i in range(p["B"]))
    layout = {"layout": p["layout"]} if "layout" in p else {}
    return Attention(
        queries=(1,) * p["B"], contexts=contexts, heads=heads, head_dim=p["D"], page_size=p["ps"],
        **layout | options
    )  # fmt: skip


def flashinfer_sink(p: dict[str, Any]) -> Any:
    if "prefill" in p:
        return Attention(queries=(16, 16), contexts=(16, 40), heads=(8, 2), head_dim=128, sinks=torch.float32)
    context = p["L"]
    left = None if p["left"] == -1 else p["left"]
    queries = p.get("T", 1)
    lens = tuple(max(queries, context - 3 * i) for i in range(p["B"]))
    tokens = (
        tuple(max(1, queries - i) for i in range(p["B"]))
        if p.get("kind") == "varlen"
        else (queries,) * p["B"]
    )
    return Attention(
        queries=tokens, contexts=lens, heads=p["H"], head_dim=64, left=left, dtype=p["dt"],
        sinks=torch.float32,
        page_size=p.get("ps"),
    )  # fmt: skip


def flashinfer_decode(p: dict[str, Any]) -> Any:
    _aside(p, "pos_encoding_mode")
    if p.get("multi"):
        contexts = tuple(60 + 7 * i for i in range(p["B"]))
        return Attention(
            queries=(p["T"],) * p["B"], contexts=contexts, heads=(p["HK"] * p["g"], p["HK"]), head_dim=128,
            page_size=16, dtype=torch.float16,
        )  # fmt: skip
    if p.get("extreme_negative"):
        return Attention(
            queries=(1, 1), contexts=(40, 9), heads=(4, 4), head_dim=128, dtype=p["dt"], query_size=500.0,
            page_size=16,
        )  # fmt: skip
    if "padded_heads" in p:
        return Attention(
            queries=(1, 1), contexts=(40, 9), heads=(4, 2), head_dim=128, layout="padded", page_size=16
        )
    # The LSE of FlashInfer is in base 2.
    return _batch(p, heads=(p["H"], 4), dtype=torch.float16, cache_dtype=p["kvdt"], lse_base=2)


def flashinfer_invariant(p: dict[str, Any]) -> Any:
    if "fixed_split_size" in p:
        return Attention(queries=(1, 1), contexts=(300, 20), heads=(8, 2), head_dim=128, splits=2)
    contexts = tuple(p["L"] - 31 * i for i in range(p["B"]))
    return Attention(
        queries=(1,) * p["B"], contexts=contexts, heads=(4 * p["g"], 4), head_dim=p["D"], page_size=p["ps"],
        splits=p["n"],
    )  # fmt: skip


def flashinfer_cap(p: dict[str, Any]) -> Any:
    return Attention(
        queries=(p.get("T", 1),), contexts=(p["L"],), heads=(p.get("H", 8), p.get("H", 8)),
        head_dim=p.get("D", 128), softcap=p["cap"], dtype=torch.float16,
    )  # fmt: skip


def flashinfer_window(p: dict[str, Any]) -> Any:
    if p.get("as_is"):
        return Attention(queries=(1,), contexts=(40,), heads=(4, 4), head_dim=64, left=None)
    return _batch(p, heads=(p["H"], p["HK"]), left=p["left"], dtype=torch.float16)


def flashinfer_trtllm(p: dict[str, Any]) -> Any:
    if "page_table" in p:
        return Attention(queries=(1, 1), contexts=(40, 9), heads=(4, 2), head_dim=128, page_size=16)
    q, kv, out = p["dts"]
    if kv == "nvfp4":
        raise Aside("4-bit cache")
    batch, tokens, page, kv_heads, group = p["shape"]
    page = p["page"] or page
    contexts = tuple(max(tokens, 130 - 37 * i) for i in range(batch))
    cache = _DTYPES[kv]
    return Attention(
        queries=(tokens,) * batch, contexts=contexts, heads=(kv_heads * group, kv_heads), head_dim=p["D"],
        dtype=_DTYPES[q], cache_dtype=cache, page_size=page, layout=p["layout"],
        left=None if p["left"] == -1 else p["left"], sinks=torch.float32 if p["sink"] else None,
        q_scale="scalar" if q == "fp8" else None, k_scale=0.3 if kv == "fp8" else None,
        v_scale=0.3 if kv == "fp8" else None, out_dtype=_DTYPES[out], out_scale=0.2 if out == "fp8" else None,
    )  # fmt: skip


def flashinfer_xqa(p: dict[str, Any]) -> Any:
    if "seq_len" in p:
        _refused("uint32 lengths")
    fp8_cache, scale, fp8_out = p["kv"]
    contexts = tuple(max(1, p["L"] - 5 * i) for i in range(p["B"]))
    return Attention(
        queries=(1,) * p["B"], contexts=contexts, heads=(p["HK"] * p["g"], p["HK"]), head_dim=p["D"],
        dtype=p["dt"],
        cache_dtype=E4M3 if fp8_cache else None, page_size=p["ps"], layout=p["layout"], q_scale=p["qs"],
        k_scale=scale, v_scale=scale, sinks=torch.float32 if p["sink"] else None,
        left=128 if p["win"] else None,
        out_dtype=E4M3 if fp8_out else None, out_scale="scalar" if fp8_out else None,
    )  # fmt: skip


def gpt_oss(p: dict[str, Any]) -> Any:
    tokens, start = p["T"], p["start"]
    context = min(p["L"], start + tokens)
    return Attention(
        queries=(tokens,) * p["B"], contexts=(context,) * p["B"], heads=(64, 8), head_dim=64,
        first_position=None if start + tokens <= p["L"] else start,
        left=None if p["w"] is None else p["w"] - 1,
        sinks=torch.bfloat16,
    )  # fmt: skip


def sglang_kernels(p: dict[str, Any]) -> Any:
    if "decode" in p:
        batch, heads, kv_heads, width = p["decode"]
        return Attention(
            queries=(1,) * batch, contexts=(30,) * batch, heads=(heads, kv_heads), head_dim=width,
            page_size=1,
        )  # fmt: skip
    if "grouped" in p:
        batch, heads, kv_heads, width, v_width = p["grouped"]
        return Attention(
            queries=(1,) * batch, contexts=(p["S"],) * batch, heads=(heads, kv_heads), head_dim=width,
            v_head_dim=v_width, page_size=1, latent=(width, v_width) == (576, 512),
        )  # fmt: skip
    tokens = p["T"]
    queries = (tokens, max(1, tokens // 2), 1)
    return Attention(
        queries=queries, contexts=tuple(q + 30 * i for i, q in enumerate(queries)), heads=(12, 4),
        head_dim=p["D"],
        page_size=1, left=None if p["win"] == -1 else p["win"],
    )  # fmt: skip


def sglang_window(p: dict[str, Any]) -> Any:
    if "window" in p:
        return Attention(
            queries=(40,), contexts=(60,), heads=(4, 2), head_dim=64, causal=False, left=16, right=16
        )
    left = None if p["win"] is None else p["win"]
    return Attention(
        queries=(8,) * len(p["lens"]), contexts=p["lens"], heads=p["H"], head_dim=64, left=left,
        sinks=torch.float32 if p["sink"] else None, page_size=1,
    )  # fmt: skip


def sglang_shared(p: dict[str, Any]) -> Any:
    return Attention(
        queries=(1,) * len(p["seq_lens"]), contexts=tuple(p["seq_lens"]), heads=(16, 1), head_dim=256,
        latent=True,
        cache_dtype=p["cache"], k_scale=p["k_scale"], v_scale=p["k_scale"], page_size=1,
    )  # fmt: skip


def vllm_overflow(p: dict[str, Any]) -> Any:
    if "matmul" in p:
        raise Aside("matmul")
    from decodetax.kernels import decode_attention  # noqa: PLC0415

    width = p.get("D", 128)
    far = (1 << 31) // (16 * 8 * width) + 3
    memory = torch.empty(far + 1, 16, 8, width, dtype=torch.bfloat16)  # untouched pages take no memory
    numbers = torch.Generator().manual_seed(5)
    for page in (1, far):
        memory[page] = torch.randn(16, 8, width, generator=numbers)
    q = torch.randn(1, 8, width, generator=numbers).bfloat16()
    table = torch.tensor([[1, far]])
    near = memory[[1, far]].contiguous()
    out = decode_attention(q, memory, memory, torch.tensor([30]), block_table=table)
    expected = decode_attention(q, near, near, torch.tensor([30]), block_table=torch.tensor([[0, 1]]))
    return "" if torch.equal(out, expected) else "another result from a far page"


def vllm_misc(p: dict[str, Any]) -> Any:
    _aside(p, "mm_prefix_range", "qq_bias", "fp8_k_nvfp4_v", "score_mod", "mask_mod")
    small: dict[str, Any] = {"queries": (1, 1), "contexts": (40, 9), "heads": (8, 2), "head_dim": 64}
    if "per_token_head" in p:
        dtype = p["per_token_head"]
        dtype = dtype if isinstance(dtype, torch.dtype) else torch.int8
        return Attention(**small, cache_dtype=dtype, k_scale="tokens", v_scale="tokens", page_size=16)
    if "chunked_local" in p:
        return Attention(**small | {"queries": (6, 3)}, chunk=8, page_size=16)
    if "softmax_scale" in p:
        return Attention(**small, scale="scalar")
    return Attention(**small, sinks=torch.float16)


def vllm_paged(p: dict[str, Any]) -> Any:
    if "layout" in p:
        if p["layout"].startswith("K"):
            _refused("K packed by x")
        _refused("V with a stride of tokens other than 1")
    _aside(p, "alibi")
    cache = E4M3 if p["kv"] == "fp8" else None
    return Attention(
        queries=(1,) * 3, contexts=(100, 33, 1), heads=p["heads"], head_dim=p["D"], dtype=p["dt"],
        page_size=p["bs"],
        cache_dtype=cache, k_scale=0.3 if cache else None, v_scale=0.3 if cache else None,
    )  # fmt: skip


def vllm_cascade(p: dict[str, Any]) -> Any:
    if p.get("merge"):
        return _merged(parts=2, rows=(p["n"], p["H"]), head_dim=p["D"], dtype=p["dt"], empty="none")
    return Attention(
        queries=(p["n"],), contexts=(256,), heads=p["H"], head_dim=p["D"], dtype=p["dt"], causal=False,
        softcap=p["soft"], page_size=16,
    )  # fmt: skip


def vllm_torch_ref(p: dict[str, Any]) -> Any:
    return Attention(
        queries=(1,) * p["B"], contexts=(p["L"],) * p["B"], heads=p["H"], head_dim=128, page_size=16,
        dtype=torch.float16,
    )  # fmt: skip


def vllm_varlen(p: dict[str, Any]) -> Any:
    if p.get("nvfp4"):
        raise Aside("4-bit cache")
    seqs: Any = p.get("seqs", "decode")
    if isinstance(seqs, tuple):
        chosen: tuple[tuple[int, int], ...] = (seqs,)
    else:
        chosen = _DECODE if seqs == "decode" else _VARLEN
    quantized = E4M3 if p.get("q8") else None
    return _varlen(
        chosen, p.get("heads", (4, 4)), p.get("D", 128), page_size=16, softcap=p.get("soft"),
        left=None if p.get("window") is None else p["window"] - 1, dtype=quantized or torch.bfloat16,
        cache_dtype=E4M3 if quantized or p.get("kv8") else None, q_scale="scalar" if quantized else None,
        k_scale="sequences" if quantized or p.get("kv8") else None,
        v_scale="sequences" if quantized or p.get("kv8") else None,
        out_dtype=E4M3 if p.get("out8") else torch.bfloat16, out_scale="scalar" if p.get("out8") else None,
    )  # fmt: skip


def vllm_flashinfer(p: dict[str, Any]) -> Any:
    return Attention(
        queries=(1,) * len(p["kv"]), contexts=p["kv"], heads=p["heads"], head_dim=p["D"], page_size=p["bs"],
        softcap=p["soft"], left=None if p["window"] is None else p["window"] - 1,
    )  # fmt: skip


def vllm_decode(p: dict[str, Any]) -> Any:
    if p.get("as_is"):
        return Attention(queries=(1, 1), contexts=(40, 9), heads=(8, 2), head_dim=128, page_size=p["PAGE"])
    cache = E4M3 if p["fp8"] else None
    return Attention(
        queries=(1,) * p["B"], contexts=(p["L"],) * p["B"], heads=p["H"], head_dim=p["D_QK"],
        v_head_dim=p["D_V"],
        page_size=p["PAGE"], cache_dtype=cache, k_scale=0.3 if cache else None,
        v_scale=0.3 if cache else None,
    )  # fmt: skip


def xformers(p: dict[str, Any]) -> Any:  # noqa: PLR0911  (one form a line)
    _aside(p, "tree_attention")
    if p.get("decoder"):
        batch, heads = 3, 8
        kv_heads = p["kvh"] or heads
        contexts = (p["pad"][0], max(1, p["pad"][0] // 2), 1)
        return Attention(
            queries=(1,) * batch, contexts=contexts, heads=(heads, kv_heads), head_dim=p["D"], dtype=p["dt"],
        )  # fmt: skip
    if p.get("manyqueries"):
        heads, tokens = p["HT"]
        context = p["pad"][0]
        return Attention(
            queries=(tokens,) * 2, contexts=(context, max(tokens, context // 2)),
            heads=(heads, 1 if p["mq"] else heads),
            head_dim=128, dtype=p["dt"],
        )  # fmt: skip
    if "BMHK" in p:
        batch, context, heads, width = p["BMHK"]
        return Attention(
            queries=(1,) * batch, contexts=(context,) * batch, heads=(heads, 1), head_dim=width,
            dtype=torch.float16,
        )  # fmt: skip
    if p.get("merge_nobias"):
        heads = p["G"] * p["H"]
        return Attention(
            queries=(p["T"],), contexts=(p["M"],), heads=(heads, p["G"]), head_dim=128, causal=False
        )
    if p.get("paged"):
        groups = max(1, p["groups"])
        tokens = p["T"]
        # Gappy: keys begin at kv_seqstarts, which a page table expresses.
        return Attention(
            queries=(1,) * p["B"], contexts=(tokens,) * p["B"], heads=(8, groups), head_dim=128,
            page_size=p["ps"],
            leftpad=5 if p["gappy"] else 0,
        )  # fmt: skip
    if "nans_in_padding" in p:
        tokens = p.get("T", 3)
        return Attention(queries=(tokens, 3), contexts=(max(60, tokens), tokens), heads=(8, 2), head_dim=64)
    return Attention(
        queries=() if p["empty"] == "empty_query" else (1,),
        contexts=() if p["empty"] == "empty_query" else (0,), heads=(8, 2), head_dim=64,
    )  # fmt: skip


SUITES: dict[tuple[str, str], Callable[[dict[str, Any]], Any]] = {
    ("FBGEMM", "gqa_test, blackwell splitk"): fbgemm_gqa,
    ("FlagGems", "test_flash_attn_varlen_func"): flag_gems,
    ("FlashMLA", "dense decoding"): flash_mla,
    ("LightLLM", "int8kv diverse decode"): light_llm,
    ("aiter", "triton unified_attention, pa_decode, pa_mtp"): aiter_attention,
    ("all peers", "options of all attention suites together, seed 5"): all_options,
    ("all peers", "options of all attention suites together, seed 6"): all_options,
    ("conch", "paged_attention_test"): conch,
    ("fla", "test_attn_sink decoding"): fla,
    ("flash-attention", "hopper/test_attn_kvcache.py"): fa3_attn_kvcache,
    ("flash-attention", "hopper/test_flash_attn.py combine"): fa3_combine,
    ("flash-attention", "hopper/test_flash_attn.py kvcache"): fa_kvcache,
    ("flash-attention", "hopper/test_flash_attn.py kvcache, of what has arguments"): fa_kvcache,
    ("flash-attention", "tests/test_flash_attn.py kvcache"): fa_kvcache,
    ("flash-attention", "tests/test_flash_attn.py kvcache, of what has arguments"): fa_kvcache,
    ("flashinfer", "fp8 scale, non-contiguous, mlc, cudnn, shared prefix, alibi"): flashinfer_misc,
    ("flashinfer", "test_attention_sink"): flashinfer_sink,
    ("flashinfer", "test_batch_decode_kernels"): flashinfer_decode,
    ("flashinfer", "test_batch_invariant_fa2"): flashinfer_invariant,
    ("flashinfer", "test_logits_cap"): flashinfer_cap,
    ("flashinfer", "test_sliding_window"): flashinfer_window,
    ("flashinfer", "test_trtllm_gen_attention_decode"): flashinfer_trtllm,
    ("flashinfer", "test_xqa"): flashinfer_xqa,
    ("gpt-oss", "attention.py test_eq"): gpt_oss,
    ("sglang", "test_decode_shared_kv"): sglang_shared,
    ("sglang", "test_merge_state, test_merge_state_v2"): sglang_merge,
    ("sglang", "test_triton_attention_kernels"): sglang_kernels,
    ("sglang", "test_triton_attention_window_sink"): sglang_window,
    ("vllm", "NUM_BLOCKS large enough to overflow 32-bit indices"): vllm_overflow,
    ("vllm", "per-token-head KV, sinks, chunked local, cpu"): vllm_misc,
    ("vllm", "test_attention (paged, v1 layout)"): vllm_paged,
    ("vllm", "test_cascade_flash_attn"): vllm_cascade,
    ("vllm", "test_decode_attention_torch_ref"): vllm_torch_ref,
    ("vllm", "test_flash_attn"): vllm_varlen,
    ("vllm", "test_flashinfer"): vllm_flashinfer,
    ("vllm", "test_merge_attn_states"): vllm_merge,
    ("vllm", "test_triton_decode_attention"): vllm_decode,
    ("vllm", "test_triton_unified_attention"): vllm_varlen,
    ("xformers", "test_mem_eff_attention (decoding), merge, splitk"): xformers,
}
