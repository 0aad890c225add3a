"""JSON of repositories, versions and uploads, in the shapes that Predibase's SDK sends and reads."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from manylora.control.http.schemas import RequestBody, iso
from manylora.control.registry.repositories import Repository
from manylora.control.registry.sharing import MAX_SHARES
from manylora.control.registry.versions import FINISHED, Version, VersionState
from manylora.control.rollouts.rules import shown_rule
from manylora.rollouts.rollout import MAX_ARMS, POINTS, Rollout

Json = dict[str, Any]  # JSON values of several types
ADAPTER_SCHEME = "pbase://"
_STATUS = {VersionState.READY: "completed", VersionState.ARCHIVED: "completed", VersionState.FAILED: "errored"}
"""The SDK's word for each state; `pending` for the others."""


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    return value


Flag = Annotated[bool, Field(strict=True)]
Number = Annotated[int, BeforeValidator(_no_boolean)]
"""A version's number; clients may write it as `3.0` or `"3"`."""
VersionName = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")]


class _RegistryRequest(RequestBody):
    model_config = ConfigDict(strict=False, populate_by_name=True)


class NewRepository(_RegistryRequest):
    name: str
    description: str | None = None
    exists_ok: Flag | None = Field(default=None, alias="existsOk")


class ChangedRepository(_RegistryRequest):
    description: str | None = None
    is_public: Flag | None = Field(default=None, alias="public")


class NewVersion(_RegistryRequest):
    adapter_id: str
    adapter_source: str | None = None
    api_token: str | None = None


class ChangedVersion(_RegistryRequest):
    archived: Flag


class NewUpload(_RegistryRequest):
    repo: str
    region: str | None = None
    alias: str | None = None


class EndOfUpload(_RegistryRequest):
    upload_token: str = Field(alias="uploadToken")


class NewAlias(_RegistryRequest):
    """The rule of an alias: one version, or `weights`, the percent of each version."""

    version: Annotated[Number, Field(ge=1)] | None = None
    weights: dict[VersionName, Number] | None = Field(default=None, min_length=1, max_length=MAX_ARMS)
    sticky: str | None = Field(default=None, max_length=64)
    shadow: Annotated[Number, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "NewAlias":
        if (self.version is None) == (self.weights is None):
            raise PydanticCustomError("one_of", "give either `version` or `weights`")
        return self

    def shares(self) -> dict[int, int]:
        """Return the percent of each version."""
        if self.version is not None:
            return {self.version: POINTS}
        return {int(version): share for version, share in (self.weights or {}).items()}


class NewShares(_RegistryRequest):
    tenants: list[str] = Field(min_length=1, max_length=MAX_SHARES)


def repository_json(repository: Repository, *, is_own: bool) -> Json:
    """Return a repository as the SDK reads it, with fields of ours. `is_own` adds the fields for its owner alone."""
    finished = [each for each in repository.versions if each.state in FINISHED]
    body: Json = {
        "uuid": repository.uuid,
        "name": repository.name,
        "description": repository.description,
        "owner": repository.owner,
        "public": repository.is_public,
        "createdAt": iso(repository.created_ms),
        "aliases": dict(repository.aliases),
        "versions": [_version_line(each, is_own=is_own) for each in finished],
    }
    if is_own:
        unfinished = [each for each in repository.versions if each not in finished]
        rules = repository.rollouts.items()
        body["rollouts"] = {name: shown_rule(rule) for name, rule in rules if not rule.is_plain}
        body["sharedWith"] = list(repository.shared_with)
        body["unfinished"] = [version_json(repository, each) for each in unfinished]
    return body


def alias_json(repository: Repository, name: str, rules: Sequence[Rollout]) -> Json:
    """Return an alias. `rules`: the earlier ones and the present one, which is the last."""
    *earlier, present = rules
    return {
        "repo": repository.name,
        "owner": repository.owner,
        "alias": name,
        "version": present.main,
        **shown_rule(present),
        "earlier": [shown_rule(each) for each in reversed(earlier)],
    }


def _version_line(version: Version, *, is_own: bool) -> Json:
    return {
        "tag": version.version,
        "createdAt": iso(version.created_ms),
        "createdBy": version.created_by if is_own else "",
        "baseModel": version.base,
        "archived": version.is_archived,
        **_archivers(version),
        "rank": version.rank,
        "bytes": version.num_bytes,
    }


def _archivers(version: Version) -> Json:
    """Return the field `archivedBy`; a version that is not archived lacks it."""
    return {"archivedBy": list(version.archived_by)} if version.is_archived else {}


def version_json(repository: Repository, version: Version) -> Json:
    """Return a version as the SDK reads it. An empty `adapterPath` means that the version has no files to use."""
    has_files = version.state in FINISHED
    path = f"{ADAPTER_SCHEME}{repository.owner}/{repository.name}/{version.version}"
    body: Json = {
        "repo": repository.name,
        "tag": version.version,
        "archived": version.is_archived,
        **_archivers(version),
        "baseModel": version.base,
        "adapterPath": path if has_files else "",
        "status": _STATUS.get(version.state, "pending"),
        "state": (VersionState.ARCHIVED if version.is_archived else version.state).value,
        "owner": repository.owner,
        "rank": version.rank,
        "bytes": version.num_bytes,
        "sha256": version.sha256,
    }
    if version.error is not None:
        body["finetuningJob"] = {"uuid": None, "error": version.error}
    return body
