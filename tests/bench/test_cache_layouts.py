"""Each provider's KV cache lies in memory in the order that the provider names."""

import dataclasses

import pytest
import torch
from decodetax.harness.bench import runner
from decodetax.harness.bench.providers import PROVIDERS
from decodetax.harness.core.inputs import draw, in_layout, page_tokens
from fakes import FakeDevice, bench
from msgspec import structs
from small_cases import decode_case, matmul_case, source

CASE = decode_case(context=320, batch=2, kv_heads=3, head_dim=8)


def memory(tensor):
    """A dense tensor's elements in the order of their addresses."""
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(order).reshape(-1)


@pytest.mark.parametrize(
    ("layout", "k_strides", "v_strides"),
    [
        # Keys: sequence, token, head, element; in pages: sequence, page, token, head, element.
        ("heads-first", (7680, 8, 2560, 1), (7680, 8, 2560, 1)),
        ("v-transposed", (7680, 8, 2560, 1), (7680, 1, 2560, 320)),
        ("k-pages", (7680, 512, 1, 2560, 64), (7680, 8, 2560, 1)),
    ],
)
def test_layouts_are_views_of_the_same_memory_in_the_order_they_name(layout, k_strides, v_strides):
    drawn = draw(CASE, source())
    inputs = in_layout(drawn, layout)
    assert (inputs.layout, inputs.k_cache.stride(), inputs.v_cache.stride()) == (layout, k_strides, v_strides)
    for name in ("q", "k_cache", "v_cache", "out"):
        before, after = getattr(drawn, name), getattr(inputs, name)
        assert after.data_ptr() == before.data_ptr()
        assert torch.equal(memory(after).nan_to_num(), memory(before).nan_to_num())


@pytest.mark.parametrize(
    ("capacity", "tokens"), [(1, 1), (255, 255), (256, 256), (257, 1), (320, 64), (1024, 256), (1280, 256)]
)
def test_pages_are_whole_and_hold_at_most_256_tokens(capacity, tokens):
    assert page_tokens(capacity) == tokens


def test_inputs_without_a_cache_have_no_layout():
    inputs = draw(matmul_case(), source())
    assert in_layout(inputs, "k-pages") is inputs


def test_dead_cache_is_not_laid_out():
    inputs = draw(structs.replace(CASE, contexts=(320, 37)), source())
    with pytest.raises(ValueError, match=r"contexts: must be of one length with layout k-pages"):
        in_layout(inputs, "k-pages")


def test_runner_gives_each_provider_its_layout_and_the_oracle_of_that_layout(monkeypatch):
    seen = {}

    def watched(provider):
        def run(inputs):
            seen[provider.name] = (inputs.layout, inputs.v_cache.stride(1), inputs.k_cache.dim())
            return provider.run(inputs)

        return dataclasses.replace(provider, run=run, bind=None)

    on_cpu = [p for p in PROVIDERS[CASE.operation] if p.refuses(CASE, FakeDevice()) is None]
    monkeypatch.setattr(runner, "PROVIDERS", {CASE.operation: [watched(p) for p in on_cpu]})
    rows = list(runner.run_case(CASE, bench(FakeDevice())))
    assert {row.status for row in rows} == {"ok"}
    assert seen == {
        "torch": ("heads-first", 8, 4),
        "torch-matmul": ("heads-first", 8, 4),
        "torch-v-transposed": ("v-transposed", 1, 4),
        "torch-k-pages": ("k-pages", 8, 5),
        "torch-k-pages-v-rows": ("k-pages", 8, 5),
    }
