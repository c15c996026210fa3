"""Families of language models, described in data, and the fields of a `config.json` by their names in it."""

import functools
import importlib.resources
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import UsageError, short_repr
from .rotary import SIZE_AT_MOST

_MOST_LAYERS = 4096

_NULL_IS_NONE = ("window", "head_dim", "global_head_dim", "softcap")
"""Slots where an explicit null is no default: there is no window, and a head's size follows from others."""

_SAID_IF_ASSUMED = ("q_heads", "kv_heads", "head_dim", "vocab_size", "intermediate_size", "tied", "window",
                    "full_every", "global_head_dim", "dense_first")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of decoders.

    Attributes:
        name: its `model_type`.
        slots: what a layer needs, and where it stands in a config; see `data/model_families.json`.
        architectures: names of the classes that load it.
    """

    name: str
    slots: Mapping[str, Any]
    architectures: tuple[str, ...]


@functools.cache
def _data() -> dict[str, Any]:
    path = importlib.resources.files(__package__) / "data" / "model_families.json"
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


@functools.cache
def families() -> dict[str, Family]:
    """The families that can be read, by `model_type`."""
    described = _data()["families"]

    def slots(name: str) -> dict[str, Any]:
        own: dict[str, Any] = described[name]
        return (slots(own["base"]) if "base" in own else {}) | own

    return {
        name: Family(name=name, slots=slots(name), architectures=tuple(own.get("architectures", ())))
        for name, own in described.items()
        if name not in {"decoder", "moe"}
    }


def reason_to_refuse(level: Mapping[str, Any]) -> str | None:
    """Why no family describes a model, by a config's `model_type` and fields; None if one may."""
    model_type = level.get("model_type")
    if isinstance(model_type, str) and model_type in _refused_types():
        return f"{_refused_types()[model_type]} (model_type {model_type})"
    return next((f"{why} ({name})" for name, why in _data()["never"].items() if level.get(name)), None)


@functools.cache
def _refused_types() -> dict[str, str]:
    """Types of models that cannot be read, and why."""
    return {name: reason for reason, names in _data()["refused"].items() for name in names.split()}


def attention_kinds(family: Family) -> dict[str, str]:
    """Kind of a layer by its name in `layer_types`: "full", "window", "linear", "mlp" or "moe"."""
    kinds: dict[str, str] = _data()["kinds"] | family.slots.get("kinds", {})
    return kinds


