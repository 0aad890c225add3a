"""The compiled grammars of a tenant that is closed while a real server serves it and another tenant."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from manylora.bench.faults.tiny_base import write_tiny_base
from tests.support.serving import make_cache, running_server
from tests.support.waiting import PATIENCE_S, wait_for

pytestmark = pytest.mark.long
STREAMED = 60
"""Repetitions of a pattern of two bytes, each of which is a token of the tiny base."""


@dataclass(frozen=True)
class Caller:
    """A client with a key."""

    client: httpx2.Client
    key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    def post(self, path: str, body: object = None) -> httpx2.Response:
        return self.client.post(path, json=body, headers=self.headers).raise_for_status()

    def tenant(self, name: str) -> "Caller":
        """A new tenant's own caller; this one is the operator's."""
        made = self.post("/admin/tenants", {"id": name, "credit_nanousd": 10**9})
        return Caller(self.client, made.json()["key"]["key"])

    def ask(self, pattern: str) -> str:
        reply = self.post("/v1/completions", {"prompt": "x", "max_tokens": 8, "guided_regex": pattern})
        return str(reply.json()["choices"][0]["text"])

    def grammars(self) -> dict[str, float]:
        """The metrics of grammars, which a busy machine tells a moment late."""
        found = re.findall(
            r"^manylora_(grammar\S*) (\S+)$", self.client.get("/metrics", headers=self.headers).text, re.MULTILINE
        )
        return {name: float(value) for name, value in found}


def test_the_grammars_of_a_closed_tenant_go_and_those_of_others_and_of_its_streams_stay(tmp_path: Path) -> None:
    base, cache = write_tiny_base(tmp_path / "tiny"), make_cache(tmp_path / "cache")
    settings = (f"model.cache_dir={cache}", "model.threads=1", "model.kernels=native", "control.free_bases=tiny")
    flags = ["--base", str(base), "--auth", "on", *(f"--set={each}" for each in settings)]
    with (
        running_server(tmp_path / "log", *flags) as url,
        httpx2.Client(base_url=url, timeout=PATIENCE_S) as client,
    ):
        [key] = re.findall(r"pb_[A-Za-z0-9]{8}_[A-Za-z0-9]+", (tmp_path / "log").read_text(encoding="utf-8"))
        operator = Caller(client, key)
        acme, beta = operator.tenant("acme"), operator.tenant("beta")
        assert [acme.ask("a+cme"), acme.ask("shared"), beta.ask("shared"), beta.ask("be(t|T)a")][2] == "shared"
        wait_for(lambda: operator.grammars()["grammars_kept"] == 3)
        body = {"prompt": "x", "max_tokens": 200, "stream": True, "guided_regex": f"(xy){{{STREAMED}}}"}
        with client.stream("POST", "/v1/completions", json=body, headers=acme.headers) as reply:
            lines = reply.iter_lines()
            first = next(lines)
            operator.post("/admin/tenants/acme/close")
            wait_for(lambda: operator.grammars()['grammar_drops{reason="closed"}'] >= 2)
            events = [json.loads(line[6:]) for line in [first, *lines] if line.startswith("data: {")]
        text = "".join(choice["text"] for event in events for choice in event["choices"])
        assert text == "xy" * STREAMED, "the stream of the closed tenant goes on"
        wait_for(lambda: operator.grammars()['grammar_drops{reason="closed"}'] == 3)
        before = operator.grammars()
        assert before["grammars_kept"] == 2
        assert beta.ask("shared") == "shared"
        assert beta.ask("be(t|T)a").lower() == "beta"
        wait_for(lambda: operator.grammars()["grammar_hits"] == before["grammar_hits"] + 2)
        assert operator.grammars()["grammars_compiled"] == before["grammars_compiled"]
