"""The cases of a client's script, the facts of the server that they ask, and the report of their results.

A script imports nothing else of this repository, and this module only the standard library.
"""

import inspect
import json
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

Case = Callable[[], object]
Failure = TypeVar("Failure", bound=BaseException)
FACTS: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))  # JSON values of several types
"""The server and its contents, as `prepared.Facts` describes them."""
_cases: list[Case] = []
_core: list[Case] = []


def case(function: Case) -> Case:
    """Register a case. Cases run in the order of the file, each whatever became of those before it."""
    _cases.append(function)
    return function


def core(function: Case) -> Case:
    """Register a case that `make test` runs, too: one of each part of a client, at little cost."""
    _core.append(function)
    return case(function)


def raised(kind: type[Failure], call: Callable[[], object], text: str = "") -> Failure:
    """Return the error with which a call ends. It must have the type `kind` and `text` in its message."""
    try:
        call()
    except kind as error:
        found = error
    else:
        raise AssertionError(f"{kind.__name__} was expected")
    assert text in str(found), f"{text!r} is not in {found!r}"
    return found


def run_cases(package: str, release: str = "") -> None:
    """Run all cases, or those of the core, print a line of JSON about them, and exit with 1 if one failed.

    The word `core` behind the file of facts chooses the core. `release` is the version of a program that is no Python
    package.
    """
    failed: dict[str, str] = {}
    cases = _core if sys.argv[2:] == ["core"] else _cases
    for each in cases:
        try:
            result = each()
            if inspect.iscoroutine(result):
                import asyncio

                asyncio.run(result)
        except BaseException as error:
            failed[each.__name__] = "".join(traceback.format_exception(error, limit=-8))
    for name, text in failed.items():
        print(f"{name} failed:\n{text}", file=sys.stderr)  # noqa: T201 - for who started the script
    report = {"version": release or version(package), "cases": [each.__name__ for each in cases], "failed": [*failed]}
    print(json.dumps(report))  # noqa: T201 - for who started the script
    sys.exit(1 if failed else 0)
