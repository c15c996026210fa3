"""Compiled `prefill_matmul` in each variant against its oracle."""

import dataclasses
import warnings

import pytest
import torch
from decodetax.harness.core.gate import row_errors, tolerance
from decodetax.kernels import (
    MatmulProblem,
    choose_matmul_tiling,
    gpu_limits,
    prefill_matmul,
    prefill_matmul_workspace_bytes,
    reference,
)
from decodetax.kernels.matmul_tiling import VARIANTS, matmul_tilings

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda")
NAN = float("nan")
FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]
INT8_UNIT = 1 / 40


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(params=VARIANTS)
def variant(request):
    capability = torch.cuda.get_device_capability()
    if request.param != "pointers" and capability < (9, 0):
        pytest.skip("this GPU has no tensor descriptors")
    if request.param == "warp_specialized" and capability[0] != 10:
        pytest.skip("no warps are specialised for this GPU")
    return request.param


def normal(*shape, dtype=torch.bfloat16):
    values = torch.randn(shape, device=DEVICE)
    return ((values / INT8_UNIT).round().clamp(-128, 127) if dtype == torch.int8 else values).to(dtype)


def problem_of(x, weight):
    return MatmulProblem.contiguous(
        rows=x.shape[-2],
        out_features=weight.shape[-2],
        in_features=x.shape[-1],
        x_bytes=x.element_size(),
        weight_bytes=weight.element_size(),
    )


