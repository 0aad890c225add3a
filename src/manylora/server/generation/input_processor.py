"""Input processing: it tokenises the prompts of an order, and checks that they fit the window."""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from manylora.adapter_ref import AdapterRef
from manylora.engine.pooling import Pooling
from manylora.engine.request import Priority, Request, SamplingParams, StopParams
from manylora.errors import ContextLengthExceeded, InvalidParameter, TemplateFailed, ToolsRefused
from manylora.http.callers import Caller
from manylora.ids import Flow, TenantId, mint_request_id, mint_seed
from manylora.kernels.adapter_layout import MAX_ADDED_TOKENS
from manylora.models.text.adapter_text import AdapterText
from manylora.models.text.grammar import GrammarKind, GrammarSource
from manylora.models.text.template import cut_last, open_last
from manylora.models.text.tokenizer import Tokenizer, TokenSpan
from manylora.server.engine_client.served_model import ServedModel
from manylora.server.generation.adapter_texts import AdapterTexts, TextRules
from manylora.server.generation.order import (
    LONGEST_PROMPT,
    ChatPrompt,
    Message,
    Order,
    PromptInput,
    StopRules,
    TextPrompt,
)
from manylora.server.generation.template_renderer import Renderer
from manylora.server.schemas.readers import MAX_UINT64
from manylora.server.tools.formats import ToolFormat, format_of
from manylora.server.tools.grammar import tool_grammar

if TYPE_CHECKING:
    from concurrent.futures import Executor

BYTES_PER_TOKEN = 64
"""Bound on the bytes of a prompt from a chat template, for each position of the window."""

MAX_BAD_WORD_TOKENS = 64

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPrompt:
    """One prompt as tokens, with the facts that its sequences share.

    characters  number of characters of the input, for `x-compute-characters`
    seed        seed + i is the seed of sequence i; None: each sequence has a random seed
    stop        the stop conditions of the request and of the adapter
    grammar     the form of the reply; None: any text
    keeps_stop  whether the text keeps the stop token
    is_cut      whether truncation has removed tokens of the prompt
    rules       text rules of the adapter or of the base model, for the prompt and the reply
    prompt_logprobs  as in `Order`
    tool_format      the form of calls in the reply; None: there are no tools
    pooling     the form of the result of a request that generates nothing; None: it generates
    """

    tokens: tuple[int, ...]
    characters: int
    adapter: AdapterRef | None
    sampling: SamplingParams
    stop: StopParams
    seed: int | None
    num_sequences: int
    grammar: GrammarSource | None
    keeps_stop: bool
    is_cut: bool
    rules: TextRules
    prompt_logprobs: int | None
    tool_format: ToolFormat | None
    pooling: Pooling | None = None

    @property
    def shown_tokens(self) -> frozenset[int]:
        """The special tokens that begin calls, which the text shows."""
        texts = () if self.tool_format is None else self.tool_format.shown
        found = (self.rules.tokenizer.special_id(text) for text in texts)
        return frozenset(token_id for token_id in found if token_id is not None)

    def requests(self, caller: Caller) -> list[Request]:
        """Return one engine request for each sequence. They differ in id and seed."""
        return [
            Request(
                id=mint_request_id(),
                flow=Flow(caller.tenant),
                weight=caller.weight,
                priority=Priority.BATCH if caller.is_batch else Priority.INTERACTIVE,
                salt=caller.tenant,
                tokens=self.tokens,
                adapter=self.adapter,
                sampling=dataclasses.replace(self.sampling, seed=_seed(self.seed, index)),
                stop=self.stop,
                grammar=self.grammar,
                text=self.rules.digest,
                waited_ms=self.rules.waited_ms,
                found_in=self.rules.found_in,
                prompt_logprobs=self.prompt_logprobs,
                pooling=self.pooling,
            )
            for index in range(self.num_sequences)
        ]


