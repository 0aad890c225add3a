"""Every route of a real server's OpenAPI document, asked well and badly: each reply is what the document says."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from peft import LoraConfig

from manylora.http.paths import SERVER_ROUTES
from tests.integration.adapters.test_pushed_adapters import BYTES, as_one
from tests.integration.billing.test_tenants import opened
from tests.integration.documents.conformance import Conformance
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.classifiers import make_classifier
from tests.support.serving import make_cache, running_server
from tests.support.tiny import ALL, BYTE_LEVEL_VOCAB, make_adapter, make_base
from tests.support.waiting import wait_for

SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
FORM = {"type": "json_schema", "json_schema": {"name": "reply", "schema": SCHEMA}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
SAY = [{"role": "user", "content": "the quick brown fox"}]
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for message in messages %}"
    "{{ message.content }}{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>"
    "{% endfor %}{% endfor %}"
)
"""A template of the form in which Hermes writes calls, which the server finds in it."""


@dataclass
class Site:
    """The server, its document, and keys of its operator and of a tenant."""

    client: httpx2.Client
    seen: Conformance
    admin: str
    key: str
    pushed: bytes

    def ask(self, method: str, path: str, *, key: str | None = None, **more: Any) -> httpx2.Response:
        """Send a request with a key, the tenant's by default; the reply is as documented."""
        headers = {"authorization": f"Bearer {key or self.key}", **more.pop("headers", {})}
        return self.seen.note(self.client.request(method, path, headers=headers, **more))

    def good(self, method: str, path: str, **more: Any) -> httpx2.Response:
        reply = self.ask(method, path, **more)
        assert reply.status_code < 300, f"{method} {path} {reply.status_code} {reply.text}"
        return reply

    def bad(self, method: str, path: str, **more: Any) -> httpx2.Response:
        reply = self.ask(method, path, **more)
        assert 400 <= reply.status_code < 500, f"{method} {path} {reply.status_code} {reply.text}"
        return reply


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("documents")
    base = make_base(folder / "base", vocab_size=BYTE_LEVEL_VOCAB)
    save_byte_level(folder / "base")
    (folder / "template.jinja").write_text(TEMPLATE)
    adapters = folder / "adapters"
    make_adapter(base, adapters / "plain", LoraConfig(r=4, target_modules=ALL), seed=1)
    make_classifier(base, adapters / "texts", LoraConfig(r=2, target_modules=ALL, task_type="SEQ_CLS"), 2, seed=2)
    make_classifier(base, adapters / "words", LoraConfig(r=2, target_modules=["q_proj"], task_type="TOKEN_CLS"), 3)
    admin = opened(folder)
    settings = {
        "model.cache_dir": make_cache(folder / "cache"),
        "model.kernels": "native",
        "model.threads": 1,
        "model.chat_template": folder / "template.jinja",
        "storage.dir": folder / "storage",
    }
    flags = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    flags += ["--base", str(folder / "base"), "--adapter-root", str(adapters), "--auth", "on"]
    with running_server(folder / "log", *flags) as url, httpx2.Client(base_url=url, timeout=60) as client:
        operators = {"authorization": f"Bearer {admin}"}
        made = client.post("/admin/tenants", json={"id": "acme", "credit_nanousd": 10**9}, headers=operators)
        key = made.raise_for_status().json()["key"]["key"]
        document = client.get("/openapi.json", headers=operators).json()
        yield Site(client, Conformance(document), admin, key, as_one(adapters / "plain"))


def ask_about_the_server(site: Site) -> None:
    for path in ("/", "/health", "/ping", "/startup", "/ready", "/info", "/docs", "/openapi.json"):
        site.good("GET", path)
    site.good("GET", "/api-doc/openapi.json")
    for query in ("", "?format=json"):
        site.good("GET", f"/metrics{query}", key=site.admin)
    site.good("GET", "/v1/models", params={"limit": 2})
    site.bad("GET", "/v1/models", params={"limit": "x"})
    site.good("GET", "/v1/models/base")
    site.good("GET", "/v1/models/plain")
    site.bad("GET", "/v1/models/none")
    spans = site.good("POST", "/tokenize", json={"inputs": "the quick né", "add_special_tokens": True})
    assert spans.json()


