"""The name of an adapter in a request: a source and an id, checked before any other use."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from manylora.errors import AdapterReferenceInvalid
from manylora.merging import MergeRecipe

MAX_ID_CHARACTERS = 256
MAX_TOKEN_CHARACTERS = 4_096
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+\-]*(/[A-Za-z0-9][A-Za-z0-9._@+\-]*)*")
_HUB_ID = re.compile(r"[^/@]+/[^/@]+(@[^@]+)?")
_REGISTRY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,127}(/[1-9][0-9]{0,8})?")
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,127}")
_TOKEN = re.compile(r"[!-~]+")


class SourceName(StrEnum):
    """The sources of adapters. A request for a source that is switched off gets an error with its name."""

    LOCAL = "local"
    HUB = "hub"
    S3 = "s3"
    GS = "gs"
    AZ = "az"
    HTTPS = "https"
    PBASE = "pbase"
    PUSHED = "pushed"


FOLDER_SOURCES = frozenset({SourceName.LOCAL, SourceName.PBASE, SourceName.PUSHED})
"""Sources whose files lie in folders of this machine. A look-up needs no wait, and the ingest process reads them."""

_SCHEMES = {
    "s3": SourceName.S3,
    "gs": SourceName.GS,
    "az": SourceName.AZ,
    "https": SourceName.HTTPS,
    "http": SourceName.HTTPS,
}


def source_of(place: str) -> SourceName | None:
    """Return the source that a configured place such as `s3://bucket/prefix` belongs to; None if it belongs to none."""
    scheme, _, rest = place.partition("://")
    return _SCHEMES.get(scheme) if rest else None


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """A named adapter at a source. The reference is a name; the identity is the digest of the content.

    id      relative (`support-triage`, `org/name`); `parse_adapter_ref` refuses absolute paths, `..`, backslashes and
            control characters
    merge   the recipe of several adapters merged into one, or None; with it `id` lists the members, and `source` is
            that of the first
    mix     several adapters that apply to the same rows, each by itself, or None; `id` and `source` are as with `merge`
    token   the caller's credential at the source, or empty. It is never printed or logged. Two callers with different
            tokens have two adapters, so that the access of one opens nothing to the other.
    tenant  the owner of the registry that has the id; empty at every other source, whose names are the same for all
    """

    source: SourceName
    id: str
    token: str = field(default="", repr=False)
    merge: "Merge | None" = None
    tenant: str = ""
    mix: "Mix | None" = None

    def __str__(self) -> str:
        name = f"{self.source}:{self.full_id}"
        recipe = self.merge or self.mix
        return name if recipe is None else f"{name} {recipe}"

    @property
    def full_id(self) -> str:
        """The id, after its owner's name if it has an owner; no other tenant's adapter has that text."""
        return f"{self.tenant}/{self.id}" if self.tenant else self.id

    @property
    def members(self) -> "tuple[AdapterRef, ...]":
        """The adapters that the reference names: those of a merge or a mix, else itself."""
        several = self.merge or self.mix
        return (self,) if several is None else several.members

    @property
    def loaded(self) -> "tuple[AdapterRef, ...]":
        """The adapters that the store loads and pins for the reference: those of a mix one by one, a merge as one."""
        return (self,) if self.mix is None else self.mix.members

    def id_for(self, tenant: str) -> str:
        """Return the id that a tenant uses: `repo/3` for its own adapter, `owner/repo/3` for another tenant's."""
        return self.id if self.tenant == tenant else self.full_id


@dataclass(frozen=True, slots=True)
class Merge:
    """A merge of several adapters: its members and its recipe."""

    members: tuple[AdapterRef, ...]
    recipe: MergeRecipe

    def __str__(self) -> str:
        recipe, names = self.recipe, ",".join(str(member) for member in self.members)
        return f"{recipe.strategy}({names};{','.join(map(repr, recipe.weights))};{recipe.density!r};{recipe.signs})"


@dataclass(frozen=True, slots=True)
class Mix:
    """Several adapters of the same rows, none of them a merge: each row gets `sum(weight * delta)` in this order."""

    members: tuple[AdapterRef, ...]
    weights: tuple[float, ...]

    def __str__(self) -> str:
        return f"mix({','.join(str(member) for member in self.members)};{','.join(map(repr, self.weights))})"


def mixed_ref(members: Sequence[AdapterRef], weights: Sequence[float]) -> AdapterRef:
    """Return the reference of adapters that apply together; one alone with the weight 1 is itself."""
    first = members[0]
    if len(members) == 1 and weights[0] == 1.0:
        return first
    names = ",".join(member.full_id for member in members)
    return AdapterRef(first.source, names, mix=Mix(tuple(members), tuple(weights)))


