"""Parameters of peers' matmul suites as products of ours: one function a suite.

What a suite's parameters leave open (sizes, scales) is as in its public test, or small.
"""

from collections.abc import Callable
from typing import Any

import torch
from decodetax.kernels import prefill_matmul

from .attention_suites import Aside, value
from .matmul_case import BLOCK, Matmul, check, compared, double

_E4M3, _BF16 = torch.float8_e4m3fn, torch.bfloat16
_SMALL = (33, 96, 256)


def run(row: dict[str, Any]) -> str:
    """ "" if a case agrees, else why not.

    Raises:
        Aside: the case is left aside.
        ValueError: the call is refused.
        KeyError: no adapter of this suite.
    """
    p = {name: value(text) for name, text in row["params"].items()}
    made = SUITES[row["peer"], row["suite"]](p)
    return check(made) if isinstance(made, Matmul) else made


def _aside(p: dict[str, Any], *names: str) -> None:
    for name in names:
        if name in p:
            raise Aside(f"{name} {p[name]}")


def _blocks(x_dtype: torch.dtype = _E4M3, *, weight_scale: str = "blocks", **options: Any) -> Matmul:
    """Scales of 1 x 128 and 128 x 128 elements; the last blocks are partial."""
    options = {"mnk": (33, 200, 320), "weight_dtype": _E4M3, **options}
    x_scale = "blocks" if x_dtype.itemsize == 1 else None
    return Matmul(x_dtype=x_dtype, x_scale=x_scale, weight_scale=weight_scale, **options)


def deep_gemm(p: dict[str, Any]) -> Matmul | str:
    if "fp8" in p:
        return _blocks(out_dtype=_BF16)
    if "grouped" in p:
        if p["grouped"] != "masked, computed whole":
            raise Aside(f"grouped {p['grouped']}")
        return Matmul(mnk=_SMALL, batch=3)
    if "bmk_bnk_mn" in p:
        return _sum_over_batch()
    if "einsum" in p:
        heads, r, d = p["hrd"]
        # bhd,hdr->bhr and bhr,hdr->bhd: heads are the batch, second in the memory of x and of the result.
        first = p["kind"] == "bhd,hdr->bhr"
        return Matmul(
            mnk=(p["b"], r, d) if first else (p["b"], d, r),
            batch=heads,
            x_layout="rev",
            out="rev",
            weight_layout="T" if first else "N",
        )
    n, k = p["nk"]
    layouts = {"K": "N", "MN": "T"}
    return Matmul(
        mnk=(p["m"], n, k),
        x_layout=layouts[p["ma"]],
        weight_layout=layouts[p["mb"]],
        out_dtype=p["od"],
        residual="MN" if p["acc"] else None,
        alias=p["acc"] and p["alias"],
        out="given",
    )


def _sum_over_batch() -> str:
    """bmk,bnk->mn: each product is added to the output of the one before."""
    numbers = torch.Generator().manual_seed(7)
    x = torch.randn(3, 17, 64, generator=numbers).to(_BF16)
    weight = torch.randn(3, 33, 64, generator=numbers).to(_BF16)
    out = torch.zeros(17, 33)
    for each_x, each_weight in zip(x, weight, strict=True):
        prefill_matmul(each_x, each_weight, residual=out, out=out)
    terms = double(x) @ double(weight).mT
    size = (double(x).abs() @ double(weight).abs().mT).sum(0)
    return compared(out, terms.sum(0), 16 * 2.0**-24 * size)


def fbgemm(p: dict[str, Any]) -> Matmul:
    _aside(p, "grouped")
    return Matmul(
        mnk=p["row"],
        x_dtype=_E4M3,
        x_layout="T" if p["transpose"] else "N",
        x_scale="row" if p["x_scale"] else None,
        weight_scale="row",
        bias="N" if p["bias"] else None,
    )


