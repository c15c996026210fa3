"""Schemes of compressed-tensors and Quark: groups of modules with formats of weights and activations."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from .errors import UsageError, short_repr
from .formats import (
    BF16,
    FP8,
    FP8_BLOCKS,
    FP8_WEIGHTS,
    MXFP4,
    MXFP8,
    NVFP4,
    Format,
    ProductDtype,
    grouped_format,
)
from .quantization_fields import EVERY_PART, Rule, bits_of, group_of, patterns_of, texts_of


def compressed_tensors(fields: Mapping[str, Any]) -> Iterator[Rule]:
    """compressed-tensors: groups of modules by name, by regular expression or by class."""
    sparsity = fields.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format") not in (None, "dense"):
        raise UsageError(f"sparsity_config.format: must be 'dense', was {short_repr(sparsity.get('format'))}")
    groups = fields.get("config_groups")
    if not isinstance(groups, dict):
        raise UsageError(f"config_groups: must be an object, was {short_repr(groups)}")
    by_class = []
    for key, group in groups.items():
        where = f"config_groups.{key}"
        if not isinstance(group, dict):
            raise UsageError(f"{where}: must be an object, was {short_repr(group)}")
        if group.get("weights") is None:
            continue  # such as a group of activations or of the cache alone
        try:
            format_ = scheme_format(group)
            targets = texts_of(group, "targets") or ["Linear"]
        except UsageError as error:
            raise UsageError(f"{where}.{error}") from None
        named = [target for target in targets if not _is_class(target)]
        if named:
            yield Rule(format_, EVERY_PART - {"embedding"}, patterns_of(f"{where}.targets", named))
        if len(named) < len(targets):
            by_class.append(Rule(format_))
    yield from by_class  # a module's name comes before its class


def _is_class(target: str) -> bool:
    return target[:1].isupper() and "." not in target


def scheme_format(group: Mapping[str, Any]) -> Format:
    """The format of a group's `weights`, multiplied in what `input_activations` says."""
    weights, activations = group["weights"], group.get("input_activations")
    for name, scheme in (("weights", weights), ("input_activations", activations)):
        if scheme is not None and not isinstance(scheme, dict):
            raise UsageError(f"{name}: must be an object, was {short_repr(scheme)}")
    bits, kind = bits_of(weights, "num_bits", where="weights."), weights.get("type", "int")
    if kind not in ("int", "float"):
        raise UsageError(f"weights.type: must be 'int' or 'float', was {short_repr(kind)}")
    size = None
    if weights.get("strategy") not in ("tensor", "channel"):
        size = group_of(weights, "group_size", where="weights.", default=None)
    active_bits = None
    if activations is not None:
        active_bits = bits_of(activations, "num_bits", where="input_activations.", default=16)
    if kind == "float":
        return _float_format(bits, size, active_bits, weights)
    multiplied_in: ProductDtype = "fp8" if active_bits == 8 else "bf16"
    suffix = f" w{bits}a8" if active_bits == 8 else ""
    zero_bits = bits if weights.get("symmetric") is False else 0
    return grouped_format(
        f"int{bits}{suffix}", multiplied_in, bits=bits, group=size, scale_bits=16, zero_bits=zero_bits
    )


def _float_format(bits: int, size: int | None, active_bits: int | None, weights: Mapping[str, Any]) -> Format:
    """Weights in floating point: fp8 per tensor, channel, block or 32 elements; nvfp4 and mxfp4."""
    if bits == 16:
        return BF16
    if bits == 8:
        if active_bits != 8:
            return FP8_WEIGHTS
        block = weights.get("block_structure")
        if weights.get("strategy") == "block" and block is not None:
            return block_format("weights.block_structure", block)
        return MXFP8 if size == 32 else FP8
    if bits == 4:
        base = MXFP4 if size == 32 else NVFP4 if size in (None, 16) else None
        if base is not None:
            products: dict[int | None, ProductDtype] = {4: "fp4", 8: "fp8"}
            multiplied_in = products.get(active_bits, "bf16")
            suffix = "" if multiplied_in == base.multiplied_in else f" w4a{min(active_bits or 16, 16)}"
            return replace(base, name=base.name + suffix, multiplied_in=multiplied_in)
        raise UsageError(f"weights.group_size: must be 16 or 32 for floats of 4 bits, was {size}")
    raise UsageError(f"weights.num_bits: must be 4, 8 or 16 for floats, was {bits}")


def block_format(where: str, block: object) -> Format:
    """fp8 with a scale of 32 bits per block of rows and columns."""
    if not (isinstance(block, list) and len(block) == 2 and all(type(s) is int and s > 0 for s in block)):
        raise UsageError(f"{where}: must be 2 positive integers, was {short_repr(block)}")
    rows, columns = block
    if rows * columns == 128 * 128:
        return FP8_BLOCKS
    return grouped_format(f"fp8 blocks {rows}x{columns}", "fp8", bits=8, group=rows * columns, scale_bits=32)


def quark(fields: Mapping[str, Any]) -> Iterator[Rule]:
    """Quark: a scheme for all layers, and others by wildcard."""
    layers = fields.get("layer_quant_config")
    if layers is not None and not isinstance(layers, dict):
        raise UsageError(f"layer_quant_config: must be an object, was {short_repr(layers)}")
    for pattern, scheme in (layers or {}).items():
        where = f"layer_quant_config.{pattern}"
        patterns = patterns_of("layer_quant_config", [pattern])
        yield Rule(_quark_format(where, scheme), EVERY_PART - {"embedding"}, patterns)
    if fields.get("global_quant_config") is not None:
        yield Rule(_quark_format("global_quant_config", fields["global_quant_config"]))


_QUARK_BITS = MappingProxyType(
    {
        "fp8_e4m3": (8, "float"),
        "fp8_e5m2": (8, "float"),
        "fp4": (4, "float"),
        "int8": (8, "int"),
        "int4": (4, "int"),
        "uint4": (4, "int"),
    }
)


def _quark_format(where: str, scheme: object) -> Format:
    """A scheme of Quark, read as one of compressed-tensors."""
    if not isinstance(scheme, dict):
        raise UsageError(f"{where}: must be an object, was {short_repr(scheme)}")
    group: dict[str, Any] = {}
    for name, ours in (("weight", "weights"), ("input_tensors", "input_activations")):
        tensors = scheme.get(name)
        if tensors is None:
            continue
        if not isinstance(tensors, dict):
            raise UsageError(f"{where}.{name}: must be an object, was {short_repr(tensors)}")
        dtype = tensors.get("dtype")
        if not isinstance(dtype, str) or dtype not in _QUARK_BITS:
            known = ", ".join(_QUARK_BITS)
            raise UsageError(f"{where}.{name}.dtype: must be one of {known}, was {short_repr(dtype)}")
        bits, kind = _QUARK_BITS[dtype]
        grouped = tensors.get("qscheme") == "per_group"
        group[ours] = {
            "num_bits": bits,
            "type": kind,
            "strategy": "group" if grouped else "tensor",
            "group_size": tensors.get("group_size") if grouped else None,
            "symmetric": tensors.get("symmetric"),
        }
    if "weights" not in group:
        return BF16
    try:
        return scheme_format(group)
    except UsageError as error:
        raise UsageError(f"{where}.{error}") from None
