"""The text of `decodetax predict`: what the figures are of, then their tables."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..core.table import TERMINAL_COLUMNS, Column, Table, percent
from ..core.units import number, seconds
from .engine import ONE_GRAPH
from .model_facts import in_billions


def _milliseconds(time_s: float) -> str:
    return number(time_s * 1e3)


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:,.1f}"


def _error(share: float) -> str:
    return "?" if math.isnan(share) else f"{share:.0%}"


_SHOW_USD = "{:.4g}".format
_WHERE = {"gpus": Column("gpu"), "batch": Column("batch"), "context": Column("context")}
_COMPONENTS = {
    "weights": Column("weights", show=percent),
    "matmul_arithmetic": Column("GEMM compute", show=percent),
    "kv_cache": Column("KV cache", show=percent),
    "attention_arithmetic": Column("attention compute", show=percent),
    "activations": Column("activations", show=percent, wide=True),
    "communication": Column("all-reduce", show=percent),
    "launch": Column("launch", show=percent),
    "engine": Column("engine", show=percent, wide=True),
}
_BASIS_COLUMNS = {"derived_error": Column("error, derived", show=_error)}
_TOKEN_COLUMNS = {
    **_WHERE,
    "ttft_alone_s": Column("TTFT ms", show=_milliseconds),
    "tpot_s": Column("TPOT ms", show=_milliseconds),
    "input_s_per_token": Column("s/input token", show=seconds, wide=True),
    "output_s_per_token": Column("s/output token", show=seconds, wide=True),
    "input_tokens_per_s": Column("input tokens/s", wide=True),
    "output_tokens_per_s": Column("output tokens/s"),
    "gap": Column("gap", show="{:.2f}".format),
    "input_usd_per_mtok": Column("$/1M input", show=_SHOW_USD),
    "output_usd_per_mtok": Column("$/1M output", show=_SHOW_USD),
    "input_bound": Column("input bound", show=lambda name: _COMPONENTS[name].heading, wide=True),
    "bound": Column("output bound", show=lambda name: _COMPONENTS[name].heading, wide=True),
    "break_even_batch": Column("break-even batch"),
    "largest_batch": Column("largest batch", wide=True),
}
_REQUEST_COLUMNS = {
    "gpus": Column("gpu"),
    "concurrency": Column("concurrency"),
    "running": Column("running", wide=True),
    "ttft_alone_s": Column("TTFT ms, alone", show=_milliseconds),
    "ttft_s": Column("TTFT ms", show=_milliseconds),
    "tpot_s": Column("TPOT ms", show=_milliseconds),
    "requests_per_s": Column("requests/s", wide=True),
    "output_tokens_per_s": Column("output tokens/s"),
    "usd_per_request": Column("$/request", show=_SHOW_USD),
    "usd_per_mtok": Column("$/1M tokens", show=_SHOW_USD),
    "usd_per_input_mtok": Column("$/1M input", show=_SHOW_USD, wide=True),
    "usd_per_output_mtok": Column("$/1M output", show=_SHOW_USD, wide=True),
    "saturated": Column("waits for memory", wide=True),
}
_LIMIT_COLUMNS = {
    "gpus": Column("gpu"),
    "saturation_concurrency": Column("saturated from"),
    "memory_concurrency": Column("fits memory"),
    "slo_concurrency": Column("meets the bounds"),
    "ttft_s": Column("TTFT ms there", show=_milliseconds),
    "tpot_s": Column("TPOT ms there", show=_milliseconds),
}
_FIT_COLUMNS = {
    **_WHERE,
    "weight_bytes": Column("weights GiB", show=_gib),
    "kv_bytes": Column("KV cache GiB", show=_gib),
    "usable_bytes": Column("usable GiB", show=_gib),
    "largest_batch": Column("largest batch"),
    "largest_context": Column("largest context"),
    "fitting_tensor_parallel": Column("enough: tensor parallel"),
}


def document_text(document: Mapping[str, Any], *, wide: bool) -> str:
    """Facts and warnings, then tables.

    Args:
        document: what the command prints as JSON, with "predictions" or "requests".
        wide: whether all columns are shown.
    """
    of_requests = "requests" in document
    rows = document["requests" if of_requests else "predictions"]
    conditions = _request_conditions(rows) if of_requests else _conditions(rows)
    tables = _request_tables(document) if of_requests else _token_tables(rows, wide=wide)
    if document["does_not_fit"]:
        left_out = map(_with_gpus, document["does_not_fit"])
        tables.append(Table.select("Left out: does not fit the memory of a GPU", _FIT_COLUMNS, left_out))
    blocks = ["\n".join(map(_filled, _facts(document["model"], rows[0])))]
    blocks += [_filled(f"Warning: {warning}.") for warning in document["warnings"]]
    blocks += [table.text(wide=wide) for table in tables]
    if of_requests:
        blocks += _slo_lines(document["limits"])
    blocks.append(_filled(f"{conditions}{_basis_sentence(rows)}"))
    return "\n\n".join(blocks)


def _token_tables(rows: Sequence[Mapping[str, Any]], *, wide: bool) -> list[Table]:
    """Tokens and their cost, and the parts of an output token's time."""
    columns = {**_TOKEN_COLUMNS, **_BASIS_COLUMNS}
    if not all(row["basis"]["measured"] for row in rows):  # a terminal has no room for both
        columns["output_tokens_per_s"] = replace(columns["output_tokens_per_s"], wide=True)
    title = f"Shares of an output token's time{'' if wide else '; --wide adds activations'}"
    return [
        Table.select("Tokens and their cost", columns, _shown(rows)),
        Table.select(title, _WHERE | _COMPONENTS, (_with_gpus(_shares(row)) for row in rows)),
    ]


