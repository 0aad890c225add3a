"""Messages of the chat route as OpenAI's items: of the conversation that a kept response answers, and new ones."""

import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from manylora.errors import InvalidParameter
from manylora.server.http.routing import Parameter
from manylora.server.routes.openai.pages import page_of
from manylora.server.storage.responses import KeptResponse

Json = dict[str, Any]  # JSON values of several types
MOST_ITEMS, DEFAULT_ITEMS = 100, 20
ORDER = Parameter("order", "query", "asc, or desc: the newest first; default desc")


def input_page(response: KeptResponse, query: dict[str, str]) -> dict[str, object]:
    """Return a page of the items, earlier turns included. Raises `InvalidParameter` for wrong parameters."""
    return item_page(list(_items(response)), query)


def item_page(items: list[Json], query: dict[str, str]) -> dict[str, object]:
    """Return a page of items that come in their order. Raises `InvalidParameter` for wrong parameters."""
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidParameter(f"`order` must be asc or desc. Given: {order[:40]!r}", parameter="order")
    if order == "desc":
        items = items[::-1]
    return page_of(
        items, query, lambda item: item, id_of=lambda item: str(item["id"]), default=DEFAULT_ITEMS, most=MOST_ITEMS
    )


def text_part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def new_items(messages: Iterable[Mapping[str, Any]]) -> tuple[Json, ...]:
    """Return messages of the chat route as items, each with an id of its own."""
    return tuple(
        {"id": f"{prefix}_{secrets.token_hex(16)}", "status": "completed", **item}
        for message in messages
        for prefix, item in items_of(message)
    )


def _items(response: KeptResponse) -> Iterator[Json]:
    """Yield the items of all messages but the reply. An id has the response's and the item's number."""
    own, number = response.id.removeprefix("resp_"), 0
    for message in response.messages[:-1]:
        for prefix, item in items_of(message):
            yield {"id": f"{prefix}_{own}{number:04x}", "status": "completed", **item}
            number += 1


def items_of(message: Mapping[str, Any]) -> Iterator[tuple[str, Json]]:
    """Yield the items of a message of the chat route, each with the begin of its id."""
    role, text = message["role"], message["content"]
    if role == "tool":
        yield "fco", {"type": "function_call_output", "call_id": message["tool_call_id"], "output": text}
        return
    calls = message.get("tool_calls", ())
    if text or not calls:
        part = text_part(text) if role == "assistant" else {"type": "input_text", "text": text}
        yield "msg", {"type": "message", "role": role, "content": [part]}
    for call in calls:
        yield "fc", {"type": "function_call", "call_id": call["id"], **call["function"]}
