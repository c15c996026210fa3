"""What wrong names of commands, options and GPUs suggest."""

import re

import pytest
from decodetax.harness.cli import cli
from decodetax.harness.core.data_table import data_table
from decodetax.harness.core.errors import UsageError
from decodetax.harness.core.gpus import find_gpu, gpu_table
from hand_made import assert_misuse, decodetax


def refusal(name):
    with pytest.raises(UsageError) as refused:
        find_gpu(name)
    return str(refused.value)


@pytest.mark.parametrize(
    ("command", "wrong", "right"),
    [
        ("predict", "--tp", "--tensor-parallel"),
        ("predict", "--tensor_parallel_size", "--tensor-parallel"),
        ("predict", "--gpus", "--gpu"),
        ("predict", "--bs", "--batch"),
        ("predict", "--ctx", "--context"),
        ("predict", "--kv-cache-dtype", "--cache-dtype"),
        ("predict", "--quantization", "--dtype"),
        ("predict", "-m", "--model"),
        ("claims", "--gpus", "--gpu"),
        ("run", "--gpus", "--device"),
        ("run", "--bs", "--batch"),
        ("tune", "--max-model-len", "--context"),
        ("count", "--precision", "--dtype"),
        ("price", "--isl", "--input"),
        ("predict", "--contxt", "--context"),
    ],
)
def test_an_option_of_other_tools_suggests_ours(command, wrong, right):
    assert_misuse(decodetax(command, wrong, "8"), wrong, "Did you mean", right)


@pytest.mark.parametrize("command", [name for name in cli.commands if name != "doctor"])
def test_every_command_refuses_an_unknown_option_in_one_line(command):
    assert_misuse(decodetax(command, "--no-such-thing", "8"), "--no-such-thing")


@pytest.mark.parametrize(
    ("wrong", "right"), [("estimate", "predict"), ("gpus", "devices"), ("predit", "predict")]
)
def test_another_name_of_a_command_suggests_it(wrong, right):
    assert_misuse(decodetax(wrong), repr(wrong), right)


def test_suggested_commands_and_options_exist():
    options = {name for command in cli.commands.values() for param in command.params for name in param.opts}
    for row in data_table("other_names.csv"):
        if row["kind"] == "command":
            assert row["meant"] in cli.commands
            assert row["name"] not in cli.commands
        elif row["kind"] == "option":
            assert set(row["meant"].split()) <= options, row
        elif row["kind"] == "gpu":
            assert re.compile(row["name"])


@pytest.mark.parametrize(
    "name", ["2xh100", "2 x h100", "2X H100", "h100x2", "h100 x 2", "h100*2", "h100:2", "2\u00d7h100"]
)
def test_a_number_of_gpus_suggests_tensor_parallelism(name):
    assert_misuse(decodetax("predict", "--gpu", name), repr(name), "--gpu h100 --tensor-parallel 2")
    outcome = decodetax("claims", "--gpu", name)
    assert_misuse(outcome, repr(name), "--gpu h100")
    assert "tensor-parallel" not in outcome.err


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("mi300x", "an AMD GPU"),
        ("MI250", "an AMD GPU"),
        ("rx 7900 xtx", "an AMD GPU"),
        ("gaudi3", "an Intel"),
        ("tpu-v5e", "a Google TPU"),
        ("v5p", "a Google TPU"),
        ("trn2", "an AWS"),
        ("m4 max", "an Apple GPU"),
        ("ascend-910b", "a Huawei"),
        ("groq", "another vendor"),
        ("cpu", "a CPU"),
    ],
)
def test_a_device_of_another_vendor_is_told_and_the_table_named(name, what):
    message = refusal(name)
    assert what in message
    assert "h100" in message
    assert "did you mean" not in message


def test_no_gpu_of_the_table_counts_as_another_vendors():
    for name in gpu_table():
        assert find_gpu(name).name == name
        assert find_gpu(name.lower().replace("-", " ")).name == name


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("h100-sxm", "H100-SXM5-80GB"),
        ("nvidia h100", "H100-SXM5-80GB"),
        ("a100-80gb", "A100-SXM4-80GB"),
        ("a100 pcie 80gb", "A100-PCIe-80GB"),
        ("h200_nvl", "H200-NVL"),
        ("rtx-6000-ada", "RTX-6000-Ada"),
    ],
)
def test_some_words_of_a_name_are_enough(name, found):
    assert find_gpu(name).name == found


@pytest.mark.parametrize(
    "name", ["h100-x", "h100-80gb-sxm5", "h1000", "nvidia", "sxm5", "rtx-6000", "h100-s"]
)
def test_words_out_of_order_or_of_no_gpu_are_refused(name):
    assert repr(name) in refusal(name)


def test_two_names_in_one_are_to_be_separated_by_commas():
    assert "h100,h200" in refusal("h100 h200")


def test_names_that_a_refusal_lists_are_known():
    listed = refusal("zzzz").partition("lists ")[2].split(", ")
    assert len(listed) > 15
    for name in listed:
        assert find_gpu(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "did you mean llama-3.1-8b?"),
        ("llama3.1-8b", "llama-3.1-8b"),
        ("Qwen/Qwen3-8B", "did you mean qwen3-8b?"),
        ("h100", "is a GPU; give it with --gpu"),
        ("missing.json", "is no file"),
    ],
)
def test_another_name_of_a_model_suggests_it(name, meant):
    assert_misuse(decodetax("predict", "--model", name), "--model", repr(name), meant)


@pytest.mark.parametrize("arguments", [("qwen3-8b",), ("--gpu", "Llama-3.1-8b")])
def test_a_model_in_place_of_a_gpu_is_told(arguments):
    assert_misuse(decodetax("predict", *arguments), "--gpu", "language model", "--model")
