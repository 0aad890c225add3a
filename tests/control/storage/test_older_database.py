"""A database of an earlier version, with rows in it, becomes today's and loses none of them."""

import asyncio
from pathlib import Path

from sqlalchemy import URL, create_engine, text

from manylora.config.settings import load_config
from manylora.control.billing.invoices import rule_of
from manylora.control.billing.prices import price_versions
from manylora.control.calendar import month_of
from manylora.control.edges.snapshot import take_snapshot
from manylora.control.process.first_start import ensure_first_start
from manylora.control.process.opening import open_control
from manylora.control.registry.archives import set_archived
from manylora.control.registry.repositories import find_repository
from manylora.control.storage.database import Database, migrate
from manylora.control.tenants.keys import list_keys
from manylora.ids import KeyId, TenantId
from manylora.tenancy import Limits, Scope

FIRST = "0001"
"""Its rows are written out here, and not by today's code: that changes, they do not."""

LIMITS = "requests_per_minute, tokens_per_minute, concurrent_streams, adapters, adapter_bytes, max_rank"
OLDER_KEYS = (
    ("BBBBBBBB", "acme", "revoked", "query upload", "NULL", 1600000000000, "NULL", 1),
    ("CCCCCCCC", "acme", "expired", "query upload", "NULL", 1600000000001, 1600000000002, "NULL"),
    ("DDDDDDDD", "acme", "limited", "query upload", 60, 1600000000003, "NULL", "NULL"),
    ("EEEEEEEE", "acme", "later", "query", "NULL", 1700000000001, "NULL", "NULL"),
    ("FFFFFFFF", "acme", "for uploads", "upload", "NULL", 1700000000002, "NULL", "NULL"),
    ("GGGGGGGG", "operator", "old", "admin query upload", "NULL", 1600000000000, "NULL", "NULL"),
)
"""id, tenant, name, scopes, requests_per_minute, created, expires, revoked."""
HELD = {
    "AAAAAAAA": (Scope.INFER, Scope.MANAGE, Scope.READ, Scope.UPLOAD),
    "BBBBBBBB": (Scope.INFER, Scope.READ, Scope.UPLOAD),
    "CCCCCCCC": (Scope.INFER, Scope.READ, Scope.UPLOAD),
    "DDDDDDDD": (Scope.INFER, Scope.READ, Scope.UPLOAD),
    "EEEEEEEE": (Scope.INFER, Scope.READ),
    "FFFFFFFF": (Scope.READ, Scope.UPLOAD),
}
"""The oldest that lives and has no limits, AAAAAAAA, manages."""
ROWS = (
    f"INSERT INTO tenants (id, number, uuid, name, email, plan, state, weight, {LIMITS}, monthly_budget_nanousd, "
    "created_ms, revision) VALUES ('acme', 1, 'u-1', 'Acme', NULL, 'standard', 'suspended', 3, 60, NULL, NULL, NULL, "
    "NULL, 16, NULL, 1700000000000, 1)",
    "INSERT INTO tenants (id, number, uuid, name, plan, state, weight, created_ms, revision) VALUES ('operator', 2, "
    "'u-2', 'the operator', 'standard', 'active', 1, 1600000000000, 1)",
    f"INSERT INTO keys (id, tenant, name, secret_hash, scopes, {LIMITS}, monthly_budget_nanousd, created_ms, "
    "expires_ms, revoked_ms, revision) VALUES ('AAAAAAAA', 'acme', 'first', 'hash', 'query upload', NULL, NULL, NULL, "
    "NULL, NULL, NULL, NULL, 1700000000000, NULL, NULL, 2)",
    *(
        f"INSERT INTO keys (id, tenant, name, secret_hash, scopes, {LIMITS}, monthly_budget_nanousd, created_ms, "
        f"expires_ms, revoked_ms, revision) VALUES ('{key_id}', '{tenant}', '{name}', 'hash', '{scopes}', {limit}, "
        f"NULL, NULL, NULL, NULL, NULL, NULL, {created_ms}, {expires_ms}, {revoked_ms}, 2)"
        for key_id, tenant, name, scopes, limit, created_ms, expires_ms, revoked_ms in OLDER_KEYS
    ),
    "INSERT INTO prices (base, version, effective_ms, input_nanousd, output_nanousd, revision) "
    "VALUES ('older', 1, 0, 7, 9, 3)",
    "INSERT INTO credits (id, tenant, nanousd, reason, created_ms) VALUES ('c-1', 'acme', 25, 'sign-up', 1)",
    "INSERT INTO ledger (id, tenant, key, request_id, edge, base, opened_ms, prompt_tokens, cached_tokens, "
    "completion_tokens, charged_prompt_tokens, charged_completion_tokens, num_sequences, finish_reason, "
    "input_nanousd, output_nanousd, cost_nanousd, received_ms) VALUES ('u-1', 'acme', 'AAAAAAAA', 'r-1', 'e-1', "
    "'Mistral-7b-instruct', 1, 2, 0, 3, 2, 3, 1, 'stop', 200, 200, 1000, 2)",
    "INSERT INTO ledger (id, tenant, key, request_id, edge, base, opened_ms, prompt_tokens, cached_tokens, "
    "completion_tokens, charged_prompt_tokens, charged_completion_tokens, num_sequences, finish_reason, "
    "input_nanousd, output_nanousd, cost_nanousd, received_ms, corrects) VALUES ('u-2', 'acme', NULL, 'r-1', 'e-1', "
    "'Mistral-7b-instruct', 1764547200000, 0, 0, 0, -2, 0, 0, 'correction', 200, 200, -400, 2, 'u-1')",
    "INSERT INTO leases (edge, tenant, granted_nanousd, expires_ms) VALUES ('e-1', 'acme', 5, 9)",
    "INSERT INTO spending (tenant, edge, month, cost_nanousd) VALUES ('acme', 'e-1', 197001, 1000)",
    "INSERT INTO repositories (number, uuid, tenant, name, description, is_public, last_version, created_ms, "
    "deleted_ms, revision) VALUES (1, 'r-1', 'acme', 'triage', '', false, 0, 1, NULL, 2)",
    "INSERT INTO shares (repository, tenant) VALUES (1, 'acme')",
    "UPDATE revisions SET value = 2 WHERE name = 'edges'",
)


