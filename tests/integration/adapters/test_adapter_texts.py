"""A real server, adapters with tokens, templates and ends of their own; the oracle is transformers' tokenizer."""

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.forks import forks
from tests.support.serving import make_cache, running_server
from tests.support.text_adapters import (
    ADDED,
    OWN_TEMPLATE,
    SIZE,
    make_text_base,
    plain_adapter,
    save_tokenizer_for,
    speaking_adapter,
)

MESSAGES = [{"role": "user", "content": "the quick<call> fox"}]
TEXTS = (
    "hello<tool>the quick<call><call>brown two words fox",
    " two words<|start|>né né-né nénu",
    "a b<call>a  two words",
)
CALLS = {"type": "array", "items": {"enum": ["<call>né", "<call>", "né", "<tool>"]}, "minItems": 5, "maxItems": 5}
HOSTILE = {
    "loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "grow": "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "string": "{{ 'a' * 10000000000 }}",
    "filters": "{% for i in range(99999) %}{{ ('a' * 4000000) | replace('a', 'bb') | length }}{% endfor %}",
    "output": "{% for i in range(90000) %}{{ 'a' * 1000 }}{% endfor %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as o %}{{ o }}",
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('id') }}",
    "range": "{{ range(10 ** 12) | list }}",
    "power": "{{ (10 ** 9) ** (10 ** 9) }}",
    "broken": "{% for",
    "raises": "{{ raise_exception('x' * 100000) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}


