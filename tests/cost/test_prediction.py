"""The modelled cost of tokens: sums, limits, directions, and arithmetic by hand."""

import itertools
import math
from dataclasses import replace

import pytest
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.formats import CACHE_FORMATS, FORMATS
from decodetax.harness.core.gpus import find_gpu, gpu_table
from decodetax.harness.core.language_model import load_language_model, preset_table
from decodetax.harness.core.parallelism import Parallelism
from decodetax.harness.cost.all_reduce_time import all_reduce_time
from decodetax.harness.cost.attention_parts import Attention
from decodetax.harness.cost.attention_time import decode_attention_time, prefill_attention_time
from decodetax.harness.cost.deployment import Deployment
from decodetax.harness.cost.forward import decode_forward, prefill_forward
from decodetax.harness.cost.kernel_constants import constants_for
from decodetax.harness.cost.memory import resident_weight_bytes
from decodetax.harness.cost.memory_fit import largest_batch
from decodetax.harness.cost.mla_time import mla_decode_time
from decodetax.harness.cost.part_time import (
    COMPONENTS,
    SMALL_KERNEL_S,
    attention_time,
    communication_s,
    experts_time,
    matmul_time,
)
from decodetax.harness.cost.parts import Elementwise, RoutedExperts
from decodetax.harness.cost.prediction import (
    break_even_batch,
    output_split_s,
    predict,
)
from hand_made import decoder

LLAMA = load_language_model("llama-3.1-8b")
SMALL = load_language_model("llama-3.2-1b")
WINDOWED = load_language_model("gemma-2-9b")
MIXTURE = load_language_model("qwen3-30b-a3b")
GPUS = list(gpu_table())
DTYPES = ["bf16", "fp8", "int8", "int4"]
PRESETS = [row["model"] for row in preset_table()]


def stored(name, model=LLAMA):
    return model.with_formats(FORMATS[name])


def with_layers(model, changes):
    """The model with changed fields of each group of layers."""
    groups = tuple(replace(group, **changes(group)) for group in model.layer_groups)
    return replace(model, layer_groups=groups)


def deployed(gpu="h100", *, datasheet=None, tensor_parallel=1, cache_dtype="bf16", **changes):
    """On one GPU with a cache in bf16; `datasheet` changes figures of the GPU."""
    return Deployment(
        **{
            "gpu": replace(find_gpu(gpu), **(datasheet or {})),
            "parallelism": Parallelism(tensor_parallel=tensor_parallel),
            "cache_format": CACHE_FORMATS[cache_dtype],
            "usd_per_hour": None,
            **changes,
        }
    )


def predicted(model=LLAMA, on=None, **changes):
    asked = {"batch": 8, "context": 1024, "prompt": 1024, "price_ratio": 4.0, **changes}
    return predict(model, on or deployed(), **asked)


def output_s(model=LLAMA, on=None, **changes):
    return predicted(model, on, **changes).output_s_per_token


# Sums.


