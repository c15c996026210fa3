"""Peers' cases put to our kernels in the interpreter: `python -m tests.peers FILE` prints a table by suite.

FILE holds a JSON object a line: peer, suite, params. Options: `--part I/N` runs every N-th case from the I-th;
`--rows FILE` appends each result as a line, and skips cases that are there.
"""

import argparse
import json
import os
from collections import Counter, defaultdict
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"


def main() -> None:
    """Run the cases of a file, and print how many agreed, were refused or disagreed."""
    from . import attention_suites  # noqa: PLC0415  (after TRITON_INTERPRET is set)

    parser = argparse.ArgumentParser(prog="python -m tests.peers")
    parser.add_argument("file", type=Path)
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--rows", type=Path)
    options = parser.parse_args()
    first, step = map(int, options.part.split("/"))
    cases = [json.loads(line) for line in options.file.read_text().splitlines()]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for case in cases[first::step]:
        if (case["peer"], case["suite"]) not in attention_suites.SUITES:
            continue
        status, reason = outcome(attention_suites, case)
        counts[f"{case['peer']} {case['suite']}"][status] += 1
        if options.rows:
            with options.rows.open("a") as rows:
                rows.write(json.dumps({**case, "status": status, "reason": reason}) + "\n")
    print_table(counts)


def outcome(suites, case):
    """Status and reason of one case: agreed, refused, disagreed, or aside (not counted)."""
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
    statuses = ("agreed", "refused", "disagreed", "aside")
    total: Counter[str] = Counter()
    print(f"{'suite':<90}", *(f"{status:>9}" for status in statuses))
    for suite, found in sorted(counts.items()):
        print(f"{suite:<90}", *(f"{found[status]:>9}" for status in statuses))
        total.update(found)
    print(f"{'all':<90}", *(f"{total[status]:>9}" for status in statuses))


if __name__ == "__main__":
    main()
