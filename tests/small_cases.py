"""Small cases of every operation of a tiny model."""

import torch
from decodetax.harness.core.cases import DecodeAttention, DecoderLayer, PrefillAttention, PrefillMatmul
from decodetax.harness.core.inputs import Source
from decodetax.harness.core.timed_model import TimedModel

CPU = torch.device("cpu")


def tiny_model(*, hidden_size=32, q_heads=4, kv_heads=2, head_dim=16, intermediate_size=40, vocab_size=70):
    return TimedModel(
        name="tiny",
        source="the tests",
        hidden_size=hidden_size,
        layers=2,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
        vocab_size=vocab_size,
        tied_embeddings=True,
    )


def matmul_case(rows=5, in_features=33, out_features=70, dtype="fp32"):
    return PrefillMatmul(
        phase="prefill",
        part="o",
        rows=rows,
        in_features=in_features,
        out_features=out_features,
        dtype=dtype,
    )


def decode_case(*, context=37, batch=3, kv_heads=2, group=4, head_dim=16, dtype="fp32"):
    return DecodeAttention(
        contexts=(context,) * batch,
        q_heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=dtype,
    )


def prompt_case(*, sequences=2, prompt=37, kv_heads=2, group=4, head_dim=16, dtype="fp32"):
    return PrefillAttention(
        sequences=sequences,
        prompt=prompt,
        q_heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=dtype,
    )


def layer_case(phase, *, model=None, sequences=3, tokens=21, rows=None, dtype="fp32"):
    return DecoderLayer(
        phase=phase,
        model=model or tiny_model(),
        sequences=sequences,
        tokens=tokens,
        rows=rows or sequences * (tokens if phase == "prefill" else 1),
        dtype=dtype,
    )


def source(seed=0, **options):
    return Source(CPU, seed, **options)
