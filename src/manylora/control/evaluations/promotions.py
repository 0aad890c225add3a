"""Promotions: a version gets an alias if it answers the repository's questions no worse than the version that has it.

Both versions answer in one batch of the tenant, which any edge runs as any batch, at batch priority and the batch's
price. Its end decides: the next look at the promotion, or the next round of the control plane's periodic work.
"""

import json
import logging
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from sqlalchemy import Row, and_, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.evaluations.questions import (
    CANDIDATE,
    CURRENT,
    ENDPOINTS,
    ReplyRule,
    batch_input,
    read_questions,
    replies_in,
    score,
)
from manylora.control.evaluations.sets import Evaluation, get_evaluation
from manylora.control.registry.aliases import check_alias, put_alias
from manylora.control.registry.repositories import Repository, find_repository, own_for_change
from manylora.control.storage.cursors import cursor_of, is_before, newest_first
from manylora.control.storage.locks import lock_tenants
from manylora.control.storage.tables import promotions
from manylora.control.stored.batches import create_batch, get_batch
from manylora.control.stored.files import FilePart, append_to_file, begin_file, publish_file, read_file
from manylora.control.stored.objects import TenantStore
from manylora.control.tenants.audit import Actor, record
from manylora.errors import InvalidParameter, ManyloraError, ResourceNotFound
from manylora.http.callers import Caller
from manylora.ids import TenantId
from manylora.stored.batches import BatchStatus, StoredBatch, mint_batch_id
from manylora.stored.files import BATCH_PURPOSE, Publication, mint_file_id

log = logging.getLogger(__name__)

PART_BYTES = 4 << 20
MAX_KEPT = 100
"""Ended promotions of a repository that are kept, with their reports."""
PAGE = 100
"""Running promotions that `decide_all` reads at one time."""
MAX_UNDER_WAY = 4
"""Promotions of a tenant that run at one time."""
ASKING_MS = 600_000
"""Time in which the questions of a promotion become a batch. After it the control plane that made it has ended."""


class PromotionState(StrEnum):
    """RUNNING; PROMOTED; REFUSED: its score is lower; FAILED: there is no score, and `reason` has the cause."""

    RUNNING = "running"
    PROMOTED = "promoted"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """One promotion.

    current   the version that had the alias, which has to be matched; None: there was none
    batch     id of the batch of its questions; empty: it is made yet, or the promotion is forced
    report    the scores of both versions; None before the end, and of a forced one
    """

    id: str
    tenant: TenantId
    repo: str
    alias: str
    version: int
    current: int | None
    state: PromotionState
    reason: str
    batch: str
    report: Mapping[str, Any] | None
    is_forced: bool
    created_ms: int
    ended_ms: int | None


async def begin_promotion(
    store: TenantStore, caller: Caller, actor: Actor, reference: str, alias: str, version: int, bases: frozenset[str]
) -> Promotion:
    """Put the questions of a repository to a version and to the one that has the alias.

    Raises `ResourceNotFound` for an unknown repository, a version that is not ready and a missing evaluation,
    `InvalidParameter` for too many under way, `StorageLimitExceeded`.
    """
    control = store.control
    async with control.database.write() as connection:
        await lock_tenants(connection, {caller.tenant})  # one promotion after the other: two at once exceed no limit
        repository = await _own(connection, caller.tenant, reference)
        check_alias(repository, alias, bases, versions=())
        evaluation = await get_evaluation(connection, repository.number)
        _require_ready(repository, version)
        await _require_room(connection, caller.tenant)
        current = repository.aliases.get(alias)
        _require_comparable(repository, alias, current)
        compared = None if current is None or current == version or not _is_ready(repository, current) else current
        made = Promotion(
            id=f"promotion_{secrets.token_hex(12)}",
            tenant=caller.tenant,
            repo=repository.name,
            alias=alias,
            version=version,
            current=compared,
            state=PromotionState.RUNNING,
            reason="",
            batch="",
            report=None,
            is_forced=False,
            created_ms=control.now_ms(),
            ended_ms=None,
        )
        facts = {"metric": evaluation.metric.value, "questions": evaluation.text}
        await connection.execute(insert(promotions).values(_columns(made) | {"evaluation": json.dumps(facts)}))
    arms = {CANDIDATE: _name(repository, version)} | ({CURRENT: _name(repository, compared)} if compared else {})
    mine = promotions.c.id == made.id
    try:
        made = replace(made, batch=await _batch(store, caller, evaluation, arms))
    except ManyloraError:
        async with control.database.write() as connection:
            await connection.execute(delete(promotions).where(mine))
        raise
    async with control.database.write() as connection:
        await connection.execute(update(promotions).where(mine).values(batch=made.batch))
        await _record(connection, actor, "evaluate", made)
    return made


