"""Weights of a language model by part and format: how many, how many bytes, and in one sentence."""

from collections.abc import Iterator
from dataclasses import dataclass

from .formats import Format
from .language_model import LanguageModel
from .layers import Experts, LayerGroup, Projection

_PART_NAMES = {
    "attention": "attention",
    "mlp": "MLPs",
    "experts": "experts",
    "shared": "shared experts",
    "router": "routers",
    "embedding": "embedding",
    "lm_head": "lm_head",
}


@dataclass(frozen=True, kw_only=True)
class StoredWeights:
    """The weights of one part in one format, over all layers.

    Attributes:
        part: a part of `core.formats.Formats`.
        format: how they are stored.
        parameters: number of them.
    """

    part: str
    format: Format
    parameters: int

    @property
    def stored_bytes(self) -> float:
        """Bytes that they take, scales included."""
        return self.parameters * self.format.bytes_per_element


def stored_weights(model: LanguageModel) -> tuple[StoredWeights, ...]:
    """The weights of a model by part and format; a tied lm_head is the embedding.

    Norms, biases and other weights outside the projections are not counted.
    """
    counts: dict[tuple[str, Format], int] = {}
    for part, format_, parameters in _weights(model):
        counts[part, format_] = counts.get((part, format_), 0) + parameters
    return tuple(
        StoredWeights(part=part, format=format_, parameters=parameters)
        for (part, format_), parameters in sorted(
            counts.items(), key=lambda each: [*_PART_NAMES].index(each[0][0])
        )
    )


def weights_sentence(model: LanguageModel) -> str:
    """The formats of a model's weights by part, such as "experts mxfp4, the rest bf16"."""
    weights = stored_weights(model)
    by_name: dict[str, dict[str, float]] = {}
    for each in weights:
        parts = by_name.setdefault(each.format.name, {})
        parts[each.part] = parts.get(each.part, 0.0) + each.parameters
    if len(by_name) == 1:
        return next(iter(by_name))
    in_16_bits = [name for name in ("bf16", "fp16") if name in by_name]
    rest = in_16_bits[0] if in_16_bits else max(by_name, key=lambda name: len(by_name[name]))
    named = [f"{_joined(parts, by_name)} {name}" for name, parts in by_name.items() if name != rest]
    return f"{', '.join(named)}, the rest {rest}"


def _joined(parts: dict[str, float], by_name: dict[str, dict[str, float]]) -> str:
    """The parts in a format; a part that has others too comes with its share."""
    words = []
    for part, parameters in parts.items():
        total = sum(others.get(part, 0.0) for others in by_name.values())
        share = "" if parameters == total else f"{parameters / total:.0%} of "
        words.append(f"{share}{_PART_NAMES[part]}")
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _weights(model: LanguageModel) -> Iterator[tuple[str, Format, int]]:
    for group in model.layer_groups:
        for projection, times in _layer_projections(group, model.hidden_size):
            format_ = group.formats.of(projection.role, projection.name)
            yield projection.role, format_, group.count * times * projection.parameters
    outside = model.vocab_size * model.hidden_size
    yield "embedding", model.formats.embedding, outside
    if not model.tied_embeddings:
        yield "lm_head", model.formats.lm_head, outside


def _layer_projections(group: LayerGroup, hidden_size: int) -> Iterator[tuple[Projection, int]]:
    """The projections of a layer, and how often it has each."""
    if group.attention is not None:
        for projection in group.attention.projections(hidden_size):
            yield projection, 1
    mlp = group.mlp
    if not isinstance(mlp, Experts):
        for projection in () if mlp is None else mlp.projections(hidden_size):
            yield projection, 1
        return
    yield Projection("router", hidden_size, mlp.count, "router"), 1
    for projection in mlp.expert.projections(mlp.hidden_size or hidden_size, role="experts"):
        yield projection, mlp.count
    for projection in () if mlp.shared is None else mlp.shared.projections(hidden_size, role="shared"):
        yield projection, 1
