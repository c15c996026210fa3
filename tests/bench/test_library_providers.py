"""Optional libraries: the arguments they are called with, on fakes, and the reasons without them."""

import functools
import itertools
import sys
import types
import typing

import pytest
import torch
import torch.nn.attention.flex_attention
from decodetax.harness.bench import library_providers, runner
from decodetax.harness.bench.providers import PROVIDERS, Provider, gate_of
from decodetax.harness.core.cases import PrefillAttention
from decodetax.harness.core.inputs import draw
from decodetax.kernels import reference
from fakes import FakeDevice, bench
from msgspec import structs
from small_cases import decode_case, matmul_case, source

CASE = decode_case(dtype="bf16", context=37, batch=3, kv_heads=2, group=4, head_dim=16)
PROMPT = PrefillAttention(sequences=2, prompt=37, q_heads=4, kv_heads=2, head_dim=16, dtype="bf16")
COMPILED = library_providers._compiled_flex_attention.__wrapped__
LIBRARIES = {"flashinfer": "flashinfer", "flash-attn": "flash_attn", "torch-flex": "torch"}
LIBRARY_NAMES = {"flash-attn": "flash_attn", "torch-flex": "FlexAttention"}


def provider(name, operation="decode_attention"):
    [found] = [each for each in PROVIDERS[operation] if each.name == name]
    return found


def attention(q, k_cache, v_cache, lengths, *, window_left=-1, softcap=None):
    window = None if window_left < 0 else window_left + 1
    output, _ = reference.decode_attention(
        q, k_cache, v_cache, lengths.to(torch.int32), window=window, softcap=softcap or None
    )
    return output.to(q.dtype)


class Wrapper:
    """FlashInfer's, over pages [page, kv head, token, element]; it splits a sequence between pages."""

    plans: typing.ClassVar = []

    def __init__(self, workspace, layout, *, use_tensor_cores):
        assert workspace.dtype == torch.uint8
        assert layout == "HND"
        self.tensor_cores, self.workspace = use_tensor_cores, workspace

    def plan(
        self,
        indptr,
        indices,
        last_page_len,
        q_heads,
        kv_heads,
        head_dim,
        page_size,
        *,
        window_left,
        logits_soft_cap,
        **dtypes,
    ):
        self.plans.append(self)
        self.options = {"window_left": window_left, "softcap": logits_soft_cap}
        assert indptr.dtype == indices.dtype == last_page_len.dtype == torch.int32
        assert dtypes == {"q_data_type": torch.bfloat16, "kv_data_type": torch.bfloat16}
        self.indptr, self.indices, self.last = indptr.tolist(), indices.long(), last_page_len.tolist()
        self.shape = (q_heads, kv_heads, head_dim, page_size)

    def run(self, q, cache):
        q_heads, kv_heads, head_dim, page_size = self.shape
        assert q.shape == (len(self.last), q_heads, head_dim)
        outs = []
        for row, last in enumerate(self.last):
            pages = self.indices[self.indptr[row] : self.indptr[row + 1]]
            length = max(len(pages) - 1, 0) * page_size + last
            assert 0 <= last <= page_size
            assert length <= len(pages) * page_size
            k, v = (part[pages].transpose(1, 2).reshape(1, -1, kv_heads, head_dim) for part in cache)
            outs.append(attention(q[row : row + 1], k, v, torch.tensor([length]), **self.options))
        return torch.cat(outs)


def with_kvcache(q, k_cache, v_cache, *, cache_seqlens, window_size, softcap):
    left, right = window_size
    assert right == -1
    assert q.dim() == 4
    assert q.shape[1] == 1
    found = attention(q[:, 0], k_cache, v_cache, cache_seqlens, window_left=left, softcap=softcap)
    return found[:, None]


def flash_attn_func(q, k, v, *, causal, window_size, softcap):
    """Causal, as the library: [batch, tokens, heads, head_dim]."""
    assert causal
    assert window_size[1] == -1
    window = None if window_size[0] < 0 else window_size[0] + 1
    out, _ = reference.prefill_attention(q, k, v, window=window, softcap=softcap or None)
    return out.to(q.dtype)


def flex(q, k, v, *, enable_gqa, block_mask=None):
    assert enable_gqa
    assert (q.shape[2] == 1) == (block_mask is None)
    positions = torch.arange(k.shape[2])
    seen = None if block_mask is None else block_mask.mask_mod(0, 0, positions[:, None], positions)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
    monkeypatch.setattr(Wrapper, "plans", [])
    library_providers._planned.cache_clear()
    monkeypatch.setitem(
        sys.modules, "flashinfer", types.SimpleNamespace(BatchDecodeWithPagedKVCacheWrapper=Wrapper)
    )
    monkeypatch.setitem(
        sys.modules,
        "flash_attn",
        types.SimpleNamespace(flash_attn_with_kvcache=with_kvcache, flash_attn_func=flash_attn_func),
    )
    monkeypatch.setattr(library_providers, "_compiled_flex_attention", lambda: flex)
    monkeypatch.setattr(library_providers, "WORKSPACE_BYTES", 16)


OPTIONS = {"plain": {}, "window": {"window": 5}, "softcap": {"softcap": 1.0}}


def takes(found, case):
    """Whether a library takes a case's options."""
    return not (found.refuses(case, FakeDevice()) or "").startswith("does not take")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", LIBRARIES)
