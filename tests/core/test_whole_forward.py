"""Figures of a measured forward, by hand, and what its record refuses."""

import math

import pytest
from decodetax.harness.core.whole_model import WholeModel, composed_parts_s
from hand_made import forward, gap, whole_model


def test_rates_of_a_step_and_of_a_prefill():
    step = forward()  # 8 tokens in 40 s, composed of 20 s
    assert (step.tokens_per_s, step.composed_tokens_per_s) == (0.2, 0.4)
    assert step.composed_over_measured == 2.0
    assert not step.close
    prefill = forward(phase="prefill", sequences=2, samples_s=(21.0,))  # 32 tokens
    assert prefill.tokens_per_s == 32 / 21
    assert prefill.composed_over_measured == 21 / 20
    assert prefill.close


@pytest.mark.parametrize(
    ("parts_s", "median_s", "causes"),
    [
        ({"attention": 30.0}, 40.0, ("attention",)),
        ({"attention": 20.0, "projections": 14.0}, 40.0, ("attention", "projections")),
        ({"attention": 16.0, "lm_head": 8.0, "rest": 11.0}, 40.0, ("rest", "attention")),
        ({"projections": 1.0, "lm_head": 3.5}, 15.0, ("projections",)),  # faster than composed
        (None, 40.0, ()),
    ],
)
def test_causes_are_the_parts_with_a_quarter_of_the_difference_or_more(parts_s, median_s, causes):
    composed = {"projections": 5.0, "attention": 10.0, "rest": 1.0, "lm_head": 4.0}
    found = None if parts_s is None else composed | parts_s
    assert forward(samples_s=(median_s,), parts_s=found).causes == causes


def test_composed_parts_are_those_of_the_layers_and_the_whole_lm_head():
    parts_s = composed_parts_s(gap(), "decode", tokens=8, layers=3, of_layers=12)
    assert parts_s == {"projections": 12.0, "attention": 40.0, "rest": 20.0, "lm_head": 32.0}
    assert composed_parts_s(gap(), "prefill", tokens=2, layers=4, of_layers=4)["projections"] == 4.0


def test_json_has_the_derived_figures_of_forwards_that_are_ok():
    ok, skipped = whole_model(
        forwards=(forward(), forward(status="skipped", samples_s=(), reason="its time was over"))
    ).to_json()["forwards"]
    assert ok["composed_over_measured"] == 2.0
    assert ok["time_s"]["median"] == 40.0
    assert ok["provenance"] == "measured"
    assert "tokens_per_s" not in skipped


def test_timed_seconds_are_those_of_all_forwards():
    assert whole_model().timed_s == 21.0 + 60.0 + 121.0 + 80.0
    assert WholeModel(layers=3).timed_s == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples_s": ()}, "samples_s: 0 of a forward that is ok"),
        ({"reason": "late"}, "reason: is 'late' on a forward that is ok"),
        ({"status": "skipped", "samples_s": ()}, "reason: is None on a forward that is skipped"),
        ({"composed_parts_s": None}, "composed_parts_s: is null on a forward that is ok"),
        ({"parts_s": {"rest": 1.0}}, "parts_s: lacks projections"),
        (
            {"composed_parts_s": dict.fromkeys(("projections", "attention", "rest", "lm_head"), 0.0)},
            "composed_parts_s: sum to 0.0 s, must be above 0",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        forward(**changes)


def test_figures_stay_finite_at_the_limits_of_a_file():
    step = forward(samples_s=(1e24,), composed_parts_s=dict.fromkeys(forward().composed_parts_s, 1e-24))
    assert math.isfinite(step.composed_over_measured)
    assert math.isfinite(step.tokens_per_s)
