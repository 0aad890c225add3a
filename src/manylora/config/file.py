"""A TOML file of settings, read as UTF-8. An unreadable file is refused with its name, the cause and the remedy."""

import codecs
import re
import tomllib
from pathlib import Path
from typing import Any

from manylora.errors import ConfigInvalid
from manylora.system.failures import cause_of

_OTHER_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_tables(file: Path) -> dict[str, Any]:
    """Return the tables of a file, without a UTF-8 mark at its beginning. Raises `ConfigInvalid`."""
    refusal = f"cannot read the configuration file {file}"
    try:
        data = file.read_bytes()
    except (OSError, ValueError) as error:  # a path with a null character is a ValueError
        cause = cause_of(error) if isinstance(error, OSError) else str(error)
        raise ConfigInvalid(f"{refusal}: {cause}") from error
    if data.startswith(_OTHER_MARKS) or b"\0" in data:
        raise ConfigInvalid(f"{refusal}: it is text in UTF-16 or UTF-32, or no text; save it as UTF-8")
    try:
        return tomllib.loads(data.removeprefix(codecs.BOM_UTF8).decode())
    except UnicodeDecodeError as error:
        raise ConfigInvalid(
            f"{refusal}: it is not UTF-8 (byte 0x{data[error.start]:02x} at {error.start}); save it as UTF-8"
        ) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigInvalid(f"{refusal}: {error}") from error


def is_text(value: object) -> bool:
    """Return whether all texts of a setting are UTF-8, which other processes get. A path may contain other bytes."""
    parts = value if isinstance(value, tuple) else (value,)
    return not any(isinstance(part, str) and _SURROGATE.search(part) for part in parts)
