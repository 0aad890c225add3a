"""A real server for real clients: `manylora serve` with the default base and the demo adapters."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

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
def keyed(base_dir: Path, demo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """Address, operator's key and log of a server that asks for keys."""
    log = tmp_path_factory.mktemp("keyed") / "log"
    flags = ("--base", str(base_dir), "--adapter-root", str(demo_root), "--max-model-len", "2048", "--auth", "on")
    with running_server(log, *flags) as url:
        [key] = re.findall(r"pb_[A-Za-z0-9]{8}_[A-Za-z0-9]+", log.read_text(encoding="utf-8"))
        yield url, key, log


@pytest.fixture(scope="session")
def demo_adapter(demo_root: Path) -> str:
    """The name of a demo adapter with weights."""
    names = sorted(file.parent.name for file in demo_root.glob("*/adapter_model.safetensors"))
    if not names:
        missing(f"no demo adapter has weights under {demo_root}")
    return names[0]


def run_client(name: str, script: str, *arguments: str) -> None:
    """Run a script of this folder in a client's own environment; it asserts for itself."""
    run_command(name, "python", str(Path(__file__).parent / script), *arguments)


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
