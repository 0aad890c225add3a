"""What several rooms of tests share."""

import gc
import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer.testing
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

from manylora.config.folders import cache_dir
from manylora.config.groups.model import DEFAULT_BASE
from manylora.system.log_lines import JsonFormatter
from tests.cli.remote.verbs import command_of
from tests.support.durations import listed
from tests.support.paths import ROOT

IS_CI = os.environ.get("CI", "").lower() in ("1", "true")
# No test asserts a time: the first example of a property may compile a kernel or share the machine with another run.
UNTIMED: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}  # of several types
# A change is judged by the same examples each time; every other run draws new ones.
settings.register_profile("few", **UNTIMED, derandomize=IS_CI, max_examples=30)
settings.register_profile("many", **UNTIMED, derandomize=IS_CI, max_examples=100)
settings.load_profile("few")

# Processes of ours import nothing from the working directory; some of the engines that tests start are in `tests`.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

# Each of the hundreds of processes would compile the sources anew, and each worker rewrite the assertions of all tests.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# The runner of commands would build the tree of verbs anew at each of a thousand calls.
typer.testing._get_command = command_of  # type: ignore[attr-defined]  # it has no public place for this

# Kernels in Triton run in its interpreter, which it reads at its import: no test needs a card.
os.environ["TRITON_INTERPRET"] = "1"

CLIENTS = "tests/clients"
WITH_SERVERS = {"bench", "cli", "clients", "integration", "upgrades"}
"""Folders whose tests start servers, or processes of the command."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="only tests without base, clients, services or long runs")
    parser.addoption("--long", action="store_true", help="only the long runs, which other calls leave out")


def pytest_configure(config: pytest.Config) -> None:
    """Give a property more examples in the long runs."""
    settings.load_profile("many" if config.getoption("--long") else "few")


class _LoadFolders(LoadFileScheduling):  # type: ignore[misc]  # xdist ships no type information
    """Gives a worker one file after the other, and the files of `tests/clients` together."""

    def _split_scope(self, nodeid: str) -> str:
        path = super()._split_scope(nodeid)
        return CLIENTS if path.startswith(f"{CLIENTS}/") else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """Return the scheduler of `--dist loadfile`, whose workers would each start the servers of `tests/clients`."""
    return _LoadFolders(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Import a share of all files in each worker: it finds the rewritten assertions of the others' shares on the disk.

    Rewriting takes as long as all else of a collection, and a fresh clone has none of it.
    """
    worker: dict[str, Any] | None = getattr(session.config, "workerinput", None)
    if worker is None or session.config.getoption("file_or_dir"):
        return
    number, count = int(worker["workerid"].removeprefix("gw")), worker["workercount"]
    for path in sorted(ROOT.glob("tests/**/test_*.py"))[number::count]:
        with suppress(Exception, pytest.skip.Exception):  # the collection itself will say so
            import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the files with most slow tests first, so that at the end of a run all workers have work.

    With `--fast` leave out what needs a base, a client, a service or a process of its own, and what takes long.
    """
    slow = listed()
    num_slow = Counter(test.partition("::")[0] for test in slow)
    items.sort(key=lambda item: -num_slow[item.nodeid.partition("::")[0]])
    are_long = bool(config.getoption("--long"))
    kept = [item for item in items if _is_long(item) == are_long or (are_long and _is_property(item))]
    if config.getoption("--fast"):
        kept = [item for item in kept if _is_fast(item, slow)]
    left_out = {*items} - {*kept}
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = kept


def _is_long(item: pytest.Item) -> bool:
    return item.get_closest_marker("long") is not None


def _is_property(item: pytest.Item) -> bool:
    """Return whether Hypothesis draws the examples of a test: every run has it, the long runs with more examples."""
    return bool(getattr(getattr(item, "obj", None), "is_hypothesis_test", False))


def _is_fast(item: pytest.Item, slow: frozenset[str]) -> bool:
    path, _, name = item.nodeid.partition("::")
    needs_service = "postgresql" in name or _folder(item) in WITH_SERVERS
    is_marked = any(item.get_closest_marker(mark) for mark in ("base", "clients", "slow"))
    return not (needs_service or is_marked or f"{path}::{name.partition('[')[0]}" in slow)


def _folder(item: pytest.Item) -> str:
    return item.nodeid.split("/")[1]


def pytest_collection_finish() -> None:
    """Keep the modules imported so far out of the collector's way: each full collection would walk them anew."""
    gc.collect()
    gc.freeze()


def long(*values: Any) -> list[Any]:
    """Return parameters that are part of the long runs alone; a tuple has the values of several arguments."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.long) for value in values
    ]


def thinned(values: Iterable[Any], step: int) -> list[Any]:
    """Return the parameters of a grid: each `step`-th is part of every run, the others of the long runs."""
    return [each for number, value in enumerate(values) for each in ([value] if number % step == 0 else long(value))]


def missing(what: str) -> None:
    """Skip where this machine lacks something; fail where CI should have it."""
    if IS_CI:
        pytest.fail(f"CI should have this: {what}")
    pytest.skip(what)


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """torch works with one thread, as it does in the engine's process: its spinning barriers fight the native pool."""
    import torch  # here, because the process that hands out the tests needs none

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """Undo `configure_logs`, which a command in the test's own process calls: it is for the process's whole life."""
    root, own = logging.getLogger(), logging.getLogger("manylora")
    levels, hooks = (root.level, own.level), (sys.excepthook, threading.excepthook)
    yield
    if any(isinstance(handler.formatter, JsonFormatter) for handler in root.handlers):
        root.handlers[:] = [each for each in root.handlers if not isinstance(each.formatter, JsonFormatter)]
        logging.captureWarnings(False)
        root.setLevel(levels[0])
        own.setLevel(levels[1])
        sys.excepthook, threading.excepthook = hooks


@pytest.fixture(scope="session")
def base_dir() -> Path:
    """The default base model, as `manylora pull` leaves it."""
    directory = cache_dir() / "bases" / DEFAULT_BASE
    if not (directory / "model.safetensors").exists():
        missing(f"the base model is not in {directory}: run `make base`")
    return directory


@pytest.fixture(scope="session")
def demo_root() -> Path:
    """The directory of the demo adapters."""
    return ROOT / "examples" / "adapters"
