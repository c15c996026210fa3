"""Programs of tests that run without TRITON_INTERPRET, so that Triton compiles their kernels."""

import os
import subprocess
import sys


def output_of(*arguments, **variables):
    """What Python prints, given these arguments and environment variables; fails if it does not end well."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout
