"""A closed-loop load on any server that speaks OpenAI's streamed `/v1/completions`.

Prompts are random token ids, different in every run, so that no prefix cache helps; the end of sequence is ignored.
Every stream sends its next request when the last one has ended. The figures count all pieces that arrive after each
stream has had its first answer and before the time is up, those of unfinished answers too. So neither the start nor the
drain counts. First-token times count from sending.
"""

import asyncio
import json
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random
from urllib.parse import urlsplit

import httptools

from manylora.bench.workloads import Workload
from manylora.clock import Clock, SystemClock

CONNECT_WAIT_S = 10.0
FIRST_ID = 3  # ids below are special in the vocabularies served here


@dataclass
class Answer:
    """One request: the time it was sent, and the time each of its pieces arrived, in seconds of one clock."""

    sent_s: float
    pieces_s: list[float] = field(default_factory=list)
    ended_s: float | None = None
    tokens: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Figures:
    """The figures of a load, times in milliseconds.

    token_time         time of one answer from its first piece to its last, divided by the tokens after the first piece
    gap                between pieces of one stream; a server that sends several tokens at once has few long ones
    all_output_tokens  of the whole run, its start included
    first_errors       the replies of up to three failed requests
    """

    seconds: float
    requests: int
    errors: int
    all_output_tokens: int
    first_errors: tuple[str, ...]
    requests_per_s: float
    output_tokens_per_s: float
    first_token_mean_ms: float
    first_token_median_ms: float
    first_token_p99_ms: float
    token_time_median_ms: float
    gap_median_ms: float
    gap_p99_ms: float


class Connection:
    """One kept-alive HTTP/1.1 connection, which reads server-sent events.

    A path in `url`, such as a tenant's deployment, goes before that of the route.
    """

    def __init__(self, url: str, clock: Clock) -> None:
        self._clock = clock
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._path = f"{parts.path.rstrip('/')}/v1/completions"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def complete(self, body: dict[str, object], answers: list[Answer]) -> None:
        """Send one request and read its answer to the end.

        The answer is in `answers` as soon as the request is sent.
        """
        if self._streams is None:
            async with asyncio.timeout(CONNECT_WAIT_S):
                self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        payload = json.dumps(body).encode()
        head = f"POST {self._path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
        reply = _Reply(Answer(self._clock.monotonic_s()), self._clock)
        answers.append(reply.answer)
        parser = httptools.HttpResponseParser(reply)
        reply.parser = parser
        while not reply.is_complete:
            data = await reader.read(1 << 16)
            if not data and reply.is_done:  # some servers end a stream by closing the connection
                self.close()
                break
            if not data:
                reply.answer.error = reply.answer.error or "the connection was closed"
                self.close()
                break
            parser.feed_data(data)
        if reply.is_complete and not parser.should_keep_alive():
            self.close()
        reply.answer.ended_s = self._clock.monotonic_s()

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class _Reply:
    """Callbacks of the parser, which note the time of every event with text in it."""

    parser: httptools.HttpResponseParser

    def __init__(self, answer: Answer, clock: Clock) -> None:
        self._clock = clock
        self.answer = answer
        self.is_complete = False
        self.is_done = False
        self._rest = b""

    def on_body(self, data: bytes) -> None:
        now_s = self._clock.monotonic_s()
        if self.parser.get_status_code() != 200:
            self._rest += data
            return
        *events, self._rest = (self._rest + data).split(b"\n\n")
        for event in events:
            self.is_done = self.is_done or event.startswith(b"data: [DONE]")
            if not event.startswith(b"data: {"):
                continue
            chunk = json.loads(event[6:])
            if "error" in chunk:
                self.answer.error = str(chunk["error"])
            elif chunk.get("usage"):
                self.answer.tokens = chunk["usage"]["completion_tokens"]
            if chunk.get("choices"):
                self.answer.pieces_s.append(now_s)

    def on_message_complete(self) -> None:
        if self.parser.get_status_code() != 200:
            self.answer.error = f"{self.parser.get_status_code()}: {self._rest[:300].decode(errors='replace')}"
        self.is_complete = True


