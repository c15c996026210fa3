"""The measured whole model in sentences."""

from decodetax.harness.bench.summary import failures, missing_from, sentences
from hand_made import forward, run_record, whole_model


def said(**changes):
    return list(sentences(run_record(whole_model=whole_model(**changes))))


def test_rates_stand_beside_the_composed_ones():
    prefill, smallest, largest, peer = said()
    assert prefill == "The whole model, measured: 1.52 input tokens/s; composed 1.6, 5% more."
    assert smallest == "The whole model, measured: 0.05 output tokens/s at batch 1; composed 0.05, the same."
    assert largest == (
        "Of the whole model 3 of 4 layers (memory holds no more), measured: 0.2 output tokens/s at batch 8; "
        "composed 0.4, 100% more. The difference lies in attention (30 s, composed 10 s). With weights "
        "and KV cache of one layer for all layers it takes 30 s in place of 40 s (-25%): the effect of "
        "caches."
    )
    assert peer == (
        "With 3 of 4 layers and the same weights, transformers 5.1 has 0.1 output tokens/s at batch 8."
    )


def test_a_composed_rate_below_the_measured_one_is_less():
    [sentence] = said(forwards=(forward(samples_s=(15.0,), parts_s=None, one_layer_s=None),))
    assert sentence.endswith("; composed 0.4, 25% less.")


def test_forwards_that_were_not_measured_are_named_with_the_reason():
    skipped = forward(status="skipped", samples_s=(), reason="its time was over")
    run = run_record(whole_model=whole_model(forwards=(skipped,), reason="out of memory: 2 GB"))
    assert list(sentences(run)) == []
    missing = list(missing_from(run))
    assert (
        "The whole model, decode at batch 8 and context 16, was not measured: its time was over." in missing
    )
    assert "The whole model was not measured in full: out of memory: 2 GB." in missing


def test_wrong_logits_are_a_failure_of_the_run():
    wrong = forward(
        phase="prefill", status="failed", samples_s=(), reason="wrong result: 0.4", by="a peer 1.0"
    )
    run = run_record(whole_model=whole_model(forwards=(wrong,)))
    assert run.failures == [wrong]
    [line] = failures(run)
    assert line == "FAILED: The whole model in a peer 1.0, prefill of 8 x 16 tokens: wrong result: 0.4"


def test_a_run_without_it_says_nothing():
    assert list(sentences(run_record())) == []
    assert not [line for line in missing_from(run_record()) if "whole model" in line]
