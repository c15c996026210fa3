"""`decodetax doctor`: checks on fakes of torch.cuda and NVML, broken packages in real processes."""

import contextlib
import dataclasses
import json
import os
import re
import sys
import types

import pytest
import torch
from click.testing import CliRunner
from decodetax.harness.bench import counters
from decodetax.harness.cli import cli
from decodetax.harness.core.worker_processes import Crash
from decodetax.harness.doctor import checks, probes
from decodetax.harness.doctor import facts as facts_module
from decodetax.harness.doctor.checks import FAILED, OK, WARNING
from decodetax.harness.doctor.facts import Facts, shown, ways
from fake_nvml import FakeNvml
from fake_torch_cuda import FakeCuda
from small_tensors import small_block

__all__ = ["small_block"]

TORCH = {"version": "2.14.1", "cuda": "12.8", "rocm": None, "triton_pin": None, "no_gpu": None}
CPU_TORCH = {**TORCH, "cuda": None, "no_gpu": "Torch not compiled with CUDA enabled"}
NO_NVML = {"on_bus": 0, "problem": "NVMLError_LibraryNotFound: NVML Shared Library Not Found"}
CPU = {"kind": "cpu", "name": "A CPU", "cores": 2, "memory_bytes": 8 * 10**9, "free_bytes": 6 * 10**9}
CORRECT = {"reason": None, "error": 0.002, "tolerance": 0.008, "seconds": 1.25}


def gpu(**changes):
    """`torch.cuda` with one H100, most of whose memory is free."""
    return FakeCuda(**{"free_bytes": 79 * 2**30, **changes})


@pytest.fixture(autouse=True)
def _machine(tmp_path, monkeypatch):
    """A machine with a compiler, a cache folder and /proc, whatever the real one lacks."""
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\nfor word; do case $word in *.so) : >"$word";; esac; done\n', "utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(checks, "CACHE_BYTES", 0)
    monkeypatch.setattr(torch.backends.cuda, "matmul", types.SimpleNamespace())


def facts_of_gpu(*, cuda=None, nvml=None, **changes):
    """What the probes find on fakes, with every form correct."""
    nvml = nvml or FakeNvml()
    facts = Facts(
        torch=TORCH,
        triton={"version": "3.8.0"},
        numpy={"version": "2.4.6"},
        nvidia=probes.nvidia_probe(nvml=nvml),
        device=probes.device_probe(cuda=cuda or gpu(), nvml=nvml),
    )
    return with_forms(dataclasses.replace(facts, **changes))


def facts_of_cpu(**changes):
    facts = Facts(
        torch=CPU_TORCH,
        triton={"version": "3.9.0"},
        numpy={"version": "2.4.6"},
        nvidia=NO_NVML,
        device=CPU,
    )
    return with_forms(dataclasses.replace(facts, **changes))


def with_forms(facts):
    asked = ((name, how) for name, form in probes.FORMS.items() for how in ways(form, facts))
    return dataclasses.replace(facts, forms={**dict.fromkeys(asked, CORRECT), **facts.forms})


def not_ok(facts):
    """The findings that are not ok, by check; each of them has a consequence, and no other has one."""
    found = dict(checks.findings(facts))
    assert all(bool(finding.consequence) == (finding.status != OK) for finding in found.values())
    return {name: finding for name, finding in found.items() if finding.status != OK}


def sentence(facts):
    return checks.conclusion(facts, list(checks.findings(facts)))


def counters_are_readable(monkeypatch, tmp_path, *, version="2026.2.1.0", params="RmProfilingAdminOnly: 0"):
    ncu = tmp_path / "ncu"
    ncu.write_text(f"#!/bin/sh\necho 'Version {version} (build 1)'\n", "utf-8")
    ncu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setitem(sys.modules, "nsight", types.ModuleType("nsight"))
    sys.modules["nsight"].__spec__ = types.SimpleNamespace()
    proc = tmp_path / "proc"
    (proc / "driver" / "nvidia").mkdir(parents=True)
    (proc / "driver" / "nvidia" / "params").write_text(params, "ascii")
    for name in ("cpuinfo", "meminfo"):
        (proc / name).touch()
    monkeypatch.setattr(checks, "PROC", proc)


