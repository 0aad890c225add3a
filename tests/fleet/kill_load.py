"""Streams without a pause while processes of a fleet are killed, and the end of each."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

import httpx2

from tests.support.waiting import PATIENCE_S


@dataclass
class Load:
    """The ends of streams: `whole`, `error` (an event with an error), `cut` or a status.

    urls  of the edges
    body  the request of a stream in LoRAX's dialect
    read  the tokens that callers have read, by request
    """

    urls: tuple[str, ...]
    headers: dict[str, str]
    body: Callable[[Random], dict[str, object]]
    patience_s: float = PATIENCE_S
    ends: Counter[str] = field(default_factory=Counter)
    read: Counter[str] = field(default_factory=Counter)
    running: int = 0
    is_over: bool = False

    async def run(self, strikes: Sequence[Callable[[], None]], source: Random, num_streams: int) -> None:
        """Stream, and strike as soon as two streams run; then let all of them end."""
        tasks = [asyncio.create_task(self._stream(Random(source.random()))) for _ in range(num_streams)]
        try:
            for strike in strikes:
                async with asyncio.timeout(self.patience_s):
                    while self.running < 2:  # noqa: ASYNC110  what is awaited are other processes
                        await asyncio.sleep(0.01)
                await asyncio.to_thread(strike)
            self.is_over = True
            async with asyncio.timeout(self.patience_s):
                await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _stream(self, source: Random) -> None:
        while not self.is_over:
            try:
                self.ends[await self._one(source)] += 1
            except httpx2.HTTPError:
                self.ends["cut"] += 1
                await asyncio.sleep(0.02)

    async def _one(self, source: Random) -> str:
        async with (
            httpx2.AsyncClient(base_url=source.choice(self.urls), timeout=self.patience_s) as client,
            client.stream("POST", "/generate_stream", json=self.body(source), headers=self.headers) as reply,
        ):
            if reply.status_code != 200:
                return str(reply.status_code)
            own, begun, last = reply.headers["x-request-id"], False, ""
            try:
                async for line in reply.aiter_lines():
                    if line.startswith("data:"):
                        self.running += not begun
                        begun, last = True, line
                        self.read[own] += '"token"' in line
            finally:
                self.running -= begun
            return "whole" if '"generated_text":"' in last else "error" if '"error"' in last else "cut"
