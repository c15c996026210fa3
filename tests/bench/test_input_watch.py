"""Checksums of inputs: changed, swapped and moved numbers are seen, in dense tensors of any order."""

import math

import pytest
import torch
from decodetax.harness.bench import input_watch
from decodetax.harness.bench.input_watch import InputWatch, checksum, input_tensors, own_views
from decodetax.harness.core.inputs import draw
from small_cases import decode_case, layer_case, matmul_case, prompt_case, source

CASES = [matmul_case(), decode_case(), prompt_case(), layer_case("prefill"), layer_case("decode")]


def copies_of(case, count=3):
    return [draw(case, source(seed)) for seed in range(count)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int32, torch.uint8])
@pytest.mark.parametrize("size", [1, 3, 8, 31, 64, 257])
def test_every_element_counts(dtype, size):
    tensor = torch.arange(size).to(dtype)
    before = checksum(tensor)
    for place in range(size):
        old = tensor[place].clone()
        tensor[place] = 3 if old == 0 else 0
        assert not torch.equal(checksum(tensor), before), place
        tensor[place] = old
    assert torch.equal(checksum(tensor), before)


@pytest.mark.parametrize("rows", [(0, 1), (0, 29), (13, 14), (2, 17)])
@pytest.mark.parametrize("width", [14, 26, 64, 1000])
def test_swapped_rows_are_seen(rows, width):
    weight = torch.randn(30, width)
    before = checksum(weight)
    weight[list(rows)] = weight[list(reversed(rows))]
    assert not torch.equal(checksum(weight), before)


def test_dense_tensors_of_any_order_are_read_in_place(monkeypatch):
    cache = torch.randn(2, 3, 7, 5).transpose(1, 2)
    before = checksum(cache)
    monkeypatch.setattr(torch.Tensor, "clone", None)
    assert torch.equal(checksum(cache), before)
    cache[1, 6, 2, 4] = 0
    assert not torch.equal(checksum(cache), before)


def test_part_of_a_tensor_is_read_alone():
    whole = torch.randn(9, 11)
    part = whole[1:5, 2:7]
    before = checksum(part)
    whole[0] = whole[:, 0] = 0
    assert torch.equal(checksum(part), before)
    whole[4, 6] = 0
    assert not torch.equal(checksum(part), before)


def test_nan_in_dead_cache_is_no_change():
    tensor = torch.full((40,), math.nan)
    assert torch.equal(checksum(tensor), checksum(tensor))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_each_input_of_the_first_copy_is_watched(case):
    copies = copies_of(case)
    watch = InputWatch(copies, fully=True)
    assert watch.altered() == []
    for name, tensor in input_tensors(copies[0]):
        if tensor.numel() == 0:
            continue
        old = tensor.clone()
        tensor[(-1,) * tensor.dim()] += 1
        assert watch.altered() == [name]
        tensor.copy_(old)
    assert watch.altered() == []


@pytest.mark.parametrize("fully", [True, False])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_weight_that_is_zeroed_is_seen_in_any_copy(fully, number):
    copies = copies_of(matmul_case())
    watch = InputWatch(copies, fully=fully)
    copies[number].weight.zero_()
    assert watch.altered() == ["weight"]


def test_output_and_new_keys_of_a_layer_may_be_written():
    [layer], [product] = copies_of(layer_case("decode"), 1), copies_of(matmul_case(), 1)
    watches = [InputWatch([inputs], fully=True) for inputs in (layer, product)]
    product.out.fill_(1)
    layer.k_cache[:, :, -1] = 0
    assert [watch.altered() for watch in watches] == [[], []]
    layer.k_cache[:, :, -2] = 0
    assert watches[0].altered() == ["k_cache"]


def test_many_copies_are_sampled():
    copies = copies_of(matmul_case(), 40)
    watched = {id(tensor) for _, tensor, _ in InputWatch(copies, fully=True)._watched}
    assert 2 * input_watch.SAMPLED_COPIES < len(watched) < 4 * input_watch.SAMPLED_COPIES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_own_views_share_memory_and_nothing_else(case):
    inputs = draw(case, source())
    views = own_views(inputs)
    for (name, tensor), (_, view) in zip(input_tensors(inputs), input_tensors(views), strict=True):
        assert (view.data_ptr(), view.stride()) == (tensor.data_ptr(), tensor.stride()), name
        shape = tensor.shape
        view.unsqueeze_(0)
        assert tensor.shape == shape
