"""Reads of usage, ledger and invoices: in pages, within a budget, in a process of low priority, each tenant in turn."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop
from sqlalchemy import URL

from manylora.control.billing.heavy_read_client import MAX_OF_ONE, NICENESS, HeavyReads, ReadProcess
from manylora.control.billing.heavy_reads import HeavyRead, LedgerRead
from manylora.control.billing.ledger import insert_records
from manylora.control.storage.database import Database
from manylora.errors import StreamLimitExceeded
from tests.control.plane import Plane, in_plane, migrated_in, record

NOW_MS = 1_700_001_000_000
DAY_MS = 86_400_000
BYS = ("day,tenant,adapter", "adapter", "key,base", "price,day", "tenant,base,adapter,key,price,day")
HEAVY = (
    "/v1/account/usage?by=day,adapter",
    "/v1/account/ledger?limit=3",
    "/v1/account/invoices/2023-11?format=csv",
    "/v1/account/invoices/2023-11",
    "/v1/account/invoices/2023-11?format=html",
)


async def fill(plane: Plane) -> str:
    """Usage of two tenants with and without adapters, keys and prices; returns the first one's key."""
    key = await plane.new_tenant("acme")
    await plane.new_tenant("beta")
    records = [
        record(
            number,
            tenant=("acme", "acme", "beta")[number % 3],
            opened_ms=NOW_MS - (number % 4) * DAY_MS,
            adapter=(None, "triage/1", "triage/2", "ärger")[number % 4],
            base=("Mistral-7b-instruct", "unpriced")[number % 2],
            key=(None, "key-1")[number // 2 % 2],
        )
        for number in range(24)
    ]
    await insert_records(plane.control, records)
    return key


def test_pages_of_usage_are_together_the_whole(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        own = await fill(plane)
        for path, key in (("/admin/usage", ""), ("/v1/account/usage", own)):
            for by in BYS:
                whole = (await plane.call("GET", f"{path}?by={by}", key=key)).json()
                assert (whole["has_more"], whole["next"], len(whole["usage"]) > 1) == (False, None, True)
                found, after = [], ""
                while True:
                    page = (await plane.call("GET", f"{path}?by={by}&limit=2&after={after}", key=key)).json()
                    assert len(page["usage"]) == 2 or not page["has_more"]
                    found += page["usage"]
                    if (after := page["next"]) is None:
                        break
                    assert page["has_more"]
                assert found == whole["usage"], by

    run(scenario)


@pytest.mark.parametrize("after", ["x", "bm90IGpzb24", "WzEsMl0", "WzFd", "WyJ4Il0x", "%00"])
def test_a_cursor_of_no_page_is_refused_by_its_name(run: Callable[..., None], after: str) -> None:
    async def scenario(plane: Plane) -> None:
        refused = await plane.call("GET", f"/admin/usage?by=tenant&after={after}")
        assert refused.status_code == 422
        assert "`after`" in refused.json()["error"]

    run(scenario)


def test_a_page_has_a_documented_maximum(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        for path in ("usage", "ledger", "audit", "tenants", "repos"):
            assert (await plane.call("GET", f"/admin/{path}?limit=10001")).status_code == 422
            assert (await plane.call("GET", f"/admin/{path}?limit=0")).status_code == 422

    run(scenario)


def test_keys_have_pages(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        own = await plane.new_tenant("acme")
        for number in range(4):
            assert (await plane.call("POST", "/admin/tenants/acme/keys", {"name": f"key {number}"})).status_code == 201
        for path, key in (("/admin/tenants/acme/keys", ""), ("/v1/account/keys", own)):
            whole = (await plane.call("GET", path, key=key)).json()
            assert (len(whole["keys"]), whole["has_more"], whole["next"]) == (5, False, None)
            found: list[Any] = []
            after: str | None = ""
            while after is not None:
                page = (await plane.call("GET", f"{path}?limit=2&after={after}", key=key)).json()
                found, after = found + page["keys"], page["next"]
            assert found == whole["keys"]
            assert (await plane.call("GET", f"{path}?after=nobody", key=key)).status_code in (400, 422)

    run(scenario)


def test_a_tenants_reads_have_a_budget_of_their_own(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        own, other = await plane.new_tenant("acme"), await plane.new_tenant("beta")
        for path in ("account", "account/keys", "account/usage", "account/ledger", "account"):
            assert (await plane.call("GET", f"/v1/{path}", key=own)).status_code == 200
        for _ in range(2):  # the second is refused before the key is looked up
            refused = await plane.call("GET", "/v1/account", key=own)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "12"
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert (await plane.call("GET", "/v2/repos", key=own)).status_code == 429
        assert (await plane.call("GET", "/v1/account", key=other)).status_code == 200
        assert (await plane.call("POST", "/v1/account/keys", {"name": "new"}, key=own)).status_code != 429
        for _ in range(9):
            assert (await plane.call("GET", "/admin/tenants")).status_code == 200  # operators have none
        plane.clock.advance(12)
        assert (await plane.call("GET", "/v1/account", key=own)).status_code == 200
        assert (await plane.call("GET", "/v1/account", key=own)).status_code == 429

    run(scenario, settings={"control.reads_per_minute": 5})


def test_heavy_reads_are_done_by_a_process_of_low_priority(url: URL, tmp_path: Path) -> None:
    """And it answers as this process would, whatever it is asked; one that is killed is started again."""
    keys: list[str] = []

    async def replies(plane: Plane) -> list[tuple[int, bytes]]:
        operators, own = keys
        asked = [(path, own) for path in HEAVY] + [("/admin/invoices/nobody/2023-11", operators)]
        found = [await plane.call("GET", path, key=key) for path, key in asked]
        return [(reply.status_code, reply.content) for reply in found]

    async def apart(plane: Plane) -> None:
        keys.extend((plane.admin_key, await fill(plane)))
        told.append(await replies(plane))
        reader = plane.control.reads._process
        assert reader is not None
        first = child_of(reader)
        assert (first.nice(), first.ppid()) == (NICENESS, psutil.Process().pid)
        first.kill()
        first.wait()
        assert (await plane.call("GET", HEAVY[0], key=keys[1])).status_code == 200
        second = child_of(reader)
        await plane.control.close()
        assert not second.is_running()

    async def here(plane: Plane) -> None:
        told.append(await replies(plane))

    told: list[list[tuple[int, bytes]]] = []
    in_plane(url, tmp_path, apart, has_reader=True)
    in_plane(url, tmp_path, here)
    assert told[0] == told[1]
    assert [status for status, _ in told[0]] == [200] * len(HEAVY) + [404]


@pytest.mark.long
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_read_after_the_process_has_ended_starts_another(new_loop: Callable[..., Any], tmp_path: Path) -> None:
    """The process ends after two minutes without a read; the loop has seen its end when the next read comes."""

    async def main() -> None:
        url = migrated_in(tmp_path)
        reader, database = ReadProcess(url), Database(url)
        await reader.ask(LedgerRead("acme", None, 1, ()))
        first = reader._process
        assert first is not None
        first.kill()
        await first.wait()
        assert first.stdin is not None
        with suppress(ConnectionError):
            await first.stdin.wait_closed()
        assert b"rows" in await reader.ask(LedgerRead("acme", None, 1, ()))
        await reader.close()
        await database.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


def child_of(reader: ReadProcess) -> psutil.Process:
    assert reader._process is not None
    return psutil.Process(reader._process.pid)


class HeldProcess(ReadProcess):
    """Answers when it is let."""

    def __init__(self) -> None:
        self.asked: list[HeavyRead] = []
        self.gate = asyncio.Semaphore(0)

    async def ask(self, asked: HeavyRead) -> bytes:
        self.asked.append(asked)
        await self.gate.acquire()
        return b""

    async def close(self) -> None: ...


def test_each_tenant_has_its_turn_and_few_places(url: URL) -> None:
    async def main() -> None:
        process, database = HeldProcess(), Database(url)
        reads = HeavyReads(process)

        def ask(tenant: str) -> asyncio.Task[bytes]:
            return asyncio.create_task(reads.answer(database, LedgerRead(tenant, None, 1, ()), tenant))

        waiting = [ask("acme") for _ in range(MAX_OF_ONE)]
        await asyncio.sleep(0)
        with pytest.raises(StreamLimitExceeded, match="tenant `acme`"):
            await ask("acme")
        waiting.append(ask("beta"))
        for _ in range(len(waiting)):
            process.gate.release()
        await asyncio.gather(*waiting)
        assert [read.tenant for read in process.asked if isinstance(read, LedgerRead)][:3] == ["acme", "beta", "acme"]
        process.gate.release()
        await ask("acme")  # the places are free again
        await database.close()

    asyncio.run(main())
