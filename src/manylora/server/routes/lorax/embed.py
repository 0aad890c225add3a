"""POST /embed, LoRAX's embeddings."""

from functools import partial

from fastapi import APIRouter

from manylora.clock import Clock
from manylora.config.groups.server import ServerConfig
from manylora.engine.pooling import Pooling
from manylora.errors import EmbeddingFailed
from manylora.server.generation.order import TextPrompt
from manylora.server.generation.reply_headers import whole_of
from manylora.server.generation.service import Completion, GenerationService
from manylora.server.http.context import HttpContext
from manylora.server.http.routing import Guards, Routes
from manylora.server.routes.pooled import faults_as, pooled_order, rows_of
from manylora.server.schemas.body import Bounds, read_body
from manylora.server.schemas.lorax.bodies import EmbedBody
from manylora.server.schemas.lorax.replies import EmbedReply


def embed_router(routes: "EmbedRoutes", guards: Guards, clock: Clock) -> APIRouter:
    """Return the router of LoRAX's embeddings."""
    router = Routes(APIRouter(dependencies=guards.with_body), clock)
    summary = "Embed a text as one vector of length 1"
    router.add("POST /embed", routes.embed, summary, body=EmbedBody, replies={200: EmbedReply})
    return router.router


class EmbedRoutes:
    """The handler of LoRAX's embeddings."""

    def __init__(self, service: GenerationService, settings: ServerConfig, pooling: Pooling) -> None:
        self._service = service
        self._settings = settings
        self._pooling = pooling

    async def embed(self, context: HttpContext) -> None:
        body = read_body(context.arrival.body, EmbedBody, Bounds(settings=self._settings))
        order = pooled_order((TextPrompt(body.inputs),), body.naming, self._pooling, prompt_field="inputs")
        with faults_as(EmbeddingFailed):
            await self._service.run(order, context, partial(self._reply, context))

    async def _reply(self, context: HttpContext, completion: Completion) -> None:
        await completion.outputs.collect()
        await completion.settle()
        [vector] = rows_of(completion.outputs.pooled[0])
        await context.reply({"embeddings": vector}, headers=whole_of(completion))
