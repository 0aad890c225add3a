"""OpenAI's routes of responses: POST /v1/responses, and GET and DELETE of one that is kept."""

import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter

from manylora.clock import Clock
from manylora.config.groups.server import ServerConfig
from manylora.engine.events import Finished
from manylora.errors import InvalidParameter, ManyloraError, RequestRejected, ResourceNotFound, RouteNotBuilt
from manylora.ids import TenantId
from manylora.server.generation.order import ChatPrompt, Order
from manylora.server.generation.reply_headers import head_of, whole_of
from manylora.server.generation.service import Completion, GenerationService
from manylora.server.generation.text import TextToken
from manylora.server.http.context import KEEP_ALIVE, HttpContext, RequestState
from manylora.server.http.routing import Guards, Handler, Parameter, Routes
from manylora.server.routes.openai.calls import call_writer
from manylora.server.routes.openai.choices import chat_entries, finish_reason
from manylora.server.routes.openai.input_items import MOST_ITEMS, ORDER, input_page, new_items
from manylora.server.routes.openai.orders import read_chat
from manylora.server.routes.openai.pages import page_parameters
from manylora.server.routes.openai.responses.background import LONGEST_QUEUE_S, BackgroundResponses, status_of
from manylora.server.routes.openai.responses.events import FOLLOWING, EventLog, Numbered, followed_after
from manylora.server.routes.openai.responses.form import Message, ResponseWish, ShownResponse, chat_format, growth_of
from manylora.server.routes.openai.responses.output import Event, ResponseOutput
from manylora.server.schemas.body import Bounds, read_body
from manylora.server.schemas.openai.response_input import messages_of
from manylora.server.schemas.openai.response_replies import InputItemPage, ResponseEvent, ResponseReply
from manylora.server.schemas.openai.responses import ResponseBody, chat_choice, chat_tool
from manylora.server.schemas.openai.stored import DeletedReply
from manylora.server.storage.conversations import TenantConversations, require_room
from manylora.server.storage.responses import KeptResponse, TenantResponses

log = logging.getLogger(__name__)

Json = dict[str, Any]  # JSON values of several types
FIELDS_OF_CHAT = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
}
"""Fields of the chat route's body → the fields of a response's body that they come from."""
ENDED = ("completed", "incomplete")
"""The states of responses that another one may continue."""
_ID = Parameter("response_id", "path", "The response's id")


def response_routers(routes: "ResponseRoutes", guards: Guards, clock: Clock) -> tuple[APIRouter, ...]:
    """Return the routers of responses: those that read no body, and the others."""
    plain = Routes(APIRouter(dependencies=guards.keyed), clock)
    plain.add(
        "GET /v1/responses/{response_id}",
        routes.show,
        "A response that is kept, or the events of its stream",
        replies={200: ResponseReply},
        parameters=[_ID, *FOLLOWING],
        events=ResponseEvent,
    )
    plain.add(
        "GET /v1/responses/{response_id}/input_items",
        routes.input_items,
        "The conversation that a response answers, as items",
        replies={200: InputItemPage},
        parameters=[_ID, *page_parameters(MOST_ITEMS), ORDER],
    )
    changing = Routes(APIRouter(dependencies=guards.with_body), clock)
    changing.add(
        "POST /v1/responses",
        routes.create,
        "Respond to an input",
        body=ResponseBody,
        replies={200: ResponseReply},
        events=ResponseEvent,
    )
    changing.add(
        "POST /v1/responses/{response_id}/cancel",
        routes.cancel,
        "Cancel a response that runs in the background",
        replies={200: ResponseReply},
        parameters=[_ID],
    )
    changing.add(
        "DELETE /v1/responses/{response_id}",
        routes.delete,
        "Delete a response",
        replies={200: DeletedReply},
        parameters=[_ID],
    )
    return plain.router, changing.router


