"""Calibration of layers recovers known constants and rejects malformed rows; the page shows what it keeps."""

import csv
from pathlib import Path

import numpy as np
import pytest
from decodetax.harness.core.data_table import data_table
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.gpus import find_gpu
from decodetax.harness.cost.all_reduce_time import all_reduce_time
from decodetax.harness.cost.calibrate.__main__ import SOURCE
from decodetax.harness.cost.calibrate.accuracy import accuracy_table
from decodetax.harness.cost.calibrate.layer_accuracy import (
    SAMPLE_ROWS,
    accuracy_columns,
    files,
    held_out_errors,
)
from decodetax.harness.cost.calibrate.layer_fit import errors_by_class, fit_layers, kept_constants, modelled
from decodetax.harness.cost.calibrate.layers import MLA, MOE, read_layer_file, read_layer_sample, read_layers
from decodetax.harness.cost.mla_time import mla_decode_time
from decodetax.harness.cost.moe_time import moe_time

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
SAMPLE = read_layer_sample()
HELD_TO = {
    "moe": (0.15, 0.40),
    "mla_decode": (0.12, 0.30),
    "all_reduce": (0.15, 0.35),
}  # median, 90th percentile


def test_the_page_states_the_errors_on_the_kept_rows():
    assert accuracy_table({"all rows": errors_by_class(SAMPLE, kept_constants(SAMPLE))}) in PAGE


def test_the_page_states_the_constants():
    for row in data_table("layer_constants.csv"):
        start = f"| {row['kernel']} | {row['gpu']} | {row['variant']} |"
        [line] = [line for line in PAGE.splitlines() if line.startswith(start)]
        assert f"{row['constant']} {row['value']}" in line


def test_the_page_states_the_errors_on_held_out_families():
    for row in data_table("layer_errors.csv"):
        if row["kernel"] == MLA and row["rows"] == "held-out families":
            assert f"{row['median_percent']}% / {row['p90_percent']}%" in PAGE


def test_the_kept_rows_are_within_the_targets():
    off = errors_by_class(SAMPLE, kept_constants(SAMPLE))
    pooled = {}
    for (name, _, _), errors in off.items():
        pooled.setdefault(name, []).append(errors)
    assert pooled.keys() == {
        "all_reduce",
        "mla_decode",
        "moe, balanced",
        "moe, power_law_1.01",
        "moe, power_law_1.2",
    }
    for name, parts in pooled.items():
        median, tail = HELD_TO[name.partition(",")[0]]
        errors = np.concatenate(parts)
        assert np.median(errors) <= median, name
        assert np.percentile(errors, 90) <= tail, name


def test_the_kept_errors_are_within_the_targets_and_cover_all_constants():
    rows = data_table("layer_errors.csv")
    for row in rows:
        if row["rows"] == "held-out families" and row["variant"] != "vllm_eager":
            median, tail = HELD_TO[row["kernel"]]
            assert float(row["median_percent"]) <= 100 * median, row
            assert float(row["p90_percent"]) <= 100 * tail, row
    measured = {(each.table, each.gpu.name, each.variant) for each in SAMPLE}
    assert measured == {(row["kernel"], row["gpu"], row["variant"]) for row in rows if row["gpu"]}
    assert all(SOURCE in row["source"] for row in data_table("layer_constants.csv"))


def test_functions_give_the_times_that_the_calibration_compares():
    for measured in SAMPLE:
        sizes = {name: values[0] for name, values in measured.sizes.items()}
        expected = modelled(measured.only(np.array([0])), kept_constants([measured]))[0]
        if measured.table == MOE:
            dtype, weight_bytes = {
                "bf16": ("bf16", 2.0),
                "w4a16": ("bf16", 0.53125),
            }.get(measured.variant, (measured.variant, 1.0))
            time = moe_time(
                measured.gpu,
                tokens=int(sizes["tokens"]),
                hidden_size=int(sizes["hidden_size"]),
                intermediate_size=int(sizes["expert_intermediate"]),
                experts=int(sizes["experts"]),
                experts_per_token=int(sizes["experts_per_token"]),
                gated=sizes["gates"] == 2,
                dtype=dtype,
                weight_bytes_per_element=weight_bytes,
                expert_parallel=int(sizes["expert_parallel"]),
                tensor_parallel=int(sizes["tensor_parallel"]),
                routing=str(measured.routing[0]),
            )
        elif measured.table == MLA:
            pairs = sizes["batch"] * sizes["context"]
            time = mla_decode_time(
                measured.gpu,
                sequences=int(sizes["batch"]),
                q_heads=int(sizes["q_heads"]),
                kv_bytes=pairs * 576 * (2 if measured.variant == "bf16" else 1),
                operations=2 * pairs * sizes["q_heads"] * 1088,
                dtype=measured.variant,
            )
        else:
            time = all_reduce_time(
                measured.gpu,
                gpus=int(sizes["num_gpus"]),
                reduced_bytes=float(sizes["message_elements"] * sizes["element_bytes"]),
                how=measured.variant,
            )
        assert time.time_s == pytest.approx(expected), measured.key