@pytest.mark.parametrize(
    ("model", "on", "asked"),
    [
        pytest.param(LLAMA, deployed(), {}, id="dense"),
        pytest.param(stored("fp8"), deployed(tensor_parallel=2), {"batch": 100}, id="two GPUs"),
        pytest.param(WINDOWED, deployed(), {"context": 5000, "prompt": 9000}, id="windows"),
        pytest.param(MIXTURE, deployed(), {"prompt": 3000}, id="mixture"),
        pytest.param(
            stored("fp8", load_language_model("deepseek-v3")),
            deployed("b200", tensor_parallel=8),
            {"prompt": 100},
            id="latent",
        ),
    ],
)
def test_splits_add_up_to_the_parts_of_the_forwards(model, on, asked):
    found = predicted(model, on, **asked)
    for split in (found.input_split_s, found.output_split_s):
        assert tuple(split) == COMPONENTS
        assert all(math.isfinite(value) and value >= 0 for value in split.values())
    assert found.output_s_per_token == math.fsum(found.output_split_s.values())
    assert found.input_s_per_token == math.fsum(found.input_split_s.values())

    def part_s(part):
        if isinstance(part, Elementwise):
            share = constants_for(on.gpu).gemm["bf16"].memory_share
            moved_s = part.activation_bytes / (share * on.gpu.bandwidth_bytes_per_s)
            return part.times * (moved_s + part.kernels * SMALL_KERNEL_S)
        times = {Attention: attention_time, RoutedExperts: experts_time}
        return part.times * times.get(type(part), matmul_time)(part, on).time_s

    step = decode_forward(model, batch=found.batch, context=found.context, parallelism=on.parallelism)
    step_s = sum(map(part_s, step.parts)) + communication_s(step, on)
    assert found.output_s_per_token * found.batch == pytest.approx(step_s, rel=1e-9)

    # As many whole prompts as 8192 tokens hold; a longer one takes forwards of 8192.
    prompts = max(1, 8192 // found.prompt)
    rows = 8192 if found.prompt > 8192 else prompts * found.prompt
    forward = prefill_forward(
        model, sequences=prompts, prompt=found.prompt, rows=rows, parallelism=on.parallelism
    )
    attention = attention_of(forward)
    [head] = [part for part in forward.parts if part.name == "lm_head"]
    others = [part for part in forward.parts if part not in [*attention, head]]
    by_hand = (
        sum(map(part_s, attention)) / (prompts * found.prompt)
        + part_s(head) / (prompts * found.prompt)
        + (sum(map(part_s, others)) + communication_s(forward, on)) / rows
    )
    assert found.input_s_per_token == pytest.approx(by_hand, rel=1e-9)


def attention_of(forward):
    return [part for part in forward.parts if isinstance(part, Attention)]


def test_decode_attention_is_timed_by_the_heads_and_bytes_of_one_gpu():
    # 16 query heads on 4 KV heads; 8 x 1024 tokens of 4 x 2 x 128 bytes.
    on = deployed(tensor_parallel=2, cache_dtype="fp8")
    [part] = attention_of(predicted(on=on).decode)
    assert attention_time(part, on) == decode_attention_time(
        on.gpu,
        sequences=8,
        kv_heads=4,
        kv_bytes=8 * 1024 * 1024,
        operations=4 * 8 * 1024 * 16 * 128,
        dtype="fp8",
        group=4,
    )


def test_a_projection_with_a_format_of_its_own_is_read_in_it():
    group = LLAMA.layer_groups[0]
    formats = replace(group.formats, projections=(("attention o", FORMATS["int4"]),))
    mixed = replace(LLAMA, layer_groups=(replace(group, formats=formats),))
    parts = {part.name: part for part in predicted(mixed).decode.parts if hasattr(part, "weight_format")}
    assert (parts["o"].weight_format.name, parts["qkv"].weight_format.name) == ("int4", "bf16")
    assert resident_weight_bytes(mixed) == resident_weight_bytes(LLAMA) - 32 * 4096 * 4096 * (2 - 0.515625)


def test_a_cache_with_scales_is_read_as_one_of_8_bits():
    [part] = [p for p in predicted(on=deployed(cache_dtype="int8")).decode.parts if isinstance(p, Attention)]
    [other] = [p for p in predicted(on=deployed(cache_dtype="fp8")).decode.parts if isinstance(p, Attention)]
    times = [attention_time(each, deployed()).time_s for each in (part, other)]
    assert times[1] < times[0] < times[1] * (1 + 4 / 128)


def test_latent_decode_attention_is_timed_by_its_own_kernel():
    model, on = stored("fp8", load_language_model("deepseek-v3")), deployed("b200", tensor_parallel=8)
    [part] = attention_of(predicted(model, on, batch=2, context=1000).decode)
    assert attention_time(part, on) == mla_decode_time(
        on.gpu,
        sequences=2,
        q_heads=16,
        kv_bytes=2 * 1000 * 576 * 2,
        operations=2 * 2 * 1000 * 16 * (576 + 512),
        dtype="bf16",
    )


def test_window_scales_prefill_attention_by_its_share_of_the_pairs():
    windowed, whole = attention_of(prefill_forward(WINDOWED, sequences=1, prompt=8192, rows=8192))
    on = deployed()
    full = attention_time(whole, on)
    assert full == prefill_attention_time(
        on.gpu, sequences=1, q_heads=16, kv_heads=8, head_dim=256, prompt=8192
    )
    # Half of the prompt is a window's: all its pairs, then 4096 tokens with 4096 pairs each.
    pairs = 4096 * 4097 // 2 + 4096 * 4096
    found = attention_time(windowed, on)
    assert found.fixed_s == full.fixed_s
    assert found.time_s - full.fixed_s == pytest.approx(
        (full.time_s - full.fixed_s) * pairs / (8192 * 8193 // 2)
    )
    short = attention_of(prefill_forward(WINDOWED, sequences=2, prompt=4096, rows=8192))
    assert attention_time(short[0], on) == attention_time(short[1], on)


def test_gap_is_output_over_input():
    found = predicted()
    assert found.gap == found.output_s_per_token / found.input_s_per_token
    by_hand = replace(
        found, input_split_s={"weights": 1.0, "launch": 1.0}, output_split_s={"weights": 3.0, "launch": 2.0}
    )
    assert by_hand.gap == 2.5
    assert by_hand.to_json()["gap"] == 2.5


def test_bound_is_the_component_that_takes_the_most_time():
    found = replace(
        predicted(),
        input_split_s={"weights": 1.0, "matmul_arithmetic": 2.0, "launch": 1.5},
        output_split_s={"weights": 1.0, "kv_cache": 2.0, "launch": 3.0},
    ).to_json()
    assert (found["input_bound"], found["bound"]) == ("matmul_arithmetic", "launch")


def test_short_contexts_are_bound_by_weights_and_long_ones_by_the_cache():
    assert predicted(batch=2).to_json()["bound"] == "weights"
    assert predicted(batch=16, context=20_000).to_json()["bound"] == "kv_cache"
    assert predicted().to_json()["input_bound"] == "matmul_arithmetic"


def test_only_several_gpus_need_all_reduces():
    assert predicted().output_split_s["communication"] == 0
    on = deployed(tensor_parallel=2)
    found = predicted(on=on)

    def reduced_s(rows):
        return all_reduce_time(on.gpu, gpus=2, reduced_bytes=rows * 4096 * 2, how="vllm_graph").time_s

    # 2 all-reduces in each of 32 layers, of a row of 4096 elements a token.
    assert found.output_split_s["communication"] == pytest.approx(64 * reduced_s(8) / 8)
    assert found.input_split_s["communication"] == pytest.approx(64 * reduced_s(8192) / 8192)


def test_a_stated_latency_takes_the_place_of_the_calibrated_one():
    times = [
        predicted(on=deployed(tensor_parallel=2, all_reduce_latency_s=latency_s)).output_split_s
        for latency_s in (10e-6, 30e-6)
    ]
    assert times[1]["communication"] - times[0]["communication"] == pytest.approx(64 * 20e-6 / 8)


# Memory.


@pytest.mark.parametrize(
    ("model", "changes", "context", "weight_bytes", "cache_bytes"),
    [
        pytest.param(LLAMA, {}, 1024, 2 * 8_030_261_248, 131072 * 1024, id="bf16"),
        pytest.param(stored("int4"), {}, 1024, None, 131072 * 1024, id="int4 weights"),
        pytest.param(LLAMA, {"cache_dtype": "fp8"}, 1000, 2 * 8_030_261_248, 65536 * 1000, id="fp8 cache"),
        pytest.param(LLAMA, {"tensor_parallel": 4}, 1024, 8_030_261_248 / 2, 32768 * 1024, id="four GPUs"),
        # 21 layers keep 10000 tokens and 21 the last 4096; 2 x 8 x 256 elements each.
        pytest.param(
            WINDOWED, {}, 10_000, 2 * WINDOWED.parameters, 21 * (10_000 + 4096) * 4096 * 2, id="windows"
        ),
    ],
)
def test_largest_batch_is_what_fits_beside_the_weights(model, changes, context, weight_bytes, cache_bytes):
    on = deployed(**changes)
    found = largest_batch(model, on, context=context)
    usable = 0.9 * 80 * 2**30
    kept = resident_weight_bytes(model, parallelism=on.parallelism)
    norms = 2 * 65 * 4096 * (on.gpus - 1) / on.gpus
    weight_bytes = kept if weight_bytes is None else weight_bytes + norms
    assert kept == weight_bytes
    assert weight_bytes + found * cache_bytes <= usable < weight_bytes + (found + 1) * cache_bytes
    asked = {"context": context, "prompt": context}
    assert predicted(model, on, batch=found, **asked).largest_batch == found
    with pytest.raises(UsageError, match=rf"^--batch: {found + 1} sequences .* of this context is {found}, "):
        predicted(model, on, batch=found + 1, **asked)


def test_rejects_model_that_does_not_fit():
    with pytest.raises(UsageError) as caught:
        predicted(load_language_model("llama-3.1-70b"))
    assert str(caught.value) == (
        "--gpu: llama-3.1-70b, 70.6 B parameters in bf16, does not fit H100-SXM5-80GB: "
        "weights of 131.4 GiB a GPU, beside a cache of 2.5 GiB; 72.0 GiB usable, 90% of 80.0 GiB; "
        "no batch and no context fits; tensor parallelism of 2 is enough"
    )
    assert largest_batch(load_language_model("llama-3.1-70b"), deployed(), context=1) == 0


# The break-even batch.


def gaps(model, on, context, largest):
    asked = {"context": context, "prompt": context}
    input_s = predicted(model, on, batch=1, **asked).input_s_per_token
    return [
        math.fsum(output_split_s(model, on, batch=batch, context=context).values()) / input_s
        for batch in range(1, largest + 1)
    ]


@pytest.mark.parametrize("ratio", [1.5, 3, 4, 8, 20, 100, 1000], ids=str)
@pytest.mark.parametrize(
    ("model", "gpu", "dtype", "context"),
    [
        pytest.param(LLAMA, "h100", "bf16", 1024, id="llama-3.1-8b, H100"),
        pytest.param(LLAMA, "a100", "int4", 256, id="llama-3.1-8b, A100, int4"),
        pytest.param(MIXTURE, "h200", "fp8", 1024, id="qwen3-30b-a3b, H200, fp8"),
    ],
)
def test_break_even_batch_reaches_the_ratio_and_one_less_does_not(model, gpu, dtype, context, ratio):
    model, on = stored(dtype, model), deployed(gpu)
    asked = {"context": context, "prompt": context, "price_ratio": ratio}
    found = predicted(model, on, batch=1, **asked)
    at = found.break_even_batch
    if at is None:
        assert predicted(model, on, **{**asked, "batch": found.largest_batch}).gap > ratio
        return
    assert 1 <= at <= found.largest_batch
    assert predicted(model, on, **{**asked, "batch": at}).gap <= ratio
    assert at == 1 or predicted(model, on, **{**asked, "batch": at - 1}).gap > ratio


def test_break_even_batch_is_1_if_every_batch_reaches_the_ratio():
    assert predicted(price_ratio=1e6).break_even_batch == 1


@pytest.mark.parametrize("context", [1024, 4096], ids=["ratio too low", "memory too small"])
def test_no_break_even_batch_if_none_that_fits_reaches_the_ratio(context):
    asked = {"context": context, "prompt": context, "price_ratio": 3.0}
    found = predicted(**asked)
    assert found.break_even_batch is None
    assert min(gaps(LLAMA, deployed(), context, found.largest_batch)) > 3.0
    assert (
        break_even_batch(LLAMA, deployed(), context=context, prompt=context, price_ratio=1e9, largest=0)
        is None
    )


@pytest.mark.parametrize(
    ("model", "gpu", "dtype", "context"),
    [
        pytest.param(LLAMA, "h100", "bf16", 1024, id="llama-3.1-8b, H100"),
        pytest.param(LLAMA, "a100", "int4", 1024, id="llama-3.1-8b, A100, int4"),
        pytest.param(LLAMA, "a10", "int4", 1024, id="llama-3.1-8b, A10, int4"),
        pytest.param(WINDOWED, "h100", "bf16", 1024, id="gemma-2-9b, H100"),
    ],
)
def test_no_smaller_batch_than_the_break_even_reaches_the_ratio(model, gpu, dtype, context):
    # A batch that takes one tile more than the last can cost more a token: 65, 129, 193 rows.
    model, on = stored(dtype, model), deployed(gpu)
    largest = largest_batch(model, on, context=context)
    by_batch = gaps(model, on, context, largest)
    wrong = {}
    for ratio in (low + step / 20 for low in range(2, 10) for step in range(20)):
        smallest = next((batch for batch, gap in enumerate(by_batch, 1) if gap <= ratio), None)
        found = break_even_batch(
            model, on, context=context, prompt=context, price_ratio=ratio, largest=largest
        )
        if found != smallest:
            wrong[ratio] = {"found": found, "smallest": smallest}
    assert wrong == {}


@pytest.mark.parametrize("gpu", ["h100", "a10", "t4", "b200"])
@pytest.mark.parametrize(
    "model", [decoder(), SMALL, load_language_model("qwen3-0.6b")], ids=lambda each: each.name
)
def test_gap_falls_with_each_doubling_of_the_batch(model, gpu):
    found = [predicted(model, deployed(gpu), batch=2**power, context=64).gap for power in range(11)]
    assert all(later < earlier for earlier, later in itertools.pairwise(found)), found


# Directions.


FASTER = {
    "more bandwidth": (deployed(), deployed(datasheet={"bandwidth_bytes_per_s": 2 * 3.35e12})),
    "fp8 cache": (deployed(), deployed(cache_dtype="fp8")),
    "int8 cache": (deployed(), deployed(cache_dtype="int8")),
    "int4 cache": (deployed(cache_dtype="fp8"), deployed(cache_dtype="int4")),
    "more GPUs": (deployed(), deployed(tensor_parallel=2)),
    "faster link": (
        deployed(tensor_parallel=2),
        deployed(tensor_parallel=2, datasheet={"link_bytes_per_s": 900e9}),
    ),
    "shorter latency": (
        deployed(tensor_parallel=2),
        deployed(tensor_parallel=2, all_reduce_latency_s=1e-6),
    ),
}


@pytest.mark.parametrize("change", FASTER)
def test_output_token_costs_less_time_with(change):
    slow, fast = FASTER[change]
    assert output_s(on=fast, batch=16, context=4096) < output_s(on=slow, batch=16, context=4096)


@pytest.mark.parametrize(("slow", "fast"), [("bf16", "int8"), ("int8", "int4"), ("bf16", "fp8")])
def test_output_token_costs_less_time_with_narrower_weights(slow, fast):
    slow_s, fast_s = (output_s(stored(name), batch=16, context=4096) for name in (slow, fast))
    assert fast_s < slow_s


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_1_is_bound_by_weights_in_any_dtype(dtype):
    # 2 operations for each weight that is read, where an H100 does hundreds for each byte.
    found = predicted(stored(dtype), batch=1)
    assert found.to_json()["bound"] == "weights"


@pytest.mark.parametrize("dtype", ["fp8", "int8"])
def test_half_the_weight_bytes_take_half_the_time_at_batch_1(dtype):
    fewer, whole = (predicted(stored(each), batch=1) for each in (dtype, "bf16"))
    ratio = fewer.output_split_s["weights"] / whole.output_split_s["weights"]
    assert ratio == pytest.approx(0.5, rel=0.15)
    assert fewer.output_split_s["kv_cache"] == whole.output_split_s["kv_cache"]
    assert fewer.largest_batch > whole.largest_batch


def test_half_the_cache_bytes_take_half_the_time_at_a_long_context():
    asked = {"batch": 4, "context": 65_536}
    half, whole = (
        predicted(on=deployed(cache_dtype=dtype), **asked).output_split_s for dtype in ("fp8", "bf16")
    )
    assert half["kv_cache"] / whole["kv_cache"] == pytest.approx(0.5, rel=0.15)
    assert half["weights"] == whole["weights"]


def test_narrow_weights_multiplied_in_bf16_narrow_the_gap():
    found = [predicted(stored(dtype), batch=1) for dtype in ("bf16", "int8", "int4")]
    assert all(later.gap < earlier.gap for earlier, later in itertools.pairwise(found))
    assert all(later.input_s_per_token > 0.95 * found[0].input_s_per_token for later in found)


def test_higher_rate_makes_input_cheaper_and_the_gap_wider():
    rates = find_gpu("h100").flop_per_s
    twice = deployed(datasheet={"flop_per_s": {**rates, "bf16": 2 * rates["bf16"]}})
    assert predicted(on=twice).input_s_per_token < 0.6 * predicted().input_s_per_token
    assert predicted(on=twice, batch=1).gap > 1.5 * predicted(batch=1).gap


@pytest.mark.parametrize("model", [LLAMA, MIXTURE, WINDOWED], ids=lambda each: each.name)
def test_longer_context_costs_an_output_token_more(model):
    found = [output_s(model, context=context, batch=1) for context in (128, 1024, 8192, 65_536)]
    assert found == sorted(set(found))


def test_longer_prompt_costs_an_input_token_more_attention():
    found = [
        predicted(prompt=prompt).input_split_s["attention_arithmetic"] for prompt in (1024, 8192, 65_536)
    ]
    assert found == sorted(set(found))


def test_input_token_depends_on_the_prompt_only_and_output_token_on_the_context_only():
    first, longer, prompted = predicted(), predicted(context=2048), predicted(prompt=2048)
    assert longer.input_split_s == first.input_split_s
    assert prompted.output_split_s == first.output_split_s


def test_window_caps_what_a_context_costs():
    full = with_layers(WINDOWED, lambda group: {"attention": replace(group.attention, window=None)})
    asked = {"batch": 1, "context": 65_536, "prompt": 65_536}
    windowed, whole = predicted(WINDOWED, **asked), predicted(full, **asked)
    assert windowed.output_split_s["kv_cache"] < 0.7 * whole.output_split_s["kv_cache"]
    assert windowed.input_s_per_token < whole.input_s_per_token
    below = {"batch": 1, "context": 4096, "prompt": 4096}
    assert output_s(WINDOWED, **below) == pytest.approx(output_s(full, **below))


def test_mixture_reads_few_experts_at_batch_1_and_more_in_a_batch():
    everyone = with_layers(MIXTURE, lambda group: {"mlp": replace(group.mlp, per_token=128)})
    one, all_of_one = (predicted(model, batch=1).output_split_s["weights"] for model in (MIXTURE, everyone))
    assert one < 0.3 * all_of_one
    many, all_of_many = (
        predicted(model, batch=64, context=64).output_split_s["weights"] for model in (MIXTURE, everyone)
    )
    assert 0.75 * all_of_many < many < all_of_many
    alone = with_layers(MIXTURE, lambda group: {"mlp": replace(group.mlp, count=1, per_token=1)})
    assert output_s(alone) < output_s(MIXTURE)


def test_fp8_weights_cost_as_int8_ones_where_the_gpu_cannot_multiply_them():
    found = [predicted(stored(dtype), deployed("a100"), batch=32) for dtype in ("fp8", "int8")]
    assert found[0].output_s_per_token == found[1].output_s_per_token
    assert found[0].input_s_per_token == found[1].input_s_per_token


@pytest.mark.parametrize("gpu", ["h100", "a100", "t4"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("what", ["dtype", "cache_dtype"])
def test_every_dtype_of_weights_and_cache_predicts(what, dtype, gpu):
    model, cached = (stored(dtype, SMALL), "bf16") if what == "dtype" else (SMALL, dtype)
    found = predicted(model, deployed(gpu, cache_dtype=cached))
    assert 0 < found.input_s_per_token < found.output_s_per_token < 1


# Money.


def test_dollars_by_hand():
    # 1.8 $ an hour is 0.0005 $ a second; 2 s a token on 2 GPUs, a million tokens.
    on = deployed(usd_per_hour=1.8, tensor_parallel=2)
    assert on.usd_per_mtok(2.0) == pytest.approx(2000.0)
    assert deployed(usd_per_hour=1.8).usd_per_mtok(2.0) == pytest.approx(1000.0)
    assert deployed().usd_per_mtok(2.0) is None


def test_dollars_follow_the_price_and_seconds_do_not():
    cheap, dear, unpriced = (predicted(on=deployed(usd_per_hour=usd)).to_json() for usd in (1.5, 3.0, None))
    for side in ("input", "output"):
        seconds = cheap[f"{side}_s_per_token"]
        assert seconds == dear[f"{side}_s_per_token"] == unpriced[f"{side}_s_per_token"]
        assert cheap[f"{side}_usd_per_mtok"] == pytest.approx(seconds * 1e6 / 3600 * 1.5)
        assert dear[f"{side}_usd_per_mtok"] == pytest.approx(2 * cheap[f"{side}_usd_per_mtok"])
        assert unpriced[f"{side}_usd_per_mtok"] is None


# Every model and every GPU.


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_predicts_on_some_number_of_gpus(name):
    model = load_language_model(name)
    fitting = []
    for tensor_parallel in (1, 2, 4, 8):
        on = deployed("b300", tensor_parallel=tensor_parallel, usd_per_hour=5.0)
        if largest_batch(model, on, context=1024) >= 8:
            fitting.append(predicted(model, on))
    assert fitting
    for found in fitting:
        assert 0 < found.input_s_per_token < found.output_s_per_token < 1


@pytest.mark.parametrize("tensor_parallel", [1, 2], ids=["alone", "two"])
@pytest.mark.parametrize("gpu", GPUS)
def test_every_gpu_predicts_a_small_model(gpu, tensor_parallel):
    on = deployed(gpu, tensor_parallel=tensor_parallel, usd_per_hour=1.0)
    found = predicted(SMALL, on).to_json()
    numbers = [value for value in found.values() if isinstance(value, float)]
    assert len(numbers) >= 8
    assert all(math.isfinite(value) and value > 0 for value in numbers)
    assert found["gpu"] == gpu
    assert found["gap"] > 1
    # No step is faster than its weights can be read.
    share = SMALL.parameters * 2 / tensor_parallel / on.gpu.bandwidth_bytes_per_s
    assert found["output_s_per_token"] * 8 > share
    # No input token is faster than its arithmetic.
    rate = on.gpu.flop_per_s["bf16"] or on.gpu.flop_per_s["fp16"]
    projections = SMALL.parameters - SMALL.embedding_parameters
    assert found["input_s_per_token"] > 2 * projections / tensor_parallel / rate


def test_json_has_provenance_and_inputs():
    found = predicted(on=deployed(usd_per_hour=2.0, cache_dtype="fp8")).to_json()
    assert found["provenance"] == "modelled"
    assert {
        name: found[name] for name in ("model", "gpu", "tensor_parallel", "batch", "context", "prompt")
    } == {
        "model": "llama-3.1-8b",
        "gpu": "H100-SXM5-80GB",
        "tensor_parallel": 1,
        "batch": 8,
        "context": 1024,
        "prompt": 1024,
    }
    assert (found["dtype"], found["cache_dtype"], found["price_ratio"]) == ("bf16", "fp8", 4.0)
    assert found["output_tokens_per_s"] * found["output_s_per_token"] == pytest.approx(1)
    assert found["input_tokens_per_s"] * found["input_s_per_token"] == pytest.approx(1)
    assert set(found["output_split_s"]) == set(found["input_split_s"]) == set(COMPONENTS)


def test_json_lists_bytes_on_a_gpu_and_the_work_of_each_part():
    model, on = stored("int8"), deployed(tensor_parallel=2)
    found = predicted(model, on).to_json()
    memory = found["memory"]
    # Half of each vocabulary matrix, in 16 bits, and all norms are on each GPU.
    outside, norms = 2 * 128256 * 4096, (2 * 32 + 1) * 4096
    assert memory["weight_bytes"] == (8_030_261_248 - outside - norms) / 2 + outside + 2 * norms
    assert memory["kv_bytes"] == 8 * 1024 * 65536
    assert memory["needed_bytes"] == memory["weight_bytes"] + memory["kv_bytes"] <= memory["usable_bytes"]
    assert memory["usable_bytes"] == pytest.approx(0.9 * 80 * 2**30)
    assert memory["kv_bytes_per_token"] == 65536
    step = decode_forward(model, batch=8, context=1024, parallelism=on.parallelism)
    parts = found["decode_parts"]
    assert [part["part"] for part in parts] == [part.name for part in step.parts]
    for column, total in {
        "operations": step.operations,
        "weight_bytes": step.weight_bytes,
        "kv_bytes": step.kv_bytes,
        "activation_bytes": step.activation_bytes,
    }.items():
        assert sum(part["times"] * part[column] for part in parts) == total
    assert [part["part"] for part in found["prefill_parts"]] == [part["part"] for part in parts]
