"""The OpenAI routes that generate: POST /v1/completions and /v1/chat/completions."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from fastapi import APIRouter

from manylora.clock import Clock
from manylora.config.groups.server import ServerConfig
from manylora.server.generation.input_processor import PreparedPrompt
from manylora.server.generation.order import Order, PromptInput, TextPrompt
from manylora.server.generation.outputs import SequenceOutput
from manylora.server.generation.reply_headers import head_of, whole_of
from manylora.server.generation.service import Completion, GenerationService
from manylora.server.generation.text import Piece, TextToken
from manylora.server.http.context import DONE, KEEP_ALIVE, HttpContext, event_bytes
from manylora.server.http.routing import Guards, Handler, Routes
from manylora.server.routes.openai.calls import CallWriter, call_writer
from manylora.server.routes.openai.choices import behind, chat_logprobs, completion_logprobs, finish_reason, in_echo
from manylora.server.routes.openai.orders import OpenAIOptions, read_chat, read_completion
from manylora.server.schemas.openai.chat import ChatBody
from manylora.server.schemas.openai.completions import CompletionBody
from manylora.server.schemas.openai.replies import ChatChunk, ChatReply, CompletionReply

Tokens = Sequence[TextToken]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """The differences between the two routes.

    whole    (text, tokens or None) → the fields of a choice in a whole reply
    opening  the delta that opens a choice in a stream; None: there is none
    piece    (text, tokens or None) → the fields of a choice in a chunk
    closing  the fields of the chunk that closes a choice
    """

    id_prefix: str
    name: str
    chunk_name: str
    whole: Callable[[str, Tokens | None], dict[str, object]]
    opening: dict[str, object] | None
    piece: Callable[[str, Tokens | None], dict[str, object]]
    closing: dict[str, object]


def _completion_piece(text: str, tokens: Tokens | None) -> dict[str, object]:
    return {"text": text, "logprobs": None if tokens is None else completion_logprobs(tokens)}


def _chat_whole(text: str, tokens: Tokens | None) -> dict[str, object]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"message": message, "logprobs": None if tokens is None else chat_logprobs(tokens)}


def _chat_piece(text: str, tokens: Tokens | None) -> dict[str, object]:
    return {"delta": {"content": text}, "logprobs": None if tokens is None else chat_logprobs(tokens)}


COMPLETION = _Shape(
    id_prefix="cmpl-",
    name="text_completion",
    chunk_name="text_completion",
    whole=_completion_piece,
    opening=None,
    piece=_completion_piece,
    closing={"text": "", "logprobs": None},
)
CHAT = _Shape(
    id_prefix="chatcmpl-",
    name="chat.completion",
    chunk_name="chat.completion.chunk",
    whole=_chat_whole,
    opening={"delta": {"role": "assistant", "content": ""}, "logprobs": None},
    piece=_chat_piece,
    closing={"delta": {}, "logprobs": None},
)


def openai_router(routes: "OpenAIRoutes", guards: Guards, clock: Clock) -> APIRouter:
    """Return the router of the OpenAI routes that generate."""
    router = Routes(APIRouter(dependencies=guards.with_body), clock)
    router.add(
        "POST /v1/completions",
        routes.completions,
        "Complete a prompt",
        body=CompletionBody,
        replies={200: CompletionReply},
        events=CompletionReply,
    )
    router.add(
        "POST /v1/chat/completions",
        routes.chat_completions,
        "Answer a conversation",
        body=ChatBody,
        replies={200: ChatReply},
        events=ChatChunk,
    )
    return router.router


class OpenAIRoutes:
    """The handlers of the OpenAI routes that generate."""

    def __init__(self, service: GenerationService, settings: ServerConfig) -> None:
        self._service = service
        self._settings = settings

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers by route, for the lines of batches."""
        return {"/v1/chat/completions": self.chat_completions, "/v1/completions": self.completions}

    async def completions(self, context: HttpContext) -> None:
        await self._run(context, COMPLETION, *read_completion(context.arrival.body, self._settings))

    async def chat_completions(self, context: HttpContext) -> None:
        await self._run(context, CHAT, *read_chat(context.arrival.body, self._settings))

    async def _run(self, context: HttpContext, shape: _Shape, order: Order, options: OpenAIOptions) -> None:
        # The error of an unknown adapter has this name; the error of one of several names the member itself.
        context.model = None if order.adapter.names_several else order.adapter_name or ""
        reply = self._stream if order.is_stream else self._whole
        await self._service.run(order, context, partial(reply, context, shape, options))

    async def _whole(self, context: HttpContext, shape: _Shape, options: OpenAIOptions, completion: Completion) -> None:
        await completion.outputs.collect()
        await completion.settle()
        body = {
            **_envelope(context, shape, options, completion, is_stream=False),
            "choices": _whole_choices(shape, options, completion),
            "usage": usage_of(completion),
        }
        await context.reply(body, headers=whole_of(completion))

    async def _stream(
        self, context: HttpContext, shape: _Shape, options: OpenAIOptions, completion: Completion
    ) -> None:
        envelope = _envelope(context, shape, options, completion, is_stream=True)
        writers = [call_writer(completion) for _ in range(completion.num_sequences)]
        chunks = _Chunks(shape, options, envelope, _echoes(options, completion), writers)
        await completion.outputs.wait_for_head(self._settings.stream_head_wait_s)
        await context.begin_stream(head_of(completion))
        async for piece in completion.outputs.pieces(self._settings.keepalive_s):
            if piece is None:
                await context.send_event(KEEP_ALIVE)
            elif events := chunks.of(piece):
                await context.send_event(events)
        await completion.settle()
        await context.end_stream(chunks.end(usage_of(completion)) + DONE)


