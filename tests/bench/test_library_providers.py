"""Optional libraries: the arguments they are called with, on fakes, and the reasons without them."""

import sys
import types

import pytest
import torch
from decodetax.harness.bench import library_providers, runner
from decodetax.harness.bench.providers import PROVIDERS, Provider, gate_of
from decodetax.harness.core.inputs import draw
from decodetax.kernels import reference
from fakes import FakeDevice, bench
from msgspec import structs
from small_cases import decode_case, matmul_case, source

CASE = decode_case(dtype="bf16", context=37, batch=3, kv_heads=2, group=4, head_dim=16)
LIBRARIES = {"flashinfer": "flashinfer", "flash-attn": "flash_attn", "torch-flex": "torch"}


def provider(name):
    [found] = [each for each in PROVIDERS["decode_attention"] if each.name == name]
    return found


def attention(q, k_cache, v_cache, lengths):
    output, _ = reference.decode_attention(q, k_cache, v_cache, lengths.to(torch.int32))
    return output.to(q.dtype)


class Wrapper:
    """FlashInfer's, over pages [page, kv head, token, element]."""

    plans = 0

    def __init__(self, workspace, layout):
        assert workspace.dtype == torch.uint8
        assert layout == "HND"

    def plan(self, indptr, indices, last_page_len, q_heads, kv_heads, head_dim, page_size, **dtypes):
        type(self).plans += 1
        assert indptr.dtype == indices.dtype == last_page_len.dtype == torch.int32
        assert indptr.tolist() == list(range(len(indices) + 1))
        assert dtypes == {"q_data_type": torch.bfloat16, "kv_data_type": torch.bfloat16}
        self.indices, self.lengths = indices.long(), last_page_len
        self.shape = (q_heads, kv_heads, head_dim, page_size)

    def run(self, q, cache):
        k, v = (part[self.indices] for part in cache)
        assert all(part.is_contiguous() for part in cache)
        assert (q.shape[1], k.shape[1], k.shape[3], k.shape[2]) == self.shape
        return attention(q, k.transpose(1, 2), v.transpose(1, 2), self.lengths)


def with_kvcache(q, k_cache, v_cache, *, cache_seqlens):
    assert q.dim() == 4
    assert q.shape[1] == 1
    return attention(q[:, 0], k_cache, v_cache, cache_seqlens)[:, None]


def flex(q, k, v, *, enable_gqa):
    assert enable_gqa
    assert q.shape[2] == 1
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
    Wrapper.plans = 0
    monkeypatch.setitem(
        sys.modules, "flashinfer", types.SimpleNamespace(BatchDecodeWithPagedKVCacheWrapper=Wrapper)
    )
    monkeypatch.setitem(
        sys.modules, "flash_attn", types.SimpleNamespace(flash_attn_with_kvcache=with_kvcache)
    )
    monkeypatch.setattr(library_providers, "_compiled_flex_attention", lambda: flex)
    monkeypatch.setattr(library_providers, "WORKSPACE_BYTES", 16)


@pytest.mark.parametrize("name", LIBRARIES)
def test_library_is_called_as_documented_and_passes_the_gate(name):
    inputs = draw(CASE, source())
    call = provider(name).bind(inputs)
    gate = gate_of(CASE, inputs)
    assert gate.judge(call()).passed
    assert gate.judge(provider(name).run(inputs)).passed


def test_plan_is_made_once_for_many_calls():
    call = provider("flashinfer").bind(draw(CASE, source()))
    for _ in range(5):
        call()
    assert Wrapper.plans == 1


@pytest.mark.parametrize(("name", "library"), LIBRARIES.items())
def test_missing_library_gpu_or_dtype_is_the_reason(name, library, monkeypatch):
    refuses = provider(name).refuses
    gpu = FakeDevice(kind="cuda")
    library = "FlexAttention" if library == "torch" else library
    assert refuses(CASE, gpu) is None
    assert refuses(CASE, FakeDevice()) == f"{library} needs a CUDA GPU"
    assert refuses(decode_case(), gpu) == f"{library} takes bf16 and fp16"
    monkeypatch.setattr(library_providers, "installed", lambda _library: False)
    assert refuses(CASE, gpu) == f"{library} is not installed"


def test_flex_attention_takes_contexts_of_one_length():
    ragged = structs.replace(decode_case(dtype="bf16"), contexts=(3, 5, 7))
    assert "one length" in provider("torch-flex").refuses(ragged, FakeDevice(kind="cuda"))
    assert provider("flashinfer").refuses(ragged, FakeDevice(kind="cuda")) is None


def test_missing_module_is_not_installed():
    assert not library_providers.installed("no_such_library")
    assert library_providers.installed("torch")


def test_shape_that_a_library_rejects_is_unsupported(monkeypatch):
    def complains(*_args, **_options):
        raise RuntimeError("head_dim 16\nis not supported")

    monkeypatch.setattr(sys.modules["flash_attn"], "flash_attn_with_kvcache", complains)
    with pytest.raises(NotImplementedError, match="head_dim 16 is not supported"):
        provider("flash-attn").bind(draw(CASE, source()))
    [row] = rows_of(monkeypatch, provider("flash-attn"))
    assert (row.status, row.reason) == ("unsupported", "head_dim 16 is not supported")


def test_wrong_library_fails(monkeypatch):
    monkeypatch.setattr(
        sys.modules["flash_attn"], "flash_attn_with_kvcache", lambda *a, **k: 1.1 * with_kvcache(*a, **k)
    )
    [row] = rows_of(monkeypatch, provider("flash-attn"))
    assert row.status == "failed"
    assert row.reason.startswith("wrong result")


def rows_of(monkeypatch, *providers, case=CASE):
    monkeypatch.setattr(runner, "PROVIDERS", {case.operation: providers})
    return list(runner.run_case(case, bench(FakeDevice(kind="cuda"))))


def test_rows_time_the_bound_call_and_not_the_plan(monkeypatch):
    [row] = rows_of(monkeypatch, provider("flashinfer"))
    assert row.status == "ok"
    assert Wrapper.plans == row.input_copies


def test_outputs_are_poisoned_after_planning(monkeypatch):
    case = matmul_case()

    def bind(inputs):
        torch.matmul(inputs.x, inputs.weight.t(), out=inputs.out)
        return lambda: inputs.out  # computes nothing any more

    lazy = Provider(name="lazy", run=lambda inputs: inputs.out, bind=bind)
    [row] = rows_of(monkeypatch, lazy, case=case)
    assert row.status == "failed"
