"""A GGUF file as a base: a folder in the cache with its text files and a link to it. Imports without torch."""

import hashlib
import secrets
import shutil
from pathlib import Path

from manylora.errors import ModelNotFound, ModelUnsupported
from manylora.models.checkpoint_files import GGUF_NAME
from manylora.models.fetch.gguf_import import write_texts
from manylora.models.gguf.parts import are_parts_of_one, model_name, named_as_part, part_files, read_model
from manylora.models.text.token_files import (
    GENERATION_FILE,
    TEMPLATE_FILE,
    TEMPLATE_JSON_FILE,
    TOKENIZER_FILES,
)

_SUFFIX = ".gguf"
_TEXTS = ("config.json", GENERATION_FILE, *TOKENIZER_FILES, TEMPLATE_FILE, TEMPLATE_JSON_FILE)
"""Files of the model's own repository. Those beside the GGUF file count before its metadata."""


def find_gguf(given: Path) -> Path | None:
    """Return the GGUF file that a path means: itself, or the only one of a folder that has no other weights.

    A folder with the parts of one model means any of them. Raises `ModelNotFound` for a file that is not there,
    `ModelUnsupported` for a folder with several models.
    """
    if given.is_file():
        return given if given.suffix.lower() == _SUFFIX else None
    if given.suffix.lower() == _SUFFIX and not given.exists():
        raise ModelNotFound(f"there is no file {given}")
    if not given.is_dir() or any(given.glob("*.safetensors*")):
        return None
    if (given / GGUF_NAME).is_symlink() and (given / "config.json").is_file():
        return None  # a folder of `prepared`
    found = sorted(file for file in given.iterdir() if file.suffix.lower() == _SUFFIX)
    if len(found) > 1 and not are_parts_of_one(found):
        names = ", ".join(file.name for file in found)
        raise ModelUnsupported(f"{given} has several GGUF files ({names}): give the one that is meant")
    return found[0] if found else None


def prepared(file: Path, bases_dir: Path) -> Path:
    """Return the folder of a GGUF file as a base, named as its model; make it if a part or the texts are new.

    Args:    file, any part of the model
    Raises:  `ModelNotFound` for a missing part; `ModelUnsupported` if a part is damaged, or if the architecture or the
             tokenizer is not supported
    """
    parts = part_files(named_as_part(file))
    file = parts[0] if parts[0].exists() else named_as_part(file)
    texts = [file.parent / name for name in _TEXTS if (file.parent / name).is_file()]
    identity = hashlib.sha256()
    for each in (*(part for part in parts if part.exists()), *texts):
        status = each.stat()
        identity.update(f"{each}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
    parent = bases_dir / ".gguf" / identity.hexdigest()[:16]
    folder = parent / model_name(file)
    if folder.is_dir():
        return folder
    partial = parent / f".{secrets.token_hex(4)}"
    partial.mkdir(parents=True)
    try:
        for text in texts:
            shutil.copyfile(text, partial / text.name)
        (partial / GGUF_NAME).symlink_to(file)
        write_texts(read_model(file), partial)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if not folder.is_dir():  # else another process was first
            raise
    return folder
