"""The C compiler of Triton's launcher, by compilers that are shell scripts."""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from decodetax.harness.bench.launcher import c_compiler, compile_problem, launcher_error, launcher_problem


@pytest.fixture
def fake_compiler(tmp_path):
    """Makes an executable shell script; gives its path."""

    def make(text, name="cc"):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        path.chmod(0o755)
        return str(path)

    return make


@pytest.mark.parametrize(
    ("named", "on_path", "found"),
    [
        ("my-cc", ("gcc", "clang"), "my-cc"),
        ("", ("gcc",), ""),
        (None, ("gcc", "clang"), "gcc"),
        (None, ("clang",), "clang"),
        (None, ("cc",), None),
    ],
)
def test_compiler_is_the_one_that_triton_takes(tmp_path, monkeypatch, fake_compiler, named, on_path, found):
    for name in on_path:
        fake_compiler("", name)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    if named is not None:
        monkeypatch.setenv("CC", named)
    compiler = c_compiler()
    assert (compiler if compiler in {named, None} else Path(compiler).name) == found


def test_error_without_a_compiler_names_what_is_looked_for():
    assert compile_problem(None) == "no C compiler: CC is not set, and gcc and clang are not on the PATH"


@pytest.mark.parametrize("name", ["no-such-compiler", "", "gcc -m64"])
def test_compiler_that_cannot_be_started_is_named(name):
    assert f"{name!r} cannot be run: " in compile_problem(name)


def test_missing_headers_of_python_are_named(fake_compiler):
    compiler = fake_compiler("echo 'x.c:1:10: fatal error: Python.h: No such file or directory' >&2; exit 1")
    assert "Python.h is missing in " in compile_problem(compiler)
    assert "install the headers of Python 3." in compile_problem(compiler)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'cannot find crti.o' >&2; exit 1", "fails: cannot find crti.o"),
        ("exit 4", "fails: exit code 4"),
        ("exit 0", "fails: exit code 0"),
    ],
)
def test_compiler_that_makes_no_library_is_named_with_its_first_line(fake_compiler, script, reason):
    compiler = fake_compiler(script)
    assert compile_problem(compiler) == f"{compiler} {reason}"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
def test_gcc_compiles_where_the_headers_are():
    problem = compile_problem(shutil.which("gcc"))
    has_headers = (Path(sysconfig.get_paths()["include"]) / "Python.h").exists()
    assert (problem is None) == has_headers


def test_launcher_in_the_cache_needs_no_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert launcher_problem().startswith("Triton cannot compile its C launcher: 'no-such-compiler' cannot")
    (tmp_path / "ABC").mkdir()
    (tmp_path / "ABC" / "cuda_utils.cpython-311-x86_64-linux-gnu.so").touch()
    assert launcher_problem() is None


@pytest.mark.parametrize("name", ["no-such-compiler", ""])
def test_compiler_that_triton_cannot_start_is_recognised(monkeypatch, name):
    monkeypatch.setenv("CC", name)
    error = FileNotFoundError(2, "No such file or directory", name)
    assert f"C launcher: {name!r} cannot be run: " in launcher_error(error)
    assert "No such file or directory" in launcher_error(error)


def test_errors_of_other_programs_are_not_those_of_the_launcher(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    for error in (
        RuntimeError("PassManager::run failed"),
        subprocess.CalledProcessError(1, ["ptxas", "--gpu-name=sm_90a"]),
        FileNotFoundError(2, "No such file or directory", "weights.bin"),
        OSError("no name"),
    ):
        assert launcher_error(error) is None
