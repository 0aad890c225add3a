"""Bases by their names: the entry of the catalog, the directory, the shape. Imports without torch."""

import difflib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from manylora.errors import ModelNotFound, StartupError
from manylora.models.fetch.gguf_base import find_gguf, prepared
from manylora.models.fetch.known_bases import KNOWN_BASES, KnownBase
from manylora.models.spec import ModelSpec, parse_spec, read_spec
from manylora.system.printable import quoted


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFacts:
    """A base's shape, and the place that it was read from.

    name       in messages and lists
    directory  its files; None: they are not here, and the shape is the catalog's
    known      its entry in the catalog; None: it has none
    """

    name: str
    spec: ModelSpec
    directory: Path | None
    known: KnownBase | None

    @property
    def unverified(self) -> tuple[str, ...]:
        """Fields of the catalog's shape that may differ from the base's own config.json; none where that counts."""
        return () if self.known is None or self.directory is not None else self.known.unverified


def find(name: str) -> KnownBase | None:
    """Return the base of that name or hub repository, in letters of any case, or None."""
    wanted = name.lower()
    for base in KNOWN_BASES:
        names = (base.name, *base.aliases, *(() if base.embedded else (base.repository,)))
        if any(wanted == each.lower() for each in names):
            return base
    return None


def short_name(base: str) -> str:
    """Return the name of a base's deployment: `mistral-7b-instruct`, also for `mistralai/Mistral-7B-Instruct-v0.1`."""
    known = find(base)
    return (known.name if known else base.rsplit("/", 1)[-1]).lower()


def request_names(base: str) -> tuple[str, ...]:
    """Return every name of a served base in requests and settings: its own, the last part, its deployment's."""
    return base, base.rsplit("/", 1)[-1], short_name(base)


def bases_dir(cache_dir: Path) -> Path:
    """Return the folder of pulled bases."""
    return cache_dir / "bases"


def pulled_dir(name: str, cache_dir: Path) -> Path:
    """Return the folder of a base pulled under this name (known, or `org/name` on the hub), present or not."""
    known = find(name)
    return bases_dir(cache_dir) / (known.name if known else name.replace("/", "--"))


def resolve(name_or_dir: str, cache_dir: Path) -> Path:
    """Return the directory of a base model: known names first, then files and directories, then pulled repositories.

    A GGUF file gets a directory in the cache. Raises `ModelNotFound` with the command that fetches the base, or with
    the closest known names; `ModelUnsupported` as `prepared` does.
    """
    given = Path(name_or_dir).expanduser()
    known = find(name_or_dir)
    if known is None and (gguf := find_gguf(given)) is not None:
        return prepared(gguf, bases_dir(cache_dir))
    if known is None and (given / "config.json").is_file():
        return given
    if (known or is_repository(name_or_dir)) and is_complete(pulled := pulled_dir(name_or_dir, cache_dir)):
        return pulled
    if known is not None:
        raise ModelNotFound(
            f"base model {known.name} is not in {bases_dir(cache_dir)}; run: manylora pull {known.name}"
        )
    if given.is_dir():
        raise ModelNotFound(f"{given} has no config.json, so it is not a base model's directory")
    if is_repository(name_or_dir):
        raise ModelNotFound(
            f"base model {name_or_dir} is not in {bases_dir(cache_dir)}; run: manylora pull {name_or_dir}"
        )
    raise unknown(name_or_dir)


def describe(name_or_dir: str, cache_dir: Path) -> BaseFacts:
    """Return a base's shape: of its config.json where its files are here, else of the catalog. Raises as `resolve`."""
    known = find(name_or_dir)
    try:
        directory = resolve(name_or_dir, cache_dir)
    except ModelNotFound:
        if known is None:
            raise
        return BaseFacts(name=known.name, spec=parse_spec(known.config, {}), directory=None, known=known)
    name = known.name if known else served_name(name_or_dir, directory)
    return BaseFacts(name=name, spec=read_spec(directory), directory=directory, known=known)


def described_bases(cache_dir: Path) -> Iterator[BaseFacts]:
    """Yield the bases of the catalog, then the others that the cache has. A damaged one of the latter is left out."""
    for known in KNOWN_BASES:
        try:
            yield describe(known.name, cache_dir)
        except StartupError:  # its file is damaged, and the next pull mends it
            yield BaseFacts(name=known.name, spec=parse_spec(known.config, {}), directory=None, known=known)
    names = {pulled_dir(known.name, cache_dir).name for known in KNOWN_BASES}
    for directory in sorted(bases_dir(cache_dir).glob("[!.]*")):
        if directory.name not in names and is_complete(directory):
            with suppress(StartupError):
                name = directory.name.replace("--", "/", 1)
                yield BaseFacts(name=name, spec=read_spec(directory), directory=directory, known=None)


def served_name(given: str, directory: Path) -> str:
    """Return the name of a base in replies: the setting `model.base`, or the last part of its path without `.gguf`.

    Args:  directory  what `resolve` returns for it; a folder with a GGUF file has its own name nevertheless
    """
    path = Path(given).expanduser()
    if path.is_dir() and find(given) is None:
        return path.absolute().name
    return directory.name if path.exists() else given


def is_repository(name: str) -> bool:
    """Return whether `name` has the form `org/name` of a hub repository."""
    parts = name.split("/")
    return len(parts) == 2 and all(
        part and part[0].isalnum() and ".." not in part and all(c.isalnum() or c in "-_." for c in part)
        for part in parts
    )


def is_complete(directory: Path) -> bool:
    """Return whether a pull is complete. Pulls appear by one rename, so the config stands for the rest."""
    return (directory / "config.json").is_file()


def unknown(name: str) -> ModelNotFound:
    """Return the error for an unknown name, with the closest known names."""
    close = nearest(name)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(base.name for base in KNOWN_BASES)}."
    return ModelNotFound(f"no base model {quoted(name)}: {hint} Or give a directory, or a hub repository as org/name")


def nearest(name: str) -> list[str]:
    """Return the known names that are most like a name, the nearest first; none that is like it: an empty list."""
    names = {base.name.lower(): base.name for base in KNOWN_BASES}
    return [names[found] for found in difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.4)]
