"""Methods of quantisation by `quant_method`: their fields, and the modules and formats that these mean."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from .errors import UsageError, short_repr
from .formats import (
    FP8,
    FP8_BLOCKS,
    INT8,
    INT8_W8A8,
    MXFP4,
    MXFP8,
    NF4,
    NF4_DOUBLE,
    NVFP4,
    NVFP4_WEIGHTS,
    Format,
    ProductDtype,
    grouped_format,
)
from .quantization_fields import EVERY_PART, LINEAR_PARTS, Rule, bits_of, group_of, patterns_of
from .quantization_schemes import block_format, compressed_tensors, quark


def quantized_layers(fields: Mapping[str, Any]) -> Iterator[Rule]:
    """Modules by name with an algorithm of ModelOpt each (`quant_algo` MIXED_PRECISION)."""
    layers = fields.get("quantized_layers")
    if layers is None:
        return
    if not isinstance(layers, dict):
        raise UsageError(f"quantized_layers: must be an object, was {short_repr(layers)}")
    names: dict[Format, list[str]] = {}
    for name, algorithm in layers.items():
        if not isinstance(algorithm, dict):
            raise UsageError(f"quantized_layers.{name}: must be an object, was {short_repr(algorithm)}")
        names.setdefault(_modelopt_format(algorithm), []).append(name)
    for format_, listed in names.items():
        yield Rule(format_, EVERY_PART, patterns_of("quantized_layers", listed))


def _fp8(fields: Mapping[str, Any]) -> Iterator[Rule]:
    block = fields.get("weight_block_size")
    yield Rule(FP8 if block is None else block_format("weight_block_size", block))


def _fbgemm_fp8(fields: Mapping[str, Any]) -> Iterator[Rule]:
    del fields  # a scale per output channel, and no other variant
    yield Rule(FP8)


def _mxfp4(fields: Mapping[str, Any]) -> Iterator[Rule]:
    del fields  # gpt-oss: experts alone, and no other variant
    yield Rule(MXFP4, frozenset({"experts"}))


def _mxfp8(fields: Mapping[str, Any]) -> Iterator[Rule]:
    del fields  # 32 elements share a scale of 8 bits, and no other variant
    yield Rule(MXFP8)


def _awq(fields: Mapping[str, Any]) -> Iterator[Rule]:
    """AWQ: unless `zero_point` is false, groups have a zero point beside their scale of 16 bits."""
    bits = bits_of(fields, "bits", "w_bit", default=4)
    group = group_of(fields, "group_size", "q_group_size")
    yield Rule(_integers(bits, group, zero_point=fields.get("zero_point") is not False))


def _gptq(fields: Mapping[str, Any]) -> Iterator[Rule]:
    """GPTQ: checkpoints hold zero points of symmetric groups too; `dynamic` changes modules by regex."""
    dynamic = fields.get("dynamic")
    if dynamic is not None and not isinstance(dynamic, dict):
        raise UsageError(f"dynamic: must be an object, was {short_repr(dynamic)}")
    for key, changed in (dynamic or {}).items():
        sign, expression = (key[:2], key[2:]) if key[:2] in ("-:", "+:") else ("+:", key)
        patterns = patterns_of("dynamic", [f"re:{expression}"])
        if sign == "-:":
            yield Rule(None, EVERY_PART, patterns)
        elif isinstance(changed, dict):
            yield Rule(_gptq_format({**fields, **changed}), EVERY_PART, patterns)
        else:
            raise UsageError(f"dynamic: {short_repr(key)} must be an object, was {short_repr(changed)}")
    yield Rule(_gptq_format(fields), LINEAR_PARTS | ({"lm_head"} if fields.get("lm_head") is True else set()))


def _gptq_format(fields: Mapping[str, Any]) -> Format:
    return _integers(bits_of(fields, "bits"), group_of(fields, "group_size"), zero_point=True)


def _integers(bits: int, group: int | None, *, zero_point: bool) -> Format:
    """Integer weights with activations of 16 bits."""
    zero_bits = bits if zero_point else 0
    return grouped_format(f"int{bits}", bits=bits, group=group, scale_bits=16, zero_bits=zero_bits)


def _bitsandbytes(fields: Mapping[str, Any]) -> Iterator[Rule]:
    """bitsandbytes: 4 bits in nf4 or fp4, or 8 bits, which count as multiplied in bf16."""
    if fields.get("load_in_4bit", fields.get("_load_in_4bit")) is True:
        kind = fields.get("bnb_4bit_quant_type", "fp4")
        if kind not in ("nf4", "fp4"):
            raise UsageError(f"bnb_4bit_quant_type: must be 'nf4' or 'fp4', was {short_repr(kind)}")
        double = fields.get("bnb_4bit_use_double_quant") is True
        yield Rule(replace(NF4_DOUBLE if double else NF4, name=f"{kind} (bitsandbytes)"))
    elif fields.get("load_in_8bit", fields.get("_load_in_8bit")) is True:
        yield Rule(INT8)
    else:
        raise UsageError("load_in_4bit: must be true, or load_in_8bit")


_MODELOPT: Mapping[str, Format] = MappingProxyType(
    {
        "FP8": FP8,
        "FP8_PER_CHANNEL_PER_TOKEN": FP8,
        "FP8_PB_WO": FP8_BLOCKS,
        "FP8_PB_REAL": FP8_BLOCKS,
        "FP8_BLOCK_SCALES": FP8_BLOCKS,
        "NVFP4": NVFP4,
        "NVFP4_AWQ": NVFP4,
        "NVFP4_SVDQUANT": NVFP4,
        "W4A16_NVFP4": NVFP4_WEIGHTS,
        "W4A8_NVFP4_FP8": replace(NVFP4, name="nvfp4 w4a8", multiplied_in="fp8"),
        "MXFP4": MXFP4,
        "W4A8_MXFP4_FP8": replace(MXFP4, name="mxfp4 w4a8", multiplied_in="fp8"),
        "MXFP8": MXFP8,
        "W8A16": INT8,
        "INT8_SQ": INT8_W8A8,
        "W8A8_SQ_PER_CHANNEL": INT8_W8A8,
    }
)
"""Formats by `quant_algo`; those with groups of integers are `_MODELOPT_INT4`."""

_MODELOPT_INT4: Mapping[str, tuple[str, ProductDtype]] = MappingProxyType(
    {
        "W4A16": ("int4", "bf16"),
        "W4A16_AWQ": ("int4", "bf16"),
        "INT4_AWQ": ("int4", "bf16"),
        "W4A8_AWQ": ("int4 w4a8", "fp8"),
    }
)


def _modelopt_format(fields: Mapping[str, Any]) -> Format:
    """The format of one algorithm of ModelOpt."""
    algorithm = fields.get("quant_algo")
    if isinstance(algorithm, str):
        algorithm = algorithm.upper()
        if algorithm in _MODELOPT:
            return _MODELOPT[algorithm]
        if algorithm in _MODELOPT_INT4:
            name, multiplied_in = _MODELOPT_INT4[algorithm]
            group = group_of(fields, "group_size", default=128)
            return grouped_format(name, multiplied_in, bits=4, group=group, scale_bits=16)
    known = ", ".join((*_MODELOPT, *_MODELOPT_INT4))
    raise UsageError(f"quant_algo: must be one of {known}, was {short_repr(algorithm)}")


def _modelopt(fields: Mapping[str, Any]) -> Iterator[Rule]:
    algorithm = fields.get("quant_algo")
    if algorithm == "MIXED_PRECISION" and fields.get("quantized_layers") is not None:
        return  # all that is quantised is in quantized_layers
    if algorithm is None and fields.get("config_groups") is not None:
        yield from compressed_tensors(fields)
        return
    yield Rule(_modelopt_format(fields))


def _auto_round(fields: Mapping[str, Any]) -> Iterator[Rule]:
    """AutoRound: integers in groups; `extra_config` has other bits by module."""
    if fields.get("data_type", "int") != "int":
        raise UsageError(f"data_type: must be 'int', was {short_repr(fields['data_type'])}")
    extra = fields.get("extra_config")
    if extra is not None and not isinstance(extra, dict):
        raise UsageError(f"extra_config: must be an object, was {short_repr(extra)}")
    names: dict[Format | None, list[str]] = {}
    for name, changed in (extra or {}).items():
        if not isinstance(changed, dict):
            raise UsageError(f"extra_config.{name}: must be an object, was {short_repr(changed)}")
        merged = {**fields, **changed}
        format_ = None if bits_of(merged, "bits") == 16 else _auto_round_format(merged)
        names.setdefault(format_, []).append(name)
    for format_, listed in names.items():
        yield Rule(format_, EVERY_PART, patterns_of("extra_config", listed))
    yield Rule(_auto_round_format(fields))


def _auto_round_format(fields: Mapping[str, Any]) -> Format:
    return _integers(bits_of(fields, "bits"), group_of(fields, "group_size", default=128), zero_point=True)


METHODS: Mapping[str, Callable[[Mapping[str, Any]], Iterator[Rule]]] = MappingProxyType(
    {
        "fp8": _fp8,
        "fbgemm-fp8": _fbgemm_fp8,
        "awq": _awq,
        "gptq": _gptq,
        "compressed-tensors": compressed_tensors,
        "mxfp4": _mxfp4,
        "mxfp8": _mxfp8,
        "modelopt": _modelopt,
        "bitsandbytes": _bitsandbytes,
        "quark": quark,
        "auto-round": _auto_round,
    }
)

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "awq-marlin": "awq",
        "gptq-marlin": "gptq",
        "finegrained-fp8": "fp8",
        "modelopt-fp4": "modelopt",
        "modelopt-fp8": "modelopt",
        "modelopt-mixed": "modelopt",
        "modelopt-mxfp8": "modelopt",
        "compressed-tensor": "compressed-tensors",
        "bnb": "bitsandbytes",
        "intel/auto-round": "auto-round",
    }
)
