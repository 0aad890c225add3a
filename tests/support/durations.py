"""The list of tests that `make fast` leaves out for their time: `python -m tests.support.durations JUNIT.xml`.

`make durations` runs the whole suite and writes the list anew from its JUnit report.
"""

import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

from tests.support.paths import ROOT

LIST = ROOT / "tests" / "slow_tests.txt"
SLOW_S = 0.15
"""A test with a case that takes longer is on the list."""
HEAD = f"# `make fast` leaves these tests out: each has a case over {SLOW_S} s. `make durations` writes this file.\n"


def slow_tests(report: Path) -> list[str]:
    """Return the slow tests of a JUnit report as `path::name`, sorted."""
    longest: dict[str, float] = defaultdict(float)
    for case in ET.parse(report).iter("testcase"):
        name = str(case.get("name")).partition("[")[0]
        parts = str(case.get("classname")).split(".")
        classes = [part for part in parts if part.startswith("Test")]
        file = "/".join(parts[: len(parts) - len(classes)])
        test = "::".join([f"{file}.py", *classes, name])
        longest[test] = max(longest[test], float(case.get("time") or 0))
    return sorted(test for test, seconds in longest.items() if seconds > SLOW_S)


def listed() -> frozenset[str]:
    """Return the tests on the list."""
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))


if __name__ == "__main__":
    LIST.write_text(HEAD + "".join(f"{test}\n" for test in slow_tests(Path(sys.argv[1]))), encoding="utf-8")
