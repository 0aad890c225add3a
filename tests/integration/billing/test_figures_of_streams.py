"""One law: what streams told, the usage API, the CSV, the page and the invoices agree to the token, in every zone.

A real server of a tiny base runs on both sides of midnight in three zones: its wall clock has an offset from a file.
The days follow from the day of the run, and none of the zones' borders of a month lies among them.
"""

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx2
import pytest
from peft import LoraConfig

from manylora.money import NANO
from tests.console.house import PASSWORD, token_of
from tests.console.test_figures_agree import rows_of
from tests.integration.billing.test_tenants import CACHED, INPUT, OUTPUT, Shop, opened
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.serving import running_server
from tests.support.tiny import ALL, make_adapter, make_base
from tests.support.waiting import wait_for

pytestmark = pytest.mark.long

ZONES = ("UTC", "Asia/Tokyo", "America/Los_Angeles")
HOURS = (6.5, 8.5, 14.5, 15.5, 23.5, 24.5)
"""Moments after a midnight in UTC; a midnight of each zone lies between two of them, in summer and in winter."""
SHIFTED = """
import sys, time
from pathlib import Path
from manylora import clock
file, real = Path(sys.argv.pop(1)), time.time
clock.SystemClock.wall_s = lambda self: real() + float(file.read_text())
from manylora.cli import main
main()
"""
TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"
LONG = "the quick brown fox jumps over the lazy dog, and the dog looks at the fox"
PROMPTS = (LONG, f"{LONG} again")
"""The second begins with blocks of the first, which the prefix cache has."""
ADAPTERS = {"base": "", "tone": "tone/1", "voice": "voice/1"}
"""The adapter's name in figures, by the model that a request names."""
GROUPS = ("day", "adapter", "key")
COLUMNS = ("requests", "charged_prompt_tokens", "charged_cached_tokens", "charged_completion_tokens", "cost_nanousd")
Row = tuple[int, ...]
"""The numbers of `COLUMNS`, in figures; of the last four, in invoices."""
Figures = dict[tuple[str, ...], Row]
"""Rows by the names of `GROUPS`, or by those of the adapter alone."""


@dataclass(frozen=True)
class Told:
    """What the last event of a stream told, and to which key."""

    moment: datetime
    adapter: str
    key: str
    usage: dict[str, Any]  # JSON

    def name(self, zone: str) -> tuple[str, str, str]:
        return f"{self.moment.astimezone(ZoneInfo(zone)):%Y-%m-%d}", self.adapter, self.key

    def row(self) -> Row:
        prompt, completion = self.usage["prompt_tokens"], self.usage["completion_tokens"]
        cached = self.usage["prompt_tokens_details"]["cached_tokens"]
        return 1, prompt, cached, completion, (prompt - cached) * INPUT + cached * CACHED + completion * OUTPUT


class ShiftedShop(Shop):
    """A server whose wall clock the test sets."""

    offset: Path

    def set_time(self, moment: datetime) -> None:
        written = self.offset.with_suffix(".new")
        written.write_text(str(moment.timestamp() - datetime.now(UTC).timestamp()), encoding="utf-8")
        written.replace(self.offset)  # at once: the server reads it at any time

    def streamed(self, key: str, model: str, prompt: str, tokens: int) -> dict[str, Any]:
        """Stream a chat completion to its end; returns the usage of its last event."""
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "stream": True,
                "stream_options": {"include_usage": True}, "temperature": 0, "ignore_eos": True}  # fmt: skip
        headers, usage = {"authorization": f"Bearer {key}"}, None
        with self.client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as reply:
            assert reply.status_code == 200, reply.read()
            for line in reply.iter_lines():
                if line.startswith("data: {"):
                    usage = json.loads(line.removeprefix("data: ")).get("usage") or usage
        assert usage is not None
        return dict(usage)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShiftedShop]:
    folder = tmp_path_factory.mktemp("streams")
    base = make_base(folder / "base", vocab_size=330)
    save_byte_level(folder / "base")
    file = folder / "base" / "tokenizer_config.json"
    told = json.loads(file.read_text(encoding="utf-8")) | {"chat_template": TEMPLATE}
    file.write_text(json.dumps(told), encoding="utf-8")
    shape = LoraConfig(r=4, lora_alpha=32, target_modules=ALL)
    made = [make_adapter(base, folder / f"made-{seed}", shape, seed=seed) for seed in range(2)]
    admin, offset = opened(folder), folder / "offset"
    offset.write_text("0", encoding="utf-8")
    (folder / "none").mkdir()
    flags = ("--base", str(folder / "base"), "--adapter-root", str(folder / "none"), "--auth", "on")
    command = (sys.executable, "-c", SHIFTED, str(offset))
    with (
        running_server(folder / "log", *flags, command=command) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
    ):
        shop = ShiftedShop(client, admin, folder, made)
        shop.offset = offset
        yield shop


def first_midnight() -> datetime:
    """The next midnight in UTC whose two days lie within one month of every zone."""
    now = datetime.now(UTC)
    day = datetime(now.year, now.month, now.day, tzinfo=UTC) + timedelta(days=1)
    while not 3 <= day.day <= 25:
        day += timedelta(days=1)
    return day


