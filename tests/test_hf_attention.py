"""The decode kernel inside Hugging Face models: the page's own code gives the tokens of eager attention."""

import importlib
import inspect
import sys

import pytest
import torch
from test_docs_examples import block

PAGE = "docs/extending.md"
SIZES = {
    "hidden_size": 36,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "vocab_size": 97,
    "initializer_range": 0.5,
    "eos_token_id": None,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "tie_word_embeddings": False,
}
MODELS = {
    "llama": ("LlamaConfig", {}),
    "gpt-oss": ("GptOssConfig", {"num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 4}),
    "gemma2": (
        "Gemma2Config",
        {"sliding_window": 4, "attn_logit_softcapping": 3.0, "query_pre_attn_scalar": 7},
    ),
}
PADDED = torch.tensor([[5, 17, 42, 8, 61], [0, 0, 77, 31, 2], [0, 0, 9, 54, 30]])


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture
def imported(monkeypatch, tmp_path, transformers):
    """Imports the page's hf_attention.py, which may be changed first."""
    assert transformers
    monkeypatch.syspath_prepend(tmp_path)

    def from_text(change=lambda text: text):
        text = change(block(PAGE, "hf_attention.py"))
        (tmp_path / "hf_attention.py").write_text(text, encoding="utf-8")
        importlib.invalidate_caches()
        sys.modules.pop("hf_attention", None)
        return importlib.import_module("hf_attention")

    yield from_text
    sys.modules.pop("hf_attention", None)


@pytest.fixture
def launches(monkeypatch):
    """The caches that each launch has got, and its number of sequences."""
    found = []

    def watch(module):
        real = module.decode_attention

        def recorded(q, k_cache, v_cache, *arguments, **options):
            found.append((len(q), k_cache, v_cache))
            return real(q, k_cache, v_cache, *arguments, **options)

        monkeypatch.setattr(module, "decode_attention", recorded)
        return found

    return watch


def generated(transformers, model, implementation, prompts, *, new_tokens=6, cache=None, seed=0):
    """Greedy tokens of a model with random weights: the same ones for each implementation."""
    name, options = MODELS[model]
    config = getattr(transformers, name)(**SIZES, **options)
    torch.manual_seed(seed)
    language_model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    language_model.set_attn_implementation(implementation)
    parameters = inspect.signature(language_model.forward).parameters
    name = "cache" if "cache" in parameters else "past_key_values"  # the older name
    caches = {
        None: {},
        "uncut": {name: transformers.DynamicCache()},
        "static": {"cache_implementation": "static"},
    }
    whole = language_model.generate(
        prompts, attention_mask=prompts != 0, max_new_tokens=new_tokens, do_sample=False, **caches[cache]
    )
    return whole[:, prompts.shape[1] :]


@pytest.mark.slow
def test_the_example_prints_what_the_page_says(imported, capsys):
    imported()
    exec(block(PAGE, "same_tokens.py"), {})  # noqa: S102  (the page's own lines)
    assert capsys.readouterr().out == block(PAGE, "llama same tokens")


@pytest.mark.slow
@pytest.mark.parametrize("cache", [None, "uncut", "static"])
@pytest.mark.parametrize("model", MODELS)
def test_decode_gives_the_tokens_of_eager_attention(transformers, imported, launches, model, cache):
    found = launches(imported())
    expected = generated(transformers, model, "eager", PADDED, cache=cache)
    assert not found
    assert torch.equal(generated(transformers, model, "decodetax", PADDED, cache=cache), expected)
    assert {sequences for sequences, *_ in found} <= {1, 2, 3}
    assert sum(sequences for sequences, *_ in found) == len(PADDED) * SIZES["num_hidden_layers"] * 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "right", "wrong"),
    [
        ("gpt-oss", 'options.get("s_aux")', "None"),
        ("gemma2", 'options.get("softcap")', "None"),
        ("gemma2", 'options.get("scaling")', "None"),
        ("llama", "q[rows]", "q[rows].unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2)"),
        ("llama", "cache[rows, start:]", "cache[rows]"),
        ("llama", "context_lens[rows]", "context_lens[rows] - 1"),
        ("gpt-oss", "first.flatten().tolist(), count.flatten()", "[0] * batch, (first + count).flatten()"),
    ],
    ids=["sinks", "softcap", "scale", "group", "first", "length", "window"],
)
def test_a_planted_fault_changes_the_tokens(transformers, imported, model, right, wrong):
    prompts = PADDED[:1] if wrong.startswith("[0]") else PADDED  # one prompt: only the window is lost

    def changed(text):
        assert right in text
        return text.replace(right, wrong)

    expected = generated(transformers, model, "eager", prompts, cache="uncut")
    imported(changed)
    assert not torch.equal(generated(transformers, model, "decodetax", prompts, cache="uncut"), expected)


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_the_cache_is_not_copied_and_equal_padding_shares_a_launch(imported, launches):
    module = imported()
    found = launches(module)
    query, key, value = drawn(3, 4, 1, 16), drawn(3, 2, 9, 16), drawn(3, 2, 9, 24)
    dead = torch.finfo(torch.float32).min
    mask = torch.zeros(3, 1, 1, 9)
    mask[1:, ..., :4] = dead
    out, _ = module.attention(None, query, key, value, mask, scaling=0.3)
    scores = 0.3 * query @ key.repeat_interleave(2, dim=1).mT + mask
    expected = scores.softmax(-1) @ value.repeat_interleave(2, dim=1)
    torch.testing.assert_close(out, expected.transpose(1, 2))
    assert [sequences for sequences, *_ in found] == [1, 2]
    for _, k_cache, v_cache in found:
        assert k_cache.untyped_storage().data_ptr() == key.untyped_storage().data_ptr()
        assert v_cache.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()


def test_no_mask_means_all_tokens(imported):
    module = imported()
    tensors = drawn(2, 4, 1, 16), drawn(2, 4, 5, 16), drawn(2, 4, 5, 16)
    out, _ = module.attention(None, *tensors, None)
    masked, _ = module.attention(None, *tensors, torch.zeros(2, 1, 1, 5))
    assert torch.equal(out, masked)


@pytest.mark.parametrize("kind", ["hole", "bias", "heads"])
def test_masks_that_are_not_one_run_are_refused(imported, kind):
    mask = torch.zeros(2, 4 if kind == "heads" else 1, 1, 5)
    dead = torch.finfo(torch.float32).min
    if kind == "hole":  # a prompt that is padded on the right, after two decode steps
        mask[1, ..., 2:3] = dead
    elif kind == "bias":
        mask[0, ..., 1] = -0.5
    else:
        mask[:, 3, :, 0] = dead
    with pytest.raises(ValueError, match=r"^attention_mask must let each query attend to one run of tokens"):
        imported().attention(None, drawn(2, 4, 1, 16), drawn(2, 4, 5, 16), drawn(2, 4, 5, 16), mask)


def test_a_position_bias_is_refused(imported):
    tensors = drawn(2, 4, 1, 16), drawn(2, 4, 5, 16), drawn(2, 4, 5, 16)
    with pytest.raises(ValueError, match=r"^position_bias is not supported$"):
        imported().attention(None, *tensors, None, position_bias=torch.zeros(1, 4, 1, 5))


def test_training_keeps_gradients(imported, transformers):
    imported()
    config = transformers.LlamaConfig(**SIZES)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="decodetax")
    model(torch.tensor([[7]])).logits.sum().backward()
    assert model.model.layers[0].self_attn.k_proj.weight.grad is not None
