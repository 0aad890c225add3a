"""A server on a port of this machine that keeps the bodies of inference requests, and answers each with one word."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

WORD = "received"
MESSAGE = {"role": "assistant", "content": WORD}
CHAT = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}],
}


@dataclass
class Receiver:
    """`bodies`: those that came since the last look."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)  # JSON

    def take(self) -> list[dict[str, Any]]:
        found, self.bodies = self.bodies, []
        return found


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            is_chat = self.path.startswith("/v1/")
            body = json.dumps(CHAT if is_chat else [{"generated_text": WORD}]).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
