"""The replies of /v1/responses: a response, its items and its events."""

from collections.abc import Mapping
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

Json = dict[str, Any]  # JSON values of several types


class OutputText(TypedDict):
    """The text of a message."""

    type: Literal["output_text"]
    text: str
    annotations: list[Json]
    logprobs: list[Json]


class OutputMessage(TypedDict):
    """A message of the model."""

    id: str
    type: Literal["message"]
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"]
    content: list[OutputText]


class OutputCall(TypedDict):
    """A call of a function."""

    id: str
    type: Literal["function_call"]
    status: Literal["in_progress", "completed", "incomplete"]
    call_id: str
    name: str
    arguments: str


class ResponseUsage(TypedDict):
    """The tokens of a response."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponseReply(TypedDict):
    """A response."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    conversation: Json | None
    error: Json | None
    incomplete_details: Json | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: Mapping[str, str]
    model: str
    output: list[OutputMessage | OutputCall]
    parallel_tool_calls: bool
    previous_response_id: str | None
    store: bool
    temperature: float
    text: Json
    tool_choice: str | Json
    tools: list[Json]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None


class InputText(TypedDict):
    """A text of the caller."""

    type: Literal["input_text"]
    text: str


class InputMessage(TypedDict):
    """A message of the conversation."""

    id: str
    type: Literal["message"]
    status: Literal["completed"]
    role: Literal["system", "developer", "user", "assistant"]
    content: list[InputText | OutputText]


class CallOutput(TypedDict):
    """The result of a call."""

    id: str
    type: Literal["function_call_output"]
    status: Literal["completed"]
    call_id: str
    output: str


class InputItemPage(TypedDict):
    """A page of the items of the conversation that a response answers."""

    object: Literal["list"]
    data: list[InputMessage | OutputCall | CallOutput]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ResponseEvent(TypedDict):
    """One event of a stream; its `type` decides which of the further fields it has.

    response  of the events that begin and end the stream, and the one before the first output
    item      of those that open and close an item of the output
    part      of those that open and close the text of a message
    """

    type: str
    sequence_number: int
    response: NotRequired[ResponseReply]
    output_index: NotRequired[int]
    item: NotRequired[OutputMessage | OutputCall]
    item_id: NotRequired[str]
    content_index: NotRequired[int]
    part: NotRequired[OutputText]
    delta: NotRequired[str]
    text: NotRequired[str]
    logprobs: NotRequired[list[Json]]
    name: NotRequired[str]
    arguments: NotRequired[str]
