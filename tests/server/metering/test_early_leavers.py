"""What a caller who leaves pays, row by row of the table in docs/billing.md, over HTTP, by records and by limits."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from manylora.clock import ManualClock, SystemClock
from manylora.config.settings import Config
from manylora.engine.events import FinishReason
from manylora.models.text.tokenizer import Tokenizer
from manylora.server.access.access import Access
from manylora.server.access.credit import LeasedCredit
from manylora.server.app.application import EdgeApp, create_app
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.in_process import InProcessTransport
from manylora.server.generation.models import StartedBase
from manylora.server.metering.meter import Meter
from manylora.tenancy import Limits, PriceFacts, TenantFacts, mint_key
from manylora.usage import UsageRecord
from tests.server.access.test_access import ACME, BASE, directory_of, key_facts, snapshot
from tests.server.asgi_client import Caller
from tests.server.fake_control import FakeControl
from tests.server.fake_engine import FakeEngine, served_for
from tests.server.tiny_tokenizer import save_tokenizer
from tests.support.waiting import PATIENCE_S

PRICE = PriceFacts(base=BASE, version=1, effective_ms=0, input_nanousd=10, output_nanousd=30, cached_input_nanousd=1)
PART, CACHED = 6, 4
GENERATE, STREAM = "/generate", "/generate_stream"
LOADING = {"inputs": "LOAD x", "parameters": {"adapter_id": "triage"}}
MANY = {"model": "", "prompt": "PART of a prompt", "n": 3, "max_tokens": 9}
BEST = {"inputs": "PART of a prompt", "parameters": {"best_of": 2, "do_sample": True, "max_new_tokens": 9}}
TWO_PROMPTS = {"model": "", "prompt": ["PART of one", "PART of another"], "max_tokens": 9}


@dataclass
class House:
    """An edge with keys, limits and credit over the fake engine; `key` is that of its one tenant."""

    app: EdgeApp
    client: httpx2.AsyncClient
    engine: FakeEngine
    link: EngineClient
    meter: Meter
    control: FakeControl
    key: str

    async def begin(self, path: str, body: object) -> tuple[Caller, "asyncio.Task[None]"]:
        """Send a request; return when the engine has all of it."""
        before = len(self.engine.submitted)
        caller = Caller(path, body, self.key)
        work = asyncio.create_task(caller.run(self.app))
        await self.until(lambda: len(self.engine.submitted) > before or work.done())
        return caller, work

    async def leave(self, path: str, body: object, *, chunks: int = 0) -> UsageRecord:
        """Send a request, read so many pieces of its reply, and leave; return its record."""
        caller, work = await self.begin(path, body)
        for _ in range(chunks):
            await caller.chunk()
        caller.leave()
        await asyncio.gather(work, return_exceptions=True)
        return await self.last_record()

    async def last_record(self) -> UsageRecord:
        await self.until(lambda: not self.meter.num_open and not self.engine.has_work)
        known = set(self.control.records)
        while await self.meter.ship(self.control) or set(self.control.records) == known:  # noqa: ASYNC110  as above
            await asyncio.sleep(0.001)
        (new,) = set(self.control.records) - known
        return self.control.records[new]

    async def post(self, path: str, body: object) -> httpx2.Response:
        return await self.client.post(path, json=body, headers={"authorization": f"Bearer {self.key}"})

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not holds():  # noqa: ASYNC110  what is awaited happens in threads
                await asyncio.sleep(0.001)


@asynccontextmanager
async def open_house(folder: Path, *, limits: Limits, credit: int) -> AsyncIterator[House]:
    save_tokenizer(folder)
    (folder / "adapters" / "triage").mkdir(parents=True)
    (folder / "adapters" / "triage" / "adapter_config.json").write_text("{}", encoding="utf-8")
    tokenizer, clock, (_, key) = Tokenizer(folder, model_id=BASE), ManualClock(), mint_key()
    engine = FakeEngine(tokenizer)
    engine.part, engine.cached = PART, CACHED
    tenants = (TenantFacts(id=ACME, limits=limits),)
    control = FakeControl(snapshot(tenants=tenants, keys=(key_facts(key),), prices=(PRICE,)), credit=credit)
    directory, meter = directory_of(control, clock), Meter(folder / "metering", clock=SystemClock(), ship_s=0.01)
    await directory.refresh()
    await meter.recovered()
    link = EngineClient(InProcessTransport(lambda: (engine, served_for(folder))), record=meter.journal)
    await link.start()
    leased = LeasedCredit(control, clock, edge=meter.edge, lease_nanousd=1)
    access = Access(clock, is_key_needed=True, directory=directory, leased=leased)
    base = StartedBase(config=Config(), served=served_for(folder), client=link, tokenizer=tokenizer)
    app = create_app(Config(), [base], meter=meter, access=access)
    transport = httpx2.ASGITransport(app=app)  # type: ignore[arg-type]  # ASGI's types differ by library
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=PATIENCE_S) as client:
            yield House(app, client, engine, link, meter, control, key)
    finally:
        await link.close()
        app.close()
        await meter.stop(control)


Scenario = Callable[[House], Coroutine[Any, Any, None]]


@pytest.fixture
def in_house(tmp_path: Path) -> Callable[..., None]:
    def run(scenario: Scenario, *, limits: Limits | None = None, credit: int = 10**9) -> None:
        async def main() -> None:
            async with open_house(tmp_path, limits=limits or Limits(), credit=credit) as house:
                await scenario(house)

        asyncio.run(main())

    return run


def charged(record: UsageRecord) -> tuple[int, int | None, int]:
    return record.charged_prompt_tokens, record.charged_cached_tokens, record.charged_completion_tokens


@pytest.mark.parametrize("path", [GENERATE, STREAM])
@pytest.mark.parametrize("body", [{"inputs": "WAIT"}, LOADING], ids=["queued", "adapter loading"])
def test_who_leaves_before_any_of_its_prompt_is_computed_pays_nothing(
    in_house: Callable[..., None], path: str, body: dict[str, Any]
) -> None:
    async def scenario(house: House) -> None:
        record = await house.leave(path, body)
        assert (record.finish_reason, charged(record)) == ("disconnect", (0, 0, 0))

    in_house(scenario)


@pytest.mark.parametrize(
    ("path", "body", "prompts"),
    [
        (GENERATE, {"inputs": "PART of a prompt"}, 1),
        (STREAM, {"inputs": "PART of a prompt"}, 1),
        ("/v1/completions", MANY, 1),
        ("/v1/completions", MANY | {"stream": True}, 1),
        (GENERATE, BEST, 1),
        ("/v1/completions", TWO_PROMPTS, 2),
    ],
    ids=["whole", "streamed", "n", "n, streamed", "best_of", "two prompts"],
)
def test_who_leaves_within_its_prompt_pays_for_the_positions_that_were_computed(
    in_house: Callable[..., None], path: str, body: dict[str, Any], prompts: int
) -> None:
    async def scenario(house: House) -> None:
        record = await house.leave(path, body)
        assert (record.finish_reason, charged(record)) == ("disconnect", (PART * prompts, CACHED * prompts, 0))
        assert record.prompt_tokens > PART * prompts

    in_house(scenario)


POOLED: list[tuple[str, dict[str, Any], int, int]] = [
    ("/v1/embeddings", {"input": ["PART of", "one two"]}, 2, 14),
    ("/embed", {"inputs": "PART of"}, 1, 7),
    ("/classify", {"input": "PART of", "adapter_id": "triage"}, 1, 7),
    ("/classify_batch", {"inputs": ["PART of", "one two"], "adapter_id": "triage"}, 2, 14),
]


@pytest.mark.parametrize(("path", "body", "prompts", "tokens"), POOLED)
def test_a_vector_or_a_class_costs_its_prompt_once(
    in_house: Callable[..., None], path: str, body: dict[str, Any], prompts: int, tokens: int
) -> None:
    async def scenario(house: House) -> None:
        whole = json.loads(json.dumps(body).replace("PART", "part"))
        reply = await house.post(path, whole)
        assert reply.status_code == 200, reply.text
        record = await house.last_record()
        assert (record.finish_reason, record.num_sequences) == ("length", prompts)
        assert (record.prompt_tokens, record.completion_tokens) == (tokens, 0)
        assert charged(record) == (tokens, CACHED * prompts, 0)
        assert record.adapter == body.get("adapter_id")
        assert reply.headers["x-ratelimit-remaining-tokens"] == str(1000 - tokens)
        if prompts == 1:
            left = await house.leave(path, body)
            assert (left.finish_reason, charged(left)) == ("disconnect", (PART, CACHED, 0))

    in_house(scenario, limits=Limits(tokens_per_minute=1000))


def test_who_leaves_after_the_first_token_pays_for_the_prompt_and_what_came(in_house: Callable[..., None]) -> None:
    async def scenario(house: House) -> None:
        record = await house.leave(STREAM, {"inputs": "HOLD"}, chunks=3)
        assert record.charged_prompt_tokens == record.prompt_tokens
        assert 3 <= record.charged_completion_tokens <= record.completion_tokens

    in_house(scenario)


def test_a_whole_reply_whose_caller_leaves_is_charged_as_far_as_it_came(in_house: Callable[..., None]) -> None:
    async def scenario(house: House) -> None:
        caller, work = await house.begin(GENERATE, {"inputs": "HOLD"})
        await house.until(lambda: house.engine.longest >= 5)
        caller.leave()
        await asyncio.gather(work, return_exceptions=True)
        record = await house.last_record()
        assert record.finish_reason == "disconnect"
        assert record.charged_prompt_tokens == record.prompt_tokens
        assert 1 <= record.charged_completion_tokens <= record.completion_tokens

    in_house(scenario)


def test_who_reads_no_further_pays_for_all_that_was_generated_for_him(in_house: Callable[..., None]) -> None:
    async def scenario(house: House) -> None:
        caller, work = await house.begin(STREAM, {"inputs": "SAY:" + "x" * 60, "parameters": {"max_new_tokens": 40}})
        caller.may_send.clear()
        record = await house.last_record()  # while its reader stalls
        assert (record.finish_reason, record.charged_completion_tokens) == ("length", 40)
        caller.may_send.set()
        await work

    in_house(scenario)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"inputs": "PART CRASH"}, "engine_failure"),
        ({"inputs": "hi", "parameters": {"adapter_id": "fail-AdapterCorrupt"}}, "adapter_failure"),
        ({"inputs": "hi", "parameters": {"adapter_id": "fail-QueueTimeout"}}, "adapter_failure"),
    ],
)
@pytest.mark.parametrize("path", [GENERATE, STREAM])
def test_a_fault_before_the_first_token_costs_nothing(
    in_house: Callable[..., None], path: str, body: dict[str, Any], reason: str
) -> None:
    async def scenario(house: House) -> None:
        await house.post(path, body)
        house.engine.live.clear()
        record = await house.last_record()
        assert (record.finish_reason, charged(record)) == (reason, (0, 0, 0))

    in_house(scenario)


@pytest.mark.parametrize("path", [GENERATE, STREAM])
def test_a_shutdown_within_the_prompt_costs_nothing(in_house: Callable[..., None], path: str) -> None:
    async def scenario(house: House) -> None:
        _, work = await house.begin(path, {"inputs": "PART of a prompt"})
        await house.link.close()
        await work
        record = await house.last_record()
        assert (record.finish_reason, charged(record)) == ("shutdown", (0, 0, 0))

    in_house(scenario)


def test_a_route_that_the_server_ends_itself_costs_nothing(in_house: Callable[..., None]) -> None:
    """Cancelled without a caller who has left: a second signal."""

    async def scenario(house: House) -> None:
        _, work = await house.begin(GENERATE, {"inputs": "PART of a prompt"})
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        record = await house.last_record()
        assert (record.finish_reason, charged(record)) == ("shutdown", (0, 0, 0))
        assert [reason for _, reason in house.engine.aborted] == [FinishReason.SHUTDOWN]

    in_house(scenario)


def test_one_refused_sequence_of_ours_makes_the_others_free(in_house: Callable[..., None]) -> None:
    async def scenario(house: House) -> None:
        house.engine.refused_seed = 8
        body = {"model": "", "prompt": "PART of a prompt", "n": 2, "seed": 7, "max_tokens": 9}
        assert (await house.post("/v1/completions", body)).status_code == 503
        record = await house.last_record()
        assert charged(record) == (0, 0, 0)

    in_house(scenario)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"inputs": "SAY:abc"}, "end_of_sequence"),
        ({"inputs": "SAY:abcdef", "parameters": {"max_new_tokens": 2}}, "length"),
        ({"inputs": "SAY:abcdef", "parameters": {"stop": ["c"]}}, "stop_string"),
    ],
)
@pytest.mark.parametrize("path", [GENERATE, STREAM])
def test_what_ends_by_itself_is_charged_whole(
    in_house: Callable[..., None], path: str, body: dict[str, Any], reason: str
) -> None:
    async def scenario(house: House) -> None:
        assert (await house.post(path, body)).status_code == 200
        record = await house.last_record()
        assert record.finish_reason == reason
        assert charged(record) == (record.prompt_tokens, CACHED, record.completion_tokens)

    in_house(scenario)


@pytest.mark.parametrize(("path", "body"), [(GENERATE, {"inputs": ""}), (GENERATE, {"inputs": "x" * 600})])
def test_what_is_refused_at_the_gate_leaves_no_record(
    in_house: Callable[..., None], path: str, body: dict[str, Any]
) -> None:
    async def scenario(house: House) -> None:
        assert (await house.post(path, body)).status_code == 422
        assert house.meter.num_open == 0
        assert await house.meter.ship(house.control) == 0
        assert not house.control.records

    in_house(scenario)


async def leave_until_refused(house: House, body: dict[str, Any]) -> tuple[httpx2.Response, int]:
    """Leave again and again; return the refusal, and how many prompt positions were computed before it."""
    computed = 0
    for _ in range(1000):
        caller, work = await house.begin(GENERATE, body)
        if work.done():
            return await house.post(GENERATE, body), computed
        caller.leave()
        await asyncio.gather(work, return_exceptions=True)
        await house.until(lambda: not house.meter.num_open)
        computed += PART
    raise AssertionError("a thousand leavers were let in")


def test_leaving_a_thousand_times_computes_no_more_than_the_tokens_of_a_minute(in_house: Callable[..., None]) -> None:
    async def scenario(house: House) -> None:
        body = {"inputs": "PART of a prompt", "parameters": {"max_new_tokens": 4}}
        refused, computed = await leave_until_refused(house, body)
        assert refused.status_code == 429
        assert "120 tokens per minute" in refused.json()["error"]
        worst = len(house.engine.submitted[0].tokens) + 4
        assert 120 - worst < computed <= 120

    in_house(scenario, limits=Limits(tokens_per_minute=120))


def test_leaving_again_and_again_spends_the_credit_at_the_prices_of_a_whole_request(
    in_house: Callable[..., None],
) -> None:
    each = (PART - CACHED) * 10 + CACHED * 1

    async def scenario(house: House) -> None:
        body = {"inputs": "PART of a prompt", "parameters": {"max_new_tokens": 4}}
        refused, computed = await leave_until_refused(house, body)
        assert (refused.status_code, refused.json()["error_type"]) == (429, "rate_limited")
        assert "the credit is used up" in refused.json()["error"]
        worst = 10 * len(house.engine.submitted[0].tokens) + 4 * 30
        assert 1000 - worst < computed // PART * each <= 1000

    in_house(scenario, credit=1000)