class ResponseRoutes:
    """The handlers of the routes of responses. A response runs as an order of the chat route."""

    def __init__(
        self,
        service: GenerationService,
        settings: ServerConfig,
        kept: TenantResponses | None,
        conversations: TenantConversations | None,
        clock: Clock,
    ) -> None:
        """Without `kept` and `conversations`, no response can be stored or continued."""
        self._service = service
        self._settings = settings
        self._own_kept = kept
        self._own_conversations = conversations
        self._own_background = None if kept is None else BackgroundResponses(kept, settings, clock)

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers by route, for the lines of batches."""
        return {"/v1/responses": self.create}

    @property
    def _kept(self) -> TenantResponses:
        if self._own_kept is None:
            raise RouteNotBuilt("this server keeps no responses")
        return self._own_kept

    @property
    def _background(self) -> BackgroundResponses:
        if self._own_background is None:
            raise RouteNotBuilt("this server keeps no responses")
        return self._own_background

    async def stop(self) -> None:
        """End the responses that run in the background."""
        if self._own_background is not None:
            await self._own_background.stop()

    @property
    def _conversations(self) -> TenantConversations:
        if self._own_conversations is None:
            raise RouteNotBuilt("this server keeps no conversations")
        return self._own_conversations

    async def create(self, context: HttpContext) -> None:
        """Reply with a response, whole or as a stream of events."""
        body = read_body(context.arrival.body, ResponseBody, Bounds(settings=self._settings))
        asked = await self._asked(context, body)
        order = self._order(asked)
        context.model = None if order.adapter.recipe else order.adapter_name or ""
        if body.background:
            await self._queue(context, asked, order)
            return
        reply = self._stream if order.is_stream else self._whole
        await self._service.run(order, context, partial(reply, context, asked))

    async def _queue(self, context: HttpContext, asked: ResponseWish, order: Order) -> None:
        """Reply with the queued response; it runs as a request of its own."""
        if context.arrival.caller.is_batch:
            raise InvalidParameter("`background` is not for lines of a batch", parameter="background")
        shown = ShownResponse(asked, order.adapter_name or "", int(context.clock.wall_s()))
        queued = shown.reply("queued")
        window = max(model.served.max_model_len for model in self._service.models.handles)
        budget = window if order.max_new_tokens is None else min(order.max_new_tokens, window)
        log = EventLog() if order.is_stream else None
        if log is not None:
            log.add([(f"response.{kind}", {"response": queued}) for kind in ("created", "queued")])

        work = _DetachedRun(self, context.detached(), asked, order, shown, growth_of(asked.body, budget), log)
        said = {"role": "assistant", "content": ""}
        tenant, kept = context.arrival.tenant, self._kept_form(context, asked, queued, said)
        if log is None:
            await self._background.begin(tenant, kept, work)
            await context.reply(queued)
            return
        with self._background.followers.place(tenant):
            await self._background.begin(tenant, kept, work)
            await self._follow(context, asked.id, -1)

    async def _follow(self, context: HttpContext, response_id: str, after: int) -> None:
        """Reply with the events of a response, which goes on if the caller leaves."""
        async with self._background.log_of(context.arrival.tenant, response_id) as log:  # a refusal has its status
            await context.begin_stream({})
            async for events in log.followed(after, self._settings.keepalive_s):
                await context.send_event(events)
        await context.end_stream()

    async def cancel(self, context: HttpContext) -> None:
        found = await self._background.cancel(context.arrival.tenant, context.path_parameters["response_id"])
        await context.reply_bytes(bytes(found.reply), "application/json")

    async def show(self, context: HttpContext) -> None:
        after = followed_after(context.query)
        if after is not None and context.method != "HEAD":
            with self._background.followers.place(context.arrival.tenant):
                await self._follow(context, context.path_parameters["response_id"], after)
            return
        found = await self._background.shown(context.arrival.tenant, context.path_parameters["response_id"])
        await context.reply_bytes(bytes(found.reply), "application/json")

    async def input_items(self, context: HttpContext) -> None:
        found = await self._kept.get(context.arrival.tenant, context.path_parameters["response_id"])
        await context.reply(input_page(found, context.query))

    async def delete(self, context: HttpContext) -> None:
        response_id = context.path_parameters["response_id"]
        await self._background.delete(context.arrival.tenant, response_id)
        await context.reply({"id": response_id, "object": "response", "deleted": True})

    async def _asked(self, context: HttpContext, body: ResponseBody) -> ResponseWish:
        """Return the request with its conversation so far. Raises `ResourceNotFound`, `ControlUnavailable`."""
        before: tuple[Message, ...] = ()
        if body.previous_response_id is not None:
            field_name = "previous_response_id"
            found = await self._kept.get(context.arrival.tenant, body.previous_response_id, field=field_name)
            if status_of(found)[0] not in ENDED:
                raise InvalidParameter("the response before has not completed", parameter=field_name)
            before = found.messages
        if body.conversation is not None:
            going_on = await self._conversations.get(context.arrival.tenant, body.conversation, field="conversation")
            before = messages_of(going_on.items, "conversation")
            require_room(going_on, new_items(body.input))
        if body.store:
            _ = self._kept
        is_kept = body.store is not False and self._own_kept is not None
        response_id = f"resp_{secrets.token_hex(16)}" if self._own_kept is None else self._own_kept.mint_id()
        return ResponseWish(response_id, body, (*before, *body.input), is_kept)

    def _order(self, asked: ResponseWish) -> Order:
        """Return the order. The chat route reads it, so that both routes check and mean the same."""
        body = asked.body
        first = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
        merged = body.merged_adapters
        chat = {
            "messages": [*first, *asked.conversation],
            "model": body.model,
            "adapter_id": body.adapter_id,
            "adapter_source": body.adapter_source,
            "api_token": body.api_token,
            "merged_adapters": None if merged is None else merged.model_dump(exclude_none=True),
            "temperature": body.temperature,
            "top_p": body.top_p,
            "max_completion_tokens": body.max_output_tokens,
            "response_format": chat_format(body),
            "tools": [chat_tool(tool) for tool in body.tools] or None,
            "tool_choice": chat_choice(body.tool_choice),
            "parallel_tool_calls": body.parallel_tool_calls if body.tools else None,
            "stream": body.stream,
            "logprobs": body.has_logprobs,
            "top_logprobs": body.top_logprobs,
        }
        try:
            order, _ = read_chat(msgspec.json.encode(chat), self._settings)
        except RequestRejected as error:
            raise _renamed(error) from error
        prompts = order.prompts
        if body.truncation == "auto":
            prompts = tuple(
                replace(each, num_pinned=len(first)) if isinstance(each, ChatPrompt) else each for each in prompts
            )
        return replace(order, prompts=prompts, prompt_field="input", budget_field="max_output_tokens")

    async def _whole(self, context: HttpContext, asked: ResponseWish, completion: Completion) -> None:
        reply, output = await self._finished(context, asked, completion)
        if not await self._has_gone_on(context, asked, output):
            reply["conversation"] = None
        self._keep(context, asked, reply, output)
        await context.reply(reply, headers=whole_of(completion))

    async def _finished(
        self, context: HttpContext, asked: ResponseWish, completion: Completion
    ) -> tuple[Json, ResponseOutput]:
        """Return the whole response once its usage is recorded."""
        await completion.outputs.collect()
        await completion.settle()
        (sequence,) = completion.outputs.sequences
        output, shown = ResponseOutput(call_writer(completion)), ShownResponse.of(context, asked, completion)
        output.begin()
        output.push(sequence.text, is_last=True, logprobs=_logprobs(asked, sequence.tokens))
        status = _status(sequence.end, is_cut=sequence.is_cut)
        output.end(status)
        return shown.ended(completion, output, status), output

    async def _stream(self, context: HttpContext, asked: ResponseWish, completion: Completion) -> None:
        await completion.outputs.wait_for_head(self._settings.stream_head_wait_s)
        await context.begin_stream(head_of(completion))
        output, shown = ResponseOutput(call_writer(completion)), ShownResponse.of(context, asked, completion)
        events = Numbered()
        opening = [
            (f"response.{kind}", {"response": shown.reply("in_progress")}) for kind in ("created", "in_progress")
        ]
        await context.send_event(events.of([*opening, *output.begin()]))

        async def tell(told: list[Event] | None) -> None:
            if data := KEEP_ALIVE if told is None else events.of(told):
                await context.send_event(data)

        try:
            status = await self._read(asked, completion, output, tell)
            closing = output.end(status)
            reply = shown.ended(completion, output, status)
            if not await self._has_gone_on(context, asked, output):
                reply["conversation"] = None
            self._keep(context, asked, reply, output)
        except ManyloraError as error:
            told = {"code": "server_error", "message": error.message}
            failed = {**shown.reply("failed"), "error": told}
            await context.send_event(events.of([("response.failed", {"response": failed})]))
            raise
        await context.end_stream(events.of([*closing, (f"response.{status}", {"response": reply})]))

    async def _read(
        self,
        asked: ResponseWish,
        completion: Completion,
        output: ResponseOutput,
        tell: Callable[[list[Event] | None], Awaitable[None]],
    ) -> str:
        """Tell the events of the text as it comes, and None where none comes for long; return the status at its end."""
        status = "completed"
        async for piece in completion.outputs.pieces(self._settings.keepalive_s):
            if piece is None:
                await tell(None)
                continue
            is_last, logprobs = piece.end is not None, _logprobs(asked, piece.tokens)
            await tell(output.push(piece.text, is_last=is_last, logprobs=logprobs))
            if piece.end is not None:
                status = _status(piece.end, is_cut=piece.is_cut)
        await completion.settle()
        return status

    async def _has_gone_on(self, context: HttpContext, asked: ResponseWish, output: ResponseOutput) -> bool:
        """Add the items of the input and the output to the conversation; a failure takes no paid reply away."""
        try:
            await self._go_on(context.arrival.tenant, asked, items_after(asked, output))
        except ManyloraError as error:
            log.warning("response.not_in_conversation id=%s error=%s", asked.id, error.message)
            return False
        return True

    async def _go_on(self, tenant: TenantId, asked: ResponseWish, items: tuple[Json, ...]) -> None:
        """Add items to the conversation, unless it has them or is deleted meanwhile.

        Raises `ControlUnavailable`, `StorageUnavailable`, `StorageLimitExceeded`, `NameTaken`.
        """
        if asked.body.conversation is None:
            return
        with suppress(ResourceNotFound):
            await self._conversations.add_once(tenant, asked.body.conversation, items)

    def _keep(self, context: HttpContext, asked: ResponseWish, reply: Json, output: ResponseOutput) -> None:
        if not asked.is_kept:
            return
        self._kept.keep(context.arrival.tenant, self._kept_form(context, asked, reply, output.message()))

    def _kept_form(self, context: HttpContext, asked: ResponseWish, reply: Json, said: Json) -> KeptResponse:
        return KeptResponse(
            id=asked.id,
            created_ms=int(1000 * context.clock.wall_s()),
            reply=msgspec.Raw(msgspec.json.encode(reply)),
            messages=tuple(dict(message) for message in (*asked.conversation, said)),
        )


@dataclass(slots=True)
class _DetachedRun:
    """A response in the background: the request runs without its connection. The ids of its items are made once."""

    routes: ResponseRoutes
    context: HttpContext
    asked: ResponseWish
    order: Order
    shown: ShownResponse
    growth: int
    log: EventLog | None
    is_begun: bool = False
    items: tuple[Json, ...] = ()

    @property
    def arrival(self) -> RequestState:
        return self.context.arrival

    async def run(self) -> KeptResponse:
        done: list[KeptResponse] = []

        async def finish(completion: Completion) -> None:
            self.is_begun = True
            done.append(await self._finished(completion))

        self.arrival.arrived_s = self.context.clock.monotonic_s()
        await self.routes._service.run(self.order, self.context, finish)
        return msgspec.structs.replace(done[-1], beat_ms=1)

    async def _finished(self, completion: Completion) -> KeptResponse:
        if self.log is None:
            reply, output = await self.routes._finished(self.context, self.asked, completion)
            reply["created_at"] = self.shown.created_s
            return self._kept(reply, output)
        await completion.outputs.wait_for_head(LONGEST_QUEUE_S)
        output, shown = ResponseOutput(call_writer(completion)), replace(self.shown, model=completion.model_name)
        self.log.add([("response.in_progress", {"response": shown.reply("in_progress")}), *output.begin()])
        status = await self.routes._read(self.asked, completion, output, self._tell)
        closing, reply = output.end(status), shown.ended(completion, output, status)
        kept = self._kept(reply, output)
        events = self.log.packed([*closing, (f"response.{status}", {"response": kept.reply})])
        return msgspec.structs.replace(kept, events=events)

    async def _tell(self, events: list[Event] | None) -> None:
        if events and self.log is not None:
            self.log.add(events)

    def _kept(self, reply: Json, output: ResponseOutput) -> KeptResponse:
        self.items = items_after(self.asked, output)
        return self.routes._kept_form(self.context, self.asked, reply, output.message())

    async def go_on(self) -> None:
        await self.routes._go_on(self.arrival.tenant, self.asked, self.items)


def items_after(asked: ResponseWish, output: ResponseOutput) -> tuple[Json, ...]:
    """Return the items by which a conversation goes on with a response, with new ids."""
    return (*new_items(asked.body.input), *output.plain_items())


def _status(end: Finished, *, is_cut: bool) -> str:
    return "incomplete" if finish_reason(end, is_cut=is_cut) == "length" else "completed"


def _logprobs(asked: ResponseWish, tokens: Sequence[TextToken]) -> list[Json]:
    return chat_entries(tokens) if asked.body.has_logprobs else []


def _renamed(error: RequestRejected) -> RequestRejected:
    """Return a refusal of the chat route with the name of the response's field."""
    message, parameter = error.message, error.parameter
    for of_chat, own in FIELDS_OF_CHAT.items():
        message = message.replace(f"`{of_chat}", f"`{own}")
        if parameter is not None and parameter.startswith(of_chat):
            parameter = own + parameter.removeprefix(of_chat)
    return InvalidParameter(message, parameter=parameter) if type(error) is InvalidParameter else error
