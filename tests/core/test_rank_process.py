"""What torchrun's variables say of this process."""

import os
import signal

import pytest
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.rank_process import (
    NOTES,
    NOTES_PREFIX,
    end_at_ctrl_c,
    end_process,
    require_environment,
)

OF_A_RANK = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "host0", "MASTER_PORT": "29500"}


@pytest.fixture
def set_variables(monkeypatch):
    def set_all(**changes):
        for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", *OF_A_RANK):
            monkeypatch.delenv(name, raising=False)
        for name, text in {**OF_A_RANK, **changes}.items():
            if text is not None:
                monkeypatch.setenv(name, text)

    return set_all


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": None, "MASTER_PORT": None},
    ],
)
def test_what_torchrun_sets_describes_a_rank(set_variables, changes):
    set_variables(**changes)
    require_environment()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "one"}, "RANK: 'one' is not a whole number, as torchrun sets it"),
        ({"RANK": "-1"}, "RANK: '-1' is not a whole number, as torchrun sets it"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE: '' is not a whole number, as torchrun sets it"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK: 'x' is not a whole number, as torchrun sets it"),
        ({"LOCAL_WORLD_SIZE": "9" * 99}, f"LOCAL_WORLD_SIZE: '{'9' * 99}' is not a whole number"),
        ({"RANK": "2"}, "RANK: must be less than WORLD_SIZE, 2, was 2"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR: is not set beside RANK and WORLD_SIZE; torchrun sets it"),
        ({"MASTER_PORT": None}, "MASTER_PORT: is not set beside RANK and WORLD_SIZE; torchrun sets it"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT: must be a port from 1 to 65535, was 65536"),
    ],
)
def test_variables_that_describe_no_rank_are_misuse(set_variables, changes, message):
    set_variables(**changes)
    with pytest.raises(UsageError) as caught:
        require_environment()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(("parent", "stays"), [(os.getppid(), True), (os.getppid() + 1, False)])
def test_notes_are_removed_by_rank_0_if_nobody_is_left_to_read_them(
    set_variables, monkeypatch, tmp_path, parent, stays
):
    set_variables(RANK="0")
    folder = tmp_path / f"{NOTES_PREFIX}{parent}-ab12"
    folder.mkdir()
    monkeypatch.setenv(NOTES, str(folder))
    monkeypatch.setattr(os, "_exit", lambda _code: None)
    end_process(1)
    assert folder.exists() == stays
    assert not stays or (folder / "exit_code").read_text(encoding="utf-8") == "1"


@pytest.mark.parametrize(("size", "expected"), [("2", signal.SIG_DFL), ("1", signal.default_int_handler)])
def test_ctrl_c_ends_a_rank_that_has_not_joined_without_a_traceback(set_variables, size, expected):
    set_variables(RANK="0", WORLD_SIZE=size)
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        end_at_ctrl_c()
        assert signal.getsignal(signal.SIGINT) == expected
    finally:
        signal.signal(signal.SIGINT, kept)
