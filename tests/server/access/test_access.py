"""Keys, tenants, names and credit at the edge, from its own copy of what the control plane knows."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from manylora.clock import ManualClock
from manylora.config.settings import load_config
from manylora.errors import (
    ConfigInvalid,
    ControlUnavailable,
    InsufficientPermissions,
    InvalidApiKey,
    LimitExceeded,
    ManyloraError,
    QuotaExhausted,
    TenantMismatch,
    TenantSuspended,
)
from manylora.http.callers import Caller
from manylora.ids import TenantId
from manylora.server.access.access import Access, Admission
from manylora.server.access.credit import LeasedCredit
from manylora.server.access.directory import Directory, Upload
from manylora.server.app.control_session import is_key_needed
from manylora.tenancy import (
    BaseLimits,
    KeyFacts,
    Limits,
    PriceFacts,
    RepositoryFacts,
    Snapshot,
    TenantFacts,
    TenantState,
    hash_secret,
    mint_key,
    split_key,
)
from tests.server.fake_control import PEPPER, FakeControl
from tests.support.waiting import PATIENCE_S

ACME, BETA = TenantId("acme"), TenantId("beta")
BASE = "tiny"


def caller_of(access: Access, method: str, path: str, authorization: str, path_tenant: str | None) -> Caller:
    """The caller of a route, which may call it: as the guards of a router find it."""
    caller = access.identify(method, path, authorization, path_tenant)
    access.require_active(caller)
    access.authorise(caller, method, path, path_tenant)
    return caller


def key_facts(text: str, tenant: TenantId = ACME, **changes: Any) -> KeyFacts:
    parts = split_key(text)
    assert parts is not None
    values: dict[str, Any] = {"scopes": ("query",)} | changes
    return KeyFacts(id=parts[0], origin=parts[0], tenant=tenant, secret_hash=hash_secret(PEPPER, parts[1]), **values)


def snapshot(*, is_whole: bool = True, revision: int = 1, **parts: Any) -> Snapshot:
    return Snapshot(revision=revision, taken_ms=0, is_whole=is_whole, pepper=PEPPER, **parts)


def directory_of(control: FakeControl, clock: ManualClock) -> Directory:
    return Directory(control, clock, poll_s=0.1, max_age_s=600)


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


def test_a_key_is_known_by_its_secret_and_its_tenant_by_it() -> None:
    async def scenario() -> None:
        clock, (_, text), (_, other) = ManualClock(), mint_key(), mint_key()
        tenants = (TenantFacts(id=ACME, weight=3), TenantFacts(id=BETA, state=TenantState.SUSPENDED))
        control = FakeControl(snapshot(tenants=tenants, keys=(key_facts(text), key_facts(other, BETA))))
        directory = directory_of(control, clock)
        await directory.refresh()
        access = Access(clock, is_key_needed=True, directory=directory)

        def ask(key: str, path: str = "/generate", tenant: str | None = None) -> Any:
            return caller_of(access, "POST", path, f"Bearer {key}", tenant)

        caller = ask(text)
        assert (caller.tenant, caller.weight, caller.key) == (ACME, 3, text.split("_")[1])
        assert ask(text, tenant="acme").tenant == ACME
        with pytest.raises(TenantMismatch):
            ask(text, tenant="beta")
        with pytest.raises(TenantSuspended):
            ask(other)
        for path in ("/metrics", "/v1/adapters", "/v1/adapters/x"):
            with pytest.raises(InsufficientPermissions, match="admin"):
                ask(text, path)
        told = set()
        for wrong in (mint_key()[1], text[:-1] + ("x" if text[-1] != "x" else "y")):
            with pytest.raises(InvalidApiKey) as caught:
                ask(wrong)
            told.add(caught.value.message)
        assert len(told) == 1
        for header in ("", text, f"Basic {text}", "Bearer", "Bearer sk-1"):
            with pytest.raises(InvalidApiKey):
                caller_of(access, "POST", "/generate", header, None)
        assert caller_of(access, "GET", "/health", "", None).tenant == "default"
        assert caller_of(access, "GET", "/", "", None).tenant == "default"
        with pytest.raises(InvalidApiKey):
            caller_of(access, "POST", "/", "", None)

    run(scenario)


def test_changes_are_learned_and_an_outage_stops_only_them() -> None:
    async def scenario() -> None:
        clock, (_, text) = ManualClock(), mint_key()
        control = FakeControl(snapshot(tenants=(TenantFacts(id=ACME),), keys=(key_facts(text),)))
        directory = directory_of(control, clock)
        await directory.refresh()
        access = Access(clock, is_key_needed=True, directory=directory)
        caller_of(access, "POST", "/generate", f"Bearer {text}", None)
        control.is_away = True
        with pytest.raises(ControlUnavailable):
            await directory.refresh()
        clock.advance(599)
        caller_of(access, "POST", "/generate", f"Bearer {text}", None)
        clock.advance(2)
        with pytest.raises(ControlUnavailable, match="600 s"):
            caller_of(access, "POST", "/generate", f"Bearer {text}", None)
        control.is_away = False
        revoked = key_facts(text, is_revoked=True)
        control.snapshot_ = snapshot(is_whole=False, revision=2, keys=(revoked,))
        await directory.refresh()
        with pytest.raises(InvalidApiKey):
            caller_of(access, "POST", "/generate", f"Bearer {text}", None)

    run(scenario)


def test_an_expired_key_is_not_valid() -> None:
    async def scenario() -> None:
        clock, (_, text) = ManualClock(), mint_key()
        expires_ms = int(1000 * clock.wall_s()) + 1000
        keys = (key_facts(text, expires_ms=expires_ms),)
        directory = directory_of(FakeControl(snapshot(tenants=(TenantFacts(id=ACME),), keys=keys)), clock)
        await directory.refresh()
        access = Access(clock, is_key_needed=True, directory=directory)
        caller_of(access, "POST", "/generate", f"Bearer {text}", None)
        clock.advance(1)
        with pytest.raises(InvalidApiKey):
            caller_of(access, "POST", "/generate", f"Bearer {text}", None)

    run(scenario)


def test_without_keys_everybody_is_the_tenant_of_the_path() -> None:
    access = Access(ManualClock())
    assert caller_of(access, "POST", "/generate", "", None).tenant == "default"
    caller = caller_of(access, "POST", "/generate", "Bearer hf_token", "acme")
    assert (caller.tenant, caller.key, caller.source_token) == ("acme", None, "hf_token")
    assert caller_of(access, "POST", "/generate", "Bearer sk-x", None).source_token == ""


UPLOADS = (
    RepositoryFacts(owner=ACME, name="triage", versions=(1, 3, 12), aliases=(("prod", 3),)),
    RepositoryFacts(owner=BETA, name="triage", versions=(2,)),
    RepositoryFacts(owner=BETA, name="shared", versions=(1, 2), shared_with=(ACME,)),
    RepositoryFacts(owner=BETA, name="open", versions=(7,), is_public=True),
    RepositoryFacts(owner=ACME, name="gone"),
)


@pytest.mark.parametrize(
    ("tenant", "name", "found"),
    [
        ("acme", "triage", ("acme", "triage", 12)),
        ("acme", "triage/", ("acme", "triage", 12)),
        ("acme", "triage/3", ("acme", "triage", 3)),
        ("acme", "triage/prod", ("acme", "triage", 3)),
        ("acme", "acme/triage/1", ("acme", "triage", 1)),
        ("acme", "triage/2", None),
        ("acme", "triage/03", None),
        ("acme", "triage/stage", None),
        ("acme", "triage/" + "9" * 40, None),
        ("acme", "gone", None),
        ("acme", "beta/triage", None),
        ("acme", "beta/triage/2", None),
        ("acme", "shared", None),
        ("acme", "beta/shared", ("beta", "shared", 2)),
        ("acme", "beta/shared/1", ("beta", "shared", 1)),
        ("gamma", "beta/shared", None),
        ("gamma", "beta/open", ("beta", "open", 7)),
        ("beta", "triage", ("beta", "triage", 2)),
        ("acme", "", None),
    ],
)
def test_a_name_is_what_its_tenant_may_use(tenant: str, name: str, found: tuple[str, str, int] | None) -> None:
    async def scenario() -> None:
        directory = directory_of(FakeControl(snapshot(repositories=UPLOADS)), ManualClock())
        await directory.refresh()
        expected = None if found is None else Upload(TenantId(found[0]), found[1], found[2])
        assert directory.upload(TenantId(tenant), name) == expected

    run(scenario)


def test_nobody_takes_the_place_of_ones_own_by_a_name() -> None:
    """`support` is acme's repository, and a tenant of that name has repositories `3` and `prod` that are public."""
    own = RepositoryFacts(owner=ACME, name="support", versions=(1, 2))
    others = tuple(
        RepositoryFacts(owner=TenantId("support"), name=name, versions=(1,), is_public=True) for name in ("3", "prod")
    )

    async def scenario() -> None:
        control = FakeControl(snapshot(repositories=(own, *others)))
        directory = directory_of(control, ManualClock())
        await directory.refresh()
        assert directory.upload(ACME, "support/2") == Upload(ACME, "support", 2)
        assert directory.upload(ACME, "support/3") is None
        assert directory.upload(ACME, "support/prod") is None
        assert directory.upload(TenantId("gamma"), "support/prod") == Upload(TenantId("support"), "prod", 1)
        control.snapshot_ = snapshot(repositories=(replace(own, versions=()), *others))  # deleted
        await directory.refresh()
        assert directory.upload(ACME, "support/3") is None
        assert directory.knows(ACME, "support")

    run(scenario)


