"""What a prediction says of its model: parameters, bytes of cache, formats, assumptions and warnings."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ..core.formats import Format
from ..core.language_model import LanguageModel
from ..core.stored_weights import stored_weights, weights_sentence


def model_json(model: LanguageModel, cache_format: Format) -> dict[str, Any]:
    """Facts of a model, counted from its shapes.

    Args:
        model: the model.
        cache_format: format of the KV cache.
    """
    return {
        "provenance": "counted",
        "name": model.name,
        "source": model.source,
        "parameters": model.parameters,
        "active_parameters": model.active_parameters,
        "kv_bytes_per_token": kv_bytes_per_token(model, cache_format),
        "state_bytes_per_sequence": model.state_bytes_per_sequence,
        "max_position_embeddings": model.max_position_embeddings,
        "weights": [
            {
                "part": each.part,
                "format": each.format.name,
                "parameters": each.parameters,
                "bytes": each.stored_bytes,
            }
            for each in stored_weights(model)
        ],
        "formats": weights_sentence(model),
        "assumed": list(model.assumed),
    }


def kv_bytes_per_token(model: LanguageModel, cache_format: Format) -> float:
    """Bytes that a token adds to the KV caches of all layers, while within their windows."""
    return cache_format.bytes_per_element * model.kv_elements_per_token


def warnings_of(model: LanguageModel, contexts: Sequence[int]) -> Iterator[str]:
    """What a reader should know before the figures are used: each a sentence."""
    if any("--assume" in line for line in model.assumed):
        yield f"{model.name} is read by --assume; its figures are right only if it is such a model"
    longest = model.max_position_embeddings
    beyond = [context for context in contexts if longest is not None and context > longest]
    if beyond:
        yield (
            f"{model.name} is made for contexts of up to {longest:,} tokens (max_position_embeddings); "
            f"{', '.join(f'{context:,}' for context in beyond)} {'are' if len(beyond) > 1 else 'is'} beyond"
        )


def in_billions(count: float) -> str:
    """A number of parameters as people write it: 8.03 B, 685 B, 0.124 B."""
    return f"{count / 1e9:.{max(0, 2 - math.floor(math.log10(max(count, 1) / 1e9)))}f} B"
