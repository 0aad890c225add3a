"""The pages of customers and of the operator: what they do, what they show to whom, and how their lists go on."""

import re
from html import unescape
from pathlib import Path

import pytest
from sqlalchemy import insert

from manylora.control.storage.tables import promotions
from manylora.control.webhooks.outbox import enqueue
from tests.console.house import PASSWORD, Browser, ConsoleHouse, in_console, text_of, token_of
from tests.control.uploading import PLAIN, base_settings

OPERATORS = ("tenants", "tenants/acme", "prices", "audit", "fleet", "fleet/figures")


async def upload(browser: Browser, repo: str, alias: str = "") -> str:
    """Upload an adapter as the page's script does, each file in two parts; returns the address of its version."""
    token = {"x-form-token": token_of((await browser.get("/console/adapters")).text)}
    begun = await browser.client.post("/console/adapters/upload", json={"repo": repo, "alias": alias}, headers=token)
    assert begun.status_code == 200, begun.text
    for name, data in (("adapter_config.json", PLAIN.config), ("adapter_model.safetensors", PLAIN.weights)):
        address, middle = begun.json()["files"][name], len(data) // 2
        for part, at in ((data[:middle], 0), (data[middle:], middle)):
            assert (await browser.get(address)).json()["offset"] == at
            span = {"content-range": f"bytes {at}-{at + len(part) - 1}/{len(data)}"}
            sent = await browser.client.put(address, content=part, headers=token | span)
            assert sent.status_code == 200, sent.text
    done = await browser.client.post(
        "/console/adapters/upload/end", json={"token": begun.json()["token"]}, headers=token
    )
    assert done.status_code == 200, done.text
    return str(done.json()["page"])


