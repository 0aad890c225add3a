"""The OpenAI routes that generate: POST /v1/completions and /v1/chat/completions."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from manylora.config.groups.server import ServerConfig
from manylora.server.generation.input_processor import PreparedPrompt
from manylora.server.generation.order import ChatPrompt, Order, PromptInput, TextPrompt, TokenPrompt
from manylora.server.generation.outputs import SequenceOutput
from manylora.server.generation.reply_headers import head_of, whole_of
from manylora.server.generation.service import Completion, GenerationService
from manylora.server.generation.text import Piece, ReplyForm, TextToken, TokenReport
from manylora.server.http import sse
from manylora.server.http.context import HttpContext
from manylora.server.routes.openai.choices import chat_logprobs, completion_logprobs, finish_reason
from manylora.server.routes.openai.schema import Conversation, OpenAIOrder, read_chat, read_completion
from manylora.server.schemas.openai import Prompt

Tokens = Sequence[TextToken]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """The differences between the two routes.

    whole    (text, tokens or None) → the fields of a choice in a whole reply
    opening  the delta that opens a choice in a stream; None: there is none
    piece    (text, tokens or None) → the fields of a choice in a chunk
    closing  the fields of the chunk that closes a choice
    …_field  the request's field that an error names
    """

    id_prefix: str
    name: str
    chunk_name: str
    whole: Callable[[str, Tokens | None], dict[str, object]]
    opening: dict[str, object] | None
    piece: Callable[[str, Tokens | None], dict[str, object]]
    closing: dict[str, object]
    prompt_field: str
    budget_field: str


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
    prompt_field="prompt",
    budget_field="max_tokens",
)
CHAT = _Shape(
    id_prefix="chatcmpl-",
    name="chat.completion",
    chunk_name="chat.completion.chunk",
    whole=_chat_whole,
    opening={"delta": {"role": "assistant", "content": ""}, "logprobs": None},
    piece=_chat_piece,
    closing={"delta": {}, "logprobs": None},
    prompt_field="messages",
    budget_field="max_completion_tokens",
)


class OpenAIRoutes:
    """Answers in OpenAI's shapes."""

    def __init__(self, service: GenerationService, settings: ServerConfig) -> None:
        self._service = service
        self._settings = settings

    async def completions(self, context: HttpContext) -> None:
        asked, prompts = read_completion(context.arrival.body, self._settings)
        inputs = tuple(_prompt_input(asked, prompt) for prompt in prompts)
        await self._run(context, asked, COMPLETION, inputs)

    async def chat_completions(self, context: HttpContext) -> None:
        asked, conversation = read_chat(context.arrival.body, self._settings)
        await self._run(context, asked, CHAT, (_chat_input(conversation),))

    async def _run(
        self, context: HttpContext, asked: OpenAIOrder, shape: _Shape, prompts: tuple[PromptInput, ...]
    ) -> None:
        context.model = _named(asked)
        reply = self._stream if asked.is_stream else self._whole
        await self._service.run(_order(asked, shape, prompts), context, partial(reply, context, asked, shape))

    async def _whole(self, context: HttpContext, asked: OpenAIOrder, shape: _Shape, completion: Completion) -> None:
        await completion.outputs.collect()
        await completion.settle()
        body = {
            **_envelope(context, shape, completion, is_stream=False),
            "choices": _whole_choices(asked, shape, completion),
            "usage": usage_of(completion),
        }
        await context.reply(body, headers=whole_of(completion))

    async def _stream(self, context: HttpContext, asked: OpenAIOrder, shape: _Shape, completion: Completion) -> None:
        envelope = _envelope(context, shape, completion, is_stream=True)
        chunks = _Chunks(asked, shape, envelope, _echoes(asked, completion))
        await completion.outputs.wait_for_head(self._settings.stream_head_wait_s)
        await context.begin_stream(head_of(completion))
        async for piece in completion.outputs.pieces(self._settings.keepalive_s):
            if piece is None:
                await context.send_event(sse.KEEP_ALIVE)
            elif events := chunks.of(piece):
                await context.send_event(events)
        await completion.settle()
        await context.end_stream(chunks.end(usage_of(completion)) + sse.DONE)


def _order(asked: OpenAIOrder, shape: _Shape, prompts: tuple[PromptInput, ...]) -> Order:
    """Return the order in no dialect; `adapter_id` wins over `model`."""
    is_adapter_named = bool(asked.adapter.adapter_id or asked.adapter.recipe)
    has_logprobs = asked.logprobs is not None
    return Order(
        model=asked.model,
        adapter_name=asked.adapter.adapter_id if is_adapter_named else asked.model,
        adapter=asked.adapter,
        adapter_field="adapter_id" if is_adapter_named else "model",
        prompts=prompts,
        num_sequences=asked.best_of,
        sampling=asked.ranked_sampling,
        seed=asked.seed,
        stop=asked.stop,
        max_new_tokens=asked.max_tokens,
        is_clamped=asked.is_default_budget,
        is_stream=asked.is_stream,
        form=ReplyForm(
            cuts_stops=True,
            report=TokenReport.IN_TEXT if has_logprobs else TokenReport.NONE,
            keeps_text=not asked.is_stream,
            keeps_tokens=not asked.is_stream,
        ),
        truncate=asked.truncate,
        truncate_budget=None if asked.is_default_budget else asked.max_tokens,
        prompt_field=shape.prompt_field,
        budget_field=shape.budget_field,
        truncate_field="truncate_prompt_tokens",
    )


