"""Admission: who enters, text becomes tokens within the window, one order becomes engine requests."""

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from manylora.adapter_ref import AdapterRef
from manylora.clock import Clock
from manylora.config.groups.server import ServerConfig
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.errors import ContextLengthExceeded, InvalidParameter, Overloaded, Unavailable
from manylora.ids import Flow, TenantId, mint_request_id, mint_seed
from manylora.kernels.adapter_layout import MAX_ADDED_TOKENS
from manylora.models.text.tokenizer import Tokenizer
from manylora.server.access.directory import Directory
from manylora.server.engine_client.served_model import ServedModel
from manylora.server.generation.adapter_resolver import AdapterResolver
from manylora.server.generation.adapter_texts import TextRules
from manylora.server.generation.tokenizer_pool import WorkPool
from manylora.server.http.json_fields import MAX_UINT64
from manylora.sharing import has_place


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPrompt:
    """One prompt, ready to be expanded into sequences.

    characters  of input, for `x-compute-characters`
    seed        None: drawn for each sequence; else sequence i has seed + i
    keeps_stop  whether the text keeps the stop token
    is_cut      whether the prompt had more tokens
    rules       what the prompt was made with, and the reply is read with; None: the base's
    """

    tokens: tuple[int, ...]
    characters: int
    adapter: AdapterRef | None
    sampling: SamplingParams
    stop: StopParams
    seed: int | None
    num_sequences: int
    keeps_stop: bool = False
    is_cut: bool = False
    rules: TextRules | None = None

    @property
    def own_stops(self) -> tuple[str, ...]:
        """Stop strings of the adapter's own."""
        return () if self.rules is None else self.rules.stops(ignore_eos=self.stop.ignore_eos)


class AdmissionControl:
    """Decides what enters. It holds the count of sequences under way and whether the server is draining.

    `resolver` says what names of adapters mean.
    """

    def __init__(
        self,
        *,
        served: ServedModel,
        settings: ServerConfig,
        tokenizer: Tokenizer,
        pool: WorkPool,
        directory: Directory | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`directory`: where uploads are looked up; None: in the folder of the registry."""
        self.resolver = AdapterResolver(served, directory, clock)
        self.served = served
        self.settings = settings
        self.tokenizer = tokenizer
        self.pool = pool
        self.num_sequences = 0
        self._held: Counter[TenantId] = Counter()  # those sequences by tenant; only who has some
        self.is_draining = False
        self._left = asyncio.Event()  # set whenever a place is given back

    @contextmanager
    def admit(self, tenant: TenantId, num_sequences: int) -> Iterator[None]:
        """Hold a place for each sequence. Raises `Overloaded` when the house is full, `Unavailable` when it closes.

        It is full for a tenant sooner than for others if that tenant fills it: see `sharing`.
        """
        limit = self.settings.max_concurrent_requests
        if self.is_draining:
            raise Unavailable("the server is shutting down; repeat the request")
        if num_sequences > limit:
            raise InvalidParameter(f"the request asks for {num_sequences} sequences; the limit is {limit}")
        held = self._held[tenant]
        if not has_place(held=held, taken=self.num_sequences, wanted=num_sequences, limit=limit):
            raise Overloaded("Model is overloaded")
        self._count(tenant, num_sequences)
        try:
            yield
        finally:
            self._count(tenant, -num_sequences)
            self._left.set()

    def _count(self, tenant: TenantId, change: int) -> None:
        self.num_sequences += change
        self._held[tenant] += change
        if not self._held[tenant]:
            del self._held[tenant]

    async def emptied(self) -> None:
        """Wait until no sequence is under way."""
        while self.num_sequences:
            self._left.clear()
            await self._left.wait()

    def budget(self, num_prompt: int, asked: int | None, *, field: str, is_clamped: bool, budget_field: str) -> int:
        """Tokens to generate at most.

        Args:  asked       None: the rest of the window
               is_clamped  cut to the room left what is asked above it, instead of refusing
        Raises `ContextLengthExceeded` for a prompt, or a prompt and budget, longer than the window.
        """
        served = self.served
        if num_prompt > served.max_input_length:
            raise ContextLengthExceeded(
                f"`{field}` must have less than {served.max_input_length} tokens. Given: {num_prompt}", parameter=field
            )
        room = served.max_model_len - num_prompt
        if asked is None or asked <= room:
            return room if asked is None else asked
        if is_clamped:
            return room
        raise ContextLengthExceeded(
            f"`{field}` tokens + `{budget_field}` must be <= {served.max_model_len}. "
            f"Given: {num_prompt} `{field}` tokens and {asked} `{budget_field}`",
            parameter=budget_field,
        )

    def truncate(
        self, tokens: tuple[int, ...], most: int | None, *, field: str, budget: int | None, longest: int
    ) -> tuple[int, ...]:
        """Keep the last `most` tokens of a prompt.

        Args:  most     None: all; `longest`: as many as fit the window beside the budget
               budget   tokens to generate at most; None: the rest of the window, at least one
               longest  the value that says so
        """
        served = self.served
        if most is None:
            return tokens
        if most != longest and not 1 <= most <= served.max_input_length:
            raise InvalidParameter(
                f"`{field}` must be {longest}, or >= 1 and <= {served.max_input_length}. Given: {most}", parameter=field
            )
        if most == longest:
            most = max(1, min(served.max_input_length, served.max_model_len - (budget or 1)))
        return tokens[-most:]

    def check_tokens(self, tokens: Sequence[int], field: str, *, has_adapter: bool = False) -> None:
        """Refuse what is no token of the base, nor could be one that an adapter adds: its version knows which are."""
        known = self.served.vocab_size + (MAX_ADDED_TOKENS if has_adapter else 0)
        if tokens and not (min(tokens) >= 0 and max(tokens) < known):
            raise InvalidParameter(f"`{field}`: token ids must be >= 0 and < {self.served.vocab_size}", parameter=field)

    def expand(self, draft: PreparedPrompt, tenant: str, *, weight: int = 1) -> list[Request]:
        """One request for each sequence of a draft, alike but for id and seed; `weight` is the tenant's share."""
        requests = [
            Request(
                id=mint_request_id(),
                flow=Flow(tenant),
                weight=weight,
                salt=tenant,
                tokens=draft.tokens,
                adapter=draft.adapter,
                sampling=dataclasses.replace(draft.sampling, seed=_seed(draft.seed, index)),
                stop=draft.stop,
            )
            for index in range(draft.num_sequences)
        ]
        return requests if draft.rules is None else [draft.rules.applied_to(request) for request in requests]


def _seed(seed: int | None, index: int) -> int:
    return mint_seed() if seed is None else (seed + index) & MAX_UINT64