@pytest.mark.usefixtures("checks_in_process")
def test_an_adapter_is_uploaded_in_parts_promoted_and_deleted_with_a_receipt(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser = house.new_browser()
        await browser.sign_up("acme")
        assert "No adapters yet" in text_of((await browser.get("/console/adapters")).text)
        address = await upload(browser, "triage", "prod")
        version = text_of((await browser.get(address)).text)
        assert "Ingest report" in version
        assert "No tensor was left out" in version
        await upload(browser, "triage")
        page = "/console/adapters/acme/triage"
        assert "prod → 1" in text_of((await browser.get("/console/adapters")).text)
        promoted = await browser.post(f"{page}/aliases", {"alias": "prod", "version": "2"}, page=page)
        assert promoted.status_code == 303
        assert "prod → 2" in text_of((await browser.get("/console/adapters")).text)
        receipt = await browser.post(f"{page}/1/delete", {}, page=page)
        assert "triage/1 is deleted" in text_of(receipt.text)
        assert (await browser.get(f"{page}/1")).status_code == 404
        other = house.new_browser()
        await other.sign_up("rival")
        assert (await other.get(page)).status_code == 404
        assert (await other.post(f"{page}/2/delete", {}, page="/console")).status_code == 404

    in_console(tmp_path, scenario, settings=base_settings(tmp_path))


def test_no_part_of_an_upload_comes_without_the_page_s_token(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser = house.new_browser()
        await browser.sign_up("acme")
        calls = [("POST", "/console/adapters/upload"), ("POST", "/console/adapters/upload/end")]
        calls += [("PUT", "/console/adapters/upload/acme/u/f"), ("POST", "/console/playground/ask")]
        for method, path in calls:
            assert (await browser.client.request(method, path, json={})).status_code == 403, path

    in_console(tmp_path, scenario)


def test_the_operator_s_pages_are_the_operator_s_alone(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser, stranger, operator = (house.new_browser() for _ in range(3))
        await browser.sign_up("acme")
        await house.plane.call("PUT", "/v1/account/login", {"password": PASSWORD})
        await operator.sign_in("operator")
        for path in OPERATORS:
            assert (await browser.get(f"/console/operator/{path}")).headers["location"] == "/console"
            assert (await stranger.get(f"/console/operator/{path}")).headers["location"].startswith("/console/sign-in")
            if path != "fleet/figures":  # of a server with an engine
                assert (await operator.get(f"/console/operator/{path}")).status_code == 200, path
        page = "/console/operator/tenants/acme"
        await operator.post(f"{page}/credit", {"id": "g", "amount": "7.5", "reason": "paid"}, page=page)
        assert "Balance $32.50" in text_of((await operator.get(page)).text)
        await operator.post(f"{page}/limits", {"adapters": "3"}, page=page)
        wrong = await operator.post(f"{page}/limits", {"adapters": "three"}, page=page)
        assert "a limit is a whole number" in text_of(wrong.text)
        code = (await operator.post(f"{page}/login-code", {}, page=page)).text
        assert "One-time code for acme" in code
        unknown = await operator.post(f"{page}/delete-all", {}, page=page)
        assert "a tenant has no act" in text_of(unknown.text)
        await operator.post(f"{page}/suspend", {}, page=page)
        assert "suspended" in (await operator.get(page)).text
        assert (await browser.get("/console")).status_code == 303
        audit = text_of((await operator.get("/console/operator/audit?tenant=acme")).text)
        assert all(verb in audit for verb in ("suspend", "limit", "grant"))

    in_console(tmp_path, scenario)


def test_on_an_open_server_there_is_nothing_to_sign_in_to(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser = house.new_browser()
        page = await browser.get("/console")
        assert (page.status_code, "open server" in page.text, "Sign out" in page.text) == (200, True, False)
        assert "Operator" in text_of(page.text)
        reply = await browser.client.post("/console/keys", data={"name": "planted", "scope": "infer"})
        assert reply.status_code == 403

    in_console(tmp_path, scenario, is_key_needed=False, client_host="127.0.0.1")


def test_a_budget_and_a_wrong_amount(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser = house.new_browser()
        await browser.sign_up("acme")
        form = {"name": "team", "limit": "5", "period": "month", "hard": "1"}
        assert (await browser.post("/console/billing/budgets", form, page="/console/billing")).status_code == 303
        assert "below 50 %" in text_of((await browser.get("/console/billing")).text)
        wrong = await browser.post("/console/billing/budgets", form | {"limit": "five"}, page="/console/billing")
        assert "an amount is dollars" in text_of(wrong.text)

    in_console(tmp_path, scenario)


async def rows_of_pages(browser: Browser, path: str, link: str, row: str) -> list[str]:
    """Follow the link of that text from page to page; return what the pattern `row` finds in their texts."""
    found, asked = list[str](), {path}
    while path:
        reply = await browser.get(path)
        assert reply.status_code == 200, path
        found += re.findall(row, text_of(reply.text))
        onward = re.search(rf'<a href="([^"]+)">{link}</a>', reply.text)
        path = unescape(onward[1]) if onward else ""
        assert path not in asked
        asked.add(path)
    return found


def test_the_billing_page_pages_its_grants(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser = house.new_browser()
        await browser.sign_up("acme")
        names = [f"gift-{number:03d}" for number in range(103)]
        for name in names:
            body = {"id": name, "nanousd": 10**9, "reason": name, "priority": 1}
            assert (await house.plane.call("POST", "/admin/tenants/acme/credits", body)).status_code == 201
        assert await rows_of_pages(browser, "/console/billing", "More grants", r"gift-\d{3}") == names

    in_console(tmp_path, scenario)


def test_the_page_of_webhooks_pages_its_messages(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser, page, plane = house.new_browser(), "/console/webhooks", house.plane
        await browser.sign_up("acme")
        assert "whsec_" in (await browser.post(page, {"url": "https://hooks.example/a"}, page=page)).text
        async with plane.control.database.write() as connection:
            for number in range(120):  # several of a moment
                await enqueue(connection, "acme", "budget.alert", f"event {number}", {}, number // 7)
        found = await rows_of_pages(browser, page, "Older messages", r"msg_[0-9a-f]{40} waiting")
        assert (len(found), len(set(found))) == (120, 120)

    in_console(tmp_path, scenario)


def test_the_page_of_promotions_pages_them(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser, plane = house.new_browser(), house.plane
        key = await plane.new_tenant("acme")
        for method, path, body in (
            ("PUT", "/v1/account/login", {"password": PASSWORD}),
            ("POST", "/v2/repos", {"name": "triage"}),
        ):
            assert (await plane.call(method, path, body, key=key)).is_success
        await browser.sign_in("acme")
        shared = {"tenant": "acme", "repo": "triage", "alias": "prod", "state": "promoted", "reason": "", "batch": ""}
        rows = [
            {**shared, "id": f"promotion_{number:024x}", "version": 1000 + number, "is_forced": True}
            | {"created_ms": number // 7, "ended_ms": number // 7, "evaluation": "{}"}  # several of a moment
            for number in range(45)
        ]
        async with plane.control.database.write() as connection:
            await connection.execute(insert(promotions), rows)
        path = "/console/adapters/acme/triage/promotions"
        found = await rows_of_pages(browser, path, "Older promotions", r"forced (\d+)")
        assert found == [str(1000 + number) for number in reversed(range(45))]

    in_console(tmp_path, scenario)
