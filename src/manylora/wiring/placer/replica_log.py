"""The log of one slot's replicas: the output of their processes, kept within two files of some size."""

import os
import shutil
from pathlib import Path
from typing import BinaryIO

LOG_FILE, OLDER_FILE = "log", "log.1"
LOG_BYTES = 16 << 20
"""Size from which on a log becomes the older one, in place of the one before."""
READ_BYTES = 64 << 10
"""Bytes at the end of a log among which its last line is looked for."""


def open_log(folder: Path) -> BinaryIO:
    """Open an empty log for a process; that of the start before becomes the older one."""
    file = folder / LOG_FILE
    if file.exists():
        file.replace(folder / OLDER_FILE)
    return file.open("ab")  # appended, so that it can be cut while a process writes it


def cut_log(folder: Path) -> None:
    """Copy a log that has grown to the older one, and empty it. Lines of the moment between may be lost."""
    file = folder / LOG_FILE
    try:
        if file.stat().st_size > LOG_BYTES:
            shutil.copyfile(file, folder / OLDER_FILE)
            os.truncate(file, 0)
    except OSError:
        return  # the disk is full, or the log is gone: the replica runs on


def last_line(folder: Path) -> str:
    """Return the last line of a log that is not empty; empty: there is none."""
    try:
        with (folder / LOG_FILE).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - READ_BYTES))
            text = file.read(READ_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(text.split("\n")) if line.strip()), "")
