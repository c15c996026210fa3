"""The charts for slides."""

import struct

import pytest
from decodetax.harness.bench import png_charts as png_module
from decodetax.harness.bench.chart_data import price_ratios
from decodetax.harness.bench.png_charts import png_charts
from decodetax.harness.cost.prices import price_list
from hand_made import run_record
from report_runs import hostile_run, whole_run

RATIOS = price_ratios(price_list())


def size_of(png):
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", png[16:24])


@pytest.mark.parametrize("runs", [{"a": whole_run()}, {"$a_1$": hostile_run(), "_b": whole_run()}])
def test_charts_have_the_size_of_a_slide(runs):
    drawn = png_charts(runs, RATIOS)
    assert tuple(drawn) == ("roofline.png", "gap.png")
    assert {size_of(png) for png in drawn.values()} == {(1920, 1080)}


def test_the_gap_has_bars_of_its_intervals():
    [axes] = png_module._gap({"a": whole_run()}, RATIOS).axes
    assert len(axes.containers) == 2  # a line and its bars for each context
    _, _, [bars] = axes.containers[0]
    # 10 at batch 1 and 2.5 at batch 8, from a tenth below to a fifth above.
    assert [[y for _, y in ends] for ends in bars.get_segments()] == [
        pytest.approx([9.0, 12.0]),
        pytest.approx([2.25, 3.0]),
    ]


def test_a_chart_without_data_is_none():
    assert png_charts({"a": whole_run(gaps=[])}, RATIOS)["gap.png"] is None
    assert png_charts({"a": run_record()}, RATIOS) == {"roofline.png": None, "gap.png": None}
