"""GPUs that share a model, and the share of the busiest one, by hand."""

import pytest
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.layers import GroupedQueryAttention, LatentAttention, LinearAttention
from decodetax.harness.core.parallelism import Parallelism, attention_share


def test_gpus_are_the_product_of_tensor_data_and_pipeline_parallelism():
    split = Parallelism(tensor_parallel=2, data_parallel=4, pipeline_parallel=3, expert_parallel=4)
    assert split.gpus == 24
    assert split.expert_tensor_parallel == 2
    assert split.text == "TP 2, DP 4, PP 3, EP 4"


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ({"tensor_parallel": 0}, "--tensor-parallel: must be an integer of at least 1, was 0"),
        ({"data_parallel": 1.5}, "--data-parallel: must be an integer of at least 1, was 1.5"),
        (
            {"tensor_parallel": 8, "expert_parallel": 3},
            "--expert-parallel: must divide .* 8 x 1 = 8 GPUs, was 3",
        ),
        ({"tensor_parallel": 4096, "pipeline_parallel": 2}, "--pipeline-parallel: 8192 GPUs in all"),
    ],
)
def test_impossible_sizes_are_refused_by_name(sizes, line):
    with pytest.raises(UsageError, match=line):
        Parallelism(**sizes)


@pytest.mark.parametrize(
    ("gpus", "q_heads", "kv_heads"),
    [(1, 64, 8), (2, 32, 4), (5, 16, 2), (8, 8, 1), (12, 8, 1), (16, 4, 1), (64, 1, 1)],
)
def test_heads_that_do_not_divide_are_padded(gpus, q_heads, kv_heads):
    share = attention_share(GroupedQueryAttention(q_heads=64, kv_heads=8, head_dim=128), gpus)
    assert (share.q_heads, share.kv_heads) == (q_heads, kv_heads)


def test_latent_heads_are_padded():
    latent = LatentAttention(
        q_heads=128, q_rank=None, kv_rank=512, nope_head_dim=128, rope_head_dim=64, v_head_dim=128
    )
    assert attention_share(latent, 72).q_heads == 2


def test_a_linear_attention_splits_its_state():
    linear = LinearAttention(
        kind="Mamba-2",
        heads=10,
        state_elements=1000,
        state_bytes=4,
        operations_per_token=600,
        in_features_out=70,
        out_features_in=50,
    )
    share = attention_share(linear, 4)
    assert (share.heads, share.state_elements, share.operations_per_token) == (3, 300, 180)
    assert (share.in_features_out, share.out_features_in) == (21, 15)


def test_more_gpus_than_heads_are_refused():
    with pytest.raises(UsageError, match="--tensor-parallel: 72 GPUs cannot share an attention of 64 heads"):
        attention_share(GroupedQueryAttention(q_heads=64, kv_heads=8, head_dim=128), 72)