def test_a_fault_of_any_kind_does_not_end_following() -> None:
    class Faulty(FakeControl):
        faults = 3

        def _require(self) -> None:
            if self.faults:
                self.faults -= 1
                raise OSError(24, "Too many open files")

    async def scenario() -> None:
        control = Faulty(snapshot(tenants=(TenantFacts(id=ACME),)))
        directory = Directory(control, ManualClock(), poll_s=0.001, max_age_s=600)
        following = asyncio.create_task(directory.follow())
        async with asyncio.timeout(PATIENCE_S):
            while directory.tenant(ACME) is None:  # noqa: ASYNC110  another task is awaited
                await asyncio.sleep(0.001)
        following.cancel()

    run(scenario)


def test_names_are_listed_as_their_tenant_says_them() -> None:
    async def scenario() -> None:
        directory = directory_of(FakeControl(snapshot(repositories=UPLOADS)), ManualClock())
        await directory.refresh()
        own = ["triage", "triage/1", "triage/3", "triage/12", "triage/prod"]
        shared = ["beta/open", "beta/open/7", "beta/shared", "beta/shared/1", "beta/shared/2"]
        listed = directory.listed(ACME)
        assert [name for name, _ in listed] == own + shared
        assert all(directory.upload(ACME, name) == found for name, found in listed)
        assert [name for name, _ in directory.listed(TenantId("gamma"))] == ["beta/open", "beta/open/7"]

    run(scenario)


