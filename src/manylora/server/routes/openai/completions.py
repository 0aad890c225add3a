"""The OpenAI routes that generate: POST /v1/completions and /v1/chat/completions."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from manylora.adapter_ref import AdapterRef
from manylora.engine.events import Finished
from manylora.errors import InvalidParameter
from manylora.http.callers import Caller
from manylora.server.access.access import Admission
from manylora.server.generation.adapter_texts import TextRules
from manylora.server.generation.admission import PreparedPrompt
from manylora.server.generation.outputs import RequestOutputs
from manylora.server.generation.reply_headers import head_of, whole_of
from manylora.server.generation.service import GenerationService
from manylora.server.generation.text import TextToken
from manylora.server.http import sse
from manylora.server.http.context import HttpContext
from manylora.server.routes.openai.choices import Choice, chat_logprobs, completion_logprobs
from manylora.server.routes.openai.schema import (
    LONGEST_PROMPT,
    Conversation,
    OpenAIOrder,
    Prompt,
    read_chat,
    read_completion,
)

Entries = list[tuple[int, TextToken]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """What differs between the two routes' replies.

    whole   (choice, entries or None, echoed prompt) → the fields of a choice in a whole reply
    opening the delta that opens a choice in a stream, None if there is none
    piece   (text, entries or None) → the fields of a choice in a chunk
    closing the fields of the chunk that closes a choice
    """

    id_prefix: str
    name: str
    chunk_name: str
    whole: Callable[[Choice, Entries | None, str], dict[str, object]]
    opening: dict[str, object] | None
    piece: Callable[[str, Entries | None], dict[str, object]]
    closing: dict[str, object]


def _completion_piece(text: str, entries: Entries | None) -> dict[str, object]:
    return {"text": text, "logprobs": None if entries is None else completion_logprobs(entries)}


def _chat_whole(choice: Choice, entries: Entries | None, echo: str) -> dict[str, object]:
    message = {"role": "assistant", "content": echo + choice.text, "refusal": None}
    return {"message": message, "logprobs": None if entries is None else chat_logprobs(entries)}


def _chat_piece(text: str, entries: Entries | None) -> dict[str, object]:
    return {"delta": {"content": text}, "logprobs": None if entries is None else chat_logprobs(entries)}


COMPLETION = _Shape(
    id_prefix="cmpl-",
    name="text_completion",
    chunk_name="text_completion",
    whole=lambda choice, entries, echo: _completion_piece(echo + choice.text, entries),
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


class OpenAIRoutes:
    """Answers in OpenAI's shapes."""

    def __init__(self, inference: GenerationService) -> None:
        self._inference = inference
        self._gate = inference.gate
        self._settings = inference.gate.settings

    async def completions(self, context: HttpContext) -> None:
        order, prompts = read_completion(context.json(), self._settings)
        context.model = _named(order)

        async def attempt() -> None:
            with self._inference.admit(context, order.best_of * len(prompts)) as admission:
                adapter = await self._adapter(order, context.arrival.caller)
                rules = await self._inference.rules(context, adapter)
                drafts = [await self._prompt_draft(order, prompt, adapter, rules) for prompt in prompts]
                echoes = [_shown(order, *each) for each in zip(prompts, drafts, strict=True)]
                await self._answer(context, admission, order, COMPLETION, drafts, echoes)

        await self._inference.answer(context, attempt)

    async def chat_completions(self, context: HttpContext) -> None:
        order, conversation = read_chat(context.json(), self._settings)
        context.model = _named(order)

        async def attempt() -> None:
            with self._inference.admit(context, order.best_of) as admission:
                draft = await self._chat_draft(order, conversation, context)
                await self._answer(context, admission, order, CHAT, [draft], [""])

        await self._inference.answer(context, attempt)

    async def _prompt_draft(
        self, order: OpenAIOrder, prompt: Prompt, adapter: AdapterRef | None, rules: TextRules
    ) -> PreparedPrompt:
        if isinstance(prompt, str):
            tokens = await self._inference.texts.encode(rules, prompt, add_special_tokens=order.has_bos)
            characters = len(prompt)
        else:
            self._gate.check_tokens(prompt, "prompt", has_adapter=adapter is not None)
            tokens, characters = prompt, len(prompt)
        return self._draft(order, adapter, rules, tokens, characters, field="prompt", budget_field="max_tokens")

    async def _chat_draft(self, order: OpenAIOrder, conversation: Conversation, context: HttpContext) -> PreparedPrompt:
        caller = context.arrival.caller
        adapter = await self._adapter(order, caller)
        rules = await self._inference.rules(context, adapter)
        _, tokens = await self._inference.texts.render_chat(
            rules,
            conversation.messages,
            caller.tenant,
            add_generation_prompt=conversation.add_generation_prompt,
            continues_last=conversation.continues_last,
        )
        characters = sum(len(message["content"]) for message in conversation.messages)
        budget_field = "max_completion_tokens"
        return self._draft(order, adapter, rules, tokens, characters, field="messages", budget_field=budget_field)

    async def _adapter(self, order: OpenAIOrder, caller: Caller) -> AdapterRef | None:
        """`adapter_id` wins over `model`."""
        if order.adapter.adapter_id or order.adapter.recipe:
            return await self._gate.resolver.adapter(
                order.adapter.adapter_id, order.adapter, tenant=caller.tenant, token=caller.source_token
            )
        return await self._gate.resolver.adapter(
            order.model, order.adapter, parameter="model", tenant=caller.tenant, token=caller.source_token
        )

    def _draft(
        self,
        order: OpenAIOrder,
        adapter: AdapterRef | None,
        rules: TextRules,
        tokens: tuple[int, ...],
        characters: int,
        *,
        field: str,
        budget_field: str,
    ) -> PreparedPrompt:
        gate = self._gate
        for token, _ in order.sampling.logit_bias:
            if token >= gate.served.vocab_size:
                raise InvalidParameter(
                    f"`logit_bias`: token ids must be < {gate.served.vocab_size}", parameter="logit_bias"
                )
        gate.check_tokens(order.stop.token_ids, "stop_token_ids", has_adapter=adapter is not None)
        kept = gate.truncate(
            tokens,
            order.truncate,
            field="truncate_prompt_tokens",
            budget=None if order.is_default_budget else order.max_tokens,
            longest=LONGEST_PROMPT,
        )
        budget = gate.budget(
            len(kept), order.max_tokens, field=field, budget_field=budget_field, is_clamped=order.is_default_budget
        )
        return PreparedPrompt(
            tokens=kept,
            characters=characters,
            adapter=adapter,
            sampling=order.ranked_sampling,
            stop=order.stop.params(budget),
            seed=order.seed,
            num_sequences=order.best_of,
            keeps_stop=bool(order.stop.keeps_stop),
            is_cut=len(kept) < len(tokens),
            rules=rules,
        )

    async def _answer(
        self,
        context: HttpContext,
        admission: Admission,
        order: OpenAIOrder,
        shape: _Shape,
        drafts: Sequence[PreparedPrompt],
        echoes: Sequence[str],
    ) -> None:
        adapter = drafts[0].adapter
        model = adapter.id_for(context.arrival.tenant) if adapter else self._gate.served.model_id
        envelope: dict[str, object] = {
            "id": shape.id_prefix + secrets.token_hex(16),
            "object": shape.chunk_name if order.is_stream else shape.name,
            "created": int(context.clock.wall_s()),
            "model": model,
            "system_fingerprint": f"manylora-{self._gate.served.sha[:12]}",
        }
        async with self._inference.begin(context, admission, drafts, is_stream=order.is_stream) as work:
            if order.is_stream:
                await self._stream(context, order, shape, work, envelope, echoes)
                return
            await work.collect()
            await work.settle()
            choices = _whole_choices(order, shape, work, echoes)
            headers = whole_of(work, context, self._gate.served)
            await context.reply({**envelope, "choices": choices, "usage": usage_of(work)}, headers=headers)

    async def _stream(
        self,
        context: HttpContext,
        order: OpenAIOrder,
        shape: _Shape,
        work: RequestOutputs,
        envelope: dict[str, object],
        echoes: Sequence[str],
    ) -> None:
        chunks = _Chunks(order, shape, envelope, len(work.generations), echoes, work.drafts[0].own_stops)
        await work.wait_for_head(self._settings.stream_head_wait_s)
        await context.begin_stream(head_of(work, context, self._gate.served))
        async for item in work.stream(self._settings.keepalive_s):
            if item is None:
                await context.send_event(sse.KEEP_ALIVE)
            elif events := chunks.of(*item):
                await context.send_event(events)
        await work.settle()
        await context.end_stream(chunks.end(usage_of(work)) + sse.DONE)


