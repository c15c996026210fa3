"""The candidate tilings of a search, and the cache key of a case."""

import dataclasses

import pytest
from decodetax.harness.bench.providers import gate_of, tunable_provider
from decodetax.harness.core.cases import PrefillAttention
from decodetax.harness.core.inputs import draw
from decodetax.kernels import GpuLimits
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import structs
from small_cases import decode_case, matmul_case, source

PROVIDER, TUNABLE = tunable_provider("decode_attention")
_, PRODUCT = tunable_provider("prefill_matmul")
_, PREFILL = tunable_provider("prefill_attention")
KB = 1024
GPUS = {
    "A100": GpuLimits(
        compute_capability=80, sm_count=108, shared_bytes_per_block=163 * KB, shared_bytes_per_sm=164 * KB
    ),
    "L4": GpuLimits(
        compute_capability=89, sm_count=58, shared_bytes_per_block=99 * KB, shared_bytes_per_sm=100 * KB
    ),
    "H100": GpuLimits(
        compute_capability=90, sm_count=132, shared_bytes_per_block=227 * KB, shared_bytes_per_sm=228 * KB
    ),
    "B200": GpuLimits(
        compute_capability=100, sm_count=148, shared_bytes_per_block=227 * KB, shared_bytes_per_sm=228 * KB
    ),
}
LLAMA = decode_case(context=4096, batch=8, kv_heads=8, group=4, head_dim=128, dtype="bf16")


def candidates(case, gpu="H100"):
    limits = GPUS[gpu]
    default = TUNABLE.default(case, limits)
    return default, TUNABLE.candidates(case, default, limits)


def cases():
    return st.builds(
        decode_case,
        context=st.integers(1, 20_000),
        batch=st.integers(1, 70),
        kv_heads=st.sampled_from([1, 2, 8, 16]),
        group=st.sampled_from([1, 3, 4, 16]),
        head_dim=st.sampled_from([16, 40, 64, 128, 256]),
        dtype=st.sampled_from(["bf16", "fp32"]),
    )


@given(case=cases(), gpu=st.sampled_from(sorted(GPUS)))
def test_candidates_are_the_default_and_others_each_once(case, gpu):
    default, found = candidates(case, gpu)
    assert found[0] == default
    assert len(set(found)) == len(found)
    assert found == candidates(case, gpu)[1]


@given(case=cases(), gpu=st.sampled_from(sorted(GPUS)))
def test_candidates_never_change_how_sequences_are_split(case, gpu):
    default, found = candidates(case, gpu)
    assert {tiling.num_splits for tiling in found} == {default.num_splits}
    assert {tiling.block_g for tiling in found} == {default.block_g}


