"""Upload of an adapter's files to signed addresses of a server, resumable after an interruption."""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manylora.cli.remote.client import refusal_in
from manylora.cli.remote.output import fail, say

if TYPE_CHECKING:
    import httpx2

SEND_WAIT_S = 60.0
MAX_FAILURES = 5
"""Consecutive broken connections without progress after which an upload is given up."""
FIRST_WAIT_S = 0.1
BLOCK_BYTES = 1 << 20
CONFIG_FILE, WEIGHTS_FILE, PICKLED_FILE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
TEXT_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"),
    *("chat_template.jinja", "chat_template.json", "generation_config.json", "config.json"),
)

Info = dict[str, Any]  # JSON of the server


def files_of(folder: Path) -> dict[str, Path]:
    """Return the files of an adapter's folder by name. End the program if config or weights are missing."""
    files = {name: folder / name for name in (CONFIG_FILE, WEIGHTS_FILE)}
    for name, file in files.items():
        if not file.is_file():
            hint = ""
            if name == WEIGHTS_FILE and (folder / PICKLED_FILE).exists():
                hint = (
                    f"; {PICKLED_FILE} is not taken: load it with peft, and `save_pretrained(path)` writes safetensors"
                )
            fail(f"{folder} has no {name}{hint}")
    return files | {name: folder / name for name in TEXT_FILES if (folder / name).is_file()}


@contextmanager
def unfinished_upload(url: str, repo: str, alias: str | None, files: Mapping[str, Path]) -> Iterator[Info]:
    """Yield the state of an unfinished upload of the same files; keep it for a later try while it has `begun`."""
    from manylora.config.folders import cache_dir

    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files.values()]
    wanted = (url, repo, facts) if alias is None else (url, repo, alias, facts)
    name = hashlib.sha256(repr(wanted).encode()).hexdigest()[:32]
    file = cache_dir() / "unfinished-uploads" / f"{name}.json"
    try:
        state: Info = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        state = {}
    try:
        yield state
    finally:
        file.unlink(missing_ok=True)
        if state.get("begun") is not None:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file.touch(mode=0o600)  # the state contains signed addresses
            file.write_text(json.dumps(state), encoding="utf-8")


def is_open(begun: Info) -> bool:
    """Return whether the server still accepts files of an upload."""
    import httpx2

    try:
        return httpx2.get(begun["presignedUrls"][WEIGHTS_FILE], trust_env=False).is_success
    except (httpx2.HTTPError, LookupError, TypeError):
        return False


def send(address: str, file: Path) -> None:
    """Send a file from the offset that the server has; go on after broken connections."""
    import httpx2

    from manylora.clock import SystemClock

    size, failures, reached = file.stat().st_size, 0, 0
    with httpx2.Client(timeout=SEND_WAIT_S, trust_env=False) as client:
        while failures < MAX_FAILURES:
            try:
                offset = int(_checked(client.get(address)).json()["offset"])
                failures, reached = (0, offset) if offset > reached else (failures + 1, reached)
                if offset < size:
                    _checked(client.put(address, content=_rest(file, offset, size), headers=_range(offset, size)))
                    offset = int(_checked(client.get(address)).json()["offset"])
                if offset == size:
                    return
            except httpx2.TransportError as error:
                say(f"the connection broke ({type(error).__name__}); going on", err=True)
                SystemClock().sleep_s(FIRST_WAIT_S * 2**failures)
    fail(f"{file.name} could not be sent: {MAX_FAILURES} tries in a row failed; the same command goes on with it")


def _rest(file: Path, offset: int, size: int) -> Iterator[bytes]:
    from rich.console import Console
    from rich.progress import Progress

    with file.open("rb") as stream, Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(file.name, total=size, completed=offset)
        stream.seek(offset)
        while block := stream.read(BLOCK_BYTES):
            yield block
            bar.advance(task, len(block))


def _range(offset: int, size: int) -> dict[str, str]:
    return {
        "content-type": "application/octet-stream",
        "content-length": str(size - offset),
        "content-range": f"bytes {offset}-{size - 1}/{size}",
    }


def _checked(reply: "httpx2.Response") -> "httpx2.Response":
    if (message := refusal_in(reply, "offset")) is not None:
        fail(message)
    return reply
