"""The load against a server whose answers are known: what it sends, what it counts, what it says of failures."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from manylora.bench.load import Figures, drawn, models, run_load
from manylora.bench.workloads import Workload
from tests.support.waiting import PATIENCE_S

WORKLOAD = Workload(prompt=5, output=4, streams=3)
PIECE_S = 0.02
Script = Callable[[dict[str, Any], asyncio.StreamWriter], Any]


def event(fields: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(fields)}\n\n".encode()


async def answer(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    """Four tokens in two pieces, PIECE_S apart, and the usage."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    usage = {"prompt_tokens": 5, "completion_tokens": 4}
    for fields in ({"choices": [{"text": "ab"}]}, {"choices": [{"text": "cd"}]}, {"choices": [], "usage": usage}):
        await asyncio.sleep(PIECE_S)
        payload = event(fields)
        writer.write(f"{len(payload):x}\r\n".encode() + payload + b"\r\n")
    end = b"data: [DONE]\n\n"
    writer.write(f"{len(end):x}\r\n".encode() + end + b"\r\n0\r\n\r\n")


async def refuse(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(PIECE_S)
    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 7\r\n\r\nno such")


async def close_after_done(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    """As llama.cpp does: the end of the connection is the end of the answer."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
    await asyncio.sleep(PIECE_S)
    writer.write(event({"choices": [{"text": "a"}]}))
    writer.write(event({"choices": [], "usage": {"completion_tokens": 1}}) + b"data: [DONE]\n\n")
    writer.close()


@asynccontextmanager
async def serving(script: Script, bodies: list[dict[str, Any]]) -> AsyncIterator[str]:
    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length: ")[2].split("\r\n")[0])
                bodies.append(json.loads(await reader.readexactly(length)))
                await script(bodies[-1], writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def load(script: Script, least: int = 0) -> tuple[Figures, list[dict[str, Any]]]:
    """The figures of a load that is long enough for so many requests to end, and the requests of it."""

    async def run(seconds: float) -> tuple[Figures, list[dict[str, Any]]]:
        bodies: list[dict[str, Any]] = []
        async with serving(script, bodies) as url:
            targets = drawn(models(["one", "two"]))
            return await run_load(url, WORKLOAD, targets, 50, seconds, patience_s=PATIENCE_S), bodies

    seconds = 0.2
    while (found := asyncio.run(run(seconds)))[0].requests < least:
        assert seconds < PATIENCE_S
        seconds *= 2
    return found


def test_every_stream_asks_for_distinct_tokens_of_the_drawn_models() -> None:
    figures, bodies = load(answer, 1)
    assert figures.errors == 0
    assert len(bodies) >= figures.requests > 0
    assert {body["model"] for body in bodies} == {"one", "two"}
    again, others = load(answer)
    assert again.errors == 0
    prompts = [tuple(body["prompt"]) for body in bodies + others]  # a server that knew one from before could reuse it
    assert len({*prompts}) == len(prompts)
    assert all(len(prompt) == 5 and all(3 <= token < 50 for token in prompt) for prompt in prompts)
    assert all(body["max_tokens"] == 4 and body["ignore_eos"] and body["stream"] for body in bodies)


def test_tokens_are_counted_and_not_pieces() -> None:
    figures, _ = load(answer, 2 * WORKLOAD.streams)
    # Two pieces of two tokens: what a piece stands for is known from the usage.
    assert figures.all_output_tokens % 2 == 0
    assert figures.all_output_tokens >= 4 * figures.requests > 0
    assert 0 < figures.token_time_median_ms < figures.gap_median_ms


def test_refusals_are_errors_with_their_text_and_no_figures() -> None:
    figures, _ = load(refuse)
    assert figures.errors > 0
    assert figures.first_errors == ("404: no such",)
    assert (figures.requests, figures.output_tokens_per_s) == (0, 0.0)


def test_a_server_that_ends_an_answer_by_closing_is_asked_again() -> None:
    figures, bodies = load(close_after_done, 1)
    assert figures.errors == 0
    assert len(bodies) > WORKLOAD.streams


def test_a_server_that_never_gets_warm_is_measured_for_as_long_as_we_are_patient() -> None:
    async def silent(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60.0)

    async def run() -> Figures:
        async with serving(silent, []) as url:
            return await run_load(url, WORKLOAD, drawn(models(["one"])), 50, 60.0, patience_s=0.2)

    figures = asyncio.run(run())
    assert (figures.requests, figures.errors) == (0, 0)
    assert 0.2 <= figures.seconds < 30


def test_zipf_prefers_the_first_and_zero_does_not() -> None:
    choices = models([str(number) for number in range(10)])
    for zipf, least, most in ((0.0, 0.05, 0.16), (1.0, 0.28, 0.41)):
        first = sum(choice == choices[0] for choice in itertools.islice(drawn(choices, zipf=zipf), 2000)) / 2000
        assert least < first < most
