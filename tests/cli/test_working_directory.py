"""The working directory of a command is data: no file in it is run, whatever its name."""

import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from peft import LoraConfig

from manylora.config.environment import child_environment
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.serving import make_cache, running_server
from tests.support.tiny import ALL, make_adapter, make_base

THIRD_PARTY = (
    "torch",
    "numpy",
    "zmq",
    "msgspec",
    "uvicorn",
    "sitecustomize",
    "usercustomize",
    "pip",
    "manylora",
    "obstore",
)
COMMAND = Path(sys.executable).parent / "manylora"


@pytest.fixture
def hostile_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a file for every module that anything could import, which marks that it ran."""
    directory = tmp_path / "here"
    directory.mkdir()
    for name in (*sys.stdlib_module_names, *THIRD_PARTY):
        (directory / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n")
    monkeypatch.chdir(directory)
    return directory


@pytest.mark.long
def test_no_process_of_a_server_imports_from_the_working_directory(hostile_directory: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", vocab_size=330)
    save_byte_level(tmp_path / "base")
    make_adapter(base, tmp_path / "adapters" / "one", LoraConfig(r=4, target_modules=ALL))
    make_cache(tmp_path / "cache")
    flags = ("--base", str(tmp_path / "base"), "--adapter-root", str(tmp_path / "adapters"))
    own = ("--set", f"model.cache_dir={tmp_path / 'cache'}")
    with running_server(tmp_path / "log", *flags, *own, command=(str(COMMAND),)) as url:
        body = {"model": "one", "prompt": "the quick", "max_tokens": 2}
        reply = httpx2.post(url + "/v1/completions", json=body, timeout=60)
        assert reply.status_code == 200, reply.text
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()


def test_a_child_finds_no_module_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry of PYTHONPATH that is empty or relative means the working directory."""
    (tmp_path / "below").mkdir()
    for folder in (tmp_path, tmp_path / "below"):
        (folder / "marker.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(("", ".", "below", os.environ["PYTHONPATH"])))
    run = subprocess.run(
        [sys.executable, "-m", "marker"], env=child_environment(), capture_output=True, text=True, check=False
    )
    assert "No module named marker" in run.stderr
    assert not (tmp_path / "ran").exists()
