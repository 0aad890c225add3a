"""One law: the records of edges, the usage API, the CSV, the page and the invoice have the same sums, in every zone."""

import csv
import io
import re
from html import unescape
from pathlib import Path

import pytest

from manylora.console.pages import usage
from manylora.control.billing.ledger import insert_records
from manylora.control.billing.periods import parse_period
from manylora.control.calendar import day_of, offsets_of
from manylora.control.zones import zone_of
from manylora.money import dollars
from tests.console.house import ConsoleHouse, in_console
from tests.control.plane import record

HOUR_MS = 3_600_000
ROUNDS = (0, 1, 5, 8, 13, 25)
"""Hours between records: they lie on both sides of midnight in each of the zones."""
COLUMNS = ("requests", "charged_prompt_tokens", "charged_completion_tokens", "cost_nanousd")


def rows_of(page: str, name: str = "usage") -> list[list[str]]:
    """The cells of a table, its foot last."""
    table = page.partition(f'id="{name}"')[2].partition("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.S)
    return [
        [unescape(re.sub("<[^>]+>", "", cell)) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.S)] for row in rows
    ]


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/Los_Angeles"])
def test_records_api_csv_page_and_invoice_agree_to_the_token(tmp_path: Path, zone: str) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser, plane = house.new_browser(), house.plane
        await browser.sign_up("acme")
        records = [
            record(n, opened_ms=plane.control.now_ms() - hours * HOUR_MS, completion_tokens=n + 1,
                   charged_completion_tokens=n + 1)
            for n, hours in enumerate(ROUNDS)
        ]  # fmt: skip
        await insert_records(plane.control, records)
        told = sum(each.charged_completion_tokens for each in records)
        key = browser.client.cookies["manylora_session"]
        query = f"zone={zone}&by=day&by=adapter"
        report = (await plane.call("GET", f"/v1/account/usage?zone={zone}&by=day,adapter", key=key)).json()["usage"]
        page = rows_of((await browser.get(f"/console/usage?{query}")).text)
        lines = list(csv.DictReader(io.StringIO((await browser.get(f"/console/usage.csv?{query}")).text)))
        invoice = (await plane.call("GET", "/v1/account/invoices/2023-11?format=json", key=key)).json()
        assert len(report) == 2, "the records lie on two days of the zone"
        shown = [[day, adapter, *(row[name] for name in COLUMNS)] for row in report for day, adapter in [row["names"]]]
        assert [[line["day"], line["adapter"], *(int(line[name]) for name in COLUMNS)] for line in lines] == shown
        assert [[*row[:2], *(int(row[n].replace(",", "")) for n in (2, 3, 5)), row[6]] for row in page[1:-1]] == [
            [*row[:-1], dollars(int(row[-1]))] for row in shown
        ]
        cost = sum(int(row[-1]) for row in shown)
        assert sum(int(row[4]) for row in shown) == told == sum(line["completion_tokens"] for line in invoice["lines"])
        assert cost == invoice["total_nanousd"] > 0
        assert page[-1][-1] == dollars(cost)
        assert dollars(cost) in (await browser.get("/console/billing/invoices/2023-11")).text

    in_console(tmp_path, scenario)


def test_the_csv_of_each_page_has_the_rows_of_that_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "PAGE_SIZE", 2)
    names = ["=1+1", "tone/1", "triage/1", "triage/2", "voice/1"]

    async def scenario(house: ConsoleHouse) -> None:
        browser, plane = house.new_browser(), house.plane
        await browser.sign_up("acme")
        opened_ms = plane.control.now_ms()
        rows = [record(n, adapter=name, opened_ms=opened_ms) for n, name in enumerate([*names, *names])]
        await insert_records(plane.control, rows)
        path, seen = "/console/usage?by=adapter&zone=Asia/Tokyo&from=2023-11-01&to=2023-11-30", list[str]()
        while path:
            page = (await browser.get(path)).text
            shown = [row[0] for row in rows_of(page)[1:-1]]
            file = re.search(r'href="(/console/usage\.csv[^"]*)"', page)
            assert file is not None
            lines = list(csv.DictReader(io.StringIO((await browser.get(unescape(file[1]))).text)))
            assert [line["adapter"].removeprefix("'") for line in lines] == shown
            assert {(line["zone"], line["requests"]) for line in lines} == {("Asia/Tokyo", "2")}
            assert rows_of(page)[-1][1] == str(2 * len(names)), "the foot is the whole period's"
            assert all(line["adapter"][0] not in "=+-@" for line in lines), "no spreadsheet reads a formula"
            seen += shown
            onward = re.search(r'href="(/console/usage\?[^"]*)">Next page<', page)
            path = unescape(onward[1]) if onward else ""
        assert seen == names

    in_console(tmp_path, scenario)


def test_days_of_a_zone_follow_its_summer_time() -> None:
    berlin = zone_of("Europe/Berlin")
    period = parse_period(month="", first="2023-10-28", last="2023-10-29", now_ms=0, zone=berlin)
    hours = (period.end_ms - period.begin_ms) // HOUR_MS
    assert hours == 49, "the night on the 29th had an hour more"
    summer, winter = offsets_of(berlin, period.begin_ms, period.end_ms)
    assert (summer, winter) == ((period.begin_ms, 2 * HOUR_MS), (1_698_541_200_000, HOUR_MS))
    assert day_of(period.end_ms - 1, berlin).isoformat() == "2023-10-29"
