"""The `predibase` package against a running control plane: deployments, repositories, uploads."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.clients.conftest import run_client
from tests.conftest import missing
from tests.control.uploading import SEEDS, base_settings
from tests.support.paths import ROOT

STOP_WAIT_S = 30

pytestmark = [pytest.mark.clients, pytest.mark.slow]


@pytest.fixture
def control_server(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The address of a control plane, and a key that may query and upload."""
    base = base_settings(tmp_path)["model.base"]
    command = [sys.executable, "-m", "tests.clients.control_server", str(tmp_path / "control"), base]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None  # it was started with a pipe
        try:
            url, key, _ = process.stdout.readline().split()
            yield url, key
        finally:
            process.terminate()
            process.wait(STOP_WAIT_S)


def test_the_predibase_sdk_works_unchanged(control_server: tuple[str, str], tmp_path: Path) -> None:
    SEEDS["attention"].save(tmp_path / "adapter")
    (tmp_path / "scratch").mkdir()
    run_client(
        "predibase", "predibase_script.py", *control_server, str(tmp_path / "adapter"), str(tmp_path / "scratch")
    )


@pytest.mark.base
def test_the_predibase_sdk_asks_the_deployment(keyed: tuple[str, str, Path], demo_root: Path, tmp_path: Path) -> None:
    adapter = demo_root / "support-triage"
    if not adapter.is_dir():
        missing(f"support-triage is not under {demo_root}")
    (tmp_path / "scratch").mkdir()
    url, operator, _ = keyed
    headers = {"authorization": f"Bearer {operator}"}
    made = httpx2.post(f"{url}/admin/tenants", json={"id": "customer"}, headers=headers).raise_for_status().json()
    arguments = (url, made["key"]["key"], str(adapter), str(tmp_path / "scratch"), "inference")
    run_client("predibase", "predibase_script.py", *arguments)
