"""Forms with a file (`multipart/form-data`, RFC 7578), read piece by piece, so that no file is held in memory."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser

from manylora.errors import BodyTooLarge, InvalidParameter, UnsupportedMediaType

MAX_HEAD_BYTES = 8 << 10
MAX_HEAD_PARAMETERS = 64
"""`;` in a head: the library reads its parameters in time in proportion to their number times its length."""
MAX_FIELD_BYTES = 64 << 10
MAX_PARTS = 32
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")


@dataclass(frozen=True, slots=True)
class FormPart:
    """The head of one part of a form. `file_name` None: the part is a field, not a file."""

    name: str
    file_name: str | None


class FormReader:
    """The parts of a form, in order: read each part's content with `content` or `text` before the next `part`."""

    def __init__(self, content_type: str | None, chunks: AsyncIterator[bytes], *, max_bytes: int) -> None:
        """`max_bytes` bounds the whole form. Raises `UnsupportedMediaType` for a body of another type."""
        head = Message()
        is_short = content_type is not None and content_type.count(";") <= MAX_HEAD_PARAMETERS
        head["content-type"] = (content_type or "") if is_short else ""
        boundary = head.get_boundary()
        if head.get_content_type() != "multipart/form-data" or boundary is None or not _BOUNDARY.fullmatch(boundary):
            raise UnsupportedMediaType("send the file as a form: `Content-Type: multipart/form-data; boundary=…`")
        self._chunks = chunks
        self._mark = b"\r\n--" + boundary.encode("ascii")
        self._buffer = b"\r\n"  # the first mark may stand at the very beginning
        self._num_parts = self._num_bytes = 0
        self._max_bytes = max_bytes
        self._is_in_content = True  # the preamble, which has no meaning

    async def part(self) -> FormPart | None:
        """Return the next part; None behind the last one. Raises `InvalidParameter` for a malformed form."""
        async for _ in self.content():
            pass
        await self._need(2)
        ending, self._buffer = self._buffer[:2], self._buffer[2:]
        if ending == b"--":
            while await self._read():  # an epilogue has no meaning
                self._buffer = b""
            return None
        if ending != b"\r\n":
            raise InvalidParameter("a boundary of the form is not followed by the end of its line")
        head = await self._head(ending)
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise InvalidParameter(f"a form may have at most {MAX_PARTS} parts")
        self._is_in_content = True
        return head

    async def content(self) -> AsyncIterator[bytes]:
        """Yield the content of the part in pieces. Raises `InvalidParameter` if the form ends within it."""
        while self._is_in_content:
            at = self._buffer.find(self._mark)
            if at >= 0:
                piece, self._buffer = self._buffer[:at], self._buffer[at + len(self._mark) :]
                self._is_in_content = False
            else:
                kept = len(self._mark) - 1
                piece, self._buffer = self._buffer[:-kept], self._buffer[-kept:]
            if piece:
                yield piece
            if self._is_in_content:
                await self._more()

    async def text(self, name: str) -> str:
        """Return the content of a field. Raises `InvalidParameter` for one that is too long or no UTF-8."""
        found = b""
        async for piece in self.content():
            found += piece
            if len(found) > MAX_FIELD_BYTES:
                raise InvalidParameter(f"`{name}` may have at most {MAX_FIELD_BYTES} bytes", parameter=name)
        try:
            return found.decode()
        except UnicodeDecodeError as error:
            raise InvalidParameter(f"`{name}` must be UTF-8", parameter=name) from error

    async def _head(self, begin: bytes) -> FormPart:
        self._buffer = begin + self._buffer
        while (at := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise InvalidParameter(f"the head of a part of the form may have at most {MAX_HEAD_BYTES} bytes")
            await self._more()
        raw, self._buffer = self._buffer[:at], self._buffer[at + 4 :]
        if at > MAX_HEAD_BYTES or raw.count(b";") > MAX_HEAD_PARAMETERS:
            raise InvalidParameter(
                f"the head of a part of the form may have at most {MAX_HEAD_BYTES} bytes and {MAX_HEAD_PARAMETERS} `;`"
            )
        try:
            head = HeaderParser().parsestr(raw.strip().decode())
        except UnicodeDecodeError as error:
            raise InvalidParameter("the head of a part of the form must be UTF-8") from error
        name = head.get_param("name", header="content-disposition")
        if head.get_content_disposition() != "form-data" or not isinstance(name, str):
            raise InvalidParameter("each part of the form needs `Content-Disposition: form-data; name=…`")
        return FormPart(name, head.get_filename())

    async def _need(self, count: int) -> None:
        while len(self._buffer) < count:
            await self._more()

    async def _more(self) -> None:
        if not await self._read():
            raise InvalidParameter("the form ends before its last boundary")

    async def _read(self) -> bool:
        """Read the next piece of the body; return whether there was one. Raises `BodyTooLarge`."""
        chunk = await anext(self._chunks, None)
        if chunk is None:
            return False
        self._num_bytes += len(chunk)
        if self._num_bytes > self._max_bytes:
            raise BodyTooLarge(f"the form may have at most {self._max_bytes} bytes")
        self._buffer += chunk
        return True
