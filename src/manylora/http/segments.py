"""The test for paths that another server could read as other paths, since HTTP clients resolve `.` and `..`."""

import re
from urllib.parse import unquote

MOST_ENCODINGS = 3
"""Percent-encodings of one path, one within another, that the test undoes beside the server's own."""
_SEPARATORS = re.compile(r"[/\\]")
_DOTS = frozenset({".", ".."})


def has_dot_segment(path: str) -> bool:
    """Return whether a path has a segment `.` or `..`, plain or percent-encoded, between slashes or backslashes.

    A path with more than `MOST_ENCODINGS` encodings counts as one, since the test cannot read it.
    """
    for _ in range(MOST_ENCODINGS + 1):
        if not _DOTS.isdisjoint(_SEPARATORS.split(path)):
            return True
        decoded = unquote(path, "latin-1")
        if decoded == path:
            return False
        path = decoded
    return True
