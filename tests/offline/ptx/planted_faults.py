"""Plants a fault at each synchronisation of a compiled kernel in turn; asks whether its execution reports it.

Run as a program, without TRITON_INTERPRET: its arguments are a compute capability, a kernel's host function,
a case, a dtype, and parts of names of Triton functions. It prints, as JSON, what `plant` returns.
"""

import json
import re
import sys
from collections.abc import Iterator

from decodetax.harness.offline.execution.calls import call_of
from decodetax.harness.offline.execution.cases import full_cases
from decodetax.harness.offline.ptx import executable
from decodetax.harness.offline.ptx.launch import executed
from decodetax.harness.offline.ptx.violations import ViolationLog

ALL_BARRIERS = "all bar.sync"
FAULTS = {
    ALL_BARRIERS: (r"bar\.sync\s+0;", ""),
    "bar.sync": (r"bar\.sync\s+0;", ""),
    "cp.async.wait_group": (r"cp\.async\.wait_group\s+\d+;", ""),
    "cp.async.commit_group": (r"cp\.async\.commit_group;", ""),
    "cp.async.wait_group + 1": (r"cp\.async\.wait_group\s+(\d+);", "cp.async.wait_group {};"),
    "wgmma.wait_group": (r"wgmma\.wait_group\.sync\.aligned\s+\d+;", ""),
    "wgmma.wait_group + 1": (
        r"wgmma\.wait_group\.sync\.aligned\s+(\d+);",
        "wgmma.wait_group.sync.aligned {};",
    ),
    "fence.proxy.async": (r"fence\.proxy\.async[.\w:]*;", ""),
    "mbarrier wait": (r"@!complete bra\.uni waitLoop;", ""),
    "tcgen05.wait::ld": (r"tcgen05\.wait::ld[^;]*;", ""),
    "tcgen05.wait::st": (r"tcgen05\.wait::st[^;]*;", ""),
    "tcgen05.commit": (r"@%p\d+ tcgen05\.commit[^;]*;", ""),
    "tcgen05.dealloc": (r"@%p\d+ tcgen05\.dealloc[^;]*;", ""),
    "bulk wait_group": (r"cp\.async\.bulk\.wait_group[.\w]*\s+\d+;", ""),
    "bulk commit_group": (r"cp\.async\.bulk\.commit_group\s*;", ""),
}


class FoundError(Exception):
    """Ends an execution at its first violation."""


class FirstViolationLog(ViolationLog):
    def add(self, kind, *args, **kwargs):
        if not kind.harmless:
            raise FoundError(kind)
        super().add(kind, *args, **kwargs)


def mutants(ptx: str, fault: str) -> Iterator[tuple[int, str]]:
    """The line of each place of a fault, and the PTX with the fault there."""
    pattern, replacement = FAULTS[fault]
    if fault == ALL_BARRIERS:
        yield 0, re.sub(pattern, "", ptx)
        return
    for hit in re.finditer(pattern, ptx):
        new = replacement.format(int(hit.group(1)) + 1) if replacement else ""
        yield ptx.count("\n", 0, hit.start()) + 1, ptx[: hit.start()] + new + ptx[hit.end() :]


def run(case, capability, edit):
    call = call_of(case, 0)
    with executed(capability, sm_count=case.sm_count, edit=edit) as execution:
        for tensor, dead in call.dead:
            execution.forbid(tensor, dead)
        result = call.run()
    return call.judge(result).reason, execution


def verdict(case, capability, kernel, mutant):
    try:
        reason, _ = run(case, capability, lambda name, ptx: mutant if name == kernel else ptx)
    except FoundError:
        return "reported"
    return "wrong" if reason else "quiet"


def plant(case, capability, words):
    """By kernel and fault: for each place, "reported", "wrong" (a wrong result alone) or "quiet"."""
    texts = {}

    def keep(name, ptx):
        texts[name] = ptx
        return ptx

    reason, execution = run(case, capability, keep)
    if reason or execution.violations:
        raise AssertionError(f"without a fault: {reason}, {execution.violations}")
    found = {}
    for kernel, ptx in texts.items():
        if words and not any(word in kernel for word in words):
            continue
        for fault in FAULTS:
            places = {line: verdict(case, capability, kernel, mutant) for line, mutant in mutants(ptx, fault)}
            if places:
                found.setdefault(kernel, {})[fault] = list(places.values())
                sys.stderr.write(f"{kernel} {fault} {places}\n")
    return found


def main() -> None:
    capability, host_function, name, dtype, *words = sys.argv[1:]
    case = next(
        each for each in full_cases() if (each.kernel, each.name, each.dtype) == (host_function, name, dtype)
    )
    executable.ViolationLog = FirstViolationLog
    json.dump(plant(case, int(capability), words), sys.stdout)


if __name__ == "__main__":
    main()