async def force_promotion(
    store: TenantStore, actor: Actor, tenant: TenantId, reference: str, alias: str, version: int, bases: frozenset[str]
) -> Promotion:
    """Give an alias to a version without a question. The audit table has it as `force`. Raise as `begin_promotion`."""
    now_ms = store.control.now_ms()
    async with store.control.database.write() as connection:
        repository = await own_for_change(connection, tenant, reference)
        check_alias(repository, alias, bases, versions=())
        _require_ready(repository, version)
        made = Promotion(
            id=f"promotion_{secrets.token_hex(12)}",
            tenant=tenant,
            repo=repository.name,
            alias=alias,
            version=version,
            current=repository.aliases.get(alias),
            state=PromotionState.PROMOTED,
            reason="forced by the operator",
            batch="",
            report=None,
            is_forced=True,
            created_ms=now_ms,
            ended_ms=now_ms,
        )
        await put_alias(connection, repository, alias, version)
        await connection.execute(insert(promotions).values(_columns(made) | {"evaluation": "{}"}))
        await _record(connection, actor, "force", made)
    return made


async def list_promotions(
    connection: AsyncConnection, tenant: TenantId, repo: str, *, limit: int, before: str = ""
) -> tuple[list[Promotion], str | None]:
    """Return a page of a repository's promotions, the latest first, and the `before` of the next page.

    Raises `InvalidParameter` for a `before` that no page gave.
    """
    mine = and_(promotions.c.tenant == tenant, promotions.c.repo == repo)
    asked = select(promotions).where(mine)
    if before:
        asked = asked.where(is_before(promotions, before))
    rows = (await connection.execute(asked.order_by(*newest_first(promotions)).limit(limit + 1))).all()
    return [_promotion(row) for row in rows[:limit]], cursor_of(rows[limit - 1]) if len(rows) > limit else None


async def get_promotion(store: TenantStore, actor: Actor, tenant: TenantId, promotion_id: str) -> Promotion:
    """Return a promotion, decided if its batch has ended. Raise `ResourceNotFound`."""
    mine = and_(promotions.c.id == promotion_id, promotions.c.tenant == tenant)
    async with store.control.database.read() as connection:
        row = (await connection.execute(select(promotions).where(mine))).one_or_none()
    if row is None:
        raise ResourceNotFound(f"no promotion `{promotion_id[:80]}`")
    return await decide(store, actor, row)


async def decide_all(store: TenantStore, actor: Actor) -> None:
    """Decide every promotion whose batch has ended."""
    running = select(promotions).where(promotions.c.state == PromotionState.RUNNING).order_by(promotions.c.id)
    after = ""
    while True:
        async with store.control.database.read() as connection:
            page = (await connection.execute(running.where(promotions.c.id > after).limit(PAGE))).all()
        for row in page:
            try:
                await decide(store, actor, row)
            except (ManyloraError, LookupError, ValueError) as error:  # one promotion must not hold up the others
                log.warning("promotion.undecided id=%s error=%s", row.id, error)
        if len(page) < PAGE:
            return
        after = page[-1].id


async def decide(store: TenantStore, actor: Actor, row: Row[Any]) -> Promotion:
    """Decide a promotion whose batch has ended; return it as it is then."""
    running = _promotion(row)
    if running.state is not PromotionState.RUNNING:
        return running
    if not running.batch and store.control.now_ms() - running.created_ms < ASKING_MS:
        return running
    try:
        if not running.batch:
            raise ResourceNotFound("the control plane ended before its questions were a batch; promote it again")
        batch = await get_batch(store, running.tenant, running.batch)
        if not batch.is_ended:
            return running
        ended = await _judged(store, running, batch, json.loads(row.evaluation))
    except (ResourceNotFound, InvalidParameter) as error:  # questions of an earlier version may break a later rule
        ended = replace(running, state=PromotionState.FAILED, reason=error.message)
    return await _end(store, actor, replace(ended, ended_ms=store.control.now_ms()))


