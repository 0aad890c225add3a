"""What a request calls an adapter: a source and an id, checked before anything else sees them."""

import re
from dataclasses import dataclass
from enum import StrEnum

from manylora.errors import AdapterReferenceInvalid

MAX_ID_CHARACTERS = 256
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+\-]*(/[A-Za-z0-9][A-Za-z0-9._@+\-]*)*")


class SourceName(StrEnum):
    """Where adapters come from. A source that is switched off is refused by name."""

    LOCAL = "local"
    HUB = "hub"
    S3 = "s3"
    PBASE = "pbase"


@dataclass(frozen=True, slots=True, order=True)
class AdapterRef:
    """A named adapter at a source. It is a name, not an identity: the identity is the digest of its content.

    `id` is relative (`support-triage`, `org/name`); absolute paths, `..`, backslashes and control characters
    never get past `parse`.
    """

    source: SourceName
    id: str

    def __str__(self) -> str:
        return f"{self.source}:{self.id}"


def parse_adapter_ref(adapter_id: str, source: str | None, enabled: frozenset[SourceName]) -> AdapterRef:
    """Check a request's `adapter_id` and `adapter_source` and return the reference.

    A missing source means `local`. Raises `AdapterReferenceInvalid` naming the value and what is allowed.
    """
    allowed = ", ".join(sorted(enabled))
    name = source or SourceName.LOCAL
    if name not in enabled:
        raise AdapterReferenceInvalid(
            f"`adapter_source` must be one of {allowed}. Given: {name}", parameter="adapter_source"
        )
    trimmed = adapter_id.rstrip("/")
    if len(trimmed) > MAX_ID_CHARACTERS:
        raise AdapterReferenceInvalid(
            f"`adapter_id` must have at most {MAX_ID_CHARACTERS} characters. Given: {len(trimmed)}",
            parameter="adapter_id",
        )
    if not _ID.fullmatch(trimmed) or ".." in trimmed:
        shown = trimmed.encode("unicode_escape").decode()[:80]
        raise AdapterReferenceInvalid(
            f"`adapter_id` must be a name such as `support-triage` or `team/name`. Given: {shown}",
            parameter="adapter_id",
        )
    return AdapterRef(SourceName(name), trimmed)
