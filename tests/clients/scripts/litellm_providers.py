"""Runs in the environment of `litellm`, with a file of facts as its argument."""

import os
from functools import partial
from typing import Any

from tests.clients.scripts.cases import FACTS, case, raised, run_cases

os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PREDIBASE_TENANT_ID": FACTS["tenant"]}

import litellm

URL, KEY, ADAPTER, ANSWER = FACTS["url"], FACTS["key"], FACTS["adapter"], FACTS["answer"]
ASKED = [{"role": "user", "content": FACTS["question"]}]
PROMPTED = [{"role": "user", "content": FACTS["prompt"]}]
litellm.suppress_debug_info = True
litellm.num_retries = 0


def predibase(**fields: Any) -> dict[str, Any]:
    """Arguments of Predibase's provider, which joins the contents of the messages to one prompt."""
    return {
        "model": f"predibase/{FACTS['base']}",
        "api_base": URL,
        "api_key": KEY,
        "messages": PROMPTED,
        "max_tokens": 8,
        **fields,
    }


def openai(provider: str, **fields: Any) -> dict[str, Any]:
    return {
        "model": f"{provider}/{ADAPTER}",
        "api_base": f"{URL}/v1",
        "api_key": KEY,
        "messages": ASKED,
        "max_tokens": 8,
        "temperature": 0,
        **fields,
    }


def streamed(chunks: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@case
def predibase_answers_with_an_adapter() -> None:
    reply = litellm.completion(**predibase(adapter_id=ADAPTER, adapter_source="local"))
    assert ANSWER in reply.choices[0].message.content
    assert reply.choices[0].finish_reason == "stop"
    headers = reply._hidden_params["additional_headers"]
    assert int(headers["llm_provider-x-total-tokens"]) > 8
    assert headers["llm_provider-x-adapter-id"] == ADAPTER


@case
def predibase_asks_the_base() -> None:
    reply = litellm.completion(**predibase(max_tokens=4))
    assert reply.choices[0].message.content
    assert reply.choices[0].finish_reason == "length"


@case
def predibase_streams_without_the_end_of_sequence() -> None:
    whole = litellm.completion(**predibase(adapter_id=ADAPTER)).choices[0].message.content
    text = streamed(litellm.completion(**predibase(adapter_id=ADAPTER, stream=True)))
    assert text == whole
    assert "<|" not in text


@case
async def predibase_is_asked_asynchronously() -> None:
    whole = (await litellm.acompletion(**predibase(adapter_id=ADAPTER))).choices[0].message.content
    assert ANSWER in whole
    chunks = [chunk async for chunk in await litellm.acompletion(**predibase(adapter_id=ADAPTER, stream=True))]
    assert streamed(chunks) == whole


@case
def predibase_returns_several_choices() -> None:
    reply = litellm.completion(**predibase(n=2, temperature=0.9))
    assert len(reply.choices) == 2
    assert all(choice.finish_reason in ("stop", "length") for choice in reply.choices)


@case
def predibase_stops_at_a_string() -> None:
    ask = partial(litellm.completion, **predibase(max_tokens=24, messages=[{"role": "user", "content": "One, two,"}]))
    free = ask().choices[0].message.content
    stopped = ask(stop=free[6:9])
    assert stopped.choices[0].finish_reason == "stop"
    assert len(stopped.choices[0].message.content) < len(free)
    assert ask(stop=[free[6:9], "zzz"]).choices[0].message.content == stopped.choices[0].message.content


@case
def predibase_maps_errors() -> None:
    raised(litellm.NotFoundError, lambda: litellm.completion(**predibase(adapter_id="no-such")), "was not found")
    raised(litellm.AuthenticationError, lambda: litellm.completion(**predibase(api_key="pb_wrong")))
    long = [{"role": "user", "content": "hello " * 4000}]
    text = "`inputs` must have less than"
    raised(litellm.BadRequestError, lambda: litellm.completion(**predibase(messages=long)), text)

    def ask_too_often() -> None:
        for _ in range(10 * FACTS["limited_requests"]):
            litellm.completion(**predibase(api_key=FACTS["limited_key"], max_tokens=1))

    raised(litellm.RateLimitError, ask_too_often, "Rate limit exceeded")


@case
def openai_and_vllm_providers_answer() -> None:
    for provider in ("openai", "hosted_vllm"):
        reply = litellm.completion(**openai(provider))
        assert reply.choices[0].message.content == ANSWER, provider
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
        assert streamed(litellm.completion(**openai(provider, stream=True))) == ANSWER, provider
        raised(litellm.NotFoundError, partial(litellm.completion, **openai(provider, model=f"{provider}/no-such")))


@case
def text_completions_answer() -> None:
    reply = litellm.text_completion(
        model=f"text-completion-openai/{ADAPTER}",
        prompt=FACTS["prompt"],
        api_base=f"{URL}/v1",
        api_key=KEY,
        max_tokens=8,
        temperature=0,
    )
    assert reply.choices[0].text == ANSWER


if __name__ == "__main__":
    run_cases("litellm")
