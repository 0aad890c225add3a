"""The repository of a page's address in the API: as its visitor may see it, delete from it, or set its aliases.

The API's routes of tenants act on the repositories of the caller. So an address with another owner leads to the
operator's routes, or to a refusal, and never to a repository of the visitor that has the same name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from manylora.console.api import NOT_FOUND, Refused, Reply, in_path
from manylora.console.visitors import Visitor

OWN, ALL = "/v2/repos", "/admin/repos"
NOT_YOURS = b'{"error": "your tenant has no adapter of this name; its owner alone may change an adapter"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryPath:
    """The path of a repository in the API, and the parameters that each call below it has."""

    path: str
    query: Mapping[str, str] = field(default_factory=dict)


def seen(visitor: Visitor, owner: str, repo: str) -> RepositoryPath:
    """Return the path under which a visitor sees a repository. Raise `Refused` for a name that is several words."""
    if owner == visitor.tenant:
        return RepositoryPath(path=OWN + in_path(repo))
    if visitor.is_operator:
        return RepositoryPath(path=ALL + in_path(owner, repo))
    return RepositoryPath(path=OWN + in_path(repo), query={"owner": owner})


def deletable(visitor: Visitor, owner: str, repo: str) -> str:
    """Return the path below which a visitor deletes: its owner or the operator. Raise `Refused`."""
    if owner != visitor.tenant and not visitor.is_operator:
        raise not_yours()
    return seen(visitor, owner, repo).path


def owned(visitor: Visitor, owner: str, repo: str) -> str:
    """Return the path of a repository of the visitor's own tenant. Raise `Refused` for another's."""
    if owner != visitor.tenant:
        raise not_yours()
    return OWN + in_path(repo)


def not_yours() -> Refused:
    """Return the refusal of an act on another tenant's object."""
    return Refused(Reply(status=NOT_FOUND, headers={}, body=NOT_YOURS))
