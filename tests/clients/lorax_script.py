"""Runs in the environment of `lorax-client`: URL and adapter name as arguments; the assertions are that client's."""

import asyncio
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import TypeVar

from lorax import AsyncClient, Client
from lorax.errors import GenerationError, ValidationError

URL, ADAPTER = sys.argv[1], sys.argv[2]
PROMPT = "The capital of France is"
client = Client(URL, timeout=60)


Failure = TypeVar("Failure", bound=Exception)


def raised(kind: type[Failure], call: Callable[[], object]) -> Failure:
    """The error a call ends with."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was expected")


def expect(kind: type[Exception], text: str, call: Callable[[], object]) -> None:
    error = raised(kind, call)
    assert text in str(error), error


def check_generate() -> None:
    reply = client.generate(PROMPT, max_new_tokens=6)
    assert reply.details is not None
    assert reply.details.finish_reason == "length"
    assert reply.details.generated_tokens == 6
    assert len(reply.details.tokens) == 6
    assert reply.details.seed is None
    text = "".join(token.text for token in reply.details.tokens if not token.special)
    assert text == reply.generated_text
    bare = client.generate(PROMPT, max_new_tokens=6, details=False)
    assert bare.details is None
    assert bare.generated_text == reply.generated_text
    alternatives = client.generate(PROMPT, max_new_tokens=2, return_k_alternatives=3)
    assert alternatives.details is not None
    assert len(alternatives.details.tokens[0].alternative_tokens) == 3


def check_stream() -> None:
    events = list(client.generate_stream(PROMPT, max_new_tokens=6))
    whole = client.generate(PROMPT, max_new_tokens=6)
    assert len(events) == 6
    assert all(event.generated_text is None for event in events[:-1])
    assert events[-1].generated_text == whole.generated_text
    assert events[-1].details is not None
    assert events[-1].details.generated_tokens == 6
    assert "".join(event.token.text for event in events if not event.token.special) == whole.generated_text


def check_sampling() -> None:
    first = client.generate(PROMPT, max_new_tokens=8, do_sample=True, temperature=0.9, seed=7)
    again = client.generate(PROMPT, max_new_tokens=8, do_sample=True, temperature=0.9, seed=7)
    assert first.generated_text == again.generated_text
    assert first.details is not None
    assert first.details.seed == 7
    best = client.generate(PROMPT, max_new_tokens=4, do_sample=True, best_of=2)
    assert best.details is not None
    assert len(best.details.best_of_sequences) == 1
    greedy = client.generate("One, two, three, four,", max_new_tokens=12)
    stop = greedy.generated_text[4:7]
    stopped = client.generate("One, two, three, four,", max_new_tokens=12, stop_sequences=[stop])
    assert stopped.details is not None
    assert stopped.details.finish_reason == "stop_sequence"
    assert stop in stopped.generated_text


def check_adapters() -> None:
    adapted = client.generate(PROMPT, adapter_id=ADAPTER, adapter_source="local", max_new_tokens=4)
    assert adapted.generated_text is not None
    events = list(client.generate_stream(PROMPT, adapter_id=ADAPTER, max_new_tokens=4))
    assert events[-1].generated_text == adapted.generated_text
    expect(GenerationError, "was not found", lambda: client.generate(PROMPT, adapter_id="no-such-adapter"))
    expect(GenerationError, "was not found", lambda: list(client.generate_stream(PROMPT, adapter_id="no-such-adapter")))
    assert client.generate(PROMPT, max_new_tokens=1).generated_text


def check_refusals() -> None:
    long = "hello " * 4000
    expect(ValidationError, "`inputs` must have less than 2047 tokens", lambda: client.generate(long))
    expect(ValidationError, "Input validation error", lambda: client.generate(PROMPT, decoder_input_details=True))
    expect(ValidationError, "embeddings", lambda: client.embed("x"))
    expect(ValidationError, "classifier", lambda: client.classify("x"))
    body = json.dumps({"inputs": PROMPT, "parameters": {"adapter_id": "no-such-adapter"}}).encode()
    request = urllib.request.Request(f"{URL}/generate", body, {"Content-Type": "application/json"})
    refused = raised(urllib.error.HTTPError, lambda: urllib.request.urlopen(request))
    assert refused.code == 404
    refused.close()


async def check_async() -> None:
    own = AsyncClient(URL, timeout=60)
    replies = await asyncio.gather(
        *(own.generate(PROMPT, max_new_tokens=4, adapter_id=name) for name in (None, ADAPTER) * 4)
    )
    assert len({reply.generated_text for reply in replies}) <= 2
    events = [event async for event in own.generate_stream(PROMPT, max_new_tokens=4)]
    assert events[-1].generated_text == replies[0].generated_text


if __name__ == "__main__":
    check_generate()
    check_stream()
    check_sampling()
    check_adapters()
    check_refusals()
    asyncio.run(check_async())
