"""The output of a response: its message and its calls of functions, with the events of a stream that tell of them."""

import secrets
from collections.abc import Sequence
from typing import Any

from manylora.server.routes.openai.calls import CallWriter
from manylora.server.routes.openai.input_items import text_part

Json = dict[str, Any]  # JSON values of several types
Event = tuple[str, Json]
"""The type and the fields of one event, without its number."""

MESSAGE, CALL = "message", "function_call"


class ResponseOutput:
    """The items of one response, in order of their begin. At most the last one is open."""

    def __init__(self, writer: CallWriter | None) -> None:
        """`writer` finds the calls in the text; None: the request has no tools."""
        self.items: list[Json] = []
        self._writer = writer
        self._is_open = False
        self._untold: list[Json] = []  # log-probabilities of tokens that go with the next text

    def begin(self) -> list[Event]:
        """Return the events before the first text. Where calls are possible, the text decides on the first item."""
        return [] if self._writer is not None else self._open_message()

    def push(self, text: str, *, is_last: bool, logprobs: Sequence[Json] = ()) -> list[Event]:
        """Take the next text of the reply, with the log-probabilities of its tokens; return its events."""
        if self._writer is None:
            self._untold += logprobs
            return self._say(text) if text or (is_last and self._untold) else []
        events: list[Event] = []
        for delta in self._writer.deltas(text, is_last=is_last):
            calls = delta.get("tool_calls")
            if isinstance(calls, list):
                events += self._call(calls[0])
            elif content := delta.get("content"):
                events += self._say(str(content))
        return events

    def end(self, status: str) -> list[Event]:
        """Close the last item with the response's status; a reply without any item has an empty message."""
        events = [] if self.items else self._open_message()
        return events + self._close(status)

    def message(self) -> Json:
        """Return the output as a message of a conversation on the chat route."""
        text = "".join(item["content"][0]["text"] for item in self.items if item["type"] == MESSAGE)
        calls = [call_of(item) for item in self.items if item["type"] == CALL]
        return {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}

    def plain_items(self) -> list[Json]:
        """Return the items as an input has them, without log-probabilities."""
        return [
            {**item, "content": [text_part(item["content"][0]["text"])]} if item["type"] == MESSAGE else item
            for item in self.items
        ]

    def _say(self, text: str) -> list[Event]:
        events = [] if self._is_open and self.items[-1]["type"] == MESSAGE else self._open_message()
        part, told = self.items[-1]["content"][0], self._untold
        part["text"] += text
        part["logprobs"] += told
        self._untold = []
        return [*events, ("response.output_text.delta", {**self._text_place(), "delta": text, "logprobs": told})]

    def _call(self, call: Json) -> list[Event]:
        function, events = call["function"], list[Event]()
        if "id" in call:
            events += self._close("completed")
            item_id = f"fc_{secrets.token_hex(16)}"
            own = {"call_id": call["id"], "name": function["name"], "arguments": ""}
            events += self._open({"id": item_id, "type": CALL, "status": "in_progress", **own})
        if part := function.get("arguments"):
            self.items[-1]["arguments"] += part
            events.append(("response.function_call_arguments.delta", {**self._place(), "delta": part}))
        return events

    def _open_message(self) -> list[Event]:
        item_id = f"msg_{secrets.token_hex(16)}"
        item: Json = {"id": item_id, "type": MESSAGE, "status": "in_progress", "role": "assistant", "content": []}
        events = [*self._close("completed"), *self._open(item)]
        item["content"] = [text_part("")]
        return [*events, ("response.content_part.added", {**self._text_place(), "part": text_part("")})]

    def _open(self, item: Json) -> list[Event]:
        self.items.append(item)
        self._is_open = True
        return [("response.output_item.added", {"output_index": len(self.items) - 1, "item": dict(item)})]

    def _close(self, status: str) -> list[Event]:
        if not self._is_open:
            return []
        self._is_open, item = False, self.items[-1]
        item["status"] = status
        if item["type"] == MESSAGE:
            part, place = item["content"][0], self._text_place()
            events: list[Event] = [
                ("response.output_text.done", {**place, "text": part["text"], "logprobs": part["logprobs"]}),
                ("response.content_part.done", {**place, "part": part}),
            ]
        else:
            done = {**self._place(), "name": item["name"], "arguments": item["arguments"]}
            events = [("response.function_call_arguments.done", done)]
        return [*events, ("response.output_item.done", {"output_index": len(self.items) - 1, "item": dict(item)})]

    def _place(self) -> Json:
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}

    def _text_place(self) -> Json:
        return {**self._place(), "content_index": 0}


def call_of(item: Json) -> Json:
    """Return an item `function_call` as a call in a message of the chat route."""
    function = {"name": item["name"], "arguments": item["arguments"]}
    return {"id": item["call_id"], "type": "function", "function": function}
