"""Uploaded adapters: a tenant's repositories with numbered versions, in folders of this machine.

    {root}/{tenant}/{repo}/{version}/adapter_config.json, adapter_model.safetensors, and text files where it has any

A version appears whole or not at all, and its content never changes. `sums.json` beside the files has the SHA-256 of
each; a version whose files differ from it is refused, and the tenant has to upload it again. The control plane decides
on uploads. A load checks an uploaded adapter like any other.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapters.refusals import Refusals
from manylora.adapters.sources.local import LocalSource
from manylora.adapters.sources.source import (
    CONFIG_FILE,
    PARTS,
    TEXT_FILES,
    WEIGHTS_FILE,
    FetchedFiles,
    FolderSource,
    Located,
)

ARCHIVED_FILE = "archived"
SUMS_FILE = "sums.json"
INCOMING = ".incoming-"
UPLOADS_PATH = "internal/uploads"
"""Path of a control plane's routes for the files of uploads: `{tenant}/{repo}/{version}/{file}` below it."""
NEWEST = "newest"
"""Stands for the number of a repository's newest version in such a path."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


class Registry:
    """The folders of uploads. Several processes may use one root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(
        self,
        tenant: str,
        repo: str,
        config: bytes,
        weights: bytes | memoryview,
        texts: Mapping[str, bytes] | None = None,
    ) -> int:
        """Keep an upload as the repository's next version and return its number; it is on disk when this returns."""
        folder = self._made(tenant, repo)
        incoming = self.root / f"{INCOMING}{uuid.uuid4().hex}"
        incoming.mkdir(mode=0o700)
        try:
            for name, data in {CONFIG_FILE: config, WEIGHTS_FILE: weights, **(texts or {})}.items():
                _write_durably(incoming / name, data)
            _write_sums(incoming)
            _sync_folder(incoming)
            return self._publish(incoming, folder)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    def publish(self, incoming: Path, tenant: str, repo: str, version: int) -> None:
        """Make a folder of an adapter's files, on the root's file system, a version with a free number.

        The version is on disk at the return. Raises `OSError`, also if the version exists already.
        """
        folder = self._made(tenant, repo)
        for file in files_in(incoming):
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        _write_sums(incoming)
        _sync_folder(incoming)
        incoming.rename(folder / str(version))
        _sync_folder(folder)

    def last_number(self, tenant: str, repo: str) -> int:
        """Return the highest number of a version whose files exist, archived or not; 0 if there is none."""
        folder = self._repository(tenant, repo)
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        return max((int(name) for name in names if _VERSION.fullmatch(name)), default=0)

    def files(self, tenant: str, repo: str, version: int) -> list[Path]:
        """Return the files of a version: both parts, and its text files."""
        return files_in(self._repository(tenant, repo) / str(version))

    def versions(self, tenant: str, repo: str) -> list[int]:
        """Return the versions that are not archived, ascending."""
        try:
            names = os.listdir(self._repository(tenant, repo))  # noqa: PTH208 - each wish without a version comes here
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = sorted(int(name) for name in names if _VERSION.fullmatch(name))
        return [
            version for version in found if not (self._repository(tenant, repo) / str(version) / ARCHIVED_FILE).exists()
        ]

    def has(self, tenant: str, name: str) -> bool:
        """Return whether a request's name, `repo` or `repo/version`, means a version of the tenant."""
        repo, _, version = name.rstrip("/").partition("/")
        if not _NAME.fullmatch(repo) or not _NAME.fullmatch(tenant):
            return False
        known = self.versions(tenant, repo)
        return bool(known) if not version else _VERSION.fullmatch(version) is not None and int(version) in known

    def has_tenant(self, tenant: str) -> bool:
        """Return whether a tenant has ever had a version here."""
        return _NAME.fullmatch(tenant) is not None and (self.root / tenant).is_dir()

    def repositories(self, tenant: str) -> list[str]:
        """Return the tenant's repositories that have a version, sorted."""
        folder = self.root / _checked(tenant)
        names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        return [name for name in names if _NAME.fullmatch(name) and self.versions(tenant, name)]

    def archive(self, tenant: str, repo: str, version: int) -> None:
        """Hide a version from all requests; its files stay."""
        (self._repository(tenant, repo) / str(version) / ARCHIVED_FILE).touch()

    def restore(self, tenant: str, repo: str, version: int) -> None:
        """Let an archived version be found again."""
        (self._repository(tenant, repo) / str(version) / ARCHIVED_FILE).unlink(missing_ok=True)

    def remove(self, tenant: str, repo: str, version: int) -> None:
        """Delete a version's files. No other version gets its number while a later one exists."""
        shutil.rmtree(self._repository(tenant, repo) / str(version))

    def place(self, ref: AdapterRef) -> str:
        """Return the folder of a version below the root.

        The folder does not exist for an archived or unknown version.
        """
        return self._place(ref.tenant, ref.id)

    def folder(self, tenant: str, name: str) -> Path:
        """Return the folder of `repo`, which means its newest version, or of `repo/version`; see `place`."""
        return self.root / self._place(tenant, name)

    def _place(self, tenant: str, name: str) -> str:
        repo, _, version = name.partition("/")
        known = self.versions(tenant, repo)
        chosen = int(version) if version else (known[-1] if known else 0)
        return f"{_checked(tenant)}/{_checked(repo)}/{chosen if chosen in known else 0}"

    def _made(self, tenant: str, repo: str) -> Path:
        folder = self._repository(tenant, repo)
        for each in (self.root, folder.parent, folder):  # the mode is the last one's alone
            each.mkdir(parents=True, exist_ok=True, mode=0o700)
        for parent in (folder.parent, self.root):  # either may be new, and then its parent's entry must be synced too
            _sync_folder(parent)
        return folder

    def _publish(self, incoming: Path, folder: Path) -> int:
        taken = [int(entry.name) for entry in folder.iterdir() if _VERSION.fullmatch(entry.name)]
        version = max(taken, default=0) + 1
        while True:
            try:
                incoming.rename(folder / str(version))  # fails if another upload has just taken the number
            except OSError:
                if not (folder / str(version)).exists():
                    raise
                version += 1
            else:
                _sync_folder(folder)
                return version

    def _repository(self, tenant: str, repo: str) -> Path:
        return self.root / _checked(tenant) / _checked(repo)


