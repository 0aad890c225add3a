"""Limits on tries to sign in, the queue of passwords under check, and the end of old sessions' rows."""

import asyncio
import hashlib
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, select

from manylora.clock import ManualClock
from manylora.control.calendar import DAY_MS
from manylora.control.process.janitor import Janitor
from manylora.control.storage.tables import keys
from manylora.control.tenants import passwords, sign_ins
from manylora.control.tenants.logins import KEPT_DAYS
from manylora.control.tenants.passwords import MAX_AT_ONCE, MAX_OF_TENANT, MAX_WAITING, PasswordHasher
from manylora.control.tenants.sign_ins import (
    ATTACK_OF_TENANT,
    MOST_OF_ADDRESS,
    MOST_OF_PAIR,
    MOST_UNDER_ATTACK,
    WINDOW_S,
    SignInLimiter,
)
from manylora.errors import ControlUnavailable, InvalidApiKey, RequestRateExceeded
from tests.control.plane import Plane, in_plane

PASSWORD, WRONG = "correct horse battery", "another long password"
OWNER = "192.0.2.7"


@pytest.fixture(autouse=True)
def _cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "COST", 2)
    monkeypatch.setattr(passwords, "PARALLEL", 1)


def allowed(limiter: SignInLimiter, tenant: str, address: str, tries: int) -> int:
    """Return how many of some failing tries were not refused for their number."""
    for made in range(tries):
        try:
            limiter.count(tenant, address)
        except RequestRateExceeded:
            return made
    return tries