def flag_gems(p: dict[str, Any]) -> Matmul:
    case = {"mnk": p["mnk"], "x_dtype": p["dt"], "weight_layout": "N" if p["col"] else "T"}
    if p["op"].startswith("addmm"):
        residual = "N" if p["op"] == "addmm_row" else "MN"
        return Matmul(**case, residual=residual, alpha=-0.999, beta=100.001)
    if p["op"] == "mv":
        m, _, k = p["mnk"]
        return Matmul(mnk=(1, m, k), x_dtype=p["dt"], vector=True)
    return Matmul(**case, batch=4 if p["op"] == "bmm" else None)


def liger(p: dict[str, Any]) -> Matmul:
    if "sh" not in p:
        return Matmul(mnk=_SMALL, activation="silu", gate="interleaved", clamped=True, bias="N")
    batch, tokens, hidden, inter = p["sh"]
    return Matmul(
        mnk=(tokens, inter, hidden),
        lead=(batch,),
        x_dtype=p["dt"],
        activation="silu",
        gate="pair" if p["kind"] == "llama" else "halves",
    )


def fused_dense(p: dict[str, Any]) -> Matmul:
    if "mlp" in p:
        activation = {"gelu_approx": "gelu_tanh", "relu": "relu", "sqrelu": "relu_squared"}[p["mlp"]]
        return Matmul(mnk=_SMALL, activation=activation, bias="N")
    return Matmul(mnk=(12, p["o"], p["i"]), x_dtype=p["dt"], bias="N" if p["bias"] else None)


def light_llm(p: dict[str, Any]) -> Matmul:
    return Matmul(mnk=p["mnk"], x_dtype=_E4M3, x_scale="M1", weight_scale="1N", out_dtype=_BF16)


