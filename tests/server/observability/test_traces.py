"""Traces: one span a request at a collector, without texts; off by default, refused without their library."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from manylora.config.groups.server import ServerConfig
from manylora.config.settings import load_config
from manylora.errors import ConfigInvalid
from manylora.server.observability.tracing import open_tracer, refuse_missing_library
from tests.server.conftest import House
from tests.server.observability.collector import attributes, collecting
from tests.support.paths import ROOT

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PROMPT = "a secret prompt of a customer"


def test_a_span_has_the_times_and_tokens_of_its_request(in_house: Callable[..., None]) -> None:
    headers: dict[str, str] = {}

    async def scenario(house: House) -> None:
        reply = await house.post(
            "/v1/completions",
            {"model": "triage", "prompt": PROMPT, "max_tokens": 3, "ignore_eos": True},
            headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "of-the-test"},
        )
        assert reply.status_code == 200, reply.text
        headers.update(reply.headers)
        assert (await house.client.get("/health")).status_code == 200  # a quiet route has no span

    with collecting() as collector:
        in_house(scenario, trace_url=collector.url)
    [span] = collector.spans
    found = attributes(span)
    assert span.name == "POST /v1/completions"
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert found["http.response.status_code"] == 200
    assert found["manylora.request_id"] == "of-the-test"
    assert found["manylora.adapter"] == "triage"
    assert found["gen_ai.usage.output_tokens"] == 3
    assert found["gen_ai.usage.input_tokens"] > 0
    assert found["gen_ai.response.finish_reasons"] == ["length"]
    assert {"manylora.queue_ms", "manylora.adapter_load_ms", "manylora.inference_ms"} <= found.keys()
    duration_ms = 1e-6 * (span.end_time_unix_nano - span.start_time_unix_nano)
    assert 0 < found["manylora.time_to_first_token_ms"] <= duration_ms
    [event] = span.events
    assert event.name == "first_token"
    assert span.start_time_unix_nano < event.time_unix_nano <= span.end_time_unix_nano
    assert {each["service.name"] for each in collector.resources} == {"manylora"}
    assert all(PROMPT.encode() not in body for body in collector.bodies)


def test_a_refused_request_has_a_span_with_its_code(in_house: Callable[..., None]) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 10**9})
        assert reply.status_code == 400

    with collecting() as collector:
        in_house(scenario, trace_url=collector.url)
    [span] = collector.spans
    assert attributes(span)["error.type"] == "context_length_exceeded"
    assert attributes(span)["http.response.status_code"] == 400
    assert len(span.trace_id) == 16
    assert not span.parent_span_id
    assert not span.events


@pytest.mark.parametrize(
    ("flags", "share", "expected"), [("00", 1.0, 0), ("01", 0.0, 1), (None, 0.0, 0), (None, 1.0, 1)]
)
def test_the_callers_decision_counts_before_the_share(
    in_house: Callable[..., None], flags: str | None, share: float, expected: int
) -> None:
    async def scenario(house: House) -> None:
        headers = {} if flags is None else {"traceparent": f"00-{TRACE}-{PARENT}-{flags}"}
        await house.post("/generate", {"inputs": PROMPT, "parameters": {"max_new_tokens": 1}}, headers=headers)

    with collecting() as collector:
        in_house(scenario, trace_url=collector.url, trace_share=share)
    assert len(collector.spans) == expected


def test_traces_are_off_by_default() -> None:
    from manylora.clock import SystemClock

    assert open_tracer(ServerConfig(), SystemClock()) is None


def test_without_the_library_the_setting_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_missing_library(ServerConfig(trace_url="http://127.0.0.1:4318/v1/traces"))
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    for name in [each for each in sys.modules if each.startswith("opentelemetry.")]:
        monkeypatch.delitem(sys.modules, name)
    refuse_missing_library(ServerConfig())
    with pytest.raises(ConfigInvalid, match=r"server\.trace_url .*manylora\[otel\]"):
        refuse_missing_library(ServerConfig(trace_url="http://127.0.0.1:4318/v1/traces"))


@pytest.mark.parametrize("value", ["127.0.0.1:4318", "grpc://127.0.0.1:4317"])
def test_an_address_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"server\.trace_url"):
        load_config(flags={"server.trace_url": value}, environ={})


def test_the_library_is_imported_in_one_file_and_at_its_use() -> None:
    importing = [
        path
        for path in (ROOT / "src").rglob("*.py")
        if "import opentelemetry" in path.read_text() or "from opentelemetry" in path.read_text()
    ]
    assert [path.name for path in importing] == [Path("tracing.py").name]
