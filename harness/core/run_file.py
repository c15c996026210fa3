"""Reads the JSON file of a run that `decodetax run` wrote."""

from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, ValidationError, convert

from .errors import UsageError, printable, schema_fault
from .files import read_user_json
from .parallelism import ONE_GPU, Parallelism
from .record_fields import LARGEST, Count, Length, NonNegative, Positive, Size
from .records import SCHEMA_VERSION, Run

_Leaf = bool | int | Annotated[float, Meta(ge=-LARGEST, le=LARGEST)] | str | None
_Leaves = _Leaf | list[_Leaf]
_Layers = dict[str, _Leaves | dict[str, _Leaves | dict[str, _Leaves]]]
_Facts = dict[str, _Leaves | dict[str, _Leaf | list[_Leaf | _Layers] | dict[str, _Leaves]]]


class _Cpu(Struct, tag_field="kind", tag="cpu"):
    name: str
    memory_bytes: Positive
    last_level_cache_bytes: NonNegative
    cores: Length
    capability: str
    cpu_quota_cores: Positive | None = None
    last_level_cache_assumed: bool = False


class _Cuda(Struct, tag_field="kind", tag="cuda"):
    name: str
    memory_bytes: Positive
    last_level_cache_bytes: NonNegative
    compute_capability: str
    sm_count: Length
    driver: str = ""
    sm_clock_hz: NonNegative = 0
    sm_clock_max_hz: NonNegative = 0
    power_limit_w: NonNegative = 0


class _Rank(Struct):
    host: str


class _Environment(Struct):
    device: _Cpu | _Cuda
    versions: dict[str, str | None]
    commit: str | None
    started: str = ""
    ranks: dict[Annotated[str, Meta(pattern=r"\A(0|[1-9][0-9]{0,5})\Z")], _Rank] = {}


class _Model(Struct):
    name: str
    stored_in: list[str] = []


class _Settings(Struct):
    model: _Model
    parameters: Count
    dtype: Literal["auto", "bf16", "fp16", "fp32"]
    prefill_tokens: Size
    usd_per_hour: NonNegative | None
    usd_per_hour_source: str | None
    batches: list[Size] = []
    contexts: list[Length] = []
    parallelism: Parallelism = ONE_GPU


class _KnownFacts(Struct):
    """The fields that reports read by name; records.py types the lists."""

    environment: _Environment
    settings: _Settings
    ceilings: list[Any]
    rows: list[Any]
    gaps: list[Any]
    interpreter_checks: list[Any]
    interrupted: bool
    elapsed_s: float
    collectives: list[Any] = []
    one_rank_rows: list[Any] = []
    one_rank_gaps: list[Any] = []


class _AllFacts(Struct):
    """Limits on the other facts of environment and settings: their depth, and finite numbers."""

    environment: _Facts
    settings: _Facts


def read_run(path: Path) -> Run:
    """The run in a file.

    Raises:
        UsageError: the file cannot be read, or is not a valid run of version SCHEMA_VERSION; one line that
            names the file, the field and what is wrong with it.
    """
    try:
        return run_of(read_user_json(path, "run file", max_mib=256))
    except UsageError as error:
        raise UsageError(f"{str(path)!r}: {error}") from None
    except ValidationError as error:
        raise UsageError(f"{str(path)!r}: is not a valid run: {fault_of(error)}") from error


def run_of(document: Any) -> Run:
    """The run of a JSON value that `Run.to_json` made.

    Raises:
        ValidationError: it is not a valid run.
    """
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise ValidationError(f"schema_version is {str(version)[:20]!r}, can be {SCHEMA_VERSION}")
    for schema in (_KnownFacts, _AllFacts):
        convert(document, schema)
    names = ("rows", "interpreter_checks", "collectives", "one_rank_rows")
    entries = {name: [*map(_with_case, document[name])] for name in names if name in document}
    run = convert(document | entries, Run)
    seen = set()
    for index, row in enumerate(run.rows):
        if row.key in seen:
            raise ValidationError(f"duplicate row {row.case.id} {row.provider} - at `$.rows[{index}]`")
        seen.add(row.key)
    exchanged = [(row.case, row.provider) for row in run.collectives]
    if len(set(exchanged)) != len(exchanged):
        raise ValidationError("duplicate row of a collective - at `$.collectives`")
    return run


def _with_case(entry: Any) -> Any:
    """A row or check with its "shape" as "case", tagged with the operation for the schema of cases."""
    if not isinstance(entry, dict):
        return entry
    shape = entry.get("shape")
    if isinstance(shape, dict):
        shape = {**shape, "operation": entry.get("operation")}
    return {**entry, "case": shape}


def fault_of(error: ValidationError, within: str = "") -> str:
    """Where a document, or the part `within` of one, differs from the schema, and how."""
    fault = schema_fault(error, (".case.operation", ".operation"), (".case", ".shape"))
    return printable(f"{within}.{fault}" if within else fault)[:300]
