"""Text facts of an adapter: tokens it adds, special tokens, chat templates, ends. Plain data of bounded size.

The ingest process makes it from an adapter's text files (`adapters/text/text_files.py`); the edge reads it from one
file of JSON. Its digest is independent of the weights' digest.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

MAX_TEXT_BYTES = 2 << 20
"""Limit on the bytes of an `AdapterText` as JSON. The limits of each part keep it smaller."""
MAX_TOKEN_BYTES = 128
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_BYTES = 256
MAX_END_IDS = 64
MAX_TEMPLATE_BYTES = 512 << 10
MAX_TEMPLATES = 16
_OF_HEADS = frozenset({"labels", "problem"})
"""Fields that a text without a head leaves out, so that its digest is that of older releases."""
NO_TEXT = ""
"""The digest of an adapter without text facts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedToken:
    """One token outside the model's own vocabulary. The flags have their meaning from tokenizer.json.

    special      absent from decoded text that skips special tokens
    single_word  matched only as a word by itself
    lstrip, rstrip  takes the white space before it, after it
    normalized   matched in the normalised text
    """

    id: int
    content: str
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterText:
    """The differences from the base's text; an empty field or None means the base's own.

    tokens        absent from the base, by ascending id
    changed       the base's added tokens that have other flags here
    named         `bos_token`, `eos_token`, …: variables of templates
    templates     chat templates by name; `default` is the one without a name
    end_ids       the tokens that end a generation
    stop_strings  texts that end a generation
    leading       tokens put before a text that is encoded with special tokens
    trailing      tokens put after it
    labels        names of the labels of its classification head, in order
    problem       `problem_type` of its head: how logits become probabilities
    """

    tokens: tuple[AddedToken, ...] = ()
    changed: tuple[AddedToken, ...] = ()
    named: Mapping[str, str] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)
    end_ids: tuple[int, ...] | None = None
    stop_strings: tuple[str, ...] = ()
    leading: tuple[int, ...] | None = None
    trailing: tuple[int, ...] | None = None
    labels: tuple[str, ...] = ()
    problem: str = ""

    @property
    def is_empty(self) -> bool:
        return self == AdapterText()

    def to_bytes(self) -> bytes:
        """Return JSON, the same bytes for equal texts; no bytes for the base's own text."""
        if self.is_empty:
            return b""
        facts = {name: value for name, value in asdict(self).items() if value or name not in _OF_HEADS}
        return json.dumps(facts, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "AdapterText":
        """Read the bytes of `to_bytes`. Raises `ValueError` for any other."""
        if not data:
            return cls()
        try:
            return cls(**{name: _from_json(name, value) for name, value in json.loads(data).items()})
        except (TypeError, AttributeError, RecursionError) as error:
            raise ValueError("not the text of an adapter") from error


NOTHING_SAID = AdapterText()


def text_digest(data: bytes) -> str:
    """Return the digest of a text as bytes; `NO_TEXT` for none."""
    return hashlib.sha256(data).hexdigest() if data else NO_TEXT


def _from_json(name: str, value: Any) -> Any:  # the JSON values of one field
    match name, value:
        case (("tokens" | "changed"), list()):
            return tuple(AddedToken(**token) for token in value)
        case _, list():
            return tuple(value)
    return value