def test_the_fit_recovers_the_constants_that_made_the_times():
    [mla] = [each for each in SAMPLE if each.key == (MLA, "H100-SXM5-80GB", "bf16")]
    truth = kept_constants([mla])
    made = type(mla)(**{**vars(mla), "time_s": modelled(mla, truth)})
    fitted = fit_layers([made])
    [off] = errors_by_class([made], fitted).values()
    assert np.percentile(off, 90) < 0.03
    slower = type(mla)(**{**vars(mla), "time_s": 2 * made.time_s})
    assert fit_layers([slower])[mla.key].fixed_s == pytest.approx(2 * truth[mla.key].fixed_s, rel=0.2)


def test_held_out_families_are_not_fitted_to():
    [mla] = [each for each in SAMPLE if each.key == (MLA, "H100-SXM5-80GB", "fp8")]
    [held] = held_out_errors([mla]).values()
    assert len(held) == len(mla.time_s)
    assert sorted(set(mla.families())) == list(range(len(set(mla.sizes["q_heads"]))))
    off = np.concatenate(list(errors_by_class([mla], fit_layers([mla])).values()))
    assert np.median(held) >= np.median(off)


def test_rows_read_back_as_they_were_kept(tmp_path):
    tables = [each for each in SAMPLE if each.table == MLA]
    written = files(tables, kept_constants(tables), {"held-out families": {}, "other GPUs": {}}, SOURCE)
    assert set(written) == {"layer_constants.csv", "measured_mla_decode.csv"}
    assert [dict(row) for row in data_table("measured_mla_decode.csv")] == written["measured_mla_decode.csv"]
    assert {MOE, MLA, "all_reduce"} == SAMPLE_ROWS.keys()
    assert read_layers(tmp_path) == []


def written_table(folder, name, **changes):
    row = dict(data_table("measured_all_reduce.csv")[0]) | changes
    path = folder / name
    with path.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, row)
        writer.writeheader()
        writer.writerow(row)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_gpus": "two"}, "a.csv: line 2: a size or time is not a number"),
        ({"latency_us": "-1"}, "a.csv: line 2: sizes and times are positive numbers"),
        ({"gpu": "X9"}, "a.csv: gpu 'X9' is not a name of `decodetax devices`"),
        ({"how": "mpi"}, "a.csv: line 2: how 'mpi' is not one of vllm_graph, trtllm"),
    ],
)
def test_rejects_a_malformed_row_in_one_line(tmp_path, changes, message):
    with pytest.raises(UsageError) as error:
        read_layer_file(written_table(tmp_path, "a.csv", **changes))
    assert str(error.value).startswith(message)


def test_the_second_row_of_a_message_of_nccl_has_8_bit_elements(tmp_path):
    rows = [dict(row) for row in data_table("measured_all_reduce.csv") if row["how"] == "nccl"][:1]
    rows = [
        rows[0] | {"message_elements": size, "element_bytes": "2"} for size in ("64", "128", "128", "256")
    ]
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    [measured] = read_layer_file(tmp_path / "a.csv")
    assert measured.sizes["element_bytes"].tolist() == [2, 2, 1, 1]


def test_a_table_of_other_attention_is_not_one_of_latents(tmp_path):
    path = tmp_path / "decode_attention.csv"
    path.write_text(
        "gpu,framework,version,kv_dtype,batch,q_heads,kv_heads,head_dim,context,latency_us\n"
        "H100-SXM5-80GB,x,1,bfloat16,1,8,8,128,16,9\n",
        encoding="utf-8",
    )
    assert read_layer_file(path) == []


@pytest.mark.slow
def test_all_reduce_is_fitted_after_nccl_and_put_to_other_gpus():
    tables = [each for each in SAMPLE if each.variant in ("nccl", "vllm_graph") and each.gpu.sm >= 90]
    columns = accuracy_columns(tables, fit_layers(tables))
    assert columns["held-out families"].keys() == columns["all rows"].keys()
    assert all(name == "all_reduce" for name, _, _ in columns["other GPUs"])
    assert find_gpu("b200").name in {gpu for _, gpu, _ in columns["other GPUs"]}


def test_rows_of_fp4_on_another_gpu_are_put_to_the_constants_of_fp8(tmp_path):
    row = dict(data_table("measured_moe.csv")[0]) | {"gpu": "B200", "dtype": "nvfp4"}
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, row)
        writer.writeheader()
        writer.writerow(row)
    tables = read_layer_file(tmp_path / "a.csv")
    [key] = errors_by_class(tables, kept_constants(tables))
    assert key[1:] == ("B200", "fp4")
    assert fit_layers(tables) == {}
