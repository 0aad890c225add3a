"""Token ids to text, one at a time, in whole characters.

In both families of tokenizers used by Llama models, each token is a fixed run of bytes, independent of the tokens
before it. So a stream is an incremental UTF-8 decoder over those bytes. (`tokenizers.DecodeStream` decodes a window of
ids anew for each token, holds text back while the window ends in U+FFFD, and cannot return the rest at the end.)

One difference from decoding all ids at once is left, with byte tokens (`<0xE2>`) only. There one byte that is no UTF-8
turns its whole run of byte tokens into U+FFFD, with the valid characters before it, which a stream has sent by then.
"""

import codecs
import copy
import re
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer as _Library
from tokenizers.pre_tokenizers import ByteLevel

from manylora.errors import ModelUnsupported

_WORD_START = "\u2581"  # SentencePiece's visible space
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenTexts:
    """The bytes of every token of one vocabulary. Immutable."""

    def __init__(self, library: _Library, decoder: Mapping[str, Any] | None) -> None:
        """Collect the bytes of every token. `decoder` is the object of that name in tokenizer.json.

        Raises `ModelUnsupported` for another decoder than the two families have.
        """
        self._library = library
        self._added: Mapping[int, str] = {}
        kinds = _kinds(decoder)
        self._byte_of = _byte_alphabet() if kinds == ["ByteLevel"] else None
        self.strips_first_space = "Strip" in kinds or "Metaspace" in kinds
        if not (self._byte_of or set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}) or not kinds:
            raise ModelUnsupported(f"tokenizer.json: decoder {'+'.join(kinds) or 'null'} is not supported")

    def piece(self, token_id: int) -> str:
        """Return the token as the vocabulary spells it; empty for an unknown id."""
        if token_id in self._added:
            return self._added[token_id]
        return (self._library.id_to_token(token_id) if token_id >= 0 else None) or ""

    def with_library(self, library: _Library) -> "TokenTexts":
        """Return the texts of a library that has more tokens and the same decoder."""
        own = copy.copy(self)
        own._library = library
        return own

    def with_added(self, added: Mapping[int, str]) -> "TokenTexts":
        """Return the texts with further tokens that the library lacks, as the vocabulary spells them."""
        own = copy.copy(self)
        own._added = added
        return own

    def of(self, token_id: int) -> bytes:
        if not (piece := self.piece(token_id)):
            return b""
        if self._byte_of is not None:
            try:
                return bytes([self._byte_of[character] for character in piece])
            except KeyError:  # an added token with a character outside the alphabet stands for itself
                return bytes(piece, "utf-8")
        if match := _BYTE_TOKEN.fullmatch(piece):
            return bytes([int(match[1], 16)])
        return piece.replace(_WORD_START, " ").encode()


class TokenStream:
    """The text of one generation, token by token. Thread: one at a time."""

    def __init__(self, texts: TokenTexts, skipped: frozenset[int], *, continues: bool) -> None:
        self._texts = texts
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip_next_space = texts.strips_first_space and not continues

    def push(self, token_id: int) -> str:
        """Return the text that `token_id` completes; empty while a character is unfinished or the token is skipped."""
        if token_id in self._skipped:
            return ""
        raw = self._texts.of(token_id)
        if self._strip_next_space and raw:
            self._strip_next_space = False
            raw = raw.removeprefix(b" ")
        return self._decoder.decode(raw)

    def hidden(self, token_id: int) -> str:
        """Return the vocabulary's text of a token that `push` leaves out; empty for any other."""
        return self._texts.piece(token_id) if token_id in self._skipped else ""

    def finish(self) -> str:
        """Return the rest: U+FFFD for an unfinished last character, else nothing."""
        return self._decoder.decode(b"", final=True)


def _kinds(decoder: Mapping[str, Any] | None) -> list[str]:
    if decoder is None:
        return []
    if decoder.get("type") == "Sequence":
        return [str(step.get("type")) for step in decoder.get("decoders", ())]
    return [str(decoder.get("type"))]


def _byte_alphabet() -> dict[str, int]:
    """Return the byte of each character of a byte-level vocabulary.

    Printable bytes of Latin-1 stand for themselves; the others, in order, for the characters from U+0100 on.
    Source: GPT-2's `bytes_to_unicode`.
    """
    alphabet = set(ByteLevel.alphabet())
    own = {chr(byte): byte for byte in range(256) if chr(byte) in alphabet}
    rest = [byte for byte in range(256) if chr(byte) not in own]
    return own | {chr(0x100 + index): byte for index, byte in enumerate(rest)}
