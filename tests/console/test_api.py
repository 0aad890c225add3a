"""Calls of the server's own API by the console: their bodies."""

import asyncio
import json

from manylora.console.api import Api, Message, Receive, Scope, Send


def test_a_body_has_the_size_of_its_text() -> None:
    found: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        message: Message = await receive()
        found.append(message["body"])
        assert (b"content-length", str(len(found[0])).encode()) in scope["headers"]
        await send({"type": "http.response.start", "status": 200, "headers": []})

    text = "вопрос" * 1000
    asyncio.run(Api(app, {"headers": []}, "").call("PUT", "/", {"questions": text}))
    assert json.loads(found[0]) == {"questions": text}
    assert len(found[0]) < len(text.encode()) + 100
