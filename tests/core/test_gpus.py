"""The table of GPUs, and the names that find them."""

import pytest
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.gpus import SmLimits, _scaled, datasheet_rows, find_gpu, gpu_of_device, gpu_table

GIB = 2**30
GPUS = tuple(gpu_table().values())


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
        ("NVIDIA RTX 6000 Ada Generation", "RTX-6000-Ada"),
        ("NVIDIA H200 NVL", "H200-NVL"),
        ("NVIDIA GB300", "GB300"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX-PRO-6000-Workstation"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "RTX-PRO-6000-Max-Q"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000-Server"),
    ],
)
def test_device_name_finds_its_gpu(device_name, gpu):
    assert gpu_of_device(device_name).name == gpu


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
        "NVIDIA H20-3e",
        "NVIDIA RTX PRO 6000 Blackwell",
        "NVIDIA RTX PRO 6000 Blackwell Server Edition MIG 1g.24gb",
        "NVIDIA RTX PRO 5000 Blackwell",
        "NVIDIA RTX PRO 5000 Blackwell Generation Laptop GPU",
        "NVIDIA RTX 6000 Ada Generation Laptop GPU",
        "NVIDIA RTX 5000 Ada Generation",
        "Quadro RTX 6000",
        "NVIDIA RTX A6000",
        "NVIDIA H200 NVL MIG 1g.18gb",
        "NVIDIA GB300-WS",
        "NVIDIA L4 MIG 1g.6gb",
        "NVIDIA A10M",
        "NVIDIA T400",
        "Tesla V100-SXM2-16GB",
        "AMD Instinct MI300X",
        "nvidia h100 80gb hbm3 ",
    ],
)
def test_unknown_device_has_no_gpu(device_name):
    assert gpu_of_device(device_name) is None


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_name_of_the_table_finds_its_gpu_in_any_case(gpu):
    name = gpu.name
    assert gpu_of_device(name) is gpu
    for written in (name, name.lower(), name.upper(), name.replace("-", " "), name.replace("-", "_")):
        assert find_gpu(written) is gpu


@pytest.mark.parametrize(
    ("device_name", "memory_bytes", "gpu"),
    [
        ("NVIDIA GH200 480GB", 102_005_473_280, "GH200-96GB"),
        ("NVIDIA GH200 480GB", 153_008_209_920, "GH200-144GB"),
        ("NVIDIA GH200 144G HBM3e", 153_008_209_920, "GH200-144GB"),
        ("NVIDIA GH200 144G HBM3e", 96 * GIB, None),
        ("NVIDIA H200", 150_754_820_096, "H200-SXM-141GB"),
        ("NVIDIA L4", 23_659_151_360, "L4"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 97_887 * 2**20, "RTX-PRO-6000-Server"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 24 * GIB, None),
        ("NVIDIA RTX 6000 Ada Generation", 49_140 * 2**20, "RTX-6000-Ada"),
        ("NVIDIA H200 NVL", 143_771 * 2**20, "H200-NVL"),
        ("NVIDIA GB300", 298_500_227_072, "GB300"),
        ("Tesla T4", 15_655_829_504, "T4"),
        ("NVIDIA H20", 141 * GIB, None),
        ("NVIDIA H100 80GB HBM3", 10 * GIB, None),
        ("NVIDIA GeForce RTX 4090", 48 * GIB, None),
    ],
)
def test_memory_distinguishes_cards_of_one_name(device_name, memory_bytes, gpu):
    found = gpu_of_device(device_name, memory_bytes)
    assert (found and found.name) == gpu


def test_h100_in_base_units():
    h100 = gpu_of_device("NVIDIA H100 80GB HBM3")
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
    assert (h100.sm_count, h100.shared_bytes_per_sm) == (132, 228 * 1024)
    assert h100.limits == SmLimits(
        clock_hz=1830e6,
        registers_per_sm=65536,
        max_warps_per_sm=64,
        max_blocks_per_sm=32,
        shared_bytes_per_block=227 * 1024,
    )
    assert (h100.compute_capability, h100.sm, h100.marks) == ("9.0", 90, {})
    assert h100.source == "NVIDIA H100 datasheet; dense rates"


