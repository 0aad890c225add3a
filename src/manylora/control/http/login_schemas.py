"""JSON of logins and sessions, as pydantic models."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, Field

from manylora.control.http.schemas import RequestBody, ShortText, iso
from manylora.control.tenants.keys import Key
from manylora.control.tenants.logins import Login

Password = Annotated[str, Field(max_length=1000)]


class SignIn(RequestBody):
    """The login of a tenant, by its short code."""

    tenant: ShortText
    password: Password


class NewPassword(RequestBody):
    """A login's new password. `current`: the one until now, which a session has to show."""

    password: Password
    current: Password | None = None


class Reset(RequestBody):
    """A new password by a one-time code of the operator."""

    tenant: ShortText
    code: Annotated[str, Field(max_length=100)]
    password: Password


class LoginBody(BaseModel):
    """A tenant's login. `changed`: when its password was set; null: it has none."""

    tenant: str
    has_password: bool
    changed: str | None

    @staticmethod
    def of(tenant: str, login: Login | None) -> "LoginBody":
        has_password = login is not None and login.password_hash is not None
        changed = iso(login.changed_ms) if login is not None and has_password else None
        return LoginBody(tenant=tenant, has_password=has_password, changed=changed)


class LoginCode(BaseModel):
    """A one-time code, which no other reply shows again."""

    tenant: str
    code: str
    expires: str


class SessionBody(BaseModel):
    """A session. `token` is its whole text, a key, which only the reply to its opening has."""

    id: str
    tenant: str
    scopes: list[str]
    created: str
    expires: str
    last_used: str | None
    token: str | None = None

    @staticmethod
    def of(key: Key, token: str | None = None) -> "SessionBody":
        assert key.facts.expires_ms is not None, "a session has an end"
        return SessionBody(
            id=key.facts.id,
            tenant=key.facts.tenant,
            scopes=[scope.value for scope in key.facts.held],
            created=iso(key.created_ms),
            expires=iso(key.facts.expires_ms),
            last_used=None if key.last_used_ms is None else iso(key.last_used_ms),
            token=token,
        )


class SessionList(BaseModel):
    """Open sessions, the oldest first."""

    sessions: list[SessionBody]

    @staticmethod
    def of(sessions: Sequence[Key]) -> "SessionList":
        return SessionList(sessions=[SessionBody.of(key) for key in sessions])


class EndedSessions(BaseModel):
    """The ids of the sessions that a call ended."""

    ended: list[str]
