"""Text facts of an adapter, as the edge uses them: the tokenizer of its prompts and replies, its template, its ends.

The engine tells it once for each version, and refuses a prompt that was made with the text of another version; then it
is asked again. What is known costs two look-ups in a dictionary.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import AdapterWords
from manylora.engine.request import Request
from manylora.errors import ManyloraError, ModelUnsupported, QueueTimeout, TemplateFailed, Unavailable
from manylora.ids import Flow
from manylora.models.text.adapter_text import NO_TEXT, NOTHING_SAID, AdapterText, text_digest
from manylora.models.text.template import cut_last, open_last
from manylora.models.text.tokenizer import Tokenizer
from manylora.server.engine_client.link import EngineLink
from manylora.server.generation.template_renderer import Renderer
from manylora.server.generation.tokenizer_pool import WorkPool

MAX_CACHE_BYTES = 64 << 20
NAME_BYTES = 1 << 10
"""Charged for a name, and for what a text takes beside its own bytes."""
TOKEN_BYTES = 512
"""Charged for a token of an adapter's tokenizer: the library keeps it in several tables."""
BYTES_PER_TOKEN = 64
"""A prompt that a template makes may have so many bytes for each position of the window."""
LATE_S = 5.0
"""The engine ends a wait that is too long by itself; one that does not is given up this much later."""
MAX_ASKS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRules:
    """What a request's prompt is made with and its reply is read with.

    name       of the adapter, in messages
    failure    why the adapter cannot be had; the request is sent all the same, and ends as every such request does
    found_in, waited_ms  as in `Request`: of this request's own wait
    """

    tokenizer: Tokenizer
    name: str = ""
    digest: str = NO_TEXT
    text: AdapterText = NOTHING_SAID
    failure: ManyloraError | None = None
    found_in: str = ""
    waited_ms: float = 0.0

    def stops(self, *, ignore_eos: bool) -> tuple[str, ...]:
        """The adapter's own stop strings. They are ends of its text, as its end tokens are, and go with them."""
        return () if ignore_eos else self.text.stop_strings

    def applied_to(self, request: Request) -> Request:
        """The request as the engine needs it."""
        stop, text = request.stop, self.text
        strings = (*stop.stop_strings, *self.stops(ignore_eos=stop.ignore_eos))
        return replace(
            request,
            text=self.digest,
            waited_ms=self.waited_ms,
            found_in=self.found_in,
            stop=replace(
                stop,
                stop_strings=strings,
                end_token_ids=text.end_ids,
                added_tokens=(*text.changed, *text.tokens) if strings else (),
            ),
        )


