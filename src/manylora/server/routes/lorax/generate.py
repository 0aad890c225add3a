"""The LoRAX-style routes: POST /generate, /generate_stream, / and /invocations."""

from functools import partial

from manylora.config.groups.server import ServerConfig
from manylora.engine.events import Finished, FinishReason
from manylora.server.generation.order import ChatPrompt, Order, TextPrompt
from manylora.server.generation.outputs import SequenceOutput
from manylora.server.generation.reply_headers import head_of, whole_of
from manylora.server.generation.service import Completion, GenerationService
from manylora.server.generation.text import Piece, ReplyForm, TextToken, TokenReport
from manylora.server.http import sse
from manylora.server.http.context import HttpContext
from manylora.server.routes.lorax.schema import NativeOrder, read_native

REASONS = {
    FinishReason.END_OF_SEQUENCE: "eos_token",
    FinishReason.STOP_TOKEN: "eos_token",
    FinishReason.STOP_STRING: "stop_sequence",
    FinishReason.LENGTH: "length",
}
NO_TOKEN = TextToken(id=0, text="", offset=0, logprob=0.0, is_special=True)
"""Stands in the last event of a stream that has no token."""


class NativeRoutes:
    """Answers in LoRAX's shapes."""

    def __init__(self, service: GenerationService, settings: ServerConfig) -> None:
        self._service = service
        self._settings = settings
        self._max_input = service.models.default.served.max_input_length

    async def generate(self, context: HttpContext) -> None:
        await self._run(context, is_stream=False)

    async def generate_stream(self, context: HttpContext) -> None:
        await self._run(context, is_stream=True)

    async def root(self, context: HttpContext) -> None:
        """One route for both: `stream` decides, and a whole reply is an array of one."""
        await self._run(context, is_stream=None)

    async def _run(self, context: HttpContext, *, is_stream: bool | None) -> None:
        """`is_stream`: whether the route streams; None: the body decides."""
        asked = read_native(context.arrival.body, self._settings, max_input=self._max_input, is_stream=is_stream)
        order = _order(asked, is_clamped=self._settings.overlong_max_new_tokens == "clamp")
        if asked.is_stream:
            await self._service.run(order, context, partial(self._stream, context, asked))
        else:
            await self._service.run(order, context, partial(self._whole, context, asked, is_array=is_stream is None))

    async def _whole(self, context: HttpContext, asked: NativeOrder, completion: Completion, *, is_array: bool) -> None:
        await completion.outputs.collect()
        await completion.settle()
        body = _whole(asked, completion)
        await context.reply([body] if is_array else body, headers=whole_of(completion))

    async def _stream(self, context: HttpContext, asked: NativeOrder, completion: Completion) -> None:
        """One event a token; the one with the last token closes the stream."""
        await completion.outputs.wait_for_head(self._settings.stream_head_wait_s)
        await context.begin_stream(head_of(completion))
        async for piece in completion.outputs.pieces(self._settings.keepalive_s):
            if piece is None:
                await context.send_event(sse.KEEP_ALIVE)
            elif piece.end is not None:
                await completion.settle()
                await context.end_stream(_last_event(asked, completion, piece, piece.end))
            else:
                (token,) = piece.tokens
                await context.send_event(sse.event(_token_event(asked, token, token.text)))


def _order(asked: NativeOrder, *, is_clamped: bool) -> Order:
    """Return the order in no dialect. `is_clamped`: a budget beyond the window is cut."""
    message = {"role": "user", "content": asked.inputs}
    prompt = ChatPrompt(messages=(message,)) if asked.apply_chat_template else TextPrompt(asked.inputs)
    has_tokens = asked.is_stream or asked.details
    return Order(
        model=None,
        adapter_name=asked.adapter.adapter_id,
        adapter=asked.adapter,
        prompts=(prompt,),
        num_sequences=asked.best_of,
        sampling=asked.sampling,
        seed=asked.seed,
        stop=asked.stop,
        max_new_tokens=asked.max_new_tokens,
        is_clamped=is_clamped,
        is_stream=asked.is_stream,
        form=ReplyForm(
            cuts_stops=False,
            report=TokenReport.EVERY if has_tokens else TokenReport.NONE,
            keeps_text=True,  # a stream's last event has the whole text
            keeps_tokens=not asked.is_stream,
        ),
        truncate=asked.truncate,
        prompt_field="inputs",
        budget_field="max_new_tokens",
    )


def _token_event(asked: NativeOrder, token: TextToken, text: str) -> dict[str, object]:
    has_alternatives = bool(asked.sampling.num_logprobs)
    return {"token": _token(token, text, has_alternatives=has_alternatives), "generated_text": None, "details": None}


def _last_event(asked: NativeOrder, completion: Completion, piece: Piece, end: Finished) -> bytes:
    """Return the last token with all that the end brings; a text that is too long is left out, and marked so."""
    (sequence,) = completion.outputs.sequences
    token = piece.tokens[0] if piece.tokens else NO_TOKEN
    text = "" if token.is_hidden else token.text  # clients print what the last event holds
    prompt_tokens, completion_tokens = end.counts.prompt_tokens, sequence.stream.num_tokens
    body = _token_event(asked, token, text) | {
        "generated_text": asked.inputs + sequence.text if asked.return_full_text else sequence.text,
        "details": None
        if not asked.details
        else {
            "finish_reason": REASONS[end.reason],
            "prompt_tokens": prompt_tokens,
            "generated_tokens": completion_tokens,
            "skipped_tokens": 0,
            "seed": _seed(asked, sequence),
        },
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
        "timings": completion.times_ms(),
    }
    event = sse.event(body)
    if len(event) > sse.MAX_EVENT_BYTES:
        event = sse.event(body | {"generated_text": "", "generated_text_omitted": True})
    return event


def _whole(asked: NativeOrder, completion: Completion) -> dict[str, object]:
    """Return the body of a whole reply: the best sequence, and the others beside it."""
    best, *others = sorted(completion.outputs.sequences, key=lambda sequence: -sequence.mean_logprob)
    prefix = asked.inputs if asked.return_full_text else ""
    body: dict[str, object] = {"generated_text": prefix + best.text}
    if not asked.details:
        return body
    details: dict[str, object] = {
        **_sequence(asked, best),
        "prompt_tokens": best.end.counts.prompt_tokens,
        "skipped_tokens": 0,
    }
    if asked.best_of > 1:
        details["best_of_sequences"] = [
            {"generated_text": prefix + other.text, **_sequence(asked, other)} for other in others
        ]
    body["details"] = details
    return body


def _sequence(asked: NativeOrder, sequence: SequenceOutput) -> dict[str, object]:
    has_alternatives = bool(asked.sampling.num_logprobs)
    return {
        "finish_reason": REASONS[sequence.end.reason],
        "generated_tokens": sequence.stream.num_tokens,
        "seed": _seed(asked, sequence),
        "prefill": [],
        "tokens": [_token(token, token.text, has_alternatives=has_alternatives) for token in sequence.tokens],
    }


def _seed(asked: NativeOrder, sequence: SequenceOutput) -> int | None:
    """Return the seed of a sequence; None where nothing is drawn."""
    return sequence.stream.request.sampling.seed if asked.is_sampled else None


def _token(token: TextToken, text: str, *, has_alternatives: bool) -> dict[str, object]:
    body: dict[str, object] = {
        "id": token.id,
        "text": text,
        "logprob": token.logprob,
        "special": token.is_special,
        "skipped": False,
    }
    if has_alternatives:
        body["alternative_tokens"] = [
            {"id": other.id, "text": other.text, "logprob": other.logprob} for other in token.alternatives
        ]
    return body
