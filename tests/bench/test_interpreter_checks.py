"""The Triton kernels in the interpreter on small cases: they are correct, and planted faults are found."""

import dataclasses
import math

import pytest
from decodetax import kernels
from decodetax.harness.bench.interpreter_checks import check_in_interpreter, small_cases_of
from decodetax.harness.core.cases import DecodeAttention, PrefillAttention, PrefillMatmul
from decodetax.harness.core.language_model import preset_table
from decodetax.harness.core.layers import GroupedQueryAttention, LatentAttention, Mlp
from decodetax.harness.core.timed_model import TimedLayers, load_timed_model
from decodetax.harness.core.work import ELEMENT_BYTES
from decodetax.harness.offline.tile_order import decode_chunk_order
from decodetax.kernels import choose_decode_tiling
from decodetax.kernels.gpu_limits import H100_LIMITS
from small_cases import tiny_model

MODEL = tiny_model(q_heads=8, kv_heads=2, head_dim=64)
SMALL = tiny_model(q_heads=2, kv_heads=1, head_dim=16)
MATMUL_PROVIDERS = ("triton-pointers", "triton-descriptors", "triton-warp-specialized")


def checks(dtype="fp32", model=MODEL):
    return list(check_in_interpreter(model, dtype, seed=0))


def statuses(found):
    return [(check.case.operation, check.provider, check.status) for check in found]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_kernels_agree_with_the_oracle(dtype):
    found = checks(dtype)
    product = [("prefill_matmul", provider, "ok") for provider in MATMUL_PROVIDERS]
    attention = [("prefill_attention", "triton", "ok"), ("decode_attention", "triton", "ok")]
    assert statuses(found) == [*product, *product, *attention]
    for check in found:
        assert check.reason is None
        assert 0 < check.relative_error <= check.tolerance
        assert check.case.dtype == dtype


@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "small_heads"), [(8, 2, (8, 2)), (32, 8, (8, 2)), (3, 1, (3, 1)), (5, 5, (2, 2))]
)
def test_small_cases_have_the_group_and_head_dimension_of_the_model(q_heads, kv_heads, small_heads):
    model = tiny_model(q_heads=q_heads, kv_heads=kv_heads, head_dim=80)
    *products, prompts, attention = small_cases_of(model, "bf16")
    assert all(isinstance(case, PrefillMatmul) for case in products)
    assert isinstance(prompts, PrefillAttention)
    assert isinstance(attention, DecodeAttention)
    assert (attention.q_heads, attention.kv_heads, attention.head_dim) == (*small_heads, 80)
    assert (prompts.kv_heads, prompts.head_dim) == (small_heads[1], 80)
    assert prompts.q_heads == prompts.kv_heads * min(2, q_heads // kv_heads)
    assert {0, 1} < set(attention.contexts)
    assert {case.dtype for case in small_cases_of(model, "bf16")} == {"bf16"}


def planted(change):
    """`decode_attention` with a fault."""
    plain = kernels.decode_attention

    def faulty(q, k_cache, v_cache, context_lens, *, out, **_):
        change(plain, q=q, k_cache=k_cache, v_cache=v_cache, context_lens=context_lens, out=out)
        return out

    return faulty


def wrong_scale(plain, *, q, **others):
    plain(q=q, scale=1 / q.shape[-1], **others)


def split_skipped(plain, *, context_lens, **others):
    plain(context_lens=context_lens - context_lens // 4, **others)


def last_token_skipped(plain, *, context_lens, **others):
    plain(context_lens=(context_lens - 1).clamp(min=0), **others)


def one_wrong_row(plain, *, out, **others):
    plain(out=out, **others)
    out[2, 1] *= 1.05


def empty_sequence_not_zero(plain, *, out, **others):
    plain(out=out, **others)
    out[0] = 1e-6


def nothing_written(plain, **others):
    pass


def one_head_not_written(plain, *, out, **others):
    plain(out=out, **others)
    out[3, 1] = math.nan


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "fault",
    [
        wrong_scale,
        split_skipped,
        last_token_skipped,
        one_wrong_row,
        empty_sequence_not_zero,
        nothing_written,
        one_head_not_written,
    ],
    ids=lambda fault: fault.__name__,
)
def test_fault_in_decode_attention_is_seen(monkeypatch, fault, dtype):
    monkeypatch.setattr(kernels, "prefill_matmul", lambda x, weight, *, out, **_: out.copy_(x @ weight.T))
    monkeypatch.setattr(kernels, "decode_attention", planted(fault))
    *others, attention = checks(dtype, SMALL)
    assert {check.status for check in others} == {"ok"}
    assert attention.status == "failed"
    assert attention.reason.startswith("wrong result: relative error")
    assert attention.relative_error > attention.tolerance


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda x, w: 1.02 * (x @ w.T), id="scale"),
        pytest.param(lambda x, w: x[:, :-8] @ w[:, :-8].T, id="end of the reduction skipped"),
        pytest.param(
            lambda x, w: (x @ w.T).index_fill(0, x.new_tensor([len(x) - 1]).long(), 0), id="last row"
        ),
    ],
)
def test_fault_in_prefill_matmul_is_seen(monkeypatch, fault):
    monkeypatch.setattr(kernels, "decode_attention", planted(nothing_written))
    monkeypatch.setattr(kernels, "prefill_matmul", lambda x, weight, *, out, **_: out.copy_(fault(x, weight)))
    *products, prompts, decode = checks(model=SMALL)
    assert {check.status for check in (*products, decode)} == {"failed"}
    assert prompts.status == "ok"