async def _judged(
    store: TenantStore, running: Promotion, batch: StoredBatch, evaluation: Mapping[str, str]
) -> Promotion:
    metric, (_, questions) = ReplyRule(evaluation["metric"]), read_questions(evaluation["questions"])
    if batch.status is not BatchStatus.COMPLETED or batch.failed:
        return replace(running, state=PromotionState.FAILED, reason=await _why_failed(store, batch))
    replies = replies_in(await _whole(store, batch.tenant, batch.output_id))
    scores = {arm: score(metric, questions, replies, arm) for arm in (CANDIDATE, CURRENT)}
    candidate, current = scores[CANDIDATE], scores[CURRENT]
    if candidate is None or (running.current is not None and current is None):
        return replace(running, state=PromotionState.FAILED, reason="a question has no reply")
    report = {
        "metric": metric.value,
        CANDIDATE: {"version": running.version, **asdict(candidate)},
        CURRENT: None if current is None else {"version": running.current, **asdict(current)},
    }
    if current is None or candidate.right >= current.right:
        return replace(running, state=PromotionState.PROMOTED, report=report)
    reason = (
        f"version {running.version} is right in {candidate.right} of {candidate.total}, "
        f"version {running.current} in {current.right}"
    )
    return replace(running, state=PromotionState.REFUSED, reason=reason, report=report)


async def _end(store: TenantStore, actor: Actor, ended: Promotion) -> Promotion:
    """Write the end of a promotion, and the alias with it. Another process may have written it before."""
    mine = promotions.c.id == ended.id
    async with store.control.database.write() as connection:
        row = (await connection.execute(select(promotions).where(mine).with_for_update())).one()
        if row.state != PromotionState.RUNNING:
            return _promotion(row)
        if ended.state is PromotionState.PROMOTED:
            try:
                repository = await own_for_change(connection, ended.tenant, ended.repo)
                _require_ready(repository, ended.version)
            except ResourceNotFound as error:
                ended = replace(ended, state=PromotionState.FAILED, reason=error.message)
            else:
                if _is_as_compared(repository, ended):
                    await put_alias(connection, repository, ended.alias, ended.version)
                else:
                    reason = f"`{ended.alias}` has changed since version {ended.version} was compared; promote it again"
                    ended = replace(ended, state=PromotionState.FAILED, reason=reason)
        await connection.execute(update(promotions).where(mine).values(_columns(ended) | {"evaluation": "{}"}))
        await _forget(connection, ended)
        await _record(connection, actor, "promote" if ended.state is PromotionState.PROMOTED else "refuse", ended)
    return ended


async def _forget(connection: AsyncConnection, ended: Promotion) -> None:
    """Delete the oldest ended promotions of a repository beyond `MAX_KEPT`."""
    mine = and_(
        promotions.c.tenant == ended.tenant, promotions.c.repo == ended.repo, promotions.c.ended_ms.is_not(None)
    )
    asked = select(promotions.c.id).where(mine).order_by(promotions.c.created_ms.desc(), promotions.c.id)
    old = (await connection.execute(asked.offset(MAX_KEPT))).scalars().all()
    await connection.execute(delete(promotions).where(promotions.c.id.in_(old)))


async def _batch(store: TenantStore, caller: Caller, evaluation: Evaluation, arms: Mapping[str, str]) -> str:
    """Store the questions as the input of a new batch, and return the batch's id."""
    data = batch_input(evaluation.kind, evaluation.questions, arms, evaluation.max_tokens)
    begun = await begin_file(store, caller.tenant)
    for start in range(0, len(data), PART_BYTES):
        part = FilePart(start=start, data=data[start : start + PART_BYTES])
        await append_to_file(store, caller.tenant, begun.id, part)
    await publish_file(store, caller.tenant, begun.id, Publication(name="evaluation.jsonl", purpose=BATCH_PURPOSE))
    batch = StoredBatch(
        id=mint_batch_id(),
        tenant=caller.tenant,
        key=caller.key,
        origin=caller.origin,
        endpoint=ENDPOINTS[evaluation.kind],
        input_id=begun.id,
        output_id=mint_file_id(),
        error_id=mint_file_id(),
        created_ms=store.control.now_ms(),
        metadata={"for": "evaluation"},
    )
    return (await create_batch(store, batch)).id


