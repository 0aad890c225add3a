"""Runs in the environment of `lorax-client`, with a file of facts as its argument."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import requests
from lorax import AsyncClient, Client
from lorax.errors import GenerationError, OverloadedError, RateLimitExceededError, ValidationError
from lorax.types import MergedAdapters

from tests.clients.scripts.cases import FACTS, case, core, raised, run_cases

URL, KEY, ADAPTER, PROMPT = FACTS["url"], FACTS["key"], FACTS["adapter"], FACTS["prompt"]
PARIS = "The capital of France is"
HEADERS = {"Authorization": f"Bearer {KEY}"}
client = Client(URL, headers=HEADERS, timeout=60)
once = requests.Session()
"""A session that repeats no request; the client's own repeats a POST of no status either, but waits for some."""


def shown(events: list[Any]) -> str:
    return "".join(event.token.text for event in events if not event.token.special)


def asking(path: str, body: dict[str, Any]) -> Any:
    """Send a request without the client, whose types leave parts of a reply out; return the open reply."""
    headers = {**HEADERS, "Content-Type": "application/json"}
    return urllib.request.urlopen(urllib.request.Request(f"{URL}/{path}", json.dumps(body).encode(), headers))


@core
def a_whole_reply_has_its_details() -> None:
    reply = client.generate(PARIS, max_new_tokens=6)
    assert reply.details is not None
    assert reply.details.finish_reason == "length"
    assert reply.details.generated_tokens == len(reply.details.tokens) == 6
    assert reply.details.prompt_tokens == 5
    assert reply.details.seed is None
    assert "".join(token.text for token in reply.details.tokens if not token.special) == reply.generated_text
    bare = client.generate(PARIS, max_new_tokens=6, details=False)
    assert (bare.details, bare.generated_text) == (None, reply.generated_text)


@case
def alternatives_stand_beside_each_token() -> None:
    reply = client.generate(PARIS, max_new_tokens=3, return_k_alternatives=3)
    assert reply.details is not None
    for token in reply.details.tokens:
        assert len(token.alternative_tokens) == 3

        assert token.alternative_tokens[0].id == token.id
        assert token.alternative_tokens[0].logprob == token.logprob


@core
def details_list_the_scored_tokens_of_the_prompt() -> None:
    reply = client.generate(PARIS, max_new_tokens=1, decoder_input_details=True)
    assert reply.details is not None
    assert len(reply.details.prefill) > 1
    assert [token.logprob is None for token in reply.details.prefill[:2]] == [True, False]


@case
def the_full_text_begins_with_the_prompt() -> None:
    reply = client.generate(PARIS, max_new_tokens=4, return_full_text=True)
    assert reply.generated_text == PARIS + client.generate(PARIS, max_new_tokens=4).generated_text


@case
def truncate_keeps_the_end_of_the_prompt() -> None:
    cut = client.generate(f"{'word ' * 50}{PARIS}", max_new_tokens=4, truncate=5)
    assert cut.details is not None
    assert cut.details.prompt_tokens == 5
    assert cut.generated_text == client.generate(f" {PARIS}", max_new_tokens=4).generated_text


@core
def a_text_has_an_embedding() -> None:
    vector = client.embed(PARIS).embeddings
    assert vector is not None
    assert abs(sum(value**2 for value in vector) - 1) < 1e-5
    assert client.embed(PARIS).embeddings == vector


@core
def a_stream_is_the_whole_reply_in_pieces() -> None:
    events = list(client.generate_stream(PARIS, max_new_tokens=6))
    whole = client.generate(PARIS, max_new_tokens=6)
    assert len(events) == 6
    assert all(event.generated_text is None and event.details is None for event in events[:-1])
    assert events[-1].generated_text == whole.generated_text == shown(events)
    assert events[-1].details is not None
    assert events[-1].details.generated_tokens == 6
    assert list(client.generate_stream(PARIS, max_new_tokens=2, details=False))[-1].details is None


