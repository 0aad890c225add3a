"""The text files of a base that an edge needs: tokenizer, chat templates and config."""

from pathlib import Path

from manylora.fleet.wire.framing import FRAME_BYTES
from manylora.models.text.token_files import (
    GENERATION_FILE,
    TEMPLATE_FILES,
    TEMPLATE_FOLDER,
    TOKENIZER_FILES,
)

CONFIG_FILE = "config.json"
NAMES = tuple(dict.fromkeys((*TOKENIZER_FILES, *TEMPLATE_FILES, GENERATION_FILE, CONFIG_FILE)))


def read_base_texts(directory: str) -> dict[str, bytes]:
    """Return the text files of a base by their paths below its folder. Absent ones are left out. Raises `OSError`."""
    folder = Path(directory)
    paths = [folder / name for name in NAMES if (folder / name).is_file()]
    paths += sorted(path for path in (folder / TEMPLATE_FOLDER).glob("*.jinja") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    assert sum(map(len, found.values())) < FRAME_BYTES, "the text files of a base fit one message"
    return found
