"""Launches through Triton's own CUDA driver and launcher, on a fake `libcuda.so.1` (see `fake_cuda.c`).

Without a GPU these show what a launch hands to the CUDA driver: the bytes of every kernel parameter, tensor
maps, grid, block and shared memory. The slow tests make all launches of `decodetax run` without options and
of `tests/gpu`.
"""

import os

import pytest

FULL = os.environ.get("DECODETAX_FULL_MATRIX") == "2"
SHARES = 24


@pytest.fixture(scope="module")
def launched(driver_program, tmp_path_factory):
    """Makes the launches of a call of `launched_calls.py` for a GPU, in a process of its own."""

    def launch(gpu, call, *options):
        log = tmp_path_factory.mktemp("log") / "log.jsonl"
        answer = driver_program("launched_calls.py", gpu, call, log, *options)
        return answer["launches"], answer["returned"]

    return launch


def problems_of(launches):
    return [
        f"{launch['kernel']} {launch['grid']}: {launch['problems']}"
        for launch in launches
        if launch["problems"]
    ]


def kernels_of(launches):
    return {launch["kernel"] for launch in launches}


def assert_accepted(launches):
    """No launch has a problem, and every tensor map has ascending strides, as the CUDA manual asks."""
    assert problems_of(launches) == []
    assert [note for launch in launches for note in launch["notes"]] == []
    for launch in launches:
        assert launch["parameters"] > 5
        assert launch["registers"] > 0
        assert (launch["kernel"] == "_tma_kernel") == (len(launch["tensor_maps"]) == 2)


@pytest.fixture(scope="module")
def small(launched):
    """The launches of a call of each kernel."""
    return launched("h100", "small")[0]


@pytest.fixture(scope="module")
def faults(launched):
    """Launches with a planted fault, and what is said of tensor maps with one."""
    return launched("h100", "faults")


def test_each_kernel_is_launched_with_its_arguments(small):
    assert_accepted(small)
    assert kernels_of(small) == {
        "_tma_kernel",
        "_matmul_kernel",
        "_split_k_reduce_kernel",
        "_split_kv_kernel",
        "_combine_kernel",
        "_merge_states_kernel",
    }
    assert any("bias_ptr" in launch["none_arguments"] for launch in small)
    assert any(launch["maxnreg"] for launch in small)


def test_weight_of_gate_up_pairs_has_ascending_strides(small):
    maps = [tensor_map for launch in small for tensor_map in launch["tensor_maps"]]
    [weight] = [tensor_map for tensor_map in maps if len(tensor_map["dims"]) == 3]
    assert weight["dims"] == [520, 128, 2]
    assert weight["strides"] == [520 * 2, 128 * 520 * 2]


FOUND = {
    "none": [],
    "grid": ["launch: the grid is over 2147483647 x 65535 x 65535"],
    "pointer": ["x_ptr: the kernel gets"],
    "integer": ["size: the kernel gets 01040000, the argument is 00040000"],
    "float": ["factor: the kernel gets 9a99193e, the argument is 9a99993e"],
    "multiple of 16": ["size: compiled for multiples of 16, called with 1000"],
    "constant": ["BLOCK: compiled for 256, called with 128"],
    "one program more": ["grid [1, 5, 1], asked for [1, 4, 1]"],
    "warps": ["launch: the block has another size than the kernel was compiled for"],
    "shared memory": ["launch: the shared memory is over what was set for the kernel"],
    "registers": ["255 registers, maxnreg 64"],
    "another GPU": ["module: compiled for sm_90, this is sm_80"],
}


def test_each_fault_of_a_launch_is_found(faults):
    launches, _ = faults
    assert len(launches) == len(FOUND)
    for launch, (name, expected) in zip(launches, FOUND.items(), strict=True):
        found = [problem for problem in launch["problems"] if "Triton Error [CUDA]" not in problem]
        assert len(found) == len(expected), (name, launch["problems"])
        assert all(map(str.startswith, found, expected)), (name, launch["problems"])


REFUSED = {
    "none": None,
    "box": "a box dimension is not 1 to 256",
    "inner size": "a row of the box is longer than the swizzle",
    "inner size of a narrow swizzle": "a row of the box is longer than the swizzle",
    "row of the box": "a row of the box is no multiple of 16 bytes",
    "stride": "a stride is no multiple of 16 bytes",
    "long stride": "a stride is not below 2^40 bytes",
    "address": "the address is not aligned to 16 bytes",
    "dimension": "a dimension is not 1 to 2^32",
    "not ascending": None,
}


def test_each_fault_of_a_tensor_map_is_found(faults):
    _, found = faults
    assert {name: event["refused"] for name, event in found.items()} == REFUSED
    assert [name for name, event in found.items() if not event["ascending_strides"]] == ["not ascending"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gpu", "kernels"),
    [
        ("a100", {"_matmul_kernel"}),
        ("h100", {"_matmul_kernel", "_tma_kernel"}),
        ("b200", {"_matmul_kernel", "_tma_kernel"}),
    ],
)
def test_every_launch_of_the_default_run_is_accepted(launched, gpu, kernels):
    launches, _ = launched(gpu, "default_run")
    assert_accepted(launches)
    attention = {"_split_kv_kernel", "_combine_kernel", "_prefill_attention_kernel"}
    assert kernels | attention <= kernels_of(launches)
    assert len(launches) >= 50


@pytest.mark.slow
@pytest.mark.parametrize("gpu", ["a100", "h100"])
def test_every_timed_or_tuned_case_of_the_gpu_tests_is_accepted(launched, gpu):
    launches, _ = launched(gpu, "timed_tests")
    assert_accepted(launches)
    assert len(launches) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("share", range(SHARES) if FULL else [7])
@pytest.mark.parametrize("gpu", ["a100", "h100"])
def test_launches_of_the_kernels_gpu_tests_are_accepted(launched, gpu, share):
    """Of every 24th test; of all with DECODETAX_FULL_MATRIX=2, in a quarter of an hour a GPU on one core."""
    launches, done = launched(gpu, "kernel_tests", str(share), str(SHARES))
    assert done["errors"] == []
    assert done["tests"] >= 8
    assert_accepted(launches)