# Healthy machines


def test_healthy_gpu_is_measured(monkeypatch, tmp_path):
    counters_are_readable(monkeypatch, tmp_path)
    facts = facts_of_gpu()
    assert not_ok(facts) == {}
    assert sentence(facts) == "`decodetax run` will measure the GPU NVIDIA H100 80GB HBM3."
    found = dict(checks.findings(facts))
    assert found["driver"].text == "550.54.15, runs CUDA 12.8; NVML works"
    assert found["clocks"].text == "SM 1,500 of 1,980 MHz, not held by a setting, not throttled"
    assert found["decode attention"].text == "correct: compiled (1.2 s)"
    assert "matmul, warps specialized" not in found  # compute capability 10 alone


def test_machine_without_a_gpu_is_measured_on_its_cpu():
    facts = facts_of_cpu()
    assert not_ok(facts) == {}
    assert sentence(facts) == (
        "`decodetax run` will measure the CPU (no CUDA GPU: torch 2.14.1 is a CPU build)."
    )
    found = dict(checks.findings(facts))
    assert found["decode attention"].text == "correct: interpreted, sm_80, sm_90 (3.8 s)"
    assert not {name for name, _ in checks.GPU} & set(found)


def test_cuda_build_without_a_driver_measures_the_cpu_and_says_why():
    facts = facts_of_cpu(torch={**TORCH, "no_gpu": "Found no NVIDIA driver on your system"})
    assert not_ok(facts) == {}
    assert sentence(facts).endswith("(no CUDA GPU: Found no NVIDIA driver on your system).")


# Versions


@pytest.mark.parametrize(
    ("changes", "check", "status", "fragment"),
    [
        ({"torch": {"broken": "OSError: libtorch.so"}}, "torch", FAILED, "OSError: libtorch.so"),
        ({"triton": {"broken": "its process ended with -11"}}, "triton", FAILED, "ended with -11"),
        ({"numpy": {"broken": "timed out after 20 s"}}, "numpy", FAILED, "timed out"),
        ({"torch": {**CPU_TORCH, "version": "2.5.1"}}, "torch", FAILED, "install torch 2.6 or newer"),
        ({"triton": {"version": "3.5.1"}}, "triton", FAILED, "install triton 3.6 or newer"),
        ({"triton": {"version": "3.10.0"}}, "triton", WARNING, "newer than 3.9"),
        ({"triton": {"version": "3.6.0"}}, "versions", WARNING, "numpy below 2.4"),
        ({"torch": {**CPU_TORCH, "triton_pin": "3.8.0"}}, "versions", WARNING, "asks for triton 3.8.0"),
        (
            {"torch": {**CPU_TORCH, "rocm": "6.4", "cuda": None}},
            "ROCm",
            WARNING,
            "here the CPU",
        ),
        ({"torch": {**CPU_TORCH, "rocm": "6.4", "no_gpu": None}}, "ROCm", FAILED, "run --device cpu"),
        ({"device": {"broken": "RuntimeError: driver"}}, "device", FAILED, "RuntimeError: driver"),
        ({"nvidia": {"on_bus": 2, "problem": "no driver"}}, "unused GPU", WARNING, "install a CUDA build"),
        (
            {
                "torch": {**TORCH, "cuda": "13.0", "no_gpu": "The NVIDIA driver on your system is too old"},
                "nvidia": {"driver": "470.1", "cuda": "11.4", "gpus": ["NVIDIA A100"]},
            },
            "unused GPU",
            WARNING,
            "driver 470.1 runs CUDA 11.4, torch is a CUDA 13.0 build",
        ),
        (
            {"torch": {**TORCH, "no_gpu": "No CUDA GPUs are available"}, "nvidia": {"on_bus": 1}},
            "unused GPU",
            WARNING,
            "No CUDA GPUs are available",
        ),
    ],
)
def test_versions_that_do_not_fit_are_named(changes, check, status, fragment):
    facts = facts_of_cpu(**changes)
    found = not_ok(facts)
    assert list(found) == [check]
    assert found[check].status == status
    assert fragment in f"{found[check].text}: {found[check].consequence}"
    assert ("cannot work here" in sentence(facts)) == (status == FAILED)


