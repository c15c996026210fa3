"""Fields of a `quantization_config`, checked, and the rule that says which modules have which format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import UsageError, short_repr
from .formats import Format
from .module_names import ModulePatterns

LINEAR_PARTS = frozenset({"attention", "mlp", "experts", "shared"})
"""Parts that a method quantises unless it lists them as left out; routers, embedding and lm_head are not."""

EVERY_PART = LINEAR_PARTS | {"router", "embedding", "lm_head"}


@dataclass(frozen=True)
class Rule:
    """Modules of some parts, and the format that they are stored in; None where they are not quantised."""

    format: Format | None
    parts: frozenset[str] = LINEAR_PARTS
    patterns: ModulePatterns | None = None

    def covers(self, part: str, names: Sequence[str]) -> bool:
        """Whether a module of a part is one of them, by any of its names."""
        return part in self.parts and (self.patterns is None or self.patterns.pick(names))


def bits_of(fields: Mapping[str, Any], *names: str, where: str = "", default: int | None = None) -> int:
    """Bits of an element: 2 to 16."""
    value = next((fields[name] for name in names if fields.get(name) is not None), default)
    if type(value) is not int or not 2 <= value <= 16:
        raise UsageError(f"{where}{names[0]}: must be 2 to 16, was {short_repr(value)}")
    return value


def group_of(
    fields: Mapping[str, Any], *names: str, where: str = "", default: int | None = 128
) -> int | None:
    """Elements that share a scale; None where a channel or the tensor has one."""
    value = next((fields[name] for name in names if fields.get(name) is not None), default)
    if value is None or (type(value) is int and value in (0, -1)):
        return None
    if type(value) is not int or value < 1:
        raise UsageError(f"{where}{names[0]}: must be a positive integer or -1, was {short_repr(value)}")
    return value


def texts_of(fields: Mapping[str, Any], name: str) -> list[str]:
    """A list of texts; empty if the field is absent."""
    value = fields.get(name)
    if value is None:
        return []
    if not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        raise UsageError(f"{name}: must be a list of names, was {short_repr(value)}")
    return value


def patterns_of(where: str, names: Sequence[str]) -> ModulePatterns:
    """The modules that a field lists; names the field where a pattern is none."""
    try:
        return ModulePatterns(names)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
