"""POST /classify and /classify_batch."""

import secrets
from functools import partial

from fastapi import APIRouter

from manylora.clock import Clock
from manylora.config.groups.server import ServerConfig
from manylora.engine.pooling import Pooling
from manylora.errors import ClassificationFailed
from manylora.server.generation.order import TextPrompt
from manylora.server.generation.reply_headers import whole_of
from manylora.server.generation.service import Completion, GenerationService
from manylora.server.http.context import HttpContext
from manylora.server.http.routing import Guards, Routes
from manylora.server.routes.lorax.entities import entities_of, label_name, probabilities
from manylora.server.routes.pooled import faults_as, pooled_order, rows_of
from manylora.server.schemas.body import Bounds, read_body
from manylora.server.schemas.lorax.classify import (
    ClassesReply,
    ClassifyBatchBody,
    ClassifyBody,
    Entity,
    TextClasses,
)


def classify_router(routes: "ClassifyRoutes", guards: Guards, clock: Clock) -> APIRouter:
    """Return the router of classification, which needs an adapter with a classification head."""
    router = Routes(APIRouter(dependencies=guards.with_body), clock)
    router.add(
        "POST /classify",
        routes.classify,
        "Find the entities of a text (`inputs`), or the class of texts (`input`), by an adapter's head",
        body=ClassifyBody,
        replies={200: list[Entity] | ClassesReply},
    )
    router.add(
        "POST /classify_batch",
        routes.classify_batch,
        "Find the entities of several texts",
        body=ClassifyBatchBody,
        replies={200: list[list[Entity]]},
    )
    return router.router


class ClassifyRoutes:
    """The handlers of classification."""

    def __init__(self, service: GenerationService, settings: ServerConfig) -> None:
        self._service = service
        self._settings = settings

    async def classify(self, context: HttpContext) -> None:
        body = read_body(context.arrival.body, ClassifyBody, Bounds(settings=self._settings))
        if body.input is None:
            assert body.inputs is not None  # one of both is there
            await self._find_entities(context, (body.inputs,), body, is_batch=False)
            return
        prompts = tuple(TextPrompt(text) for text in body.input)
        order = pooled_order(prompts, body.naming, Pooling.CLASSES, prompt_field="input", model=body.model)
        with faults_as(ClassificationFailed):
            await self._service.run(order, context, partial(self._reply_classes, context))

    async def classify_batch(self, context: HttpContext) -> None:
        body = read_body(context.arrival.body, ClassifyBatchBody, Bounds(settings=self._settings))
        await self._find_entities(context, body.inputs, body, is_batch=True)

    async def _find_entities(
        self, context: HttpContext, texts: tuple[str, ...], body: ClassifyBody | ClassifyBatchBody, *, is_batch: bool
    ) -> None:
        prompts = tuple(TextPrompt(text) for text in texts)
        model = body.model if isinstance(body, ClassifyBody) else None
        order = pooled_order(prompts, body.naming, Pooling.TOKEN_CLASSES, prompt_field="inputs", model=model)
        with faults_as(ClassificationFailed):
            await self._service.run(order, context, partial(self._reply_entities, context, texts, is_batch))

    async def _reply_classes(self, context: HttpContext, completion: Completion) -> None:
        await completion.outputs.collect()
        await completion.settle()
        words = completion.prompts[0].rules.text
        data: list[TextClasses] = []
        for index, pooled in enumerate(completion.outputs.pooled):
            [logits] = rows_of(pooled)
            label = label_name(words.labels, logits.index(max(logits)))
            probs = probabilities(logits, words.problem)
            data.append({"index": index, "label": label, "probs": probs, "num_classes": len(logits)})
        reply = {
            "id": f"classify-{secrets.token_hex(16)}",
            "object": "list",
            "created": int(context.clock.wall_s()),
            "model": completion.model_name,
            "data": data,
        }
        await context.reply(reply, headers=whole_of(completion))

    async def _reply_entities(
        self, context: HttpContext, texts: tuple[str, ...], is_batch: bool, completion: Completion
    ) -> None:
        await completion.outputs.collect()
        await completion.settle()
        labels, inputs = completion.prompts[0].rules.text.labels, completion.model.inputs
        found: list[list[Entity]] = []
        for text, prompt, pooled in zip(texts, completion.prompts, completion.outputs.pooled, strict=True):
            found.append(entities_of(text, await inputs.spans_of(text, prompt), rows_of(pooled), labels))
        await context.reply(found if is_batch else found[0], headers=whole_of(completion))