@pytest.mark.parametrize("versions", [("3.6.0", "2.3.5"), ("3.6.0", "1.26.4"), ("3.7.0", "2.4.0")])
def test_versions_that_work_together_are_ok(versions):
    triton, numpy = ({"version": version} for version in versions)
    assert not_ok(facts_of_cpu(triton=triton, numpy=numpy)) == {}


@pytest.mark.parametrize("wanted", [">=3.15", ">=3.10,<3.11", "<3"])
def test_python_that_a_package_does_not_support_is_named(monkeypatch, wanted):
    monkeypatch.setattr(checks, "_python_wanted", lambda name: wanted if name == "triton" else ">=3.9,<4")
    found = not_ok(facts_of_cpu())["Python"]
    assert found.status == FAILED
    assert f"triton needs {wanted}" in found.text


# A GPU that is not as it should be


@pytest.mark.parametrize(
    ("nvml", "cuda", "check", "status", "fragment"),
    [
        ({"throttling": 0x44}, {}, "clocks", WARNING, "throttled: power cap, thermal, hardware"),
        ({"ecc": 0}, {}, "ECC", WARNING, "off"),
        ({"mig": 1}, {}, "MIG", WARNING, "a slice"),
        ({"compute_mode": 2}, {}, "compute mode", FAILED, "prohibited"),
        ({"compute_mode": 3}, {}, "compute mode", WARNING, "exclusive process"),
        ({"pids": (7, 8)}, {}, "processes", WARNING, "2 on the GPU: 7, 8"),
        ({"lost": {"init"}}, {}, "driver", WARNING, "NVML cannot be used: NVMLError"),
        ({}, {"free_bytes": 2**30}, "GPU memory", WARNING, "1.1 of 85.9 GB free"),
        ({}, {"name": "NVIDIA H100 MIG 1g.10gb"}, "device", WARNING, "no datasheet peaks"),
        ({}, {"major": 7, "minor": 5}, "device", WARNING, "no Triton kernel"),
    ],
)
def test_state_of_the_gpu_that_disturbs_a_run_is_named(
    monkeypatch, tmp_path, nvml, cuda, check, status, fragment
):
    counters_are_readable(monkeypatch, tmp_path)
    facts = facts_of_gpu(nvml=FakeNvml(**nvml), cuda=gpu(**cuda))
    found = not_ok(facts)
    assert list(found) == [check]
    assert found[check].status == status
    assert fragment in f"{found[check].text}: {found[check].consequence}"


def test_gpu_without_ecc_mig_and_clocks_in_nvml_is_ok(monkeypatch, tmp_path):
    counters_are_readable(monkeypatch, tmp_path)
    facts = facts_of_gpu(
        nvml=FakeNvml(lost={"ecc", "mig", "mode", "clock", "most", "throttling", "processes"})
    )
    assert not_ok(facts) == {}


def test_interpreter_on_a_gpu_is_named(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "unset it" in not_ok(facts_of_gpu())["environment"].consequence


@pytest.mark.parametrize("facts_of", [facts_of_cpu, facts_of_gpu])
def test_missing_compiler_makes_triton_rows_unsupported_on_a_gpu_alone(monkeypatch, facts_of):
    monkeypatch.setenv("CC", "no-such-compiler")
    facts = facts_of()
    assert "compiled" not in {how for _, how in facts.forms}
    found = not_ok(facts)["C compiler"]
    assert found.status == WARNING
    assert "'no-such-compiler' cannot be run" in found.text
    gpu = facts_of is facts_of_gpu
    assert found.consequence.startswith(
        "the Triton rows of `run` are unsupported" if gpu else "`run` on a CPU"
    )


# The machine


def test_cache_folder_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "cache", "/proc/nope"):
        monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
        found = not_ok(facts_of_cpu())["Triton cache"]
        assert found.status == FAILED
        assert str(folder) in found.text
        assert "TRITON_CACHE_DIR" in found.consequence
        assert {how for form in probes.FORMS.values() for how in ways(form, facts_of_cpu())} == {
            "interpreted"
        }
        assert not any(ways(form, facts_of_gpu()) for form in probes.FORMS.values())


