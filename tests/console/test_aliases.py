"""Aliases on the console's pages: shares of several versions, the way back, and hostile names."""

from pathlib import Path

import pytest

from tests.console.house import ConsoleHouse, in_console, text_of
from tests.console.test_pages import upload
from tests.control.uploading import base_settings

HOSTILE = """<img src=x onerror=alert(1)>"'{{7*7}}</script><script>alert(1)</script>"""


@pytest.mark.long
@pytest.mark.usefixtures("checks_in_process")
def test_shares_of_an_alias_are_set_shown_and_rolled_back(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser, page = house.new_browser(), "/console/adapters/acme/triage"
        await browser.sign_up("acme")
        for alias in ("prod", ""):
            await upload(browser, "triage", alias)
        form = {"alias": "prod", "version": "1", "share_1": "90", "share_2": "10", "sticky": "x-user-id", "shadow": ""}
        for wrong, told in (({"share_2": "x"}, "whole number"), ({"share_2": "20"}, "make 100 together")):
            refused = await browser.post(f"{page}/aliases", form | wrong, page=page)
            assert refused.status_code == 400
            assert told in text_of(refused.text)
        assert (await browser.post(f"{page}/aliases", form, page=page)).status_code == 303
        shown = text_of((await browser.get(page)).text)
        assert "version 1: 90 % version 2: 10 % x-user-id" in shown
        alias = text_of((await browser.get(f"{page}/aliases/prod")).text)
        assert "Earlier shares version 1: 100 %" in alias
        back = f"{page}/aliases/prod/rollback"
        assert (await browser.post(back, {}, page=page)).status_code == 303
        assert "version 1: 100 %" in text_of((await browser.get(page)).text)
        again = await browser.post(back, {}, page=page)
        assert "no earlier rule" in text_of(again.text)

    in_console(tmp_path, scenario, settings=base_settings(tmp_path))


@pytest.mark.long
def test_hostile_texts_of_a_tenant_are_text_on_every_page(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser, plane = house.new_browser(), house.plane
        await browser.sign_up("acme", name=HOSTILE)
        key = browser.client.cookies["manylora_session"]
        for refused in (HOSTILE, "a<b", 'a"b'):
            assert (await plane.call("POST", "/v2/repos", {"name": refused}, key=key)).status_code in (400, 422)
        made = await plane.call("POST", "/v2/repos", {"name": "triage", "description": HOSTILE}, key=key)
        assert made.status_code == 200, made.text
        await browser.post("/console/keys", {"name": HOSTILE, "scope": "infer"}, page="/console/keys")
        budget = {"name": HOSTILE[:64], "limit": "5", "period": "month"}
        await browser.post("/console/billing/budgets", budget, page="/console/billing")
        paths = ("", "/adapters", "/adapters/acme/triage", "/keys", "/billing", f"/adapters/acme/triage?done={HOSTILE}")
        for path in paths:
            page = (await browser.get(f"/console{path}")).text
            assert "<img src=x" not in page, path
            assert "<script>alert" not in page, path
            assert "49" not in page.partition("<main")[2] or "{{7*7}}" in page, path
        assert "&lt;img src=x" in (await browser.get("/console/adapters/acme/triage")).text

    in_console(tmp_path, scenario)
