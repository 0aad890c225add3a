"""Cases of tools, of parsed replies and of fields, for `openai_python.py`."""

import json
from typing import Any, Literal, get_type_hints

import openai
from openai import OpenAI
from openai.types import chat, completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.shared_params import FunctionDefinition
from pydantic import BaseModel

from tests.clients.scripts import openai_fields
from tests.clients.scripts.cases import FACTS, case, core, raised

client = OpenAI(base_url=f"{FACTS['url']}/v1", api_key=FACTS["key"], max_retries=0)
ASKED: Any = [{"role": "user", "content": "What is the weather in Rome?"}]
CITY = {"type": "string", "enum": ["Rome", "Paris"]}
SCHEMA = {"type": "object", "properties": {"city": CITY}, "required": ["city"], "additionalProperties": False}
WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA, "strict": True}}
NOW: Any = {"type": "function", "function": {"name": "now"}}
SAMPLED: Any = {"model": FACTS["base"], "messages": ASKED, "max_tokens": 120, "temperature": 0}


class Weather(BaseModel):
    """Get the weather of a city."""

    city: Literal["Rome", "Paris"]


@case
def a_required_tool_is_called_by_its_schema() -> None:
    reply = client.chat.completions.create(
        **SAMPLED, tools=[WEATHER, NOW], tool_choice="required", parallel_tool_calls=False
    )
    choice = reply.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    [call] = choice.message.tool_calls or []
    assert call.type == "function"
    assert call.id.startswith("call_")
    arguments = json.loads(call.function.arguments)
    assert arguments.keys() == ({"city"} if call.function.name == "get_weather" else set())


@core
def a_named_tool_is_called_and_its_result_read() -> None:
    choice: Any = {"type": "function", "function": {"name": "get_weather"}}
    reply = client.chat.completions.create(**SAMPLED, tools=[WEATHER, NOW], tool_choice=choice, n=2)
    for each in reply.choices:
        assert {call.function.name for call in each.message.tool_calls or []} == {"get_weather"}
    message = reply.choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls or []]
    more = client.chat.completions.create(
        model=FACTS["base"], messages=[*ASKED, message.to_dict(), *results], max_tokens=4, tools=[WEATHER]
    )
    assert more.usage is not None
    assert reply.usage is not None
    assert more.usage.prompt_tokens > reply.usage.prompt_tokens


@case
def a_streamed_call_is_the_whole_one() -> None:
    choice: Any = {"type": "function", "function": {"name": "get_weather"}}
    asked: Any = {**SAMPLED, "tools": [WEATHER, NOW], "tool_choice": choice, "parallel_tool_calls": False}
    [whole] = client.chat.completions.create(**asked).choices[0].message.tool_calls or []
    chunks = list(client.chat.completions.create(**asked, stream=True))
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert deltas[0].id
    assert (deltas[0].index, deltas[0].type) == (0, "function")
    assert deltas[0].function is not None
    assert (deltas[0].function.name, deltas[0].function.arguments) == ("get_weather", "")
    assert all(call.id is None and call.function is not None and call.function.name is None for call in deltas[1:])
    assert "".join(call.function.arguments or "" for call in deltas if call.function) == whole.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls


@case
def with_auto_the_reply_is_text_or_calls() -> None:
    reply = client.chat.completions.create(**SAMPLED, tools=[WEATHER], tool_choice="auto").choices[0]
    assert bool(reply.message.content) or reply.finish_reason == "tool_calls"
    silent = client.chat.completions.create(**SAMPLED, tools=[WEATHER], tool_choice="none").choices[0]
    assert silent.message.content
    assert silent.message.tool_calls is None


@core
def parsed_replies_are_models() -> None:
    parsed = client.chat.completions.parse(**SAMPLED, response_format=Weather).choices[0].message.parsed
    assert parsed is not None
    assert parsed.city in ("Rome", "Paris")
    tool: Any = openai.pydantic_function_tool(Weather)
    reply = client.chat.completions.parse(**SAMPLED, tools=[tool], tool_choice="required", parallel_tool_calls=False)
    [call] = reply.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather)


@case
def wrong_tools_are_bad_requests() -> None:
    create = client.chat.completions.create
    wrong: Any = [{"type": "function", "function": {"name": "no spaces"}}]
    error = raised(openai.BadRequestError, lambda: create(**SAMPLED, tools=wrong))
    assert (error.code, error.param, error.type) == ("tool_error", "tools", "invalid_request_error")
    schema: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "not": {}}}}]
    assert raised(openai.BadRequestError, lambda: create(**SAMPLED, tools=schema)).param == "tools"


@case
def the_key_and_its_limit_are_errors_of_their_own() -> None:
    wrong = OpenAI(base_url=f"{FACTS['url']}/v1", api_key="pb_00000000_x", max_retries=0)
    denied = raised(openai.AuthenticationError, lambda: wrong.completions.create(model="", prompt="x", max_tokens=1))
    assert denied.code == "invalid_api_key"
    assert isinstance(denied, openai.APIStatusError)
    slow = OpenAI(base_url=f"{FACTS['url']}/v1", api_key=FACTS["limited_key"], max_retries=0)

    def ask_often() -> None:
        for _ in range(10 * FACTS["limited_requests"]):
            slow.completions.create(model="", prompt="x", max_tokens=1)

    limited = raised(openai.RateLimitError, ask_often)
    assert limited.code == "rate_limit_exceeded"
    assert limited.type == "requests"
    assert float(limited.response.headers["retry-after"]) > 0


@core
def prompts_are_scored() -> None:
    reply = client.completions.create(model="", prompt="Once upon a time", echo=True, logprobs=1, max_tokens=0).choices[
        0
    ]
    assert reply.logprobs is not None
    scores = reply.logprobs.token_logprobs or []
    assert scores[0] is None
    assert all(score is not None and score <= 0 for score in scores[1:])
    assert "".join(reply.logprobs.tokens or []) == reply.text == "Once upon a time"


@core
def every_field_of_the_package_has_an_outcome() -> None:
    base, stream = chat_create_params.CompletionCreateParamsBase, chat_create_params.CompletionCreateParamsStreaming
    assert {*get_type_hints(base), *get_type_hints(stream)} == openai_fields.CHAT.keys()
    own = completion_create_params.CompletionCreateParamsBase
    streaming = completion_create_params.CompletionCreateParamsStreaming
    assert {*get_type_hints(own), *get_type_hints(streaming)} == openai_fields.COMPLETION.keys()
    options = get_type_hints(chat.ChatCompletionStreamOptionsParam)
    assert options.keys() == openai_fields.STREAM_OPTIONS.keys()
    for role, fields in openai_fields.MESSAGE_FIELDS.items():
        assert get_type_hints(getattr(chat, f"ChatCompletion{role.title()}MessageParam")).keys() == fields
    assert get_type_hints(FunctionDefinition).keys() == openai_fields.FUNCTION_FIELDS