def _request_tables(document: Mapping[str, Any]) -> list[Table]:
    """Steady states at each concurrency, and the concurrencies that limit a deployment."""
    limits = [
        {**row, **{name: (row["slo"] or {}).get(name) for name in ("ttft_s", "tpot_s")}}
        for row in document["limits"]
    ]
    return [
        Table.select(
            "Requests in a steady state", _REQUEST_COLUMNS | _BASIS_COLUMNS, _shown(document["requests"])
        ),
        Table.select("Largest concurrency", _LIMIT_COLUMNS, map(_with_gpus, limits)),
    ]


def _slo_lines(limits: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each deployment where no concurrency meets the bounds."""
    lines = []
    for row in limits:
        if row["slo_concurrency"] == 0:
            bounds = {name: row[f"slo_{name}_s"] for name in ("ttft", "tpot")}
            texts = [f"{name.upper()} {bound * 1e3:g} ms" for name, bound in bounds.items() if bound]
            lines.append(_filled(f"{_with_gpus(row)['gpus']}: no concurrency meets {' and '.join(texts)}."))
    return lines


def _facts(model: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[str]:
    """What is modelled: the model, its size, formats and cache, and what was assumed of it."""
    active = model["active_parameters"]
    of_them = f", {in_billions(active)} active" if active != model["parameters"] else ""
    state = model["state_bytes_per_sequence"]
    yield (
        f"Modelled, not measured: {model['name']}, {in_billions(model['parameters'])} parameters{of_them}; "
        f"weights: {model['formats']}; KV cache: {row['cache_dtype']}, "
        f"{model['kv_bytes_per_token']:,.0f} bytes a token"
        + (f" and states of {state:,.0f} bytes a sequence" if state else "")
        + "."
    )
    if model["assumed"]:
        yield f"Assumed: {'; '.join(model['assumed'])}."


def _conditions(rows: Sequence[Mapping[str, Any]]) -> str:
    first = rows[0]
    as_context = all(row["prompt"] == row["context"] for row in rows)
    length = "as many tokens as the context" if as_context else f"{first['prompt']:,} tokens"
    return (
        f"Prompts have {length}. TTFT is the time to the first token of a prompt alone; TPOT, the time per "
        "output token of each user, that of a decode step. The break-even batch is the smallest that fits "
        f"with a gap of at most {first['price_ratio']:.4g}, the price ratio; - where there is none. Price "
        f"ratio: {first['price_ratio_source']}."
    )


def _request_conditions(rows: Sequence[Mapping[str, Any]]) -> str:
    first = rows[0]
    cached = f", {first['cache_hits']:.0%} of the input in a prefix cache" if first["cache_hits"] else ""
    waiting = any(row["saturated"] for row in rows)
    return (
        f"Requests of {first['input_tokens']:,} input and {first['output_tokens']:,} output tokens{cached}; "
        "as one ends the next begins. TTFT is the time to the first token, TPOT the time per output token "
        "after it, both of one user. Throughput and cost are those of all GPUs. "
        + ("Requests that do not fit the memory wait, which TTFT counts. " if waiting else "")
        + (
            "No engine's own time is counted, so that a served model is slower: --engine adds it."
            if first["engine"] == ONE_GRAPH.name
            else f"Engine: {first['engine']}."
        )
    )


def _filled(text: str) -> str:
    return textwrap.fill(text, TERMINAL_COLUMNS)


def _shown(rows: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Rows as tables show them: with the error to expect of those whose kernels were not all measured."""
    for row in rows:
        basis = row["basis"]
        error = None
        if not basis["measured"]:
            error = math.nan if basis["expected_error"] is None else basis["expected_error"]
        yield {**_with_gpus(row), "derived_error": error}


def _basis_sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    """What "derived" and "error" mean, and of which kernels; empty if all were measured."""
    derived = {
        f"{each['kernel'].replace('_', ' ')} {each['variant']}".strip(): each["gpu"]
        for row in rows
        for each in row["basis"]["kernels"]
        if not each["measured"]
    }
    if not derived:
        return ""
    sources = [f"{what} ({f'from {gpu}' if gpu else 'from none'})" for what, gpu in derived.items()]
    return (
        f" Derived, as not measured on the GPU in its format: {', '.join(sources)}. The error is that to "
        "expect of a decode step, by the kernels' median errors; ? where it is unknown."
    )


def _with_gpus(row: Mapping[str, Any]) -> Mapping[str, Any]:
    several = row["gpus"] > 1
    return {**row, "gpus": f"{row['gpus']} x {row['gpu']}" if several else row["gpu"]}


def _shares(row: Mapping[str, Any]) -> dict[str, Any]:
    shares = {name: part_s / row["output_s_per_token"] for name, part_s in row["output_split_s"].items()}
    return {**row, **shares} | ({} if row["gpus"] > 1 else {"communication": None})