def _shown(order: OpenAIOrder, prompt: Prompt, draft: PreparedPrompt) -> str:
    """The echo: text as it was sent, token ids with their special tokens, and of a cut prompt what was kept."""
    if not order.echo or draft.rules is None:
        return ""
    if isinstance(prompt, str) and not draft.is_cut:
        return prompt
    return draft.rules.tokenizer.decode(draft.tokens, skip_special_tokens=False)


class _Chunks:
    """The events of one stream, each made from a token or an end of one choice."""

    def __init__(
        self,
        order: OpenAIOrder,
        shape: _Shape,
        envelope: dict[str, object],
        count: int,
        echoes: Sequence[str],
        own_stops: tuple[str, ...],
    ) -> None:
        self._order = order
        self._shape = shape
        self._envelope = envelope
        self._choices = [_choice(order, own_stops) for _ in range(count)]
        self._echoes = [echo for echo in echoes for _ in range(order.best_of)]
        self._opened: set[int] = set()

    def of(self, index: int, event: TextToken | Finished) -> bytes:
        """All events, maybe none, that one token or end gives rise to."""
        choice = self._choices[index]
        opening = self._open(index)
        if isinstance(event, TextToken):
            return opening + self._piece(index, choice.push(event))
        last = self._piece(index, choice.finish(event))
        return opening + last + self._chunk(index, self._shape.closing, choice.finish_reason)

    def end(self, usage: dict[str, object]) -> bytes:
        if not self._order.include_usage:
            return b""
        return sse.event({**self._envelope, "choices": [], "usage": usage})

    def _open(self, index: int) -> bytes:
        if index in self._opened:
            return b""
        self._opened.add(index)
        events = b""
        if self._shape.opening is not None:
            events += self._chunk(index, self._shape.opening, None)
        if self._echoes[index]:
            events += self._chunk(index, self._shape.piece(self._echoes[index], None), None)
        return events

    def _piece(self, index: int, text: str) -> bytes:
        entries = None if self._order.logprobs is None else self._choices[index].entries()
        if not text and not entries:
            return b""
        return self._chunk(index, self._shape.piece(text, entries), None)

    def _chunk(self, index: int, fields: dict[str, object], finish_reason: str | None) -> bytes:
        choice = {"index": index, **fields, "finish_reason": finish_reason}
        body: dict[str, object] = {**self._envelope, "choices": [choice]}
        if self._order.include_usage:
            body["usage"] = None
        return sse.event(body)


