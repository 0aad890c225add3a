"""The fetch of a base model's files from a Hugging Face hub: safetensors, JSON and the chat template only."""

import hashlib
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from manylora.errors import ModelNotFound
from manylora.models.checkpoints.quantization import read_scheme
from manylora.models.fetch.hub_refusals import translated
from manylora.models.spec import read_json, read_spec
from manylora.models.text.token_files import TOKENIZER_FILE

Progress = Callable[[str, int, int], None]

_CHUNK_BYTES = 1 << 22

# Nothing else is fetched: no code, no pickles, no second copy of the weights in another layout (`consolidated…`).
_WANTED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
)


def fetch_repository(
    repository: str, directory: Path, report: Progress, *, endpoint: str | None = None, licence: str | None = None
) -> None:
    """Fetch the files of `org/name` into `directory`; files already there and unchanged are not fetched again.

    config.json comes first and is checked, so that an unsupported model costs no long download.
    Args:    licence  short name of the licence, for the messages; None: unknown here
    Raises:  `ModelNotFound` if something cannot be fetched, `ModelUnsupported` from the check
    """
    with translated(repository, licence):
        from huggingface_hub import HfApi, hf_hub_download

        found = HfApi(endpoint=endpoint).model_info(repository, files_metadata=True)
        sizes = {
            entry.rfilename: entry.size or 0
            for entry in found.siblings or ()
            if any(fnmatch(entry.rfilename, pattern) for pattern in _WANTED)
        }
        if not any(name.endswith(".safetensors") for name in sizes):
            raise ModelNotFound(
                f"{repository} has no weights as safetensors; pickled weights are never opened. Fetch it into a folder "
                f"with the hub's own client (`hf download {repository} --local-dir FOLDER`): `manylora pull FOLDER` "
                "then has the command that converts them"
            )
        if TOKENIZER_FILE not in sizes:
            raise ModelNotFound(
                f"{repository} has no {TOKENIZER_FILE}. Fetch it into a folder with the hub's own client, let "
                "transformers write that file there (AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)), "
                "and serve the folder"
            )
        bar = _progress_bar(report, sum(sizes.values()))

        def fetch(name: str) -> None:
            hf_hub_download(
                repository, name, revision=found.sha, local_dir=directory, endpoint=endpoint, tqdm_class=bar
            )

        first = sizes.keys() & {"config.json", "generation_config.json"}
        for name in sorted(first):
            fetch(name)
        read_spec(directory)
        read_scheme(read_json(directory / "config.json"))
        for name in sorted(sizes.keys() - first):
            fetch(name)
        for entry in found.siblings or ():
            if entry.rfilename in sizes and not _is_as_published(directory / entry.rfilename, entry):
                (directory / entry.rfilename).unlink()
                fetch(entry.rfilename)
                if not _is_as_published(directory / entry.rfilename, entry):
                    raise ModelNotFound(
                        f"{entry.rfilename} of {repository} came twice with another content than the hub says it has "
                        "(SHA-256): a proxy or a mirror between may be damaged; run the same command again"
                    )
    shutil.rmtree(directory / ".cache", ignore_errors=True)  # the client's notes about this download


def _is_as_published(file: Path, entry: Any) -> bool:  # the client's `RepoSibling`
    """Return whether a file has the content that the hub lists: by SHA-256 if it is large, else by git's object id."""
    size = file.stat().st_size
    if entry.lfs is not None:
        digest, expected = hashlib.sha256(), entry.lfs.sha256
    else:
        digest, expected = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False), entry.blob_id
    if expected is None:
        return True
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return bool(digest.hexdigest() == expected)


def _progress_bar(report: Progress, total: int) -> type[Any]:
    """Return a class for the client's progress bars, which draws nothing and reports bytes."""
    from huggingface_hub.utils.tqdm import tqdm

    done = 0

    class Reporter(tqdm):
        def __init__(self, *args: object, **fields: Any) -> None:  # the client's choice of tqdm's own arguments
            super().__init__(*args, **{**fields, "disable": True})  # type: ignore[no-untyped-call]  # the client's
            self.update(fields.get("initial") or 0)

        def update(self, n: float | None = 1) -> None:
            nonlocal done
            done += int(n or 0)
            report("download", min(done, total), total)

    return Reporter
