"""The texts that engines send: the tokenizer files of the base, and the text files of adapters, below one folder."""

import contextlib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from manylora.adapter_state import AdapterWords
from manylora.errors import StartupError
from manylora.fleet.wire.link_messages import TextFile
from manylora.server.engine_client.messages import AdapterTextReply
from manylora.server.engine_client.served_model import ServedModel
from manylora.system.failures import cause_of

MOST_TEXTS = 1024
"""Largest number of adapters' texts in the folder; the oldest go first, and are asked for again."""


class BaseCache:
    """The folder of texts. Names of files follow from content or are checked, since another machine sends them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open_base(self, served: ServedModel, files: Mapping[str, bytes]) -> ServedModel:
        """Write the text files of a base, and return its facts with their folder. Raises `StartupError`."""
        digest = hashlib.blake2b(digest_size=16)
        for name, data in sorted(files.items()):
            digest.update(f"{name}\0{len(data)}\0".encode() + data)
        place = self._folder / "bases" / digest.hexdigest()
        try:
            for name, data in files.items():
                _write(place / _checked(name), data)
        except OSError as error:
            raise StartupError(f"the folder {place} cannot be used: {cause_of(error)}") from error
        return replace(served, base_dir=str(place))

    def keep_text(self, file: TextFile) -> None:
        """Write the text of an adapter. A disk that does not take it makes the edge ask again."""
        with contextlib.suppress(OSError):
            _write(self._path(file.digest), file.data)
            self._trim()

    def located(self, reply: AdapterTextReply) -> AdapterTextReply:
        """Return an answer with the path of the file here."""
        words = reply.words
        if not words.path:
            return reply
        here = AdapterWords(words.digest, str(self._path(words.digest)))
        return AdapterTextReply(reply.number, here, reply.failure, reply.found_in, reply.waited_ms)

    def _path(self, digest: str) -> Path:
        return self._folder / "adapters" / hashlib.blake2b(digest.encode(), digest_size=16).hexdigest()

    def _trim(self) -> None:
        paths = sorted((self._folder / "adapters").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for path in paths[:-MOST_TEXTS]:
            path.unlink(missing_ok=True)


def _checked(name: str) -> PurePosixPath:
    """Return a path below the folder. Raises `StartupError` for one that leaves it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or len(path.parts) > 2 or not name.isprintable():
        raise StartupError(f"the engine names a file {name!r}, which lies outside of its base")
    return path


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_bytes(data)
    new.replace(path)