@core
def a_stream_ends_with_the_end_of_sequence() -> None:
    events = list(client.generate_stream(PROMPT, adapter_id=ADAPTER, max_new_tokens=16))
    assert events[-1].token.special
    assert events[-1].token.text == ""
    assert events[-1].generated_text == shown(events) == FACTS["answer"]
    assert events[-1].details.finish_reason == "eos_token"


@case
def a_seed_repeats_a_text() -> None:
    draw = partial(client.generate, PARIS, max_new_tokens=12, do_sample=True, temperature=0.9)
    first, again, other = draw(seed=7), draw(seed=7), draw(seed=8)
    assert first.generated_text == again.generated_text != other.generated_text
    assert first.details is not None
    assert first.details.seed == 7
    drawn = draw().details
    assert drawn is not None
    assert 0 <= drawn.seed < 2**53


@case
def every_sampling_parameter_is_applied() -> None:
    greedy = client.generate(PARIS, max_new_tokens=12).generated_text
    assert client.generate(PARIS, max_new_tokens=12, top_k=1, seed=1).generated_text == greedy
    assert client.generate(PARIS, max_new_tokens=12, top_p=1e-6, seed=1).generated_text == greedy
    assert client.generate(PARIS, max_new_tokens=12, temperature=1e-6, seed=1).generated_text == greedy
    assert client.generate(PARIS, max_new_tokens=12, repetition_penalty=1.8).generated_text != greedy
    assert client.generate(PARIS, max_new_tokens=12, typical_p=0.3, seed=1).generated_text


@case
def all_parameters_hold_together() -> None:
    """The fields of a request with everything set, as a caller of LoRAX writes it."""
    fields: dict[str, Any] = {
        "adapter_id": ADAPTER,
        "adapter_source": "local",
        "api_token": "unused",
        "do_sample": True,
        "max_new_tokens": 12,
        "ignore_eos_token": True,
        "repetition_penalty": 1.2,
        "return_full_text": True,
        "seed": 0,
        "stop_sequences": ["never in the text"],
        "temperature": 0.5,
        "top_k": 10,
        "top_p": 0.9,
        "truncate": 8,
        "typical_p": 0.9,
        "details": True,
    }
    reply = client.generate(PARIS, return_k_alternatives=2, **fields)
    assert reply.generated_text.startswith(PARIS)
    assert reply.details is not None
    assert (reply.details.seed, reply.details.prompt_tokens, reply.details.generated_tokens) == (0, 5, 12)
    assert client.generate(PARIS, best_of=1, **fields).generated_text == reply.generated_text
    assert list(client.generate_stream(PARIS, **fields))[-1].generated_text == reply.generated_text
    changed = {**fields, "seed": 1, "temperature": 1.5, "top_k": 400, "top_p": None, "typical_p": None}
    assert client.generate(PARIS, **changed).generated_text != reply.generated_text


@case
def equal_requests_at_once_have_equal_replies() -> None:
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: client.generate(PARIS, max_new_tokens=10), range(8)))
    first, *others = [reply.details.model_dump() for reply in replies if reply.details is not None]
    assert len(others) == 7
    for each in (first, *others):
        each["skipped_tokens"] = None
        for token in each["tokens"]:
            token["skipped"] = None  # a full step has no room for draft tokens
    assert all(each == first for each in others)


@case
def tokens_that_drafts_gain_are_counted() -> None:
    """The client's own types leave the counts out."""
    body = {"inputs": "1 2 3 1 2 3 1 2 3 1 2 3 1 2 3", "parameters": {"details": True, "max_new_tokens": 24}}
    with asking("generate", body) as reply:
        details = json.load(reply)["details"]
        assert details["skipped_tokens"] == sum(token["skipped"] for token in details["tokens"]) > 0
        assert reply.headers["x-skipped-tokens"] == str(details["skipped_tokens"])


@case
def the_best_of_two_shows_the_other() -> None:
    best = client.generate(PARIS, max_new_tokens=4, do_sample=True, best_of=2)
    assert best.details is not None
    [other] = best.details.best_of_sequences
    # A sequence ends early at the end-of-sequence token.
    means = [sum(token.logprob for token in each.tokens) / len(each.tokens) for each in (best.details, other)]
    assert means[0] >= means[1]
    assert other.seed != best.details.seed


