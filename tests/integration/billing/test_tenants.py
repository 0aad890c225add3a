"""A real server with keys: what tenants upload, use and pay, and that none of them meets what is another's."""

import asyncio
import io
import json
import random
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import httpx2
import pytest
from peft import LoraConfig

from manylora.config.settings import load_config
from manylora.control.billing.prices import set_price
from manylora.control.process.first_start import ensure_first_start
from manylora.control.process.opening import open_control
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.serving import READS, running_server
from tests.support.tiny import ALL, make_adapter, make_base
from tests.support.waiting import wait_for

INPUT, CACHED, OUTPUT = 3, 1, 7  # nano-dollars a token
CREDIT = 10**9
FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass
class Shop:
    """The server, its operator's key, and adapters to upload."""

    client: httpx2.Client
    admin: str
    folder: Path
    made: list[Path]

    def call(self, method: str, path: str, body: object = None, *, key: str) -> httpx2.Response:
        return self.client.request(method, path, json=body, headers={"authorization": f"Bearer {key}"})

    def new_tenant(self, code: str, **terms: Any) -> str:
        reply = self.call("POST", "/admin/tenants", {"id": code, "credit_nanousd": CREDIT, **terms}, key=self.admin)
        assert reply.status_code == 201, reply.text
        return str(reply.json()["key"]["key"])

    def upload(self, key: str, repo: str, folder: Path) -> int:
        made = self.call("POST", "/v2/repos", {"name": repo, "existsOk": True}, key=key)
        assert made.status_code == 200, made.text
        begun = self.call("POST", "/v2/adapters/upload", {"repo": repo}, key=key).json()
        for name in FILES:
            sent = self.client.put(begun["presignedUrls"][name], content=(folder / name).read_bytes())
            assert sent.status_code == 200, sent.text
        done = self.call("PUT", "/v2/adapters/upload/", {"uploadToken": begun["uploadToken"]}, key=key)
        assert done.status_code == 200, done.text
        return int(done.json()["tag"])

    def generate(self, key: str, adapter: str = "", tokens: int = 5) -> httpx2.Response:
        body = {"model": adapter, "prompt": "the quick brown fox", "max_tokens": tokens, "ignore_eos": True}
        return self.call("POST", "/v1/completions", {**body, "temperature": 0}, key=key)

    def models(self, key: str) -> set[str]:
        return {model["id"] for model in self.call("GET", "/v1/models", key=key).json()["data"]}

    def logged(self, key: str) -> list[dict[str, Any]]:  # JSON
        """The lines of a tenant's request log."""
        reply = self.call("GET", "/v2/deployments/base/request-logs", key=key)
        with zipfile.ZipFile(io.BytesIO(reply.content)) as archive:
            return [json.loads(line) for line in archive.read("requests.jsonl").splitlines()]

    def charged(self, key: str) -> int:
        return int(self.call("GET", "/v1/account", key=key).json()["balance"]["charged_nanousd"])


