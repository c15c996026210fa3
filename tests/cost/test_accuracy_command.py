"""`decodetax accuracy`: tables of the package, files by their columns, wrong files."""

import csv

import pytest
from decodetax.harness.core.data_table import data_table
from hand_made import decodetax, strict_json


def write(path, rows):
    with path.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def document(*paths):
    outcome = decodetax("accuracy", *paths, "--json")
    assert outcome.code == 0
    return strict_json(outcome.out)


def refused(*paths):
    outcome = decodetax("accuracy", *paths)
    assert outcome.code == 2
    assert outcome.out == ""
    assert len(outcome.err.splitlines()) == 1
    return outcome.err


SERVING = [dict(row) for row in data_table("serving.csv") if row["concurrency"] == "16"][:3]
FIGURES = [dict(row) for row in data_table("published_engines.csv")][:2]
LAYERS = [dict(row) for row in data_table("measured_mla_decode.csv")]


def test_without_files_every_table_is_of_the_package():
    found = document()
    assert sum(row["rows"] for row in found["serving"]) == 222
    assert {row["constants"] for row in found["serving"]} == {"fitted here", "tested here"}
    assert [row["concurrency"] for row in found["concurrency"]] == [4, 8, 16, 32, 64, 128]
    assert {row["kernel"].partition(",")[0] for row in found["kernels"]} >= {
        "gemm", "decode_attention", "prefill_attention", "moe", "mla_decode", "all_reduce"
    }  # fmt: skip
    assert len(found["published"]) == len(data_table("published_engines.csv"))


def test_files_are_recognised_by_their_columns(tmp_path):
    write(tmp_path / "a.csv", SERVING)
    write(tmp_path / "b.csv", FIGURES)
    write(tmp_path / "c.csv", LAYERS)
    found = document(str(tmp_path))
    assert len(found["runs"]) == 3
    assert [row["figure"] for row in found["published"]] == [row["figure"] for row in FIGURES]
    assert {row["kernel"].partition(",")[0] for row in found["kernels"]} == {"mla_decode"}
    assert [row["concurrency"] for row in found["concurrency"]] == [16]


def test_other_files_of_a_folder_are_named(tmp_path):
    write(tmp_path / "runs.csv", SERVING)
    write(tmp_path / "prices.csv", [{"a": 1}])
    assert document(str(tmp_path))["other_files"] == [str(tmp_path / "prices.csv")]
    assert "prices.csv" in decodetax("accuracy", str(tmp_path)).out


def test_rows_that_cannot_be_modelled_are_listed_and_the_others_counted(tmp_path):
    path = write(tmp_path / "runs.csv", [*SERVING, {**SERVING[0], "gpu": "abacus"}])
    found = document(path)
    assert len(found["runs"]) == 4
    [listed] = found["not_modelled"]
    assert "abacus" in listed["reason"]
    assert "abacus" in decodetax("accuracy", path).out
    assert sum(row["rows"] for row in found["serving"]) == 3


def test_figures_whose_words_or_shape_cannot_be_read_are_listed(tmp_path):
    path = write(
        tmp_path / "figures.csv",
        [
            {**FIGURES[0], "shape": "batch of 3"},
            {**FIGURES[0], "figure": "somebody's model on A100"},
            {**FIGURES[0], "shape": "batch 1 ctx 10 {'tp': 'two'}"},
            {**FIGURES[0], "shape": "batch 1 ctx 10 {tp}"},
        ],
    )
    reasons = [row["reason"] for row in document(path)["not_modelled"]]
    assert "shape: 'batch of 3' is not such as" in reasons[0]
    assert "does not name a model that is known" in reasons[1]
    assert "--tensor-parallel: must be an integer of at least 1, was 'two'" in reasons[2]
    assert "shape:" in reasons[3]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.csv", None, "No such file"),
        ("empty.csv", b"", "none of the tables is in"),
        ("other.csv", b"a,b\n1,2\n", "none of the tables is in"),
        ("no_time.csv", b"model,gpu\na,b\n", "a row of serving runs has concurrency, engine, gpu"),
        ("binary.csv", b"\xff\xfe\x00", "is not a CSV file in UTF-8"),
    ],
)
def test_files_without_a_table_are_refused_in_one_line(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert words in refused(str(path))
    assert name in refused(str(path))


def test_a_folder_without_files_is_refused(tmp_path):
    assert "holds no CSV file" in refused(str(tmp_path))


def test_wrong_cells_are_refused_with_their_column(tmp_path):
    path = write(tmp_path / "runs.csv", [{**SERVING[0], "concurrency": "many"}])
    assert "line 2: concurrency: 'many' is not a positive integer" in refused(path)
    path = write(tmp_path / "empty.csv", [SERVING[0], {**SERVING[0], "concurrency": ""}])
    assert "line 3: concurrency: '' is not a positive integer" in refused(path)
    path = write(tmp_path / "short.csv", [{**SERVING[0], "tpot_ms": None}])
    assert "line 2: tpot_ms: '' is not a positive number" in refused(path)
    path = write(tmp_path / "figures.csv", [{**FIGURES[0], "published": "-1"}])
    assert "published: '-1' is not a positive number" in refused(path)
    (tmp_path / "long.csv").write_text(",".join(SERVING[0]) + "\n" + "1," * 40 + "\n", encoding="utf-8")
    assert "line 2 has more cells than the header" in refused(str(tmp_path / "long.csv"))
