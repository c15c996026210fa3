"""The batch at which a gap equals a price ratio."""

import dataclasses
from decimal import Decimal
from pathlib import Path

import pytest
from decodetax.harness.core.gap import TOKEN_PARTS
from decodetax.harness.core.language_model import load_language_model
from decodetax.harness.core.run_file import read_run
from decodetax.harness.cost.break_even import BreakEven, measured_batch
from decodetax.harness.cost.deployment import deployment
from decodetax.harness.cost.prediction import predict
from hand_made import gap

LLAMA = load_language_model("llama-3.1-8b")
H100 = deployment("h100")
AGAINST = BreakEven(model=LLAMA, on=H100, context=1024)
RUN = Path(__file__).resolve().parents[2] / "docs" / "runs" / "cpu-epyc-2-cores.json"


def gaps(by_batch, context=100):
    """Measured gaps of these ratios."""
    return [
        dataclasses.replace(
            gap(batch=batch),
            context=context,
            input_parts_s=dict.fromkeys(TOKEN_PARTS, 1.0),
            output_parts_s=dict.fromkeys(TOKEN_PARTS, float(ratio)),
        )
        for batch, ratio in by_batch.items()
    ]


@pytest.mark.parametrize(
    ("ratio", "batch"),
    [(16, 1), (20, 1), (4, 4), (8, 2), (2, 16), (1.9, None)],
)
def test_between_measured_batches_the_gap_is_a_power_of_the_batch(ratio, batch):
    # From 16 at batch 1 to 4 at batch 4 the gap is 16 / batch; from there to 2 at batch 16, 8 / sqrt(batch).
    found = measured_batch(gaps({1: 16, 4: 4, 16: 2}), ratio)
    assert found == (None if batch is None else pytest.approx(batch))


def test_gap_that_rises_again_gives_the_first_batch():
    assert measured_batch(gaps({1: 8, 2: 2, 4: 6}), 2) == pytest.approx(2)


def test_shortest_context_is_used():
    assert measured_batch([*gaps({1: 8, 4: 2}), *gaps({1: 1}, context=200)], 2) == pytest.approx(4)
    assert measured_batch([], 4) is None


def test_modelled_batch_is_that_of_a_prediction():
    on = {"context": 1024, "prompt": 1024}
    found = predict(LLAMA, H100, batch=1, price_ratio=4.0, **on)
    batch = AGAINST.modelled_batch(4.0)
    assert batch == found.break_even_batch
    assert predict(LLAMA, H100, batch=batch, price_ratio=4.0, **on).gap <= 4
    assert predict(LLAMA, H100, batch=batch - 1, price_ratio=4.0, **on).gap > 4


def test_no_ratio_has_no_batches():
    assert AGAINST.batches(None) == {"modelled_batch": None, "measured_batch": None}
    assert AGAINST.batches(Decimal(1)) == {"modelled_batch": None, "measured_batch": None}


def test_a_run_gives_the_measured_batch():
    run = read_run(RUN)
    found = dataclasses.replace(AGAINST, gaps=tuple(run.gaps)).batches(Decimal(4))
    assert found["modelled_batch"] == AGAINST.modelled_batch(4.0)
    assert 8 < found["measured_batch"] < 32