def test_fractional_rate_becomes_an_integer_number_of_operations():
    assert gpu_of_device("NVIDIA GeForce RTX 4090").flop_per_s["bf16"] == 165_200_000_000_000


@pytest.mark.parametrize("device_name", ["Tesla V100-SXM2-32GB", "Tesla T4"])
def test_gpu_without_bf16_has_only_an_fp16_rate(device_name):
    peaks = gpu_of_device(device_name)
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
        ("GB300", "sm_count", "148 or 160, sources differ"),
        ("RTX-PRO-6000-Server", "flop_per_s.bf16", "469 or 480, sources differ"),
        ("RTX-PRO-6000-Max-Q", "flop_per_s.fp8", "derived"),
        ("H200-NVL", "flop_per_s.bf16", "unverified"),
    ],
)
def test_mark_of_a_figure_is_kept(gpu, field, mark):
    assert gpu_of_device(gpu).marks[field] == mark


def test_lower_of_two_figures_is_taken():
    assert gpu_of_device("L4").sm_count == 58
    assert gpu_of_device("L40S").l2_bytes == 48 * 2**20
    assert gpu_of_device("B300").flop_per_s["fp4"] == 12600e12
    assert _scaled("60 or 58", 1).value == 58


def test_table_shows_marks_with_their_values():
    rows = {row["gpu"]: row for row in datasheet_rows()}
    assert len(rows) == 30
    assert rows["A10G"]["sm_count"] == "80 (unverified)"
    assert rows["B200"]["memory_gb_per_s"] == "8000 (one source 7700)"
    assert list(rows["B200"])[-1] == "source"
    assert all(row["source"] for row in rows.values())


@pytest.mark.parametrize("cell", ["about 80", "80 unverified", "-80", "(unverified)", "1e3"])
def test_rejects_a_cell_that_is_not_a_number(cell):
    with pytest.raises(ValueError, match=r"^gpus\.csv: .* is not a number with an optional mark$"):
        _scaled(cell, 1)


def test_gpus_are_hashable():
    assert len({find_gpu("L4"), find_gpu("NVIDIA L4"), find_gpu("T4")}) == 2


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("H100", "H100-SXM5-80GB"),
        ("h100 sxm5", "H100-SXM5-80GB"),
        ("h100_pcie", "H100-PCIe-80GB"),
        ("H100-NVL", "H100-NVL"),
        ("a100", "A100-SXM4-80GB"),
        ("A100-SXM4", "A100-SXM4-80GB"),
        ("h200", "H200-SXM-141GB"),
        ("h200 nvl", "H200-NVL"),
        ("gh200", "GH200-96GB"),
        ("gb300", "GB300"),
        ("rtx pro 6000", "RTX-PRO-6000-Workstation"),
        ("pro-6000", "RTX-PRO-6000-Workstation"),
        ("rtx pro 6000 server", "RTX-PRO-6000-Server"),
        ("rtx-pro-6000-max-q", "RTX-PRO-6000-Max-Q"),
        ("rtx 6000 ada", "RTX-6000-Ada"),
        ("6000 Ada", "RTX-6000-Ada"),
        ("v100", "V100-SXM2-32GB"),
        ("a10g", "A10G"),
        ("4090", "RTX-4090"),
        ("rtx4090", "RTX-4090"),
        ("RTX 5090", "RTX-5090"),
        ("rtx_3090", "RTX-3090"),
        (" NVIDIA H100 80GB HBM3 ", "H100-SXM5-80GB"),
        ("sm_80", "A100-SXM4-80GB"),
        ("sm_86", "RTX-3090"),
        ("sm_89", "L40S"),
        ("SM90", "H100-SXM5-80GB"),
        ("sm_100", "B200"),
        ("sm_120", "RTX-5090"),
    ],
)
def test_any_name_finds_its_gpu(name, gpu):
    assert find_gpu(name) is gpu_table()[gpu]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("h1000", "H100-SXM5-80GB"),
        ("h20o", "H20"),
        ("rtx409", "RTX-4090"),
        ("4900", "RTX-4090"),
        ("b20", "B200"),
        ("sm_91", "H100-SXM5-80GB"),
    ],
)
def test_rejects_unknown_name_and_names_the_nearest(name, nearest):
    with pytest.raises(UsageError, match=rf"^--gpu: '{name}' is not a known GPU; did you mean .*{nearest}"):
        find_gpu(name)