def _envelope(
    context: HttpContext, shape: _Shape, options: OpenAIOptions, completion: Completion, *, is_stream: bool
) -> dict[str, object]:
    return {
        "id": shape.id_prefix + secrets.token_hex(16),
        "object": shape.chunk_name if is_stream else shape.name,
        "created": int(context.clock.wall_s()),
        "model": completion.model_name,
        "system_fingerprint": f"manylora-{completion.model.served.sha[:12]}",
        **({} if options.service_tier is None else {"service_tier": options.service_tier}),
    }


def _echoes(options: OpenAIOptions, completion: Completion) -> list[str]:
    """Return the echo of each prompt."""
    return [_echo(options, *each) for each in zip(completion.order.prompts, completion.prompts, strict=True)]


def _echo(options: OpenAIOptions, given: PromptInput, prepared: PreparedPrompt) -> str:
    """Return the prompt's text from the request; for token ids or a cut prompt, the text with its special tokens."""
    if not options.echo:
        return ""
    if isinstance(given, TextPrompt) and not prepared.is_cut:
        return given.text
    return prepared.rules.tokenizer.decode(prepared.tokens, skip_special_tokens=False)


class _Chunks:
    """Makes the events of one stream from the pieces of its choices."""

    def __init__(
        self,
        shape: _Shape,
        options: OpenAIOptions,
        envelope: dict[str, object],
        echoes: Sequence[str],
        writers: Sequence[CallWriter | None],
    ) -> None:
        self._options = options
        self._shape = shape
        self._envelope = envelope
        self._echoes = [echo for echo in echoes for _ in range(options.best_of)]
        self._opened: set[int] = set()
        self._writers = writers
        self._untold: list[list[TextToken]] = [[] for _ in writers]  # tokens of text that a writer holds back

    def of(self, piece: Piece) -> bytes:
        """Return the events of one piece; empty if it has none."""
        index = piece.sequence
        echo = self._echoes[index]
        events = b"" if index in self._opened else self._open(index, echo, piece.prompt)
        if (writer := self._writers[index]) is not None:
            return events + self._of_calls(piece, writer)
        if piece.text or piece.tokens:
            tokens = behind(echo, piece.tokens) if self._options.has_logprobs else None
            events += self._chunk(index, self._shape.piece(piece.text, tokens), None)
        if piece.end is not None:
            events += self._chunk(index, self._shape.closing, finish_reason(piece.end, is_cut=piece.is_cut))
        return events

    def _of_calls(self, piece: Piece, writer: CallWriter) -> bytes:
        """Return the events of a piece of a reply that may have calls. Each token goes with the next event."""
        index, events, untold = piece.sequence, b"", self._untold[piece.sequence]
        untold += piece.tokens
        for delta in writer.deltas(piece.text, is_last=piece.end is not None):
            events += self._chunk(index, {"delta": delta, "logprobs": self._logprobs(untold)}, None)
        if piece.end is not None:
            reason = finish_reason(piece.end, is_cut=piece.is_cut, own=writer.finish_reason)
            events += self._chunk(index, {"delta": {}, "logprobs": self._logprobs(untold)}, reason)
        return events

    def _logprobs(self, untold: list[TextToken]) -> dict[str, object] | None:
        """Return the log-probabilities of tokens, and forget these."""
        if not untold or not self._options.has_logprobs:
            return None
        found = chat_logprobs(untold)
        untold.clear()
        return found

    def end(self, usage: dict[str, object]) -> bytes:
        if not self._options.include_usage:
            return b""
        return event_bytes({**self._envelope, "choices": [], "usage": usage})

    def _open(self, index: int, echo: str, prompt: Tokens | None) -> bytes:
        self._opened.add(index)
        events = b""
        if self._shape.opening is not None:
            events += self._chunk(index, self._shape.opening, None)
        if echo:
            tokens = None if prompt is None else in_echo(prompt, echo)
            events += self._chunk(index, self._shape.piece(echo, tokens), None)
        return events

    def _chunk(self, index: int, fields: dict[str, object], finish_reason: str | None) -> bytes:
        choice = {"index": index, **fields, "finish_reason": finish_reason}
        body: dict[str, object] = {**self._envelope, "choices": [choice]}
        if self._options.include_usage:
            body["usage"] = None
        return event_bytes(body)


