"""The mark of an edge that has sent all of its usage: its folder is needed no more.

A replica of a dedicated deployment ends for good with its deployment, and what it has not sent must outlive it.
"""

from pathlib import Path

SENT_FILE = "sent"


def mark_sent(folder: Path) -> None:
    (folder / SENT_FILE).touch()


def unmark_sent(folder: Path) -> None:
    """Remove the mark, before the first request is recorded."""
    (folder / SENT_FILE).unlink(missing_ok=True)


def is_all_sent(root: Path) -> bool:
    """Return whether every edge below `metering.dir` has ended with all of its usage sent."""
    return all((folder / SENT_FILE).exists() for folder in root.glob("[0-9]*"))