def aiter_gemm(p: dict[str, Any]) -> Matmul:
    if "a16w8_blockscale" in p:
        return _blocks(_BF16)
    if "a8w8_blockscale" in p:
        return _blocks()
    if "mul_add" in p:
        return Matmul(mnk=_SMALL, alpha=0.5, residual="MN")
    layouts = {
        "x_layout": "N" if p["layout"][0] == "T" else "T",
        "weight_layout": "T" if p["layout"][1] == "T" else "N",
    }
    m, n, k = p["mnk"]
    if "batched" in p:
        out = "given" if p["out"] else None
        return Matmul(mnk=p["mnk"], batch=p["b"], bias="B1N", out=out, **layouts)
    if "a8w8" in p:
        return Matmul(
            mnk=p["mnk"],
            x_dtype=p["dt"],
            out_dtype=p["od"],
            x_scale="M1",
            weight_scale="1N",
            bias="1N",
            bias_dtype=p["od"],
            **layouts,
        )
    gated = "gated" in p
    return Matmul(
        mnk=(m, n // 2, k) if gated else p["mnk"],
        x_dtype=p["dt"],
        activation=p["act"],
        gate="halves" if gated else None,
        out="given" if p["out"] else None,
        **layouts,
    )


def flashinfer(p: dict[str, Any]) -> Matmul:  # noqa: PLR0911  (one return a form)
    _aside(p, "mxfp8", "bf16_fp4")
    if "groupwise" in p:
        return _blocks()
    if "mm_bf16" in p:
        bias = {"bias": "N", "bias_dtype": _BF16} if p["bias"] else {}
        return Matmul(mnk=p["mm_bf16"], out_dtype=p["out"], **bias)
    if "bmm_bf16" in p or "bmm_fp8" in p:
        batch, *mnk = p.get("bmm_bf16") or p["bmm_fp8"]
        case: dict[str, Any] = {"mnk": tuple(mnk), "batch": batch, "out_dtype": p["out"]}
        if "bmm_bf16" in p:
            return Matmul(**case)
        return Matmul(**case, x_dtype=p["a"], weight_dtype=p["b"], x_scale="one", weight_scale="one")
    if "mm_fp8" in p:
        return Matmul(mnk=(p["mm_fp8"], 256, 512), x_dtype=_E4M3, x_scale="number", out_dtype=_BF16)
    if "tgv" in p:
        return Matmul(mnk=(p["m"], p["n"], p["k"]), x_dtype=p["dt"], bias="N")
    if not isinstance(p["segment"], bool):
        raise Aside(f"segments {p['segment']}")
    # Segments of one length are a batch; weights by index are gathered.
    return Matmul(mnk=(p["r"], p["do"], p["di"]), batch=p["b"], weight_layout="N" if p["col"] else "T")


def sglang(p: dict[str, Any]) -> Matmul:
    _aside(p, "qserve_w4a8")
    if "fp8_blockwise" in p:
        return _blocks()
    if "bmm_fp8" in p:
        dtypes = {"x_dtype": p["a"], "weight_dtype": p["b"], "out_dtype": p["od"]}
        return Matmul(mnk=(48, 80, 64), batch=4, x_scale="one", weight_scale="one", **dtypes)
    rows = {"x_scale": "row", "weight_scale": "row"}
    if "int8" in p:
        return Matmul(mnk=p["int8"], x_dtype=torch.int8, out_dtype=_BF16, bias="N", **rows)
    mnk, bias = (p["M"], p["N"], p["K"]), "N" if p["bias"] else None
    return Matmul(mnk=mnk, x_dtype=_E4M3, out_dtype=p["od"], bias=bias, **rows)


def torchao(p: dict[str, Any]) -> Matmul:
    if "dynamic_int8" in p:
        return Matmul(mnk=_SMALL, x_dtype=torch.int8, x_scale="M1", weight_scale="row", out_dtype=_BF16)
    if "sh" not in p:
        return Matmul(mnk=_SMALL, weight_dtype=torch.int8, weight_scale="row", scale_dtype=_BF16)
    lead, k, n = p["sh"]
    return Matmul(
        mnk=(lead[-1], n, k),
        lead=lead[:-1],
        x_dtype=p["dt"],
        weight_dtype=torch.int8,
        weight_scale="11" if p["g"] == "tensor" else "N1",
    )


def triton_lang_kernels(p: dict[str, Any]) -> Matmul:
    x_dtype, weight_dtype = (
        getattr(torch, name.strip(" ()").removeprefix("torch.")) for name in p["ab"].split(",")
    )
    return Matmul(
        mnk=p["mnk"],
        x_dtype=x_dtype,
        weight_dtype=weight_dtype,
        x_layout="T" if p["AT"] else "N",
        weight_layout="N" if p["BT"] else "T",
        precision=p["prec"] or "ieee",
    )


def triton(p: dict[str, Any]) -> Matmul:
    _aside(p, "mx")
    if "zero_sized" in p:
        if p["mode"] == "ragged":
            raise Aside("ragged")
        return Matmul(mnk=p["zero_sized"], batch=3, bias="BN")
    if "option" in p:
        if p["option"] != "gammas without bias":
            raise Aside(p["option"])
        return Matmul(mnk=_SMALL, x_scale="row")
    if "tutorial" in p:
        if p["tutorial"] == "08 grouped":
            raise Aside(p["tutorial"])
        dtype = torch.float8_e5m2 if "fp8" in p["tutorial"] else torch.float16
        return Matmul(mnk=p["mnk"], x_dtype=dtype, out_dtype=torch.float16)
    return Matmul(
        mnk=p["sh"],
        batch=p["nb"],
        x_dtype=p["dt"],
        x_layout="T" if p["at"] else "N",
        weight_layout="N" if p["bt"] else "T",
        out="T" if p["ct"] else None,
        bias="BN" if p["bias"] else None,
    )


def vllm_formats(p: dict[str, Any]) -> Matmul:
    _aside(p, "int4_packed", "nvfp4")
    if "block_fp8" in p:
        return _blocks() if p["block_fp8"] is True else _blocks(_BF16)
    if "int8_groups_of_128" in p:
        return _blocks(_BF16, weight_dtype=torch.int8, weight_scale="groups")
    if "fp8_marlin" in p:
        dtype = _BF16 if "bf16" in p["fp8_marlin"] else torch.float16
        return Matmul(mnk=_SMALL, x_dtype=dtype, weight_dtype=_E4M3, weight_scale="row")
    return Matmul(mnk=(0, 96, 256), x_dtype=_E4M3, x_scale="M1", weight_scale="1N", bias="N")


def vllm_cutlass(p: dict[str, Any]) -> Matmul | str:
    if "azp" in p:
        return _zero_points()
    return Matmul(
        mnk=p["mnk"],
        x_dtype=p["dt"],
        out_dtype=p["od"],
        x_scale={"tensor": "1", "token": "M1"}[p["sa"]],
        weight_scale={"tensor": "1", "channel": "N1", "channel_1N": "1N"}[p["sb"]],
        bias="N" if p["bias"] else None,
    )


def _zero_points() -> str:
    """Asymmetric int8 x with one zero point: its product with the weight goes into the bias, as in vLLM."""
    numbers = torch.Generator().manual_seed(8)
    x = torch.randint(-128, 128, (17, 96), generator=numbers, dtype=torch.int8)
    weight = torch.randint(-128, 128, (33, 96), generator=numbers, dtype=torch.int8)
    zero_point, scale, scales = 11, 0.02, torch.rand(33, generator=numbers) + 0.5
    bias = -zero_point * scale * scales * weight.sum(-1, dtype=torch.int32)
    result = prefill_matmul(x, weight, x_scale=scale, weight_scale=scales, bias=bias, out_dtype=_BF16)
    expected = (double(x) - zero_point) @ double(weight).mT * scale * scales.double()
    size = (double(x).abs() + zero_point) @ double(weight).abs().mT * scale * scales.double()
    return compared(result, expected, 16 * 2.0**-24 * size)


def vllm_skinny(p: dict[str, Any]) -> Matmul:
    fp8 = p["dt"] == "fp8"
    scales = {"x_scale": "one", "weight_scale": "one"} if fp8 else {}
    dtype = _E4M3 if fp8 else p["dt"]
    return Matmul(mnk=(p["n"], p["m"], p["k"]), x_dtype=dtype, bias="N" if p["bias"] else None, **scales)


def vllm_triton_scaled(p: dict[str, Any]) -> Matmul:
    if "mnk" not in p:
        one = (
            {"x_scale": "11", "weight_scale": "11"}
            if "scale" in p
            else {"x_scale": "M1", "weight_scale": "1N"}
        )
        return Matmul(mnk=_SMALL, x_dtype=_E4M3, out_dtype=_BF16, **one)
    return _scaled(p, p["mnk"], _BF16)


def conch(p: dict[str, Any]) -> Matmul:
    if "mixed_bits" in p:
        if p["mixed_bits"] == 4:
            raise Aside("4-bit weights")
        groups = p["group"] == BLOCK
        return _blocks(_BF16, weight_dtype=torch.int8, weight_scale="groups" if groups else "row")
    m, k, n = p["mkn"]
    return _scaled(p, (m, n, k), p["od"])


def _scaled(p: dict[str, Any], mnk: tuple[int, int, int], out_dtype: torch.dtype) -> Matmul:
    """Scales per token and channel, or [1, 1]; the weight is b.T of [K, N]."""
    return Matmul(
        mnk=mnk,
        x_dtype=p["dt"],
        out_dtype=out_dtype,
        weight_layout="T",
        x_scale="M1" if p["sa"] else "11",
        weight_scale="N1" if p["sb"] else "11",
        bias="N" if p["bias"] else None,
    )


def xformers(p: dict[str, Any]) -> Matmul | str:
    return Matmul(mnk=p["mnk"], x_dtype=p["dt"]) if "mnk" in p else _tiles_of_lists()


def _tiles_of_lists() -> str:
    """Operands as lists of tiles: products of tiles, each added to the output of the one before."""
    numbers = torch.Generator().manual_seed(9)
    x = torch.randn(2, 3, 17, 32, generator=numbers).to(_BF16)
    weight = torch.randn(2, 3, 19, 32, generator=numbers).to(_BF16)
    out = torch.zeros(2, 2, 17, 19)
    for row, column, k in [(row, column, k) for row in range(2) for column in range(2) for k in range(3)]:
        tile = out[row, column]
        prefill_matmul(x[row, k], weight[column, k], residual=tile, out=tile)
    expected = torch.einsum("ikmd,jknd->ijmn", double(x), double(weight))
    size = torch.einsum("ikmd,jknd->ijmn", double(x).abs(), double(weight).abs())
    return compared(out, expected, 16 * 2.0**-24 * size)


def bitsandbytes(p: dict[str, Any]) -> Matmul:
    raise Aside(f"4-bit weights: {p}")


def all_peers(p: dict[str, Any]) -> Matmul:
    batch = p["b"]
    gated = p["act"] == "swiglu"
    row = {"row": "row", "row1": "M1", "0d": "one", "num": "number", "none": None, "1": "1", 1: "1"}
    return Matmul(
        mnk=(1 if p["lead"] == 0 and batch is None else p["M"], p["N"], p["K"]),
        x_dtype=p["x"],
        weight_dtype=p["w"],
        out_dtype=p["od"],
        batch=batch,
        lead=(2,) if p["lead"] == 2 else (),
        vector=p["lead"] == 0 and batch is None,
        x_layout=p["xl"],
        weight_layout=p["wl"],
        # Rows of a result with leading dimensions have one stride.
        out="strided" if p["lead"] == 2 and batch is None and p["out"] == "T" else p["out"],
        bias={"f32": "N", "od": "N", "strided": "strided", None: None}[p["bias"]],
        bias_dtype=torch.float32 if p["bias"] == "f32" else None,
        x_scale=row[p["xs"]],
        weight_scale=(row | {"row1": "N1", "neg": "neg"})[p["ws"]],
        activation="silu" if gated else p["act"],
        gate="halves" if gated else None,
        precision=p["prec"],
    )


SUITES: dict[tuple[str, str], Callable[[dict[str, Any]], Matmul | str]] = {
    ("DeepGEMM", "test_bf16, test_fp8_fp4, test_einsum"): deep_gemm,
    ("FBGEMM", "fp8_gemm_test"): fbgemm,
    ("FlagGems", "test_blas_ops mm, bmm, addmm"): flag_gems,
    ("Liger-Kernel", "test_swiglu, test_geglu, test_mm_int8int2"): liger,
    ("LightLLM", "fp8_scaled_mm_per_token"): light_llm,
    ("aiter", "triton gemm a16w16, gated, ff, a8w8, batched bf16"): aiter_gemm,
    ("all peers", "options of all matmul suites together, seed 1"): all_peers,
    ("all peers", "options of all matmul suites together, seed 2"): all_peers,
    ("bitsandbytes", "int8 linear, 4bit"): bitsandbytes,
    ("flash-attention", "tests/ops/test_fused_dense.py"): fused_dense,
    ("conch", "scaled_gemm_test, mixed_precision_gemm_test"): conch,
    ("flashinfer", "gemm: mm_bf16, bmm_bf16, bmm_fp8, mm_fp8, tgv, segment, groupwise"): flashinfer,
    ("sglang", "test_fp8_gemm, test_int8_gemm, test_bmm_fp8, fp8_blockwise"): sglang,
    ("torchao", "int8 weight-only, dynamic int8, hqq, float8"): torchao,
    ("triton-lang/kernels", "test_matmul"): triton_lang_kernels,
    ("triton", "triton_kernels test_matmul, tutorials 03, 08, 09, 10"): triton,
    ("vllm", "block fp8, marlin, awq, gptq, nvfp4, machete"): vllm_formats,
    ("vllm", "test_cutlass_scaled_mm"): vllm_cutlass,
    ("vllm", "test_rocm_skinny_gemms"): vllm_skinny,
    ("vllm", "test_triton_scaled_mm"): vllm_triton_scaled,
    ("xformers", "test_tiled_matmul"): xformers,
}
