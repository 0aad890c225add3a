"""POST /v1/embeddings."""

import base64
from functools import partial

from fastapi import APIRouter
from msgspec import Raw
from msgspec.json import encode

from manylora.clock import Clock
from manylora.config.groups.server import ServerConfig
from manylora.engine.pooling import Pooling
from manylora.errors import EmbeddingFailed
from manylora.server.generation.order import TextPrompt, TokenPrompt
from manylora.server.generation.reply_headers import whole_of
from manylora.server.generation.service import Completion, GenerationService
from manylora.server.http.context import HttpContext
from manylora.server.http.routing import Guards, Handler, Routes
from manylora.server.routes.pooled import faults_as, pooled_order, rows_of, shortened
from manylora.server.schemas.body import Bounds, read_body
from manylora.server.schemas.openai.embeddings import EmbeddingBody
from manylora.server.schemas.openai.replies import EmbeddingReply

MAX_INPUT_TOKENS = 300_000
"""Tokens of all inputs together; OpenAI's own limit."""


def embeddings_router(routes: "EmbeddingRoutes", guards: Guards, clock: Clock) -> APIRouter:
    """Return the router of OpenAI's embeddings."""
    router = Routes(APIRouter(dependencies=guards.with_body), clock)
    router.add(
        "POST /v1/embeddings",
        routes.embeddings,
        "Embed texts, each as one vector of length 1",
        body=EmbeddingBody,
        replies={200: EmbeddingReply},
    )
    return router.router


class EmbeddingRoutes:
    """The handler of OpenAI's embeddings."""

    def __init__(self, service: GenerationService, settings: ServerConfig, pooling: Pooling) -> None:
        self._service = service
        self._settings = settings
        self._pooling = pooling

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers by route, for the lines of batches."""
        return {"/v1/embeddings": self.embeddings}

    async def embeddings(self, context: HttpContext) -> None:
        body = read_body(context.arrival.body, EmbeddingBody, Bounds(settings=self._settings))
        prompts = tuple(
            TextPrompt(prompt, body.add_special_tokens) if isinstance(prompt, str) else TokenPrompt(prompt)
            for prompt in body.input
        )
        order = pooled_order(
            prompts,
            body.naming,
            self._pooling,
            prompt_field="input",
            model=body.model,
            dimensions=body.dimensions,
            truncate=body.truncate_prompt_tokens,
            most_tokens=MAX_INPUT_TOKENS,
        )
        context.model = None if order.adapter.recipe else order.adapter_name or ""
        with faults_as(EmbeddingFailed):
            await self._service.run(order, context, partial(self._reply, context, body))

    async def _reply(self, context: HttpContext, asked: EmbeddingBody, completion: Completion) -> None:
        await completion.outputs.collect()
        await completion.settle()
        # Numbers become text one vector at a time: as Python objects they take many times the bytes of the reply.
        vectors = [
            base64.b64encode(pooled.data).decode()
            if asked.encoding_format == "base64"
            else Raw(encode(rows_of(pooled)[0]))
            for pooled in (shortened(whole, asked.dimensions) for whole in completion.outputs.pooled)
        ]
        tokens = completion.num_prompt_tokens
        body = {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)
            ],
            "model": completion.model_name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        await context.reply(body, headers=whole_of(completion))
