"""The fake `libcuda.so.1`, and programs that run on it."""

import json
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from compiled_program import output_of

HERE = Path(__file__).parent
GPU_TESTS = HERE.parents[1] / "gpu"


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """Folder of the fake `libcuda.so.1`."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc, which Triton compiles its launcher with, is not installed")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        pytest.skip("Python.h, which Triton compiles its launcher with, is not installed")
    import triton  # noqa: PLC0415  (the conftest decides first how it runs)

    folder = tmp_path_factory.mktemp("cuda")
    headers = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    options = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
    subprocess.run(
        ["gcc", *options, f"-I{headers}", "-Wl,-soname,libcuda.so.1", "-o", folder / "libcuda.so.1",
         HERE / "fake_cuda.c"],
        check=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def driver_program(library):
    """Runs a program of this folder on the fake library; gives the JSON of its last line."""

    def run(program, *arguments):
        variables = {
            "LD_LIBRARY_PATH": f"{library}:{os.environ.get('LD_LIBRARY_PATH', '')}",
            "TRITON_LIBCUDA_PATH": str(library),
            "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{GPU_TESTS}",
        }
        return json.loads(output_of(HERE / program, *arguments, **variables).splitlines()[-1])

    return run
