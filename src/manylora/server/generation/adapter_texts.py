"""The text rules of adapters: the tokenizer of prompts and replies, the chat template, the stop conditions.

The engine sends them once for each version. It refuses a prompt with the rules of another version; the edge then asks
for the rules again. Known rules cost two look-ups in a dictionary.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import AdapterWords
from manylora.errors import InvalidParameter, ManyloraError, ModelUnsupported, QueueTimeout, Unavailable
from manylora.ids import Flow
from manylora.models.text.adapter_text import NO_TEXT, NOTHING_SAID, AdapterText, text_digest
from manylora.models.text.tokenizer import Tokenizer
from manylora.server.engine_client.client import EngineClient

if TYPE_CHECKING:
    from concurrent.futures import Executor

MAX_CACHE_BYTES = 64 << 20
NAME_BYTES = 1 << 10
"""Bytes that the cache counts for a name, and for a text in addition to its own bytes."""
TOKEN_BYTES = 512
"""Bytes that the cache counts for a token of an adapter's tokenizer, which the library keeps in several tables."""
LATE_S = 5.0
"""The engine ends a wait that is too long. The edge itself ends it only this many seconds later."""
MAX_ASKS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRules:
    """The rules for making a request's prompt and reading its reply.

    name       the adapter's name in messages
    failure    the reason why the adapter cannot be loaded; the edge still sends the request, which the engine refuses
    found_in, waited_ms  as in `Request`, for this request's own wait
    """

    tokenizer: Tokenizer
    name: str = ""
    digest: str = NO_TEXT
    text: AdapterText = NOTHING_SAID
    failure: ManyloraError | None = None
    found_in: str = ""
    waited_ms: float = 0.0


class AdapterTexts:
    """Keeps the text rules of the last used adapters, within `MAX_CACHE_BYTES`. It belongs to one event loop."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        engine: EngineClient,
        pool: "Executor",
        *,
        max_wait_s: float,
    ) -> None:
        """`max_wait_s` is the engine's limit on a request's wait, in seconds."""
        self.base = TextRules(tokenizer=tokenizer)
        self._engine = engine
        self._pool = pool
        self._max_wait_s = max_wait_s
        self._known = _Cache()

    async def of(self, ref: AdapterRef | None, tenant: str, weight: int = 1) -> TextRules:
        """Return the rules of an adapter's current version or of the base; wait for an adapter that is not on disk.

        Raises `Unavailable` if the engine is gone, `QueueTimeout` if it does not answer.
        """
        if ref is None:
            return self.base
        if ref.mix is not None:
            return _shared(await asyncio.gather(*(self.of(member, tenant, weight) for member in ref.mix.members)))
        if (known := self._known.rules(ref)) is not None:
            return known
        try:
            async with asyncio.timeout(self._max_wait_s + LATE_S):
                return await self._asked(ref, Flow(tenant), weight)
        except TimeoutError as error:
            raise QueueTimeout(f"the request waited longer than {self._max_wait_s:g} s") from error

    def forget(self, ref: AdapterRef | None) -> None:
        """Drop the rules of an adapter with a new version, so that its next request asks for them again."""
        for member in () if ref is None else ref.loaded:
            self._known.forget(member)

    async def _asked(self, ref: AdapterRef, flow: Flow, weight: int) -> TextRules:
        found_in, waited_ms = "", 0.0
        for _ in range(MAX_ASKS):
            reply = await self._engine.text(ref, flow, weight)
            found_in, waited_ms = found_in or reply.found_in, waited_ms + reply.waited_ms
            if reply.failure is not None:
                failure = reply.failure.to_error()
                return replace(self.base, name=ref.id, failure=failure, found_in=found_in, waited_ms=waited_ms)
            rules = await self._read(ref, reply.words)
            if rules is not None:
                self._known.remember(ref, rules)
                return replace(rules, found_in=found_in, waited_ms=waited_ms)
        raise Unavailable(f"the text of adapter '{ref.id}' goes from the disk as soon as it is there")

    async def _read(self, ref: AdapterRef, words: AdapterWords) -> TextRules | None:
        """Return the rules in a file of the engine; None if the engine has removed the file meanwhile."""
        if words.digest == NO_TEXT:
            return replace(self.base, name=ref.id)
        if (known := self._known.of_digest(words.digest)) is not None:
            return replace(known, name=ref.id)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._parse, ref.id, words)

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


def _shared(members: Sequence[TextRules]) -> TextRules:
    """Return the rules of adapters that apply together, which must have one text; the wait is the longest one.

    The failure of a member is that of all. Raises `InvalidParameter` for two different texts.
    """
    failed = next((rules for rules in members if rules.failure is not None), None)
    if failed is not None:
        return failed
    first, slowest = members[0], max(members, key=lambda rules: rules.waited_ms)
    if (other := next((rules for rules in members if rules.digest != first.digest), None)) is not None:
        raise InvalidParameter(
            f"`adapters`: '{first.name}' and '{other.name}' have different tokenizers, chat templates or ends, so they "
            "cannot apply together",
            parameter="adapters",
        )
    name = ",".join(rules.name for rules in members)
    return replace(first, name=name, found_in=slowest.found_in, waited_ms=slowest.waited_ms)


class _Cache:
    """The rules by adapter, and rules with their own text by its digest. It evicts the least recently used."""

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
        """Evict the least recently used text with all names that hold it; if one text is left, the oldest name."""
        if len(self._texts) > 1:
            digest, rules = self._texts.popitem(last=False)
            self._bytes -= _num_bytes(rules)
            for ref in [ref for ref, named in self._names.items() if named.digest == digest]:
                self.forget(ref)
        else:
            self.forget(next(iter(self._names)))


def _num_bytes(rules: TextRules) -> int:
    """Return the approximate memory of a text: the text itself, and its tokens in the library's tables."""
    tokens = len(rules.text.tokens) + len(rules.tokenizer.special_ids)
    is_own = bool(rules.text.tokens or rules.text.changed)
    return NAME_BYTES + 2 * len(rules.text.to_bytes()) + (TOKEN_BYTES * tokens if is_own else 0)
