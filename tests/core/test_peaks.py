"""Datasheet peaks, and which device bears them."""

import pytest
from decodetax.harness.core.peaks import _scaled, device_table, peaks_of

GIB = 2**30


@pytest.mark.parametrize(
    ("device_name", "gpu"),
    [
        ("Tesla V100-SXM2-32GB", "V100-SXM2-32GB"),
        ("Tesla T4", "T4"),
        ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"),
        ("A100-SXM4-40GB", "A100-SXM4-40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-PCIe-40GB"),
        ("NVIDIA A100 80GB PCIe", "A100-PCIe-80GB"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA GeForce RTX 3090", "RTX-3090"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM5-80GB"),
        ("NVIDIA H100 PCIe", "H100-PCIe-80GB"),
        ("NVIDIA H100 NVL", "H100-NVL"),
        ("NVIDIA H800", "H800-SXM"),
        ("NVIDIA H20", "H20"),
        ("NVIDIA H200", "H200-SXM-141GB"),
        ("NVIDIA GH200 480GB", "GH200-96GB"),
        ("NVIDIA GH200 144G HBM3e", "GH200-144GB"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GB200", "GB200"),
        ("NVIDIA B300 SXM6 AC", "B300"),
        ("NVIDIA GeForce RTX 5090", "RTX-5090"),
    ],
)
def test_device_name_finds_its_gpu(device_name, gpu):
    assert peaks_of(device_name).gpu == gpu


@pytest.mark.parametrize(
    "device_name",
    [
        "",
        "cpu",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 5090 Laptop GPU",
        "NVIDIA L40",
        "NVIDIA A1000",
        "NVIDIA RTX A1000",
        "NVIDIA A100X",
        "NVIDIA A30",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A100-SXM4-80GB MIG 3g.40gb",
        "NVIDIA H100 64GB HBM2",
        "NVIDIA H200 NVL",
        "NVIDIA H20-3e",
        "NVIDIA GB300",
        "NVIDIA T400",
        "Tesla V100-SXM2-16GB",
        "AMD Instinct MI300X",
        "nvidia h100 80gb hbm3 ",
    ],
)
def test_other_device_finds_none(device_name):
    assert peaks_of(device_name) is None


@pytest.mark.parametrize("row", device_table(), ids=lambda row: row["gpu"])
def test_gpu_of_the_table_finds_itself(row):
    assert peaks_of(row["gpu"]).gpu == row["gpu"]


@pytest.mark.parametrize(
    ("device_name", "memory_bytes", "gpu"),
    [
        ("NVIDIA GH200 480GB", 102_005_473_280, "GH200-96GB"),
        ("NVIDIA GH200 480GB", 153_008_209_920, "GH200-144GB"),
        ("NVIDIA GH200 144G HBM3e", 153_008_209_920, "GH200-144GB"),
        ("NVIDIA GH200 144G HBM3e", 96 * GIB, None),
        ("NVIDIA H200", 150_754_820_096, "H200-SXM-141GB"),
        ("NVIDIA L4", 23_659_151_360, "L4"),
        ("Tesla T4", 15_655_829_504, "T4"),
        ("NVIDIA H20", 141 * GIB, None),
        ("NVIDIA H100 80GB HBM3", 10 * GIB, None),
        ("NVIDIA GeForce RTX 4090", 48 * GIB, None),
    ],
)
def test_memory_tells_cards_of_one_name_apart(device_name, memory_bytes, gpu):
    found = peaks_of(device_name, memory_bytes)
    assert (found and found.gpu) == gpu


def test_h100_in_base_units():
    h100 = peaks_of("NVIDIA H100 80GB HBM3")
    assert h100.flop_per_s == {
        "fp32": None,
        "bf16": 989e12,
        "fp16": 989e12,
        "fp8": 1979e12,
        "int8": 1979e12,
        "fp4": None,
    }
    assert h100.bandwidth_bytes_per_s == 3350e9
    assert h100.memory_bytes == 80 * GIB
    assert h100.l2_bytes == 50 * 2**20
    assert (h100.sm_count, h100.boost_hz, h100.shared_bytes_per_sm) == (132, 1830e6, 228 * 1024)
    assert (h100.compute_capability, h100.marks) == ("9.0", {})
    assert h100.source == "NVIDIA H100 datasheet; dense rates"


def test_fractional_rate_is_a_whole_number_of_operations():
    assert peaks_of("NVIDIA GeForce RTX 4090").flop_per_s["bf16"] == 165_200_000_000_000


@pytest.mark.parametrize("device_name", ["Tesla V100-SXM2-32GB", "Tesla T4"])
def test_gpu_without_bf16_has_an_fp16_rate_alone(device_name):
    peaks = peaks_of(device_name)
    assert peaks.flop_per_s["bf16"] is None
    assert peaks.flop_per_s["fp16"] in (125e12, 65e12)
    assert peaks.marks == {}


@pytest.mark.parametrize(
    ("gpu", "field", "mark"),
    [
        ("A10G", "sm_count", "unverified"),
        ("RTX-5090", "flop_per_s.bf16", "derived"),
        ("RTX-5090", "flop_per_s.fp16", "derived"),
        ("RTX-3090", "flop_per_s.bf16", "fp32 accumulate"),
        ("B200", "bandwidth_bytes_per_s", "one source 7700"),
        ("B300", "flop_per_s.int8", "one source 4500"),
        ("B300", "flop_per_s.fp4", "12600 to 14000, sources differ"),
        ("L4", "sm_count", "58 or 60, sources differ"),
        ("L40S", "l2_bytes", "48 or 96, sources differ"),
        ("H800-SXM", "flop_per_s.bf16", "assumed as H100 SXM, unverified"),
        ("GH200-96GB", "l2_bytes", "unverified"),
    ],
)
def test_mark_of_a_figure_is_kept(gpu, field, mark):
    assert peaks_of(gpu).marks[field] == mark


def test_lower_of_two_figures_is_taken():
    assert peaks_of("L4").sm_count == 58
    assert peaks_of("L40S").l2_bytes == 48 * 2**20
    assert peaks_of("B300").flop_per_s["fp4"] == 12600e12
    assert _scaled("60 or 58", 1).value == 58


def test_figure_that_nobody_states_is_none():
    assert peaks_of("H20").boost_hz is None


def test_table_shows_marks_with_their_values():
    rows = {row["gpu"]: row for row in device_table()}
    assert len(rows) == 24
    assert rows["A10G"]["sm_count"] == "80 (unverified)"
    assert rows["B200"]["memory_gb_per_s"] == "8000 (one source 7700)"
    assert "match" not in rows["B200"]
    assert all(row["source"] for row in rows.values())


@pytest.mark.parametrize("cell", ["about 80", "80 unverified", "-80", "(unverified)", "1e3"])
def test_cell_that_is_no_figure_is_refused(cell):
    with pytest.raises(ValueError, match=r"^devices\.csv: .* is not a number with an optional mark$"):
        _scaled(cell, 1)


def test_peaks_serve_as_a_key():
    assert len({peaks_of("L4"), peaks_of("NVIDIA L4"), peaks_of("T4")}) == 2
