"""The LoRAX-style routes: POST /generate, /generate_stream, / and /invocations."""

from functools import partial

from fastapi import APIRouter

from manylora.clock import Clock
from manylora.config.groups.server import ServerConfig
from manylora.engine.events import Finished, FinishReason
from manylora.server.generation.outputs import SequenceOutput
from manylora.server.generation.reply_headers import head_of, timings_of, whole_of
from manylora.server.generation.service import Completion, GenerationService
from manylora.server.generation.text import Piece, TextToken
from manylora.server.http.context import KEEP_ALIVE, HttpContext, event_bytes
from manylora.server.http.routing import Guards, Routes
from manylora.server.routes.lorax.orders import LoraxOptions, read_generate
from manylora.server.schemas.lorax.bodies import GenerateBody
from manylora.server.schemas.lorax.replies import GenerateEvent, GenerateReply

REPLY: dict[int, object] = {200: GenerateReply}


def lorax_router(routes: "NativeRoutes", guards: Guards, clock: Clock) -> APIRouter:
    """Return the router of the LoRAX-style routes that generate."""
    router = Routes(APIRouter(dependencies=guards.with_body), clock)
    either: dict[int, object] = {200: list[GenerateReply]}
    for name, summary in (
        ("POST /", "Generate a text; `stream` decides how"),
        ("POST /invocations", "Generate a text, as the root path does"),
    ):
        router.add(name, routes.root, summary, body=GenerateBody, replies=either, events=GenerateEvent)
    router.add("POST /generate", routes.generate, "Generate a text", body=GenerateBody, replies=REPLY)
    router.add(
        "POST /generate_stream",
        routes.generate_stream,
        "Generate a text, one server-sent event a token",
        body=GenerateBody,
        events=GenerateEvent,
    )
    return router.router


REASONS = {
    FinishReason.END_OF_SEQUENCE: "eos_token",
    FinishReason.STOP_TOKEN: "eos_token",
    FinishReason.STOP_STRING: "stop_sequence",
    FinishReason.LENGTH: "length",
}
MAX_EVENT_BYTES = 120_000
"""Largest size of an event; no known client refuses a line of this size."""
NO_TOKEN = TextToken(id=0, text="", offset=0, logprob=0.0, is_special=True)
"""The token in the last event of a stream without tokens."""


class NativeRoutes:
    """The handlers of the LoRAX-style routes."""

    def __init__(self, service: GenerationService, settings: ServerConfig) -> None:
        self._service = service
        self._settings = settings
        self._max_input = max(base.served.max_input_length for base in service.models.handles)

    async def generate(self, context: HttpContext) -> None:
        await self._run(context, is_stream=False)

    async def generate_stream(self, context: HttpContext) -> None:
        await self._run(context, is_stream=True)

    async def root(self, context: HttpContext) -> None:
        """Reply with a stream or a whole text, by the field `stream`. A whole reply is an array with one entry."""
        await self._run(context, is_stream=None)

    async def _run(self, context: HttpContext, *, is_stream: bool | None) -> None:
        """Run the request. `is_stream` is whether the route streams; None: the body decides."""
        order, options = read_generate(
            context.arrival.body, self._settings, max_input=self._max_input, is_stream=is_stream
        )
        if order.is_stream:
            await self._service.run(order, context, partial(self._stream, context, options))
        else:
            await self._service.run(order, context, partial(self._whole, context, options, is_array=is_stream is None))

    async def _whole(
        self, context: HttpContext, options: LoraxOptions, completion: Completion, *, is_array: bool
    ) -> None:
        await completion.outputs.collect()
        await completion.settle()
        body = _whole(options, completion)
        await context.reply([body] if is_array else body, headers=whole_of(completion))

    async def _stream(self, context: HttpContext, options: LoraxOptions, completion: Completion) -> None:
        """Stream one event for each token. The event of the last token closes the stream."""
        await completion.outputs.wait_for_head(self._settings.stream_head_wait_s)
        await context.begin_stream(head_of(completion))
        async for piece in completion.outputs.pieces(self._settings.keepalive_s):
            if piece is None:
                await context.send_event(KEEP_ALIVE)
            elif piece.end is not None:
                await completion.settle()
                await context.end_stream(_last_event(options, completion, piece, piece.end))
            else:
                (token,) = piece.tokens
                await context.send_event(event_bytes(_token_event(options, token, token.text)))


def _token_event(options: LoraxOptions, token: TextToken, text: str) -> dict[str, object]:
    return {
        "token": _token(token, text, has_alternatives=options.has_alternatives),
        "generated_text": None,
        "details": None,
    }


def _last_event(options: LoraxOptions, completion: Completion, piece: Piece, end: Finished) -> bytes:
    """Return the event of the last token and the end; it omits a text that is too long, and says so in a field."""
    (sequence,) = completion.outputs.sequences
    token = piece.tokens[0] if piece.tokens else NO_TOKEN
    text = "" if token.is_hidden else token.text  # clients print the text of the last event
    prompt_tokens, completion_tokens = end.counts.prompt_tokens, sequence.stream.num_tokens
    body = _token_event(options, token, text) | {
        "generated_text": options.prefix + sequence.text,
        "details": None
        if not options.has_details
        else {
            "finish_reason": REASONS[end.reason],
            "prompt_tokens": prompt_tokens,
            "generated_tokens": completion_tokens,
            "skipped_tokens": sequence.stream.num_gained,
            "seed": _seed(options, sequence),
        },
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
        "timings": timings_of(completion),
    }
    event = event_bytes(body)
    if len(event) > MAX_EVENT_BYTES:
        event = event_bytes(body | {"generated_text": "", "generated_text_omitted": True})
    return event


def _whole(options: LoraxOptions, completion: Completion) -> dict[str, object]:
    """Return the body of a whole reply: the best sequence, and the others beside it."""
    best, *others = sorted(completion.outputs.sequences, key=lambda sequence: -sequence.mean_logprob)
    body: dict[str, object] = {"generated_text": options.prefix + best.text}
    if not options.has_details:
        return body
    details: dict[str, object] = {
        **_sequence(options, best),
        "prompt_tokens": best.end.counts.prompt_tokens,
        "skipped_tokens": best.stream.num_gained,
    }
    if options.has_several:
        details["best_of_sequences"] = [
            {"generated_text": options.prefix + other.text, **_sequence(options, other)} for other in others
        ]
    body["details"] = details
    return body


def _sequence(options: LoraxOptions, sequence: SequenceOutput) -> dict[str, object]:
    return {
        "finish_reason": REASONS[sequence.end.reason],
        "generated_tokens": sequence.stream.num_tokens,
        "seed": _seed(options, sequence),
        "prefill": [{"id": token.id, "text": token.text, "logprob": token.logprob} for token in sequence.prompt or ()],
        "tokens": [_token(token, token.text, has_alternatives=options.has_alternatives) for token in sequence.tokens],
    }


def _seed(options: LoraxOptions, sequence: SequenceOutput) -> int | None:
    """Return the seed of a sequence; None for a greedy one."""
    return sequence.stream.request.sampling.seed if options.has_seed else None


def _token(token: TextToken, text: str, *, has_alternatives: bool) -> dict[str, object]:
    body: dict[str, object] = {
        "id": token.id,
        "text": text,
        "logprob": token.logprob,
        "special": token.is_special,
        "skipped": token.is_gained,
    }
    if has_alternatives:
        body["alternative_tokens"] = [
            {"id": other.id, "text": other.text, "logprob": other.logprob} for other in token.alternatives
        ]
    return body