def cost_of(reply: httpx2.Response) -> int:
    usage = reply.json()["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return int((usage["prompt_tokens"] - cached) * INPUT + cached * CACHED + usage["completion_tokens"] * OUTPUT)


def opened(folder: Path) -> str:
    """Make the control plane before the server comes, with a price for the base; returns the operator's key."""

    async def main() -> str:
        flags = {"control.dir": str(folder / "control")}
        control = await asyncio.to_thread(open_control, load_config(flags=flags, environ={}), is_key_needed=True)
        key = await ensure_first_start(control)
        async with control.database.write() as connection:
            await set_price(
                connection,
                "base",
                input_nanousd=INPUT,
                output_nanousd=OUTPUT,
                cached_input_nanousd=CACHED,
                effective_ms=control.now_ms(),
                now_ms=control.now_ms(),
            )
        await control.database.close()
        assert key is not None
        return key

    return asyncio.run(main())


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    base = make_base(folder / "base", vocab_size=330)
    save_byte_level(folder / "base")
    shape = LoraConfig(r=4, lora_alpha=32, target_modules=ALL)
    made = [make_adapter(base, folder / f"made-{seed}", shape, seed=seed) for seed in range(4)]
    admin = opened(folder)
    (folder / "none").mkdir()
    flags = ("--base", str(folder / "base"), "--adapter-root", str(folder / "none"), "--auth", "on", f"--set={READS}")
    with (
        running_server(folder / "log", *flags) as url,
        httpx2.Client(base_url=url, timeout=60) as client,
    ):
        yield Shop(client, admin, folder, made)


def test_a_tenant_uploads_queries_and_pays_the_price_of_the_base(shop: Shop) -> None:
    key = shop.new_tenant("walk")
    base = shop.generate(key)
    assert base.status_code == 200, base.text
    assert shop.upload(key, "tone", shop.made[0]) == 1
    assert shop.upload(key, "tone", shop.made[1]) == 2
    newest, first, second = (shop.generate(key, name) for name in ("tone", "tone/1", "tone/2"))
    texts = [reply.json()["choices"][0]["text"] for reply in (base, newest, first, second)]
    assert texts[1] == texts[3]
    assert len(set(texts)) == 3
    expected = sum(cost_of(reply) for reply in (base, newest, first, second))
    wait_for(lambda: shop.charged(key) == expected)
    assert shop.models(key) == {"base", "tone", "tone/1", "tone/2"}
    rows = {row["request_id"]: row for row in shop.call("GET", "/v1/account/ledger", key=key).json()["rows"]}
    for reply in (base, newest, first, second):
        row, told = rows[reply.headers["x-request-id"]], reply.headers.get("x-adapter-tier")
        assert row["tier"] == told
        assert (row["adapter_digest"] is None) == (told is None)
        assert row["total_us"] >= row["first_token_us"] > 0
    assert newest.headers["x-adapter-tier"] != "cpu", "it was met for the first time"


def test_cached_prompt_tokens_cost_their_own_price_as_everybody_is_shown(shop: Shop) -> None:
    key = shop.new_tenant("cached")
    (price,) = shop.client.get("/v1/prices").json()["prices"]
    assert (price["base"], price["is_in_force"]) == ("base", True)
    assert [price[f"{name}_nanousd"] for name in ("input", "cached_input", "output")] == [INPUT, CACHED, OUTPUT]
    body = {"model": "", "prompt": "the quick brown fox " * 9, "max_tokens": 3, "ignore_eos": True, "temperature": 0}
    first, second = (shop.call("POST", "/v1/completions", body, key=key) for _ in range(2))
    cached = second.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert 0 < cached < second.json()["usage"]["prompt_tokens"]
    expected = cost_of(first) + cost_of(second)
    wait_for(lambda: shop.charged(key) == expected)
    (line,) = shop.call("GET", "/v1/account/usage", key=key).json()["usage"]
    assert (line["cached_tokens"], line["charged_cached_tokens"], line["cost_nanousd"]) == (cached, cached, expected)


def test_an_alias_moves_while_traffic_flows(shop: Shop) -> None:
    key = shop.new_tenant("alias")
    for folder in shop.made[:2]:
        shop.upload(key, "tone", folder)
    texts = {number: shop.generate(key, f"tone/{number}").json()["choices"][0]["text"] for number in (1, 2)}
    for number in (1, 2, 1):
        assert shop.call("PUT", "/v2/repos/tone/aliases/prod", {"version": number}, key=key).status_code == 200
        assert shop.generate(key, "tone/prod").json()["choices"][0]["text"] == texts[number]
    assert shop.generate(key, "tone/stage").status_code == 404


@pytest.mark.long
def test_every_request_meets_the_old_version_or_the_new_one(shop: Shop) -> None:
    """Four callers at once while an alias is switched to and fro; who has switched it meets the new one at once."""
    key = shop.new_tenant("swap")
    for folder in shop.made[:2]:
        shop.upload(key, "tone", folder)
    texts = {number: shop.generate(key, f"tone/{number}").json()["choices"][0]["text"] for number in (1, 2)}
    is_over = Event()

    def switch(number: int) -> None:
        assert shop.call("PUT", "/v2/repos/tone/aliases/prod", {"version": number}, key=key).status_code == 200

    def call() -> list[tuple[int, str]]:
        seen = []
        while not is_over.is_set():
            reply = shop.generate(key, "tone/prod")
            is_good = reply.status_code == 200
            seen.append((reply.status_code, reply.json()["choices"][0]["text"] if is_good else reply.text))
        return seen

    switch(1)
    with ThreadPoolExecutor() as threads:
        callers = [threads.submit(call) for _ in range(4)]
        try:
            for turn in range(12):
                number = 2 - turn % 2
                switch(number)
                assert shop.generate(key, "tone/prod").json()["choices"][0]["text"] == texts[number]
        finally:
            is_over.set()
    seen = [each for caller in callers for each in caller.result()]
    assert set(seen) == {(200, text) for text in texts.values()}


def test_what_another_lets_one_use_is_called_by_its_owners_name(shop: Shop) -> None:
    lender, borrower = shop.new_tenant("lender"), shop.new_tenant("borrower")
    shop.upload(lender, "bot", shop.made[0])
    shop.upload(borrower, "tone", shop.made[1])
    shop.call("POST", "/v2/repos/bot/shares", {"tenants": ["borrower"]}, key=lender)
    own, lent = shop.generate(lender, "bot"), shop.generate(borrower, "lender/bot")
    assert [(each.headers["x-adapter-id"], each.json()["model"]) for each in (own, lent)] == [
        ("bot/1", "bot/1"),
        ("lender/bot/1", "lender/bot/1"),
    ]
    assert shop.models(borrower) == {"base", "tone", "tone/1", "lender/bot", "lender/bot/1"}
    merged = {"ids": ["tone", "lender/bot"], "weights": [0.5, 0.5], "merge_strategy": "linear"}
    parameters = {"merged_adapters": merged, "max_new_tokens": 2}
    reply = shop.call("POST", "/generate", {"inputs": "the quick", "parameters": parameters}, key=borrower)
    assert (reply.status_code, reply.headers["x-adapter-id"]) == (200, "borrower/tone/1,lender/bot/1"), reply.text
    shop.call("DELETE", "/v2/repos/bot/shares/borrower", key=lender)
    assert shop.models(borrower) == {"base", "tone", "tone/1"}
    shop.call("DELETE", "/v2/repos/tone", key=borrower)
    assert shop.models(borrower) == {"base"}
    wait_for(lambda: len(shop.logged(borrower)) == 2)
    assert [line["adapter"] for line in shop.logged(borrower)] == ["bot/1", "borrower/tone/1,lender/bot/1"]
    metrics = shop.call("GET", "/metrics", key=shop.admin).text
    assert 'adapter="lender/bot/1"' in metrics
    assert 'adapter="bot/1"' not in metrics


def test_a_suspension_holds_at_once_and_ends_as_soon(shop: Shop) -> None:
    key = shop.new_tenant("late")
    assert shop.generate(key).status_code == 200
    shop.call("POST", "/admin/tenants/late/suspend", key=shop.admin)
    refused = shop.generate(key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "tenant_suspended")
    shop.call("POST", "/admin/tenants/late/resume", key=shop.admin)
    assert shop.generate(key).status_code == 200


def test_used_up_credit_is_told_as_openai_tells_it(shop: Shop) -> None:
    key = shop.new_tenant("poor", credit_nanousd=200)
    assert shop.generate(key).status_code == 200
    for _ in range(20):
        reply = shop.generate(key)
        if reply.status_code != 200:
            break
    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "insufficient_quota")
    assert reply.headers["x-should-retry"] == "false"
    assert shop.charged(key) <= 200
    shop.call("POST", "/admin/tenants/poor/credits", {"id": "paid", "nanousd": 10**6, "reason": "paid"}, key=shop.admin)
    assert shop.generate(key).status_code == 200


