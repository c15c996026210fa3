"""The C compiler that Triton needs on a GPU.

At its first launch Triton compiles a C file that includes Python.h, its launcher of kernels, and keeps it in
its cache folder (triton/runtime/build.py). Without a compiler or the headers of Python no kernel runs.
"""

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from ..core.cache_folders import triton_cache_folder
from ..core.errors import one_line, printable

COMPILE_LIMIT_S = 10.0
_LAUNCHER = "Triton cannot compile its C launcher: {}"


def launcher_problem() -> str | None:
    """Why Triton can launch no compiled kernel here, or None; a launcher in its cache needs no compiler."""
    problem = compile_problem(c_compiler())
    if problem is None or any(triton_cache_folder().glob("*/cuda_utils*.so")):
        return None
    return _LAUNCHER.format(problem)


def launcher_error(error: Exception) -> str | None:
    """Why Triton could not compile its launcher, if that is what an error of a launch says; else None."""
    text = one_line(error)
    if "Failed to find C compiler" in text or "libcuda.so cannot found" in text:
        return _LAUNCHER.format(compile_problem(c_compiler()) or text)
    if isinstance(error, subprocess.CalledProcessError) and "-shared" in error.cmd:
        failed = f"{error.cmd[0]} ended with exit code {error.returncode}"
        return _LAUNCHER.format(compile_problem(c_compiler()) or failed)
    program = error.filename if isinstance(error, OSError) else None
    if program is not None and program in {c_compiler(), "/sbin/ldconfig"}:
        return _LAUNCHER.format(f"{program!r} cannot be run: {text}")
    return None


def c_compiler() -> str | None:
    """The C compiler that Triton takes: CC, else gcc, else clang; None if there is none."""
    named = os.environ.get("CC")
    return named if named is not None else shutil.which("gcc") or shutil.which("clang")


@functools.cache
def compile_problem(compiler: str | None) -> str | None:
    """Why a compiler makes no shared library of a C file that includes Python.h, as Triton asks, or None."""
    if compiler is None:
        return "no C compiler: CC is not set, and gcc and clang are not on the PATH"
    scheme = sysconfig.get_default_scheme()
    # Triton's own choice: Debian's scheme names a folder under /usr/local, where the headers are not.
    headers = sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"]
    try:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "launcher.c"
            source.write_text("#include <Python.h>\nint launcher(void) { return 0; }\n", encoding="ascii")
            output = source.with_suffix(".so")
            command = [compiler, str(source), "-shared", "-fPIC", "-o", str(output), f"-I{headers}"]
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=COMPILE_LIMIT_S,
                check=False,
            )
            if done.returncode == 0 and output.exists():
                return None
    except subprocess.TimeoutExpired:
        return f"{compiler} did not end within {COMPILE_LIMIT_S:.0f} s"
    except OSError as error:
        return f"{compiler!r} cannot be run: {error.strerror or one_line(error)}"
    if "Python.h" in done.stderr:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"Python.h is missing in {headers}: install the headers of Python {version}"
    first = next(iter(done.stderr.splitlines()), f"exit code {done.returncode}")
    return f"{compiler} fails: {printable(first)[:200]}"