def sees_the_next_token(plain, q, k, v, *, out, **others):
    plain(q, k.roll(-1, 1), v.roll(-1, 1), out=out, **others)


def last_prompt_not_written(plain, q, k, v, *, out, **others):
    plain(q[:1], k[:1], v[:1], out=out[:1], **others)


@pytest.mark.usefixtures("_quick_products")
@pytest.mark.parametrize("fault", [sees_the_next_token, last_prompt_not_written], ids=lambda f: f.__name__)
def test_fault_in_prefill_attention_is_seen(monkeypatch, fault):
    plain = kernels.prefill_attention
    monkeypatch.setattr(kernels, "prefill_attention", lambda *args, **named: fault(plain, *args, **named))
    *others, prompts, decode = checks("bf16", SMALL)
    assert {check.status for check in (*others, decode)} == {"ok"}
    assert prompts.status == "failed"


def test_exception_becomes_a_failed_check_and_the_others_go_on(monkeypatch):
    def broken(*_args, **_options):
        raise IndexError("out\n of  range " + "far " * 200)

    monkeypatch.setattr(kernels, "prefill_matmul", broken)
    *products, prompts, attention = checks(model=SMALL)
    for check in products:
        assert check.status == "failed"
        assert check.reason.startswith("IndexError: out of range far")
        assert len(check.reason) < 400
        assert (check.relative_error, check.tolerance) == (None, None)
    assert (prompts.status, attention.status) == ("ok", "ok")


KINDS = {
    "sliding window and softcap": {"window": 13, "softcap": 50.0},
    "sinks": {"sinks": True},
}


def model_of(**options):
    """The small model with two kinds of attention: with these options, and plain."""
    heads = {"q_heads": 2, "kv_heads": 1, "head_dim": 16}
    groups = tuple(
        TimedLayers(count=1, grouped=GroupedQueryAttention(**heads, **kind), dense=Mlp(intermediate_size=40))
        for kind in (options, {})
    )
    return dataclasses.replace(SMALL, layer_groups=groups)


LATENT = LatentAttention(
    q_heads=6, q_rank=None, kv_rank=48, nope_head_dim=24, rope_head_dim=16, v_head_dim=24
)


@pytest.fixture
def _quick_products(monkeypatch):
    monkeypatch.setattr(kernels, "prefill_matmul", lambda x, weight, *, out, **_: out.copy_(x @ weight.T))


@pytest.mark.usefixtures("_quick_products")
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_each_kind_of_attention_is_checked(options):
    found = checks("bf16", model_of(**options))[-4:]
    assert [check.status for check in found] == ["ok"] * 4
    assert len({check.case for check in found}) == 4


def test_latent_attention_and_its_absorbed_products_are_checked():
    model = dataclasses.replace(SMALL, layer_groups=(TimedLayers(count=2, latent=LATENT),))
    *products, _, found = checks("bf16", model)
    assert [check.provider for check in products if check.case.batch > 1] == ["triton-pointers"]
    assert {check.status for check in products} == {"ok"}
    assert (found.status, found.case.latent, found.case.head_dim) == ("ok", True, 64)


@pytest.mark.usefixtures("_quick_products")
@pytest.mark.parametrize("option", ["window", "softcap", "sinks"])
def test_kernel_that_ignores_an_option_is_seen(monkeypatch, option):
    for name in ("decode_attention", "prefill_attention"):
        plain = getattr(kernels, name)
        monkeypatch.setattr(
            kernels, name, lambda *args, plain=plain, **named: plain(*args, **{**named, option: None})
        )
    model = model_of(**{option: {"window": 13, "softcap": 50.0, "sinks": True}[option]})
    found = [check.status for check in checks("bf16", model)[-4:]]
    assert found == ["failed", "ok", "failed", "ok"]


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(
    "name", [row["model"] for row in preset_table() if row["can_run"] == "yes"], ids=lambda name: name
)
def test_longest_context_takes_several_splits(name, dtype):
    case = small_cases_of(load_timed_model(name), dtype)[-1]
    tiling = choose_decode_tiling(
        batch=case.batch,
        q_heads=case.q_heads,
        kv_heads=case.kv_heads,
        head_dim=case.head_dim,
        v_head_dim=case.value_dim,
        latent=case.latent,
        capacity=case.capacity,
        page_size=0,
        element_bytes=ELEMENT_BYTES[dtype],
        limits=H100_LIMITS,
    )
    parts = decode_chunk_order(
        context_lens=case.contexts,
        capacity=case.capacity,
        q_heads=case.q_heads,
        kv_heads=case.kv_heads,
        tiling=tiling,
    )
    longest = len(case.contexts) - 1
    assert sum(part.sequence == longest and not part.whole for own in parts for part in own) > 1