def test_a_rate_limit_is_told_with_the_time_to_wait(shop: Shop) -> None:
    key = shop.new_tenant("fast", limits={"requests_per_minute": 2})
    first, second, third = (shop.generate(key) for _ in range(3))
    assert [first.status_code, second.status_code, third.status_code] == [200, 200, 429]
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert int(third.headers["retry-after"]) >= 1
    assert third.headers["x-ratelimit-limit-requests"] == "2"
    assert third.headers["x-ratelimit-remaining-requests"] == "0"
    assert third.json()["error"]["type"] == "requests"


def test_nothing_is_done_for_a_stranger_that_he_could_time(shop: Shop) -> None:
    """What is another's private adapter is neither read nor looked for; what another has sent speeds nothing up."""
    owner, stranger = shop.new_tenant("hider"), shop.new_tenant("seeker")
    shop.upload(owner, "secret", shop.made[0])

    def adapters() -> list[dict[str, Any]]:  # JSON
        listed = shop.call("GET", "/v1/adapters?limit=1000", key=shop.admin)
        assert listed.status_code == 200, listed.text
        return [{**each, "last_use_s": None} for each in listed.json()["data"]]  # that is seconds ago

    before = adapters()
    for name in ("hider/secret", "hider/secret/1", "hider/nothing", "secret", "nothing"):
        assert shop.generate(stranger, name).status_code == 404
    assert adapters() == before

    def cached(key: str) -> int:
        body = {"prompt": "a long and private text of somebody " * 3, "max_tokens": 1, "temperature": 0}
        usage = shop.call("POST", "/v1/completions", body, key=key).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    assert [cached(owner), cached(stranger)] == [0, 0]
    assert cached(owner) > 0
    assert cached(stranger) > 0


