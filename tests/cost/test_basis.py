"""What a decode step's time rests on, and the error to expect."""

import dataclasses

import pytest
from decodetax.harness.core.formats import CACHE_FORMATS, FORMATS
from decodetax.harness.core.language_model import load_language_model
from decodetax.harness.core.parallelism import Parallelism
from decodetax.harness.cost.basis import decode_basis
from decodetax.harness.cost.deployment import deployment
from decodetax.harness.cost.kernel_constants import constants_for, expected_errors

LLAMA = load_language_model("llama-3.2-1b")
MIXTURE = load_language_model("qwen3-30b-a3b")


def basis(model=LLAMA, gpu="h100", *, dtype=None, cache="bf16", **parallelism):
    on = dataclasses.replace(
        deployment(gpu), cache_format=CACHE_FORMATS[cache], parallelism=Parallelism(**parallelism)
    )
    model = model.with_formats(FORMATS[dtype]) if dtype else model
    return decode_basis(model, on, batch=8, context=1024)


def kernels(found):
    return {(each.kernel, each.variant): each for each, _ in found.kernels}


def test_kernels_measured_on_the_gpu_are_measured():
    found = basis()
    assert found.measured
    assert set(kernels(found)) == {("gemm", "bf16"), ("decode_attention", "bf16")}
    errors = [constants_for(deployment("h100").gpu).basis[key].median_error for key in kernels(found)]
    assert min(errors) <= found.expected_error <= max(errors)
    assert sum(share for _, share in found.kernels) == pytest.approx(1)


@pytest.mark.parametrize("gpu", ["h200", "h20", "rtx4090", "v100", "b300"])
def test_kernels_of_another_gpu_are_derived_with_a_larger_error(gpu):
    found = basis(gpu=gpu)
    assert not found.measured
    assert {each.gpu for each in kernels(found).values()}.isdisjoint({deployment(gpu).gpu.name, ""})
    assert found.expected_error > basis().expected_error


@pytest.mark.parametrize("dtype", ["int4", "int8", "mxfp4"])
def test_no_product_of_weights_narrower_than_activations_was_measured(dtype):
    found = basis(dtype=dtype)
    narrow = kernels(found)["gemm", f"{dtype} in bf16"]
    assert not narrow.measured
    assert narrow.median_error >= expected_errors()["gemm", "", "", "other dtype"][0]


def test_experts_latent_attention_and_communication_have_a_basis():
    assert kernels(basis(MIXTURE))["moe", "bf16"].measured
    elsewhere = kernels(basis(MIXTURE, "h200"))["moe", "bf16"]
    assert (elsewhere.measured, elsewhere.gpu) == (False, "H100-SXM5-80GB")
    assert elsewhere.median_error == expected_errors()["gemm", "", "bf16", "other GPUs"][0]
    several = kernels(basis(LLAMA, tensor_parallel=2))
    assert several["all_reduce", "vllm_graph"].measured
    latent = kernels(basis(load_language_model("deepseek-v3"), "h200", tensor_parallel=8))
    assert latent["mla_decode", "bf16"].gpu == "H100-SXM5-80GB"


def test_error_is_unknown_where_much_of_the_time_is():
    divided = basis(MIXTURE, data_parallel=64, expert_parallel=64)
    unknown = sum(share for each, share in divided.kernels if each.median_error is None)
    assert unknown > 0
    assert (divided.expected_error is None) == (unknown > 0.1)


def test_json_has_every_kernel():
    document = basis(gpu="h20").to_json()
    assert document["measured"] is False
    assert {"kernel", "variant", "gpu", "median_error", "p90_error", "share_of_time"} <= set(
        document["kernels"][0]
    )
