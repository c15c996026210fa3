"""Keys of recorded calls: what tells two calls apart, and what does not."""

import dataclasses

import pytest
import torch
from decodetax.kernels import DecodeTiling, decode_attention, launch
from kernel_inputs import decode_inputs

MEMORY = torch.zeros(64)
TILING = DecodeTiling(block_g=16, block_n=32, num_warps=4, num_stages=2)


def key(*args, **options):
    return launch._key_of(args, options)[0]


DIFFER = {
    "shape": (MEMORY[:32].view(4, 8), MEMORY[:32].view(8, 4)),
    "strides": (MEMORY.view(8, 8), MEMORY.view(8, 8).T),
    "dtype": (MEMORY, MEMORY.view(torch.int32)),
    "device": (torch.empty(0), torch.empty(0, device="meta")),
    "memory": (torch.empty(64), torch.empty(64, device="meta")),
    "alignment": (MEMORY[0:8], MEMORY[1:9]),
    "negation": (MEMORY, torch._neg_view(MEMORY)),
    "class": (MEMORY, torch.nn.Parameter(MEMORY)),
    "number": (1.0, 2.0),
    "kind of number": (1, 1.0),
    "bool": (1, True),
    "sign of 0": (0.0, -0.0),
    "None": (None, 0),
    "dtype argument": (torch.float16, torch.bfloat16),
    "text": ("silu", "gelu"),
    "length": ((MEMORY,), (MEMORY, MEMORY)),
    "sequence": ((MEMORY,), [MEMORY]),
    "tiling": (TILING, dataclasses.replace(TILING, block_n=64)),
}


@pytest.mark.parametrize(("one", "other"), DIFFER.values(), ids=DIFFER.keys())
def test_calls_that_differ_in(one, other):
    assert key(one) != key(other)
    assert key(x=one) != key(x=other)


def test_names_tell_calls_apart():
    assert len({key(MEMORY), key(x=MEMORY), key(y=MEMORY), key(MEMORY, None), key(MEMORY, x=None)}) == 5


def test_tensors_that_begin_at_one_address_tell_calls_apart():
    one, other = torch.zeros(16), torch.zeros(16)
    assert key(one, one, other) == key(other, other, one)
    assert len({key(one, one, other), key(one, other, one), key(one, other, torch.zeros(16))}) == 3


def test_contents_and_addresses_do_not_tell_calls_apart():
    assert key(torch.zeros(64), window=3) == key(torch.ones(64), window=3)


@pytest.mark.parametrize(
    "argument",
    [MEMORY.to_sparse(), object(), {"a": 1}, torch.empty(2, dtype=torch.float32).numpy()],
    ids=["sparse", "object", "dict", "array"],
)
def test_no_key_of(argument):
    with pytest.raises(launch._NotRepeatable):
        key(argument)


def test_no_key_inside_vmap():
    def keyless(x):
        with pytest.raises(launch._NotRepeatable):
            key(x)
        return x

    torch.vmap(keyless)(torch.zeros(3, 4))


def test_nothing_is_recorded_in_the_interpreter():
    decode_attention(**decode_inputs([3], capacity=8))
    assert decode_attention.records == {}


def test_memory_of_two_tensors_is_not_recorded():
    memory = torch.zeros(100)
    tensors = [memory[0:50], memory[10:]]
    assert launch._place_of(memory[5:], tensors) == (0, 20)
    assert launch._place_of(memory[10:20], tensors) == (1, 0)
    for view in (memory[20:], memory.clone()):
        with pytest.raises(launch._NotRepeatable):
            launch._place_of(view, tensors)
