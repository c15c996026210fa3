"""Outputs of providers: only plain tensors with numbers in memory are taken."""

import pytest
import torch
from decodetax.harness.core.outputs import output_fault
from torch._subclasses.fake_tensor import FakeTensorMode

LIKE = torch.zeros(3, 4)


class Late(torch.Tensor):
    """Computed when it is looked at."""

    @staticmethod
    def __new__(cls):
        return torch.Tensor._make_wrapper_subclass(cls, LIKE.shape, dtype=LIKE.dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError("it was looked at")


def batched():
    seen = []
    torch.func.vmap(lambda row: seen.append(row) or row)(torch.zeros(2, 3, 4))
    return seen[0]


def empty_storage():
    tensor = torch.zeros(3, 4)
    tensor.untyped_storage().resize_(0)
    return tensor


def replaced_method():
    tensor = torch.zeros(3, 4)
    tensor.double = lambda: torch.ones(3, 4).double()
    return tensor


def of_another_class():
    tensor = torch.zeros(3, 4)
    tensor.__class__ = Late
    return tensor


COMPLEX = torch.zeros(3, 4, dtype=torch.complex64)
FAULTS = {
    "subclass": (Late, "returned a Late, a subclass of Tensor, not float32 of shape (3, 4) on cpu"),
    "another class": (of_another_class, "returned a Late, a subclass of Tensor"),
    "parameter": (lambda: torch.nn.Parameter(LIKE), "returned a Parameter, a subclass of Tensor"),
    "fake": (lambda: FakeTensorMode().from_tensor(LIKE), "returned a FakeTensor, a subclass of Tensor"),
    "negated view": (lambda: COMPLEX.conj().imag, "not plain: negated when it is read"),
    "functional": (lambda: torch._to_functional_tensor(LIKE.clone()), "not plain: a functional tensor"),
    "zeros": (lambda: torch._efficientzerotensor((3, 4)), "not plain: zeros without memory"),
    "of vmap": (batched, "not plain: a tensor of a function transform"),
    "meta": (lambda: torch.zeros(3, 4, device="meta"), "returned float32 of shape (3, 4) on meta"),
    "sparse": (LIKE.to_sparse, "returned float32 of shape (3, 4) on cpu in the layout sparse_coo"),
    "oneDNN": (LIKE.to_mkldnn, "on cpu in the layout _mkldnn"),
    "no storage": (empty_storage, "not plain: its storage is smaller than its shape"),
    "method": (replaced_method, "not plain: its double is replaced"),
    "shape": (
        lambda: torch.zeros(4, 3),
        "returned float32 of shape (4, 3) on cpu, not float32 of shape (3, 4)",
    ),
    "dtype": (LIKE.double, "returned float64 of shape (3, 4) on cpu"),
    "None": (lambda: None, "returned a NoneType"),
    "list": (LIKE.tolist, "returned a list"),
    "complex": (COMPLEX.conj, "returned complex64 of shape (3, 4)"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_tensor_that_is_not_plain_is_named(name):
    make, text = FAULTS[name]
    assert text in output_fault(make(), LIKE)


def test_conjugated_output_is_named():
    assert "conjugated when it is read" in output_fault(COMPLEX.conj(), COMPLEX)


@pytest.mark.parametrize(
    "output",
    [
        torch.zeros(3, 4),
        torch.zeros(4, 3).t(),
        torch.zeros(5, 9)[1:4, 2:6],
        torch.zeros(1, 4).expand(3, 4),
        torch.zeros(3, 4, requires_grad=True) * 2,
    ],
    ids=["contiguous", "transposed", "part of another", "expanded", "with a gradient"],
)
def test_strided_tensors_are_plain(output):
    assert output_fault(output, LIKE) is None


def test_output_of_inference_mode_is_plain():
    with torch.inference_mode():
        output = torch.zeros(3, 4)
    assert output_fault(output, LIKE) is None


def test_empty_output_is_plain():
    assert output_fault(torch.zeros(0, 4), LIKE[:0]) is None