def test_the_outside_cannot_reach_the_routes_of_edges(shop: Shop) -> None:
    for path in (
        "/internal/snapshot",
        "//internal/snapshot",
        "/internal%2Fsnapshot",
        "/admin/%2E%2E/internal/snapshot",
    ):
        assert shop.call("GET", path, key=shop.admin).status_code in (401, 404)


@dataclass
class Tenant:
    """What a test knows of a tenant. repos: version numbers by name."""

    code: str
    key: str
    repos: dict[str, list[int]] = field(default_factory=dict)
    public: set[str] = field(default_factory=set)
    shared: dict[str, set[str]] = field(default_factory=dict)
    cost: int = 0

    def may_use(self, other: "Tenant", repo: str) -> bool:
        return repo in other.repos and (
            other is self or repo in other.public or self.code in other.shared.get(repo, set())
        )


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long), pytest.param(3, marks=pytest.mark.long)])
def test_no_tenant_can_name_list_use_or_bill_what_is_anothers(shop: Shop, seed: int) -> None:
    """Random calls of three tenants, against a model of what each may do."""
    source = random.Random(seed)
    tenants = [Tenant(f"t{seed}{letter}", shop.new_tenant(f"t{seed}{letter}")) for letter in "abc"]
    names = ("one", "two")
    for tenant in tenants[:2]:
        _upload(shop, tenant, "one", source)
    for _ in range(60):
        caller, other = source.choice(tenants), source.choice(tenants)
        repo = source.choice(names)
        match source.choice(("upload", "use", "use", "use", "share", "unshare", "public", "list", "meddle", "delete")):
            case "upload" if sum(map(len, caller.repos.values())) < 4:
                _upload(shop, caller, repo, source)
            case "use":
                _use(shop, caller, other, repo, source)
            case "share" if repo in caller.repos and other is not caller:
                reply = shop.call("POST", f"/v2/repos/{repo}/shares", {"tenants": [other.code]}, key=caller.key)
                assert reply.status_code == 200
                caller.shared.setdefault(repo, set()).add(other.code)
            case "unshare" if other.code in caller.shared.get(repo, set()):
                reply = shop.call("DELETE", f"/v2/repos/{repo}/shares/{other.code}", key=caller.key)
                assert reply.status_code == 204
                caller.shared[repo].discard(other.code)
            case "public" if repo in caller.repos:
                is_public = source.random() < 0.5
                body = {"public": is_public}
                assert shop.call("PUT", f"/v2/repos/{repo}", body, key=caller.key).status_code == 200
                (caller.public.add if is_public else caller.public.discard)(repo)
            case "list":
                _list(shop, caller, tenants)
            case "meddle":
                _meddle(shop, caller, other, repo)
            case "delete" if repo in caller.repos and source.random() < 0.3:
                assert shop.call("DELETE", f"/v2/repos/{repo}", key=caller.key).status_code == 204
                caller.repos.pop(repo)
                caller.public.discard(repo)
                caller.shared.pop(repo, None)
            case _:
                pass
    for tenant in tenants:
        wait_for(lambda tenant=tenant: shop.charged(tenant.key) == tenant.cost)  # type: ignore[misc]  # its default
    for tenant in tenants:  # what they made public is not for the tenants of the next seed
        shop.call("POST", f"/admin/tenants/{tenant.code}/close", key=shop.admin)