PRICE = PriceFacts(base=BASE, version=1, effective_ms=0, input_nanousd=1, output_nanousd=2)


def leased_credit(control: FakeControl, clock: ManualClock, edge: str = "edge") -> LeasedCredit:
    return LeasedCredit(control, clock, edge=edge, lease_nanousd=100)


def test_a_request_sets_its_worst_case_aside_and_pays_what_it_used() -> None:
    async def scenario() -> None:
        control = FakeControl(credit=150)
        leased = leased_credit(control, ManualClock())
        first = await leased.hold(ACME, PRICE, prompt_tokens=10, budget_tokens=45)
        assert first is not None
        with pytest.raises(QuotaExhausted, match="credit is used up"):
            await leased.hold(ACME, PRICE, prompt_tokens=60, budget_tokens=0)
        first.settle(10, 5)
        first.settle(10, 45)
        again = await leased.hold(ACME, PRICE, prompt_tokens=130, budget_tokens=0)
        assert again is not None
        assert await leased.hold(ACME, None, prompt_tokens=10**9, budget_tokens=0) is None

    run(scenario)


def test_many_at_once_ask_once() -> None:
    async def scenario() -> None:
        control = FakeControl(credit=10_000)
        leased = leased_credit(control, ManualClock())
        await asyncio.gather(*(leased.hold(ACME, PRICE, prompt_tokens=1, budget_tokens=0) for _ in range(50)))
        assert control.questions == 1

    run(scenario)


def test_an_outage_leaves_what_was_leased_until_it_expires() -> None:
    async def scenario() -> None:
        clock = ManualClock()
        control = FakeControl(credit=10_000)
        control.expires_ms = int(1000 * clock.wall_s()) + 1_800_000
        leased = leased_credit(control, clock)
        await leased.hold(ACME, PRICE, prompt_tokens=1, budget_tokens=0)
        control.is_away = True
        clock.advance(1700)
        await leased.hold(ACME, PRICE, prompt_tokens=1, budget_tokens=0)
        with pytest.raises(ControlUnavailable):
            await leased.hold(ACME, PRICE, prompt_tokens=500, budget_tokens=0)
        clock.advance(101)
        with pytest.raises(ControlUnavailable):
            await leased.hold(ACME, PRICE, prompt_tokens=1, budget_tokens=0)

    run(scenario)


