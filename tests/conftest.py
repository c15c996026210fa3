"""Chooses, once for the session, whether Triton kernels run interpreted or compiled."""

import os

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    """Interpreted, unless the session is `-m gpu`; before any test module imports triton.

    pytest-xdist hands its workers the options of the session, so they choose the same.
    """
    if _wants_gpu(config):
        os.environ.pop("TRITON_INTERPRET", None)
    else:
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests that need a GPU where this session cannot run them, and say why."""
    if not _wants_gpu(config):
        reason = "needs a CUDA GPU: run `pytest -m gpu -n 0`"
    elif not _has_gpu():
        reason = "no CUDA GPU on this machine"
    else:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))


def _wants_gpu(config: pytest.Config) -> bool:
    return config.getoption("markexpr") == "gpu"


def _has_gpu() -> bool:
    import torch  # noqa: PLC0415  (heavy, and a session of other tests never needs it)

    return torch.cuda.is_available()
