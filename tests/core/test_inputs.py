"""What inputs are drawn: seeded, normal, never equal, and enough of them to keep caches cold."""

import math

import pytest
import torch
from decodetax.harness.core import inputs as module
from decodetax.harness.core.cases import DecodeAttention
from decodetax.harness.core.inputs import BLOCK, DTYPES, draw, poison
from small_cases import decode_case, layer_case, matmul_case, prompt_case, source, tiny_model

CASES = {
    "matmul": matmul_case(),
    "decode attention": decode_case(),
    "prefill attention": prompt_case(),
    "prefill layer": layer_case("prefill"),
    "decode layer": layer_case("decode"),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def tensors_of(inputs):
    """Every tensor of the inputs by name."""
    found = {}
    for name, value in vars(inputs).items():
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, dict):
            found |= {f"{name}.{key}": tensor for key, tensor in value.items()}
    return found


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k].nan_to_num(9), b[k].nan_to_num(9)) for k in a)


@each_case
def test_same_seed_draws_the_same_numbers_and_another_seed_others(case):
    first, again, other = (tensors_of(draw(case, source(seed))) for seed in (3, 3, 4))
    assert equal(first, again)
    assert not equal(first, other)


@each_case
def test_successive_draws_differ(case):
    numbers = source()
    first, second = (tensors_of(draw(case, numbers)) for _ in range(2))
    given = {"out", "context_lens", "cos", "sin"}
    for name in first.keys() - given:
        assert not torch.equal(first[name], second[name]), name
        assert first[name].data_ptr() != second[name].data_ptr(), name


@each_case
def test_inputs_are_random_and_never_zeros(case):
    for name, tensor in tensors_of(draw(case, source())).items():
        if name in {"out", "context_lens", "cos", "sin"}:
            continue
        live = tensor[tensor.isfinite()].float()
        assert (live == 0).float().mean() < 0.01, name
        assert live.std() > 0.01, name


@pytest.mark.parametrize("dtype", DTYPES)
def test_normal_has_a_standard_deviation_of_1(dtype):
    drawn = source().normal(100, 1000, dtype=DTYPES[dtype])
    assert drawn.dtype == DTYPES[dtype]
    assert drawn.is_contiguous()
    drawn = drawn.float()
    assert drawn.std() == pytest.approx(1.0, rel=0.02)
    assert drawn.mean() == pytest.approx(0.0, abs=0.02)
    within = (drawn.abs() < 1).float().mean()
    assert within == pytest.approx(0.6827, abs=0.01)  # of a normal distribution


@pytest.mark.parametrize("hidden_size", [64, 1024])
def test_norms_of_a_layer_keep_its_projections_at_unit_scale(hidden_size):
    drawn = draw(layer_case("decode", model=tiny_model(hidden_size=hidden_size)), source())
    normed = drawn.hidden / drawn.hidden.square().mean(-1, keepdim=True).sqrt() * drawn.norms[0]
    assert (normed @ drawn.weights["qkv"].T).std() == pytest.approx(1.0, rel=0.2)


@pytest.mark.parametrize("rows", [1024, 2048, 4096], ids=lambda rows: f"{rows} columns")
def test_rows_of_a_matrix_larger_than_the_block_of_numbers_differ(rows, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", BLOCK)
    drawn = source().normal(2 * BLOCK // rows + 3, rows, dtype=torch.bfloat16)
    assert len(torch.unique(drawn[:, :16].float(), dim=0)) == len(drawn)


def test_block_length_is_prime():
    assert all(BLOCK % factor for factor in range(2, math.isqrt(BLOCK) + 1))


def test_unused_cache_is_nan_and_used_cache_is_not():
    contexts = (0, 1, 7, 5)
    case = DecodeAttention(contexts=contexts, q_heads=4, kv_heads=2, head_dim=16, dtype="bf16")
    drawn = draw(case, source())
    assert drawn.context_lens.tolist() == list(drawn.contexts) == list(contexts)
    assert drawn.context_lens.dtype == torch.int32
    for cache in (drawn.k_cache, drawn.v_cache):
        assert cache.shape == (4, 7, 2, 16)
        for sequence, context in enumerate(contexts):
            assert cache[sequence, :context].isfinite().all()
            assert cache[sequence, context:].isnan().all()


@pytest.mark.parametrize("name", ["matmul", "decode attention"])
def test_outputs_are_poisoned_when_drawn_and_again_before_use(name):
    drawn = draw(CASES[name], source())
    assert drawn.out.isnan().all()
    drawn.out.zero_()
    poison(drawn)
    assert drawn.out.isnan().all()


def test_rotary_tables_rotate_pairs_half_a_head_apart():
    for head_dim in range(16, 257, 8):
        check_rotary_tables(head_dim)


def check_rotary_tables(head_dim):
    model = tiny_model(head_dim=head_dim, q_heads=1, kv_heads=1)
    drawn = draw(layer_case("decode", model=model, tokens=12), source())
    assert drawn.cos.shape == drawn.sin.shape == (1, head_dim)
    angles = [11 / 10000 ** (2 * i / head_dim) for i in range(head_dim // 2)] * 2
    assert drawn.cos[0].tolist() == pytest.approx([math.cos(angle) for angle in angles], abs=1e-5)
    assert drawn.sin[0].tolist() == pytest.approx([math.sin(angle) for angle in angles], abs=1e-5)


def test_rejects_an_unknown_case():
    with pytest.raises(TypeError, match="no inputs are known for a str"):
        draw("case", source())
