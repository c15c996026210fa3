"""Formats read from `quantization_config`: bytes with scales, parts left out, products, refusals."""

import time
from pathlib import Path
from typing import Any

import pytest
from decodetax.harness.core import formats as stored
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.formats import CACHE_FORMATS, FORMATS, Format, Formats, layers_in
from decodetax.harness.core.quantization import Quantization, read_quantization
from hypothesis import event, given, settings
from hypothesis import strategies as st

PARTS = ("attention", "mlp", "experts", "shared", "router", "embedding", "lm_head")
QUANTISED = ("attention", "mlp", "experts", "shared")


def read(fields: object, **config: Any) -> Quantization:
    return read_quantization({**config, "quantization_config": fields})


def layer(fields: object, number: int = 0, **config: Any) -> Formats:
    return read(fields, **config).of_layer(number)


def in_16_bits(formats: Formats) -> set[str]:
    return {part for part in PARTS if formats.of(part).bytes_per_element == 2}


def scheme(bits: int, kind: str, group: int | None = None, **more: Any) -> dict[str, Any]:
    strategy = "channel" if group is None else "group"
    return {"num_bits": bits, "type": kind, "strategy": strategy, "group_size": group, **more}


def groups(
    weights: dict[str, Any], activations: dict[str, Any] | None = None, *targets: str, **more: Any
) -> Any:
    group = {"weights": weights, "input_activations": activations, "targets": list(targets) or ["Linear"]}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, **more}


# Bytes worked out by hand from the bits of an element, of its scale and of its zero point.
STORED = {
    "fp8": ({"quant_method": "fp8", "activation_scheme": "static"}, 1.0, "fp8"),
    "fp8 blocks": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 1 + 4 / 16384, "fp8"),
    "fbgemm": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, 1.0, "fp8"),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, 0.51953125, "bf16"),
    "awq symmetric": (
        {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": False},
        0.53125,
        "bf16",
    ),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True}, 0.51953125, "bf16"),
    "gptq int8": ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 1.0, "bf16"),
    "ct int4": (groups(scheme(4, "int", 32, symmetric=True)), 0.5625, "bf16"),
    "ct int4, zero points": (groups(scheme(4, "int", 32, symmetric=False)), 0.578125, "bf16"),
    "ct fp8": (groups(scheme(8, "float"), scheme(8, "float")), 1.0, "fp8"),
    "ct fp8 weights": (groups(scheme(8, "float")), 1.0, "bf16"),
    "ct int8": (groups(scheme(8, "int"), scheme(8, "int")), 1.0, "fp8"),
    "ct nvfp4": (groups(scheme(4, "float", 16), scheme(4, "float", 16)), 0.5625, "fp4"),
    "ct nvfp4 weights": (groups(scheme(4, "float", 16)), 0.5625, "bf16"),
    "ct mxfp4": (groups(scheme(4, "float", 32)), 0.53125, "bf16"),
    "modelopt nvfp4": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 0.5625, "fp4"),
    "modelopt fp8": ({"quant_method": "modelopt", "quant_algo": "FP8"}, 1.0, "fp8"),
    "modelopt w4a8": ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, 0.515625, "fp8"),
    "bitsandbytes nf4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        0.5625,
        "bf16",
    ),
    "bitsandbytes nf4, double": (
        {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
        },
        (4 + (8 + 32 / 256) / 64) / 8,
        "bf16",
    ),
    "bitsandbytes int8": ({"load_in_8bit": True}, 1.0, "bf16"),
    "quark": (
        {
            "quant_method": "quark",
            "global_quant_config": {
                "weight": {"dtype": "fp4", "qscheme": "per_group", "group_size": 32},
                "input_tensors": {"dtype": "fp4", "qscheme": "per_group", "group_size": 32},
            },
        },
        0.53125,
        "fp4",
    ),
    "auto-round": ({"quant_method": "auto-round", "bits": 2, "group_size": 64}, (2 + 18 / 64) / 8, "bf16"),
}


@pytest.mark.parametrize(("fields", "stored_bytes", "product"), STORED.values(), ids=STORED)
def test_a_method_has_the_bytes_of_its_elements_scales_and_zero_points(
    fields: dict[str, Any], stored_bytes: float, product: str
) -> None:
    formats = layer(fields)
    assert {formats.of(part).bytes_per_element for part in QUANTISED} == {stored_bytes}
    assert {formats.of(part).multiplied_in for part in QUANTISED} == {product}
    assert in_16_bits(formats) == {"router", "embedding", "lm_head"}