def test_full_cache_folder_is_named(monkeypatch):
    monkeypatch.setattr(checks, "CACHE_BYTES", 1e30)
    assert "GB free" in not_ok(facts_of_cpu())["Triton cache"].text


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"version": "2025.4.0"}, "2025.4.0, older than 2026.2.1"),
        ({"version": "?"}, "of an unknown version"),
        ({"params": "RmProfilingAdminOnly: 1\n"}, "only root"),
    ],
)
def test_counters_that_cannot_be_read_are_named(monkeypatch, tmp_path, options, fragment):
    counters_are_readable(monkeypatch, tmp_path, **options)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = not_ok(facts_of_gpu())["counters"]
    assert fragment in found.text
    assert "--counters" in found.consequence


def test_oldest_profiler_is_the_one_that_a_run_names():
    assert f"Nsight Compute {shown(checks.NCU_VERSION)} or newer" in counters.NEEDED


@pytest.mark.parametrize("library", [True, False])
def test_missing_profiler_is_named(monkeypatch, tmp_path, library):
    counters_are_readable(monkeypatch, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    if not library:
        monkeypatch.delitem(sys.modules, "nsight")
        monkeypatch.setattr(checks.importlib.util, "find_spec", lambda _name: None)
    text = not_ok(facts_of_gpu())["counters"].text
    assert ("ncu" if library else "nsight-python") in text


def test_machine_without_proc_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "PROC", tmp_path / "no-proc")
    assert not_ok(facts_of_cpu())["/proc"].status == WARNING


# The kernels


@pytest.mark.parametrize(
    ("how", "answer", "status", "consequence"),
    [
        ("interpreted", {**CORRECT, "reason": "error 0.5"}, FAILED, "exits with 1"),
        ("interpreted", {"broken": "TypeError: range"}, FAILED, "exits with 1"),
        ("sm_90", {**CORRECT, "reason": "race: shared memory"}, WARNING, "a run on such a GPU"),
        ("sm_80", {"broken": "timed out after 20 s"}, WARNING, "not checked"),
        ("interpreted", {"broken": "timed out before it began"}, WARNING, "not checked"),
    ],
)
def test_form_that_is_not_correct_is_named(how, answer, status, consequence):
    facts = facts_of_cpu(forms={("decode attention", how): answer})
    found = not_ok(facts)
    assert list(found) == ["decode attention"]
    assert found["decode attention"].status == status
    assert found["decode attention"].text == f"{how}: {answer.get('broken') or answer['reason']}"
    assert consequence in found["decode attention"].consequence


def test_wrong_compiled_form_fails():
    facts = facts_of_gpu(forms={("matmul by TMA", "compiled"): {**CORRECT, "reason": "error 0.5"}})
    assert not_ok(facts)["matmul by TMA"].status == FAILED


def test_forms_of_a_gpu_are_those_that_it_has():
    def compiled(major, minor):
        facts = facts_of_gpu(cuda=gpu(major=major, minor=minor))
        return {name for name, how in facts.forms if how == "compiled"}

    tma, specialized = {"matmul by TMA"}, {"matmul, warps specialized"}
    assert compiled(8, 0) == set(probes.FORMS) - tma - specialized
    assert compiled(9, 0) == compiled(12, 0) == set(probes.FORMS) - specialized
    assert compiled(10, 3) == set(probes.FORMS)
    assert compiled(7, 5) == set()


@pytest.mark.parametrize("name", ["matmul by TMA", "matmul, float8", "decode, paged cache"])
def test_form_is_right_in_the_interpreter(name):
    # tests/conftest.py has set the interpreter for this process; the slow test below runs every form.
    found = probes.form_probe(probes.FORMS[name], "interpreted")
    assert found["reason"] is None
    assert found["error"] < found["tolerance"]