@pytest.mark.parametrize("name", ["rtx6000", "6000", "pro", "rtx", "rtx pro 5000"])
def test_number_of_several_cards_alone_names_none(name):
    with pytest.raises(UsageError, match=r"^--gpu: "):
        find_gpu(name)


@pytest.mark.parametrize("name", ["h200", "NVIDIA H200", "h200-nvl", "rtx pro 6000", "rtx 6000 ada"])
def test_gpus_of_a_known_die_have_its_sm_limits(name):
    gpu = find_gpu(name, with_limits=True)
    assert gpu.limits.registers_per_sm == 65536
    assert gpu.limits.shared_bytes_per_block == find_gpu(f"sm_{gpu.sm}").limits.shared_bytes_per_block


def test_dense_tensor_rate_is_that_of_the_sms_at_the_boost_clock():
    # 1,024 operations in 16 bits per SM and clock, on cards that accumulate in float32 at the full rate.
    for name in ("RTX-6000-Ada", "RTX-PRO-6000-Workstation", "RTX-PRO-6000-Max-Q", "RTX-PRO-6000-Server"):
        gpu = find_gpu(name)
        rate = 1024 * gpu.sm_count * gpu.limits.clock_hz
        assert gpu.flop_per_s["bf16"] == pytest.approx(rate, rel=0.005), name


@pytest.mark.parametrize("name", ["", "_", "x" * 5000, "gpu\nname"])
def test_rejects_hopeless_name_in_one_short_line(name):
    with pytest.raises(
        UsageError, match=r"^--gpu: .{,45} is not a known GPU; `decodetax devices` lists v100.*"
    ):
        find_gpu(name)


def test_rejects_gpu_without_sm_limits_where_they_are_needed():
    with pytest.raises(
        UsageError, match=r"^--gpu: RTX-4090 has no SM limits in the table of GPUs; these have: A100-"
    ):
        find_gpu("4090", with_limits=True)
    assert find_gpu("h100", with_limits=True).limits.clock_hz == 1830e6


@pytest.mark.parametrize("gpu", [gpu for gpu in GPUS if gpu.sm_limits], ids=lambda gpu: gpu.name)
def test_one_block_gets_all_shared_memory_except_1_kb(gpu):
    # CUDA keeps 1 KB of each CTA's shared memory for itself.
    assert gpu.limits.shared_bytes_per_block == gpu.shared_bytes_per_sm - 1024


@pytest.mark.parametrize(
    ("gpu", "usd_per_hour"),
    [
        ("H100-SXM5-80GB", 2.95),
        ("A100-SXM4-80GB", 2.79),
        ("A100-PCIe-80GB", 1.39),
        ("H200-SXM-141GB", 3.50),
        ("B200", 5.50),
        pytest.param("H800-SXM", None, id="assumed by its operator only"),
        pytest.param("GB200", None, id="total cost of ownership only"),
        pytest.param("H100-PCIe-80GB", None, id="another H100 is listed"),
        pytest.param("T4", None, id="not listed"),
    ],
)
def test_rental_price_is_on_demand_and_names_its_source(gpu, usd_per_hour):
    found = find_gpu(gpu)
    assert found.usd_per_hour == usd_per_hour
    assert found.usd_source.startswith("on demand") is (usd_per_hour is not None)


def test_link_is_that_of_the_datasheet():
    nvlink, pcie = find_gpu("h100"), find_gpu("4090")
    assert (nvlink.link_bytes_per_s, pcie.link_bytes_per_s) == (450e9, 32e9)
