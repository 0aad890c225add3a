"""The LoRAX-style routes: POST /generate, /generate_stream, / and /invocations."""

from manylora.config.groups.server import ServerConfig
from manylora.engine.events import Finished
from manylora.errors import InvalidParameter
from manylora.server.generation.admission import AdmissionControl, PreparedPrompt
from manylora.server.generation.outputs import RequestOutputs
from manylora.server.generation.reply_headers import head_of, timings_of, whole_of
from manylora.server.generation.service import GenerationService
from manylora.server.generation.text import TextToken, native_reason
from manylora.server.http import sse
from manylora.server.http.context import HttpContext
from manylora.server.routes.lorax.schema import NativeOrder, read_native


class NativeRoutes:
    """Answers in LoRAX's shapes."""

    def __init__(self, inference: GenerationService) -> None:
        self._inference = inference
        self._gate: AdmissionControl = inference.gate
        self._settings: ServerConfig = inference.gate.settings

    async def generate(self, context: HttpContext) -> None:
        _check_stream(context, is_stream=False, other="/generate_stream")
        await self._answer(context, is_stream=False)

    async def generate_stream(self, context: HttpContext) -> None:
        _check_stream(context, is_stream=True, other="/generate")
        await self._answer(context, is_stream=True)

    async def root(self, context: HttpContext) -> None:
        """One route for both: `stream` decides, and a whole reply is an array of one."""
        is_stream = context.json().boolean("stream")
        await self._answer(context, is_stream=is_stream, is_array=not is_stream)

    async def _answer(self, context: HttpContext, *, is_stream: bool, is_array: bool = False) -> None:
        max_input = self._gate.served.max_input_length
        order = read_native(context.json(), self._settings, max_input=max_input, is_stream=is_stream)

        async def attempt() -> None:
            with self._inference.admit(context, order.best_of) as admission:
                draft = await self._draft(order, context)
                async with self._inference.begin(context, admission, [draft], is_stream=is_stream) as work:
                    if is_stream:
                        await self._stream(context, order, work)
                    else:
                        await work.collect()
                        await work.settle()
                        body = _whole(order, work)
                        headers = whole_of(work, context, self._gate.served)
                        await context.reply([body] if is_array else body, headers=headers)

        await self._inference.answer(context, attempt)

    async def _draft(self, order: NativeOrder, context: HttpContext) -> PreparedPrompt:
        gate, texts, caller = self._gate, self._inference.texts, context.arrival.caller
        adapter = await gate.resolver.adapter(
            order.adapter.adapter_id, order.adapter, tenant=caller.tenant, token=caller.source_token
        )
        gate.check_tokens(order.stop.token_ids, "stop_token_ids", has_adapter=adapter is not None)
        rules = await self._inference.rules(context, adapter)
        if order.apply_chat_template:
            _, tokens = await texts.render_chat(rules, [{"role": "user", "content": order.inputs}], caller.tenant)
        else:
            tokens = await texts.encode(rules, order.inputs, add_special_tokens=True)
        if order.truncate is not None:
            tokens = tokens[-order.truncate :]
        budget = gate.budget(
            len(tokens),
            order.max_new_tokens,
            field="inputs",
            budget_field="max_new_tokens",
            is_clamped=self._settings.overlong_max_new_tokens == "clamp",
        )
        return PreparedPrompt(
            tokens=tokens,
            characters=len(order.inputs),
            adapter=adapter,
            sampling=order.sampling,
            stop=order.stop.params(budget),
            seed=order.seed,
            num_sequences=order.best_of,
            keeps_stop=bool(order.stop.keeps_stop),
            rules=rules,
        )

    async def _stream(self, context: HttpContext, order: NativeOrder, work: RequestOutputs) -> None:
        """One event a token; the one with the last token closes the stream."""
        await work.wait_for_head(self._settings.stream_head_wait_s)
        await context.begin_stream(head_of(work, context, self._gate.served))
        held: TextToken | None = None
        async for item in work.stream(self._settings.keepalive_s):
            if item is None:
                await context.send_event(sse.KEEP_ALIVE)
                continue
            _, event = item
            if isinstance(event, Finished):
                await work.settle()
                await context.end_stream(_last_event(context, order, work, held))
            elif work.is_last(0):
                held = event
            else:
                await context.send_event(sse.event(_token_event(order, event, event.text)))


def _check_stream(context: HttpContext, *, is_stream: bool, other: str) -> None:
    """`stream`, where it is there, says what the route does."""
    if context.json().boolean("stream", default=is_stream) != is_stream:
        told = "streams" if is_stream else "does not stream"
        raise InvalidParameter(f"`stream`: this route {told}; send the request to {other}", parameter="stream")


def _token_event(order: NativeOrder, token: TextToken, text: str) -> dict[str, object]:
    has_alternatives = bool(order.sampling.num_logprobs)
    return {"token": _token(token, text, has_alternatives=has_alternatives), "generated_text": None, "details": None}


def _last_event(context: HttpContext, order: NativeOrder, work: RequestOutputs, held: TextToken | None) -> bytes:
    """The last token with everything that is known at the end; too long a text is left out, and that is said."""
    transcript, finished = work.transcripts[0], work.end_of(0)
    token = held or TextToken(id=0, text="", added="", logprob=0.0, is_special=True)
    generated = transcript.text
    text = "" if token.is_hidden else token.text  # clients print what the last event holds
    prompt_tokens, completion_tokens = finished.counts.prompt_tokens, len(transcript.tokens)
    body = _token_event(order, token, text) | {
        "generated_text": order.inputs + generated if order.return_full_text else generated,
        "details": None
        if not order.details
        else {
            "finish_reason": native_reason(finished.reason),
            "prompt_tokens": prompt_tokens,
            "generated_tokens": completion_tokens,
            "skipped_tokens": 0,
            "seed": work.generations[0].request.sampling.seed if order.is_sampled else None,
        },
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
        "timings": timings_of(work, context),
    }
    event = sse.event(body)
    if len(event) > sse.MAX_EVENT_BYTES:
        event = sse.event(body | {"generated_text": "", "generated_text_omitted": True})
    return event


def _whole(order: NativeOrder, work: RequestOutputs) -> dict[str, object]:
    """The reply of section 5: the best sequence, and the others beside it."""
    by_merit = sorted(range(len(work.transcripts)), key=lambda index: -work.transcripts[index].mean_logprob)
    best, *others = by_merit
    prefix = order.inputs if order.return_full_text else ""
    body: dict[str, object] = {"generated_text": prefix + work.transcripts[best].text}
    if not order.details:
        return body
    details: dict[str, object] = {
        **_sequence(order, work, best),
        "prompt_tokens": work.end_of(best).counts.prompt_tokens,
        "skipped_tokens": 0,
    }
    if order.best_of > 1:
        details["best_of_sequences"] = [
            {"generated_text": prefix + work.transcripts[index].text, **_sequence(order, work, index)}
            for index in others
        ]
    body["details"] = details
    return body


def _sequence(order: NativeOrder, work: RequestOutputs, index: int) -> dict[str, object]:
    transcript = work.transcripts[index]
    has_alternatives = bool(order.sampling.num_logprobs)
    return {
        "finish_reason": native_reason(work.end_of(index).reason),
        "generated_tokens": len(transcript.tokens),
        "seed": work.generations[index].request.sampling.seed if order.is_sampled else None,
        "prefill": [],
        "tokens": [_token(token, token.text, has_alternatives=has_alternatives) for token in transcript.tokens],
    }


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