def test_wrong_kernel_is_found():
    def prepare(inputs):
        exact, call = probes.FORMS["matmul by TMA"].prepare(inputs)
        return exact, lambda: call().mul_(1.01)

    form = dataclasses.replace(probes.FORMS["matmul by TMA"], prepare=prepare)
    assert "error" in probes.form_probe(form, "interpreted")["reason"]


def test_violation_of_an_executed_form_is_its_reason(monkeypatch):
    from decodetax.harness.offline.ptx import launch  # noqa: PLC0415  (imports Triton)

    @contextlib.contextmanager
    def executed(gpu, *, sm_count):
        assert (gpu.sm, sm_count) == (90, 4)
        yield types.SimpleNamespace(violations=found)

    monkeypatch.setattr(launch, "executed", executed)
    form = probes.FORMS["matmul by TMA"]
    found = []
    assert probes.form_probe(form, "sm_90")["reason"] is None
    found.append(types.SimpleNamespace(kind="race in shared memory", detail="warps 1 and 3"))
    assert probes.form_probe(form, "sm_90")["reason"] == "race in shared memory: warps 1 and 3"


# The command


def run(monkeypatch, answer, *arguments):
    """The command with the answer to each job in place of the processes."""
    asked = []

    def run_jobs(_worker, jobs, on_answer, **_options):
        for at, job in enumerate(jobs):
            asked.append(tuple(job.values()))
            on_answer(at, answer(job))

    monkeypatch.setattr(facts_module, "run_jobs", run_jobs)
    return doctor(*arguments), asked


def doctor(*arguments):
    return CliRunner().invoke(cli, ["doctor", *arguments], standalone_mode=False, catch_exceptions=False)


def answer_of(facts):
    return lambda job: (
        getattr(facts, job["probe"]) if "probe" in job else facts.forms[job["form"], job["how"]]
    )


@pytest.mark.parametrize("facts_of", [facts_of_cpu, facts_of_gpu])
def test_healthy_machine_takes_one_screen_of_80_columns(monkeypatch, facts_of):
    facts = facts_of()
    outcome, _ = run(monkeypatch, answer_of(facts))
    lines = outcome.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 40
    assert outcome.return_value == 0
    assert " ".join(outcome.stdout.split()).endswith(sentence(facts))


def test_json_has_every_check_and_the_conclusion(monkeypatch):
    facts = facts_of_gpu(nvml=FakeNvml(ecc=0))
    outcome, _ = run(monkeypatch, answer_of(facts), "--json")
    document = json.loads(outcome.stdout)
    assert (document["schema_version"], document["run_device"]) == (1, "cuda")
    assert document["conclusion"] == sentence(facts)
    assert [row["check"] for row in document["rows"]] == [name for name, _ in checks.findings(facts)]
    [ecc] = [row for row in document["rows"] if row["check"] == "ECC"]
    assert ecc == {
        "check": "ECC",
        "text": "off",
        "status": "warning",
        "consequence": "`run` measures more bandwidth than with ECC",
    }


def test_package_that_crashes_ends_the_questions_and_exits_with_1(monkeypatch):
    broken = Crash("its process ended with -11")
    facts = facts_of_cpu()
    outcome, asked = run(
        monkeypatch, lambda job: broken if job == {"probe": "torch"} else answer_of(facts)(job)
    )
    assert outcome.return_value == 1
    assert [name for (name,) in asked] == ["numpy", "torch", "nvidia", "device", "triton"]
    assert "cannot work here (see torch)" in outcome.stdout
    assert "ended with -11" in outcome.stdout


@pytest.mark.parametrize(("compute_mode", "processes"), [(0, 2), (3, 1)])
def test_gpu_for_one_process_is_asked_by_one(monkeypatch, compute_mode, processes):
    calls = []
    facts = facts_of_gpu(nvml=FakeNvml(compute_mode=compute_mode))

    def run_jobs(_worker, jobs, on_answer, **_options):
        calls.append(len(jobs))
        for at, job in enumerate(jobs):
            on_answer(at, answer_of(facts)(job))

    monkeypatch.setattr(facts_module, "run_jobs", run_jobs)
    doctor()
    assert len(calls) == 1 + processes
    assert sum(calls[1:]) == len(facts.forms)