@given(case=cases(), gpu=st.sampled_from(sorted(GPUS)))
def test_stages_in_flight_fit_shared_memory(case, gpu):
    size = 4 if case.dtype == "fp32" else 2
    for tiling in candidates(case, gpu)[1][1:]:
        step = 2 * tiling.block_n * case.head_dim * size
        per_sm = -(-tiling.programs // GPUS[gpu].sm_count)
        assert (tiling.num_stages - 1) * step <= GPUS[gpu].shared_bytes_per_block
        assert per_sm * (tiling.num_stages - 1) * step <= GPUS[gpu].shared_bytes_per_sm


@given(case=cases(), gpu=st.sampled_from(sorted(GPUS)))
def test_every_program_has_a_tile(case, gpu):
    default, found = candidates(case, gpu)
    for tiling in found:
        items = case.batch * case.kv_heads * -(-case.q_heads // case.kv_heads // tiling.block_g)
        tiles = items * -(-case.capacity // tiling.block_n)
        assert tiling.programs <= max(tiles, default.programs)
        assert 1 <= tiling.min_tiles <= default.min_tiles


def test_nearest_to_the_default_come_first():
    default, found = candidates(LLAMA)

    def changes(tiling):
        pairs = zip(dataclasses.astuple(tiling), dataclasses.astuple(default), strict=True)
        return sum(a != b for a, b in pairs)

    counts = [changes(tiling) for tiling in found]
    assert counts == sorted(counts)
    assert counts[1] == 1


@pytest.mark.parametrize("gpu", GPUS)
def test_each_field_that_is_tuned_takes_several_values(gpu):
    default, found = candidates(LLAMA, gpu)
    for field in ("block_n", "num_warps", "num_stages", "programs"):
        assert len({getattr(tiling, field) for tiling in found}) > 1, field
    assert {4, 8} <= {tiling.num_warps for tiling in found}
    assert {default.block_n // 2, default.block_n} <= {tiling.block_n for tiling in found}
    assert 20 <= len(found) <= 200


def test_key_has_the_shape_and_no_lengths():
    ragged = structs.replace(LLAMA, contexts=(4096, *[1] * 7))
    assert TUNABLE.key(ragged) == TUNABLE.key(LLAMA)
    for change in ({"contexts": (4096,) * 9}, {"contexts": (4097,) * 8}, {"q_heads": 64}, {"dtype": "fp16"}):
        assert TUNABLE.key(structs.replace(LLAMA, **change)) != TUNABLE.key(LLAMA)


def test_candidates_give_the_same_result_within_the_gate_when_interpreted():
    case = decode_case(context=70, batch=2, kv_heads=1, group=3, head_dim=16)
    inputs = draw(case, source())
    gate = gate_of(case, inputs)
    default, found = candidates(case)
    for tiling in [found[0], *found[1 :: len(found) // 5]]:
        cut = PROVIDER.with_tiling(tiling)
        assert cut.tiling == dataclasses.asdict(tiling)
        inputs.out.fill_(float("nan"))
        verdict = gate.judge(cut.run(inputs))
        assert verdict.passed, f"{tiling}: {verdict.reason}"
    assert PROVIDER.with_tiling(None) is PROVIDER
    assert default == found[0]


def products():
    return st.builds(
        matmul_case,
        rows=st.integers(1, 20) | st.integers(1, 9000),
        in_features=st.sampled_from([1, 30, 64, 4096, 4100, 14336]),
        out_features=st.sampled_from([1, 130, 4096, 28672]),
        dtype=st.sampled_from(["bf16", "fp16", "fp32"]),
    )


def product_candidates(case, gpu):
    limits = GPUS[gpu]
    default = PRODUCT.default(case, limits)
    return default, PRODUCT.candidates(case, default, limits)


@given(case=products(), gpu=st.sampled_from(sorted(GPUS)))
def test_tilings_of_a_product_are_the_default_and_others_each_once(case, gpu):
    default, found = product_candidates(case, gpu)
    assert found[0] == default
    assert len(set(found)) == len(found)
    assert found == product_candidates(case, gpu)[1]


@given(case=products(), gpu=st.sampled_from(sorted(GPUS)))
@example(case=matmul_case(rows=1, in_features=64, out_features=1, dtype="fp32"), gpu="B200")
def test_tilings_of_a_product_fit_shared_memory_and_the_gpu(case, gpu):
    size = 4 if case.dtype == "fp32" else 2
    default, found = product_candidates(case, gpu)
    for tiling in found[1:]:
        step = (tiling.block_m + tiling.block_n) * tiling.block_k * size
        assert (tiling.num_stages - 1) * step <= GPUS[gpu].shared_bytes_per_block
        assert tiling.block_k >= min(32, default.block_k)
    variants = {tiling.variant for tiling in found}
    by_descriptors = case.in_features * size % 16 == 0
    assert "pointers" in variants
    assert ("descriptors" in variants) == (by_descriptors and gpu in ("H100", "B200"))
    assert ("warp_specialized" in variants) == (by_descriptors and gpu == "B200")


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("rows", [1, 64, 4096])
def test_each_field_of_a_product_that_is_tuned_takes_several_values(rows, gpu):
    case = matmul_case(rows=rows, in_features=4096, out_features=6144, dtype="bf16")
    default, found = product_candidates(case, gpu)
    for field in ("block_k", "num_warps", "num_stages", "group_m"):
        assert len({getattr(tiling, field) for tiling in found}) > 1, field
    assert 10 <= len(found) <= 250
    assert sum(a != b for a, b in zip(dataclasses.astuple(found[1]), dataclasses.astuple(default), strict=True)) == 1  # fmt: skip  # noqa: E501  (one comparison)


def test_key_of_a_product_is_its_shape_and_dtype():
    case = matmul_case(rows=7, in_features=64, out_features=100, dtype="bf16")
    assert PRODUCT.key(case) == {"rows": 7, "in_features": 64, "out_features": 100, "dtype": "bf16"}
    assert PRODUCT.key(structs.replace(case, part="up", phase="decode")) == PRODUCT.key(case)


@pytest.mark.parametrize("gpu", ["A100", "B200"])
def test_tilings_of_a_product_give_the_same_result_within_the_gate_when_interpreted(gpu):
    case = matmul_case(rows=33, in_features=200, out_features=90, dtype="bf16")
    inputs = draw(case, source())
    gate = gate_of(case, inputs)
    found = product_candidates(case, gpu)[1]
    assert len(found) > 10
    for tiling in [found[0], *found[1 :: len(found) // 6]]:
        inputs.out.fill_(float("nan"))
        verdict = gate.judge(PRODUCT.run(inputs, tiling))
        assert verdict.passed, f"{tiling}: {verdict.reason}"


PROMPTS = PrefillAttention(sequences=4, prompt=2048, q_heads=32, kv_heads=8, head_dim=128, dtype="bf16")


def prompt_candidates(case, gpu):
    limits = GPUS[gpu]
    default = PREFILL.default(case, limits)
    return default, PREFILL.candidates(case, default, limits)


@pytest.mark.parametrize("gpu", GPUS)
def test_tilings_of_prompts_are_the_default_and_others_that_fit(gpu):
    default, found = prompt_candidates(PROMPTS, gpu)
    assert found[0] == default
    assert len(set(found)) == len(found) >= 20
    for tiling in found[1:]:
        in_flight = (tiling.num_stages - 1) * tiling.block_n * 2 * 128 + tiling.block_m * 128
        assert 2 * in_flight <= GPUS[gpu].shared_bytes_per_block
    variants = {"pointers", "descriptors"} if gpu in ("H100", "B200") else {"pointers"}
    assert {tiling.variant for tiling in found} == variants | (
        {"warp_specialized"} if gpu == "B200" else set()
    )


def test_key_of_prompts_has_what_the_tiling_depends_on():
    changes = (
        {"sequences": 5},
        {"prompt": 2049},
        {"q_heads": 64},
        {"kv_heads": 16},
        {"head_dim": 64},
        {"v_head_dim": 64},
        {"window": 128},
        {"dtype": "fp16"},
    )
    keys = {str(PREFILL.key(structs.replace(PROMPTS, **change))) for change in changes}
    assert len(keys - {str(PREFILL.key(PROMPTS))}) == len(changes)


@pytest.mark.parametrize("gpu", ["A100", "B200"])
def test_tilings_of_prompts_give_the_same_result_within_the_gate_when_interpreted(gpu):
    case = PrefillAttention(sequences=2, prompt=37, q_heads=2, kv_heads=1, head_dim=16, dtype="bf16")
    inputs = draw(case, source())
    gate = gate_of(case, inputs)
    _, found = prompt_candidates(case, gpu)
    for tiling in [found[0], *found[1 :: len(found) // 6]]:
        inputs.out.fill_(float("nan"))
        verdict = gate.judge(PREFILL.run(inputs, tiling))
        assert verdict.passed, f"{tiling}: {verdict.reason}"
