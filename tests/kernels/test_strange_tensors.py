"""Tensors that are no plain strided memory: refused by name as any argument of any host function."""

import contextlib
import inspect

import pytest
import torch
from decodetax.kernels import decode_attention, merge_states, prefill_attention, prefill_matmul
from torch._subclasses import FakeTensorMode

BATCH = 2


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


def workspace():
    return torch.empty(2**16, dtype=torch.uint8)


def decode(q_size=(BATCH, 4, 16), **options):
    caches = {name: torch.zeros(BATCH, 8, 2, 16) for name in ("k_cache", "v_cache")}
    return {"q": torch.zeros(q_size), **caches, "context_lens": ints(8, 8), **options}


def decode_with_all():
    numbers = {name: torch.ones(()) for name in ("scale", "softcap", "q_scale", "out_scale")}
    scales = {"k_scale": torch.ones(2), "v_scale": torch.ones(2), "sinks": torch.zeros(4)}
    out = torch.empty(BATCH, 4, 16), torch.empty(BATCH, 4)
    return decode(**numbers, **scales, out=out, return_lse=True, workspace=workspace())


def decode_of_pages():
    pages = {name: torch.zeros(4, 4, 2, 16) for name in ("k_cache", "v_cache")}
    return decode() | pages | {"block_table": torch.zeros(BATCH, 2, dtype=torch.int32)}


def matmul():
    rows = {"x_scale": torch.ones(5), "weight_scale": torch.ones(8), "bias": torch.zeros(8)}
    results = {"residual": torch.zeros(5, 8), "out": torch.empty(5, 8), "workspace": workspace()}
    return {"x": torch.zeros(5, 16), "weight": torch.zeros(8, 16), **rows, **results}


def merge():
    states = {name: torch.zeros(3, 2, 16) for name in ("o", "o2")} | {
        name: torch.zeros(3, 2) for name in ("lse", "lse2")
    }
    out = torch.empty(3, 2, 16), torch.empty(3, 2)
    return {**states, "mask": torch.ones(2, 3, 2, dtype=torch.bool), "out_scale": torch.ones(()), "out": out}


def merge_of_a_sequence():
    return {"o": [torch.zeros(3, 2, 16)] * 2, "lse": [torch.zeros(3, 2)] * 2}


def prompts():
    new = {"q": torch.zeros(6, 4, 16), "k": torch.zeros(6, 2, 16), "v": torch.zeros(6, 2, 16)}
    cached = {name: torch.zeros(4, 4, 2, 16) for name in ("k_cache", "v_cache")}
    table = {"block_table": torch.zeros(2, 2, dtype=torch.int32), "context_lens": ints(3, 2)}
    scales = {"q_scale": torch.ones(()), "k_scale": torch.ones(2), "v_scale": torch.ones(2)}
    others = {"sinks": torch.zeros(4), "out": torch.empty(6, 4, 16), "workspace": workspace()}
    return {**new, "cu_seqlens": ints(0, 2, 6), **cached, **table, **scales, **others}


def padded_prompts():
    new = {"q": torch.zeros(2, 6, 4, 16), "k": torch.zeros(2, 6, 2, 16), "v": torch.zeros(2, 6, 2, 16)}
    return {**new, "lengths": ints(2, 6)}


CALLS = {
    "decode": (decode_attention, decode_with_all),
    "decode_of_pages": (decode_attention, decode_of_pages),
    "decode_of_packed_queries": (decode_attention, lambda: decode((3, 4, 16), cu_seqlens=ints(0, 1, 3))),
    "decode_of_padded_queries": (decode_attention, lambda: decode((BATCH, 3, 4, 16), q_lens=ints(1, 3))),
    "matmul": (prefill_matmul, matmul),
    "merge": (merge_states, merge),
    "merge_of_a_sequence": (merge_states, merge_of_a_sequence),
    "prefill_attention": (prefill_attention, prompts),
    "prefill_attention_of_padded_prompts": (prefill_attention, padded_prompts),
}
every_call = pytest.mark.parametrize(("function", "arguments"), CALLS.values(), ids=CALLS.keys())


