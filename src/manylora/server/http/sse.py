"""Server-sent events by hand: one JSON object a line, a size no client refuses, and comments that keep a line alive."""

import msgspec

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b":\n\n"
MAX_EVENT_BYTES = 120_000

_encode = msgspec.json.Encoder().encode
# Some clients split lines on these three as well as on LF. Inside JSON they occur in strings only.
_ESCAPES = (("\u0085".encode(), b"\\u0085"), ("\u2028".encode(), b"\\u2028"), ("\u2029".encode(), b"\\u2029"))


def event(body: object) -> bytes:
    """Frame one JSON object."""
    data = _encode(body)
    if not data.isascii():
        for raw, escaped in _ESCAPES:
            data = data.replace(raw, escaped)
    return b"data: " + data + b"\n\n"
