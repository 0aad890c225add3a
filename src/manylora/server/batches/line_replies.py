"""A line of a batch as a request to the handler of its route, and the handler's reply as the line's result."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from manylora.clock import Clock
from manylora.errors import EngineFault, ManyloraError
from manylora.http.callers import Caller
from manylora.http.dialects import body_of, status_of
from manylora.http.paths import Dialect
from manylora.rollouts.draw import ArmDraw, nonce_of
from manylora.server.batches.lines import BatchLine, LineError, LineResponse, LineResult
from manylora.server.http.context import SEND, HttpContext, RequestState
from manylora.server.http.routing import Handler

log = logging.getLogger(__name__)

Keep = Callable[[LineResult], Awaitable[None]]
"""Writes a result; it is on the disk at the return."""

HTTP_OK = 200


def mint_line_id() -> str:
    return f"batch_req_{secrets.token_hex(16)}"


class LineReplies:
    """Sends lines to the handlers of the routes, without their layers: a batch's creation has passed those."""

    def __init__(self, handlers: Mapping[str, Handler], clock: Clock) -> None:
        """`handlers` has the handler of each endpoint of batches."""
        self.handlers = handlers
        self._clock = clock

    async def reply(self, endpoint: str, line: BatchLine, caller: Caller, keep: Keep, *, batch: str) -> None:
        """Run a line of a batch, and keep its result before its usage is written.

        Raises the failure of the line; it has no result then. A cancellation that comes while the result is being
        written has no effect.
        """
        line_id = mint_line_id()
        draw = ArmDraw(nonce=nonce_of(f"{batch}\n{line.custom_id}"))  # a repeated line has the same arm
        state = RequestState(
            request_id=line_id, arrived_s=self._clock.monotonic_s(), caller=caller, body=line.body, draw=draw
        )
        status = HTTP_OK

        async def send(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                return
            reply = LineResponse(status_code=status, request_id=line_id, body=msgspec.Raw(message["body"]))
            await uncancelled(keep(LineResult(id=line_id, custom_id=line.custom_id, response=reply)))

        scope = {"type": "http", "method": "POST", "path": endpoint, "headers": [], "manylora": state, SEND: send}
        await self.handlers[endpoint](HttpContext(scope, self._clock))


def failed_result(line: BatchLine, error: BaseException) -> LineResult:
    """Return the result of a line that failed, in the form of the HTTP reply."""
    failure = error if isinstance(error, ManyloraError) else EngineFault("internal error")
    line_id = mint_line_id()
    reply = LineResponse(
        status_code=status_of(failure, Dialect.OPENAI),
        request_id=line_id,
        body=msgspec.Raw(msgspec.json.encode(body_of(failure, Dialect.OPENAI, _model_of(line)))),
    )
    return LineResult(id=line_id, custom_id=line.custom_id, response=reply)


def expired_result(line: BatchLine) -> LineResult:
    """Return the result of a line that has not run within the window."""
    message = "This request could not be executed before the completion window expired."
    error = LineError(code="batch_expired", message=message)
    return LineResult(id=mint_line_id(), custom_id=line.custom_id, error=error)


def _model_of(line: BatchLine) -> str | None:
    """Return the model's name in a line, for the text of an error; None: it names none, or is the error itself."""
    try:
        fields = msgspec.json.decode(line.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # the check of an input does not look for bytes that are no UTF-8 in a body
    name = fields.get("adapter_id") or fields.get("model")
    return name if isinstance(name, str) else None


async def uncancelled(work: Awaitable[None]) -> None:
    """Wait for the end of `work` also if this task is cancelled meanwhile; the cancellation is dropped then."""
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise
    task.result()
