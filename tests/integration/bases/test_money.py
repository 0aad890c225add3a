"""Two priced bases in one server with keys: limits by base, a price that changes, and an exact invoice of both."""

import asyncio
import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from manylora.config.settings import load_config
from manylora.control.billing.prices import set_price
from manylora.control.process.first_start import ensure_first_start
from manylora.control.process.opening import open_control
from tests.integration.bases.test_two_bases import save_adapter
from tests.models.tiny_tokenizers import save_byte_level, save_sentencepiece
from tests.support.serving import READS, make_cache, running_server
from tests.support.tiny import make_base
from tests.support.waiting import wait_for

PRICES = {"rough": (3, 1, 7), "smooth": (11, 5, 13)}
DEARER = (17, 6, 19)
NAMES = ("input_nanousd", "cached_input_nanousd", "output_nanousd")
LIMIT = 6

pytestmark = pytest.mark.long  # a server with two engines


@dataclass
class Shop:
    """The server, its operator's key, and the cost of each base by the usage in its replies."""

    client: httpx2.Client
    admin: str
    prices: dict[str, tuple[int, int, int]] = field(default_factory=lambda: dict(PRICES))
    costs: Counter[str] = field(default_factory=Counter)
    lines: set[tuple[str, str | None, int]] = field(default_factory=set)

    def call(self, method: str, path: str, body: object = None, *, key: str = "") -> httpx2.Response:
        headers = {"authorization": f"Bearer {key or self.admin}"}
        return self.client.request(method, path, json=body, headers=headers)

    def ask(self, key: str, model: str, base: str, tokens: int = 5) -> httpx2.Response:
        """Send a request, and count its cost from the usage in the reply."""
        body = {"model": model, "prompt": "the quick brown fox", "max_tokens": tokens, "ignore_eos": True}
        reply = self.call("POST", "/v1/completions", {**body, "temperature": 0}, key=key)
        if reply.status_code == 200:
            usage, (new, cached_price, out) = reply.json()["usage"], self.prices[base]
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            self.costs[base] += (usage["prompt_tokens"] - cached) * new + cached * cached_price
            self.costs[base] += usage["completion_tokens"] * out
            self.lines.add((base, None if model == base else model.rpartition("/")[2], new))
        return reply


def opened(folder: Path) -> str:
    """Make the control plane with a price for each base before the server comes; return the operator's key."""

    async def main() -> str:
        flags = {"control.dir": str(folder / "control")}
        control = await asyncio.to_thread(open_control, load_config(flags=flags, environ={}), is_key_needed=True)
        key = await ensure_first_start(control)
        async with control.database.write() as connection:
            for base, prices in PRICES.items():
                now_ms, of_tokens = control.now_ms(), dict(zip(NAMES, prices, strict=True))
                await set_price(connection, base, **of_tokens, effective_ms=now_ms, now_ms=now_ms)
        await control.database.close()
        assert key is not None
        return key

    return asyncio.run(main())


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("money")
    rough = make_base(folder / "rough", vocab_size=340, num_hidden_layers=2)
    save_byte_level(rough.directory)
    smooth = make_base(folder / "smooth", seed=1, vocab_size=400, hidden_size=60, num_hidden_layers=2)
    save_sentencepiece(smooth.directory)
    save_adapter(rough, folder / "adapters" / "a-one", 1)
    save_adapter(smooth, folder / "adapters" / "b-one", 2)
    admin, cache = opened(folder), make_cache(folder / "cache")
    words = [f"--base={folder / base}" for base in PRICES]
    words += [f"--adapter-root={folder / 'adapters'}", "--auth=on"]
    settings = [
        f"model.cache_dir={cache}",
        "model.kernels=reference",
        "metering.ship_s=0.05",
        "control.poll_s=0.1",
        READS,
    ]
    with (
        running_server(folder / "log", *words, *(f"--set={each}" for each in settings)) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
    ):
        yield Shop(client, admin)


def new_tenant(shop: Shop, code: str, **terms: Any) -> str:
    reply = shop.call("POST", "/admin/tenants", {"id": code, "credit_nanousd": 10**9, **terms})
    assert reply.status_code == 201, reply.text
    return str(reply.json()["key"]["key"])


def test_a_month_on_two_bases_is_billed_at_the_prices_of_each(shop: Shop) -> None:
    key = new_tenant(shop, "acme")
    models = (("rough", "rough"), ("a-one", "rough"), ("smooth", "smooth"), ("smooth/b-one", "smooth"))
    for tokens, (model, base) in enumerate(models, 3):
        assert shop.ask(key, model, base, tokens).status_code == 200
    body = {"base": "smooth", **dict(zip(NAMES, DEARER, strict=True))}
    assert shop.call("POST", "/admin/prices", body).status_code == 201
    shop.prices["smooth"] = DEARER
    for tokens, (model, base) in enumerate(models, 5):
        assert shop.ask(key, model, base, tokens).status_code == 200

    def sums() -> dict[str, int]:
        page = shop.call("GET", "/v1/account/usage?by=base", key=key).json()
        return {row["names"][0]: row["cost_nanousd"] for row in page["usage"]}

    wait_for(lambda: sum(sums().values()) >= sum(shop.costs.values()))
    assert sums() == dict(shop.costs)
    month = shop.call("GET", "/v1/account/usage", key=key).json()["begin"][:7]
    invoice = shop.call("GET", f"/v1/account/invoices/{month}", key=key).json()
    assert invoice["total_nanousd"] == sum(shop.costs.values())
    by_base: Counter[str] = Counter()
    for line in invoice["lines"]:
        by_base[line["base"]] += line["nanousd"]
    assert by_base == shop.costs
    lines = {(line["base"], line["adapter"], round(float(line["input_usd"]) * 10**9)) for line in invoice["lines"]}
    assert lines == shop.lines
    assert len(lines) == 6  # two of the one base, and two of the other at each of its prices
    rows = csv.DictReader(io.StringIO(shop.call("GET", f"/v1/account/invoices/{month}?format=csv", key=key).text))
    assert sum(round(float(row["usd"]) * 10**9) for row in rows) == sum(shop.costs.values())
    balance = shop.call("GET", "/v1/account", key=key).json()["balance"]
    assert balance["charged_nanousd"] == sum(shop.costs.values())


def test_a_base_at_its_limit_is_refused_while_the_other_serves(shop: Shop) -> None:
    bases = {"smooth": {"requests_per_minute": 2}}
    key = new_tenant(shop, "beta", limits={"requests_per_minute": LIMIT, "bases": bases})
    assert [shop.ask(key, model, "smooth").status_code for model in ("smooth", "b-one")] == [200, 200]
    refused = shop.ask(key, "smooth/b-one", "smooth")
    assert refused.status_code == 429
    assert "2 requests per minute (tenant beta, base smooth)" in refused.json()["error"]["message"]
    found = [shop.ask(key, "rough", "rough").status_code for _ in range(LIMIT - 2)]  # the refused one counts, too
    assert found == [200] * (LIMIT - 3) + [429]
    unknown = {"bases": {"smoth": {"requests_per_minute": 1}}}
    assert "`smooth`" in shop.call("PUT", "/admin/tenants/beta/limits", unknown).text