def test_strangers_anywhere_leave_the_owner_its_tries() -> None:
    limiter = SignInLimiter(ManualClock())
    made = [allowed(limiter, "acme", f"198.51.100.{n}", 100) for n in range(200)]
    assert made[0] == MOST_OF_PAIR
    assert set(made[ATTACK_OF_TENANT // MOST_OF_PAIR :]) == {MOST_UNDER_ATTACK}
    for _ in range(100):
        limiter.count("acme", OWNER)
        limiter.forgive("acme", OWNER)
    assert allowed(limiter, "acme", OWNER, 9) == MOST_UNDER_ATTACK
    assert allowed(limiter, "rival", OWNER, 99) == MOST_OF_PAIR, "the bound is of the tenant under attack"


def test_an_address_has_a_limit_over_all_tenants_and_time_lifts_it() -> None:
    clock = ManualClock()
    limiter = SignInLimiter(clock)
    assert sum(allowed(limiter, f"tenant-{n}", "2001:db8::1", 4) for n in range(9)) == MOST_OF_ADDRESS
    with pytest.raises(RequestRateExceeded) as refusal:  # a /64 network has one holder
        limiter.count("acme", "2001:db8::ffff")
    assert refusal.value.retry_after_s == WINDOW_S
    clock.advance(WINDOW_S + 1)
    assert allowed(limiter, "acme", "2001:db8::ffff", 99) == MOST_OF_PAIR


@pytest.mark.parametrize(
    ("error", "is_failed"),
    [
        (InvalidApiKey("wrong"), True),
        (asyncio.CancelledError(), True),  # its work goes on
        (RequestRateExceeded("busy", wait_s=1.0), False),
        (ControlUnavailable("gone"), False),
        (None, False),
    ],
)
def test_a_try_is_under_way_until_its_end_and_stays_only_where_it_failed(
    error: BaseException | None, is_failed: bool
) -> None:
    limiter = SignInLimiter(ManualClock())
    with pytest.raises(type(error)) if error else nullcontext(), limiter.trying("acme", OWNER):
        assert allowed(limiter, "acme", OWNER, MOST_OF_PAIR) == MOST_OF_PAIR - 1
        for _ in range(MOST_OF_PAIR - 1):
            limiter.forgive("acme", OWNER)
        if error:
            raise error
    assert allowed(limiter, "acme", OWNER, 99) == MOST_OF_PAIR - is_failed


def test_hashes_wait_in_a_bounded_queue_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, running, most, threads = threading.Event(), [0], [0], set[int]()
    real = hashlib.scrypt

    def slow(*given: Any, **named: Any) -> bytes:
        threads.add(threading.get_ident())
        running[0] += 1
        most[0] = max(most[0], running[0])
        gate.wait(30)
        running[0] -= 1
        return real(*given, **named)

    async def main() -> None:
        hasher = PasswordHasher()
        asked = [asyncio.create_task(hasher.hashed(PASSWORD)) for _ in range(MAX_AT_ONCE + MAX_WAITING)]
        while running[0] < MAX_AT_ONCE:  # noqa: ASYNC110  threads tell it
            await asyncio.sleep(0)
        with pytest.raises(RequestRateExceeded) as refusal:
            await hasher.hashed(PASSWORD)
        assert refusal.value.retry_after_s == passwords.BUSY_WAIT_S
        for left in asked[:MAX_AT_ONCE]:  # their callers leave; their threads keep the places
            left.cancel()
        await asyncio.wait(asked[:MAX_AT_ONCE])
        with pytest.raises(RequestRateExceeded):
            await hasher.hashed(PASSWORD)
        gate.set()
        stored = await asyncio.gather(*asked[MAX_AT_ONCE:])
        assert await hasher.is_password(PASSWORD, stored[0])
        assert not await hasher.is_password(PASSWORD, None)

    async def of_one_owner() -> None:
        gate.clear()
        hasher = PasswordHasher()
        own = [asyncio.create_task(hasher.hashed(PASSWORD, owner="acme")) for _ in range(MAX_OF_TENANT)]
        await asyncio.sleep(0)
        with pytest.raises(RequestRateExceeded):
            await hasher.is_password(PASSWORD, None, owner="acme")
        others = [asyncio.create_task(hasher.is_password(PASSWORD, None, owner=each)) for each in ("rival", None)]
        gate.set()
        assert await asyncio.gather(*others) == [False, False]
        await asyncio.gather(*own)
        await hasher.hashed(PASSWORD, owner="acme")

    monkeypatch.setattr(hashlib, "scrypt", slow)
    asyncio.run(main())
    asyncio.run(of_one_owner())
    assert most[0] == MAX_AT_ONCE
    assert threading.get_ident() not in threads


@pytest.fixture
def run(url: URL, tmp_path: Path) -> Callable[..., None]:
    def go(scenario: Any) -> None:
        in_plane(url, tmp_path, scenario, settings={"control.signup_open": True})

    return go


def test_cheap_checks_come_before_the_work_of_a_hash(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(plane: Plane) -> None:
        full = await plane.new_tenant("acme")
        code = (await plane.call("POST", "/admin/tenants/acme/login-code")).json()["code"]
        form = {"tenant": "acme", "password": PASSWORD}
        login, reset = "/v1/account/login", "/v1/account/login/reset"
        with monkeypatch.context() as bounded:
            bounded.setattr(passwords, "MAX_OF_TENANT", 0)  # the tenant has all its own hashes under way
            assert (await plane.call("PUT", login, {"password": PASSWORD}, key=full)).status_code == 429
            assert (await plane.call("POST", reset, form | {"code": code}, key=None)).status_code == 429
            assert (await plane.call("POST", "/v1/account/sessions", form, key=None)).status_code == 401
        monkeypatch.setattr(passwords, "MAX_WAITING", -MAX_AT_ONCE)  # each hash is one too many
        assert (await plane.call("POST", reset, form | {"code": "no", "password": "a"}, key=None)).status_code == 400
        assert (
            await plane.call("POST", "/v1/signup", {"id": "acme", "password": PASSWORD}, key=None)
        ).status_code == 409
        for path, body in (
            (reset, form | {"code": code}),
            ("/v1/account/sessions", form),
            ("/v1/signup", {"id": "new", "password": PASSWORD}),
            (reset, form | {"code": code}),
        ):
            busy = await plane.call("POST", path, body, key=None)
            assert (busy.status_code, busy.headers["retry-after"]) == (429, "5"), path
        monkeypatch.setattr(passwords, "MAX_WAITING", MAX_WAITING)
        done = await plane.call("POST", reset, form | {"code": code}, key=None)
        assert done.status_code == 201, "a full queue and a short password are no failed tries"
        assert (await plane.call("POST", reset, form | {"code": "no"}, key=None)).status_code == 401
        assert (await plane.call("POST", "/v1/account/sessions", form, key=None)).status_code == 429, "these are"

    monkeypatch.setattr(sign_ins, "MOST_OF_PAIR", 2)
    run(scenario)


def test_sessions_are_removed_by_age_and_keys_never(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        full = await plane.new_tenant("acme")
        assert (await plane.call("PUT", "/v1/account/login", {"password": PASSWORD}, key=full)).status_code == 200
        short = {"scopes": ["infer"], "expires_in_s": 60.0}
        kept = (await plane.call("POST", "/v1/account/keys", short, key=full)).json()["id"]
        form = {"tenant": "acme", "password": PASSWORD}
        opened = [(await plane.call("POST", "/v1/account/sessions", form, key=None)).json() for _ in range(2)]
        made = (await plane.call("POST", "/v1/account/keys", short, key=opened[0]["token"])).json()["id"]
        await plane.call("DELETE", f"/v1/account/sessions/{opened[0]['id']}", key=opened[1]["token"])
        janitor, ids = Janitor(plane.control), {kept, made, *(each["id"] for each in opened)}
        plane.clock.advance((KEPT_DAYS * DAY_MS) / 1000)
        await janitor.long_round()
        assert await _present(plane, ids) == ids, "a session of yesterday can still be ended with its keys"
        plane.clock.advance(43_201)
        last = (await plane.call("POST", "/v1/account/sessions", form, key=None)).json()
        await janitor.long_round()
        assert await _present(plane, ids | {last["id"]}) == {kept, made, last["id"]}

    run(scenario)


async def _present(plane: Plane, ids: set[str]) -> set[str]:
    async with plane.control.database.read() as connection:
        return set((await connection.execute(select(keys.c.id).where(keys.c.id.in_(ids)))).scalars())