class Texts:
    """The folder of the adapters and what transformers loads from it."""

    def __init__(self, folder: Path) -> None:
        self.adapters = folder / "adapters"
        base = make_text_base(folder / "Tiny-Base")
        self.base = base
        self.speaking = speaking_adapter(base, self.adapters / "speaking")
        plain_adapter(base, self.adapters / "plain")
        named = [{"name": "default", "template": OWN_TEMPLATE}, {"name": "tool_use", "template": "unused"}]
        self._settings("named", {"chat_template": named})
        (plain_adapter(base, self.adapters / "jinja") / "chat_template.jinja").write_text(OWN_TEMPLATE)
        folder_of = plain_adapter(base, self.adapters / "template-json")
        (folder_of / "chat_template.json").write_text(json.dumps({"chat_template": OWN_TEMPLATE}))
        for name, template in HOSTILE.items():
            (plain_adapter(base, self.adapters / f"hostile-{name}") / "chat_template.jinja").write_text(template)

    def _settings(self, name: str, settings: dict[str, object]) -> None:
        (plain_adapter(self.base, self.adapters / name) / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    return Texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def client(texts: Texts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    folder = tmp_path_factory.mktemp("server")
    flags = ("--base", str(texts.base.directory), "--adapter-root", str(texts.adapters))
    with (
        running_server(folder / "log", *flags, "--set", f"model.cache_dir={make_cache(folder / 'cache')}") as url,
        httpx2.Client(base_url=url, timeout=120) as client,
    ):
        yield client


def generate(client: httpx2.Client, adapter: str, inputs: str, **parameters: Any) -> dict[str, Any]:
    given = {"adapter_id": adapter, "max_new_tokens": 24, "ignore_eos_token": True, "details": True, **parameters}
    reply = client.post("/generate", json={"inputs": inputs, "parameters": given})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def ids(reply: dict[str, Any]) -> list[int]:
    return [token["id"] for token in reply["details"]["tokens"]]


def spans(client: httpx2.Client, text: str, **fields: object) -> list[dict[str, Any]]:
    return list(client.post("/tokenize", json={"inputs": text, **fields}).raise_for_status().json())


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_has_the_tokens_of_the_adapters_own_tokenizer(client: httpx2.Client, texts: Texts, text: str) -> None:
    expected = texts.speaking(text, return_offsets_mapping=True)
    for fields in ({"adapter_id": "speaking"}, {"parameters": {"adapter_id": "speaking"}}):
        found = spans(client, text, **fields)
        assert [span["id"] for span in found] == expected["input_ids"]
        assert [(span["start"], span["stop"]) for span in found] == expected["offset_mapping"]
    assert [span["id"] for span in spans(client, text)] != expected["input_ids"]
    assert max(span["id"] for span in spans(client, text)) < SIZE


@pytest.mark.parametrize("text", TEXTS)
def test_prompts_and_replies_are_read_with_them(client: httpx2.Client, texts: Texts, text: str) -> None:
    prompt = texts.speaking.encode(text)
    reply = generate(client, "speaking", text)
    assert reply["details"]["prompt_tokens"] == len(prompt)
    said = ids(reply)
    assert max(said) >= SIZE, "the adapter says none of its own tokens"
    assert reply["generated_text"] == texts.speaking.decode(said, skip_special_tokens=True)
    added = texts.speaking.added_tokens_decoder
    for token in reply["details"]["tokens"]:
        assert token["special"] == (token["id"] in added and added[token["id"]].special)
    body = {"model": "speaking", "prompt": text, "max_tokens": 24, "temperature": 0, "ignore_eos": True, "logprobs": 3}
    completion = client.post("/v1/completions", json=body).raise_for_status().json()
    assert completion["usage"]["prompt_tokens"] == len(prompt)
    assert completion["choices"][0]["text"] == reply["generated_text"]
    echoed = {**body, "prompt": prompt, "echo": True, "logprobs": None}
    by_ids = client.post("/v1/completions", json=echoed).raise_for_status().json()
    echo = texts.speaking.decode(prompt, skip_special_tokens=False)
    assert by_ids["choices"][0]["text"] == echo + reply["generated_text"]


def test_every_route_tells_the_same_text(client: httpx2.Client, texts: Texts) -> None:
    text = TEXTS[0]
    whole = generate(client, "speaking", text)["generated_text"]
    given = {"adapter_id": "speaking", "max_new_tokens": 24, "ignore_eos_token": True}
    body = {"inputs": text, "parameters": given}
    assert client.post("/", json=body).raise_for_status().json()[0]["generated_text"] == whole
    for path, more in (("/generate_stream", {}), ("/", {"stream": True})):
        assert _last(client, path, {**body, **more})["generated_text"] == whole
    best = {**given, "best_of": 2, "do_sample": True, "details": True, "seed": None}
    drawn = client.post("/generate", json={"inputs": text, "parameters": best}).raise_for_status().json()
    for sequence in (drawn | drawn["details"], *drawn["details"]["best_of_sequences"]):
        said = [token["id"] for token in sequence["tokens"]]
        assert sequence["generated_text"] == texts.speaking.decode(said, skip_special_tokens=True)
    asked = {"model": "speaking", "prompt": text, "max_tokens": 24, "temperature": 0, "ignore_eos": True, "n": 2}
    choices = client.post("/v1/completions", json=asked).raise_for_status().json()["choices"]
    assert [choice["text"] for choice in choices] == [whole, whole]
    assert _streamed(client, "/v1/completions", asked | {"n": 1}) == whole


def test_a_stop_string_may_be_an_added_token(client: httpx2.Client, texts: Texts) -> None:
    whole = generate(client, "speaking", TEXTS[0])["generated_text"]
    stop = next(token.content for token in ADDED[1:] if token.content in whole)
    cut = whole[: whole.index(stop)]
    native = generate(client, "speaking", TEXTS[0], stop=[stop])
    assert (native["generated_text"], native["details"]["finish_reason"]) == (cut + stop, "stop_sequence")
    asked = {"model": "speaking", "prompt": TEXTS[0], "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    [choice] = client.post("/v1/completions", json=asked | {"stop": stop}).raise_for_status().json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == (cut, "stop")
    assert _streamed(client, "/v1/completions", asked | {"stop": [stop]}) == cut


@pytest.mark.parametrize(
    ("form", "accepts"),
    [
        ({"guided_regex": "(<call>|<tool>|two words|né|[ab]){6}"}, "(<call>|<tool>|two words|né|[ab]){6}"),
        ({"guided_json": CALLS}, r'\["(<call>né|<call>|né|<tool>)"(,"(<call>né|<call>|né|<tool>)"){4}\]'),
    ],
    ids=["regex", "schema"],
)
def test_a_reply_with_a_form_may_have_the_added_tokens(
    client: httpx2.Client, texts: Texts, form: dict[str, Any], accepts: str
) -> None:
    said: set[int] = set()
    for seed in range(8):
        sampled = {"do_sample": True, "seed": seed, "max_new_tokens": 80, "ignore_eos_token": False}
        reply = generate(client, "speaking", TEXTS[0], **form, **sampled)
        assert re.fullmatch(accepts, reply["generated_text"])
        assert reply["generated_text"] == texts.speaking.decode(ids(reply), skip_special_tokens=True)
        said |= {*ids(reply)}
    assert max(said) >= SIZE, "no added token in any reply"
    special = [each for each, token in texts.speaking.added_tokens_decoder.items() if token.special]
    assert not said & {*special}, "a special token is no text"


def test_a_token_that_only_the_tokenizer_knows_is_refused_in_a_prompt(client: httpx2.Client, texts: Texts) -> None:
    folder = plain_adapter(texts.base, texts.adapters / "padded")
    save_tokenizer_for(texts.base.directory, folder, lambda own: own.add_special_tokens({"pad_token": "[PAD]"}))
    assert generate(client, "padded", "hello")["generated_text"]
    reply = client.post("/generate", json={"inputs": "a[PAD]", "parameters": {"adapter_id": "padded"}})
    assert (reply.status_code, f"< {SIZE}" in reply.json()["error"]) == (422, True), reply.text


# ── templates ────────────────────────────────────────────────────────────────────────────────────────────────────────


def chat(client: httpx2.Client, adapter: str, **more: object) -> httpx2.Response:
    body = {"model": adapter, "messages": MESSAGES, "max_tokens": 4, "temperature": 0, "ignore_eos": True, **more}
    return client.post("/v1/chat/completions", json=body)


def test_an_adapters_own_template_makes_the_prompt(client: httpx2.Client, texts: Texts) -> None:
    expected = texts.speaking.apply_chat_template(MESSAGES, tokenize=True, return_dict=False)
    reply = chat(client, "speaking").raise_for_status().json()
    assert reply["usage"]["prompt_tokens"] == len(expected)
    by_ids = {"model": "speaking", "prompt": expected, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    same = client.post("/v1/completions", json=by_ids).raise_for_status().json()
    assert reply["choices"][0]["message"]["content"] == same["choices"][0]["text"]
    base = chat(client, "").raise_for_status().json()
    assert base["usage"]["prompt_tokens"] != len(expected)
    native = generate(client, "speaking", MESSAGES[0]["content"], apply_chat_template=True)
    assert native["details"]["prompt_tokens"] == len(expected)


@pytest.mark.parametrize("name", ["named", "jinja", "template-json"])
def test_a_template_is_found_in_each_of_its_files(client: httpx2.Client, name: str) -> None:
    prompt = f"<|start|><tool>USER: {MESSAGES[0]['content']}"
    expected = len(spans(client, prompt))
    assert chat(client, name).raise_for_status().json()["usage"]["prompt_tokens"] == expected


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_costs_its_sender_one_refusal(client: httpx2.Client, name: str) -> None:
    reply = chat(client, f"hostile-{name}")
    told = reply.json()["error"]
    assert (reply.status_code, told["code"]) == (400, "template_error"), reply.text
    assert len(told["message"]) < 1_000
    assert chat(client, "jinja").status_code == 200
    assert client.get("/health").status_code == 200


@pytest.mark.long
def test_others_are_served_beside_templates_that_hang(client: httpx2.Client) -> None:
    """A render of another tenant's, and what needs none, end while four of one tenant's hang again and again."""
    replies: list[int] = []
    is_over = threading.Event()

    def hang() -> None:
        path = "/mallory/deployments/v2/llms/Tiny-Base/v1/chat/completions"
        body = {"model": "hostile-filters", "messages": MESSAGES, "max_tokens": 1}
        while not is_over.is_set():
            replies.append(client.post(path, json=body).status_code)

    threads = [threading.Thread(target=hang) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        assert chat(client, "jinja").status_code == 200
        assert generate(client, "plain", "hello")["generated_text"]
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert set(replies) == {400}


# ── uploads and versions ──────────────────────────────────────────────────────────────────────────────────────────────


def test_an_uploaded_adapters_texts_are_used(client: httpx2.Client, texts: Texts, tmp_path: Path) -> None:
    client.post("/v2/repos", json={"name": "own-texts"}).raise_for_status()
    folder = plain_adapter(texts.base, tmp_path / "own")
    for template in ("one", "one two three"):
        (folder / "chat_template.jinja").write_text(template)
        words = ["repos", "upload", "own-texts", str(folder), "--url", str(client.base_url)]
        ran = forks().run(words, folder=tmp_path)
        assert ran.returncode == 0, ran.stderr
    for version, template in ((1, "one"), (2, "one two three")):
        reply = chat(client, f"own-texts/{version}").raise_for_status().json()
        assert reply["usage"]["prompt_tokens"] == len(spans(client, template))


def test_a_changed_text_under_the_same_name_serves_the_next_request(client: httpx2.Client, texts: Texts) -> None:
    folder = plain_adapter(texts.base, texts.adapters / "changing")
    counts = []
    for template in (None, "one", "one two three", "{{ messages[0].content }}"):
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        counts.append(chat(client, "changing").raise_for_status().json()["usage"]["prompt_tokens"])
    contents = (f"[user]{MESSAGES[0]['content']}", "one", "one two three", MESSAGES[0]["content"])
    assert counts == [len(spans(client, text)) for text in contents]


def _events(client: httpx2.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with client.stream("POST", path, json=body) as reply:
        assert reply.status_code == 200
        lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def _last(client: httpx2.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    events = _events(client, path, body)
    assert (
        "".join(event["token"]["text"] for event in events if not event["token"]["special"])
        == (events[-1]["generated_text"])
    )
    return events[-1]


def _streamed(client: httpx2.Client, path: str, body: dict[str, Any]) -> str:
    return "".join(event["choices"][0]["text"] for event in _events(client, path, body | {"stream": True}))