def test_streams_api_csv_page_and_invoices_agree_to_the_token(shop: ShiftedShop) -> None:
    first, other = shop.new_tenant("acme"), shop.new_tenant("other")
    assert shop.call("PUT", "/v1/account/login", {"password": PASSWORD}, key=first).status_code == 200
    second = shop.call("POST", "/v1/account/keys", {"name": "second", "scopes": ["infer"]}, key=first).json()
    keys = {first: shop.call("GET", "/v1/account/key", key=first).json()["id"], second["key"]: second["id"]}
    for repo, made in zip(("tone", "voice"), shop.made, strict=True):
        shop.upload(first, repo, made)
    told: list[Told] = []
    midnight = first_midnight()
    month = f"{midnight:%Y-%m}"
    for number, hours in enumerate(HOURS, 1):
        moment = midnight + timedelta(hours=hours)
        shop.set_time(moment)
        for (key, name), (model, adapter), prompt in product(keys.items(), ADAPTERS.items(), PROMPTS):
            usage = shop.streamed(key, model, prompt, number + len(told) % 5)
            told.append(Told(moment, adapter, name, usage))
        shop.streamed(other, "base", LONG, number)
        wait_until_booked(shop, month, {"acme": len(told), "other": number})  # before the clock moves on
    assert any(each.row()[2] for each in told), "some prompt was cached"
    shop.set_time(midnight + timedelta(days=40))  # the month is over, and its late records are in
    sign_in(shop)
    by_adapter = summed(((each.adapter,), each.row()[1:]) for each in told)
    for zone in ZONES:
        expected = summed((each.name(zone), each.row()) for each in told)
        assert len({day for day, *_ in expected}) == 2, f"the streams lie on two days of {zone}"
        assert figures(shop, first, f"zone={zone}&month={month}") == [expected] * 3, zone
        assert numbered_invoice(shop, zone, month) == by_adapter, zone
    assert invoice_of(shop, first, month) == by_adapter


def wait_until_booked(shop: ShiftedShop, month: str, requests: dict[str, int]) -> None:
    """Wait for the requests of the month by tenant. The operator asks, whose reads have no budget."""

    def are_booked() -> bool:
        reply = shop.call("GET", f"/admin/usage?by=tenant&month={month}", key=shop.admin)
        assert reply.status_code == 200, reply.text
        return {row["names"][0]: row["requests"] for row in reply.json()["usage"]} == requests

    wait_for(are_booked)


def sign_in(shop: ShiftedShop) -> None:
    form = {"tenant": "acme", "password": PASSWORD, "form_token": token_of(shop.client.get("/console/sign-in").text)}
    assert shop.client.post("/console/sign-in", data=form).status_code == 303


def figures(shop: ShiftedShop, key: str, period: str) -> list[Figures]:
    """The sums of `GROUPS`, as the usage API, the CSV and the console's page tell them."""
    query = f"{period}&by={','.join(GROUPS)}"
    report = shop.call("GET", f"/v1/account/usage?{query}", key=key).json()["usage"]
    lines = list(csv.DictReader(io.StringIO(shop.client.get(f"/console/usage.csv?{query}").text)))
    rows = rows_of(shop.client.get(f"/console/usage?{query}").text)
    api = {tuple(name or "" for name in row["names"]): tuple(row[name] for name in COLUMNS) for row in report}
    table = {tuple(line[name] for name in GROUPS): tuple(int(line[name]) for name in COLUMNS) for line in lines}
    page = {tuple(cell.replace("–", "") for cell in row[:3]): numbers(row[3:]) for row in rows[1:-1]}
    assert numbers(rows[-1][1:]) == totals(api.values()), "the foot is the sum of the rows"
    return [api, table, page]


def numbers(cells: list[str]) -> Row:
    """The numbers of a page's cells; the last one is an amount."""
    *counts, amount = (cell.replace(",", "") for cell in cells)
    return *map(int, counts), int(Decimal(amount.removeprefix("$")) * NANO)


def invoice_of(shop: ShiftedShop, key: str, month: str) -> Figures:
    """The sums of the invoice of a month in UTC by adapter, which the console's page shows as well."""
    invoice = shop.call("GET", f"/v1/account/invoices/{month}?format=json", key=key).json()
    names = ("prompt_tokens", "cached_tokens", "completion_tokens", "nanousd")
    lines = summed(((bare(line["adapter"]),), tuple(line[name] for name in names)) for line in invoice["lines"])
    assert totals(lines.values())[-1] == invoice["total_nanousd"]
    shown = rows_of(shop.client.get(f"/console/billing/invoices/{month}").text, "invoice")
    assert {(bare(row[1].replace("–", "")),): numbers(row[3:]) for row in shown[1:]} == lines
    return lines


def numbered_invoice(shop: ShiftedShop, zone: str, month: str) -> Figures:
    """The sums of the draft of the month in a zone by adapter."""
    asked = {"tenant": "acme", "month": month, "zone": zone}
    made = shop.call("POST", "/admin/billing/invoices", asked, key=shop.admin)
    assert made.status_code == 201, made.text
    body = made.json()["document"]
    places = {"prompt": (1, 0, 0), "cached_prompt": (1, 1, 0), "completion": (0, 0, 1)}
    parts = [
        ((bare(line["adapter"]),), (*(line["quantity"] * n for n in places[line["tokens"]]), line["nanousd"]))
        for line in body["lines"]
    ]
    removed = shop.call("DELETE", f"/admin/billing/invoices/{made.json()['id']}", key=shop.admin)
    assert removed.is_success, removed.text
    found = summed(parts)
    assert totals(found.values())[-1] == body["subtotal_nanousd"]
    return found


def bare(adapter: str | None) -> str:
    """An adapter's name without its owner, as the owner's own figures have it."""
    return (adapter or "").removeprefix("acme/")


def summed(parts: Iterable[tuple[tuple[str, ...], Row]]) -> Figures:
    """The sums of rows with the same name."""
    found: Figures = {}
    for name, row in parts:
        found[name] = totals([found[name], row]) if name in found else row
    return found


def totals(rows: Iterable[Row]) -> Row:
    return tuple(map(sum, zip(*rows, strict=True)))
