"""Decode attention of large heads, and of a latent cache (MLA), whose values are a part of its keys."""

import pytest
import torch
from decode_checks import accesses, assert_right, attend, balanced, live_addresses, split
from decodetax.kernels import decode_attention, decode_plan
from decodetax.kernels.decode_tiling import head_blocks
from kernel_inputs import NAN, by_default, decode_inputs, normal

E4M3 = torch.float8_e4m3fn
either_cache = pytest.mark.parametrize("page_size", [0, 16], ids=["contiguous", "paged"])


def latent_inputs(lengths, *, q_heads=16, head_dim=576, v_head_dim=512, capacity=40, **more):
    """One latent of `head_dim` elements a token, whose first `v_head_dim` are the values."""
    inputs = decode_inputs(
        lengths,
        q_heads=q_heads,
        kv_heads=more.pop("kv_heads", 1),
        head_dim=head_dim,
        capacity=capacity,
        **more,
    )
    return inputs | {"v_cache": inputs["k_cache"][..., :v_head_dim]}


@either_cache
@pytest.mark.parametrize("q_heads", by_default({1}, [1, 16, 128]))
def test_latent_of_576_and_512_around_a_tile(q_heads, page_size):
    assert_right(latent_inputs([1, 31, 32, 33], q_heads=q_heads, page_size=page_size))


def test_latent_of_128_query_heads():
    assert_right(latent_inputs([33], q_heads=128))


@pytest.mark.parametrize(
    "dims",
    by_default(
        {(512, 512), (320, 256), (33, 7)}, [(512, 512), (320, 256), (192, 128), (72, 40), (33, 7), (8, 8)]
    ),
)
def test_latents_of_other_sizes(dims):
    head_dim, v_head_dim = dims
    inputs = latent_inputs([17, 40], q_heads=6, kv_heads=2, head_dim=head_dim, v_head_dim=v_head_dim)
    assert_right(inputs, tiling=balanced(3))


@pytest.mark.parametrize("cache_dtype", by_default({E4M3}, [E4M3, torch.float8_e5m2, torch.int8]))
def test_latent_of_8_bits(cache_dtype):
    inputs = latent_inputs([33], q_heads=4, head_dim=96, v_head_dim=64, cache_dtype=cache_dtype)
    assert_right(inputs, k_scale=0.5, v_scale=torch.tensor([0.25]))


@pytest.mark.parametrize("scales", [(0.5, -2.0), (0.0, 2.0), (-0.3, 0.0)])
def test_split_scales_of_a_latent(scales):
    inputs = latent_inputs([33, 0], q_heads=4, head_dim=96, v_head_dim=64, cache_dtype=E4M3)
    for options in ({}, {"v_scale": 3.0}):
        assert_right(inputs, k_scale=torch.tensor(scales), tiling=split(2), **options)


@pytest.mark.parametrize(
    "options",
    by_default({0}, [{}, {"softcap": 3.0}, {"scale": 0.0}], ids=[0, 1, 2]),
)
def test_tiles_of_64_rows_keep_signed_factors(options):
    # There the sign of the scale is in the factor of the scores, elsewhere in the queries.
    inputs = latent_inputs([33, 1, 0, 40], q_heads=70, head_dim=40, v_head_dim=32, page_size=16)
    tiling = balanced(3, block_g=64, block_n=32)
    assert_right(inputs, tiling=tiling, **({"scale": -0.3} | options))


def test_every_option_on_a_latent():
    inputs = latent_inputs([40, 3], q_heads=6, kv_heads=2, head_dim=40, v_head_dim=32, query_tokens=3)
    sinks = normal(6, dtype=torch.float32, seed=5)
    assert_right(inputs, tiling=balanced(3), window=21, softcap=3.0, sinks=sinks, scale=-0.4)


@either_cache
@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, E4M3])
def test_each_live_latent_is_requested_once(page_size, cache_dtype, monkeypatch):
    inputs = latent_inputs(
        [37, 5], q_heads=4, head_dim=80, v_head_dim=64, page_size=page_size, cache_dtype=cache_dtype
    )
    with accesses(monkeypatch) as seen:
        attend(inputs, tiling=balanced(3, block_n=32))
    requested = seen.loads_of(inputs["k_cache"])
    assert set(requested.values()) == {1}
    assert set(requested) == live_addresses(inputs["k_cache"], inputs, [(0, 37), (0, 5)])


def test_values_elsewhere_are_not_taken_for_a_latent():
    inputs = latent_inputs([20], head_dim=48, v_head_dim=32)
    keys = inputs["k_cache"]
    for values in (keys[..., 16:], keys[..., :32].clone()):
        assert not decode_plan.is_latent(keys, values)
    assert_right(inputs | {"v_cache": keys[..., 16:]})


@pytest.mark.parametrize("head_dim", by_default({8, 264, 576}, [1, 8, 31, 264, 320, 448, 511, 513, 576]))
def test_keys_of_any_head_dim(head_dim):
    inputs = decode_inputs(
        [33], q_heads=4, kv_heads=2, head_dim=head_dim, v_head_dim=min(head_dim, 512), capacity=40
    )
    assert_right(inputs)


def test_gqa_group_of_128():
    assert_right(decode_inputs([33], q_heads=256, kv_heads=2, head_dim=24, capacity=40))
    assert_right(decode_inputs([33, 7], q_heads=128, kv_heads=1, head_dim=24, capacity=40, query_tokens=2))


def test_non_finite_latents_reach_the_rows_that_attend_to_them():
    inputs = latent_inputs([20, 20], q_heads=2, head_dim=48, v_head_dim=32, query_tokens=2)
    inputs["k_cache"][0, 19, 0, 5] = NAN
    output, _ = attend(inputs)
    assert output[0, 0].isfinite().all()
    assert output[0, 1].isnan().all()
    assert output[1].isfinite().all()


@pytest.mark.parametrize(("head_dim", "v_head_dim", "latent", "blocks"), [
    (128, 128, False, (128, 0, 128)),
    (192, 128, False, (256, 0, 128)),
    (576, 512, False, (512, 64, 512)),
    (576, 512, True, (512, 64, 512)),
    (192, 128, True, (128, 64, 128)),
    (512, 512, True, (512, 0, 512)),
    (72, 40, True, (64, 16, 64)),
    (576, 16, True, (512, 64, 512)),
    (8, 8, True, (16, 0, 16)),
])  # fmt: skip
def test_blocks_of_a_head_pad_little(head_dim, v_head_dim, latent, blocks):
    found = head_blocks(head_dim, v_head_dim, latent=latent)
    assert (found.d, found.r, found.v) == blocks


def test_split_scale_of_another_cache_is_rejected():
    inputs = latent_inputs([20], q_heads=2, head_dim=72, v_head_dim=40)
    with pytest.raises(
        ValueError, match=r"k_scale has shape \[2\]; it must be \[\], \[1\], \[kv_heads\], .* cache without"
    ):
        decode_attention(**inputs, k_scale=torch.ones(2))
    inputs = latent_inputs([20], q_heads=2, head_dim=48, v_head_dim=32)
    with pytest.raises(ValueError, match=r"k_scale has shape \[3\]; it must be .*, or \[2\] of the elements"):
        decode_attention(**inputs, k_scale=torch.ones(3))