async def _why_failed(store: TenantStore, batch: StoredBatch) -> str:
    """Return the cause of the first failed line, or of the batch."""
    if batch.errors:
        return f"the batch {batch.id} is {batch.status}: {batch.errors[0].message}"
    try:
        first = (await _whole(store, batch.tenant, batch.error_id)).splitlines()[0]
        line = json.loads(first)
        body = (line.get("response") or {}).get("body", {})
        cause = (body.get("error") or line.get("error") or {}).get("message", "")
    except (ManyloraError, LookupError, ValueError, AttributeError):
        cause = ""
    return f"{batch.failed} of {batch.total} lines of the batch {batch.id} failed ({batch.status}): {cause}"


async def _whole(store: TenantStore, tenant: TenantId, file_id: str) -> bytes:
    parts, start = list[bytes](), 0
    while part := await read_file(store, tenant, file_id, start, start + PART_BYTES):
        parts.append(part)
        start += len(part)
    return b"".join(parts)


async def _own(connection: AsyncConnection, tenant: TenantId, reference: str) -> Repository:
    found = await find_repository(connection, tenant, reference)
    if found.owner != tenant:
        raise ResourceNotFound(f"no repository `{reference[:80]}`")
    return found


def _require_ready(repository: Repository, version: int) -> None:
    if not repository.find(str(version)).is_usable:
        raise ResourceNotFound(f"version {version} of `{repository.name}` is not ready, so no alias can mean it")


def _require_comparable(repository: Repository, alias: str, current: int | None) -> None:
    """Raise `InvalidParameter` for a guarded alias whose version cannot answer: any version would pass."""
    if alias in repository.guards and current is not None and not _is_ready(repository, current):
        raise InvalidParameter(
            f"alias `{repository.name}/{alias}` is guarded, and version {current}, which has it, is not ready, so that "
            "nothing can be compared with it: restore that version, or let the operator promote with `--force`",
            parameter="version",
        )


def _is_as_compared(repository: Repository, ended: Promotion) -> bool:
    """Return whether the alias still means the version that the candidate was compared with."""
    present = repository.aliases.get(ended.alias)
    if ended.current is not None or present is None or present == ended.version:
        return present in (ended.current, ended.version)
    return ended.alias not in repository.guards and not _is_ready(repository, present)


def _is_ready(repository: Repository, version: int) -> bool:
    return any(each.version == version and each.is_usable for each in repository.versions)


async def _require_room(connection: AsyncConnection, tenant: TenantId) -> None:
    mine = and_(promotions.c.tenant == tenant, promotions.c.state == PromotionState.RUNNING)
    asked = select(promotions.c.id).where(mine).limit(MAX_UNDER_WAY)
    if len((await connection.execute(asked)).all()) == MAX_UNDER_WAY:
        raise InvalidParameter(
            f"{MAX_UNDER_WAY} promotions of the tenant are under way, the limit", parameter="version"
        )


def _name(repository: Repository, version: int | None) -> str:
    return f"pbase://{repository.owner}/{repository.name}/{version}"


async def _record(connection: AsyncConnection, actor: Actor, verb: str, made: Promotion) -> None:
    name = f"{made.repo}/{made.alias}"
    after = {"version": made.version, "state": made.state.value, "reason": made.reason, "id": made.id}
    await record(connection, actor, verb, "alias", name, tenant=made.tenant, before=made.current, after=after)


def _columns(made: Promotion) -> dict[str, Any]:  # values of several types
    values = asdict(made) | {"state": made.state.value}
    values["report"] = None if made.report is None else json.dumps(made.report)
    return values


def _promotion(row: Row[Any]) -> Promotion:
    values = {name: getattr(row, name) for name in Promotion.__slots__}
    report = None if row.report is None else json.loads(row.report)
    return Promotion(**{**values, "state": PromotionState(row.state), "report": report})
