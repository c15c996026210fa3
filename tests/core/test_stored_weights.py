"""Weights by part and format, and the sentence that names them."""

from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
from decodetax.harness.core.formats import ALL_BF16, BF16, FP8, MXFP4, Formats, layers_in
from decodetax.harness.core.language_model import LanguageModel
from decodetax.harness.core.layers import Experts, GroupedQueryAttention, LayerGroup, Mlp
from decodetax.harness.core.stored_weights import stored_weights, weights_sentence


@dataclass(frozen=True)
class Small:
    """What the functions read of a model: 64 hidden, 10 tokens, two layers with experts and one without."""

    layer_groups: tuple[LayerGroup, ...]
    formats: Formats = ALL_BF16
    tied_embeddings: bool = False
    hidden_size: int = 64
    vocab_size: int = 10


def small(*formats: Formats, **fields: Any) -> LanguageModel:
    attention = GroupedQueryAttention(q_heads=4, kv_heads=1, head_dim=16)
    experts = Experts(
        count=8, per_token=2, expert=Mlp(intermediate_size=32), shared=Mlp(intermediate_size=48)
    )
    mlps = (experts, Mlp(intermediate_size=128))
    groups = tuple(
        LayerGroup(count=count, attention=attention, mlp=mlp, formats=each)
        for count, mlp, each in zip((2, 1), mlps, formats, strict=True)
    )
    return cast("LanguageModel", Small(groups, **fields))


def test_every_part_has_its_weights_and_their_bytes() -> None:
    found = {each.part: each for each in stored_weights(small(Formats(experts=MXFP4), Formats()))}
    attention = 64 * (64 + 2 * 16) + 64 * 64
    assert {part: each.parameters for part, each in found.items()} == {
        "attention": 3 * attention,
        "mlp": 3 * 64 * 128,
        "experts": 2 * 8 * 3 * 64 * 32,
        "shared": 2 * 3 * 64 * 48,
        "router": 2 * 64 * 8,
        "embedding": 640,
        "lm_head": 640,
    }
    assert found["experts"].stored_bytes == 2 * 8 * 3 * 64 * 32 * 0.53125
    assert found["lm_head"].stored_bytes == 1280


def test_a_tied_lm_head_has_no_weights_of_its_own() -> None:
    parts = {each.part for each in stored_weights(small(Formats(), Formats(), tied_embeddings=True))}
    assert "lm_head" not in parts


SENTENCES = {
    "one format": (Formats(), Formats(), "bf16"),
    "gpt-oss": (Formats(experts=MXFP4), Formats(experts=MXFP4), "experts mxfp4, the rest bf16"),
    "all layers": (
        layers_in(FP8),
        layers_in(FP8),
        "attention, MLPs, experts and shared experts fp8, the rest bf16",
    ),
    "one layer": (Formats(attention=FP8), Formats(), "67% of attention fp8, the rest bf16"),
    "two": (
        Formats(attention=FP8, experts=MXFP4),
        Formats(attention=FP8),
        "attention fp8, experts mxfp4, the rest bf16",
    ),
}


@pytest.mark.parametrize(("first", "second", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_the_sentence_names_what_differs_from_16_bits(first: Formats, second: Formats, sentence: str) -> None:
    assert weights_sentence(small(first, second)) == sentence


def test_a_model_without_16_bits_names_the_format_of_most_parts_last() -> None:
    every = dict.fromkeys(("attention", "mlp", "experts", "shared", "router", "embedding", "lm_head"), FP8)
    all_fp8 = Formats(**cast("dict[str, Any]", every))
    assert weights_sentence(small(all_fp8, all_fp8, formats=all_fp8)) == "fp8"
    some = replace(all_fp8, experts=MXFP4)
    assert weights_sentence(small(some, some, formats=all_fp8)) == "experts mxfp4, the rest fp8"


def test_a_projection_of_its_own_format_is_counted_in_it() -> None:
    formats = Formats(attention=FP8, projections=(("attention o", BF16),))
    found = {
        (each.part, each.format.name): each.parameters for each in stored_weights(small(formats, formats))
    }
    assert found["attention", "bf16"] == 3 * 64 * 64
    assert found["attention", "fp8"] == 3 * 64 * 96
