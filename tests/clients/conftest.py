"""A real server for real clients: `manylora serve` with the default base and the demo adapters."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import missing

ROOT = Path(__file__).parent.parent.parent
START_WAIT_S = 120
CLIENT_WAIT_S = 240


@pytest.fixture(scope="session")
def server_url(base_dir: Path, demo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that has answered its first request."""
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "manylora", "serve", "--port", "0", "--base", str(base_dir)]
    command += ["--adapter-root", str(demo_root), "--max-model-len", "2048"]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            yield _wait_for_url(process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, log.read_text(encoding="utf-8")


def _wait_for_url(process: "subprocess.Popen[bytes]", log: Path) -> str:
    from manylora.clock import SystemClock

    clock = SystemClock()
    end_s = clock.monotonic_s() + START_WAIT_S
    while clock.monotonic_s() < end_s and process.poll() is None:
        if found := re.search(r"is served at\s+(http://\S+)", log.read_text(encoding="utf-8")):
            return found[1]
        clock.sleep_s(0.2)
    raise AssertionError(f"the server did not start:\n{log.read_text(encoding='utf-8')}")


@pytest.fixture(scope="session")
def demo_adapter(demo_root: Path) -> str:
    """The name of a demo adapter with weights."""
    names = sorted(file.parent.name for file in demo_root.glob("*/adapter_model.safetensors"))
    if not names:
        missing(f"no demo adapter has weights under {demo_root}")
    return names[0]


def run_client(name: str, script: str, *arguments: str) -> None:
    """Run a script of this folder in a client's own environment; it asserts for itself."""
    python = ROOT / ".venvs" / name / "bin" / "python"
    if not python.exists():
        missing(f"no environment for the client {name}: `make clients` creates {python.parent.parent}")
    done = subprocess.run(
        [str(python), str(Path(__file__).parent / script), *arguments],
        capture_output=True,
        text=True,
        timeout=CLIENT_WAIT_S,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
