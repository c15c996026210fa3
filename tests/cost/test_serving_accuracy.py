"""The end-to-end model against measured serving runs, and how such rows are read."""

import statistics

import pytest
from decodetax.harness.core.data_table import data_table
from decodetax.harness.core.errors import UsageError
from decodetax.harness.cost.serving_accuracy import errors_of, serving_checks

ROW = {
    "model": "llama-3.1-70b",
    "gpu": "H200-SXM-141GB",
    "engine": "vllm",
    "precision": "fp8",
    "input_tokens": "1024",
    "output_tokens": "1024",
    "concurrency": "8",
    "tensor_parallel": "2",
    "ttft_ms": "154.12",
    "tpot_ms": "14.356",
}


@pytest.fixture(scope="module")
def checks():
    return serving_checks(data_table("serving.csv"))


def ratios(checks, **where):
    return [
        each.tpot_ratio for each in checks if all(each.row[name] == value for name, value in where.items())
    ]


def test_every_committed_run_is_modelled(checks):
    assert len(checks) == 222
    assert all(check.reason == "" for check in checks)


@pytest.mark.parametrize(
    ("model", "median", "p90"), [("llama-3.1-70b", 0.08, 0.20), ("deepseek-v3", 0.15, 0.35)]
)
@pytest.mark.parametrize("engine", ["vllm", "trtllm", "sglang"])
def test_the_time_of_an_output_token_is_near_the_measured(checks, engine, model, median, p90):
    for gpu in ("H200-SXM-141GB", "B200"):
        errors = errors_of(ratios(checks, engine=engine, model=model, gpu=gpu))
        if errors is not None:
            assert errors.median <= median
            assert errors.p90 <= p90


def test_no_concurrency_is_biased(checks):
    for concurrency in ("4", "8", "16", "32", "64", "128"):
        assert 0.95 <= statistics.median(ratios(checks, concurrency=concurrency)) <= 1.05, concurrency


def test_rows_that_no_constant_was_fitted_to_are_as_near(checks):
    tested = errors_of([each.tpot_ratio for each in checks if not each.fitted])
    fitted = errors_of([each.tpot_ratio for each in checks if each.fitted])
    assert tested.rows > fitted.rows > 0
    assert tested.median <= 1.5 * fitted.median + 0.01


def test_a_run_of_others_is_never_called_fitted():
    [check] = serving_checks([{**ROW, "tensor_parallel": "1", "concurrency": "7"}])
    assert not check.fitted


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "no-such-model"}, "--model"),
        ({"gpu": "no-such-gpu"}, "--gpu"),
        ({"precision": "fp7"}, "precision: 'fp7' is not one of bf16"),
        ({"kv_precision": "fp7"}, "kv_precision: 'fp7' is not one of bf16"),
        ({"tensor_parallel": "1", "precision": "bf16", "gpu": "h100"}, "does not fit the memory"),
        ({"tensor_parallel": "72"}, "--tensor-parallel: 72 GPUs cannot share"),
    ],
)
def test_rows_that_cannot_be_modelled_have_the_reason(changes, reason):
    [check] = serving_checks([{**ROW, **changes}])
    assert check.modelled is None
    assert check.tpot_ratio is check.ttft_ratio is None
    assert reason in check.reason


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"concurrency": "0"}, "concurrency: '0' is not a positive integer"),
        ({"input_tokens": "1e3"}, "input_tokens: '1e3' is not a positive integer"),
        ({"tpot_ms": "fast"}, "tpot_ms: 'fast' is not a positive number"),
        ({"tpot_ms": "inf"}, "tpot_ms: 'inf' is not a positive number"),
    ],
)
def test_cells_that_are_no_numbers_are_refused(changes, line):
    with pytest.raises(UsageError, match=line):
        serving_checks([{**ROW, **changes}])


def test_an_unknown_engine_has_the_kernels_alone():
    vllm, other = serving_checks([ROW, {**ROW, "engine": "another"}])
    assert other.modelled.tpot_s < vllm.modelled.tpot_s


def test_errors_by_hand():
    errors = errors_of([0.9, 1.0, 1.2, 1.4])
    assert (errors.rows, errors.median, errors.bias) == (4, pytest.approx(0.15), pytest.approx(1.1))
    assert errors.p90 == pytest.approx(0.34)  # seven tenths of the way from 0.2 to 0.4
    assert errors_of([]) is None