def _prompt_input(asked: OpenAIOrder, prompt: Prompt) -> PromptInput:
    return TextPrompt(prompt, asked.has_bos) if isinstance(prompt, str) else TokenPrompt(prompt)


def _chat_input(conversation: Conversation) -> ChatPrompt:
    return ChatPrompt(
        messages=conversation.messages,
        add_generation_prompt=conversation.add_generation_prompt,
        continues_last=conversation.continues_last,
    )


def _envelope(context: HttpContext, shape: _Shape, completion: Completion, *, is_stream: bool) -> dict[str, object]:
    return {
        "id": shape.id_prefix + secrets.token_hex(16),
        "object": shape.chunk_name if is_stream else shape.name,
        "created": int(context.clock.wall_s()),
        "model": completion.model_name,
        "system_fingerprint": f"manylora-{completion.model.served.sha[:12]}",
    }


def _echoes(asked: OpenAIOrder, completion: Completion) -> list[str]:
    """Return the echo of each prompt."""
    return [_echo(asked, *each) for each in zip(completion.order.prompts, completion.prompts, strict=True)]


def _echo(asked: OpenAIOrder, given: PromptInput, prepared: PreparedPrompt) -> str:
    """Return the prompt's text as it was sent; token ids and the rest of a cut prompt with their special tokens."""
    if not asked.echo:
        return ""
    if isinstance(given, TextPrompt) and not prepared.is_cut:
        return given.text
    return prepared.rules.tokenizer.decode(prepared.tokens, skip_special_tokens=False)


class _Chunks:
    """The events of one stream, each made from a piece of one choice."""

    def __init__(self, asked: OpenAIOrder, shape: _Shape, envelope: dict[str, object], echoes: Sequence[str]) -> None:
        self._asked = asked
        self._shape = shape
        self._envelope = envelope
        self._echoes = [echo for echo in echoes for _ in range(asked.best_of)]
        self._opened: set[int] = set()

    def of(self, piece: Piece) -> bytes:
        """Return the events, maybe none, that one piece gives rise to."""
        index = piece.sequence
        events = b"" if index in self._opened else self._open(index)
        if piece.text or piece.tokens:
            tokens = None if self._asked.logprobs is None else piece.tokens
            events += self._chunk(index, self._shape.piece(piece.text, tokens), None)
        if piece.end is not None:
            events += self._chunk(index, self._shape.closing, finish_reason(piece.end, is_cut=piece.is_cut))
        return events

    def end(self, usage: dict[str, object]) -> bytes:
        if not self._asked.include_usage:
            return b""
        return sse.event({**self._envelope, "choices": [], "usage": usage})

    def _open(self, index: int) -> bytes:
        self._opened.add(index)
        events = b""
        if self._shape.opening is not None:
            events += self._chunk(index, self._shape.opening, None)
        if self._echoes[index]:
            events += self._chunk(index, self._shape.piece(self._echoes[index], None), None)
        return events

    def _chunk(self, index: int, fields: dict[str, object], finish_reason: str | None) -> bytes:
        choice = {"index": index, **fields, "finish_reason": finish_reason}
        body: dict[str, object] = {**self._envelope, "choices": [choice]}
        if self._asked.include_usage:
            body["usage"] = None
        return sse.event(body)


def _named(asked: OpenAIOrder) -> str | None:
    """Return the name in the error of an unknown adapter; None for a merge, whose error names the member itself."""
    return None if asked.adapter.recipe else asked.adapter.adapter_id or asked.model or ""


def usage_of(completion: Completion) -> dict[str, object]:
    """Return the usage: prompt tokens once a prompt, and every generated token of every sequence."""
    prompt_tokens, completion_tokens = completion.num_prompt_tokens, completion.outputs.num_generated_tokens
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": completion.num_cached_tokens},
    }


def _whole_choices(asked: OpenAIOrder, shape: _Shape, completion: Completion) -> list[dict[str, object]]:
    """Return the n best sequences of each prompt; index = prompt number × n + sequence number."""
    choices: list[dict[str, object]] = []
    for number, echo in enumerate(_echoes(asked, completion)):
        found = list(completion.outputs.sequences[number * asked.best_of : (number + 1) * asked.best_of])
        if asked.best_of > asked.n:
            found.sort(key=lambda sequence: -sequence.mean_logprob)
        for sequence in found[: asked.n]:
            choices.append({"index": len(choices), **_whole_choice(asked, shape, sequence, echo)})
    return choices


def _whole_choice(asked: OpenAIOrder, shape: _Shape, sequence: SequenceOutput, echo: str) -> dict[str, object]:
    tokens = None if asked.logprobs is None else sequence.tokens
    reason = finish_reason(sequence.end, is_cut=sequence.is_cut)
    return {**shape.whole(echo + sequence.text, tokens), "finish_reason": reason}
