"""The usage of a request: counts of token positions (never of work done), and the tenant that pays.

The engine counts (`Counts`), the server attributes (`UsageRecord`), the control plane prices.
"""

from dataclasses import dataclass

from manylora.ids import KeyId, TenantId, UsageId

FAILURES = ("engine_failure", "edge_lost", "shutdown", "adapter_failure", "queue_timeout", "rejected", "incomplete")
"""Finish reasons of requests that the service did not complete, the worst first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Token counts of one finished request.

    prompt_tokens      prompt positions, counted once however often they were recomputed
    cached_tokens      prompt positions whose keys and values came from the prefix cache at admission
    completion_tokens  tokens committed by the engine, end-of-sequence included
    computed_tokens    prompt positions that had keys and values at any moment, cached ones included: all of them if a
                       token was committed, fewer if the request ended before
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    computed_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
    """The usage of one HTTP request, written once, after any end of the request.

    id              minted by the server; the ledger inserts once by it
    tenant, key     the payer; key None: the server asks for none (`server.auth` is off)
    request_id      the caller's own id or the server's: an attribute, not unique
    edge            the server process that took the request, unique for its life
    base            the base model's id, which has the price
    adapter         as it is known in its source, `repo/3` for an upload; None: the base model; merges joined by `,`
    adapter_source  `local`, `hub`, `s3`, `pbase`; None for the base model
    adapter_owner   the tenant whose upload it is, for `pbase` only; it may differ from `tenant`
    adapter_digest  None where the request ended before its adapter was known
    opened_ms       milliseconds since 1970, UTC, when it was admitted; decides the price and the month

    Counts are of all sequences (`n`, `best_of` losers); a prompt is counted once for all sequences that share it.
    prompt_tokens, cached_tokens, completion_tokens       tokens that the engine committed: always recorded
    charged_prompt_tokens, charged_completion_tokens      tokens that the tenant pays for: see docs/billing.md
    charged_cached_tokens                                 the part of charged_prompt_tokens at the cached price;
                                                          None: an edge of an older version sends none

    finish_reason   of the sequence that ended worst: `stop`, `length`, `disconnect`, `abort`, `edge_lost`,
                    `engine_failure` and so on
    tier            the adapter's tier on arrival; None for the base model
    is_batch        a line of a batch, which has a price of its own
    alias           the alias that the request named, as `repo/alias` of `adapter_owner`; None: none, or several
    is_shadow       a version that ran beside the one that answered: it is counted, and no tenant pays for it
    deployment      the dedicated deployment whose replica served it, whose seconds are billed in place of its tokens
    queue_ms, load_ms, first_token_ms, total_ms           None if that moment never came
    """

    id: UsageId
    tenant: TenantId
    key: KeyId | None
    request_id: str
    edge: str
    base: str
    adapter: str | None
    adapter_source: str | None
    adapter_owner: TenantId | None
    adapter_digest: str | None
    opened_ms: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    charged_prompt_tokens: int
    charged_completion_tokens: int
    num_sequences: int
    finish_reason: str
    tier: str | None = None
    queue_ms: float | None = None
    load_ms: float | None = None
    first_token_ms: float | None = None
    total_ms: float | None = None
    charged_cached_tokens: int | None = None
    is_batch: bool = False
    alias: str | None = None
    is_shadow: bool = False
    deployment: str | None = None

    @property
    def cached_charge(self) -> int:
        """Charged prompt tokens at the cached price; for a record of an older edge, computed from its cached tokens."""
        cached = self.cached_tokens if self.charged_cached_tokens is None else self.charged_cached_tokens
        return max(0, min(cached, self.charged_prompt_tokens))