def freed(tensor):
    tensor.untyped_storage().resize_(0)
    return tensor


STRANGE = {
    "sparse": torch.Tensor.to_sparse,
    "compressed": lambda tensor: tensor.view(1, -1).to_sparse_csr(),
    "mkldnn": lambda tensor: tensor.to_mkldnn(),
    "fake": lambda tensor: FakeTensorMode().from_tensor(tensor),
    "meta": lambda tensor: tensor.to("meta"),
    "negated": torch._neg_view,
    "conjugated": lambda tensor: torch.complex(tensor, tensor).conj().imag,
    "complex": lambda tensor: torch.complex(tensor, tensor).conj(),
    "nested": lambda tensor: torch.nested.nested_tensor([tensor, tensor]),
    "jagged": lambda tensor: torch.nested.nested_tensor([tensor, tensor], layout=torch.jagged),
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    "freed": freed,
    "array": torch.Tensor.numpy,
}
"""What makes a strange one of a tensor; not every tensor can be made each."""


def tensors_of(arguments):
    """Name, tensor, and what puts another in its place, for each tensor among the arguments."""
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            yield name, value, lambda other, name=name: {name: other}
        elif isinstance(value, tuple | list):
            for place, tensor in enumerate(value):

                def put(other, name=name, value=value, place=place):
                    return {name: type(value)([*value[:place], other, *value[place + 1 :]])}

                yield name, tensor, put


@every_call
@pytest.mark.filterwarnings("ignore")
def test_strange_tensors_are_refused_by_name(function, arguments):
    tried = 0
    for name, tensor, put in tensors_of(arguments()):
        for strange in STRANGE.values():
            try:
                wrong = strange(tensor.clone())
            except (RuntimeError, AssertionError, ValueError):  # torch cannot make one of this tensor
                continue
            tried += 1
            wrongly = arguments() | put(wrong)
            with pytest.raises(ValueError, match=rf"^{name}\b"):
                function(**wrongly)
    assert tried >= 7 * len([*tensors_of(arguments())])


def inside_vmap(call, tensor):
    return torch.vmap(call)(torch.stack([tensor, tensor]))


def inside_grad(call, tensor):
    def of_sum(x):
        call(x)
        return x.sum()

    return torch.func.grad(of_sum)(tensor)


def inside_functionalize(call, tensor):
    return torch.func.functionalize(call)(tensor)


MORE_TRANSFORMS = inside_grad, inside_functionalize


@every_call
@pytest.mark.parametrize(
    "inside", [inside_vmap, *(pytest.param(each, marks=pytest.mark.slow) for each in MORE_TRANSFORMS)]
)
def test_wrapped_tensors_of_transforms_are_refused_by_name(function, arguments, inside):
    for name, tensor, put in tensors_of(arguments()):
        if inside is inside_grad and not tensor.is_floating_point():
            continue
        given = arguments()
        with pytest.raises(ValueError, match=rf"^{name}\b"):
            inside(lambda x, given=given, put=put: function(**given | put(x)), tensor)


@every_call
def test_calls_are_right_otherwise(function, arguments):
    assert set(arguments()) <= set(inspect.signature(function).parameters)
    function(**arguments())


def test_tensors_that_need_gradients_and_subclasses_are_taken():
    class Own(torch.Tensor):
        pass

    expected = decode_attention(**decode())
    for make in (torch.Tensor.requires_grad_, torch.nn.Parameter, lambda tensor: tensor.as_subclass(Own)):
        inputs = decode()
        for name in ("q", "k_cache", "v_cache"):
            inputs[name] = make(inputs[name])
        with torch.no_grad() if make is not torch.Tensor.requires_grad_ else contextlib.nullcontext():
            assert torch.equal(decode_attention(**inputs), expected)
