"""Invoices with numbers, webhooks, prices, new tenants and deployments on the console's pages."""

import re
from pathlib import Path

from manylora.control.billing.ledger import insert_records
from tests.console.house import PASSWORD, Browser, ConsoleHouse, in_console, text_of
from tests.control.plane import record
from tests.control.uploading import base_settings

MONTH, SETTLED_S = "2023-11", 31 * 86_400
INVOICES, TENANTS, PRICES = (f"/console/operator/{name}" for name in ("invoices", "tenants", "prices"))


async def operator_of(house: ConsoleHouse) -> Browser:
    await house.plane.call("PUT", "/v1/account/login", {"password": PASSWORD})
    operator = house.new_browser()
    await operator.sign_in("operator")
    return operator


def test_an_invoice_goes_from_draft_to_paid_and_its_tenant_alone_sees_it(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser, rival, plane = house.new_browser(), house.new_browser(), house.plane
        await browser.sign_up("acme")
        await rival.sign_up("rival")
        await insert_records(plane.control, [record(1, opened_ms=plane.control.now_ms())])
        plane.clock.advance(SETTLED_S)
        operator = await operator_of(house)
        await browser.sign_in("acme")
        await rival.sign_in("rival")
        form = {"tenant": "acme", "month": MONTH, "zone": "UTC", "tax": "19"}
        wrong = await operator.post(INVOICES, form | {"tax": "much"}, page=INVOICES)
        assert (wrong.status_code, 'value="acme"' in wrong.text) == (400, True)
        page = (await operator.post(INVOICES, form, page=INVOICES)).headers["location"]
        number = page.rpartition("/")[2]
        own = f"/console/billing/documents/{number}"
        assert "Invoice (draft)" in text_of((await operator.get(page)).text)
        assert (await browser.get(own)).status_code == 404, "a draft is the operator's alone"
        for act in ("finalise", "pay"):
            assert (await operator.post(f"{page}/{act}", {"note": "transfer 7"}, page=page)).status_code == 303
        assert "INV-000001" in text_of((await browser.get("/console/billing")).text)
        shown = text_of((await browser.get(own)).text)
        assert "paid transfer 7" in shown
        assert "19.0 %" in shown
        assert "INV-000001" in (await browser.get(f"{own}?format=text")).text
        assert (await rival.get(own)).status_code == 404
        assert (await browser.get(page)).headers["location"] == "/console"
        note = await operator.post(f"{page}/credit-note", {"amount": "0.000001", "reason": "slow"}, page=page)
        assert "Credit note" in text_of((await operator.get(note.headers["location"])).text)
        assert "credit note" in text_of((await browser.get("/console/billing")).text)

    in_console(tmp_path, scenario)


def test_a_webhook_shows_its_secret_once_and_ends(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser, page = house.new_browser(), "/console/webhooks"
        await browser.sign_up("acme")
        assert "No webhooks yet" in text_of((await browser.get(page)).text)
        assert (await browser.post(page, {"url": "ftp://x.example"}, page=page)).status_code == 400
        made = (await browser.post(page, {"url": "https://hooks.example/a"}, page=page)).text
        assert 'value="whsec_' in made
        listed = (await browser.get(page)).text
        assert "whsec_" not in listed
        hook = listed.partition("/console/webhooks/")[2].partition("/end")[0]
        assert (await browser.post(f"{page}/{hook}/end", {}, page=page)).status_code == 303
        assert "No webhooks yet" in text_of((await browser.get(page)).text)

    in_console(tmp_path, scenario)


def test_the_operator_makes_a_tenant_and_a_price(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        operator = await operator_of(house)
        form = {"id": "acme", "name": "Acme", "plan": "standard", "credit": "12.5"}
        wrong = await operator.post(TENANTS, form | {"credit": "much"}, page=TENANTS)
        assert (wrong.status_code, 'value="Acme"' in wrong.text) == (400, True)
        made = (await operator.post(TENANTS, form, page=TENANTS)).text
        key = made.partition('value="pb_')[2].partition('"')[0]
        account = (await house.plane.call("GET", "/v1/account", key=f"pb_{key}")).json()
        assert (account["id"], account["balance"]["left_nanousd"]) == ("acme", 12_500_000_000)
        assert key not in (await operator.get(TENANTS)).text
        price = {"base": "tiny", "input": "0.0002", "output": "1", "cached": "", "hours": "2"}
        for field, text, told in (
            ("input", "0.0000001", "six decimals"),
            ("hours", "soon", "number of hours"),
            ("hours", "nan", "number of hours"),
        ):
            refused = await operator.post(PRICES, price | {field: text}, page=PRICES)
            assert (refused.status_code, told in text_of(refused.text)) == (400, True)
        assert (await operator.post(PRICES, price, page=PRICES)).status_code == 303
        told = text_of((await operator.get(PRICES)).text)
        assert "$0.0002 $0.0002 $1.00" in told, "a cached token costs as any other"
        [stored] = (await house.plane.call("GET", "/admin/prices?base=tiny")).json()["prices"]
        assert (stored["input_nanousd"], stored["output_nanousd"]) == (200, 1_000_000), "as by `manylora prices set`"
        assert "An hour of a replica of a dedicated deployment: $1.21" in told

    in_console(tmp_path, scenario, settings={"control.free_bases": ["tiny"]})


def test_a_tenant_sees_its_own_deployments_with_their_state(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser, page = house.new_browser(), "/console/deployments"
        await browser.sign_up("acme")
        empty = text_of((await browser.get(page)).text)
        assert "No dedicated deployments" in empty
        assert "$1.21 an hour for each replica of a new one" in empty, "before a tenant makes its first"
        key = await house.plane.new_tenant("rival")
        body = {"name": "mine", "config": {"baseModel": "Tiny-Base", "minReplicas": 1}}
        assert (await house.plane.call("POST", "/v2/deployments", body, key=key)).is_success
        login = await house.plane.call("PUT", "/v1/account/login", {"password": PASSWORD}, key=key)
        assert login.is_success
        browser = house.new_browser()
        await browser.sign_in("rival")
        shown = (await browser.get(page)).text
        row = re.search(r'<th scope="row">mine(.*?)</th>', shown, re.DOTALL)
        assert row is not None
        assert text_of(row[1]) == f"$1.21 an hour for each ready replica, $0 in {MONTH}", "also on a narrow screen"

    in_console(tmp_path, scenario, settings=base_settings(tmp_path))
