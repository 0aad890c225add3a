"""Forms, cut into pieces at every place, and malformed ones."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from manylora.errors import BodyTooLarge, InvalidParameter, ManyloraError, UnsupportedMediaType
from manylora.server.http import form
from manylora.server.http.form import MAX_FIELD_BYTES, MAX_HEAD_BYTES, MAX_HEAD_PARAMETERS, MAX_PARTS, FormReader

TYPE = "multipart/form-data; boundary=cut"


async def pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    for begin in range(0, len(body), size):
        yield body[begin : begin + size]


async def parts_of(body: bytes, size: int = 1 << 20, *, kind: str = TYPE, most: int = 1 << 20) -> list[object]:
    reader, found = FormReader(kind, pieces(body, size), max_bytes=most), list[object]()
    while (part := await reader.part()) is not None:
        if part.file_name is None:
            found.append((part.name, await reader.text(part.name)))
        else:
            found.append((part.name, part.file_name, b"".join([piece async for piece in reader.content()])))
    return found


def part(content: bytes, head: bytes = b'Content-Disposition: form-data; name="a"') -> bytes:
    return b"--cut\r\n" + head + b"\r\n\r\n" + content + b"\r\n"


FILE = b'Content-Disposition: form-data; name="file"; filename="in put.jsonl"\r\nContent-Type: application/jsonl'
INNER = b"x\r\n--cu\r\n\r\n--"
BODY = b"before\r\n" + part(b"") + part(INNER, FILE) + part("é".encode()) + b"--cut--\r\nbehind"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_form_is_read_the_same_in_pieces_of_any_size(size: int) -> None:
    expected = [("a", ""), ("file", "in put.jsonl", INNER), ("a", "é")]
    assert asyncio.run(parts_of(BODY, size)) == expected


def test_a_content_that_is_not_read_is_skipped() -> None:
    async def scenario() -> None:
        form = FormReader(TYPE, pieces(BODY, 5), max_bytes=1 << 20)
        names = []
        while (found := await form.part()) is not None:
            names.append(found.name)
        assert names == ["a", "file", "a"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("body", "kind", "error"),
    [
        (b"{}", "application/json", UnsupportedMediaType),
        (b"{}", "multipart/form-data", UnsupportedMediaType),
        (b"{}", "multipart/form-data; boundary=" + "x" * 71, UnsupportedMediaType),
        (b"{}", "multipart/mixed; boundary=cut", UnsupportedMediaType),
        (b"", TYPE, InvalidParameter),
        (part(b"x"), TYPE, InvalidParameter),
        (part(b"x") + b"--cutter", TYPE, InvalidParameter),
        (part(b"x", b"Content-Disposition: attachment") + b"--cut--", TYPE, InvalidParameter),
        (part(b"x", b"Content-Disposition: form-data") + b"--cut--", TYPE, InvalidParameter),
        (part(b"x", b"\xff") + b"--cut--", TYPE, InvalidParameter),
        (part(b"\xff") + b"--cut--", TYPE, InvalidParameter),
        (b"--cut\r\n" + b"a" * (MAX_HEAD_BYTES + 1), TYPE, InvalidParameter),
        (part(b"x" * (MAX_FIELD_BYTES + 1)) + b"--cut--", TYPE, InvalidParameter),
        (part(b"x") * (MAX_PARTS + 1) + b"--cut--", TYPE, InvalidParameter),
        (part(b"x" * 200_000, FILE) + b"--cut--", TYPE, BodyTooLarge),
    ],
)
def test_a_malformed_form_is_refused(body: bytes, kind: str, error: type[ManyloraError]) -> None:
    with pytest.raises(error):
        asyncio.run(parts_of(body, 1000, kind=kind, most=100_000))


@pytest.mark.parametrize("size", [100, 1 << 20])
def test_a_head_that_would_take_long_to_read_is_refused_unread(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = b'Content-Disposition: form-data; name="a'
    with monkeypatch.context() as patch:
        patch.setattr(form, "HeaderParser", None)
        for head in (begin + b";" * MAX_HEAD_PARAMETERS, begin + b" " * MAX_HEAD_BYTES):
            with pytest.raises(InvalidParameter, match="at most"):
                asyncio.run(parts_of(part(b"", head) + b"--cut--\r\n", size))
    quoted = begin + b";" * (MAX_HEAD_PARAMETERS - 1) + b'"'
    assert asyncio.run(parts_of(part(b"x", quoted) + b"--cut--\r\n", size)) == [
        ("a" + ";" * (MAX_HEAD_PARAMETERS - 1), "x")
    ]
    kind = 'multipart/form-data; boundary="a' + ";" * MAX_HEAD_PARAMETERS
    with pytest.raises(UnsupportedMediaType):
        asyncio.run(parts_of(b"", kind=kind))