def ask_for_loraxs_texts(site: Site) -> None:
    details = {"details": True, "max_new_tokens": 4, "return_k_alternatives": 2, "decoder_input_details": True}
    for parameters in (
        {"max_new_tokens": 4},
        details,
        {"max_new_tokens": 4, "details": True, "best_of": 2, "do_sample": True},
    ):
        body = {"inputs": "the quick", "parameters": parameters}
        for path in ("/", "/invocations", "/generate"):
            site.good("POST", path, json=body)
    body = {
        "inputs": "the quick",
        "parameters": {"max_new_tokens": 4, "adapter_id": "plain", "return_k_alternatives": 2},
    }
    for path in ("/", "/invocations", "/generate_stream"):
        site.good("POST", path, json={**body, "stream": True} if path != "/generate_stream" else body)
    form = {"type": "json_schema", "schema": SCHEMA}
    site.good("POST", "/generate", json={"inputs": "x", "parameters": {"max_new_tokens": 9, "response_format": form}})
    for wrong in ({"max_new_tokens": -1}, {"adapter_id": "none"}, {"top_p": 7}):
        for path in ("/", "/invocations", "/generate", "/generate_stream"):
            site.bad("POST", path, json={"inputs": "x", "parameters": wrong})


def ask_for_completions(site: Site) -> None:
    plain = {"model": "base", "prompt": "the quick", "max_tokens": 4, "temperature": 1.0, "seed": 1}
    several = {"n": 2, "best_of": 3, "logprobs": 2, "echo": True}
    streams = {"stream": True, "stream_options": {"include_usage": True}, "logprobs": 1, "n": 2}
    for more in (
        {},
        several,
        streams,
        {"model": "plain"},
        {"prompt": ["a", "b"]},
        {"response_format": FORM, "max_tokens": 9},
    ):
        site.good("POST", "/v1/completions", json={**plain, **more})
    chat = {"model": "plain", "messages": SAY, "max_tokens": 6, "temperature": 0}
    forced = {"tools": [TOOL], "tool_choice": "required", "max_tokens": 80}
    older = {"functions": [TOOL["function"]], "function_call": {"name": "look"}, "max_tokens": 80}
    scored = {"logprobs": True, "top_logprobs": 2, "n": 2}
    for more in ({}, scored, {"response_format": FORM, "max_tokens": 9}, forced, older):
        whole = site.good("POST", "/v1/chat/completions", json={**chat, **more}).json()
        if more is forced:
            assert whole["choices"][0]["message"]["tool_calls"]
        if more is older:
            assert whole["choices"][0]["message"]["function_call"]
        usage = {"stream": True, "stream_options": {"include_usage": True}}
        site.good("POST", "/v1/chat/completions", json={**chat, **more, **usage})
    for path, body in (("/v1/completions", plain), ("/v1/chat/completions", chat)):
        for wrong in ({"model": "none"}, {"max_tokens": 10**6}, {"temperature": "hot"}, {"stream": True, "n": 0}):
            site.bad("POST", path, json={**body, **wrong})


def ask_for_vectors_and_classes(site: Site) -> None:
    for more in ({}, {"encoding_format": "base64"}, {"model": "plain", "input": ["a", "b"]}):
        site.good("POST", "/v1/embeddings", json={"model": "base", "input": "the quick", **more})
    site.bad("POST", "/v1/embeddings", json={"model": "base", "input": []})
    site.good("POST", "/embed", json={"inputs": "the quick"})
    site.bad("POST", "/embed", json={"inputs": ""})
    site.good("POST", "/classify", json={"inputs": "the quick", "adapter_id": "words"})
    site.good("POST", "/classify", json={"input": ["the quick", "fox"], "model": "texts"})
    site.good("POST", "/classify_batch", json={"inputs": ["the quick", "fox"], "adapter_id": "words"})
    for path in ("/classify", "/classify_batch"):
        site.bad("POST", path, json={"inputs": ["x"], "adapter_id": "plain"})


