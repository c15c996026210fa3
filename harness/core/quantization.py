"""Reads `quantization_config` of a Hugging Face `config.json`: the format of every part of every layer.

Known are the methods of `quantization_methods.METHODS`; any other is refused, as its bytes and products are
unknown.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from .errors import UsageError, short_repr
from .formats import BF16, FP16, MXFP4, Format, Formats, layers_in
from .module_names import OUTSIDE_LAYERS, layer_modules
from .quantization_fields import EVERY_PART, Rule, bits_of, patterns_of, texts_of
from .quantization_methods import ALIASES, METHODS, quantized_layers

AttentionKind: TypeAlias = Literal["grouped", "latent", "linear"]

_EXCLUDED = (
    "modules_to_not_convert",
    "ignore",
    "ignored_layers",
    "exclude_modules",
    "exclude",
    "llm_int8_skip_modules",
)
"""Fields that list modules left in 16 bits: of transformers and AWQ, compressed-tensors and ModelOpt, vLLM's
fp8, ModelOpt's own file, Quark, bitsandbytes."""

_CACHES: Mapping[tuple[object, object], str] = MappingProxyType(
    {
        (8, "float"): "fp8",
        (8, "int"): "int8",
        (4, "int"): "int4",
        (4, "float"): "nvfp4",
        (16, "float"): "bf16",
    }
)
"""Formats of a cache by `num_bits` and `type` of a `kv_cache_scheme`."""

_CACHE_ALGORITHMS: Mapping[str, str] = MappingProxyType({"FP8": "fp8", "INT8": "int8", "NVFP4": "nvfp4"})
"""Formats of a cache by ModelOpt's `kv_cache_quant_algo`."""


@dataclass(frozen=True)
class Quantization:
    """How a checkpoint is stored; the first rule that covers a module counts.

    Attributes:
        method: its `quant_method`; None where weights are not quantised.
        rest: the format of all that no rule covers.
        cache_format: the format of the KV cache by its name in `core.formats.CACHE_FORMATS`; None if the file
            names none.
        rules: modules and their formats.
    """

    method: str | None
    rest: Format
    cache_format: str | None
    rules: tuple[Rule, ...] = ()

    def of_layer(self, layer: int, attention: AttentionKind | None = "grouped") -> Formats:
        """The formats of a layer's parts, and of embedding and lm_head.

        Args:
            layer: its number, from 0.
            attention: its kind of attention, whose modules have names of their own; None without.
        """
        if not self.rules:
            return layers_in(self.rest, rest=self.rest)
        parts = {"mlp": "mlp", "experts": "experts", "shared": "shared", "router": "router"}
        if attention is not None:
            parts["attention"] = f"{attention} attention"
        found: dict[str, Any] = {part: self._format(part, names) for part, names in OUTSIDE_LAYERS.items()}
        different: list[tuple[str, Format]] = []
        for part, modules in parts.items():
            each = {
                projection: self._format(part, names)
                for projection, names in layer_modules(modules, layer).items()
            }
            found[part] = Counter(each.values()).most_common(1)[0][0]
            different += [
                (f"{part} {projection}", format_)
                for projection, format_ in each.items()
                if format_ != found[part]
            ]
        found.setdefault("attention", self.rest)
        return Formats(**found, projections=tuple(different))

    def _format(self, part: str, names: Sequence[str]) -> Format:
        covering = (rule.format for rule in self.rules if rule.covers(part, names))
        return next(covering, None) or self.rest


def read_quantization(*levels: Mapping[str, Any]) -> Quantization:
    """Reads how a model's weights and cache are stored.

    Args:
        levels: the objects of a `config.json` that may hold `quantization_config` (or `compression_config`,
            its older name): the outer first, then `text_config`.

    Raises:
        UsageError: the method is unknown, or a field is not what the method has; names the field.
    """
    rest = _rest(levels)
    found = _quantization_fields(levels)
    if found is None:
        return Quantization(method=None, rest=rest, cache_format=None)
    name, fields = found
    try:
        method = _method(fields)
        listed = (*quantized_layers(fields), *_left_out(fields))
        others = tuple(METHODS[method](fields))
        cache_format = _cache_format(fields)
    except UsageError as error:
        raise UsageError(f"{name}.{error}") from None
    rules = (*listed, *_experts_in_fp4(levels, method), *others)
    return Quantization(method=method, rest=rest, cache_format=cache_format, rules=rules)