def test_rows_of_the_first_version_are_there_after_every_migration(empty_url: URL, tmp_path: Path) -> None:
    migrate(empty_url, FIRST)
    engine = create_engine(empty_url.set(drivername="sqlite") if "sqlite" in empty_url.drivername else empty_url)
    with engine.begin() as connection:
        for row in ROWS:
            connection.execute(text(row))
    engine.dispose()

    url = empty_url.render_as_string(hide_password=False)
    config = load_config(flags={"control.dir": str(tmp_path / "kept"), "control.database_url": url}, environ={})
    control = open_control(config, is_key_needed=True)

    async def check() -> None:
        try:
            assert await ensure_first_start(control) is None, "the operator has a key already"
            snapshot = await take_snapshot(control, -1)
            acme = next(tenant for tenant in snapshot.tenants if tenant.id == "acme")
            assert (acme.state, acme.weight) == ("suspended", 3)
            assert acme.limits == Limits(requests_per_minute=60, max_rank=16)
            async with control.database.read() as connection:
                found = {key.facts.id: key for key in await list_keys(connection, "acme")}
                assert {key_id: key.facts.held for key_id, key in found.items()} == HELD
                key = found[KeyId("AAAAAAAA")]
                (steering,) = [key for key in await list_keys(connection, "operator") if key.name == "old"]
                assert steering.facts.held == tuple(sorted(Scope))
                lent = await connection.exec_driver_sql("SELECT repository, tenant FROM shares")
                assert [tuple(row) for row in lent] == [(1, "acme")]
                sum_ = await connection.exec_driver_sql("SELECT SUM(cost_nanousd) FROM ledger")
                assert int(sum_.scalar_one()) == 600
                assert (await connection.exec_driver_sql("SELECT nanousd FROM credits")).scalar_one() == 25
                assert key.facts.origin == key.facts.id
                rows = await connection.exec_driver_sql(
                    "SELECT id, opened_ms, booked_ms, corrects_month, reason FROM ledger ORDER BY id"
                )
                assert [tuple(row) for row in rows] == [
                    ("u-1", 1, 1, None, None),
                    ("u-2", 1764547200000, 1764547200000, 202512, "no reason was asked for"),
                ]
                rows = await connection.exec_driver_sql(
                    "SELECT id, charged_cached_tokens, cached_input_nanousd, cost_nanousd FROM ledger ORDER BY id"
                )
                assert [tuple(row) for row in rows] == [("u-1", 0, None, 1000), ("u-2", 0, None, -400)]
                (price,) = await price_versions(connection, "older")
                assert (price.input_nanousd, price.cached_nanousd, price.output_nanousd) == (7, 7, 9)
                months = (197001, 202512, month_of(control.now_ms()))
                assert [await rule_of(connection, month) for month in months] == [1, 1, 2]
                rows = await connection.exec_driver_sql(
                    "SELECT key, edge, month, cost_nanousd FROM spending ORDER BY 3"
                )
                assert [tuple(row) for row in rows] == [("AAAAAAAA", "e-1", 197001, 1000), ("", "", 202512, -400)]
        finally:
            await control.database.close()

    asyncio.run(check())