def ask_for_files_and_batches(site: Site) -> None:
    line: dict[str, Any] = {
        "custom_id": "1",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"model": "base", "prompt": "x", "max_tokens": 2},
    }
    lines = "\n".join(json.dumps({**line, "custom_id": str(number)}) for number in range(3))
    form: dict[str, Any] = {"files": {"file": ("in.jsonl", lines.encode())}, "data": {"purpose": "batch"}}
    file_id = site.good("POST", "/v1/files", **form).json()["id"]
    site.bad("POST", "/v1/files", files={"file": ("in.jsonl", b"{}")}, data={"purpose": "none"})
    site.good("GET", "/v1/files", params={"limit": 1})
    site.bad("GET", "/v1/files", params={"order": "odd"})
    site.good("GET", f"/v1/files/{file_id}")
    assert site.good("GET", f"/v1/files/{file_id}/content").text == lines
    order = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
    batch_id = site.good("POST", "/v1/batches", json={**order, "metadata": {"a": "b"}}).json()["id"]
    wait_for(lambda: site.good("GET", f"/v1/batches/{batch_id}").json()["status"] == "completed")
    done = site.good("GET", f"/v1/batches/{batch_id}").json()
    assert site.good("GET", f"/v1/files/{done['output_file_id']}/content").text.count("\n") == 3
    site.bad("POST", f"/v1/batches/{batch_id}/cancel")
    wrong = {"files": {"file": ("in.jsonl", b"{}")}, "data": {"purpose": "batch"}}
    refused = site.good("POST", "/v1/files", **wrong).json()["id"]
    failed = site.good("POST", "/v1/batches", json={**order, "input_file_id": refused}).json()["id"]
    wait_for(lambda: site.good("GET", f"/v1/batches/{failed}").json()["status"] == "failed")
    body = {**line, "body": {**line["body"], "max_tokens": 200, "ignore_eos": True}}
    many = "\n".join(json.dumps({**body, "custom_id": str(number)}) for number in range(400)).encode()
    long_id = site.good("POST", "/v1/files", files={"file": ("in.jsonl", many)}, data={"purpose": "batch"}).json()["id"]
    running = site.good("POST", "/v1/batches", json={**order, "input_file_id": long_id}).json()["id"]
    site.good("POST", f"/v1/batches/{running}/cancel")
    site.good("GET", "/v1/batches", params={"limit": 2})
    site.bad("POST", "/v1/batches", json={**order, "endpoint": "/none"})
    site.good("DELETE", f"/v1/files/{file_id}")
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
        site.bad(method, f"/v1/files/{file_id}{path}")
    site.bad("GET", "/v1/batches/none")
    site.bad("POST", "/v1/batches/none/cancel")


def ask_for_responses(site: Site) -> None:
    tool = {"type": "function", "name": "look", "parameters": SCHEMA, "strict": True}
    body = {"model": "base", "input": "the quick", "max_output_tokens": 16, "temperature": 0}
    forced = {"tools": [tool], "tool_choice": "required", "max_output_tokens": 80}
    for more in ({}, {"store": True, "metadata": {"a": "b"}}, forced, {"instructions": "Be brief"}):
        for is_stream in (False, True):
            site.good("POST", "/v1/responses", json={**body, **more, "stream": is_stream})
    made = site.good("POST", "/v1/responses", json=body).json()["id"]
    follow = {**body, "previous_response_id": made}
    followed = site.good("POST", "/v1/responses", json=follow).json()["id"]
    assert site.good("GET", f"/v1/responses/{followed}/input_items", params={"limit": 2}).json()["has_more"]
    logprobs = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    for is_stream in (False, True):
        site.good("POST", "/v1/responses", json={**body, **logprobs, "stream": is_stream})
    site.good("GET", f"/v1/responses/{made}")
    site.good("DELETE", f"/v1/responses/{made}")
    site.bad("POST", "/v1/responses", json=follow)
    site.bad("GET", f"/v1/responses/{made}")
    site.bad("GET", f"/v1/responses/{made}/input_items")
    site.bad("DELETE", f"/v1/responses/{made}")
    queued = site.good("POST", "/v1/responses", json={**body, "background": True}).json()["id"]
    site.good("GET", f"/v1/responses/{queued}")
    site.good("POST", f"/v1/responses/{queued}/cancel")
    streamed = site.good("POST", "/v1/responses", json={**body, "background": True, "stream": True})
    first = json.loads(streamed.text.partition("data: ")[2].partition("\n")[0])["response"]["id"]
    followed_on = site.good("GET", f"/v1/responses/{first}", params={"stream": "true", "starting_after": 1})
    assert streamed.text.endswith(followed_on.text)
    site.bad("GET", f"/v1/responses/{followed}", params={"stream": "true"})
    site.bad("POST", f"/v1/responses/{followed}/cancel")


