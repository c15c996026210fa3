"""Chooses, once for the session, whether Triton kernels run interpreted or compiled."""

import os

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--slow` runs the tests marked slow too."""
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_configure(config: pytest.Config) -> None:
    """Interpreted, unless the session is `-m gpu`; before any test module imports triton.

    pytest-xdist hands its workers the options of the session, so they choose the same.
    """
    if _wants_gpu(config):
        os.environ.pop("TRITON_INTERPRET", None)
    else:
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out slow tests unless asked for; skip, with a reason, tests that need a missing GPU."""
    if not config.getoption("--slow") and not _names_a_test(config):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
    if not _wants_gpu(config):
        reason = "needs a CUDA GPU: run `pytest -m gpu -n 0`"
    elif not _has_gpu():
        reason = "no CUDA GPU on this machine"
    else:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))


def _names_a_test(config: pytest.Config) -> bool:
    """Whether an argument is a single test, which then runs even if it is slow."""
    return any("::" in argument for argument in config.args)


def _wants_gpu(config: pytest.Config) -> bool:
    return config.getoption("markexpr") == "gpu"


def _has_gpu() -> bool:
    import torch  # noqa: PLC0415  (heavy, and a session of other tests never needs it)

    return torch.cuda.is_available()