def test_interrupted_doctor_begins_no_other_question(monkeypatch):
    limits = []

    def run_jobs(_worker, jobs, on_answer, *, limit_s, **_options):
        for at, job in enumerate(jobs):
            limits.append(limit_s())
            on_answer(at, answer_of(facts_of_cpu())(job))

    monkeypatch.setattr(facts_module, "run_jobs", run_jobs)
    questions = facts_module._Questions(lambda _done, _what: None)
    with pytest.raises(KeyboardInterrupt), questions.ended_on_error():
        raise KeyboardInterrupt
    questions.ask([{"probe": "numpy"}])
    assert limits[-1] <= 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise SystemExit('no libcudart')", "SystemExit: no libcudart"),
        ("import os\nos.kill(os.getpid(), 11)", "its process ended with -11"),
        ("print('noise')\n__version__ = 'x' + chr(27)\nraise RuntimeError('a\\nb' + chr(27))", "a b"),
    ],
    ids=["exits", "crashes", "raises"],
)
def test_broken_package_is_reported_without_a_traceback(monkeypatch, tmp_path, text, reason):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text(text, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    outcome = doctor()
    assert outcome.return_value == 1
    assert reason in " ".join(outcome.stdout.split())
    assert "Traceback" not in outcome.output


def test_nvidia_gpu_is_seen_on_the_bus_without_a_driver(tmp_path):
    for name, vendor, kind in (
        ("a", "0x10de", "0x030200"),
        ("b", "0x10de", "0x030000"),
        ("c", "0x10de", "0x040300"),  # the sound of a graphics card
        ("d", "0x1002", "0x030000"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n", "ascii")
        (tmp_path / name / "class").write_text(f"{kind}\n", "ascii")
    (tmp_path / "e").mkdir()
    found = probes.nvidia_probe(nvml=FakeNvml(lost={"init"}), devices=tmp_path)
    assert found["on_bus"] == 2
    assert found["problem"].startswith("NVMLError")


def test_reason_for_no_gpu_is_torchs_first_sentence():
    message = "The NVIDIA driver on your system is too old (found version 11040). Please update\nit."
    found = probes.torch_probe(cuda=FakeCuda(no_gpu=message))
    assert found["no_gpu"] == "The NVIDIA driver on your system is too old (found version 11040)"
    assert found["version"] == torch.__version__
    assert probes.torch_probe(cuda=FakeCuda())["no_gpu"] is None


@pytest.mark.parametrize(
    ("requirements", "pin"),
    [
        (["numpy", 'triton==3.8.0; platform_system == "Linux"'], "3.8.0"),
        (['pytorch-triton-rocm (==3.4.0) ; platform_system == "Linux"'], "3.4.0"),
        (["triton>=3"], None),
        (None, None),
    ],
)
def test_pin_of_triton_is_read_from_torchs_requirements(monkeypatch, requirements, pin):
    monkeypatch.setattr(probes.importlib.metadata, "requires", lambda _name: requirements)
    assert probes.torch_probe(cuda=FakeCuda())["triton_pin"] == pin


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")
def test_every_form_is_correct_on_this_machine(monkeypatch):
    monkeypatch.setattr(facts_module, "TOTAL_LIMIT_S", 400.0)  # other tests may run beside this one
    monkeypatch.setattr(facts_module, "FORM_LIMIT_S", 100.0)
    outcome = doctor("--json")
    document = json.loads(outcome.stdout)
    assert (outcome.return_value, document["run_device"]) == (0, "cpu")
    assert document["conclusion"].startswith("`decodetax run` will measure the CPU (no CUDA GPU: ")
    forms = {row["check"]: row["text"] for row in document["rows"] if row["check"] in probes.FORMS}
    assert forms.keys() == probes.FORMS.keys()
    assert all(text.startswith("correct: interpreted") for text in forms.values()), forms
    assert {"sm_80", "sm_90"} <= set(re.findall(r"sm_\d+", " ".join(forms.values())))
