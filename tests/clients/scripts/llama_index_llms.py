"""Runs in the environment of `llama-index-llms-openai-like`, with a file of facts as its argument."""

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from openai import NotFoundError

from tests.clients.scripts.cases import FACTS, case, raised, run_cases

ASKED = [ChatMessage(role="user", content=FACTS["question"])]


def model(name: str = FACTS["adapter"], *, is_chat: bool = True) -> OpenAILike:
    return OpenAILike(
        model=name,
        api_base=f"{FACTS['url']}/v1",
        api_key=FACTS["key"],
        is_chat_model=is_chat,
        context_window=FACTS["window"],
        max_tokens=8,
        temperature=0,
        max_retries=0,
    )


@case
def a_chat_is_answered() -> None:
    assert model().chat(ASKED).message.content == FACTS["answer"]


@case
def a_chat_is_streamed() -> None:
    *_, last = model().stream_chat(ASKED)
    assert last.message.content == FACTS["answer"]


@case
def a_text_is_completed() -> None:
    assert model(is_chat=False).complete(FACTS["prompt"]).text == FACTS["answer"]
    *_, last = model(is_chat=False).stream_complete(FACTS["prompt"])
    assert last.text == FACTS["answer"]


@case
async def a_chat_is_answered_asynchronously() -> None:
    assert (await model().achat(ASKED)).message.content == FACTS["answer"]


@case
def an_unknown_adapter_is_not_found() -> None:
    raised(NotFoundError, lambda: model("no-such-adapter").chat(ASKED), "does not exist")


if __name__ == "__main__":
    run_cases("llama-index-llms-openai-like")