@core
def a_stop_string_stays_in_the_text() -> None:
    counting = "One, two, three, four,"
    stop = client.generate(counting, max_new_tokens=12).generated_text[4:7]
    stopped = client.generate(counting, max_new_tokens=12, stop_sequences=[stop])
    assert stopped.details is not None
    assert stopped.details.finish_reason == "stop_sequence"
    assert stop in stopped.generated_text
    events = list(client.generate_stream(counting, max_new_tokens=12, stop_sequences=[stop]))
    assert events[-1].generated_text == stopped.generated_text == shown(events)


@case
def the_end_of_sequence_can_be_passed_over() -> None:
    on = client.generate(PROMPT, adapter_id=ADAPTER, max_new_tokens=16, ignore_eos_token=True)
    assert on.details is not None
    assert (on.details.finish_reason, on.details.generated_tokens) == ("length", 16)


@case
def an_adapter_answers_from_each_source() -> None:
    for named in ({}, {"adapter_source": "local"}, {"adapter_source": "local", "api_token": "unused"}):
        assert client.generate(PROMPT, adapter_id=ADAPTER, max_new_tokens=8, **named).generated_text == FACTS["answer"]
    texts = {client.generate(PARIS, adapter_id=name, max_new_tokens=8).generated_text for name in FACTS["ranks"]}
    assert len(texts) > 1
    assert client.generate(PARIS, adapter_id="__base_model__", max_new_tokens=4).generated_text


def merges() -> Iterator[MergedAdapters]:
    for strategy in ("linear", "ties", "dare_linear", "dare_ties"):
        for sign in ("total", "frequency"):
            yield MergedAdapters(
                ids=[ADAPTER, "sql-query"],
                weights=[0.7, 0.3],
                merge_strategy=strategy,
                density=0.6,
                majority_sign_method=sign,
            )


@case
def several_adapters_are_merged_by_each_strategy() -> None:
    for merged in merges():
        first = client.generate(PROMPT, merged_adapters=merged, max_new_tokens=4).generated_text
        assert client.generate(PROMPT, merged_adapters=merged, max_new_tokens=4).generated_text == first, merged


@core
def a_merge_of_one_adapter_answers_as_the_adapter() -> None:
    alone = MergedAdapters(ids=[ADAPTER], weights=[1.0], merge_strategy="linear", density=0.0)
    assert client.generate(PROMPT, merged_adapters=alone, max_new_tokens=8).generated_text == FACTS["answer"]
    events = list(client.generate_stream(PROMPT, merged_adapters=alone, max_new_tokens=8))
    assert events[-1].generated_text == FACTS["answer"]


@core
def a_merge_that_is_wrong_is_refused() -> None:
    unknown = MergedAdapters(ids=[ADAPTER, "no-such"], weights=[1, 1], merge_strategy="linear", density=0)
    raised(GenerationError, lambda: client.generate(PARIS, merged_adapters=unknown), "was not found")
    thin = MergedAdapters(ids=[ADAPTER], weights=[1.0], merge_strategy="ties", density=0.0)
    text = "`density` must be > 0.0 and <= 1.0 for `ties`"
    raised(ValidationError, lambda: client.generate(PARIS, merged_adapters=thin), text)


@core
def a_schema_holds_for_texts_and_streams() -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Rome", "Paris"]}}, "required": ["city"]}
    wanted = {"type": "json_object", "schema": schema}
    ask = partial(client.generate, f"{PARIS} JSON: ", max_new_tokens=60, response_format=wanted)
    for named in ({}, {"adapter_id": ADAPTER}):
        assert json.loads(ask(**named).generated_text)["city"] in ("Rome", "Paris")
    events = list(client.generate_stream(f"{PARIS} JSON: ", max_new_tokens=60, response_format=wanted))
    assert json.loads(events[-1].generated_text)["city"] in ("Rome", "Paris")