def _rest(levels: Sequence[Mapping[str, Any]]) -> Format:
    """The 16-bit format of weights that are not quantised; engines also convert fp32 to 16 bits."""
    for level in reversed(levels):
        for name in ("dtype", "torch_dtype"):
            if level.get(name) in ("float16", "torch.float16", "half"):
                return FP16
            if level.get(name) is not None:
                return BF16
    return BF16


def _quantization_fields(levels: Sequence[Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]] | None:
    """The object that describes the quantisation, and its name; None without."""
    for level in reversed(levels):
        for name in ("quantization_config", "compression_config"):
            fields = level.get(name)
            if fields is None:
                continue
            if not isinstance(fields, dict):
                raise UsageError(f"{name}: must be an object, was {short_repr(fields)}")
            inner = fields.get("quantization")  # as in ModelOpt's hf_quant_config.json
            if isinstance(inner, dict):
                fields = {"quant_method": "modelopt", **fields, **inner}
            if fields:
                return name, fields
    return None


def _method(fields: Mapping[str, Any]) -> str:
    """The method by its name in `METHODS`."""
    method = fields.get("quant_method")
    if method is None:
        if fields.get("load_in_4bit") or fields.get("load_in_8bit"):
            return "bitsandbytes"
        if fields.get("config_groups") is not None:
            return "compressed-tensors"
        if fields.get("quant_algo") is not None:
            return "modelopt"
    if not isinstance(method, str):
        raise UsageError(f"quant_method: must be text, was {short_repr(method)}")
    name = method.lower().replace("_", "-")
    name = ALIASES.get(name, name)
    if name not in METHODS:
        known = ", ".join(METHODS)
        raise UsageError(f"quant_method: must be one of {known}, was {short_repr(method)}")
    return name


def _left_out(fields: Mapping[str, Any]) -> Iterator[Rule]:
    """Modules that a file lists as not quantised."""
    for name in _EXCLUDED:
        names = texts_of(fields, name)
        if names:
            yield Rule(None, EVERY_PART, patterns_of(name, names))


def _experts_in_fp4(levels: Sequence[Mapping[str, Any]], method: str) -> Iterator[Rule]:
    """Experts in fp4 with activations in fp8 beside a model in fp8 (`expert_dtype` of DeepSeek-V4)."""
    expert_dtypes = [level["expert_dtype"] for level in levels if level.get("expert_dtype") is not None]
    if not expert_dtypes or method != "fp8":
        return
    if expert_dtypes[-1] != "fp4":
        raise UsageError(f"expert_dtype: must be 'fp4', was {short_repr(expert_dtypes[-1])}")
    yield Rule(replace(MXFP4, multiplied_in="fp8"), frozenset({"experts"}))


def _cache_format(fields: Mapping[str, Any]) -> str | None:
    """The format of the KV cache; None if the file names none."""
    algorithm, scheme = fields.get("kv_cache_quant_algo"), fields.get("kv_cache_scheme")
    if algorithm is not None:
        if not isinstance(algorithm, str) or algorithm.upper() not in _CACHE_ALGORITHMS:
            known = ", ".join(_CACHE_ALGORITHMS)
            raise UsageError(f"kv_cache_quant_algo: must be one of {known}, was {short_repr(algorithm)}")
        return _CACHE_ALGORITHMS[algorithm.upper()]
    if scheme is None:
        return None
    if not isinstance(scheme, dict):
        raise UsageError(f"kv_cache_scheme: must be an object, was {short_repr(scheme)}")
    bits = bits_of(scheme, "num_bits", where="kv_cache_scheme.")
    kind = scheme.get("type", "float")
    if not isinstance(kind, str) or (bits, kind) not in _CACHES:
        raise UsageError(
            f"kv_cache_scheme: must be float or int of 4 or 8 bits, was {short_repr(kind)} of {bits} bits"
        )
    return _CACHES[bits, kind]