def test_mxfp4_of_gpt_oss_is_that_of_the_experts_alone() -> None:
    formats = layer({"quant_method": "mxfp4"})
    assert formats.experts.bytes_per_element == 0.53125
    assert in_16_bits(formats) == set(PARTS) - {"experts"}


LEFT_OUT = {
    "a part by its name": ({"modules_to_not_convert": ["self_attn", "lm_head"]}, {"attention"}),
    "wildcards": ({"exclude_modules": ["lm_head", "model.layers.*.mlp.experts*"]}, {"experts"}),
    "a wildcard of all attention": ({"ignore": ["*self_attn*"]}, {"attention"}),
    "a regular expression": ({"ignore": [r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"]}, {"mlp"}),
    "shared experts": ({"ignore": ["re:.*shared_experts.*"]}, {"shared"}),
    "the router": ({"modules_to_not_convert": ["mlp.gate"]}, set()),
    "modules of images": ({"ignore": ["model.visual.blocks.0.mlp", "re:vision_tower.*"]}, set()),
    "Mixtral's names": ({"modules_to_not_convert": ["block_sparse_moe.gate"]}, set()),
    "Mixtral's experts": ({"ignore": [r"re:.*block_sparse_moe\.experts.*"]}, {"experts"}),
}


@pytest.mark.parametrize(("fields", "parts"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_parts_that_a_file_lists_stay_in_16_bits(fields: dict[str, Any], parts: set[str]) -> None:
    formats = layer({"quant_method": "fp8", **fields}, torch_dtype="bfloat16")
    assert in_16_bits(formats) == parts | {"router", "embedding", "lm_head"}
    assert formats.projections == ()


@pytest.mark.parametrize(
    "pattern", ["model.layers.1.mlp", "language_model.model.layers.1.mlp", "layers.1.mlp.", "*layers.1.mlp*"]
)
def test_a_layer_is_left_out_by_its_number_and_not_by_a_number_that_starts_with_it(pattern: str) -> None:
    read_as = read({"quant_method": "fp8", "ignore": [pattern]})
    kept = [number for number in range(24) if read_as.of_layer(number).mlp.name == "bf16"]
    assert kept == [1]


def test_one_projection_left_out_is_told_apart_from_the_rest_of_its_part() -> None:
    formats = read({"quant_method": "fp8", "ignore": ["re:.*kv_b_proj"]}).of_layer(3, "latent")
    assert formats.of("attention", "kv_b").name == "bf16"
    assert formats.of("attention", "o").name == formats.attention.name == "fp8"


def test_a_group_by_name_comes_before_a_group_by_class() -> None:
    fields = groups(scheme(4, "int", 128))
    by_name = {"weights": scheme(8, "float"), "input_activations": scheme(8, "float")}
    fields["config_groups"]["group_1"] = {**by_name, "targets": [r"re:.*self_attn.*"]}
    formats = layer(fields)
    assert (formats.attention.name, formats.mlp.name) == ("fp8", "int4")


def test_a_group_that_names_lm_head_quantises_it() -> None:
    assert layer(groups(scheme(8, "int"), None, "Linear", "lm_head")).lm_head.name == "int8"
    assert (
        layer({"quant_method": "gptq", "bits": 4, "group_size": 128, "lm_head": True}).lm_head.name == "int4"
    )


def test_mixed_precision_has_a_format_by_module() -> None:
    fields = {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {
            "model.layers.0.mlp.experts": {"quant_algo": "NVFP4", "group_size": 16},
            "model.layers.0.self_attn.o_proj": {"quant_algo": "FP8"},
            "model.layers.0.self_attn.qkv_proj": {"quant_algo": "FP8"},
        },
    }
    formats = layer(fields)
    assert (formats.experts.name, formats.attention.name, formats.mlp.name) == ("nvfp4", "fp8", "bf16")
    assert layer(fields, 1).experts.name == "bf16"


def test_gptq_changes_modules_by_regular_expression() -> None:
    dynamic = {r"-:.*\.layers\.0\..*": {}, r"+:.*down.*": {"bits": 8, "group_size": 32}}
    fields = {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": dynamic}
    assert in_16_bits(layer(fields, 0)) == set(PARTS)
    assert layer(fields, 1).of("mlp", "down").name == "int8"
    assert layer(fields, 1).of("mlp", "gate_up").name == "int4"


def test_modelopt_s_own_file_is_read_as_a_config_holds_it() -> None:
    inner = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "exclude_modules": ["*self_attn*"]}
    read_as = read({"producer": {"name": "modelopt"}, "quantization": inner})
    assert (read_as.method, read_as.cache_format) == ("modelopt", "fp8")
    assert in_16_bits(read_as.of_layer(0)) == {"attention", "router", "embedding", "lm_head"}


def test_the_text_model_s_own_quantisation_comes_first_and_16_bits_have_the_file_s_dtype() -> None:
    outer = {"quantization_config": {"quant_method": "fp8"}, "torch_dtype": "float16"}
    inner = {"quantization_config": {"quant_method": "mxfp4"}}
    formats = read_quantization(outer, inner).of_layer(0)
    assert (formats.experts.name, formats.attention.name) == ("mxfp4", "fp16")


def test_without_quantisation_all_is_in_16_bits() -> None:
    read_as = read_quantization({"torch_dtype": "float32"})
    assert (read_as.method, read_as.cache_format, read_as.of_layer(0)) == (None, None, Formats())


@pytest.mark.parametrize(
    ("scheme_", "name"),
    [
        ({"num_bits": 8, "type": "float"}, "fp8"),
        ({"num_bits": 8, "type": "int"}, "int8"),
        ({"num_bits": 4, "type": "float"}, "nvfp4"),
        (None, None),
    ],
)
def test_the_cache_has_the_format_of_kv_cache_scheme(scheme_: object, name: str | None) -> None:
    assert read({"quant_method": "fp8", "kv_cache_scheme": scheme_}).cache_format == name


def test_experts_of_deepseek_v4_are_in_fp4_beside_fp8() -> None:
    fields = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    formats = layer(fields, expert_dtype="fp4")
    assert (formats.experts.bytes_per_element, formats.experts.multiplied_in) == (0.53125, "fp8")
    assert formats.attention.name == "fp8 blocks"


REFUSED = {
    "an unknown method": ({"quant_method": "aqlm"}, "quantization_config.quant_method: must be one of fp8, "),
    "no method": ({"bits": 4}, "quantization_config.quant_method: must be text, was None"),
    "not an object": (["fp8"], "quantization_config: must be an object"),
    "bits": ({"quant_method": "gptq", "bits": "4"}, "quantization_config.bits: must be 2 to 16, was '4'"),
    "a group": (
        {"quant_method": "awq", "group_size": 0.5},
        "quantization_config.group_size: must be a positive integer or -1, was 0.5",
    ),
    "a block": (
        {"quant_method": "fp8", "weight_block_size": [128]},
        "quantization_config.weight_block_size: must be 2 positive integers",
    ),
    "an algorithm": (
        {"quant_method": "modelopt", "quant_algo": "INT3"},
        "quantization_config.quant_algo: must be one of FP8, ",
    ),
    "a regular expression": (
        {"quant_method": "fp8", "ignore": ["re:(("]},
        "quantization_config.ignore: 're:((' is not a regular expression: ",
    ),
    "a list": (
        {"quant_method": "fp8", "ignore": "lm_head"},
        "quantization_config.ignore: must be a list of names, was 'lm_head'",
    ),
    "sparse weights": (
        {**groups(scheme(8, "float")), "sparsity_config": {"format": "sparse-24-bitmask"}},
        "quantization_config.sparsity_config.format: must be 'dense'",
    ),
    "a target": (
        groups(scheme(8, "float"), None, "re:["),
        "quantization_config.config_groups.group_0.targets: 're:[' is not a regular expression",
    ),
    "a cache": (
        {"quant_method": "fp8", "kv_cache_scheme": {"num_bits": 3, "type": "int"}},
        "quantization_config.kv_cache_scheme: must be float or int of 4 or 8 bits, was 'int' of 3 bits",
    ),
}


@pytest.mark.parametrize(("fields", "line"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(fields: object, line: str) -> None:
    with pytest.raises(UsageError) as refusal:
        read(fields)
    assert str(refusal.value).startswith(line)
    assert "\n" not in str(refusal.value)


def test_hundreds_of_patterns_are_read_in_a_second() -> None:
    listed = [f"model.layers.{n}.self_attn*" for n in range(80)] + [
        f"model.layers.{n}.mlp.gate" for n in range(80)
    ]
    listed += [f"model.layers.{n}.mlp.experts.{e}.up_proj" for n in range(80) for e in range(64)]
    begun = time.perf_counter()
    read_as = read({"quant_method": "modelopt", "quant_algo": "NVFP4", "exclude_modules": listed})
    found = {read_as.of_layer(number) for number in range(80)}
    assert time.perf_counter() - begun < 5
    assert len(found) == 1


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 300)
    | st.floats()
    | st.sampled_from(
        ["fp8", "int", "float", "group", "re:(", "re:.*", "*", "model.layers.0", "Linear", "NVFP4"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["weights", "targets", "num_bits", "group_size", "a"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
_METHODS = (
    "fp8",
    "fbgemm_fp8",
    "awq",
    "gptq",
    "compressed-tensors",
    "mxfp4",
    "modelopt",
    "bitsandbytes",
    "quark",
)
_FIELDS = (
    "weight_block_size",
    "bits",
    "group_size",
    "config_groups",
    "ignore",
    "exclude",
    "modules_to_not_convert",
    "quant_algo",
    "dynamic",
    "kv_cache_scheme",
    "quantized_layers",
    "load_in_4bit",
    "load_in_8bit",
    "bnb_4bit_quant_type",
    "global_quant_config",
    "layer_quant_config",
    "extra_config",
    "sparsity_config",
    "quantization",
    "lm_head",
    "zero_point",
)


@settings(max_examples=200, deadline=None)
@given(
    method=st.sampled_from([*_METHODS, "auto-round"]) | _VALUES,
    fields=st.dictionaries(st.sampled_from(_FIELDS), _VALUES, max_size=4),
)
def test_any_quantisation_is_read_or_refused_in_one_line(method: object, fields: dict[str, Any]) -> None:
    try:
        formats = layer({"quant_method": method, **fields})
    except UsageError as refusal:
        line = str(refusal)
        event("refused")
    else:
        line = ""
        for part in PARTS:
            assert isinstance(formats.of(part), Format)
            assert 0.25 <= formats.of(part).bytes_per_element < 20
    assert "\n" not in line


def test_a_dtype_for_all_layers_leaves_router_embedding_and_lm_head_in_16_bits() -> None:
    assert in_16_bits(layers_in(FORMATS["int4"])) == {"router", "embedding", "lm_head"}
    assert {name: each.bytes_per_element for name, each in FORMATS.items()} == {
        "bf16": 2.0,
        "fp16": 2.0,
        "fp8": 1.0,
        "int8": 1.0,
        "int4": 0.515625,
        "mxfp4": 0.53125,
        "nvfp4": 0.5625,
        "fp4": 0.5625,
    }


def test_integer_caches_hold_a_scale_and_a_zero_point_for_each_head_of_a_token() -> None:
    assert CACHE_FORMATS["fp8"].bytes_per_element == 1.0
    assert CACHE_FORMATS["int8"].bytes_per_element == 1 + 4 / 128
    assert CACHE_FORMATS["int4"].bytes_per_element == 0.5 + 4 / 128


DOCUMENTED = {
    "bf16, fp16": FORMATS["fp16"],
    "fp8, per tensor or channel": FORMATS["fp8"],
    "fp8 blocks": stored.FP8_BLOCKS,
    "mxfp8": stored.MXFP8,
    "int8": FORMATS["int8"],
    "int4 of `--dtype`": FORMATS["int4"],
    "int4 of AWQ and GPTQ": layer(STORED["gptq"][0]).mlp,
    "int4 of compressed-tensors": layer(STORED["ct int4"][0]).mlp,
    "mxfp4": FORMATS["mxfp4"],
    "nvfp4, fp4": FORMATS["fp4"],
    "nf4 of bitsandbytes": stored.NF4,
    "nf4, double quantisation": stored.NF4_DOUBLE,
}


def test_the_documented_bytes_of_formats_are_those_that_count() -> None:
    page = (Path(__file__).parents[2] / "docs" / "method.md").read_text(encoding="utf-8")
    section = page.partition("### Formats of weights and caches\n")[2]
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in section.split("\n\n")[1].splitlines()[2:]
    ]
    assert {row[0]: (row[-2], row[-1]) for row in rows} == {
        name: (f"{each.bytes_per_element:.6g}", each.multiplied_in) for name, each in DOCUMENTED.items()
    }