@pytest.mark.parametrize("expires_in_ms", [-10_000_000, -1, 1, 60_000])
def test_a_lease_that_is_short_or_past_by_our_clock_asks_once_a_request(expires_in_ms: int) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        control = FakeControl(credit=10_000)
        control.expires_ms = int(1000 * clock.wall_s()) + expires_in_ms
        leased = leased_credit(control, clock)
        for number in range(1, 4):
            async with asyncio.timeout(PATIENCE_S):
                assert await leased.hold(ACME, PRICE, prompt_tokens=1, budget_tokens=0) is not None
            assert control.questions <= number
            clock.advance(0.01)

    run(scenario)


@pytest.mark.parametrize(
    ("host", "auth", "is_open", "needed"),
    [
        ("127.0.0.1", "auto", False, False),
        ("::1", "auto", False, False),
        ("127.0.0.1", "on", False, True),
        ("0.0.0.0", "auto", False, True),
        ("0.0.0.0", "off", True, False),
        ("10.0.0.1", "on", True, True),
    ],
)
def test_keys_are_needed_where_others_can_come(host: str, auth: str, is_open: bool, needed: bool) -> None:
    flags: dict[str, Any] = {"server.host": host, "server.auth": auth, "server.allow_open": is_open}
    assert is_key_needed(load_config(flags=flags, environ={})) is needed


def test_an_open_server_that_others_can_reach_has_to_be_asked_for() -> None:
    flags = {"server.host": "0.0.0.0", "server.auth": "off"}
    with pytest.raises(ConfigInvalid, match=r"server\.allow_open"):
        is_key_needed(load_config(flags=flags, environ={}))


def test_limits_of_a_base_hold_for_its_requests_alone() -> None:
    async def scenario() -> None:
        clock, (_, text) = ManualClock(), mint_key()
        of_tenant = Limits(bases=(BaseLimits(base=BASE, requests_per_minute=2),))
        of_key = Limits(bases=(BaseLimits(base="other", concurrent_streams=1),))
        tenants = (TenantFacts(id=ACME, limits=of_tenant),)
        control = FakeControl(snapshot(tenants=tenants, keys=(key_facts(text, limits=of_key),)))
        directory = directory_of(control, clock)
        await directory.refresh()
        access = Access(clock, is_key_needed=True, directory=directory)
        caller = caller_of(access, "POST", "/generate", f"Bearer {text}", None)

        def ask(base: str) -> Admission:
            admission = access.enter(caller, sequences=1)
            try:
                access.enter_base(admission, base)
            except LimitExceeded:
                admission.settle(0, 0)
                raise
            return admission

        for _ in range(2):
            ask(BASE)
            ask("third")
        with pytest.raises(LimitExceeded, match=rf"tenant acme, base {BASE}"):
            ask(BASE)
        held = ask("other")
        with pytest.raises(LimitExceeded, match=r"key .*, base other"):
            ask("other")
        held.settle(0, 0)
        ask("other")

    run(scenario)


def test_a_refusal_for_credit_gives_the_limits_back() -> None:
    async def scenario() -> None:
        clock, (_, text) = ManualClock(), mint_key()
        tenants = (TenantFacts(id=ACME, limits=Limits(concurrent_streams=1)),)
        control = FakeControl(snapshot(tenants=tenants, keys=(key_facts(text),), prices=(PRICE,)))
        directory = directory_of(control, clock)
        await directory.refresh()
        access = Access(clock, is_key_needed=True, directory=directory, leased=leased_credit(control, clock))
        caller = caller_of(access, "POST", "/generate", f"Bearer {text}", None)

        async def ask() -> Admission:
            admission = access.enter(caller, sequences=1)
            try:
                await access.reserve(admission, base=BASE, prompt_tokens=1, budget_tokens=1)
            except ManyloraError:
                admission.settle(0, 0)
                raise
            return admission

        for _ in range(3):
            with pytest.raises(QuotaExhausted):
                await ask()
        control.credit = 1000
        admission = await ask()
        with pytest.raises(LimitExceeded):
            await ask()
        admission.settle(1, 1)
        (await ask()).settle(1, 1)

    run(scenario)
