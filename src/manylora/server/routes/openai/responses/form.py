"""A response in OpenAI's form, from the request for it and the completion."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from manylora.server.generation.service import Completion
from manylora.server.http.context import HttpContext
from manylora.server.routes.openai.responses.output import ResponseOutput
from manylora.server.schemas.openai.responses import ResponseBody

Json = dict[str, Any]  # JSON values of several types
Message = Mapping[str, Any]
TEXT_BYTES, EVENT_BYTES, LOGPROB_BYTES = 32, 32, 160
"""Bytes of a kept token: of its text, which the reply and the conversation have; of its event, compressed; and of its
log-probability, or of an alternative to it. Most tokens have fewer."""


@dataclass(frozen=True, slots=True)
class ResponseWish:
    """A request for a response.

    conversation  the messages of the prompt without instructions, which the next response may continue
    """

    id: str
    body: ResponseBody
    conversation: tuple[Message, ...]
    is_kept: bool


@dataclass(frozen=True, slots=True)
class ShownResponse:
    """A response in OpenAI's form."""

    asked: ResponseWish
    model: str
    created_s: int

    @classmethod
    def of(cls, context: HttpContext, asked: ResponseWish, completion: Completion) -> "ShownResponse":
        return cls(asked, completion.model_name, int(context.clock.wall_s()))

    def reply(self, status: str) -> Json:
        """Return the response without output."""
        body = self.asked.body
        return {
            "id": self.asked.id,
            "object": "response",
            "created_at": self.created_s,
            "status": status,
            "background": body.background,
            "conversation": None if body.conversation is None else {"id": body.conversation},
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "metadata": body.metadata or {},
            "model": self.model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls,
            "previous_response_id": body.previous_response_id,
            "store": self.asked.is_kept,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": format_of(body) or {"type": "text"}},
            "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
            "tools": list(body.tools),
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": body.truncation or "disabled",
            "usage": None,
        }

    def ended(self, completion: Completion, output: ResponseOutput, status: str) -> Json:
        """Return the response at its end."""
        input_tokens, output_tokens = completion.num_prompt_tokens, completion.outputs.num_generated_tokens
        return {
            **self.reply(status),
            "incomplete_details": None if status == "completed" else {"reason": "max_output_tokens"},
            "output": output.items,
            "usage": {
                "input_tokens": input_tokens,
                "input_tokens_details": {"cached_tokens": completion.num_cached_tokens},
                "output_tokens": output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": input_tokens + output_tokens,
            },
        }


def growth_of(body: ResponseBody, budget: int) -> int:
    """Return the bytes by which a kept response grows with `budget` tokens, as far as can be known before."""
    scored = LOGPROB_BYTES * (1 + (body.top_logprobs or 0)) if body.has_logprobs else 0
    return budget * (TEXT_BYTES + scored + (EVENT_BYTES + scored if body.stream else 0))


def format_of(body: ResponseBody) -> Json | None:
    return None if body.text is None else body.text.format


def chat_format(body: ResponseBody) -> Json | None:
    """Return the chat route's `response_format` for `text.format`, which has the schema's fields at its top."""
    given = format_of(body)
    if given is None or given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {name: value for name, value in given.items() if name != "type"}}
