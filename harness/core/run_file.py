"""Reads a run back from the JSON that `decodetax run` wrote."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from .cases import Case, DecodeAttention, DecoderLayer, PrefillAttention, PrefillMatmul
from .errors import UsageError
from .language_model import LanguageModel
from .records import SCHEMA_VERSION, Ceiling, Gap, InterpreterCheck, Row, Run

CASES: Mapping[str, type[Case]] = {
    case.operation: case for case in (PrefillMatmul, DecodeAttention, PrefillAttention, DecoderLayer)
}


def read_run(path: Path) -> Run:
    """The run in a file.

    Raises:
        UsageError: the file cannot be read, is not such a run, or is of a version that is not known here.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"run file: {str(path)!r} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"run file: {str(path)!r} is not JSON") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"run file: {str(path)!r} has schema_version {str(version)[:20]!r}, can be {SCHEMA_VERSION}"
        )
    try:
        _require(document["environment"], "device", "versions", "commit")
        _require(document["environment"]["device"], "kind", "name", "memory_bytes", "last_level_cache_bytes")
        _require(document["settings"], "model", "parameters", "dtype", "prefill_tokens", "usd_per_hour")
        return run_of(document)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"run file: {str(path)!r} is not a whole run ({type(error).__name__}: {error})"
        ) from error


def _require(entry: Mapping[str, Any], *keys: str) -> None:
    """Raise KeyError unless a JSON object has these keys, which reports read by name."""
    for key in keys:
        entry[key]


def run_of(document: Mapping[str, Any]) -> Run:
    """The run that `Run.to_json` made this JSON object of.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: it is not a whole run.
    """
    return Run(
        environment=document["environment"],
        settings=document["settings"],
        ceilings=[Ceiling(**ceiling) for ceiling in document["ceilings"]],
        rows=[Row(case=_case(row), **_fields_of(Row, row)) for row in document["rows"]],
        gaps=[Gap(**_fields_of(Gap, gap)) for gap in document["gaps"]],
        interpreter_checks=[
            InterpreterCheck(case=_case(check), **_fields_of(InterpreterCheck, check))
            for check in document["interpreter_checks"]
        ],
        interrupted=document["interrupted"],
        broken=document.get("broken"),
        counters_reason=document.get("counters_reason"),
        elapsed_s=document["elapsed_s"],
    )


def _fields_of(record: type, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What of a JSON object are fields of a record; the rest follows from them or is the case."""
    names = {field.name for field in fields(record)} - {"case"}
    return {name: value for name, value in entry.items() if name in names}


def _case(entry: Mapping[str, Any]) -> Case:
    shape = dict(entry["shape"])
    if "contexts" in shape:
        shape["contexts"] = tuple(shape["contexts"])
    if "model" in shape:
        shape["model"] = LanguageModel(**shape["model"])
    return CASES[entry["operation"]](**shape)