@core
def an_adapter_that_cannot_serve_is_a_generation_error() -> None:
    for name, text in (
        ("no-such-adapter", "Adapter 'no-such-adapter' was not found in source"),
        (FACTS["broken"], "cannot be read"),
        (FACTS["private"], "was not found"),
    ):
        raised(GenerationError, partial(client.generate, PARIS, adapter_id=name), text)
        raised(GenerationError, partial(next, client.generate_stream(PARIS, adapter_id=name)), text)
        assert client.generate(PARIS, max_new_tokens=1).generated_text, "the next request is served"


@case
def a_missing_adapter_has_the_status_404_on_streams_too() -> None:
    for path in ("generate", "generate_stream"):
        body = {"inputs": PARIS, "parameters": {"adapter_id": "no-such-adapter"}}
        refused = raised(urllib.error.HTTPError, partial(asking, path, body))
        assert refused.code == 404
        refused.close()


@core
def wrong_requests_are_validation_errors() -> None:
    long = "hello " * 4000
    most = FACTS["window"] - 1
    raised(ValidationError, lambda: client.generate(long), f"`inputs` must have less than {most} tokens. Given: 4")
    for fields, text in (
        ({"watermark": True}, "`watermark` is not supported by this server"),
        ({"adapter_id": ADAPTER, "adapter_source": "s3"}, "`adapter_source` must be one of"),
        ({"adapter_id": "../etc", "adapter_source": "local"}, "`adapter_id` must be a name"),
    ):
        raised(ValidationError, partial(client.generate, PARIS, max_new_tokens=1, **fields), text)
    raised(ValidationError, lambda: client.classify("x"), "classification head")
    raised(ValidationError, lambda: client.classify_batch(["x"]), "classification head")


@case
def a_limited_key_is_told_so() -> None:
    limited = Client(URL, headers={"Authorization": f"Bearer {FACTS['limited_key']}"}, session=once)
    ask = partial(limited.generate, PARIS, max_new_tokens=1)
    raised(
        RateLimitExceededError, lambda: [ask() for _ in range(10 * FACTS["limited_requests"])], "Rate limit exceeded"
    )


@case
def a_full_server_is_overloaded() -> None:
    def ask(_: int) -> str:
        try:
            return str(Client(URL, headers=HEADERS, session=once).generate(PARIS, max_new_tokens=200).generated_text)
        except OverloadedError as error:
            return f"refused: {error}"

    with ThreadPoolExecutor(2 * FACTS["max_concurrent"]) as pool:
        texts = list(pool.map(ask, range(2 * FACTS["max_concurrent"])))
    assert "refused: Model is overloaded" in texts
    assert len({text for text in texts if not text.startswith("refused")}) == 1


@case
def a_caller_that_leaves_frees_its_place() -> None:
    for _ in range(FACTS["max_concurrent"]):
        stream = client.generate_stream(PARIS, max_new_tokens=1000, ignore_eos_token=True)
        next(iter(stream))
        stream.close()
    assert client.generate(PARIS, max_new_tokens=1).generated_text


@core
async def the_async_client_does_the_same() -> None:
    own = AsyncClient(URL, headers=HEADERS, timeout=60)
    names = (None, ADAPTER) * 4
    replies = await asyncio.gather(*(own.generate(PROMPT, max_new_tokens=8, adapter_id=name) for name in names))
    assert {reply.generated_text for reply in replies[1::2]} == {FACTS["answer"]}
    assert len({reply.generated_text for reply in replies[::2]}) == 1
    events = [event async for event in own.generate_stream(PROMPT, adapter_id=ADAPTER, max_new_tokens=8)]
    assert events[-1].generated_text == FACTS["answer"]
    unknown = await asyncio.gather(own.generate(PROMPT, adapter_id="no-such-adapter"), return_exceptions=True)
    assert isinstance(unknown[0], GenerationError)
    assert "was not found" in str(unknown[0])
    assert (await own.embed(PARIS)).embeddings == client.embed(PARIS).embeddings
    refused = await asyncio.gather(own.classify("x"), return_exceptions=True)
    assert isinstance(refused[0], ValidationError)
    assert "classification head" in str(refused[0])


if __name__ == "__main__":
    run_cases("lorax-client")
