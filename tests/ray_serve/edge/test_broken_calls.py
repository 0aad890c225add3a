"""Calls that fail as no error of the project does: each request and question has its end, and the beats go on."""

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Collection
from pathlib import Path

import pytest

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.cluster.views import Want
from manylora.config.settings import Config
from manylora.engine.events import FinishReason
from manylora.errors import EngineFault, ManyloraError, Unavailable
from manylora.ids import Flow, ReplicaId
from manylora.ray_serve.each_replica import Answers
from manylora.ray_serve.edge import handle_transport
from manylora.ray_serve.edge.handle_transport import HandleTransport
from manylora.ray_serve.items import ACCEPTED
from manylora.server.engine_client.client import EngineClient
from tests.ray_serve.carried import CarriedCalls, fleet, request_for
from tests.ray_serve.edge.test_handle_transport import events_of, until
from tests.support.waiting import PATIENCE_S


class BrokenCalls:
    """Calls to real replicas whose carrier fails: by an exception that it raises, or with bytes that are no message."""

    def __init__(self, calls: CarriedCalls, raised: type[BaseException] | None) -> None:
        self._calls = calls
        self._raised = raised
        self.num_rounds = 0

    async def generate(self, want: Want, operation: bytes) -> AsyncGenerator[bytes, None]:
        yield ACCEPTED
        yield self._broken()

    async def ready(self) -> bytes:
        return await self._calls.ready()

    async def ask(self, want: Want, operation: bytes) -> bytes:
        return self._broken()

    async def ask_all(
        self,
        operation: bytes,
        *,
        among: frozenset[ReplicaId] | None = None,
        known_silent: Collection[ReplicaId] = (),
    ) -> Answers:
        self.num_rounds += 1
        return Answers(values={name: self._broken() for name in self._calls.replicas})

    def _broken(self) -> bytes:
        if self._raised is not None:
            raise self._raised("told to fail")
        return b"\xc1"


@pytest.mark.parametrize(
    ("raised", "kind"),
    [(RuntimeError, EngineFault), (None, EngineFault), (asyncio.CancelledError, Unavailable)],
    ids=["raises", "no-message", "cancelled"],
)
def test_each_request_and_each_question_ends_and_the_beats_go_on(
    tmp_path: Path,
    raised: type[BaseException] | None,
    kind: type[ManyloraError],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(handle_transport, "BEAT_S", 0.0)

    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), fleet(tmp_path, num_replicas=1) as (_, carried):
            calls = BrokenCalls(carried, raised)
            edge = EngineClient(HandleTransport(calls, Config()))
            await edge.start()
            request = request_for("hi")
            _, end = await events_of(edge.generate(request))
            assert end.reason is FinishReason.ENGINE_FAILURE
            assert end.failure is not None
            assert end.failure.kind is kind
            assert (f"fleet.call_broken request_id={request.id}" in caplog.text) == (kind is EngineFault)
            with pytest.raises(Unavailable):
                await edge.infos()
            reply = await edge.text(AdapterRef(SourceName.LOCAL, "tone"), Flow("acme"), 1)
            assert reply.failure is not None
            assert reply.failure.kind is kind
            await until(lambda: calls.num_rounds > 5)
            assert not edge.num_in_flight
            await edge.close()

    asyncio.run(main())


def test_calls_run_outside_the_context_of_the_request_by_which_ray_cancels_them(tmp_path: Path) -> None:
    in_force: contextvars.ContextVar[str] = contextvars.ContextVar("in_force", default="")
    seen: list[str] = []

    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), fleet(tmp_path, num_replicas=1) as (edge, carried):
            carried.on_call = lambda: seen.append(in_force.get())
            in_force.set("a request")
            await events_of(edge.generate(request_for("hi")))
            await edge.infos()

    asyncio.run(main())
    assert {*seen} == {""}
