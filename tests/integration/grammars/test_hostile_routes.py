"""Schemas over HTTP that are made to cost much: each gets one refusal or reply, and a bystander its whole stream."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from manylora.bench.faults.tiny_base import write_tiny_base
from tests.integration.grammars.test_hostile_grammars import doubling, nested
from tests.support.serving import make_cache, running_server

pytestmark = pytest.mark.long
OK, BAD_REQUEST, TOO_LARGE, UNAVAILABLE = 200, 400, 413, 503
HOSTILE: dict[str, dict[str, Any]] = {
    "deep": {"guided_json": nested(200)},
    "enum of 10 MB": {"guided_json": {"enum": ["x" * 100 + str(number) for number in range(100_000)]}},
    "regex": {"guided_regex": "((a{1,1000}){1,1000}){1,1000}"},
    "pattern": {"guided_json": {"type": "string", "pattern": "^((x?){500}y){500}$"}},
    "references": {"guided_json": doubling(40)},
    "grammar": {"guided_grammar": "start: " + "(" * 4000 + '"a"' + ")" * 4000},
    "properties": {"guided_json": {"type": "object", "minProperties": 9, "maxProperties": 100_000_000}},
}
EXPECTED = {
    "enum of 10 MB": (TOO_LARGE,),  # of a body, before a schema is read
    **dict.fromkeys(("regex", "pattern", "references", "properties"), (OK, BAD_REQUEST)),  # cheap to the compiler
}
BYSTANDER = {"prompt": "bystander", "max_tokens": 90, "temperature": 1.0, "seed": 5, "stream": True, "ignore_eos": True}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    folder = tmp_path_factory.mktemp("hostile-routes")
    base = write_tiny_base(folder / "tiny")
    settings = {
        "model.cache_dir": make_cache(folder / "cache"),
        "model.kernels": "native",
        "model.threads": 1,
        "engine.kv_bytes": 1 << 21,
    }
    flags = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    with (
        running_server(folder / "log", "--base", str(base), *flags) as url,
        httpx2.Client(base_url=url, timeout=120) as client,
    ):
        yield client


def streamed(client: httpx2.Client) -> str:
    text = client.post("/v1/completions", json=BYSTANDER).raise_for_status().text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return "".join(choice["text"] for event in events for choice in event["choices"])


def answered(client: httpx2.Client, form: dict[str, Any]) -> httpx2.Response:
    """The answer to a hostile form. A trial that got no processor is repeated, as its answer says."""
    for _ in range(20):
        reply = client.post("/v1/completions", json={"prompt": "x", "max_tokens": 8, **form})
        if reply.status_code != UNAVAILABLE:
            return reply
    raise AssertionError("no trial got a processor")


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_form_changes_no_token_of_a_bystander(client: httpx2.Client, name: str) -> None:
    alone = streamed(client)
    assert alone
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(streamed, client)
        reply = answered(client, HOSTILE[name])
        assert reply.status_code in EXPECTED.get(name, (BAD_REQUEST,)), reply.text[:300]
        assert len(reply.content) < 2000
        assert beside.result() == alone
    assert client.get("/health").is_success
