"""The events of a step: tokens, and exactly one `Finished` for each admitted request."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from manylora.adapter_state import StoreStats
from manylora.failure import Failure
from manylora.ids import Digest, RequestId
from manylora.usage import Counts


class FinishReason(StrEnum):
    """The reason for which a request ended. Every request ends for exactly one of these."""

    END_OF_SEQUENCE = "end_of_sequence"
    STOP_TOKEN = "stop_token"
    STOP_STRING = "stop_string"
    LENGTH = "length"
    ABORT = "abort"
    DISCONNECT = "disconnect"
    REJECTED = "rejected"
    QUEUE_TIMEOUT = "queue_timeout"
    ADAPTER_FAILURE = "adapter_failure"
    ENGINE_FAILURE = "engine_failure"
    SHUTDOWN = "shutdown"
    INCOMPLETE = "incomplete"  # the edge gave it up for a fault of the server's own


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterUse:
    """The wait of a request for its adapter: the tier that had it, and the milliseconds."""

    digest: Digest
    tier: str
    load_ms: float


class PromptScore(NamedTuple):
    """The score of one token of a prompt, under the logits of the position before it, without logits rules.

    Fields as in `TokenEvent`.
    """

    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()


class TokenEvent(NamedTuple):  # one for every row of every step: a frozen dataclass takes several times as long to make
    """One committed token of one request.

    logprob       natural log of its probability under the distribution before temperature and filters,
                  logits rules applied; None unless asked for
    alternatives  the most likely (token id, logprob) pairs, best first, as many as asked for
    adapter       set on a request's first token only, None for the base model
    queue_ms      set on a request's first token only: arrival to the first step that held it, adapter load included
    cached_tokens set on a request's first token only: as in `usage.Counts`, so that they are known whatever ends it
    prompt        set on a request's first token only: the scores of the prompt's tokens but the first, if asked for
    is_gained     set by the edge: whether the same step committed a token of the request before this one, so that
                  a draft token saved a step
    """

    request_id: RequestId
    token_id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
    adapter: AdapterUse | None = None
    queue_ms: float | None = None
    cached_tokens: int | None = None
    prompt: tuple[PromptScore, ...] | None = None
    is_gained: bool = False


class PooledValues(NamedTuple):
    """The result of a request with a `Pooling`: (rows, columns) little-endian float32, row by row."""

    data: bytes
    columns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The one end of one request.

    stop_string  the string that ended it, for STOP_STRING
    failure      set for REJECTED, QUEUE_TIMEOUT, ADAPTER_FAILURE, ENGINE_FAILURE and SHUTDOWN
    queue_ms     as in `TokenEvent`; None if it never ran
    run_ms       first step to the end
    pooled       the result of a request with a `Pooling`; None if it failed
    adapter      set with `pooled`, as in `TokenEvent`
    prompt       as in `TokenEvent`, for a request that ends without a token
    """

    request_id: RequestId
    reason: FinishReason
    counts: Counts
    stop_string: str | None = None
    failure: Failure | None = None
    queue_ms: float | None = None
    run_ms: float | None = None
    pooled: PooledValues | None = None
    adapter: AdapterUse | None = None
    prompt: tuple[PromptScore, ...] | None = None


@dataclass(frozen=True, slots=True)
class StepEvents:
    """All that one step committed, in the order it was committed. A request's `Finished` follows its last token."""

    tokens: tuple[TokenEvent, ...] = ()
    finished: tuple[Finished, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.tokens or self.finished)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarStats:
    """The numbers of grammars.

    queued      a gauge: grammars whose compilation is awaited or under way
    kept, kept_bytes  gauges: compiled grammars, and their memory; the others are totals since the start
    hits        requests whose grammar another request had brought
    invalid     grammars that the compiler refused, or one of its limits; `slow`: the limit of time; `busy`: too many
                were under way; `fault`: the server's own failures
    compile_s   seconds of compilations, those of refused grammars included
    dropped_…   compiled grammars that a tenant holds no more: beyond its quota, without a use for long (`age`),
                because all tenants together hold too much (`room`), or because the tenant is closed
    """

    queued: int = 0
    compiled: int = 0
    hits: int = 0
    invalid: int = 0
    slow: int = 0
    busy: int = 0
    fault: int = 0
    compile_s: float = 0.0
    kept: int = 0
    kept_bytes: int = 0
    dropped_quota: int = 0
    dropped_age: int = 0
    dropped_room: int = 0
    dropped_closed: int = 0


NO_GRAMMARS = GrammarStats()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """The engine's state in numbers, for `/info`, `/health` and `/metrics`.

    Gauges: waiting, loading (requests whose adapter is on its way), running, blocks.
    Totals since start: steps, preemptions, tokens, draft tokens and accepted ones of these, and dead ends (sequences
    that a grammar ended, because no token was left).
    adapters, grammars: their own numbers.
    ranks_up: ranks of the base that take part in steps. collective_s: total seconds that the first one waited for sums.
    replayed_steps, eager_steps: totals of a card's steps that ran as captured graphs, and operation by operation.
    """

    waiting: int
    loading: int
    running: int
    kv_blocks_total: int
    kv_blocks_used: int
    kv_blocks_cached: int
    kv_blocks_lent: int
    steps: int
    preemptions: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    draft_tokens: int
    accepted_tokens: int
    dead_ends: int
    adapters: StoreStats
    grammars: GrammarStats = NO_GRAMMARS
    ranks_up: int = 1
    collective_s: float = 0.0
    replayed_steps: int = 0
    eager_steps: int = 0