@dataclass(kw_only=True)
class Fields:
    """A config's fields, by the slots of its family.

    Attributes:
        config: the JSON object with the shapes.
        family: the family that names them.
        assumed: lines on the defaults that were taken.
    """

    config: Mapping[str, Any]
    family: Family
    assumed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._slots = dict(self.family.slots)
        for conditions, replaced in self.family.slots.get("when", ()):
            if all(self._condition(name, value) for name, value in conditions.items()):
                self._slots |= replaced

    def _condition(self, name: str, value: bool) -> bool:
        found = self.config.get(name)
        if found is None:
            found = self.family.slots.get("flags", {}).get(name, False)
        if not isinstance(found, bool):
            raise UsageError(f"{name}: must be true or false, was {short_repr(found)}")
        return found is value

    def raw(self, slot: str, layer: int | None = None) -> tuple[str, Any]:
        """The name of a slot's field and its value, of one layer if given; None where there is none.

        Raises:
            UsageError: a list has another length than there are layers.
        """
        described = self._slots.get(slot)
        names = described.get("names", []) if isinstance(described, dict) else described
        if not isinstance(names, list):
            return slot, self._constant(described, layer)
        for name in names:
            found, value = self._field(name, layer)
            if found and value is None and slot in _NULL_IS_NONE:
                return name, None
            if value is not None:
                mapped = described.get("map", {}) if isinstance(described, dict) else {}
                return name, mapped.get(value, value) if isinstance(value, str) else value
        default = described.get("default") if isinstance(described, dict) else None
        if isinstance(described, dict) and self.config.get(described.get("unless", "")) is not None:
            default = None
        value = self._constant(default, layer)
        if value not in (None, 0) and names and slot in _SAID_IF_ASSUMED:
            self.assumed[slot] = f"{names[0]}: absent, taken as {json.dumps(value)}"
        return (names[0] if names else slot), value

    def _constant(self, constant: Any, layer: int | None) -> Any:
        if not (isinstance(constant, str) and constant.startswith("= ")):
            return constant
        *times, other = constant.removeprefix("= ").split()
        if not times:
            return self.raw(other, layer)[1]
        size = self.size(other, layer)
        return None if size is None else int(times[0]) * size

    def _field(self, name: str, layer: int | None) -> tuple[bool, Any]:
        """Whether a field is there, and its value."""
        at: Any = self.config
        of_layers = self.config.get("per_layer_config")
        if layer is not None and isinstance(of_layers, dict):
            for key in (str(layer), f"{layer:02d}"):
                if isinstance(of_layers.get(key), dict) and name in of_layers[key]:
                    return True, of_layers[key][name]
        for part in name.split("."):
            if not isinstance(at, dict) or part not in at:
                return False, None
            at = at[part]
        if layer is not None and isinstance(at, list):
            return True, self.listed(name, at)[layer]
        return True, at

    def listed(self, name: str, value: Any) -> list[Any]:
        """A list of one item for each layer.

        Raises:
            UsageError: it is none.
        """
        layers = self.layers
        if not isinstance(value, list) or len(value) != layers:
            raise UsageError(
                f"{name}: must be a list of {layers}, one for each layer, was {short_repr(value)}"
            )
        return value

    @functools.cached_property
    def layers(self) -> int:
        """Number of layers; that of the listed ones where the config does not give it."""
        listed = self.raw("layer_types")[1]
        if self.size("layers") is None and isinstance(listed, list) and 0 < len(listed) <= _MOST_LAYERS:
            return len(listed)
        return self.required_size("layers", most=_MOST_LAYERS)

    def size(
        self, slot: str, layer: int | None = None, *, least: int = 1, most: int = SIZE_AT_MOST
    ) -> int | None:
        """An integer; None where there is none.

        Raises:
            UsageError: it is no integer from `least` to `most`.
        """
        name, value = self.raw(slot, layer)
        if value is None:
            return None
        if type(value) is not int or not least <= value <= most:
            raise UsageError(f"{name}: must be an integer from {least} to {most}, was {short_repr(value)}")
        return value

    def required_size(self, slot: str, layer: int | None = None, *, most: int = SIZE_AT_MOST) -> int:
        """An integer from 1 to `most`.

        Raises:
            UsageError: it is none, or absent.
        """
        size = self.size(slot, layer, most=most)
        if size is None:
            raise UsageError(f"lacks {self.name(slot)}")
        return size

    def require(self, *slots: str) -> None:
        """Checks that sizes are there.

        Raises:
            UsageError: some are not; the line lists them all.
        """
        listed = {"layers"} if isinstance(self.raw("layer_types")[1], list) else set()
        absent = [self.name(slot) for slot in slots if slot not in listed and self.raw(slot)[1] is None]
        if absent:
            raise UsageError(f"lacks {', '.join(absent)}")

    def flag(self, slot: str, layer: int | None = None) -> bool:
        """Whether something holds; False where nothing says so.

        Raises:
            UsageError: the field is neither true nor false.
        """
        name, value = self.raw(slot, layer)
        if value is None:
            return False
        if value not in (True, False):
            raise UsageError(f"{name}: must be true or false, was {short_repr(value)}")
        return bool(value)

    def text(self, slot: str) -> str:
        """A constant of the family, such as the kind of its norms."""
        return str(self._slots.get(slot) or "")

    def name(self, slot: str) -> str:
        """The usual name of a slot's field."""
        described = self._slots.get(slot)
        names = described.get("names") if isinstance(described, dict) else described
        return str(names[0]) if isinstance(names, list) and names else slot

    def indices(self, slot: str, *, first: int = 0) -> frozenset[int] | None:
        """Numbers of layers, counted from `first` in the config and from 0 here; None where there are none.

        Raises:
            UsageError: they are no list of numbers of layers.
        """
        name, value = self.raw(slot)
        if value is None:
            return None
        last = self.layers - 1 + first
        if not isinstance(value, list) or not all(
            type(each) is int and first <= each <= last for each in value
        ):
            raise UsageError(
                f"{name}: must be a list of layers from {first} to {last}, was {short_repr(value)}"
            )
        return frozenset(each - first for each in value)

    def reasons_to_refuse(self) -> Iterator[str]:
        """Fields that describe what the family does not have."""
        read = set(_names(list(self._slots.values())))
        for name, reason in _data()["watched"].items():
            value = self.config.get(name)
            is_one = type(value) is int and value <= 1
            if value and not (is_one and "experts" in name) and name not in read:
                yield f"{reason} ({name})"


def _names(described: Any) -> Iterator[str]:
    """The first parts of all field names in slots."""
    if isinstance(described, dict):
        for key, value in described.items():
            if key != "default":
                yield from _names(value)
    elif isinstance(described, list):
        for each in described:
            if isinstance(each, str):
                yield each.partition(".")[0]
            else:
                yield from _names(each)
