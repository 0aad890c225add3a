"""Runs in the environment of `openai`, with a file of facts as its argument."""

import asyncio
import json
import math
import time
from typing import Any

import openai
from openai import AsyncOpenAI, OpenAI

from tests.clients.scripts import openai_conversations as _conversations  # noqa: F401 - they run with those of this file
from tests.clients.scripts import openai_tools as _tools  # noqa: F401 - they run with those of this file
from tests.clients.scripts.cases import FACTS, case, core, raised, run_cases

URL, KEY, ADAPTER = FACTS["url"], FACTS["key"], FACTS["adapter"]
HELLO: Any = [{"role": "user", "content": "Say hello."}]
client = OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)


@core
def check_chat() -> None:
    whole = client.chat.completions.create(model="__base_model__", messages=HELLO, max_tokens=8, temperature=0)
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole.usage.completion_tokens <= 8
    stream = client.chat.completions.create(
        model="__base_model__",
        messages=HELLO,
        max_tokens=8,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage or chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


@core
def check_embeddings() -> None:
    """The client asks for base64 by itself and decodes it."""
    texts = ["A parcel is late.", "The weather is fine."]
    reply = client.embeddings.create(model="", input=texts)
    assert [entry.index for entry in reply.data] == [0, 1]
    size = len(reply.data[0].embedding)
    plain = client.embeddings.create(model="", input=texts, encoding_format="float", dimensions=size)
    assert [entry.embedding for entry in plain.data] == [entry.embedding for entry in reply.data]
    assert abs(sum(value**2 for value in plain.data[0].embedding) - 1) < 1e-5
    assert plain.usage.prompt_tokens == plain.usage.total_tokens > 0
    adapted = client.embeddings.create(model=ADAPTER, input=texts[0])
    assert adapted.model == ADAPTER
    assert adapted.data[0].embedding != plain.data[0].embedding
    kept = plain.data[0].embedding[:8]
    length = math.hypot(*kept)
    forms: tuple[Any, ...] = ({}, {"encoding_format": "float"})
    for form in forms:
        [cut, _] = client.embeddings.create(model="", input=texts, dimensions=8, **form).data
        assert all(abs(found - value / length) < 1e-6 for found, value in zip(cut.embedding, kept, strict=True))
    tokens = client.embeddings.create(model="", input=[[1, 2, 3], [4]])
    assert tokens.usage.prompt_tokens == 4


@core
def check_adapter() -> None:
    reply = client.chat.completions.create(model=ADAPTER, messages=HELLO, max_tokens=4, temperature=0)
    assert reply.model == ADAPTER
    extra = client.completions.create(
        model="", prompt="Hello", max_tokens=2, temperature=0, extra_body={"adapter_id": ADAPTER}
    )
    assert extra.model == ADAPTER


@case
def check_completions() -> None:
    for prompt, count in (("Hello", 1), (["Hello", "Bye"], 2), ([504, 314], 1), ([[504], [314, 30]], 2)):
        reply = client.completions.create(model="", prompt=prompt, max_tokens=3, temperature=0)
        assert [choice.index for choice in reply.choices] == list(range(count))
    reply = client.completions.create(model="", prompt="Once upon a time", max_tokens=6, n=2, seed=1, logprobs=2)
    assert len(reply.choices) == 2
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.top_logprobs is not None
    assert "".join(logprobs.tokens) == reply.choices[0].text
    assert len(logprobs.top_logprobs[0]) in (2, 3)
    again = client.completions.create(model="", prompt="Once upon a time", max_tokens=6, n=2, seed=1)
    assert [choice.text for choice in again.choices] == [choice.text for choice in reply.choices]
    stream = client.completions.create(model="", prompt="Once upon a time", max_tokens=6, n=2, seed=1, stream=True)
    texts = ["", ""]
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in reply.choices]


