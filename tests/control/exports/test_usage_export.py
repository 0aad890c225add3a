"""Exports of usage: each sum once, under one id, however often and whenever it is asked for."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from manylora.control.billing.ledger import correct, insert_records
from manylora.control.exports import usage_export
from manylora.control.exports.usage_export import HOUR_MS, MOST_HOURS
from manylora.control.storage.tables import ledger
from tests.control.plane import Plane, in_plane, migrated_in, record

ROOT = "/admin/billing/exports"
HOUR_S = HOUR_MS / 1000


async def asked(plane: Plane, sink: str = "meter", form: str = "cloudevents") -> dict[str, Any]:
    reply = await plane.call("GET", f"{ROOT}/{sink}?form={form}")
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = reply.json()
    return body


async def take(plane: Plane, export: dict[str, Any], sink: str = "meter") -> bool:
    bounds = {name: export[name] for name in ("begin_ms", "end_ms", "pages")}
    reply = await plane.call("POST", f"{ROOT}/{sink}", bounds)
    assert reply.status_code == 200, reply.text
    return bool(reply.json()["is_new"])


async def drained(plane: Plane, sink: str = "meter") -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    while True:
        export = await asked(plane, sink)
        if export["begin_ms"] == export["end_ms"]:
            return events
        events += export["events"]
        assert await take(plane, export, sink)


def test_a_repeated_export_is_the_same_and_a_late_record_comes_in_a_later_one(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        plane.clock.advance(HOUR_S - plane.clock.wall_s() % HOUR_S + 1)
        await plane.new_tenant("acme")
        opened_ms = plane.control.now_ms()
        usage: dict[str, Any] = {"cached_tokens": 40, "charged_cached_tokens": 40}
        await insert_records(plane.control, [record(n, opened_ms=opened_ms, **usage) for n in range(3)])
        assert (await asked(plane))["events"] == [], "the hour is not over"
        plane.clock.advance(2 * HOUR_S)
        first = await asked(plane)
        assert {each["data"]["kind"]: each["data"]["quantity"] for each in first["events"]} == {
            "prompt": 180,
            "cached_prompt": 120,
            "completion": 30,
        }
        await insert_records(plane.control, [record(9, opened_ms=opened_ms, **usage)])
        assert await asked(plane) == first, "what was sent does not change"
        assert [await take(plane, first), await take(plane, first)] == [True, False]
        plane.clock.advance(2 * HOUR_S)
        late = await asked(plane)
        assert {each["time"] for each in late["events"]} == {each["time"] for each in first["events"]}
        assert not {each["id"] for each in late["events"]} & {each["id"] for each in first["events"]}
        assert sum(each["data"]["quantity"] for each in late["events"]) == 110
        again = await drained(plane, "another")
        assert {each["id"]: each for each in again} == {each["id"]: each for each in first["events"] + late["events"]}

    run(scenario)


def test_exports_of_all_hours_together_are_the_ledger(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        for number in range(8):
            adapter: dict[str, Any] = {"adapter": ("triage/1", "triage/2", None)[number % 3]}
            opened_ms = plane.control.now_ms() - (HOUR_MS if number % 2 else 0)
            await insert_records(plane.control, [record(number, opened_ms=opened_ms, **adapter)])
            plane.clock.advance(HOUR_S * (0.4 if number != 5 else 2 * MOST_HOURS))
        await correct(
            plane.control,
            "usage-2",
            correction_id="back",
            prompt_tokens=-50,
            completion_tokens=0,
            reason="r",
            author="admin",
        )
        plane.clock.advance(2 * HOUR_S)
        events = await drained(plane)
        assert len({each["id"] for each in events}) == len(events)
        async with plane.control.database.read() as connection:
            cost = int((await connection.execute(select(func.sum(ledger.c.cost_nanousd)))).scalar_one())
        assert sum(each["data"]["nanousd"] for each in events) == cost
        assert await drained(plane) == []

    run(scenario)


def test_of_calls_at_once_that_acknowledge_one_export_one_is_the_first(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        await insert_records(plane.control, [record(1, opened_ms=plane.control.now_ms())])
        for _ in range(8):
            plane.clock.advance(2 * HOUR_S)
            export = await asked(plane)
            assert sorted(await asyncio.gather(*(take(plane, export) for _ in range(6)))) == [*[False] * 5, True]

    run(scenario)


def test_of_exports_with_one_begin_and_two_ends_at_once_one_is_acknowledged(run: Callable[..., None]) -> None:
    """An answer of 200 says that all hours of the export are acknowledged, also to the call that came second."""

    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        await insert_records(plane.control, [record(1, opened_ms=plane.control.now_ms())])
        for _ in range(8):
            plane.clock.advance(2 * HOUR_S)
            export = await asked(plane)
            ends = [export["end_ms"] - HOUR_MS, export["end_ms"]]
            bodies = [{"begin_ms": export["begin_ms"], "end_ms": end_ms, "pages": 1} for end_ms in ends]
            replies = await asyncio.gather(*(plane.call("POST", f"{ROOT}/meter", body) for body in bodies))
            begin_ms = (await asked(plane))["begin_ms"]
            for end_ms, reply in zip(ends, replies, strict=True):
                assert reply.status_code == (200 if end_ms <= begin_ms else 422), reply.text
            assert sum(reply.status_code == 200 and reply.json()["is_new"] for reply in replies) == 1
            if begin_ms < export["end_ms"]:
                assert await take(plane, await asked(plane))

    run(scenario)


def test_forms_have_the_fields_of_their_receivers(tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        await insert_records(plane.control, [record(1, opened_ms=plane.control.now_ms())])
        plane.clock.advance(2 * HOUR_S)
        cloud, stripe, table = [(await asked(plane, form=form))["events"] for form in ("cloudevents", "stripe", "csv")]
        assert [each["id"] for each in cloud] == [each["identifier"] for each in stripe]
        assert [each["id"] for each in cloud] == [each["id"] for each in table]
        assert all(len(each["identifier"]) <= 100 for each in stripe), "Stripe's limit"
        assert {each["specversion"] for each in cloud} == {"1.0"}
        assert {(each["source"], each["type"], each["subject"]) for each in cloud} == {
            ("manylora", "manylora.usage", "acme")
        }
        for each in stripe:
            assert set(each) == {"event_name", "identifier", "timestamp", "payload"}
            assert each["payload"]["stripe_customer_id"] == "acme"
            assert all(isinstance(value, str) for value in each["payload"].values())
        for name in ("meter?form=xml", "a%20b"):
            assert (await plane.call("GET", f"{ROOT}/{name}")).status_code == 422

    in_plane(migrated_in(tmp_path), tmp_path, scenario)


@pytest.mark.parametrize("bounds", [(1, HOUR_MS), (0, 48 * HOUR_MS), (HOUR_MS, 0), (0, 2**60 // HOUR_MS * HOUR_MS)])
def test_bounds_that_no_export_has_are_refused(tmp_path: Path, bounds: tuple[int, int]) -> None:
    async def scenario(plane: Plane) -> None:
        body = dict(zip(("begin_ms", "end_ms"), bounds, strict=True))
        assert (await plane.call("POST", f"{ROOT}/meter", body)).status_code == 422

    in_plane(migrated_in(tmp_path), tmp_path, scenario)


@pytest.mark.parametrize("shift", [-1, 1, 5])
def test_a_first_acknowledgement_of_no_export_is_refused_by_name(tmp_path: Path, shift: int) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        await insert_records(plane.control, [record(1, opened_ms=plane.control.now_ms())])
        plane.clock.advance(12 * HOUR_S)
        export = await asked(plane)
        begin_ms = export["begin_ms"] + shift * HOUR_MS
        for pages, body in ((1, {"begin_ms": begin_ms, "end_ms": begin_ms + HOUR_MS}), (2, export)):
            bounds = {name: body[name] for name in ("begin_ms", "end_ms")} | {"pages": pages}
            refused = await plane.call("POST", f"{ROOT}/meter", bounds)
            assert refused.status_code == 422, refused.text
            assert ("`pages` must be 1" if pages == 2 else f"no export of `meter` that waits begins at {begin_ms}") in (
                refused.text
            )
        assert await asked(plane) == export, "no row is left out"
        assert await take(plane, export)
        old = {"begin_ms": export["begin_ms"] - HOUR_MS, "end_ms": export["begin_ms"]}
        assert (await plane.call("POST", f"{ROOT}/meter", old)).status_code == 422

    in_plane(migrated_in(tmp_path), tmp_path, scenario)


def test_the_pages_of_an_export_have_each_sum_once(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        for number in range(7):
            adapter: dict[str, Any] = {"adapter": None if number == 3 else f"triage/{number}"}
            await insert_records(plane.control, [record(number, opened_ms=plane.control.now_ms(), **adapter)])
        plane.clock.advance(2 * HOUR_S)
        whole = await asked(plane)
        monkeypatch.setattr(usage_export, "MOST_SUMS", 3)
        first = await asked(plane)
        assert (whole["pages"], first["pages"]) == (1, 3)
        plane.clock.advance(2 * HOUR_S)
        await insert_records(plane.control, [record(9, opened_ms=plane.control.now_ms())])
        events = first["events"]
        for page in (2, 3):
            path = f"{ROOT}/meter?page={page}"
            assert (await plane.call("GET", path)).status_code == 422, "of which export?"
            events += (await plane.call("GET", f"{path}&end_ms={first['end_ms']}")).json()["events"]
        by_id = {each["id"]: each for each in events}
        assert len(by_id) == len(events)
        assert by_id == {each["id"]: each for each in whole["events"]}
        missing = await plane.call("GET", f"{ROOT}/meter?page=4&end_ms={first['end_ms']}")
        assert "`page` must be 1 to 3" in missing.text
        short = {name: first[name] for name in ("begin_ms", "end_ms")}
        assert "`pages` must be 3" in (await plane.call("POST", f"{ROOT}/meter", short)).text
        assert await take(plane, first)

    run(scenario)
