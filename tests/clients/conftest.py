"""Real servers for real clients: `manylora serve` with the default base and the demo adapters."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.prepared import DEMO_ADAPTER, prepared_server
from tests.conftest import missing
from tests.support.paths import ROOT
from tests.support.serving import running_server

CLIENT_WAIT_S = 240


@pytest.fixture(scope="session")
def server_url(base_dir: Path, demo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that has answered its first request."""
    log = tmp_path_factory.mktemp("server") / "log"
    flags = ("--base", str(base_dir), "--adapter-root", str(demo_root), "--max-model-len", "2048")
    with running_server(log, *flags) as url:
        yield url


@pytest.fixture(scope="session")
def facts(base_dir: Path, demo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file with the facts of a server that asks for keys, for the scripts of clients."""
    if not (demo_root / DEMO_ADAPTER).is_dir():
        missing(f"{DEMO_ADAPTER} is not under {demo_root}")
    with prepared_server(tmp_path_factory.mktemp("keyed"), base_dir, demo_root) as file:
        yield file


@pytest.fixture(scope="session")
def keyed(facts: Path) -> tuple[str, str, Path]:
    """Address, operator's key and log of the server of `facts`."""
    log = facts.parent / "log"
    [key] = set(re.findall(r"pb_[A-Za-z0-9]{8}_[A-Za-z0-9]+", log.read_text(encoding="utf-8")))
    return json.loads(facts.read_text(encoding="utf-8"))["url"], key, log


def run_command(name: str, *command: str) -> str:
    """Run a command with a client's environment first in the path; returns what it printed."""
    folder = ROOT / ".venvs" / name / "bin"
    if not folder.exists():
        missing(f"no environment for the client {name}: `make .venvs/{name}/installed` creates it")
    path = f"{folder}:/usr/bin:/bin"
    found = shutil.which(command[0], path=path)
    assert found is not None, f"{command[0]} is not in {path}"
    done = subprocess.run(
        [found, *command[1:]],
        capture_output=True,
        text=True,
        timeout=CLIENT_WAIT_S,
        env={"PATH": path, "HOME": "/nonexistent"},
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