def merged_ref(members: Sequence[AdapterRef], recipe: MergeRecipe) -> AdapterRef:
    """Return the reference of a merge, which the other rooms treat as one adapter. Its id has the owners of uploads."""
    first = members[0]
    return AdapterRef(first.source, ",".join(member.full_id for member in members), merge=Merge(tuple(members), recipe))


def parse_adapter_ref(
    adapter_id: str,
    source: str | None,
    enabled: frozenset[SourceName],
    *,
    token: str = "",
    default: SourceName = SourceName.LOCAL,
    tenant: str = "",
) -> AdapterRef:
    """Check a request's `adapter_id`, `adapter_source` and `api_token` and return the reference.

    An id may be a whole URL, such as `s3://bucket/name`, which names its source itself; else a missing source means
    `default`. Raises `AdapterReferenceInvalid`, naming the value and the allowed ones.
    """
    scheme, mark, rest = adapter_id.partition("://")
    name = source or (scheme if mark else default)
    if name not in enabled:
        allowed = ", ".join(sorted(enabled))
        raise AdapterReferenceInvalid(
            f"`adapter_source` must be one of {allowed}. Given: {_shown(name)}", parameter="adapter_source"
        )
    if name == SourceName.PUSHED:
        raise AdapterReferenceInvalid(
            f"a pushed adapter is named by its plain name, in requests alone. Given: {_shown(adapter_id)}",
            parameter="adapter_id",
        )
    if mark and scheme == name:
        adapter_id = rest
    trimmed = adapter_id.rstrip("/")
    if len(trimmed) > MAX_ID_CHARACTERS:
        raise AdapterReferenceInvalid(
            f"`adapter_id` must have at most {MAX_ID_CHARACTERS} characters. Given: {len(trimmed)}",
            parameter="adapter_id",
        )
    if not _ID.fullmatch(trimmed) or ".." in trimmed:
        raise AdapterReferenceInvalid(
            f"`adapter_id` must be a name such as `support-triage` or `team/name`. Given: {_shown(trimmed)}",
            parameter="adapter_id",
        )
    if name == SourceName.HUB and not _HUB_ID.fullmatch(trimmed):
        raise AdapterReferenceInvalid(
            f"`adapter_id` of the hub must be `org/name` or `org/name@revision`. Given: {trimmed}",
            parameter="adapter_id",
        )
    if name == SourceName.PBASE and not _REGISTRY_ID.fullmatch(trimmed):
        raise AdapterReferenceInvalid(
            f"`adapter_id` of the registry must be `repo` or `repo/version`. Given: {trimmed}", parameter="adapter_id"
        )
    if name == SourceName.PBASE and not tenant:
        raise AdapterReferenceInvalid(
            f"an adapter of the registry is a tenant's, and cannot be named without one. Given: {trimmed}",
            parameter="adapter_id",
        )
    if token and (len(token) > MAX_TOKEN_CHARACTERS or not _TOKEN.fullmatch(token)):
        raise AdapterReferenceInvalid(
            f"`api_token` must be at most {MAX_TOKEN_CHARACTERS} visible ASCII characters", parameter="api_token"
        )
    # A source without tokens has one adapter for all callers.
    return AdapterRef(
        SourceName(name),
        trimmed,
        token if name == SourceName.HUB else "",
        tenant=tenant if name == SourceName.PBASE else "",
    )


def pushed_ref(tenant: str, name: str, version: int) -> AdapterRef:
    """Return the reference of one push of a tenant's adapter. The server makes it; no request names a version."""
    return AdapterRef(SourceName.PUSHED, f"{name}/{version}", tenant=tenant)


def is_hub_id(adapter_id: str) -> bool:
    """Return whether an id has the form of a hub's: `org/name` or `org/name@revision`."""
    return _HUB_ID.fullmatch(adapter_id) is not None


def is_registry_id(adapter_id: str) -> bool:
    """Return whether an id has the form of a registry's: `repo` or `repo/version`."""
    return _REGISTRY_ID.fullmatch(adapter_id) is not None


def parse_adapter_name(text: str, enabled: frozenset[SourceName]) -> AdapterRef:
    """Read a name as settings have it: `source://id`, or the plain id of a local adapter.

    A tenant's upload is `pbase://tenant/repo/3`, its newest version `pbase://tenant/repo`.
    Raises as `parse_adapter_ref`.
    """
    if text.startswith(f"{SourceName.PBASE}:"):
        tenant, mark, name = text.removeprefix(f"{SourceName.PBASE}:").removeprefix("//").partition("/")
        if not mark or not _TENANT.fullmatch(tenant):
            return parse_adapter_ref(tenant, SourceName.PBASE, enabled)  # refused: a tenant is missing
        return parse_adapter_ref(name, SourceName.PBASE, enabled, tenant=tenant)
    return parse_adapter_ref(text.removeprefix(f"{SourceName.LOCAL}://"), None, enabled)


def _shown(text: str) -> str:
    return text.encode("unicode_escape").decode()[:80]
