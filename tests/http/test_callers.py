"""The rule that judges a key, which server and control plane share."""

import pytest

from manylora.errors import InsufficientPermissions, InvalidApiKey, TenantSuspended
from manylora.http.callers import ANONYMOUS, Caller, StoredKey, bearer_of, judge, key_of, require_active
from manylora.ids import KeyId, TenantId
from manylora.tenancy import DEFAULT_TENANT, Scope, TenantState, hash_secret, mint_key

PEPPER = "00" * 32
SECRET = "a" * 43
ACME = TenantId("acme")


def stored(
    *, tenant: TenantId = ACME, secret: str = SECRET, expires_ms: int | None = None, is_revoked: bool = False
) -> StoredKey:
    return StoredKey(
        tenant=tenant, secret_hash=hash_secret(PEPPER, secret), expires_ms=expires_ms, is_revoked=is_revoked
    )


@pytest.mark.parametrize("header", ["Bearer abc", "bearer abc", "BEARER  abc "])
def test_the_word_bearer_may_be_written_in_any_case(header: str) -> None:
    assert bearer_of(header) == "abc"


@pytest.mark.parametrize("header", ["", "Basic abc", "pb_abc", "Bearer", "Bearer hf_abc"])
def test_a_header_without_a_key_is_refused_with_the_form_of_one(header: str) -> None:
    with pytest.raises(InvalidApiKey, match="send a key"):
        key_of(header)


def test_a_key_is_split_into_its_id_and_its_secret() -> None:
    key_id, text = mint_key()
    assert key_of(f"Bearer {text}") == (key_id, text.rpartition("_")[2])


def test_a_right_key_is_valid_until_its_end() -> None:
    key = stored(expires_ms=1_001)
    assert judge(key, SECRET, pepper=PEPPER, now_ms=1_000, is_key_needed=True) is key


@pytest.mark.parametrize(
    "key",
    [
        None,
        stored(secret="b" * 43),
        stored(expires_ms=1_000),
        stored(is_revoked=True),
        stored(tenant=DEFAULT_TENANT),
    ],
    ids=["unknown", "wrong secret", "past its end", "revoked", "of an open server"],
)
def test_every_key_that_is_not_valid_is_refused_with_one_text(key: StoredKey | None) -> None:
    with pytest.raises(InvalidApiKey) as refusal:
        judge(key, SECRET, pepper=PEPPER, now_ms=1_000, is_key_needed=True)
    assert refusal.value.message == "the key is not valid"


def test_an_open_server_takes_keys_of_its_own_tenant() -> None:
    key = stored(tenant=DEFAULT_TENANT)
    assert judge(key, SECRET, pepper=PEPPER, now_ms=1_000, is_key_needed=False) is key


def test_a_tenant_that_is_not_active_is_refused() -> None:
    require_active("acme", TenantState.ACTIVE)
    with pytest.raises(TenantSuspended, match="tenant `acme` is closed"):
        require_active("acme", TenantState.CLOSED)


def test_keys_of_an_open_server_are_not_steered_without_a_key() -> None:
    with pytest.raises(InsufficientPermissions):
        ANONYMOUS.require_owner()
    Caller(tenant=ACME, key=KeyId("AAAAAAAA")).require_owner()
    Caller(tenant=DEFAULT_TENANT, scopes=(Scope.ADMIN,)).require_owner()