def test_a_new_database_has_exact_lines_in_every_month(url: URL, tmp_path: Path) -> None:
    async def check() -> None:
        database = Database(url)
        try:
            async with database.read() as connection:
                assert [await rule_of(connection, month) for month in (197001, 202611, 900012)] == [2, 2, 2]
        finally:
            await database.close()

    asyncio.run(check())


def test_an_archive_of_before_is_its_owners(empty_url: URL, tmp_path: Path) -> None:
    """It was anybody's to end: of the owner and of the operator alike."""
    migrate(empty_url, "0002")
    engine = create_engine(empty_url.set(drivername="sqlite") if "sqlite" in empty_url.drivername else empty_url)
    with engine.begin() as connection:
        connection.execute(text(ROWS[0].replace("'suspended'", "'active'")))
        connection.execute(
            text(
                "INSERT INTO repositories (number, uuid, tenant, name, description, is_public, last_version, "
                "created_ms, deleted_ms, revision) VALUES (1, 'r-1', 'acme', 'triage', '', FALSE, 2, 1, NULL, 2)"
            )
        )
        for number, state in ((1, "archived"), (2, "ready")):
            connection.execute(
                text(
                    "INSERT INTO versions (repository, version, state, base, rank, bytes, sha256, source_url, error, "
                    f"created_by, created_ms) VALUES (1, {number}, '{state}', 'b', 8, 9, 'f', NULL, NULL, 'acme', 1)"
                )
            )
    engine.dispose()

    url = empty_url.render_as_string(hide_password=False)
    config = load_config(flags={"control.dir": str(tmp_path / "kept"), "control.database_url": url}, environ={})
    control = open_control(config, is_key_needed=True)

    async def check() -> None:
        try:
            (told,) = (await take_snapshot(control, -1)).repositories
            assert told.versions == (2,)
            async with control.database.write() as connection:
                repository = await find_repository(connection, TenantId("acme"), "triage")
                assert [each.archived_by for each in repository.versions] == [("owner",), ()]
                await set_archived(connection, TenantId("acme"), "triage", "1", is_archived=False)
            (told,) = (await take_snapshot(control, -1)).repositories
            assert told.versions == (1, 2)
        finally:
            await control.database.close()

    asyncio.run(check())
