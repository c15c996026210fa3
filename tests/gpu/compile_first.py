"""Compiles the kernels of this folder's tests in parallel processes, none of which uses the GPU.

    python tests/gpu/compile_first.py [GPU] [--processes N]

The tests then find them in Triton's cache. GPU is a name of `decodetax devices` or such as sm_90; by default
the one of this machine. Prints how many kernels were compiled, and their time; Ctrl-C ends it early. Exit
code 1 means that a kernel does not compile, 2 that no GPU is here and none was named.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def gpu_here():
    """Name of this machine's GPU for `find_gpu`.

    Raises:
        SystemExit: there is none.
    """
    import torch  # noqa: PLC0415  (a named GPU needs no torch here)
    from decodetax.harness.core.gpus import gpu_of_device  # noqa: PLC0415

    if not torch.cuda.is_available():
        sys.stderr.write("no CUDA GPU: name one, such as h100\n")
        raise SystemExit(2)
    properties = torch.cuda.get_device_properties(0)
    known = gpu_of_device(properties.name, properties.total_memory)
    limited = known is not None and known.sm_limits is not None
    return known.name if limited else f"sm_{properties.major}{properties.minor}"


def work(gpu, share, shares, log_path):
    """One process: compiles what its share of the tests launches, and logs each kernel as a line of JSON."""
    from decodetax.harness.core.gpus import find_gpu  # noqa: PLC0415  (the parent needs neither)
    from decodetax.harness.offline.compiler import compile_launches  # noqa: PLC0415
    from on_cpu_tensors import run_gpu_tests  # noqa: PLC0415
    from triton import knobs  # noqa: PLC0415

    with log_path.open("w", encoding="utf-8", buffering=1) as log:

        def write(**facts):
            log.write(json.dumps(facts) + "\n")

        def compiled(*, src, times, cache_hit, **_more):
            write(kernel=src.name, seconds=times.total * 1e-6, cached=cache_hit)

        knobs.compilation.listener = compiled
        found = find_gpu(gpu, with_limits=True)
        done = []
        launches = compile_launches(
            lambda: done.append(run_gpu_tests(found, share=share, shares=shares)), found
        )
        for error in {f"{launch.function}: {launch.error}" for launch in launches if launch.error}:
            write(error=error)
        for error in done[0].errors:
            write(error=error)


def compile_in_parallel(gpu, processes, folder):
    """Runs the processes until all end, or Ctrl-C; gives what they logged."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    logs = [folder / f"{share}.jsonl" for share in range(processes)]
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, gpu, "--share", f"{share}/{processes}", "--log", log],
            env=environment,
            stdout=sys.stderr,
        )
        for share, log in enumerate(logs)
    ]
    broken = []
    with contextlib.suppress(KeyboardInterrupt):
        broken = [f"a process ended with exit code {code}" for code in (w.wait() for w in workers) if code]
    for worker in workers:
        worker.kill()
    lines = [line for log in logs if log.exists() for line in log.read_text(encoding="utf-8").splitlines()]
    return [json.loads(line) for line in lines], broken


def summary(events, seconds, processes):
    """One line: kernels compiled, their time, and kernels that the cache had."""
    compiled = [event["seconds"] for event in events if event.get("cached") is False]
    cached = sum(event.get("cached") is True for event in events)
    return (
        f"{len(compiled)} kernels compiled in {seconds:.0f} s by {processes} processes "
        f"({sum(compiled):.0f} s by one); {cached} more loads from the cache"
    )


def main():
    """Reads the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gpu", nargs="?")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--share", help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.share:
        work(options.gpu, *map(int, options.share.split("/")), options.log)
        return 0
    start_s, gpu = time.perf_counter(), options.gpu or gpu_here()
    with tempfile.TemporaryDirectory() as folder:
        events, broken = compile_in_parallel(gpu, options.processes, Path(folder))
    errors = sorted({event["error"] for event in events if "error" in event}) + broken
    for error in errors:
        sys.stdout.write(f"FAILED {error}\n")
    sys.stdout.write(summary(events, time.perf_counter() - start_s, options.processes) + "\n")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
