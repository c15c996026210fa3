"""Tables of modelled tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from ..core.units import number, seconds

_COMPONENTS = {
    "weights": "weights",
    "matmul_arithmetic": "matmul arithmetic",
    "kv_cache": "KV cache",
    "attention_arithmetic": "attention arithmetic",
    "activations": "activations",
    "communication": "communication",
    "launch": "launch",
}


def predict_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Three tables and a line: tokens and their cost, what an output token's time goes to, requests.

    Args:
        rows: `Prediction.to_json`, where a request was asked for with its "request".
    """
    first = rows[0]
    as_context = all(row["prompt"] == row["context"] for row in rows)
    heading = (
        f"Modelled, not measured: {first['model']}, weights in {first['dtype']}, cache in "
        f"{first['cache_dtype']}, prompt {'as the context' if as_context else first['prompt']}"
    )
    blocks = [heading, _tokens(rows), _split(rows)]
    if "request" in first:
        blocks.append(_requests(rows))
    return "\n\n".join(blocks)


def published_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Published figures beside the model's, by `Comparison.to_json`; those that are missed say so."""
    headers = ("figure", "unit", "published", "modelled", "error", "held to", "kept", "remark")
    cells = [
        (
            row["what"],
            row["unit"],
            number(row["published"]),
            number(row["modelled"]),
            f"{row['relative_error']:+.1%}",
            "-" if row["within"] is None else f"{row['within']:.1%}",
            {True: "yes", False: "MISSED", None: "-"}[row["kept"]],
            row["remark"],
        )
        for row in rows
    ]
    return tabulate(cells, headers=headers, disable_numparse=True)


def _where(row: Mapping[str, Any]) -> tuple[str, int, int]:
    gpus = row["tensor_parallel"]
    return (row["gpu"] if gpus == 1 else f"{gpus} x {row['gpu']}", row["batch"], row["context"])


def _tokens(rows: Sequence[Mapping[str, Any]]) -> str:
    headers = (
        "gpu", "batch", "context", "s/input token", "s/output token", "input tokens/s", "output tokens/s",
        "gap", "$/1M input", "$/1M output", "input bound", "output bound", "break-even batch",
        "largest batch",
    )  # fmt: skip
    cells = [
        (
            *_where(row),
            seconds(row["input_s_per_token"]),
            seconds(row["output_s_per_token"]),
            number(row["input_tokens_per_s"]),
            number(row["output_tokens_per_s"]),
            f"{row['gap']:.2f}",
            _usd(row["input_usd_per_mtok"]),
            _usd(row["output_usd_per_mtok"]),
            _COMPONENTS[row["input_bound"]],
            _COMPONENTS[row["bound"]],
            f"{row['break_even_batch']} (ratio {row['price_ratio']:g})"
            if row["break_even_batch"] is not None
            else f"none fits (ratio {row['price_ratio']:g})",
            row["largest_batch"],
        )
        for row in rows
    ]
    return tabulate(cells, headers=headers, disable_numparse=True)


def _split(rows: Sequence[Mapping[str, Any]]) -> str:
    headers = ("gpu", "batch", "context", *_COMPONENTS.values())
    cells = [
        (
            *_where(row),
            *(f"{row['output_split_s'][name] / row['output_s_per_token']:.0%}" for name in _COMPONENTS),
        )
        for row in rows
    ]
    table = tabulate(cells, headers=headers, disable_numparse=True)
    return f"What an output token's time goes to\n{table}"


def _requests(rows: Sequence[Mapping[str, Any]]) -> str:
    headers = ("gpu", "batch", "prompt", "of it cached", "output", "input s", "output s", "$/request")
    cells = [
        (
            *_where(row)[:2],
            row["request"]["prompt"],
            f"{row['request']['cache_hits']:.0%}",
            row["request"]["output"],
            seconds(row["request"]["input_s"]),
            seconds(row["request"]["output_s"]),
            _usd(row["request"]["usd"]),
        )
        for row in rows
    ]
    table = tabulate(cells, headers=headers, disable_numparse=True)
    return f"One request, device seconds of all its tokens\n{table}"


def _usd(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
