"""Writers at one time on PostgreSQL: what one counts, another one has written or finds."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from manylora.control import key_uses
from manylora.control.billing import ledger as ledger_module
from manylora.control.billing.ledger import insert_records
from manylora.control.storage.budget_tables import webhook_messages
from manylora.control.storage.database import migrate
from manylora.control.storage.tables import ledger
from manylora.control.webhooks.endpoints import MOST_WEBHOOKS
from manylora.control.webhooks.outbox import enqueue
from tests.conftest import long
from tests.control.plane import Plane, in_plane, record
from tests.control.postgres_server import PostgresServer
from tests.control.queued_calls import WAITING, in_turn, until_waiting


def on_postgres(server: PostgresServer, folder: Path, scenario: Any) -> None:
    url = server.new_database()
    migrate(url)
    in_plane(url, folder, scenario)


@pytest.mark.parametrize("_", long(0))
def test_a_budget_counts_usage_that_is_written_while_it_is_made(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _: int
) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme", credit_nanousd=10**9)
        body = {"name": "team", "limit_nanousd": 10**9}
        making: list[asyncio.Task[Any]] = []
        noted = key_uses.note_uses

        async def begun(*arguments: Any) -> None:
            """The last act of a shipment: a budget is made before it commits."""
            await noted(*arguments)
            making.append(asyncio.create_task(plane.call("POST", "/admin/tenants/acme/budgets", body)))
            for _ in range(3_000):
                async with plane.control.database.read() as connection:  # each sees the activity of its own begin
                    if making[0].done() or (await connection.execute(WAITING)).scalar_one():
                        return
                await asyncio.sleep(0.01)

        monkeypatch.setattr(ledger_module, "note_uses", begun)
        await insert_records(plane.control, [record(1, opened_ms=plane.control.now_ms())])
        made = await making[0]
        assert made.status_code == 201, made.text
        async with plane.control.database.read() as connection:
            cost = int((await connection.execute(select(func.sum(ledger.c.cost_nanousd)))).scalar_one())
        [budget] = (await plane.call("GET", "/admin/tenants/acme/budgets")).json()["budgets"]
        assert budget["spent_nanousd"] == cost > 0

    on_postgres(postgres, tmp_path, scenario)


@pytest.mark.parametrize("_", long(0))
def test_makers_at_one_time_exceed_no_limit(postgres: PostgresServer, tmp_path: Path, _: int) -> None:
    async def scenario(plane: Plane) -> None:
        own = await plane.new_tenant("acme")
        bodies = [{"url": f"https://hooks.example/{number}"} for number in range(3 * MOST_WEBHOOKS)]
        made = await asyncio.gather(*(plane.call("POST", "/v1/account/webhooks", body, key=own) for body in bodies))
        assert sorted(each.status_code for each in made) == [201] * MOST_WEBHOOKS + [400] * 2 * MOST_WEBHOOKS
        budget = {"name": "team", "limit_nanousd": 1}
        twice = [plane.call("POST", "/v1/account/budgets", budget, key=own) for _ in range(6)]
        assert sorted(each.status_code for each in await asyncio.gather(*twice)) == [201, *[409] * 5]

    on_postgres(postgres, tmp_path, scenario)


@pytest.mark.parametrize("_", long(0))
def test_of_two_ends_of_a_budget_at_one_time_one_finds_nothing(
    postgres: PostgresServer, tmp_path: Path, _: int
) -> None:
    async def scenario(plane: Plane) -> None:
        own = await plane.new_tenant("acme")
        made = await plane.call("POST", "/v1/account/budgets", {"name": "team", "limit_nanousd": 1}, key=own)
        ending = partial(plane.call, "DELETE", f"/v1/account/budgets/{made.json()['id']}", key=own)
        assert [reply.status_code for reply in await in_turn(plane, ending, ending)] == [204, 404]

    on_postgres(postgres, tmp_path, scenario)


@pytest.mark.parametrize("_", long(0))
def test_a_webhook_that_ends_while_its_messages_are_taken_lets_no_transaction_fail(
    postgres: PostgresServer, tmp_path: Path, _: int
) -> None:
    """A claim locks messages in the order of their ids, and keeps those locks until its end."""

    async def scenario(plane: Plane) -> None:
        own = await plane.new_tenant("acme")
        body = {"url": "https://hooks.example/"}
        made = (await plane.call("POST", "/v1/account/webhooks", body, key=own)).json()
        async with plane.control.database.write() as connection:
            for number in range(12):
                await enqueue(connection, "acme", "budget.alert", f"event-{number}", {}, plane.control.now_ms())
            ids = sorted((await connection.execute(select(webhook_messages.c.id))).scalars())
        rows = [select(webhook_messages).where(webhook_messages.c.id == each).with_for_update() for each in ids]
        async with plane.control.database.write() as connection:
            await connection.execute(rows[0])
            path = f"/v1/account/webhooks/{made['id']}"
            ending = asyncio.create_task(plane.call("DELETE", path, key=own))
            await until_waiting(plane, 1)
            for row in rows[1:]:
                await connection.execute(row)
        assert (await ending).status_code == 204

    on_postgres(postgres, tmp_path, scenario)