def _named(order: OpenAIOrder) -> str | None:
    """The name that the error of an unknown adapter tells; None for a merge, whose error names the member itself."""
    return None if order.adapter.recipe else order.adapter.adapter_id or order.model or ""


def _choice(order: OpenAIOrder, own_stops: tuple[str, ...]) -> Choice:
    """`own_stops`: the adapter's."""
    return Choice((*order.stop.strings, *own_stops), keeps_stop=bool(order.stop.keeps_stop))


def usage_of(work: RequestOutputs) -> dict[str, object]:
    """Prompt tokens once a prompt, and every generated token of every sequence."""
    prompt_tokens, completion_tokens = work.num_prompt_tokens, work.num_generated_tokens
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": work.num_cached_tokens},
    }


def _whole_choices(
    order: OpenAIOrder, shape: _Shape, work: RequestOutputs, echoes: Sequence[str]
) -> list[dict[str, object]]:
    """The n best sequences of each prompt; index = prompt number × n + sequence number."""
    choices: list[dict[str, object]] = []
    for number, echo in enumerate(echoes):
        sequences = list(range(number * order.best_of, (number + 1) * order.best_of))
        if order.best_of > order.n:
            sequences.sort(key=lambda index: -work.transcripts[index].mean_logprob)
        for sequence in sequences[: order.n]:
            choice = _choice(order, work.drafts[number].own_stops)
            for token in work.transcripts[sequence].tokens:
                choice.push(token)
            choice.finish(work.end_of(sequence))
            entries = None if order.logprobs is None else choice.entries()
            fields = shape.whole(choice, entries, echo)
            choices.append({"index": len(choices), **fields, "finish_reason": choice.finish_reason})
    return choices