def ask_for_conversations(site: Site) -> None:
    root, items = "/v1/conversations", [{"role": "user", "content": "the quick"}]
    path = f"{root}/{site.good('POST', root, json={'items': items, 'metadata': {'a': 'b'}}).json()['id']}"
    site.good("POST", path, json={"metadata": {}})
    site.good("GET", path)
    call = {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "call_1", "output": "done"}
    added = site.good("POST", f"{path}/items", json={"items": [call, output]}).json()
    body = {"model": "base", "input": "x", "max_output_tokens": 4, "conversation": path.rpartition("/")[2]}
    site.good("POST", "/v1/responses", json=body)
    site.good("GET", f"{path}/items", params={"limit": 100})
    for item in added["data"]:
        site.good("GET", f"{path}/items/{item['id']}")
    one = f"{path}/items/{added['first_id']}"
    site.good("DELETE", one)
    for method in ("GET", "DELETE"):
        site.bad(method, one)
    site.good("DELETE", path)
    for method, place in (("GET", path), ("DELETE", path), ("GET", f"{path}/items")):
        site.bad(method, place)


def ask_for_adapters(site: Site) -> None:
    site.good("POST", "/v1/adapters/fresh/tensors", content=site.pushed, headers=BYTES)
    site.bad("POST", "/v1/adapters/fresh/tensors", content=b"none", headers=BYTES)
    site.good("GET", "/v1/adapters", key=site.admin, params={"limit": 2})
    site.bad("GET", "/v1/adapters", key=site.admin, params={"state": "odd"})
    site.good("GET", "/v1/adapters/plain", key=site.admin)
    for action in ("preload", "pin", "unpin", "verify", "evict"):
        site.good("POST", "/v1/adapters/plain?wait=20", key=site.admin, json={"action": action})
    site.bad("POST", "/v1/adapters/plain", key=site.admin, json={"action": "none"})
    site.good("DELETE", "/v1/adapters/fresh/tensors")
    site.good("DELETE", "/v1/adapters/texts", key=site.admin)
    for method in ("GET", "DELETE"):
        site.bad(method, "/v1/adapters/none", key=site.admin)


WRONG: tuple[dict[str, Any], ...] = (
    {"json": {"none": 1}},
    {"json": []},
    {"content": b"{", "headers": {"content-type": "application/json"}},
)
"""Bodies that no route accepts."""
SUBJECTS = (
    ask_about_the_server,
    ask_for_loraxs_texts,
    ask_for_completions,
    ask_for_vectors_and_classes,
    ask_for_files_and_batches,
    ask_for_responses,
    ask_for_conversations,
    ask_for_adapters,
)


@pytest.mark.long
def test_every_reply_is_as_documented(site: Site) -> None:
    own = {(method, path) for path, method in SERVER_ROUTES.documented(is_operator=True)}
    assert own <= site.seen.routes
    for method, path in sorted(own):
        anywhere = path.replace("{", "").replace("}", "")
        for key in ("pb_wrong", site.key, site.admin):
            for body in WRONG if method in ("post", "put", "patch") else ({},):
                site.ask(method.upper(), anywhere, key=key, **body)
    for ask in SUBJECTS:
        ask(site)
    assert own - site.seen.good == set(), "routes without a good reply"
    never_bad = {route for route in own if not SERVER_ROUTES.at(route[1])[route[0].upper()].scopes}
    assert own - never_bad - site.seen.bad == set(), "routes without a bad reply"