class AdapterTexts:
    """Knows the text of the adapters that were asked for last, within `MAX_CACHE_BYTES`. One event loop."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        link: EngineLink,
        pool: WorkPool,
        *,
        window: int,
        max_wait_s: float,
        allows_templates: bool,
    ) -> None:
        """`window`: positions of the model; `max_wait_s`: how long the engine lets a request wait."""
        self.base = TextRules(tokenizer=tokenizer)
        self._link = link
        self._pool = pool
        self._max_prompt_bytes = BYTES_PER_TOKEN * window
        self._max_wait_s = max_wait_s
        self._allows_templates = allows_templates
        self._renderer = Renderer()
        self._known = _Cache()

    async def of(self, ref: AdapterRef | None, tenant: str, weight: int = 1) -> TextRules:
        """The rules of an adapter's current version, or the base's; waits for an adapter that is not on disk.

        Raises `Unavailable` if the engine is gone, `QueueTimeout` if it does not answer.
        """
        if ref is None:
            return self.base
        if (known := self._known.rules(ref)) is not None:
            return known
        try:
            async with asyncio.timeout(self._max_wait_s + LATE_S):
                return await self._asked(ref, Flow(tenant), weight)
        except TimeoutError as error:
            raise QueueTimeout(f"the request waited longer than {self._max_wait_s:g} s") from error

    def forget(self, ref: AdapterRef | None) -> None:
        """Ask again for an adapter's text: there is another version."""
        if ref is not None:
            self._known.forget(ref)

    async def render_chat(
        self,
        rules: TextRules,
        messages: Sequence[Mapping[str, str]],
        tenant: str,
        *,
        add_generation_prompt: bool = True,
        continues_last: bool = False,
    ) -> tuple[str, tuple[int, ...]]:
        """The prompt of a conversation and its tokens; no special tokens are added to it.

        Raises `TemplateFailed`, also for an adapter whose own template the operator forbids.
        """
        if rules.text.templates:
            shown = open_last(messages) if continues_last else messages
            text = await self._own_prompt(rules, shown, tenant, add_generation_prompt=add_generation_prompt)
            text = cut_last(text, messages[-1]["content"]) if continues_last else text
            return text, await self.encode(rules, text, add_special_tokens=False)
        try:
            text = await self._pool.run(
                lambda: rules.tokenizer.apply_chat_template(
                    messages, add_generation_prompt=add_generation_prompt, continue_final_message=continues_last
                )
            )
        except TemplateFailed:
            if rules.failure is not None:
                raise rules.failure from None  # its template may be a better one
            raise
        return text, await self.encode(rules, text, add_special_tokens=False)

    async def encode(self, rules: TextRules, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        tokenizer = rules.tokenizer
        return tuple(await self._pool.run(lambda: tokenizer.encode(text, add_special_tokens=add_special_tokens)))

    def close(self) -> None:
        self._renderer.close()

    async def _own_prompt(
        self, rules: TextRules, messages: Sequence[Mapping[str, str]], tenant: str, *, add_generation_prompt: bool
    ) -> str:
        if not self._allows_templates:
            raise TemplateFailed(
                f"adapter `{rules.name}` has a chat template of its own, and this server's operator lets no adapter's "
                "template run (adapters.chat_templates); use /v1/completions"
            )
        template = rules.text.templates.get("default")
        if template is None:
            raise TemplateFailed(f"adapter `{rules.name}` has chat templates, and none of them is `default`")
        return await self._renderer.render(
            template,
            {
                **rules.tokenizer.named_tokens,
                "messages": list(messages),
                "tools": None,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
            },
            caller=tenant,
            digest=rules.digest,
            max_bytes=self._max_prompt_bytes,
        )

    async def _asked(self, ref: AdapterRef, flow: Flow, weight: int) -> TextRules:
        found_in, waited_ms = "", 0.0
        for _ in range(MAX_ASKS):
            told = await self._link.text(ref, flow, weight)
            found_in, waited_ms = found_in or told.found_in, waited_ms + told.waited_ms
            if told.failure is not None:
                failure = told.failure.to_error()
                return replace(self.base, name=ref.id, failure=failure, found_in=found_in, waited_ms=waited_ms)
            rules = await self._read(ref, told.words)
            if rules is not None:
                self._known.remember(ref, rules)
                return replace(rules, found_in=found_in, waited_ms=waited_ms)
        raise Unavailable(f"the text of adapter '{ref.id}' goes from the disk as soon as it is there")

    async def _read(self, ref: AdapterRef, words: AdapterWords) -> TextRules | None:
        """The rules in a file of the engine's; None if it has gone meanwhile."""
        if words.digest == NO_TEXT:
            return replace(self.base, name=ref.id)
        if (known := self._known.of_digest(words.digest)) is not None:
            return replace(known, name=ref.id)
        return await self._pool.run(self._parse, ref.id, words)

    def _parse(self, name: str, words: AdapterWords) -> TextRules | None:
        try:
            data = Path(words.path).read_bytes()
            if text_digest(data) != words.digest:
                return None
            text = AdapterText.from_bytes(data)
            return TextRules(tokenizer=self.base.tokenizer.with_text(text), name=name, digest=words.digest, text=text)
        except (OSError, ValueError):
            return None
        except ModelUnsupported as error:
            return replace(self.base, name=name, failure=error)


class _Cache:
    """Names with the digest of their text, and texts by digest: the least lately used go when the bytes are over."""

    def __init__(self) -> None:
        self._names: OrderedDict[AdapterRef, TextRules] = OrderedDict()
        self._texts: OrderedDict[str, TextRules] = OrderedDict()
        self._bytes = 0

    def rules(self, ref: AdapterRef) -> TextRules | None:
        rules = self._names.get(ref)
        if rules is None:
            return None
        self._names.move_to_end(ref)
        if rules.digest in self._texts:
            self._texts.move_to_end(rules.digest)
        return rules

    def of_digest(self, digest: str) -> TextRules | None:
        return self._texts.get(digest)

    def remember(self, ref: AdapterRef, rules: TextRules) -> None:
        self.forget(ref)
        shared = self._texts.get(rules.digest)
        if shared is None and rules.digest != NO_TEXT:
            self._texts[rules.digest] = rules
            self._bytes += _num_bytes(rules)
        elif shared is not None:
            rules = replace(rules, tokenizer=shared.tokenizer, text=shared.text)
        self._names[ref] = rules
        self._bytes += NAME_BYTES
        while self._bytes > MAX_CACHE_BYTES and len(self._names) > 1:
            self._drop_oldest()

    def forget(self, ref: AdapterRef) -> None:
        if self._names.pop(ref, None) is not None:
            self._bytes -= NAME_BYTES

    def _drop_oldest(self) -> None:
        """Texts that a name still holds go with their names."""
        if len(self._texts) > 1:
            digest, rules = self._texts.popitem(last=False)
            self._bytes -= _num_bytes(rules)
            for ref in [ref for ref, named in self._names.items() if named.digest == digest]:
                self.forget(ref)
        else:
            self.forget(next(iter(self._names)))


def _num_bytes(rules: TextRules) -> int:
    """About what a text takes here: as it was read, and as the library keeps its tokens."""
    tokens = len(rules.text.tokens) + len(rules.tokenizer.special_ids)
    is_own = bool(rules.text.tokens or rules.text.changed)
    return NAME_BYTES + 2 * len(rules.text.to_bytes()) + (TOKEN_BYTES * tokens if is_own else 0)