def test_library_is_called_as_documented_and_passes_the_gate(name, options):
    case, found = structs.replace(CASE, **options), provider(name)
    assert takes(found, case) == (name != "torch-flex" or "softcap" not in options)
    if takes(found, case):
        inputs = draw(case, source())
        gate = gate_of(case, inputs)
        assert gate.judge(found.bind(inputs)()).passed
        assert gate.judge(found.run(inputs)).passed


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", ["flash-attn", "torch-flex"])
def test_prefill_library_is_called_as_documented_and_passes_the_gate(name, options):
    case, found = structs.replace(PROMPT, **options), provider(name, "prefill_attention")
    assert takes(found, case) == (name != "torch-flex" or "softcap" not in options)
    if takes(found, case):
        inputs = draw(case, source())
        assert gate_of(case, inputs).judge(found.bind(inputs)()).passed
        assert found.refuses(case, FakeDevice()) == f"{LIBRARY_NAMES[name]} needs a CUDA GPU"


@pytest.mark.parametrize("options", [{"sinks": True}, {"v_head_dim": 8}])
@pytest.mark.parametrize("name", LIBRARIES)
def test_library_refuses_an_option_that_it_lacks(name, options):
    assert not takes(provider(name), structs.replace(CASE, **options))


def test_prefill_mask_of_flex_attention_leaves_out_blocks_above_the_diagonal():
    mask = library_providers._causal_blocks(512, 512, torch.device("cpu"))
    assert mask.to_dense()[0, 0].tolist() == torch.ones(4, 4).tril().tolist()
    windowed = library_providers._causal_blocks(512, 129, torch.device("cpu"))
    assert windowed.to_dense()[0, 0].tolist() == torch.ones(4, 4).tril().triu(-1).tolist()


def test_flashinfer_is_planned_once_for_all_copies_of_a_case():
    for _ in range(3):
        call = provider("flashinfer").bind(draw(CASE, source()))
        call()
        call()
    assert len(Wrapper.plans) == 1
    provider("flashinfer").bind(draw(structs.replace(CASE, contexts=(37, 36, 37)), source()))
    assert len(Wrapper.plans) == 2


@pytest.mark.parametrize(
    ("contexts", "page_size", "pages"),
    [
        ((8192,), 16, [512]),
        ((48, 33, 1, 0, 16), 16, [3, 3, 1, 0, 1]),
        ((40, 39), 8, [5, 5]),
        ((37, 5), 1, [37, 5]),
    ],
    ids=str,
)
def test_flashinfer_reads_pages_that_it_can_split_between(contexts, page_size, pages):
    case = structs.replace(CASE, contexts=contexts)
    inputs = draw(case, source())
    call = provider("flashinfer").bind(inputs)
    assert gate_of(case, inputs).judge(call()).passed
    [wrapper] = Wrapper.plans
    assert wrapper.shape[-1] == page_size
    assert [end - start for start, end in itertools.pairwise(wrapper.indptr)] == pages


@pytest.mark.parametrize(("group", "tensor_cores"), [(1, False), (3, False), (4, True), (7, True)])
def test_flashinfer_uses_tensor_cores_for_large_groups(group, tensor_cores):
    provider("flashinfer").bind(draw(structs.replace(CASE, q_heads=2 * group), source()))
    assert Wrapper.plans[0].tensor_cores == tensor_cores


@pytest.fixture
def compiled_contexts(monkeypatch):
    """The contexts for which `flex` was compiled in place of FlexAttention, by PyTorch's real compiler."""
    contexts, plain = [], torch.compile

    def backend(graph, inputs):
        contexts.append(inputs[1].shape[2])
        return graph.forward

    monkeypatch.setattr(torch.nn.attention.flex_attention, "flex_attention", flex)
    monkeypatch.setattr(torch, "compile", lambda *args, **options: plain(*args, **options, backend=backend))
    monkeypatch.setattr(library_providers, "_compiled_flex_attention", functools.cache(COMPILED))
    torch._dynamo.reset()
    yield contexts
    torch._dynamo.reset()


def flex_case(context):
    return decode_case(dtype="bf16", context=context, batch=1, group=2)


def test_flex_attention_is_compiled_for_every_shape(compiled_contexts):
    for context in range(3, 13):
        inputs = draw(flex_case(context), source())
        call = provider("torch-flex").bind(inputs)
        assert gate_of(flex_case(context), inputs).judge(call()).passed
    assert compiled_contexts == list(range(3, 13))


def test_flex_attention_that_would_run_eagerly_is_unsupported(compiled_contexts, monkeypatch):
    monkeypatch.setattr(library_providers, "MAX_SHAPES", 2)
    rows = [rows_of(monkeypatch, provider("torch-flex"), case=flex_case(context))[0] for context in (3, 4, 5)]
    assert [row.status for row in rows] == ["ok", "ok", "unsupported"]
    assert "recompile limit" in rows[-1].reason
    assert compiled_contexts == [3, 4]


@pytest.mark.parametrize(("name", "library"), LIBRARIES.items())
def test_missing_library_gpu_or_dtype_is_the_reason(name, library, monkeypatch):
    refuses = provider(name).refuses
    gpu = FakeDevice(kind="cuda")
    library = LIBRARY_NAMES.get(name, library)
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
    assert len(Wrapper.plans) == 1 < row.input_copies


def test_outputs_are_poisoned_after_planning(monkeypatch):
    case = matmul_case()

    def bind(inputs):
        torch.matmul(inputs.x, inputs.weight.t(), out=inputs.out)
        return lambda: inputs.out  # computes nothing any more

    lazy = Provider(name="lazy", run=lambda inputs: inputs.out, bind=bind)
    [row] = rows_of(monkeypatch, lazy, case=case)
    assert row.status == "failed"
