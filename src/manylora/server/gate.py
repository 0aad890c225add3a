"""Admission: names become adapters, text becomes tokens within the window, one order becomes engine requests."""

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from manylora.adapter_ref import AdapterRef, SourceName, merged_ref, parse_adapter_ref
from manylora.adapters.local_source import LocalSource
from manylora.adapters.registry import Registry
from manylora.config import ServerConfig
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.errors import (
    AdapterError,
    AdapterNotFound,
    AdapterReferenceInvalid,
    ContextLengthExceeded,
    InvalidParameter,
    Overloaded,
    Unavailable,
)
from manylora.ids import Flow, TenantId, mint_request_id, mint_seed
from manylora.kernels.extras import MAX_ADDED_TOKENS
from manylora.models.tokenizer import Tokenizer
from manylora.server.adapter_fields import AdapterFields
from manylora.server.directory import Directory
from manylora.server.fields import MAX_UINT64
from manylora.server.pool import WorkPool
from manylora.server.served import ServedModel
from manylora.sharing import has_place

NO_FIELDS = AdapterFields()


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """One prompt, ready to be expanded into sequences.

    characters  of input, for `x-compute-characters`
    seed        None: drawn for each sequence; else sequence i has seed + i
    keeps_stop  whether the text keeps the stop token
    is_cut      whether the prompt had more tokens
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


class Gate:
    """Decides what enters. It holds the count of sequences under way and whether the server is draining."""

    def __init__(
        self,
        *,
        served: ServedModel,
        settings: ServerConfig,
        tokenizer: Tokenizer,
        pool: WorkPool,
        directory: Directory | None = None,
    ) -> None:
        """`directory`: where uploads are looked up; None: in the folder of the registry."""
        self._directory = directory
        self.served = served
        self.settings = settings
        self.tokenizer = tokenizer
        self.pool = pool
        self.num_sequences = 0
        self._held: Counter[TenantId] = Counter()  # those sequences by tenant; only who has some
        self.is_draining = False
        self._sources = frozenset(served.adapter_sources)
        self._local = LocalSource(tuple(map(Path, served.adapter_roots)))
        self._registry = Registry(Path(served.registry_dir)) if served.registry_dir else None
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

    def adapter(
        self,
        name: str | None,
        fields: AdapterFields = NO_FIELDS,
        parameter: str = "adapter_id",
        *,
        tenant: str,
        token: str = "",
    ) -> AdapterRef | None:
        """The adapter a request names, or makes of several; None is the base model.

        `token` is the caller's at the source, where the request has none of its own.
        An unknown name is the engine's to refuse. A name without a source is a local adapter's if there is one of that
        name, else a version of the tenant's in the registry, else it is the default source's.
        """
        if token and not fields.token:
            fields = dataclasses.replace(fields, token=token)
        if fields.recipe is not None:
            return merged_ref([self._ref(member, fields, tenant) for member in fields.merged_ids], fields.recipe)
        if name is None or self.served.is_base_name(name):
            _check_source(fields.source)
            return None
        try:
            return self._ref(name, fields, tenant)
        except AdapterReferenceInvalid as error:
            error.parameter = parameter if error.parameter == "adapter_id" else error.parameter
            raise

    def _ref(self, name: str, fields: AdapterFields, tenant: str) -> AdapterRef:
        source, default = fields.source, self.served.default_source
        has_others = default is not SourceName.LOCAL or self._registry is not None or self._directory is not None
        if source is None and has_others and self._is_local(name):
            source = SourceName.LOCAL
        if self._directory is not None and source in (None, SourceName.PBASE):
            upload = self._directory.upload(TenantId(tenant), name)
            if upload is not None:
                source, tenant, name = SourceName.PBASE, upload.owner, f"{upload.repository}/{upload.version}"
            elif self._is_directory_s(tenant, name) or (
                source is SourceName.PBASE and not self._is_in_folder(tenant, name)
            ):
                # What is a tenant's own is nobody else's: neither another's upload nor a hub's of the same name.
                raise AdapterNotFound(f"Adapter '{name}' was not found in source 'pbase'")
        if source is None and self._is_in_folder(tenant, name):
            source = SourceName.PBASE
        return parse_adapter_ref(name, source, self._sources, token=fields.token, default=default, tenant=tenant)

    def uploaded_names(self, tenant: str) -> list[str]:
        """Repositories of the registry that a tenant may use, as it would name them."""
        known = set() if self._directory is None else set(self._directory.names(TenantId(tenant)))
        in_folder = [] if self._registry is None else self._registry.repositories(tenant)
        return sorted(known | {name for name in in_folder if not self._is_directory_s(tenant, name)})

    async def local_names(self) -> list[str]:
        """Local adapters as the engine's own source lists them, read anew: they come and go while the server runs."""
        return await self.pool.run(self._local.list)

    def _is_in_folder(self, tenant: str, name: str) -> bool:
        """Whether the registry's folder has a name that nobody has told the control plane of."""
        if self._registry is None or self._is_directory_s(tenant, name):
            return False
        return self._registry.has(tenant, name)

    def _is_directory_s(self, tenant: str, name: str) -> bool:
        """Whether the control plane decides on a name."""
        return self._directory is not None and self._directory.knows(TenantId(tenant), name.partition("/")[0])

    def _is_local(self, adapter_id: str) -> bool:
        try:
            self._local.locate(AdapterRef(SourceName.LOCAL, adapter_id.rstrip("/")))
        except AdapterNotFound:
            return False
        except AdapterError:
            return True  # and its fault is told when it is asked for
        return True

    async def encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        return await self.pool.run(self._encode, text, add_special_tokens)

    async def render_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = True,
        continues_last: bool = False,
    ) -> tuple[str, tuple[int, ...]]:
        """The chat template's text and its tokens; no special tokens are added to it."""
        return await self.pool.run(self._render_chat, messages, add_generation_prompt, continues_last)

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

    def expand(self, draft: Draft, tenant: str, *, weight: int = 1) -> list[Request]:
        """One request for each sequence of a draft, alike but for id and seed; `weight` is the tenant's share."""
        return [
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

    def _encode(self, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def _render_chat(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool, continues_last: bool
    ) -> tuple[str, tuple[int, ...]]:
        text = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt, continue_final_message=continues_last
        )
        return text, self._encode(text, False)


def _check_source(source: str | None) -> None:
    """A source beside the base's name means nothing, but a word that is no source is a mistake."""
    if source is not None and source not in list(SourceName):
        raise AdapterReferenceInvalid(
            f"`adapter_source` must be one of {', '.join(SourceName)}. Given: {source[:80]}", parameter="adapter_source"
        )


def _seed(seed: int | None, index: int) -> int:
    return mint_seed() if seed is None else (seed + index) & MAX_UINT64
