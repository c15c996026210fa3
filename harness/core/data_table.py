"""Reads the tables of public figures that come with the package."""

import csv
import functools
import importlib.resources
from types import MappingProxyType


@functools.cache
def data_table(file_name: str) -> tuple[MappingProxyType[str, str], ...]:
    """Gives the rows of a file of `data/`, each a read-only mapping of column to text."""
    text = (importlib.resources.files(__package__) / "data" / file_name).read_text(encoding="utf-8")
    return tuple(MappingProxyType(row) for row in csv.DictReader(text.splitlines()))
