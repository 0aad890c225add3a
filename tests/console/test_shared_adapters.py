"""Adapters of another tenant beside the visitor's own of the same name: each has its own requests and its own place."""

import re
from pathlib import Path

from manylora.control.billing.ledger import insert_records
from tests.console.house import PASSWORD, Browser, ConsoleHouse, in_console, text_of
from tests.control.plane import record
from tests.control.rollouts.test_rules import ready_versions

NAMES = {"triage/2": ("acme", 2), "triage/1": ("rival", 4), "triage/2,triage/1": ("rival", 8), "tone": (None, 16)}
"""Adapters with their owners and acme's requests to them; the last one is of a folder."""


async def hits(browser: Browser, path: str) -> list[list[str]]:
    """The first and the ninth column of a page's table: a name and its requests."""
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", (await browser.get(path)).text, re.DOTALL)
    cells = [[text_of(cell) for cell in re.split(r"</t[hd]>", row)] for row in rows]
    column = 8 if path.endswith("adapters") else 7
    return [[row[0], row[column]] for row in cells]


def test_requests_to_a_shared_adapter_are_not_those_of_the_own_one(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        plane, browser = house.plane, house.new_browser()
        keys = {tenant: await ready_versions(plane, 2, tenant) for tenant in ("acme", "rival")}
        await plane.call("PUT", "/v2/repos/triage", {"public": True}, key=keys["rival"])
        opened_ms = plane.control.now_ms()
        rows = [
            record(n, id=f"{name}-{owner}-{n}", opened_ms=opened_ms, adapter=name, adapter_owner=owner)
            for name, (owner, number) in NAMES.items()
            for n in range(number)
        ]
        await insert_records(plane.control, rows)
        await plane.call("PUT", "/v1/account/login", {"password": PASSWORD}, key=keys["acme"])
        await browser.sign_in("acme")
        assert await hits(browser, "/console/adapters") == [["triage", "2"], ["triage of rival", str(4 + 2 * 8)]]
        assert await hits(browser, "/console/adapters/acme/triage") == [["2", "2"], ["1", "0"]]
        assert await hits(browser, "/console/adapters/rival/triage") == [["2", "8"], ["1", str(4 + 8)]]
        version = await browser.get("/console/adapters/rival/triage/1")
        assert (version.status_code, "No ingest report" in version.text) == (200, True), "its owner sees it"

    in_console(tmp_path, scenario)
