"""Runs in the environment of `langchain-openai`, with a file of facts as its argument."""

import asyncio
from typing import Any

from langchain_openai import ChatOpenAI, OpenAI
from openai import NotFoundError

from tests.clients.scripts.cases import FACTS, case, raised, run_cases

SETTINGS: dict[str, Any] = {  # values of several types
    "base_url": f"{FACTS['url']}/v1",
    "api_key": FACTS["key"],
    "model": FACTS["adapter"],
    "temperature": 0,
    "max_retries": 0,
}
chat = ChatOpenAI(max_tokens=8, stream_usage=True, **SETTINGS)


@case
def a_chat_is_answered() -> None:
    reply = chat.invoke(FACTS["question"])
    assert reply.content == FACTS["answer"]
    assert reply.usage_metadata["output_tokens"] > 0
    assert reply.response_metadata["finish_reason"] == "stop"


@case
def a_chat_is_streamed() -> None:
    chunks = list(chat.stream(FACTS["question"]))
    assert "".join(chunk.content for chunk in chunks) == FACTS["answer"]
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) > 0


@case
async def chats_are_batched() -> None:
    assert {reply.content for reply in chat.batch([FACTS["question"]] * 3)} == {FACTS["answer"]}
    replies = await asyncio.gather(*(chat.ainvoke(FACTS["question"]) for _ in range(3)))
    assert {reply.content for reply in replies} == {FACTS["answer"]}


@case
def a_text_is_completed() -> None:
    assert OpenAI(max_tokens=8, **SETTINGS).invoke(FACTS["prompt"]) == FACTS["answer"]
    assert "".join(OpenAI(max_tokens=8, **SETTINGS).stream(FACTS["prompt"])) == FACTS["answer"]


@case
def an_unknown_adapter_is_not_found() -> None:
    unknown = ChatOpenAI(**{**SETTINGS, "model": "no-such-adapter"})
    raised(NotFoundError, lambda: unknown.invoke("Hello"), "does not exist")


if __name__ == "__main__":
    run_cases("langchain-openai")
