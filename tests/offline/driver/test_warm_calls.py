"""Warm calls launch what first calls launch, in a fraction of the host time (see `warm_calls.py`)."""

import re
from importlib import metadata
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[3] / "docs" / "evidence.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([a-z][\w ]+) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
"""Of the page's table: a call, its host time in us as it stands and warm, and functions called."""
HOST_TIME_S = 60e-6
"""The most that a warm `decode_attention` may take."""
STEPS_S = 18e-6
"""Time of `warm_calls.steps` on a machine that the bound is for: a slower one has more."""


@pytest.fixture(scope="module")
def found(driver_program, tmp_path_factory):
    """What the checks of `warm_calls.py` give."""
    return driver_program("warm_calls.py", "few", "h100", tmp_path_factory.mktemp("log") / "log.jsonl")


def assert_launches_are_equal(launches):
    for name, (warm, first) in launches.items():
        assert [event for event in warm if "refused" in event] == []
        assert warm == first != [], name


def test_warm_calls_launch_what_first_calls_launch(found):
    """The bytes of every kernel parameter, grids, blocks and tensor maps."""
    assert_launches_are_equal(found["launches"])
    assert len(found["launches"]) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("gpu", ["a100", "h100", "b200"])
def test_warm_calls_of_all_forms_launch_what_first_calls_launch(driver_program, tmp_path, gpu):
    found = driver_program("warm_calls.py", "all", gpu, tmp_path / "log.jsonl")
    assert_launches_are_equal(found["launches"])
    assert len(found["launches"]) >= 15
    given, alive = found["live_tensors"]
    assert given > 60
    assert alive == 0


def test_host_time_of_a_warm_call_is_within_its_bound(found):
    times = found["times"]
    pace = max(1.0, times["steps_s"] / STEPS_S)
    warm_s = times["calls"]["decode with LSE and softcap"]["warm_s"]
    assert warm_s <= HOST_TIME_S * pace, f"{1e6 * warm_s:.1f} us, {pace:.1f} times as slow as it should be"


def test_warm_calls_do_a_fraction_of_the_work(found):
    for name, call in found["times"]["calls"].items():
        assert call["warm_calls"] <= 0.6 * call["plain_calls"], (name, call)
        assert call["warm_calls"] <= 130, (name, call)
        assert call["warm_s"] <= 0.6 * call["plain_s"], (name, call)


def test_the_page_shows_the_host_times(found):
    times = found["times"]
    pace = times["steps_s"] / STEPS_S
    assert [row[0] for row in ROWS] == list(times["calls"])
    for (name, _, warm_us, warm_calls), call in zip(ROWS, times["calls"].values(), strict=True):
        assert 0.5 <= 1e6 * call["warm_s"] / (int(warm_us) * pace) <= 2, (name, call, pace)
        # Versions of Python differ by a few; versions of Triton by their own launch of tensor maps.
        if metadata.version("triton") == "3.9.0":
            assert call["warm_calls"] == pytest.approx(int(warm_calls), abs=15), name


def test_launch_hooks_see_warm_calls(found):
    call = ["call", "_split_kv_kernel", "end", "_combine_kernel", "end"]
    assert found["hooked"] == call * 2


def test_records_hold_no_tensor(found):
    given, alive = found["live_tensors"]
    assert given > 15
    assert alive == 0


def test_records_are_bounded(found):
    assert found["most_records"] == [1, 512]


def test_threads_share_records(found):
    assert found["threads"] == [0, 240]


def test_wrong_arguments_get_the_same_error_beside_a_record(found):
    for name, (first, again) in found["refusals"].items():
        assert first == again, name
        kind, message, alone = first
        assert kind == ("TypeError" if name == "unknown" else "ValueError"), message
        assert alone, "the error was raised while another was handled"


def test_changes_of_triton_end_the_repetition(found):
    assert found["changes"].pop("none") is False
    assert len(found["changes"]) == 5
    assert all(found["changes"].values()), found["changes"]
