"""The tutorial: its commands and its program run as they stand on the page, against a real server."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from manylora.config.folders import cache_dir
from tests.support.paths import ROOT
from tests.support.serving import make_cache, own_port, wait_for_url

PAGE = ROOT / "docs" / "tutorial.md"
_BLOCK = re.compile(r"(?:<!-- (?P<mark>[^>]*) -->\n\n)?```(?P<kind>[^\n]*)\n(?P<text>.*?)```", re.DOTALL)
ADDRESS = "http://127.0.0.1:8080"


@dataclass(frozen=True)
class Block:
    """A block of the page. mark: the comment before it; `server` or `not run: …`."""

    mark: str
    kind: str
    text: str


def blocks() -> list[Block]:
    found = _BLOCK.finditer(PAGE.read_text(encoding="utf-8"))
    return [Block(each["mark"] or "", each["kind"], each["text"]) for each in found]


def test_each_block_is_run_or_says_why_not() -> None:
    assert len(blocks()) == PAGE.read_text(encoding="utf-8").count("```") // 2
    for block in blocks():
        assert block.mark in ("", "server") or re.fullmatch(r"not run: .{10,}", block.mark), block.mark
        assert block.kind == "" or re.fullmatch(r'python title="\w+\.py"', block.kind), block.kind
    assert [block.mark for block in blocks()].count("server") == 1
    assert sum(not block.mark and not block.kind for block in blocks()) >= 5


def surroundings(folder: Path, port: int) -> dict[str, str]:
    """The environment of a person who has installed manylora, with folders and a port of this test's own."""
    home = folder / "home"
    bases = home / ".cache" / "manylora"
    bases.mkdir(parents=True)
    (bases / "bases").symlink_to(cache_dir() / "bases")
    make_cache(folder / "cache")
    (folder / "cache" / "bases").symlink_to(cache_dir() / "bases")
    own = {name: value for name, value in os.environ.items() if not name.startswith("MANYLORA_")}
    return own | {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MANYLORA_MODEL_CACHE_DIR": str(folder / "cache"),
        "MANYLORA_CONTROL_DIR": str(folder / "control"),
        "MANYLORA_METERING_DIR": str(folder / "metering"),
        "MANYLORA_SERVER_PORT": str(port),
    }


@contextmanager
def serving(command: str, folder: Path, environ: Mapping[str, str]) -> Iterator[None]:
    """Run the server's command in a shell of its own, as in another terminal; its log is where the page says."""
    log = folder / "server.log"
    log.touch()
    process = subprocess.Popen(
        ["bash", "-c", command], cwd=folder, env=environ, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_for_url(process, log)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


@pytest.mark.base
@pytest.mark.long  # it trains an adapter
@pytest.mark.timeout(1500)
def test_the_tutorial_ends_with_an_answer_and_an_invoice(tmp_path: Path) -> None:
    port = own_port()
    environ = surroundings(tmp_path, port)
    said: list[str] = []
    script: list[str] = ["set -e"]
    server = ""

    def run() -> None:
        text = "\n".join(script).replace(ADDRESS, f"http://127.0.0.1:{port}")
        found = subprocess.run(
            ["bash", "-c", text], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
        )
        assert found.returncode == 0, (found.stdout, found.stderr)
        said.append(found.stdout)

    for block in blocks():
        if block.kind:
            name = block.kind.partition('"')[2].rstrip('"')
            (tmp_path / name).write_text(block.text, encoding="utf-8")
        elif block.mark == "server":
            server = block.text
            run()
            script[1:] = []
        elif not block.mark:
            script.append(block.text)
    with serving(server.strip(), tmp_path, environ):
        run()
    trained, served = said
    assert re.search(r"epoch 4: loss 0\.0\d", trained), trained
    assert "adapter_model.safetensors" in trained
    assert '"content":"complaint"' in served.replace(": ", ":")
    assert re.search(r"^acme +mail/1 +1 .*\$0\.0[1-9]", served, re.MULTILINE), served
    assert re.search(r"total +\$?0\.0[1-9]", served, re.IGNORECASE), served