@case
def check_stop_and_logprobs() -> None:
    free = client.completions.create(model="", prompt="One, two, three, four,", max_tokens=12, temperature=0)
    stop = free.choices[0].text[4:7]
    cut = client.completions.create(model="", prompt="One, two, three, four,", max_tokens=12, temperature=0, stop=stop)
    assert cut.choices[0].finish_reason == "stop"
    assert stop not in cut.choices[0].text
    assert free.choices[0].text.startswith(cut.choices[0].text)
    chat = client.chat.completions.create(
        model="__base_model__", messages=HELLO, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    assert chat.choices[0].logprobs is not None
    for entry in chat.choices[0].logprobs.content or []:
        assert len(entry.top_logprobs) == 3
        assert bytes(entry.bytes or []).decode(errors="replace") == entry.token


@case
def check_special_tokens() -> None:
    def forced(**fields: Any) -> Any:
        return client.completions.create(
            model="", prompt="Hello", max_tokens=4, temperature=0, logit_bias={"0": 100}, **fields
        )

    shown = forced(extra_body={"skip_special_tokens": False})
    special = shown.choices[0].text[: len(shown.choices[0].text) // 4]
    assert shown.choices[0].text == 4 * special == 4 * "<|endoftext|>"
    hidden = forced()
    assert (hidden.choices[0].text, hidden.choices[0].finish_reason) == ("", "length")
    for end in ({"stop": [special]}, {"extra_body": {"stop_token_ids": [0]}}):
        stopped = forced(**end)
        assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("", "stop")
        assert stopped.usage.completion_tokens == 1
    echoed = client.completions.create(model="", prompt=[0, 504], max_tokens=1, temperature=0, echo=True)
    assert echoed.choices[0].text.startswith(special)
    alone = client.completions.create(model=ADAPTER, prompt=["Hello", "Good bye"], max_tokens=0, echo=True, n=2)
    assert [choice.text for choice in alone.choices] == ["Hello", "Hello", "Good bye", "Good bye"]
    assert alone.choices[0].finish_reason == "length"
    assert alone.usage is not None
    assert (alone.usage.completion_tokens, alone.usage.prompt_tokens > 2) == (0, True)


@core
def check_fields() -> None:
    create = client.chat.completions.create
    wrong = raised(openai.BadRequestError, lambda: create(model="", messages=HELLO, extra_body={"lora_path": ADAPTER}))
    assert wrong.param == "lora_path"
    assert "`adapter_id`" in str(wrong)
    start: Any = [*HELLO, {"role": "assistant", "content": "Hello, my name is"}]
    more: Any = {"continue_final_message": True}
    reply = create(model="", messages=start, max_tokens=4, temperature=0, extra_body=more, user="u", metadata={})
    assert reply.choices[0].message.content
    cut = create(model="", messages=HELLO, max_tokens=1, extra_body={"truncate_prompt_tokens": 3})
    assert cut.usage is not None
    assert cut.usage.prompt_tokens == 3


@core
def check_models() -> None:
    names = [model.id for model in client.models.list()]
    assert ADAPTER in names
    assert client.models.retrieve(ADAPTER).id == ADAPTER
    assert client.models.retrieve(names[0]).owned_by == "manylora"


@core
def check_errors() -> None:
    for call in (
        lambda: client.chat.completions.create(model="no-such-adapter", messages=HELLO),
        lambda: client.chat.completions.create(model="no-such-adapter", messages=HELLO, stream=True),
        lambda: client.models.retrieve("no-such/adapter"),
    ):
        missing = raised(openai.NotFoundError, call)
        assert missing.code == "model_not_found"
        assert "does not exist" in str(missing)
        assert missing.request_id
    long = raised(openai.BadRequestError, lambda: client.completions.create(model="", prompt="hello " * 4000))
    assert long.code == "context_length_exceeded"
    wide = raised(openai.BadRequestError, lambda: client.embeddings.create(model="", input="x", dimensions=1 << 20))
    assert wide.param == "dimensions"


@case
def check_schema() -> None:
    """The client's own `parse` makes an instance of the reply."""
    from typing import Literal

    from pydantic import BaseModel

    class City(BaseModel):
        name: Literal["Rome", "Paris"]
        inhabitants: int

    asked: Any = [{"role": "user", "content": "Name a city and its inhabitants as JSON."}]
    reply = client.chat.completions.parse(model="", messages=asked, response_format=City, max_tokens=100, temperature=0)
    found = reply.choices[0].message.parsed
    assert found is not None
    assert found.name in ("Rome", "Paris")


@core
def check_leaving() -> None:
    stream = client.chat.completions.create(model="", messages=HELLO, max_tokens=500, stream=True)
    next(iter(stream))
    stream.close()
    assert client.completions.create(model="", prompt="Hello", max_tokens=1).choices


@core
async def check_async() -> None:
    async with AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0) as own:
        calls = [own.chat.completions.create(model=name, messages=HELLO, max_tokens=6) for name in (ADAPTER, "") * 4]
        replies = await asyncio.gather(*calls)
        assert all(reply.choices[0].message.content is not None for reply in replies)
        raw = await own.chat.completions.with_raw_response.create(model=ADAPTER, messages=HELLO, max_tokens=2)
        assert raw.headers["x-adapter-id"] == ADAPTER
        assert int(raw.headers["x-total-tokens"]) > 2


@core
def check_responses() -> None:
    base: Any = {"model": "__base_model__", "max_output_tokens": 3, "temperature": 0}
    whole = client.responses.create(input="Say hello.", instructions="Be brief.", **base)
    assert (whole.object, whole.status) == ("response", "incomplete")
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert whole.usage is not None
    assert whole.usage.output_tokens == 3
    assert client.responses.retrieve(whole.id) == whole
    more: Any = [{"role": "user", "content": [{"type": "input_text", "text": "Again."}]}]
    events = list(client.responses.create(input=more, previous_response_id=whole.id, stream=True, **base))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == text
    assert events[-1].response.previous_response_id == whole.id
    with client.responses.stream(model=ADAPTER, input="Say hello.", max_output_tokens=4, temperature=0) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text
    shape: Any = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    form: Any = {"format": {"type": "json_schema", "name": "shape", "schema": shape | {"additionalProperties": False}}}
    formed = client.responses.create(model="__base_model__", input="Say x.", text=form, temperature=0)
    assert json.loads(formed.output_text)["a"] in ("x", "y")
    client.responses.delete(whole.id)
    raised(openai.NotFoundError, lambda: client.responses.retrieve(whole.id))
    wrong = raised(openai.BadRequestError, lambda: client.responses.create(model="", input="x", prompt={"id": "x"}))
    assert wrong.param == "prompt"


@core
def check_batches() -> None:
    lines = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": model, "messages": HELLO, "max_tokens": 4, "temperature": 0},
        }
        for number, model in enumerate((ADAPTER, "__base_model__", "no-such-adapter"))
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("lines.jsonl", content), purpose="batch")
    assert (file.filename, file.purpose, file.bytes) == ("lines.jsonl", "batch", len(content))
    assert client.files.retrieve(file.id) == file
    assert file.id in {each.id for each in client.files.list()}
    assert client.files.content(file.id).read() == content
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"a": "b"}
    )
    while (batch := client.batches.retrieve(batch.id)).status != "completed":
        assert batch.status in ("validating", "in_progress", "finalizing"), batch
        time.sleep(0.05)
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (3, 2, 1)
    assert batch.metadata == {"a": "b"}
    assert batch.output_file_id is not None
    assert batch.error_file_id is not None
    results = {
        line["custom_id"]: line for line in map(json.loads, client.files.content(batch.output_file_id).iter_lines())
    }
    whole = client.chat.completions.create(model=ADAPTER, messages=HELLO, max_tokens=4, temperature=0)
    assert results["0"]["response"]["body"]["choices"][0]["message"]["content"] == whole.choices[0].message.content
    (error,) = map(json.loads, client.files.content(batch.error_file_id).iter_lines())
    assert (error["custom_id"], error["response"]["body"]["error"]["code"]) == ("2", "model_not_found")
    assert batch.id in {each.id for each in client.batches.list(limit=1)}
    raised(openai.BadRequestError, lambda: client.batches.cancel(batch.id))
    assert client.files.delete(file.id).deleted
    raised(openai.NotFoundError, lambda: client.files.retrieve(file.id))


if __name__ == "__main__":
    run_cases("openai")