async def run_load(
    url: str,
    workload: Workload,
    targets: Iterator[Mapping[str, object]],
    vocab: int,
    seconds: float,
    patience_s: float = 600.0,
    clock: Clock | None = None,
) -> Figures:
    """Keep `workload.streams` requests under way for `seconds` after all streams are warm.

    `targets` yields for each request the fields that name its model: `{"model": name}` and the like. A server that
    does not get warm within `patience_s` is measured over that time.
    """
    clock = clock or SystemClock()
    answers: list[Answer] = []
    warm = asyncio.Barrier(workload.streams + 1)
    tasks = [
        asyncio.create_task(keep_busy(Connection(url, clock), workload, targets, Random(), vocab, answers, warm))
        for index in range(workload.streams)
    ]
    begun_s = clock.monotonic_s()
    try:
        try:
            async with asyncio.timeout(patience_s):
                await warm.wait()
        except (TimeoutError, asyncio.BrokenBarrierError):
            return figures_of(answers, begun_s, clock.monotonic_s())
        begun_s = clock.monotonic_s()
        await asyncio.sleep(seconds)
        return figures_of(answers, begun_s, clock.monotonic_s())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run_each(
    url: str, workload: Workload, targets: Sequence[Mapping[str, object]], vocab: int, clock: Clock | None = None
) -> list[Answer]:
    """Send one request for each of the targets, `workload.streams` of them at a time, and return the answers."""
    answers: list[Answer] = []
    left, source = iter(targets), Random()

    async def work() -> None:
        connection = Connection(url, clock or SystemClock())
        try:
            for target in left:
                await connection.complete(body_of(workload, target, source, vocab), answers)
        finally:
            connection.close()

    await asyncio.gather(*(work() for _ in range(workload.streams)))
    return answers


async def keep_busy(
    connection: Connection,
    workload: Workload,
    targets: Iterator[Mapping[str, object]],
    source: Random,
    vocab: int,
    answers: list[Answer],
    warm: asyncio.Barrier,
) -> None:
    """Run one stream until it is cancelled.

    After its first answer it waits at the barrier, and still sends requests.
    """
    try:
        await connection.complete(body_of(workload, next(targets), source, vocab), answers)
        # The loop goes on while the others get warm, so that the load is whole when counting begins.
        waiting = asyncio.ensure_future(warm.wait())
        while not waiting.cancelled():
            await connection.complete(body_of(workload, next(targets), source, vocab), answers)
    finally:
        connection.close()


def body_of(workload: Workload, target: Mapping[str, object], source: Random, vocab: int) -> dict[str, object]:
    return {
        **target,
        "prompt": [source.randrange(FIRST_ID, vocab) for _ in range(workload.prompt)],
        "max_tokens": workload.output,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def figures_of(answers: Sequence[Answer], begun_s: float, ended_s: float) -> Figures:
    """Return the figures of the time between two moments."""
    took_s = ended_s - begun_s
    whole = [answer for answer in answers if answer.ended_s is not None and answer.error is None and answer.pieces_s]
    ended = [answer for answer in whole if begun_s <= (answer.ended_s or 0.0) <= ended_s]
    # A piece is a token, or a few where the server sends several at once.
    tokens_per_piece = sum(answer.tokens for answer in whole) / max(1, sum(len(answer.pieces_s) for answer in whole))
    pieces = sum(begun_s <= at <= ended_s for answer in answers for at in answer.pieces_s)
    firsts = sorted(
        1e3 * (answer.pieces_s[0] - answer.sent_s)
        for answer in answers
        if answer.pieces_s and answer.pieces_s[0] >= begun_s
    )
    gaps = sorted(
        1e3 * (b - a)
        for answer in answers
        for a, b in zip(answer.pieces_s, answer.pieces_s[1:], strict=False)
        if a >= begun_s
    )
    token_times = sorted(
        1e3 * (answer.pieces_s[-1] - answer.pieces_s[0]) / (answer.tokens - 1)
        for answer in ended
        if answer.tokens > 1 and answer.pieces_s[0] >= begun_s
    )
    return Figures(
        seconds=round(took_s, 2),
        requests=len(ended),
        errors=sum(answer.error is not None for answer in answers),
        first_errors=tuple(sorted({answer.error for answer in answers if answer.error is not None})[:3]),
        all_output_tokens=round(tokens_per_piece * sum(len(answer.pieces_s) for answer in answers)),
        requests_per_s=round(len(ended) / took_s, 3),
        output_tokens_per_s=round(pieces * tokens_per_piece / took_s, 1),
        first_token_mean_ms=round(sum(firsts) / max(1, len(firsts)), 1),
        first_token_median_ms=_at(firsts, 0.5),
        first_token_p99_ms=_at(firsts, 0.99),
        token_time_median_ms=_at(token_times, 0.5),
        gap_median_ms=_at(gaps, 0.5),
        gap_p99_ms=_at(gaps, 0.99),
    )


def _at(ordered: Sequence[float], share: float) -> float:
    return round(ordered[int(share * (len(ordered) - 1))], 1) if ordered else 0.0


def drawn(
    choices: Sequence[Mapping[str, object]], *, zipf: float = 0.0, seed: int = 0
) -> Iterator[Mapping[str, object]]:
    """Yield random choices without end. The choice of rank r (from 1) has a probability ∝ 1 / r**zipf; 0 is uniform."""
    source = Random(seed)
    running = list(accumulate((rank + 1) ** -zipf for rank in range(len(choices))))
    while True:
        yield choices[bisect(running, source.random() * running[-1])]


def models(names: Sequence[str]) -> list[Mapping[str, object]]:
    """Return the fields of requests that name a model as OpenAI's clients do."""
    return [{"model": name} for name in names]
