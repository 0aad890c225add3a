"""The source distribution and the wheel: each file of the package is in them, and an installed server runs."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx2
import pytest

from manylora.bench.faults.tiny_base import write_tiny_base
from tests.deploy.building import make_environment, show_packages, surroundings
from tests.support.paths import ROOT
from tests.support.serving import own_port, running_server
from tests.support.waiting import PATIENCE_S

PACKAGE = ROOT / "src" / "manylora"


def run(*words: str | Path, folder: Path | str = "/") -> str:
    command = [str(word) for word in words]
    done = subprocess.run(command, cwd=folder, env=surroundings(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


def digests(folder: Path) -> dict[str, str]:
    """The files of an installed or checked-out package, without what Python writes beside them."""
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def source_distribution(folder: Path) -> Path:
    """Build it from a copy of the files that git knows, with the build's own tool in an environment of its own."""
    checkout = folder / "checkout"
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, os.fsdecode(listed.stdout).split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "benchmarks/", "examples/")):
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
    run(sys.executable, "-m", "venv", folder / "tool")
    python = folder / "tool" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "hatchling>=1.26")
    run(python, "-m", "hatchling", "build", "-d", folder / "dist", folder=checkout)
    [wheel] = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "wheel")
    [made] = (folder / "dist").glob("*.tar.gz")
    return made


@pytest.mark.long  # a wheel is built, and the kernels are compiled from its sources
def test_a_server_runs_from_the_installation_of_a_source_distribution(tmp_path: Path) -> None:
    made = source_distribution(tmp_path)
    place = tmp_path / "place"
    make_environment(place)
    run(place / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", made)
    show_packages(place)
    home = Path(run(place / "bin" / "python", "-c", "import manylora; print(manylora.__file__)").strip()).parent
    assert home.is_relative_to(place)
    assert digests(home) == digests(PACKAGE) == digests(tmp_path / "wheel" / "manylora")

    base = write_tiny_base(tmp_path / "base")
    options = [f"--base={base}", f"--set=model.cache_dir={tmp_path / 'cache'}"]
    port = f"--set=server.port={own_port()}"
    folders = [f"--set={group}.dir={tmp_path / group}" for group in ("control", "metering")]
    told = run(place / "bin" / "manylora", "doctor", *options, *folders, port)
    assert "compiler" in told
    outside = ["env", "-C", "/", "-u", "PYTHONPATH", str(place / "bin" / "manylora")]
    with (
        running_server(tmp_path / "log", *options, command=outside) as url,
        httpx2.Client(base_url=url, timeout=PATIENCE_S) as client,
    ):
        assert client.get("/console/static/console.css").status_code == 200
        assert "Overview" in client.get("/console").text
        body = {"prompt": [3, 4, 5], "max_tokens": 2, "ignore_eos": True}
        answer = client.post("/v1/completions", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == 2
    assert (tmp_path / "control" / "control.db").is_file()
