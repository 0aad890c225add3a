"""Requests with more sequences than they have places: order, bounds, leaving, limits and refusals."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from manylora.clock import ManualClock
from manylora.engine.request import Request
from manylora.errors import InvalidParameter, Overloaded
from manylora.ids import TenantId
from manylora.server.access.limits import Limiter
from manylora.server.generation.admission import MAX_SEQUENCES, MAX_WAITING_SIZE, AdmissionControl
from manylora.tenancy import Limits
from tests.server.asgi_client import calling
from tests.server.conftest import House
from tests.server.metering.test_early_leavers import House as MeteredHouse
from tests.server.metering.test_early_leavers import in_house as in_metered_house  # noqa: F401  a fixture

InHouse = Callable[..., None]
ACME = TenantId("acme")


def most_at_once(house: House) -> Callable[[], int]:
    """Return the count of the most sequences that the engine has had at one time from now on."""
    submit, most = house.engine.submit, 0

    def counted(request: Request) -> None:
        nonlocal most
        submit(request)
        most = max(most, len(house.engine.live))

    house.engine.submit = counted  # type: ignore[method-assign]  # of this house
    return lambda: most


def many(path: str, count: int) -> dict[str, Any]:
    """Return a body with inputs of 1, 2, … 7, 1, … tokens."""
    texts = ["x" * (1 + index % 7) for index in range(count)]
    named = {"adapter_id": "triage"} if path.startswith("/classify") else {}
    return {"inputs" if path == "/classify_batch" else "input": texts, **named}


@pytest.mark.parametrize(
    ("path", "entries"), [("/v1/embeddings", "data"), ("/classify", "data"), ("/classify_batch", "")]
)
def test_more_inputs_than_places_are_all_served_in_order(in_house: InHouse, path: str, entries: str) -> None:
    async def scenario(house: House) -> None:
        most = most_at_once(house)
        reply = await house.post(path, many(path, 60))
        assert reply.status_code == 200, reply.text
        found = reply.json()[entries] if entries else reply.json()
        assert len(found) == 60
        if path == "/v1/embeddings":
            assert [entry["embedding"][0] for entry in found] == [1 + index % 7 for index in range(60)]
        assert [len(request.tokens) for request in house.engine.submitted] == [1 + index % 7 for index in range(60)]
        assert most() <= 4
        assert (await house.post("/v1/embeddings", {"input": "Hi"})).status_code == 200

    in_house(scenario, max_concurrent_requests=8)


def test_the_longest_list_of_inputs_is_served_by_default(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post("/v1/embeddings", {"input": ["a"] * 2047 + ["abc"], "encoding_format": "base64"})
        assert reply.status_code == 200, reply.text
        assert len(reply.json()["data"]) == 2048
        assert reply.json()["usage"] == {"prompt_tokens": 2050, "total_tokens": 2050}

    in_house(scenario)


def test_inputs_with_too_many_tokens_in_all_are_refused_by_the_limit(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post("/v1/embeddings", {"input": [[7] * 500] * 601})
        assert reply.status_code == 400
        assert reply.json()["error"]["message"] == "`input` may have at most 300000 tokens in all"
        assert not house.engine.submitted

    in_house(scenario)


@pytest.mark.parametrize("is_stream", [False, True])
def test_choices_beyond_the_places_follow_in_their_order(in_house: InHouse, is_stream: bool) -> None:
    prompts = [f"SAY:{word}" for word in ("one", "two", "three")]

    async def scenario(house: House) -> None:
        most = most_at_once(house)
        body = {"prompt": prompts, "n": 2, "stream": is_stream}
        reply = await house.post("/v1/completions", body)
        assert reply.status_code == 200, reply.text
        texts = [""] * 6
        if is_stream:
            *events, last = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
            assert last == "[DONE]"
            choices = [choice for event in events for choice in json.loads(event)["choices"]]
            assert sum(choice["finish_reason"] == "stop" for choice in choices) == 6
        else:
            choices = reply.json()["choices"]
        for choice in choices:
            texts[choice["index"]] += choice["text"]
        assert texts == ["one", "one", "two", "two", "three", "three"]
        assert most() <= 2

    in_house(scenario, max_concurrent_requests=4)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings"])
def test_no_sequence_begins_after_the_caller_has_left(in_house: InHouse, path: str) -> None:
    async def scenario(house: House) -> None:
        body = {"prompt" if path == "/v1/completions" else "input": ["WAIT"] * 20}
        async with calling(house.app, path, body):
            await house.until(lambda: len(house.engine.submitted) == 4)
        await house.until(lambda: not house.engine.has_work)
        assert len(house.engine.submitted) == len(house.engine.aborted) == 4

    in_house(scenario, max_concurrent_requests=8)


def test_a_failure_ends_the_sequences_that_wait(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        house.engine.refused_seed = 9
        body = {"prompt": "WAIT", "n": 8, "seed": 7}
        reply = await house.post("/v1/completions", body)
        assert reply.status_code == 503
        assert len(house.engine.submitted) == 4

    in_house(scenario, max_concurrent_requests=8)


def test_more_sequences_than_any_request_may_have_are_refused_by_the_limit(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post("/v1/completions", {"prompt": ["a"] * 300, "n": 8})
        assert reply.status_code == 400
        told = f"the request asks for 2400 sequences; the limit is {MAX_SEQUENCES}"
        assert reply.json()["error"]["message"] == told
        assert not house.engine.submitted

    in_house(scenario)


def test_a_request_beyond_the_tenants_sequences_at_one_time_is_served_and_recorded(
    in_metered_house: InHouse,  # noqa: F811  the fixture
) -> None:
    async def scenario(house: MeteredHouse) -> None:
        reply = await house.post("/v1/completions", {"model": "", "prompt": ["SAY:a", "SAY:b"], "n": 3})
        assert reply.status_code == 200, reply.text
        whole = await house.last_record()
        assert (whole.num_sequences, whole.charged_prompt_tokens) == (6, 10)
        assert whole.charged_completion_tokens == whole.completion_tokens == 12
        left = await house.leave("/v1/completions", {"model": "", "prompt": ["PART of", "PART"], "n": 3})
        assert (left.finish_reason, left.prompt_tokens, left.charged_prompt_tokens) == ("disconnect", 7, 6)
        assert (await house.post("/v1/completions", {"model": "", "prompt": "SAY:a", "n": 2})).status_code == 200

    in_metered_house(scenario, limits=Limits(concurrent_streams=2))


def test_a_wave_has_the_places_that_are_left_for_its_tenant() -> None:
    control = AdmissionControl(8)
    assert [control.wave_of(ACME, wanted) for wanted in (0, 1, 3, 100)] == [0, 1, 3, 4]
    assert control.wave_of(ACME, 100, is_batch=True) == 4
    with control.admit(ACME, 4), control.admit(ACME, 3):
        assert control.wave_of(ACME, 100) == 1
        with control.admit(ACME, 1):
            assert control.wave_of(ACME, 100) == 1
            with pytest.raises(Overloaded), control.admit(ACME, 1):
                pass
    assert AdmissionControl(1).wave_of(ACME, 2) == 1
    assert AdmissionControl(512, max_waiting=6).wave_of(ACME, 100) == 3


def test_the_prompts_that_wait_for_places_are_bounded_and_shared() -> None:
    control, other = AdmissionControl(8), TenantId("other")
    with pytest.raises(InvalidParameter, match=f"the limit is {MAX_WAITING_SIZE}"), control.hold_prompts(ACME, 2**24):
        pass
    with control.hold_prompts(ACME, MAX_WAITING_SIZE):
        with pytest.raises(Overloaded), control.hold_prompts(ACME, 1000):
            pass
        with control.hold_prompts(other, 1000):
            pass
    with control.hold_prompts(ACME, MAX_WAITING_SIZE):
        pass


def test_only_requests_beyond_their_places_count_their_prompts(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        with house.app.admission.hold_prompts(TenantId("default"), MAX_WAITING_SIZE):
            assert (await house.post("/v1/embeddings", {"input": ["Hi"] * 4})).status_code == 200
            assert (await house.post("/v1/embeddings", {"input": ["Hi"] * 5})).status_code == 503
        assert (await house.post("/v1/embeddings", {"input": ["Hi"] * 5})).status_code == 200

    in_house(scenario, max_concurrent_requests=8)


def test_a_request_has_the_streams_that_its_limits_leave() -> None:
    limiter, held = Limiter(ManualClock()), {"tenant": Limits(concurrent_streams=4), "key": Limits()}
    assert [limiter.streams_left(held, wanted) for wanted in (0, 1, 9)] == [0, 1, 4]
    assert limiter.streams_left(held, 9, is_batch=True) == 2
    limiter.enter(held, streams=3)
    assert limiter.streams_left(held, 9) == 1
    limiter.enter(held, streams=1)
    assert limiter.streams_left(held, 9) == 1  # which `enter` refuses