def _upload(shop: Shop, tenant: Tenant, repo: str, source: random.Random) -> None:
    tenant.repos.setdefault(repo, []).append(shop.upload(tenant.key, repo, source.choice(shop.made)))


def _use(shop: Shop, caller: Tenant, other: Tenant, repo: str, source: random.Random) -> None:
    version = source.choice(["", *(f"/{number}" for number in other.repos.get(repo, [1]))])
    name = (repo if other is caller else f"{other.code}/{repo}") + version
    reply = shop.generate(caller.key, name)
    if caller.may_use(other, repo):
        assert reply.status_code == 200, f"{caller.code} {name}: {reply.text}"
        caller.cost += cost_of(reply)
        return
    unknown = shop.generate(caller.key, f"{other.code}/no-such{version}")
    assert (reply.status_code, unknown.status_code) == (404, 404)
    assert reply.text.replace(name, "NAME") == unknown.text.replace(f"{other.code}/no-such{version}", "NAME")


def _list(shop: Shop, caller: Tenant, tenants: list[Tenant]) -> None:
    expected = {
        (repo if other is caller else f"{other.code}/{repo}") + version
        for other in tenants
        for repo in other.repos
        if caller.may_use(other, repo)
        for version in ("", *(f"/{number}" for number in other.repos[repo]))
    }
    assert shop.models(caller.key) == {"base"} | expected
    own = shop.call("GET", "/v2/repos?limit=100", key=caller.key).json()["data"]["repos"]
    assert {entry["name"] for entry in own} == set(caller.repos)


def _meddle(shop: Shop, caller: Tenant, other: Tenant, repo: str) -> None:
    """Whatever is tried by name on a repository that the caller does not have answers as for one that is not there."""
    if repo in caller.repos:
        return
    for method, path, body in (
        ("DELETE", f"/v2/repos/{repo}", None),
        ("DELETE", f"/v2/repos/{other.code}/{repo}", None),
        ("PUT", f"/v2/repos/{repo}", {"public": True}),
        ("POST", f"/v2/repos/{repo}/shares", {"tenants": [caller.code]}),
        ("PUT", f"/v2/repos/{repo}/aliases/prod", {"version": 1}),
        ("DELETE", f"/v2/repos/{repo}/version/1", None),
        ("GET", f"/v2/repos/{repo}/version/1/download", None),
    ):
        reply = shop.call(method, path, body, key=caller.key)
        assert reply.status_code == 404, f"{method} {path}: {reply.status_code} {reply.text}"