class InputProcessor:
    """Turns orders into prompts of tokens. It belongs to one event loop; tokenising runs in the pool's threads."""

    def __init__(
        self,
        served: ServedModel,
        texts: AdapterTexts,
        pool: "Executor",
        *,
        allows_templates: bool,
        tool_format: str = "auto",
    ) -> None:
        """Start without prompts.

        Args:  allows_templates  whether adapters' own chat templates may run
               tool_format       the setting `model.tool_format`
        """
        self._texts = texts
        self._pool = pool
        self._window = served.max_model_len
        self._longest_prompt = served.max_input_length
        self._vocab_size = served.vocab_size
        self._embedding_size = served.embedding_size
        self._allows_templates = allows_templates
        self._tool_format = tool_format
        self._renderer = Renderer()

    async def prepare(self, order: Order, adapter: AdapterRef | None, caller: Caller) -> tuple[PreparedPrompt, ...]:
        """Return the order's prompts for an adapter, None is the base model, each with its budget of tokens.

        Raises the refusal of a token id or of a chat template, or `ContextLengthExceeded`.
        """
        self._check(order, has_adapter=adapter is not None)
        rules = self._texts.base if adapter is None else await self._rules(adapter, caller)
        if order.bad_words:
            bad_words = await self._in_thread(lambda: _bad_words(order.bad_words, rules.tokenizer))
            order = dataclasses.replace(order, sampling=dataclasses.replace(order.sampling, bad_words=bad_words))
        prepared: list[PreparedPrompt] = []
        num_tokens = 0
        for prompt in order.prompts:
            prepared.append(await self._prepared(order, prompt, adapter, rules, caller))
            num_tokens += len(prepared[-1].tokens)
            if order.most_prompt_tokens is not None and num_tokens > order.most_prompt_tokens:
                raise InvalidParameter(
                    f"`{order.prompt_field}` may have at most {order.most_prompt_tokens} tokens in all",
                    parameter=order.prompt_field,
                )
        return tuple(prepared)

    async def spans(
        self, text: str, adapter: AdapterRef | None, caller: Caller, *, add_special_tokens: bool
    ) -> list[TokenSpan]:
        """Return the tokens of a text with their positions in it. Raises the failure of the adapter."""
        rules = await self._rules(adapter, caller)
        if rules.failure is not None:
            raise rules.failure
        return await self._in_thread(lambda: rules.tokenizer.spans(text, add_special_tokens=add_special_tokens))

    async def spans_of(self, text: str, prompt: PreparedPrompt) -> list[TokenSpan]:
        """Return the tokens of a prompt that was this text, with their positions in it."""
        return await self._in_thread(lambda: prompt.rules.tokenizer.spans(text))

    def forget_text(self, adapter: AdapterRef | None) -> None:
        """Drop the text rules of an adapter with a new version, so that the next request asks the engine again."""
        self._texts.forget(adapter)

    def close(self) -> None:
        """End the processes that render chat templates."""
        self._renderer.close()

    async def _in_thread(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    async def _rules(self, adapter: AdapterRef | None, caller: Caller) -> TextRules:
        return await self._texts.of(adapter, caller.tenant, caller.weight)

    def _check(self, order: Order, *, has_adapter: bool) -> None:
        """Raise `InvalidParameter` for values that the base or its tokenizer cannot have, before any wait."""
        size = self._embedding_size
        if size and order.dimensions is not None and order.dimensions > size:
            raise InvalidParameter(
                f"`dimensions` must be at most {size}, the model's own number of them. Given: {order.dimensions}",
                parameter="dimensions",
            )
        for prompt in order.prompts:
            if not isinstance(prompt, TextPrompt | ChatPrompt):
                self._check_tokens(prompt.tokens, order.prompt_field, has_adapter=has_adapter)
        for token, _ in order.sampling.logit_bias:
            if token >= self._vocab_size:
                raise InvalidParameter(f"`logit_bias`: token ids must be < {self._vocab_size}", parameter="logit_bias")
        self._check_tokens(order.stop.token_ids, "stop_token_ids", has_adapter=has_adapter)
        self._check_tokens(order.sampling.allowed_token_ids or (), "allowed_token_ids", has_adapter=has_adapter)

    def _check_tokens(self, tokens: Sequence[int], field: str, *, has_adapter: bool) -> None:
        known = self._vocab_size + (MAX_ADDED_TOKENS if has_adapter else 0)
        if tokens and not (min(tokens) >= 0 and max(tokens) < known):
            raise InvalidParameter(f"`{field}`: token ids must be >= 0 and < {self._vocab_size}", parameter=field)

    async def _prepared(
        self, order: Order, prompt: PromptInput, adapter: AdapterRef | None, rules: TextRules, caller: Caller
    ) -> PreparedPrompt:
        form, grammar = await self._form(order, prompt, rules)
        tokens, characters = await self._fitting(order, prompt, rules, caller, form)
        kept = self._truncated(tokens, order)
        budget = self._budget(len(kept), order)
        if order.stop.min_tokens > budget:
            raise InvalidParameter(
                f"`min_tokens` must be <= {budget}, the largest number of tokens to generate (`{order.budget_field}`). "
                f"Given: {order.stop.min_tokens}",
                parameter="min_tokens",
            )
        return PreparedPrompt(
            tokens=kept,
            characters=characters,
            adapter=adapter,
            sampling=order.sampling,
            stop=_stop_params(order.stop, rules.text, budget, spells=grammar is not None),
            seed=order.seed,
            num_sequences=order.num_sequences,
            grammar=grammar,
            tool_format=form,
            keeps_stop=bool(order.stop.keeps_stop),
            is_cut=len(kept) < len(tokens),
            rules=rules,
            prompt_logprobs=order.prompt_logprobs,
            pooling=order.pooling,
        )

    async def _form(
        self, order: Order, prompt: PromptInput, rules: TextRules
    ) -> tuple[ToolFormat | None, GrammarSource | None]:
        """Return the form of calls and the grammar of a prompt's reply.

        Raises `ToolsRefused` for a model without a form of calls, and `InvalidParameter` for the tools' schemas.
        """
        tools = prompt.tools if isinstance(prompt, ChatPrompt) else None
        if tools is None:
            return None, order.grammar
        own = rules.text.templates
        template = own.get("default", "") if own else rules.tokenizer.tool_template
        form = format_of(template, self._tool_format)
        if form is None:
            raise ToolsRefused(
                f"model `{rules.tokenizer.model_id}` serves no tools: its chat template shows none, or in no form that "
                "this server reads (`model.tool_format`)",
                parameter="tools",
            )
        answer = order.grammar
        if answer is not None and (answer.kind is not GrammarKind.JSON or form.is_whole):
            allowed = "no" if form.is_whole else "a JSON"
            raise ToolsRefused(f"`tools` of this model go with {allowed} form of the reply", parameter="tools")
        grammar = await self._in_thread(lambda: tool_grammar(form, tools, rules.tokenizer.special_id, answer=answer))
        return form, grammar

    def _truncated(self, tokens: tuple[int, ...], order: Order) -> tuple[int, ...]:
        """Return the last tokens of a prompt, as many as the order keeps."""
        most, field = order.truncate, order.truncate_field
        if most is None:
            return tokens
        if most == LONGEST_PROMPT:
            most = max(1, min(self._longest_prompt, self._window - (order.truncate_budget or 1)))
        elif not 1 <= most <= self._longest_prompt:
            raise InvalidParameter(
                f"`{field}` must be {LONGEST_PROMPT}, or >= 1 and <= {self._longest_prompt}. Given: {most}",
                parameter=field,
            )
        return tokens[-most:]

    def _budget(self, num_prompt: int, order: Order) -> int:
        """Return the largest number of tokens to generate.

        Raises `ContextLengthExceeded` for a prompt, or a prompt and budget, longer than the window.
        """
        asked, field = order.max_new_tokens, order.prompt_field
        if num_prompt > self._longest_prompt:
            raise ContextLengthExceeded(
                f"`{field}` must have less than {self._longest_prompt} tokens. Given: {num_prompt}", parameter=field
            )
        room = self._window - num_prompt
        if asked is None or asked <= room:
            return room if asked is None else asked
        if order.is_clamped:
            return room
        raise ContextLengthExceeded(
            f"`{field}` tokens + `{order.budget_field}` must be <= {self._window}. "
            f"Given: {num_prompt} `{field}` tokens and {asked} `{order.budget_field}`",
            parameter=order.budget_field,
        )

    def _fits(self, num_prompt: int, order: Order) -> bool:
        try:
            self._budget(num_prompt, order)
        except ContextLengthExceeded:
            return False
        return True

    # ── text to tokens ───────────────────────────────────────────────────────────────────────────────────────────

    async def _fitting(
        self, order: Order, prompt: PromptInput, rules: TextRules, caller: Caller, form: ToolFormat | None
    ) -> tuple[tuple[int, ...], int]:
        """Return as `_encoded`, of a conversation whose oldest turns may go as many turns as fit beside the budget.

        Complexity: one rendering, and log2(turns) more of a conversation that does not fit.
        """
        whole = best = await self._encoded(prompt, rules, caller, form)
        if not isinstance(prompt, ChatPrompt) or self._fits(len(whole[0]), order):
            return whole
        cuts = prompt.cuts
        low, high = 0, len(cuts)
        while low < high:
            middle = (low + high) // 2
            found = await self._encoded(prompt.without(cuts[middle]), rules, caller, form)
            if self._fits(len(found[0]), order):
                best, high = found, middle
            else:
                low = middle + 1
        return best

    async def _encoded(
        self, prompt: PromptInput, rules: TextRules, caller: Caller, form: ToolFormat | None
    ) -> tuple[tuple[int, ...], int]:
        """Return a prompt's tokens and the number of characters, or of tokens, that the caller sent."""
        match prompt:
            case TextPrompt(text, add_special_tokens):
                return await self._tokens(rules, text, add_special_tokens=add_special_tokens), len(text)
            case ChatPrompt():
                text = await self._rendered(prompt, rules, caller.tenant, _tool_fields(prompt, form))
                return await self._tokens(rules, text, add_special_tokens=False), prompt.size
        return prompt.tokens, len(prompt.tokens)

    async def _tokens(self, rules: TextRules, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        return tuple(await self._in_thread(lambda: rules.tokenizer.encode(text, add_special_tokens=add_special_tokens)))

    async def _rendered(
        self, prompt: ChatPrompt, rules: TextRules, tenant: TenantId, tool_fields: Mapping[str, Any]
    ) -> str:
        """Return the text of a conversation's prompt. `tool_fields` are the template's variables for tools.

        Raises `TemplateFailed`, also for a model without a template, and for an adapter whose own template the
        operator forbids.
        """
        if rules.text.templates:
            return await self._rendered_by_adapter(prompt, rules, tenant, tool_fields)
        if not rules.tokenizer.has_chat_template:
            without = f"model `{rules.tokenizer.model_id}` has no chat template; {prompt.instead}"
            raise rules.failure or TemplateFailed(without)
        try:
            return await self._in_thread(
                lambda: rules.tokenizer.apply_chat_template(
                    prompt.messages,
                    add_generation_prompt=prompt.add_generation_prompt,
                    continue_final_message=prompt.continues_last,
                    tools=tool_fields["tools"],
                    variables=tool_fields,
                )
            )
        except TemplateFailed:
            if rules.failure is not None:
                raise rules.failure from None  # without it, the adapter's own template could accept this
            raise

    async def _rendered_by_adapter(
        self, prompt: ChatPrompt, rules: TextRules, tenant: TenantId, tool_fields: Mapping[str, Any]
    ) -> str:
        if not self._allows_templates:
            raise TemplateFailed(
                f"adapter `{rules.name}` has a chat template of its own, and this server's operator lets no adapter's "
                f"template run (adapters.chat_templates); {prompt.instead}"
            )
        template = rules.text.templates.get("default")
        if template is None:
            raise TemplateFailed(f"adapter `{rules.name}` has chat templates, and none of them is `default`")
        messages: Sequence[Message] = open_last(prompt.messages) if prompt.continues_last else prompt.messages
        text = await self._renderer.render(
            template,
            {
                **rules.tokenizer.named_tokens,
                "messages": list(messages),
                **tool_fields,
                "documents": None,
                "add_generation_prompt": prompt.add_generation_prompt,
            },
            caller=tenant,
            digest=rules.digest,
            max_bytes=BYTES_PER_TOKEN * self._window,
        )
        return cut_last(text, prompt.messages[-1]["content"]) if prompt.continues_last else text


def _tool_fields(prompt: ChatPrompt, form: ToolFormat | None) -> Mapping[str, Any]:
    """Return the variables by which the chat template shows tools."""
    if prompt.tools is None or form is None:
        return {"tools": None}
    return form.template_fields(prompt.tools.shown)


def _stop_params(stop: StopRules, text: AdapterText, budget: int, *, spells: bool) -> StopParams:
    """Return the stop conditions of a request and of its adapter. `ignore_eos` drops the adapter's strings, too.

    `spells` is whether the engine needs the texts of tokens apart from stop strings, as for a grammar.
    """
    strings = stop.strings if stop.ignore_eos else (*stop.strings, *text.stop_strings)
    return StopParams(
        max_new_tokens=budget,
        min_new_tokens=stop.min_tokens,
        stop_token_ids=stop.token_ids,
        stop_strings=strings,
        ignore_eos=stop.ignore_eos,
        skip_special_tokens=stop.skip_special_tokens,
        end_token_ids=text.end_ids,
        added_tokens=(*text.changed, *text.tokens) if strings or spells else (),
    )


def _bad_words(words: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of each word, both at the start of a text and after a space, like vLLM's `bad_words`.

    Raises `InvalidParameter` for a word without tokens or with more than `MAX_BAD_WORD_TOKENS`.
    """
    found: dict[tuple[int, ...], None] = {}
    for index, word in enumerate(words):
        for text in (word.lstrip(), " " + word.lstrip()):
            tokens = tuple(tokenizer.encode(text, add_special_tokens=False))
            if not 1 <= len(tokens) <= MAX_BAD_WORD_TOKENS:
                raise InvalidParameter(
                    f"`bad_words[{index}]` must have 1 to {MAX_BAD_WORD_TOKENS} tokens. Given: {len(tokens)}",
                    parameter="bad_words",
                )
            found[tokens] = None
    return tuple(found)


def _seed(seed: int | None, index: int) -> int:
    return mint_seed() if seed is None else (seed + index) & MAX_UINT64
