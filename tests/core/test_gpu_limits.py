"""Limits of a GPU and its multiprocessors, and which names find them."""

import pytest
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.gpu_limits import find_gpu, gpu_limits_table
from decodetax.harness.core.peaks import peaks_of


def test_table_stands_in_base_units():
    h100 = gpu_limits_table()["H100-SXM5-80GB"]
    assert (h100.compute_capability, h100.sm, h100.sm_count) == ("9.0", 90, 132)
    assert h100.clock_hz == pytest.approx(1.755e9)
    assert h100.memory_bytes_per_s == 3350e9
    assert (h100.registers_per_sm, h100.max_warps_per_sm, h100.max_blocks_per_sm) == (65536, 64, 32)
    assert h100.shared_bytes_per_sm == 228 * 1024
    assert h100.shared_bytes_per_block == 227 * 1024
    assert h100.l2_bytes == 50 * 2**20


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("a100", "A100-SXM4-80GB"),
        ("H100", "H100-SXM5-80GB"),
        ("b200", "B200"),
        ("l40s", "L40S"),
        ("rtx3090", "RTX-3090"),
        ("3090", "RTX-3090"),
        ("RTX 5090", "RTX-5090"),
        ("5090", "RTX-5090"),
        ("h100-sxm5-80gb", "H100-SXM5-80GB"),
        ("sm_80", "A100-SXM4-80GB"),
        ("sm_86", "RTX-3090"),
        ("sm_89", "L40S"),
        ("SM90", "H100-SXM5-80GB"),
        ("sm_100", "B200"),
        ("sm_120", "RTX-5090"),
    ],
)
def test_name_finds_its_gpu(name, gpu):
    assert find_gpu(name) is gpu_limits_table()[gpu]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("h200", "H100-SXM5-80GB"), ("rtx4090", "RTX-3090"), ("sm_91", "H100-SXM5-80GB")],
)
def test_unknown_name_is_misuse_that_names_the_nearest(name, nearest):
    with pytest.raises(UsageError) as error:
        find_gpu(name)
    message = str(error.value)
    assert message.startswith(f"--gpu: {name!r} is none of ")
    assert nearest in message.partition("did you mean")[2]
    assert all(gpu in message for gpu in gpu_limits_table())
    assert "sm_120" in message


@pytest.mark.parametrize("name", ["", "_", "x" * 5000, "gpu\nname"])
def test_hopeless_name_is_misuse_in_one_short_line(name):
    with pytest.raises(UsageError) as error:
        find_gpu(name)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 300
    assert "did you mean" not in message


@pytest.mark.parametrize("gpu", gpu_limits_table())
def test_limits_fit_together(gpu):
    limits = gpu_limits_table()[gpu]
    assert 10 * float(limits.compute_capability) == limits.sm
    # CUDA keeps 1 KB of each program's shared memory for itself.
    assert limits.shared_bytes_per_block == limits.shared_bytes_per_sm - 1024
    assert "programming guide" in limits.source


@pytest.mark.parametrize("gpu", gpu_limits_table())
def test_limits_agree_with_the_table_of_peaks(gpu):
    limits, peaks = gpu_limits_table()[gpu], peaks_of(gpu)
    assert limits.compute_capability == peaks.compute_capability
    assert limits.sm_count == peaks.sm_count
    assert limits.memory_bytes_per_s == peaks.bandwidth_bytes_per_s
    assert limits.shared_bytes_per_sm == peaks.shared_bytes_per_sm
    assert limits.l2_bytes == peaks.l2_bytes


def test_figure_in_doubt_keeps_its_mark():
    assert "L2 size differs between sources" in find_gpu("l40s").source
