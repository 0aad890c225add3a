"""Lines of a batch's input and of its results: JSON objects, one a line."""

import hashlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import msgspec

from manylora.stored.batches import BatchError

MAX_ERRORS = 100
"""Errors of one input that a batch lists; the check ends at that number."""
MAX_CUSTOM_ID = 512
"""Characters of a `custom_id`."""
FIELDS = ("custom_id", "method", "url", "body")
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

Mark = bytes
"""The digest of a `custom_id`: sets of them take the same memory whatever the ids are."""


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request of a batch. `body` is the JSON of the HTTP request's body."""

    custom_id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class CheckedInput:
    """The result of the check of an input: the number of its lines, and its errors."""

    total: int
    errors: list[BatchError]


class LineRefused(Exception):
    """A line is no request."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


def mark_of(custom_id: str) -> Mark:
    return hashlib.blake2b(custom_id.encode(), digest_size=16).digest()


def check_input(path: Path, endpoint: str, *, max_lines: int, max_line_bytes: int) -> CheckedInput:
    """Read a whole input and return its errors, `MAX_ERRORS` at most. Raises `OSError`."""
    errors: list[BatchError] = []
    seen: set[Mark] = set()
    total = 0
    for number, raw in _raw_lines(path, max_line_bytes):
        if total == max_lines:
            errors.append(BatchError(code="too_many_lines", message=f"a batch may have at most {max_lines} lines"))
            break
        total += 1
        try:
            mark = mark_of(read_line(raw, endpoint, max_line_bytes).custom_id)
            if mark in seen:
                _refuse("duplicate_custom_id", "another line has the same `custom_id`", "custom_id")
            seen.add(mark)
        except LineRefused as error:
            errors.append(BatchError(code=error.code, message=error.message, param=error.param, line=number))
            if len(errors) == MAX_ERRORS:
                break
    if not total:
        errors.append(BatchError(code="empty_file", message="the input file has no line"))
    return CheckedInput(total, errors)


def pending_lines(path: Path, endpoint: str, done: set[Mark], max_line_bytes: int) -> Iterator[BatchLine]:
    """Yield the lines of a checked input that are not in `done`, which may grow meanwhile. Raises `OSError`."""
    for _, raw in _raw_lines(path, max_line_bytes):
        line = read_line(raw, endpoint, max_line_bytes)
        if mark_of(line.custom_id) not in done:
            yield line


def read_line(raw: bytes, endpoint: str, max_line_bytes: int) -> BatchLine:
    """Return the request of a line. Raises `LineRefused`."""
    if len(raw) > max_line_bytes:
        _refuse("line_too_large", f"a line may have at most {max_line_bytes} bytes (server.max_body_bytes)")
    try:
        fields = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LineRefused("invalid_json_line", f"the line is no JSON object: {error}") from error
    for name in fields.keys() - set(FIELDS):
        _refuse("unknown_field", f"`{name[:80]}` is not a field of a line: it has {', '.join(FIELDS)}", name[:80])
    for name in FIELDS:
        if name not in fields:
            _refuse("missing_required_parameter", f"the line lacks `{name}`", name)
    custom_id = _text(fields, "custom_id")
    if not 1 <= len(custom_id) <= MAX_CUSTOM_ID:
        _refuse("invalid_custom_id", f"`custom_id` must have 1 to {MAX_CUSTOM_ID} characters", "custom_id")
    if (method := _text(fields, "method")) != "POST":
        _refuse("invalid_method", f"`method` must be POST. Given: {method[:20]!r}", "method")
    if (url := _text(fields, "url")) != endpoint:
        _refuse("invalid_url", f"`url` must be the batch's endpoint {endpoint}. Given: {url[:80]!r}", "url")
    _require_whole_reply(fields["body"])
    return BatchLine(custom_id, bytes(fields["body"]))


def _text(fields: dict[str, msgspec.Raw], name: str) -> str:
    try:
        return msgspec.json.decode(fields[name], type=str)
    except msgspec.DecodeError:
        _refuse("invalid_type", f"`{name}` must be a string", name)


def _require_whole_reply(raw: msgspec.Raw) -> None:
    try:
        body = _decode(raw)
    except msgspec.DecodeError:
        _refuse("invalid_type", "`body` must be an object", "body")
    if bytes(body.get("stream", b"false")) not in (b"false", b"null"):
        _refuse("invalid_stream", "`stream` must be false: a line of a batch has one reply", "body.stream")


def _refuse(code: str, message: str, param: str | None = None) -> NoReturn:
    raise LineRefused(code, message, param)


def _raw_lines(path: Path, max_line_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the bytes of each line that is not blank. Of a longer line the bytes are cut."""
    with path.open("rb") as stream:
        number, most = 0, max_line_bytes + 2
        while line := stream.readline(most):
            number += 1
            rest = line
            while len(rest) == most and not rest.endswith(b"\n"):
                rest = stream.readline(most)
            if line.strip():
                yield number, line.rstrip(b"\r\n")


# ── results ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class LineResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The HTTP reply to a line."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class LineError(msgspec.Struct, frozen=True, kw_only=True):
    """The reason for which a line has no reply."""

    code: str
    message: str


class LineResult(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a file of results."""

    id: str
    custom_id: str
    response: LineResponse | None = None
    error: LineError | None = None


_encode_result = msgspec.json.Encoder().encode
_decode_result = msgspec.json.Decoder(LineResult).decode


@dataclass(slots=True)
class FoundResults:
    """The results of a file, as far as it has grown. `marks`: of their `custom_id`s."""

    size: int = 0
    marks: set[Mark] = field(default_factory=set)


def result_line(result: LineResult) -> bytes:
    return _encode_result(result) + b"\n"


async def read_results(chunks: AsyncIterator[bytes]) -> FoundResults:
    """Read the results of a batch. Raises `msgspec.DecodeError` for a line of another form."""
    found, rest = FoundResults(), b""
    async for chunk in chunks:
        found.size += len(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        found.marks |= {mark_of(_decode_result(line).custom_id) for line in lines}
    return found
