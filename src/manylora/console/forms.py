"""Bodies of the console's forms: names and values, bounded before they are read."""

import re
from collections.abc import Mapping
from urllib.parse import parse_qsl

from starlette.requests import Request

MOST_BYTES = 65_536
MOST_FIELDS = 200
_FORM = "application/x-www-form-urlencoded"
_LENGTH = re.compile(r"[0-9]{1,9}")


class BadForm(Exception):
    """A body that is no form of the console. The message is for its sender."""


class Form:
    """The fields of a form. A field that a form names several times has several values."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = pairs

    def text(self, name: str) -> str:
        """Return a field's last value without blanks at its ends; empty: the form has none."""
        return self.raw(name).strip()

    def raw(self, name: str) -> str:
        """Return a field's last value as it was typed, such as a password."""
        return next((value for field, value in reversed(self._pairs) if field == name), "")

    def all(self, name: str) -> list[str]:
        return [value for field, value in self._pairs if field == name]

    def values(self) -> Mapping[str, str]:
        """Return every field's last value, to show the form again."""
        return dict(self._pairs)


async def read_form(request: Request, most_bytes: int = MOST_BYTES) -> Form:
    """Return the fields of a request's body. Raise `BadForm` for another type, or too many bytes or fields."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        raise BadForm("this page takes forms alone")
    return Form(_pairs(await bounded_body(request, most_bytes)))


async def bounded_body(request: Request, most_bytes: int) -> bytes:
    """Return a request's body. Raise `BadForm` beyond `most_bytes` bytes, before more are read."""
    length = request.headers.get("content-length", "0")
    if not _LENGTH.fullmatch(length) or int(length) > most_bytes:
        raise BadForm(f"a form may have at most {most_bytes:,} bytes")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > most_bytes:
            raise BadForm(f"a form may have at most {most_bytes:,} bytes")
    return body


def _pairs(body: bytes) -> list[tuple[str, str]]:
    try:
        pairs = parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError as error:
        raise BadForm(f"the form cannot be read: {error}") from error
    return [(name, value.replace("\0", "").replace("\r\n", "\n")) for name, value in pairs]
