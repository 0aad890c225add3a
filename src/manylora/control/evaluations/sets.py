"""The evaluation of a repository: its questions, its metric, and the aliases that it guards."""

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.evaluations.questions import MAX_TOKENS, Question, ReplyRule, read_questions
from manylora.control.registry.aliases import check_alias_name
from manylora.control.registry.repositories import own_for_change
from manylora.control.storage.tables import evaluations
from manylora.errors import InvalidParameter, ResourceNotFound
from manylora.ids import TenantId

DEFAULT_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The evaluation of a repository.

    text       the questions as they came, JSON lines
    guards     aliases that a version gets by a promotion alone
    max_tokens  tokens of a reply at most
    """

    metric: ReplyRule
    text: str
    guards: tuple[str, ...] = ()
    max_tokens: int = DEFAULT_TOKENS

    @property
    def kind(self) -> str:
        return read_questions(self.text)[0]

    @property
    def questions(self) -> list[Question]:
        return read_questions(self.text)[1]


def checked_evaluation(metric: str, text: str, guards: list[str], max_tokens: int) -> Evaluation:
    """Return an evaluation. Raise `InvalidParameter`, naming the field."""
    read_questions(text)
    if metric not in list(ReplyRule):
        raise InvalidParameter(
            f"`metric` must be one of {', '.join(ReplyRule)}. Given: {metric[:40]!r}", parameter="metric"
        )
    if not 1 <= max_tokens <= MAX_TOKENS:
        raise InvalidParameter(f"`maxTokens` must be 1 to {MAX_TOKENS}. Given: {max_tokens}", parameter="maxTokens")
    for name in guards:
        check_alias_name(name)
    return Evaluation(metric=ReplyRule(metric), text=text, guards=tuple(sorted(set(guards))), max_tokens=max_tokens)


async def set_evaluation(connection: AsyncConnection, tenant: TenantId, reference: str, found: Evaluation) -> int:
    """Attach an evaluation to a repository in place of an earlier one; return its number. Raise `ResourceNotFound`."""
    repository = await own_for_change(connection, tenant, reference)
    await drop_evaluation(connection, repository.number)
    values = {
        "repository": repository.number,
        "metric": found.metric.value,
        "questions": found.text,
        "guards": json.dumps(found.guards),
        "max_tokens": found.max_tokens,
    }
    await connection.execute(insert(evaluations).values(values))
    return repository.number


async def get_evaluation(connection: AsyncConnection, repository: int) -> Evaluation:
    """Return the evaluation of a repository. Raise `ResourceNotFound`."""
    asked = select(evaluations).where(evaluations.c.repository == repository)
    row: Any = (await connection.execute(asked)).one_or_none()
    if row is None:
        raise ResourceNotFound("the repository has no evaluation")
    guards = tuple(json.loads(row.guards))
    return Evaluation(metric=ReplyRule(row.metric), text=row.questions, guards=guards, max_tokens=row.max_tokens)


async def drop_evaluation(connection: AsyncConnection, repository: int) -> None:
    await connection.execute(delete(evaluations).where(evaluations.c.repository == repository))
