"""JSON of budgets and webhooks, as pydantic models."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from manylora.control.budgets.budgets import MOST_LIMIT_NANOUSD, STOPPED, BudgetState
from manylora.control.http.schemas import RequestBody, iso
from manylora.control.webhooks.endpoints import MAX_URL, Webhook, WebhookMessage
from manylora.control.zones import DEFAULT_ZONE, MAX_ZONE, iso_in


class NewBudget(RequestBody):
    """A limit of the spending in each day or month. Without `key` and `adapter` it is the whole tenant's."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f`]*$")]
    limit_nanousd: Annotated[int, Field(ge=0, le=MOST_LIMIT_NANOUSD)]
    period: Literal["day", "month"] = "month"
    zone: Annotated[
        str, Field(min_length=1, max_length=MAX_ZONE, description="The time zone of its days, such as Europe/Berlin.")
    ] = DEFAULT_ZONE
    key: Annotated[
        str | None, Field(min_length=1, max_length=8, description="The id of a key; its rotations count, too.")
    ] = None
    adapter: Annotated[
        str | None,
        Field(min_length=1, max_length=200, pattern=r"^[^\x00,]*$", description="`repo`, `repo/3` or `owner/repo`."),
    ] = None
    hard: Annotated[bool, Field(description="Refuse requests that could exceed it; false: alerts alone.")] = True


class BudgetBody(BaseModel):
    """A budget in its present period [begin, end). `alerts`: the percentages reached; `stopped`: it refused."""

    id: str
    tenant: str
    name: str
    key: str | None
    adapter: str | None
    period: str
    zone: str
    limit_nanousd: int
    spent_nanousd: int
    left_nanousd: int
    hard: bool
    by_operator: bool
    begin: str
    end: str
    alerts: list[int]
    stopped: bool
    created: str

    @staticmethod
    def of(state: BudgetState) -> "BudgetBody":
        budget = state.budget
        return BudgetBody(
            id=budget.facts.id,
            tenant=budget.tenant,
            name=budget.name,
            key=budget.facts.key,
            adapter=budget.facts.adapter,
            period=budget.period.value,
            zone=budget.zone,
            limit_nanousd=budget.limit_nanousd,
            spent_nanousd=state.spent_nanousd,
            left_nanousd=max(0, budget.limit_nanousd - state.spent_nanousd),
            hard=budget.is_hard,
            by_operator=budget.is_operators,
            begin=iso_in(state.period.begin_ms, budget.zone),
            end=iso_in(state.period.end_ms, budget.zone),
            alerts=[mark for mark in state.marks if mark != STOPPED],
            stopped=STOPPED in state.marks,
            created=iso(budget.created_ms),
        )


class BudgetList(BaseModel):
    budgets: list[BudgetBody]


class NewWebhook(RequestBody):
    """An address for alerts, called with POST and a signature."""

    url: Annotated[str, Field(min_length=1, max_length=MAX_URL)]


class WebhookBody(BaseModel):
    """A webhook. `secret`: what its signatures are made with; only the reply to its creation has it."""

    id: str
    url: str
    created: str
    secret: str | None = None

    @staticmethod
    def of(webhook: Webhook, secret: str | None = None) -> "WebhookBody":
        return WebhookBody(id=webhook.id, url=webhook.url, created=iso(webhook.created_ms), secret=secret)


class WebhookList(BaseModel):
    webhooks: list[WebhookBody]


class MessageBody(BaseModel):
    """A message: waiting, delivered or dead. `next`: the moment of the next attempt, while it waits."""

    id: str
    webhook: str
    kind: str
    state: str
    attempts: int
    created: str
    next: str | None
    error: str

    @staticmethod
    def of(message: WebhookMessage) -> "MessageBody":
        return MessageBody(
            id=message.id,
            webhook=message.webhook,
            kind=message.kind,
            state=message.state,
            attempts=message.attempts,
            created=iso(message.created_ms),
            next=iso(message.next_ms) if message.state == "waiting" else None,
            error=message.error,
        )


class MessageList(BaseModel):
    """Messages, the newest first. before: the argument that returns the next page; null on the last page."""

    messages: list[MessageBody]
    has_more: bool
    before: str | None

    @staticmethod
    def of(messages: Sequence[WebhookMessage], before: str | None) -> "MessageList":
        found = [MessageBody.of(message) for message in messages]
        return MessageList(messages=found, has_more=before is not None, before=before)
