"""Fixtures of tests that draw inputs: a small block of random numbers, and one thread for small tensors."""

import pytest
import torch
from decodetax.harness.core import inputs


@pytest.fixture(autouse=True)
def small_block(monkeypatch):
    monkeypatch.setattr(inputs, "BLOCK", 65_537)  # a prime, like the one that it stands for


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
