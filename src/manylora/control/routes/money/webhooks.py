"""Routes of a tenant's webhooks and of their messages."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from manylora.control.http.budget_schemas import MessageList, NewWebhook, WebhookBody, WebhookList
from manylora.control.routes.dependencies import ActorDep, CallerDep, ControlDep, requires
from manylora.control.tenants.audit import record
from manylora.control.webhooks.endpoints import (
    check_url,
    create_webhook,
    end_webhook,
    list_messages,
    list_webhooks,
    secret_of,
    send_again,
)
from manylora.tenancy import Scope

router = APIRouter(prefix="/v1/account/webhooks", tags=["account"])
State = Annotated[Literal["waiting", "delivered", "dead"] | None, Query(description="Messages of this state alone.")]
Before = Annotated[str, Query(max_length=96, description="The `before` of the page before.")]
PageSize = Annotated[int, Query(ge=1, le=1000)]


@router.get("", dependencies=requires(Scope.READ))
async def list_own(control: ControlDep, caller: CallerDep) -> WebhookList:
    """List the caller's own webhooks, without their secrets."""
    async with control.database.read() as connection:
        return WebhookList(webhooks=[WebhookBody.of(each) for each in await list_webhooks(connection, caller.tenant)])


@router.post("", status_code=201, dependencies=requires(Scope.MANAGE))
async def create(control: ControlDep, caller: CallerDep, actor: ActorDep, body: NewWebhook) -> WebhookBody:
    """Make a webhook; the reply alone has its secret."""
    check_url(body.url, control.config.control.webhook_hosts)
    async with control.database.write() as connection:
        webhook = await create_webhook(connection, caller.tenant, body.url, now_ms=actor.at_ms)
        await record(connection, actor, "create", "webhook", webhook.id, tenant=caller.tenant)
    return WebhookBody.of(webhook, secret_of(control.pepper, webhook.id))


@router.get("/messages", dependencies=requires(Scope.READ))
async def messages(
    control: ControlDep, caller: CallerDep, state: State = None, before: Before = "", limit: PageSize = 100
) -> MessageList:
    """List the messages of the caller's own webhooks, the newest first; `dead` are those given up."""
    async with control.database.read() as connection:
        found = await list_messages(connection, caller.tenant, state=state, limit=limit, before=before)
    return MessageList.of(*found)


@router.post("/messages/{message}/retry", status_code=204, dependencies=requires(Scope.MANAGE))
async def retry(control: ControlDep, caller: CallerDep, actor: ActorDep, message: str) -> Response:
    """Send a dead message again, under its own id."""
    async with control.database.write() as connection:
        await send_again(connection, caller.tenant, message, now_ms=actor.at_ms)
        await record(connection, actor, "retry", "message", message, tenant=caller.tenant)
    return Response(status_code=204)


@router.delete("/{webhook}", status_code=204, dependencies=requires(Scope.MANAGE))
async def end(control: ControlDep, caller: CallerDep, actor: ActorDep, webhook: str) -> Response:
    """End a webhook; its messages that wait are not sent any more."""
    async with control.database.write() as connection:
        await end_webhook(connection, caller.tenant, webhook, now_ms=actor.at_ms)
        await record(connection, actor, "end", "webhook", webhook, tenant=caller.tenant)
    return Response(status_code=204)
