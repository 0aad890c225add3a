"""What holds on every route: errors in the right dialect, paths, headers, bounds, and callers who leave."""

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from manylora import errors
from manylora.adapter_state import LOAD_BUCKETS_S, LoadTimes
from manylora.clock import ManualClock
from manylora.engine.events import FinishReason
from manylora.server.observability.metrics import EdgeNow, Meters
from tests.conftest import long
from tests.server.asgi_client import calling
from tests.server.conftest import House
from tests.support.waiting import PATIENCE_S

InHouse = Callable[..., None]


def kinds(root: type[errors.ManyloraError] = errors.ManyloraError) -> Iterator[type[errors.ManyloraError]]:
    for child in root.__subclasses__():
        if child.__module__.startswith("manylora.errors."):
            yield child
        yield from kinds(child)


@pytest.mark.parametrize("kind", list(kinds()), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("is_stream", [False, *long(True)])
def test_every_error_is_told_by_its_row_in_both_dialects(
    in_house: InHouse, kind: type[errors.ManyloraError], is_stream: bool
) -> None:
    async def scenario(house: House) -> None:
        name, row = f"fail-{kind.__name__}", kind.row
        path = "/generate_stream" if is_stream else "/generate"
        native = await house.post(path, {"inputs": "x", "parameters": {"adapter_id": name}})
        assert native.status_code == row.native_status
        assert set(native.json()) == {"error", "error_type", "code"}
        assert (native.json()["error_type"], native.json()["code"]) == (row.native_type, row.code)
        assert native.headers["content-type"] == "application/json"
        assert native.headers.get("retry-after") == (None if row.retry_after_s is None else str(row.retry_after_s))
        openai = await house.post("/v1/completions", {"model": name, "prompt": "x", "stream": is_stream})
        error = openai.json()["error"]
        assert openai.status_code == row.openai_status
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == row.openai_type
        assert error["code"] == ("model_not_found" if issubclass(kind, errors.AdapterNotFound) else row.code)

    in_house(scenario)


@pytest.mark.parametrize(
    ("method", "path", "content", "content_type", "status", "code"),
    [
        ("POST", "/generate", b"{", "application/json", 400, "invalid_json"),
        ("POST", "/generate", b"\xff", "application/json", 400, "invalid_json"),
        ("POST", "/generate", b'{"inputs": NaN}', "application/json", 400, "invalid_json"),
        ("POST", "/generate", b"[" * 9999 + b"]" * 9999, "application/json", 400, "invalid_json"),
        ("POST", "/generate", b"[]", "application/json", 422, "invalid_parameter"),
        ("POST", "/generate", b"{}", "application/json", 422, "invalid_parameter"),
        ("POST", "/generate", b'{"inputs": 7}', "application/json", 422, "invalid_parameter"),
        ("POST", "/generate", b"", "application/json", 400, "invalid_json"),
        ("POST", "/generate", b"a=b", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        ("POST", "/generate", b"{}", None, 415, "unsupported_media_type"),
        ("POST", "/generate", b"x" * 5000, "application/json", 413, "body_too_large"),
        ("GET", "/generate", b"", None, 405, "method_not_allowed"),
        ("PUT", "/", b"{}", "application/json", 405, "method_not_allowed"),
        ("GET", "/nothing", b"", None, 404, "unknown_route"),
        ("DELETE", "/v1/models", b"", None, 405, "method_not_allowed"),
        ("GET", "/v1/nothing", b"", None, 404, "unknown_route"),
        ("POST", "/v1/completions", b"{", "application/json; charset=utf-8", 400, "invalid_json"),
        ("POST", "/v1/completions", b"{}", "text/plain", 415, "unsupported_media_type"),
        ("POST", "/v1/embeddings", b"{}", "application/json", 400, "invalid_parameter"),
        ("POST", "/embed", b'{"inputs": ""}', "application/json", 422, "invalid_parameter"),
        ("POST", "/classify", b'{"inputs": ""}', "application/json", 422, "invalid_parameter"),
        ("POST", "/classify_batch", b'{"inputs": "x"}', "application/json", 422, "invalid_parameter"),
        ("GET", "/v2/deployments", b"", None, 501, "not_part_of_this_server"),
        ("POST", "/v2/finetuning/jobs", b"{}", "application/json", 501, "not_part_of_this_server"),
        ("GET", "/users/current", b"", None, 501, "not_part_of_this_server"),
        ("GET", "/acme/deployments/v2/llms/other/info", b"", None, 404, "deployment_not_found"),
        ("GET", "/acme/deployments/v2/llms/tiny/admin/tenants", b"", None, 404, "unknown_route"),
        ("POST", "/acme/deployments/v2/llms/tiny/v2/repos", b"{}", "application/json", 404, "unknown_route"),
        ("GET", "/acme/deployments/v2/llms/tiny/v1/account", b"", None, 404, "unknown_route"),
        ("GET", "/acme/deployments/v2/llms/tiny/v2/datasets", b"", None, 404, "unknown_route"),
        ("GET", "/llms/deployments/v2/llms/tiny/info", b"", None, 404, "deployment_not_found"),
        ("GET", "/acme/deployments/v2/llms/other//v1/models", b"", None, 404, "deployment_not_found"),
        ("POST", "/acme/deployments/v2/llms/tiny/v1/completions", b"{}", "text/plain", 415, "unsupported_media_type"),
    ],
)
def test_every_refusal_is_json_in_the_dialect_of_its_path(
    in_house: InHouse, method: str, path: str, content: bytes, content_type: str | None, status: int, code: str
) -> None:
    async def scenario(house: House) -> None:
        headers = {"content-type": content_type} if content_type else {}
        reply = await house.client.request(method, path, content=content, headers=headers)
        assert reply.status_code == status
        assert reply.headers["content-type"] == "application/json"
        assert reply.headers["x-request-id"]
        body = reply.json()
        assert (body["error"]["code"] if "/v1/" in path else body["code"]) == code
        if status == 405:
            assert reply.headers["allow"]

    in_house(scenario, max_body_bytes=25_000 if len(content) > 6000 else 4096)


def test_slashes_make_no_difference(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for path in ("/generate/", "//generate", "/generate//", "/v1//completions/"):
            reply = await house.post(path, {"prompt" if "v1" in path else "inputs": "Hi"})
            assert reply.status_code == 200

    in_house(scenario)


def test_a_deployment_path_is_the_same_route_for_that_tenant(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        prefix = "/acme/deployments/v2/llms/tiny"
        assert (await house.post(prefix, {"inputs": "Hi"})).json()[0]["generated_text"] == "Hello from base."
        assert (await house.post(f"{prefix}/generate", {"inputs": "Hi"})).status_code == 200
        assert house.engine.submitted[-1].flow == house.engine.submitted[-1].salt == "acme"
        assert (await house.client.get(f"{prefix}/health")).json() == {"status": "ok"}
        await house.post("/generate", {"inputs": "Hi"})
        assert house.engine.submitted[-1].flow == "default"

    in_house(scenario)


def test_ids_are_on_every_reply(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        mine = {"x-request-id": "abc-1", "x-b3-traceid": "t1"}
        for reply in (
            await house.post("/generate", {"inputs": "Hi"}, headers=mine),
            await house.client.get("/nothing", headers=mine),
        ):
            assert reply.headers["x-request-id"] == "abc-1"
            assert reply.headers["x-b3-traceid"] == "t1"
        for parent, told in ((f"00-{'4a' * 16}-{'0b' * 8}-01", "4a" * 16), ("00-none", None)):
            reply = await house.client.get("/health", headers={"traceparent": parent})
            assert reply.headers.get("x-b3-traceid") == told
        minted = await house.post("/generate", {"inputs": "Hi"}, headers={"x-request-id": "a b"})
        assert len(minted.headers["x-request-id"]) == 32

    in_house(scenario)


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/v1/completions"])
@pytest.mark.parametrize("prompt", ["HOLD", "WAIT"])
def test_a_caller_who_leaves_aborts_the_work(in_house: InHouse, path: str, prompt: str) -> None:
    async def scenario(house: House) -> None:
        body = {"prompt": prompt, "n": 2, "max_tokens": 400} if "v1" in path else {"inputs": prompt}
        async with calling(house.app, path, body):
            await house.until(lambda: bool(house.engine.submitted))
        await house.until(lambda: not house.engine.has_work)
        assert len(house.engine.aborted) == len(house.engine.submitted)
        assert {reason for _, reason in house.engine.aborted} == {FinishReason.DISCONNECT}

    in_house(scenario)


def test_a_full_house_says_so(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        async with calling(house.app, "/generate", {"inputs": "WAIT"}):
            await house.until(lambda: bool(house.engine.submitted))
            reply = await house.post("/generate", {"inputs": "Hi"})
            assert reply.status_code == 503
            assert reply.json()["error"] == "Model is overloaded"
            assert reply.json()["error_type"] == "overloaded"
            assert reply.headers["retry-after"] == "1"
            openai = await house.post("/v1/completions", {"prompt": "Hi"})
            assert openai.json()["error"]["code"] == "overloaded"
        await house.until(lambda: not house.app.admission.num_sequences)
        assert (await house.post("/generate", {"inputs": "Hi"})).status_code == 200
        many = await house.post("/v1/completions", {"prompt": ["a", "b"]})
        assert many.status_code == 200  # one after the other

    in_house(scenario, max_concurrent_requests=1)


def test_a_flood_leaves_places_for_others(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        path, half = "/flood/deployments/v2/llms/tiny/v1/completions", {"prompt": 4 * ["HOLD"]}
        async with calling(house.app, path, half), calling(house.app, path, half):
            await house.until(lambda: len(house.engine.submitted) == 8)
            refused = await house.post("/flood/deployments/v2/llms/tiny/v1/completions", {"prompt": "Hi"})
            assert refused.status_code == 503
            quiet = await house.post("/quiet/deployments/v2/llms/tiny/v1/completions", {"prompt": "Hi"})
            assert quiet.status_code == 200
        await house.until(lambda: not house.app.admission.num_sequences)

    in_house(scenario, max_concurrent_requests=8)


def test_a_storm_of_callers_who_leave_at_random_leaves_nothing_behind(in_house: InHouse) -> None:
    dice = random.Random(7)
    prompts = ["HOLD", "WAIT", "Hi", "SAY:" + "x" * 40]

    async def one(house: House) -> None:
        path = dice.choice(["/generate", "/generate_stream", "/v1/completions", "/"])
        prompt, adapter = dice.choice(prompts), dice.choice([None, "triage", "missing"])
        is_stream = dice.random() < 0.5
        body: dict[str, object] = {"prompt": prompt, "model": adapter, "stream": is_stream, "n": 2}
        if "v1" not in path:
            body = {"inputs": prompt, "parameters": {"adapter_id": adapter, "max_new_tokens": 60}}
            body |= {"stream": is_stream} if path == "/" else {}
        async with calling(house.app, path, body):
            await asyncio.sleep(dice.random() * 0.05)

    async def scenario(house: House) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(120):
                group.create_task(one(house))
                await asyncio.sleep(dice.random() * 0.002)
        assert (await house.post("/generate", {"inputs": "Hi"})).json() == {"generated_text": "Hello from base."}

    in_house(scenario, max_concurrent_requests=60)


def test_an_engine_that_dies_answers_everyone_and_is_unhealthy(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post("/generate", {"inputs": "CRASH"})
        assert reply.status_code == 500
        assert reply.json()["error"] == "Request failed during generation: told to crash"
        assert (await house.client.get("/health")).status_code == 503
        house.engine.live.clear()

    in_house(scenario)


def test_draining_refuses_the_new_and_finishes_the_old(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        async with calling(house.app, "/generate", {"inputs": "SAY:" + "x" * 50}) as caller:
            await house.until(lambda: bool(house.engine.submitted))
            house.app.admission.is_draining = True
            assert (await house.client.get("/health")).status_code == 503
            refused = await house.post("/generate", {"inputs": "Hi"})
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            assert refused.json()["error_type"] == "healthcheck"
            assert b"x" * 50 in await caller.rest()
        async with asyncio.timeout(PATIENCE_S):
            await house.app.admission.emptied()

    in_house(scenario)


def test_info_and_health_have_the_ranks_of_a_base(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        assert (await house.client.get("/info")).json()["tensor_parallel"] == 2
        assert (await house.client.get("/health")).json() == {"status": "ok", "ranks": {"tiny": 2}}
        numbers = (await house.client.get("/metrics")).text
        assert "manylora_ranks_up 1.0" in numbers  # what the engine says
        assert "manylora_collective_seconds 0.0" in numbers

    in_house(scenario, served_as={"tensor_parallel": 2})


def test_the_facts(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for path in ("/health", "/", "/ping", "/startup"):
            assert (await house.client.get(path)).json() == {"status": "ok"}
        info = (await house.client.get("/info")).json()
        assert (info["model_id"], info["max_input_length"], info["max_total_tokens"]) == ("tiny", 511, 512)
        tokens = (await house.post("/tokenize", {"inputs": "ab"})).json()
        assert tokens[1] == {"id": 98, "text": "b", "start": 1, "stop": 2}
        for path in ("/api-doc/openapi.json", "/openapi.json"):
            assert (await house.client.get(path)).json()["openapi"] == "3.1.0"
        assert (await house.client.get("/docs")).status_code == 200
        assert (await house.client.head("/health")).content == b""

    in_house(scenario)


def test_a_request_that_waits_for_nothing_makes_the_server_unhealthy(in_house: InHouse) -> None:
    clock = ManualClock()

    async def scenario(house: House) -> None:
        async with calling(house.app, "/generate", {"inputs": "WAIT"}):
            await house.until(lambda: bool(house.engine.submitted))
            assert (await house.client.get("/health")).status_code == 200
            await house.client.get("/metrics")  # the engine tells its numbers, which begins the time without progress
            clock.advance(31)
            reply = await house.client.get("/health")
            assert reply.status_code == 503
            assert reply.json()["error_type"] == "healthcheck"

    in_house(scenario, link_clock=clock, health_stall_s=30.0)


@pytest.mark.parametrize(("load_timeout_s", "status"), [(60.0, 503), (120.0, 200)])
def test_a_loader_that_stands_still_beyond_its_limit_makes_the_server_unhealthy_though_others_are_answered(
    in_house: InHouse, load_timeout_s: float, status: int
) -> None:
    clock = ManualClock()

    async def scenario(house: House) -> None:
        async with (
            calling(house.app, "/generate_stream", {"inputs": "HOLD"}),
            calling(house.app, "/generate", {"inputs": "LOAD"}),
        ):
            await house.until(lambda: len(house.engine.submitted) == 2)
            await house.client.get("/metrics")  # the engine tells its numbers
            clock.advance(100)
            await house.until(lambda: house.link.health().stalled_s == 0)  # the stream goes on
            assert (await house.client.get("/health")).status_code == status
        await house.until(lambda: house.link.health().in_flight == 0)
        assert (await house.client.get("/health")).status_code == 200

    in_house(scenario, link_clock=clock, health_stall_s=30.0, load_timeout_s=load_timeout_s)


def test_names_that_do_not_exist_use_up_no_label(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for number in range(5):
            await house.post("/generate", {"inputs": "Hi", "parameters": {"adapter_id": f"missing-{number}"}})
        await house.client.get("/health")
        text = (await house.client.get("/metrics")).text
        assert '\nmanylora_requests{adapter="other",reason="adapter_failure"} 5.0' in text
        assert "missing-" not in text
        assert 'adapter="base"' not in text  # the health check's own token is nobody's traffic

    in_house(scenario)


def test_a_whole_reply_fails_as_soon_as_one_of_its_sequences_has(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        house.engine.refused_seed = 8
        body = {"prompt": "HOLD", "max_tokens": 400, "n": 2, "seed": 7, "temperature": 1.0}
        reply = await house.post("/v1/completions", body)
        assert reply.status_code == 503  # the other sequence never ends

    in_house(scenario)


def test_metrics_count_what_happened(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        await house.post("/generate", {"inputs": "Hi", "parameters": {"adapter_id": "triage"}})
        await house.post("/generate", {"inputs": "Hi", "parameters": {"adapter_id": "missing"}})
        text = (await house.client.get("/metrics")).text
        assert "\nlorax_request_count 2.0" in text
        assert "\nlorax_request_success 1.0" in text
        assert '\nlorax_request_failure{err="adapter_not_found"} 1.0' in text
        assert '\nmanylora_requests{adapter="triage",reason="end_of_sequence"} 1.0' in text
        assert '\nmanylora_tokens{adapter="triage",kind="completion"} 19.0' in text
        assert "\nlorax_queue_length 0.0" in text
        assert "\nlorax_request_duration_count 2.0" in text
        as_json = (await house.client.get("/metrics?format=json")).json()
        assert as_json["lorax_request_count"] == {
            "type": "unknown",
            "data": [{"key": "lorax_request_count", "value": 2.0}],
        }

    in_house(scenario)


def test_metrics_tell_the_tiers_apart(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        house.engine.store = replace(
            house.engine.store,
            bank_bytes_used=7,
            disk_bytes_used=9,
            on_device=2,
            on_disk=3,
            pinned=1,
            evictions=4,
            disk_evictions=5,
            loaded_bytes=200,
            reloaded_bytes=50,
        )
        lines = (await house.client.get("/metrics")).text.splitlines()
        for line in (
            'manylora_adapter_bytes{tier="device"} 7.0',
            'manylora_adapter_bytes{tier="host"} 0.0',
            'manylora_adapter_bytes{tier="disk"} 9.0',
            'manylora_adapters{tier="device"} 2.0',
            'manylora_adapters{tier="host"} 0.0',
            'manylora_adapters{tier="disk"} 3.0',
            "manylora_adapters_pinned 1.0",
            'manylora_adapter_evictions{tier="device"} 4.0',
            'manylora_adapter_evictions{tier="disk"} 5.0',
            "manylora_adapter_loaded_bytes 200.0",
            "manylora_adapter_reloaded_bytes 50.0",
            "manylora_adapter_thrash_ratio 0.25",
        ):
            assert line in lines

    in_house(scenario)


def test_load_times_are_a_histogram_that_prometheus_reads(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        counts = [0] * (len(LOAD_BUCKETS_S) + 1)
        counts[3], counts[9], counts[-1] = 2, 1, 1
        times = LoadTimes(source="hub", tier="disk", counts=tuple(counts), total_s=75.5)
        house.engine.store = replace(house.engine.store, load_times=(times, replace(times, tier="device")))
        text = (await house.client.get("/metrics")).text
        families = {family.name: family for family in text_string_to_metric_families(text)}
        family = families["manylora_adapter_load_seconds"]
        assert family.type == "histogram"
        samples = {
            (sample.name.rsplit("_", 1)[1], sample.labels.get("le")): sample.value
            for sample in family.samples
            if sample.labels["source"] == "hub" and sample.labels["tier"] == "disk"
        }
        assert samples["bucket", "0.005"] == 0
        assert samples["bucket", "0.01"] == samples["bucket", "0.5"] == 2
        assert samples["bucket", "1.0"] == samples["bucket", "60.0"] == 3
        assert samples["bucket", "+Inf"] == samples["count", None] == 4
        assert samples["sum", None] == 75.5

    in_house(scenario)


def test_an_engine_that_has_told_nothing_shows_nothing() -> None:
    text = Meters().exposition({}, EdgeNow(in_flight=0, is_up={}, shows_private=True)).decode()
    assert "# TYPE manylora_adapter_load_seconds histogram" in text
    assert "\nmanylora_adapter" not in text