def assert_right(x, weight, *, out_dtype=None, tiling=None, **options):
    """Two calls that write over NaN, with a workspace of NaN, equal the oracle within the tolerance."""
    dtype = out_dtype or (torch.bfloat16 if x.element_size() == 1 else x.dtype)
    call = {"out_dtype": out_dtype, "tiling": tiling, **options}
    size = prefill_matmul_workspace_bytes(x, weight, **call)
    columns = weight.shape[-2] // (2 if options.get("activation") == "swiglu" else 1)
    results = []
    for _ in range(2):
        out = torch.full((*x.shape[:-1], columns), NAN, dtype=dtype, device=DEVICE)
        workspace = torch.full((size // 4,), NAN, device=DEVICE)
        results.append(prefill_matmul(x, weight, out=out, workspace=workspace, **call))
    expected = reference.prefill_matmul(x, weight, **{k: v for k, v in options.items() if k != "precision"})
    # As in the interpreted tests: "swiglu" multiplies two sums, and the epilogue rounds to float32.
    reduction = x.shape[-1] * (4 if options.get("activation") == "swiglu" else 1)
    roundings = 1 + (len(options) if dtype == torch.float32 else 0)
    format_ = torch.float16 if options.get("precision") == "tf32" else dtype  # as many bits of mantissa
    bound = tolerance(format_, reduction=reduction, roundings=roundings)
    assert float(row_errors(results[0], expected).max()) <= bound
    assert torch.equal(*results)


def epilogue(rows, features, activation):
    return {
        "bias": normal(features, dtype=torch.float32),
        "x_scale": torch.rand(rows, device=DEVICE) + 0.5,
        "weight_scale": -torch.rand(features, 1, device=DEVICE) - 0.5,
        "activation": activation,
    }


SHAPES = [(1, 4096, 4096), (64, 6144, 4096), (333, 514, 4104), (1024, 5120, 2560), (4100, 4096, 4096)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@each_shape
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_variants(variant, shape, dtype):
    rows, features, in_features = shape
    x, weight = normal(rows, in_features, dtype=dtype), normal(features, in_features, dtype=dtype)
    tiling = choose_matmul_tiling(problem_of(x, weight), gpu_limits(DEVICE), variant)
    assert_right(x, weight, tiling=tiling)


@pytest.mark.parametrize("activation", [None, "silu", "gelu", "swiglu"])
@pytest.mark.parametrize("rows", [3, 64, 333])
def test_fused_epilogue_in_each_variant(variant, rows, activation):
    x, weight = normal(rows, 1000), normal(514, 1000)
    tiling = choose_matmul_tiling(problem_of(x, weight), gpu_limits(DEVICE), variant)
    assert_right(x, weight, tiling=tiling, **epilogue(rows, 514, activation))


@pytest.mark.parametrize("rows", [1, 64, 333])
def test_every_candidate_tiling(variant, rows):
    x, weight = normal(rows, 4096), normal(6144, 4096)
    tilings = matmul_tilings(problem_of(x, weight), gpu_limits(DEVICE), variant)
    for tiling in dict.fromkeys((tilings[0], *tilings[:: max(1, len(tilings) // 8)])):
        assert_right(x, weight, tiling=tiling)


@pytest.mark.parametrize("rows", [1, 64, 333, 2048])
@pytest.mark.parametrize("x_dtype", FLOAT8, ids=str)
@pytest.mark.parametrize("weight_dtype", FLOAT8, ids=str)
def test_float8(rows, x_dtype, weight_dtype):
    x, weight = normal(rows, 4096, dtype=x_dtype), normal(1026, 4096, dtype=weight_dtype)
    scales = {"x_scale": torch.rand(rows, 1, device=DEVICE) + 0.5, "weight_scale": 0.25}
    assert_right(x, weight, **scales)


@pytest.mark.parametrize("rows", [1, 64, 333, 2048])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_int8_weights(rows, dtype):
    x, weight = normal(rows, 4096, dtype=dtype), normal(1026, 4096, dtype=torch.int8)
    assert_right(x, weight, weight_scale=INT8_UNIT * (torch.rand(1026, device=DEVICE) + 0.5))


@pytest.mark.parametrize("rows", [5, 333])
def test_tf32(rows):
    x, weight = normal(rows, 2048, dtype=torch.float32), normal(513, 2048, dtype=torch.float32)
    assert_right(x, weight, precision="tf32")


@pytest.mark.parametrize("tokens", [1, 100, 300])
def test_batched_weights(tokens):
    x, weight = normal(5, tokens, 520), normal(5, 258, 520)
    assert_right(x, weight, activation="swiglu", bias=normal(5, 258))
    assert_right(x, weight)


@pytest.mark.parametrize(
    "layout",
    [
        lambda values: values.T.contiguous().T,
        lambda values: values[:, 1:],
        lambda values: torch.cat([values, values], 1)[:, : values.shape[1] - 3],
    ],
    ids=["transposed", "shifted", "odd"],
)
@pytest.mark.parametrize("rows", [7, 333])
def test_strided_operands(rows, layout):
    assert_right(layout(normal(rows, 1024)), layout(normal(514, 1024)))


@pytest.mark.parametrize("rows", [1, 64, 333])
def test_no_allocation_or_sync_with_out_and_workspace(rows):
    x, weight = normal(rows, 4096), normal(1024, 4096)
    size = prefill_matmul_workspace_bytes(x, weight)
    out = torch.empty(rows, 1024, dtype=torch.bfloat16, device=DEVICE)
    workspace = torch.empty(size, dtype=torch.uint8, device=DEVICE)
    prefill_matmul(x, weight, out=out, workspace=workspace)  # compiles
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(action="ignore"):  # it says that it does not see every wait
        torch.cuda.set_sync_debug_mode("error")
    try:
        prefill_matmul(x, weight, out=out, workspace=workspace)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_cuda_graph_replay_in_each_variant(variant):
    x, weight = normal(200, 4096), normal(1024, 4096)
    out = torch.empty(200, 1024, dtype=torch.bfloat16, device=DEVICE)
    tiling = choose_matmul_tiling(problem_of(x, weight), gpu_limits(DEVICE), variant)
    size = prefill_matmul_workspace_bytes(x, weight, tiling=tiling)
    call = {"out": out, "workspace": torch.full((size // 4,), NAN, device=DEVICE), "tiling": tiling}
    prefill_matmul(x, weight, **call)  # compiles outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        prefill_matmul(x, weight, **call)
    x.copy_(normal(200, 4096))
    for tensor in (out, call["workspace"]):
        tensor.fill_(NAN)
    graph.replay()
    errors = row_errors(out, reference.prefill_matmul(x, weight))
    assert float(errors.max()) <= tolerance(torch.bfloat16, reduction=4096, roundings=1)


def test_unsupported_variant_falls_back_to_pointers():
    x, weight = normal(100, 1001), normal(300, 1001)
    tiling = choose_matmul_tiling(problem_of(x, weight), gpu_limits(DEVICE))
    assert_right(x, weight, tiling=dataclasses.replace(tiling, variant="descriptors"))
