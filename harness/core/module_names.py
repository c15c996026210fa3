"""Names of a decoder layer's modules in checkpoints, and the lists of patterns that pick some of them."""

import fnmatch
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from .errors import UsageError, short_repr

_LONGEST_PATTERN = 500  # characters; a longer one is no module's name

_PREFIXES = ("model.layers", "language_model.model.layers", "model.language_model.layers", "layers")
"""What stands before a layer's number; the last is the name itself in checkpoints without a wrapper."""

_STACKS = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(?=[\d*])")
"""Where a name's prefix ends: the prefixes of text layers differ by wrapper, what follows does not."""

_OUTSIDE = re.compile(r"visual|vision|audio|image|video|speech|projector|\bmtp\b|nextn|draft|talker|\bvit\b")
"""Modules of other inputs than text, and of drafts: their layers are not those of the model."""

_UP, _DOWN = ("gate_proj", "up_proj", "gate_up_proj", "w1", "w3"), ("down_proj", "w2")
_MLPS = ("mlp", "feed_forward", "ffn", "mixer")
_MOES = (*_MLPS, "block_sparse_moe")

_BLOCKS: Mapping[str, tuple[tuple[str, ...], Mapping[str, tuple[str, ...]]]] = MappingProxyType(
    {
        "grouped attention": (
            ("self_attn", "attention", "attn", "mixer"),
            {
                "qkv": ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value"),
                "o": ("o_proj", "out_proj", "dense"),
            },
        ),
        "latent attention": (
            ("self_attn", "attn"),
            {
                "q": ("q_proj",),
                "q_a": ("q_a_proj", "wq_a"),
                "q_b": ("q_b_proj", "wq_b"),
                "kv_a": ("kv_a_proj_with_mqa", "wkv"),
                "kv_b": ("kv_b_proj",),
                "o": ("o_proj", "wo_b"),
            },
        ),
        "linear attention": (
            ("linear_attn", "self_attn", "mamba", "mixer"),
            {
                "in": ("in_proj_qkvz", "in_proj_qkv", "in_proj", "q_proj", "k_proj", "v_proj", "qkv_proj"),
                "out": ("out_proj", "o_proj"),
            },
        ),
        "mlp": (_MLPS, {"gate_up": _UP, "down": _DOWN}),
        "experts": (
            tuple(f"{mlp}.{experts}" for mlp in _MOES for experts in ("experts.0", "experts")),
            {"gate_up": _UP, "down": _DOWN},
        ),
        "shared": (
            tuple(f"{mlp}.{shared}" for mlp in _MLPS for shared in ("shared_experts", "shared_expert")),
            {"gate_up": _UP, "down": _DOWN},
        ),
        "router": (
            _MOES,
            {"router": ("gate", "router")},
        ),
    }
)
"""By part: the modules that hold it, by the names that families give them, and the weights of each projection
in them. Routed experts have like formats, so the first stands for all."""

OUTSIDE_LAYERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "embedding": ("model.embed_tokens", "language_model.model.embed_tokens", "embed_tokens"),
        "lm_head": ("lm_head", "language_model.lm_head"),
    }
)
"""Names of the modules outside the layers."""


def layer_modules(part: str, layer: int) -> dict[str, tuple[str, ...]]:
    """The names that each projection's weights of a layer may have.

    Args:
        part: "grouped attention", "latent attention", "linear attention", "mlp", "experts", "shared" or
            "router".
        layer: number of the layer, from 0.
    """
    blocks, projections = _BLOCKS[part]
    return {
        projection: tuple(
            f"{prefix}.{layer}.{block}.{module}"
            for block in blocks
            for module in modules
            for prefix in _PREFIXES
        )
        for projection, modules in projections.items()
    }


class ModulePatterns:
    """A list that picks modules, in the forms that quantisation libraries write.

    - `re:` and a regular expression that matches from a module's first character (compressed-tensors).
    - A wildcard pattern of a module or of one that contains it (ModelOpt).
    - A name: the module, one that contains it, or a run of the components of such a name, so that "lm_head",
      "mlp.gate" and "model.layers.3.self_attn" pick what they say, and "layers.1" does not pick layer 10.

    Raises:
        UsageError: a regular expression is not one.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._runs: set[str] = set()
        self._expressions: list[re.Pattern[str]] = []
        self._wildcards: dict[str | None, list[re.Pattern[str]]] = {}
        for pattern in patterns:
            if len(pattern) > _LONGEST_PATTERN:
                raise UsageError(f"a pattern has {len(pattern)} characters; at most {_LONGEST_PATTERN}")
            if pattern.startswith("re:"):
                self._expressions.append(_compiled(pattern))
            elif not _OUTSIDE.search(pattern):
                self._add(pattern.strip("."))

    def _add(self, pattern: str) -> None:
        if not set(pattern) & set("*?["):
            self._runs.add(_from_layers(pattern))
            return
        numbered = re.search(r"\.(\d+)\.", pattern)
        number = numbered[1] if numbered else None
        self._wildcards.setdefault(number, []).append(re.compile(fnmatch.translate(pattern)))

    def pick(self, names: Sequence[str]) -> bool:
        """Whether one of a module's names is picked."""
        return (
            bool(self._runs and any(not self._runs.isdisjoint(_runs(_from_layers(name))) for name in names))
            or any(expression.match(name) for expression in self._expressions for name in names)
            or (bool(self._wildcards) and any(self._wild(name) for name in names))
        )

    def _wild(self, name: str) -> bool:
        components = name.split(".")
        numbers: Collection[str | None] = {None, *(each for each in components if each.isdigit())}
        ancestors = [".".join(components[:count]) for count in range(1, len(components) + 1)]
        return any(
            pattern.match(ancestor)
            for number in numbers
            for pattern in self._wildcards.get(number, ())
            for ancestor in ancestors
        )


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern.removeprefix("re:"))
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"{short_repr(pattern)} is not a regular expression: {error}") from None


def _from_layers(name: str) -> str:
    """A name from "layers" on, without what wraps the layers."""
    found = _STACKS.search(name)
    return f"layers.{name[found.end() :]}" if found else name


def _runs(name: str) -> Iterator[str]:
    """Every run of a name's components."""
    components = name.split(".")
    for start in range(len(components)):
        for end in range(start + 1, len(components) + 1):
            yield ".".join(components[start:end])
