"""Changes of one login at one time: each waits for the one before, and is answered by what that has left."""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, select

from manylora.control.storage.tables import logins
from manylora.control.tenants import passwords
from manylora.control.tenants.logins import MAX_SESSIONS
from tests.conftest import long
from tests.control.plane import Plane, in_plane
from tests.control.queued_calls import in_turn

PASSWORD = "correct horse battery"
SESSIONS = "/v1/account/sessions"
RESET = "/v1/account/login/reset"


@pytest.fixture(autouse=True)
def _cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "COST", 2)
    monkeypatch.setattr(passwords, "PARALLEL", 1)


async def held(plane: Plane, *calls: Callable[[], Awaitable[Any]]) -> list[int]:
    """Begin calls while another transaction holds the login; return their statuses, in ascending order."""
    row = select(logins).where(logins.c.tenant == "acme")
    return sorted([reply.status_code for reply in await in_turn(plane, *calls, row=row)])


@pytest.mark.parametrize("url", long("postgresql"), indirect=True)
def test_of_two_resets_with_one_code_one_gets_the_answer_of_a_used_code(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        code = (await plane.call("POST", "/admin/tenants/acme/login-code")).json()["code"]
        body = {"tenant": "acme", "password": PASSWORD, "code": code}
        assert await held(plane, *[partial(plane.call, "POST", RESET, body, key=None)] * 2) == [201, 401]
        assert (await plane.call("POST", RESET, body, key=None)).status_code == 401

    in_plane(url, tmp_path, scenario)


@pytest.mark.parametrize("url", long("postgresql"), indirect=True)
def test_two_passwords_at_one_time_are_set_one_after_the_other(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        path, words = "/v1/account/login", (PASSWORD, PASSWORD[::-1])
        assert (await plane.call("PUT", path, {"password": PASSWORD}, key=key)).status_code == 200
        setting = (partial(plane.call, "PUT", path, {"password": each}, key=key) for each in words)
        assert await held(plane, *setting) == [200] * 2

    in_plane(url, tmp_path, scenario)


@pytest.mark.parametrize("url", long("postgresql"), indirect=True)
def test_sign_ins_at_one_time_exceed_no_limit_of_sessions(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        assert (await plane.call("PUT", "/v1/account/login", {"password": PASSWORD}, key=key)).status_code == 200
        signing_in = partial(plane.call, "POST", SESSIONS, {"tenant": "acme", "password": PASSWORD}, key=None)
        for _ in range(MAX_SESSIONS):
            assert (await signing_in()).status_code == 201
        assert [reply.status_code for reply in await in_turn(plane, signing_in, signing_in)] == [201, 201]
        sessions = (await plane.call("GET", SESSIONS, key=key)).json()["sessions"]
        assert len(sessions) == MAX_SESSIONS

    in_plane(url, tmp_path, scenario)


@pytest.mark.parametrize("is_reset", [True, False])
def test_a_password_that_changes_during_a_sign_in_opens_no_session(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, *, is_reset: bool
) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        assert (await plane.call("PUT", "/v1/account/login", {"password": PASSWORD}, key=key)).status_code == 200
        code = (await plane.call("POST", "/admin/tenants/acme/login-code")).json()["code"]
        body = {"tenant": "acme", "password": PASSWORD[::-1], "code": code}

        async def change() -> None:
            reply = await (
                plane.call("POST", RESET, body, key=None)
                if is_reset
                else plane.call("PUT", "/v1/account/login", {"password": PASSWORD[::-1]}, key=key)
            )
            assert reply.is_success, reply.text

        _before_answers(monkeypatch, change)
        late = await plane.call("POST", SESSIONS, {"tenant": "acme", "password": PASSWORD}, key=None)
        assert late.status_code == 401
        assert len((await plane.call("GET", SESSIONS, key=key)).json()["sessions"]) == is_reset

    run(scenario)


@pytest.mark.parametrize("ends", ["session", "password"])
def test_a_session_that_ends_while_it_sets_a_password_sets_none(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        assert (await plane.call("PUT", "/v1/account/login", {"password": PASSWORD}, key=key)).status_code == 200
        words = {"tenant": "acme", "password": PASSWORD}
        session = (await plane.call("POST", SESSIONS, words, key=None)).json()

        async def change() -> None:
            reply = await (
                plane.call("DELETE", f"{SESSIONS}/all", key=key)
                if ends == "session"
                else plane.call("PUT", "/v1/account/login", {"password": "another long one"}, key=key)
            )
            assert reply.is_success, reply.text

        _before_answers(monkeypatch, change)
        body = {"password": PASSWORD[::-1], "current": PASSWORD}
        late = await plane.call("PUT", "/v1/account/login", body, key=session["token"])
        assert late.status_code == 401
        words["password"] = PASSWORD if ends == "session" else "another long one"
        assert (await plane.call("POST", SESSIONS, words, key=None)).status_code == 201

    run(scenario)


def _before_answers(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Awaitable[None]]) -> None:
    """Let something happen once, after a password is compared and before the caller knows."""
    compare, left = passwords.PasswordHasher.is_password, [act]

    async def is_password(*given: Any, **named: Any) -> bool:
        found = await compare(*given, **named)
        if left:
            await left.pop()()
        return found

    monkeypatch.setattr(passwords.PasswordHasher, "is_password", is_password)
