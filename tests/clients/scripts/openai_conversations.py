"""Cases of the openai client on conversations, background responses and truncation; `openai_python.py` runs them."""

import time
from typing import Any

import openai
from openai import OpenAI

from tests.clients.scripts.cases import FACTS, case, raised

client = OpenAI(base_url=f"{FACTS['url']}/v1", api_key=FACTS["key"], max_retries=0)
BASE: Any = {"model": "__base_model__", "max_output_tokens": 4, "temperature": 0}


@case
def check_conversations() -> None:
    first: Any = {"type": "message", "role": "user", "content": "My name is Ada."}
    made = client.conversations.create(items=[first], metadata={"topic": "names"})
    assert (made.object, client.conversations.retrieve(made.id)) == ("conversation", made)
    assert client.conversations.update(made.id, metadata={"topic": "x"}).metadata == {"topic": "x"}
    response = client.responses.create(input="What is my name?", conversation=made.id, **BASE)
    assert response.conversation is not None
    assert response.conversation.id == made.id
    listed = list(client.conversations.items.list(made.id, order="asc", limit=2))
    assert [item.type for item in listed] == ["message"] * 3
    shown: Any = client.conversations.items.retrieve(listed[0].id or "", conversation_id=made.id)
    assert shown.content[0].text == "My name is Ada."
    call: Any = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
    added = client.conversations.items.create(made.id, items=[call])
    assert added.data[0].type == "function_call"
    client.conversations.items.delete(listed[0].id or "", conversation_id=made.id)
    assert len(list(client.conversations.items.list(made.id))) == 3
    assert client.conversations.delete(made.id).deleted
    raised(openai.NotFoundError, lambda: client.conversations.retrieve(made.id))
    unknown = raised(openai.NotFoundError, lambda: client.responses.create(input="x", conversation=made.id, **BASE))
    assert unknown.param == "conversation"


@case
def check_background() -> None:
    queued = client.responses.create(input="Say hello.", background=True, **BASE)
    assert (queued.status, queued.background) == ("queued", True)
    for _ in range(600):
        shown = client.responses.retrieve(queued.id)
        if shown.status not in ("queued", "in_progress"):
            break
        time.sleep(0.1)
    assert shown.status in ("completed", "incomplete")
    assert shown.output_text
    assert client.responses.cancel(queued.id).status == shown.status
    long: Any = {**BASE, "max_output_tokens": 1000}
    running = client.responses.create(input="Count to ten thousand.", background=True, **long)
    assert client.responses.cancel(running.id).status == "cancelled"
    assert client.responses.retrieve(running.id).status == "cancelled"


@case
def check_truncation() -> None:
    turn: Any = [{"role": "user", "content": "word " * 100}, {"role": "assistant", "content": "yes"}]
    items: Any = [*turn * (FACTS["window"] // 100 + 1), {"role": "user", "content": "Say hello."}]
    raised(openai.BadRequestError, lambda: client.responses.create(input=items, **BASE))
    cut = client.responses.create(input=items, truncation="auto", **BASE)
    assert (cut.truncation, cut.usage is not None and cut.usage.input_tokens < FACTS["window"]) == ("auto", True)
    assert cut.output_text
