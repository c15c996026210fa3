"""Peers' cases put to our kernels in the interpreter: `python -m tests.peers FILE` prints a table by suite.

FILE holds a JSON object a line: peer, suite, params. `--part I/N` runs every N-th case from the I-th, and
`--rows FILE` appends each result as a line.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"


def main() -> None:
    """Run the cases of a file, and print how many agreed, were refused or disagreed."""
    from . import attention_suites, matmul_suites  # noqa: PLC0415  (after TRITON_INTERPRET is set)

    parser = argparse.ArgumentParser(prog="python -m tests.peers")
    parser.add_argument("file", type=Path)
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--rows", type=Path)
    options = parser.parse_args()
    first, step = map(int, options.part.split("/"))
    cases = [json.loads(line) for line in options.file.read_text().splitlines()]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for case in cases[first::step]:
        name = case["peer"], case["suite"]
        suites = next((each for each in (attention_suites, matmul_suites) if name in each.SUITES), None)
        if suites is None:
            counts[f"{case['peer']} {case['suite']}"]["unknown"] += 1
            continue
        began = time.perf_counter()
        status, reason = outcome(suites, case)
        counts[f"{case['peer']} {case['suite']}"][status] += 1
        if options.rows:
            with options.rows.open("a") as rows:
                rows.write(
                    json.dumps(
                        {
                            **case,
                            "status": status,
                            "reason": reason,
                            "time_s": round(time.perf_counter() - began, 2),
                        }
                    )
                    + "\n"
                )
    print_table(counts)


def outcome(suites, case):
    """Status and reason of one case: agreed, refused, disagreed, or aside (not counted).

    Cases of suites without an adapter are "unknown" in the table.
    """
    try:
        reason = suites.run(case)
    except suites.Aside as error:
        return "aside", str(error)
    except ValueError as error:
        return "refused", str(error)
    except AssertionError as error:
        return "disagreed", str(error)
    return ("disagreed", reason) if reason else ("agreed", "")


def print_table(counts: dict[str, Counter[str]]) -> None:
    """One line a suite, and the sum."""
    statuses = ("agreed", "refused", "disagreed", "aside", "unknown")
    lines = [*sorted(counts.items()), ("all", sum(counts.values(), Counter()))]
    header = f"{'suite':<90}" + "".join(f"{status:>10}" for status in statuses)
    table = [f"{suite:<90}" + "".join(f"{found[each]:>10}" for each in statuses) for suite, found in lines]
    sys.stdout.write("\n".join([header, *table, ""]))


if __name__ == "__main__":
    main()