class RegistrySource:
    """The registry as a source: `repo` is a tenant's newest version, `repo/3` its third. See `Source`."""

    def __init__(self, root: Path) -> None:
        self._registry = Registry(root)
        self._files = LocalSource((root,), self._registry.place)

    def locate(self, ref: AdapterRef) -> Located:
        return self._files.locate(ref)

    def fetch(self, ref: AdapterRef, stamp: str, max_bytes: int) -> FetchedFiles:
        place = self._registry.place(ref)
        files = self._files.fetch(ref, stamp, max_bytes)
        if place != self._registry.place(ref):
            return files  # of one version or the other; the next request finds the newest number again
        sums = read_sums(self._registry.root / place)
        found: dict[str, bytes | memoryview] = {CONFIG_FILE: files.config, WEIGHTS_FILE: files.weights, **files.texts}
        for name, data in found.items():
            if name in sums and hashlib.sha256(data).hexdigest() != sums[name]:
                raise Refusals(ref.id, ref.source).corrupt(
                    f"{name} is no longer what was uploaded (SHA-256), damaged on the disk; upload it again"
                )
        return files

    def config(self, ref: AdapterRef) -> bytes:
        return self._files.config(ref)

    def list(self) -> list[str]:
        """Return no ids: the list depends on the tenant."""
        return []


def files_in(folder: Path) -> list[Path]:
    """Return both parts of an adapter in a folder, and the existing text files."""
    return [*(folder / name for name in PARTS), *(folder / name for name in TEXT_FILES if (folder / name).is_file())]


def is_repository_name(name: str) -> bool:
    """Return whether a repository may have this name, which is also the name of its folder."""
    return _NAME.fullmatch(name) is not None and ".." not in name


def digest_header(sha256: str) -> str:
    """Return the value of `Repr-Digest` (RFC 9530) for a hash in hexadecimal."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode('ascii')}:"


def folder_sources(roots: Sequence[str], registry_dir: str, pushed_dir: str = "") -> dict[SourceName, FolderSource]:
    """Return the switched-on sources whose files lie in folders of this machine."""
    sources: dict[SourceName, FolderSource] = {SourceName.LOCAL: LocalSource(tuple(Path(root) for root in roots))}
    if registry_dir:
        sources[SourceName.PBASE] = RegistrySource(Path(registry_dir))
    if pushed_dir:
        sources[SourceName.PUSHED] = RegistrySource(Path(pushed_dir))
    return sources


def _checked(name: str) -> str:
    assert _NAME.fullmatch(name), "tenants and repositories are checked where they come in"
    return name


def _write_durably(file: Path, data: bytes | memoryview) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _write_sums(folder: Path) -> None:
    sums = {}
    for file in sorted(folder.iterdir()):
        with file.open("rb") as stream:
            sums[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    _write_durably(folder / SUMS_FILE, json.dumps(sums).encode())


def read_sums(folder: Path) -> dict[str, str]:
    """Return the checksums of a version's files; empty if an older release wrote it or if the file is damaged."""
    try:
        found = json.loads((folder / SUMS_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