def usage_of(completion: Completion) -> dict[str, object]:
    """Return the usage: the tokens of each prompt once, and the generated tokens of all sequences."""
    prompt_tokens, completion_tokens = completion.num_prompt_tokens, completion.outputs.num_generated_tokens
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": completion.num_cached_tokens},
    }


def _whole_choices(shape: _Shape, options: OpenAIOptions, completion: Completion) -> list[dict[str, object]]:
    """Return the n best sequences of each prompt; index = prompt number × n + sequence number."""
    choices: list[dict[str, object]] = []
    for number, echo in enumerate(_echoes(options, completion)):
        found = list(completion.outputs.sequences[number * options.best_of : (number + 1) * options.best_of])
        if options.best_of > options.n:
            found.sort(key=lambda sequence: -sequence.mean_logprob)
        for sequence in found[: options.n]:
            writer = call_writer(completion)
            choices.append({"index": len(choices), **_whole_choice(shape, options, sequence, echo, writer)})
    return choices


def _whole_choice(
    shape: _Shape, options: OpenAIOptions, sequence: SequenceOutput, echo: str, writer: CallWriter | None
) -> dict[str, object]:
    tokens = [*in_echo(sequence.prompt or (), echo), *behind(echo, sequence.tokens)] if options.has_logprobs else None
    fields = shape.whole(echo + sequence.text, tokens)
    if writer is not None:
        fields["message"] = writer.message(sequence.text)
    own = "stop" if writer is None else writer.finish_reason
    reason = finish_reason(sequence.end, is_cut=sequence.is_cut, own=own)
    return {**fields, "finish_reason": reason}
